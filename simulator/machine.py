"""A chip as the simulator sees it: plain numbers in seconds, bytes and FLOP a second.

This is the only place where chip files become numbers of the model, so a what-if ("ten per cent
more DRAM bandwidth") is one scaled field here.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from foretile.hwmodels.explicit import Davinci, Mlu
from foretile.hwmodels.quantity import Quantity
from foretile.hwmodels.schema import L2, Chip, KernelProfile


class SimulationError(ValueError):
    """A program, configuration or chip that cannot be simulated together; the message says why."""


class UndecidedError(SimulationError):
    """What only running the kernel tells: how often a loop runs, which way a branch goes."""


class RegistersError(SimulationError):
    """A thread needs more registers than it can have; ``excess``: how many more."""

    def __init__(self, message: str, excess: int) -> None:
        super().__init__(message)
        self.excess = excess


# The fall from the burst to the sustained clock is spread over two decades of matrix work beyond
# ``settle_s`` (see docs/model.md, clock under load).
SETTLE_DECADES = 2.0


_PIPES = ("fp32_per_s", "alu_per_s", "special_per_s", "convert_per_s", "issue_per_s")


@dataclass(frozen=True, eq=False)
class Machine:
    """Numbers of one chip; rates are per core unless the name says ``chip``.

    ``engine`` names used throughout the simulator: ``matrix``, ``vector``, ``special``,
    ``scratchpad``, ``tensor_memory``, ``port`` (L2 → core), and chip-wide ``l2``, ``dram``, ``atomic``.
    """

    id: str
    style: str
    cores: int
    cycle_s: float
    matrix_instruction: str
    matrix_flop_per_s: Mapping[str, float]  # at the burst clock, main-loop fraction included
    matrix_peak_flop_per_s: Mapping[str, float]  # at the maximum clock
    matrix_m: int
    matrix_n: int
    matrix_k_bytes: int
    matrix_latency_s: float
    sync_fraction: float  # share of the rate that 16-row warp-synchronous instructions reach
    code_fraction: float
    burst_ratio: float  # clock under matrix load / maximum clock, at most 1
    matrix_sustained_ratio: float  # sustained / burst clock, at most 1
    settle_s: float
    fp32_per_s: float
    alu_per_s: float
    special_per_s: float
    convert_per_s: float
    issue_per_s: float
    vector_latency_s: float
    scratchpad_bytes: int
    scratchpad_block_bytes: int
    scratchpad_reserved_bytes: int
    scratchpad_bytes_per_s: float
    scratchpad_latency_s: float
    register_bytes: int
    registers_per_thread: int
    registers_base: float
    tensor_memory_bytes: int
    tensor_memory_bytes_per_s: float
    l2_bytes: float  # what reuse within a kernel can count on
    l2_kept_bytes: float  # what a repetition of the kernel can find
    l2_chip_bytes_per_s: float
    port_bytes_per_s: float
    store_cost: float  # time of a byte from core to L2 over that of one from L2 to core
    l2_write_cost: float  # the same for the L2's own bandwidth
    l2_latency_s: float  # of a hit in the part of the L2 that is the core's own
    l2_far_latency_s: float  # of a hit in another part
    l2_parts: int
    line_bytes: float
    dies: int  # with an L2 each, in front of the cache beside the memory (1: one L2 for all)
    die_bytes: float  # of a die's L2, what reuse can count on
    die_latency_s: float  # of a hit in it
    fabric_cost: float  # time of a byte from that cache to the dies over that of one from their L2s
    bulk_copy_s: float
    dram_bytes_per_s: float
    dram_read_fraction: float
    dram_write_fraction: float
    dram_copy_fraction: float
    dram_latency_s: float
    warp_size: int
    threads_per_core: int
    threads_per_block: int
    blocks_per_core: int
    async_copy: bool
    bulk_copy: bool
    warp_specialisation: bool
    clusters: bool
    barrier_s: float
    barrier_warp_s: float
    pipeline_barrier_s: float
    atomic_chip_bytes_per_s: float
    launch_s: float
    ramp_s: float
    dispatch_s: float
    block_s: float  # from a block's start to its first instruction of work
    overlap: float  # exponent of the norm that joins the engines' busy times; infinite: they overlap fully
    setup_s: float = 0.0  # what these kernels' blocks take longer to start than this machine's
    pace: float = 1.0  # rate of the cores' engines in these kernels, over what this machine says
    answer: float = 1.0  # how long L2 and DRAM take to answer these kernels, over what this machine says
    copy_pace: float = 1.0  # rate of the copies between a core's buffers, over what the chip file says
    cluster_cores: float = 2.0  # blocks of a cluster, which read what all of them need once
    davinci: Davinci | None = field(default=None)
    mlu: Mlu | None = field(default=None)

    def matrix_rate(self, dtype: str) -> float:
        """FLOP a second of one core's matrix engine for the dtype with this short name.

        An engine without fp32 takes fp32 operands as tf32, as TileLang's products of float32 tiles do
        (its ``mma`` and ``wgmma`` generators choose the tf32 instructions for them).

        Raises:
            SimulationError: the chip file gives no rate for it.
        """
        if dtype == "fp32" and dtype not in self.matrix_flop_per_s and "tf32" in self.matrix_flop_per_s:
            dtype = "tf32"
        return _rate(self.matrix_flop_per_s, dtype, self.id)

    def peak(self, dtype: str) -> float:
        """Peak FLOP a second of the chip at its maximum clock.

        Raises:
            SimulationError: the chip file gives no rate for it.
        """
        return _rate(self.matrix_peak_flop_per_s, dtype, self.id) * self.cores

    def under_matrix_load(self) -> Machine:
        """The machine as a kernel with matrix products finds it.

        A core has one clock: what the power limit takes from the matrix engine it takes from the
        vector units and the scratchpad too; the L2 and DRAM have clocks of their own. Element-wise
        code between products runs with few warps and reaches ``code_fraction`` of the rates.
        """
        slowed = _times(
            self, self.burst_ratio, *_PIPES, "scratchpad_bytes_per_s", "tensor_memory_bytes_per_s"
        )
        slowed = _times(slowed, self.code_fraction, *_PIPES)
        return _times(
            slowed,
            1 / self.burst_ratio,
            "vector_latency_s",
            "scratchpad_latency_s",
            "matrix_latency_s",
            "barrier_s",
            "barrier_warp_s",
        )

    def improved(self, resource: str, factor: float) -> Machine:
        """The same machine with one resource ``factor`` times better (see :data:`RESOURCES`)."""
        return RESOURCES[resource](self, factor)


def _rate(table: Mapping[str, float], dtype: str, chip: str) -> float:
    if dtype in table:
        return table[dtype]
    near = difflib.get_close_matches(dtype, table, n=1)
    hint = f" (nearest: {near[0]})" if near else ""
    raise SimulationError(
        f"{chip}: matrix.flop_per_cycle.{dtype}: unknown, so {dtype} matrix work cannot be timed on this "
        f"chip; it is given for {', '.join(table)}{hint}"
    )


def _times(m: Machine, factor: float, *names: str) -> Machine:
    return replace(m, **{n: getattr(m, n) * factor for n in names})


def _matrix(m: Machine, f: float) -> Machine:
    return replace(m, matrix_flop_per_s={k: v * f for k, v in m.matrix_flop_per_s.items()})


# Rates and times that neither a block's operations nor the bytes that they move depend on.
RATES = frozenset(
    {
        "l2_chip_bytes_per_s",
        "port_bytes_per_s",
        "l2_write_cost",
        "dram_bytes_per_s",
        "dram_read_fraction",
        "dram_write_fraction",
        "dram_copy_fraction",
        "matrix_sustained_ratio",
        "settle_s",
        "atomic_chip_bytes_per_s",
        "launch_s",
        "ramp_s",
        "setup_s",
        "dispatch_s",
        "overlap",
        "pace",
        "answer",
    }
)
# Numbers of what lies outside the cores: how a block's work falls into operations depends on none of them.
OUTSIDE = RATES | frozenset(
    {
        "id",
        "l2_bytes",
        "l2_kept_bytes",
        "store_cost",
        "l2_latency_s",
        "l2_far_latency_s",
        "l2_parts",
        "line_bytes",
        "dies",
        "die_bytes",
        "die_latency_s",
        "fabric_cost",
        "bulk_copy_s",
        "dram_latency_s",
    }
)


def core_numbers(machine: Machine) -> tuple[Any, ...]:
    """What lowering reads of a machine: equal for machines that differ only outside of their cores."""
    return tuple(
        tuple(sorted(value.items())) if isinstance(value, Mapping) else value
        for value in (getattr(machine, f.name) for f in fields(machine) if f.name not in OUTSIDE)
    )


RESOURCES: dict[str, Callable[[Machine, float], Machine]] = {
    "matrix": _matrix,
    "vector": lambda m, f: _times(m, f, "fp32_per_s", "alu_per_s", "convert_per_s", "issue_per_s"),
    "special": lambda m, f: _times(m, f, "special_per_s"),
    "scratchpad": lambda m, f: _times(
        m, f, "scratchpad_bytes_per_s", "tensor_memory_bytes_per_s", "copy_pace"
    ),
    "l2": lambda m, f: _times(m, f, "l2_chip_bytes_per_s", "port_bytes_per_s"),
    "l2_capacity": lambda m, f: _times(m, f, "l2_bytes"),
    "dram": lambda m, f: _times(m, f, "dram_bytes_per_s"),
    "latency": lambda m, f: _times(
        m,
        1 / f,
        "dram_latency_s",
        "l2_latency_s",
        "l2_far_latency_s",
        "die_latency_s",
        "bulk_copy_s",
        "scratchpad_latency_s",
        "matrix_latency_s",
        "vector_latency_s",
    ),
    "barrier": lambda m, f: _times(m, 1 / f, "barrier_s", "barrier_warp_s", "pipeline_barrier_s"),
    "atomic": lambda m, f: _times(m, f, "atomic_chip_bytes_per_s"),
    "launch": lambda m, f: _times(m, 1 / f, "launch_s", "ramp_s", "setup_s", "dispatch_s"),
}


def _of(q: Quantity[float] | Quantity[int] | None, default: float = 0.0) -> float:
    return default if q is None else float(q.value)


def for_kernels(m: Machine, profile: KernelProfile) -> Machine:
    """The machine as the kernels of one library use it: no level beyond its own peak.

    What longer set-up adds to the ramp (lengths and page tables to look up, descriptors, barriers) every
    round of blocks pays, the first one included.
    """
    memory = min(profile.memory_fraction.value, 1.0 / m.dram_read_fraction)
    headroom = min(
        (m.matrix_peak_flop_per_s[k] / v for k, v in m.matrix_flop_per_s.items()), default=math.inf
    )
    slowed = _times(m, memory, "dram_bytes_per_s", "l2_chip_bytes_per_s", "port_bytes_per_s")
    launch = profile.launch_fraction.value
    slowed = _times(slowed, launch, "launch_s")
    slowed = _times(slowed, min(1.0, launch), "ramp_s")
    setup = max(0.0, launch - 1.0) * m.ramp_s
    pace = min(profile.core_fraction.value, headroom)
    return replace(slowed, setup_s=setup, pace=pace, answer=1.0 / memory)


def _near_and_far(l2: L2) -> tuple[float, float, int]:
    """Cycles of a hit in the core's own part of the L2 and in another one, and the number of parts.

    The file's latency is the mean over the parts, between which addresses are spread evenly.
    """
    mean, parts = l2.latency_cycles.value, int(_of(l2.partitions, 1.0))
    if l2.far_latency_cycles is None or parts == 1:
        return mean, mean, parts
    far = max(mean, l2.far_latency_cycles.value)
    return max(0.0, parts * mean - (parts - 1) * far), far, parts


def machine(chip: Chip) -> Machine:
    """The numbers of ``chip``; absent optional values become zero-cost or the nearest stated one."""
    hz = chip.clock.max_hz.value
    cycle = 1.0 / hz
    burst_hz = min(hz, _of(chip.clock.matrix_burst_hz, hz))
    sustained_hz = min(burst_hz, _of(chip.clock.matrix_sustained_hz, burst_hz))
    fraction = chip.matrix.mainloop_fraction.value
    pad = chip.scratchpad
    regs = chip.registers
    stay = chip.residency
    tmem = chip.tensor_memory
    l2, port = chip.l2.bandwidth_bytes_per_cycle.value, chip.l2.core_bytes_per_cycle.value
    near, far, parts = _near_and_far(chip.l2)
    die = chip.chiplets.latency_cycles if chip.chiplets else None
    return Machine(
        id=chip.id,
        style=chip.style,
        cores=chip.cores.value,
        cycle_s=cycle,
        matrix_instruction=chip.matrix.instruction,
        matrix_flop_per_s={k: q.value * burst_hz * fraction for k, q in chip.matrix.flop_per_cycle.items()},
        matrix_peak_flop_per_s={k: q.value * hz for k, q in chip.matrix.flop_per_cycle.items()},
        matrix_m=chip.matrix.m.value,
        matrix_n=chip.matrix.n.value,
        matrix_k_bytes=chip.matrix.k_bytes.value,
        matrix_latency_s=chip.matrix.latency_cycles.value * cycle,
        sync_fraction=_of(chip.matrix.sync_fraction, 1.0),
        code_fraction=chip.vector.code_fraction.value,
        burst_ratio=burst_hz / hz,
        matrix_sustained_ratio=sustained_hz / burst_hz,
        settle_s=_of(chip.clock.settle_s, 1.0),
        fp32_per_s=chip.vector.fp32_per_cycle.value * hz,
        alu_per_s=chip.vector.alu_per_cycle.value * hz,
        special_per_s=chip.vector.special_per_cycle.value * hz,
        convert_per_s=chip.vector.convert_per_cycle.value * hz,
        issue_per_s=chip.vector.issue_per_cycle.value * hz,
        vector_latency_s=_of(chip.vector.latency_cycles) * cycle,
        scratchpad_bytes=pad.capacity_bytes.value if pad else 0,
        scratchpad_block_bytes=pad.max_block_bytes.value if pad else 0,
        scratchpad_reserved_bytes=int(_of(pad.reserved_block_bytes)) if pad else 0,
        scratchpad_bytes_per_s=pad.bandwidth_bytes_per_cycle.value * hz if pad else 0.0,
        scratchpad_latency_s=pad.latency_cycles.value * cycle if pad else 0.0,
        register_bytes=regs.bytes_per_core.value if regs else 0,
        registers_per_thread=regs.max_per_thread.value if regs else 0,
        registers_base=regs.base_per_thread.value if regs else 0.0,
        tensor_memory_bytes=tmem.capacity_bytes.value if tmem else 0,
        tensor_memory_bytes_per_s=tmem.read_bytes_per_cycle.value * hz if tmem else 0.0,
        l2_bytes=chip.l2.capacity_bytes.value * chip.l2.reuse_fraction.value,
        l2_chip_bytes_per_s=chip.l2.bandwidth_bytes_per_cycle.value * hz,
        port_bytes_per_s=chip.l2.core_bytes_per_cycle.value * hz,
        l2_kept_bytes=chip.l2.capacity_bytes.value / _of(chip.l2.partitions, 1.0),
        store_cost=port / _of(chip.l2.core_store_bytes_per_cycle, port),
        l2_write_cost=l2 / _of(chip.l2.write_bytes_per_cycle, l2),
        l2_latency_s=near * cycle,
        l2_far_latency_s=far * cycle,
        l2_parts=parts,
        line_bytes=_of(chip.l2.line_bytes, 128.0),
        dies=chip.chiplets.dies.value if chip.chiplets else 1,
        die_bytes=chip.chiplets.die_l2_bytes.value * chip.l2.reuse_fraction.value if chip.chiplets else 0.0,
        die_latency_s=_of(die, near) * cycle,
        fabric_cost=l2 / chip.chiplets.bandwidth_bytes_per_cycle.value if chip.chiplets else 0.0,
        bulk_copy_s=_of(chip.l2.bulk_copy_cycles) * cycle,
        dram_bytes_per_s=chip.dram.bandwidth_bytes_per_s.value,
        dram_read_fraction=chip.dram.read_fraction.value,
        dram_write_fraction=chip.dram.write_fraction.value,
        dram_copy_fraction=chip.dram.copy_fraction.value,
        dram_latency_s=chip.dram.latency_cycles.value * cycle,
        warp_size=stay.warp_size.value if stay else 1,
        threads_per_core=stay.threads_per_core.value if stay else 1,
        threads_per_block=stay.threads_per_block.value if stay else 1,
        blocks_per_core=stay.blocks_per_core.value if stay else 1,
        async_copy=chip.features.async_copy,
        bulk_copy=chip.features.bulk_copy,
        warp_specialisation=chip.features.warp_specialisation,
        clusters=chip.features.clusters,
        barrier_s=chip.sync.barrier_cycles.value * cycle,
        barrier_warp_s=chip.sync.barrier_cycles_per_warp.value * cycle,
        pipeline_barrier_s=chip.sync.pipeline_barrier_cycles.value * cycle,
        atomic_chip_bytes_per_s=chip.sync.atomic_bytes_per_cycle.value * hz,
        launch_s=chip.launch.kernel_s.value,
        ramp_s=chip.launch.ramp_s.value,
        dispatch_s=cycle / chip.launch.blocks_per_cycle.value,
        block_s=_of(chip.launch.block_cycles) * cycle,
        overlap=_of(chip.overlap_exponent, math.inf),
        cluster_cores=float(chip.mlu.cores_per_cluster.value) if chip.mlu else 2.0,
        davinci=chip.davinci,
        mlu=chip.mlu,
    )
