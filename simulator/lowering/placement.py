"""Where a program's buffers lie on a core with explicit buffers (L1, L0C, UB).

``alloc_shared`` and ``alloc_fragment`` say nothing of it: what a buffer is used for does. Operands of
products are staged in L1, accumulators live in L0C, what element-wise code works on in the vector
cores' UB. No path leads back into L0C: an accumulator that element-wise code changes between products
is kept in UB, and each product's result is added to it there.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from foretile.hwmodels.schema import Davinci
from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import evaluate, loads
from foretile.kernels.ir import Buffer, Copy, CumSum, Fill, Gemm, Reduce, Store, TileProgram, walk_stmts
from foretile.simulator.lowering.rules import Roles
from foretile.simulator.machine import SimulationError

FRACTAL = 16  # rows and columns of the cube's fractals
ACCUMULATOR_BYTES = 4


@dataclass(frozen=True, slots=True)
class Placement:
    """Bytes of each buffer by memory.

    ``fetched``: accumulators whose results the vector cores read; ``summed``: those of them that are
    kept in UB, where each product is added; ``doubled``: whether L0C holds two of a product's results,
    so that one is drained while the next is computed; ``parts``: into how many the columns of a product
    whose result is read out at once are cut, so that it does.
    """

    used: dict[str, dict[str, float]]
    limits: dict[str, int]
    fetched: frozenset[str]
    summed: frozenset[str]
    doubled: bool
    parts: dict[str, int]

    def needed(self, memory: str) -> float:
        """Bytes of ``memory`` in use."""
        return sum(self.used[memory].values())

    def blocks(self) -> tuple[int, str]:
        """How many blocks fit side by side, two at most, and the memory that decides."""
        tightest = max(self.limits, key=lambda name: self.needed(name) / self.limits[name])
        return (2 if 2 * self.needed(tightest) <= self.limits[tightest] else 1), tightest


def shape_of(buffer: Buffer) -> tuple[int, ...]:
    """The constant shape of an on-chip buffer."""
    return tuple(int(evaluate(extent, {})) for extent in buffer.shape)


def size_of(buffer: Buffer) -> float:
    """Bytes of an on-chip buffer."""
    return prod(shape_of(buffer)) * DTYPES[buffer.dtype].bytes


def place(program: TileProgram, roles: Roles, d: Davinci, chip: str) -> Placement:
    """Place every buffer of ``program``.

    Raises:
        SimulationError: a memory does not hold what is placed in it; the message names the buffers.
    """
    fetched = _read_by_vector(program) & roles.accumulators
    summed = fetched & _added_to(program)
    used: dict[str, dict[str, float]] = {"L1": {}, "L0C": {}, "UB": {}}
    cores = d.vector_cores_per_cube.value
    for buffer in program.buffers:
        if buffer.alias:
            continue
        size, versions = size_of(buffer), roles.staged.get(buffer.name, 1)
        if buffer.name in roles.operands:
            used["L1"][buffer.name] = size * versions
        if buffer.name in roles.accumulators:
            used["L0C"][buffer.name] = _in_fractals(buffer)
            if buffer.name in fetched:
                used["UB"][buffer.name] = size / cores
        elif buffer.name not in roles.operands:
            used["UB"][buffer.name] = size * versions / cores  # rows are dealt to the vector cores
        elif buffer.name in roles.made_on_core:
            used["UB"][buffer.name] = size / cores
    limits = {"L1": d.l1_bytes.value, "L0C": d.l0c_bytes.value, "UB": d.ub_bytes.value}
    # What is read out after every product needs no place of its own: a part of it at a time lies in L0C.
    passing = {name: used["L0C"].pop(name) for name in fetched}
    room = (limits["L0C"] - sum(used["L0C"].values())) / 2
    parts = {name: max(1, ceil(size / max(room, size / 1024))) for name, size in passing.items()}
    if passing:
        largest = max(passing, key=lambda name: passing[name] / parts[name])
        used["L0C"][largest] = passing[largest] / parts[largest]
    for memory, limit in limits.items():
        if sum(used[memory].values()) > limit:
            raise SimulationError(_refusal(program, memory, used[memory], roles, limit, chip))
    doubled = 2 * sum(used["L0C"].values()) <= limits["L0C"]
    return Placement(used, limits, fetched, summed, doubled, parts)


def overwritten(program: TileProgram) -> frozenset[int]:
    """Identities of the fills whose zeros nobody reads: a product comes next and overwrites them."""
    last: dict[str, Fill] = {}
    found: set[int] = set()
    for stmt in walk_stmts(program.body):
        if isinstance(stmt, Fill):
            last[stmt.dst.buffer] = stmt
        elif isinstance(stmt, Gemm) and stmt.c.buffer in last:
            found.add(id(last.pop(stmt.c.buffer)))
        elif isinstance(stmt, Store):
            for name in (stmt.buffer, *(load.buffer for load in loads(stmt.value))):
                last.pop(name, None)
        elif isinstance(stmt, Copy | Reduce | CumSum):
            last.pop(stmt.src.buffer, None)
            last.pop(stmt.dst.buffer, None)
    return frozenset(found)


def _in_fractals(buffer: Buffer) -> float:
    *outer, rows, columns = (1, *shape_of(buffer))[-max(2, len(buffer.shape)) :]
    padded = ceil(rows / FRACTAL) * ceil(columns / FRACTAL) * FRACTAL * FRACTAL
    return float(prod(outer) * padded * ACCUMULATOR_BYTES)


def _read_by_vector(program: TileProgram) -> frozenset[str]:
    found: set[str] = set()
    for stmt in walk_stmts(program.body):
        if isinstance(stmt, Store):
            found |= {load.buffer for load in loads(stmt.value)}
        elif isinstance(stmt, Reduce | CumSum) or (
            isinstance(stmt, Copy) and program.buffer(stmt.dst.buffer).scope != "global"
        ):
            found.add(stmt.src.buffer)
    return frozenset(found)


def _added_to(program: TileProgram) -> frozenset[str]:
    """Accumulators that element-wise code has changed when a product adds to them."""
    changed: set[str] = set()
    found: set[str] = set()
    for stmt in walk_stmts(program.body):
        if isinstance(stmt, Store):
            changed.add(stmt.buffer)
        elif isinstance(stmt, Fill):
            changed.discard(stmt.dst.buffer)
        elif isinstance(stmt, Gemm):
            if stmt.c.buffer in changed and not stmt.clear_accum:
                found.add(stmt.c.buffer)
            changed.discard(stmt.c.buffer)
    return frozenset(found)


def _refusal(
    program: TileProgram, memory: str, used: dict[str, float], roles: Roles, limit: int, chip: str
) -> str:
    def said(name: str) -> str:
        versions = roles.staged.get(name, 1)
        times = f" in {versions} versions" if versions > 1 and memory != "L0C" else ""
        return f"{name} {'x'.join(map(str, shape_of(program.buffer(name))))}{times} takes {used[name]:.0f}"

    largest = sorted(used, key=lambda name: -used[name])[:3]
    advice = "a smaller tile" if memory == "L0C" else "a smaller tile or fewer stages"
    return (
        f"{program.name} needs {sum(used.values()):.0f} bytes of {memory}; {chip} has {limit}: "
        f"{', '.join(said(name) for name in largest)}; use {advice}"
    )
