"""Variables that nothing in a program binds: its symbolic dimensions, in order of appearance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from foretile.kernels import statements
from foretile.kernels.errors import TraceError
from foretile.kernels.expr import Binary, Call, Cast, Expr, Load, Var
from foretile.kernels.ir import Buffer, For, If, Loc, Region, Stmt, While

# Fields of simple statements that hold expressions, directly or in regions.
_HOLD = ("Region", "Region | None", "Expr", "Expr | None", "Load", "Load | None", "tuple[Expr, ...]")
_HOLD_MANY = ("tuple[Region, ...]",)
_PARTS: dict[type[Stmt], tuple[str, ...]] = {
    cls: tuple(f.name for f in fields(cls) if f.type in _HOLD + _HOLD_MANY)
    for cls in vars(statements).values()
    if isinstance(cls, type) and issubclass(cls, Stmt) and cls is not Stmt
}


class FreeVariables:
    """Collects the symbolic dimensions and refuses indices that are used out of scope."""

    def __init__(self) -> None:
        self.dims: dict[str, Var] = {}
        self.bound: set[str] = set()
        self.closed: set[str] = set()
        self.loc: Loc | None = None

    def buffers(self, buffers: Iterable[Buffer]) -> None:
        """Shapes, strides and places of buffers; a place may be that of a loop's iteration."""
        self.bound |= self.closed
        for b in buffers:
            self.add(*b.shape, *b.strides)
            if b.offset is not None:
                self.add(b.offset)
            if b.address is not None:
                self.add(b.address)

    def add(self, *exprs: Expr) -> None:
        """The variables of expressions."""
        for e in exprs:
            if isinstance(e, Var):
                self._var(e)
            elif isinstance(e, Binary):
                self.add(e.a, e.b)
            elif isinstance(e, Load):
                self.add(*e.indices)
            elif isinstance(e, Call):
                self.add(*e.args)
            elif isinstance(e, Cast):
                self.add(e.a)

    def _var(self, var: Var) -> None:
        name = var.name
        if name in self.bound or name in self.dims:
            return
        if name in self.closed:
            raise TraceError(f"loop variable `{name}` is used outside its loop", self.loc)
        self.dims[name] = var

    def body(self, body: tuple[Stmt, ...]) -> None:
        """The variables of statements."""
        for stmt in body:
            self.loc = stmt.loc
            if isinstance(stmt, For):
                self.add(*stmt.extents)
                if stmt.start is not None:
                    self.add(stmt.start)
                names = [v.name for v in stmt.vars]
                self.bound.update(names)
                self.body(stmt.body)
                self.bound.difference_update(names)
                self.closed.update(names)
            elif isinstance(stmt, If):
                self.add(stmt.cond)
                self.body(stmt.then)
                self.body(stmt.orelse)
            elif isinstance(stmt, While):
                self.add(stmt.cond)
                self.body(stmt.body)
            else:
                self._simple(stmt)

    def _simple(self, stmt: Stmt) -> None:
        for name in _PARTS[type(stmt)]:
            part = getattr(stmt, name)
            for item in part if type(part) is tuple else (part,):
                if type(item) is Region:
                    self.add(*item.mins)
                    self.add(*item.extents)
                elif item is not None:
                    self.add(item)
