"""Measures points on a device: launches, ticks, repetitions; an interrupted run goes on from its file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from foretile.calibration.device.binding import Bound, bind
from foretile.calibration.device.driver import Buffer, ClockSample, DeviceError, Driver
from foretile.calibration.device.micro.details import Details
from foretile.calibration.device.micro.points import TICKS_A_BLOCK, Point, Row
from foretile.calibration.device.micro.rowfile import read_rows, write_lines
from foretile.calibration.device.timing import median

REPETITIONS = 11
_FEWER = 3  # repetitions of what lasts
_LASTS_S = 0.2
_WANTED_S = 1e-3  # a launch: a thousand times what the global timer resolves
_SHORTEST_S = 1e-4  # below it that timer's microsecond is one per cent
_MOST_ITERATIONS = 1 << 22
_PAUSE_S = 0.2  # before work whose length matters, so that clocks have recovered
_COVER = 2  # L2s that are overwritten to empty one
_LIMITING = ("power_cap", "thermal", "slowdown", "power_brake")


@dataclass
class Bench:
    """A device with what all points share: machine code, memory, the clock of the host and how it waits."""

    driver: Driver
    details: Details
    code: Callable[[str], bytes]
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep
    _data: Buffer | None = None
    _cover: Buffer | None = None
    _code: dict[str, bytes] = field(default_factory=dict)

    def buffer(self, size: int) -> Buffer:
        """Memory of ``size`` bytes at least, kept until more is wanted; what it holds is arbitrary."""
        if self._data is None or self._data.size < size:
            if self._data is not None:
                self.driver.free(self._data)
                self._data = None
            self._data = self.driver.allocate(max(256, size))
            self.driver.fill(self._data, 0x3C)
        return self._data

    def empty_l2(self, value: int) -> None:
        """Overwrite other memory, twice as much as the L2 holds."""
        if self._cover is None:
            self._cover = self.driver.allocate(_COVER * self.details.l2_bytes)
        self.driver.fill(self._cover, value % 256)

    def bound(self, point: Point, ticks: Buffer, setup: bool = False) -> Bound:
        """The point's launch, or that of the kernel that prepares its buffer."""
        recipe = point.setup_recipe() if setup else point.recipe()
        assert recipe is not None
        if point.file not in self._code:
            self._code[point.file] = self.code(point.file)
        kernel = self.driver.load(self._code[point.file], recipe.symbol)
        return bind(self.driver, kernel, recipe, {"data": self.buffer(point.bytes), "ticks": ticks})


@dataclass(frozen=True)
class _Sample:
    seconds: float
    cycles: float
    nanoseconds: float
    span_s: float


def measure(bench: Bench, point: Point, repetitions: int = REPETITIONS) -> Row:
    """One point: iterations raised until a launch lasts, then repeated.

    Raises:
        DeviceError: the device refuses the launch, or measures no time.
    """
    with _ticks(bench.driver, point.ticked_blocks) as ticks:
        if point.setup is not None:
            bench.bound(point, ticks, setup=True).enqueue(bench.driver)
            bench.driver.synchronize()
        settled = _lengthened(bench, point, ticks) if point.adaptive else point
        work = bench.bound(settled, ticks)
        _sample(bench, settled, work, ticks)  # warm
        lasts = point.busy_s >= _LASTS_S
        samples, states = [], []
        for i in range(min(repetitions, _FEWER) if lasts else repetitions):
            if point.cold:
                bench.empty_l2(i)
            if point.busy_s:
                bench.driver.synchronize()
                bench.pause(_PAUSE_S)
                _keep_busy(bench, work, point.busy_s)
            samples.append(_sample(bench, settled, work, ticks))
            state = bench.driver.clocks()
            states += [state] if state is not None else []
    return _row(point.key, settled, samples, states)


@contextmanager
def _ticks(driver: Driver, blocks: int) -> Iterator[Buffer]:
    buffer = driver.allocate(8 * TICKS_A_BLOCK * blocks)
    try:
        driver.fill(buffer, 0)
        yield buffer
    finally:
        driver.free(buffer)


def _lengthened(bench: Bench, point: Point, ticks: Buffer) -> Point:
    """The point with as many iterations as a millisecond takes, in multiples of what it began with."""
    for _ in range(4):
        work = bench.bound(point, ticks)
        _sample(bench, point, work, ticks)
        took = _sample(bench, point, work, ticks).span_s
        if took >= 0.5 * _WANTED_S or point.iterations >= _MOST_ITERATIONS:
            break
        factor = math.ceil(min(1000.0, _WANTED_S / max(took, 1e-6)))
        point = point.iterated(min(_MOST_ITERATIONS, point.iterations * factor))
    return point


def _sample(bench: Bench, point: Point, work: Bound, ticks: Buffer) -> _Sample:
    driver = bench.driver
    if point.nodes:
        graph = driver.capture(lambda: _several(work, driver, point.nodes))
        driver.replay(graph)  # the first one uploads it
        start = driver.record()
        for _ in range(point.replays):
            driver.replay(graph)
    else:
        start = driver.record()
        work.enqueue(driver)
    stop = driver.record()
    driver.synchronize()
    seconds = driver.elapsed_s(start, stop)
    told = driver.read(ticks).view(np.int64).reshape(-1, TICKS_A_BLOCK)
    cycles, nanoseconds = told[:, 1] - told[:, 0], told[:, 3] - told[:, 2]
    span = int(told[:, 3].max() - told[:, 2].min())
    return _Sample(seconds, float(np.median(cycles)), float(np.median(nanoseconds)), 1e-9 * span)


def _several(work: Bound, driver: Driver, count: int) -> None:
    for _ in range(count):
        work.enqueue(driver)


def _keep_busy(bench: Bench, work: Bound, busy_s: float) -> None:
    """Launch after launch for so long on the device, none waited for but now and then."""
    done = 0.0
    while done < busy_s:
        start = bench.driver.record()
        _several(work, bench.driver, max(1, round(min(0.05, busy_s - done) / _WANTED_S)))
        stop = bench.driver.record()
        bench.driver.synchronize()
        done += max(bench.driver.elapsed_s(start, stop), 1e-5)


def _row(
    key: str,
    point: Point,
    samples: Sequence[_Sample],
    states: Sequence[ClockSample],
    flags: tuple[str, ...] = (),
) -> Row:
    def middle(values: list[float]) -> float | None:
        known = [v for v in values if math.isfinite(v)]
        return median(known) if known else None

    reasons = {r for s in states for r in s.reasons}
    timed = [s.span_s for s in samples if s.span_s > 0]
    flags = (
        *flags,
        *(["throttled"] if any(part in r for r in reasons for part in _LIMITING) else []),
        *(["short"] if timed and median(timed) < _SHORTEST_S else []),
    )
    return Row(
        key=key,
        benchmark=point.benchmark,
        params=dict(point.params),
        iterations=point.iterations,
        grid=point.grid,
        block=point.block,
        nodes=point.nodes,
        replays=point.replays,
        work={name: amount * point.iterations for name, amount in point.work.items()},
        seconds=tuple(s.seconds for s in samples),
        cycles=tuple(s.cycles for s in samples),
        nanoseconds=tuple(s.nanoseconds for s in samples),
        span_s=tuple(s.span_s for s in samples),
        core_hz=middle([s.core_hz for s in states]),
        temperature_c=middle([s.temperature_c for s in states]),
        power_w=middle([s.power_w for s in states]),
        flags=flags,
    )


def _alive(bench: Bench) -> bool:
    """Whether the device still does anything: a kernel that trapped ends its process's use of it."""
    try:
        bench.driver.synchronize()
        bench.driver.free(bench.driver.allocate(256))
    except DeviceError:
        return False
    return True


class Store:
    """Rows in a file, one a line, behind a first line that describes the device; always whole on disk."""

    def __init__(self, path: Path, details: Details, date: str) -> None:
        """Open or begin it.

        Raises:
            DeviceError: the file is another device's, or none of ours.
        """
        self.path = path
        self._rows: dict[str, Row] = {}
        self._lines: dict[str, str] = {}
        self._head = (details, date)
        if path.exists():
            held = read_rows(path)
            if held.details != details:
                raise DeviceError(
                    f"{path} holds measurements of {held.details.name} with driver {held.details.driver}; "
                    f"this is {details.name} with driver {details.driver}: give another file"
                )
            self._head = (held.details, held.date)
            self._rows = {row.key: row for row in held.rows}
            self._lines = {row.key: row.to_json() for row in held.rows}

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def add(self, row: Row) -> None:
        """Keep a row, and write the file anew."""
        self._rows[row.key], self._lines[row.key] = row, row.to_json()
        write_lines(self.path, *self._head, self._lines.values())

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, in the order in which they were measured."""
        return tuple(self._rows.values())


@dataclass(frozen=True)
class Outcome:
    """How a run ended: points measured now, found measured, refused (and why), left for want of time."""

    measured: int
    held: int
    refused: dict[str, str]
    left: tuple[str, ...]


def run(
    bench: Bench,
    points: Sequence[Point],
    store: Store,
    *,
    budget_s: float = math.inf,
    repetitions: int = REPETITIONS,
    progress: Callable[[int, int, str], None] = lambda done, of, what: None,
) -> Outcome:
    """Measure every point that the store does not hold, until the budget (host seconds) is over.

    A point that stops the device ends the run, and is kept without a time: the next run leaves it out.
    """
    begun, measured, held = bench.clock(), 0, 0
    refused: dict[str, str] = {}
    left: list[str] = []
    for number, point in enumerate(points):
        progress(number, len(points), point.key)
        if point.key in store:
            held += 1
        elif bench.clock() - begun >= budget_s:
            left.append(point.key)
        else:
            try:
                store.add(measure(bench, point, repetitions))
                measured += 1
            except DeviceError as error:
                refused[point.key] = str(error)
                if not _alive(bench):
                    store.add(_row(point.key, point, [], [], ("stopped the device",)))
                    left += [p.key for p in points[number + 1 :] if p.key not in store]
                    break
    progress(len(points), len(points), "")
    return Outcome(measured, held, refused, tuple(left))
