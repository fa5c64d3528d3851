"""``foretile validate``: the model's error against measured times, beside baselines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foretile.cli.arguments import JSON, ArgumentError, comma_list
from foretile.cli.errors import reported

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from foretile.calibration.published import Reproduction
    from foretile.calibration.validate import Step, Validation

_CHIPS = typer.Option(
    None, "--chip", "--chips", metavar="A,B,…", help="Chips to validate.  [default: all that were measured]"
)
_OPERATORS = typer.Option(
    None,
    "--operator",
    "--operators",
    metavar="A,B,…",
    help="Operators, or families such as [bold]gemm.bf16[/bold].  [default: all]",
)
_PARTS = typer.Option(
    None,
    "--part",
    metavar="A,B,…",
    help="What the model knows: [bold]fitted[/bold], [bold]unseen[/bold] (leave one die out), "
    "[bold]operator_out[/bold] (leave one operator out).  [default: all three]",
)
_OUT = typer.Option(
    None,
    "--out",
    "-o",
    metavar="DIR",
    help="Folder for accuracy.html, results.parquet and summary.json; a later run takes up what is there.",
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
_ROWS = typer.Option(
    200,
    "--rows",
    metavar="N",
    min=0,
    help="Test rows of each chip and operator family at most, by hash; a third of it for kernels whose "
    "loops depend on data. 0: all, which takes hours.",
)
_PUBLISHED = typer.Option(
    False,
    "--published",
    help="Only the published measurements on chips that nothing was fitted to; takes half a minute.",
)
_MARKDOWN = typer.Option(
    None, "--markdown", metavar="FILE", help="Also write the figures as Markdown.", show_default=False
)


def validate(
    chip: list[str] = _CHIPS,
    operator: list[str] = _OPERATORS,
    part: list[str] = _PARTS,
    out: Path = _OUT,
    data: Path = _DATA,
    rows: int = _ROWS,
    markdown: Path = _MARKDOWN,
    published: bool = _PUBLISHED,
    as_json: bool = JSON,
) -> None:
    """Hold predictions against measured times that no fit saw.

    JSON: the summary, the same as summary.json; with --published its points and how they stand.
    """
    from foretile.cli import show

    with reported():
        from foretile.report.output import require_file, require_folder, write_all

        if published:
            if operator or part or out or data or markdown:
                raise ArgumentError(
                    "--published goes with --chip and --json only; a whole validation has it too"
                )
            _only_published(_ids(comma_list(chip or ())), as_json)
            return
        if out is not None:
            require_folder(out)  # before minutes of work, not after
        if markdown is not None:
            require_file(markdown)
        from foretile.calibration.device.accuracy import of_devices
        from foretile.calibration.validate import MODEL_PARTS, select
        from foretile.calibration.validate import validate as run

        chips = _ids(comma_list(chip or ()))
        table = select(measurements(data, chips), chips, comma_list(operator or ()))
        with _progress() as progress:
            parts = comma_list(part or ()) or MODEL_PARTS
            made = run(table, out, parts=parts, most=rows or None, progress=progress)
        files = list(made.files)
        whole = not chips and not operator
        more, devices = (_reproduced(), of_devices()) if whole else ((), None)
        if out is not None:
            from foretile.report.accuracy import write_page

            files.insert(0, write_page(made, out, more, devices))
        if markdown is not None:
            from foretile.report.accuracy import markdown as text_of
            from foretile.report.accuracy import parameters_markdown

            write_all({markdown: text_of(made.summary, parameters_markdown(), more, devices)})
            files.append(markdown)
        if as_json:
            show.emit_json(made.summary.to_json())
            return
        _print(made)
        for path in files:
            typer.echo(str(path))


def _reproduced() -> tuple[Reproduction, ...]:
    from foretile.calibration.published import reproduced

    return reproduced()


def _only_published(chips: list[str], as_json: bool) -> None:
    """Print the published measurements, of the chips named or of all."""
    from foretile.calibration.published import load_published, reproduce, standing
    from foretile.cli import show
    from foretile.report import published as tables

    points = [point for point in load_published() if not chips or point.chip in chips]
    if not points:
        raise ArgumentError(f"no published measurement on {', '.join(chips)}")
    found = reproduce(points)
    if as_json:
        show.emit_json({"standing": asdict(standing(found)), "points": [r.to_json() for r in found]})
        return
    out = show.console()
    out.print(_rich(tables.table(found, sources=False)))
    if not chips:  # the goal is over all of them
        out.print(" ".join(tables.words(found)), markup=False)


def _ids(names: list[str]) -> list[str]:
    """Ids of the chips that the names (ids, aliases) stand for."""
    from foretile.hwmodels import load_chip

    return [load_chip(name).id for name in names]


def measurements(data: Path | None, chips: list[str]) -> pd.DataFrame:
    """The measurements; of a folder of tables only the chips asked for are read."""
    import pandas as pd

    from foretile.calibration.measurements import read_csv, read_table
    from foretile.calibration.sample import load_sample

    if data is None:
        return load_sample()
    if data.is_dir():
        from foretile.calibration.sources import aiconfigurator

        held = aiconfigurator.devices(data)
        wanted = [name for name in held if not chips or name in chips] or held
        return pd.concat([aiconfigurator.load(name, path=data) for name in wanted], ignore_index=True)
    return read_csv(data) if data.suffix.lower() == ".csv" else read_table(data)


@contextmanager
def _progress() -> Iterator[Callable[[Step], None]]:
    """A bar on standard error, where that is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from foretile.cli import show

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = show.console(err=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None)

        def tell(step: Step) -> None:
            label = f"{step.label} (taken up)" if step.resumed else step.label
            bar.update(task, total=step.total, completed=step.done, description=label)

        yield tell


def _print(made: Validation) -> None:
    from foretile.cli import show
    from foretile.report import accuracy_tables as tables
    from foretile.report.accuracy import lead

    out, summary = show.console(), made.summary
    for table in (tables.floors(summary), tables.comparison(summary)):
        out.print(_rich(table))
    for part in summary.parts:
        if part != "operator_out":
            out.print(show.heading(f"{tables.PART_NAMES[part]}: by chip"))
            out.print(_rich(tables.chip_table(summary, part)))
    if "operator_out" in summary.parts:
        out.print(_rich(tables.operators_left_out(summary)))
    for head, support in lead(summary):
        out.print(f"{head} {support}", markup=False)


def _rich(table: Any) -> Any:
    from rich.text import Text

    from foretile.cli import show

    made = show.table(*table.heads, right=table.heads[table.labels :])
    made.columns[0].no_wrap = True  # whose numbers they are: the last to be cut on a narrow terminal
    made.columns[0].min_width = max((len(row[0].text) for row in table.rows), default=0)
    for row in table.rows:
        cells = []
        for cell in row:
            style = {"missed": "red", "best": "bold"}.get(cell.standing, "")
            more = ", ".join(filter(None, (f"n {cell.n}" if cell.n else "", cell.note)))
            cells.append(Text.assemble((cell.text, style), (f"  {more}" if more else "", "dim")))
        made.add_row(*cells)
    return made
