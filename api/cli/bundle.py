"""``foretile bundle``: kernels compiled here, measured on a machine with a device."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from foretile.cli.arguments import JSON
from foretile.cli.errors import WRONG_REQUEST, reported
from foretile.cli.show import progress

if TYPE_CHECKING:
    from foretile.calibration.device.session import Summary


app = typer.Typer(no_args_is_help=True, help="Kernels compiled here and measured where a device is.")

_BUNDLE = typer.Option(..., "--out", "-o", metavar="FILE", help="File to write.", show_default=False)
_TABLE = typer.Option(
    ..., "--out", "-o", metavar="FILE", help="Table to write: .parquet, .csv or .json.", show_default=False
)
_MEASURED = typer.Argument(..., metavar="TABLE", help="What a run wrote.", show_default=False)
_FILE = typer.Argument(..., metavar="FILE", help="The bundle.", show_default=False)


@app.command()
def build(
    suite: str = typer.Argument(
        ..., metavar="SUITE", help="A suite of measurements by name, or a YAML file.", show_default=False
    ),
    arch: str = typer.Option(..., "--arch", metavar="ARCH", help="Architecture: sm_90a for H100 and H200."),
    out: Path = _BUNDLE,
    chip: str = typer.Option(
        None,
        "--chip",
        metavar="ID",
        help="Chip that configurations are chosen for, and times predicted.  [default: by architecture]",
        show_default=False,
    ),
    jobs: int = typer.Option(1, "--jobs", "-j", min=1, help="Shapes that are compiled at the same time."),
    as_json: bool = JSON,
) -> None:
    """Compile a suite's kernels into one file that measures them where a device is.

    Needs nvcc, and TileLang for tile programs, but no device. Compiled kernels are kept: an interrupted build
    goes on where it stopped.
    """
    with reported():
        from foretile import __version__
        from foretile.calibration.device.build import build_bundle
        from foretile.calibration.device.suites import load_suite
        from foretile.hwmodels import load_chip

        with progress("compiling") as tell:
            on = load_chip(chip) if chip is not None else None
            manifest = build_bundle(load_suite(suite), arch, out, on, tell, jobs, __version__)
        for line in _left_out(manifest["left_out"]):
            typer.echo(line, err=True)
        _shown(out, as_json)


@app.command()
def show(file: Path = _FILE, as_json: bool = JSON) -> None:
    """What is in a bundle, and how long it takes to measure by our own predictions."""
    with reported():
        _shown(file, as_json)


@app.command()
def check(file: Path = _FILE) -> None:
    """Compare every checksum, and ask a driver that only checks for every launch. Needs no device."""
    with reported():
        from foretile.calibration.device.archive import open_bundle
        from foretile.calibration.device.main import check as checked

        with open_bundle(file) as bundle:
            problems = checked(bundle)
            for name, outcome in problems:
                typer.echo(f"{name}: {outcome.message}")
            typer.echo(f"{len(bundle.rows)} rows checked for {bundle.arch}, {len(problems)} would be refused")
        if problems:
            raise typer.Exit(WRONG_REQUEST)


@app.command()
def run(
    file: Path = _FILE,
    out: Path = _TABLE,
    device: int = typer.Option(0, "--device", min=0, help="Number of the CUDA device."),
    budget: float = typer.Option(480.0, "--budget", metavar="SECONDS", min=1.0, help="Time to take at most."),
    chip: str = typer.Option(
        "", "--chip", metavar="ID", help="The device's chip, if its name does not tell."
    ),
    again: bool = typer.Option(False, "--again", help="Measure rows once more that failed or were wrong."),
) -> None:
    """Measure a bundle on this machine's device and write a measurement table.

    Needs CuPy and a CUDA device. What was measured is kept: the same command goes on where it stopped. Exit
    code 3: rows are left, or results were wrong.
    """
    with reported():
        from foretile.calibration.device.archive import open_bundle
        from foretile.calibration.device.main import said
        from foretile.calibration.device.session import run_session
        from foretile.calibration.device.supervise import Process

        module = "foretile.calibration.device.main"
        command = [sys.executable, "-m", module, str(file), "worker", "--device", str(device)]
        with open_bundle(file) as bundle, progress("measuring") as tell:
            summary: Summary = run_session(
                bundle, out, Process(command), budget_s=budget, chip=chip, again=again, tell=tell
            )
        typer.echo(said(summary))
        if summary.left or summary.wrong:
            raise typer.Exit(3)


@app.command()
def accuracy(
    table: Path = _MEASURED,
    chip: str = typer.Option(
        None, "--chip", metavar="ID", help="Predict anew on this chip.", show_default=False
    ),
    uncalibrated: bool = typer.Option(False, "--uncalibrated", help="With --chip: without what was fitted."),
    as_json: bool = JSON,
) -> None:
    """Hold predictions against measured tile programs, configuration by configuration."""
    with reported():
        from dataclasses import asdict

        from foretile.calibration.device.accuracy import accuracy as held
        from foretile.calibration.measurements import read_csv, read_table
        from foretile.cli.show import console, emit_json
        from foretile.cli.show import table as new_table
        from foretile.hwmodels import load_chip
        from foretile.report import units

        if uncalibrated and chip is None:
            raise typer.BadParameter("--uncalibrated goes with --chip ID")
        rows = read_csv(table) if table.suffix == ".csv" else read_table(table)
        found = held(rows, load_chip(chip, calibrated=not uncalibrated) if chip is not None else None)
        if as_json:
            emit_json([asdict(one) for one in found])
            return
        shown = new_table("operator", "rows", "MAPE", "predicted / measured", "shapes", "rank", "regret")
        for one in found:
            ranked = (f"{one.rank:.2f}", units.percent(one.regret)) if one.shapes else ("", "")
            shown.add_row(
                *(one.operator, str(one.rows), units.percent(one.mape), f"{one.bias:.2f}", str(one.shapes)),
                *ranked,
            )
        console().print(shown)


def _left_out(found: Sequence[Mapping[str, str]]) -> list[str]:
    """What could not be compiled: one line a reason, numbers in it apart, with the first it happened to."""
    groups: dict[tuple[str, str, str], list[Mapping[str, str]]] = {}
    for left in found:
        why = re.sub(r"\d+", "", left["why"])
        groups.setdefault((left["operator"], left["kernel_source"], why), []).append(left)
    lines = []
    for (operator, source, _), left_out in groups.items():
        first = left_out[0]
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        lines.append(
            f"left out: {operator} {first['shape']} {source} {first['config']}{more}: {first['why']}"
        )
    return lines


def _shown(file: Path, as_json: bool) -> None:
    from foretile.calibration.device.archive import open_bundle
    from foretile.calibration.device.main import facts
    from foretile.cli.show import console, emit_json, table

    with open_bundle(file) as bundle:
        if as_json:
            emit_json({"facts": facts(bundle), "manifest": {**bundle.manifest, "cases": None, "rows": None}})
            return
        shown = table("bundle", str(file))
        for name, value in facts(bundle).items():
            shown.add_row(name, str(value))
        console().print(shown)
