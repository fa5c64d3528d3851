"""Which rows may be fitted and which only tested: decided by a hash of the shape alone."""

from __future__ import annotations

import hashlib

import pandas as pd

FIT_FOLDS = 10  # of 100
FIT_ROWS = 300  # a device and family


def row_key(operator: str, shape: str) -> str:
    """sha256 (hexadecimal) of ``operator|shape``, ``shape`` being canonical JSON.

    Neither device nor framework enters: a shape that is tested is tested everywhere.
    """
    return hashlib.sha256(f"{operator}|{shape}".encode()).hexdigest()


def fold(key: str) -> int:
    """0 … 99; folds below 10 may be fitted, the others are for testing only."""
    return int(key, 16) % 100


def row_keys(frame: pd.DataFrame) -> pd.Series[str]:
    """:func:`row_key` of every row; each distinct shape is hashed once."""
    joined = frame["operator"].astype(object) + "|" + frame["shape"].astype(object)
    codes, distinct = pd.factorize(joined)
    keys = pd.Series([hashlib.sha256(text.encode()).hexdigest() for text in distinct], dtype=object)
    return pd.Series(keys.to_numpy()[codes], index=frame.index, name="key", dtype=object)


def folds(keys: pd.Series[str]) -> pd.Series[int]:
    """:func:`fold` of every key."""
    codes, distinct = pd.factorize(keys)
    values = pd.Series([fold(key) for key in distinct], dtype="int64")
    return pd.Series(values.to_numpy()[codes], index=keys.index, name="fold")


def smallest_keys(frame: pd.DataFrame, keys: pd.Series[str], limit: int) -> pd.DataFrame:
    """Of each device and family the ``limit`` rows with the smallest keys, in the frame's order.

    Rows of equal key follow kernel source, framework and version, so that the choice is the same
    whatever the order of the frame.
    """
    order = ["device", "family", "key", "kernel_source", "framework", "framework_version"]
    ranked = frame.assign(key=keys).astype(dict.fromkeys(order, object)).sort_values(order, kind="stable")
    first = ranked.groupby(["device", "family"], sort=False).head(limit).index
    return frame.loc[frame.index.isin(first)]


def fit_rows(frame: pd.DataFrame, limit: int = FIT_ROWS) -> pd.DataFrame:
    """The rows that a fit may see: folds below 10, at most ``limit`` of a device and family.

    The index of ``frame`` must be unique; rows keep their order and index. Filter out what is not
    comparable before, so that the limit counts rows that are used.
    """
    keys = row_keys(frame)
    allowed = folds(keys) < FIT_FOLDS
    return smallest_keys(frame[allowed], keys[allowed], limit)


def test_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that no fit sees: folds from 10 on."""
    return frame[folds(row_keys(frame)) >= FIT_FOLDS]


test_rows.__test__ = False  # type: ignore[attr-defined]  # its name is not that of a test
