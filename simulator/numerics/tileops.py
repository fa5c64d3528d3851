"""Tile operations beyond copies, products and reductions: patches of convolutions, sparse operands, …"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.ir import AtomicAdd, Extern, FinalizeReducer, Gemm, Hint, Im2col, Loc, Region, Transpose
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.evaluate import convert
from foretile.simulator.numerics.formats import decode, storage
from foretile.simulator.numerics.frame import Frame
from foretile.simulator.numerics.tensors import combine, element_indices, gather
from foretile.simulator.numerics.updates import COMBINE

if TYPE_CHECKING:
    from foretile.simulator.numerics.interpret import Machine


def im2col(machine: Machine, s: Im2col, frame: Frame) -> None:
    """A tile of the patch matrix of a convolution; what lies in the padding is zero."""
    tensor = machine.tensors.get(s.src.buffer)
    if tensor is None:
        raise NumericsError(f"im2col of {s.src.buffer}, which is not in global memory", s.loc)
    axes = len(frame.axes)
    rows, columns = (n for n in machine.box(s.dst, frame, s.loc).extents if n > 1)
    _, height, width, channels = tensor.data.shape
    reach = s.dilation * (s.kernel - 1) + 1
    out_h, out_w = ((n + 2 * s.padding - reach) // s.stride + 1 for n in (height, width))

    def step(value: Any, count: int, shape: tuple[int, int]) -> np.ndarray:
        first = np.asarray(value).reshape((*np.shape(value), 1, 1) if np.ndim(value) else ())
        own = np.arange(count).reshape((1,) * axes + shape)
        return np.asarray(first * count + own)

    row = step(machine.index(s.nhw_step, frame, s.loc), rows, (rows, 1))
    column = step(machine.index(s.c_step, frame, s.loc), columns, (1, columns))
    image, place = row // (out_h * out_w), row % (out_h * out_w)
    tap, channel = column // channels, column % channels
    y = place // out_w * s.stride - s.padding + tap // s.kernel * s.dilation
    x = place % out_w * s.stride - s.padding + tap % s.kernel * s.dilation
    inside = tap < s.kernel * s.kernel
    values = np.where(inside, gather(tensor, [image, y, x, channel], inside, frame, s.loc), 0)
    source, target = tensor.dtype, machine.dtypes[s.dst.buffer]
    machine.write(s.dst, convert(values.astype(tensor.data.dtype), source, target), frame, s.loc, owned=True)


def transpose(machine: Machine, s: Transpose, frame: Frame) -> None:
    """``dst[j, i] = src[i, j]``."""
    values = machine.kept(s.src, frame, s.loc).swapaxes(-1, -2)
    source, target = machine.dtypes[s.src.buffer], machine.dtypes[s.dst.buffer]
    machine.write(s.dst, convert(values, source, target), frame, s.loc, owned=False)


def finalize_reducer(machine: Machine, s: FinalizeReducer, frame: Frame) -> None:
    """Updates were applied one by one: the value is there, and may have to go elsewhere."""
    if s.dst is None:
        machine.read(s.src, frame, s.loc)
        return
    values = machine.kept(s.src, frame, s.loc)
    source, target = machine.dtypes[s.src.buffer], machine.dtypes[s.dst.buffer]
    machine.write(s.dst, convert(values, source, target), frame, s.loc, owned=False)


def atomic_tile(machine: Machine, s: AtomicAdd, frame: Frame) -> None:
    """A tile combined with a region that others may combine with as well."""
    box, axes = machine.box(s.dst, frame, s.loc), len(frame.axes)
    values = machine.read(s.src, frame, s.loc)
    target = machine.dtypes[s.dst.buffer]
    values = convert(values, machine.dtypes[s.src.buffer], target)
    values = values.reshape(*values.shape[:axes], *box.extents)
    tensor = machine.tensors.get(s.dst.buffer)
    if tensor is None:
        old = machine.read(s.dst, frame, s.loc)
        found = convert(COMBINE[s.kind](old, values), target, target)
        machine.write(s.dst, found, frame, s.loc, owned=True)
        return
    combine(tensor, s.kind, element_indices(box, axes), values, None, frame, s.loc)


def hint(machine: Machine, s: Hint, frame: Frame) -> None:
    """No effect on values."""


def opaque(machine: Machine, s: Extern, frame: Frame) -> None:
    """Code that has no numerics."""
    what = "inline device code" if s.source else "external code"
    raise NumericsError(f"{s.name} is {what}, opaque here: it has no numerics", s.loc)


def scales(machine: Machine, region: Region, s: Gemm, depth: int, frame: Frame) -> np.ndarray:
    """Scales of an operand's elements along its depth: (block axes, rows, depth).

    Four scales may share a 32-bit word, the first in its low byte. With ``k_start`` the region holds those
    of the whole depth.
    """
    values = machine.kept(region, frame, s.loc)
    axes = len(frame.axes)
    values = values.reshape(*values.shape[:axes], *values.shape[-2:])
    dtype = machine.dtypes[region.buffer]
    if DTYPES[dtype].kind in ("uint", "int") and DTYPES[dtype].bits == 32:
        words = values.astype(np.int64)[..., None] >> (8 * np.arange(4)) & 0xFF
        codes = words.astype(np.uint8).view(storage("float8_e8m0"))
        values = decode(codes, "float8_e8m0").reshape(*values.shape[:-1], -1)
    if s.k_start is None:
        return np.repeat(values, depth // values.shape[-1], axis=-1)
    size = granularity(s, region)
    if size is None:
        raise NumericsError(
            "scales of more than this tile, but nothing says of how many elements each is", s.loc
        )
    first = np.asarray(machine.index(s.k_start, frame, s.loc))
    place = (first.reshape((*first.shape, 1, 1) if first.ndim else ()) + np.arange(depth)) // size
    place = np.broadcast_to(place, (*np.broadcast_shapes(values.shape[:-1], np.shape(place)[:-1]), depth))
    return np.take_along_axis(np.broadcast_to(values, (*place.shape[:-1], values.shape[-1])), place, axis=-1)


def granularity(s: Gemm, region: Region) -> int | None:
    """How many elements of the depth one scale is for, if the author said."""
    which = "sf_a_granularity_k" if region == s.a_scale else "sf_b_granularity_k"
    return next((int(value) for name, value in s.hints if name == which), None)


def expand_sparse(
    values: np.ndarray, metadata: np.ndarray, dtype: str, places: str, loc: Loc | None
) -> np.ndarray:
    """A 2:4 sparse operand (…, M, K / 2) and the places of its elements as the dense (…, M, K).

    Each group of four has two elements, of which two bits each give the place, the first in the low bits
    (PTX ISA 8.x, "Sparse matrix storage"); of 32-bit elements each group of two has one, by four bits.
    """
    per_group, choices, bits = (1, 2, 4) if DTYPES[dtype].bits >= 32 else (2, 4, 2)
    kept = values.shape[-1]
    width = DTYPES[places].bits
    fields = metadata.astype(np.int64)[..., None] >> (bits * np.arange(width // bits)) & ((1 << bits) - 1)
    index = fields.reshape(*metadata.shape[:-1], -1)
    if index.shape[-1] != kept:
        raise NumericsError(f"{index.shape[-1]} places for {kept} elements of a sparse operand", loc)
    if bits == 4:  # 0b0100: the first of two, 0b1110: the second
        index = (index == 0b1110).astype(np.int64)
    group = np.arange(kept) // per_group
    lead = np.broadcast_shapes(values.shape[:-1], index.shape[:-1])
    dense = np.zeros((*lead, kept // per_group * choices), values.dtype)
    where = np.broadcast_to(group * choices + index, (*lead, kept))
    np.put_along_axis(dense, where, np.broadcast_to(values, (*lead, kept)), axis=-1)
    return dense
