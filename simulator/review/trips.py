"""The statements of a program, each with the loops around it and how often it runs in a launch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretile.kernels.expr import Expr, evaluate, loads
from foretile.kernels.ir import For, If, Stmt, TileProgram, While


@dataclass(frozen=True)
class Placed:
    """A statement where it stands.

    ``around``: loops outside it, outermost first. ``executions``: over all blocks of the launch (loops
    of parallel nests counted once); None where data decide.
    """

    stmt: Stmt
    around: tuple[For, ...]
    executions: float | None


_SAMPLES = 64  # blocks whose trip counts are averaged


def placed(program: TileProgram) -> Iterator[Placed]:
    """Every statement of a program whose dimensions are bound."""
    grid = [int(evaluate(e, {})) for e in program.grid]
    blocks = int(np.prod(grid))
    sample = np.unique(np.linspace(0, blocks - 1, min(blocks, _SAMPLES)).astype(np.int64))
    env: dict[str, Any] = {}
    rest = sample
    for v, extent in zip(program.block_vars, grid, strict=True):
        env[v.name] = rest % extent
        rest = rest // extent
    yield from _walk(program.body, env, (), np.full(len(sample), blocks / len(sample)))


def _walk(
    body: tuple[Stmt, ...], env: Mapping[str, Any], around: tuple[For, ...], times: np.ndarray | None
) -> Iterator[Placed]:
    for stmt in body:
        yield Placed(stmt, around, None if times is None else float(times.sum()))
        if isinstance(stmt, For):
            inside, now = dict(env), times
            if stmt.kind == "persistent" and times is not None:
                now = times / times.sum()  # all blocks together go through the nest once
            for v, extent in zip(stmt.vars, stmt.extents, strict=True):
                count = _value(extent, env)
                inside[v.name] = _middle(stmt, count, env)
                if stmt.kind != "parallel":
                    now = None if now is None or count is None else now * np.maximum(count, 0)
            yield from _walk(stmt.body, inside, (*around, stmt), now)
        elif isinstance(stmt, While):
            yield from _walk(stmt.body, env, around, None)
        elif isinstance(stmt, If):
            holds = _value(stmt.cond, env)
            share = None if times is None or holds is None else times * np.asarray(holds, dtype=np.float64)
            yield from _walk(stmt.then, env, around, share)
            other = None if times is None or share is None else times - share
            yield from _walk(stmt.orelse, env, around, other)


def _middle(loop: For, count: Any, env: Mapping[str, Any]) -> Any:
    start = 0 if loop.start is None else _value(loop.start, env)
    return None if count is None or start is None else start + loop.step * (np.asarray(count) // 2)


def _value(e: Expr, env: Mapping[str, Any]) -> Any:
    """The value of ``e``; None if data decide it."""
    if loads(e):
        return None
    try:
        return evaluate(e, {k: v for k, v in env.items() if v is not None})
    except (KeyError, ValueError, ZeroDivisionError):
        return None
