"""``foretile verify``: what an operator's tile program computes, against its float64 reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foretile.cli.arguments import CONFIG, JSON, SHAPE, ArgumentError, pairs
from foretile.cli.errors import reported

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    out: Path = _OUT,
    as_json: bool = JSON,
) -> None:
    """Run an operator's tile program on the CPU and compare it with its reference.

    Exit code 3 if a result is outside of the operator's tolerance. JSON: a list, one object a kind of inputs.
    """
    from foretile.cli import show

    with reported(op or ""):
        if everything == bool(op):
            raise ArgumentError("give one operator, or --all")
        if out is not None and not everything:
            raise ArgumentError("--out needs --all")
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
