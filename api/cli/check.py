"""``foretile check``: a reviewer for authors of tile kernels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from foretile.cli.arguments import JSON, SHAPE, TENSORS, arrays, pairs
from foretile.cli.errors import reported

if TYPE_CHECKING:
    from foretile.simulator.review import Finding, Review

FAILED = 3  # looked over, and something is wrong with it

_OP = typer.Argument(..., metavar="KERNEL", help="path/to/kernel.py:function, or an operator of the library.")
_CHIP = typer.Option("h200-sxm", "--chip", metavar="ID", help="Chip id, alias or YAML file.")
_REFERENCE = typer.Option(
    None,
    "--reference",
    metavar="FILE:NAME",
    help="A function of the operands by name that gives the right outputs.",
    show_default=False,
)
_RUN = typer.Option(True, "--run/--no-run", help="Execute the kernel on the CPU.")
_CHIPS = typer.Option(True, "--portability/--no-portability", help="Ask every chip of the catalogue.")


def check(
    op: str = _OP,
    shape: list[str] = SHAPE,
    chip: str = _CHIP,
    reference: str = _REFERENCE,
    tensors: Path = TENSORS,
    run: bool = _RUN,
    portability: bool = _CHIPS,
    as_json: bool = JSON,
) -> None:
    """Review a kernel: undefined behaviour, accesses, pipeline, waves, occupancy, and which chips it fits."""
    with reported(op):
        from foretile.cli import show
        from foretile.reviewing import check as review

        found = review(
            op,
            chip,
            reference=reference,
            tensors=arrays(tensors),
            run=run,
            portability=portability,
            **pairs(shape or (), example="m=256 n=256 k=256"),
        )
        if as_json:
            show.emit_json(found.to_json())
        else:
            _print(found)
    if not found.ok:
        raise typer.Exit(FAILED)


def _print(found: Review) -> None:
    from rich.text import Text

    from foretile.cli import show
    from foretile.report.units import seconds

    out = show.console()
    time = (
        f"{seconds(found.time_s)} on {found.chip}"
        if found.time_s is not None
        else f"does not run on {found.chip}"
    )
    out.print(Text.assemble((found.name, "bold cyan"), f"  {time}"))
    if not found.findings:
        out.print(Text("nothing to remark", style="green"))
    for finding in found.findings:
        _print_finding(finding)
    if not found.ports:
        return
    fits = sorted((p for p in found.ports if p.time_s is not None), key=lambda p: p.time_s or 0.0)
    out.print()
    out.print(Text(f"It fits {len(fits)} of {len(found.ports)} chips as it is."))
    made = show.table("chip", "time", right=("time",))
    for port in fits:
        made.add_row(port.chip, seconds(port.time_s or 0.0))
    if fits:
        out.print(made)
    reasons: dict[str, list[str]] = {}
    for port in found.ports:
        if port.time_s is None:
            reasons.setdefault(port.reason.replace(port.chip, "the chip"), []).append(port.chip)
    for reason, chips in sorted(reasons.items(), key=lambda item: -len(item[1])):
        out.print(Text.assemble((", ".join(chips), "bold"), f": {reason}"))


def _print_finding(finding: Finding) -> None:
    from rich.text import Text

    from foretile.cli import show

    colour = {"error": "bold red", "warning": "yellow", "note": "dim"}[finding.level]
    gain = ""
    if finding.gain is not None:
        gain = f"  ({'at most ' if finding.at_most else ''}{finding.gain:.0%} of the time)"
    where = f"{finding.loc}: " if finding.loc else ""
    show.console().print(
        Text.assemble(
            (f"{finding.level} ", colour), (f"{finding.rule}: ", "bold"), f"{where}{finding.message}{gain}"
        )
    )
