"""From measured times to numbers: medians, lines, saturation, knees, clocks that sink."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretile.calibration.device.micro.fits import Number, knee, line, middle, saturation, settling

SEEDS = st.integers(0, 10_000)


def test_the_interval_of_a_median_holds_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        found = middle(list(random.lognormal(0.0, 0.05, 15)))
        inside += found.low <= 1.0 <= found.high
    assert 0.93 <= inside / 400 <= 1.0


def test_few_or_scattered_repetitions_are_doubted() -> None:
    assert "few repetitions" in middle([1.0, 1.01, 0.99]).flags
    assert "unsteady" in middle([1.0, 2.0, 1.5, 1.2, 0.7, 1.9, 0.6, 1.1]).flags
    assert middle([1.0] * 9, ["short"]).flags == ("short",)


@settings(max_examples=25, deadline=None)
@given(slope=st.floats(0.1, 100), base=st.floats(0, 1000), seed=SEEDS)
def test_a_line_is_not_moved_by_outliers(slope: float, base: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = np.repeat([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], 7)
    y = (base + slope * x) * (1 + 0.002 * random.standard_normal(x.size))
    y[random.choice(x.size, 4, replace=False)] *= 1.5
    found, at_zero = line(list(x), list(y))
    assert found.value == pytest.approx(slope, abs=0.004 * (slope + base / 16))
    assert at_zero.value == pytest.approx(base, abs=0.01 * (base + slope * 16))
    assert found.low <= found.value <= found.high


@settings(max_examples=25, deadline=None)
@given(limit=st.floats(1e11, 1e13), half=st.floats(6e3, 5e4), sharp=st.floats(1.0, 8.0), seed=SEEDS)
def test_a_saturation_is_found(limit: float, half: float, sharp: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    flight = np.array([4, 8, 16, 32, 64, 128, 256]) * 1024.0
    rate = limit / (1 + (half / flight) ** sharp) ** (1 / sharp) * np.exp(0.003 * random.standard_normal(7))
    found = saturation(list(flight), list(rate))
    assert found.limit.value == pytest.approx(limit, rel=0.08)
    assert found.half / found.limit.value == pytest.approx(half / limit, rel=0.15)  # the latency
    assert found.error < 0.02


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.25, 0.95), ratio=st.floats(1.6, 6.0), seed=SEEDS)
def test_a_knee_is_found(share: float, ratio: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0])
    hit = np.minimum(1.0, share / sizes)
    rate = 1 / (hit / ratio + (1 - hit)) * np.exp(0.003 * random.standard_normal(sizes.size))
    found = knee(list(sizes), list(rate))
    assert found.kept_bytes.value == pytest.approx(share, rel=0.06)
    assert found.inside / found.outside == pytest.approx(ratio, rel=0.05)
    assert found.kept_bytes.low < found.kept_bytes.value < found.kept_bytes.high


def test_without_a_knee_the_two_rates_are_alike() -> None:
    sizes = [float(s) for s in range(1, 12)]
    found = knee(sizes, [5.0 + 0.01 * (s % 2) for s in sizes])
    assert found.inside < 1.05 * found.outside


@settings(max_examples=20, deadline=None)
@given(settle=st.floats(3e-3, 3e-2), depth=st.floats(0.05, 0.3), seed=SEEDS)
def test_a_clock_that_sinks_is_found(settle: float, depth: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    busy = [1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0]
    share = [min(1.0, max(0.0, math.log10(b / settle) / 2)) for b in busy]
    hz = [1.6e9 * (1 - depth * s) * (1 + 0.001 * random.standard_normal()) for s in share]
    found = settling(busy, hz, 1.6e9, 1.6e9 * (1 - depth))
    assert math.log10(found.value / settle) == pytest.approx(0.0, abs=0.12)


def test_quotients_add_their_uncertainties_in_quadrature() -> None:
    found = Number(4.0, 3.88, 4.12, 9, ("short",)).over(Number(2.0, 1.92, 2.08, 7, ("unsteady",)))
    assert (found.value, found.n, found.flags) == (2.0, 7, ("short", "unsteady"))
    assert found.high - found.value == pytest.approx(2.0 * math.hypot(0.03, 0.04))
