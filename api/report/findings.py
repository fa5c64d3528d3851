"""What the numbers say, in sentences: who leads, by how much, why, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from foretile.report import units
from foretile.report.collect import complete
from foretile.report.grounds import provenance
from foretile.report.style import family

if TYPE_CHECKING:
    from foretile.hwmodels.schema import Chip
    from foretile.report.suite import Phase, Suite

_WHY = {
    "memory": "waiting for memory (DRAM or L2)",
    "compute": "limited by arithmetic",
    "on-chip": "limited by on-chip memories and copy engines",
    "latency": "limited by latency and launches",
}
_WORTH_NAMING = 0.02  # share of a pass below which an operator is no headline


@dataclass(frozen=True)
class Finding:
    """A short statement and its support."""

    lead: str
    support: str

    def __str__(self) -> str:
        return f"{self.lead} {self.support}".strip()


def findings(suite: Suite, frame: pd.DataFrame, total: pd.DataFrame, chips: Sequence[Chip]) -> list[Finding]:
    """The headline findings, decode and prefill first, doubts last."""
    said: list[Finding] = []
    for phase in reversed(suite.phases):  # a reader asks for decode first
        said += _leader(phase, frame, total)
    said += _shift(suite.phases, total)
    said += _doubt(total, chips)
    return said + _gaps(frame)


def _at(total: pd.DataFrame, phase: Phase, point: str) -> pd.DataFrame:
    here = complete(total)
    return here[(here["phase"] == phase.id) & (here["point"] == point)].sort_values("time_s")


def reason(frame: pd.DataFrame, phase: Phase, point: str, chip: str) -> tuple[str, float]:
    """The kind of bound that most of a pass's time has on a chip, and its share."""
    here = frame[(frame["phase"] == phase.id) & (frame["point"] == point) & (frame["chip"] == chip)]
    here = here.dropna(subset=["time_s"])
    share = here.groupby(here["bound"].map(family))["total_time_s"].sum() / here["total_time_s"].sum()
    return str(share.idxmax()), float(share.max())


def _leader(phase: Phase, frame: pd.DataFrame, total: pd.DataFrame) -> list[Finding]:
    here = _at(total, phase, phase.highlight)
    if here.empty:
        return []
    point = next(p for p in phase.points if p.id == phase.highlight)
    first = here.iloc[0]
    kind, share = reason(frame, phase, phase.highlight, first["chip"])
    time = f"{units.seconds(first['time_s'])} ({units.interval(first['low_s'], first['high_s'])})"
    if len(here) == 1:
        lead = f"{phase.title}: {time} on {first['chip']}, {point.title}."
        return [Finding(lead, f"{units.percent(share)} of it is in kernels {_WHY[kind]}.")]
    second, last = here.iloc[1], here.iloc[-1]
    lead = f"{phase.title}: {first['chip']} leads with {time}, {point.title}."
    support = f"That is {first['tokens_per_s']:,.0f} tokens a second. "
    support += f"{second['chip']} takes {units.ratio(second['time_s'] / first['time_s'])} as long"
    if len(here) > 2:
        support += f", {last['chip']} {units.ratio(last['time_s'] / first['time_s'])}"
    support += ". "
    if first["high_s"] >= second["low_s"]:
        support += "The intervals of the first two overlap, so their order is not certain. "
    support += f"On {first['chip']} {units.percent(share)} of the time is in kernels {_WHY[kind]}"
    other, other_share = reason(frame, phase, phase.highlight, second["chip"])
    if other != kind:
        support += f"; on {second['chip']} {units.percent(other_share)} is in kernels {_WHY[other]}"
    return [Finding(lead, support + ". " + _elsewhere(phase, total, str(first["chip"])))]


def _elsewhere(phase: Phase, total: pd.DataFrame, leader: str) -> str:
    others = [p for p in phase.points if p.id != phase.highlight]
    winners = {p.title: str(at.iloc[0]["chip"]) for p in others if not (at := _at(total, phase, p.id)).empty}
    if not winners:
        return ""
    differing: dict[str, list[str]] = {}
    for title, chip in winners.items():
        if chip != leader:
            differing.setdefault(chip, []).append(title)
    if not differing:
        return f"{leader} leads at every point shown."
    return " ".join(f"{chip} leads at {' and '.join(titles)}." for chip, titles in differing.items())


def _shift(phases: Sequence[Phase], total: pd.DataFrame) -> list[Finding]:
    """Chips whose standing differs most between the first and the last phase."""
    if len(phases) < 2:
        return []
    early, late = (
        (at := _at(total, phase, phase.highlight)).set_index("chip")["time_s"] / at["time_s"].min()
        for phase in (phases[0], phases[-1])
    )
    gain = (early / late).dropna().sort_values()
    if len(gain) < 3 or gain.iloc[-1] / gain.iloc[0] < 1.5:
        return []
    best, worst = str(gain.index[-1]), str(gain.index[0])
    names = phases[0].title.lower(), phases[-1].title.lower()
    return [
        Finding(
            f"The order depends on the phase: {best} does comparatively better at {names[1]}, "
            f"{worst} at {names[0]}.",
            f"Beside the fastest chip of each phase, {best} takes {units.ratio(early[best])} as long in "
            f"{names[0]} and {units.ratio(late[best])} in {names[1]}; {worst} {units.ratio(early[worst])} "
            f"and {units.ratio(late[worst])}.",
        )
    ]


def _doubt(total: pd.DataFrame, chips: Sequence[Chip]) -> list[Finding]:
    here = complete(total)
    if here.empty:
        return []
    width = (
        ((here["high_s"] - here["low_s"]) / (2 * here["time_s"])).groupby(here["chip"]).mean().sort_values()
    )
    unmeasured = [chip.id for chip in chips if provenance(chip).mark]
    lead = f"Typical uncertainty of a pass: ±{units.percent(float(width.median()))}."
    support = f"Least certain is {width.index[-1]} (±{units.percent(float(width.iloc[-1]))})"
    if len(width) > 1:
        support += f", most certain {width.index[0]} (±{units.percent(float(width.iloc[0]))})"
    support += ". "
    if unmeasured:
        count = f"{len(unmeasured)} of {len(chips)} chips"
        support += f"{count} are described by datasheets and inference only: {', '.join(unmeasured)}."
    else:
        support += "Every chip's description holds measured numbers."
    return [Finding(lead, support)]


def _gaps(frame: pd.DataFrame) -> list[Finding]:
    missing = frame[frame["time_s"].isna()]
    if missing.empty:
        return []
    names = ", ".join(dict.fromkeys(missing["chip"]))
    first = missing.iloc[0]
    return [
        Finding(
            f"No total for {names}:",
            f"{len(missing)} operator calls could not be predicted "
            f"(first: {first['title']}: {first['error']}).",
        )
    ]


def stacked_caption(phase: Phase, frame: pd.DataFrame, groups: Mapping[str, str]) -> str:
    """What the stacked bars show: the heaviest group, and how it moves from first to last point."""
    here = frame[frame["phase"] == phase.id].dropna(subset=["time_s"])
    grouped = here.groupby(["point", "chip", "group"], sort=False)["total_time_s"].sum()
    share = (
        (grouped / grouped.groupby(["point", "chip"]).transform("sum")).groupby(["point", "group"]).median()
    )
    first, last = phase.points[0], phase.points[-1]
    if len(phase.points) == 1:
        top = share[first.id].sort_values(ascending=False)
        named = [
            f"{groups[str(name)].lower()} ({units.percent(float(part))})"
            for name, part in top.head(2).items()
        ]
        return f"On the median chip most of a {phase.unit} goes to {' and '.join(named)}."
    moved = (share[last.id] - share[first.id]).sort_values()
    rising, falling = str(moved.index[-1]), str(moved.index[0])
    return (
        f"From {first.title} to {last.title}, the share of {groups[rising].lower()} in a {phase.unit} grows "
        f"{_from_to(share, first.id, last.id, rising)} on the median chip; that of {groups[falling].lower()} "
        f"shrinks {_from_to(share, first.id, last.id, falling)}."
    )


def _from_to(share: Any, first: str, last: str, group: str) -> str:
    start, end = float(share[first][group]), float(share[last][group])
    return f"from {units.percent(start)} to {units.percent(end)}"


def heat_caption(frame: pd.DataFrame, phases: Sequence[Phase]) -> str:
    """Which operator separates the chips most, which least."""
    here = pd.concat([frame[(frame["phase"] == p.id) & (frame["point"] == p.highlight)] for p in phases])
    part = here["total_time_s"] / here.groupby(["phase", "chip"])["total_time_s"].transform("sum")
    here = here[part.groupby([here["phase"], here["entry"]]).transform("mean") >= _WORTH_NAMING]
    spread = (
        here.groupby(["phase", "title"], sort=False)["time_s"].agg(lambda t: t.max() / t.min()).sort_values()
    )
    names = {p.id: p.title.lower() for p in phases}
    (low_phase, low), (high_phase, high) = spread.index[0], spread.index[-1]
    least, most = units.ratio(float(spread.iloc[0])), units.ratio(float(spread.iloc[-1]))
    return (
        f"Of the operators that matter, chips differ most in {high} ({names[high_phase]}: {most} from "
        f"fastest to slowest) and least in {low} ({names[low_phase]}: {least})."
    )


def bound_caption(frame: pd.DataFrame, phase: Phase) -> str:
    """How the time at the highlighted point splits by kind of bound, over all chips."""
    here = frame[(frame["phase"] == phase.id) & (frame["point"] == phase.highlight)].dropna(subset=["time_s"])
    part = here["total_time_s"] / here.groupby("chip")["total_time_s"].transform("sum")
    share = (part.groupby(here["bound"].map(family)).sum() / here["chip"].nunique()).sort_values(
        ascending=False
    )
    words = [f"{units.percent(float(v))} {_WHY[str(k)]}" for k, v in share.items() if v >= 0.005]
    return f"Of the time of a {phase.unit}, averaged over the chips: {'; '.join(words)}."


def roof_caption(frame: pd.DataFrame, phases: Sequence[Phase]) -> str:
    """How close the operators come to the roof, by phase, weighted by time."""
    words = []
    for phase in phases:
        here = frame[(frame["phase"] == phase.id) & (frame["point"] == phase.highlight)]
        here = here.dropna(subset=["time_s"])
        best = here[["of_flop_peak", "of_dram_peak"]].astype(float).max(axis=1)
        mean = float((best * here["total_time_s"]).sum() / here["total_time_s"].sum())
        words.append(f"{phase.title.lower()} {units.percent(mean)}")
    return (
        "Share of the nearer roof (peak arithmetic or peak DRAM rate) that is reached, weighted by time over "
        f"all chips: {', '.join(words)}."
    )
