"""Predictions for the rows of a measurement table, under the conditions they were measured in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from foretile.calibration.dispatch import engine_of, launched, rule_for
from foretile.hwmodels import Chip, load_chip
from foretile.kernels.operator import Config, Operator, Shape, load_operator
from foretile.simulator.conditions import Conditions
from foretile.simulator.machine import Machine, SimulationError
from foretile.simulator.predictor import machine_of
from foretile.simulator.search import evaluate_config, space, static_part

Array = np.ndarray
# Warm-ups and replays before and while the clock is read: three plain, three replayed, six timed; the
# timed ones have between six and twelve behind them (aiconfigurator, collector/helper.py).
_RUNS = 9.0
# Weights that nobody has filled draw less power than random ones: the fall of the clock over that of
# random operands. Set between the fits of five chips to bf16 GEMM (0.2 to 0.6), not fitted further.
_IDLE_SWITCHING = 0.4
# Runs of a kernel that one graph holds where no operand has copies: quantisation in a loop of five
# (collector/*/collect_computescale.py); all others once.
_IN_GRAPH = {"quantize": 5.0}


@dataclass
class Batch:
    """Rows of one operator whose shapes differ in dynamic parameters only and whose kernels have one profile.

    ``source``: whose profile they have, empty for the family's; ``library``: whose rule of choice they
    follow (:mod:`~foretile.calibration.dispatch`), empty for none. ``shape`` holds columns (arrays of one
    value a row); ``graph``: kernels in one replayed graph (0: launched eagerly); ``where``: the rows'
    places in the table.
    """

    operator: Operator
    family: str
    source: str
    library: str
    shape: Shape
    conditions: Conditions
    graph: Array
    latency_s: Array
    where: Array

    def __len__(self) -> int:
        return len(self.where)

    def rows(self, index: Array) -> tuple[Shape, Conditions]:
        """Shape and conditions of some of the rows."""
        names = [p.name for p in self.operator.params if p.dynamic]
        return {**self.shape, **{n: self.shape[n][index] for n in names}}, self.conditions.rows(index)


def batches(frame: pd.DataFrame, chip: Chip, *, by_source: bool = False) -> list[Batch]:
    """The rows of a table of one device as batches.

    Sources whose kernels have no profile of their own in ``chip`` go together, unless ``by_source``.

    Raises:
        OperatorError: an operator or a parameter that does not exist.
    """
    found: list[Batch] = []
    for (name, family), group in frame.groupby(["operator", "family"], sort=False):
        operator = load_operator(str(name))
        shapes = group["shape"].map(json.loads)
        static = shapes.map(lambda s, o=operator: json.dumps(static_part(o, s), sort_keys=True))
        sources = group["kernel_source"]
        own = sources.map(lambda k, f=family: by_source or f"{f}/{k}" in chip.kernels)
        ruled = sources.map(lambda k, o=operator: rule_for(o.name, str(k), engine_of(chip)) is not None)
        keys = [static, sources.where(own, ""), sources.where(ruled, "")]
        for (_, kernels, library), part in group.groupby(keys, sort=False):
            found.append(_batch(operator, str(family), str(kernels), str(library), frame, part))
    return found


def _batch(
    operator: Operator, family: str, source: str, library: str, frame: pd.DataFrame, part: pd.DataFrame
) -> Batch:
    shapes = [json.loads(s) for s in part["shape"]]
    shape: Shape = {p.name: shapes[0][p.name] for p in operator.params}
    for p in operator.params:
        if p.dynamic:
            shape[p.name] = np.array([s[p.name] for s in shapes], dtype=np.float64)
    held = [json.loads(c) for c in part["copies"]]
    tensors = sorted({name for row in held for name in row})
    copies = {name: np.array([float(row.get(name, 1)) for row in held]) for name in tensors}
    most = np.max(np.stack([np.ones(len(part)), *copies.values()]), axis=0)
    return Batch(
        operator=operator,
        family=family,
        source=source,
        library=library,
        shape=shape,
        conditions=Conditions(
            copies,
            runs=_RUNS * most,
            switching=np.where(part["framework"] == "vllm", _IDLE_SWITCHING, 1.0),
        ),
        graph=np.where(part["launch"] == "graph", np.maximum(most, _IN_GRAPH.get(operator.name, 1.0)), 0.0),
        latency_s=part["latency_s"].to_numpy(dtype=np.float64),
        where=frame.index.get_indexer(part.index),
    )


def profile_key(chip: Chip, family: str, source: str) -> str:
    """The key of ``chip.kernels`` that these rows' kernels use, "" for none."""
    for key in (f"{family}/{source}", family):
        if key in chip.kernels:
            return key
    return ""


def batch_machine(chip: Chip, batch: Batch) -> Machine:
    """The machine as the batch's kernels use it."""
    return machine_of(chip, profile_key(chip, batch.family, batch.source))


def allowed(chip: Chip, batch: Batch) -> list[Config]:
    """The configurations of the batch's operator that fit the chip and that its library has."""
    key = profile_key(chip, batch.family, batch.source)
    return space(batch.operator, batch.shape, machine_of(chip, key), chip.kernels.get(key))


def graph_s(chip: Chip, batch: Batch) -> Array:
    """What the gap between replays adds to each row's time."""
    gap = chip.launch.graph_s.value if chip.launch.graph_s else 0.0
    return np.asarray(np.where(batch.graph > 0, gap / np.maximum(1.0, batch.graph), 0.0))


def times(chip: Chip, batch: Batch, configs: Sequence[Config]) -> Array:
    """Seconds by configuration (rows) and row of the batch (columns)."""
    machine = batch_machine(chip, batch)
    found = np.empty((len(configs), len(batch)))
    for i, config in enumerate(configs):
        launches = evaluate_config(batch.operator, batch.shape, config, machine, batch.conditions)
        found[i] = launches.time_s
    return np.asarray(np.where(launchable(chip, batch, configs), found + graph_s(chip, batch), np.inf))


def launchable(chip: Chip, batch: Batch, configs: Sequence[Config]) -> Array:
    """Which of the configurations the batch's library launches, by configuration and row."""
    rule = rule_for(batch.operator.name, batch.library, engine_of(chip))
    if rule is None:
        return np.ones((len(configs), len(batch)), dtype=bool)
    return launched(rule, configs, batch.shape, len(batch))


def predict_table(frame: pd.DataFrame, chip_of: Callable[[str], Chip] | None = None) -> pd.DataFrame:
    """Predicted time and 90 % interval of every row: columns ``time_s, low_s, high_s, refused``.

    ``chip_of`` gives the chip of a device id (the catalogue's, calibrated if it is, by default). Rows
    that cannot be predicted have NaN and the reason in ``refused``.
    """
    from foretile.calibration.intervals import row_factors

    out = pd.DataFrame(
        {"time_s": np.nan, "low_s": np.nan, "high_s": np.nan, "refused": ""}, index=frame.index
    )
    for device, rows in frame.groupby("device", sort=False):
        chip = (chip_of or load_chip)(str(device))
        for batch in batches(rows, chip):
            place = rows.index[batch.where]
            try:
                configs = allowed(chip, batch)
                ranked = times(chip, batch, configs)
            except SimulationError as error:
                out.loc[place, "refused"] = str(error)
                continue
            best = ranked.min(axis=0)
            factor = row_factors(chip, batch, configs, ranked)
            out.loc[place, "time_s"] = best
            out.loc[place, "low_s"] = best / factor
            out.loc[place, "high_s"] = best * factor
    return out


def summary(latency_s: Array, time_s: Array) -> Mapping[str, Any]:
    """MAPE, median, p90 and bias (all per cent) with n."""
    error = time_s / latency_s - 1.0
    return {
        "n": len(error),
        "mape": 100.0 * float(np.mean(np.abs(error))),
        "median": 100.0 * float(np.median(np.abs(error))),
        "p90": 100.0 * float(np.percentile(np.abs(error), 90)),
        "bias": 100.0 * float(np.expm1(np.median(np.log(time_s / latency_s)))),
    }
