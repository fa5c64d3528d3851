"""The parameters that a calibration fits: few, physical, bounded, each a change of numbers in a chip file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from foretile.hwmodels.quantity import Confidence, Quantity
from foretile.hwmodels.schema import Chip, KernelProfile, Tiles

STARTING_POINT = "starting point of a calibration (docs/accuracy.md, parameters)"


@dataclass(frozen=True)
class Parameter:
    """One fitted number: a common factor on numbers of the chip file, found in its logarithm.

    ``paths``: the numbers (dotted; ``*`` stands for every key of a mapping). ``start``: value of a
    number that the file does not give, from the chip. ``low`` and ``high``: plausible range of the
    factor on the file's number. ``sigma``: standard deviation of the prior on the factor's logarithm.
    ``shared``: what one chip teaches another, the factor on its file's number or the amount itself.
    """

    name: str
    paths: tuple[str, ...]
    unit: str
    meaning: str
    low: float
    high: float
    sigma: float
    shared: Literal["factor", "amount"] = "factor"

    @property
    def bounds(self) -> tuple[float, float]:
        """The range of the factor's logarithm."""
        return float(np.log(self.low)), float(np.log(self.high))

    def amounts(self, chip: Chip) -> dict[str, float]:
        """The parameter's numbers on ``chip`` by path, in its unit; without those that the file lacks."""
        held = {path: _number(chip, path) for path in self.paths}
        return {path: float(q.value) for path, q in held.items() if q is not None}


def _number(chip: Chip, path: str) -> Quantity[float] | None:
    node: Any = chip
    for name in path.split("."):
        node = getattr(node, name)
    return cast("Quantity[float] | None", node)


CHIP_PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "launch",
        ("launch.kernel_s", "launch.ramp_s"),
        "s",
        "time of a kernel that does nothing, between others of a graph",
        0.4,
        2.5,
        0.35,
        # Nine chips from Ampere to Blackwell were fitted to 1.7 to 2.3 us; their files say 0.8 to 1.6.
        shared="amount",
    ),
    Parameter(
        "block_start",
        ("launch.block_cycles",),
        "cycles",
        "from a block's start to its first instruction of work: parameters, barriers, descriptors",
        0.1,
        6.0,
        1.0,
    ),
    Parameter(
        "graph",
        ("launch.graph_s",),
        "s",
        "gap between two replays of a CUDA graph (measurement)",
        0.05,
        8.0,
        1.0,
    ),
    Parameter(
        "latency",
        ("l2.latency_cycles", "l2.bulk_copy_cycles", "dram.latency_cycles"),
        "cycles",
        "latency of L2 and DRAM as a loaded kernel sees it, over that of a lone load",
        0.4,
        2.5,
        0.35,
    ),
    Parameter(
        "matrix",
        ("matrix.mainloop_fraction",),
        "1",
        "share of the matrix engine's rate that a main loop reaches when nothing else limits it",
        0.6,
        1.11,
        0.15,
    ),
    Parameter(
        "sustained",
        ("clock.matrix_sustained_hz",),
        "Hz",
        "clock to which lasting matrix work of random operands sinks",
        0.5,
        1.42,
        0.3,
    ),
    Parameter(
        "settle",
        ("clock.settle_s",),
        "s",
        "matrix work after which the clock begins to sink",
        0.05,
        20.0,
        1.0,
    ),
    Parameter(
        "scratchpad",
        ("scratchpad.bandwidth_bytes_per_cycle",),
        "B/cycle/core",
        "rate at which operands are read from the scratchpad",
        0.3,
        3.0,
        0.5,
    ),
    Parameter(
        "dram",
        ("dram.read_fraction", "dram.copy_fraction"),
        "1",
        "share of the DRAM bandwidth that reads and mixed traffic reach",
        0.6,
        1.07,
        0.12,
    ),
    Parameter(
        "dram_write",
        ("dram.write_fraction",),
        "1",
        "share of the DRAM bandwidth that writes of result tiles reach",
        0.4,
        1.0,
        0.25,
    ),
    Parameter(
        "l2",
        ("l2.bandwidth_bytes_per_cycle",),
        "B/cycle",
        "rate at which the L2 serves all cores",
        0.4,
        2.0,
        0.35,
    ),
    Parameter(
        "port",
        ("l2.core_bytes_per_cycle",),
        "B/cycle/core",
        "rate at which one core takes from the L2",
        0.2,
        2.5,
        0.7,
    ),
    Parameter(
        "store",
        ("l2.core_store_bytes_per_cycle",),
        "B/cycle/core",
        "rate at which one core's results leave it",
        0.15,
        2.5,
        0.7,
    ),
    Parameter(
        "l2_write",
        ("l2.write_bytes_per_cycle",),
        "B/cycle",
        "rate at which the L2 takes results",
        0.15,
        2.5,
        0.7,
    ),
    Parameter(
        "overlap",
        ("overlap_exponent",),
        "1",
        "order of the norm that joins the busy times of engines: how well they overlap",
        0.4,
        5.0,
        0.5,
    ),
)

# Where a fit starts, the same for every chip: what one chip's own timings say must not reach another's
# prediction by way of the chip file. Shares and cycles, so that they carry over to other rates and clocks;
# typical values of the chip files' microbenchmarks.
_MAINLOOP = 0.9
_SUSTAINED_SHARE = 0.7
_SETTLE_S = 1e-2
_READ, _COPY, _WRITE = 0.92, 0.90, 0.85
_RAMP_S = 0.3e-6
_BLOCK_CYCLES = 600.0
_GRAPH_S = 2.0e-6
_STORE_SHARE = 0.5
_WRITE_SHARE = 0.5
_OVERLAP = 7.0
# What the libraries' bf16 products have, by matrix instruction: found with fits of A100, RTX PRO 6000 and
# L40S (test error 10.2 → 7.8, 10.3 → 9.1, 11.6 → 10.9 %), of H200 (6.8 → 6.5) and of B200 (9.3, and 9.7
# without persistent blocks; n = 500 each). Sixteen parts: fits of B200, B300 and GB200 (on their fit rows
# 7.7 → 7.2, 8.9 → 8.3, 8.4 → 7.9 %); the others' get worse or stay.
_TILES: Mapping[str, Tiles] = {
    "mma_sync": "powers_of_two",
    "wgmma": "one_a_block",
    "tcgen05": "few_parts",
}


@dataclass(frozen=True)
class FamilyParameter:
    """One fitted number of an operator family's kernels, a field of :class:`KernelProfile`."""

    name: str
    unit: str
    meaning: str
    low: float
    high: float
    start: float
    sigma: float

    @property
    def bounds(self) -> tuple[float, float]:
        """The range of the logarithm of the factor on ``start``."""
        return float(np.log(self.low / self.start)), float(np.log(self.high / self.start))


FAMILY_PARAMETERS: tuple[FamilyParameter, ...] = (
    FamilyParameter(
        "core_fraction",
        "1",
        "rate of the cores' engines in these kernels, over the chip's",
        0.4,
        2.0,
        1.0,
        0.3,
    ),
    FamilyParameter(
        "memory_fraction",
        "1",
        "rate of DRAM, L2 and ports in these kernels, over the chip's; their latencies are that much shorter",
        0.1,
        1.6,
        1.0,
        0.4,
    ),
    FamilyParameter(
        "launch_fraction",
        "1",
        "cost of a launch of these kernels over the chip's: set-up, further launches of the library",
        0.2,
        20.0,
        1.0,
        0.7,
    ),
)


def prepared(chip: Chip) -> Chip:
    """``chip`` as a fit starts from it.

    Numbers that a parameter moves and that chip files take from kernel timings start at common values;
    the clock is free to reach its maximum, since short kernels do, and its fall is fitted from there.
    """

    def start(node: Any, **values: float | None) -> Any:
        return node.model_copy(update={n: None if v is None else _start(v) for n, v in values.items()})

    neutral = {p.name: _start(1.0) for p in FAMILY_PARAMETERS}
    max_hz = chip.clock.max_hz.value
    l2, port = chip.l2.bandwidth_bytes_per_cycle.value, chip.l2.core_bytes_per_cycle.value
    parts: dict[str, Any] = {
        "clock": start(
            chip.clock,
            matrix_burst_hz=None,
            matrix_sustained_hz=_SUSTAINED_SHARE * max_hz,
            settle_s=_SETTLE_S,
        ),
        "matrix": start(chip.matrix, mainloop_fraction=_MAINLOOP),
        "dram": start(chip.dram, read_fraction=_READ, copy_fraction=_COPY, write_fraction=_WRITE),
        "l2": start(
            chip.l2,
            far_latency_cycles=None,  # timings show a tile's slowest line only: one latency is fitted
            core_store_bytes_per_cycle=_STORE_SHARE * port,
            write_bytes_per_cycle=_WRITE_SHARE * l2,
        ),
        "launch": start(chip.launch, ramp_s=_RAMP_S, block_cycles=_BLOCK_CYCLES, graph_s=_GRAPH_S),
        "overlap_exponent": _start(_OVERLAP),
        "calibration": None,
        "kernels": {"gemm.bf16": KernelProfile(**neutral, tiles=_TILES.get(chip.matrix.instruction, "any"))},
    }
    return chip.model_copy(update=parts)


def _start(value: float) -> Quantity[float]:
    return Quantity[float](value=value, source=STARTING_POINT, confidence="inferred")


def with_factors(
    chip: Chip,
    factors: Mapping[str, float],
    source: str = STARTING_POINT,
    confidence: Confidence = "measured",
) -> Chip:
    """``chip`` with every parameter's numbers multiplied; shares stay at most one."""
    changed = chip
    for parameter in CHIP_PARAMETERS:
        factor = factors.get(parameter.name, 1.0)
        for path in parameter.paths:
            changed = _scaled(changed, path.split("."), factor, source, confidence)
    return changed


def _scaled(node: Any, path: Sequence[str], factor: float, source: str, confidence: Confidence) -> Any:
    name, rest = path[0], path[1:]
    held = getattr(node, name)
    if held is None:
        return node
    if rest:
        return node.model_copy(update={name: _scaled(held, rest, factor, source, confidence)})
    value = held.value * factor
    if name.endswith("_fraction"):
        value = min(1.0, value)
    return node.model_copy(
        update={name: held.model_copy(update={"value": value, "source": source, "confidence": confidence})}
    )


def with_profile(chip: Chip, key: str, profile: KernelProfile) -> Chip:
    """``chip`` with the kernels of one family (or of one source of it) as ``profile`` says."""
    return chip.model_copy(update={"kernels": {**chip.kernels, key: profile}})


def parameters_markdown() -> str:
    """A Markdown table of every parameter: meaning, unit, plausible range."""
    lines = [
        "| parameter | of | numbers of the chip file | unit | meaning | plausible range |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for p in CHIP_PARAMETERS:
        paths = ", ".join(f"`{path}`" for path in p.paths)
        span = f"{p.low:g} to {p.high:g} times the start"
        lines.append(f"| {p.name} | chip | {paths} | {p.unit} | {p.meaning} | {span} |")
    for f in FAMILY_PARAMETERS:
        lines.append(
            f"| {f.name} | family | `kernels.….{f.name}` | {f.unit} | {f.meaning} | {f.low:g} to {f.high:g} |"
        )
    return "\n".join(lines)
