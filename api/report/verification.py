"""The precision report: every operator and type against its reference, as HTML and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from foretile.report.output import write_all
from foretile.report.page import asset, environment

if TYPE_CHECKING:
    from foretile.simulator.numerics.verify import Verification


@dataclass(frozen=True)
class Row:
    """One line of the table: the worst output of one operator, type and kind of inputs."""

    operator: str
    dtype: str
    shape: str
    inputs: str
    error: str
    tolerance: str
    ok: bool
    remark: str


def rows(found: Sequence[Verification]) -> list[Row]:
    """One row a verification."""
    made = []
    for v in found:
        worst = max(v.outputs, key=lambda c: c.norm_error, default=None)
        made.append(
            Row(
                operator=v.operator,
                dtype=str(v.shape.get("dtype", worst.dtype if worst else "")),
                shape=" ".join(f"{k}={n}" for k, n in v.shape.items() if k != "dtype"),
                inputs=v.inputs,
                error=f"{worst.norm_error:.1e}" if worst else "–",
                tolerance=f"{v.tolerance.norm:.1e}",
                ok=v.ok,
                remark=v.fault,
            )
        )
    return made


def write_verification(found: Sequence[Verification], folder: Path) -> list[Path]:
    """Write ``verification.html`` and ``verification.md`` into ``folder``.

    Raises:
        OutputError: they cannot be written.
    """
    from markupsafe import Markup

    from foretile import __version__

    page = environment().get_template("verification.html.j2")
    table = rows(found)
    within = sum(row.ok for row in table)
    html = page.render(
        rows=table,
        within=within,
        style=Markup(asset("page.css")),
        version=__version__,
        date=date.today().isoformat(),
    )
    files = {folder / "verification.html": html, folder / "verification.md": _markdown(table, within)}
    write_all(files)
    return list(files)


def _markdown(table: Sequence[Row], within: int) -> str:
    lines = [
        "# Precision of the operators",
        "",
        f"{within} of {len(table)} within tolerance. Tile programs run on the CPU with the arithmetic of "
        "their types, against float64 references; errors are ‖out − ref‖ / ‖ref‖ of the worst output.",
        "",
        "| operator | type | shape | inputs | error | tolerance | |",
        "| --- | --- | --- | --- | ---: | ---: | --- |",
    ]
    for row in table:
        verdict = "within" if row.ok else f"**outside** {row.remark}"
        cells = (f"`{row.operator}`", row.dtype, row.shape, row.inputs, row.error, row.tolerance, verdict)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
