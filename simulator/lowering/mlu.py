"""Costs on clusters of cores with NRAM, WRAM and a shared SRAM (style ``mlu``).

A block is a core's task. Its pipes work in order and side by side: products (``matrix``), vector
instructions, the DMA from and to global memory (``feed``), and copies from SRAM or between NRAM and
WRAM (``share``). Right operands of products are the weights: they stay in WRAM while left operands
stream from NRAM. Blocks of a cluster that need the same tile get it from SRAM, into which the memory
core brings it once (see :func:`~foretile.simulator.lowering.analysis.pair_var`).
(Cambricon/mlu-ops, docs/BANG-C-OPS-Develop-Guide.md: pipes, memories, Union tasks.)
"""

from __future__ import annotations

from math import ceil

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.ir import Buffer, Copy, CumSum, Fill, Gemm, Reduce, TileProgram
from foretile.simulator.lowering.elementwise import Count, convert_count
from foretile.simulator.lowering.placement import shape_of, size_of
from foretile.simulator.lowering.rules import Cost, Roles, require_block_scaling
from foretile.simulator.machine import Machine, SimulationError
from foretile.simulator.workload import Occupancy

# A reduction takes a pass over its elements and one over what is left of them.
_REDUCTION_PASSES = 2.0


class MluRules:
    """Costs of tile operations for one program on one machine with clusters and weight memories."""

    def __init__(self, program: TileProgram, machine: Machine, roles: Roles) -> None:
        if machine.mlu is None:
            raise SimulationError(f"{machine.id}: style mlu needs the section mlu")
        self.program = program
        self.machine = machine
        self.roles = roles
        self.m = machine.mlu
        self.copy_s = machine.cycle_s / machine.copy_pace  # of one cycle of a copy between memories
        self._weights = roles.right_operands
        self._placed = self._place()

    def _place(self) -> dict[str, dict[str, float]]:
        """Bytes of each buffer by memory; SRAM takes what its cluster shares, which WRAM and NRAM bound."""
        used: dict[str, dict[str, float]] = {"NRAM": {}, "WRAM": {}}
        for buffer in self.program.buffers:
            if buffer.alias:
                continue
            size = size_of(buffer) * self.roles.staged.get(buffer.name, 1)
            if buffer.name in self._weights:
                used["WRAM"][buffer.name] = size
                if buffer.name not in self.roles.made_on_core:
                    continue
                size = size_of(buffer)
            used["NRAM"][buffer.name] = size
        limits = self._limits()
        # A cluster's cores get their shared tiles from SRAM, each stage's once.
        staged = {b.name: size_of(b) * self.roles.staged[b.name] for b in self._staged()}
        for memory, sizes in (*used.items(), ("SRAM", staged if self.machine.clusters else {})):
            if sum(sizes.values()) > limits[memory]:
                largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
                said = ", ".join(
                    f"{n} {'x'.join(map(str, shape_of(self.program.buffer(n))))} takes {sizes[n]:.0f}"
                    for n in largest
                )
                raise SimulationError(
                    f"{self.program.name} needs {sum(sizes.values()):.0f} bytes of {memory}; "
                    f"{self.machine.id} has {limits[memory]}: {said}; use a smaller tile or fewer stages"
                )
        return used

    def _limits(self) -> dict[str, int]:
        m = self.m
        return {"NRAM": m.nram_bytes.value, "WRAM": m.wram_bytes.value, "SRAM": m.sram_bytes.value}

    def _staged(self) -> list[Buffer]:
        return [b for b in self.program.buffers if b.name in self.roles.staged]

    def agents(self) -> tuple[int, float]:
        return 1, 1.0

    def runs_ahead(self) -> bool:
        return True

    def stages(self, requested: int) -> int:
        return max(1, requested)

    def stage_barrier(self, tiles: int) -> tuple[float, float]:
        return 0.0, self.machine.pipeline_barrier_s

    def barrier(self) -> Cost:
        return Cost({}, self.machine.barrier_s)

    def occupancy(self) -> Occupancy:
        # A core runs one task at a time. Where its buffers fit twice, the next one's load stage
        # overlaps this one's work, as in kernels of three stages (load, compute, store).
        limits = self._limits()
        needed = {memory: sum(sizes.values()) for memory, sizes in self._placed.items()}
        tightest = max(needed, key=lambda memory: needed[memory] / limits[memory])
        resident = 2 if 2 * needed[tightest] <= limits[tightest] else 1
        return Occupancy(resident, tightest, self.program.threads, int(sum(needed.values())), 0)

    # -- operations --------------------------------------------------------------------------

    def gemm(self, stmt: Gemm, m: int, n: int, k: int, dtype: str) -> Cost:
        machine = self.machine
        require_block_scaling(machine, stmt)
        element = DTYPES[self.program.buffer(stmt.a.buffer).dtype].bytes
        step = max(1, int(machine.matrix_k_bytes / element))
        rows = ceil(m / machine.matrix_m) * machine.matrix_m
        columns = ceil(n / machine.matrix_n) * machine.matrix_n
        depth = ceil(k / step) * step
        flops = 2.0 * rows * columns * depth
        matrix_s = flops / machine.matrix_rate(dtype)
        before = None
        if stmt.b.buffer in self.roles.made_on_core:  # weights made on the core move from NRAM to WRAM
            size = size_of(self.program.buffer(stmt.b.buffer))
            moved = size / self.m.sram_bytes_per_cycle.value * self.copy_s
            before = Cost({"share": moved}, moved)
        return Cost(
            {"matrix": matrix_s}, matrix_s, machine.matrix_latency_s, flops, queued=True, before=before
        )

    def _vector(self, elements: int, seconds: float) -> Cost:
        lanes = self.m.vector_bytes_per_cycle.value / 4.0  # at least one instruction's width
        busy = max(seconds, ceil(elements / lanes) * self.machine.cycle_s)
        return Cost({"vector": busy}, busy + self.machine.vector_latency_s)

    def elementwise(self, elements: int, count: Count, target: Buffer) -> Cost:
        m = self.machine
        seconds = elements * (
            count.fp32 / m.fp32_per_s
            + (count.alu + count.shuffles) / m.alu_per_s
            + count.special / m.special_per_s
            + count.convert / m.convert_per_s
        )
        return self._vector(elements, seconds)

    def reduce(self, stmt: Reduce | CumSum, elements: int, rows: int) -> Cost:
        return self._vector(elements, _REDUCTION_PASSES * elements / self.machine.issue_per_s)

    def fill(self, stmt: Fill, elements: int, target: Buffer) -> Cost:
        if target.name in self.roles.accumulators:
            return Cost({}, 0.0)  # the first product overwrites
        return self._vector(elements, elements / self.machine.issue_per_s)

    def move(self, stmt: Copy, elements: int, source: Buffer, target: Buffer) -> Cost:
        read = elements * DTYPES[source.dtype].bytes
        written = elements * DTYPES[target.dtype].bytes
        if source.scope == "global":
            return self._load(read, target)
        if target.scope == "global":
            moved = written / self.m.dma_bytes_per_cycle.value * self.copy_s
            cost = Cost({"feed": moved}, moved)
            if source.dtype == target.dtype:
                return cost
            convert = self.elementwise(elements, convert_count(source.dtype, target.dtype), target)
            return Cost({**convert.work, **cost.work}, convert.serial_s + moved)
        return self.elementwise(elements, convert_count(source.dtype, target.dtype), target)

    def gather(self, elements: int, source: Buffer, target: Buffer) -> Cost:
        return self._load(elements * DTYPES[source.dtype].bytes, target)

    def _load(self, size: float, target: Buffer) -> Cost:
        """Into NRAM or WRAM by the core's own DMA, or by way of SRAM where clusters share tiles."""
        shared = self.machine.clusters and bool(self.roles.accumulators) and target.name in self.roles.staged
        engine, rate = (
            ("share", self.m.sram_bytes_per_cycle) if shared else ("feed", self.m.dma_bytes_per_cycle)
        )
        moved = size / rate.value * self.copy_s
        return Cost({engine: moved}, moved)
