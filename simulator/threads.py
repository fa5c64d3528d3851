"""Which threads of a block do what: indices, branches that some of them take, teams that wait apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from foretile.kernels.expr import Call, Load, evaluate, variables, walk
from foretile.kernels.ir import (
    AsyncCommit,
    AsyncWait,
    BarrierArrive,
    BarrierWait,
    Copy,
    Gemm,
    If,
    Jump,
    RandomInit,
    Stmt,
    Sync,
    TileProgram,
    walk_stmts,
)

_BY_THREAD = (AsyncCommit, AsyncWait, BarrierArrive, BarrierWait, Jump, RandomInit)


def by_thread(program: TileProgram) -> bool:
    """Whether a program says what single threads do, or orders asynchronous work itself."""
    if program.thread_vars or program.cluster:
        return True
    for s in walk_stmts(program.body):
        if isinstance(s, _BY_THREAD) or (isinstance(s, Sync) and (s.scope == "grid" or s.ident is not None)):
            return True
        if isinstance(s, Copy | Gemm) and s.mode:
            return True
        if isinstance(s, If) and s.role:
            return True
        if any(isinstance(x, Call) and x.fn in _LANE_CALLS for e in _expressions(s) for x in walk(e)):
            return True
    return False


def is_asynchronous(program: TileProgram) -> bool:
    """Whether copies or products go on after their statement."""
    return any(isinstance(s, Copy | Gemm) and bool(s.mode) for s in walk_stmts(program.body))


_LANE_CALLS = frozenset(
    {"shfl", "shfl_xor", "shfl_up", "shfl_down", "any_sync", "all_sync", "ballot", "rng_rand", "rng_uniform"}
)


def _expressions(s: Stmt) -> Iterator[Any]:
    for name in ("value", "cond"):
        e = getattr(s, name, None)
        if e is not None:
            yield e


def teams_of(program: TileProgram) -> list[np.ndarray]:
    """The block's threads by the parts that wait apart from each other (masks over threads).

    Branches on the thread index that wait inside are taken by threads that run side by side; every other
    branch is taken by a team together.
    """
    places = thread_indices(program)
    signs = [np.zeros(program.threads, dtype=bool)]
    for s in walk_stmts(program.body):
        if isinstance(s, If) and (s.role or _waits(s.then) or _waits(s.orelse)):
            found = lanes_where(s, places, program.threads)
            if found is not None:
                signs.append(found)
    _, number = np.unique(np.stack(signs), axis=1, return_inverse=True)
    number = number.reshape(-1)
    return [number == n for n in dict.fromkeys(number.tolist())]


def thread_indices(program: TileProgram) -> dict[str, np.ndarray]:
    """The thread indices that a program uses, by name, over the block's threads."""
    number, found = np.arange(program.threads), {}
    shape = program.thread_shape or (program.threads,)
    for var, extent in zip(program.thread_vars, shape, strict=False):
        found[var.name] = number % extent
        number = number // extent
    return found


def lanes_where(s: If, places: dict[str, np.ndarray], threads: int) -> np.ndarray | None:
    """The threads for which a condition on thread indices alone holds; None for other conditions."""
    used = variables(s.cond)
    if not used or not used <= set(places):
        return None
    if any(isinstance(x, Load) or (isinstance(x, Call) and x.fn != "likely") for x in walk(s.cond)):
        return None
    return np.broadcast_to(np.asarray(evaluate(s.cond, places)).astype(bool), (threads,))


def _waits(body: tuple[Stmt, ...]) -> bool:
    return any(
        isinstance(s, BarrierWait) or (isinstance(s, Sync) and s.scope != "warp") for s in walk_stmts(body)
    )


def team_name(lanes: np.ndarray) -> str:
    """Threads as ranges."""
    found = np.flatnonzero(lanes)
    cuts = np.split(found, np.flatnonzero(np.diff(found) != 1) + 1)
    ranges = [f"{c[0]}–{c[-1]}" if len(c) > 1 else str(c[0]) for c in cuts]
    return ", ".join(ranges) if len(ranges) <= 4 else f"{', '.join(ranges[:3])}, …"
