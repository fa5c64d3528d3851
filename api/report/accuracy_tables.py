"""The tables of the accuracy page and of docs/accuracy.md, as text: every error stands beside its n."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foretile.calibration.floors import FLOORS

if TYPE_CHECKING:
    from foretile.calibration.accuracy_summary import Summary
    from foretile.calibration.metrics import Accuracy, Line

PART_NAMES = {
    "fitted": "fitted",
    "unseen": "die never seen",
    "operator_out": "operator left out",
    "roofline": "roofline",
    "scaled_roofline": "scaled roofline",
    "nearest_fit": "nearest, fit rows",
    "nearest": "nearest, all rows",
}
PART_MEANINGS = {
    "fitted": "at most 300 rows of the chip and family were fitted; these are others",
    "unseen": "no row of the chip, nor of a chip with the same die, entered its fit",
    "operator_out": "this family's kernel parameters come from other dies, the chip's stay its own",
    "roofline": "stated peak and bandwidth, exact FLOP and least bytes; nothing fitted",
    "scaled_roofline": "the same with two shares and a constant, fitted to the same rows as the model",
    "nearest_fit": "interpolation in log shape between the rows that the model was fitted to",
    "nearest": "the same between all other rows of the table, test rows too: what looking up can do",
}
NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """A figure, the n it rests on, and how it stands: ``met``, ``missed``, ``best`` or empty."""

    text: str
    n: str = ""
    note: str = ""
    standing: str = ""

    def plain(self) -> str:
        """On one line, as a cell of a Markdown table."""
        said = f"{self.text} (n = {self.n})" if self.n else self.text
        said = f"**{said}**" if self.standing in ("missed", "best") else said
        return f"{said}, {self.note}" if self.note else said


@dataclass(frozen=True)
class Table:
    """Headings and rows; the first ``labels`` columns are words, the others figures."""

    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    labels: int = 1

    def markdown(self) -> str:
        """The table in Markdown, every cell on one line."""
        rule = ["---" if i < self.labels else "---:" for i in range(len(self.heads))]
        lines = [self.heads, rule, *([cell.plain() for cell in row] for row in self.rows)]
        return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def percent(share: float) -> str:
    """``0.0412`` → ``4.1 %``; from 100 % on without a decimal."""
    if math.isnan(share):
        return NOTHING
    return f"{share * 100:.0f} %" if abs(share) >= 0.9995 else f"{share * 100:.1f} %"


def signed(share: float) -> str:
    """``0.012`` → ``+1.2 %``."""
    return NOTHING if math.isnan(share) else f"{'+' if share >= 0 else '−'}{percent(abs(share))}"


def error_cell(over: Accuracy | None, *, standing: str = "", note: str = "") -> Cell:
    """MAPE with its n."""
    if over is None or over.n == 0:
        return Cell(NOTHING, note=note)
    return Cell(percent(over.mape), f"{over.n:,}", note, standing)


def coverage_cell(over: Accuracy | None) -> Cell:
    """The share of intervals that hold the truth, with its confidence interval and n."""
    if over is None or over.intervals == 0:
        return Cell(NOTHING)
    between = f"{over.coverage_low * 100:.1f}–{over.coverage_high * 100:.1f}"
    return Cell(percent(over.coverage), f"{over.intervals:,}", between)


def _named(lines: Sequence[Line], key: str) -> list[str]:
    return list(dict.fromkeys(line.group[key] for line in lines))


def families(summary: Summary) -> list[str]:
    """Families in the order of the floors, those without one last."""
    held = _named(summary.lines["pooled"], "family")
    titles = list(dict.fromkeys(floor.title for floor in FLOORS))
    title = {v.family: v.title for v in summary.verdicts}
    place = {name: titles.index(title[name]) if title.get(name) else len(titles) for name in held}
    return sorted(held, key=lambda name: (place[name], name))


def chips(summary: Summary) -> list[str]:
    """Ids of the chips, sorted."""
    return sorted(_named(summary.lines["chip"], "device"))


def floors(summary: Summary) -> Table:
    """One row a family and chip that a floor names: both errors against their floors."""
    verdicts = {(v.family, v.device, v.part): v for v in summary.verdicts}
    rows = []
    for family in families(summary):
        for chip in chips(summary):
            both = [verdicts.get((family, chip, part)) for part in ("fitted", "unseen")]
            first = next((v for v in both if v is not None), None)
            if first is None or (first.limit is None and first.n == 0):
                continue
            cells = [Cell(first.title or "no floor"), Cell(family), Cell(chip)]
            for v in both:
                if v is None:
                    cells.append(Cell(NOTHING))
                    continue
                limit = f"{v.standing}, ≤ {v.limit * 100:.0f} %" if v.limit is not None else v.standing
                standing = "missed" if v.standing == "missed" else ""
                text = percent(v.mape)
                cells.append(Cell(text, f"{v.n:,}" if v.n else "", limit, standing))
            rows.append(tuple(cells))
    return Table(("floor", "family", "chip", "fitted", "die never seen"), tuple(rows), labels=3)


def matrix(summary: Summary, part: str) -> Table:
    """MAPE of a part by family (rows) and chip (columns), held against the floors where there are any."""
    standing = {(v.family, v.device): v.standing for v in summary.verdicts if v.part == part}
    names, columns = families(summary), chips(summary)
    rows = []
    for family in names:
        cells = [Cell(family)]
        for chip in columns:
            found = summary.line("family", part, device=chip, family=family)
            mark = "missed" if standing.get((family, chip)) == "missed" else ""
            cells.append(error_cell(found.comparable if found else None, standing=mark))
        if any(cell.n for cell in cells):
            rows.append(tuple(cells))
    return Table(("family", *columns), tuple(rows))


def chip_table(summary: Summary, part: str) -> Table:
    """All figures of a part by chip, over comparable rows, the error over all rows beside them."""
    heads = ("chip", "MAPE", "median", "p90", "bias", "MAPE, all rows", "90 % intervals hold")
    return Table(heads, tuple(_figures(line) for line in summary.lines["chip"] if line.part == part))


def family_table(summary: Summary, part: str) -> Table:
    """The same by family, all chips together."""
    found = {line.group["family"]: line for line in summary.lines["pooled"] if line.part == part}
    heads = ("family", "MAPE", "median", "p90", "bias", "MAPE, all rows", "90 % intervals hold")
    return Table(heads, tuple(_figures(found[name]) for name in families(summary) if name in found))


def _figures(line: Line) -> tuple[Cell, ...]:
    over = line.comparable
    name = next(iter(line.group.values()))
    rest = (percent(over.median_ape), percent(over.p90_ape), signed(over.bias))
    refused = f"{over.refused:,} refused" if over.refused else ""
    return (
        Cell(name),
        error_cell(over, note=refused),
        *(Cell(text) for text in rest),
        error_cell(line.every),
        coverage_cell(over),
    )


def comparison(summary: Summary) -> Table:
    """The model beside the baselines, by family, all chips together; the least error of a row is marked."""
    shown = [p for p in PART_NAMES if p in (*summary.parts, *summary.baselines) and p != "operator_out"]
    rows = []
    for family in families(summary):
        over = {p: found.comparable for p in shown if (found := summary.line("pooled", p, family=family))}
        known = [a.mape for a in over.values() if a.n]
        if not known:
            continue
        rows.append((Cell(family), *(_against(over.get(p), min(known)) for p in shown)))
    return Table(("family", *(PART_NAMES[p] for p in shown)), tuple(rows))


def _against(over: Accuracy | None, least: float) -> Cell:
    return error_cell(over, standing="best" if over is not None and over.mape == least else "")


def operators_left_out(summary: Summary) -> Table:
    """Each family as predicted by fitted chips, and with the family's own parameters left out."""
    rows = []
    for family in families(summary):
        both = [summary.line("pooled", part, family=family) for part in ("fitted", "operator_out")]
        fitted, without = (line.comparable if line else None for line in both)
        if without is None or without.n == 0:
            continue
        rows.append((Cell(family), error_cell(fitted), error_cell(without), Cell(signed(without.bias))))
    return Table(("family", "fitted", PART_NAMES["operator_out"], "bias of the latter"), tuple(rows))


def regimes(summary: Summary, regime: str) -> Table:
    """Errors by one regime and family: fitted, and die never seen."""
    shown = [part for part in ("fitted", "unseen") if part in summary.parts]
    rows = []
    order = {name: i for i, name in enumerate(families(summary))}
    firsts = [line for line in summary.lines[regime] if line.part == shown[0]] if shown else []
    for first in sorted(firsts, key=lambda line: order[line.group["family"]]):
        found = [summary.line(regime, part, **first.group) for part in shown]
        overs = [line.comparable if line else None for line in found]
        if not any(over and over.n for over in overs):
            continue
        labels = (Cell(first.group["family"]), Cell(first.group[regime]))
        bias = Cell(signed(first.comparable.bias))
        rows.append((*labels, *(error_cell(over) for over in overs), bias))
    heads = ("family", regime, *(PART_NAMES[part] for part in shown), "bias")
    return Table(heads, tuple(rows), labels=2)


def kernels(summary: Summary) -> Table:
    """Errors by chip, family and kernel source, over comparable rows and over all."""
    part = "fitted" if "fitted" in summary.parts else next(iter(summary.parts), "")
    rows = [
        (
            *(Cell(line.group[key]) for key in ("device", "family", "kernel_source")),
            error_cell(line.comparable),
            error_cell(line.every),
        )
        for line in summary.lines["kernel"]
        if line.part == part
    ]
    heads = ("chip", "family", "kernel source", "MAPE", "MAPE, all rows")
    return Table(heads, tuple(rows), labels=3)


def shares(summary: Summary) -> Table:
    """Test rows by family, and how many are comparable, on the chip where they are fewest."""
    rows = []
    for family in families(summary):
        own = [s for s in summary.shares if s.family == family and s.test]
        if not own:
            continue
        test, equal = sum(s.test for s in own), sum(s.comparable for s in own)
        least = min(own, key=lambda s: s.comparable / s.test)
        rows.append(
            (
                Cell(family),
                Cell(f"{len(own)}"),
                Cell(f"{sum(s.rows for s in own):,}"),
                Cell(f"{test:,}"),
                Cell(percent(equal / test), f"{equal:,}"),
                Cell(percent(least.comparable / least.test), f"{least.comparable:,}", least.device),
            )
        )
    heads = ("family", "chips", "rows", "test rows", "comparable", "fewest comparable")
    return Table(heads, tuple(rows))


def reasons(summary: Summary) -> Table:
    """Why test rows were left out or refused, with their number."""
    counted: dict[tuple[str, str, str], int] = {}
    for r in summary.reasons:
        kind = r.kind if r.kind == "not comparable" else f"refused, {PART_NAMES[r.kind]}"
        key = (r.family, kind, r.reason)
        counted[key] = counted.get(key, 0) + r.rows
    rows = [(*(Cell(text) for text in key), Cell(f"{n:,}")) for key, n in sorted(counted.items())]
    return Table(("family", "standing", "reason", "rows (n)"), tuple(rows), labels=3)
