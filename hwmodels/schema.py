"""The schema of a chip file: what a tile program can occupy, every number with its source.

A leaf is ``{value, source, confidence}``. Absent means unknown: nothing is filled in silently.
Field names carry their unit. *Cycles* are cycles of ``clock.max_hz``; *core* is what runs a block
(SM, CU, AP, AI core).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from foretile.hwmodels.explicit import Davinci, Mlu
from foretile.hwmodels.quantity import Count, Fraction, Frozen, NonNegative, Positive, Quantity

Style = Literal["simt", "davinci", "mlu"]
# The sections that a chip of a style needs beyond those that every chip has.
STYLE_PARTS: dict[Style, tuple[str, ...]] = {
    "simt": ("registers", "scratchpad", "residency"),
    "davinci": ("davinci",),
    "mlu": ("mlu",),
}


class Clock(Frozen):
    """Clocks of the cores.

    Matrix work draws the most power: under it a chip sinks to ``matrix_burst_hz`` at once and to
    ``matrix_sustained_hz`` when the load lasts (``settle_s`` of it is where sinking begins, all
    kernels that follow each other counted; it ends a hundred times later).
    """

    max_hz: Positive
    matrix_burst_hz: Positive | None = None
    matrix_sustained_hz: Positive | None = None
    settle_s: Positive | None = None


class Matrix(Frozen):
    """The matrix engine of one core.

    ``flop_per_cycle`` maps a dtype's short name to dense FLOP (or integer OP) a cycle and core.
    ``instruction``: ``mma_sync`` (warps feed it from registers and wait), ``wgmma`` (asynchronous,
    operands in the scratchpad, accumulators in registers), ``tcgen05`` (asynchronous, accumulators in
    tensor memory), ``mfma`` (wave-wide, from registers), ``cube`` (a core of its own with its own buffers),
    ``stationary`` (weights stay in a memory of their own while operands stream past).
    ``m``/``n`` are the smallest tile one instruction works on at full rate, ``k_bytes`` its depth.
    ``mainloop_fraction`` is the share of the peak rate a well-written main loop reaches when
    nothing else limits it (issue gaps, operand fetch, barriers). ``sync_fraction``: where the
    engine is asynchronous, the share of the peak that the older instructions of 16 rows reach
    (small tiles fall back to them). ``accumulate_fraction_bits``: by dtype, the fraction bits that
    products keep when an instruction sums them, where they are fewer than the accumulator's.
    """

    instruction: Literal["mma_sync", "wgmma", "tcgen05", "mfma", "cube", "stationary"]
    flop_per_cycle: dict[str, Positive]
    m: Count
    n: Count
    k_bytes: Count
    latency_cycles: Positive
    mainloop_fraction: Fraction
    sync_fraction: Fraction | None = None
    accumulate_fraction_bits: dict[str, Count] | None = None


class Vector(Frozen):
    """Per-cycle rates of a core's other arithmetic, in results a cycle.

    ``fp32`` multiply-adds, ``half`` packed 16-bit operations, ``alu`` integer/compare/select/min/max,
    ``special`` exp2/log2/rsqrt/…, ``convert`` narrowing conversions, ``issue`` instructions × lanes.
    ``code_fraction`` is the share of these rates that element-wise code between matrix products
    reaches (dependent steps with one warp a scheduler, predicates, address arithmetic).
    """

    fp32_per_cycle: Positive
    alu_per_cycle: Positive
    special_per_cycle: Positive
    convert_per_cycle: Positive
    issue_per_cycle: Positive
    code_fraction: Fraction
    half_per_cycle: Positive | None = None
    latency_cycles: Positive | None = None


class Scratchpad(Frozen):
    """The software-managed memory of a core that ``alloc_shared`` takes from."""

    capacity_bytes: Count
    max_block_bytes: Count
    reserved_block_bytes: NonNegative | None = None
    bandwidth_bytes_per_cycle: Positive
    latency_cycles: Positive


class Registers(Frozen):
    """The register file of a core; ``base_per_thread`` is what addressing and loop state take."""

    bytes_per_core: Count
    max_per_thread: Count
    base_per_thread: NonNegative


class TensorMemory(Frozen):
    """A memory of a core that holds matrix accumulators outside the register file."""

    capacity_bytes: Count
    read_bytes_per_cycle: Positive


class L2(Frozen):
    """The last on-chip cache.

    ``reuse_fraction``: share of the capacity that reuse within a kernel can count on. ``partitions``:
    parts that each keep a copy of what their cores read, so that a repeated kernel finds no more than
    a part's capacity. ``latency_cycles``: of a hit, the mean over the parts; ``far_latency_cycles``: of one
    in another part than the core's own. ``bulk_copy_cycles``: what a bulk tensor copy takes beyond a plain
    load of the same line. ``line_bytes``: a cache line, 128 bytes if absent. ``write_bytes_per_cycle`` and
    ``core_store_bytes_per_cycle``: the rates of writes where they differ from those of reads.
    """

    capacity_bytes: Count
    bandwidth_bytes_per_cycle: Positive
    core_bytes_per_cycle: Positive
    latency_cycles: Positive
    far_latency_cycles: Positive | None = None
    bulk_copy_cycles: NonNegative | None = None
    reuse_fraction: Fraction
    partitions: Count | None = None
    write_bytes_per_cycle: Positive | None = None
    core_store_bytes_per_cycle: Positive | None = None
    line_bytes: Count | None = None


class Chiplets(Frozen):
    """Compute dies that each have an L2 of their own, in front of one cache beside the memory.

    ``l2`` then gives the capacity and latency of that cache, and the bandwidth of all the dies' L2s
    together. ``bandwidth_bytes_per_cycle``: between the memory-side cache and all the dies, read or written.
    ``latency_cycles``: of a hit in the die's own L2, that of ``l2`` if absent.
    """

    dies: Count
    die_l2_bytes: Count
    bandwidth_bytes_per_cycle: Positive
    latency_cycles: Positive | None = None


class Dram(Frozen):
    """Off-chip memory; the fractions are of ``bandwidth_bytes_per_s``, by read/write mix.

    ``bus_bits`` × ``transfers_per_s`` / 8 is the bandwidth, if the sources are right: they serve to check it.
    """

    capacity_bytes: Count
    bandwidth_bytes_per_s: Positive
    read_fraction: Fraction
    write_fraction: Fraction
    copy_fraction: Fraction
    latency_cycles: Positive
    bus_bits: Count | None = None
    transfers_per_s: Positive | None = None


class Residency(Frozen):
    """How many threads, warps and blocks fit a core at once."""

    warp_size: Count
    threads_per_core: Count
    threads_per_block: Count
    blocks_per_core: Count


class Features(Frozen):
    """What copies and warps can do.

    ``async_copy``: global → scratchpad past the registers (cp.async). ``bulk_copy``: whole tiles by
    one instruction (TMA, TME). ``warp_specialisation``: producer warps feed consumers.
    """

    async_copy: bool
    bulk_copy: bool
    warp_specialisation: bool
    clusters: bool = False


class Sync(Frozen):
    """Barriers and atomics. A block barrier costs ``barrier_cycles + barrier_cycles_per_warp × warps``."""

    barrier_cycles: NonNegative
    barrier_cycles_per_warp: NonNegative
    pipeline_barrier_cycles: NonNegative
    atomic_bytes_per_cycle: Positive  # coalesced read-modify-write in the L2, whole chip


class Launch(Frozen):
    """Fixed costs of a kernel: ``kernel_s`` in a graph, ``ramp_s`` until all cores run, dispatch rate.

    ``block_cycles``: from a block's start to its first instruction of work where it stages tiles in
    the scratchpad (barriers, descriptors). ``graph_s``: between two replays of a graph, beyond the
    kernels in it.
    """

    kernel_s: Positive
    ramp_s: NonNegative
    blocks_per_cycle: Positive
    block_cycles: NonNegative | None = None
    graph_s: NonNegative | None = None


Tiles = Literal["any", "few_parts", "one_a_block", "powers_of_two"]


class KernelProfile(Frozen):
    """What a library's kernels of one operator family do otherwise than a well-made tile program.

    ``core_fraction`` scales the rates of the cores' engines, ``memory_fraction`` those of DRAM, L2 and
    ports and divides their latencies, ``launch_fraction`` scales the cost of a launch. ``tiles``: which
    configurations the library has; ``few_parts``: sums split into sixteen parts at most; ``one_a_block``: no
    persistent blocks; ``powers_of_two``: none either, and block sides that are powers of two from 64 on (as
    in the names of cuBLAS kernels: ampere_bf16_s16816gemm_bf16_256x128_…, nvjet_sm120_tst_mma_64x64x128_…).
    """

    core_fraction: Positive
    memory_fraction: Positive
    launch_fraction: Positive
    tiles: Tiles = "any"


class Calibration(Frozen):
    """Where a chip's fitted numbers come from, and how far they can be trusted.

    ``kind``: ``fitted`` to measurements of this chip, or ``transferred`` from others of its kind.
    ``data``: what was fitted, with the SHA-256 of its rows; ``factors`` and ``sigma``: by parameter,
    the factor on the starting point and the standard deviation of its logarithm; ``unseen``:
    parameters that the data cannot see, left at their prior. ``residual``: by operator family, then by
    decade of the predicted time (``1e-05``: 10 to 100 µs; ``all``), what a standard deviation of
    log(measured / predicted) must be for the 90 % interval to hold nine of ten.
    """

    kind: Literal["fitted", "transferred"]
    data: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rows: NonNegativeInt
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    factors: dict[str, PositiveFloat]
    sigma: dict[str, NonNegativeFloat]
    unseen: tuple[str, ...] = ()
    residual: dict[str, dict[str, PositiveFloat]]


class Chip(Frozen):
    """One device as a runtime shows it (a die, where a package holds several).

    ``stated_peak_flop_per_s`` is the vendor's figure by dtype, kept to be checked against
    cores × rate × clock. ``architecture`` is what compilers call it (``sm_90a``, ``gfx942``), where a public
    one is known. ``overlap_exponent``: how far engines that are busy at the same time get in each
    other's way: the kernel takes the norm of this order of its course and their busy times (absent:
    not at all). ``kernels``: by operator family (``gemm.bf16``) or kernel source of one
    (``gemm.fp8/torch_flow``), where a calibration found them to differ. ``unknown`` and ``conflicts``
    are said in reports.
    """

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    name: str
    vendor: str
    family: str
    architecture: str = ""
    style: Style
    aliases: tuple[str, ...] = ()
    summary: str = ""
    cores: Count
    overlap_exponent: Positive | None = None
    clock: Clock
    matrix: Matrix
    vector: Vector
    registers: Registers | None = None
    scratchpad: Scratchpad | None = None
    tensor_memory: TensorMemory | None = None
    davinci: Davinci | None = None
    mlu: Mlu | None = None
    l2: L2
    chiplets: Chiplets | None = None
    dram: Dram
    residency: Residency | None = None
    features: Features
    sync: Sync
    launch: Launch
    kernels: dict[str, KernelProfile] = Field(default_factory=dict)
    calibration: Calibration | None = None
    stated_peak_flop_per_s: dict[str, Positive] = Field(default_factory=dict)
    tdp_w: Positive | None = None
    unknown: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _style_has_its_parts(self) -> Chip:
        missing = [name for name in STYLE_PARTS[self.style] if getattr(self, name) is None]
        if missing:
            raise ValueError(f"style {self.style} needs {', '.join(missing)}")
        if self.matrix.instruction == "tcgen05" and self.tensor_memory is None:
            raise ValueError("matrix.instruction tcgen05 needs tensor_memory")
        return self

    def quantities(self) -> dict[str, Quantity[float] | Quantity[int]]:
        """Every number in the file: dotted path → quantity, in file order."""
        found: dict[str, Quantity[float] | Quantity[int]] = {}

        def visit(path: str, node: object) -> None:
            if isinstance(node, Quantity):
                found[path] = node
            elif isinstance(node, BaseModel):
                for name in type(node).model_fields:
                    visit(f"{path}.{name}" if path else name, getattr(node, name))
            elif isinstance(node, dict):
                for key, value in node.items():
                    visit(f"{path}.{key}", value)

        visit("", self)
        return found

    def inferred(self) -> tuple[str, ...]:
        """Paths of the chip's numbers that are neither measured nor stated nor derived from such."""
        return tuple(p for p, q in self.described().items() if q.confidence == "inferred")

    def described(self) -> dict[str, Quantity[float] | Quantity[int]]:
        """The numbers that describe the chip, without those of libraries' kernels on it."""
        return {p: q for p, q in self.quantities().items() if not p.startswith("kernels.")}
