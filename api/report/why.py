"""Why two chips differ, operator by operator: which resource, from which size on, and how firm that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from foretile.report.sensitivity import Number, Subject, Verdict, sensitivity
from foretile.report.specs import sixteen_bit
from foretile.report.suite import Phase, Suite
from foretile.report.sweep import PASS, Sweep, sweeps
from foretile.report.why_words import why_words
from foretile.simulator.whatif import Call

if TYPE_CHECKING:
    from foretile.hwmodels.schema import Chip

_HZ = "clock.max_hz"
# Numbers whose product is an engine's rate on the whole chip; {dtype}: that of the call.
_RATES: Mapping[str, tuple[str, ...]] = {
    "matrix": ("cores", "matrix.flop_per_cycle.{dtype}", _HZ),
    "vector": ("cores", "vector.fp32_per_cycle", _HZ),
    "special": ("cores", "vector.special_per_cycle", _HZ),
    "scratchpad": ("cores", "scratchpad.bandwidth_bytes_per_cycle", _HZ),
    "tensor_memory": ("cores", "tensor_memory.read_bytes_per_cycle", _HZ),
    "port": ("cores", "l2.core_bytes_per_cycle", _HZ),
    "l2": ("l2.bandwidth_bytes_per_cycle", _HZ),
    "dram": ("dram.bandwidth_bytes_per_s",),
    "atomic": ("sync.atomic_bytes_per_cycle", _HZ),
}


@dataclass(frozen=True)
class Cause:
    """The ratio of two times as the product of three, by the resource that binds the slower chip.

    ``rate``: how much faster the faster chip's is (None: the files do not say, and ``work`` holds both);
    ``work``: how much more the slower chip has to do on it, padding, traffic and lost peak included;
    ``use``: share of the time it is busy on the faster chip over that on the slower one (below 1: the
    faster chip waits for something else). rate · work · use = slower / faster.
    """

    resource: str
    rate: float | None
    work: float
    use: float

    @property
    def ratio(self) -> float:
        """Slower over faster."""
        return (self.rate or 1.0) * self.work * self.use


@dataclass(frozen=True)
class Difference:
    """One entry on both chips.

    ``part``: its share of the difference of the passes (negative: it goes the other way); ``change``: the
    faster chip by size, in words; ``turned_by``: the uncertain number that alone turns it furthest, if any.
    """

    phase: str
    entry: str
    title: str
    count: int
    first_s: float
    second_s: float
    first_bound: str
    second_bound: str
    cause: Cause | None
    part: float
    turned_by: Number | None
    change: str

    @property
    def stays(self) -> bool:
        """Whether no single uncertain number, within its range, makes the other chip the faster one."""
        return self.turned_by is None

    @property
    def ratio(self) -> float:
        """The second chip's time over the first's."""
        return self.second_s / self.first_s

    @property
    def binding(self) -> str:
        """What binds the slower chip."""
        return self.second_bound if self.ratio > 1 else self.first_bound


@dataclass(frozen=True)
class Why:
    """Everything about one pair of chips."""

    first: str
    second: str
    phases: tuple[Phase, ...]
    differences: tuple[Difference, ...]
    verdicts: Mapping[str, Verdict]
    sweeps: tuple[Sweep, ...]

    def of(self, phase: str) -> list[Difference]:
        """The differences of one phase, those that decide it first."""
        mine = [d for d in self.differences if d.phase == phase]
        return sorted(mine, key=lambda d: -abs(d.second_s - d.first_s) * d.count)

    def passes(self, phase: str) -> list[Sweep]:
        """The sweeps of the whole pass."""
        return [s for s in self.sweeps if (s.phase, s.entry) == (phase, PASS)]

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``; ratios are the second chip's time over the first's."""
        return {
            "first": self.first,
            "second": self.second,
            "verdicts": [v.to_json() for v in self.verdicts.values()],
            "differences": [
                {
                    "phase": d.phase,
                    "entry": d.entry,
                    "count": d.count,
                    "time_s": [d.first_s, d.second_s],
                    "bound": [d.first_bound, d.second_bound],
                    "ratio": d.ratio,
                    "share_of_difference": d.part,
                    "resource": d.cause.resource if d.cause else None,
                    "factors": {"rate": d.cause.rate, "work": d.cause.work, "use": d.cause.use}
                    if d.cause
                    else None,
                    "why": why_words(self, d),
                    "winner_changes": d.change,
                    "holds": d.stays,
                    "hangs_on": d.turned_by.to_json() if d.turned_by else None,
                }
                for d in self.differences
            ],
            "sweeps": [s.to_json() for s in self.sweeps],
        }


def why(
    suite: Suite,
    frame: pd.DataFrame,
    first: Chip,
    second: Chip,
    others: Sequence[Chip],
    workers: int = 1,
) -> Why:
    """Why ``second`` takes another time than ``first``, at every phase's highlighted point.

    ``frame`` holds the predictions of both (:func:`foretile.report.collect.collect`); entries that one of
    them cannot run are left out. ``others``: chips that say what an unknown number may be.
    """
    rows = pairs(suite, frame, first.id, second.id)
    asked = [
        (suite, phase, variable, first, second)
        for phase in suite.phases
        for variable in next(p for p in phase.points if p.id == phase.highlight).variables
    ]
    subjects = _subject(first, rows, "first"), _subject(second, rows, "second")
    if workers <= 1:
        swept = [sweep for one in asked for sweep in sweeps(*one)]
        verdicts = sensitivity(*subjects, others)
    else:
        with ProcessPoolExecutor(workers) as pool:
            waiting = [pool.submit(sweeps, *one) for one in asked]
            verdicts = sensitivity(*subjects, others, pool)
            swept = [sweep for future in waiting for sweep in future.result()]
    change: dict[tuple[str, str], str] = {}
    for sweep in swept:
        key = (sweep.phase, sweep.entry)
        if sweep.changes or key not in change:
            change[key] = sweep.words()
    gap = {
        p: sum((r["second"] - r["first"]) * r["count"] for r in rows if r["phase"] == p)
        for p in _phases(rows)
    }
    turned_by = verdicts[0].turned_by if verdicts else ()
    found = tuple(
        Difference(
            phase=row["phase"],
            entry=row["entry"],
            title=row["title"],
            count=row["count"],
            first_s=row["first"],
            second_s=row["second"],
            first_bound=row["first_bound"],
            second_bound=row["second_bound"],
            cause=cause(row, first, second),
            part=(row["second"] - row["first"]) * row["count"] / gap[row["phase"]]
            if gap[row["phase"]]
            else 0.0,
            turned_by=turned_by[place],
            change=change.get((row["phase"], row["entry"]), ""),
        )
        for place, row in enumerate(rows)
    )
    return Why(first.id, second.id, suite.phases, found, {v.phase: v for v in verdicts}, tuple(swept))


def _phases(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["phase"] for row in rows))


def pairs(suite: Suite, frame: pd.DataFrame, first: str, second: str) -> list[dict[str, Any]]:
    """One row an entry at the highlighted points that both chips can run."""
    found = []
    for phase in suite.phases:
        here = frame[(frame["phase"] == phase.id) & (frame["point"] == phase.highlight)]
        for entry in phase.entries:
            of: dict[Any, Any] = here[here["entry"] == entry.name].set_index("chip").to_dict("index")
            if any(chip not in of or math.isnan(of[chip]["time_s"]) for chip in (first, second)):
                continue
            a, b = of[first], of[second]
            found.append(
                {
                    "phase": phase.id,
                    "entry": entry.name,
                    "title": entry.title,
                    "operator": entry.operator,
                    "count": int(a["count"]),
                    "first": float(a["time_s"]),
                    "second": float(b["time_s"]),
                    "first_bound": a["bound"],
                    "second_bound": b["bound"],
                    "first_details": a["details"],
                    "second_details": b["details"],
                }
            )
    return found


def _subject(chip: Chip, rows: Sequence[Mapping[str, Any]], side: str) -> Subject:
    details = [row[f"{side}_details"] for row in rows]
    return Subject(
        chip=chip,
        calls=tuple(Call(r["operator"], d["shape"], d["config"]) for r, d in zip(rows, details, strict=True)),
        time_s=np.asarray([row[side] for row in rows]),
        counts=np.asarray([row["count"] for row in rows]),
        phases=tuple(row["phase"] for row in rows),
    )


def cause(row: Mapping[str, Any], first: Chip, second: Chip) -> Cause | None:
    """The decomposition by the slower chip's bound, or by the faster one's where it has no such engine."""
    sides = ("second", "first") if row["second"] > row["first"] else ("first", "second")
    chips = {"first": first, "second": second}
    slow, fast = sides
    for resource in (row[f"{slow}_bound"], row[f"{fast}_bound"]):
        busy = {side: _busy_s(row, side, resource) for side in sides}
        if min(busy.values()) <= 0:
            continue
        share = {side: busy[side] / row[side] for side in sides}
        dtype = row["first_details"]["shape"].get("dtype")
        rates = {side: _rate(chips[side], resource, dtype) for side in sides}
        of_slow, of_fast = rates[slow], rates[fast]
        rate = of_fast / of_slow if of_slow and of_fast else None
        return Cause(resource, rate, busy[slow] / busy[fast] / (rate or 1.0), share[fast] / share[slow])
    return None


def _busy_s(row: Mapping[str, Any], side: str, resource: str) -> float:
    """Seconds that a resource is busy; of launches their cost, of latency all that is no launch."""
    details, time_s = row[f"{side}_details"], float(row[side])
    if resource == "launch":
        return float(details["launch_s"])
    if resource == "latency":
        return time_s - float(details["launch_s"])
    return float(details["utilisation"].get(resource, 0.0)) * time_s


def _rate(chip: Chip, resource: str, dtype: object) -> float | None:
    known = chip.quantities()
    if resource == "launch":
        return 1.0 / chip.launch.kernel_s.value
    if resource == "latency":
        return chip.clock.max_hz.value / chip.dram.latency_cycles.value
    paths = [p.format(dtype=dtype or sixteen_bit(chip)) for p in _RATES.get(resource, ())]
    if not paths or not all(path in known for path in paths):
        return None
    return math.prod(known[path].value for path in paths)
