"""Global tensors: views of the tiles that blocks read and write, bounds, and who wrote what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretile.kernels.ir import Loc
from foretile.simulator.numerics.errors import NumericsError, fault
from foretile.simulator.numerics.frame import Frame
from foretile.simulator.numerics.strided import ramp
from foretile.simulator.numerics.updates import update

_NOBODY, _ATOMIC = -1, -2
_MOST_PADDING = 4  # how many times larger than the tensor a padded copy may be


@dataclass
class GlobalTensor:
    """A tensor in device memory. ``data``: its values in the carrier type.

    ``written``: by element, whether it holds a value (None: all do); ``writer``: the block that wrote an
    element in the current launch; ``outside``: what reading beyond the tensor gives; ``changes``: whether
    the current launch writes it, so that what is read has to be copied; ``kin``: tensors that share its
    storage.
    """

    name: str
    dtype: str
    data: np.ndarray
    written: np.ndarray | None = None
    writer: np.ndarray | None = None
    outside: float = 0.0
    changes: bool = True
    padded: dict[tuple[tuple[int, int], ...], np.ndarray] = field(default_factory=dict)
    kin: tuple[GlobalTensor, ...] = ()

    def new_launch(self, *, changes: bool) -> None:
        """Forget who wrote what: launches follow each other."""
        self.writer = None
        self.changes = changes

    def touch(self) -> np.ndarray:
        """Called before every write; returns the writers by element."""
        self.padded.clear()
        for other in self.kin:
            other.padded.clear()
        if self.writer is None:
            self.writer = np.full(self.data.shape, _NOBODY, dtype=np.int32)
        return self.writer


@dataclass(frozen=True)
class Box:
    """Where a region lies: by dimension, the first index (a number, or by block) and the extent."""

    mins: tuple[Any, ...]
    extents: tuple[int, ...]


def inside(box: Box, shape: tuple[int, ...]) -> bool:
    """Whether all blocks' regions lie within a buffer of this shape."""
    return all(
        int(np.min(low)) >= 0 and int(np.max(low)) + extent <= size
        for low, extent, size in zip(box.mins, box.extents, shape, strict=True)
    )


def lead_of(box: Box, axes: int) -> tuple[int, ...]:
    """Lengths of the block axes on which the region's place depends."""
    shapes = [np.shape(low) for low in box.mins if np.ndim(low)]
    return np.broadcast_shapes((1,) * axes, *shapes)


def tiles_of(array: np.ndarray, box: Box, axes: int) -> np.ndarray | None:
    """The regions of all blocks as a view (block axes, extents); None if they are not evenly spaced."""
    strides = [0] * axes
    corner = []
    for low, stride in zip(box.mins, array.strides, strict=True):
        found = ramp(low, axes)
        if found is None:
            return None
        corner.append(slice(found.first, found.first + 1))
        for axis, step in enumerate(found.steps):
            strides[axis] += step * stride
    return np.lib.stride_tricks.as_strided(
        array[tuple(corner)],
        shape=(*lead_of(box, axes), *box.extents),
        strides=(*strides, *array.strides),
        writeable=array.flags.writeable,
    )


def element_indices(box: Box, axes: int) -> list[np.ndarray]:
    """Index arrays of the region's elements, one a dimension, that broadcast to block axes and extents."""
    rank = len(box.extents)
    found = []
    for d, (low, extent) in enumerate(zip(box.mins, box.extents, strict=True)):
        own = np.arange(extent).reshape((1,) * axes + tuple(extent if e == d else 1 for e in range(rank)))
        found.append(np.asarray(low).reshape(np.shape(low) + (1,) * rank if np.ndim(low) else ()) + own)
    return found


def within(indices: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Where all indices lie within the shape."""
    ok: Any = True
    for index, size in zip(indices, shape, strict=True):
        ok = ok & (index >= 0) & (index < size)
    return np.asarray(ok)


def read_region(tensor: GlobalTensor, box: Box, frame: Frame, loc: Loc | None) -> np.ndarray:
    """The tiles of all blocks; elements beyond the tensor read as its ``outside`` value.

    Raises:
        NumericsError: an element has never been written, or another block writes it in this launch.
    """
    axes = len(frame.axes)
    if inside(box, tensor.data.shape):
        found = tiles_of(tensor.data, box, axes)
        if found is not None:
            _check_read(tensor, box, frame, loc)
            return found.copy() if tensor.changes else found
    else:
        shifted = _padded(tensor, box)
        if shifted is not None:
            found = tiles_of(*shifted, axes)
            if found is not None:
                _check_read(tensor, box, frame, loc)
                return found
    return gather(tensor, element_indices(box, axes), None, frame, loc)


def _padded(tensor: GlobalTensor, box: Box) -> tuple[np.ndarray, Box] | None:
    """The tensor with a margin wide enough, and the region in it."""
    margins = tuple(
        (max(0, -int(np.min(low))), max(0, int(np.max(low)) + extent - size))
        for low, extent, size in zip(box.mins, box.extents, tensor.data.shape, strict=True)
    )
    grown = int(np.prod([n + a + b for n, (a, b) in zip(tensor.data.shape, margins, strict=True)]))
    if grown > _MOST_PADDING * max(tensor.data.size, int(np.prod(box.extents))):
        return None
    if margins not in tensor.padded:
        tensor.padded[margins] = np.pad(tensor.data, margins, constant_values=tensor.outside)
    mins = tuple(low + margin[0] for low, margin in zip(box.mins, margins, strict=True))
    return tensor.padded[margins], Box(mins, box.extents)


def _check_read(tensor: GlobalTensor, box: Box, frame: Frame, loc: Loc | None) -> None:
    if tensor.written is None and tensor.writer is None:
        return
    indices = element_indices(box, len(frame.axes))
    _check_elements(tensor, indices, within(indices, tensor.data.shape), frame, loc)


def gather(
    tensor: GlobalTensor, indices: list[np.ndarray], mask: Any, frame: Frame, loc: Loc | None
) -> np.ndarray:
    """Elements at index arrays over (block axes, …); beyond the tensor, its ``outside`` value."""
    ok = within(indices, tensor.data.shape)
    if mask is not None:
        ok = ok & mask
    if ok.all() and np.ndim(ok) == 0:
        clipped: list[Any] = list(indices)
    else:
        clipped = [np.clip(i, 0, size - 1) for i, size in zip(indices, tensor.data.shape, strict=True)]
    _check_elements(tensor, clipped, ok, frame, loc)
    values: np.ndarray = tensor.data[tuple(clipped)]
    if not ok.all():
        values = np.where(ok, values, tensor.data.dtype.type(tensor.outside))
    return values


def _check_elements(
    tensor: GlobalTensor, indices: list[Any], ok: np.ndarray, frame: Frame, loc: Loc | None
) -> None:
    if tensor.written is None and tensor.writer is None:
        return
    at = tuple(np.clip(i, 0, size - 1) for i, size in zip(indices, tensor.data.shape, strict=True))
    if tensor.written is not None:
        missing = np.logical_and(~tensor.written[at], ok)
        if missing.any():
            raise fault(
                frame,
                loc,
                f"reads {_element(tensor, at, missing)}, which was never written",
                missing,
                index=False,
            )
    if tensor.writer is not None:
        writer = tensor.writer[at]
        mine = frame.block.reshape(frame.block.shape + (1,) * (writer.ndim - frame.block.ndim))
        foreign = (writer != _NOBODY) & (writer != mine) & ok
        if foreign.any():
            text = f"reads {_element(tensor, at, foreign)}, which another block writes in the same launch"
            raise fault(frame, loc, text, foreign, index=False)


def _element(tensor: GlobalTensor, indices: tuple[np.ndarray, ...], bad: np.ndarray) -> str:
    where = tuple(np.argwhere(bad)[0])
    found = []
    for index in indices:
        full = np.broadcast_to(index, bad.shape)
        found.append(str(int(full[where])))
    return f"{tensor.name}[{', '.join(found)}]"


def write_region(tensor: GlobalTensor, box: Box, values: np.ndarray, frame: Frame, loc: Loc | None) -> None:
    """Write every block's tile; elements beyond the tensor are dropped.

    Raises:
        NumericsError: two blocks write one element.
    """
    axes = len(frame.axes)
    view = tiles_of(tensor.data, box, axes) if inside(box, tensor.data.shape) else None
    if view is None or view.shape[:axes] != frame.axes:
        scatter(tensor, element_indices(box, axes), values, None, frame, loc)
        return
    writer = tensor.touch()
    owners = tiles_of(writer, box, axes)
    assert owners is not None
    mine = frame.block.reshape(frame.block.shape + (1,) * len(box.extents))
    taken = (owners != _NOBODY) & (owners != mine)
    if not taken.any():
        owners[...] = mine
        taken = owners != mine
    if taken.any():
        indices = tuple(element_indices(box, axes))
        raise _race(tensor, indices, taken, frame, loc)
    view[...] = values
    if tensor.written is not None:
        flags = tiles_of(tensor.written, box, axes)
        assert flags is not None
        flags[...] = True


def scatter(
    tensor: GlobalTensor,
    indices: list[np.ndarray],
    values: Any,
    mask: Any,
    frame: Frame,
    loc: Loc | None,
    *,
    within_block: np.ndarray | None = None,
) -> None:
    """Write elements at index arrays over (block axes, …) where ``mask`` holds and they are in bounds.

    ``within_block``: numbers that tell the iterations of a block apart, where they may collide.

    Raises:
        NumericsError: two blocks, or two iterations of one, write one element.
    """
    ok = within(indices, tensor.data.shape)
    if mask is not None:
        ok = ok & mask
    rank = max(np.ndim(ok), frame.block.ndim, *(i.ndim for i in indices), np.ndim(values))
    block = frame.block.reshape(frame.block.shape + (1,) * (rank - frame.block.ndim))
    parts = [block, ok, np.asarray(values), *indices]
    if within_block is not None:
        parts.append(within_block)
    shape = np.broadcast_shapes(*(np.shape(p) for p in parts))
    keep = np.broadcast_to(ok, shape)
    at = tuple(np.broadcast_to(i, shape)[keep] for i in indices)
    who = np.broadcast_to(block, shape)[keep]
    writer = tensor.touch()
    taken = (writer[at] != _NOBODY) & (writer[at] != who)
    if not taken.any():
        writer[at] = who
        taken = writer[at] != who
        if within_block is not None and not taken.any():
            which = np.broadcast_to(within_block, shape)[keep]
            last = np.empty(tensor.data.shape, dtype=np.int64)
            last[at] = which
            twice = last[at] != which
            if twice.any():
                bad = np.zeros(shape, dtype=bool)
                bad[keep] = twice
                text = f"two iterations of a parallel loop write {_element(tensor, tuple(indices), bad)}"
                raise fault(frame, loc, text, bad, index=False)
    if taken.any():
        bad = np.zeros(shape, dtype=bool)
        bad[keep] = taken
        raise _race(tensor, tuple(indices), bad, frame, loc)
    tensor.data[at] = np.broadcast_to(values, shape)[keep]
    if tensor.written is not None:
        tensor.written[at] = True


def _race(
    tensor: GlobalTensor, indices: tuple[np.ndarray, ...], bad: np.ndarray, frame: Frame, loc: Loc | None
) -> NumericsError:
    element = _element(tensor, indices, bad)
    return fault(frame, loc, f"several blocks write {element}", bad, index=False)


def combine(
    tensor: GlobalTensor,
    how: str,
    indices: list[np.ndarray],
    values: Any,
    mask: Any,
    frame: Frame,
    loc: Loc | None,
    *,
    previous: bool = False,
) -> np.ndarray | None:
    """Atomic read-modify-write of elements: every block's, every iteration's, in order.

    With ``previous``, returns what each found before it, by (block axes, iteration axes).
    """
    ok = within(indices, tensor.data.shape)
    if mask is not None:
        ok = ok & mask
    rank = max(np.ndim(ok), frame.block.ndim, *(i.ndim for i in indices), np.ndim(values))
    block = frame.block.reshape(frame.block.shape + (1,) * (rank - frame.block.ndim))
    shape = np.broadcast_shapes(block.shape, np.shape(ok), np.shape(values), *(np.shape(i) for i in indices))
    keep = np.broadcast_to(ok, shape)
    at = tuple(np.broadcast_to(i, shape)[keep] for i in indices)
    writer = tensor.touch()
    plain = (writer[at] != _NOBODY) & (writer[at] != _ATOMIC)
    if plain.any():
        bad = np.zeros(shape, dtype=bool)
        bad[keep] = plain & (writer[at] != np.broadcast_to(block, shape)[keep])
        if bad.any():
            text = (
                f"updates {_element(tensor, tuple(indices), bad)} atomically, which another block just writes"
            )
            raise fault(frame, loc, text, bad, index=False)
    writer[at] = _ATOMIC
    before = update(
        tensor.data, at, np.broadcast_to(values, shape)[keep], how, tensor.dtype, previous=previous
    )
    if tensor.written is not None:
        tensor.written[at] = True
    if before is None:
        return None
    found = np.zeros(shape, tensor.data.dtype)
    found[keep] = before
    return found
