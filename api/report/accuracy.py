"""The accuracy page: a validation's floors, figures and tables as one HTML, and docs/accuracy.md."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from foretile.calibration.floors import COVERAGE, FLOORS
from foretile.calibration.sources.comparable import RULES
from foretile.report import accuracy_tables as tables
from foretile.report import published as published_tables
from foretile.report import tile_programs
from foretile.report.output import write_all
from foretile.report.page import Figure, asset, environment

if TYPE_CHECKING:
    from jinja2 import Environment

    from foretile.calibration.accuracy_summary import Summary
    from foretile.calibration.device.accuracy import DeviceAccuracy
    from foretile.calibration.published import Reproduction
    from foretile.calibration.validate import Validation

PAGE = "accuracy.html"
REGIME_TITLES = {
    "size": "measured time",
    "aspect": "aspect of the shape",
    "dtype": "types",
    "bound": "higher roof",
}


def write_page(
    validation: Validation,
    folder: Path,
    published: Sequence[Reproduction] = (),
    devices: Sequence[DeviceAccuracy] | None = None,
) -> Path:
    """Write ``accuracy.html`` into ``folder``, with published measurements and those on devices if given.

    Raises:
        OutputError: it cannot be written.
    """
    path = folder / PAGE
    write_all({path: html(validation, published, devices)})
    return path


def html(
    validation: Validation,
    published: Sequence[Reproduction] = (),
    devices: Sequence[DeviceAccuracy] | None = None,
) -> str:
    """The page: one document that needs nothing else."""
    import foretile

    summary = validation.summary
    context = _context(summary, published, devices) | {
        "figures": _figures(validation),
        "style": Markup(asset("page.css")),
        "version": foretile.__version__,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }
    return _environment().get_template("accuracy.html.j2").render(context)


def markdown(
    summary: Summary,
    parameters: str = "",
    published: Sequence[Reproduction] = (),
    devices: Sequence[DeviceAccuracy] | None = None,
) -> str:
    """docs/accuracy.md: the same tables, the rules for comparable rows, the fitted parameters.

    ``parameters``: a Markdown table of them. The same summary gives the same text.
    """
    context = _context(summary, published, devices) | {"parameters": parameters.strip()}
    return _environment().get_template("accuracy.md.j2").render(context).strip() + "\n"


def parameters_markdown() -> str:
    """The table of the fitted parameters (meaning, unit, range), from the calibration."""
    from foretile.calibration.parameters import parameters_markdown as table

    return table()


def _environment() -> Environment:
    made = environment()
    made.globals["names"] = tables.PART_NAMES
    return made


def _context(
    summary: Summary, published: Sequence[Reproduction], devices: Sequence[DeviceAccuracy] | None
) -> dict[str, Any]:
    by_part = {
        part: {"chips": tables.chip_table(summary, part), "families": tables.family_table(summary, part)}
        for part in summary.parts
        if part != "operator_out"
    }
    return {
        "summary": summary,
        "lead": lead(summary),
        "meanings": {p: tables.PART_MEANINGS[p] for p in (*summary.parts, *summary.baselines)},
        "floors": tables.floors(summary),
        "matrices": {p: tables.matrix(summary, p) for p in summary.parts},
        "by_part": by_part,
        "comparison": tables.comparison(summary),
        "left_out": tables.operators_left_out(summary),
        "regimes": {title: tables.regimes(summary, name) for name, title in REGIME_TITLES.items()},
        "kernels": tables.kernels(summary),
        "shares": tables.shares(summary),
        "reasons": tables.reasons(summary),
        "rules": rules(),
        "test_rows": sum(share.test for share in summary.shares),
        "comparable_rows": sum(share.comparable for share in summary.shares),
        "chips": tables.chips(summary),
        "families": tables.families(summary),
        "coverage_limits": COVERAGE,
        "floor_count": len(FLOORS),
        "published": published_tables.table(published) if published else None,
        "published_words": published_tables.words(published) if published else (),
        "tile_words": tile_programs.words(devices) if devices is not None else "",
        "tile_programs": tile_programs.table(devices) if devices else None,
        "tile_rows": [(held.chip, held.table, tile_programs.every_row(held)) for held in devices or ()],
    }


def lead(summary: Summary) -> list[tuple[str, str]]:
    """The few sentences that matter: floors met and missed, coverage; each with what it counts."""
    said = []
    if summary.unfitted and "fitted" in summary.parts:
        support = "What is called fitted below is, for these, the chip file as it stands."
        said.append((f"Not fitted: {', '.join(summary.unfitted)}.", support))
    for part in ("fitted", "unseen"):
        held = [v for v in summary.verdicts if v.part == part and v.standing in ("met", "missed")]
        if not held:
            continue
        met = [v for v in held if v.standing == "met"]
        missed = sorted(
            (v for v in held if v.standing == "missed"), key=lambda v: -(v.mape / (v.limit or 1.0))
        )
        worst = "; ".join(
            f"{v.family} on {v.device}: {tables.percent(v.mape)} over {tables.percent(v.limit or 0.0)} "
            f"(n = {v.n:,})"
            for v in missed[:3]
        )
        support = f"Missed by most: {worst}." if missed else "None is missed."
        name = tables.PART_NAMES[part]
        said.append((f"{len(met)} of {len(held)} floors met, {name}.", support))
    for part in ("fitted", "unseen"):
        low, high = COVERAGE[part]
        over = [x for x in summary.lines["chip"] if x.part == part and x.comparable.intervals]
        if not over:
            continue
        within = sum(low <= x.comparable.coverage <= high for x in over)
        rows = sum(x.comparable.intervals for x in over)
        target = f"{low * 100:.0f} to {high * 100:.0f} %" if high < 1 else f"at least {low * 100:.0f} %"
        said.append(
            (
                f"90 % intervals hold {target} of the times on {within} of {len(over)} chips, "
                f"{tables.PART_NAMES[part]}.",
                f"{rows:,} test rows.",
            )
        )
    return said


def rules() -> tables.Table:
    """The rules by which rows are not comparable: operator, kernel source and the reason."""
    rows = tuple(
        (
            tables.Cell(rule.operators.replace(" ", ", ")),
            tables.Cell("any" if rule.kernels == "*" else rule.kernels.replace(" ", ", ")),
            tables.Cell(rule.reason),
        )
        for rule in RULES
    )
    return tables.Table(("operator", "kernel source", "why the row measures something else"), rows, labels=3)


def _figures(validation: Validation) -> dict[str, list[Figure]]:
    from foretile.report import accuracy_figures as draw

    rows, summary = validation.rows, validation.summary
    both = [part for part in ("fitted", "unseen") if part in summary.parts]
    names = tables.PART_NAMES
    parity = [
        Figure(
            f"Predicted and measured time, {names[part]}",
            "Comparable test rows, at most 1,500 points a panel; MAPE and n of all of them. "
            "Shaded: within 10 % and 25 %.",
            draw.parity(rows, summary, part),
        )
        for part in both
    ]
    by_time = Figure(
        "Where errors lean, by measured time",
        "Median error, and the middle 80 % of rows as a band, in bins of a third of a decade with at least "
        "ten rows; above zero predictions are too long. Shaded: within 10 %.",
        draw.residuals(rows, summary, both) if both else "",
    )
    maps = [
        Figure(
            f"Error by regime, {names[part]}",
            "MAPE in per cent, and n below it. Left by measured time; right by which roof is higher by more "
            "than a factor of two.",
            draw.regime_map(summary, part),
        )
        for part in both
    ]
    covered = Figure(
        "Do the 90 % intervals hold?",
        "Share of comparable test rows whose measured time lies in the interval; bars: 95 % confidence. "
        "Shaded: the aim of 85 to 96 %.",
        draw.coverage(summary, both) if both else "",
    )
    groups: dict[str, Sequence[Figure]] = {
        "parity": parity,
        "residuals": [by_time],
        "regimes": maps,
        "coverage": [covered],
    }
    return {
        key: [Figure(f.title, f.caption, Markup(f.drawing)) for f in some if f.drawing]
        for key, some in groups.items()
    }
