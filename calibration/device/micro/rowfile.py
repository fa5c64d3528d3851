"""Measured rows on disk: JSON lines, the first of which describes the device."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from foretile.calibration.device.driver import DeviceError
from foretile.calibration.device.micro.details import Details
from foretile.calibration.device.micro.points import Row
from foretile.kernels.whole_files import write_whole

_VERSION = 1


@dataclass(frozen=True)
class RowFile:
    """What was measured on one device; ``date`` is that of the first row."""

    details: Details
    date: str
    rows: tuple[Row, ...]


def read_rows(path: Path) -> RowFile:
    """The rows of a file.

    Raises:
        DeviceError: it is not such a file; the message names the line.
        OSError: it cannot be read.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        head = json.loads(lines[0])
        if head["foretile_microbenchmarks"] != _VERSION:
            raise DeviceError(
                f"{path}: version {head['foretile_microbenchmarks']}; this release reads version {_VERSION}"
            )
        details = Details.from_json(head["device"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DeviceError):
            raise
        raise DeviceError(f"{path}: not a file of microbenchmarks (written by foretile measure)") from None
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            rows.append(Row.from_json(line))
        except DeviceError as error:
            raise DeviceError(f"{path}: line {number}: {error}") from None
    return RowFile(details, str(head["date"]), tuple(rows))


def write_rows(path: Path, held: RowFile) -> None:
    """Write the file beside its place, then move it there."""
    write_lines(path, held.details, held.date, (row.to_json() for row in held.rows))


def write_lines(path: Path, details: Details, date: str, rows: Iterable[str]) -> None:
    """As :func:`write_rows`, of rows that are lines already."""
    head = {"foretile_microbenchmarks": _VERSION, "date": date, "device": details.to_json()}
    text = "\n".join([json.dumps(head), *rows]) + "\n"
    write_whole(path, text.encode())
