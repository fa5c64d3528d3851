"""Measurement tables on disk: Parquet with the schema's version, and CSV written by hand."""

from __future__ import annotations

import csv
import difflib
from pathlib import Path
from typing import Any

import pandas as pd

from foretile.calibration.table_checks import typed, validate_table
from foretile.calibration.table_schema import (
    COLUMNS,
    NUMBERS,
    OPTIONAL,
    SCHEMA_VERSION,
    MeasurementError,
    canonical,
    family_of,
)
from foretile.kernels.operator import Operator, OperatorError, load_operator, operator_names
from foretile.kernels.whole_files import place_for

_VERSION_KEY = b"foretile.measurements"
_UNITS = {"latency_s": 1.0, "latency_ms": 1e3, "latency_us": 1e6}  # how many to a second
# What a CSV need not say. A hand-timed loop over one set of buffers is the common case.
_DEFAULTS: dict[str, Any] = {
    "kernel_source": "unspecified",
    "framework": "",
    "framework_version": "",
    "launch": "graph",
    "copies": "{}",
    "spread": float("nan"),
    "runs": 1,
    "comparable": "",
    "licence": "unspecified",
    **OPTIONAL,
}


def write_table(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as Parquet (zstd, texts dictionary-encoded), after checking it; returns the path.

    The file appears complete or not at all.

    Raises:
        MeasurementError: a row that is wrong; nothing is written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = Path(path)
    checked = validate_table(frame, target.name)
    types = {"float64": pa.float64(), "int32": pa.int32()}
    text = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema(
        [(name, types[NUMBERS[name]] if name in NUMBERS else text) for name in COLUMNS],
        metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()},
    )
    columns = [_arrow(checked[name], name, schema.field(name).type) for name in COLUMNS]
    table = pa.Table.from_arrays(columns, schema=schema)
    with place_for(target) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=19)
    return target


def _arrow(values: pd.Series[Any], name: str, kind: Any) -> Any:
    import pyarrow as pa

    if name in NUMBERS:
        return pa.array(values.to_numpy(), type=kind, from_pandas=False)
    return pa.array(values.to_numpy(dtype=object), type=pa.string()).dictionary_encode()


def read_table(path: str | Path, *, check: bool = True) -> pd.DataFrame:
    """A table from Parquet, checked unless told otherwise (a file that this library wrote and shipped).

    Raises:
        FileNotFoundError: there is no such file.
        MeasurementError: no Parquet, another schema, or a row that is wrong.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; expected a measurement table (.parquet)")
    try:
        table = pq.read_table(source)
    except pa.ArrowInvalid as error:
        raise MeasurementError(source.name, None, None, f"not a Parquet file ({error})") from None
    version = (table.schema.metadata or {}).get(_VERSION_KEY)
    if version is None:
        problem = "no measurement table: its metadata lacks the schema's version; write it with write_table"
        raise MeasurementError(source.name, None, None, problem)
    if version.decode() != str(SCHEMA_VERSION):
        problem = f"schema version {version.decode()}; this release reads version {SCHEMA_VERSION}"
        raise MeasurementError(source.name, None, None, problem)
    frame: pd.DataFrame = table.to_pandas()
    if check:
        return validate_table(frame, source.name)
    return typed(frame)


def read_csv(path: str | Path) -> pd.DataFrame:
    """A table from a CSV written by hand.

    Columns: ``device``, ``operator``, one of ``latency_s``, ``latency_ms``, ``latency_us``, and each
    shape parameter as a column of its own (empty: the operator's default). Further columns of the
    schema may be given; otherwise kernel source and licence are ``unspecified``, framework and version
    empty, launch ``graph``, copies ``{}``, runs 1, spread unknown. Row numbers in errors are lines.

    Raises:
        FileNotFoundError: there is no such file.
        MeasurementError: naming file, line, column, value and what would be right.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; expected a table of measurements (.csv)")
    with source.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream)
        header = [name.strip() for name in next(reader, [])]
        unit = _check_header(header, source.name)
        records: list[dict[str, Any]] = []
        lines: list[int] = []
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            line = reader.line_num
            if len(cells) != len(header):
                problem = f"{len(cells)} cells, but the header names {len(header)} columns"
                raise MeasurementError(source.name, line, None, problem)
            given = {name: cell.strip() for name, cell in zip(header, cells, strict=True) if cell.strip()}
            records.append(_record(given, unit, source.name, line))
            lines.append(line)
    if not records:
        raise MeasurementError(source.name, None, None, "no rows; expected a header and at least one row")
    return validate_table(pd.DataFrame(records, columns=list(COLUMNS)), source.name, rows=lines)


def _check_header(header: list[str], name: str) -> str:
    """The unit's column; refuses columns that neither the schema nor any operator has."""
    for column in header:
        if header.count(column) > 1:
            raise MeasurementError(name, 1, column, "this column occurs twice")
    for column in ("device", "operator"):
        if column not in header:
            near = difflib.get_close_matches(column, header, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise MeasurementError(name, 1, column, f"this column is missing{hint}")
    units = [column for column in header if column in _UNITS]
    if len(units) != 1:
        found = " and ".join(units) or "none"
        problem = f"exactly one of {', '.join(_UNITS)} is needed; found {found}"
        raise MeasurementError(name, 1, "latency_s", problem)
    parameters = {p.name for operator in operator_names() for p in load_operator(operator).params}
    known = {*COLUMNS, *_UNITS, *parameters} - {"shape", "family"}
    for column in header:
        if column not in known:
            near = difflib.get_close_matches(column, sorted(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; each shape parameter is a column of its own"
            raise MeasurementError(name, 1, column, f"neither a column of the schema nor a parameter{hint}")
    return units[0]


def _record(given: dict[str, str], unit: str, name: str, line: int) -> dict[str, Any]:
    for column in ("device", "operator", unit):
        if column not in given:
            raise MeasurementError(name, line, column, "empty; it needs a value")
    try:
        operator = load_operator(given["operator"])
        shape = _shape(operator, given)
    except OperatorError as error:
        column = "operator" if given["operator"] not in operator_names() else "shape"
        raise MeasurementError(name, line, column, str(error)) from None
    record = {**_DEFAULTS, "source": f"csv {name}"}
    record |= {column: given[column] for column in record if column in given}
    numbers = {name: int if kind == "int32" else float for name, kind in NUMBERS.items()}
    for column, kind in {**numbers, unit: float}.items():
        if column in given:
            record[column] = _number(given[column], kind, column, name, line)
    record["latency_s"] = record.pop(unit) / _UNITS[unit]
    record |= {"device": given["device"], "operator": operator.name, "shape": canonical(shape)}
    record["family"] = family_of(operator.name, shape)
    return record


def _shape(operator: Operator, given: dict[str, str]) -> dict[str, Any]:
    """The resolved shape; refuses cells of parameters that the operator does not have."""
    own = {p.name for p in operator.params}
    columns = {*COLUMNS, *_UNITS}
    return operator.shape(**{k: v for k, v in given.items() if k in own or k not in columns})


def _number(text: str, kind: type[int] | type[float], column: str, name: str, line: int) -> float:
    try:
        return kind(text)
    except ValueError:
        right = "a whole number" if kind is int else "a number"
        raise MeasurementError(name, line, column, f"{text!r} is not {right}") from None
