"""Costs on machines that run blocks of warps on a core (style ``simt``)."""

from __future__ import annotations

from collections import Counter
from math import ceil, log2, sqrt

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import evaluate
from foretile.kernels.ir import Buffer, Copy, CumSum, Fill, Gemm, Reduce, Region, TileProgram, walk_stmts
from foretile.simulator.lowering.elementwise import Count, convert_count
from foretile.simulator.lowering.liveness import most_at_once
from foretile.simulator.lowering.rules import OWN_PRODUCERS, Cost, Roles, require_block_scaling
from foretile.simulator.lowering.spills import SPILLED
from foretile.simulator.machine import Machine, RegistersError, SimulationError
from foretile.simulator.workload import Occupancy

# Warp schedulers (SIMDs) a core: four on every SIMT chip of the catalogue (NVIDIA whitepapers
# Volta to Blackwell; AMD CDNA ISA documents). Four warps are one agent: one warp a scheduler.
SCHEDULERS = 4
# Registers of a producer warp's thread after redistribution (TileLang lowers Hopper pipelines with
# setmaxnreg 24 for the producer and 240 for consumers).
_LEAST_REGISTERS = 8  # addresses and a counter, whatever the program holds
_PRODUCER_REGISTERS = 24
_CONSUMER_REGISTERS = 240
_VECTOR_BYTES = 16  # widest load, store or asynchronous copy of one thread
_REGISTER_BYTES = 4
_TENSOR_MEMORY_LANES = 128
# Rows of a tile that fill the lanes of the tensor memory: with half as many (or a quarter) the lanes hold
# two (four) groups of columns, of 16 columns at least. So do two cores that share an instruction of 128 rows
# (cta_group::2), and one by itself (tcgen05.mma.ws of 64 or 32 rows; PTX ISA, data path layouts B, E and G).
_FOLDED_ROWS = (32, 64)
_FOLDED_COLUMNS = 16
_SYNC_ROWS = 16  # rows of a warp-synchronous matrix instruction (mma.m16n8k16)
_WARP_INSTRUCTION = "mma_sync"
_ACCUMULATOR_BYTES = 4
# A shuffle moves a register of every lane through the load-store path, at the scratchpad's rate and latency
# (CUDA C++ Programming Guide: 32 results a cycle and core, as many as it has banks).
_SHUFFLE_BYTES = 4


def elements_of(buffer: Buffer) -> int:
    """Number of elements of an on-chip buffer (its shape is constant)."""
    total = 1
    for extent in buffer.shape:
        total *= int(evaluate(extent, {}))
    return total


class SimtRules:
    """Costs of tile operations for one program on one SIMT machine."""

    def __init__(self, program: TileProgram, machine: Machine, roles: Roles) -> None:
        self.program = program
        self.machine = machine
        self.roles = roles
        # Block-scaled instructions have no variants of fewer rows.
        self._scaled = frozenset(
            g.c.buffer for g in walk_stmts(program.body) if isinstance(g, Gemm) and g.a_scale is not None
        )
        self._in_tensor_memory = self._wide_accumulators()
        self._warps = ceil(program.threads / machine.warp_size)
        self._lanes = self._warps * machine.warp_size  # issued to together, also those without a thread
        # Accumulators that element-wise code has fetched into registers, and those it has changed
        # there: fetched once after a product, written back before the next one.
        self._fetched: set[str] = set()
        self._changed: set[str] = set()
        self._multiplied_by: set[str] = set()

    def _wide_accumulators(self) -> frozenset[str]:
        """Accumulators that the asynchronous instruction keeps in tensor memory.

        What the older instruction computes (tiles of few rows) stays in registers.
        """
        if self.machine.matrix_instruction != "tcgen05":
            return frozenset()
        products = [s for s in walk_stmts(self.program.body) if isinstance(s, Gemm)]
        sides = [tuple(int(evaluate(e, {})) for e in s.c.extents[-2:]) for s in products]
        return frozenset(
            s.c.buffer for s, (m, n) in zip(products, sides, strict=True) if not self._narrow(s, m, n)
        )

    def _narrow(self, stmt: Gemm, rows: int, columns: int) -> bool:
        """Whether a product of so few rows is faster on the older instruction of 16 rows.

        The alternative is the asynchronous one, padded to its rows. The older one takes no scales.
        """
        m = self.machine
        if m.matrix_instruction not in ("wgmma", "tcgen05") or stmt.a_scale is not None:
            return False
        step = self._fold(stmt.c.buffer, rows, columns)
        return rows < step and ceil(rows / _SYNC_ROWS) * _SYNC_ROWS / m.sync_fraction < step

    def agents(self) -> tuple[int, float]:
        return max(1, self._warps // SCHEDULERS), min(1.0, self._warps / SCHEDULERS)

    def _alone(self, latency: float) -> float:
        """What a latency adds to the duration of a block: few warps wait no longer than many."""
        return latency * self.agents()[1]

    def runs_ahead(self) -> bool:
        return self.machine.warp_specialisation and self.machine.bulk_copy and bool(self.roles.staged)

    def walks(self) -> bool:
        return False

    def steering(self, operations: int) -> float:
        return 0.0  # threads have an arithmetic unit of their own for it

    def stages(self, requested: int) -> int:
        # Without asynchronous copies the next tile waits in registers: one iteration ahead at most.
        return max(1, requested) if self.machine.async_copy else min(2, max(1, requested))

    def _versions(self, buffer: str) -> int:
        """Copies of a scratchpad buffer: one for each tile that is under way or in use."""
        return self.stages(self.roles.staged[buffer]) if buffer in self.roles.staged else 1

    def stage_barrier(self, tiles: int) -> tuple[float, float]:
        m = self.machine
        if self.runs_ahead():
            # A consumer tests one "full" barrier a tile; the producer's round trip (arrive, wait,
            # issue) and the drain of the products that read the buffer delay the next load.
            drain = m.matrix_latency_s if self.roles.accumulators else 0.0
            return m.barrier_s * tiles, m.pipeline_barrier_s + drain
        return m.pipeline_barrier_s, 0.0

    def paired(self) -> bool:
        """See :class:`Rules`: whoever tunes a kernel forms clusters where they save reads."""
        return True

    def instructions(self) -> frozenset[str]:
        """See :class:`Rules`."""
        return frozenset(self._multiplied_by)

    def grounds(self) -> tuple[str, ...]:
        """See :class:`Rules`."""
        return ()

    def shared_by_pair(self, buffer: str) -> float:
        """Share of a tile that each core of a pair holds: half of B where two cores do one product."""
        paired = self.machine.matrix_instruction == "tcgen05" and self.machine.clusters
        return 0.5 if paired and buffer in self.roles.right_operands else 1.0

    def barrier(self) -> Cost:
        m = self.machine
        return Cost({}, m.barrier_s + m.barrier_warp_s * self._warps)

    # -- occupancy ---------------------------------------------------------------------------

    def occupancy(self) -> Occupancy:
        m, p = self.machine, self.program
        threads, pad = self._block_threads(), self._scratchpad_bytes()
        if pad > m.scratchpad_block_bytes:
            raise SimulationError(
                f"{p.name} needs {pad} bytes of shared memory a block; {m.id} has "
                f"{m.scratchpad_block_bytes}: use a smaller tile or fewer stages"
            )
        if threads > m.threads_per_block:
            raise SimulationError(
                f"{p.name} has {threads} threads a block; {m.id} allows {m.threads_per_block}"
            )
        registers = self._registers()
        limits = {
            "shared memory": m.scratchpad_bytes // max(1, pad + m.scratchpad_reserved_bytes),
            "registers": (m.register_bytes // 4) // max(1, self._registers_of_block(threads, registers)),
            "threads": m.threads_per_core // threads,
            "blocks": m.blocks_per_core,
        }
        if self._in_tensor_memory:
            limits["tensor memory"] = m.tensor_memory_bytes // self._tensor_memory_bytes()
        name, resident = min(limits.items(), key=lambda item: item[1])
        if resident < 1:
            raise SimulationError(f"{p.name}: not one block fits a core of {m.id}: {name} runs out")
        spilled = _REGISTER_BYTES * self._spilled()
        return Occupancy(int(resident), name, threads, int(pad), registers, spilled)

    def _block_threads(self) -> int:
        """Threads of a block, those that only copy among them."""
        producers = self.runs_ahead() and self.program.annotation(OWN_PRODUCERS) is None
        return self._lanes + (SCHEDULERS * self.machine.warp_size if producers else 0)

    def _scratchpad_bytes(self) -> int:
        """Scratchpad of a block: all tiles, or as little as a compiler can do with if that is too much."""
        sizes = {
            b.name: ceil(elements_of(b) * DTYPES[b.dtype].bytes) * self._versions(b.name)
            for b in self.program.buffers
            if b.scope == "shared" and not b.alias
        }
        pad = sum(sizes.values())
        if pad > self.machine.scratchpad_block_bytes:
            pad = int(most_at_once(self.program, sizes))
        return pad

    def _registers_of_block(self, threads: int, registers: int) -> int:
        """Registers of a block. Warps get them whole, whether or not all their lanes have a thread."""
        return self._lanes * registers + (threads - self._lanes) * _PRODUCER_REGISTERS

    def _spilled(self) -> int:
        """Registers of a thread that are kept in local memory."""
        return int(self.program.annotation(SPILLED) or 0)

    def _registers(self) -> int:
        m, p = self.machine, self.program
        # Between products a one-dimensional fragment (a row statistic) is held by each of the four
        # lanes that share a row of the matrix instruction's accumulator layout.
        copies = 4 if self.roles.accumulators else 1
        fragments_of = {
            b.name: elements_of(b) * DTYPES[b.dtype].bytes * (1 if len(b.shape) > 1 else copies)
            for b in p.buffers
            if b.scope == "fragment" and b.name not in self._in_tensor_memory and not b.alias
        }
        held = sum(fragments_of.values())
        local = sum(
            elements_of(b) * DTYPES[b.dtype].bytes * p.threads
            for b in p.buffers
            if b.scope in ("local", "var") and not b.alias
        )
        if not m.async_copy:  # what is under way to the scratchpad waits in registers meanwhile
            held += sum(
                elements_of(b) * DTYPES[b.dtype].bytes
                for b in p.buffers
                if b.scope == "shared" and self._versions(b.name) > 1
            )
        fragments = ceil((held + local) / 4 / p.threads)
        registers = ceil((held + local) / 4 / p.threads + m.registers_base)
        wanted = dict(p.annotations).get("min_blocks_per_sm", "")
        if wanted:  # the compiler recomputes addresses and keeps less beside what the program holds
            room = m.register_bytes // 4 // (int(wanted) * p.threads)
            registers = max(fragments + _LEAST_REGISTERS, min(registers, room))
            if p.annotation(OWN_PRODUCERS) is not None:  # roles that hold little leave theirs to the others
                registers = min(registers, room)
        limit = min(m.registers_per_thread, _CONSUMER_REGISTERS if self.runs_ahead() else 1 << 16)
        if registers > limit:  # the sum is what calibration was fitted with; no compiler keeps dead values
            registers -= ceil((held - most_at_once(p, fragments_of)) / 4 / p.threads)
        if registers > limit:
            registers -= self._spilled()
        if registers > limit:
            raise RegistersError(
                f"{p.name} needs {registers} registers a thread; {m.id} allows {limit}: "
                "use more threads or a smaller tile",
                registers - limit,
            )
        return registers

    def _fold(self, accumulator: str, rows: int, columns: int) -> int:
        """Rows of the matrix instruction for a tile of these rows: folded into the lanes, where it may be."""
        if self.machine.matrix_instruction == "tcgen05" and accumulator not in self._scaled:
            for step in _FOLDED_ROWS:
                if rows <= step and columns * step >= _FOLDED_COLUMNS * _TENSOR_MEMORY_LANES:
                    return step
        return self.machine.matrix_m

    def _tensor_memory_bytes(self) -> int:
        # Accumulators occupy whole columns of 128 lanes.
        total = 0
        for b in self.program.buffers:
            if b.name in self._in_tensor_memory:
                rows = int(evaluate(b.shape[0], {}))
                columns = elements_of(b) // rows
                step = self._fold(b.name, rows, columns)
                total += ceil(rows / step) * step * columns * _ACCUMULATOR_BYTES
        return total

    # -- operations --------------------------------------------------------------------------

    def gemm(self, stmt: Gemm, m: int, n: int, k: int, dtype: str) -> Cost:
        machine = self.machine
        require_block_scaling(machine, stmt)
        element = DTYPES[self.program.buffer(stmt.a.buffer).dtype].bytes
        columns = ceil(n / 8) * 8
        depth_step = max(1, int(machine.matrix_k_bytes / element))
        depth = ceil(k / depth_step) * depth_step
        step, rate = self._fold(stmt.c.buffer, m, columns), machine.matrix_rate(dtype)
        asynchronous = machine.matrix_instruction in ("wgmma", "tcgen05")
        narrow = self._narrow(stmt, m, columns)
        if narrow:
            step, rate, asynchronous = _SYNC_ROWS, rate * machine.sync_fraction, False
        self._multiplied_by.add(_WARP_INSTRUCTION if narrow else machine.matrix_instruction)
        rows = ceil(m / step) * step
        flops = 2.0 * rows * columns * depth
        matrix_s = flops / rate
        operand_bytes = self._operand_bytes(stmt, rows, columns, depth, element, step if asynchronous else 0)
        pad_s = operand_bytes / machine.scratchpad_bytes_per_s
        work = {"matrix": matrix_s, "scratchpad": pad_s}
        c = stmt.c.buffer
        if c in self._changed and not stmt.clear_accum:
            work["tensor_memory"] = m * n * _ACCUMULATOR_BYTES / machine.tensor_memory_bytes_per_s
        self._fetched.discard(c)
        self._changed.discard(c)
        return Cost(work, max(matrix_s, pad_s), machine.matrix_latency_s, flops)

    def _fetch(self, buffer: Buffer, elements: int) -> float:
        """Bytes read from tensor memory by an operation on ``buffer`` (none if already in registers)."""
        if buffer.name not in self._in_tensor_memory or buffer.name in self._fetched:
            return 0.0
        self._fetched.add(buffer.name)
        return elements * _ACCUMULATOR_BYTES

    def _operand_bytes(self, stmt: Gemm, m: int, n: int, k: int, element: float, step: int) -> float:
        """Scratchpad bytes the matrix engine reads for one tile product.

        An asynchronous instruction of ``step`` rows reads all of B again for its rows and its own
        A once per 256 columns; a pair of cores that works on one product holds half of B each.
        With ``step`` 0, warps that load fragments themselves (ldmatrix) read A once per
        column of the warp grid and B once per row of it.
        """
        a_shared = self.program.buffer(stmt.a.buffer).scope == "shared"
        b_shared = self.program.buffer(stmt.b.buffer).scope == "shared"
        a_reads: float
        b_reads: float
        if step:
            a_reads, b_reads = ceil(n / 256), ceil(m / step) * self.shared_by_pair(stmt.b.buffer)
        else:
            warp_rows, warp_columns = warp_grid(self._warps, m, n, stmt.policy, _SYNC_ROWS)
            a_reads, b_reads = warp_columns, warp_rows
        a = m * (k * element + self._scales(stmt.a_scale)) * a_reads if a_shared else 0.0
        b = n * (k * element + self._scales(stmt.b_scale)) * b_reads if b_shared else 0.0
        return a + b

    def _scales(self, scale: Region | None) -> float:
        """Bytes of the scales of one row of an operand."""
        if scale is None:
            return 0.0
        return int(evaluate(scale.extents[-1], {})) * DTYPES[self.program.buffer(scale.buffer).dtype].bytes

    def elementwise(self, elements: int, count: Count, target: Buffer) -> Cost:
        m = self.machine
        lanes = self.program.threads
        padded = max(1, ceil(elements / lanes)) * self._lanes
        pad_bytes = tensor_bytes = 0.0
        read = Counter(load.buffer for load in set(count.loads))  # by each iteration
        for load in count.loads:
            source = self.program.buffer(load.buffer)
            if source.scope == "shared":
                pad_bytes += elements * DTYPES[source.dtype].bytes
            tensor_bytes += self._fetch(source, elements * read[load.buffer])
        pad_bytes += elements * _SHUFFLE_BYTES * count.shuffles
        if target.scope == "shared":
            pad_bytes += elements * DTYPES[target.dtype].bytes
        elif target.name in self._in_tensor_memory:
            self._fetched.add(target.name)
            self._changed.add(target.name)
        vector = padded * max(
            count.fp32 / m.fp32_per_s,
            count.alu / m.alu_per_s,
            count.convert / m.convert_per_s,
            count.total / m.issue_per_s,
        )
        work = {
            "vector": vector,
            "special": padded * count.special / m.special_per_s,
            "scratchpad": pad_bytes / m.scratchpad_bytes_per_s,
        }
        if tensor_bytes:
            work["tensor_memory"] = tensor_bytes / m.tensor_memory_bytes_per_s
        latency = count.depth * m.vector_latency_s + (m.scratchpad_latency_s if pad_bytes else 0.0)
        latency += count.shuffles * m.scratchpad_latency_s
        return Cost(work, max(work.values()) + self._alone(latency))

    def gather(self, elements: int, source: Buffer, target: Buffer) -> Cost:
        # Tensor copies take rows that registers name (tile::gather4) where the matrix engine has a memory
        # of its own (PTX ISA 8.6, sm_100); before, each thread copies 16 bytes of a row.
        bulk = self.machine.bulk_copy and self.machine.matrix_instruction == "tcgen05"
        return self._moved(elements, source, target, bulk=bulk)

    def move(self, stmt: Copy, elements: int, source: Buffer, target: Buffer) -> Cost:
        bulk = self.machine.bulk_copy and {source.scope, target.scope} == {"global", "shared"}
        return self._moved(elements, source, target, bulk=bulk)

    def _moved(self, elements: int, source: Buffer, target: Buffer, *, bulk: bool) -> Cost:
        m = self.machine
        read = elements * DTYPES[source.dtype].bytes
        written = elements * DTYPES[target.dtype].bytes
        convert = convert_count(source.dtype, target.dtype)
        instructions = 0.0 if bulk else read / _VECTOR_BYTES
        if not bulk and source.scope == "global" and target.scope == "shared" and not m.async_copy:
            instructions *= 2  # through registers: a load and a store
        pad = (read if source.scope == "shared" else 0.0) + (written if target.scope == "shared" else 0.0)
        work = {
            "vector": max(
                (instructions + elements * convert.total) / m.issue_per_s,
                elements * convert.convert / m.convert_per_s,
                elements * convert.alu / m.alu_per_s,
            ),
            # Bulk copies write through a port of their own beside the one that operands are read from.
            "scratchpad": 0.0 if bulk else pad * self.shared_by_pair(target.name) / m.scratchpad_bytes_per_s,
        }
        if fetched := self._fetch(source, elements):
            work["tensor_memory"] = fetched / m.tensor_memory_bytes_per_s
        latency = m.scratchpad_latency_s if pad and not bulk else 0.0
        return Cost(work, max(work.values()) + latency)

    def reduce(self, stmt: Reduce | CumSum, elements: int, rows: int) -> Cost:
        m = self.machine
        kind = stmt.kind if isinstance(stmt, Reduce) else "sum"
        each = Count(fp32=1.0) if kind == "sum" else Count(alu=1.0)
        if kind.startswith("abs"):
            each = each.then(alu=1)
        if isinstance(stmt, CumSum):  # a scan takes log2 steps over the lanes of a warp
            each = Count(fp32=log2(m.warp_size))
        source = self.program.buffer(stmt.src.buffer)
        cost = self.elementwise(elements, each, source if source.scope == "shared" else _REGISTER)
        work = dict(cost.work)
        if fetched := self._fetch(source, elements):
            work["tensor_memory"] = fetched / m.tensor_memory_bytes_per_s
        # Lanes that share a row combine by shuffles, whose latency is close to the scratchpad's
        # (24 against 29 cycles on Hopper); beyond a warp the scratchpad and a barrier join in.
        lanes = min(self.program.threads, max(SCHEDULERS, self.program.threads // max(1, rows)))
        steps = log2(min(lanes, m.warp_size))
        latency = steps * m.scratchpad_latency_s
        if lanes > m.warp_size:
            latency += 2 * m.scratchpad_latency_s + self.barrier().serial_s
        return Cost(work, max(work.values()) + self._alone(latency))

    def fill(self, stmt: Fill, elements: int, target: Buffer) -> Cost:
        m = self.machine
        if target.name in self._in_tensor_memory:
            return Cost({}, 0.0)  # the first product overwrites instead of accumulating
        if target.scope == "shared":
            written = elements * DTYPES[target.dtype].bytes / m.scratchpad_bytes_per_s
            return Cost({"scratchpad": written}, written)
        moved = elements / m.issue_per_s
        return Cost({"vector": moved}, moved)


_REGISTER = Buffer("", (), "float32", "fragment")


def warp_grid(warps: int, m: int, n: int, policy: str, row_step: int) -> tuple[int, int]:
    """Rows × columns of warps over an ``m × n`` tile.

    ``full_row`` puts all warps along the rows, ``full_col`` along the columns; ``square`` keeps a
    warp's piece as square as the row step of the instruction allows.
    """
    if policy == "full_row":
        rows = min(warps, max(1, m // row_step))
    elif policy == "full_col":
        rows = 1
    else:
        ideal = sqrt(warps * m / n)
        options = [r for r in (1, 2, 4, 8, 16) if warps % r == 0 and r <= max(1, m // row_step)]
        rows = min(options or [1], key=lambda r: abs(r - ideal))
    return rows, max(1, warps // rows)
