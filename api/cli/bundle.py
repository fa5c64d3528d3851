"""``foretile bundle``: kernels compiled here, measured on a machine with a device."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from foretile.cli.arguments import JSON
from foretile.cli.errors import WRONG_REQUEST, reported

if TYPE_CHECKING:
    from foretile.calibration.device.session import Summary

Tell = Callable[[int, int, str], None]

app = typer.Typer(no_args_is_help=True, help="Kernels compiled here and measured where a device is.")

_BUNDLE = typer.Option(..., "--out", "-o", metavar="FILE", help="File to write.", show_default=False)
_TABLE = typer.Option(
    ..., "--out", "-o", metavar="FILE", help="Table to write: .parquet, .csv or .json.", show_default=False
)
_FILE = typer.Argument(..., metavar="FILE", help="The bundle.", show_default=False)


@app.command()
def build(
    suite: str = typer.Argument(
        ..., metavar="SUITE", help="A suite of measurements by name, or a YAML file.", show_default=False
    ),
    arch: str = typer.Option(..., "--arch", metavar="ARCH", help="Architecture: sm_90a for H100 and H200."),
    out: Path = _BUNDLE,
    chip: str = typer.Option(
        "h200-sxm",
        "--chip",
        metavar="ID",
        help="Chip that configurations are chosen for, and times predicted.",
    ),
    as_json: bool = JSON,
) -> None:
    """Compile a suite's kernels into one file that measures them where a device is.

    Needs nvcc, and TileLang for tile programs, but no device. Compiled kernels are kept: an interrupted build
    goes on where it stopped.
    """
    with reported():
        from foretile.calibration.device.build import build_bundle
        from foretile.calibration.device.suites import load_suite
        from foretile.hwmodels import load_chip

        with progress("compiling") as tell:
            manifest = build_bundle(load_suite(suite), arch, out, load_chip(chip), tell)
        for left in manifest["left_out"]:
            what = " ".join((left["operator"], left["shape"], left["kernel_source"], left["config"]))
            typer.echo(f"left out: {what}: {left['why']}", err=True)
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


@contextmanager
def progress(doing: str) -> Iterator[Tell]:
    """A bar on standard error, and what moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from foretile.cli.show import console

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(err=True), transient=True) as bar:
        task = bar.add_task(doing)

        def tell(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{doing} {what[:70]}")

        yield tell
