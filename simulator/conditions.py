"""How a kernel is run: what the L2 holds when it starts.

A benchmark that repeats a kernel on the same buffers finds them in the L2 as far as they fit; one
that rotates through copies of an operand, or whose kernel follows others, finds less of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = Any
# Weights of 1.00 L2 capacities stay, of 1.09 to 1.17 are gone: repeated GEMM of 16 rows on RTX PRO 6000
# and L40S, aiconfigurator silicon tables (TensorRT-LLM).
_CLIFF = 0.1
# A kernel is timed, or serves, some tens of times in a row.
_RUNS = 30.0


@dataclass(frozen=True)
class Conditions:
    """``copies``: None for an L2 without any of the operands (the first run after other work).

    Otherwise the kernel is repeated, and ``copies`` says through how many buffers the repetitions
    rotate for each tensor (a number, or one for each row); tensors not named have one. ``runs``: how
    often the kernel runs back to back, by its own heat. ``switching``: power that the operands' bits
    draw on the way, over that of random ones. ``passing``: bytes of tensors that go by between two runs,
    also of those that other launches of the same call read.
    """

    copies: Mapping[str, Array] | None = None
    runs: Array = _RUNS
    switching: Array = 1.0
    passing: Mapping[str, Array] = field(default_factory=dict)

    def rows(self, index: Any) -> Conditions:
        """The conditions of some of the rows."""

        def some(values: Array) -> Array:
            return values[index] if np.ndim(values) else values

        copies = None if self.copies is None else {n: some(v) for n, v in self.copies.items()}
        passing = {n: some(v) for n, v in self.passing.items()}
        return Conditions(copies, some(self.runs), some(self.switching), passing)


COLD = Conditions()
REPEATED = Conditions({})


def resident(sizes: Mapping[str, Array], conditions: Conditions, capacity_bytes: float) -> dict[str, Array]:
    """Share of each tensor that is still in the L2 when the kernel starts.

    Between two uses of a line of a tensor with ``c`` copies, every other tensor has gone by through
    as many of its own copies as it has, at most ``c``. What has gone by in the meantime decides: a
    least-recently-used cache keeps all of a tensor below its capacity and none of it beyond
    (``_CLIFF`` is how far beyond the last of it is lost).

    ``sizes``: bytes of each tensor that the kernel touches.
    """
    if conditions.copies is None:
        return {}
    others = {n: column(v) for n, v in conditions.passing.items() if n not in sizes}
    times = {n: column(conditions.copies.get(n, 1.0)) for n in (*sizes, *others)}
    found: dict[str, Array] = {}
    for name in sizes:
        distance = sum(np.minimum(times[n], times[name]) * s for n, s in {**sizes, **others}.items())
        found[name] = np.clip((1.0 + _CLIFF - distance / capacity_bytes) / _CLIFF, 0.0, 1.0)
    return found


def column(values: Array) -> Array:
    """Values by row as a column, which broadcasts against (rows, samples)."""
    return np.asarray(values, dtype=np.float64).reshape(-1, 1)
