"""Buffers that read another one's storage with another shape or element type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import evaluate
from foretile.kernels.ir import Buffer, TileProgram
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.formats import carrier, decode, encode, storage
from foretile.simulator.numerics.frame import Tile
from foretile.simulator.numerics.tensors import GlobalTensor


@dataclass(frozen=True)
class Alias:
    """``base``'s storage from element ``first`` (of this type) on, as ``shape`` of ``dtype``."""

    base: str
    dtype: str
    shape: tuple[int, ...]
    first: int

    @property
    def size(self) -> int:
        """Elements."""
        return int(np.prod(self.shape))


def aliases_of(program: TileProgram, bound: Mapping[str, Any]) -> dict[str, Alias]:
    """The program's aliases by name, each of a buffer that has storage of its own."""
    found: dict[str, Alias] = {}
    for b in program.buffers:
        if b.address is not None:
            raise NumericsError(
                f"{b.name} lies where an entry of a table of pointers says: it has no numerics", program.loc
            )
        if b.alias:
            found[b.name] = _resolved(b, found, bound)
    return found


def _resolved(b: Buffer, known: Mapping[str, Alias], bound: Mapping[str, Any]) -> Alias:
    shape = tuple(int(evaluate(e, bound)) for e in b.shape)
    first = 0 if b.offset is None else int(evaluate(b.offset, bound))
    inner = known.get(b.alias)
    if inner is None:
        return Alias(b.alias, b.dtype, shape, first)
    bits = inner.first * DTYPES[inner.dtype].bits
    return Alias(inner.base, b.dtype, shape, first + bits // DTYPES[b.dtype].bits)


def _codes(values: np.ndarray, dtype: str) -> np.ndarray:
    """Bytes of values along the last axis; elements of four bits by pairs, the first in the low half."""
    stored = np.ascontiguousarray(encode(values, dtype))
    if DTYPES[dtype].bits == 4:
        halves = stored.view(np.uint8) & 0xF
        return halves[..., 0::2] | halves[..., 1::2] << 4
    return stored.view(np.uint8)


def _values(codes: np.ndarray, dtype: str) -> np.ndarray:
    """Values of bytes along the last axis."""
    if DTYPES[dtype].bits == 4:
        codes = np.stack([codes & 0xF, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1)
    return decode(np.ascontiguousarray(codes).view(storage(dtype)), dtype)


def _as(values: np.ndarray, source: str, target: str) -> np.ndarray:
    """The same bits as another type; values along the last axis."""
    return values if source == target else _values(_codes(values, source), target)


def view_tile(base: Tile, alias: Alias, axes: int) -> Tile:
    """An on-chip buffer as its alias sees it, in storage of its own if the types differ."""
    tile = Tile(alias.dtype, alias.shape, garbage=base.garbage)
    data = base.data
    if data is None:
        return tile
    part = slice(alias.first, alias.first + alias.size)
    flat = _as(data.reshape(*data.shape[:axes], -1), base.dtype, alias.dtype)[..., part]
    tile.data = flat.reshape(*flat.shape[:axes], *alias.shape)
    if isinstance(base.written, np.ndarray):
        flags = np.broadcast_to(base.written, (*base.written.shape[:axes], *base.shape))
        flags = flags.reshape(*flags.shape[:axes], -1)
        if base.dtype == alias.dtype:
            tile.written = flags[..., part].reshape(*flags.shape[:axes], *alias.shape)
        else:
            tile.written = bool(flags.any())
    else:
        tile.written = base.written
    return tile


def put_back(base: Tile, alias: Alias, tile: Tile, axes: int) -> None:
    """What was written through an alias, into the buffer itself."""
    if tile.data is None:
        return
    new = tile.data.reshape(*tile.data.shape[:axes], -1)
    size = int(np.prod(base.shape)) * DTYPES[base.dtype].bits // DTYPES[alias.dtype].bits
    lead = new.shape[:axes]
    if base.data is not None:
        lead = np.broadcast_shapes(lead, base.data.shape[:axes])
        old = _as(base.data.reshape(*base.data.shape[:axes], -1), base.dtype, alias.dtype)
        full = np.array(np.broadcast_to(old, (*lead, size)))
    else:
        full = np.zeros((*lead, size), carrier(alias.dtype))
    part = slice(alias.first, alias.first + alias.size)
    full[..., part] = new
    written: Any = True
    if tile.written is not True or alias.size < size:
        if base.dtype == alias.dtype:
            old_flags = np.broadcast_to(base.written, (*lead, *base.shape)).reshape(*lead, size)
            written = np.array(old_flags)
            written[..., part] = np.broadcast_to(tile.written, (*lead, *alias.shape)).reshape(*lead, -1)
            written = True if written.all() else written.reshape(*lead, *base.shape)
        else:
            written = True
    base.set(_as(full, alias.dtype, base.dtype).reshape(*lead, *base.shape), owned=True)
    base.written = written


def view_tensor(name: str, alias: Alias, base: GlobalTensor, *, writes: bool) -> GlobalTensor:
    """A tensor as its alias sees it: its storage, or, of another type, a copy that is put back at the end."""
    part = slice(alias.first, alias.first + alias.size)

    def seen(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else array.reshape(-1)[part].reshape(alias.shape)

    if base.dtype == alias.dtype:
        writer = base.touch() if writes else None
        data = seen(base.data)
        assert data is not None
        tensor = GlobalTensor(
            name, alias.dtype, data, seen(base.written), seen(writer), base.outside, base.changes
        )
        tensor.kin = (base,)
        base.kin = (*base.kin, tensor)
        return tensor
    values = _as(base.data.reshape(-1), base.dtype, alias.dtype)[part].reshape(alias.shape)
    written = None if base.written is None else np.full(alias.shape, bool(base.written.all()))
    return GlobalTensor(name, alias.dtype, values, written, None, base.outside, base.changes)


def return_tensor(alias: Alias, base: GlobalTensor, tensor: GlobalTensor) -> None:
    """What was written through an alias of another type, into the tensor itself."""
    if base.dtype == alias.dtype:
        return
    flat = _as(base.data.reshape(-1), base.dtype, alias.dtype).copy()
    flat[alias.first : alias.first + alias.size] = tensor.data.reshape(-1)
    base.data[...] = _as(flat, alias.dtype, base.dtype).reshape(base.data.shape)
    if base.written is not None and tensor.written is not None:
        base.written |= bool(tensor.written.all())
    base.padded.clear()
