"""Small programs of single threads, barriers and roles, written as the IR has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import Any

from foretile.kernels.expr import Call, Const, Expr, Load, Var
from foretile.kernels.infer import call_dtype
from foretile.kernels.ir import (
    BarrierArrive,
    BarrierWait,
    Buffer,
    Copy,
    For,
    Gemm,
    If,
    Loc,
    Region,
    Stmt,
    Store,
    TileProgram,
)
from foretile.kernels.values import Value, to_expr

_lines = count(1)


def loc() -> Loc:
    """A line of its own for every statement."""
    return Loc("kernel.py", next(_lines))


def number(e: Any) -> Expr:
    """An expression of a value, a number or an expression."""
    return e if isinstance(e, Expr) else to_expr(e)


def tx() -> Value:
    """The thread's index."""
    return Value(Var("tx"), "int32")


def var(name: str) -> Value:
    """A loop or block index."""
    return Value(Var(name), "int32")


@dataclass
class Name:
    """A buffer that can be indexed in expressions."""

    buffer: Buffer

    def __getitem__(self, at: Any) -> Value:
        return Value(self.load(at), self.buffer.dtype)

    def load(self, at: Any) -> Load:
        """An element."""
        at = at if isinstance(at, tuple) else (at,)
        return Load(self.buffer.name, tuple(number(i) for i in at))

    def box(self, *parts: Any) -> Region:
        """A region: by dimension an index, or (first, extent); nothing: all of it."""
        if not parts:
            return Region(self.buffer.name, (Const(0),) * len(self.buffer.shape), self.buffer.shape)
        pairs = [p if isinstance(p, tuple) else (p, 1) for p in parts]
        return Region(
            self.buffer.name, tuple(number(a) for a, _ in pairs), tuple(Const(int(n)) for _, n in pairs)
        )


def across(fn: str, value: Any, *more: Any) -> Value:
    """A function of several threads."""
    args = tuple(number(a) for a in (value, *more))
    dtypes = tuple(a.dtype if isinstance(a, Value) else "int32" for a in (value, *more))
    return Value(Call(fn, args), call_dtype(fn, args, dtypes))


def put(place: Value, value: Any, **more: Any) -> Store:
    """An assignment."""
    target = place.expr
    assert isinstance(target, Load)
    return Store(target.buffer, target.indices, number(value), loc=loc(), **more)


def when(cond: Any, *then: Stmt, orelse: tuple[Stmt, ...] = (), role: str = "") -> If:
    """A branch."""
    return If(number(cond), then, orelse, role, loc=loc())


def loop(name: str, extent: Any, *body: Stmt, kind: Any = "serial", start: Any = None, step: int = 1) -> For:
    """A loop of one variable."""
    first = None if start is None else number(start)
    return For((Var(name),), (number(extent),), kind, body, start=first, step=step, loc=loc())


def copy(src: Region, dst: Region, **more: Any) -> Copy:
    """A copy."""
    return Copy(src, dst, loc=loc(), **more)


def gemm(a: Region, b: Region, c: Region, **more: Any) -> Gemm:
    """A product."""
    return Gemm(a, b, c, loc=loc(), **more)


def wait(barrier: Name, k: Any, parity: Any) -> BarrierWait:
    """Wait for a phase."""
    return BarrierWait(barrier.load(k), number(parity), loc=loc())


def arrive(barrier: Name, k: Any, **more: Any) -> BarrierArrive:
    """Arrive."""
    return BarrierArrive(barrier.load(k), loc=loc(), **more)


@dataclass
class Kernel:
    """A program in the making."""

    threads: int
    grid: tuple[int, ...] = (1,)
    params: list[Buffer] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: str) -> Name:
        """A parameter."""
        self.params.append(Buffer(name, tuple(map(Const, shape)), dtype, "global"))
        return Name(self.params[-1])

    def alloc(self, name: str, shape: tuple[int, ...], dtype: str, scope: Any) -> Name:
        """An on-chip buffer."""
        self.buffers.append(Buffer(name, tuple(map(Const, shape)), dtype, scope))
        return Name(self.buffers[-1])

    def variable(self, name: str, dtype: str = "int32") -> Value:
        """A variable of each thread."""
        return self.alloc(name, (1,), dtype, "var")[0]

    def barrier(self, name: str, counts: tuple[int, ...]) -> Name:
        """Barriers with the arrivals each expects."""
        self.notes.append((f"barrier:{name}", ",".join(map(str, counts))))
        return self.alloc(name, (len(counts),), "uint64", "barrier")

    def program(self, *body: Stmt, **more: Any) -> TileProgram:
        """The program of these statements."""
        return TileProgram(
            "kernel",
            tuple(self.params),
            (),
            tuple(map(Const, self.grid)),
            tuple(Var(n) for n, _ in zip(("bx", "by", "bz"), self.grid, strict=False)),
            self.threads,
            tuple(self.buffers),
            body,
            None,
            tuple(self.notes),
            thread_vars=(Var("tx"),),
            **more,
        )
