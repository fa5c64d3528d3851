"""Figures about a pair of chips: the ratio of their times over sizes, and what uncertain numbers do to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from foretile.report import style, units
from foretile.report.sweep import PASS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from foretile.report.suite import Phase
    from foretile.report.why import Why

_LINES = 5  # operators beside the pass in a panel
_BARS = 8  # numbers in a panel
_TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


def over_sizes(found: Why) -> str:
    """A panel a variable: how much faster the second chip is, for the pass and its heaviest operators."""
    panels = [(p, s.variable) for p in found.phases for s in found.passes(p.id)]
    if not panels:
        return ""
    with mpl.rc_context(style.use()):
        figure = Figure(figsize=(10.0, 3.9), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, (phase, variable) in zip(axes, panels, strict=True):
            _sizes(ax, found, phase, variable)
        axes[0].set_ylabel(f"time on {found.first} / on {found.second}")
        return style.svg(figure, f"Ratio of times of {found.first} and {found.second} over sizes")


def _sizes(ax: Axes, found: Why, phase: Phase, variable: str) -> None:
    of = {s.entry: s for s in found.sweeps if (s.phase, s.variable) == (phase.id, variable)}
    heavy = [d for d in found.of(phase.id) if d.entry in of][:_LINES]
    names = {PASS: f"whole {phase.unit}"} | {d.entry: d.title for d in heavy}
    rows = [
        {"size": size, "ratio": 1 / ratio, "of": names[entry]}
        for entry in names
        for size, ratio in of[entry].ratios.items()
    ]
    palette = {names[PASS]: style.INK} | style.colours(d.title for d in heavy)
    sns.lineplot(
        pd.DataFrame(rows), x="size", y="ratio", hue="of", hue_order=list(palette), palette=palette, ax=ax,
        linewidth=1.5, marker="o", markersize=3.5, markeredgewidth=0,
    )  # fmt: skip
    ax.axhline(1.0, color=style.SOFT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    ax.set(xscale="log", yscale="log", xlabel=variable, ylabel="")
    ax.set_title(f"{phase.title}, by {variable}")
    sizes = list(of[PASS].ratios)
    ax.set_xticks(sizes[::2], [f"{n:,}" for n in sizes[::2]], rotation=30, ha="right", rotation_mode="anchor")
    low, high = ax.get_ylim()
    _ratio_ticks(ax, low, high)
    ax.minorticks_off()
    ax.grid(visible=True)
    ax.tick_params(length=0)
    ax.legend(title=None, fontsize=7.5, loc="best", handlelength=1.2)


def _ratio_ticks(ax: Axes, low: float, high: float) -> None:
    ticks = [t for t in _TICKS if low / 1.001 <= t <= high * 1.001]
    ax.set_yticks(ticks, [f"{t:g}×" for t in ticks])


def of_numbers(found: Why) -> str:
    """A panel a phase: the range of the ratio while one uncertain number moves through its own range."""
    phases = [p for p in found.phases if p.id in found.verdicts and found.verdicts[p.id].influences]
    if not phases:
        return ""
    with mpl.rc_context(style.use()):
        most = max(len(found.verdicts[p.id].influences[:_BARS]) for p in phases)
        figure = Figure(figsize=(10.0, 1.1 + 0.34 * most), layout="constrained")
        for ax, phase in zip(figure.subplots(1, len(phases), squeeze=False)[0], phases, strict=True):
            _numbers(ax, found, phase)
        chips = (found.first, found.second)
        style.legend(figure, chips, style.colours(chips))
        return style.svg(figure, f"What uncertain numbers do to {found.first} against {found.second}")


def _numbers(ax: Axes, found: Why, phase: Phase) -> None:
    verdict = found.verdicts[phase.id]
    shown = verdict.influences[:_BARS]
    chips = (found.first, found.second)
    palette = style.colours(chips)
    ends = pd.DataFrame(
        [
            {"number": f"{i.number.path}\n{i.number.range()}", "ratio": 1 / end, "chip": i.number.chip}
            for i in shown
            for end in (i.at_low, i.at_high)
        ]
    )
    rows = np.arange(len(shown))
    low = np.array([min(1 / i.at_low, 1 / i.at_high) for i in shown])
    high = np.array([max(1 / i.at_low, 1 / i.at_high) for i in shown])
    ax.hlines(rows, low, high, colors=[palette[i.number.chip] for i in shown], linewidth=4, alpha=0.45)
    sns.scatterplot(
        ends, x="ratio", y="number", hue="chip", palette=palette, s=22, linewidth=0, ax=ax, legend=False
    )
    ax.axvline(1 / verdict.ratio, color=style.INK, linewidth=0.9, zorder=1)
    first, last = min(low.min(), 1 / verdict.ratio), max(high.max(), 1 / verdict.ratio)
    room = max(1.03, (last / first) ** 0.08)
    first, last = first / room, last * room
    if first / 1.1 < 1 < last * 1.1:  # the line that decides, where it is near
        first, last = min(first, 1 / 1.02), max(last, 1.02)
        ax.axvline(1.0, color=style.SOFT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    ax.set(xscale="log", xlim=(first, last), ylim=(len(shown) - 0.5, -0.5), ylabel="")
    ticks = list(_nice(first, last))
    ax.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    ax.set_xlabel(f"time on {found.first} / on {found.second}")
    ax.set_title(f"{phase.title} ({units.ratio(1 / verdict.ratio)})")
    for label in ax.get_yticklabels():
        label.set_fontsize(7.2)
    style.tidy_axes(ax)


def _nice(low: float, high: float) -> Sequence[float]:
    """Three to seven round ticks between two ratios."""
    step = 10.0 ** math.floor(math.log10(high - low))
    for size in (step / 5, step / 2, step, 2 * step, 5 * step):
        ticks = np.arange(math.ceil(low / size), math.floor(high / size) + 1) * size
        if len(ticks) <= 6:
            return [float(f"{t:.6g}") for t in ticks]
    return [low, high]
