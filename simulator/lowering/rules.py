"""What a style of machine must say for a program to be lowered to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from foretile.kernels.ir import Buffer, Copy, CumSum, Fill, Gemm, Reduce, TileProgram
from foretile.simulator.lowering.elementwise import Count
from foretile.simulator.machine import Machine, SimulationError
from foretile.simulator.workload import FromMemory, Occupancy, Op

OWN_PRODUCERS = "own_producers"  # annotation: no warps but the program's own fetch its tiles


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of service per core engine for a whole block, duration alone, and result latency.

    ``queued``: the instruction stream sends it to a queue and goes on when it starts there;
    ``before``: a step that the stream takes first; ``from_memory`` and ``early_s``: see
    :class:`~foretile.simulator.workload.Op`; ``bulk``: a load into the scratchpad is a bulk tensor
    copy where the machine has them.
    """

    work: dict[str, float]
    serial_s: float
    latency_s: float = 0.0
    flops: float = 0.0
    queued: bool = False
    before: Cost | None = None
    from_memory: FromMemory | None = None
    early_s: float = 0.0
    bulk: bool = True


@dataclass(frozen=True, slots=True)
class Roles:
    """What the program does with its buffers."""

    accumulators: frozenset[str]
    operands: frozenset[str]
    right_operands: frozenset[str]
    staged: dict[str, int]  # shared buffers filled by a pipelined loop → versions
    vector_written: frozenset[str]  # written by element-wise code

    @property
    def made_on_core(self) -> frozenset[str]:
        """What element-wise code writes but for rows it only brings in, ahead of a pipelined loop."""
        return self.vector_written - frozenset(self.staged)


class Rules(Protocol):
    """Costs of tile operations on one machine for one program."""

    program: TileProgram
    machine: Machine
    roles: Roles

    def agents(self) -> tuple[int, float]:
        """Independent instruction streams of a block, and the issue share one of them can use."""

    def occupancy(self) -> Occupancy:
        """How a block sits on a core; raises SimulationError if it does not fit."""

    def paired(self) -> bool:
        """Whether neighbouring blocks that read tiles in common form clusters to fetch them once."""

    def instructions(self) -> frozenset[str]:
        """The matrix instructions of the products that were costed."""

    def grounds(self) -> tuple[str, ...]:
        """What was assumed of who compiles the program, and why, in words; empty for a library's kernel."""

    def gemm(self, stmt: Gemm, m: int, n: int, k: int, dtype: str) -> Cost:
        """A tile product."""

    def elementwise(self, elements: int, count: Count, target: Buffer) -> Cost:
        """``elements`` independent evaluations of an expression, stored to ``target``."""

    def move(self, stmt: Copy, elements: int, source: Buffer, target: Buffer) -> Cost:
        """The core's share of a copy (the path to the L2 and beyond is counted separately)."""

    def gather(self, elements: int, source: Buffer, target: Buffer) -> Cost:
        """The core's share of copying rows that indices name into a staged tile."""

    def reduce(self, stmt: Reduce | CumSum, elements: int, rows: int) -> Cost:
        """A reduction (or scan) of ``elements`` into ``rows`` results."""

    def fill(self, stmt: Fill, elements: int, target: Buffer) -> Cost:
        """Setting ``elements`` to a constant."""

    def barrier(self) -> Cost:
        """A barrier of the block."""

    def stage_barrier(self, tiles: int) -> tuple[float, float]:
        """Seconds that an iteration with ``tiles`` loads adds to the chain, and to the loads' latency."""

    def stages(self, requested: int) -> int:
        """Iterations that loads can run ahead when the program asks for ``requested``."""

    def runs_ahead(self) -> bool:
        """Whether copies are issued by warps of their own, across loop boundaries."""

    def walks(self) -> bool:
        """Whether blocks stay so long that what their own loops come back to may have left the L2."""

    def steering(self, operations: int) -> float:
        """Seconds that a block's stream spends on so many operations on numbers known at run time only."""


class Queued:
    """What machines have in common whose copies go through queues of their own, joined by flags.

    Loads run ahead as far as there are buffers, across loops too; a freed buffer is known a flag later.
    """

    machine: Machine

    def runs_ahead(self) -> bool:
        """See :class:`Rules`."""
        return True

    def walks(self) -> bool:
        """See :class:`Rules`."""
        return False

    def steering(self, operations: int) -> float:
        """See :class:`Rules`."""
        return 0.0

    def stages(self, requested: int) -> int:
        """See :class:`Rules`."""
        return max(1, requested)

    def stage_barrier(self, tiles: int) -> tuple[float, float]:
        """See :class:`Rules`."""
        return 0.0, self.machine.pipeline_barrier_s

    def barrier(self) -> Cost:
        """See :class:`Rules`."""
        return Cost({}, self.machine.barrier_s)

    def paired(self) -> bool:
        """See :class:`Rules`."""
        return True

    def instructions(self) -> frozenset[str]:
        """See :class:`Rules`."""
        return frozenset({self.machine.matrix_instruction})

    def grounds(self) -> tuple[str, ...]:
        """See :class:`Rules`."""
        return ()


def require_block_scaling(machine: Machine, stmt: Gemm) -> None:
    """Refuse a product with scales on a machine whose matrix engine applies none.

    Engines that scale groups of the depth are those that take fp4.

    Raises:
        SimulationError: what to do instead.
    """
    if stmt.a_scale is not None and "fp4" not in machine.matrix_flop_per_s:
        raise SimulationError(
            f"{machine.id} has no block-scaled products; widen the operands on chip, "
            "or scale partial products"
        )


def operation(kind: Any, label: str, cost: Cost, reads: tuple[str, ...] = ()) -> Op:
    """An operation of these costs."""
    work = tuple((engine, seconds) for engine, seconds in cost.work.items() if seconds > 0.0)
    return Op(
        label=label,
        kind=kind,
        work=work,
        serial_s=cost.serial_s,
        reads=reads,
        flops=cost.flops,
        queued=cost.queued,
        from_memory=cost.from_memory,
        early_s=cost.early_s,
    )
