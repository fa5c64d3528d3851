"""``foretile chips``: the catalogue, one chip with every number's source, and a checker."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foretile.cli.arguments import JSON
from foretile.cli.errors import WRONG_REQUEST, reported

if TYPE_CHECKING:
    from foretile.hwmodels import Chip, IncompleteChip

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
            show.emit_json([*(_summary(chip) for chip in chips), *(_known(chip) for chip in incomplete)])
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


def _known(chip: IncompleteChip) -> dict[str, Any]:
    """An incomplete chip in the list's JSON."""
    from foretile.report.grounds import provenance

    return {
        "id": chip.id,
        "name": chip.name,
        "vendor": chip.vendor,
        "family": chip.family,
        "style": chip.style,
        "aliases": list(chip.aliases),
        "summary": chip.summary,
        "complete": False,
        "missing": list(chip.missing),
        "confidence": dict(provenance(chip).counts),
    }


def _summary(chip: Chip) -> dict[str, Any]:
    from foretile.report.grounds import peak_flop_per_s, provenance

    return {
        "id": chip.id,
        "name": chip.name,
        "vendor": chip.vendor,
        "family": chip.family,
        "style": chip.style,
        "aliases": list(chip.aliases),
        "summary": chip.summary,
        "complete": True,
        "cores": chip.cores.value,
        "max_hz": chip.clock.max_hz.value,
        "peak_flop_per_s": {d: peak_flop_per_s(chip, d) for d in chip.matrix.flop_per_cycle},
        "dram_bytes_per_s": chip.dram.bandwidth_bytes_per_s.value,
        "dram_capacity_bytes": chip.dram.capacity_bytes.value,
        "confidence": dict(provenance(chip).counts),
    }


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


@app.command("check")
def check(file: Path = _FILE, as_json: bool = JSON) -> None:
    """Check a chip file: schema, stated peaks against cores × rate × clock, plausibility."""
    from foretile.cli import show

    with reported():
        from foretile.hwmodels import Chip, describe_chip
        from foretile.hwmodels.checks import check_chip

        chip = describe_chip(file)
        missing = () if isinstance(chip, Chip) else chip.missing
        found = [str(warning) for warning in check_chip(chip)]
        if as_json:
            show.emit_json({"file": str(file), "chip": chip.id, "warnings": found, "missing": list(missing)})
        else:
            for warning in found:
                typer.echo(f"{file}: {warning}")
            if not isinstance(chip, Chip):
                typer.echo(f"{file}: {chip.id}: incomplete; missing: {chip.missing_in_words()}")
            elif not found:
                typer.echo(f"{file}: {chip.id}: nothing to object to")
        if found:
            raise typer.Exit(WRONG_REQUEST)
