"""At which size the faster of two chips changes: a sweep of a variable, bisected on the cost model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from foretile.frontdoor import predict_many
from foretile.report.suite import Entry, Phase, Suite, SuiteError, shape_at

if TYPE_CHECKING:
    from foretile.hwmodels.schema import Chip

# The sweep goes from 1/64 of the highlighted size to 16 times it, an octave a step.
OCTAVES_DOWN, OCTAVES_UP = 6, 4
_ROUNDS = 6  # bisections: a change between neighbouring octaves is found to 1 %
# Chips closer than this are level: the cost model's own error is larger.
LEVEL = 0.02
PASS = ""  # the name of the sweep of all entries together


@dataclass(frozen=True)
class Change:
    """From ``size`` on ``winner`` is the faster chip, below it the other one."""

    size: int
    winner: str


@dataclass(frozen=True)
class Sweep:
    """The time of the second chip over the first's along a variable of a phase.

    ``entry``: whose, or :data:`PASS`. ``ratios`` by size; ``changes``: where the winner changes by more
    than a level stretch.
    """

    phase: str
    entry: str
    variable: str
    first: str
    second: str
    ratios: Mapping[int, float]
    changes: tuple[Change, ...]

    def words(self) -> str:
        """``h20 below batch 18, h100 from 18 on``; the range tried is left to the caller."""
        if self.changes:
            winner = self.first if self.changes[0].winner == self.second else self.second
            parts = [f"{winner} below {self.variable} {self.changes[0].size}"]
            return ", ".join([*parts, *(f"{c.winner} from {c.size} on" for c in self.changes)])
        firm = [r for r in self.ratios.values() if _side(r)]
        if not firm:
            return "level at every size"
        return f"{self.first if firm[0] > 1 else self.second} at every size"

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        return {
            "phase": self.phase,
            "entry": self.entry,
            "variable": self.variable,
            "ratios": {str(size): ratio for size, ratio in self.ratios.items()},
            "changes": [{"size": c.size, "winner": c.winner} for c in self.changes],
        }


def _side(ratio: float) -> int:
    """1 where the second chip is slower, -1 where the first is, 0 where they are level."""
    return 0 if abs(math.log(ratio)) <= LEVEL else 1 if ratio > 1 else -1


@dataclass
class _Times:
    """Seconds of entries at sizes on both chips, each asked for once."""

    suite: Suite
    phase: Phase
    variable: str
    chips: tuple[Chip, Chip]
    known: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)

    def call(self, entry: Entry, size: int) -> tuple[dict[str, Any], int]:
        point = next(p for p in self.phase.points if p.id == self.phase.highlight)
        return shape_at(self.suite, self.phase, entry, {**point.variables, self.variable: size})

    def ask(self, wanted: Iterable[tuple[Entry, int]]) -> None:
        """Times what is not known yet, all shapes of an operator at once."""
        groups: dict[tuple[str, tuple[str, ...]], list[tuple[tuple[str, int], dict[str, Any]]]] = {}
        for entry, size in dict.fromkeys((e.name, n) for e, n in wanted):
            if (entry, size) in self.known:
                continue
            of = next(e for e in self.phase.entries if e.name == entry)
            shape, _ = self.call(of, size)
            groups.setdefault((of.operator, tuple(shape)), []).append(((entry, size), shape))
        for (operator, names), rows in groups.items():
            columns = {name: [shape[name] for _, shape in rows] for name in names}
            a, b = (_many(operator, chip, columns, len(rows)) for chip in self.chips)
            self.known.update(
                {key: pair for (key, _), pair in zip(rows, zip(a, b, strict=True), strict=True)}
            )

    def ratio(self, name: str, size: int) -> float:
        """Second over first, of an entry or of the pass; not a number where one cannot be timed."""
        if name != PASS:
            first, second = self.known[name, size]
            return second / first
        total = [0.0, 0.0]
        for entry in self.phase.entries:
            count = self.call(entry, size)[1]
            total = [t + count * s for t, s in zip(total, self.known[entry.name, size], strict=True)]
        return total[1] / total[0]


def _many(operator: str, chip: Chip, columns: Mapping[str, list[Any]], rows: int) -> list[float]:
    try:
        return [float(t) for t in predict_many(operator, chip, columns)]
    except ValueError as error:
        if type(error).__module__.partition(".")[0] != "foretile":
            raise
        return [math.nan] * rows


def sweeps(suite: Suite, phase: Phase, variable: str, first: Chip, second: Chip) -> list[Sweep]:
    """One sweep of the pass, and one of every entry whose shape depends on ``variable``.

    All else is as at the phase's highlighted point. What a chip cannot run at every size has no sweep.

    Raises:
        SuiteError: the phase has no such variable.
    """
    point = next(p for p in phase.points if p.id == phase.highlight)
    if variable not in point.variables:
        raise SuiteError(f"{phase.id}: no variable {variable!r}; known: {', '.join(point.variables)}")
    middle = point.variables[variable]
    sizes = sorted({max(1, round(middle * 2.0**e)) for e in range(-OCTAVES_DOWN, OCTAVES_UP + 1)})
    times = _Times(suite, phase, variable, (first, second))
    times.ask((entry, size) for entry in phase.entries for size in sizes)
    moving = [e for e in phase.entries if times.call(e, sizes[0]) != times.call(e, sizes[-1])]
    ratios = {
        name: {size: times.ratio(name, size) for size in sizes}
        for name in (PASS, *(e.name for e in moving))
        if all(math.isfinite(times.ratio(name, size)) for size in sizes)
    }
    changes = _bisected({name: _brackets(found) for name, found in ratios.items()}, times)
    return [
        Sweep(phase.id, name, variable, first.id, second.id, found, tuple(changes[name]))
        for name, found in ratios.items()
    ]


def _brackets(ratios: Mapping[int, float]) -> list[tuple[int, int]]:
    """Neighbouring sizes, level ones skipped, between which the winner changes."""
    firm = [(size, _side(ratio)) for size, ratio in ratios.items() if _side(ratio)]
    return [(a, b) for (a, left), (b, right) in pairwise(firm) if left != right]


def _bisected(open_: Mapping[str, list[tuple[int, int]]], times: _Times) -> dict[str, list[Change]]:
    """Every bracket narrowed down, all of them together so that each round is one batch."""
    entries = {e.name: (e,) for e in times.phase.entries} | {PASS: times.phase.entries}
    narrowed = {name: list(brackets) for name, brackets in open_.items()}
    for _ in range(_ROUNDS):
        middles = {
            (name, i): min(max(round(math.sqrt(low * high)), low + 1), high - 1)
            for name, brackets in narrowed.items()
            for i, (low, high) in enumerate(brackets)
            if high - low > 1
        }
        times.ask((entry, size) for (name, _), size in middles.items() for entry in entries[name])
        for (name, i), size in middles.items():
            low, high = narrowed[name][i]
            before = times.ratio(name, low) > 1
            narrowed[name][i] = (size, high) if (times.ratio(name, size) > 1) == before else (low, size)
    first, second = (chip.id for chip in times.chips)
    return {
        name: [Change(high, first if times.ratio(name, high) > 1 else second) for _, high in brackets]
        for name, brackets in narrowed.items()
    }
