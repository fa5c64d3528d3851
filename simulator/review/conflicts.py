"""Lanes of a warp that meet in one bank of shared memory."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import Const, Expr, Load, binary, evaluate, loads, variables, walk
from foretile.kernels.ir import Buffer, For, Gemm, If, Stmt, Store, TileProgram, walk_stmts
from foretile.simulator.machine import Machine
from foretile.simulator.review.finding import Finding
from foretile.simulator.review.moves import VECTOR_BYTES
from foretile.simulator.review.trips import Placed

# CUDA C++ programming guide, shared memory: 32 banks of 4 bytes, since compute capability 5.0.
BANKS = 32
BANK_BYTES = 4


def reviewed(program: TileProgram, stmts: list[Placed], machine: Machine, time_s: float) -> Iterator[Finding]:
    """Remarks on parallel loops, and on code of single threads, whose accesses to shared tiles conflict.

    Operands of products are left out: their layout is swizzled by whoever lays them out.
    """
    swizzled = _swizzled(program)
    seen: set[tuple[str, tuple[Expr, ...]]] = set()
    for place in stmts:
        nest = _spread(place, program)
        if nest is None or not all(isinstance(e, Const) for e in nest.extents):
            continue
        sizes = [int(e.value) for e in nest.extents if isinstance(e, Const)]
        for name, indices, stmt in _accesses(nest.body):
            buffer = program.buffer(name)
            if buffer.scope != "shared" or name in swizzled or (name, indices) in seen:
                continue
            seen.add((name, indices))
            ways = degree(buffer, indices, nest, sizes, machine.warp_size)
            if ways <= 1:
                continue
            gain = None
            if place.executions is not None:
                moved = place.executions * prod(sizes) * DTYPES[buffer.dtype].bytes
                extra = moved * (ways - 1) / (machine.scratchpad_bytes_per_s * machine.cores)
                gain = extra / (time_s + extra)
            yield Finding(
                "bank conflicts",
                "warning",
                f"{ways} lanes of a warp meet in one bank of {name}: pad its rows, or swizzle it "
                f"(T.make_swizzled_layout)",
                stmt.loc or nest.loc,
                gain,
                at_most=True,
            )


def _spread(place: Placed, program: TileProgram) -> For | None:
    """The iterations that a statement's lanes go through together, the last variable fastest."""
    stmt = place.stmt
    if isinstance(stmt, For) and stmt.kind == "parallel":
        return stmt
    if not isinstance(stmt, Store) or any(loop.kind == "parallel" for loop in place.around):
        return None
    shape = program.thread_shape or (program.threads,)
    threads = tuple(zip(program.thread_vars, shape, strict=False))[::-1]
    inner = place.around[-1] if place.around and place.around[-1].kind == "vectorized" else None
    names = (*(v for v, _ in threads), *(inner.vars if inner else ()))
    extents = (*(Const(n) for _, n in threads), *(inner.extents if inner else ()))
    return For(names, extents, "parallel", (stmt,), loc=stmt.loc) if threads else None


def degree(buffer: Buffer, indices: tuple[Expr, ...], nest: For, sizes: list[int], lanes: int) -> int:
    """How many times an access of a warp is repeated for bank conflicts (1: none).

    Neighbouring iterations go to neighbouring lanes, each lane taking as many as lie side by side in 16
    bytes; an access of 16 bytes a lane is served a quarter of a warp at a time, one of 8 a half.
    """
    if any(loads(i) for i in indices):
        return 1
    address = _address(buffer, indices)
    size = DTYPES[buffer.dtype].bytes
    names = [v.name for v in nest.vars]
    per_lane = _side_by_side(address, names[-1], sizes[-1], size)
    count = min(lanes, max(1, prod(sizes) // per_lane))
    flat = np.arange(count) * per_lane
    env: dict[str, Any] = dict.fromkeys(variables(address), 0)
    rest = flat
    for name, extent in zip(reversed(names), reversed(sizes), strict=True):
        env[name] = rest % extent
        rest = rest // extent
    element = np.broadcast_to(np.asarray(evaluate(address, env), dtype=np.int64), (count,))
    at = (element * size).astype(np.int64)
    together = max(1, int(count * BANK_BYTES / max(BANK_BYTES, per_lane * size)))
    worst = 1
    for first in range(0, count, together):
        begin = at[first : first + together]
        words = np.unique(
            (begin[:, None] + np.arange(0, max(1, int(per_lane * size)), BANK_BYTES)) // BANK_BYTES
        )
        worst = max(worst, int(np.bincount(words % BANKS).max()))
    return worst


def _side_by_side(address: Expr, name: str, extent: int, size: float) -> int:
    """Iterations of the last variable that one lane takes in one access."""
    zero: dict[str, Any] = dict.fromkeys(variables(address), 0)
    step = int(evaluate(address, zero | {name: 1})) - int(evaluate(address, zero)) if name in zero else 0
    if step != 1:
        return 1
    take = int(VECTOR_BYTES / size)
    while take > 1 and extent % take:
        take //= 2
    return take


def _address(buffer: Buffer, indices: tuple[Expr, ...]) -> Expr:
    total: Expr = Const(0)
    for index, extent in zip(indices, buffer.shape, strict=True):
        total = binary("add", binary("mul", total, extent), index)
    return total


def _accesses(body: tuple[Stmt, ...]) -> Iterator[tuple[str, tuple[Expr, ...], Stmt]]:
    for stmt in walk_stmts(body):
        if isinstance(stmt, Store):
            yield stmt.buffer, stmt.indices, stmt
            parts = (*stmt.indices, stmt.value)
        elif isinstance(stmt, If):
            parts = (stmt.cond,)
        else:
            continue
        for e in parts:
            for node in walk(e):
                if isinstance(node, Load):
                    yield node.buffer, node.indices, stmt


def _swizzled(program: TileProgram) -> set[str]:
    products = [s for s in walk_stmts(program.body) if isinstance(s, Gemm)]
    found = {region.buffer for s in products for region in (s.a, s.b)}
    return found | {k.partition(":")[2] for k, _ in program.annotations if k.startswith("layout:")}
