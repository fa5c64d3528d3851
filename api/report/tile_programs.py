"""Measured tile programs beside predictions, configuration by configuration: tables for the accuracy page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from foretile.report import units
from foretile.report.accuracy_tables import NOTHING, Cell, Table, percent, signed

if TYPE_CHECKING:
    from foretile.calibration.device.accuracy import DeviceAccuracy, OperatorAccuracy

HEADS = ("chip", "operator", "", "MAPE", "predicted / measured", "rank", "cost of the choice")
ROW_HEADS = ("operator", "shape", "configuration", "measured", "calibrated", "uncalibrated")


def words(found: Sequence[DeviceAccuracy]) -> str:
    """The headline: how far off over all rows of every device, or that nothing was measured yet."""
    if not found:
        return (
            "No tile program has been measured on a device yet, so how well they are predicted is not known."
        )
    said = []
    for held in found:
        fitted, stated = held.calibrated[-1], held.uncalibrated[-1]
        said.append(
            f"{held.chip}: {percent(fitted.mape)} calibrated, {percent(stated.mape)} not "
            f"(n = {fitted.rows:,}, {held.table})"
        )
    return f"Mean errors over all configurations: {'; '.join(said)}."


def table(found: Sequence[DeviceAccuracy]) -> Table:
    """By chip and operator: error, rank correlation, cost of the predicted choice; with and without a fit."""
    rows = []
    for held in found:
        for pair in zip(held.calibrated, held.uncalibrated, strict=True):
            for how, over in zip(("calibrated", "uncalibrated"), pair, strict=True):
                rows.append(
                    (
                        *(Cell(held.chip), Cell(over.operator), Cell(how)),
                        Cell(percent(over.mape), n=f"{over.rows:,}"),
                        Cell(f"{over.bias:.2f}"),
                        _over_shapes(f"{over.rank:.2f}", over),
                        _over_shapes(percent(over.regret), over),
                    )
                )
    return Table(HEADS, tuple(rows), labels=3)


def every_row(held: DeviceAccuracy) -> Table:
    """Every measured configuration of a device with its predictions, in the order of the table."""
    rows = []
    for _, row in held.rows.iterrows():
        measured = float(row["latency_s"])
        rows.append(
            (
                *(Cell(str(row["operator"])), Cell(_pairs(row["shape"])), Cell(_pairs(row["config"]))),
                Cell(units.seconds(measured)),
                *(
                    Cell(units.seconds(float(row[column])), note=signed(float(row[column]) / measured - 1))
                    for column in ("calibrated_s", "uncalibrated_s")
                ),
            )
        )
    return Table(ROW_HEADS, tuple(rows), labels=3)


def _over_shapes(text: str, of: OperatorAccuracy) -> Cell:
    return Cell(text, n=str(of.shapes)) if of.shapes else Cell(NOTHING)


def _pairs(text: str) -> str:
    return " ".join(f"{name}={value}" for name, value in json.loads(text).items())
