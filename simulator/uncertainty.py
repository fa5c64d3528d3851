"""How far to trust an uncalibrated prediction: the chip file's confidences, carried through the model.

Every resource gets a relative standard deviation from the least certain number behind it; the
model's elasticity (per cent of time per per cent of the resource) carries it to the time. The
widths by confidence are a prior, stated in docs/model.md, until a calibration replaces them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from foretile.hwmodels.schema import Calibration, Chip
from foretile.simulator.machine import RESOURCES, Machine

# Relative standard deviation of a number by how it is known.
PRIOR_SIGMA: Mapping[str, float] = {"measured": 0.04, "datasheet": 0.06, "derived": 0.12, "inferred": 0.30}
# What the uncalibrated model itself misses on a library-quality kernel.
MODEL_SIGMA = 0.10
_NORMAL_90 = 1.6449  # a 90 % interval reaches this many standard deviations to either side
_STEP = 1.1

# What a calibrated chip's model misses at least on an operator none of whose kernels were measured.
UNMEASURED_SIGMA = 0.25

# Parameters of a calibration behind each resource (foretile.calibration.parameters); none: the file's.
_FITTED: Mapping[str, tuple[str, ...]] = {
    "matrix": ("matrix",),
    "vector": (),
    "special": (),
    "scratchpad": ("scratchpad",),
    "l2": ("l2", "port"),
    "l2_capacity": (),
    "dram": ("dram",),
    "latency": ("latency",),
    "barrier": (),
    "atomic": (),
    "launch": ("launch",),
}

_BEHIND: Mapping[str, tuple[str, ...]] = {
    "matrix": (
        "matrix.flop_per_cycle.{dtype}",
        "matrix.mainloop_fraction",
        "clock.max_hz",
        "clock.matrix_burst_hz",
    ),
    "vector": ("vector.fp32_per_cycle", "vector.alu_per_cycle", "vector.convert_per_cycle"),
    "special": ("vector.special_per_cycle",),
    "scratchpad": (
        "scratchpad.bandwidth_bytes_per_cycle",
        "davinci.l1_to_l0a_bytes_per_cycle",
        "davinci.gm_to_l1_bytes_per_cycle",
        "mlu.dma_bytes_per_cycle",
        "mlu.sram_bytes_per_cycle",
    ),
    "l2": ("l2.bandwidth_bytes_per_cycle", "l2.core_bytes_per_cycle"),
    "l2_capacity": ("l2.reuse_fraction", "l2.capacity_bytes"),
    "dram": ("dram.bandwidth_bytes_per_s", "dram.read_fraction", "dram.copy_fraction"),
    "latency": (
        "dram.latency_cycles",
        "l2.latency_cycles",
        "l2.far_latency_cycles",
        "chiplets.latency_cycles",
        "matrix.latency_cycles",
    ),
    "barrier": ("sync.barrier_cycles", "sync.pipeline_barrier_cycles"),
    "atomic": ("sync.atomic_bytes_per_cycle",),
    "launch": ("launch.kernel_s", "launch.ramp_s"),
}


def sigma(chip: Chip, resource: str, dtype: str) -> float:
    """Relative standard deviation of a resource: that of the least certain number behind it."""
    known = _quantities(chip)
    names = [path.format(dtype=dtype) for path in _BEHIND[resource]]
    return max((PRIOR_SIGMA[known[n]] for n in names if n in known), default=PRIOR_SIGMA["inferred"])


def _quantities(chip: Chip) -> dict[str, str]:
    key = id(chip)
    if key not in _KNOWN:
        _KNOWN[key] = (chip, {path: q.confidence for path, q in chip.quantities().items()})
    return _KNOWN[key][1]


_KNOWN: dict[int, tuple[Chip, dict[str, str]]] = {}


# A resource that contributes less of an interval's variance is not named as carrying it.
_CARRIES = 0.1


def carriers(chip: Chip, dtype: str, elastic: Mapping[str, float]) -> tuple[str, ...]:
    """The inferred numbers of an uncalibrated chip that an interval rests on, the weightiest first.

    Those behind every resource whose share of the interval's variance is at least a tenth; empty for a
    calibrated chip, whose parameters come from a fit.
    """
    if chip.calibration is not None:
        return ()
    part = {r: (float(slope) * sigma(chip, r, dtype)) ** 2 for r, slope in elastic.items()}
    total = MODEL_SIGMA**2 + sum(part.values())
    known = _quantities(chip)
    return tuple(
        dict.fromkeys(
            path
            for resource in sorted(part, key=lambda r: -part[r])
            if part[resource] >= _CARRIES * total
            for path in (name.format(dtype=dtype) for name in _BEHIND[resource])
            if known.get(path) == "inferred"
        )
    )


@lru_cache(maxsize=512)
def improved(machine: Machine, resource: str) -> Machine:
    """``machine`` with ten per cent more of ``resource``."""
    return machine.improved(resource, _STEP)


def elasticities(machine: Machine, time: Callable[[Machine], Any], base: Any) -> dict[str, Any]:
    """Relative change of the time per relative change of each resource (≤ 0), from a ten per cent step."""
    return {r: np.log(time(improved(machine, r)) / base) / np.log(_STEP) for r in RESOURCES}


def interval_factor(
    chip: Chip, dtype: str, elastic: Mapping[str, Any], family: str = "", time_s: Any = 0.0
) -> Any:
    """Factor from the median to the ends of the 90 % interval (time / f … time × f).

    A calibrated chip's parameters have the fit's uncertainty (or the spread between the chips that
    taught it), and the model's own error is what the fit left of the family's rows of such times.
    """
    fitted = chip.calibration
    if fitted is None:
        variance: Any = MODEL_SIGMA**2
        for resource, slope in elastic.items():
            variance = variance + (slope * sigma(chip, resource, dtype)) ** 2
        return np.exp(_NORMAL_90 * np.sqrt(variance))
    variance = _left(fitted, family, time_s) ** 2
    for resource, slope in elastic.items():
        parameters = _FITTED[resource]
        known = max((fitted.sigma[p] for p in parameters if p in fitted.sigma), default=None)
        width = known if known is not None else sigma(chip, resource, dtype)
        variance = variance + (slope * width) ** 2
    return np.exp(_NORMAL_90 * np.sqrt(variance))


def _left(fitted: Calibration, family: str, time_s: Any) -> Any:
    """Standard deviation that the fit left for this family and decade of times."""
    by_decade = fitted.residual.get(family)
    if by_decade is None:  # as far off as measured families are, and not less than the prior
        known = [v["all"] for v in fitted.residual.values()]
        return max(UNMEASURED_SIGMA, float(np.median(known)) if known else 0.0)
    decade = np.floor(np.log10(np.maximum(1e-9, np.asarray(time_s, dtype=np.float64))))
    found = np.full(np.shape(decade), by_decade["all"])
    for name, value in by_decade.items():
        if name != "all":
            found = np.where(decade == np.log10(float(name)), value, found)
    return found
