"""Chips and a predictor for tests of the front door: plausible numbers, no simulator."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from foretile.hwmodels.incomplete import incomplete_chip
from foretile.hwmodels.schema import Chip
from foretile.simulator.machine import SimulationError
from foretile.simulator.prediction import Explanation, Prediction


def _q(value: float, confidence: str = "datasheet") -> dict[str, Any]:
    return {"value": value, "source": "made up for tests", "confidence": confidence}


def make_chip(
    chip_id: str, *, cores: int, ghz: float, flop: int, tb_per_s: float, confidence: str = "datasheet"
) -> Chip:
    """A chip of style ``simt``; ``flop``: dense bf16 FLOP a cycle and core."""
    guess = "inferred" if confidence != "measured" else "measured"
    return Chip.model_validate(
        {
            "id": chip_id,
            "name": chip_id.replace("-", " ").title(),
            "vendor": "Testing",
            "family": "fake",
            "style": "simt",
            "cores": _q(cores),
            "clock": {"max_hz": _q(ghz * 1e9)},
            "matrix": {
                "instruction": "mma_sync",
                "flop_per_cycle": {"bf16": _q(flop), "fp16": _q(flop)},
                "m": _q(16), "n": _q(8), "k_bytes": _q(32),
                "latency_cycles": _q(32, guess), "mainloop_fraction": _q(0.85, guess),
            },
            "vector": {
                "fp32_per_cycle": _q(128), "alu_per_cycle": _q(64), "special_per_cycle": _q(16),
                "convert_per_cycle": _q(64, guess), "issue_per_cycle": _q(128),
                "code_fraction": _q(0.65, guess),
            },
            "registers": {
                "bytes_per_core": _q(262144), "max_per_thread": _q(255), "base_per_thread": _q(24, guess),
            },
            "scratchpad": {
                "capacity_bytes": _q(233472), "max_block_bytes": _q(232448),
                "bandwidth_bytes_per_cycle": _q(128), "latency_cycles": _q(30, guess),
            },
            "l2": {
                "capacity_bytes": _q(50 * 2**20), "bandwidth_bytes_per_cycle": _q(5000, guess),
                "core_bytes_per_cycle": _q(64, guess), "latency_cycles": _q(260, guess),
                "reuse_fraction": _q(0.6, guess),
            },
            "dram": {
                "capacity_bytes": _q(80 * 2**30), "bandwidth_bytes_per_s": _q(tb_per_s * 1e12),
                "read_fraction": _q(0.92, confidence), "write_fraction": _q(0.88, confidence),
                "copy_fraction": _q(0.9, confidence), "latency_cycles": _q(600, guess),
            },
            "residency": {
                "warp_size": _q(32), "threads_per_core": _q(2048), "threads_per_block": _q(1024),
                "blocks_per_core": _q(32),
            },
            "features": {"async_copy": True, "bulk_copy": False, "warp_specialisation": False},
            "sync": {
                "barrier_cycles": _q(20, guess), "barrier_cycles_per_warp": _q(1, guess),
                "pipeline_barrier_cycles": _q(20, guess), "atomic_bytes_per_cycle": _q(1000, guess),
            },
            "launch": {
                "kernel_s": _q(2e-6, guess), "ramp_s": _q(1e-6, guess), "blocks_per_cycle": _q(1, guess),
            },
        }
    )  # fmt: skip


CHIPS = (
    make_chip("big-one", cores=132, ghz=1.83, flop=4096, tb_per_s=4.8, confidence="measured"),
    make_chip("bandwidth-heavy", cores=78, ghz=1.83, flop=1024, tb_per_s=4.0, confidence="measured"),
    make_chip("compute-heavy", cores=104, ghz=1.5, flop=2048, tb_per_s=1.6),
    make_chip("small-one", cores=64, ghz=1.2, flop=1024, tb_per_s=1.2),
)


def _work(shape: dict[str, Any]) -> tuple[float, float]:
    """FLOP and bytes, roughly, from whatever sizes are there."""
    if "m" in shape:
        batch = shape.get("batch", 1)
        m, n, k = shape["m"], shape["n"], shape["k"]
        return 2.0 * batch * m * n * k, 2.0 * batch * (m * k + n * k + m * n)
    sizes = [v for v in shape.values() if isinstance(v, int) and not isinstance(v, bool)]
    volume = float(math.prod(sizes))
    return (4.0 * volume, 4.0 * volume / 200) if len(sizes) > 3 else (5.0 * volume, 4.0 * volume)


def predict(op: str, chip: Chip, *, config: Any = None, model: str = "engine", **shape: Any) -> Prediction:
    """Roofline plus launch, with a wobble that depends on the call only."""
    shape = {k: int(v) if str(v).isdigit() else v for k, v in shape.items()}
    if chip.id == "small-one" and op == "softmax":
        raise SimulationError("small-one: softmax: no special-function rate")
    flops, moved = _work(shape)
    seed = hashlib.sha256(repr((op, chip.id, sorted(shape.items()))).encode()).digest()[0] / 255
    peak = chip.cores.value * chip.matrix.flop_per_cycle["bf16"].value * chip.clock.max_hz.value
    compute = flops / (peak * (0.6 + 0.2 * seed))
    dram = moved / (chip.dram.bandwidth_bytes_per_s.value * 0.85)
    launch = 3e-6 + 2e-6 * seed
    time = max(compute, dram) + launch
    spread = 1.08 if chip.dram.read_fraction.confidence == "measured" else 1.3
    bound = "launch" if launch > 0.5 * time else "matrix" if compute > dram else "dram"
    return Prediction(
        operator=op,
        shape={"dtype": "bf16", **shape},
        chip=chip.id,
        time_s=time,
        interval_s=(time / spread, time * spread),
        bound=bound,
        breakdown_s={"launch": launch, "compute" if compute > dram else "dram": time - launch},
        utilisation={"matrix": compute / time, "dram": dram / time},
        traffic_bytes={"dram_read": moved * 0.8, "dram_write": moved * 0.2},
        flops=flops,
        overhead_flops={},
        occupancy={"blocks": 128, "waves": 1.5},
        config=dict(config or {"block_m": 128}),
        model={"kind": model, "calibration": "none (chip file only)", "inferred_inputs": 17, "inputs": 43},
    )


def explain(op: str, chip: Chip, *, config: Any = None, **shape: Any) -> Explanation:
    """A fixed story about :func:`predict`'s result."""
    p = predict(op, chip, config=config, **shape)
    return Explanation(
        p, ("DRAM is busy.", "Next comes the matrix engine."), {"dram": p.time_s * 0.9}, {"dram": -0.08}
    )


INCOMPLETE = incomplete_chip(
    {
        "id": "half-known",
        "name": "Half Known",
        "vendor": "Testing",
        "family": "fake",
        "style": "simt",
        "cores": _q(7),
        "dram": {"bandwidth_bytes_per_s": _q(1e12)},
        "unknown": ["its clock"],
    },
    [("clock", "max_hz"), ("l2", "bandwidth_bytes_per_cycle"), ("l2", "latency_cycles")],
)
