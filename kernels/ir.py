"""The tile program: a frozen, typed tree. It prints as TileLang-like text and round-trips to JSON.

Programs compare by structure; source locations are carried along but do not take part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from foretile.kernels.expr import Expr, Load, Var

Scope = Literal["global", "shared", "fragment", "local", "var"]
LoopKind = Literal["serial", "unroll", "parallel", "pipelined", "persistent"]
ReduceKind = Literal["sum", "max", "min", "absmax", "abssum"]


@dataclass(frozen=True, slots=True)
class Loc:
    """A line of the kernel's source."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Buffer:
    """A tensor (scope ``global``) or an on-chip allocation of one block.

    ``shape`` has one expression a dimension, ``dtype`` is a canonical name.
    """

    name: str
    shape: tuple[Expr, ...]
    dtype: str
    scope: Scope


@dataclass(frozen=True, slots=True)
class Region:
    """A box of a buffer: per dimension the first index and the extent (in elements)."""

    buffer: str
    mins: tuple[Expr, ...]
    extents: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stmt:
    """Base of all statements."""

    loc: Loc | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Copy(Stmt):
    """Copy a region to a region, converting the element type; out-of-bounds parts are masked."""

    src: Region
    dst: Region


@dataclass(frozen=True, slots=True)
class Gemm(Stmt):
    """``c (+)= a @ b``; ``a`` is (M, K), or (K, M) with ``trans_a``; ``b`` (K, N), or (N, K).

    With scales, ``a_scale`` (M, K / g) and ``b_scale`` (N, K / g), each ``g`` elements of the depth are
    multiplied by theirs first, by the matrix engine.
    """

    a: Region
    b: Region
    c: Region
    trans_a: bool = False
    trans_b: bool = False
    clear_accum: bool = False
    policy: str = "square"  # how warps share the tile: square | full_row | full_col
    a_scale: Region | None = None
    b_scale: Region | None = None


@dataclass(frozen=True, slots=True)
class Fill(Stmt):
    """Set every element of a region to ``value``."""

    dst: Region
    value: Expr


@dataclass(frozen=True, slots=True)
class Reduce(Stmt):
    """Reduce ``src`` along ``dim`` into ``dst``; without ``clear`` the old value takes part."""

    kind: ReduceKind
    src: Region
    dst: Region
    dim: int
    clear: bool = True


@dataclass(frozen=True, slots=True)
class CumSum(Stmt):
    """Inclusive prefix sum of ``src`` along ``dim`` into ``dst``."""

    src: Region
    dst: Region
    dim: int
    reverse: bool = False


@dataclass(frozen=True, slots=True)
class AtomicAdd(Stmt):
    """Add the region ``src`` to the global region ``dst``, element by element, atomically."""

    src: Region
    dst: Region


@dataclass(frozen=True, slots=True)
class Store(Stmt):
    """``buffer[indices] = value``; with ``atomic`` ("add" | "max" | "min") a read-modify-write.

    ``previous``: the on-chip element that takes what an atomic update found before it.
    """

    buffer: str
    indices: tuple[Expr, ...]
    value: Expr
    atomic: str = ""
    previous: Load | None = None


@dataclass(frozen=True, slots=True)
class Sync(Stmt):
    """A barrier of all threads of the block."""


@dataclass(frozen=True, slots=True)
class For(Stmt):
    """A loop nest over ``vars`` with ``extents`` (one each; ``parallel`` loops may have several).

    ``parallel``: all iterations at once, spread over the block's threads.
    ``pipelined``: ``num_stages`` buffers deep, copies run ahead of the compute.
    ``persistent``: the nest's points (row-major, last variable fastest, or in groups of
    ``group_size`` rows) are dealt to the blocks round robin: block *b* of *B* takes points
    *b*, *b + B*, …

    ``extents`` are trip counts: a one-variable loop runs ``start + step * i`` for ``i`` from 0 to
    ``extent - 1`` (``range(2, 10, 3)`` has start 2, step 3 and extent 3; steps may be negative).
    """

    vars: tuple[Var, ...]
    extents: tuple[Expr, ...]
    kind: LoopKind
    body: tuple[Stmt, ...]
    num_stages: int = 0
    group_size: int = 0
    start: Expr | None = None  # first index of a one-variable loop; None means 0
    step: int = 1


@dataclass(frozen=True, slots=True)
class If(Stmt):
    """``then`` where ``cond`` holds, else ``orelse``."""

    cond: Expr
    then: tuple[Stmt, ...]
    orelse: tuple[Stmt, ...] = ()


@dataclass(frozen=True, slots=True)
class While(Stmt):
    """Repeat ``body`` while ``cond`` (over scalars and bound tensors) holds."""

    cond: Expr
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Swizzle:
    """Raster order of blocks: panels of ``panel_size`` rows (or columns) walked along the other axis."""

    panel_size: int
    order: Literal["row", "col"] = "row"


@dataclass(frozen=True, slots=True)
class TileProgram:
    """One kernel: tensors in, a grid of blocks, what one block does.

    ``params`` are the global tensors in call order; ``dims`` the symbolic dimensions still free;
    ``grid`` has one to three extents, ``block_vars`` the index variable of each (x fastest);
    ``threads`` is the block's thread count; ``buffers`` are the on-chip allocations.
    """

    name: str
    params: tuple[Buffer, ...]
    dims: tuple[Var, ...]
    grid: tuple[Expr, ...]
    block_vars: tuple[Var, ...]
    threads: int
    buffers: tuple[Buffer, ...]
    body: tuple[Stmt, ...]
    swizzle: Swizzle | None = None
    annotations: tuple[tuple[str, str], ...] = ()
    loc: Loc | None = field(default=None, compare=False, repr=False)

    def buffer(self, name: str) -> Buffer:
        """The tensor or allocation called ``name``.

        Raises:
            KeyError: there is none.
        """
        for candidate in (*self.params, *self.buffers):
            if candidate.name == name:
                return candidate
        raise KeyError(f"{self.name} has no buffer {name!r}")

    def bind(self, **dims: int) -> TileProgram:
        """The program with symbolic dimensions replaced by numbers.

        Raises:
            ValueError: a name that is not a symbolic dimension, or a size below one.
        """
        from foretile.kernels.rewrite import bind

        return bind(self, dims)

    def script(self) -> str:
        """Readable TileLang-like text."""
        from foretile.kernels.printer import script

        return script(self)

    def to_json(self) -> dict[str, Any]:
        """Plain data (lists, dicts, numbers, strings) from which :meth:`from_json` rebuilds it."""
        from foretile.kernels.serialize import to_json

        return to_json(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TileProgram:
        """Rebuild a program from :meth:`to_json`'s data.

        Raises:
            ValueError: the data are not a program of a version we know.
        """
        from foretile.kernels.serialize import from_json

        return from_json(data)

    def __str__(self) -> str:
        return self.script()


def walk_stmts(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    """All statements of ``body`` and of the bodies inside, in program order."""
    for stmt in body:
        yield stmt
        if isinstance(stmt, For | While):
            yield from walk_stmts(stmt.body)
        elif isinstance(stmt, If):
            yield from walk_stmts(stmt.then)
            yield from walk_stmts(stmt.orelse)


def with_body(stmt: For | While, body: tuple[Stmt, ...]) -> For | While:
    """``stmt`` with another body."""
    return replace(stmt, body=body)
