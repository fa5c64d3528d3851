"""Costs on SIMT machines of programs whose schedule TileLang's compiler and nvcc decide.

A library's author gives a kernel the registers, roles and instructions that suit it; a compiler follows rules
of its own. :class:`~foretile.simulator.lowering.simt.SimtRules` is for the one, this is for the other.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import ceil

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import evaluate
from foretile.kernels.ir import (
    Buffer,
    Copy,
    Fill,
    For,
    Gemm,
    If,
    Reduce,
    Stmt,
    TileProgram,
    While,
    walk_stmts,
)
from foretile.simulator.lowering.codegen import Schedule, bulk_load, bulk_store, schedule, takes_wgmma
from foretile.simulator.lowering.liveness import most_at_once, named
from foretile.simulator.lowering.rules import Cost, Roles
from foretile.simulator.lowering.simt import SimtRules, elements_of, warp_grid
from foretile.simulator.machine import Machine
from foretile.simulator.threads import teams_of

INSTRUCTIONS = ("mma_sync", "wgmma", "tcgen05")
"""Matrix instructions of machines whose kernels TileLang and nvcc make."""

# Registers of a thread that nvcc 13.0 gives kernels that ask for none: fitted to 74 launches of the library
# on sm_80, sm_90a and sm_100a (docs/tilelang.md), by their mean absolute logarithmic error.
_BASE = 18  # indices, loop counters, addresses of tensors
_IN_FLIGHT = 8  # of a fragment that is only passed on, what is under way: two vectors of 16 bytes
_COPYING = 12  # addresses of copies that threads make, iterations ahead
_MULTIPLYING = 16  # addresses in shared memory from which fragments are loaded
_FRAGMENTS = 2  # fragments of operands: those being multiplied, and those of the next step

_MOST_REGISTERS = 255  # that an instruction can name (PTX ISA, performance directives)
_ALLOCATED = 8  # registers of a thread are allocated in such steps
_ROW_LANES = 4  # lanes that share a row of an accumulator (PTX ISA, fragments of mma.m16n8k16)
_SYNC_ROWS = 16
_STEP_BYTES = 32  # depth of one step of mma.sync: 16 elements of 16 bits
_BARRIERS_BYTES = 1024  # barriers stand before tiles that are aligned to so much
_VECTOR_BYTES = 16
_FLOAT_BYTES = 4
_REGISTER_BYTES = 4


class TileLangRules(SimtRules):
    """Costs of tile operations as TileLang 0.1.15 compiles them."""

    def __init__(self, program: TileProgram, machine: Machine, roles: Roles, source: TileProgram) -> None:
        self._source = source
        self._made: Schedule = schedule(source, bulk_copy=machine.bulk_copy and machine.warp_specialisation)
        # What the source writes out itself: in ``program`` that is pipelined loops of plain statements.
        stmts = list(walk_stmts(source.body))
        self._own_roles = len(teams_of(source)) > 1 or any(isinstance(s, If) and s.role for s in stmts)
        self._own_bulk = {
            (s.src.buffer, s.dst.buffer) for s in stmts if isinstance(s, Copy) and s.mode == "tma"
        }
        self._own_products = {s.c.buffer for s in stmts if isinstance(s, Gemm) and s.mode}
        super().__init__(program, machine, roles)

    # -- roles and instructions ----------------------------------------------------------------

    def runs_ahead(self) -> bool:
        """See :class:`Rules`: warps of their own copy, or the source says which do."""
        return super().runs_ahead() and (self._made.producers > 0 or self._own_roles)

    def stages(self, requested: int) -> int:
        """See :class:`Rules`."""
        return super().stages(requested) if self._made.pipelined else 1

    def _wide_accumulators(self) -> frozenset[str]:
        if self.machine.matrix_instruction != "tcgen05":
            return frozenset()
        return frozenset(b.name for b in self._source.buffers if b.scope == "tmem")

    def _narrow(self, stmt: Gemm, rows: int, columns: int) -> bool:
        """Whether warps multiply themselves: where there is no other instruction for these tiles."""
        asynchronous = self.machine.matrix_instruction in ("wgmma", "tcgen05") and stmt.a_scale is None
        return asynchronous and self._by_warps(stmt, rows)

    def _asynchronous(self, stmt: Gemm, rows: int) -> bool:
        depth = int(evaluate(stmt.a.extents[-2 if stmt.trans_a else -1], {}))
        return stmt.c.buffer in self._own_products or takes_wgmma(stmt, self.program, rows, depth)

    def shared_by_pair(self, buffer: str) -> float:
        """See :class:`SimtRules`: two cores work on one product where the source has clusters."""
        return super().shared_by_pair(buffer) if self.paired() else 1.0

    def paired(self) -> bool:
        """See :class:`Rules`: the compiler forms no clusters that the source does not ask for."""
        return any(n > 1 for n in self._source.cluster)

    def gather(self, elements: int, source: Buffer, target: Buffer) -> Cost:
        """See :class:`Rules`: threads gather."""
        return replace(self._moved(elements, source, target, bulk=False), bulk=False)

    def move(self, stmt: Copy, elements: int, source: Buffer, target: Buffer) -> Cost:
        """See :class:`Rules`: tiles are loaded in bulk where warps are set aside for it, and stored so."""
        bulk = self.machine.bulk_copy and (
            (stmt.src.buffer, stmt.dst.buffer) in self._own_bulk
            or (self._made.producers > 0 and bulk_load(stmt, self.program))
            or bulk_store(stmt, self.program)
        )
        return replace(self._moved(elements, source, target, bulk=bulk), bulk=bulk)

    def gemm(self, stmt: Gemm, m: int, n: int, k: int, dtype: str) -> Cost:
        """See :class:`Rules`. Values that do not fit registers are stored and loaded with each product."""
        cost = super().gemm(stmt, m, n, k, dtype)
        moved = 2 * _REGISTER_BYTES * self._spilled() * self._lanes / self.machine.scratchpad_bytes_per_s
        if not moved:
            return cost
        work = {**cost.work, "scratchpad": cost.work.get("scratchpad", 0.0) + moved}
        return replace(cost, work=work, serial_s=cost.serial_s + moved)

    # -- occupancy ---------------------------------------------------------------------------

    def _block_threads(self) -> int:
        own = ceil(self._source.threads / self.machine.warp_size) * self.machine.warp_size
        return own + self._made.producers

    def _registers_of_block(self, threads: int, registers: int) -> int:
        """What a block is launched with: setmaxnreg only moves registers from warp to warp."""
        return threads * ceil(registers / _ALLOCATED) * _ALLOCATED

    def _registers(self) -> int:
        limit = self._most_registers()
        if self._made.given:
            return min(self._made.given, limit)
        return min(ceil(self._needed()), limit)

    def _most_registers(self) -> int:
        """What launch bounds leave a thread of the core's registers."""
        blocks = int(self._source.annotation("min_blocks_per_sm") or 1)
        share = self.machine.register_bytes // 4 // (self._block_threads() * blocks)
        return max(_ALLOCATED, min(_MOST_REGISTERS, share // _ALLOCATED * _ALLOCATED))

    def _spilled(self) -> int:
        """Registers that a computing thread uses and does not have."""
        return max(0, ceil(self._needed()) - (self._made.given or self._most_registers()))

    def _needed(self) -> float:
        """Registers of a thread that nvcc would give it if there were enough."""
        p, m = self.program, self.machine
        copies, operands = self._warp_fragments()
        passed, constant = passed_on(p)
        rows = _ROW_LANES if self.roles.accumulators else 1
        held: dict[str, float] = {}
        for b in p.buffers:
            if b.scope == "fragment" and b.name not in self._in_tensor_memory and not b.alias:
                each = elements_of(b) * DTYPES[b.dtype].bytes / 4 / p.threads
                each *= copies.get(b.name, 1) * (1 if len(b.shape) > 1 else rows)
                held[b.name] = (
                    min(each, 0 if b.name in constant else _IN_FLIGHT) if b.name in passed else each
                )
        own = sum(
            elements_of(b) * DTYPES[b.dtype].bytes / 4
            for b in p.buffers
            if b.scope in ("local", "var") and not b.alias
        )
        needed = _BASE + most_at_once(p, held) + own
        if operands:
            needed += _FRAGMENTS * operands + _MULTIPLYING
        staged = [b for b in p.buffers if self._versions(b.name) > 1]
        if staged and not self._made.producers:
            needed += _COPYING
            if not m.async_copy:  # what is under way to the scratchpad waits in registers meanwhile
                needed += sum(elements_of(b) * DTYPES[b.dtype].bytes for b in staged) / 4 / p.threads
        return needed

    def _warp_fragments(self) -> tuple[dict[str, int], float]:
        """Warps that hold the same part of an operand in registers, by buffer; and registers of a thread for
        the operands of one step of a product that warps load from shared memory themselves."""
        copies: dict[str, int] = {}
        most = 0.0
        for g in (s for s in walk_stmts(self.program.body) if isinstance(s, Gemm)):
            rows, columns = (int(evaluate(e, {})) for e in g.c.extents[-2:])
            across, along = warp_grid(self._warps, rows, columns, g.policy, _SYNC_ROWS)
            a, b = self.program.buffer(g.a.buffer), self.program.buffer(g.b.buffer)
            if a.scope == "fragment":
                copies[a.name] = along
            if b.scope == "fragment":
                copies[b.name] = across
            if not self._by_warps(g, rows):
                continue
            loaded = (rows / across if a.scope == "shared" else 0) + (
                columns / along if b.scope == "shared" else 0
            )
            most = max(most, loaded * _STEP_BYTES / 4 / self.machine.warp_size)
        return copies, most

    def _by_warps(self, stmt: Gemm, rows: int) -> bool:
        """Whether warps load the fragments of a product themselves."""
        kind = self.machine.matrix_instruction
        if kind == "tcgen05":
            return stmt.c.buffer not in self._in_tensor_memory
        return kind != "wgmma" or not self._asynchronous(stmt, rows)

    def _scratchpad_bytes(self) -> int:
        """Tiles, barriers and workspace. The latter are estimates: for their sake no kernel is refused."""
        tiles = super()._scratchpad_bytes()
        held = tiles + self._workspace_bytes()
        if self._made.producers:
            held = ceil(tiles / _BARRIERS_BYTES + 1) * _BARRIERS_BYTES + self._workspace_bytes()
        return max(tiles, min(held, self.machine.scratchpad_block_bytes))

    def _workspace_bytes(self) -> int:
        """Of reductions whose rows several warps share: one number a thread, in loops for each of them."""
        each = _FLOAT_BYTES * self.program.threads
        loops = [s for s in walk_stmts(self.program.body) if isinstance(s, For) and s.kind == "pipelined"]
        inside = sum(self._crosses(s) for loop in loops for s in walk_stmts(loop.body))
        return each * max(inside, any(self._crosses(s) for s in walk_stmts(self.program.body)))

    def _crosses(self, s: Stmt) -> bool:
        """Whether warps exchange partial results of a reduction."""
        if not isinstance(s, Reduce):
            return False
        source = self.program.buffer(s.src.buffer)
        if source.scope != "fragment":
            return False
        if source.name in self.roles.accumulators:
            product = next(
                g for g in walk_stmts(self.program.body) if isinstance(g, Gemm) and g.c.buffer == source.name
            )
            rows, columns = (int(evaluate(e, {})) for e in product.c.extents[-2:])
            return warp_grid(self._warps, rows, columns, product.policy, _SYNC_ROWS)[1] > 1
        width = int(evaluate(source.shape[-1], {}))
        vector = max(1, int(_VECTOR_BYTES / DTYPES[source.dtype].bytes))
        return min(self.program.threads, width // vector) > self.machine.warp_size

    def grounds(self) -> tuple[str, ...]:
        """See :class:`Rules`."""
        said = list(self._made.reasons)
        products = [s for s in walk_stmts(self.program.body) if isinstance(s, Gemm)]
        by_warps = [g for g in products if self._by_warps(g, int(evaluate(g.c.extents[-2], {})))]
        if by_warps and self.machine.matrix_instruction == "tcgen05":
            said.append("products use mma.sync: the source allocates no tensor memory")
        elif by_warps and self.machine.matrix_instruction == "wgmma":
            said.append("products use mma.sync: wgmma takes neither their types, order nor number of rows")
        limit, threads = self._most_registers(), self._block_threads()
        if self._made.given:
            said.append(f"{threads} threads are launched with {self._registers()} registers each")
        if self._spilled():
            room, needed = self._made.given or limit, ceil(self._needed())
            said.append(f"computing threads have {room} registers each and use some {needed}: values spill")
        return tuple(said)


def passed_on(program: TileProgram) -> tuple[frozenset[str], frozenset[str]]:
    """Fragments that one statement writes and one other reads, and those among them that hold a constant.

    Their elements need not be held all at once: the reader takes each as it comes.
    """
    uses: Counter[str] = Counter()
    kept: set[str] = set()
    filled: set[str] = set()
    for s in _statements(program.body):
        names = set[str]().union(*(named(x) for x in walk_stmts((s,))))
        uses.update(names)
        if isinstance(s, Gemm):
            kept |= names
        if isinstance(s, Fill):
            filled.add(s.dst.buffer)
    found = frozenset(n for n, count in uses.items() if count <= 2 and n not in kept)
    return found, found & filled


def _statements(body: tuple[Stmt, ...]) -> list[Stmt]:
    """Statements with parallel nests as one each, out of the loops and branches around them."""
    found: list[Stmt] = []
    for s in body:
        if isinstance(s, While) or (isinstance(s, For) and s.kind != "parallel"):
            found += _statements(s.body)
        elif isinstance(s, If):
            found += _statements(s.then) + _statements(s.orelse)
        else:
            found.append(s)
    return found
