"""``foretile verify``: what an operator's tile program computes, against its float64 reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foretile.cli.arguments import CONFIG, JSON, SHAPE, ArgumentError, pairs
from foretile.cli.errors import reported

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foretile.device_verification import DeviceVerification, VersionCheck
    from foretile.simulator.numerics.verify import OutputCheck, Verification

FAILED = 3  # ran, but a result is outside of the operator's tolerance

_OP = typer.Argument(None, metavar="OP", help="A library operator.", show_default=False)
_CHIP = typer.Option(
    None, "--chip", metavar="ID", help="Add as this chip's matrix engine does.", show_default=False
)
_BLOCKS = typer.Option(None, "--blocks", min=1, help="Run only so many blocks of each launch.")
_SEED = typer.Option(0, "--seed", help="Of the random inputs.")
_INPUTS = typer.Option(
    None, "--inputs", metavar="KIND", help="One kind of inputs; all of them otherwise.", show_default=False
)
_ALL = typer.Option(False, "--all", help="Every operator in every type, on a small shape of its own.")
_DEVICE = typer.Option(
    None,
    "--device",
    min=0,
    metavar="N",
    help="Also on this GPU: the CUDA version, and the tile program where TileLang is installed.",
    show_default=False,
)
_OUT = typer.Option(
    None,
    "--out",
    "-o",
    help="With --all: folder for the report (HTML, Markdown).",
    show_default=False,
)


def verify(
    op: str = _OP,
    shape: list[str] = SHAPE,
    config: list[str] = CONFIG,
    chip: str = _CHIP,
    inputs: str = _INPUTS,
    blocks: int = _BLOCKS,
    seed: int = _SEED,
    everything: bool = _ALL,
    device: int = _DEVICE,
    out: Path = _OUT,
    as_json: bool = JSON,
) -> None:
    """Run an operator's tile program on the CPU and compare it with its reference.

    With --device its versions stand side by side: tile program on CPU and GPU, CUDA version on the GPU.

    Exit code 3 if a result is outside of the operator's tolerance. JSON: a list, one object a kind of inputs.
    """
    from foretile.cli import show

    with reported(op or ""):
        if everything == bool(op):
            raise ArgumentError("give one operator, or --all")
        if out is not None and not everything:
            raise ArgumentError("--out needs --all")
        if device is not None:
            _refuse_beside_device(chip=chip, blocks=blocks, out=out)
            kinds = [inputs] if inputs else None
            beside = (
                _all_on_device(device, kinds, seed)
                if everything
                else _on_device(op, device, shape, config, kinds, seed)
            )
            if as_json:
                show.emit_json([v.to_json() for v in beside])
            elif everything:
                _print_all_versions(beside)
            else:
                _print_versions(beside)
            raise typer.Exit(0 if all(v.ok for v in beside) else FAILED)
        from foretile.precision import verify as run
        from foretile.precision import verify_all

        if everything:
            if out is not None:
                from foretile.report.output import require_folder

                require_folder(out)
            found = verify_all(seed=seed, progress=show.console(err=True))
            if out is not None:
                from foretile.report.verification import write_verification

                files = write_verification(found, out)
        else:
            sizes = pairs(shape or (), example="m=300 n=200 k=100")
            chosen = pairs(config or (), example="--config block_m=64")
            found = run(
                op,
                config=chosen or None,
                chip=chip,
                kinds=[inputs] if inputs else None,
                blocks=blocks,
                seed=seed,
                progress=show.console(err=True),
                **sizes,
            )
        if as_json:
            show.emit_json([v.to_json() for v in found])
        elif everything:
            _print_table(found)
            if out is not None:
                for path in files:
                    typer.echo(str(path))
        else:
            _print(found)
    if not all(v.ok for v in found):
        raise typer.Exit(FAILED)


def _refuse_beside_device(**given: Any) -> None:
    for name, value in given.items():
        if value:
            raise ArgumentError(f"--{name} does not go with --device")


def _all_on_device(device: int, kinds: Sequence[str] | None, seed: int) -> list[DeviceVerification]:
    from foretile.calibration.device.cupy_driver import open_device
    from foretile.cli.show import progress
    from foretile.device_verification import verify_all_on_device

    driver = open_device(device)
    try:
        with progress("verifying") as tell:
            return list(verify_all_on_device(driver, kinds=kinds, seed=seed, progress=tell))
    finally:
        driver.close()


def _on_device(
    op: str,
    device: int,
    shape: Sequence[str],
    config: Sequence[str],
    kinds: Sequence[str] | None,
    seed: int,
) -> list[DeviceVerification]:
    from foretile.calibration.device.cupy_driver import open_device
    from foretile.device_verification import verify_on_device

    driver = open_device(device)
    try:
        return verify_on_device(
            op,
            driver,
            pairs(shape or (), example="m=300 n=200 k=100"),
            config=pairs(config or (), example="--config block_m=64") or None,
            kinds=kinds,
            seed=seed,
        )
    finally:
        driver.close()


def _print_versions(found: Sequence[DeviceVerification]) -> None:
    from rich.text import Text

    from foretile.cli import show

    out, first = show.console(), found[0]
    out.print(Text.assemble((first.operator, "bold cyan"), "  ", _words(first.shape)))
    out.print(Text(f"device: {first.device}; tile program's configuration: {_words(first.config)}"))
    norm, peak = first.tolerance.norm, first.tolerance.peak
    out.print(
        Text(f"against the float64 reference; tolerance: {norm:.2g} of the norm, {peak:.2g} of the largest")
    )
    figures = ("‖err‖/‖ref‖", "max/max", "≤ 1 ulp")
    made = show.table("inputs", "output", "version", *figures, "", right=figures)
    for v in found:
        for version in v.versions:
            for check in version.outputs:
                named = f"{check.name} {check.dtype}"
                made.add_row(v.inputs, named, version.version, *_few_figures(check), _verdict(check.within))
            if version.fault:
                made.add_row(v.inputs, "", version.version, *[""] * len(figures), _verdict(False))
    out.print(made)
    for v in found:
        for version in v.versions:
            if version.fault:
                lead = (f"{v.inputs}, {version.version}: ", "bold red")
                out.print(Text.assemble(lead, version.fault))
    for version in first.versions:
        if version.missing:
            out.print(Text(f"{version.version}: not run here: {version.missing}"))


def _print_all_versions(found: Sequence[DeviceVerification]) -> None:
    """A row an operator, type and version: its worst inputs; then what faulted, and what was not run."""
    import numpy as np

    from foretile.cli import show

    errors = show.console(err=True)
    made = show.table(
        *("operator", "type", "version", "inputs", "‖err‖/‖ref‖", "tolerance", ""),
        right=("inputs", "‖err‖/‖ref‖", "tolerance"),
    )
    tolerances = {(v.operator, str(v.shape.get("dtype", ""))): v.tolerance.norm for v in found}
    by_version: dict[tuple[str, str, str], list[VersionCheck]] = {}
    for v in found:
        for version in v.versions:
            key = (v.operator, str(v.shape.get("dtype", "")), version.version)
            by_version.setdefault(key, []).append(version)
    for (operator, dtype, name), versions in by_version.items():
        ran = [version for version in versions if not version.missing]
        if not ran:
            continue
        worst = np.max([check.norm_error for version in ran for check in version.outputs] or [np.nan])
        tolerance = f"{tolerances[operator, dtype]:.2g}"
        verdict = _verdict(all(version.ok for version in ran))
        made.add_row(operator, dtype, name, str(len(ran)), f"{worst:.2e}", tolerance, verdict)
        for fault in dict.fromkeys(version.fault for version in ran if version.fault):
            errors.print(f"{operator} {dtype}, {name}: {fault}", markup=False)
    show.console().print(made)
    for name, why in dict.fromkeys((x.version, x.missing) for v in found for x in v.versions if x.missing):
        errors.print(f"{name}: not run here: {why}", markup=False)
    good = sum(v.ok for v in found)
    errors.print(f"{good} of {len(found)} within tolerance on {found[0].device}", markup=False)


def _few_figures(check: OutputCheck) -> list[str]:
    norm, peak, *_, close = _figures(check)
    return [norm, peak, close]


def _words(values: dict[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in values.items())


def _print(found: Sequence[Verification]) -> None:
    from rich.text import Text

    from foretile.cli import show

    out = show.console()
    first = found[0]
    out.print(Text.assemble((first.operator, "bold cyan"), "  ", _words(first.shape)))
    out.print(Text(f"configuration: {_words(first.config)}"))
    norm, peak = first.tolerance.norm, first.tolerance.peak
    out.print(Text(f"tolerance: {norm:.2g} of the norm, {peak:.2g} of the largest element"))
    figures = ("‖err‖/‖ref‖", "max/max", "max rel.", "mean rel.", "1 − cos", "≤ 1 ulp")
    made = show.table("inputs", "output", *figures, "", right=figures)
    for v in found:
        for check in v.outputs:
            made.add_row(v.inputs, f"{check.name} {check.dtype}", *_figures(check), _verdict(check.within))
        if v.fault:
            made.add_row(v.inputs, *[""] * (len(figures) + 1), _verdict(False))
    out.print(made)
    for check in (c for v in found if v.inputs == "random" for c in v.outputs if c.ulps):
        bins = " · ".join(f"{name} {share * 100:.3g} %" for name, share in check.ulps.items() if share)
        out.print(Text(f"{check.name}, random inputs, distance in units of the last place: {bins}"))
    for v in found:
        if v.fault:
            out.print(Text.assemble((f"{v.inputs}: ", "bold red"), v.fault))
        for check in v.outputs:
            if check.within:
                continue
            off = f"{check.mismatched} of {check.elements} elements are off; the worst:"
            out.print(Text(f"{v.inputs}: {check.name}: {off}"))
            for m in check.mismatches:
                where = ", ".join(map(str, m.index))
                out.print(Text(f"  {check.name}[{where}] = {m.value:.6g}, should be {m.reference:.6g}"))


def _figures(check: OutputCheck) -> list[str]:
    close = sum(share for name, share in check.ulps.items() if name in ("≤ 0.5", "≤ 1"))
    return [
        f"{check.norm_error:.2e}",
        f"{check.peak_error:.2e}",
        f"{check.max_relative:.2e}",
        f"{check.mean_relative:.2e}",
        f"{check.cosine_distance:.1e}",
        f"{close * 100:.1f} %" if check.ulps else "–",
    ]


def _verdict(ok: bool) -> Any:
    from rich.text import Text

    return Text("within", style="green") if ok else Text("OUTSIDE", style="bold red")


def _print_table(found: Sequence[Verification]) -> None:
    from foretile.cli import show
    from foretile.report.verification import rows

    made = show.table(
        "operator", "type", "inputs", "‖err‖/‖ref‖", "tolerance", "", right=("‖err‖/‖ref‖", "tolerance")
    )
    for row in rows(found):
        made.add_row(row.operator, row.dtype, row.inputs, row.error, row.tolerance, _verdict(row.ok))
    show.console().print(made)
    wrong = sum(not v.ok for v in found)
    show.console(err=True).print(f"{len(found) - wrong} of {len(found)} within tolerance", markup=False)
    for v in found:
        if v.fault:
            show.console(err=True).print(
                f"{v.operator} {_words(v.shape)}, {v.inputs}: {v.fault}", markup=False
            )
