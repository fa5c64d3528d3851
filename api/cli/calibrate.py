"""``foretile calibrate``: fit a chip to measured times, plan what to measure, or describe a device."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foretile.cli.arguments import JSON
from foretile.cli.errors import reported
from foretile.cli.measure import DEVICE, estimates_table, measure_rows

if TYPE_CHECKING:
    import pandas as pd

    from foretile.calibration.calibrate import Calibrated
    from foretile.calibration.fewshot import FewShot
    from foretile.hwmodels import Chip

_CHIP = typer.Option(
    None,
    "--chip",
    metavar="ID",
    help="Chip to calibrate: an id, an alias or a chip file.",
    show_default=False,
)
_CATALOGUE = typer.Option(
    None,
    "--catalogue",
    metavar="DIR",
    help="Calibrate every chip of the data, and others of their dies: one file each in DIR.",
    show_default=False,
)
_JOBS = typer.Option(
    None,
    "--jobs",
    "-j",
    min=1,
    help="Families fitted at the same time.  [default: one a core]",
    show_default=False,
)
_DATA = typer.Option(
    None,
    "--data",
    metavar="PATH",
    help="Measurements: .parquet, .csv, or a folder of aiconfigurator-core's tables.  "
    "[default: the sample that ships with foretile]",
    show_default=False,
)
_OUT = typer.Option(
    None,
    "--out",
    "-o",
    metavar="FILE.yaml",
    help="Chip file to write; --chip takes it. An existing one is replaced only when the fit is done.",
    show_default=False,
)
_PLAN = typer.Option(
    None,
    "--plan",
    metavar="N",
    min=1,
    help="Choose N kernels to measure instead, the most informative first.",
)
_TRANSFER = typer.Option(False, "--transfer", help="Take what other measured chips teach; fit nothing.")
_FROM_DEVICE = typer.Option(
    False,
    "--from-device",
    help="Describe the device that is here by measuring it: a whole chip file, nothing fitted. "
    "With --data the rows that foretile measure wrote, and no device.",
)
_ID = typer.Option(
    None, "--id", metavar="ID", help="With --from-device: the chip's id.  [default: the device's name]"
)
_BUDGET = typer.Option(
    1200.0, "--budget", metavar="SECONDS", min=1.0, help="With --from-device: time to take."
)
_STARTS = typer.Option(1, "--starts", min=1, max=16, help="Points that the fit starts from.")


def calibrate(
    chip: str = _CHIP,
    data: Path = _DATA,
    out: Path = _OUT,
    catalogue: Path = _CATALOGUE,
    plan: int = _PLAN,
    transfer: bool = _TRANSFER,
    starts: int = _STARTS,
    jobs: int = _JOBS,
    from_device: bool = _FROM_DEVICE,
    device: int = DEVICE,
    name: str = _ID,
    budget: float = _BUDGET,
    as_json: bool = JSON,
) -> None:
    """Fit a chip's parameters to measured kernels, or describe a device by measuring it.

    The rows whose hash allows it are fitted, at most 300 a family; the rest are for foretile validate.
    An interrupted fit with --out goes on where it stopped. With --plan and rows of the chip at hand, the
    plan's rows alone are fitted and the error on others is shown before and after.
    """
    with reported():
        if from_device:
            if chip is not None or catalogue is not None or plan is not None or transfer or out is None:
                raise typer.BadParameter(
                    "--from-device needs --out, and takes --device, --data, --id, --budget"
                )
            _describe(device, data, out, name, budget, as_json)
            return
        if (chip is None) == (catalogue is None):
            raise typer.BadParameter("give either --chip ID or --catalogue DIR")
        jobs = jobs or os.cpu_count() or 1
        if catalogue is not None:
            said = _all(catalogue, data, jobs)
        else:
            said = [_one(chip, data, out, plan, transfer, starts, jobs)]
        if as_json:
            typer.echo(json.dumps(said if catalogue is not None else said[0], indent=2))
            return
        for each in said:
            _print(each)
        if out is not None:
            typer.echo(str(out))


def _describe(
    device: int, data: Path | None, out: Path, name: str | None, budget: float, as_json: bool
) -> None:
    """Write the chip file of a device from rows, which are measured first unless they are given."""
    from foretile.calibration.device.micro.chipfile import describe_chip, plausibility, write_chip
    from foretile.calibration.device.micro.rowfile import read_rows
    from foretile.cli import show
    from foretile.report.output import require_file

    rows = data or out.with_name(f".{out.name}.rows.jsonl")
    require_file(out)
    if data is None:
        _, outcome = measure_rows(device, rows, (), budget)
        for key, why in outcome.refused.items():
            typer.echo(f"refused: {key}: {why}", err=True)
    made = describe_chip(read_rows(rows), name)
    write_chip(made, out)
    doubts = plausibility(out)
    for doubt in (*made.data["unknown"], *made.conflicts, *doubts):
        typer.echo(doubt, err=True)
    if as_json:
        said = {"chip": made.data["id"], "kind": "measured", "file": str(out), "implausible": list(doubts)}
        show.emit_json({**said, "rows": str(rows), "estimates": [e.to_json() for e in made.estimates]})
        return
    show.console().print(estimates_table(made.estimates))
    typer.echo(str(out))


def _all(folder: Path, data: Path | None, jobs: int) -> list[dict[str, Any]]:
    from foretile.calibration.catalogue import calibrate_catalogue
    from foretile.cli.validate import measurements
    from foretile.report.output import require_folder

    with _progress() as tell:
        made = calibrate_catalogue(measurements(data, []), require_folder(folder), jobs=jobs, progress=tell)
        return [_transferred(c) if done is None else _fitted(done) for c, done in made]


def _one(
    chip: str, data: Path | None, out: Path | None, plan: int | None, transfer: bool, starts: int, jobs: int
) -> dict[str, Any]:
    from foretile.calibration.calibrate import calibrate as fit
    from foretile.calibration.checkpoint import Checkpoint
    from foretile.calibration.fewshot import few_shot
    from foretile.calibration.overlay import write_overlay
    from foretile.calibration.transfer import completed, transferred
    from foretile.cli.validate import measurements
    from foretile.hwmodels import load_chip
    from foretile.report.output import require_file

    if out is not None:
        require_file(out)
    base = load_chip(chip, calibrated=False)
    checkpoint = Checkpoint(None if out is None else out.with_name(f".{out.name}.partial.json"))
    if transfer:
        made = transferred(base, own_die=True)
        said = _transferred(made)
    else:
        table = measurements(data, [base.id] if plan is None else [])
        with _progress() as tell:
            if plan is not None:
                shot = few_shot(base, table, plan, tell)
                made, said = shot.chip, _planned(shot)
            else:
                done = fit(base, table, starts=starts, jobs=jobs, checkpoint=checkpoint, progress=tell)
                made, said = completed(base, done.chip), _fitted(done)
    if out is not None:
        write_overlay(base, made, out)
        checkpoint.remove()
    return said


def _transferred(chip: Chip) -> dict[str, Any]:
    assert chip.calibration is not None
    return {"chip": chip.id, "kind": "transferred", "data": chip.calibration.data}


def _planned(shot: FewShot) -> dict[str, Any]:
    kernels = [
        {"operator": row.operator, **json.loads(str(row.shape)), "kernel_source": row.kernel_source}
        for row in _records(shot.plan)
    ]
    return {
        "chip": shot.chip.id,
        "kind": "plan",
        "kernels": kernels,
        "before": shot.before and dict(shot.before),
        "after": shot.after and dict(shot.after),
    }


def _records(frame: pd.DataFrame) -> Iterator[Any]:
    return frame.itertuples(index=False)


def _fitted(done: Calibrated) -> dict[str, Any]:
    from foretile.calibration.parameters import CHIP_PARAMETERS

    fitted, calibration = done.fitted, done.chip.calibration
    assert calibration is not None
    units = {p.name: (p.unit, p.low, p.high) for p in CHIP_PARAMETERS}
    return {
        "chip": done.chip.id,
        "kind": "fitted",
        "rows": calibration.rows,
        "sha256": calibration.sha256,
        "parameters": [
            {
                "name": name,
                "factor": factor,
                "sigma": calibration.sigma[name],
                "range": units[name][1:],
                "seen": name not in calibration.unseen,
            }
            for name, factor in fitted.factors().items()
        ],
        "families": [
            {
                "key": f.key,
                "rows": f.rows,
                "core_fraction": f.profile.core_fraction.value,
                "memory_fraction": f.profile.memory_fraction.value,
                "launch_fraction": f.profile.launch_fraction.value,
                **f.error,
            }
            for f in done.families
        ],
        "skipped": done.skipped,
    }


def _print(said: dict[str, Any]) -> None:
    from rich.table import Table

    from foretile.cli import show

    out = show.console()
    if said["kind"] == "transferred":
        out.print(f"{said['chip']}: {said['data']}")
        return
    if said["kind"] == "plan":
        columns = [n for n in said["kernels"][0] if len({str(k.get(n)) for k in said["kernels"]}) > 1]
        table = Table("#", "operator", *(c for c in columns if c != "operator"), box=None)
        for number, kernel in enumerate(said["kernels"], start=1):
            values = (str(kernel[c]) for c in columns if c != "operator")
            table.add_row(str(number), str(kernel["operator"]), *values)
        out.print(table)
        for name in ("before", "after"):
            if said[name]:
                e = said[name]
                out.print(
                    f"{name}: MAPE {e['mape']:.1f} %, median {e['median']:.1f} % (n = {e['n']}, not fitted)"
                )
        return
    table = Table("parameter", "factor", "σ of its log", "plausible", "", box=None)
    for p in said["parameters"]:
        low, high = p["range"]
        note = "" if p["seen"] else "not seen by the data: at its prior"
        table.add_row(p["name"], f"{p['factor']:.3g}", f"{p['sigma']:.2f}", f"{low:g} – {high:g}", note)
    out.print(table)
    families = Table("kernels", "rows", "cores", "memory", "launch", "MAPE", "median", box=None)
    for f in said["families"]:
        families.add_row(
            f["key"],
            str(f["rows"]),
            f"{f['core_fraction']:.2f}",
            f"{f['memory_fraction']:.2f}",
            f"{f['launch_fraction']:.2f}",
            f"{f['mape']:.1f} %",
            f"{f['median']:.1f} %",
        )
    out.print(families)
    for family, why in said["skipped"].items():
        out.print(f"{family}: skipped: {why}", markup=False)
    out.print(f"{said['chip']}: fitted to {said['rows']} rows (errors above are on fitted rows)")


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What the fit is at, on standard error, where that is a terminal."""
    from foretile.cli import show

    console = show.console(err=True)
    with console.status("reading") as status:
        yield lambda text: status.update(text)
