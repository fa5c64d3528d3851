"""Costs on machines with separate cube and vector cores and explicit buffers (style ``davinci``).

First order: the queues (L1 → L0 feed, cube, vector, drain) run side by side, joined by flags; a
program that mixes cube and vector work overlaps two iterations through double buffers. Shared and
fragment allocations are placed by use: operands of a product in L1, accumulators in L0C,
everything element-wise in the vector cores' buffer.
"""

from __future__ import annotations

from math import ceil

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.ir import Buffer, Copy, CumSum, Fill, Gemm, Reduce, TileProgram
from foretile.simulator.lowering.elementwise import Count, convert_count
from foretile.simulator.lowering.rules import Cost, Roles
from foretile.simulator.lowering.simt import elements_of
from foretile.simulator.machine import Machine, SimulationError
from foretile.simulator.workload import Occupancy

_FRACTAL = 16
_ACCUMULATOR_BYTES = 4
# Bytes one vector instruction covers at most: 255 repeats of the 256-byte vector width.
_REPEATS = 255
# A special function (exp, ln, sqrt) takes two passes of the vector pipe where an addition takes one
# (pto-isa cost model: exp 2r + 31, add 2r + 24, single-operand forms 1r).
_SPECIAL_PASSES = 2.0


class DavinciRules:
    """Costs of tile operations for one program on one cube/vector machine."""

    def __init__(self, program: TileProgram, machine: Machine, roles: Roles) -> None:
        if machine.davinci is None:
            raise SimulationError(f"{machine.id}: style davinci needs the section davinci")
        self.program = program
        self.machine = machine
        self.roles = roles
        self.d = machine.davinci
        self._fetched: set[str] = set()  # accumulators already moved to the vector cores

    def agents(self) -> tuple[int, float]:
        mixed = bool(self.roles.accumulators) and bool(self.roles.vector_written - self.roles.accumulators)
        return (2 if mixed else 1), 1.0

    def runs_ahead(self) -> bool:
        return True

    def stages(self, requested: int) -> int:
        return max(2, requested)

    def stage_barrier(self, tiles: int) -> tuple[float, float]:
        return 0.0, self.machine.pipeline_barrier_s

    def barrier(self) -> Cost:
        return Cost({}, self.machine.barrier_s)

    def occupancy(self) -> Occupancy:
        d, p = self.d, self.program
        use = {"L1": 0.0, "L0C": 0.0, "UB": 0.0}
        for b in p.buffers:
            size = elements_of(b) * DTYPES[b.dtype].bytes * self.roles.staged.get(b.name, 1)
            if b.name in self.roles.accumulators:
                use["L0C"] += elements_of(b) * _ACCUMULATOR_BYTES
            elif b.name in self.roles.operands:
                use["L1"] += size
            if b.name not in self.roles.operands:
                # Rows of a block are shared by the vector cores of one cube core.
                use["UB"] += size / d.vector_cores_per_cube.value
        limits = {"L1": d.l1_bytes.value, "L0C": d.l0c_bytes.value, "UB": d.ub_bytes.value}
        for name, needed in use.items():
            if name == "UB" and not self.roles.vector_written - self.roles.accumulators:
                continue  # a plain product drains L0C by the fix-pipe, past the vector cores
            if needed > limits[name]:
                raise SimulationError(
                    f"{p.name} needs {needed:.0f} bytes of {name}; {self.machine.id} has {limits[name]}: "
                    "use a smaller tile or fewer stages"
                )
        # A core runs its blocks one after the other; where every buffer fits twice, the next
        # block's copies overlap this one's work, as two resident blocks would.
        tightest = max(limits, key=lambda name: use[name] / limits[name])
        resident = 2 if 2 * use[tightest] <= limits[tightest] else 1
        return Occupancy(resident, tightest, p.threads, int(use["L1"] + use["UB"]), 0)

    def gemm(self, stmt: Gemm, m: int, n: int, k: int, dtype: str) -> Cost:
        machine, d = self.machine, self.d
        element = DTYPES[self.program.buffer(stmt.a.buffer).dtype].bytes
        step = max(1, int(machine.matrix_k_bytes / element))
        rows, columns = ceil(m / _FRACTAL) * _FRACTAL, ceil(n / _FRACTAL) * _FRACTAL
        depth = ceil(k / step) * step
        flops = 2.0 * rows * columns * depth
        matrix_s = flops / machine.matrix_rate(dtype) + d.cube_issue_cycles.value * machine.cycle_s
        # L0A and L0B hold half a buffer each (double buffering); the operand that does not fit is
        # loaded again for every pass over the other.
        a, b = rows * depth * element, columns * depth * element
        a_passes = max(1, ceil(b / (d.l0b_bytes.value / 2))) if a > d.l0a_bytes.value / 2 else 1
        b_passes = max(1, ceil(a / (d.l0a_bytes.value / 2))) if b > d.l0b_bytes.value / 2 else 1
        feed = (
            a * a_passes / d.l1_to_l0a_bytes_per_cycle.value
            + b * b_passes / d.l1_to_l0b_bytes_per_cycle.value
        ) * machine.cycle_s
        work = {"matrix": matrix_s, "scratchpad": feed}
        self._fetched.discard(stmt.c.buffer)
        hand_over = 0.0
        if stmt.a.buffer in self.roles.vector_written:
            hand_over = a * (1 / d.ub_to_gm_bytes_per_cycle.value + 1 / d.gm_to_l1_bytes_per_cycle.value)
            work["drain"] = a / d.ub_to_gm_bytes_per_cycle.value * machine.cycle_s
        serial = max(matrix_s, feed) + hand_over * machine.cycle_s
        latency = machine.matrix_latency_s + (d.handoff_cycles.value * machine.cycle_s if hand_over else 0.0)
        return Cost(work, serial, latency, flops)

    def _vector(self, elements: int, passes: float, element_bytes: float, *sources: str) -> Cost:
        machine, d = self.machine, self.d
        share = elements * element_bytes / d.vector_cores_per_cube.value
        cycles = passes * share / d.vector_bytes_per_cycle.value
        instructions = max(1.0, passes) * max(1, ceil(share / (d.vector_bytes_per_cycle.value * _REPEATS)))
        busy = (cycles + instructions * d.vector_issue_cycles.value) * machine.cycle_s
        work = {"vector": busy}
        serial, latency = busy, 0.0
        arriving = {s for s in sources if s in self.roles.accumulators} - self._fetched
        self._fetched |= arriving
        if arriving and d.handoff == "l2":  # L0C → global memory → UB, once a product
            out = elements * _ACCUMULATOR_BYTES / d.l0c_to_gm_bytes_per_cycle.value * machine.cycle_s
            back = share / d.gm_to_ub_bytes_per_cycle.value * machine.cycle_s
            work |= {"drain": out, "feed": back}
            serial += out + back
            latency = d.handoff_cycles.value * machine.cycle_s
        return Cost(work, serial + latency)

    def elementwise(self, elements: int, count: Count, target: Buffer) -> Cost:
        passes = count.fp32 + count.alu + count.convert + _SPECIAL_PASSES * count.special
        return self._vector(elements, max(1.0, passes), 4.0, *(load.buffer for load in count.loads))

    def move(self, stmt: Copy, elements: int, source: Buffer, target: Buffer) -> Cost:
        machine, d = self.machine, self.d
        read = elements * DTYPES[source.dtype].bytes
        written = elements * DTYPES[target.dtype].bytes
        if source.scope == "global":
            busy = read / self._into(target) * machine.cycle_s
            return Cost({"feed": busy}, busy)
        if target.scope == "global":
            if source.name in self.roles.accumulators:  # the fix-pipe converts on the way out
                rate = d.l0c_to_gm_bytes_per_cycle.value
            else:
                rate = d.ub_to_gm_bytes_per_cycle.value * d.vector_cores_per_cube.value
            busy = written / rate * machine.cycle_s
            return Cost({"drain": busy}, busy)
        passes = max(1.0, convert_count(source.dtype, target.dtype).total)
        return self._vector(elements, passes, DTYPES[source.dtype].bytes, source.name)

    def gather(self, elements: int, source: Buffer, target: Buffer) -> Cost:
        busy = elements * DTYPES[source.dtype].bytes / self._into(target) * self.machine.cycle_s
        return Cost({"feed": busy}, busy)

    def _into(self, target: Buffer) -> float:
        """Bytes a cycle from global memory into the buffer that holds ``target``."""
        if target.name in self.roles.operands:
            return self.d.gm_to_l1_bytes_per_cycle.value
        return self.d.gm_to_ub_bytes_per_cycle.value * self.d.vector_cores_per_cube.value

    def reduce(self, stmt: Reduce | CumSum, elements: int, rows: int) -> Cost:
        return self._vector(elements, 2.0, 4.0, stmt.src.buffer)

    def fill(self, stmt: Fill, elements: int, target: Buffer) -> Cost:
        if target.name in self.roles.accumulators:
            return Cost({}, 0.0)  # the first product overwrites L0C
        return self._vector(elements, 1.0, DTYPES[target.dtype].bytes)
