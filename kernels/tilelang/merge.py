"""One pipelined loop where a program has several in a row that do the same with their tiles.

Attention visits the keys that every query sees in one loop and those that a mask cuts in the next, which
differ by the mask alone. TileLang 0.1.15 compiles no such pair where bulk copies fill the pipeline (sm_90 and
later): it makes versions of the tiles that both loops fill for each of them ("InputShape() = (2, 64, 128)
shape = (2, 2, 64, 128)"), and elsewhere the second loop, whose first index varies by block, waits for all
copies in every iteration. As one loop, with a branch around what only some iterations do, the kernel
compiles, computes the same in the same order, and needs no more shared memory.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from foretile.kernels.affine import normal_form
from foretile.kernels.expr import Binary, Const, Expr, Var, binary, evaluate, loads, substitute, variables
from foretile.kernels.ir import AtomicAdd, Copy, For, Gemm, If, Stmt, TileProgram, While, walk_stmts
from foretile.kernels.rewrite import map_body

_MOST_BLOCKS = 1 << 20


def one_pipeline(program: TileProgram) -> TileProgram:
    """``program`` with pipelined loops that continue one another merged; itself where there are none.

    Two loops are, if the second begins where the first ends, neither's number of iterations is negative
    in any block, and their bodies differ by statements that move no tiles and multiply none.
    """
    body = _merged(program.body, program)
    return program if body == program.body else replace(program, body=body)


def _merged(body: tuple[Stmt, ...], program: TileProgram) -> tuple[Stmt, ...]:
    made: list[Stmt] = []
    for stmt in body:
        if isinstance(stmt, If):
            stmt = replace(stmt, then=_merged(stmt.then, program), orelse=_merged(stmt.orelse, program))
        elif isinstance(stmt, For | While):
            stmt = replace(stmt, body=_merged(stmt.body, program))
        before = made[-1] if made else None
        if isinstance(before, For) and isinstance(stmt, For):
            both = _continued(before, stmt, program)
            if both is not None:
                made[-1] = both
                continue
        made.append(stmt)
    return tuple(made)


def _continued(first: For, second: For, program: TileProgram) -> For | None:
    """Both loops as one, None where the second does not go on with what the first does."""
    if {first.kind, second.kind} != {"pipelined"} or len(first.vars) != 1 or {first.step, second.step} != {1}:
        return None
    if (first.num_stages, first.hints) != (second.num_stages, second.hints):
        return None
    begin, middle = first.start or Const(0), second.start or Const(0)
    gap = binary("sub", binary("add", begin, first.extents[0]), middle)
    if normal_form(gap) != Const(0):
        return None
    if not all(_never_negative(loop.extents[0], program) for loop in (first, second)):
        return None
    index = first.vars[0]
    body = map_body(second.body, lambda e: substitute(e, {second.vars[0].name: index}))
    joined = _joined(first.body, body, index, middle)
    if joined is None:
        return None
    extent = normal_form(binary("add", first.extents[0], second.extents[0]))
    return replace(first, extents=(extent,), body=joined)


def _joined(
    first: tuple[Stmt, ...], second: tuple[Stmt, ...], index: Var, middle: Expr
) -> tuple[Stmt, ...] | None:
    """One body of two: what they share as it is, the rest before ``middle`` or from there on."""
    keys = [_plain(s) for s in first], [_plain(s) for s in second]
    made: list[Stmt] = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, *keys, autojunk=False).get_opcodes():
        if tag == "equal":
            made += first[a:b]
            continue
        before, after = first[a:b], second[c:d]
        if any(isinstance(s, Copy | Gemm | AtomicAdd) for s in walk_stmts((*before, *after))):
            return None
        if after:
            made.append(If(Binary("ge", index, middle), after, before))
        else:
            made.append(If(Binary("lt", index, middle), before))
    return tuple(made)


def _plain(stmt: Stmt) -> Stmt:
    """A statement with its own loops' variables numbered, so that equal ones are equal."""
    own = [v for s in walk_stmts((stmt,)) if isinstance(s, For) for v in s.vars]
    names = {v.name: Var(f"#{i}", v.dtype) for i, v in enumerate(own)}
    (made,) = map_body((stmt,), lambda e: substitute(e, names))
    return _with_vars(made, names) if names else made


def _with_vars(stmt: Stmt, names: Mapping[str, Var]) -> Stmt:
    if isinstance(stmt, If):
        then, orelse = (tuple(_with_vars(s, names) for s in part) for part in (stmt.then, stmt.orelse))
        return replace(stmt, then=then, orelse=orelse)
    if isinstance(stmt, While):
        return replace(stmt, body=tuple(_with_vars(s, names) for s in stmt.body))
    if not isinstance(stmt, For):
        return stmt
    body = tuple(_with_vars(s, names) for s in stmt.body)
    return replace(stmt, vars=tuple(names[v.name] for v in stmt.vars), body=body)


def _never_negative(e: Expr, program: TileProgram) -> bool:
    """Whether a number of iterations is at least zero in every block; False where that cannot be told."""
    used = variables(e)
    axes = {v.name: extent for v, extent in zip(program.block_vars, program.grid, strict=True)}
    if loads(e) or not used <= axes.keys():
        return False
    env = {}
    blocks = 1
    for i, name in enumerate(sorted(used)):
        if variables(axes[name]) or loads(axes[name]):
            return False
        count = int(evaluate(axes[name], {}))
        blocks *= count
        env[name] = np.arange(count).reshape([-1 if j == i else 1 for j in range(len(used))])
    return blocks <= _MOST_BLOCKS and bool(np.all(np.asarray(evaluate(e, env)) >= 0))
