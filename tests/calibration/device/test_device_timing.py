"""Timing: stops when the median is certain, says what is doubtful, drops what the host delayed."""

from __future__ import annotations

import itertools
import random

import pytest
from device_kernels import machine_code

from foretile.calibration.device.driver import ClockSample
from foretile.calibration.device.fake import FakeDriver
from foretile.calibration.device.timing import Plan, Timing, median_half_width, summarise, time_runs

NO_WARM_UP = Plan(warm_up_s=0.0)


def timed(seconds: object, plan: Plan = NO_WARM_UP, **more: object) -> tuple[Timing, FakeDriver]:
    driver = FakeDriver((9, 0), seconds=seconds, **more)  # type: ignore[arg-type]
    kernel = driver.load(machine_code(), "nothing")
    run = lambda i: driver.launch(kernel, (i + 1, 1, 1), (32, 1, 1), ())  # noqa: E731
    return time_runs(driver, run, plan, rotation=3), driver


def test_short_runs_are_replayed_from_a_graph_of_whole_rounds() -> None:
    timing, driver = timed(lambda symbol: 10e-6)
    assert timing.median_s == pytest.approx(10e-6)
    assert (timing.launch, timing.cache, timing.flags) == ("graph", "rotating", ())
    used = [grid[0] for _, grid in driver.launches]
    del used[:3]  # one run to load the code, two for the estimate
    assert used.count(1) == used.count(2) == used.count(3) > 0
    assert timing.runs % 3 == 0


def test_long_runs_are_launched_one_by_one() -> None:
    timing, _ = timed(lambda symbol: 2e-3)
    assert (timing.launch, timing.median_s) == ("eager", pytest.approx(2e-3))


def test_other_memory_is_written_between_runs() -> None:
    timing, _ = timed(lambda symbol: 10e-6, Plan(warm_up_s=0.0, flush_bytes=1 << 16))
    assert (timing.launch, timing.cache) == ("eager", "flushed")


def test_noise_takes_more_repetitions_than_none() -> None:
    noise = random.Random(1)
    steady, _ = timed(lambda symbol: 2e-3, Plan(warm_up_s=0.0, budget_s=60))
    noisy, _ = timed(lambda symbol: 2e-3 * (1 + 0.1 * noise.random()), Plan(warm_up_s=0.0, budget_s=60))
    assert steady.runs < noisy.runs
    assert noisy.stable
    assert noisy.half_width <= 0.01


def test_the_budget_ends_what_never_becomes_certain() -> None:
    times, ticks = itertools.cycle([1e-3, 3e-3]), itertools.count()
    driver = FakeDriver((9, 0), seconds=lambda symbol: next(times))
    kernel = driver.load(machine_code(), "nothing")
    plan = Plan(warm_up_s=0.0, budget_s=20.0, samples=(12, 10**6))
    timing = time_runs(
        driver,
        lambda i: driver.launch(kernel, (1, 1, 1), (32, 1, 1), ()),
        plan,
        clock=lambda: float(next(ticks)),
    )
    assert "unstable" in timing.flags
    assert timing.runs < 1000


def test_throttling_drift_and_outliers_are_flagged() -> None:
    hot = ClockSample(1.2e9, 2.6e9, 88.0, 690.0, ("software_power_cap",))
    timing, _ = timed(lambda symbol: 2e-3, samples=lambda: hot)
    assert timing.flags == ("throttled",)
    assert timing.clocks == hot
    idle = ClockSample(1.9e9, 2.6e9, 40.0, 300.0, ("applications_clocks",))
    assert summarise([1.0] * 20, [idle], 0.01, 1, "eager", "rotating").flags == ()
    slowing = [1.0 + 0.005 * i for i in range(30)]
    assert "drift" in summarise(slowing, [], 1.0, 1, "eager", "rotating").flags
    spoiled = summarise([1.0, 1.001] * 14 + [1.5, 2.0], [], 0.01, 1, "eager", "rotating")
    assert (spoiled.outliers, spoiled.flags) == (2, ("outliers",))
    assert spoiled.median_s < 1.01 < spoiled.mean_s


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    rng, inside, trials = random.Random(7), 0, 400
    for _ in range(trials):
        values = sorted(rng.gauss(100.0, 5.0) for _ in range(40))
        middle = (values[19] + values[20]) / 2
        inside += abs(middle - 100.0) <= median_half_width(values) * middle
    assert inside / trials > 0.9
    assert median_half_width([1.0] * 5) == float("inf")
    assert median_half_width([1.0] * 6) == 0.0


def test_nothing_was_timed() -> None:
    with pytest.raises(ValueError, match="more than zero"):
        timed(lambda symbol: 0.0)
