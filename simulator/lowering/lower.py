"""Walking a program and turning its statements into operations, loops and memory accesses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import Call, Const, Expr, binary, evaluate, loads, substitute, variables
from foretile.kernels.ir import (
    AtomicAdd,
    Buffer,
    Copy,
    CumSum,
    Fill,
    For,
    Gemm,
    If,
    Reduce,
    Region,
    Stmt,
    Store,
    Sync,
    TileProgram,
    While,
    walk_stmts,
)
from foretile.simulator.lowering.davinci import DavinciRules
from foretile.simulator.lowering.elementwise import Count, count, store_count
from foretile.simulator.lowering.rules import Cost, Roles, Rules
from foretile.simulator.lowering.simt import SimtRules
from foretile.simulator.machine import Machine, SimulationError
from foretile.simulator.workload import Access, Branch, Digit, Loop, Node, Op, Workload

_RULES: dict[str, type[SimtRules] | type[DavinciRules]] = {"simt": SimtRules, "davinci": DavinciRules}
_SECTOR_BYTES = 32  # smallest unit a cache moves for a scattered element (32-byte sectors)


def lower(program: TileProgram, machine: Machine) -> Workload:
    """The work of one block of ``program`` on ``machine``; symbolic dimensions stay symbolic.

    Raises:
        SimulationError: the program does not fit the machine, or uses what it cannot time.
    """
    if machine.style not in _RULES:
        raise SimulationError(f"{machine.id}: programs cannot be lowered to style {machine.style!r}")
    roles = _roles(program)
    loaded = machine.under_matrix_load() if roles.accumulators else machine
    rules: Rules = _RULES[machine.style](program, loaded, roles)
    walker = _Walker(program, rules)
    nodes = _settle(walker.block(program.body), loaded, cyclic=False)
    agents, rate = rules.agents()
    raster, ranges, tiles = _raster(program)
    accesses = tuple(walker.accesses)
    return Workload(
        program=program,
        machine=machine,
        grid=program.grid,
        raster=raster,
        ranges=ranges,
        persistent=tiles,
        nodes=nodes,
        accesses=accesses,
        pair_var=_pair_var(machine, roles, tuple(ranges), accesses),
        agents=agents,
        agent_rate=rate,
        occupancy=rules.occupancy(),
        dtype=walker.dtype,
    )


def _settle(nodes: tuple[Node, ...], machine: Machine, *, cyclic: bool) -> tuple[Node, ...]:
    """Drop the result latency of products that another product follows: the engine keeps going.

    Only what comes after the last product of a run has to wait for the accumulators.
    """
    settled: list[Node] = []
    for i, node in enumerate(nodes):
        following = nodes[i + 1] if i + 1 < len(nodes) else (nodes[0] if cyclic else None)
        if isinstance(node, Op):
            chained = (
                node.kind == "matrix"
                and isinstance(following, Op)
                and following.kind in ("matrix", "barrier")
            )
            settled.append(replace(node, latency_s=0.0) if chained else node)
        elif isinstance(node, Loop):
            body = _settle(node.body, machine, cyclic=True)
            settled.append(replace(node, body=body))
            last = next((n for n in reversed(body) if not (isinstance(n, Op) and n.kind == "barrier")), None)
            if isinstance(last, Op) and last.kind == "matrix" and last.latency_s == 0.0:
                settled.append(Op("wait for accumulators", "barrier", serial_s=machine.matrix_latency_s))
        else:
            then = _settle(node.then, machine, cyclic=False)
            settled.append(replace(node, then=then, orelse=_settle(node.orelse, machine, cyclic=False)))
    return tuple(settled)


def _lead(loads: list[Op], body: list[Node]) -> int:
    """Loads that must have arrived before the first operation that uses any of them can start."""
    filled = [op.writes for op in loads]
    for node in body:
        if isinstance(node, Op) and any(name in filled for name in node.reads):
            return max(filled.index(name) for name in node.reads if name in filled) + 1
    return len(loads)


def _roles(program: TileProgram) -> Roles:
    stmts = list(walk_stmts(program.body))
    gemms = [s for s in stmts if isinstance(s, Gemm)]
    staged: dict[str, int] = {}
    for loop in stmts:
        if isinstance(loop, For) and loop.kind == "pipelined" and loop.num_stages > 0:
            for s in loop.body:
                if isinstance(s, Copy) and _is_load(s, program):
                    staged[s.dst.buffer] = loop.num_stages
    written = {s.buffer for s in stmts if isinstance(s, Store)}
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


def _pair_var(machine: Machine, roles: Roles, names: tuple[str, ...], accesses: tuple[Access, ...]) -> str:
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


def _is_load(stmt: Copy, program: TileProgram) -> bool:
    return (
        program.buffer(stmt.src.buffer).scope == "global"
        and program.buffer(stmt.dst.buffer).scope == "shared"
    )


def _product(factors: Iterable[Expr]) -> Expr:
    total: Expr = Const(1)
    for factor in factors:
        total = binary("mul", total, factor)
    return total


def _ceildiv(a: Expr, b: Expr) -> Expr:
    return binary("floordiv", binary("add", a, binary("sub", b, Const(1))), b)


def _raster(program: TileProgram) -> tuple[tuple[Digit, ...], dict[str, Expr], Expr | None]:
    """Raster digits (fastest first), ranges of tile indices, and the number of persistent tiles."""
    for stmt in walk_stmts(program.body):
        if isinstance(stmt, For) and stmt.kind == "persistent":
            names = [v.name for v in stmt.vars]
            ranges = dict(zip(names, stmt.extents, strict=True))
            ranges |= {v.name: e for v, e in zip(program.block_vars, program.grid, strict=True)}
            order = [Digit(n, ranges[n]) for n in reversed(names)]
            if stmt.group_size > 1 and len(names) > 1:
                order = _panels(names[-2], names[-1], stmt.group_size, ranges) + order[2:]
            return tuple(order), ranges, _product(stmt.extents)
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
    return [Digit(row, panel), Digit(column, ranges[column]), Digit(row, _ceildiv(ranges[row], Const(size)))]


class _Walker:
    """One pass over the statements; collects the accesses as it goes."""

    def __init__(self, program: TileProgram, rules: Rules) -> None:
        self.program = program
        self.rules = rules
        self.accesses: list[Access] = []
        self.dtype = ""
        self.loops: list[tuple[str, Expr]] = []
        self.starts: dict[str, Expr] = {}
        self.guards: list[Expr] = []

    def block(self, body: tuple[Stmt, ...]) -> tuple[Node, ...]:
        nodes: list[Node] = []
        for stmt in body:
            nodes.extend(self.statement(stmt))
        return tuple(nodes)

    def statement(self, stmt: Stmt) -> list[Node]:
        line = stmt.loc.line if stmt.loc else 0
        if isinstance(stmt, For):
            return self.loop(stmt)
        if isinstance(stmt, If):
            return [self.branch(stmt)]
        if isinstance(stmt, While):
            raise SimulationError(
                f"{self._where(stmt)}a while loop's trip count is not known before it runs; "
                "write it as a loop with a bound to time it"
            )
        return [replace(op, line=line) for op in self.operation(stmt)]

    def _where(self, stmt: Stmt) -> str:
        return f"{stmt.loc}: " if stmt.loc else f"{self.program.name}: "

    # -- control flow ------------------------------------------------------------------------

    def loop(self, stmt: For) -> list[Node]:
        if stmt.kind == "parallel":
            return self.parallel(stmt)
        extent = _product(stmt.extents)
        dealt: Expr | None = None
        if stmt.kind == "persistent":
            dealt = extent
            extent = _ceildiv(extent, _product(self.program.grid))
        else:
            self.loops.extend(zip((v.name for v in stmt.vars), stmt.extents, strict=True))
        if stmt.start is not None:  # where a block's share begins is part of the address
            self.starts[stmt.vars[0].name] = binary("add", stmt.start, stmt.vars[0])
        pipelined = stmt.kind == "pipelined" and stmt.num_stages > 0
        ahead: list[Op] = []
        body: list[Node] = []
        for inner in stmt.body:
            ops = self.statement(inner)
            if pipelined and isinstance(inner, Copy) and _is_load(inner, self.program):
                ahead.extend(op for op in ops if isinstance(op, Op))
            else:
                body.extend(ops)
        if stmt.kind != "persistent":
            del self.loops[-len(stmt.vars) :]
        serial, lag = self.rules.stage_barrier(len(ahead)) if pipelined else (0.0, 0.0)
        if serial:
            body.append(Op("stage barrier", "barrier", serial_s=serial))
        ahead = [replace(op, latency_s=op.latency_s + lag) for op in ahead]
        return [
            Loop(
                var=stmt.vars[0].name,
                start=stmt.start,
                step=stmt.step,
                extent=extent,
                stages=self.rules.stages(stmt.num_stages) if pipelined else 1,
                loads=tuple(ahead),
                body=tuple(body),
                lead=_lead(ahead, body),
                run_ahead=self.rules.runs_ahead(),
                dealt=dealt,
            )
        ]

    def branch(self, stmt: If) -> Branch:
        self.guards.append(stmt.cond)
        then = self.block(stmt.then)
        self.guards[-1] = Call("not", (stmt.cond,))
        orelse = self.block(stmt.orelse)
        self.guards.pop()
        return Branch(stmt.cond, then, orelse)

    def parallel(self, stmt: For) -> list[Node]:
        """Element-wise work: every statement in the body over all points of the nest."""
        extents = {v.name: self._constant(e, stmt) for v, e in zip(stmt.vars, stmt.extents, strict=True)}
        nodes: list[Node] = []
        self._elementwise(stmt.body, extents, Count(), nodes)
        return nodes

    def _elementwise(
        self, body: tuple[Stmt, ...], extents: dict[str, int], guard: Count, nodes: list[Node]
    ) -> None:
        for inner in body:
            if isinstance(inner, Store):
                nodes.extend(self.store(inner, extents, guard))
            elif isinstance(inner, If):  # lanes diverge: both sides are issued
                below = guard + count(inner.cond, self.program)
                self._elementwise(inner.then, extents, below, nodes)
                self._elementwise(inner.orelse, extents, below, nodes)
            elif isinstance(inner, For) and inner.kind != "pipelined":
                more = {
                    v.name: self._constant(e, inner) for v, e in zip(inner.vars, inner.extents, strict=True)
                }
                self._elementwise(inner.body, extents | more, guard, nodes)
            else:
                raise SimulationError(
                    f"{self._where(inner)}{type(inner).__name__} inside T.Parallel cannot be timed; "
                    "tile operations belong outside it"
                )

    def _constant(self, e: Expr, stmt: Stmt) -> int:
        if variables(e) or loads(e):
            raise SimulationError(
                f"{self._where(stmt)}the extent of T.Parallel must be a constant, not {sorted(variables(e))}"
            )
        return int(evaluate(e, {}))

    # -- operations --------------------------------------------------------------------------

    def operation(self, stmt: Stmt) -> list[Op]:
        if isinstance(stmt, Copy):
            return self.copy(stmt)
        if isinstance(stmt, Gemm):
            return [self.gemm(stmt)]
        if isinstance(stmt, Store):
            return self.store(stmt, {}, Count())
        if isinstance(stmt, Fill):
            target = self.program.buffer(stmt.dst.buffer)
            if target.scope == "global":
                return [self._store_op(stmt.dst, target, "write", Cost({}, 0.0), "fill")]
            cost = self.rules.fill(stmt, self._elements(stmt.dst, stmt), target)
            return [_op("vector", f"fill {stmt.dst.buffer}", cost)]
        if isinstance(stmt, Reduce | CumSum):
            elements = self._elements(stmt.src, stmt)
            rows = self._elements(stmt.dst, stmt) if isinstance(stmt, Reduce) else 1
            name = f"{stmt.kind} {stmt.src.buffer}" if isinstance(stmt, Reduce) else f"scan {stmt.src.buffer}"
            return [_op("vector", name, self.rules.reduce(stmt, elements, rows), reads=(stmt.src.buffer,))]
        if isinstance(stmt, AtomicAdd):
            target = self.program.buffer(stmt.dst.buffer)
            move = Copy(src=stmt.src, dst=stmt.dst, loc=stmt.loc)
            source = self.program.buffer(stmt.src.buffer)
            cost = self.rules.move(move, self._elements(stmt.src, stmt), source, target)
            return [
                self._store_op(
                    stmt.dst, target, "atomic", cost, f"atomic add {stmt.dst.buffer}", stmt.src.buffer
                )
            ]
        if isinstance(stmt, Sync):
            return [_op("barrier", "barrier", self.rules.barrier())]
        raise SimulationError(f"{self._where(stmt)}{type(stmt).__name__} cannot be timed")

    def _elements(self, region: Region, stmt: Stmt) -> int:
        total = 1
        for extent in region.extents:
            if variables(extent):
                raise SimulationError(
                    f"{self._where(stmt)}the extent of a region of {region.buffer} is not constant"
                )
            total *= int(evaluate(extent, {}))
        return total

    def gemm(self, stmt: Gemm) -> Op:
        rows, depth = (int(evaluate(e, {})) for e in stmt.a.extents[-2:])
        if stmt.trans_a:
            rows, depth = depth, rows
        columns = int(evaluate(stmt.c.extents[-1], {}))
        a, b = self.program.buffer(stmt.a.buffer), self.program.buffer(stmt.b.buffer)
        # The slower of two unequal operand types sets the rate: the narrower one is widened first.
        wider = max((a, b), key=lambda x: DTYPES[x.dtype].bits)
        dtype = DTYPES[wider.dtype].short
        self.dtype = self.dtype or dtype
        cost = self.rules.gemm(stmt, rows, columns, depth, dtype)
        op = _op("matrix", f"gemm {stmt.c.buffer}", cost, reads=(stmt.a.buffer, stmt.b.buffer))
        return replace(op, latency_s=cost.latency_s, tile_flops=2.0 * rows * columns * depth)

    def copy(self, stmt: Copy) -> list[Op]:
        source, target = self.program.buffer(stmt.src.buffer), self.program.buffer(stmt.dst.buffer)
        whole = stmt.dst if target.scope != "global" else stmt.src
        cost = self.rules.move(stmt, self._elements(whole, stmt), source, target)
        label = f"copy {source.name} → {target.name}"
        if source.scope == "global" and target.scope == "global":
            return [
                self._load_op(stmt.src, source, cost, label, ""),
                self._store_op(stmt.dst, target, "write", Cost({}, 0.0), label),
            ]
        if source.scope == "global":
            return [self._load_op(stmt.src, source, cost, label, target.name)]
        if target.scope == "global":
            return [self._store_op(stmt.dst, target, "write", cost, label, source.name)]
        return [_op("vector", label, cost, reads=(source.name,))]

    def store(self, stmt: Store, extents: dict[str, int], guard: Count) -> list[Op]:
        """``buffer[i, j] = value`` over the points of a parallel nest (one point outside of any)."""
        points = int(np.prod(list(extents.values()))) if extents else 1
        target = self.program.buffer(stmt.buffer)
        each = guard + store_count(stmt.value, target, self.program)
        ops: list[Op] = []
        reads: list[str] = []
        for number, load in enumerate(dict.fromkeys(each.loads)):
            source = self.program.buffer(load.buffer)
            if source.scope == "global":
                region, scattered = _element_region(load.indices, extents)
                name = f"{load.buffer}#{number}"
                ops.append(
                    self._load_op(
                        region, source, Cost({}, 0.0), f"load {load.buffer}", name, points, scattered
                    )
                )
                reads.append(name)
            else:
                reads.append(load.buffer)
        cost = self.rules.elementwise(points, each, target)
        if target.scope != "global":
            return [*ops, _op("vector", f"{target.name} = …", cost, reads=tuple(reads))]
        region, scattered = _element_region(stmt.indices, extents)
        direction = "atomic" if stmt.atomic else "write"
        label = f"atomic {stmt.atomic} {target.name}" if stmt.atomic else f"store {target.name}"
        if each.total:
            ops.append(_op("vector", f"compute {target.name}", cost, reads=tuple(reads)))
            cost = Cost({}, 0.0)
        return [
            *ops,
            self._store_op(
                region, target, direction, cost, label, *reads, points=points, scattered=scattered
            ),
        ]

    # -- accesses ----------------------------------------------------------------------------

    def _access(
        self,
        region: Region,
        tensor: Buffer,
        direction: Any,
        points: int | None,
        scattered: bool,
        fills: str = "",
    ) -> int:
        element = DTYPES[tensor.dtype].bytes
        elements = points
        if elements is None:
            elements = 1
            for extent in region.extents:
                elements *= int(evaluate(extent, {}))
        if points is not None and not scattered:
            distinct = 1
            for extent in region.extents:
                distinct *= int(evaluate(extent, {}))
            elements = min(points, distinct)  # lanes that read the same element share one transaction
        full = elements * (max(element, _SECTOR_BYTES) if scattered else element)
        if self.starts:
            region = replace(region, mins=tuple(substitute(m, self.starts) for m in region.mins))
        self.accesses.append(
            Access(
                tensor=tensor.name,
                region=region,
                direction=direction,
                element_bytes=element,
                bulk=self._is_shared(fills),
                target=fills,
                full_bytes=full,
                loops=tuple(self.loops),
                guards=tuple(self.guards),
                per_element=scattered,
            )
        )
        return len(self.accesses) - 1

    def _is_shared(self, name: str) -> bool:
        return any(b.name == name and b.scope == "shared" for b in self.program.buffers)

    def _load_op(
        self,
        region: Region,
        tensor: Buffer,
        cost: Cost,
        label: str,
        fills: str,
        points: int | None = None,
        scattered: bool = False,
    ) -> Op:
        access = self._access(region, tensor, "read", points, scattered, fills)
        op = _op("load", label, cost)
        return replace(op, access=access, writes=fills)

    def _store_op(
        self,
        region: Region,
        tensor: Buffer,
        direction: str,
        cost: Cost,
        label: str,
        *reads: str,
        points: int | None = None,
        scattered: bool = False,
    ) -> Op:
        access = self._access(region, tensor, direction, points, scattered)
        return replace(_op("store", label, cost, reads=reads), access=access)


def _op(kind: Any, label: str, cost: Cost, reads: tuple[str, ...] = ()) -> Op:
    work = tuple((engine, seconds) for engine, seconds in cost.work.items() if seconds > 0.0)
    return Op(label=label, kind=kind, work=work, serial_s=cost.serial_s, reads=reads, flops=cost.flops)


def _element_region(indices: tuple[Expr, ...], extents: dict[str, int]) -> tuple[Region, bool]:
    """The box that element indices sweep over a parallel nest, and whether they are scattered.

    An index is swept densely if it is linear in the nest's variables; a computed (loaded) index
    touches a sector of its own per element.
    """
    zero: dict[str, Expr] = {name: Const(0) for name in extents}
    mins: list[Expr] = []
    sizes: list[Expr] = []
    scattered = False
    for index in indices:
        mins.append(substitute(index, zero))
        swept = [name for name in variables(index) if name in extents]
        if any(name in extents for load in loads(index) for name in variables(load)):
            scattered = True
        low = {name: 0 for name in swept}
        span = 1
        if swept and not loads(index):
            rest = {v: 0 for v in variables(index)}
            high = rest | {name: extents[name] - 1 for name in swept}
            span = int(evaluate(index, high)) - int(evaluate(index, rest | low)) + 1
        sizes.append(Const(max(1, abs(span))))
    return Region("", tuple(mins), tuple(sizes)), scattered
