"""Elements of on-chip buffers at computed indices, for all blocks and iterations at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from foretile.kernels.ir import Loc
from foretile.simulator.numerics import strided
from foretile.simulator.numerics.errors import fault, undefined
from foretile.simulator.numerics.evaluate import Value
from foretile.simulator.numerics.formats import carrier
from foretile.simulator.numerics.frame import Frame, Tile
from foretile.simulator.numerics.onchip import mark, own
from foretile.simulator.numerics.tensors import Box
from foretile.simulator.numerics.updates import update

Indices = tuple[Value, ...]


def block_indices(lead: tuple[int, ...], ndim: int) -> tuple[Any, ...]:
    """Every block's own part: a range on the block axes that tell blocks apart."""
    return tuple(
        np.arange(n).reshape([-1 if e == d else 1 for e in range(ndim)]) if n > 1 else 0
        for d, n in enumerate(lead)
    )


def fetch(data: np.ndarray, indices: Indices, axes: int, ndim: int) -> np.ndarray:
    """Elements of an array that begins with ``axes`` block axes; a view if they are evenly spaced."""
    every = block_indices(data.shape[:axes], ndim) + indices
    view = strided.elements(data, every, ndim)
    if view is not None:
        return view
    found: np.ndarray = data[tuple(np.asarray(i) for i in every)]
    return found.reshape(found.shape or (1,) * ndim)


def wide(values: Any, ndim: int) -> np.ndarray:
    """An array of ``ndim`` axes, also of a number."""
    array = np.asarray(values)
    return array.reshape(array.shape or (1,) * ndim)


def around(indices: Indices, mask: Any = None) -> Box:
    """The box around elements, where ``mask`` holds."""
    if mask is not None:
        mask = np.asarray(mask)
        shape = np.broadcast_shapes(mask.shape, *(np.shape(i) for i in indices))
        where = np.broadcast_to(mask, shape)
        if not where.any():
            return Box((0,) * len(indices), (0,) * len(indices))
        indices = tuple(np.broadcast_to(i, shape)[where] if np.ndim(i) else i for i in indices)
    low = tuple(int(np.min(i)) for i in indices)
    high = tuple(int(np.max(i)) for i in indices)
    return Box(low, tuple(h - n + 1 for h, n in zip(high, low, strict=True)))


def clip(
    tile: Tile, name: str, indices: Indices, mask: Any, frame: Frame, ndim: int, loc: Loc | None
) -> Indices:
    """Indices inside of the buffer.

    Raises:
        NumericsError: one that is needed lies outside.
    """
    if strided.in_range(indices, tile.shape):
        return indices
    ok: Any = np.True_
    for i, n in zip(indices, tile.shape, strict=True):
        ok = ok & (np.asarray(i) >= 0) & (np.asarray(i) < n)
    outside = wide(~ok if mask is None else ~ok & mask, ndim)
    if outside.any():
        size = "×".join(map(str, tile.shape))
        raise fault(frame, loc, f"an index of {name} leaves the buffer of {size}", outside, index=False)
    return tuple(np.clip(i, 0, n - 1) for i, n in zip(indices, tile.shape, strict=True))


def read_elements(
    tile: Tile, name: str, indices: Indices, mask: Any, frame: Frame, ndim: int, loc: Loc | None
) -> np.ndarray:
    """Elements at index values over (block axes, iteration axes), where ``mask`` asks for them.

    Raises:
        NumericsError: an element lies outside of the buffer, or was never written.
    """
    axes = len(frame.axes)
    indices = clip(tile, name, indices, mask, frame, ndim, loc)
    needed = np.True_ if mask is None else mask
    if tile.data is None:
        if not np.any(needed):
            return np.zeros((1,) * ndim, dtype=carrier(tile.dtype))
        if tile.garbage is not None:
            return np.full((1,) * ndim, tile.garbage, dtype=carrier(tile.dtype))
        raise undefined(frame, loc, f"reads {name}, which was never written", wide(needed, ndim), index=False)
    if tile.written is not True and tile.garbage is None:
        missing = ~fetch(_flags(tile, axes), indices, axes, ndim) & needed
        if missing.any():
            raise undefined(frame, loc, f"reads an element of {name} that was never written", missing)
    return fetch(tile.data, indices, axes, ndim)


def _flags(tile: Tile, axes: int) -> np.ndarray:
    """By element, whether it has been written."""
    if isinstance(tile.written, np.ndarray):
        return np.broadcast_to(tile.written, (*tile.written.shape[:axes], *tile.shape))
    return np.full((1,) * axes + tile.shape, tile.written)


def replaces(tile: Tile, indices: Indices, value: Value, nest: tuple[int, ...], axes: int) -> bool:
    """Replace the whole buffer, if the iterations run over its elements in order."""
    if nest != tile.shape or not nest:
        return False
    ndim = axes + len(nest)
    for d, index in enumerate(indices):
        if tile.shape[d] == 1:
            continue
        found = strided.ramp(index, ndim)
        own_axis = [int(e == axes + d) for e in range(ndim)]
        if found is None or found.first or list(found.steps) != own_axis:
            return False
    array = np.asarray(value, dtype=carrier(tile.dtype))
    if array.base is not None:  # perhaps a view of another buffer, which may be changed in place
        array = array.copy()
    array = wide(array, ndim)
    shape = (*array.shape[:axes], *tile.shape)
    owned = array.shape == shape
    tile.set(array if owned else np.broadcast_to(array, shape), owned=owned)
    return True


def write_elements(
    tile: Tile,
    name: str,
    indices: Indices,
    value: Value,
    mask: Any,
    nest: tuple[int, ...],
    frame: Frame,
    loc: Loc | None,
    *,
    apart: bool,
) -> None:
    """Elements at index values, where ``mask`` holds. ``apart``: iterations surely write different ones.

    Raises:
        NumericsError: an element lies outside of the buffer, or two iterations write it.
    """
    axes = len(frame.axes)
    ndim = axes + len(nest)
    inside = clip(tile, name, indices, mask, frame, ndim, loc)
    apart, indices = apart and inside is indices, inside  # clipped ones coincide
    shapes = (np.shape(value), strided.shape_of(indices, ndim), np.shape(mask))
    own(tile, np.broadcast_shapes((1,) * axes, *(s[:axes] for s in shapes)), axes)
    assert tile.data is not None
    every = block_indices(tile.data.shape[:axes], ndim) + indices
    view = strided.elements(tile.data, every, ndim) if apart else None
    if view is None:
        at, values, keep = _points(tile, every, value, mask, nest, axes)
        _refuse_collisions(tile, name, at, keep, nest, frame, loc)
        tile.data[at] = values
        mark(tile, at, axes)
        return
    np.copyto(view, np.asarray(value), where=np.True_ if mask is None else np.asarray(mask))
    if tile.written is not True:
        flags = np.array(np.broadcast_to(_flags(tile, axes), tile.data.shape))
        part = strided.elements(flags, every, ndim)
        assert part is not None
        part |= np.True_ if mask is None else np.asarray(mask)
        tile.written = True if flags.all() else flags


def combine_elements(
    tile: Tile,
    name: str,
    how: str,
    indices: Indices,
    value: Value,
    mask: Any,
    nest: tuple[int, ...],
    frame: Frame,
    loc: Loc | None,
) -> Value:
    """Atomic updates of elements in shared memory, in the order of the iterations.

    Returns what each update found before it, by (block axes, iteration axes).

    Raises:
        NumericsError: an element lies outside of the buffer, or was never written.
    """
    axes = len(frame.axes)
    ndim = axes + len(nest)
    read_elements(tile, name, indices, mask, frame, ndim, loc)
    indices = clip(tile, name, indices, mask, frame, ndim, loc)
    own(tile, frame.axes, axes)
    assert tile.data is not None
    every = block_indices(tile.data.shape[:axes], ndim) + indices
    at, values, keep = _points(tile, every, value, mask, nest, axes)
    found = np.zeros(keep.shape, tile.data.dtype)
    found[keep] = update(tile.data, at, values, how, tile.dtype, previous=True)
    return found


def write_agreeing(
    tile: Tile,
    name: str,
    indices: Indices,
    value: Value,
    mask: Any,
    nest: tuple[int, ...],
    frame: Frame,
    loc: Loc | None,
) -> None:
    """Elements that threads write at once; several may write one if they write the same value.

    Raises:
        NumericsError: an element lies outside of the buffer, or two threads write different values to it.
    """
    axes = len(frame.axes)
    ndim = axes + len(nest)
    indices = clip(tile, name, indices, mask, frame, ndim, loc)
    own(tile, frame.axes, axes)
    assert tile.data is not None
    every = block_indices(tile.data.shape[:axes], ndim) + indices
    at, values, keep = _points(tile, every, value, mask, nest, axes)
    tile.data[at] = values
    other = tile.data[at] != values
    if other.any() and not np.isnan(values[other].astype(np.float64)).all():
        bad = np.zeros(keep.shape, dtype=bool)
        bad[keep] = other
        text = f"threads write different values to one element of {name} at once"
        raise fault(frame, loc, text, bad, index=False)
    mark(tile, at, axes)


def _points(
    tile: Tile, every: tuple[Any, ...], value: Value, mask: Any, nest: tuple[int, ...], axes: int
) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """Index arrays and values of the elements that are written, one after the other, and where they are."""
    assert tile.data is not None
    shapes = [np.shape(i) for i in (*every, value, mask)]
    shape = np.broadcast_shapes(tile.data.shape[:axes] + nest, *shapes)
    keep = np.broadcast_to(np.True_ if mask is None else mask, shape)
    at = tuple(np.broadcast_to(i, shape)[keep] for i in every)
    return at, np.broadcast_to(value, shape)[keep], keep


def _refuse_collisions(
    tile: Tile,
    name: str,
    at: tuple[np.ndarray, ...],
    keep: np.ndarray,
    nest: tuple[int, ...],
    frame: Frame,
    loc: Loc | None,
) -> None:
    assert tile.data is not None
    number = np.broadcast_to(np.arange(int(np.prod(nest, dtype=np.int64))).reshape(nest), keep.shape)[keep]
    last = np.empty(tile.data.shape, dtype=np.int64)
    last[at] = number
    twice = last[at] != number
    if twice.any():
        bad = np.zeros(keep.shape, dtype=bool)
        bad[keep] = twice
        raise fault(frame, loc, f"two iterations of a parallel loop write one element of {name}", bad)
