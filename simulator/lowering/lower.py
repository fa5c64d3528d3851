"""Walking a program and turning its statements into operations, loops and memory accesses."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import Call, Expr, Load, Var, binary, evaluate, loads, substitute, variables
from foretile.kernels.ir import (
    AtomicAdd,
    Buffer,
    Copy,
    CumSum,
    Fill,
    For,
    Gemm,
    Hint,
    If,
    Reduce,
    Region,
    Stmt,
    Store,
    TileProgram,
)
from foretile.simulator.copies import matched
from foretile.simulator.lowering.analysis import (
    ceildiv,
    element_region,
    gathered,
    is_load,
    lead,
    pair_var,
    period,
    product,
    raster,
    roles,
    settle,
)
from foretile.simulator.lowering.decisions import expected, refuse_decisions
from foretile.simulator.lowering.elementwise import Count, count, store_count, update_count
from foretile.simulator.lowering.explicit import as_tf32, degraded, timed
from foretile.simulator.lowering.rules import Cost, Rules, operation
from foretile.simulator.lowering.special import special
from foretile.simulator.lowering.steering import parameters, steering
from foretile.simulator.lowering.styles import RULES, rules_for
from foretile.simulator.machine import Machine, SimulationError
from foretile.simulator.workload import BLOCK_START, Access, Branch, Loop, Node, Op, Workload, shape_exprs

_SECTOR_BYTES = 32  # smallest unit a cache moves for a scattered element (32-byte sectors)


def lower(program: TileProgram, machine: Machine) -> Workload:
    """The work of one block of ``program`` on ``machine``; symbolic dimensions stay symbolic.

    Raises:
        SimulationError: the program does not fit the machine, or uses what it cannot time.
    """
    if machine.style not in RULES:
        raise SimulationError(f"{machine.id}: programs cannot be lowered to style {machine.style!r}")
    notes = degraded(program, machine)
    source, program = program, timed(program, machine)
    refuse_decisions(program)
    used = roles(program)
    loaded = machine.under_matrix_load() if used.accumulators else machine
    rules = rules_for(program, loaded, used, source)
    walker = _Walker(program, rules)
    # Barriers, descriptors and the scratchpad's layout are set up where tiles are staged in it.
    staged = machine.block_s and any(b.scope == "shared" for b in program.buffers)
    started = (Op(BLOCK_START, "barrier", serial_s=machine.block_s),) if staged else ()
    nodes = settle((*started, *parameters(program, rules), *walker.block(program.body)), loaded, cyclic=False)
    agents, rate = rules.agents()
    digits, ranges, tiles = raster(program)
    accesses = tuple(walker.accesses)
    shapes = list(shape_exprs(nodes))
    wanted = frozenset[str]().union(*(variables(e) for e in shapes))
    sampled = tuple(name for name in ranges if name in wanted)
    return Workload(
        program=program,
        machine=machine,
        grid=program.grid,
        raster=digits,
        ranges=ranges,
        persistent=tiles,
        nodes=nodes,
        accesses=accesses,
        pair_var=pair_var(machine, used, tuple(ranges), accesses) if rules.paired() else "",
        agents=agents,
        agent_rate=rate,
        occupancy=rules.occupancy(),
        dtype=walker.dtype,
        sampled=sampled,
        period=period(shapes, sampled),
        deciding=frozenset(x.buffer for e in shapes for x in loads(e)),
        walks=rules.walks(),
        notes=notes,
        instructions=rules.instructions() if used.accumulators else frozenset(),
        grounds=rules.grounds(),
    )


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

    def region(self, indices: tuple[Expr, ...], extents: dict[str, int]) -> tuple[Region, bool]:
        """The box that element indices sweep, see :func:`element_region`."""
        around = (*self.program.block_vars, *(Var(name) for name, _ in self.loops))
        on_chip = frozenset(b.name for b in self.program.buffers)
        return element_region(indices, extents, around, on_chip)

    def block(self, body: tuple[Stmt, ...]) -> tuple[Node, ...]:
        nodes: list[Node] = []
        for stmt in body:
            nodes.extend(self.statement(stmt))
        return tuple(nodes)

    def statement(self, stmt: Stmt) -> list[Node]:
        line = stmt.loc.line if stmt.loc else 0
        if isinstance(stmt, For):
            return self.loop(stmt)
        if isinstance(stmt, If) and expected(stmt.cond):
            return list(self.block(stmt.then))
        if isinstance(stmt, If):
            return [self.branch(stmt)]
        return [replace(op, line=line) for op in self.operation(stmt)]

    def _where(self, stmt: Stmt) -> str:
        return f"{stmt.loc}: " if stmt.loc else f"{self.program.name}: "

    # -- control flow ------------------------------------------------------------------------

    def loop(self, stmt: For) -> list[Node]:
        if stmt.kind == "parallel":
            return self.parallel(stmt)
        extent = product(stmt.extents)
        dealt: Expr | None = None
        if stmt.kind == "persistent":
            dealt = extent
            extent = ceildiv(extent, product(self.program.grid))
        else:
            self.loops.extend(zip((v.name for v in stmt.vars), stmt.extents, strict=True))
        if stmt.start is not None:  # where a block's share begins is part of the address
            self.starts[stmt.vars[0].name] = binary("add", stmt.start, stmt.vars[0])
        pipelined = stmt.kind == "pipelined" and stmt.num_stages > 0
        ahead: list[Op] = []
        body: list[Node] = [*steering(self.rules, stmt)]
        for inner in stmt.body:
            if pipelined and (rows := gathered(inner, self.program)) is not None:
                ahead.append(self.gather(inner, rows))
                continue
            ops = self.statement(inner)
            if pipelined and isinstance(inner, Copy) and is_load(inner, self.program):
                ahead.extend(op for op in ops if isinstance(op, Op))
            else:
                body.extend(ops)
        if stmt.kind != "persistent":
            del self.loops[-len(stmt.vars) :]
        if dealt is not None and self.rules.machine.block_s:
            # The next tile of a persistent block starts as a block does: pointers, phases, an empty pipeline.
            body.insert(0, Op("tile start", "barrier", serial_s=self.rules.machine.block_s))
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
                lead=lead(ahead, body),
                run_ahead=self.rules.runs_ahead(),
                dealt=dealt,
            )
        ]

    def gather(self, nest: Stmt, stmt: Store) -> Op:
        """Rows that indices on the chip name, as one load that runs ahead of a pipelined loop.

        The indices themselves are a few bytes a row, and fetched further ahead.
        """
        assert isinstance(nest, For)
        assert isinstance(stmt.value, Load)
        extents = {v.name: self._constant(e, nest) for v, e in zip(nest.vars, nest.extents, strict=True)}
        points = prod(extents.values())
        source, target = self.program.buffer(stmt.value.buffer), self.program.buffer(stmt.buffer)
        region, scattered = self.region(stmt.value.indices, extents)
        cost = self.rules.gather(points, source, target)
        label = f"gather {source.name} → {target.name}"
        return self.load_op(region, source, cost, label, target.name, points, scattered)

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
            elif not isinstance(inner, Hint):
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
            return self.gemm(stmt)
        if isinstance(stmt, Store):
            return self.store(stmt, {}, Count())
        if isinstance(stmt, Fill):
            target = self.program.buffer(stmt.dst.buffer)
            if target.scope == "global":
                return [self.store_op(stmt.dst, target, "write", Cost({}, 0.0), "fill")]
            cost = self.rules.fill(stmt, self.elements(stmt.dst, stmt), target)
            return [operation("vector", f"fill {stmt.dst.buffer}", cost)]
        if isinstance(stmt, Reduce | CumSum):
            elements = self.elements(stmt.src, stmt)
            rows = self.elements(stmt.dst, stmt) if isinstance(stmt, Reduce) else 1
            name = f"{stmt.kind} {stmt.src.buffer}" if isinstance(stmt, Reduce) else f"scan {stmt.src.buffer}"
            return [
                operation("vector", name, self.rules.reduce(stmt, elements, rows), reads=(stmt.src.buffer,))
            ]
        if isinstance(stmt, AtomicAdd):
            target = self.program.buffer(stmt.dst.buffer)
            move = Copy(src=stmt.src, dst=stmt.dst, loc=stmt.loc)
            source = self.program.buffer(stmt.src.buffer)
            cost = self.rules.move(move, self.elements(stmt.src, stmt), source, target)
            return [
                self.store_op(
                    stmt.dst, target, "atomic", cost, f"atomic add {stmt.dst.buffer}", stmt.src.buffer
                )
            ]
        found = special(stmt, self)
        if found is not None:
            return found
        raise SimulationError(f"{self._where(stmt)}{type(stmt).__name__} cannot be timed")

    def elements(self, region: Region, stmt: Stmt) -> int:
        """How many elements a region has."""
        total = 1
        for extent in region.extents:
            if variables(extent):
                raise SimulationError(
                    f"{self._where(stmt)}the extent of a region of {region.buffer} is not constant"
                )
            total *= int(evaluate(extent, {}))
        return total

    def gemm(self, stmt: Gemm) -> list[Op]:
        rows, depth = (int(evaluate(e, {})) for e in stmt.a.extents[-2:])
        if stmt.trans_a:
            rows, depth = depth, rows
        columns = int(evaluate(stmt.c.extents[-1], {}))
        a, b = self.program.buffer(stmt.a.buffer), self.program.buffer(stmt.b.buffer)
        # The slower of two unequal operand types sets the rate: the narrower one is widened first.
        wider = max((a, b), key=lambda x: DTYPES[x.dtype].bits)
        dtype = "tf32" if as_tf32(self.program, stmt, self.rules.machine) else DTYPES[wider.dtype].short
        self.dtype = self.dtype or dtype
        cost = self.rules.gemm(stmt, rows, columns, depth, dtype)
        reads = tuple(r.buffer for r in (stmt.a, stmt.b, stmt.a_scale, stmt.b_scale) if r)
        label, ops = f"gemm {stmt.c.buffer}", []
        if cost.before is not None:
            ops.append(operation("matrix", f"operands of {label}", cost.before, reads=reads))
            reads = ()
        op = operation("matrix", label, cost, reads=reads)
        if cost.queued:
            op = replace(op, writes=stmt.c.buffer)
        ops.append(replace(op, latency_s=cost.latency_s, tile_flops=2.0 * rows * columns * depth))
        return ops

    def copy(self, stmt: Copy) -> list[Op]:
        stmt = matched(stmt, lambda name: self.program.buffer(name).scope)
        source, target = self.program.buffer(stmt.src.buffer), self.program.buffer(stmt.dst.buffer)
        whole = stmt.dst if target.scope != "global" else stmt.src
        cost = self.rules.move(stmt, self.elements(whole, stmt), source, target)
        label = f"copy {source.name} → {target.name}"
        if source.scope == "global" and target.scope == "global":
            return [
                self.load_op(stmt.src, source, cost, label, ""),
                self.store_op(stmt.dst, target, "write", Cost({}, 0.0), label),
            ]
        if source.scope == "global":
            return [self.load_op(stmt.src, source, cost, label, target.name)]
        if target.scope == "global":
            return [self.store_op(stmt.dst, target, "write", cost, label, source.name)]
        return [operation("vector", label, cost, reads=(source.name,))]

    def store(self, stmt: Store, extents: dict[str, int], guard: Count) -> list[Op]:
        """``buffer[i, j] = value`` over the points of a parallel nest (one point outside of any)."""
        points = prod(extents.values())
        target = self.program.buffer(stmt.buffer)
        each = guard + store_count(stmt.value, target, self.program)
        if stmt.atomic and self.program.annotation("reducer", stmt.buffer) is not None:
            each = each.then(fp32=1)
        elif stmt.atomic and target.scope == "shared":
            each, target = update_count(stmt, extents, each, target, self.program)
        ops: list[Op] = []
        reads: list[str] = []
        for number, load in enumerate(dict.fromkeys(each.loads)):
            source = self.program.buffer(load.buffer)
            if source.scope == "global":
                region, scattered = self.region(load.indices, extents)
                name = f"{load.buffer}#{number}"
                ops.append(
                    self.load_op(
                        region, source, Cost({}, 0.0), f"load {load.buffer}", name, points, scattered
                    )
                )
                reads.append(name)
            else:
                reads.append(load.buffer)
        cost = self.rules.elementwise(points, each, target)
        if target.scope != "global":
            return [*ops, operation("vector", f"{target.name} = …", cost, reads=tuple(reads))]
        region, scattered = self.region(stmt.indices, extents)
        direction = "atomic" if stmt.atomic else "write"
        label = f"atomic {stmt.atomic} {target.name}" if stmt.atomic else f"store {target.name}"
        if each.total:
            ops.append(operation("vector", f"compute {target.name}", cost, reads=tuple(reads)))
            cost = Cost({}, 0.0)
        return [
            *ops,
            self.store_op(region, target, direction, cost, label, *reads, points=points, scattered=scattered),
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
        *,
        bulk: bool = True,
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
                bulk=bulk and self._is_shared(fills),
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

    def load_op(
        self,
        region: Region,
        tensor: Buffer,
        cost: Cost,
        label: str,
        fills: str,
        points: int | None = None,
        scattered: bool = False,
    ) -> Op:
        """A load of a region of a tensor, into the buffer ``fills``."""
        access = self._access(region, tensor, "read", points, scattered, fills, bulk=cost.bulk)
        op = operation("load", label, cost)
        return replace(op, access=access, writes=fills)

    def store_op(
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
        """A write of a region of a tensor."""
        access = self._access(region, tensor, direction, points, scattered)
        return replace(
            operation("store", label, cost, reads=reads), access=access, writes=label if cost.queued else ""
        )
