"""Checks of a measurement table, column by column; the first bad row is refused by number."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from foretile.calibration.table_bounds import launch_seconds, least_seconds
from foretile.calibration.table_schema import (
    COLUMNS,
    KEY_COLUMNS,
    LAUNCHES,
    MAY_BE_EMPTY,
    NUMBERS,
    OPTIONAL,
    TEXTS,
    MeasurementError,
    canonical,
    family_of,
)
from foretile.hwmodels import list_chips
from foretile.kernels.operator import OperatorError, load_operator, operator_names

# A time this much shorter than peak rates allow is a wrong unit, not a fast kernel: chips exceed stated
# rates by a few per cent (clocks above the stated ones), wrong units are off by a thousand.
_TOO_SHORT = 1 / 10
# Rows launched from a graph take a median of up to 70 times bound plus launch (an unsuitable kernel), a
# thousand times that is a wrong unit. A launch by the host takes up to this long by itself.
_TOO_LONG = 300.0
_EAGER_LAUNCH_S = 1e-4


def _near(value: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(value), list(known), n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}? " if near else ""


class _Table:
    """A frame with its name and the numbers its rows have in the file."""

    def __init__(self, frame: pd.DataFrame, name: str, rows: Sequence[int] | None) -> None:
        self.frame, self.name = frame, name
        self.rows = rows if rows is not None else range(1, len(frame) + 1)

    def number(self, position: int) -> int:
        return int(self.rows[position])

    def refuse(self, bad: np.ndarray, column: str | None, say: Callable[[int], str]) -> None:
        """Raise for the first row that is bad; ``say`` gets its position."""
        positions = np.flatnonzero(bad)
        if positions.size:
            first = int(positions[0])
            more = f" ({positions.size} rows in all)" if positions.size > 1 else ""
            raise MeasurementError(self.name, self.number(first), column, say(first) + more)

    def refuse_values(self, column: str, problem: Callable[[str], str | None]) -> None:
        """Raise for the first row whose text ``problem`` objects to; each distinct text is asked once."""
        codes, distinct = pd.factorize(self.frame[column].astype(object))
        said = [problem(str(value)) for value in distinct]
        bad = np.array([text is not None for text in said], dtype=bool)
        if bad.any():
            self.refuse(bad[codes], column, lambda i: f"{distinct[codes[i]]!r}: {said[codes[i]]}")


def validate_table(frame: pd.DataFrame, name: str, *, rows: Sequence[int] | None = None) -> pd.DataFrame:
    """The table with columns in their order and types, after every row has been checked.

    ``name`` is the file's name in messages, ``rows`` the numbers of the rows in it (1, 2, … if not given).

    Raises:
        MeasurementError: naming file, row, column, value and what would be right.
    """
    frame = completed(frame)
    _check_columns(frame, name)
    table = _Table(frame.loc[:, list(COLUMNS)], name, rows)
    _check_types(table)
    _check_names(table)
    _check_shapes(table)
    _check_json(table)
    _check_numbers(table)
    _check_duplicates(table)
    _check_units(table)
    return typed(table.frame)


def completed(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the optional columns that it lacks."""
    return frame.assign(**{name: value for name, value in OPTIONAL.items() if name not in frame.columns})


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with all columns of the schema, and their types."""
    frame = completed(frame).loc[:, list(COLUMNS)]
    texts = {name: frame[name].astype(str) for name in TEXTS}
    numbers = {name: frame[name].to_numpy(dtype=np.dtype(kind)) for name, kind in NUMBERS.items()}
    return frame.assign(**texts, **numbers)


def _check_columns(frame: pd.DataFrame, name: str) -> None:
    missing = [c for c in COLUMNS if c not in frame.columns]
    extra = [str(c) for c in frame.columns if c not in COLUMNS]
    if missing:
        near = _near(missing[0], extra)
        raise MeasurementError(
            name, None, missing[0], f"this column is missing; {near}needed: {', '.join(COLUMNS)}"
        )
    if extra:
        near = _near(extra[0], COLUMNS)
        raise MeasurementError(
            name, None, extra[0], f"no such column; {near}a table has: {', '.join(COLUMNS)}"
        )
    if frame.columns.has_duplicates:
        twice = str(frame.columns[frame.columns.duplicated()][0])
        raise MeasurementError(name, None, twice, "this column occurs twice")


def _not(values: pd.Series[Any], what: str) -> Callable[[int], str]:
    """Says of the value at a place that it is not ``what``."""
    return lambda i: f"{values.iloc[i]!r} is not {what}"


def _check_types(table: _Table) -> None:
    for column in TEXTS:
        values = table.frame[column].astype(object)
        bad = np.array([not isinstance(v, str) for v in values], dtype=bool)
        table.refuse(bad, column, _not(values, "text"))
        if column not in MAY_BE_EMPTY:
            table.refuse((values == "").to_numpy(), column, lambda i: "empty; it needs a value")
    for column in NUMBERS:
        values = table.frame[column]
        numbers = pd.to_numeric(values, errors="coerce")
        wrong = numbers.isna() & ~values.isna()
        table.refuse(wrong.to_numpy(), column, _not(values, "a number"))
        table.frame = table.frame.assign(**{column: numbers})


def _check_names(table: _Table) -> None:
    chips, operators = list_chips(), operator_names()

    def device(value: str) -> str | None:
        known = f"{_near(value, chips)}known: {', '.join(chips)}"
        return None if value in chips else f"no chip of the catalogue; {known}"

    def operator(value: str) -> str | None:
        known = f"{_near(value, operators)}known: {', '.join(operators)}"
        return None if value in operators else f"no operator of the library; {known}"

    def launch(value: str) -> str | None:
        return None if value in LAUNCHES else f"unknown launch; expected {' or '.join(LAUNCHES)}"

    table.refuse_values("device", device)
    table.refuse_values("operator", operator)
    table.refuse_values("launch", launch)


def _shape_problem(operator: str, text: str) -> str | None:
    """What is wrong with a shape, or None: it must be the operator's resolved parameters, canonically."""
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        return f"not JSON ({error})"
    if not isinstance(given, dict):
        return 'not a JSON object; expected {"parameter":value,…}'
    op = load_operator(operator)
    try:
        resolved = op.shape(**given)
    except OperatorError as error:
        return str(error)
    missing = [name for name in resolved if name not in given]
    if missing:
        return f"parameter {missing[0]!r} is missing; a table states defaults too: {canonical(resolved)}"
    return None if text == canonical(resolved) else f"not canonical; expected {canonical(resolved)}"


def _check_shapes(table: _Table) -> None:
    frame = table.frame
    joined = frame["operator"].astype(object) + "|" + frame["shape"].astype(object)
    codes, distinct = pd.factorize(joined)
    said: list[str | None] = []
    families: list[str] = []
    for text in distinct:
        operator, _, shape = str(text).partition("|")
        said.append(_shape_problem(operator, shape))
        families.append(family_of(operator, json.loads(shape)) if said[-1] is None else "")
    bad = np.array([text is not None for text in said], dtype=bool)
    shapes = frame["shape"].to_numpy()
    table.refuse(bad[codes], "shape", lambda i: f"{shapes[i]}: {said[codes[i]]}")
    right = np.array(families, dtype=object)[codes]
    stated = frame["family"].astype(object).to_numpy()
    table.refuse(
        stated != right, "family", lambda i: f"{stated[i]!r} does not fit the shape; expected {right[i]!r}"
    )


def _copies_problem(text: str) -> str | None:
    expected = 'expected {"tensor":number of buffers,…}, as in {"B":5}, or {} if nothing rotates'
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        return f"not JSON ({error}); {expected}"
    if not isinstance(given, dict):
        return f"not a JSON object; {expected}"
    for tensor, count in given.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            return f"{tensor}: {count!r} is not a whole number of at least 1; {expected}"
    return None if text == canonical(given) else f"not canonical; expected {canonical(given)}"


def _config_problem(text: str) -> str | None:
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        return f'not JSON ({error}); expected {{"key":value,…}}, or {{}} if it is not known'
    if not isinstance(given, dict):
        return 'not a JSON object; expected {"key":value,…}, or {} if it is not known'
    return None if text == canonical(given) else f"not canonical; expected {canonical(given)}"


def _check_json(table: _Table) -> None:
    table.refuse_values("copies", _copies_problem)
    table.refuse_values("config", _config_problem)


def _check_numbers(table: _Table) -> None:
    latency, spread, runs = (
        table.frame[c].to_numpy(dtype=np.float64) for c in ("latency_s", "spread", "runs")
    )
    table.refuse(np.isnan(latency), "latency_s", lambda i: "not a number (NaN); expected seconds > 0")
    bad = ~(latency > 0) | np.isinf(latency)
    table.refuse(bad, "latency_s", lambda i: f"{latency[i]:g} is not a time; expected seconds > 0")
    bad = (spread < 0) | np.isinf(spread)
    table.refuse(bad, "spread", lambda i: f"{spread[i]:g} is not a spread; expected max/min - 1 >= 0, or NaN")
    bad = ~(runs >= 1) | (runs != np.floor(runs))
    table.refuse(bad, "runs", lambda i: f"{runs[i]:g} is not a number of runs; expected a whole number >= 1")


def _check_duplicates(table: _Table) -> None:
    keys = table.frame[list(KEY_COLUMNS)]
    codes = keys.astype(object).groupby(list(KEY_COLUMNS), sort=False).ngroup().to_numpy()
    again = pd.Series(codes).duplicated().to_numpy()

    def say(i: int) -> str:
        first = int(np.flatnonzero(codes == codes[i])[0])
        values = ", ".join(str(v) for v in keys.iloc[i])
        return f"the same as row {table.number(first)}: {values}; average repeated measurements into one row"

    table.refuse(again, "+".join(KEY_COLUMNS), say)


def _check_units(table: _Table) -> None:
    """Refuse times that are too short for the chip, and series that are a thousand times too long."""
    frame = table.frame
    if not len(frame):
        return
    latency = frame["latency_s"].to_numpy(dtype=np.float64)
    least, launch = least_seconds(frame), launch_seconds(frame)
    floor = np.maximum(least, launch) * _TOO_SHORT
    device = frame["device"].astype(object).to_numpy()
    table.refuse(
        latency < floor,
        "latency_s",
        lambda i: (
            f"{latency[i]:.3g} s is far below what {device[i]} can do: {least[i]:.3g} s at peak rates and "
            f"{launch[i]:.3g} s for an empty kernel; looks like a wrong unit, 10³ too small "
            "(expected seconds)"
        ),
    )
    eager = (frame["launch"] == "eager").to_numpy(dtype=bool)
    ratio = latency / (least + np.where(eager, _EAGER_LAUNCH_S, launch))
    series = frame.astype(dict.fromkeys(("device", "family", "kernel_source", "framework"), object)).groupby(
        ["device", "family", "kernel_source", "framework"], sort=False
    )
    typical = pd.Series(ratio, index=frame.index).groupby(series.ngroup()).transform("median").to_numpy()
    table.refuse(
        typical > _TOO_LONG,
        "latency_s",
        lambda i: (
            f"{latency[i]:.3g} s, and the rows of its kind ({frame['family'].iloc[i]}, "
            f"{frame['kernel_source'].iloc[i]} on {device[i]}) take a median of {typical[i]:.0f} times what "
            f"the chip needs at peak rates; looks like {_unit(typical[i])} in a column of seconds"
        ),
    )


def _unit(ratio: float) -> str:
    """The unit whose confusion with seconds explains a ratio: kernels take some times their bound."""
    return "milliseconds" if ratio < 3e5 else "microseconds"
