"""Rows by benchmark, what a row says in one number, and an estimate as it is reported."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from foretile.calibration.device.micro.fits import Number, middle
from foretile.calibration.device.micro.points import Row


@dataclass(frozen=True, slots=True)
class Estimate:
    """``field``: a path of a chip file, or the name of a number that no file has; ``how``: from what."""

    field: str
    number: Number
    unit: str
    how: str

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        return {"field": self.field, "unit": self.unit, "how": self.how, **asdict(self.number)}


class Rows:
    """Rows by benchmark; those without a time are left out."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._of: dict[str, list[Row]] = {}
        for row in (r for r in rows if r.seconds):
            self._of.setdefault(row.benchmark, []).append(row)

    @property
    def names(self) -> Iterable[str]:
        """Benchmarks that there are rows of."""
        return self._of

    def of(self, benchmark: str) -> list[Row]:
        """All of a benchmark, in the order measured."""
        return self._of.get(benchmark, [])


def per_cycle(row: Row, work: str) -> Number:
    """Work of a block per cycle of its core."""
    return middle([row.work[work] / c for c in row.cycles], row.flags)


def per_second(row: Row, work: str) -> Number:
    """Work of the grid per second from the first block's start to the last one's end."""
    return middle([row.work[work] / s for s in row.span_s], row.flags)


def cycles_a_step(row: Row) -> Number:
    """Cycles of the core a step."""
    return middle([c / row.work["steps_a_block"] for c in row.cycles], row.flags)


def seconds_a_step(row: Row) -> Number:
    """Seconds a step, for what does not run by the core's clock."""
    return middle([1e-9 * t / row.work["steps_a_block"] for t in row.nanoseconds], row.flags)


def not_negative(number: Number) -> Number:
    """A cost that cannot be below zero, though a difference of measured times may be."""
    if number.value >= 0:
        return number
    return Number(0.0, number.low, number.high, number.n, (*number.flags, "below zero, taken as zero"))


def share(number: Number) -> Number:
    """A share of what cannot be exceeded: noise above one is cut off."""
    if number.value <= 1:
        return number
    flags = ("above one",) if number.low > 1 else ()
    return Number(1.0, min(1.0, number.low), 1.0, number.n, (*number.flags, *flags))
