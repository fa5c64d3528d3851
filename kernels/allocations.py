"""Buffers of a kernel: on-chip tiles, variables, barriers, workspace, views of other buffers."""

from __future__ import annotations

from typing import Any

from foretile.kernels.errors import fail
from foretile.kernels.expr import Const, Expr, Load
from foretile.kernels.handles import BufferHandle, Element, VarHandle, side
from foretile.kernels.infer import is_float
from foretile.kernels.ir import Scope
from foretile.kernels.messages import text
from foretile.kernels.tracer import current
from foretile.kernels.values import Value, canonical, coerced, constant, index_expr


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


def alloc_tmem(shape: Any, dtype: Any) -> BufferHandle:
    """A tile in the matrix engine's own memory."""
    return _alloc("T.alloc_tmem", shape, dtype, "tmem")


def alloc_global(shape: Any, dtype: Any, scope: str = "global") -> BufferHandle:
    """Workspace of the launch, which is no parameter."""
    tracer = current("T.alloc_global")
    tracer.need_kernel("T.alloc_global")
    sizes = shape if isinstance(shape, tuple | list) else (shape,)
    dims = tuple(index_expr(size, "extent of T.alloc_global") for size in sizes)
    handle = BufferHandle(tracer, "", dims, canonical(dtype), "global")
    tracer.buffers.append(handle)
    return handle


def alloc_barrier(arrive_count: int | list[int]) -> BufferHandle:
    """Memory barriers; each completes a phase after so many arrivals."""
    return _barriers("T.alloc_barrier", "barrier", arrive_count)


def alloc_cluster_barrier(arrive_count: int | list[int]) -> BufferHandle:
    """Memory barriers at which threads of all blocks of a cluster arrive."""
    return _barriers("T.alloc_cluster_barrier", "cluster_barrier", arrive_count)


def _barriers(call: str, kind: str, arrive_count: int | list[int]) -> BufferHandle:
    counts = [arrive_count] if isinstance(arrive_count, int) else list(arrive_count)
    if not counts or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in counts):
        fail(f"{call}({arrive_count!r}): arrivals are whole numbers of at least 1")
    handle = _alloc(call, (len(counts),), "uint64", "barrier")
    handle.notes.append((kind, ",".join(map(str, counts))))
    return handle


REDUCTIONS = ("sum", "max", "min", "bitand", "bitor", "bitxor")


def alloc_reducer(shape: Any, dtype: Any, op: str = "sum", replication: str | None = None) -> BufferHandle:
    """A fragment that collects updates (``T.reducer_update``) by ``op`` until ``T.finalize_reducer``."""
    if op not in REDUCTIONS or replication not in (None, "all", "none"):
        fail(f"T.alloc_reducer(op={op!r}, replication={replication!r}): op is one of {', '.join(REDUCTIONS)}")
    handle = _alloc("T.alloc_reducer", shape, dtype, "fragment")
    handle.notes.append(("reducer", f"{op}:{replication}" if replication else op))
    return handle


def view(
    src: BufferHandle, shape: Any = None, dtype: Any = None, strides: Any = None, offset: Any = None
) -> BufferHandle:
    """Another look at a buffer's storage: other extents, or another element type.

    ``offset``: where it begins, in elements of the view.
    """
    if not isinstance(src, BufferHandle):
        fail(f"T.view of {src!r}; give a buffer")
    tracer = src.tracer
    dims = src.dims if shape is None else _extents("T.view", shape)
    made = BufferHandle(tracer, "", dims, src.dtype if dtype is None else canonical(dtype), src.kind)
    made.alias = src.alias or src.name
    made.strides = () if strides is None else _extents("T.view", strides)
    made.offset = None if offset is None else index_expr(offset, "offset of T.view")
    tracer.buffers.append(made)
    return made


def reshape(src: BufferHandle, shape: Any) -> BufferHandle:
    """The same elements with other extents."""
    return view(src, shape)


def make_tensor(pointer: Any, shape: Any, dtype: Any, strides: Any = None) -> BufferHandle:
    """The tensor at an address that stands in a tensor of pointers."""
    if not isinstance(pointer, Element) or is_float(pointer.dtype):
        fail("T.make_tensor takes an entry of a tensor of pointers: T.make_tensor(pointers[i], shape, dtype)")
    tracer = current("T.make_tensor")
    made = BufferHandle(tracer, "", _extents("T.make_tensor", shape), canonical(dtype), "global")
    made.strides = () if strides is None else _extents("T.make_tensor", strides)
    assert isinstance(pointer.expr, Load)
    made.address = pointer.expr
    tracer.buffers.append(made)
    return made


def _extents(call: str, shape: Any) -> tuple[Expr, ...]:
    sizes = shape if isinstance(shape, tuple | list) else (shape,)
    return tuple(index_expr(size, f"extent of {call}") for size in sizes)


def place_of(x: Any, what: str) -> Load:
    """The element that an operand means: ``buffer[i]``, or a buffer's first."""
    handle, mins, _ = side(x, what)
    return Load(handle.name, mins)


__all__ = [
    "alloc_barrier",
    "alloc_cluster_barrier",
    "alloc_fragment",
    "alloc_global",
    "alloc_local",
    "alloc_reducer",
    "alloc_shared",
    "alloc_tmem",
    "alloc_var",
    "make_tensor",
    "reshape",
    "view",
]
"""The names that are part of the language."""
