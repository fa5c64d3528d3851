"""Published measurements beside predictions: a table for the accuracy page and for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from foretile.report import units
from foretile.report.accuracy_tables import Cell, Table, percent, signed

if TYPE_CHECKING:
    from foretile.calibration.published import Reproduction

HEADS = ("chip", "operator and shape", "source", "published", "predicted", "error of the time")


def words(found: Sequence[Reproduction]) -> tuple[str, str]:
    """The headline: how far off, over how many points of how many chips, and what the goal is."""
    from foretile.calibration.published import GOAL_CHIPS, GOAL_MEDIAN, GOAL_POINTS, standing

    over = standing(found)
    goal = f"at most {GOAL_MEDIAN * 100:.0f} % over at least {GOAL_POINTS} points of {GOAL_CHIPS} chips"
    met = over.median <= GOAL_MEDIAN and over.points >= GOAL_POINTS and over.chips >= GOAL_CHIPS
    return (
        f"Published measurements on chips that nothing was fitted to: median error {percent(over.median)}, "
        f"mean {percent(over.mean)} (n = {over.points}, {over.chips} chips).",
        f"The goal, {goal}, is {'met' if met else 'missed'}; "
        f"{over.inside} of {over.points} lie in their 90 % intervals. "
        f"{len(found) - over.points} more are circular (the chip's file takes from them) and not counted.",
    )


def table(found: Sequence[Reproduction], *, sources: bool = True) -> Table:
    """One row a point: counted ones by chip, then the circular ones with the reason.

    Without ``sources`` the table fits a terminal.
    """
    ordered = sorted(found, key=lambda r: bool(r.point.circular))
    if sources:
        return Table(HEADS, tuple(_row(r) for r in ordered), labels=3)
    heads = (*HEADS[:2], "", *HEADS[3:])
    rows = []
    for r in ordered:
        chip, operator, _, *figures = _row(r)
        rows.append((chip, operator, Cell("circular" if r.point.circular else ""), *figures))
    return Table(heads, tuple(rows), labels=3)


def _row(r: Reproduction) -> tuple[Cell, ...]:
    p = r.point
    shape = " ".join(f"{name}={value}" for name, value in p.shape.items())
    remark = f"circular: {p.circular}" if p.circular else p.note
    return (
        Cell(p.chip),
        Cell(f"{p.operator} {shape}"),
        Cell(p.source, note=remark),
        Cell(_stated(p.stated), note="" if p.stated[0] == "time_s" else units.seconds(p.measured_s)),
        Cell(units.seconds(r.predicted_s), note=units.interval(*r.interval_s)),
        Cell(signed(r.error), note="" if r.inside else "outside the interval"),
    )


def _stated(stated: tuple[str, float]) -> str:
    unit, value = stated
    show = {"time_s": units.seconds, "flop_per_s": units.flop_rate, "bytes_per_s": units.byte_rate}[unit]
    return show(value)
