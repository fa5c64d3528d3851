"""Costs on cores with cube and vector units and explicit buffers (style ``davinci``).

A core's queues work in order and side by side: copies from global memory into L1 (``feed``) and into UB
(``vector_feed``), from L1 to L0 (``scratchpad``), products (``matrix``), the fix-pipe out of L0C
(``drain``), vector instructions, and copies out of UB (``vector_drain``). Flags join them: a product is
sent to its queue once its first operands lie in L0, and the copies go on for the next one meanwhile.
A fused core has one queue for copies in, one for copies out of UB, and one scalar unit for all.
Where buffers lie is decided in :mod:`~foretile.simulator.lowering.placement`.
"""

from __future__ import annotations

from math import ceil, gcd, prod

from foretile.hwmodels.quantity import Quantity
from foretile.kernels.affine import terms
from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import Const, evaluate, variables
from foretile.kernels.ir import Buffer, Copy, CumSum, Fill, Gemm, Reduce, Region, TileProgram, walk_stmts
from foretile.simulator.lowering.elementwise import Count, convert_count
from foretile.simulator.lowering.placement import (
    ACCUMULATOR_BYTES,
    FRACTAL,
    overwritten,
    place,
    shape_of,
)
from foretile.simulator.lowering.rules import Cost, Queued, Roles, require_block_scaling
from foretile.simulator.machine import Machine, SimulationError
from foretile.simulator.workload import FromMemory, Occupancy

# Repeats one vector instruction makes at most, each of the width of the vector unit.
_REPEATS = 255
# Tiles under way where cube and vector work alternate. Handed over through global memory, the cube runs
# ahead by as many as a queue there holds (flash attention of pto-isa and PTO-DSL: QK_PRELOAD of 3 or 4);
# by direct paths or inside a core by one, which UB has to hold (pypto: QK_PRELOAD of 1).
_UNDER_WAY = {"l2": 4, "direct": 2, "fused": 2}
# A reduction of rows takes two passes: neighbours in a repeat, then the repeats of a row (pto-isa cost
# model: cgadd and cadd).
_REDUCTION_PASSES = 2.0


class DavinciRules(Queued):
    """Costs of tile operations for one program on one cube/vector machine."""

    def __init__(self, program: TileProgram, machine: Machine, roles: Roles) -> None:
        if machine.davinci is None:
            raise SimulationError(f"{machine.id}: style davinci needs the section davinci")
        self.program = program
        self.machine = machine
        self.roles = roles
        self.d = d = machine.davinci
        self.placement = place(program, roles, d, machine.id)
        self.fused = d.handoff == "fused"
        self.into_ub = "feed" if self.fused else "vector_feed"
        self.out_of_ub = "drain" if self.fused else "vector_drain"
        self.copy_s = machine.cycle_s / machine.copy_pace  # of one cycle of a copy between buffers
        self._overwritten = overwritten(program)
        self._handed_over = self.d.unit_flag and _asked(program, "unit_flag", True)
        self._last_s = 0.0  # the last instruction of the product computed last
        self._fetched: set[str] = set()  # accumulators that lie in UB as of now
        self._plain: set[str] = set()  # those whose last product overwrote what was there

    def walks(self) -> bool:
        """See :class:`~foretile.simulator.lowering.rules.Rules`."""
        return True

    def steering(self, operations: int) -> float:
        """See :class:`~foretile.simulator.lowering.rules.Rules`: the scalar unit sends everything."""
        return operations * _value(self.d.scalar_issue_cycles) * self.machine.cycle_s

    def agents(self) -> tuple[int, float]:
        mixed = bool(self.placement.fetched) or bool(self.roles.operands & self.roles.made_on_core)
        return (_UNDER_WAY[self.d.handoff] if mixed else 1), 1.0

    def occupancy(self) -> Occupancy:
        # A core runs its blocks one after the other; where every buffer fits twice, the next
        # block's copies overlap this one's work, as two resident blocks would.
        resident, tightest = self.placement.blocks()
        held = self.placement.needed("L1") + self.placement.needed("UB")
        return Occupancy(resident, tightest, self.program.threads, int(held), 0)

    # -- products ----------------------------------------------------------------------------

    def gemm(self, stmt: Gemm, m: int, n: int, k: int, dtype: str) -> Cost:
        machine, d = self.machine, self.d
        require_block_scaling(machine, stmt)
        element = DTYPES[self.program.buffer(stmt.a.buffer).dtype].bytes
        step = max(1, int(machine.matrix_k_bytes / element))
        rows, columns = ceil(m / FRACTAL) * FRACTAL, ceil(n / FRACTAL) * FRACTAL
        depth = ceil(k / step) * step
        flops = 2.0 * rows * columns * depth
        # One half of L0A and L0B is filled while the cube works from the other: a product is made of
        # instructions as deep as such a half allows, for as many columns as L0C has room for.
        parts = self.placement.parts.get(stmt.c.buffer, 1)
        wide = columns / parts
        fits = min(d.l0a_bytes.value / 2 / (rows * element), d.l0b_bytes.value / 2 / (wide * element))
        pieces = parts * ceil(depth / max(step, min(depth, int(fits / step) * step)))
        matrix_s = flops / machine.matrix_rate(dtype) + pieces * d.cube_issue_cycles.value * machine.cycle_s
        feed_cycles = (
            parts * rows * depth * element / d.l1_to_l0a_bytes_per_cycle.value
            + columns * depth * element / d.l1_to_l0b_bytes_per_cycle.value
            + 2 * pieces * _value(d.l0_issue_cycles)
        )
        self._last_s = matrix_s / pieces
        first_s = feed_cycles / pieces * self.copy_s
        rest_s = (pieces - 1) * first_s
        issued = 3 * pieces * _value(d.scalar_issue_cycles) * machine.cycle_s
        before = Cost({"scratchpad": first_s, "scalar": issued}, max(first_s, issued))
        if made := {stmt.a.buffer, stmt.b.buffer} & self.roles.made_on_core:
            before = self._back_to_cube(made, before)
        c = stmt.c.buffer
        self._fetched.discard(c)
        if stmt.clear_accum:
            self._plain.add(c)
        return Cost(
            {"matrix": matrix_s, "scratchpad": rest_s},
            max(matrix_s, rest_s),
            machine.matrix_latency_s,
            flops,
            queued=True,
            before=before,
        )

    def _back_to_cube(self, made: set[str], after: Cost) -> Cost:
        """Operands that element-wise code has written, on their way from UB to L1."""
        d, work, serial = self.d, dict(after.work), after.serial_s
        for name in sorted(made):
            buffer = self.program.buffer(name)
            size = prod(shape_of(buffer)) * DTYPES[buffer.dtype].bytes
            if d.handoff == "l2":
                out = size / (d.ub_to_gm_bytes_per_cycle.value * d.vector_cores_per_cube.value)
                back = size / d.gm_to_l1_bytes_per_cycle.value
                steps = {self.out_of_ub: out, "feed": back}
            else:
                rate = d.ub_to_l1_bytes_per_cycle or d.ub_to_gm_bytes_per_cycle
                steps = {self.out_of_ub: size / rate.value}
            for engine, cycles in steps.items():
                work[engine] = work.get(engine, 0.0) + cycles * self.copy_s
                serial += cycles * self.copy_s
            serial += d.handoff_cycles.value * self.machine.cycle_s
        return Cost(work, serial)

    def _rate(self, quantity: Quantity[float] | None) -> float:
        assert quantity is not None  # the schema asks for it where it is used
        return quantity.value

    # -- element-wise work -------------------------------------------------------------------

    def _vector(self, elements: int, seconds: float, instructions: float, *sources: str) -> Cost:
        """Vector work of so many seconds on all vector cores of a core, instruction heads apart."""
        machine, d = self.machine, self.d
        cores = d.vector_cores_per_cube.value
        lanes = d.vector_bytes_per_cycle.value / 4.0
        each = max(1, ceil(elements / cores / (lanes * _REPEATS)))
        heads = instructions * each
        arriving = {s for s in sources if s in self.placement.fetched} - self._fetched
        for name in arriving & self.placement.summed - self._plain:  # added to what UB keeps of it
            seconds += prod(shape_of(self.program.buffer(name))) / machine.fp32_per_s
            heads += each
        busy = seconds + heads * d.vector_issue_cycles.value * machine.cycle_s
        work, serial = {"vector": busy}, busy
        if self.fused:
            work["scalar"] = heads * _value(d.scalar_issue_cycles) * machine.cycle_s
        for name in arriving:
            self._fetched.add(name)
            serial += self._arrive(prod(shape_of(self.program.buffer(name))) * ACCUMULATOR_BYTES, work)
        return Cost(work, serial)

    def _arrive(self, size: float, work: dict[str, float]) -> float:
        """Move a product's result from L0C to UB; returns the seconds it takes, synchronisation included."""
        d = self.d
        if d.handoff == "l2":  # L0C → global memory → UB
            out = size / self._rate(d.l0c_to_gm_bytes_per_cycle)
            steps = {"drain": out, self.into_ub: self._into_ub(size)}
        else:
            rate = self._rate(d.l0c_to_ub_bytes_per_cycle or d.l0c_to_gm_bytes_per_cycle)
            steps = {"vector" if self.fused else "drain": size / rate}
        for engine, cycles in steps.items():
            work[engine] = work.get(engine, 0.0) + cycles * self.copy_s
        return sum(steps.values()) * self.copy_s + d.handoff_cycles.value * self.machine.cycle_s

    def elementwise(self, elements: int, count: Count, target: Buffer) -> Cost:
        m = self.machine
        seconds = elements * (
            count.fp32 / m.fp32_per_s
            + (count.alu + count.shuffles) / m.alu_per_s
            + count.special / m.special_per_s
            + count.convert / m.convert_per_s
        )
        if not count.total:
            seconds = elements / m.issue_per_s  # a copy
        names = (load.buffer for load in count.loads)
        cost = self._vector(elements, seconds, max(1.0, count.total), *names)
        self._plain.discard(target.name)
        return cost

    def reduce(self, stmt: Reduce | CumSum, elements: int, rows: int) -> Cost:
        seconds = _REDUCTION_PASSES * elements / self.machine.issue_per_s
        return self._vector(elements, seconds, _REDUCTION_PASSES, stmt.src.buffer)

    def fill(self, stmt: Fill, elements: int, target: Buffer) -> Cost:
        if target.name in self.roles.accumulators:
            self._plain.add(target.name)
            if id(stmt) in self._overwritten:
                return Cost({}, 0.0)  # the first product overwrites L0C
        return self._vector(elements, elements / self.machine.issue_per_s, 1.0)

    # -- copies ------------------------------------------------------------------------------

    def move(self, stmt: Copy, elements: int, source: Buffer, target: Buffer) -> Cost:
        d = self.d
        if source.scope == "global" and target.scope == "global":
            size = elements * DTYPES[source.dtype].bytes
            seconds = self._into_ub(size) * self.copy_s
            return Cost({self.into_ub: seconds}, seconds)
        if source.scope == "global":
            rows, size = self._in_bursts(stmt.src, elements, source)
            engine, cycles = self._load(rows, size, target)
            wait = self._from_memory(size, target)
            return Cost({engine: cycles * self.copy_s}, cycles * self.copy_s, from_memory=wait)
        if target.scope == "global":
            _, size = self._in_bursts(stmt.dst, elements, target)
            if source.name in self.roles.accumulators and source.name not in self._fetched:
                return self._drained(size, elements)
            cycles = size / (d.ub_to_gm_bytes_per_cycle.value * d.vector_cores_per_cube.value)
            return Cost({self.out_of_ub: cycles * self.copy_s}, cycles * self.copy_s)
        convert, m = convert_count(source.dtype, target.dtype), self.machine
        seconds = elements / m.issue_per_s
        if convert.total:
            seconds = elements * (convert.convert / m.convert_per_s + convert.alu / m.alu_per_s)
        self._plain.discard(target.name)
        return self._vector(elements, seconds, 1.0, source.name)

    def _drained(self, size: float, elements: int) -> Cost:
        """A product's result leaves L0C: by the fix-pipe, which converts, or through the vector unit."""
        d = self.d
        if not self.fused:
            seconds = size / self._rate(d.l0c_to_gm_bytes_per_cycle) * self.copy_s
            if not self._handed_over:
                return Cost({"drain": seconds}, seconds, queued=self.placement.doubled)
            return Cost({"drain": seconds}, seconds, queued=True, early_s=min(seconds, self._last_s))
        moved = elements * ACCUMULATOR_BYTES / self._rate(d.l0c_to_ub_bytes_per_cycle) * self.copy_s
        out = size / d.ub_to_gm_bytes_per_cycle.value * self.copy_s
        return Cost({"vector": moved, "drain": out}, max(moved, out), queued=self.placement.doubled)

    def gather(self, elements: int, source: Buffer, target: Buffer) -> Cost:
        row = shape_of(target)[-1]
        rows = elements / row
        size = rows * self._burst(row * DTYPES[source.dtype].bytes)
        engine, cycles = self._load(rows, size, target, copies=rows)
        seconds = cycles * self.copy_s
        issued = rows * _value(self.d.scalar_issue_cycles) * self.machine.cycle_s
        return Cost({engine: seconds, "scalar": issued}, max(seconds, issued))

    def _load(self, rows: float, size: float, target: Buffer, copies: float = 1.0) -> tuple[str, float]:
        """Queue and cycles that bring ``size`` bytes from global memory to where ``target`` lies."""
        d = self.d
        if target.name in self.roles.operands:
            heads = copies * _value(d.l1_copy_cycles) + rows * _value(d.l1_row_cycles)
            return "feed", heads + size / d.gm_to_l1_bytes_per_cycle.value
        return self.into_ub, self._into_ub(size)

    def _from_memory(self, size: float, target: Buffer) -> FromMemory:
        """What a copy of ``size`` bytes, in whole bursts, may have to wait for."""
        d = self.d
        bursts = size / (d.gm_burst_bytes.value if d.gm_burst_bytes else self.machine.line_bytes)
        line = bursts * _value(d.gm_line_cycles)
        if target.name in self.roles.operands:
            moved = size / d.gm_to_l1_bytes_per_cycle.value
        else:
            moved, line = self._into_ub(size), line / d.vector_cores_per_cube.value
        return FromMemory(moved * self.copy_s, line * self.copy_s)

    def _into_ub(self, size: float) -> float:
        return size / (self.d.gm_to_ub_bytes_per_cycle.value * self.d.vector_cores_per_cube.value)

    def _burst(self, size: float, step: float = 0.0) -> float:
        """Bytes that ``size`` bytes side by side take in whole bursts, on average.

        They start anywhere at a multiple of ``step`` bytes (0: of a burst).
        """
        burst = self.d.gm_burst_bytes.value if self.d.gm_burst_bytes else 0
        if not burst:
            return size
        starts = range(0, burst, gcd(burst, max(1, int(step))) if step else burst)
        return sum(ceil((start + size) / burst) for start in starts) * burst / len(starts)

    def _in_bursts(self, region: Region, elements: int, tensor: Buffer) -> tuple[float, float]:
        """Rows of a tile whose elements lie side by side, and its bytes in whole bursts of each row."""
        element = DTYPES[tensor.dtype].bytes
        run = 1.0
        for extent, size in zip(reversed(region.extents), reversed(tensor.shape), strict=True):
            if variables(extent):
                return 1.0, elements * element
            run *= float(evaluate(extent, {}))
            if extent != size:
                break
        rows = elements / max(1.0, run)
        return rows, rows * self._burst(run * element, _step(region, tensor) * element)


def _asked(program: TileProgram, hint: str, otherwise: bool) -> bool:
    """Whether a program's products ask for ``hint``; where none says a word of it, ``otherwise``."""
    said = [dict(s.hints).get(hint) for s in walk_stmts(program.body) if isinstance(s, Gemm)]
    asked = [word in ("True", "1") for word in said if word is not None]
    return all(asked) if asked else otherwise


def _value(quantity: Quantity[float] | None) -> float:
    return quantity.value if quantity else 0.0


def _step(region: Region, tensor: Buffer) -> int:
    """Elements of which the start of a region's rows is a multiple, as far as constants show.

    Dimensions of unknown size count as aligned.
    """
    step, pitch = 0, 1
    for first, size in zip(reversed(region.mins), reversed(tensor.shape), strict=True):
        for factor in terms(first):
            step = gcd(step, factor * pitch)
        if not isinstance(size, Const):
            break
        pitch *= int(size.value)
        step = gcd(step, pitch) if len(tensor.shape) > 1 else step
    return step
