"""The sample of public measurements that ships with the package: built once, read offline."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path

import pandas as pd

from foretile.calibration.measurements import (
    COLUMNS,
    FIT_FOLDS,
    FIT_ROWS,
    MeasurementError,
    folds,
    read_table,
    row_keys,
    write_table,
)
from foretile.calibration.table_split import smallest_keys
from foretile.kernels.whole_files import write_whole

TEST_ROWS = 1200  # a device and family
_FOLDER = ("data", "aiconfigurator")
_NOTICE = """\
# Measurements from aiconfigurator-core

The Parquet files in this folder hold a selection of the silicon measurements of
[aiconfigurator-core](https://pypi.org/project/aiconfigurator-core/) {release}
(source: <https://github.com/ai-dynamo/aiconfigurator>).

Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES. All rights reserved.
Licensed under the Apache License, Version 2.0; a copy is the file `LICENSE` of this distribution, or
<http://www.apache.org/licenses/LICENSE-2.0>.

Changes made:

* a selection: of each chip and operator family at most {fit} rows that may be fitted and {test} for testing,
  those with the smallest hashes of operator and shape, out of {total:,} rows that map onto operators;
* columns renamed and rows restated as operators and shapes of this library (`shape`, `copies`, `launch`);
* milliseconds turned into seconds; repeated measurements of one key averaged (`runs`, `spread`);
* the columns `family` and `comparable` added.

Rows: {rows:,}. Chips: {chips}.
"""


def select(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table that the sample keeps: the smallest keys of fit and test folds.

    Keys are hashes of operator and shape: frameworks, kernel sources and rows that are not comparable
    come in the proportion they have in the table.
    """
    keys = row_keys(frame)
    fitted = folds(keys) < FIT_FOLDS
    fit = smallest_keys(frame[fitted], keys[fitted], FIT_ROWS)
    test = smallest_keys(frame[~fitted], keys[~fitted], TEST_ROWS)
    return pd.concat([fit, test]).sort_index().reset_index(drop=True)


def build_sample(path: str | Path | None = None, out: str | Path | None = None) -> dict[str, int]:
    """Write the sample, one file a chip, and its notice; returns rows by chip.

    ``path`` is where aiconfigurator-core's tables are (the installed package if None), ``out`` the
    folder to write (that of this module if None).

    Raises:
        FileNotFoundError: the tables are not there.
        MeasurementError: a row that is wrong.
    """
    from foretile.calibration.sources import aiconfigurator

    folder = Path(out) if out is not None else Path(__file__).parent.joinpath(*_FOLDER)
    written: dict[str, int] = {}
    total = 0
    for device in aiconfigurator.devices(path):
        table = aiconfigurator.load(device, path=path)
        total += len(table)
        chosen = select(table)
        write_table(chosen, folder / f"{device}.parquet")
        written[device] = len(chosen)
    notice = _NOTICE.format(
        release=aiconfigurator.release(path),
        fit=FIT_ROWS,
        test=TEST_ROWS,
        total=total,
        rows=sum(written.values()),
        chips=", ".join(written),
    )
    write_whole(folder / "NOTICE.md", notice)
    return written


def sample_devices() -> tuple[str, ...]:
    """Ids of the chips that the shipped sample holds."""
    folder = resources.files("foretile.calibration").joinpath(*_FOLDER)
    names = (entry.name for entry in folder.iterdir()) if folder.is_dir() else iter(())
    return tuple(sorted(name.removesuffix(".parquet") for name in names if name.endswith(".parquet")))


def load_sample(device: str | None = None, family: str | None = None) -> pd.DataFrame:
    """The shipped measurements of one chip or all, of one family or all; a fresh frame each time.

    Raises:
        MeasurementError: a chip or family that the sample does not hold.
    """
    held = sample_devices()
    if device is not None and device not in held:
        raise MeasurementError(
            "sample", None, "device", f"no rows of {device!r}; it holds: {', '.join(held)}"
        )
    parts = [_table(name) for name in ((device,) if device is not None else held)]
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))
    if family is None:
        return frame
    families = _families(parts)
    if family not in families:
        where = f" of {device}" if device is not None else ""
        problem = f"no rows of {family!r}{where}; it holds: {', '.join(families)}"
        raise MeasurementError("sample", None, "family", problem)
    return frame[frame["family"] == family].reset_index(drop=True)


def _families(parts: Iterable[pd.DataFrame]) -> list[str]:
    return sorted({str(name) for part in parts for name in part["family"].unique()})


@cache
def _table(device: str) -> pd.DataFrame:
    entry = resources.files("foretile.calibration").joinpath(*_FOLDER, f"{device}.parquet")
    with resources.as_file(entry) as path:
        return read_table(path, check=False)
