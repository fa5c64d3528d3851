"""Results on the device against their reference: two error norms, and elements that were never written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

POISON = 0xFF
"""The byte that results are filled with before a kernel runs: NaN in every floating type of ours with one."""

_PIECE = 1 << 25  # elements compared at a time


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far results are off: ``norm`` is ‖out − ref‖ / ‖ref‖, ``peak`` max |out − ref| / max |ref|.

    ``wrong`` counts elements that no tolerance covers: NaN where the reference has none (never written, or
    miscalculated), an infinity on one side alone.
    """

    norm: float
    peak: float
    wrong: int

    def within(self, norm: float, peak: float) -> bool:
        """Whether both are within a tolerance and nothing is wrong."""
        return not self.wrong and self.norm <= norm and self.peak <= peak


def deviation(xp: Any, out: Any, reference: Any) -> Deviation:
    """Of one output; arrays of equal shape. Infinities that agree count as equal."""
    found, right = out.reshape(-1), reference.reshape(-1)
    square = square_right = largest = largest_right = 0.0
    wrong = 0
    for start in range(0, found.size, _PIECE):
        a = found[start : start + _PIECE].astype("float64")
        b = right[start : start + _PIECE].astype("float64")
        finite = xp.isfinite(a) & xp.isfinite(b)
        wrong += int((~(finite | (a == b) | (xp.isnan(a) & xp.isnan(b)))).sum())
        size = xp.where(finite, xp.abs(b), 0.0)
        difference = xp.where(finite, a, 0.0) - xp.where(finite, b, 0.0)
        square += float((difference * difference).sum())
        square_right += float((size * size).sum())
        largest = max(largest, float(xp.abs(difference).max()))
        largest_right = max(largest_right, float(size.max()))
    return Deviation(
        _ratio(math.sqrt(square), math.sqrt(square_right)), _ratio(largest, largest_right), wrong
    )


def _ratio(off: float, size: float) -> float:
    if off == 0.0:
        return 0.0
    return off / size if size > 0.0 else math.inf
