"""Declarations around a kernel's body: parameter types, symbolic dimensions, the grid of blocks."""

from __future__ import annotations

from typing import Any

from foretile.kernels.errors import fail
from foretile.kernels.expr import Const, Expr, Var
from foretile.kernels.messages import text
from foretile.kernels.tracer import current
from foretile.kernels.values import Index, Result, Value, canonical, index_expr

BLOCK_NAMES = ("bx", "by", "bz")
DEFAULT_THREADS = 128


class Tensor:
    """The type of a kernel parameter: ``A: T.Tensor((m, k), "bfloat16")``."""

    __slots__ = ("dims", "dtype")

    def __init__(self, shape: Any, dtype: Any = "float32", *_layout: Any, **_hints: Any) -> None:
        sizes = shape if isinstance(shape, tuple | list) else (shape,)
        dims: list[Expr] = []
        for size in sizes:
            e = index_expr(size, "tensor extent")
            if isinstance(e, Const) and e.value < 1:
                fail(f"tensor extent {e.value} must be at least 1")
            dims.append(e)
        self.dims = tuple(dims)
        self.dtype = canonical(dtype)

    def __class_getitem__(cls, arguments: Any) -> Tensor:
        return cls(*arguments) if isinstance(arguments, tuple) else cls(arguments)

    @property
    def shape(self) -> tuple[Any, ...]:
        """Extents: numbers, or values where symbolic."""
        return tuple(e.value if isinstance(e, Const) else Result(e, "int32") for e in self.dims)


class StridedTensor(Tensor):
    """The type of a parameter whose rows lie apart: ``T.StridedTensor((m, k), (stride, 1), "float16")``."""

    __slots__ = ("strides",)

    def __init__(self, shape: Any, strides: Any, dtype: Any = "float32") -> None:
        super().__init__(shape, dtype)
        steps = strides if isinstance(strides, tuple | list) else (strides,)
        self.strides = tuple(index_expr(s, "stride") for s in steps)
        if len(self.strides) != len(self.dims):
            fail(f"a tensor of {len(self.dims)} dimensions has as many strides, not {len(self.strides)}")


def dynamic(names: str, dtype: Any = "int32") -> Any:
    """A symbolic dimension, bound to a number later; several names (``"m, n"``) give a tuple."""
    parts = names.replace(",", " ").split()
    for part in parts:
        if not part.isidentifier():
            fail(f"{part!r} cannot name a symbolic dimension; use an identifier")
    if not parts:
        fail("T.dynamic needs a name")
    dims = tuple(Index(Var(part, canonical(dtype)), "dimension") for part in parts)
    return dims[0] if len(dims) == 1 else dims


class KernelBlock:
    """``with T.Kernel(...)``: the grid of blocks, and the block's body."""

    __slots__ = ("cluster", "grid", "names", "shape", "threads")

    def __init__(
        self, grid: tuple[Expr, ...], threads: int, shape: tuple[int, ...] = (), cluster: tuple[int, ...] = ()
    ) -> None:
        self.grid = grid
        self.threads = threads
        self.shape = shape
        self.cluster = cluster
        self.names: tuple[str, ...] = ()

    def name(self, target: str | tuple[str, ...] | None) -> None:
        """Take the names of the ``as`` clause."""
        if isinstance(target, tuple):
            if len(target) != len(self.grid):
                fail(
                    f"T.Kernel has {len(self.grid)} grid axes, but its `as` clause names {len(target)}: "
                    f"{', '.join(target)}"
                )
            self.names = target
        elif target is not None and len(self.grid) == 1:
            self.names = (target,)

    def __enter__(self) -> Any:
        tracer = current("T.Kernel")
        if tracer.grid:
            fail("a second T.Kernel block; a tile program has exactly one")
        chosen = self.names or BLOCK_NAMES[: len(self.grid)]
        chosen = tuple(d if n == "_" else n for n, d in zip(chosen, BLOCK_NAMES, strict=False))
        tracer.grid = self.grid
        tracer.threads = self.threads
        tracer.thread_shape = self.shape
        tracer.cluster = self.cluster
        tracer.block_vars = tuple(Var(tracer.unique(n)) for n in chosen)
        tracer.scopes.append([])
        indices = tuple(Index(v, "block") for v in tracer.block_vars)
        return indices[0] if len(indices) == 1 else indices

    def __exit__(self, kind: Any, _error: Any, _traceback: Any) -> None:
        if kind is None:
            tracer = current("T.Kernel")
            tracer.body = tuple(tracer.scopes.pop())


def Kernel(
    *blocks: Any,
    threads: Any = None,
    is_cpu: bool = False,
    prelude: str | None = None,
    cluster_dims: Any = None,
) -> KernelBlock:
    """The grid of blocks (one to three extents, x first) and the threads of a block."""
    if not 1 <= len(blocks) <= 3:
        fail(f"T.Kernel takes 1 to 3 grid axes, got {len(blocks)}")
    if is_cpu or prelude:
        fail("is_cpu and prelude of T.Kernel are not supported")
    grid = tuple(index_expr(b, "grid extent of T.Kernel") for b in blocks)
    for e in grid:
        if isinstance(e, Const) and e.value < 1:
            fail(f"grid extent {text(e)} of T.Kernel must be at least 1")
    count = DEFAULT_THREADS if threads is None else threads
    shape: tuple[int, ...] = ()
    if isinstance(count, tuple | list):
        shape = _solid(count)
        product = 1
        for part in count:
            product *= part
        count = product
    if isinstance(count, Value):
        count = count.__index__()
    if isinstance(count, bool) or not isinstance(count, int) or count < 1 or count % 32:
        fail(f"threads={threads!r} of T.Kernel must be a positive multiple of 32")
    cluster = () if cluster_dims is None else _sizes(cluster_dims)
    return KernelBlock(grid, int(count), shape, cluster if any(n > 1 for n in cluster) else ())


def _sizes(given: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in (given if isinstance(given, tuple | list) else (given,)))


def _solid(given: Any) -> tuple[int, ...]:
    """Extents of more than one axis, without the ones behind."""
    kept = list(_sizes(given))
    while len(kept) > 1 and kept[-1] == 1:
        kept.pop()
    return tuple(kept) if len(kept) > 1 else ()
