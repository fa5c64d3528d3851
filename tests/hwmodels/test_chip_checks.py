"""The plausibility checks find what they are for, and only that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from foretile.hwmodels import load_chip
from foretile.hwmodels.checks import check_chip, peak_flop_per_s, ridge_flop_per_byte

Write = Callable[..., Path]
PEAK = "stated_peak_flop_per_s:\n  {}: {{value: {}, source: datasheet, confidence: datasheet}}\n"


@pytest.mark.parametrize(
    ("path", "value", "start"),
    [
        ("cores", 64,
         "stated_peak_flop_per_s.fp16: 3.12e+14 is stated, but cores x rate x clock gives 1.848e+14"),
        ("clock.max_hz", 1410, "clock.max_hz: 1410 Hz is outside 0.2 to 5 GHz"),
        ("clock.matrix_burst_hz", 1.5e9, "clock.matrix_burst_hz: 1.5e+09 is above max_hz"),
        ("clock.matrix_sustained_hz", 1.35e9, "clock.matrix_sustained_hz: 1.35e+09 is above matrix_burst_hz"),
        ("matrix.flop_per_cycle.fp8", 1024, "matrix.flop_per_cycle.fp8: 1024 is below fp16's 2048"),
        ("matrix.flop_per_cycle.float16", 1024, "matrix.flop_per_cycle.float16: unknown dtype; known: fp64"),
        ("matrix.k_bytes", 4096, "matrix.k_bytes: 4096 is no depth of one instruction"),
        ("matrix.mainloop_fraction", 0.2, "matrix.mainloop_fraction: 0.2 is low"),
        ("l2.bandwidth_bytes_per_cycle", 1000,
         "l2.bandwidth_bytes_per_cycle: 1.41e+12 B/s at max_hz is below the DRAM's"),
        ("l2.bandwidth_bytes_per_cycle", 9000,
         "l2.bandwidth_bytes_per_cycle: 9000 is more than all cores' ports"),
        ("l2.latency_cycles", 900, "l2.latency_cycles: 900 is not below the DRAM's 560"),
        ("l2.far_latency_cycles", 600, "l2.far_latency_cycles: 600 does not fit latency_cycles 283"),
        ("l2.far_latency_cycles", 250, "l2.far_latency_cycles: 250 does not fit latency_cycles 283"),
        ("l2.capacity_bytes", 10**12, "l2.capacity_bytes: 1000000000000 is not below the DRAM's"),
        ("scratchpad.max_block_bytes", 167936, "scratchpad.max_block_bytes: 167936 and 1024 reserved exceed"),
        ("scratchpad.latency_cycles", 290, "scratchpad.latency_cycles: 290 is not below the L2's"),
        ("scratchpad.bandwidth_bytes_per_cycle", 32, "scratchpad.bandwidth_bytes_per_cycle: below"),
        ("dram.read_fraction", 0.3, "dram.read_fraction: 0.3 is low"),
        ("dram.copy_fraction", 0.99, "dram.copy_fraction: 0.99 is above both read and write"),
        ("dram.bandwidth_bytes_per_s", 2039, "dram.bandwidth_bytes_per_s: the ridge point is 1.53e+11"),
        ("residency.threads_per_block", 4096,
         "residency.threads_per_block: 4096 is above threads_per_core 2048"),
        ("residency.threads_per_core", 2050, "residency.threads_per_core: not a multiple of warp_size 32"),
        ("registers.base_per_thread", 255, "registers.base_per_thread: 255 leaves none"),
        ("launch.kernel_s", 1.28, "launch.kernel_s: 1.28 s is outside 0.1 to 100 us"),
        ("launch.ramp_s", 0.3, "launch.ramp_s: 0.3 s is above 100 us"),
        ("scratchpad.capacity_bytes", 164 * 2**20,
         "scratchpad.capacity_bytes: 1.72e+08 is outside 4.1e+03 to 2.1e+06; is it of one core, in bytes?"),
        ("registers.bytes_per_core", 256, "registers.bytes_per_core: 256 is outside"),
        ("dram.capacity_bytes", 80, "dram.capacity_bytes: 80 is outside"),
        ("dram.latency_cycles", 397e-9, "dram.latency_cycles: 3.97e-07 cycles of max_hz are"),
        ("l2.latency_cycles", 2000, "l2.latency_cycles: 2000 cycles of max_hz are 1.42e+03 ns, outside"),
        ("l2.bandwidth_bytes_per_cycle", 40000,
         "l2.bandwidth_bytes_per_cycle: 5.64e+13 B/s at max_hz exceeds 20x the DRAM's"),
        ("sync.atomic_bytes_per_cycle", 5000, "sync.atomic_bytes_per_cycle: 5000 is above the L2's 3840"),
    ],
)  # fmt: skip
def test_each_contradiction_is_found(write: Write, path: str, value: float, start: str) -> None:
    keys = path.split(".")
    text = "id: v\nextends: a100\n" + PEAK.format("fp16", "312e12")
    for depth, key in enumerate(keys[:-1]):
        text += "  " * depth + f"{key}:\n"
    text += (
        "  " * (len(keys) - 1) + f"{keys[-1]}: {{value: {value!r}, source: the test, confidence: inferred}}\n"
    )
    warnings = check_chip(load_chip(write(text)))
    assert any(w.startswith(start) for w in warnings), warnings


def test_the_memory_bus_says_what_the_bandwidth_is(write: Write) -> None:
    """H100: five stacks of 1024 bits at 5.2 GT/s are 3.33 TB/s, which the stated bandwidth is."""

    def warnings(bits: int) -> list[str]:
        known = {"source": "the test", "confidence": "datasheet"}
        bus = {"bus_bits": {"value": bits, **known}, "transfers_per_s": {"value": 5.2e9, **known}}
        return check_chip(load_chip(write({"id": "v", "extends": "h100", "dram": bus}, f"{bits}.yaml")))

    assert warnings(5120) == []
    assert warnings(6144) == [
        "dram.bandwidth_bytes_per_s: 3.352e+12 is stated, but bus_bits x transfers_per_s / 8 gives "
        "3.994e+12 (+19.1%)"
    ]


def test_bulk_copies_are_asynchronous(write: Write) -> None:
    chip = load_chip(write("id: v\nextends: h100\nfeatures: {async_copy: false}\n"))
    assert any(w.startswith("features.async_copy: false") for w in check_chip(chip))


def test_sustained_clock_needs_settling(write: Write) -> None:
    chip = load_chip(write("id: v\nextends: h100\nclock: {settle_s: null}\n"))
    assert [w for w in check_chip(chip) if w.startswith("clock.settle_s: missing")]


def test_a_stated_peak_without_a_rate(write: Write) -> None:
    chip = load_chip(write("id: v\nextends: a100\n" + PEAK.format("fp8", "1e15")))
    assert check_chip(chip) == [
        "stated_peak_flop_per_s.fp8: matrix.flop_per_cycle has no fp8 to compare with"
    ]


def test_a_stated_conflict_silences_the_peak_of_its_dtype_only(write: Write) -> None:
    peaks = "".join(
        f"  {d}: {{value: 500e12, source: datasheet, confidence: datasheet}}\n" for d in ("fp16", "bf16")
    )
    text = f"id: v\nextends: a100\nstated_peak_flop_per_s:\n{peaks}conflicts:\n"
    one = check_chip(load_chip(write(text + '  - "stated_peak_flop_per_s.fp16: sparse"\n')))
    assert [w.split(":")[0] for w in one] == ["stated_peak_flop_per_s.bf16"]
    assert check_chip(load_chip(write(text + '  - "stated_peak_flop_per_s: sparse"\n'))) == []
    assert len(check_chip(load_chip(write(text + "  - something else\n")))) == 2


def test_no_matrix_rate_at_all(write: Write) -> None:
    nulls = ", ".join(f"{d}: null" for d in load_chip("a100").matrix.flop_per_cycle)
    chip = load_chip(write(f"id: v\nextends: a100\nmatrix: {{flop_per_cycle: {{{nulls}}}}}\n"))
    assert check_chip(chip) == ["matrix.flop_per_cycle: no dtype; nothing can be computed"]


def test_ridge_points() -> None:
    assert ridge_flop_per_byte(load_chip("h20")) < 45 < 300 < ridge_flop_per_byte(load_chip("h100"))
    with pytest.raises(KeyError):
        peak_flop_per_s(load_chip("a100"), "fp8")
