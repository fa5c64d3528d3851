"""Is a chip physically plausible? The schema checks each number, this module checks them together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

from foretile.hwmodels.incomplete import IncompleteChip
from foretile.hwmodels.quantity import Quantity
from foretile.hwmodels.schema import L2, Chip

PEAK_TOLERANCE = 0.03
BUS_TOLERANCE = 0.03
# Beyond these a unit or a prefix is wrong: three times what the catalogue's furthest chips have.
MOST_L2_OVER_DRAM = 20
_SIZES: tuple[tuple[str, float, float, str], ...] = (
    ("scratchpad.capacity_bytes", 2**12, 2**21, "of one core, in bytes"),
    ("registers.bytes_per_core", 2**14, 2**21, "of one core, in bytes"),
    ("davinci.l1_bytes", 2**16, 2**23, "of one core, in bytes"),
    ("davinci.ub_bytes", 2**15, 2**21, "of one core, in bytes"),
    ("l2.capacity_bytes", 2**18, 2**31, "in bytes"),
    ("dram.capacity_bytes", 2**30, 2**42, "in bytes"),
    ("dram.bandwidth_bytes_per_s", 2e10, 5e13, "in bytes a second"),
)
_LATENCIES_S = (("l2.latency_cycles", 1e-8, 1e-6), ("dram.latency_cycles", 8e-8, 2e-6))
# Dtype short names a program can ask for, by storage bits; wider types never run faster.
DTYPE_BITS = {
    "fp64": 64,
    "fp32": 32,
    "tf32": 32,
    "fp16": 16,
    "bf16": 16,
    "int16": 16,
    "fp8": 8,
    "fp8_e5m2": 8,
    "int8": 8,
    "fp4": 4,
    "int4": 4,
}


def peak_flop_per_s(chip: Chip, dtype: str) -> float:
    """Dense peak at the maximum clock, cores × FLOP a cycle × Hz.

    Raises:
        KeyError: the chip has no matrix rate for the dtype.
    """
    return chip.cores.value * chip.matrix.flop_per_cycle[dtype].value * chip.clock.max_hz.value


def ridge_flop_per_byte(chip: Chip) -> float:
    """16-bit dense peak over DRAM bandwidth: the intensity above which a kernel is compute-bound."""
    dtype = next((d for d in ("bf16", "fp16") if d in chip.matrix.flop_per_cycle), None)
    rate = peak_flop_per_s(chip, dtype or next(iter(chip.matrix.flop_per_cycle)))
    return rate / chip.dram.bandwidth_bytes_per_s.value


def check_chip(chip: Chip | IncompleteChip) -> list[str]:
    """Warnings about numbers that contradict each other or physics; empty for a plausible chip.

    Of an incomplete chip, what its numbers allow: each by itself, and the stated peaks, the memory bus, the
    ridge point and the caches where both sides are known. A stated peak that ``conflicts`` explains (an
    entry that begins with the field's name) is not repeated.
    """
    if isinstance(chip, IncompleteChip):
        return [*_known_peaks(chip), *_units(chip.quantities()), *_known_memories(chip)]
    return [
        *_peaks(chip),
        *_clocks(chip),
        *_matrix(chip),
        *_memories(chip),
        *_dram(chip),
        *_units(chip.quantities()),
        *_threads(chip),
        *_overheads(chip),
    ]


def _known_peaks(chip: IncompleteChip) -> Iterator[str]:
    """The stated peaks of an incomplete chip, where its numbers give one to compare with."""
    cores, hz = chip.value("cores"), chip.value("clock.max_hz")
    for path, stated in chip.quantities().items():
        head, _, dtype = path.partition(".")
        rate = chip.value(f"matrix.flop_per_cycle.{dtype}")
        if head == "stated_peak_flop_per_s" and cores and hz and rate:
            yield from _peak_warning(chip, dtype, stated.value, cores * rate * hz)


def _peak_conflict_stated(chip: Chip | IncompleteChip, dtype: str) -> bool:
    """Whether ``conflicts`` speaks of the stated peaks, of all (``field:``) or of this dtype's."""
    names = ("stated_peak_flop_per_s:", f"stated_peak_flop_per_s.{dtype}:")
    return any(conflict.startswith(names) for conflict in chip.conflicts)


def _peaks(chip: Chip) -> Iterator[str]:
    for dtype, stated in chip.stated_peak_flop_per_s.items():
        if dtype not in chip.matrix.flop_per_cycle:
            field = f"stated_peak_flop_per_s.{dtype}"
            yield f"{field}: matrix.flop_per_cycle has no {dtype} to compare with"
            continue
        yield from _peak_warning(chip, dtype, stated.value, peak_flop_per_s(chip, dtype))


def _peak_warning(chip: Chip | IncompleteChip, dtype: str, stated: float, computed: float) -> Iterator[str]:
    off = computed / stated - 1
    if abs(off) > PEAK_TOLERANCE and not _peak_conflict_stated(chip, dtype):
        yield (
            f"stated_peak_flop_per_s.{dtype}: {stated:.4g} is stated, but cores x rate x clock gives "
            f"{computed:.4g} ({off:+.1%}); correct one, or explain it under conflicts"
        )


def _clocks(chip: Chip) -> Iterator[str]:
    clock = chip.clock
    top, burst, sustained = clock.max_hz.value, clock.matrix_burst_hz, clock.matrix_sustained_hz
    if burst and burst.value > top:
        yield f"clock.matrix_burst_hz: {burst.value:.4g} is above max_hz {top:.4g}"
    if sustained:
        above, name = (burst.value, "matrix_burst_hz") if burst else (top, "max_hz")
        if sustained.value > above:
            yield f"clock.matrix_sustained_hz: {sustained.value:.4g} is above {name} {above:.4g}"
        if clock.settle_s is None:
            yield "clock.settle_s: missing; with matrix_sustained_hz it says when the clock begins to sink"


def _matrix(chip: Chip) -> Iterator[str]:
    rates = chip.matrix.flop_per_cycle
    if not rates:
        yield "matrix.flop_per_cycle: no dtype; nothing can be computed"
    for dtype in rates:
        if dtype not in DTYPE_BITS:
            yield f"matrix.flop_per_cycle.{dtype}: unknown dtype; known: {', '.join(DTYPE_BITS)}"
    for family in (
        ("fp64", "fp32", "fp16", "fp8", "fp4"),
        ("int16", "int8", "int4"),
        ("tf32", "bf16", "fp8"),
    ):
        known = [dtype for dtype in family if dtype in rates]
        for wide, narrow in pairwise(known):
            if rates[narrow].value < rates[wide].value:
                yield (
                    f"matrix.flop_per_cycle.{narrow}: {rates[narrow].value:g} is below "
                    f"{wide}'s {rates[wide].value:g}"
                )
    if chip.matrix.k_bytes.value > 1024:
        yield f"matrix.k_bytes: {chip.matrix.k_bytes.value} is no depth of one instruction; is it in bytes?"
    if chip.matrix.mainloop_fraction.value < 0.5:
        yield f"matrix.mainloop_fraction: {chip.matrix.mainloop_fraction.value:g} is low for a main loop"


def _memories(chip: Chip) -> Iterator[str]:
    l2, pad = chip.l2, chip.scratchpad
    l2_rate = l2.bandwidth_bytes_per_cycle.value * chip.clock.max_hz.value
    if l2_rate < chip.dram.bandwidth_bytes_per_s.value:
        yield (
            f"l2.bandwidth_bytes_per_cycle: {l2_rate:.3g} B/s at max_hz is below the DRAM's "
            f"{chip.dram.bandwidth_bytes_per_s.value:.3g}"
        )
    if l2_rate > MOST_L2_OVER_DRAM * chip.dram.bandwidth_bytes_per_s.value:
        yield (
            f"l2.bandwidth_bytes_per_cycle: {l2_rate:.3g} B/s at max_hz exceeds {MOST_L2_OVER_DRAM}x the "
            f"DRAM's {chip.dram.bandwidth_bytes_per_s.value:.3g}; is it the chip's, in bytes a cycle?"
        )
    ports = chip.cores.value * l2.core_bytes_per_cycle.value
    if l2.bandwidth_bytes_per_cycle.value > ports:
        yield (
            f"l2.bandwidth_bytes_per_cycle: {l2.bandwidth_bytes_per_cycle.value:g} is more than all cores' "
            f"ports take, {chip.cores.value} x core_bytes_per_cycle = {ports:g}"
        )
    if l2.latency_cycles.value >= chip.dram.latency_cycles.value:
        yield (
            f"l2.latency_cycles: {l2.latency_cycles.value:g} is not below the DRAM's "
            f"{chip.dram.latency_cycles.value:g}"
        )
    yield from _far_hits(l2)
    if l2.capacity_bytes.value >= chip.dram.capacity_bytes.value:
        yield f"l2.capacity_bytes: {l2.capacity_bytes.value} is not below the DRAM's; is the unit right?"
    if pad is not None:
        reserved = pad.reserved_block_bytes.value if pad.reserved_block_bytes else 0.0
        if pad.max_block_bytes.value + reserved > pad.capacity_bytes.value:
            yield (
                f"scratchpad.max_block_bytes: {pad.max_block_bytes.value} and {reserved:g} reserved exceed "
                f"capacity_bytes {pad.capacity_bytes.value}"
            )
        if pad.latency_cycles.value >= l2.latency_cycles.value:
            yield f"scratchpad.latency_cycles: {pad.latency_cycles.value:g} is not below the L2's"
        if pad.bandwidth_bytes_per_cycle.value < l2.core_bytes_per_cycle.value:
            yield "scratchpad.bandwidth_bytes_per_cycle: below l2.core_bytes_per_cycle"


def _far_hits(l2: L2) -> Iterator[str]:
    if l2.far_latency_cycles is None:
        return
    mean, far = l2.latency_cycles.value, l2.far_latency_cycles.value
    parts = l2.partitions.value if l2.partitions else 1
    if parts < 2:
        yield "l2.far_latency_cycles: without partitions there is no other part to hit"
    elif not mean <= far <= mean * parts / (parts - 1):
        yield (
            f"l2.far_latency_cycles: {far:g} does not fit latency_cycles {mean:g}, the mean over {parts} "
            f"partitions; expected {mean:g} to {mean * parts / (parts - 1):g}"
        )


def _dram(chip: Chip) -> Iterator[str]:
    dram = chip.dram
    fractions = {
        "read_fraction": dram.read_fraction.value,
        "write_fraction": dram.write_fraction.value,
        "copy_fraction": dram.copy_fraction.value,
    }
    best = max(fractions["read_fraction"], fractions["write_fraction"])
    if fractions["copy_fraction"] > best:
        yield f"dram.copy_fraction: {fractions['copy_fraction']:g} is above both read and write"
    if chip.matrix.flop_per_cycle:
        yield from _ridge(ridge_flop_per_byte(chip))


def _ridge(flop_per_byte: float) -> Iterator[str]:
    if not 5 <= flop_per_byte <= 1500:
        yield (
            f"dram.bandwidth_bytes_per_s: the ridge point is {flop_per_byte:.3g} FLOP a byte, outside 5 to "
            "1500; are matrix rate, clock and bandwidth in FLOP/cycle, Hz and B/s?"
        )


def _known_memories(chip: IncompleteChip) -> Iterator[str]:
    """The memories of an incomplete chip beside each other, as far as they are known."""
    bandwidth = chip.value("dram.bandwidth_bytes_per_s")
    peak = chip.value("stated_peak_flop_per_s.bf16") or chip.value("stated_peak_flop_per_s.fp16")
    if bandwidth and peak:
        yield from _ridge(peak / bandwidth)
    near, far = chip.value("l2.capacity_bytes"), chip.value("dram.capacity_bytes")
    if near and far and near >= far:
        yield f"l2.capacity_bytes: {near:g} is not below the DRAM's; is the unit right?"
    near, far = chip.value("l2.latency_cycles"), chip.value("dram.latency_cycles")
    if near and far and near >= far:
        yield f"l2.latency_cycles: {near:g} is not below the DRAM's {far:g}"


def _units(known: Mapping[str, Quantity[float] | Quantity[int]]) -> Iterator[str]:
    """Clock, sizes, latencies, fractions and the memory bus: each by itself, where a wrong unit shows."""
    clock = known.get("clock.max_hz")
    if clock is not None and not 2e8 <= clock.value <= 5e9:
        yield f"clock.max_hz: {clock.value:.4g} Hz is outside 0.2 to 5 GHz; is the unit right?"
    for name in ("read_fraction", "write_fraction", "copy_fraction"):
        share = known.get(f"dram.{name}")
        if share is not None and share.value < 0.4:
            yield (
                f"dram.{name}: {share.value:g} is low for a streaming kernel; "
                "was the measurement long enough?"
            )
    for path, low, high, meant in _SIZES:
        if path in known and not low <= known[path].value <= high:
            yield f"{path}: {known[path].value:.4g} is outside {low:.3g} to {high:.3g}; is it {meant}?"
    for path, low, high in _LATENCIES_S:
        if path not in known or clock is None:
            continue
        seconds = known[path].value / clock.value
        if not low <= seconds <= high:
            yield (
                f"{path}: {known[path].value:g} cycles of max_hz are {seconds * 1e9:.3g} ns, outside "
                f"{low * 1e9:g} to {high * 1e9:g}; is it in cycles?"
            )
    bus = [known.get(f"dram.{n}") for n in ("bandwidth_bytes_per_s", "bus_bits", "transfers_per_s")]
    if all(bus):
        stated, bits, rate = (q.value for q in bus if q is not None)
        computed = bits * rate / 8
        if abs(computed / stated - 1) > BUS_TOLERANCE:
            yield (
                f"dram.bandwidth_bytes_per_s: {stated:.4g} is stated, but bus_bits x transfers_per_s / 8 "
                f"gives {computed:.4g} ({computed / stated - 1:+.1%})"
            )


def _threads(chip: Chip) -> Iterator[str]:
    residency, registers = chip.residency, chip.registers
    if residency is not None:
        if residency.threads_per_block.value > residency.threads_per_core.value:
            yield (
                f"residency.threads_per_block: {residency.threads_per_block.value} is above threads_per_core "
                f"{residency.threads_per_core.value}"
            )
        for name in ("threads_per_block", "threads_per_core"):
            if getattr(residency, name).value % residency.warp_size.value:
                yield f"residency.{name}: not a multiple of warp_size {residency.warp_size.value}"
    if registers is not None and registers.base_per_thread.value >= registers.max_per_thread.value:
        yield f"registers.base_per_thread: {registers.base_per_thread.value:g} leaves none of max_per_thread"
    if chip.features.bulk_copy and not chip.features.async_copy:
        yield "features.async_copy: false, but bulk_copy is asynchronous too"


def _overheads(chip: Chip) -> Iterator[str]:
    launch = chip.launch
    if not 1e-7 <= launch.kernel_s.value <= 1e-4:
        yield f"launch.kernel_s: {launch.kernel_s.value:g} s is outside 0.1 to 100 us; is the unit right?"
    if launch.ramp_s.value > 1e-4:
        yield f"launch.ramp_s: {launch.ramp_s.value:g} s is above 100 us; is the unit right?"
    atomics, l2 = chip.sync.atomic_bytes_per_cycle.value, chip.l2.bandwidth_bytes_per_cycle.value
    if atomics > l2:
        yield f"sync.atomic_bytes_per_cycle: {atomics:g} is above the L2's {l2:g}"
