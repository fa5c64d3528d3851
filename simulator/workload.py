"""What a program becomes on a machine: one block's work as a tree of operations and loops.

Quantities are for a whole block; ``agents`` says into how many independent in-order instruction
streams (groups of warps with their own rows of the tile) the block splits. Everything that depends
on the shape stays an expression, so one workload serves every shape of a configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from foretile.kernels.expr import Expr
from foretile.kernels.ir import Region, TileProgram
from foretile.simulator.machine import Machine

CORE_ENGINES = (
    "matrix",
    "vector",
    "special",
    "scratchpad",
    "tensor_memory",
    "port",
    "feed",
    "drain",
    "vector_feed",
    "vector_drain",
    "scalar",
    "share",
)
# Engines in the cores' clock domain: they slow down together when matrix load lowers the clock.
CLOCKED = frozenset({"matrix", "vector", "special", "scratchpad", "tensor_memory"})
BLOCK_START = "block start"  # label of a block's first operation, where it stages tiles
CHIP_ENGINES = ("l2", "dram", "atomic")


@dataclass(frozen=True, slots=True)
class Access:
    """One place in the program where blocks touch a global tensor.

    ``loops`` are the loop variables around it with their extents, outermost first; ``guards`` the
    conditions it is under. ``full_bytes`` is the tile's size when nothing is clipped.
    """

    tensor: str
    region: Region
    direction: Literal["read", "write", "atomic"]
    element_bytes: float
    full_bytes: float
    loops: tuple[tuple[str, Expr], ...]
    guards: tuple[Expr, ...]
    per_element: bool = False  # a gather or scatter by computed indices
    bulk: bool = False  # a whole tile into the scratchpad, as a bulk tensor copy moves it
    target: str = ""  # on-chip buffer a read fills


@dataclass(frozen=True, slots=True)
class FromMemory:
    """How long a load holds its queue (the first engine of its work) for what the memory does, seconds.

    ``moved_s``: of its work, the bytes' way, heads apart. ``line_s``: how long each core that reads the same
    lines at the same time keeps them from the others. The queue works in order: while bytes come from DRAM,
    nothing comes from the L2.
    """

    moved_s: float
    line_s: float


@dataclass(frozen=True, slots=True)
class Op:
    """One step of an agent, in program order.

    ``work``: core engine → seconds of service for the whole block; ``serial_s``: its duration when
    nothing competes (whole block, all agents together); ``latency_s``: from issue of the last
    instruction until the result can be used; ``reads``: buffers whose loads it waits for;
    ``access``: index of the memory access a load or store makes; ``from_memory``: what else it may wait
    for there; ``writes``: buffer a load or a queued operation fills; ``queued``: sent to an in-order
    queue of its own: the agent goes on as soon as it starts there, and who reads ``writes`` waits for
    its end.
    """

    label: str
    kind: Literal["matrix", "vector", "load", "store", "barrier"]
    work: tuple[tuple[str, float], ...] = ()
    serial_s: float = 0.0
    latency_s: float = 0.0
    reads: tuple[str, ...] = ()
    writes: str = ""
    access: int = -1
    flops: float = 0.0  # executed, padding to the instruction's shape included
    tile_flops: float = 0.0  # of the tile itself
    line: int = 0
    queued: bool = False
    from_memory: FromMemory | None = None
    early_s: float = 0.0  # how long before what it reads is complete it can start


@dataclass(frozen=True, slots=True)
class Loop:
    """``extent`` iterations of ``body``; ``loads`` run up to ``stages`` iterations ahead."""

    var: str
    start: Expr | None
    step: int
    extent: Expr
    stages: int
    loads: tuple[Op, ...]
    body: tuple[Op | Loop | Branch, ...]
    run_ahead: bool = False  # loads of the next entry may start before this one's body ends
    lead: int = 0  # how many of the loads the first operation that needs any of them waits for
    dealt: Expr | None = None  # persistent tiles dealt over all blocks: their number on the whole chip


@dataclass(frozen=True, slots=True)
class Branch:
    """``then`` where ``cond`` holds, else ``orelse``."""

    cond: Expr
    then: tuple[Op | Loop | Branch, ...]
    orelse: tuple[Op | Loop | Branch, ...]


Node = Op | Loop | Branch


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How one block sits on a core. ``spilled_bytes``: of a thread, in local memory for want of registers."""

    blocks_per_core: int
    limited_by: str
    threads: int
    scratchpad_bytes: int
    registers_per_thread: int
    spilled_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Digit:
    """One digit of the raster order: ``extent`` steps of block variable ``var``, fastest first."""

    var: str
    extent: Expr


@dataclass(frozen=True, slots=True)
class Workload:
    """A program lowered for a machine."""

    program: TileProgram
    machine: Machine
    grid: tuple[Expr, ...]
    raster: tuple[Digit, ...]
    ranges: Mapping[str, Expr]  # extent of every block variable and persistent tile index
    persistent: Expr | None  # number of tiles dealt to persistent blocks
    nodes: tuple[Node, ...]
    accesses: tuple[Access, ...]
    pair_var: str  # block variable along which clusters of two share reads, "" for none
    agents: int
    agent_rate: float  # share of the core's issue rate that one agent can use
    occupancy: Occupancy
    dtype: str  # short name of the matrix dtype, "" without matrix work
    sampled: tuple[str, ...]  # block variables on which trip counts or branches depend
    period: int  # they do so only modulo this number (one variable); 0: otherwise
    deciding: frozenset[str]  # tensors whose values decide trip counts or branches
    walks: bool = False  # blocks stay so long that what their own loops come back to may have left the L2
    notes: tuple[str, ...] = ()  # what the source asks for and the machine does in another way
    instructions: frozenset[str] = frozenset()  # matrix instructions of its products
    grounds: tuple[str, ...] = ()  # what was assumed of the compiler that makes the kernel, and why


def shape_exprs(nodes: tuple[Node, ...]) -> Iterator[Expr]:
    """Expressions that decide trip counts and branches."""
    for node in nodes:
        if isinstance(node, Loop):
            yield node.extent
            if node.start is not None:
                yield node.start
            yield from shape_exprs(node.body)
        elif isinstance(node, Branch):
            yield node.cond
            yield from shape_exprs(node.then)
            yield from shape_exprs(node.orelse)
