"""Outcomes as rows of a measurement table, and that table as CSV, JSON or Parquet.

The columns are those of ``foretile.calibration.measurements``; a CSV has each shape parameter as a column of
its own, which is how that module reads one.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foretile.calibration.device.driver import DeviceError, DeviceProperties
from foretile.calibration.device.rows import Case, Outcome, Row
from foretile.kernels.whole_files import write_whole

Record = dict[str, Any]
FORMATS = (".parquet", ".csv", ".json")
_BASELINE = "a precision baseline, not tuned for speed"
ONE_CONFIGURATION = "one given configuration of a tile program"
"""Why a bundle's row of a tile program is not comparable with what a library's best kernel takes."""
_MEMORY_TOLERANCE = 0.12  # stated capacities are rounded, and drivers keep some


def canonical(values: Mapping[str, Any]) -> str:
    """JSON with sorted keys and no spaces."""
    return json.dumps(dict(values), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def chip_of(device: Mapping[str, Any], chips: Iterable[Mapping[str, Any]]) -> str:
    """The id of the chip that a device is, by name, cores and memory; empty if none or several fit.

    ``chips`` are ``{"id", "aliases", "cores", "memory_bytes"}``. Of several that fit, the one whose
    alias says most counts.
    """
    words = set(re.findall(r"[a-z0-9]+", str(device["name"]).lower()))
    found: dict[str, int] = {}
    for chip in chips:
        near = abs(chip["memory_bytes"] / device["memory_bytes"] - 1) <= _MEMORY_TOLERANCE
        if chip["cores"] != device["cores"] or not near:
            continue
        said = [len(parts) for alias in chip["aliases"] if (parts := set(alias.split("-"))) <= words]
        if said:
            found[chip["id"]] = max(said)
    best = [name for name, count in found.items() if count == max(found.values())]
    return best[0] if len(best) == 1 else ""


def described(properties: DeviceProperties) -> dict[str, Any]:
    """A device as plain data."""
    return {
        "name": properties.name,
        "arch": properties.arch,
        "cores": properties.cores,
        "memory_bytes": properties.memory_bytes,
        "l2_bytes": properties.l2_bytes,
        "driver": properties.driver,
        "simulated": properties.simulated,
    }


def records(
    manifest: Mapping[str, Any],
    bundle_id: str,
    cases: Mapping[str, Case],
    rows: Sequence[Row],
    outcomes: Mapping[str, Outcome],
    device: Mapping[str, Any],
    chip: str = "",
) -> list[Record]:
    """A record for each row that was timed and right, in the order of the rows.

    ``chip`` is the id of the catalogue's chip; found by name if it is not given, and else the device's name.
    """
    place = chip or chip_of(device, manifest.get("chips", ())) or str(device["name"])
    tools = manifest.get("tools", {})
    found = []
    for row in rows:
        outcome = outcomes.get(row.key)
        if outcome is None or outcome.status != "ok" or "latency_s" not in outcome.values:
            continue
        case, values = cases[row.case], outcome.values
        framework = "tilelang" if row.kernel_source.endswith("tile") else "nvcc"
        found.append(
            {
                "device": place,
                "operator": case.operator,
                "shape": canonical(case.shape),
                "family": case.family,
                "kernel_source": row.kernel_source,
                "framework": framework,
                "framework_version": str(tools.get(framework, "")),
                "launch": values["launch"],
                "copies": canonical(values["copies"]),
                "latency_s": values["latency_s"],
                "spread": values["spread"],
                "runs": values["runs"],
                "comparable": ONE_CONFIGURATION if row.config else _BASELINE,
                "source": f"foretile bundle {manifest['suite']} {bundle_id[:12]} on {device['name']}",
                "licence": str(manifest.get("licence", "")),
                "config": canonical(row.config),
                "cache": "flushed" if values["cache"] == "flushed" else "",
                "predicted_s": row.predicted_s if place == manifest.get("chip") else math.nan,
                **{name: values[name] for name in ("error_norm", "core_clock_hz", "memory_clock_hz")},
                **{name: values[name] for name in ("temperature_c", "power_w")},
                "driver": str(device["driver"]),
                "date": values["date"],
                "flags": values["flags"],
            }
        )
    return found


def check_format(path: Path) -> None:
    """Find out before the work whether a table can be written there.

    Raises:
        DeviceError: a name with another ending, or Parquet without pyarrow.
        OSError: no such folder.
    """
    if path.suffix not in FORMATS:
        raise DeviceError(f"{path}: a table's name ends in {', '.join(FORMATS)}")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise DeviceError(
            f"{path}: Parquet needs pyarrow (pip install pyarrow); names that end in .csv or .json do not"
        )
    if not path.parent.is_dir():
        raise DeviceError(f"{path}: there is no folder {path.parent}")


def write_records(found: Sequence[Record], path: Path) -> None:
    """Write a table; the file appears complete or not at all."""
    if path.suffix == ".csv":
        data = _csv(found).encode()
    elif path.suffix == ".json":
        data = (json.dumps([_plain(r) for r in found], indent=1) + "\n").encode()
    else:
        data = _parquet(found)
    write_whole(path, data)


def _plain(record: Record) -> Record:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()}


def _csv(found: Sequence[Record]) -> str:
    shapes = [json.loads(r["shape"]) for r in found]
    parameters = list(dict.fromkeys(name for shape in shapes for name in shape))
    columns = [name for name in (found[0] if found else {}) if name not in ("shape", "family")]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*columns[:2], *parameters, *columns[2:]], lineterminator="\n")
    writer.writeheader()
    for record, shape in zip(found, shapes, strict=True):
        cells = {**shape, **{name: record[name] for name in columns}}
        writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in cells.items()})
    return out.getvalue()


def _parquet(found: Sequence[Record]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(list(found))
    if "runs" in table.column_names:
        at = table.column_names.index("runs")
        table = table.set_column(at, "runs", table.column("runs").cast(pa.int32()))
    # As foretile.calibration.table_files marks its own.
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({b"foretile.measurements": b"1"}), out, compression="zstd")
    return out.getvalue()
