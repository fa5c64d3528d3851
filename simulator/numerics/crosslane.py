"""Functions of several threads: shuffles, reductions and votes of a warp or of the block.

Values are arrays whose last axis is the thread in its block (or of length one where all threads agree).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from foretile.kernels.dtypes import DTYPES
from foretile.simulator.numerics.formats import carrier, round_to

Refuse = Callable[[str, np.ndarray], Exception]

_PAIR: dict[str, Callable[[Any, Any], Any]] = {
    "sum": np.add,
    "max": lambda a, b: np.fmax(a, b) if a.dtype.kind == "f" else np.maximum(a, b),
    "min": lambda a, b: np.fmin(a, b) if a.dtype.kind == "f" else np.minimum(a, b),
    "bitand": np.bitwise_and,
    "bitor": np.bitwise_or,
}


def _spread(value: Any, ndim: int, threads: int) -> np.ndarray:
    """A value with one element a thread."""
    array = np.asarray(value)
    array = array.reshape(array.shape or (1,) * ndim)
    return np.broadcast_to(array, (*array.shape[:-1], threads))


def shuffle(
    how: str,
    value: Any,
    operand: Any,
    width: Any,
    mask: Any,
    *,
    ndim: int,
    threads: int,
    refuse: Refuse,
) -> np.ndarray:
    """The value that another thread of the same ``width`` lanes has; one's own where there is none.

    ``how``: "shfl" (from lane ``operand``), "shfl_xor", "shfl_up", "shfl_down" (CUDA C++ Programming
    Guide, "Warp shuffle functions").

    Raises:
        Exception: what ``refuse`` makes of a thread that reads one which does not take part.
    """
    held = _spread(value, ndim, threads)
    lane = np.arange(threads).reshape((1,) * (ndim - 1) + (threads,))
    operand, width = (np.asarray(x).reshape(np.shape(x) or (1,) * ndim) for x in (operand, width))
    first = lane // width * width
    if how == "shfl":
        source = first + operand % width
    elif how == "shfl_xor":
        source = lane ^ operand
        source = np.where(source < first + width, source, lane)
    elif how == "shfl_up":
        source = np.where(lane - operand >= first, lane - operand, lane)
    else:
        source = np.where(lane + operand < first + width, lane + operand, lane)
    source = np.where((source >= 0) & (source < threads), source, lane)
    lead = np.broadcast_shapes(held.shape[:-1], source.shape[:-1])
    source = np.broadcast_to(source, (*lead, threads)).astype(np.int64)
    if mask is not None:
        active = np.broadcast_to(
            _spread(mask, ndim, threads), np.broadcast_shapes(source.shape, np.shape(mask))
        )
        of_source = np.take_along_axis(active, np.broadcast_to(source, active.shape), axis=-1)
        lost = active & ~of_source
        if lost.any():
            raise refuse(f"{how} reads a thread that does not take part in it", lost)
    return np.take_along_axis(np.broadcast_to(held, (*lead, threads)), source, axis=-1)


def warp_reduce(
    kind: str,
    value: Any,
    dtype: str,
    mask: Any,
    *,
    ndim: int,
    threads: int,
    warp: int,
    refuse: Refuse,
) -> np.ndarray:
    """A reduction over each warp, by butterfly exchanges of halves, quarters, …, rounded after each.

    Raises:
        Exception: what ``refuse`` makes of a warp of which not all threads take part.
    """
    held = _spread(value, ndim, threads)
    whole = -(-threads // warp) * warp
    if mask is not None:
        active = _spread(mask, ndim, threads)
        if threads % warp == 0:
            warps = active.reshape(*active.shape[:-1], -1, warp)
            torn = warps & ~warps.all(axis=-1, keepdims=True)
            if torn.any():
                raise refuse(f"warp_{kind} by some threads of a warp only", torn.reshape(active.shape))
    lane = np.arange(whole)
    padded = held
    if whole != threads:  # threads that do not exist add nothing: each takes the place of an existing one
        padded = np.concatenate(
            [held, np.full((*held.shape[:-1], whole - threads), _neutral(kind, held.dtype), held.dtype)],
            axis=-1,
        )
    offset = warp // 2
    while offset:
        padded = _PAIR[kind](padded, padded[..., lane ^ offset])
        padded = round_to(padded, dtype) if kind == "sum" else padded
        offset //= 2
    found: np.ndarray = padded[..., :threads]
    return found


def _neutral(kind: str, dtype: np.dtype[Any]) -> Any:
    if kind in ("sum", "bitor"):
        return 0
    if kind == "bitand":
        return -1
    if dtype.kind == "f":
        return -np.inf if kind == "max" else np.inf
    return (
        (np.iinfo(dtype).min if kind == "max" else np.iinfo(dtype).max)
        if dtype.kind in "iu"
        else kind == "min"
    )


def block_reduce(
    kind: str, value: Any, dtype: str, mask: Any, *, ndim: int, shape: tuple[int, ...], axes: tuple[int, ...]
) -> np.ndarray:
    """A reduction over the threads that differ along ``axes`` of the block's ``shape`` (slowest first)."""
    threads = int(np.prod(shape))
    held = _spread(value, ndim, threads)
    if mask is not None:
        active = _spread(mask, ndim, threads)
        held = np.where(active, held, held.dtype.type(_neutral(kind, held.dtype)))
    lead = held.shape[:-1]
    box = held.reshape(*lead, *shape)
    for axis in axes:
        at = len(lead) + axis
        while box.shape[at] > 1:  # a tree, as over shared memory
            half = -(-box.shape[at] // 2)
            low, high = np.split(box, [half], axis=at)
            head, rest = np.split(low, [high.shape[at]], axis=at)
            both = _PAIR[kind](head, high)
            both = round_to(both, dtype) if kind == "sum" else both
            box = np.concatenate([both, rest], axis=at)
    return np.broadcast_to(box, (*lead, *shape)).reshape(*lead, threads)


def vote(how: str, value: Any, dtype: str, mask: Any, *, ndim: int, threads: int, warp: int) -> np.ndarray:
    """Votes of a warp's threads, or of the block's; integers as the instruction gives them."""
    held = _spread(value, ndim, threads)
    active = np.broadcast_to(
        np.True_ if mask is None else _spread(mask, ndim, threads),
        held.shape
        if mask is None
        else np.broadcast_shapes(held.shape, np.shape(_spread(mask, ndim, threads))),
    )
    held = np.broadcast_to(held, active.shape)
    if how.startswith("syncthreads"):
        says = held.astype(bool) & active
        if how.endswith("count"):
            found = says.sum(axis=-1, keepdims=True)
        elif how.endswith("or"):
            found = says.any(axis=-1, keepdims=True)
        else:
            found = (says | ~active).all(axis=-1, keepdims=True)
        return np.asarray(found, dtype=np.int64)
    spare = -threads % warp
    pad = [(0, 0)] * (held.ndim - 1) + [(0, spare)]
    held = np.pad(held, pad).reshape(*held.shape[:-1], -1, warp)
    live = np.pad(active, pad).reshape(held.shape)
    if how in ("match_any", "match_all"):
        same = (held[..., :, None] == held[..., None, :]) & live[..., None, :]
        bits = _bits(same)
        if how == "match_all":
            bits = np.where((same | ~live[..., None, :]).all(axis=-1), bits, 0)
        return bits.reshape(*active.shape[:-1], -1)[..., :threads]
    says = held.astype(bool) & live
    if how == "any_sync":
        found = says.any(axis=-1, keepdims=True).astype(np.int64)
    elif how == "all_sync":
        found = (says | ~live).all(axis=-1, keepdims=True).astype(np.int64)
    else:
        found = _bits(says if how == "ballot" else live)[..., None]
    return np.broadcast_to(found, held.shape).reshape(*active.shape[:-1], -1)[..., :threads]


def _bits(says: np.ndarray) -> np.ndarray:
    weights = np.left_shift(np.int64(1), np.arange(says.shape[-1], dtype=np.int64))
    return np.asarray((says * weights).sum(axis=-1))


def bits_of(value: Any, dtype: str) -> np.ndarray:
    """An integer's bits, in the unsigned type of its width (for counts of its bits)."""
    width = max(8, DTYPES[dtype].bits)
    return np.asarray(value, dtype=carrier(dtype)).astype(np.int64).astype(f"u{width // 8}")
