"""The tile program: a frozen, typed tree. It prints as TileLang-like text and round-trips to JSON.

Programs compare by structure; source locations are carried along but do not take part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from foretile.kernels.expr import Expr, Var
from foretile.kernels.statements import (
    AsyncCommit,
    AsyncWait,
    AtomicAdd,
    BarrierArrive,
    BarrierWait,
    Buffer,
    Copy,
    CopyMode,
    CumSum,
    Extern,
    Fill,
    FinalizeReducer,
    For,
    Gemm,
    GemmMode,
    Hint,
    Hints,
    If,
    Im2col,
    Jump,
    Loc,
    LoopKind,
    RandomInit,
    Reduce,
    ReduceKind,
    Region,
    Scope,
    Stmt,
    Store,
    Sync,
    Transpose,
    While,
)

__all__ = [
    "AsyncCommit",
    "AsyncWait",
    "AtomicAdd",
    "BarrierArrive",
    "BarrierWait",
    "Buffer",
    "Copy",
    "CopyMode",
    "CumSum",
    "Extern",
    "Fill",
    "FinalizeReducer",
    "For",
    "Gemm",
    "GemmMode",
    "Hint",
    "Hints",
    "If",
    "Im2col",
    "Jump",
    "Loc",
    "LoopKind",
    "RandomInit",
    "Reduce",
    "ReduceKind",
    "Region",
    "Scope",
    "Stmt",
    "Store",
    "Swizzle",
    "Sync",
    "TileProgram",
    "Transpose",
    "While",
    "walk_stmts",
    "with_body",
]


@dataclass(frozen=True, slots=True)
class Swizzle:
    """Raster order of blocks: panels of ``panel_size`` rows (or columns) walked along the other axis."""

    panel_size: int
    order: Literal["row", "col"] = "row"


LIBRARY, TILELANG = "library", "tilelang"
TOOLCHAINS = (LIBRARY, TILELANG)
"""Who decides a kernel's schedule: the authors of a tuned library, or TileLang's compiler and nvcc."""


@dataclass(frozen=True, slots=True)
class TileProgram:
    """One kernel: tensors in, a grid of blocks, what one block does.

    ``params`` are the global tensors in call order; ``dims`` the symbolic dimensions still free;
    ``grid`` has one to three extents, ``block_vars`` the index variable of each (x fastest);
    ``threads`` is the block's thread count; ``buffers`` are the on-chip allocations.

    Kernels that say what single threads do: ``thread_vars`` are the indices of a thread in its block,
    along x, y and z as far as they are used, ``thread_shape`` the extents where there is more than one
    axis (their product is ``threads``). ``cluster``: blocks along x, y, z that share a cluster.
    ``scalars``: parameters that are numbers, after the tensors.

    ``toolchain``: who decides its schedule, one of :data:`TOOLCHAINS`; empty: nobody said. It is no part of
    what the program says: two that differ in it are equal.
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
    thread_vars: tuple[Var, ...] = ()
    thread_shape: tuple[int, ...] = ()
    cluster: tuple[int, ...] = ()
    scalars: tuple[Var, ...] = ()
    loc: Loc | None = field(default=None, compare=False, repr=False)
    toolchain: str = field(default="", compare=False, repr=False)

    def buffer(self, name: str) -> Buffer:
        """The tensor or allocation called ``name``.

        Raises:
            KeyError: there is none.
        """
        for candidate in (*self.params, *self.buffers):
            if candidate.name == name:
                return candidate
        raise KeyError(f"{self.name} has no buffer {name!r}")

    def annotation(self, kind: str, name: str = "") -> str | None:
        """What is noted as ``kind`` (of the buffer ``name``), ``None`` if nothing is."""
        key = f"{kind}:{name}" if name else kind
        return next((value for k, value in self.annotations if k == key), None)

    def bind(self, **dims: int | float) -> TileProgram:
        """The program with symbolic dimensions and scalars replaced by numbers.

        Raises:
            ValueError: a name that is neither, a size below one, or a value of another type.
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
