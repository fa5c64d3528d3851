"""Facts about a whole program that lowering needs: what buffers are for, raster order, sharing."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from foretile.kernels.expr import (
    Binary,
    Call,
    Cast,
    Const,
    Expr,
    Load,
    Var,
    binary,
    evaluate,
    loads,
    substitute,
    variables,
    walk,
)
from foretile.kernels.ir import Copy, CumSum, For, Gemm, Reduce, Region, Stmt, Store, TileProgram, walk_stmts
from foretile.simulator.lowering.rules import Roles
from foretile.simulator.machine import Machine
from foretile.simulator.workload import Access, Digit, Loop, Node, Op


def roles(program: TileProgram) -> Roles:
    """What each on-chip buffer is used for."""
    stmts = list(walk_stmts(program.body))
    gemms = [s for s in stmts if isinstance(s, Gemm)]
    staged: dict[str, int] = {}
    for loop in stmts:
        if isinstance(loop, For) and loop.kind == "pipelined" and loop.num_stages > 0:
            for s in loop.body:
                if isinstance(s, Copy) and is_load(s, program):
                    staged[s.dst.buffer] = loop.num_stages
                elif (gather := gathered(s, program)) is not None:
                    staged[gather.buffer] = loop.num_stages
    written = {s.buffer for s in stmts if isinstance(s, Store)}
    written |= {s.previous.buffer for s in stmts if isinstance(s, Store) and s.previous is not None}
    written |= {s.dst.buffer for s in stmts if isinstance(s, Reduce | CumSum)}
    for s in stmts:  # a converted copy of something element-wise is element-wise work too
        if isinstance(s, Copy) and program.buffer(s.src.buffer).scope in ("fragment", "local", "var"):
            written.add(s.dst.buffer)
    return Roles(
        accumulators=frozenset(g.c.buffer for g in gemms),
        operands=frozenset(x for g in gemms for x in (g.a.buffer, g.b.buffer)),
        right_operands=frozenset(g.b.buffer for g in gemms),
        staged=staged,
        vector_written=frozenset(b for b in written if program.buffer(b).scope != "global"),
    )


def is_load(stmt: Copy, program: TileProgram) -> bool:
    """Whether a copy brings a tile from global to shared memory."""
    return (
        program.buffer(stmt.src.buffer).scope == "global"
        and program.buffer(stmt.dst.buffer).scope == "shared"
    )


def gathered(stmt: Stmt, program: TileProgram) -> Store | None:
    """The store of a parallel nest that does nothing but bring rows from global to shared memory.

    Which rows, indices on the chip may say; each row's elements lie side by side and keep their type, so
    that copies of 16 bytes, or tensor copies that take a row each, bring them in without the values
    passing through registers.
    """
    if not isinstance(stmt, For) or stmt.kind != "parallel" or len(stmt.body) != 1:
        return None
    store = stmt.body[0]
    if not isinstance(store, Store) or store.atomic or not isinstance(store.value, Load):
        return None
    source, target = program.buffer(store.value.buffer), program.buffer(store.buffer)
    moved = source.scope == "global" and target.scope == "shared" and source.dtype == target.dtype
    last = stmt.vars[-1]
    rows = last.name not in {v for load in loads(store.value.indices[-1]) for v in variables(load)}
    beside = rows and _strides(store.value.indices[-1], last.name) == 1
    return store if moved and beside else None


def _strides(index: Expr, name: str) -> int:
    """How far apart neighbours along the variable ``name`` lie (0: it does not occur)."""
    if name not in variables(index) or loads(index):
        return 0
    at = dict.fromkeys(variables(index), 0)
    return int(evaluate(index, at | {name: 1})) - int(evaluate(index, at))


def lead(loads: list[Op], body: list[Node]) -> int:
    """Loads that must have arrived before the first operation that uses any of them can start."""
    filled = [op.writes for op in loads]
    for node in body:
        if isinstance(node, Op) and any(name in filled for name in node.reads):
            return max(filled.index(name) for name in node.reads if name in filled) + 1
    return len(loads)


def settle(nodes: tuple[Node, ...], machine: Machine, *, cyclic: bool) -> tuple[Node, ...]:
    """Drop the result latency of products that another product follows: the engine keeps going.

    Only what comes after the last product of a run has to wait for the accumulators.
    """
    settled: list[Node] = []
    for i, node in enumerate(nodes):
        following = nodes[i + 1] if i + 1 < len(nodes) else (nodes[0] if cyclic else None)
        if isinstance(node, Op):
            chained = (
                node.kind == "matrix"
                and not node.queued
                and isinstance(following, Op)
                and following.kind in ("matrix", "barrier")
            )
            settled.append(replace(node, latency_s=0.0) if chained else node)
        elif isinstance(node, Loop):
            body = settle(node.body, machine, cyclic=True)
            settled.append(replace(node, body=body))
            last = next((n for n in reversed(body) if not (isinstance(n, Op) and n.kind == "barrier")), None)
            if isinstance(last, Op) and last.kind == "matrix" and not last.queued and last.latency_s == 0.0:
                settled.append(Op("wait for accumulators", "barrier", serial_s=machine.matrix_latency_s))
        else:
            then = settle(node.then, machine, cyclic=False)
            settled.append(replace(node, then=then, orelse=settle(node.orelse, machine, cyclic=False)))
    return tuple(settled)


def pair_var(machine: Machine, roles: Roles, names: tuple[str, ...], accesses: tuple[Access, ...]) -> str:
    """The block variable along which clusters of two are formed, "" without clusters.

    Two neighbours along it read some tiles in common and fetch those once. It is the variable that
    saves most bytes; where two cores work on one product, the right operand is what they share.
    """
    if not machine.clusters or not roles.accumulators:
        return ""
    saved: dict[str, float] = {}
    for name in names:
        shared = [a for a in accesses if a.direction == "read" and a.loops and name not in _uses(a)]
        if machine.matrix_instruction == "tcgen05":
            shared = [a for a in shared if a.target in roles.right_operands]
        if len(shared) < sum(a.direction == "read" and bool(a.loops) for a in accesses):
            saved[name] = sum(a.full_bytes for a in shared)
    best = max(saved, key=lambda n: saved[n], default="")
    return best if best and saved[best] > 0 else ""


def _uses(access: Access) -> frozenset[str]:
    return frozenset[str]().union(*(variables(m) for m in access.region.mins))


def raster(program: TileProgram) -> tuple[tuple[Digit, ...], dict[str, Expr], Expr | None]:
    """Raster digits (fastest first), ranges of tile indices, and the number of persistent tiles."""
    for stmt in walk_stmts(program.body):
        if isinstance(stmt, For) and stmt.kind == "persistent":
            names = [v.name for v in stmt.vars]
            ranges = dict(zip(names, stmt.extents, strict=True))
            ranges |= {v.name: e for v, e in zip(program.block_vars, program.grid, strict=True)}
            order = [Digit(n, ranges[n]) for n in reversed(names)]
            if stmt.group_size > 1 and len(names) > 1:
                order = _panels(names[-2], names[-1], stmt.group_size, ranges) + order[2:]
            return tuple(order), ranges, product(stmt.extents)
    names = [v.name for v in program.block_vars]
    ranges = dict(zip(names, program.grid, strict=True))
    order = [Digit(n, ranges[n]) for n in names]
    if program.swizzle is not None and len(names) >= 2:
        row, column = (names[1], names[0]) if program.swizzle.order == "row" else (names[0], names[1])
        order = _panels(row, column, program.swizzle.panel_size, ranges) + order[2:]
    return tuple(order), ranges, None


def _panels(row: str, column: str, size: int, ranges: dict[str, Expr]) -> list[Digit]:
    """Panels of ``size`` rows, walked column by column."""
    panel = binary("min", Const(size), ranges[row])
    return [Digit(row, panel), Digit(column, ranges[column]), Digit(row, ceildiv(ranges[row], Const(size)))]


def period(exprs: Sequence[Expr], names: Sequence[str]) -> int:
    """How many different blocks there are, if the one variable that matters does so modulo a constant.

    Zero where several variables matter, or one in another way.
    """
    if len(names) != 1:
        return 0
    periods: set[int] = set()
    for e in exprs:
        nodes = list(walk(e))
        moduli = [x for x in nodes if isinstance(x, Binary) and x.op == "mod" and x.a == Var(names[0])]
        if len(moduli) != sum(isinstance(x, Var) and x.name == names[0] for x in nodes):
            return 0
        periods |= {int(x.b.value) for x in moduli if isinstance(x.b, Const)}
    return periods.pop() if len(periods) == 1 else 0


def element_region(
    indices: tuple[Expr, ...], extents: dict[str, int], around: Sequence[Expr], on_chip: Container[str]
) -> tuple[Region, bool]:
    """The box that element indices sweep over a parallel nest, and whether they are scattered.

    An index is swept densely if it is linear in the nest's variables; of one taken apart by division
    the values are counted. A computed (loaded) index that selects rows sweeps as many as the iterations
    it depends on; one of the last dimension, along which elements lie side by side, touches a sector of
    its own per element. What an ``on_chip`` buffer holds changes with the loops and blocks ``around``.
    """
    zero: dict[str, Expr] = {name: Const(0) for name in extents}
    mins: list[Expr] = []
    sizes: list[Expr] = []
    scattered = False
    for number, index in enumerate(indices):
        mins.append(_changing(substitute(index, zero), around, on_chip))
        swept = [name for name in variables(index) if name in extents]
        gathered = any(name in extents for load in loads(index) for name in variables(load))
        span = 1
        if gathered:
            scattered = scattered or number == len(indices) - 1
            span = 1 if scattered else math.prod(extents[name] for name in swept)
        elif swept and not loads(index):
            span = _span(index, {name: extents[name] for name in swept})
        sizes.append(Const(span))
    return Region("", tuple(mins), tuple(sizes)), scattered


def _span(index: Expr, swept: Mapping[str, int]) -> int:
    """Elements that an index covers as its variables run."""
    rest: dict[str, Any] = dict.fromkeys(variables(index), 0)
    if any(isinstance(x, Binary) and x.op in ("floordiv", "mod") for x in walk(index)):
        points = np.meshgrid(*(np.arange(n) for n in swept.values()), indexing="ij", sparse=True)
        return len(np.unique(evaluate(index, rest | dict(zip(swept, points, strict=True)))))
    last = rest | {name: n - 1 for name, n in swept.items()}
    return abs(int(evaluate(index, last)) - int(evaluate(index, rest))) + 1


def _changing(e: Expr, around: Sequence[Expr], on_chip: Container[str]) -> Expr:
    """``e`` with elements of on-chip buffers indexed by everything that changes what they hold, too."""
    if isinstance(e, Load):
        indices = tuple(_changing(i, around, on_chip) for i in e.indices)
        return Load(e.buffer, (*indices, *around) if e.buffer in on_chip else indices)
    if isinstance(e, Binary):
        return Binary(e.op, _changing(e.a, around, on_chip), _changing(e.b, around, on_chip))
    if isinstance(e, Call):
        return Call(e.fn, tuple(_changing(a, around, on_chip) for a in e.args))
    if isinstance(e, Cast):
        return Cast(e.dtype, _changing(e.a, around, on_chip), e.bits)
    return e


def product(factors: Iterable[Expr]) -> Expr:
    """Product of expressions, constants folded."""
    total: Expr = Const(1)
    for factor in factors:
        total = binary("mul", total, factor)
    return total


def ceildiv(a: Expr, b: Expr) -> Expr:
    """``ceil(a / b)`` of whole numbers."""
    return binary("floordiv", binary("add", a, binary("sub", b, Const(1))), b)
