"""Figures of the accuracy page: parity, residuals by time, errors by regime, coverage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foretile.calibration.accuracy_summary import Summary
from foretile.calibration.metrics import column
from foretile.report import style
from foretile.report.accuracy_tables import PART_NAMES, families

WIDTH, COLUMNS = 10.0, 4
_POINTS = 1500  # a panel: enough to see the cloud, few enough for a page
_SEED = 0  # the same rows give the same page
_RAMP = "blend:#eef3f7,#dba24a,#9b2d1f"  # small errors pale, large ones dark, in print too
_BANDS = (0.1, 0.25)  # relative errors shaded around zero
_TICKS_S = {1e-6: "1 µs", 1e-5: "10 µs", 1e-4: "100 µs", 1e-3: "1 ms", 1e-2: "10 ms", 1e-1: "100 ms"}


def _panels(count: int, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, 0.5 + rows * height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def _shown(rows: pd.DataFrame, part: str) -> pd.DataFrame:
    """Comparable rows that the part predicted, with ``predicted`` and ``ratio`` to the measured time."""
    chosen = rows[(rows["comparable"] == "") & rows[column(part)].notna()]
    predicted = chosen[column(part)]
    return chosen.assign(predicted=predicted, ratio=predicted / chosen["latency_s"])


def _edges(axes: Sequence[Axes], x: str, y: str) -> None:
    """Axis titles at the lower and left edge only."""
    columns = min(COLUMNS, len(axes))
    for position, ax in enumerate(axes):
        lowest = position + columns >= len(axes)
        ax.set(xlabel=x if lowest else "", ylabel=y if position % columns == 0 else "")


def _time_ticks(axis: Any, low: float, high: float) -> None:
    ticks = {t: name for t, name in _TICKS_S.items() if low <= t <= high}
    if len(ticks) > 3:  # every other decade: names must not touch
        ticks = {t: name for i, (t, name) in enumerate(ticks.items()) if i % 2 == 0}
    axis.set_ticks(list(ticks), list(ticks.values()))
    axis.set_minor_locator(mpl.ticker.NullLocator())


def _part_colours(parts: Sequence[str]) -> dict[str, str]:
    """By the part's name; the first and third of the palette are apart in print and for the colour-blind."""
    shades = list(style.colours("abc").values())[::2]
    return {PART_NAMES[part]: shades[i % len(shades)] for i, part in enumerate(parts)}


def parity(rows: pd.DataFrame, summary: Summary, part: str) -> str:
    """Predicted over measured time, both logarithmic: a panel a family, a colour a chip."""
    shown = _shown(rows, part)
    names = [name for name in families(summary) if (shown["family"] == name).any()]
    if not names:
        return ""
    palette = style.colours(sorted(shown["device"].astype(str).unique()))
    with mpl.rc_context(style.use()):
        figure, axes = _panels(len(names), 2.45)
        for ax, name in zip(axes, names, strict=True):
            own = shown[shown["family"] == name]
            some = own.sample(min(_POINTS, len(own)), random_state=_SEED)
            ends = np.array([own[["latency_s", "predicted"]].min().min() / 1.3,
                             own[["latency_s", "predicted"]].max().max() * 1.3])  # fmt: skip
            for band in _BANDS:
                ax.fill_between(
                    ends, ends * (1 - band), ends * (1 + band), color=style.RULE, alpha=0.45, linewidth=0
                )
            sns.scatterplot(
                data=some, x="latency_s", y="predicted", hue="device", palette=palette,
                s=4.5, linewidth=0, alpha=0.55, legend=False, ax=ax, rasterized=True,
            )  # fmt: skip
            ax.plot(ends, ends, color=style.SOFT, linewidth=0.8)
            ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, title=name, aspect="equal")
            for axis in (ax.xaxis, ax.yaxis):
                _time_ticks(axis, *ends)
            _note(ax, f"MAPE {np.abs(own['ratio'] - 1).mean() * 100:.1f} %\nn = {len(own):,}")
            ax.tick_params(length=0)
        _edges(axes, "measured", "predicted")
        style.legend(figure, list(palette), palette)
        return _drawn(figure, f"Predicted over measured time by family, {PART_NAMES[part]}")


def _note(ax: Axes, text: str) -> None:
    ax.text(0.04, 0.96, text, transform=ax.transAxes, va="top", fontsize=7.5, color=style.INK)


def residuals(rows: pd.DataFrame, summary: Summary, parts: Sequence[str]) -> str:
    """Relative error over measured time: median and the middle 80 % in bins of a third of a decade."""
    found = []
    for part in parts:
        shown = _shown(rows, part)
        bins = np.round(np.log10(shown["latency_s"]) * 3) / 3
        grouped = shown.assign(at=10.0**bins).groupby(["family", "at"], observed=True)["ratio"]
        spread = pd.DataFrame({share: grouped.quantile(share) for share in (0.1, 0.5, 0.9)})
        spread = spread[grouped.size() >= 10]  # fewer say nothing about tails
        found.append(spread.sub(1.0).mul(100.0).reset_index().assign(part=part))
    shown = pd.concat(found)
    names = [name for name in families(summary) if (shown["family"] == name).any()]
    if not names:
        return ""
    palette = _part_colours(parts)
    with mpl.rc_context(style.use()):
        figure, axes = _panels(len(names), 1.75, sharey=True)
        for ax, name in zip(axes, names, strict=True):
            ax.axhspan(-10, 10, color=style.RULE, alpha=0.45, linewidth=0)
            ax.axhline(0, color=style.SOFT, linewidth=0.8)
            for part in parts:
                own = shown[(shown["family"] == name) & (shown["part"] == part)]
                colour = palette[PART_NAMES[part]]
                sns.lineplot(data=own, x="at", y=0.5, color=colour, ax=ax, marker="o", ms=3.2, mew=0)
                ax.fill_between(own["at"], own[0.1], own[0.9], color=colour, alpha=0.16, linewidth=0)
            own = shown[shown["family"] == name]
            low, high = own["at"].min() / 1.6, own["at"].max() * 1.6
            ax.set(xscale="log", xlim=(low, high), ylim=(-60, 60), title=name)
            _time_ticks(ax.xaxis, low, high)
            ax.set_yticks([-50, -25, 0, 25, 50])
            ax.tick_params(length=0)
            ax.grid(visible=True, axis="y")
        _edges(axes, "measured", "error, %")
        style.legend(figure, list(palette), palette)
        return _drawn(figure, "Relative error over measured time by family")


def regime_map(summary: Summary, part: str) -> str:
    """MAPE by family (rows) and by time and bound (columns), with n."""
    from foretile.calibration.regimes import BOUNDS, SIZES

    names = families(summary)
    panels = {"measured time": ("size", SIZES), "higher roof": ("bound", BOUNDS)}
    grids = {}
    for title, (regime, labels) in panels.items():
        found = {
            (x.group["family"], x.group[regime]): x.comparable
            for x in summary.lines[regime]
            if x.part == part and x.comparable.n
        }
        errors = [[found[n, v].mape * 100 if (n, v) in found else np.nan for v in labels] for n in names]
        said = [
            [f"{found[n, v].mape * 100:.0f}\n{found[n, v].n:,}" if (n, v) in found else "" for v in labels]
            for n in names
        ]
        grids[title] = (pd.DataFrame(errors, names, list(labels)), np.array(said))
    names = [n for n in names if any(grid.loc[n].notna().any() for grid, _ in grids.values())]
    if not names:
        return ""
    with mpl.rc_context(style.use()):
        figure = Figure(figsize=(WIDTH, 0.9 + 0.36 * len(names)), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True, width_ratios=[len(labels) for _, labels in panels.values()])
        keep = [list(grids["measured time"][0].index).index(n) for n in names]
        for ax, (title, (grid, texts)) in zip(axes, grids.items(), strict=True):
            sns.heatmap(
                grid.iloc[keep],
                annot=texts[keep],
                fmt="",
                cmap=sns.color_palette(_RAMP, as_cmap=True),
                vmin=0,
                vmax=40,
                cbar=False,
                linewidths=1.2,
                linecolor=style.PAPER,
                annot_kws={"fontsize": 7, "linespacing": 1.15},
                ax=ax,
            )
            ax.set(title=title, xlabel="", ylabel="")
            ax.tick_params(length=0, axis="both", rotation=0)
            ax.tick_params(axis="x", labelsize=7.5)
        return _drawn(figure, f"MAPE by family, measured time and bound, {PART_NAMES[part]}")


def coverage(summary: Summary, parts: Sequence[str]) -> str:
    """Share of 90 % intervals that hold the measured time, by chip and by family, with 95 % bars."""
    panels = {
        "by chip": ("chip", "device", None),
        "by family": ("pooled", "family", families(summary)),
    }
    palette = _part_colours(parts)
    with mpl.rc_context(style.use()):
        count = max(len(summary.lines["chip"]), len(summary.lines["pooled"])) // max(
            1, len(summary.parts) + len(summary.baselines)
        )
        figure = Figure(figsize=(WIDTH, 0.8 + 0.24 * count), layout="constrained")
        axes = figure.subplots(1, 2, sharex=True)
        lows = [
            x.comparable.coverage_low * 100
            for grouping, _, _ in panels.values()
            for x in summary.lines[grouping]
            if x.part in parts and x.comparable.intervals
        ]
        if not lows:
            return ""
        left = max(0.0, 5 * (min(lows) // 5) - 2)
        for ax, (title, (grouping, key, order)) in zip(axes, panels.items(), strict=True):
            _coverage_panel(ax, summary, parts, palette, grouping, key, order)
            ax.axvspan(85, 96, color=style.RULE, alpha=0.45, linewidth=0)
            ax.axvline(90, color=style.SOFT, linewidth=0.8)
            ax.set(
                title=title, xlabel="intervals that hold the measured time, %", ylabel="", xlim=(left, 100.5)
            )
            style.tidy_axes(ax)
        style.legend(figure, list(palette), palette)
        return _drawn(figure, "Coverage of the 90 % intervals by chip and by family")


def _coverage_panel(
    ax: Axes,
    summary: Summary,
    parts: Sequence[str],
    palette: dict[str, str],
    grouping: str,
    key: str,
    order: Sequence[str] | None,
) -> None:
    lines = [x for x in summary.lines[grouping] if x.part in parts and x.comparable.intervals]
    names = list(order or sorted({x.group[key] for x in lines}))
    names = [name for name in names if any(x.group[key] == name for x in lines)]
    for number, part in enumerate(parts):
        own = {x.group[key]: x.comparable for x in lines if x.part == part}
        at = [i + (number - (len(parts) - 1) / 2) * 0.3 for i, name in enumerate(names) if name in own]
        over = [own[name] for name in names if name in own]
        if not over:
            continue
        share, low, high = (
            np.array([getattr(a, what) for a in over]) * 100
            for what in ("coverage", "coverage_low", "coverage_high")
        )
        # At a share of one the interval's end is one too, but for rounding.
        reach = [np.maximum(0.0, share - low), np.maximum(0.0, high - share)]
        ax.errorbar(
            share, at, xerr=reach, fmt="o", ms=4, mew=0, elinewidth=1.1,
            color=palette[PART_NAMES[part]],
        )  # fmt: skip
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)


def _drawn(figure: Figure, label: str) -> str:
    figure.set_dpi(200)  # of the clouds of points, which are pictures inside the drawing
    return style.svg(figure, label)
