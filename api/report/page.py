"""The report as one HTML page and as Markdown, from the same content."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from foretile.report import figures, findings, units, why_figure
from foretile.report.against import against_leader
from foretile.report.collect import complete, totals
from foretile.report.grounds import CONFIDENCES, peak_flop_per_s, provenance
from foretile.report.suite import cases
from foretile.report.why_words import holds_words, sentences, why_words

if TYPE_CHECKING:
    from foretile.hwmodels import Chip, IncompleteChip
    from foretile.report.against import Against
    from foretile.report.suite import Phase, Point, Suite
    from foretile.report.why import Why

GLOSSARY = (
    (
        "interval",
        "The 90 % interval of a prediction: how far off the time may be, given how well the chip is known.",
    ),
    ("bound", "The engine or memory level with the most work; making anything else faster helps little."),
    ("matrix, vector, special", "Tensor cores (cube, MFMA); ordinary arithmetic; exponentials and the like."),
    ("scratchpad, L2, DRAM", "Memory of a core; the last on-chip cache; off-chip memory (HBM, GDDR)."),
    ("port", "The way from the L2 into one core."),
    ("feed, drain", "Copy engines into and out of a matrix or vector engine that has buffers of its own."),
    (
        "latency, launch",
        "No unit is busy most of the time: the kernel waits for single accesses, or is too short.",
    ),
    ("measured", "A number of the chip's description obtained by running something on it."),
    ("datasheet", "Stated by the vendor or in a paper."),
    ("derived", "Follows from measured or stated numbers."),
    ("inferred", "Taken over from a related chip or from experience: the least reliable kind."),
    (
        "prefill, decode",
        "Reading the prompt, all tokens at once; producing one more token for every sequence.",
    ),
    ("roofline", "The time no kernel can beat: its arithmetic at peak rate, or its bytes at peak bandwidth."),
)


@dataclass(frozen=True)
class Figure:
    """A drawing with its title and a caption that says what it shows."""

    title: str
    caption: str
    drawing: str


@dataclass(frozen=True)
class Content:
    """Everything a report says, independent of its form."""

    suite: Suite
    chips: Sequence[Chip]
    frame: pd.DataFrame
    total: pd.DataFrame
    findings: Sequence[findings.Finding]
    figures: Sequence[Figure]
    made: dict[str, str]
    why: Sequence[Why] = ()
    against: tuple[Against, ...] = ()
    incomplete: Sequence[IncompleteChip] = ()


def chip_hash(chip: Chip) -> str:
    """Twelve hex digits over all of a chip's numbers, sources and confidences."""
    text = json.dumps(chip.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def build(
    suite: Suite,
    chips: Sequence[Chip],
    frame: pd.DataFrame,
    why: Sequence[Why] = (),
    incomplete: Sequence[IncompleteChip] = (),
) -> Content:
    """Work out findings and figures of the predictions in ``frame``, with the analysis of pairs if given."""
    import foretile

    total = totals(frame)
    said = findings.findings(suite, frame, total, chips)
    return Content(
        suite=suite,
        chips=chips,
        frame=frame,
        total=total,
        findings=said,
        figures=_figures(suite, chips, frame, total),
        made={
            "version": foretile.__version__,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "python": platform.python_version(),
        },
        why=tuple(why),
        against=against_leader(suite, frame, total, chips),
        incomplete=incomplete,
    )


def _figures(suite: Suite, chips: Sequence[Chip], frame: pd.DataFrame, total: pd.DataFrame) -> list[Figure]:
    predicted = frame.dropna(subset=["time_s"])
    drawn: list[Figure] = []
    for phase in reversed(suite.phases):
        drawn.append(
            Figure(
                f"Where the time of a {phase.unit} goes",
                findings.stacked_caption(phase, frame, suite.groups)
                + " The number is the whole pass, the whisker its 90 % interval."
                + _left_out(total, phase),
                figures.stacked(predicted, total, phase, suite.groups),
            )
        )
    drawn.append(
        Figure(
            "Speed relative to the fastest chip",
            findings.heat_caption(predicted, suite.phases)
            + " 1 is the fastest chip of the row, .50 takes twice as long; rows by weight.",
            figures.heat_map(frame, total, suite.phases),
        )
    )
    for phase in reversed(suite.phases):
        drawn.append(
            Figure(
                f"{phase.title}: the heaviest operators, with intervals",
                findings.bound_caption(predicted, phase)
                + f" Time of one call at {figures.highlighted(phase).title}; colour: what bounds it.",
                figures.intervals(predicted, total, phase),
            )
        )
    dtype = suite.dtypes[0] if suite.dtypes else None
    peaks = {chip.id: peak for chip in chips if (peak := peak_flop_per_s(chip, dtype))}
    ranked = figures.ranking(total, suite.phases)
    drawn.append(
        Figure(
            "Operators under each chip's roof",
            findings.roof_caption(predicted, suite.phases)
            + (
                f" The {len(ranked[: figures.ROOFLINE_CHIPS])} fastest are shown." if len(ranked) > 12 else ""
            ),
            figures.rooflines(predicted, {c.id: c for c in chips}, peaks, suite.phases, suite.groups, ranked),
        )
    )
    return [figure for figure in drawn if figure.drawing]


def _left_out(total: pd.DataFrame, phase: Phase) -> str:
    here = total[(total["phase"] == phase.id) & (total["point"] == phase.highlight)]
    names = [str(chip) for chip in here[here["missing"] > 0]["chip"]]
    return f" Left out, because operators are missing: {', '.join(names)}." if names else ""


def _summary(content: Content) -> list[dict[str, Any]]:
    """One row a chip: the time of each pass beside the fastest chip's, and the grounds."""
    rows = []
    keys = zip(content.total["phase"], content.total["point"], content.total["chip"], strict=True)
    total = dict(zip(keys, content.total.to_dict("records"), strict=True))
    whole = complete(content.total)
    best = whole.groupby(["phase", "point"])["time_s"].min()
    units_of = {at: units.best_unit(fastest) for at, fastest in best.items()}
    for chip in content.chips:
        cells: list[dict[str, Any] | None] = []
        for phase, point in _points(content.suite):
            row = total[phase.id, point.id, chip.id]
            if row["missing"]:
                cells.append(None)
                continue
            cells.append(
                {
                    # One unit a column, so that its figures can be compared at a glance.
                    "time": units.seconds(row["time_s"], unit=units_of[phase.id, point.id]),
                    "interval": units.interval(
                        row["low_s"], row["high_s"], unit=units_of[phase.id, point.id]
                    ),
                    "ratio": row["time_s"] / best.loc[(phase.id, point.id)],
                }
            )
        rows.append({"chip": chip, "cells": cells, "grounds": provenance(chip)})
    ranked = figures.ranking(content.total, content.suite.phases)
    place = {chip: i for i, chip in enumerate(ranked)}
    return sorted(rows, key=lambda row: place.get(row["chip"].id, len(place)))


def _by_vendor(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of chips by vendor: the vendor of the fastest chip first, each vendor's fastest first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["chip"].vendor, []).append(row)
    return groups


def _why(found: Why) -> dict[str, Any]:
    """What the templates show of the analysis of a pair."""
    return {
        "pair": found,
        "figures": [
            Figure(
                "From which size on the winner changes",
                f"The ratio of times over sizes, by the cost model; below the dashed line {found.first} is "
                "faster. Black: the whole pass; the others: the operators that decide it.",
                why_figure.over_sizes(found),
            ),
            Figure(
                "What the inferred and unknown numbers do to the answer",
                "Each bar: the ratio of the passes while one number runs through the range given under its "
                "name (90 %, by its confidence or its fit; for an unknown one, what other chips have). The "
                "line is the prediction.",
                why_figure.of_numbers(found),
            ),
        ],
        "phases": [
            {
                "phase": phase,
                "sentences": sentences(found, phase),
                "rows": [
                    {"of": d, "words": why_words(found, d), "holds": holds_words(d)}
                    for d in found.of(phase.id)
                ],
            }
            for phase in found.phases
        ],
    }


def _points(suite: Suite) -> list[tuple[Phase, Point]]:
    return [(phase, point) for phase in suite.phases for point in phase.points]


def _rows(content: Content) -> list[dict[str, Any]]:
    """The full table, one dictionary a line."""
    titles = {
        (phase.id, point.id): f"{phase.title}, {point.title}" for phase, point in _points(content.suite)
    }
    found = []
    for record in content.frame.to_dict("records"):
        row: dict[str, Any] = {str(name): value for name, value in record.items()}
        row["pass_title"] = titles[row["phase"], row["point"]]
        row["missing"] = pd.isna(row["time_s"])
        found.append(row)
    return found


def environment() -> Environment:
    """Where the templates of reports are, and what they can call."""

    def load(name: str) -> str:
        return files("foretile.report").joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(load),
        autoescape=lambda name: bool(name and ".html" in name),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        seconds=units.seconds, percent=units.percent, ratio=units.ratio, flop_rate=units.flop_rate,
        byte_rate=units.byte_rate, size=units.size, us=lambda s: units.digits(s * 1e6, 4), cell=_cell,
    )  # fmt: skip
    return environment


def _cell(text: object) -> str:
    """Text that may stand in a cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|")


@cache
def asset(name: str) -> str:
    """A text file beside the templates."""
    return files("foretile.report").joinpath(name).read_text(encoding="utf-8")


def _context(content: Content) -> dict[str, Any]:
    suite = content.suite
    return {
        "suite": suite,
        "chips": content.chips,
        "incomplete": sorted(content.incomplete, key=lambda chip: (chip.vendor, chip.id)),
        "hashes": {chip.id: chip_hash(chip) for chip in content.chips},
        "peaks": {
            chip.id: peak_flop_per_s(chip, suite.dtypes[0] if suite.dtypes else None)
            for chip in content.chips
        },
        "provenance": {chip.id: provenance(chip) for chip in content.chips},
        "confidences": CONFIDENCES,
        "findings": content.findings,
        "figures": content.figures,
        "summary": (summary := _summary(content)),
        "vendors": _by_vendor(summary),
        "whys": [_why(pair) for pair in content.why],
        # Two chips whose difference is explained need no table of all.
        "against": content.against if len(content.chips) > 2 or not content.why else (),
        "points": _points(suite),
        "cases": cases(suite),
        "rows": _rows(content),
        "glossary": GLOSSARY,
        "made": content.made,
        "calls": len(cases(suite)),
    }


def _unbroken(text: str) -> str:
    """No line break between a number and its unit."""
    return re.sub(r"(?<=\d) (?=(?:%|s|ms|µs|ns)\b|%)", "\N{NO-BREAK SPACE}", text)


def html(content: Content) -> str:
    """The whole report as one page that needs nothing else."""
    context = _context(content) | {"style": Markup(asset("page.css"))}
    # The drawings are our own SVG; everything else is escaped.
    context["figures"] = [Figure(f.title, _unbroken(f.caption), Markup(f.drawing)) for f in content.figures]
    for why in context["whys"]:
        why["figures"] = [Figure(f.title, _unbroken(f.caption), Markup(f.drawing)) for f in why["figures"]]
    context["findings"] = [
        findings.Finding(_unbroken(f.lead), _unbroken(f.support)) for f in content.findings
    ]
    return environment().get_template("page.html.j2").render(context)


def markdown(content: Content) -> str:
    """The whole report, but for the figures, as Markdown."""
    return environment().get_template("page.md.j2").render(_context(content))
