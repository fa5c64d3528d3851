"""Tile operations and declarations: allocations, copy, fill, reductions, atomics, annotations."""

from __future__ import annotations

from typing import Any, Literal

from foretile.kernels.allocations import place_of
from foretile.kernels.errors import fail, here
from foretile.kernels.expr import Const, Expr, binary
from foretile.kernels.handles import (
    ONE,
    BufferHandle,
    Element,
    Previous,
    RegionHandle,
    match,
    region_of,
    side,
)
from foretile.kernels.hints import hints
from foretile.kernels.ir import (
    AtomicAdd,
    Copy,
    CopyMode,
    CumSum,
    Fill,
    FinalizeReducer,
    Hints,
    Im2col,
    Reduce,
    ReduceKind,
    Store,
    Transpose,
)
from foretile.kernels.messages import shape_text
from foretile.kernels.tracer import current
from foretile.kernels.values import Result, coerced, index_expr

_KINDS: tuple[ReduceKind, ...] = ("sum", "max", "min", "absmax", "abssum", "bitand", "bitor", "bitxor")
REDUCE_KINDS: dict[str, ReduceKind] = {k: k for k in _KINDS}


def copy(
    src: Any,
    dst: Any,
    coalesced_width: int | None = None,
    disable_tma: bool = False,
    eviction_policy: str | None = None,
    annotations: Any = None,
    loop_layout: Any = None,
    **others: Any,
) -> None:
    """Copy a tile; element against element is a plain store. Keywords are hints to the compiler."""
    if isinstance(src, Element) and isinstance(dst, Element):
        # Two single elements: TileLang's copy is a scalar store here.
        dst.handle.store(tuple(Result(i, "int32") for i in dst.indices), src)
        return
    given = hints(
        annotations,
        coalesced_width=coalesced_width,
        disable_tma=disable_tma or None,
        eviction_policy=eviction_policy,
        loop_layout=loop_layout,
        **others,
    )
    _copy("T.copy", src, dst, "", None, given)


def _copy(call: str, src: Any, dst: Any, mode: CopyMode, barrier: Any, given: Hints) -> None:
    _, source, handle, target = match(src, dst, call)
    place = None if barrier is None else place_of(barrier, f"barrier of {call}")
    current(call).emit(Copy(source, target, mode, place, given, loc=here()), handle.name)


def async_copy(src: Any, dst: Any, *, annotations: Any = None, **given: Any) -> None:
    """Copy a tile past the registers (cp.async); it is there when its group has been waited for."""
    _copy("T.async_copy", src, dst, "async", None, hints(annotations, **given))


def tma_copy(src: Any, dst: Any, *, barrier: Any = None, annotations: Any = None, **given: Any) -> None:
    """Copy a tile by one bulk instruction; ``barrier`` sees its bytes arrive."""
    _copy("T.tma_copy", src, dst, "tma", barrier, hints(annotations, **given))


def transpose(src: Any, dst: Any) -> None:
    """``dst[j, i] = src[i, j]``."""
    _, source = region_of(src, "source of T.transpose")
    handle, target = region_of(dst, "destination of T.transpose")
    current("T.transpose").emit(Transpose(source, target, loc=here()), handle.name)


def im2col(
    img: Any,
    col: Any,
    nhw_step: Any,
    c_step: Any,
    kernel: int,
    stride: int,
    dilation: int,
    pad: int,
    annotations: Any = None,
    **given: Any,
) -> None:
    """A tile of a convolution's patch matrix: row tile ``nhw_step``, column tile ``c_step``."""
    _, source = region_of(img, "image of T.im2col")
    handle, target = region_of(col, "tile of T.im2col")
    steps = (index_expr(nhw_step, "nhw_step of T.im2col"), index_expr(c_step, "c_step of T.im2col"))
    window = (int(kernel), int(stride), int(dilation), int(pad))
    made = Im2col(source, target, *steps, *window, hints(annotations, **given), loc=here())
    current("T.im2col").emit(made, handle.name)


def fill(buffer: Any, value: Any) -> None:
    """Set every element of a buffer or slice."""
    handle, region = region_of(buffer, "buffer of T.fill")
    current("T.fill").emit(Fill(region, coerced(value, handle.dtype), loc=here()), handle.name)


def clear(buffer: Any) -> None:
    """Set every element of a buffer or slice to zero."""
    handle, region = region_of(buffer, "buffer of T.clear")
    zero = coerced(False if handle.dtype == "bool" else 0, handle.dtype)
    current("T.clear").emit(Fill(region, zero, loc=here()), handle.name)


def _dim(dim: Any, rank: int, call: str, name: str) -> int:
    if isinstance(dim, bool) or not isinstance(dim, int) or not -rank <= dim < rank:
        fail(f"dim={dim!r} of {call}: {name} has {rank} dimensions; valid are {-rank} to {rank - 1}")
    return dim % rank


def reduce(
    buffer: Any,
    out: Any,
    reduce_type: str,
    dim: int = -1,
    clear: bool = True,
    batch: int = 1,
    nan_propagate: bool = False,
    annotations: Any = None,
) -> None:
    """Reduce ``buffer`` along ``dim`` into ``out`` by ``sum``, ``max``, ``min``, ``absmax``, ``bitand``, …"""
    call = f"T.reduce_{reduce_type}"
    if reduce_type not in REDUCE_KINDS:
        fail(f"{call}: unknown reduction; known are {', '.join(REDUCE_KINDS)}")
    src_handle, src = region_of(buffer, f"input of {call}")
    dst_handle, dst = region_of(out, f"output of {call}")
    dim = _dim(dim, len(src.extents), call, src_handle.name)
    rest = src.extents[:dim] + src.extents[dim + 1 :]
    kept = (*src.extents[:dim], ONE, *src.extents[dim + 1 :])
    if dst.extents not in (rest or (ONE,), kept):
        fail(
            f"{call} of {src_handle.name} {shape_text(src.extents)} along dim {dim} gives "
            f"{shape_text(rest or (ONE,))} or {shape_text(kept)}, but {dst_handle.name} is "
            f"{shape_text(dst.extents)}"
        )
    given = hints(annotations, batch=batch if batch != 1 else None, nan_propagate=nan_propagate or None)
    current(call).emit(
        Reduce(REDUCE_KINDS[reduce_type], src, dst, dim, bool(clear), given, loc=here()), dst_handle.name
    )


def reduce_sum(buffer: Any, out: Any, dim: int = -1, clear: bool = True, **hints: Any) -> None:
    """Sum along ``dim``; without ``clear`` added to ``out``."""
    reduce(buffer, out, "sum", dim, clear, **hints)


def reduce_max(buffer: Any, out: Any, dim: int = -1, clear: bool = True, **hints: Any) -> None:
    """Maximum along ``dim``; without ``clear`` of ``out`` too."""
    reduce(buffer, out, "max", dim, clear, **hints)


def reduce_min(buffer: Any, out: Any, dim: int = -1, clear: bool = True, **hints: Any) -> None:
    """Minimum along ``dim``; without ``clear`` of ``out`` too."""
    reduce(buffer, out, "min", dim, clear, **hints)


def reduce_absmax(buffer: Any, out: Any, dim: int = -1, clear: bool = True, **hints: Any) -> None:
    """Maximum of absolute values along ``dim``."""
    reduce(buffer, out, "absmax", dim, clear, **hints)


def reduce_abssum(buffer: Any, out: Any, dim: int = -1, clear: bool = True, **hints: Any) -> None:
    """Sum of absolute values along ``dim``."""
    reduce(buffer, out, "abssum", dim, clear, **hints)


def reduce_bitand(buffer: Any, out: Any, dim: int = -1, clear: bool = True, **given: Any) -> None:
    """The bits that all elements along ``dim`` have."""
    reduce(buffer, out, "bitand", dim, clear, **given)


def reduce_bitor(buffer: Any, out: Any, dim: int = -1, clear: bool = True, **given: Any) -> None:
    """The bits that any element along ``dim`` has."""
    reduce(buffer, out, "bitor", dim, clear, **given)


def reduce_bitxor(buffer: Any, out: Any, dim: int = -1, clear: bool = True, **given: Any) -> None:
    """The bits that an odd number of elements along ``dim`` have."""
    reduce(buffer, out, "bitxor", dim, clear, **given)


def cumsum(src: Any, dst: Any = None, dim: int = 0, reverse: bool = False) -> None:
    """Inclusive prefix sum along ``dim`` (from the end with ``reverse``), in place without ``dst``."""
    _scan("sum", src, dst, dim, reverse)


def cummax(src: Any, dst: Any = None, dim: int = 0, reverse: bool = False) -> None:
    """Inclusive running maximum along ``dim`` (from the end with ``reverse``), in place without ``dst``."""
    _scan("max", src, dst, dim, reverse)


def _scan(kind: Literal["sum", "max"], src: Any, dst: Any, dim: int, reverse: bool) -> None:
    call = f"T.cum{kind}"
    src_handle, source = region_of(src, f"input of {call}")
    dst_handle, target = (src_handle, source) if dst is None else region_of(dst, f"output of {call}")
    dim = _dim(dim, len(source.extents), call, src_handle.name)
    if source.extents != target.extents:
        fail(
            f"{call} of {src_handle.name} {shape_text(source.extents)} into "
            f"{dst_handle.name} {shape_text(target.extents)}; the shapes must be equal"
        )
    current(call).emit(CumSum(source, target, dim, bool(reverse), kind, loc=here()), dst_handle.name)


def _atomic(kind: str, dst: Any, value: Any, return_prev: bool, given: Hints = ()) -> Previous | None:
    call = f"T.atomic_{kind}"
    handle, mins, extents = side(dst, f"destination of {call}")
    if handle.kind not in ("global", "shared"):
        fail(f"{call} on {handle.name} in scope {handle.kind}; only global and shared memory have atomics")
    if isinstance(value, BufferHandle | RegionHandle) or extents is not None:
        if extents == (ONE,) and not isinstance(value, BufferHandle | RegionHandle):
            return _update(handle, mins, value, kind, return_prev)  # a one-element buffer
        if kind not in ("add", "max", "min"):
            fail(f"{call} of a whole tile; write it element by element in a T.Parallel loop")
        _, source, handle, target = match(value, dst, call)
        made = AtomicAdd(source, target, kind, given, loc=here())  # type: ignore[arg-type]
        current(call).emit(made, handle.name)
        return None
    return _update(handle, mins, value, kind, return_prev)


def _update(
    handle: BufferHandle, mins: tuple[Expr, ...], value: Any, kind: str, return_prev: bool
) -> Previous | None:
    handle.store(tuple(Result(i, "int32") for i in mins), value, kind)
    if not return_prev:
        return None
    update = handle.tracer.scopes[-1][-1]
    assert isinstance(update, Store)
    return Previous(update)


def atomic_add(
    dst: Any, value: Any, memory_order: str | None = None, return_prev: bool = False, use_tma: bool = False
) -> Previous | None:
    """Add a value to one element, or a tile to a global region, atomically.

    ``x = T.atomic_add(shared[i], value, return_prev=True)`` keeps what the element held before.
    """
    return _atomic("add", dst, value, return_prev, hints(use_tma=use_tma or None))


def atomic_max(
    dst: Any, value: Any, memory_order: str | None = None, return_prev: bool = False
) -> Previous | None:
    """Raise one element (or those of a tile) to at least ``value``, atomically."""
    return _atomic("max", dst, value, return_prev)


def atomic_min(
    dst: Any, value: Any, memory_order: str | None = None, return_prev: bool = False
) -> Previous | None:
    """Lower one element (or those of a tile) to at most ``value``, atomically."""
    return _atomic("min", dst, value, return_prev)


def atomic_or(dst: Any, value: Any, memory_order: str | None = None) -> None:
    """Set the bits of ``value`` in one element, atomically."""
    _atomic("or", dst, value, False)


def atomic_and(dst: Any, value: Any, memory_order: str | None = None) -> None:
    """Keep the bits of ``value`` in one element, atomically."""
    _atomic("and", dst, value, False)


def atomic_xor(dst: Any, value: Any, memory_order: str | None = None) -> None:
    """Turn the bits of ``value`` in one element, atomically."""
    _atomic("xor", dst, value, False)


def atomic_store(dst: Any, value: Any, memory_order: str | None = None) -> None:
    """Store one element so that others see it whole."""
    _atomic("store", dst, value, False)


def atomic_load(src: Any, memory_order: str | None = None) -> Any:
    """One element as others left it."""
    return src


def atomic_addx2(dst: Any, value: Any) -> None:
    """Add two elements in a row, atomically."""
    _in_a_row(dst, value, 2)


def atomic_addx4(dst: Any, value: Any) -> None:
    """Add four elements in a row, atomically."""
    _in_a_row(dst, value, 4)


def _in_a_row(dst: Any, value: Any, count: int) -> None:
    call = f"T.atomic_addx{count}"
    target, source = side(dst, f"destination of {call}"), side(value, f"value of {call}")
    for lane in range(count):
        at, read = (
            tuple(Result(i, "int32") for i in (*mins[:-1], binary("add", mins[-1], Const(lane))))
            for _, mins, _ in (target, source)
        )
        target[0].store(at, source[0][read], "add")


_REDUCER_STORES = {"sum": "add", "max": "max", "min": "min", "bitand": "and", "bitor": "or", "bitxor": "xor"}


def _reducer(x: Any, call: str) -> tuple[BufferHandle, tuple[Expr, ...], str]:
    handle, mins, _ = side(x, f"reducer of {call}")
    op = dict(handle.notes).get("reducer", "").partition(":")[0]
    if not op:
        fail(f"{call} of {handle.name}, which is no T.alloc_reducer")
    return handle, mins, op


def reducer_update(target: Any, value: Any) -> None:
    """Combine ``value`` into one element of a reducer, once for every iteration."""
    handle, mins, op = _reducer(target, "T.reducer_update")
    handle.store(tuple(Result(i, "int32") for i in mins), value, _REDUCER_STORES[op])


def finalize_reducer(reducer: Any, dst: Any = None, batch: int = 1, annotations: Any = None) -> None:
    """The updates are complete: the result is in the reducer, or in ``dst``."""
    call = "T.finalize_reducer"
    handle, _, _ = _reducer(reducer, call)
    target, region = (handle, None) if dst is None else region_of(dst, f"destination of {call}")
    given = hints(annotations, batch=batch if batch != 1 else None)
    made = FinalizeReducer(handle.region(), region, given, loc=here())
    current(call).emit(made, target.name)


__all__ = [
    "async_copy",
    "atomic_add",
    "atomic_addx2",
    "atomic_addx4",
    "atomic_and",
    "atomic_load",
    "atomic_max",
    "atomic_min",
    "atomic_or",
    "atomic_store",
    "atomic_xor",
    "clear",
    "copy",
    "cummax",
    "cumsum",
    "fill",
    "finalize_reducer",
    "im2col",
    "reduce",
    "reduce_absmax",
    "reduce_abssum",
    "reduce_bitand",
    "reduce_bitor",
    "reduce_bitxor",
    "reduce_max",
    "reduce_min",
    "reduce_sum",
    "reducer_update",
    "tma_copy",
    "transpose",
]
"""The names that are part of the language."""
