"""Many shapes at once: columns in, one best configuration and time a row out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretile.hwmodels.schema import Chip
from foretile.kernels.operator import Config, Operator, OperatorError, Shape
from foretile.simulator.conditions import COLD, Conditions
from foretile.simulator.launches import dynamic_part
from foretile.simulator.predictor import Target, bound_of, gains, target
from foretile.simulator.search import Launches, evaluate_config, rank
from foretile.simulator.uncertainty import interval_factor


@dataclass
class Rows:
    """Predictions by row: columns, seconds, and (with details) interval, bound, configuration."""

    columns: dict[str, np.ndarray]
    time_s: np.ndarray
    low_s: np.ndarray = field(default_factory=lambda: np.empty(0))
    high_s: np.ndarray = field(default_factory=lambda: np.empty(0))
    bound: list[str] = field(default_factory=list)
    config: list[Config] = field(default_factory=list)


def predict_rows(
    operator: Operator, chip: Chip, shapes: Any, *, details: bool = False, conditions: Conditions = COLD
) -> Rows:
    """Cost-model predictions for every row of ``shapes`` (a DataFrame or a mapping of columns).

    Raises:
        OperatorError: an unknown column, unequal lengths, or a bad value, named with its row.
        SimulationError: nothing fits the chip.
    """
    columns, length = _columns(operator, shapes)
    rows = Rows(columns, np.empty(length))
    if details:
        rows.low_s, rows.high_s = np.empty(length), np.empty(length)
        rows.bound, rows.config = [""] * length, [{} for _ in range(length)]
    static = [p.name for p in operator.params if not p.dynamic]
    for where in _groups(columns, static, length):
        shape: Shape = {p.name: columns[p.name][where] for p in operator.params}
        for name in static:
            shape[name] = _plain(columns[name][where[0]])
        on = target(operator, shape, chip)
        ranking = rank(operator, shape, on.machine, conditions.rows(where), on.profile)
        best = ranking.best()
        rows.time_s[where] = ranking.time_s[best, np.arange(len(where))]
        if details:
            _details(operator, chip, on, shape, ranking.configs, best, where, rows, conditions.rows(where))
    return rows


def _details(
    operator: Operator,
    chip: Chip,
    on: Target,
    shape: Shape,
    configs: Sequence[Config],
    best: np.ndarray,
    where: np.ndarray,
    rows: Rows,
    conditions: Conditions,
) -> None:
    dynamic = dynamic_part(operator, shape)
    for index in np.unique(best):
        mine = np.flatnonzero(best == index)
        piece = {**shape, **{k: v[mine] for k, v in dynamic.items()}}
        state = conditions.rows(mine)
        launches = evaluate_config(operator, piece, configs[index], on.machine, state)
        elastic = gains(operator, piece, configs[index], on.machine, launches, state)
        dtype = next((p.workload.dtype for p in launches.plans if p.workload.dtype), "")
        time_s = launches.time_s
        factor = interval_factor(chip, dtype, elastic, on.family, time_s)
        bounds = _bounds(launches, len(mine))
        rows.low_s[where[mine]] = time_s / factor
        rows.high_s[where[mine]] = time_s * factor
        for row, bound in zip(where[mine], bounds, strict=True):
            rows.bound[row] = bound
            rows.config[row] = dict(configs[index])


def _bounds(launches: Launches, count: int) -> list[str]:
    """What binds, by row."""
    busy: dict[str, np.ndarray] = {}
    for e in launches.estimates:
        for engine, seconds in e.busy.items():
            busy[engine] = busy.get(engine, 0.0) + np.broadcast_to(np.asarray(seconds).reshape(-1), (count,))
    launch = sum(p.workload.machine.launch_s for p in launches.plans)
    return [
        bound_of({engine: seconds[row] / time_s for engine, seconds in busy.items()}, launch / time_s)
        for row, time_s in enumerate(launches.time_s)
    ]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _columns(operator: Operator, shapes: Any) -> tuple[dict[str, np.ndarray], int]:
    """Every parameter as a checked column of equal length."""
    given: Mapping[str, Any] = {str(k): shapes[k] for k in shapes}
    for name in given:
        operator.param(name)
    lengths = {name: len(v) for name, v in given.items() if np.ndim(v)}
    if len(set(lengths.values())) > 1:
        described = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise OperatorError(f"{operator.name}: columns of unequal length: {described}")
    length = next(iter(lengths.values()), 1)
    if length == 0:
        raise OperatorError(f"{operator.name}: the columns are empty; give at least one row")
    raw = {name: np.broadcast_to(np.asarray(v), (length,)) for name, v in given.items()}
    for name, column in raw.items():
        _check(operator, name, column)
    # Resolve defaults and combinations once a distinct set of non-numeric and static values.
    static = [p.name for p in operator.params if p.name in raw and (not p.dynamic or p.kind != "int")]
    columns: dict[str, np.ndarray] = {}
    for where in _groups(raw, static, length):
        piece = {
            n: (_plain(c[where[0]]) if n in static else c[where].astype(np.int64)) for n, c in raw.items()
        }
        resolved = operator.shape(**piece)
        for p in operator.params:
            value = np.asarray(resolved[p.name])
            if p.name not in columns:
                columns[p.name] = np.empty(length, dtype=object if value.dtype.kind in "UO" else value.dtype)
            columns[p.name][where] = value
    return columns, length


def _check(operator: Operator, name: str, column: np.ndarray) -> None:
    p = operator.param(name)
    if p.kind != "int":
        return
    if column.dtype.kind not in "iuf":
        raise OperatorError(f"{operator.name}: column {name} holds {column.dtype}, not whole numbers")
    bad = np.flatnonzero(
        ~(np.isfinite(column.astype(np.float64)) & (column >= p.minimum) & (column % 1 == 0))
    )
    if len(bad):
        raise OperatorError(
            f"{operator.name}: row {bad[0]}: {name}={column[bad[0]]} "
            f"is not a whole number of at least {p.minimum}"
        )


def _groups(columns: Mapping[str, np.ndarray], names: Sequence[str], length: int) -> list[np.ndarray]:
    """Row numbers grouped by equal values of the named columns."""
    if not names:
        return [np.arange(length)]
    code = np.zeros(length, dtype=np.int64)
    for name in names:
        _, inverse = np.unique(columns[name].astype(str), return_inverse=True)
        code = code * (int(inverse.max()) + 1) + inverse
        _, code = np.unique(code, return_inverse=True)
    return [np.flatnonzero(code == value) for value in range(int(code.max()) + 1)]
