"""Tile operations and declarations: allocations, copy, fill, reductions, atomics, annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foretile.kernels.errors import fail, here
from foretile.kernels.expr import Const, Expr
from foretile.kernels.handles import (
    ONE,
    BufferHandle,
    Element,
    Previous,
    RegionHandle,
    VarHandle,
    match,
    region_of,
    side,
)
from foretile.kernels.ir import (
    AtomicAdd,
    Copy,
    CumSum,
    Fill,
    Reduce,
    ReduceKind,
    Scope,
    Store,
    Swizzle,
    Sync,
)
from foretile.kernels.messages import shape_text, text
from foretile.kernels.tracer import current
from foretile.kernels.values import Result, Value, canonical, coerced, constant

REDUCE_KINDS: dict[str, ReduceKind] = {k: k for k in ("sum", "max", "min", "absmax", "abssum")}


def _alloc(call: str, shape: Any, dtype: Any, scope: Scope) -> BufferHandle:
    tracer = current(call)
    tracer.need_kernel(call)
    dims: list[Expr] = []
    for size in shape if isinstance(shape, tuple | list) else (shape,):
        e = size.expr if isinstance(size, Value) else constant(size)
        if not isinstance(e, Const):
            fail(
                f"{call} with the symbolic extent {text(e)}; on-chip shapes must be constants, known when "
                f"the kernel is traced"
            )
        if isinstance(e.value, bool) or not isinstance(e.value, int) or e.value < 1:
            fail(f"{call}: extent {e.value!r} must be a whole number of at least 1")
        dims.append(Const(e.value))
    handle = BufferHandle(tracer, "", tuple(dims), canonical(dtype), scope)
    tracer.buffers.append(handle)
    return handle


def alloc_shared(shape: Any, dtype: Any, scope: str = "shared.dyn") -> BufferHandle:
    """A scratchpad tile shared by the block's threads."""
    return _alloc("T.alloc_shared", shape, dtype, "shared")


def alloc_fragment(shape: Any, dtype: Any, scope: str = "local.fragment") -> BufferHandle:
    """A tile spread over the registers of the block's threads."""
    return _alloc("T.alloc_fragment", shape, dtype, "fragment")


def alloc_local(shape: Any, dtype: Any, scope: str = "local") -> BufferHandle:
    """A small array private to each thread."""
    return _alloc("T.alloc_local", shape, dtype, "local")


def alloc_var(dtype: Any, *args: Any, init: Any = None, scope: str = "local.var") -> VarHandle:
    """A scalar variable: assigning to its Python name stores, using the name loads."""
    if args and not isinstance(args[0], str):
        init, args = args[0], args[1:]
    handle = _alloc("T.alloc_var", (1,), dtype, "var")
    return VarHandle(handle, None if init is None else coerced(init, handle.dtype))


def copy(
    src: Any,
    dst: Any,
    coalesced_width: int | None = None,
    disable_tma: bool = False,
    eviction_policy: str | None = None,
    annotations: Any = None,
    loop_layout: Any = None,
) -> None:
    """Copy a tile; element against element is a plain store. The keyword hints are not used."""
    if isinstance(src, Element) and isinstance(dst, Element):
        # Two single elements: TileLang's copy is a scalar store here.
        dst.handle.store(tuple(Result(i, "int32") for i in dst.indices), src)
        return
    _, source, handle, target = match(src, dst, "T.copy")
    current("T.copy").emit(Copy(source, target, loc=here()), handle.name)


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
    """Reduce ``buffer`` along ``dim`` into ``out`` by ``sum``, ``max``, ``min``, ``absmax`` or ``abssum``."""
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
    current(call).emit(
        Reduce(REDUCE_KINDS[reduce_type], src, dst, dim, bool(clear), loc=here()), dst_handle.name
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


def cumsum(src: Any, dst: Any = None, dim: int = 0, reverse: bool = False) -> None:
    """Inclusive prefix sum along ``dim`` (from the end with ``reverse``), in place without ``dst``."""
    src_handle, source = region_of(src, "input of T.cumsum")
    dst_handle, target = (src_handle, source) if dst is None else region_of(dst, "output of T.cumsum")
    dim = _dim(dim, len(source.extents), "T.cumsum", src_handle.name)
    if source.extents != target.extents:
        fail(
            f"T.cumsum of {src_handle.name} {shape_text(source.extents)} into "
            f"{dst_handle.name} {shape_text(target.extents)}; the shapes must be equal"
        )
    current("T.cumsum").emit(CumSum(source, target, dim, bool(reverse), loc=here()), dst_handle.name)


def _atomic(kind: str, dst: Any, value: Any, return_prev: bool) -> Previous | None:
    call = f"T.atomic_{kind}"
    handle, mins, extents = side(dst, f"destination of {call}")
    if return_prev and (kind != "add" or handle.kind != "shared"):
        fail(f"return_prev of {call} on {handle.name}: only sums of elements of shared memory tell it")
    if handle.kind not in ("global", "shared"):
        fail(f"{call} on {handle.name} in scope {handle.kind}; only global and shared memory have atomics")
    if isinstance(value, BufferHandle | RegionHandle) or extents is not None:
        if extents == (ONE,) and not isinstance(value, BufferHandle | RegionHandle):
            return _update(handle, mins, value, kind, return_prev)  # a one-element buffer
        if kind != "add":
            fail(f"{call} of a whole tile; write it element by element in a T.Parallel loop")
        if handle.kind != "global":
            fail(f"{call} of a tile needs a global destination, {handle.name} is in scope {handle.kind}")
        _, source, handle, target = match(value, dst, call)
        current(call).emit(AtomicAdd(source, target, loc=here()), handle.name)
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
    return _atomic("add", dst, value, return_prev)


def atomic_max(dst: Any, value: Any, memory_order: str | None = None, return_prev: bool = False) -> None:
    """Raise one element to at least ``value``, atomically."""
    _atomic("max", dst, value, return_prev)


def atomic_min(dst: Any, value: Any, memory_order: str | None = None, return_prev: bool = False) -> None:
    """Lower one element to at most ``value``, atomically."""
    _atomic("min", dst, value, return_prev)


def sync_threads(*_ids: Any) -> None:
    """A barrier of all threads of the block."""
    current("T.sync_threads").emit(Sync(loc=here()))


def use_swizzle(panel_size: int, order: str = "row", enable: bool = True) -> None:
    """Walk the grid in panels of ``panel_size`` rows or columns: blocks near in time share L2 lines."""
    tracer = current("T.use_swizzle")
    tracer.need_kernel("T.use_swizzle")
    if not enable:
        return
    if isinstance(panel_size, bool) or not isinstance(panel_size, int) or panel_size < 1:
        fail(f"panel_size={panel_size!r} of T.use_swizzle must be a whole number of at least 1")
    if order not in ("row", "col", "column"):
        fail(f"order={order!r} of T.use_swizzle; use 'row' or 'col'")
    if tracer.swizzle is not None:
        fail("T.use_swizzle is given twice")
    tracer.swizzle = Swizzle(panel_size, "row" if order == "row" else "col")


def annotate_min_blocks_per_sm(blocks: int) -> None:
    """So many blocks are to run on a core at once, which limits the registers of a thread."""
    tracer = current("T.annotate_min_blocks_per_sm")
    tracer.need_kernel("T.annotate_min_blocks_per_sm")
    if isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 1:
        fail(f"T.annotate_min_blocks_per_sm({blocks!r}): a whole number of at least 1 is needed")
    tracer.annotations.append(("min_blocks_per_sm", str(blocks)))


class SwizzledLayout:
    """Marker of a bank-conflict-free layout."""


def make_swizzled_layout(buffer: Any, *_args: Any, **_kwargs: Any) -> SwizzledLayout:
    """A bank-conflict-free layout of a shared tile; an opaque marker here."""
    return SwizzledLayout()


def _annotate(call: str, kind: str, values: Any, show: Any) -> None:
    tracer = current(call)
    tracer.need_kernel(call)
    if not isinstance(values, Mapping):
        fail(f"{call} takes a dictionary from buffers to values")
    for key, value in values.items():
        handle, _, _ = side(key, f"key of {call}")
        tracer.annotations.append((f"{kind}:{handle.name}", show(value)))


def _number(value: Any) -> str:
    e = value.expr if isinstance(value, Value) else constant(value)
    if not isinstance(e, Const):
        fail(f"annotation value {text(e)} must be a constant")
    return repr(int(e.value) if isinstance(e.value, bool) else e.value)


def _layout(value: Any) -> str:
    if not isinstance(value, SwizzledLayout):
        fail(f"layout {value!r} of T.annotate_layout is not known; use T.make_swizzled_layout(buffer)")
    return "swizzled"


def annotate_layout(layout_map: Mapping[Any, Any], **_hints: Any) -> None:
    """Note the layout of shared tiles."""
    _annotate("T.annotate_layout", "layout", layout_map, _layout)


def annotate_l2_hit_ratio(l2_hit_ratio_map: Mapping[Any, Any]) -> None:
    """Note the share of a tensor that should stay in L2."""
    _annotate("T.annotate_l2_hit_ratio", "l2_hit_ratio", l2_hit_ratio_map, _number)


def annotate_safe_value(safe_value_map: Mapping[Any, Any]) -> None:
    """Note what reading outside a tensor's bounds gives instead of zero."""
    _annotate("T.annotate_safe_value", "safe_value", safe_value_map, _number)


def assume(condition: Any) -> None:
    """A promise to the compiler; nothing to trace."""
