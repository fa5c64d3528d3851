"""Reductions along a dimension, and the order in which points are dealt to blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def raster(extents: list[int], group: int) -> np.ndarray:
    """Points of a persistent loop in the order they are dealt, one a row."""
    grids = np.meshgrid(*(np.arange(n) for n in extents), indexing="ij")
    points = np.stack([g.ravel() for g in grids], axis=-1)
    if group > 1 and len(extents) > 1:
        keys = (
            points[:, 0],
            *(points[:, d] for d in range(points.shape[1] - 1, 0, -1)),
            points[:, 0] // group,
        )
        points = points[np.lexsort(keys)]
    return points


def _nan_aware(pair: Any, aware: Any) -> Callable[[np.ndarray, int], np.ndarray]:
    """Extremes as chips take them: NaN loses against a number."""

    def reduce(values: np.ndarray, axis: int) -> np.ndarray:
        found: np.ndarray = pair.reduce(values, axis=axis)
        if np.isnan(found).any():
            found = aware.reduce(values, axis=axis)
        return found

    return reduce


_max, _min = _nan_aware(np.maximum, np.fmax), _nan_aware(np.minimum, np.fmin)
REDUCE_PAIR: dict[str, Any] = {
    "sum": np.add,
    "abssum": np.add,
    "max": np.fmax,
    "absmax": np.fmax,
    "min": np.fmin,
    "bitand": np.bitwise_and,
    "bitor": np.bitwise_or,
    "bitxor": np.bitwise_xor,
}


def reduce(kind: str, values: np.ndarray, axis: int) -> np.ndarray:
    """Values reduced along an axis."""
    if kind in ("absmax", "abssum"):
        values = np.abs(values)
    if kind in ("sum", "abssum"):
        found: np.ndarray = np.sum(values, axis=axis, dtype=values.dtype)
        return found
    if kind.startswith("bit"):
        bits: np.ndarray = REDUCE_PAIR[kind].reduce(values, axis=axis)
        return bits
    extreme: np.ndarray = (_min if kind == "min" else _max)(values, axis)
    return extreme
