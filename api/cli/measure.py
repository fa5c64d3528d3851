"""``foretile measure``: microbenchmarks and operators on the device that is here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foretile.cli.arguments import JSON, comma_list
from foretile.cli.errors import reported
from foretile.cli.show import progress

if TYPE_CHECKING:
    from foretile.calibration.device.driver import DeviceProperties
    from foretile.calibration.device.micro.details import Details
    from foretile.calibration.device.micro.run import Outcome
    from foretile.calibration.device.micro.series import Estimate
    from foretile.calibration.device.session import Summary
    from foretile.hwmodels import Chip

ROWS = "microbenchmarks.jsonl"
TABLE = "operators.parquet"
OPERATORS = "operators"  # what --only calls the operator suite, and the suite's name
UNFINISHED = 3

DEVICE = typer.Option(0, "--device", min=0, help="Number of the CUDA device.")
_OUT = typer.Option(
    ...,
    "--out",
    "-o",
    metavar="DIR",
    help="Folder for what is measured. What is there already is kept, and not measured again.",
    show_default=False,
)
_ONLY = typer.Option(
    [],
    "--only",
    metavar="A,B",
    help="Only microbenchmarks whose names begin so, or 'operators'.  [default: everything]",
    show_default=False,
)
_BUNDLE = typer.Option(
    None,
    "--bundle",
    metavar="FILE",
    help="Operators as a bundle made elsewhere.  [default: built here, which needs nvcc]",
    show_default=False,
)
_SUITE = typer.Option(
    OPERATORS, "--suite", metavar="SUITE", help="Suite of operators to build, by name or a YAML file."
)
_BUDGET = typer.Option(
    1200.0, "--budget", metavar="SECONDS", min=1.0, help="Time to take at most; the rest is left."
)


@dataclass
class _Found:
    """What a run has to say."""

    device: Details | None = None
    outcome: Outcome | None = None
    estimates: Sequence[Estimate] = ()
    operators: Summary | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def unfinished(self) -> bool:
        """Whether anything is left, was refused, or came out wrong."""
        o, s = self.outcome, self.operators
        return bool(self.notes or (o and (o.left or o.refused)) or (s and (s.left or s.wrong)))


def measure(
    device: int = DEVICE,
    out: Path = _OUT,
    only: list[str] = _ONLY,
    bundle: Path = _BUNDLE,
    suite: str = _SUITE,
    budget: float = _BUDGET,
    as_json: bool = JSON,
) -> None:
    """Measure this machine's device: microbenchmarks, then operators.

    Needs CuPy and a CUDA device, and nvcc or the NVRTC that CuPy finds. Interrupted, the same command goes on
    where it stopped. Exit code 3: something is left, was refused, or gave a wrong result.
    """
    import time

    with reported():
        from foretile.report.output import require_folder

        wanted = comma_list(only)
        names = [name for name in wanted if name != OPERATORS]
        if bundle is not None and not bundle.is_file():
            raise FileNotFoundError(2, "no such file; foretile bundle build makes one", str(bundle))
        begun, found = time.monotonic(), _Found()
        path = require_folder(out) / ROWS
        if names or not wanted:
            found.device, found.outcome = measure_rows(device, path, names, budget)
            found.estimates = _estimates(path)
        if not wanted or OPERATORS in wanted:
            left = max(1.0, budget - (time.monotonic() - begun))
            try:
                found.operators = _operators(device, out, bundle, suite, left)
            except CannotBuildError as error:
                if OPERATORS in wanted:  # nothing else was asked for by that name
                    raise
                found.notes.append(f"operators: not measured: {error}")
        _say(found, out, as_json)
    if found.unfinished:
        raise typer.Exit(UNFINISHED)


def measure_rows(device: int, path: Path, only: Sequence[str], budget_s: float) -> tuple[Details, Outcome]:
    """Microbenchmarks of a device into a file of rows.

    Raises:
        DeviceError: no CuPy, no device, nothing to compile with, a name that fits no benchmark, or a file of
            another device.
    """
    from foretile.calibration.device.cupy_driver import open_device
    from foretile.calibration.device.micro.benchmarks import points
    from foretile.calibration.device.micro.code import compiler
    from foretile.calibration.device.micro.details import describe
    from foretile.calibration.device.micro.run import Bench, Store, run

    driver = open_device(device)
    try:
        details = describe(driver, device)
        today = datetime.now(UTC).date().isoformat()
        store = Store(path, details, today)
        bench = Bench(driver, details, compiler(details.arch, driver.xp))
        with progress("measuring") as tell:
            return details, run(bench, points(details, only), store, budget_s=budget_s, progress=tell)
    finally:
        driver.close()


def _estimates(path: Path) -> Sequence[Estimate]:
    from foretile.calibration.device.micro.estimates import estimates
    from foretile.calibration.device.micro.rowfile import read_rows

    if not path.exists():  # the budget was over before the first
        return ()
    held = read_rows(path)
    return estimates(held.details, held.rows)


class CannotBuildError(ValueError):
    """The operators' bundle cannot be made here; the message says why and what would do instead."""


def _operators(device: int, out: Path, bundle: Path | None, suite: str, budget_s: float) -> Summary:
    """The operators of a bundle, built here if none is given."""
    from foretile.calibration.device.archive import open_bundle
    from foretile.calibration.device.session import run_session
    from foretile.calibration.device.supervise import Process
    from foretile.kernels.cuda.nvcc import NvccError
    from foretile.kernels.operator import OperatorError

    try:
        file = bundle or _built(device, out, suite)
    except (NvccError, OperatorError) as error:
        raise CannotBuildError(
            f"{error}\nA bundle made elsewhere (foretile bundle build) can be given with --bundle FILE."
        ) from None
    command = [sys.executable, "-m", "foretile.calibration.device.main", str(file), "worker"]
    with open_bundle(file) as opened, progress("measuring") as tell:
        worker = Process([*command, "--device", str(device)])
        return run_session(opened, out / TABLE, worker, budget_s=budget_s, tell=tell)


def _built(device: int, out: Path, suite: str) -> Path:
    """The suite's bundle for the device; one that an interrupted run has built is taken as it is."""
    from foretile import __version__
    from foretile.calibration.device.build import build_bundle
    from foretile.calibration.device.cupy_driver import open_device
    from foretile.calibration.device.suites import load_suite

    driver = open_device(device)
    told = driver.properties
    driver.close()
    made = load_suite(suite)
    file = out / f"{made.name}-{_arch(told)}.bundle"
    if not file.is_file():
        with progress("compiling") as tell:
            build_bundle(made, _arch(told), file, _chip(out / ROWS, _arch(told)), tell, version=__version__)
    return file


def _arch(told: DeviceProperties) -> str:
    from foretile.kernels.cuda.nvcc import ARCHITECTURES, NvccError

    fitting = [arch for arch in ARCHITECTURES if told.runs(arch)]
    if not fitting:
        major, minor = told.capability
        raise NvccError(
            f"kernels are made for {', '.join(ARCHITECTURES)}, none of which runs on compute capability "
            f"{major}.{minor}"
        )
    return fitting[-1]


_ALIKE = {"sm_80": "a100-sxm4-80gb", "sm_90a": "h200-sxm", "sm_100a": "b200-sxm"}


def _chip(rows: Path, arch: str) -> Chip:
    """What configurations are chosen for: the chip just measured, or else one of its architecture."""
    from foretile.calibration.device.driver import DeviceError
    from foretile.calibration.device.micro.chipfile import describe_chip
    from foretile.calibration.device.micro.rowfile import read_rows
    from foretile.hwmodels import Chip, load_chip

    try:
        return Chip.model_validate(describe_chip(read_rows(rows)).data)
    except (DeviceError, OSError):  # not all of it has been measured
        return load_chip(_ALIKE[arch])


def _say(found: _Found, out: Path, as_json: bool) -> None:
    from foretile.cli import show

    for note in found.notes:
        typer.echo(note, err=True)
    if as_json:
        show.emit_json(_plain(found, out))
        return
    if found.outcome is not None:
        show.console().print(estimates_table(found.estimates))
        for key, why in found.outcome.refused.items():
            typer.echo(f"refused: {key}: {why}", err=True)
        o = found.outcome
        counts = f"{o.measured} points measured, {o.held} there already, {len(o.refused)} refused"
        typer.echo(f"{counts}, {len(o.left)} left", err=True)
        typer.echo(str(out / ROWS))
    if found.operators is not None:
        from foretile.calibration.device.main import said as summarised

        typer.echo(summarised(found.operators))


def estimates_table(found: Sequence[Estimate]) -> Any:
    """What was made of the rows, for people."""
    from foretile.cli import show

    made = show.table("number", "value", "95 % interval", "unit", "n", "", right=("value", "n"))
    for e in found:
        n = e.number
        made.add_row(
            e.field, f"{n.value:.5g}", f"{n.low:.4g} – {n.high:.4g}", e.unit, str(n.n), ", ".join(n.flags)
        )
    return made


def _plain(found: _Found, out: Path) -> dict[str, Any]:
    o, s = found.outcome, found.operators
    return {
        "device": found.device.to_json() if found.device else None,
        "microbenchmarks": None
        if o is None
        else {
            "file": str(out / ROWS),
            "measured": o.measured,
            "held": o.held,
            "refused": o.refused,
            "left": list(o.left),
            "estimates": [e.to_json() for e in found.estimates],
        },
        "operators": None
        if s is None
        else {"file": str(s.table), "ok": s.ok, "wrong": s.wrong, "failed": s.failed, "left": s.left},
        "notes": found.notes,
    }
