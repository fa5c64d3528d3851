"""Atomic updates of elements, one after the other, and what each of them found."""

from __future__ import annotations

from typing import Any

import numpy as np

from foretile.simulator.numerics.formats import round_to

COMBINE: dict[str, Any] = {
    "add": np.add,
    "max": np.maximum,
    "min": np.minimum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def update(
    data: np.ndarray, at: tuple[np.ndarray, ...], values: np.ndarray, how: str, dtype: str, *, previous: bool
) -> np.ndarray | None:
    """``data[at] = how(data[at], values)``, in order; with ``previous``, what each found before it.

    A result is rounded to ``dtype`` once, after all updates of it: units that add in memory keep the
    order to themselves.
    """
    found = _found(data, at, values, how) if previous and len(values) else None
    COMBINE[how].at(data, at, values)
    if dtype not in ("float32", "float64"):
        data[at] = round_to(data[at], dtype)
    if previous and found is None:
        found = np.zeros(0, data.dtype)
    return found if found is None else round_to(found, dtype)


def _found(data: np.ndarray, at: tuple[np.ndarray, ...], values: np.ndarray, how: str) -> np.ndarray:
    places = np.ravel_multi_index(at, data.shape)
    order = np.argsort(places, kind="stable")
    first = np.r_[True, np.diff(places[order]) != 0]
    found = np.empty(len(values), data.dtype)
    if how == "add":
        sums = np.cumsum(values[order]) - values[order]
        found[order] = data[at][order] + (sums - sums[first][np.cumsum(first) - 1])
        return found
    rank = np.empty(len(values), dtype=np.int64)  # how many updates of the same element come before
    starts = np.flatnonzero(first)
    rank[order] = np.arange(len(values)) - starts[np.cumsum(first) - 1]
    state = data.copy()
    for turn in range(int(rank.max()) + 1):
        mine = rank == turn
        where = tuple(i[mine] for i in at)
        found[mine] = state[where]
        state[where] = COMBINE[how](state[where], values[mine])
    return found
