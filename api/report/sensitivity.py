"""How much a verdict between two chips hangs on numbers that are inferred or not known.

One number after the other is moved through its plausible range, everything is timed again by the cost
model in the configurations that the predictions chose, and the range in which the winner stays is
reported. Times keep the event engine's level: t = t_engine · (cost model, changed) / (cost model).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from foretile.calibration.ranges import plausible_range
from foretile.report import units
from foretile.simulator.whatif import UNKNOWN_OF, Call, changed, times_s, unknown_range

if TYPE_CHECKING:
    from foretile.hwmodels.schema import Chip

_BISECTIONS = 6  # a decision is found to 1/64 of the plausible range


@dataclass(frozen=True)
class Subject:
    """What is timed on one of two chips: calls, the engine's seconds of each, how often, in which pass."""

    chip: Chip
    calls: tuple[Call, ...]
    time_s: np.ndarray
    counts: np.ndarray
    phases: tuple[str, ...]


@dataclass(frozen=True)
class Number:
    """One uncertain number of a chip and the range it may lie in. ``value``: None where it is not known."""

    chip: str
    path: str
    value: float | None
    low: float
    high: float
    cycles_hz: float  # the clock its cycles are of

    @property
    def name(self) -> str:
        """``h20: l2.bandwidth_bytes_per_cycle``."""
        return f"{self.chip}: {self.path}"

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        return {
            "chip": self.chip,
            "field": self.path,
            "value": self.value,
            "range": [self.low, self.high],
        }

    def shown(self, value: float) -> str:
        """A value for people: what is a cycle is said in seconds."""
        if self.path.endswith("_bytes_per_cycle"):
            return units.byte_rate(value * self.cycles_hz)
        if self.path.endswith("_cycles"):
            return units.seconds(value / self.cycles_hz)
        if isinstance(self.value, int) and not self.path.endswith("_bytes"):
            return f"{round(value):,}"
        return units.quantity(self.path, value)

    def range(self) -> str:
        """``2.30 to 6.10 TB/s``."""
        low, high = self.shown(self.low), self.shown(self.high)
        unit = high.rpartition(" ")[2]
        return f"{low.removesuffix(' ' + unit) if unit != high else low} to {high}"


@dataclass(frozen=True)
class Influence:
    """What one number does to a pass: the ratio (second chip's time over the first's) at both ends.

    ``turns_at``: the value beyond which the winner is the other one, None if there is none in the range.
    """

    number: Number
    at_low: float
    at_high: float
    turns_at: float | None

    @property
    def width(self) -> float:
        """How far the ratio moves, as a logarithm."""
        return abs(math.log(self.at_high / self.at_low))


@dataclass(frozen=True)
class Verdict:
    """The ratio of a pass (second chip's time over the first's), and how firm it is.

    ``influences``: the uncertain numbers, the strongest first; ``worst``: the ratio with all numbers at
    the ends that speak against the winner; ``turned_by``: call by call, the number that alone turns its own
    winner the furthest, None if none does.
    """

    phase: str
    ratio: float
    influences: tuple[Influence, ...]
    worst: float
    turned_by: tuple[Number | None, ...]

    @property
    def turning(self) -> tuple[Influence, ...]:
        """The numbers that alone can turn the verdict."""
        return tuple(i for i in self.influences if i.turns_at is not None)

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``; ratios are the second chip's time over the first's."""
        return {
            "phase": self.phase,
            "ratio": self.ratio,
            "ratio_all_numbers_against_it": self.worst,
            "firm": self.firm,
            "numbers": [
                i.number.to_json() | {"ratio": [i.at_low, i.at_high], "turns_at": i.turns_at}
                for i in self.influences
            ],
        }

    @property
    def firm(self) -> bool:
        """Whether even all numbers together do not turn it."""
        return (self.worst > 1) == (self.ratio > 1)


def uncertain(chip: Chip, others: Sequence[Chip]) -> list[Number]:
    """The chip's inferred numbers with their 90 % range, and unknown ones with what other chips have."""
    hz = chip.clock.max_hz.value
    found = [
        Number(chip.id, path, chip.quantities()[path].value, *plausible_range(chip, path), hz)
        for path in chip.inferred()
        if not path.startswith("stated_peak_flop_per_s.") and not _peak_is_stated(chip, path)
    ]
    for path in UNKNOWN_OF:
        if (ends := unknown_range(chip, path, others)) is not None:
            found.append(Number(chip.id, path, None, *ends, hz))
    return found


def _peak_is_stated(chip: Chip, path: str) -> bool:
    """Whether a number is a rate that a stated peak gives, with cores and clock: it moves with them."""
    return path.removeprefix("matrix.flop_per_cycle.") in chip.stated_peak_flop_per_s and path.startswith(
        "matrix.flop_per_cycle."
    )


def sensitivity(
    first: Subject, second: Subject, others: Sequence[Chip], pool: Executor | None = None
) -> tuple[Verdict, ...]:
    """The verdict of every pass in ``phases`` between two chips, with what the uncertain numbers do to it.

    ``others``: the chips whose numbers say what an unknown one may be; ``pool``: who shares the work.
    """
    base = tuple(times_s(s.calls, s.chip) for s in (first, second))
    jobs = [
        (place, number, value)
        for place, subject in enumerate((first, second))
        for number in uncertain(subject.chip, others)
        for value in (number.low, number.high)
    ]
    subjects = (first, second)
    found = _timed([(subjects[place], number, value) for place, number, value in jobs], pool)
    moved = {
        (number, value): subjects[place].time_s * times / base[place]
        for (place, number, value), times in zip(jobs, found, strict=True)
    }
    return tuple(_verdict(phase, subjects, base, moved) for phase in dict.fromkeys(first.phases))


def _timed(jobs: Sequence[tuple[Subject, Number, float]], pool: Executor | None) -> list[np.ndarray]:
    if pool is None:
        return [_one(job) for job in jobs]
    return list(pool.map(_one, jobs, chunksize=2))  # both ends of one number


def _one(job: tuple[Subject, Number, float]) -> np.ndarray:
    subject, number, value = job
    return times_s(subject.calls, changed(subject.chip, number.path, value))


def _total(subject: Subject, times: np.ndarray, phase: str) -> float:
    mine = np.asarray([p == phase for p in subject.phases])
    return float(np.sum((times * subject.counts)[mine]))


def _verdict(
    phase: str,
    subjects: tuple[Subject, Subject],
    base: tuple[np.ndarray, ...],
    moved: Mapping[tuple[Number, float], np.ndarray],
) -> Verdict:
    totals = [_total(s, s.time_s, phase) for s in subjects]
    ratio = totals[1] / totals[0]

    def ratio_with(place: int, times: np.ndarray) -> float:
        total = _total(subjects[place], times, phase)
        return totals[1] / total if place == 0 else total / totals[0]

    influences = []
    against: list[tuple[Number, float]] = []
    for number in dict.fromkeys(n for n, _ in moved):
        place = 0 if number.chip == subjects[0].chip.id else 1
        with_times = functools.partial(ratio_with, place)
        ends = [with_times(moved[number, v]) for v in (number.low, number.high)]
        adverse = min(ends) if ratio > 1 else max(ends)
        value = number.low if adverse == ends[0] else number.high
        if (adverse - ratio) * (ratio - 1) < 0:
            against.append((number, value))
        turns = (adverse > 1) != (ratio > 1)
        at = _turning_point(number, value, subjects[place], base[place], with_times, ratio) if turns else None
        influences.append(Influence(number, ends[0], ends[1], at))
    influences.sort(key=lambda i: -i.width)
    return Verdict(
        phase, ratio, tuple(influences), _worst(phase, subjects, base, against), _turned_by(subjects, moved)
    )


def _turning_point(
    number: Number,
    end: float,
    subject: Subject,
    base: np.ndarray,
    ratio_of: Callable[[np.ndarray], float],
    ratio: float,
) -> float:
    """Where the winner changes between the file's value (if unknown: the other end) and ``end``."""
    start = number.value if number.value is not None else (number.high if end == number.low else number.low)
    near, far = math.log(start), math.log(end)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (near + far)
        times = _one((subject, number, math.exp(middle))) * subject.time_s / base
        if (ratio_of(times) > 1) == (ratio > 1):
            near = middle
        else:
            far = middle
    return math.exp(0.5 * (near + far))


def _worst(
    phase: str,
    subjects: tuple[Subject, Subject],
    base: tuple[np.ndarray, ...],
    against: Iterable[tuple[Number, float]],
) -> float:
    """The ratio with every number at the end that speaks against the winner."""
    chips = [s.chip for s in subjects]
    for number, value in against:
        place = 0 if number.chip == subjects[0].chip.id else 1
        chips[place] = changed(chips[place], number.path, value)
    totals = [
        _total(s, s.time_s * times_s(s.calls, chip) / b, phase)
        for s, chip, b in zip(subjects, chips, base, strict=True)
    ]
    return totals[1] / totals[0]


def _turned_by(
    subjects: tuple[Subject, Subject], moved: Mapping[tuple[Number, float], np.ndarray]
) -> tuple[Number | None, ...]:
    """Call by call, the number that moves the ratio the furthest beyond level, if one does."""
    first, second = subjects
    lead = np.log(second.time_s / first.time_s)
    furthest = np.zeros(len(first.calls))
    found: list[Number | None] = [None] * len(first.calls)
    for (number, _), times in moved.items():
        pair = (times, second.time_s) if number.chip == first.chip.id else (first.time_s, times)
        beyond = -np.sign(lead) * np.log(pair[1] / pair[0])  # positive: the other chip is the faster one
        for place in np.flatnonzero(beyond > furthest):
            furthest[place], found[place] = beyond[place], number
    return tuple(found)
