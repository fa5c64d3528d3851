"""The blocks that execute together, and their on-chip buffers.

Blocks are executed side by side: every array begins with *block axes* (the grid, slowest index
first, or one axis where the blocks are any selection). A block axis has length one where the values
do not depend on it, so a tile that all blocks of a row share is held, and computed on, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Written = bool | np.ndarray


@dataclass(slots=True)
class Tile:
    """One on-chip buffer of all blocks of a frame.

    ``data``: block axes, then the buffer's dimensions, in the carrier type. ``owned``: no other
    buffer shares the memory, it may be changed in place. ``written``: True, False, or by element.
    ``pending``: called before ``data`` is looked at, to add products that were put off.
    """

    dtype: str
    shape: tuple[int, ...]
    held: np.ndarray | None = None
    pending: Callable[[], None] | None = None
    owned: bool = False
    written: Written = False
    zero: bool = False  # every element is zero
    changed: bool = False
    garbage: int | None = None  # what elements hold that nothing has written (None: they may not be read)

    @property
    def data(self) -> np.ndarray | None:
        """Block axes, then the buffer's dimensions; None before anything was written."""
        if self.pending is not None:
            self.pending()
        return self.held

    @data.setter
    def data(self, data: np.ndarray | None) -> None:
        self.pending = None
        self.held = data

    def set(self, data: np.ndarray, *, owned: bool) -> None:
        """Replace the whole buffer of all blocks."""
        self.data, self.owned, self.written = data, owned, True
        self.zero, self.changed = False, True


@dataclass
class Frame:
    """Some blocks of a launch. ``axes``: their number along each block axis.

    ``env``: loop and block variables, numbers or int64 arrays over block axes; ``block``: the blocks'
    numbers in the grid (x fastest); ``grid``: the launch's extents, x first.
    """

    axes: tuple[int, ...]
    env: dict[str, Any]
    block: np.ndarray
    grid: tuple[int, ...]
    tiles: dict[str, Tile] = field(default_factory=dict)

    def name_of(self, block: int) -> str:
        """Block indices as the kernel writes them, x first."""
        found = []
        for extent in self.grid:
            found.append(block % extent)
            block //= extent
        return f"({', '.join(map(str, found))})"

    @contextmanager
    def only(self, mask: np.ndarray) -> Iterator[Frame]:
        """The blocks where ``mask`` (over block axes) holds; what they did is merged back at the end."""
        chosen = _choice(mask, self.axes)
        child = chosen.frame(self)
        before = {name: tile.data for name, tile in child.tiles.items()}
        yield child
        for name, tile in child.tiles.items():
            if tile.changed:
                self._merge(self.tiles[name], tile, chosen, in_place=tile.data is before[name])

    def _merge(self, mine: Tile, theirs: Tile, chosen: _Choice, *, in_place: bool) -> None:
        if theirs.data is None:  # threads' own variables, of which the block keeps nothing
            mine.changed, mine.written = True, chosen.merge_written(mine, theirs, self.axes)
            return
        mine.changed = True
        mine.zero = mine.zero and theirs.zero
        mine.written = chosen.merge_written(mine, theirs, self.axes)
        if in_place and chosen.view and mine.owned and theirs.owned:
            return  # the child changed a view of this very buffer
        lead = chosen.lead(theirs.data, mine.data, self.axes)
        old = mine.data
        if old is None or not mine.owned or old.shape[: len(self.axes)] != lead:
            mine.data = np.empty((*lead, *mine.shape), theirs.data.dtype)
            if old is not None:
                mine.data[...] = old
            else:
                mine.data[...] = mine.garbage or 0
            mine.owned = True
        assert mine.data is not None
        chosen.put(mine.data, theirs.data, len(self.axes))


@dataclass
class _Choice:
    """Blocks chosen along one axis (``index`` a slice or array), or a list of them on all axes."""

    index: Any
    axis: int  # -1: ``index`` holds one index array an axis
    count: int

    @property
    def view(self) -> bool:
        return isinstance(self.index, slice)

    def frame(self, parent: Frame) -> Frame:
        axes: tuple[int, ...] = (self.count,)
        if self.axis >= 0:
            axes = (*parent.axes[: self.axis], self.count, *parent.axes[self.axis + 1 :])
        child = Frame(axes, {}, self.take(parent.block, len(parent.axes)), parent.grid)
        for name, value in parent.env.items():
            child.env[name] = self.take(value, len(parent.axes)) if np.ndim(value) else value
        for name, tile in parent.tiles.items():
            child.tiles[name] = self._tile(tile, len(parent.axes))
        return child

    def _tile(self, tile: Tile, axes: int) -> Tile:
        written = tile.written
        if isinstance(written, np.ndarray):
            written = self.take(written, axes).copy()
        child = Tile(tile.dtype, tile.shape, written=written, zero=tile.zero, garbage=tile.garbage)
        if tile.data is not None:
            child.data = self.take(tile.data, axes)
            shared = child.data is tile.data or np.shares_memory(child.data, tile.data)
            # Blocks left out may share the memory; a view of the chosen ones' own part may be changed.
            own_part = self.axis >= 0 and tile.data.shape[self.axis] > 1 and self.view
            child.owned = (tile.owned and own_part) if shared else True
        return child

    def take(self, values: np.ndarray, axes: int) -> np.ndarray:
        """The chosen blocks' part of an array that begins with ``axes`` block axes."""
        if self.axis >= 0:
            if values.shape[self.axis] == 1:
                return values
            return values[(slice(None),) * self.axis + (self.index,)]
        if all(n == 1 for n in values.shape[:axes]):
            return values.reshape(1, *values.shape[axes:])
        index = tuple(
            i if n > 1 else np.zeros_like(i) for i, n in zip(self.index, values.shape, strict=False)
        )
        taken: np.ndarray = values[index]
        return taken

    def put(self, target: np.ndarray, values: np.ndarray, axes: int) -> None:
        """Write the chosen blocks' part back."""
        where = (slice(None),) * self.axis + (self.index,) if self.axis >= 0 else self.index
        target[where] = values

    def lead(self, theirs: np.ndarray, mine: np.ndarray | None, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Lengths of the block axes that the merged buffer needs."""
        if self.axis < 0:
            return axes
        lead = [
            max(a, b)
            for a, b in zip(theirs.shape, mine.shape if mine is not None else theirs.shape, strict=True)
        ]
        return tuple(size if d == self.axis or lead[d] > 1 else 1 for d, size in enumerate(axes))

    def merge_written(self, mine: Tile, theirs: Tile, axes: tuple[int, ...]) -> Written:
        if mine.written is theirs.written and not isinstance(mine.written, np.ndarray):
            return mine.written
        shape = [1] * (len(axes) + len(mine.shape))
        shape[: len(axes)] = (
            axes if self.axis < 0 else [n if d == self.axis else 1 for d, n in enumerate(axes)]
        )
        if isinstance(mine.written, np.ndarray):
            shape = [max(a, b) for a, b in zip(shape, mine.written.shape, strict=True)]
        if isinstance(theirs.written, np.ndarray):
            inner = theirs.written.shape
            skip = 1 if self.axis < 0 else len(axes)
            tail = [max(a, b) for a, b in zip(shape[len(axes) :], inner[skip:], strict=True)]
            lead = shape[: len(axes)]
            if self.axis >= 0:
                lead = [
                    a if d == self.axis else max(a, b)
                    for d, (a, b) in enumerate(zip(lead, inner, strict=False))
                ]
            shape = [*lead, *tail]
        full = np.empty(shape, dtype=bool)
        full[...] = mine.written
        self.put(full, np.asarray(theirs.written), len(axes))
        return True if full.all() else full


def _choice(mask: np.ndarray, axes: tuple[int, ...]) -> _Choice:
    varying = [d for d, n in enumerate(mask.shape) if n > 1]
    if len(varying) == 1:
        found = np.flatnonzero(mask)
        first, last = int(found[0]), int(found[-1])
        contiguous = last - first + 1 == len(found)
        return _Choice(slice(first, last + 1) if contiguous else found, varying[0], len(found))
    index = np.nonzero(np.broadcast_to(mask, axes))
    return _Choice(index, -1, len(index[0]))
