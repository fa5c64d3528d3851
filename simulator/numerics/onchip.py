"""Reading and writing parts of on-chip buffers, with the check that what is read was written."""

from __future__ import annotations

from typing import Any

import numpy as np

from foretile.kernels.ir import Loc
from foretile.simulator.numerics.errors import fault, undefined
from foretile.simulator.numerics.formats import carrier
from foretile.simulator.numerics.frame import Frame, Tile
from foretile.simulator.numerics.tensors import Box, element_indices, inside, lead_of, within


def read_tile(
    tile: Tile, name: str, box: Box, frame: Frame, loc: Loc | None, *, mask: Any = None
) -> np.ndarray:
    """A region of a buffer: block axes, then the region's extents. The result may be a view.

    ``mask`` (over block axes): where the value is needed at all.

    Raises:
        NumericsError: the region leaves the buffer, or holds an element that was never written.
    """
    if tile.data is not None and tile.written is True and box.extents == tile.shape and not _moved(box):
        return tile.data
    axes = len(frame.axes)
    rank = len(tile.shape)
    if mask is None and not inside(box, tile.shape):
        _out_of_bounds(name, box, tile, frame, loc)
    if tile.data is None:
        if mask is not None and not np.any(mask):
            return np.zeros((1,) * (axes + rank), dtype=carrier(tile.dtype))
        if tile.garbage is not None:
            return np.full((1,) * axes + box.extents, tile.garbage, dtype=carrier(tile.dtype))
        everywhere = np.ones((1,) * (axes + rank), bool)
        raise undefined(frame, loc, f"reads {name}, which was never written", everywhere)
    if all(np.ndim(low) == 0 for low in box.mins) and inside(box, tile.shape):
        part = (slice(None),) * axes + _slices(box)
        if tile.written is not True and tile.garbage is None:
            _check(tile.written, part, name, box, frame, loc, mask)
        found: np.ndarray = tile.data[part]
        return found
    indices = element_indices(box, axes)
    ok = within(indices, tile.shape)
    if mask is not None:
        needed = np.reshape(mask, np.shape(mask) + (1,) * rank) if np.ndim(mask) else mask
        if np.any(~ok & needed):
            _out_of_bounds(name, box, tile, frame, loc)
        ok = ok & needed
    clipped = [np.clip(i, 0, n - 1) for i, n in zip(indices, tile.shape, strict=True)]
    if tile.written is not True and tile.garbage is None:
        missing = ~pick(np.asarray(_full(tile.written, tile, axes)), clipped, axes) & ok
        if missing.any():
            raise undefined(frame, loc, f"reads {name}, which was never written there", missing)
    return pick(tile.data, clipped, axes)


def write_tile(
    tile: Tile, name: str, box: Box, values: np.ndarray, frame: Frame, loc: Loc | None, *, owned: bool
) -> None:
    """Replace a region of a buffer by ``values`` (block axes, extents; the carrier, already rounded).

    Raises:
        NumericsError: the region leaves the buffer.
    """
    if not inside(box, tile.shape):
        _out_of_bounds(name, box, tile, frame, loc)
    if box.extents == tile.shape and not _moved(box):
        tile.set(values, owned=owned)
        return
    axes = len(frame.axes)
    lead = np.broadcast_shapes(values.shape[:axes], lead_of(box, axes))
    own(tile, lead, axes)
    assert tile.data is not None
    if all(np.ndim(low) == 0 for low in box.mins):
        part: Any = (slice(None),) * axes + _slices(box)
    else:
        wide = frame.axes
        own(tile, wide, axes)
        part = _block_index(wide, len(tile.shape)) + tuple(element_indices(box, axes))
        values = np.broadcast_to(values, (*wide, *box.extents))
    tile.data[part] = values
    mark(tile, part, axes)


def own(tile: Tile, lead: tuple[int, ...], axes: int) -> None:
    """Make sure the buffer may be changed in place and tells the blocks of ``lead`` apart."""
    tile.changed, tile.zero = True, False
    if tile.data is None:
        tile.data = np.full((*lead, *tile.shape), tile.garbage or 0, dtype=carrier(tile.dtype))
        tile.owned = True
        return
    wide = np.broadcast_shapes(tile.data.shape[:axes], lead)
    if not tile.owned or wide != tile.data.shape[:axes] or tile.data.shape[axes:] != tile.shape:
        tile.data = np.array(np.broadcast_to(tile.data, (*wide, *tile.shape)))
        tile.owned = True


def mark(tile: Tile, part: Any, axes: int, mask: Any = None) -> None:
    """Note that ``part`` of the buffer has been written."""
    if tile.written is True:
        return
    assert tile.data is not None
    flags = np.array(np.broadcast_to(np.asarray(_full(tile.written, tile, axes)), tile.data.shape))
    flags[part] = True if mask is None else flags[part] | mask
    tile.written = True if flags.all() else flags


def pick(array: np.ndarray, indices: list[np.ndarray], axes: int) -> np.ndarray:
    """Elements at index arrays over (block axes, …) of an array that begins with block axes."""
    rank = max(i.ndim for i in indices) - axes if indices else 0
    found: np.ndarray = array[_block_index(array.shape[:axes], rank) + tuple(indices)]
    return found


def _block_index(lead: tuple[int, ...], rank: int) -> tuple[Any, ...]:
    """Every block's own part: a range on axes that tell blocks apart, else the one shared part."""
    total = len(lead) + rank
    return tuple(
        np.arange(n).reshape([-1 if e == d else 1 for e in range(total)]) for d, n in enumerate(lead)
    )


def _full(written: Any, tile: Tile, axes: int) -> Any:
    return written if isinstance(written, np.ndarray) else np.full((1,) * axes + tile.shape, bool(written))


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(int(low), int(low) + n) for low, n in zip(box.mins, box.extents, strict=True))


def _moved(box: Box) -> bool:
    return any(np.ndim(low) or low for low in box.mins)


def _check(written: Any, part: Any, name: str, box: Box, frame: Frame, loc: Loc | None, mask: Any) -> None:
    if isinstance(written, np.ndarray):
        wide = np.broadcast_to(written, written.shape)
        if any(n == 1 for n in written.shape):  # flags that hold for whole dimensions
            axes = len(frame.axes)
            part = part[:axes] + tuple(
                slice(0, 1) if n == 1 else p for n, p in zip(written.shape[axes:], part[axes:], strict=True)
            )
        missing = ~wide[part]
    else:
        missing = np.full((1,) * (len(frame.axes) + len(box.extents)), not written)
    if mask is not None:
        missing = missing & (
            np.reshape(mask, np.shape(mask) + (1,) * len(box.extents)) if np.ndim(mask) else mask
        )
    if missing.any():
        raise undefined(frame, loc, f"reads {name}, which was never written there", missing)


def _out_of_bounds(name: str, box: Box, tile: Tile, frame: Frame, loc: Loc | None) -> None:
    axes = len(frame.axes)
    bad: Any = np.zeros((1,) * axes, dtype=bool)
    for low, extent, size in zip(box.mins, box.extents, tile.shape, strict=True):
        bad = bad | (np.asarray(low) < 0) | (np.asarray(low) + extent > size)
    shape = "×".join(map(str, tile.shape))
    first = tuple(np.argwhere(bad)[0]) if bad.any() else (0,) * axes
    at = ", ".join(
        str(int(np.broadcast_to(low, bad.shape)[first])) + (f":+{n}" if n > 1 else "")
        for low, n in zip(box.mins, box.extents, strict=True)
    )
    raise fault(frame, loc, f"{name}[{at}] leaves the buffer of {shape}", bad, index=False)


def fit(values: np.ndarray, extents: tuple[int, ...], axes: int) -> np.ndarray:
    """Values with the extents of the region they go to (dimensions of one may come and go)."""
    if values.shape[axes:] == extents:
        return values
    return values.reshape(*values.shape[:axes], *extents)


def matrix(values: np.ndarray, axes: int) -> np.ndarray:
    """A region as a matrix: leading dimensions of one dropped."""
    return values.reshape(*values.shape[:axes], *values.shape[-2:]) if values.ndim > axes + 2 else values
