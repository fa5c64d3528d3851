"""One form of equal programs: what two front ends write differently and mean alike is written one way.

Names are numbered in order of appearance; conversions that operands' types imply are written out and
literals typed; whole-number indices are sums in one order; nests of parallel loops are one loop.
Two programs of equal canonical form compute the same, element by element and bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from foretile.kernels.affine import common_factor, divided, normal_form
from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import (
    COMPARISONS,
    Binary,
    Call,
    Cast,
    Const,
    Expr,
    Load,
    Var,
    binary,
    call,
    substitute,
)
from foretile.kernels.infer import binary_dtype, dtype_of, is_float
from foretile.kernels.ir import (
    Buffer,
    Fill,
    For,
    If,
    Region,
    Stmt,
    Store,
    TileProgram,
    While,
    walk_stmts,
)
from foretile.kernels.rewrite import map_body, map_exprs

_ARITHMETIC = frozenset(
    {
        "add",
        "sub",
        "mul",
        "div",
        "min",
        "max",
        "lt",
        "le",
        "gt",
        "ge",
        "eq",
        "ne",
        "bitand",
        "bitor",
        "bitxor",
    }
)


def canonical(program: TileProgram) -> TileProgram:
    """The canonical form of ``program``; its annotations are in alphabetical order."""
    dtypes = {b.name: b.dtype for b in (*program.params, *program.buffers)}
    program = _without_single_points(program)
    explicit = map_exprs(program, lambda e: _normal(e, dtypes))
    shaped = replace(explicit, body=_statements(explicit.body, dtypes))
    return _renamed(shaped)


def _without_single_points(program: TileProgram) -> TileProgram:
    """Persistent loops without the axes that have one point; one axis has no groups."""
    loops = [s for s in walk_stmts(program.body) if isinstance(s, For) and s.kind == "persistent"]
    single = {
        v.name: Const(0) for s in loops for v, e in zip(s.vars, s.extents, strict=True) if e == Const(1)
    }
    bound = map_exprs(program, lambda e: substitute(e, single)) if single else program

    def kept(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        return tuple(_without(s, kept) for s in body)

    return replace(bound, body=kept(bound.body)) if loops else program


def _without(stmt: Stmt, kept: Callable[[tuple[Stmt, ...]], tuple[Stmt, ...]]) -> Stmt:
    if isinstance(stmt, If):
        return replace(stmt, then=kept(stmt.then), orelse=kept(stmt.orelse))
    if isinstance(stmt, While):
        return replace(stmt, body=kept(stmt.body))
    if not isinstance(stmt, For):
        return stmt
    stmt = replace(stmt, body=kept(stmt.body))
    if stmt.kind != "persistent":
        return stmt
    axes = [(v, e) for v, e in zip(stmt.vars, stmt.extents, strict=True) if e != Const(1)]
    axes = axes or [(stmt.vars[0], stmt.extents[0])]
    grouped, extent = stmt.group_size, axes[0][1]
    if isinstance(extent, Const):
        grouped = min(grouped, int(extent.value))  # no group is wider than what there is
    grouped = grouped if grouped > 1 and len(axes) > 1 else 0  # groups of one are no groups
    return replace(
        stmt, vars=tuple(v for v, _ in axes), extents=tuple(e for _, e in axes), group_size=grouped
    )


def _normal(e: Expr, dtypes: dict[str, str]) -> Expr:
    made = _explicit(e, dtypes)
    return normal_form(made) if _whole(made, dtypes) else made


def _whole(e: Expr, dtypes: dict[str, str]) -> bool:
    return DTYPES[dtype_of(e, dtypes)].kind in ("int", "uint")


def _explicit(e: Expr, dtypes: dict[str, str]) -> Expr:
    """Every operand of an operation in the type that they meet in."""
    if isinstance(e, Binary):
        a, b = _explicit(e.a, dtypes), _explicit(e.b, dtypes)
        if e.op in _ARITHMETIC:
            meet = binary_dtype("add", e.a, dtype_of(e.a, dtypes), e.b, dtype_of(e.b, dtypes))
            meet = "float32" if e.op == "div" and not is_float(meet) else meet
            a, b = _typed(a, meet, dtypes), _typed(b, meet, dtypes)
            a, b = (_sum(x) if not is_float(meet) and meet != "bool" else x for x in (a, b))
            if e.op in ("min", "max") and not is_float(meet) and meet != "bool":
                return _extreme(e.op, a, b)
            if e.op in COMPARISONS:
                a, b = _narrow(a, dtypes), _narrow(b, dtypes)
        elif e.op in ("floordiv", "mod") and not is_float(dtype_of(a, dtypes)):
            a, b = _sum(a), _sum(b)
        if e.op in ("and", "or"):
            first, *rest = (*_operands(e.op, a), *_operands(e.op, b))
            made = first
            for operand in rest:
                made = binary(e.op, made, operand)
            return made
        if e.op == "mod" and b == Const(1):
            return Const(0)
        if e.op in ("gt", "ge"):
            return Binary("lt" if e.op == "gt" else "le", b, a)
        return binary(e.op, a, b) if not is_float(dtype_of(a, dtypes)) else Binary(e.op, a, b)
    if isinstance(e, Call):
        args = tuple(_explicit(a, dtypes) for a in e.args)
        if e.fn == "if_then_else":
            meet = dtype_of(e, dtypes)
            return call(e.fn, (args[0], *(_typed(a, meet, dtypes) for a in args[1:])))
        if e.fn == "clamp":
            meet = dtype_of(e, dtypes)
            return call(e.fn, tuple(_typed(a, meet, dtypes) for a in args))
        if e.fn in ("neg",) and isinstance(args[0], Const):
            return Const(-args[0].value, args[0].dtype)
        return call(e.fn, args)
    if isinstance(e, Cast):
        inner = _normal(e.a, dtypes)
        return replace(e, a=inner) if e.bits else _typed(inner, e.dtype, dtypes)
    if isinstance(e, Load):
        return Load(e.buffer, tuple(_normal(i, dtypes) for i in e.indices))
    return e


def _narrow(e: Expr, dtypes: dict[str, str]) -> Expr:
    """A whole number as it was before a wider type took it in: comparisons find the same."""
    if not isinstance(e, Cast) or e.bits:
        return e
    wide, own = DTYPES[e.dtype], DTYPES[dtype_of(e.a, dtypes)]
    kinds = {wide.kind, own.kind}
    room = wide.bits - (wide.kind == "int") - (own.bits - (own.kind == "int"))
    fits = kinds <= {"int", "uint"} and room >= 0 and not (own.kind == "int" and wide.kind == "uint")
    return e.a if fits else e


def _operands(op: str, e: Expr) -> tuple[Expr, ...]:
    """The operands of a chain of one associative operation."""
    if isinstance(e, Binary) and e.op == op:
        return (*_operands(op, e.a), *_operands(op, e.b))
    return (e,)


def _sum(e: Expr) -> Expr:
    return normal_form(e)


def _extreme(op: str, a: Expr, b: Expr) -> Expr:
    """The smaller or larger of two sums, what all their terms have in common taken out of it."""
    factor = common_factor(a, b)
    if factor < 2:
        return binary(op, a, b)
    return binary(
        "mul", binary(op, normal_form(divided(a, factor)), normal_form(divided(b, factor))), Const(factor)
    )


def _typed(e: Expr, dtype: str, dtypes: dict[str, str]) -> Expr:
    """``e`` as a ``dtype``, literals on the spot."""
    if isinstance(e, Const):
        value: Any = e.value
        if is_float(dtype):
            value = float(value)
        elif not is_float(e.dtype):
            value = bool(value) if dtype == "bool" else int(value)
        else:
            return Cast(dtype, e)
        return Const(value, dtype)
    return e if dtype_of(e, dtypes) == dtype else Cast(dtype, e)


def _statements(body: tuple[Stmt, ...], dtypes: dict[str, str]) -> tuple[Stmt, ...]:
    return tuple(_statement(stmt, dtypes) for stmt in body)


def _statement(stmt: Stmt, dtypes: dict[str, str]) -> Stmt:
    if isinstance(stmt, For):
        made = replace(stmt, body=_statements(stmt.body, dtypes), hints=tuple(sorted(stmt.hints)))
        if made.start == Const(0):
            made = replace(made, start=None)
        if made.kind == "persistent":
            made = _without_single(made)
        if made.kind == "persistent" and isinstance(made.extents[0], Const):  # a group is no wider than all
            made = replace(made, group_size=max(1, min(made.group_size, int(made.extents[0].value))))
        inner = made.body[0] if len(made.body) == 1 else None
        if (
            made.kind == "parallel"
            and isinstance(inner, For)
            and inner.kind == "parallel"
            and not inner.hints
        ):
            made = replace(
                made,
                vars=(*made.vars, *inner.vars),
                extents=(*made.extents, *inner.extents),
                body=inner.body,
            )
        return made
    if isinstance(stmt, While):
        return replace(stmt, body=_statements(stmt.body, dtypes))
    if isinstance(stmt, If):
        return replace(
            stmt, then=_statements(stmt.then, dtypes), orelse=_statements(stmt.orelse, dtypes)
        )  # fmt: skip
    if isinstance(stmt, Store):
        return replace(stmt, value=_stored(stmt.value, dtypes[stmt.buffer], dtypes))
    if isinstance(stmt, Fill):
        return replace(stmt, value=_stored(stmt.value, dtypes[stmt.dst.buffer], dtypes))
    return stmt


def _without_single(loop: For) -> For:
    """Dealt points without coordinates of one value, of which one remains at least."""
    single = [v for v, e in zip(loop.vars, loop.extents, strict=True) if e == Const(1)]
    single = single[: len(loop.vars) - 1]
    if not single:
        return loop
    kept = [(v, e) for v, e in zip(loop.vars, loop.extents, strict=True) if v not in single]
    values = {v.name: Const(0) for v in single}
    return replace(
        loop,
        vars=tuple(v for v, _ in kept),
        extents=tuple(e for _, e in kept),
        body=map_body(loop.body, lambda e: substitute(e, values)),
    )


def _stored(value: Expr, dtype: str, dtypes: dict[str, str]) -> Expr:
    """A value as what it is stored as: the conversion goes without saying."""
    if isinstance(value, Cast) and not value.bits and value.dtype == dtype:
        return value.a
    return _typed(value, dtype, dtypes) if isinstance(value, Const) else value


class _Names:
    """New names in order of appearance."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.waiting: dict[str, Buffer] = {}

    def add(self, kind: str, name: str) -> str:
        number = self.counts[kind] = self.counts.get(kind, -1) + 1
        made = self.names[name] = f"{kind}{number}"
        return made

    def place(self, name: str) -> str:
        """The name of a buffer: allocations are numbered where they are first used."""
        found = self.names.get(name)
        if found is None:
            owner = self.waiting[name].alias
            if owner:
                self.place(owner)
            found = self.add("b", name)
        return found

    def expr(self, e: Expr) -> Expr:
        if isinstance(e, Var):
            return Var(self.names.get(e.name, e.name), e.dtype)
        if isinstance(e, Load):
            return Load(self.place(e.buffer), tuple(self.expr(i) for i in e.indices))
        if isinstance(e, Binary):
            return Binary(e.op, self.expr(e.a), self.expr(e.b))
        if isinstance(e, Call):
            return Call(e.fn, tuple(self.expr(a) for a in e.args))
        if isinstance(e, Cast):
            return replace(e, a=self.expr(e.a))
        return e

    def any(self, part: Any) -> Any:
        """A field of a statement."""
        if isinstance(part, Expr):
            return self.expr(part)
        if isinstance(part, Region):
            mins, extents = tuple(map(self.expr, part.mins)), tuple(map(self.expr, part.extents))
            return Region(self.place(part.buffer), mins, extents)
        if isinstance(part, Stmt):
            return self.stmt(part)
        if isinstance(part, tuple):
            return tuple(self.any(item) for item in part)
        return part

    def stmt(self, stmt: Stmt) -> Stmt:
        if isinstance(stmt, For):
            for v in stmt.vars:
                self.add("i", v.name)
        changes: dict[str, Any] = {}
        for f in fields(stmt):
            part = getattr(stmt, f.name)
            if f.name in ("hints", "name", "source", "loc"):
                continue
            changes[f.name] = self.place(part) if f.name == "buffer" else self.any(part)
        return replace(stmt, **changes)

    def buffer(self, b: Buffer) -> Buffer:
        return replace(
            b,
            name=self.names[b.name],
            shape=self.any(b.shape),
            strides=self.any(b.strides),
            alias=self.names.get(b.alias, ""),
            offset=self.any(b.offset),
            address=self.any(b.address),
        )


def _renamed(program: TileProgram) -> TileProgram:
    names = _Names()
    for v in program.dims:
        names.add("n", v.name)
    for v in (*program.block_vars, *program.thread_vars, *program.scalars):
        names.add("v", v.name)
    for b in program.params:
        names.add("p", b.name)
    names.waiting = {b.name: b for b in program.buffers}
    body = names.any(program.body)
    for b in program.buffers:  # those that nothing uses
        names.place(b.name)
    renamed: Callable[[Any], Any] = names.any
    made = {names.names[b.name]: names.buffer(b) for b in program.buffers}
    return replace(
        program,
        name="kernel",
        params=tuple(names.buffer(b) for b in program.params),
        dims=renamed(program.dims),
        grid=renamed(program.grid),
        block_vars=renamed(program.block_vars),
        thread_vars=renamed(program.thread_vars),
        scalars=renamed(program.scalars),
        buffers=tuple(b for name, b in sorted(made.items(), key=lambda item: int(item[0][1:]))),
        body=body,
        annotations=tuple(sorted(_annotation(k, v, names) for k, v in program.annotations)),
    )


def _annotation(key: str, value: str, names: _Names) -> tuple[str, str]:
    kind, _, name = key.partition(":")
    return (f"{kind}:{names.names.get(name, name)}" if name else kind), value
