"""A calibrated chip as a file: what it changes of the chip it extends, with where the numbers come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from foretile.hwmodels import Chip
from foretile.hwmodels.quantity import Quantity
from foretile.kernels.whole_files import write_whole

_HEADER = """\
# Numbers of {chip} as a calibration left them (foretile calibrate --chip {chip}): they override those of
# the chip's own file. Made, not written: change the data or the fit, and make it again.
"""
_SKIPPED = ("id", "aliases", "calibration", "kernels")


def changes(base: Chip, made: Chip) -> dict[str, Any]:
    """The mapping of a chip file that turns ``base`` into ``made``."""
    found: dict[str, Any] = {"id": made.id, "extends": base.id}
    for name in type(made).model_fields:
        if (
            name not in _SKIPPED
            and (part := _difference(getattr(base, name), getattr(made, name))) is not None
        ):
            found[name] = part[0]
    if made.kernels:
        found["kernels"] = {key: _plain(profile) for key, profile in sorted(made.kernels.items())}
    if made.calibration is not None:
        found["calibration"] = _plain(made.calibration)
    return found


def _difference(base: Any, made: Any) -> tuple[Any] | None:
    """What to write so that ``base`` becomes ``made``, in a tuple (null removes); None if nothing."""
    if base == made:
        return None
    if isinstance(made, BaseModel) and not isinstance(made, Quantity) and isinstance(base, BaseModel):
        parts = {n: _difference(getattr(base, n), getattr(made, n)) for n in type(made).model_fields}
        return ({n: part[0] for n, part in parts.items() if part is not None},)
    return (None if made is None else _plain(made),)


def _plain(value: Any) -> Any:
    """Numbers to six digits: what is fitted is not known better."""
    if isinstance(value, BaseModel):
        return {n: _plain(v) for n, v in value if v is not None}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def write_overlay(base: Chip, made: Chip, path: Path) -> None:
    """Write ``made`` as a file that extends ``base``; a file that is there is replaced only when done."""
    text = _HEADER.format(chip=made.id) + yaml.safe_dump(
        changes(base, made), sort_keys=False, allow_unicode=True, width=120, default_flow_style=None
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())
