"""How long something takes on a device: warm-up, repetitions until the median is certain, clocks.

What is timed lies between two events on the device's own clock. Short runs are captured in a graph and
replayed, so that the host's launches do not show. Batches of repetitions are enqueued at once, and the first
of each is dropped: before it the device may have waited for the host.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foretile.calibration.device.driver import Buffer, ClockSample, DeviceError, Driver

Launch = Literal["graph", "eager"]
Cache = Literal["rotating", "flushed"]

_Z = 1.96  # standard normal quantile of a two-sided 95 % interval
_OUTLIER_SHARE = 0.05  # an outlier is this much above the median, and six deviations
_OUTLIER_DEVIATIONS = 6.0
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution
_DRIFT = 0.03  # the last third of the repetitions against the first: more means changing clocks
_LIMITING = ("power_cap", "thermal", "slowdown", "power_brake")  # parts of the names of NVML's reasons


@dataclass(frozen=True, slots=True)
class Plan:
    """How a time is taken.

    ``tolerance`` is the relative half-width of the median's 95 % interval at which repeating stops,
    unless ``budget_s`` (host seconds) ends it before; ``samples`` are the least and most repetitions.
    Runs shorter than ``graph_below_s`` are replayed from a graph of about ``graph_s``: launching from
    Python takes some ten microseconds a kernel, and several times that for a few in a row. With
    ``flush_bytes`` that much other memory is written before every run, which is then launched alone.
    """

    tolerance: float = 0.01
    budget_s: float = 0.25
    warm_up_s: float = 0.01
    samples: tuple[int, int] = (12, 400)
    batch: int = 8
    graph_below_s: float = 5e-4
    graph_s: float = 1e-3
    graph_launches: int = 512
    flush_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of one run in seconds, and how they came about.

    ``half_width`` is that of the median's 95 % interval, relative to it; ``stable`` says that it is
    within the plan's tolerance. ``spread`` is the 90th over the 10th percentile less one. ``flags`` name
    what makes the time doubtful: ``unstable``, ``outliers`` (more than a twentieth), ``drift``,
    ``throttled``.
    """

    median_s: float
    mean_s: float
    fastest_s: float
    spread: float
    half_width: float
    runs: int
    outliers: int
    launch: Launch
    cache: Cache
    clocks: ClockSample
    flags: tuple[str, ...]

    @property
    def stable(self) -> bool:
        """Whether the median is as certain as asked for."""
        return "unstable" not in self.flags


def time_runs(
    driver: Driver,
    run: Callable[[int], None],
    plan: Plan = Plan(),
    *,
    rotation: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> Timing:
    """Time ``run(i)``, which enqueues the run on the i-th of ``rotation`` sets of buffers.

    Raises:
        DeviceError: the device refuses a run, or does not measure any time.
    """
    begun = clock()
    estimate = _warm_up(driver, run, plan, rotation, clock)
    flush = driver.allocate(plan.flush_bytes) if plan.flush_bytes else None
    try:
        replayed = flush is None and estimate < plan.graph_below_s
        length = graph_length(estimate, plan, rotation) if replayed else 1
        graph = driver.capture(lambda: _several(run, length, rotation)) if replayed else None

        def sample(i: int) -> tuple[Any, Any]:
            if graph is not None:
                return _between(driver, lambda: driver.replay(graph))
            return _flushed(driver, lambda: run(i % rotation), flush, i)

        times, states = _repeat(driver, sample, length, plan, begun, clock)
    finally:
        if flush is not None:
            driver.synchronize()
            driver.free(flush)
    launch: Launch = "graph" if graph is not None else "eager"
    cache: Cache = "rotating" if flush is None else "flushed"
    return summarise(times, states, plan.tolerance, length, launch, cache)


def _several(run: Callable[[int], None], count: int, rotation: int) -> None:
    for i in range(count):
        run(i % rotation)


def _warm_up(
    driver: Driver, run: Callable[[int], None], plan: Plan, rotation: int, clock: Callable[[], float]
) -> float:
    """Run until the warm-up's time is over, twice at least; returns seconds of a run as estimated last.

    The first run alone is not looked at: it loads code and tables.
    """
    run(0)
    driver.synchronize()
    begun, count = clock(), 2
    while True:
        start, stop = _between(driver, functools.partial(_several, run, count, rotation))
        driver.synchronize()
        estimate = driver.elapsed_s(start, stop) / count
        if clock() - begun >= plan.warm_up_s or estimate * count >= plan.warm_up_s:
            return estimate
        count = min(2 * count, 256)


def graph_length(estimate: float, plan: Plan, rotation: int) -> int:
    """Launches of a graph: whole rounds of the rotation, about ``graph_s`` together."""
    wanted = min(plan.graph_launches, max(1, math.ceil(plan.graph_s / max(estimate, 1e-7))))
    return max(1, round(wanted / rotation)) * rotation


def _between(driver: Driver, enqueue: Callable[[], None]) -> tuple[Any, Any]:
    start = driver.record()
    enqueue()
    return start, driver.record()


def _flushed(driver: Driver, enqueue: Callable[[], None], flush: Buffer | None, i: int) -> tuple[Any, Any]:
    """One run; before it, if asked for, other memory is written, outside of the events."""
    if flush is not None:
        driver.fill(flush, i % 256)
    return _between(driver, enqueue)


def _repeat(
    driver: Driver,
    sample: Callable[[int], tuple[Any, Any]],
    length: int,
    plan: Plan,
    begun: float,
    clock: Callable[[], float],
) -> tuple[list[float], list[ClockSample]]:
    """Seconds of a run, one a repetition, until the median is certain or the budget is over."""
    times: list[float] = []
    states: list[ClockSample] = []
    least, most = plan.samples
    while True:
        events = [sample(i) for i in range(plan.batch + 1)]
        state = driver.clocks()  # the device is at work now
        driver.synchronize()
        times += [driver.elapsed_s(start, stop) / length for start, stop in events[1:]]
        if not min(times) > 0:
            raise DeviceError(f"a run took {min(times):g} s by the device's events; expected more than zero")
        states += [state] if state is not None else []
        enough = len(times) >= least and median_half_width(times) <= plan.tolerance
        if enough or len(times) >= most or clock() - begun >= plan.budget_s:
            return times, states


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def median_half_width(values: Sequence[float]) -> float:
    """Half the width of the median's 95 % interval over the median, from the ordered values alone.

    Ranks n/2 ± 0.98 √n bound it (the binomial distribution of how many values lie below the median, by
    its normal approximation: W. J. Conover, Practical Nonparametric Statistics, section 3.2). With fewer
    than six values there is no such interval: infinite.
    """
    n = len(values)
    if n < 6:
        return math.inf
    ordered, reach = sorted(values), _Z * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - reach)), min(n - 1, math.ceil(n / 2 + reach))
    return (ordered[high] - ordered[low]) / 2 / median(values)


def _quantile(ordered: Sequence[float], q: float) -> float:
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def summarise(
    times: Sequence[float],
    states: Sequence[ClockSample],
    tolerance: float,
    length: int,
    launch: Launch,
    cache: Cache,
) -> Timing:
    """What repeated times say, ``length`` runs to each."""
    middle, ordered = median(times), sorted(times)
    deviation = _MAD_TO_DEVIATION * median([abs(t - middle) for t in times])
    beyond = middle + max(_OUTLIER_SHARE * middle, _OUTLIER_DEVIATIONS * deviation)
    outliers = sum(t > beyond for t in times)
    width = median_half_width(times)
    third = len(times) // 3
    drift = median(times[-third:]) / median(times[:third]) - 1 if third >= 4 else 0.0
    state = _middle_state(states)
    flags = (
        *(["unstable"] if not width <= tolerance else []),
        *(["outliers"] if outliers > len(times) / 20 else []),
        *(["drift"] if abs(drift) > _DRIFT else []),
        *(["throttled"] if any(part in r for r in state.reasons for part in _LIMITING) else []),
    )
    return Timing(
        median_s=middle,
        mean_s=math.fsum(times) / len(times),
        fastest_s=ordered[0],
        spread=_quantile(ordered, 0.9) / _quantile(ordered, 0.1) - 1,
        half_width=width,
        runs=len(times) * length,
        outliers=outliers,
        launch=launch,
        cache=cache,
        clocks=state,
        flags=flags,
    )


def _middle_state(states: Sequence[ClockSample]) -> ClockSample:
    """Medians of what was sampled, and every reason that occurred."""
    if not states:
        return ClockSample()
    return ClockSample(
        core_hz=median([s.core_hz for s in states]),
        memory_hz=median([s.memory_hz for s in states]),
        temperature_c=median([s.temperature_c for s in states]),
        power_w=median([s.power_w for s in states]),
        reasons=tuple(sorted({r for s in states for r in s.reasons})),
    )
