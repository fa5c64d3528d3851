"""Predictions held against a table of measured tile programs, configuration by configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from foretile.calibration.device.kernels import TILE, compiled_by_tilelang
from foretile.calibration.table_files import read_table
from foretile.calibration.table_schema import MeasurementError
from foretile.hwmodels import Chip, load_chip
from foretile.kernels.operator import load_operator
from foretile.simulator.machine import SimulationError
from foretile.simulator.predictor import predict

DEVICES = Path(__file__).parents[1] / "data" / "devices"
"""Tables that bundles wrote on devices, one file each, with a note of the machine beside it."""
_LEAST_CONFIGURATIONS = 4  # of a shape, for a rank correlation


@dataclass(frozen=True, slots=True)
class OperatorAccuracy:
    """How an operator's configurations are predicted.

    ``mape`` is the mean of |predicted / measured − 1| over ``rows``, ``bias`` the median of predicted over
    measured, ``rank`` the mean Spearman correlation over configurations of one shape, ``regret`` the mean
    over shapes of what the configuration predicted fastest takes beyond the fastest one, as a share; NaN,
    with ``shapes`` zero, where no shape has at least four configurations.
    """

    operator: str
    rows: int
    mape: float
    bias: float
    shapes: int
    rank: float
    regret: float


@dataclass(frozen=True)
class DeviceAccuracy:
    """What a device's table of tile programs says of the chip as it is and before it was fitted.

    ``rows``: of the table, those that name a configuration and fit the chip, with ``calibrated_s`` and
    ``uncalibrated_s`` beside what was measured.
    """

    table: str
    chip: str
    calibrated: tuple[OperatorAccuracy, ...]
    uncalibrated: tuple[OperatorAccuracy, ...]
    rows: pd.DataFrame


def of_devices(folder: Path = DEVICES) -> list[DeviceAccuracy]:
    """Predictions held against every bundle's table in ``folder``; nothing where no device was measured.

    Raises:
        MeasurementError: a table that is not one, of a chip that the catalogue does not have, or without a
            configuration.
    """
    found = []
    for path in sorted(folder.glob("*.parquet")) if folder.is_dir() else ():
        table = read_table(path)
        for device in sorted(table["device"].astype(str).unique()):
            found.append(_of_device(path.name, table[table["device"] == device], device))
    return found


def _of_device(name: str, table: pd.DataFrame, device: str) -> DeviceAccuracy:
    chips = {"calibrated_s": load_chip(device), "uncalibrated_s": load_chip(device, calibrated=False)}
    rows = table[table["config"] != "{}"]
    rows = rows.assign(**{column: list(_predicted(rows, chip)) for column, chip in chips.items()})
    rows = rows.dropna(subset=list(chips))
    held = [tuple(accuracy(rows.assign(predicted_s=rows[column]))) for column in chips]
    return DeviceAccuracy(name, device, held[0], held[1], rows)


def accuracy(table: pd.DataFrame, chip: Chip | None = None) -> list[OperatorAccuracy]:
    """By operator, and over all of them (``all``), of the rows of a table that name a configuration.

    ``chip`` predicts anew, for its own rows; without it the predictions are those recorded in the table.

    Raises:
        MeasurementError: no row has a configuration and a prediction.
    """
    rows = table[table["config"] != "{}"]
    if chip is not None:
        rows = rows[rows["device"] == chip.id]
        rows = rows.assign(predicted_s=list(_predicted(rows, chip)))
    rows = rows[rows["predicted_s"].notna()]
    if not len(rows):
        own = f" of {chip.id}" if chip is not None else " with a prediction"
        raise MeasurementError(
            "table", None, "config", f"no row{own} names a configuration; expected what a bundle's run writes"
        )
    found = [_of(str(name), part) for name, part in rows.groupby("operator", sort=True, observed=True)]
    return [*found, _of("all", rows)]


def _predicted(rows: pd.DataFrame, chip: Chip) -> Iterator[float]:
    for _, row in rows.iterrows():
        operator = load_operator(str(row["operator"]))
        if row["kernel_source"] == TILE:
            operator = compiled_by_tilelang(operator)
        shape = operator.shape(**json.loads(row["shape"]))
        try:
            yield predict(operator, shape, chip, json.loads(row["config"])).time_s
        except SimulationError:
            yield math.nan  # it ran, and does not fit the chip as that is described: nothing to hold to it


def _of(name: str, rows: pd.DataFrame) -> OperatorAccuracy:
    ratio = (rows["predicted_s"] / rows["latency_s"]).to_numpy(dtype=np.float64)
    ranks, regrets = [], []
    for _, shape in rows.groupby(["device", "operator", "shape"], observed=True):
        measured, predicted = (shape[c].to_numpy(dtype=np.float64) for c in ("latency_s", "predicted_s"))
        if len(shape) >= _LEAST_CONFIGURATIONS and np.ptp(predicted) > 0 and np.ptp(measured) > 0:
            ranks.append(float(spearmanr(measured, predicted).statistic))
            regrets.append(float(measured[predicted.argmin()] / measured.min() - 1))
    return OperatorAccuracy(
        operator=name,
        rows=len(rows),
        mape=float(np.abs(ratio - 1).mean()),
        bias=float(np.median(ratio)),
        shapes=len(ranks),
        rank=float(np.mean(ranks)) if ranks else math.nan,
        regret=float(np.mean(regrets)) if regrets else math.nan,
    )
