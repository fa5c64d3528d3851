"""What every field of a chip file means, in which unit, and where one usually finds it.

The skeleton of ``foretile chips new``, the list of ``foretile chips check`` and the JSON Schema are made of
these. A field of the schema may carry its description itself (``Field(description=...)``); the others
have theirs here. A test holds this table and the schema against each other, so neither can go stale.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from foretile.hwmodels.quantity import Quantity
from foretile.hwmodels.schema import STYLE_PARTS, Chip, Style

# Sections that some styles have and others do not.
_OF_A_STYLE = frozenset(part for parts in STYLE_PARTS.values() for part in parts) | {"tensor_memory"}
# Made by a calibration, not written by hand.
MADE = ("kernels", "calibration")

Kind = Literal["number", "numbers", "choice", "flag", "text", "list"]

_SHEET = "data sheet or whitepaper"
_ISA = "ISA or programming guide"
_TABLE = "throughput table of the ISA or programming guide"
_TOOLKIT = "toolkit's cost model; documentation"
_PROPS = "device properties that the runtime prints"
_CHASE = "pointer chase over a buffer of that size"

# path: (meaning, where it is usually found)
_GUIDE: dict[str, tuple[str, str]] = {
    "id": ("Lower-case letters, digits and hyphens; the file is called like it.", ""),
    "name": ("The product's name.", ""),
    "vendor": ("Who makes it; the folder of the catalogue is called like it.", ""),
    "family": ("Generation, as reports name it.", ""),
    "architecture": ("What compilers call it (sm_90a, gfx942), if a public one is known.",
                     "the compiler's manual"),
    "style": ("How programs are lowered: simt (blocks of warps on a core), davinci (separate cube and vector "
              "cores with explicit buffers), mlu (clusters with memories of their own).", ""),
    "aliases": ("Other names under which the chip is found.", ""),
    "summary": ("One sentence that says what is special about it.", ""),
    "cores": ("Cores a program can use (SM, CU, AP, AI core).", f"{_SHEET}; {_PROPS}"),
    "overlap_exponent": ("Order of the norm that joins engines' busy times; absent, they overlap fully.",
                         "a calibration (foretile calibrate)"),
    "clock.max_hz": ("Boost clock; the unit of all cycles.", f"{_SHEET}; {_PROPS}"),
    "clock.matrix_burst_hz": ("Clock under dense matrix work in runs below a millisecond.",
                              "measured GEMM rate / (cores x rate x mainloop_fraction)"),
    "clock.matrix_sustained_hz": ("The same in runs of seconds.", "a GEMM in a loop, or the clock it shows"),
    "clock.settle_s": ("Matrix work after which the clock begins to sink; given with matrix_sustained_hz.",
                       "GEMM rate over the length of the run"),
    "matrix.instruction": ("How a program drives the matrix engine: mma_sync (warps feed it from registers), "
                           "wgmma (asynchronous, from the scratchpad), tcgen05 (accumulators in tensor "
                           "memory), mfma (wave-wide, from registers), cube (a core of its own).", _ISA),
    "matrix.flop_per_cycle": ("Dense FLOP (integer OP) a cycle and core by dtype; a multiply-add is 2.",
                              "peak / (cores x clock); instruction tables"),
    "matrix.m": ("Rows of the smallest tile at full rate.", _ISA),
    "matrix.n": ("Columns of the smallest tile at full rate.", _ISA),
    "matrix.k_bytes": ("Depth of one instruction, in bytes of an operand's row.", _ISA),
    "matrix.latency_cycles": ("From a matrix instruction to its result.", "chain of dependent instructions"),
    "matrix.mainloop_fraction": ("Share of the peak rate a well-written main loop reaches when nothing else "
                                 "limits it.", "best library GEMM over peak, clocks locked"),
    "matrix.sync_fraction": ("Asynchronous engines: share of the peak that the older instructions of 16 rows "
                             "reach.", "microbenchmark of mma.sync"),
    "matrix.accumulate_fraction_bits": ("By dtype: fraction bits that products keep when an instruction sums "
                                        "them, where fewer than the accumulator's.", "papers on it"),
    "vector.fp32_per_cycle": ("fp32 multiply-adds a cycle and core, in results.", _TABLE),
    "vector.alu_per_cycle": ("Integer, compare, select, minimum and maximum.", _TABLE),
    "vector.special_per_cycle": ("exp2, log2, reciprocal square root and the like.",
                                 _TABLE),
    "vector.convert_per_cycle": ("Narrowing conversions.", _TABLE),
    "vector.issue_per_cycle": ("Instructions issued a cycle times lanes.", _ISA),
    "vector.code_fraction": ("Share of these rates that element-wise code between matrix products reaches.",
                             "softmax part of an attention kernel"),
    "vector.half_per_cycle": ("Packed 16-bit operations.", _TABLE),
    "vector.latency_cycles": ("From an instruction to a dependent one.", "chain of dependent additions"),
    "registers.bytes_per_core": ("Register file of a core.", _SHEET),
    "registers.max_per_thread": ("4-byte registers a thread may have.", _ISA),
    "registers.base_per_thread": ("Those that addressing and loop state take.", "a plain kernel's count"),
    "scratchpad.capacity_bytes": ("Shared memory of a core.", f"{_SHEET}; {_PROPS}"),
    "scratchpad.max_block_bytes": ("The most one block may have.", _PROPS),
    "scratchpad.reserved_block_bytes": ("What the runtime takes of each block's share.", _PROPS),
    "scratchpad.bandwidth_bytes_per_cycle": ("Of one core.", f"{_ISA}; conflict-free reads"),
    "scratchpad.latency_cycles": ("Of a load.", "pointer chase in shared memory"),
    "tensor_memory.capacity_bytes": ("Memory of a core for accumulators outside of the registers.", _ISA),
    "tensor_memory.read_bytes_per_cycle": ("Of one core.", "microbenchmark"),
    "davinci.vector_cores_per_cube": ("Vector cores beside one cube core.", _SHEET),
    "davinci.l1_bytes": ("L1 buffer of a cube core.", "platform configuration of the toolkit"),
    "davinci.l0a_bytes": ("Buffer of the left operand.", "platform configuration of the toolkit"),
    "davinci.l0b_bytes": ("Buffer of the right operand.", "platform configuration of the toolkit"),
    "davinci.l0c_bytes": ("Buffer of accumulators.", "platform configuration of the toolkit"),
    "davinci.ub_bytes": ("Unified buffer of each vector core.", "platform configuration of the toolkit"),
    "davinci.l1_to_l0a_bytes_per_cycle": ("Feed of the left operand.", _TOOLKIT),
    "davinci.l1_to_l0b_bytes_per_cycle": ("Feed of the right operand.", _TOOLKIT),
    "davinci.gm_to_l1_bytes_per_cycle": ("Copy queue from global memory into L1.", "copy test of one core"),
    "davinci.l0c_to_gm_bytes_per_cycle": ("Copy queue of results out of L0C.", "copy test of one core"),
    "davinci.gm_to_ub_bytes_per_cycle": ("Copy queue into the unified buffer.", "copy test of one core"),
    "davinci.ub_to_gm_bytes_per_cycle": ("Copy queue out of the unified buffer.", "copy test of one core"),
    "davinci.vector_bytes_per_cycle": ("Width of each vector core.", _ISA),
    "davinci.vector_issue_cycles": ("Fixed cycles of a vector instruction.", "toolkit's cost model"),
    "davinci.cube_issue_cycles": ("Fixed cycles of a cube instruction.", "toolkit's cost model"),
    "davinci.handoff": ("How accumulators reach the vector cores: through the l2, direct, or fused.", _SHEET),
    "davinci.handoff_cycles": ("Synchronisation that the hand-over costs.", "toolkit's cost model"),
    "davinci.l0c_to_ub_bytes_per_cycle": ("Path of accumulators to the vector unit, not through memory.",
                                          _TOOLKIT),
    "davinci.ub_to_l1_bytes_per_cycle": ("Path of operands from the vector unit to the cube.", _TOOLKIT),
    "davinci.gm_burst_bytes": ("What a row of a tile takes of a copy from or to global memory at least.",
                               "copies of ever shorter rows"),
    "davinci.l1_copy_cycles": ("Fixed cycles of a copy from global memory into L1.", "copies of few rows"),
    "davinci.l1_row_cycles": ("Cycles of each row of such a copy.", "copies of many short rows"),
    "davinci.l0_issue_cycles": ("Fixed cycles of a copy from L1 to L0.", "queue counters of a product"),
    "davinci.scalar_issue_cycles": ("Cycles of the scalar unit an instruction.", "queue counters"),
    "davinci.gm_line_cycles": ("How long a burst of one core keeps its line from others that read it too.",
                               "copies of the same rows by all cores at once"),
    "davinci.unit_flag": ("Whether fix-pipe and cube hand over parts of L0C: true or false.", _ISA),
    "mlu.cores_per_cluster": ("Cores that share a memory core.", _ISA),
    "mlu.nram_bytes": ("Memory of a core for operands and results; what programs may use.", _ISA),
    "mlu.wram_bytes": ("Memory of a core for weights.", _ISA),
    "mlu.sram_bytes": ("Memory of a cluster; what programs may use.", _ISA),
    "mlu.dma_bytes_per_cycle": ("Copies between global memory and a core.", "copy test of one core"),
    "mlu.sram_bytes_per_cycle": ("Copies from a cluster's memory to a core.", "copy test of one core"),
    "mlu.vector_bytes_per_cycle": ("Width of a core's vector unit.", _ISA),
    "chiplets.dies": ("Compute dies that each have an L2 of their own.", _SHEET),
    "chiplets.die_l2_bytes": ("L2 of one die.", _SHEET),
    "chiplets.bandwidth_bytes_per_cycle": ("Between the cache beside the memory and all the dies.",
                                           "reads of a buffer that fits it and no die's L2"),
    "chiplets.latency_cycles": ("Of a hit in the die's own L2.", _CHASE),
    "l2.capacity_bytes": ("Last on-chip cache.", f"{_SHEET}; {_PROPS}"),
    "l2.bandwidth_bytes_per_cycle": ("Of the whole chip.", "read test of a buffer that fits, all cores"),
    "l2.core_bytes_per_cycle": ("Of one core's port.", "the same with one core"),
    "l2.latency_cycles": ("Mean of near and far hits.", _CHASE),
    "l2.far_latency_cycles": ("Of a hit in another part than the core's own.", _CHASE),
    "l2.bulk_copy_cycles": ("What a bulk tensor copy takes beyond a plain load.", "latency of a bulk copy"),
    "l2.reuse_fraction": ("Share of the capacity that reuse within a kernel can count on.",
                          "no direct test; relatives have 0.25 to 0.6"),
    "l2.line_bytes": ("A cache line.", _ISA),
    "l2.partitions": ("Parts that each keep a copy of what their cores read.", "reads of growing buffers"),
    "l2.write_bytes_per_cycle": ("Rate of writes, where it is not that of reads.", "write test, all cores"),
    "l2.core_store_bytes_per_cycle": ("Rate of one core's writes.", "write test, one core"),
    "dram.capacity_bytes": ("Off-chip memory.", _SHEET),
    "dram.bandwidth_bytes_per_s": ("As specified.", f"{_SHEET}; bus width x data rate / 8"),
    "dram.bus_bits": ("Width of the memory bus, to check the bandwidth by.", _SHEET),
    "dram.transfers_per_s": ("Data rate of one pin, to check the bandwidth by.", _SHEET),
    "dram.read_fraction": ("Share of it that a streaming read reaches.", "read test over gigabytes"),
    "dram.write_fraction": ("Share of it that a fill reaches.", "fill test over gigabytes"),
    "dram.copy_fraction": ("Share of it that a copy reaches, both ways counted.", "copy test over gigabytes"),
    "dram.latency_cycles": ("Of a load that misses every cache.", _CHASE),
    "residency.warp_size": ("Threads that issue together.", _PROPS),
    "residency.threads_per_core": ("That fit at once.", _PROPS),
    "residency.threads_per_block": ("The most.", _PROPS),
    "residency.blocks_per_core": ("That fit at once.", _ISA),
    "features.async_copy": ("Copies from global memory to the scratchpad past the registers.", _ISA),
    "features.bulk_copy": ("Whole tiles by one instruction.", _ISA),
    "features.warp_specialisation": ("Producer warps feed consumers.", _ISA),
    "features.clusters": ("Blocks that share scratchpads and multicast.", _ISA),
    "sync.barrier_cycles": ("A block barrier costs this ...", "loop of barriers, 1 to 32 warps"),
    "sync.barrier_cycles_per_warp": ("... plus this times warps.", "loop of barriers, 1 to 32 warps"),
    "sync.pipeline_barrier_cycles": ("Handing over a stage of a pipeline.", "ping-pong of two warp groups"),
    "sync.atomic_bytes_per_cycle": ("Coalesced read-modify-write in the L2, whole chip.", "fp32 atomic adds"),
    "launch.kernel_s": ("Fixed cost of a kernel in a graph.", "chain of empty kernels in a graph"),
    "launch.ramp_s": ("Until all cores run.", "an empty kernel of many blocks"),
    "launch.blocks_per_cycle": ("Dispatch rate.", "an empty kernel of very many blocks"),
    "launch.block_cycles": ("From a block's start to its first instruction of work.", "kernels of growing K"),
    "launch.graph_s": ("Between two replays of a graph, beyond the kernels in it.", "replays of a graph"),
    "stated_peak_flop_per_s": ("The vendor's dense peak by dtype, to check cores x rate x clock by.", _SHEET),
    "tdp_w": ("Board power.", _SHEET),
    "unknown": ("What is missing or borrowed, in words; reports repeat it.", ""),
    "conflicts": ("Where sources disagree and which was taken; begin with the field's name and a colon.", ""),
}  # fmt: skip

# By the end of a field's name; the first that fits.
_UNITS = (
    ("_bytes_per_s", "bytes/s"), ("_bytes_per_cycle", "bytes/cycle"), ("_cycles_per_warp", "cycles/warp"),
    ("flop_per_cycle", "FLOP/cycle/core"), ("blocks_per_cycle", "blocks/cycle"), ("flop_per_s", "FLOP/s"),
    ("transfers_per_s", "transfers/s"), ("_per_cycle", "results/cycle/core"), ("_cycles", "cycles"),
    ("bytes_per_core", "bytes"), ("_bytes", "bytes"), ("_hz", "Hz"), ("_fraction", "share, 0 to 1"),
    ("_bits", "bits"), ("_w", "W"), ("_s", "s"),
)  # fmt: skip


@dataclass(frozen=True)
class Field:
    """One field of a chip file: its dotted path, kind, whether a prediction needs it, and words on it.

    ``options`` are the words that a choice allows.
    """

    path: str
    kind: Kind
    required: bool
    unit: str
    meaning: str
    where: str
    options: tuple[str, ...] = ()

    @property
    def section(self) -> str:
        """The part of the file it belongs to; empty at the top."""
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The key in its section."""
        return self.path.rpartition(".")[2]

    @property
    def words(self) -> str:
        """Meaning, unit, and where to find it, in one line."""
        unit = f" [{self.unit}]" if self.unit else ""
        return f"{self.meaning}{unit}" + (f" Found in: {self.where}." if self.where else "")


def fields(style: Style | None = None) -> tuple[Field, ...]:
    """Every field a chip file of ``style`` (default: any) may have, in the schema's order.

    Numbers are required if a prediction needs them; what calibrations make is left out.
    """
    found = []
    for path, info, required in _walk(Chip, "", True):
        section = path.partition(".")[0]
        if section in MADE:
            continue
        if style is not None and section in _OF_A_STYLE:
            if section in STYLE_PARTS[style]:
                required = info.is_required()
            elif (section, style) != ("tensor_memory", "simt"):
                continue
        found.append(_field(path, info, required))
    return tuple(found)


def _walk(model: type[BaseModel], prefix: str, required: bool) -> Iterator[tuple[str, FieldInfo, bool]]:
    for name, info in model.model_fields.items():
        below = _section(info.annotation)
        needed = required and info.is_required()
        if below is None:
            yield prefix + name, info, needed
        else:
            yield from _walk(below, f"{prefix}{name}.", needed)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The class of a section's annotation; None for numbers, free mappings and the rest."""
    for part in (annotation, *typing.get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return None if issubclass(part, Quantity) else part
    return None


def _field(path: str, info: FieldInfo, required: bool) -> Field:
    kind, options = _kind(info.annotation)
    meaning, where = (info.description, "") if info.description else _GUIDE.get(path, ("", ""))
    name = path.rpartition(".")[2]
    unit = next((u for end, u in _UNITS if name.endswith(end)), "") if kind in ("number", "numbers") else ""
    return Field(path, kind, required, unit, meaning, where, options)


def _kind(annotation: Any) -> tuple[Kind, tuple[str, ...]]:
    if annotation is bool:
        return "flag", ("true", "false")
    if typing.get_origin(annotation) is Literal:
        return "choice", tuple(str(a) for a in typing.get_args(annotation))
    parts = (annotation, *typing.get_args(annotation))
    if any(typing.get_origin(p) is dict for p in parts):
        return "numbers", ()
    if any(isinstance(p, type) and issubclass(p, Quantity) for p in parts):
        return "number", ()
    return ("list" if typing.get_origin(annotation) is tuple else "text"), ()


def described_paths() -> frozenset[str]:
    """The paths that this table describes (a test compares them with the schema's)."""
    return frozenset(_GUIDE)
