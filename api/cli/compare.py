"""``foretile compare``: a suite of shapes on several chips, as a report."""

from __future__ import annotations

from pathlib import Path

import typer

from foretile.cli.arguments import JSON, comma_list
from foretile.cli.errors import reported

_SUITE = typer.Option("deepseek-v3", "--suite", help="A suite's name, or a YAML file.")
_CHIPS = typer.Option(
    None, "--chips", "--chip", metavar="A,B,…", help="Chips to compare.  [default: the whole catalogue]"
)
_OUT = typer.Option(
    ..., "--out", "-o", help="Folder for report.html, report.md and predictions.csv.", show_default=False
)


_WHY = typer.Option(
    "best",
    "--why",
    metavar="A,B,…",
    help="Explain why A and each of the others differ: resource, sizes, sensitivity; [bold]none[/bold]: "
    "leave it out.  [default: the one that leads and the next of another architecture]",
    show_default=False,
)


def compare(
    suite: str = _SUITE,
    chips: list[str] = _CHIPS,
    out: Path = _OUT,
    why: str = _WHY,
    as_json: bool = JSON,
) -> None:
    """Predict a suite of shapes on several chips and write a report."""
    from foretile.cli import show

    with reported():
        from foretile.report.output import require_folder

        require_folder(out)  # before minutes of work, not after
        from foretile.hwmodels import Chip, IncompleteChip, describe_chip, list_chips, list_incomplete
        from foretile.report.compare import write_report
        from foretile.report.suite import load_suite

        loaded = load_suite(suite)
        names = comma_list(chips or ()) or [*list_chips(), *list_incomplete()]
        named = list({chip.id: chip for chip in map(describe_chip, names)}.values())
        asked: list[str] | None = None
        if why != "none":
            asked = [] if why == "best" else [describe_chip(name).id for name in comma_list([why])]
        report = write_report(
            loaded,
            [chip for chip in named if isinstance(chip, Chip)],
            out,
            progress=show.console(err=True),
            why=asked,
            incomplete=[chip for chip in named if isinstance(chip, IncompleteChip)],
        )
        if as_json:
            show.emit_json(report.to_json())
            return
        for path in report.files:
            typer.echo(str(path))
        err = show.console(err=True)
        for line in report.findings[:3]:
            err.print(f"· {line}", markup=False)
        for chip in report.incomplete:
            err.print(f"· {chip.id} is incomplete: no {chip.missing_in_words()}", markup=False)
        from foretile.report.why_words import sentences

        for pair in report.why:
            for phase in reversed(pair.phases):
                for line in sentences(pair, phase):
                    err.print(f"· {phase.title}: {line}", markup=False)
