"""What the modules that map aiconfigurator's tables share: places, mapped rows, refusals, shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foretile.calibration.table_schema import canonical
from foretile.kernels.operator import OperatorError, load_operator

Values = Mapping[str, Any]  # name → one value, or an array of one a row


@dataclass(frozen=True)
class Place:
    """Where a table comes from: ``device`` is our chip's id, ``table`` the file without ``_perf.parquet``."""

    device: str
    table: str
    framework: str
    version: str
    file: Path
    l2_bytes: float
    dram_bytes: float
    instruction: str  # of the chip's matrix engine


@dataclass(frozen=True)
class Mapped:
    """Rows of a table (``index``) as rows of one operator.

    ``copies`` as in the schema, by tensor; ``variant`` is appended to the kernel source where the
    table tells kernels apart by another column.
    """

    index: pd.Index[Any]
    operator: str
    params: Values
    copies: Values = field(default_factory=dict)
    launch: str = "graph"
    variant: str = ""


@dataclass(frozen=True)
class Refused:
    """Rows that no operator describes, and why."""

    table: str
    framework: str
    version: str
    what: str
    rows: int
    reason: str


ASYNCHRONOUS = ("wgmma", "tcgen05")  # instructions with operands in the scratchpad: Hopper and Blackwell

Mapper = Callable[[pd.DataFrame, Place], Iterator[Mapped | Refused]]


def refuse(place: Place, what: str, rows: int, reason: str) -> Refused:
    """A refusal of some rows of a table."""
    return Refused(place.table, place.framework, place.version, what, rows, reason)


def version_of(text: str) -> tuple[int, ...]:
    """``1.3.0rc20`` → (1, 3, 0): enough to tell generations of a collector apart."""
    numbers: list[int] = []
    for part in text.split("."):
        digits = "".join(part[: next((i for i, c in enumerate(part) if not c.isdigit()), len(part))])
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


@lru_cache(maxsize=1_000_000)
def _shape(operator: str, items: tuple[tuple[str, Any], ...]) -> tuple[str, str]:
    """Canonical shape and an empty text, or an empty text and why there is none."""
    try:
        return canonical(load_operator(operator).shape(**dict(items))), ""
    except OperatorError as error:
        return "", str(error)


def _columns(values: Values, rows: int) -> pd.DataFrame:
    return pd.DataFrame({name: _column(value, rows) for name, value in values.items()}, index=range(rows))


def _column(value: Any, rows: int) -> np.ndarray:
    return np.asarray(value) if np.ndim(value) else np.full(rows, value, dtype=object)


def texts_of(values: Values, rows: int, spell: Callable[[dict[str, Any]], Any]) -> np.ndarray:
    """``spell`` of every row's values as plain Python numbers; each distinct row is spelt once."""
    if not values:
        return np.full(rows, spell({}), dtype=object)
    frame = _columns(values, rows)
    codes = frame.groupby(list(frame.columns), sort=False, dropna=False).ngroup().to_numpy()
    first = pd.Series(codes).drop_duplicates().index
    spelt = np.empty(len(first), dtype=object)
    for number, row in enumerate(frame.loc[first].itertuples(index=False, name=None)):
        plain = [value.item() if isinstance(value, np.generic) else value for value in row]
        spelt[number] = spell(dict(zip(frame.columns, plain, strict=True)))
    return np.asarray(spelt[codes], dtype=object)


def shapes(operator: str, params: Values, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Canonical shapes (rows,), and why there is none (rows,): empty where there is one."""
    pairs = texts_of(params, rows, lambda row: _shape(operator, tuple(row.items())))
    return (
        np.array([pair[0] for pair in pairs], dtype=object),
        np.array([pair[1] for pair in pairs], dtype=object),
    )
