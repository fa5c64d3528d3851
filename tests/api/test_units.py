"""Numbers for people."""

from __future__ import annotations

import pytest

from foretile.report import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.2345e-5, "12.3 µs"),
        (9.996e-4, "1.00 ms"),
        (0.25, "250 ms"),
        (99.96e-3, "100 ms"),
        (2.0, "2.00 s"),
        (4e-9, "4.00 ns"),
        (5544.0, "5,544 s"),
    ],
)
def test_seconds(value: float, text: str) -> None:
    assert units.seconds(value) == text


def test_both_ends_of_an_interval_share_a_unit() -> None:
    assert units.interval(0.9e-3, 1.2e-3) == "0.900 – 1.20 ms"
    assert units.interval(0.9, 1.2, unit="ms") == "900 – 1,200 ms"


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("cores", 132, "132"),
        ("clock.max_hz", 1.98e9, "1.980 GHz"),
        ("matrix.flop_per_cycle.bf16", 4096, "4,096 FLOP/cycle"),
        ("matrix.flop_per_cycle.fp64", 6.5, "6.500 FLOP/cycle"),
        ("matrix.mainloop_fraction", 0.95, "95 %"),
        ("matrix.k_bytes", 32, "32 B"),
        ("l2.capacity_bytes", 50 * 2**20, "50.0 MiB"),
        ("dram.bandwidth_bytes_per_s", 4.8e12, "4.80 TB/s"),
        ("scratchpad.bandwidth_bytes_per_cycle", 128, "128 B/cycle"),
        ("launch.kernel_s", 2e-6, "2.00 µs"),
        ("stated_peak_flop_per_s.bf16", 9.89e14, "989 TFLOP/s"),
        ("tdp_w", 700.0, "700 W"),
    ],
)
def test_a_chips_numbers_wear_their_units(path: str, value: float, text: str) -> None:
    assert units.quantity(path, value) == text


@pytest.mark.parametrize(("share", "text"), [(0.876, "88 %"), (0.034, "3.4 %"), (0.0, "0 %"), (1.0, "100 %")])
def test_percent(share: float, text: str) -> None:
    assert units.percent(share) == text
