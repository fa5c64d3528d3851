"""``foretile chips``: the catalogue, one chip with every number's source, files to fill in, comparisons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foretile.cli.arguments import JSON, comma_list
from foretile.cli.errors import WRONG_REQUEST, reported

if TYPE_CHECKING:
    from foretile.hwmodels import Chip, IncompleteChip
    from foretile.hwmodels.completeness import Completeness
    from foretile.report.specs import Spec

app = typer.Typer(help="List the chips, or show one with the source of every number.")


@app.callback(invoke_without_command=True)
def list_all(context: typer.Context, as_json: bool = JSON) -> None:
    """List the chips, or show one with the source of every number."""
    if context.invoked_subcommand is not None:
        return
    from foretile.cli import show

    with reported():
        from foretile.hwmodels import IncompleteChip, describe_chip, list_chips, list_incomplete, load_chip
        from foretile.report import units
        from foretile.report.grounds import peak_flop_per_s, provenance

        chips = [load_chip(name) for name in list_chips()]
        found = [describe_chip(name) for name in list_incomplete()]
        incomplete = [chip for chip in found if isinstance(chip, IncompleteChip)]
        if as_json:
            show.emit_json([*map(_summary, chips), *map(_summary, incomplete)])
            return
        made = show.table(
            "chip", "name", "vendor", "cores", "bf16 peak", "DRAM", "memory", "grounds",
            right=("cores", "bf16 peak", "DRAM", "memory"),
        )  # fmt: skip
        for chip in sorted(chips, key=lambda c: (c.vendor, c.id)):
            peak = peak_flop_per_s(chip, "bf16") or peak_flop_per_s(chip, "fp16")
            grounds = provenance(chip)
            made.add_row(
                chip.id,
                chip.name,
                chip.vendor,
                str(chip.cores.value),
                units.flop_rate(peak) if peak else "–",
                units.byte_rate(chip.dram.bandwidth_bytes_per_s.value),
                units.size(chip.dram.capacity_bytes.value),
                f"{units.percent(grounds.share('inferred'))} inferred"
                + (f", {grounds.mark}" if grounds.mark else ""),
            )
        for other in sorted(incomplete, key=lambda c: (c.vendor, c.id)):
            made.add_row(*_row(other))
        show.console().print(made)
        show.console(err=True).print(
            "foretile chips show ID prints every number with its source, and what is missing of an "
            "incomplete chip.",
            style="dim",
        )


def _row(chip: IncompleteChip) -> tuple[str, ...]:
    """An incomplete chip's line of the list: what is known, dashes for the rest; never a rate worked out."""
    from foretile.report import units

    cores, rate, size = (
        chip.value(path) for path in ("cores", "dram.bandwidth_bytes_per_s", "dram.capacity_bytes")
    )
    return (
        chip.id,
        chip.name,
        chip.vendor,
        str(cores) if cores else "–",
        "–",
        units.byte_rate(rate) if rate else "–",
        units.size(size) if size else "–",
        f"incomplete, {len(chip.missing)} missing",
    )


def _summary(chip: Chip | IncompleteChip) -> dict[str, Any]:
    """A chip in the list's JSON; of an incomplete one what is missing, and never a rate worked out."""
    from foretile.hwmodels import Chip
    from foretile.report.grounds import peak_flop_per_s, provenance

    about: dict[str, Any] = {
        name: getattr(chip, name) for name in ("id", "name", "vendor", "family", "style")
    }
    about |= {"aliases": list(chip.aliases), "summary": chip.summary, "complete": isinstance(chip, Chip)}
    if isinstance(chip, Chip):
        about |= {
            "cores": chip.cores.value,
            "max_hz": chip.clock.max_hz.value,
            "peak_flop_per_s": {d: peak_flop_per_s(chip, d) for d in chip.matrix.flop_per_cycle},
            "dram_bytes_per_s": chip.dram.bandwidth_bytes_per_s.value,
            "dram_capacity_bytes": chip.dram.capacity_bytes.value,
        }
    else:
        about["missing"] = list(chip.missing)
    return {**about, "confidence": dict(provenance(chip).counts)}


@app.command("show")
def show_one(
    chip_id: str = typer.Argument(..., metavar="ID", help="A chip's id or alias, or a YAML file."),
    as_json: bool = JSON,
) -> None:
    """Every number of one chip, with its source and confidence."""
    from foretile.cli import show

    with reported():
        from foretile.hwmodels import Chip, describe_chip

        chip = describe_chip(chip_id)
        if as_json:
            show.emit_json(
                chip.model_dump(mode="json", exclude_none=True) if isinstance(chip, Chip) else chip.to_json()
            )
            return
        _print_chip(chip)


def _print_chip(chip: Chip | IncompleteChip) -> None:
    from rich.text import Text

    from foretile.cli import show
    from foretile.hwmodels import Chip
    from foretile.report import units
    from foretile.report.grounds import provenance

    out = show.console()
    style = chip.style or "no lowering yet"
    out.print(Text.assemble((chip.name, "bold"), f"  ({chip.id}) · {chip.vendor} · {chip.family} · {style}"))
    if not isinstance(chip, Chip):
        out.print(Text("incomplete: what is public does not suffice for a prediction", style="bold yellow"))
    if chip.summary:
        out.print(chip.summary, style="italic")
    out.print(f"{provenance(chip).total} numbers: {provenance(chip).words()}")
    made = show.table("", "value", "confidence", "source", right=("value",))
    for group, members in groupby(chip.quantities().items(), key=lambda item: item[0].partition(".")[0]):
        entries = list(members)
        alone = len(entries) == 1 and "." not in entries[0][0]
        if not alone:
            made.add_row(Text(group, style="bold"))
        for path, number in entries:
            source = f"{number.source} – {number.note}" if number.note else number.source
            made.add_row(
                Text(path, style="bold") if alone else "  " + path.partition(".")[2],
                units.quantity(path, number.value),
                Text(number.confidence, style=show.CONFIDENCE_STYLE[number.confidence]),
                Text(source),
            )
    out.print(made)
    missing = () if isinstance(chip, Chip) else tuple(chip.missing_in_words().split("; "))
    for title, lines in (
        ("missing for a prediction", missing),
        ("not known", chip.unknown),
        ("sources disagree", chip.conflicts),
    ):
        if lines:
            out.print(show.heading(title))
            for line in lines:
                out.print(Text(f"  · {line}"))


_FILE = typer.Argument(..., metavar="FILE", help="A chip's YAML file.", show_default=False)
_STRICT = typer.Option(False, "--strict", help="Refuse a file that is not complete (exit code 2).")


@app.command("check")
def check(file: Path = _FILE, strict: bool = _STRICT, as_json: bool = JSON) -> None:
    """Check a chip file: schema, plausibility, and how complete it is.

    Exit code 0: nothing to object to (an incomplete file is said to be so); 2: wrong or implausible.
    """
    from foretile.cli import show

    with reported():
        from foretile.hwmodels.checks import check_chip
        from foretile.hwmodels.completeness import completeness

        state = completeness(file)
        found = check_chip(state.chip)
        if as_json:
            show.emit_json({"file": str(file), "chip": state.id, "warnings": found, **state.to_json()})
        else:
            for warning in found:
                typer.echo(f"{file}: {warning}")
            verdict = "complete" if state.complete else "incomplete, so it cannot predict yet"
            typer.echo(f"{file}: {state.id}: {verdict}: {state.words()}")
            if state.complete and not found:
                typer.echo(f"{file}: {state.id}: nothing to object to")
            _print_to_do(state)
        if found or (strict and not state.complete):
            raise typer.Exit(WRONG_REQUEST)


def _print_to_do(state: Completeness) -> None:
    """What is still to be filled in, with what it means and where to find it."""
    from foretile.cli import show

    if not state.missing:
        return
    made = show.table("to fill in", "unit", "meaning", "found in")
    for field in state.missing:
        made.add_row(field.path, field.unit, field.meaning, field.where)
    show.console().print(made)


_NEW_ID = typer.Argument(
    ..., metavar="ID", help="The new chip's id: lower case, hyphens.", show_default=False
)
_STYLE = typer.Option(None, "--style", help="How programs are lowered on it: simt, davinci, mlu.")
_EXTENDS = typer.Option(
    None, "--extends", metavar="CHIP", help="A chip or base (_hopper, …) it takes the rest from."
)
_OUT = typer.Option(
    None, "--out", "-o", help="Where to write.  [default: standard output]", show_default=False
)


@app.command("new")
def new(
    chip_id: str = _NEW_ID,
    style: str = _STYLE,
    extends: str = _EXTENDS,
    out: Path = _OUT,
    as_json: bool = JSON,
) -> None:
    """Write a chip file to be filled in: every field with its unit, meaning and where to find it."""
    from foretile.cli import show

    with reported():
        from foretile.hwmodels.skeleton import new_file
        from foretile.report.output import OutputError, require_file, write_all

        if out is not None and require_file(out).exists():
            raise OutputError(f"{out} exists; choose another name, or remove it")
        folder = out.parent if out is not None else Path()
        text = new_file(chip_id, style, extends, file=str(out or ""), folder=folder)
        if out is None:
            typer.echo(text, nl=False)
            return
        write_all({out: text})
        if as_json:
            show.emit_json({"file": str(out), "chip": chip_id})
            return
        typer.echo(str(out))
        show.console(err=True).print(f"Fill it in, then: foretile chips check {out}", markup=False)


@app.command("schema")
def schema(out: Path = _OUT) -> None:
    """The JSON Schema of chip files, by which an editor completes and checks them."""
    from foretile.cli import show

    with reported():
        from foretile.hwmodels.skeleton import json_schema
        from foretile.report.output import require_file, write_all

        if out is None:
            show.emit_json(json_schema())
            return
        text = json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
        write_all({require_file(out): text})
        typer.echo(str(out))


_IDS = typer.Argument(..., metavar="ID ID …", help="Two or more chips, or YAML files.", show_default=False)
_PICTURE = typer.Option(
    None, "--out", "-o", help="Write a page (.html) or the figure alone (.svg, .png, .pdf) too."
)


@app.command("compare")
def compare(chip_ids: list[str] = _IDS, out: Path = _PICTURE, as_json: bool = JSON) -> None:
    """Two or more chips beside each other, spec by spec, with ratios and rooflines."""
    from foretile.cli import show

    with reported():
        from foretile.hwmodels import load_chip
        from foretile.report import specs
        from foretile.report.output import require_file, write_all

        if out is not None:
            require_file(specs.require_kind(out))
        chips = [load_chip(name) for name in comma_list(chip_ids)]
        lines = specs.specs(chips)
        if out is not None:
            write_all({out: specs.render(chips, lines, out.suffix)})
        if as_json:
            files = {"files": [str(out)]} if out is not None else {}
            show.emit_json({**specs.to_json(chips, lines), **files})
            return
        _print_specs(chips, lines)
        if out is not None:
            typer.echo(str(out))


def _print_specs(chips: Sequence[Chip], lines: Sequence[Spec]) -> None:
    from rich.text import Text

    from foretile.cli import show
    from foretile.report import units
    from foretile.report.grounds import provenance

    ids = [chip.id for chip in chips]
    columns = [ids[0], *(name for other in ids[1:] for name in (other, f"/ {ids[0]}"))]
    made = show.table("", *columns, right=tuple(columns))
    for group, members in groupby(lines, key=lambda line: line.group):
        made.add_row(Text(group, style="bold"))
        for line in members:
            cells = []
            for place, ratio in enumerate(line.ratios):
                trust = show.CONFIDENCE_STYLE.get(line.confidence[place], "")
                sure = "?" if line.confidence[place] == "inferred" else " "
                cells.append(Text(line.shown(place) + sure, style=trust))
                if place:
                    cells.append(Text(units.ratio(ratio) if ratio is not None else "–"))
            made.add_row("  " + line.name, *cells)
    out = show.console()
    out.print(made)
    err = show.console(err=True)
    for chip in chips:
        err.print(f"{chip.id}: {provenance(chip).words()}", style="dim")
    err.print("?: inferred. foretile chips show ID prints every number with its source.", style="dim")
