"""The columns of a measurement table: what each means, its unit, and how rows are named."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from foretile.kernels.families import family_of as family_of

SCHEMA_VERSION = 1
Launch = Literal["graph", "eager"]
LAUNCHES: tuple[str, ...] = get_args(Launch)


class MeasurementError(ValueError):
    """A table that cannot be used; the message names file, row, column, value and what would be right.

    ``row`` is the row's number in the file as a reader counts: from 1 in a table, the line in a CSV.
    """

    def __init__(self, file: str, row: int | None, column: str | None, problem: str) -> None:
        place = "".join(
            f": {part}" for part in (f"row {row}" if row is not None else "", column or "") if part
        )
        super().__init__(f"{file}{place}: {problem}")
        self.file, self.row, self.column, self.problem = file, row, column, problem


class Measurement(BaseModel):
    """One row of a measurement table: one kernel source, on one device, at one shape."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = Field(min_length=1, description="id of a chip of the catalogue")
    operator: str = Field(min_length=1, description="name of an operator of the library")
    shape: str = Field(
        description="canonical JSON of all resolved parameters of the operator, dtypes included"
    )
    family: str = Field(min_length=1, description="family under which errors are stated; see family_of")
    kernel_source: str = Field(min_length=1, description="library or code path, as the source names it")
    framework: str = Field(description="framework that ran the kernel; empty if none")
    framework_version: str = Field(description="its version; empty if unknown")
    launch: Launch = Field(description="replayed from a CUDA graph, or launched by the host each time")
    copies: str = Field(
        description="canonical JSON {tensor of the operator's program: buffers that repetitions rotate "
        "through}; tensors not named have one, which the L2 holds if it fits"
    )
    latency_s: float = Field(
        gt=0, allow_inf_nan=False, description="seconds a run: the source's mean, the device runner's median"
    )
    spread: float = Field(
        ge=0,
        description="largest over smallest of the repeats less one (the device runner: 90th over 10th "
        "percentile less one); NaN if run once",
    )
    runs: int = Field(ge=1, description="how often the source holds this key")
    comparable: str = Field(
        description="empty if the row measures the operator's algorithm, or why it does not, in terms of "
        "shape and kernel source"
    )
    source: str = Field(min_length=1, description="data set, version and file")
    licence: str = Field(min_length=1, description="licence of the data")
    config: str = Field(
        default="{}",
        description="canonical JSON of the kernel's configuration (tile sizes, stages), if known",
    )
    cache: str = Field(
        default="", description="flushed if other memory was written before every run; see copies otherwise"
    )
    predicted_s: float = Field(
        default=math.nan, description="seconds this library predicted before the measurement, if it did"
    )
    error_norm: float = Field(
        default=math.nan, description="deviation of the results from their reference, ‖out − ref‖ / ‖ref‖"
    )
    core_clock_hz: float = Field(default=math.nan, description="clock of the cores while it ran")
    memory_clock_hz: float = Field(default=math.nan, description="clock of the memory while it ran")
    temperature_c: float = Field(default=math.nan, description="temperature of the chip in degrees Celsius")
    power_w: float = Field(default=math.nan, description="power of the device while it ran")
    driver: str = Field(default="", description="version of the device's driver")
    date: str = Field(default="", description="when it was measured (ISO 8601, UTC)")
    flags: str = Field(
        default="",
        description="what makes the time doubtful, and what limited the clocks, separated by commas",
    )


COLUMNS: tuple[str, ...] = tuple(Measurement.model_fields)
OPTIONAL: Mapping[str, Any] = {
    name: field.default for name, field in Measurement.model_fields.items() if not field.is_required()
}
"""Columns that a table may lack, with what stands for a missing one."""
KEY_COLUMNS = ("device", "operator", "shape", "kernel_source", "framework", "framework_version", "config")
NUMBERS: Mapping[str, str] = {
    "latency_s": "float64",
    "spread": "float64",
    "runs": "int32",
    **{name: "float64" for name, default in OPTIONAL.items() if isinstance(default, float)},
}
MAY_BE_EMPTY = ("framework", "framework_version", "comparable", "cache", "driver", "date", "flags")
TEXTS: tuple[str, ...] = tuple(name for name in COLUMNS if name not in NUMBERS)


def canonical(values: Mapping[str, Any]) -> str:
    """JSON with sorted keys and no spaces: equal mappings give equal text.

    Raises:
        ValueError: a value that JSON has no spelling for (NaN, infinity).
    """
    return json.dumps(
        dict(values), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def is_missing(value: object) -> bool:
    """Whether a cell is empty: None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))
