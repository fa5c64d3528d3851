"""Programs from programs: expressions mapped, symbolic dimensions bound to numbers."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from foretile.kernels.dtypes import dtype
from foretile.kernels.expr import Const, Expr, Load, Var, evaluate, loads, substitute, variables
from foretile.kernels.ir import Buffer, Extern, For, If, Region, Stmt, TileProgram, While, walk_stmts


def map_exprs(program: TileProgram, fn: Callable[[Expr], Expr]) -> TileProgram:
    """``program`` with every outermost expression (extents, indices, conditions, values) replaced.

    A branch whose condition becomes a constant is replaced by the statements it selects.
    """
    return replace(
        program,
        params=tuple(_map_buffer(b, fn) for b in program.params),
        buffers=tuple(_map_buffer(b, fn) for b in program.buffers),
        grid=tuple(fn(e) for e in program.grid),
        body=map_body(program.body, fn),
    )


def _map_buffer(buffer: Buffer, fn: Callable[[Expr], Expr]) -> Buffer:
    if not buffer.strides and buffer.offset is None and buffer.address is None:
        return replace(buffer, shape=tuple(fn(e) for e in buffer.shape))
    return replace(
        buffer,
        shape=tuple(fn(e) for e in buffer.shape),
        strides=tuple(fn(e) for e in buffer.strides),
        offset=None if buffer.offset is None else fn(buffer.offset),
        address=None if buffer.address is None else _mapped_load(buffer.address, fn),
    )


def _mapped_load(load: Load, fn: Callable[[Expr], Expr]) -> Load:
    return Load(load.buffer, tuple(fn(i) for i in load.indices))


def map_body(body: tuple[Stmt, ...], fn: Callable[[Expr], Expr]) -> tuple[Stmt, ...]:
    """Statements with every outermost expression replaced; see :func:`map_exprs`."""
    out: list[Stmt] = []
    for stmt in body:
        if isinstance(stmt, If):
            cond = fn(stmt.cond)
            if isinstance(cond, Const):
                out.extend(map_body(stmt.then if cond.value else stmt.orelse, fn))
            else:
                then, orelse = map_body(stmt.then, fn), map_body(stmt.orelse, fn)
                out.append(replace(stmt, cond=cond, then=then, orelse=orelse))
            continue
        changes: dict[str, Any] = {}
        for f in fields(stmt):
            part = getattr(stmt, f.name)
            if isinstance(part, Load) and f.name in _PLACES:
                changes[f.name] = _mapped_load(part, fn)
            elif isinstance(part, Expr):
                changes[f.name] = fn(part)
            elif isinstance(part, Region):
                changes[f.name] = _mapped_region(part, fn)
            elif f.name in ("indices", "extents") or (f.name == "args" and isinstance(stmt, Extern)):
                changes[f.name] = tuple(map(fn, part))
            elif f.name in ("reads", "writes"):
                changes[f.name] = tuple(_mapped_region(r, fn) for r in part)
        if isinstance(stmt, For | While):
            changes["body"] = map_body(stmt.body, fn)
        out.append(replace(stmt, **changes) if changes else stmt)
    return tuple(out)


# Fields that hold an element as a place, not its value.
_PLACES = ("barrier", "previous")


def _mapped_region(region: Region, fn: Callable[[Expr], Expr]) -> Region:
    return Region(region.buffer, tuple(map(fn, region.mins)), tuple(map(fn, region.extents)))


def bind(program: TileProgram, dims: Mapping[str, int | float], *, smallest: int = 1) -> TileProgram:
    """``program`` with the symbolic dimensions and scalars in ``dims`` replaced by numbers, constants folded.

    What is not named stays symbolic. ``smallest``: of sizes (0 where empty tensors are passed).

    Raises:
        ValueError: a name that is neither a symbolic dimension nor a scalar of the program, or a value that
            is not a number of its type (a size: a whole number of at least ``smallest``).
    """
    known = {v.name: v for v in (*program.dims, *program.scalars)}
    sizes = {v.name for v in program.dims}
    values: dict[str, Expr] = {}
    for name, value in dims.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            has = f"it has: {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{program.name} has no symbolic dimension {name!r}; {hint}{has}")
        var = known[name]
        values[name] = _size(program, var, value, smallest) if name in sizes else _scalar(program, var, value)
    if not values:
        return program
    # Expressions are shared all over a program; the trees stay alive in it, so ids identify them.
    memo: dict[int, Expr] = {}

    def bound(e: Expr) -> Expr:
        found = memo.get(id(e))
        if found is None:
            found = memo[id(e)] = substitute(e, values)
        return found

    mapped = map_exprs(program, bound)
    return replace(
        mapped,
        dims=tuple(v for v in program.dims if v.name not in values),
        scalars=tuple(v for v in program.scalars if v.name not in values),
    )


def _size(program: TileProgram, var: Var, value: Any, smallest: int) -> Const:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{program.name}: {var.name}={value!r} is not a whole number")
    if value < smallest:
        raise ValueError(f"{program.name}: {var.name}={value} must be at least {smallest}")
    return Const(int(value), var.dtype)


def _scalar(program: TileProgram, var: Var, value: Any) -> Const:
    """The literal that a parameter's number is."""
    kind = dtype(var.dtype).kind
    wrong = ValueError(f"{program.name}: {var.name}={value!r} is not a {var.dtype}")
    if kind == "float":
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise wrong
        return Const(float(value), var.dtype)
    if isinstance(value, bool) != (kind == "bool") or not isinstance(value, int | np.integer):
        raise wrong
    return Const(bool(value) if kind == "bool" else int(value), var.dtype)


def loop_extents(program: TileProgram) -> Iterator[tuple[For, tuple[int | None, ...]]]:
    """Every loop with its trip counts, ``None`` where they depend on dimensions, indices or data."""
    for stmt in walk_stmts(program.body):
        if isinstance(stmt, For):
            yield stmt, tuple(_number(e) for e in stmt.extents)


def _number(e: Expr) -> int | None:
    if variables(e) or loads(e):
        return None
    return int(evaluate(e, {}))
