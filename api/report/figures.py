"""The report's figures, each one function from the tidy table to an SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from foretile.report import style, units
from foretile.report.collect import complete

if TYPE_CHECKING:
    from foretile.hwmodels.schema import Chip
    from foretile.report.suite import Phase, Point

WIDTH = 10.0  # inches; the page scales figures to its column
ROOFLINE_CHIPS = 12  # small multiples that still can be read


def _figure(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    # Without pyplot: no window system is asked for, and nothing outlives the report.
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def order(total: pd.DataFrame, phase: Phase) -> list[str]:
    """Chips of a phase, fastest first at the highlighted point; incomplete ones are left out."""
    at = complete(total)
    at = at[(at["phase"] == phase.id) & (at["point"] == phase.highlight)]
    return [str(chip) for chip in at.sort_values("time_s")["chip"]]


def ranking(total: pd.DataFrame, phases: Sequence[Phase]) -> list[str]:
    """Chips by the last phase; those that cannot complete it follow by the phases before."""
    return list(dict.fromkeys(chip for phase in reversed(phases) for chip in order(total, phase)))


def stacked(frame: pd.DataFrame, total: pd.DataFrame, phase: Phase, groups: Mapping[str, str]) -> str:
    """Where one pass goes on each chip: a panel a point, a bar a chip, a colour a group."""
    chips = order(total, phase)
    if not chips:
        return ""
    palette = style.colours(groups.values())
    here = frame[(frame["phase"] == phase.id) & frame["chip"].isin(chips)]
    parts = here.groupby(["point", "chip", "group"], sort=False)["total_time_s"].sum().reset_index()
    parts["part"] = parts["group"].map(dict(groups))
    parts["chip"] = pd.Categorical(parts["chip"], chips)
    with mpl.rc_context(style.use()):
        figure, axes = _figure(1, len(phase.points), 0.95 + 0.27 * len(chips), sharey=True)
        for ax, point in zip(axes[0], phase.points, strict=True):
            at = total[(total["phase"] == phase.id) & (total["point"] == point.id)].set_index("chip")
            scale, unit = _unit(float(at.loc[chips, "time_s"].max()))
            sns.histplot(
                data=parts[parts["point"] == point.id].eval(f"value = total_time_s / {scale}"),
                y="chip", weights="value", hue="part", hue_order=list(groups.values())[::-1],
                palette=palette, multiple="stack", discrete=True, shrink=0.72, alpha=1,
                linewidth=0.5, edgecolor=style.PAPER, legend=False, ax=ax,
            )  # fmt: skip
            time = at.loc[chips, "time_s"].to_numpy() / scale
            low, high = (at.loc[chips, c].to_numpy() / scale for c in ("low_s", "high_s"))
            rows = np.arange(len(chips))
            ax.errorbar(
                time,
                rows,
                xerr=[time - low, high - time],
                fmt="none",
                ecolor=style.INK,
                elinewidth=0.9,
                capsize=2,
            )
            for row, (value, end) in enumerate(zip(time, high, strict=True)):
                ax.annotate(
                    units.digits(value),
                    (end, row),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
            ax.set(title=point.title, xlabel=unit, ylabel="", xlim=(0, float(high.max()) * 1.24))
            style.tidy_axes(ax)
        figure.set_layout_engine("constrained", wspace=0.04)
        style.legend(figure, list(groups.values()), palette)
        return style.svg(figure, f"{phase.title}: time by chip and operator group")


def _unit(seconds: float) -> tuple[float, str]:
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= scale:
            return scale, unit
    return 1e-9, "ns"


def heat_map(frame: pd.DataFrame, total: pd.DataFrame, phases: Sequence[Phase]) -> str:
    """Speed relative to the fastest chip, operator by chip, at each phase's highlighted point."""
    blocks = []
    for phase in phases:
        here = frame[(frame["phase"] == phase.id) & (frame["point"] == phase.highlight)]
        grid = here.pivot_table(index="entry", columns="chip", values="time_s", sort=False, dropna=False)
        share = here.groupby("entry", sort=False)["total_time_s"].mean()
        blocks.append(grid.loc[share.sort_values(ascending=False).index].rename(index=_titles(here)))
    columns = ranking(total, phases)
    columns += [c for block in blocks for c in block.columns if c not in columns]
    columns = list(dict.fromkeys(columns))
    with mpl.rc_context(style.use()):
        heights = [len(block) for block in blocks]
        figure, axes = _figure(
            len(blocks), 1, 1.1 + 0.235 * sum(heights) + 0.3 * len(blocks),
            gridspec_kw={"height_ratios": heights}, sharex=True,
        )  # fmt: skip
        for ax, block, phase in zip(axes[:, 0], blocks, phases, strict=True):
            times = block.reindex(columns=columns)
            speed = times.rdiv(times.min(axis=1), axis=0)
            sns.heatmap(
                speed, ax=ax, cmap="crest", norm=LogNorm(0.1, 1.0), annot=speed.map(_share), fmt="",
                cbar=False, linewidths=1.2, linecolor=style.PAPER, annot_kws={"fontsize": 7.5},
            )  # fmt: skip
            for row, column in np.argwhere(times.isna().to_numpy()):
                ax.text(column + 0.5, row + 0.5, "–", ha="center", va="center", color=style.SOFT)
            ax.set(title=f"{phase.title}, {highlighted(phase).title}", xlabel="", ylabel="")
            ax.tick_params(length=0)
            ax.tick_params(axis="y", rotation=0)
        last = axes[-1, 0]
        last.set_xticks(
            last.get_xticks(), last.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor"
        )
        last.tick_params(axis="x", colors=style.INK)
        return style.svg(figure, "Speed relative to the fastest chip, by operator and chip")


def _share(value: float) -> str:
    return "1" if value > 0.995 else f"{value:.2f}".lstrip("0")


def highlighted(phase: Phase) -> Point:
    """The point of a phase that single-point figures and findings use."""
    return next(point for point in phase.points if point.id == phase.highlight)


def _titles(here: pd.DataFrame) -> dict[str, str]:
    return dict(zip(here["entry"], here["title"], strict=True))


def intervals(frame: pd.DataFrame, total: pd.DataFrame, phase: Phase, panels: int = 6) -> str:
    """Time with its interval for the operators that weigh most, coloured by what bounds them."""
    chips = order(total, phase)
    here = frame[
        (frame["phase"] == phase.id) & (frame["point"] == phase.highlight) & frame["chip"].isin(chips)
    ]
    if here.empty:
        return ""
    share = here["total_time_s"] / here.groupby("chip")["total_time_s"].transform("sum")
    heaviest = share.groupby(here["entry"]).mean().sort_values(ascending=False).index[:panels]
    titles = _titles(here)
    palette = style.family_colours()
    columns = min(3, len(heaviest))
    rows = -(-len(heaviest) // columns)
    with mpl.rc_context(style.use()):
        figure, axes = _figure(rows, columns, 0.6 + rows * (0.75 + 0.2 * len(chips)), sharey=True)
        kinds: set[str] = set()
        for ax, entry in zip(axes.flat, heaviest, strict=False):
            data = here[here["entry"] == entry].set_index("chip").reindex(chips).reset_index()
            scale, unit = _unit(float(data["time_s"].median()))
            at = np.arange(len(chips))
            time, low, high = (data[c].to_numpy() / scale for c in ("time_s", "low_s", "high_s"))
            kind = data["bound"].map(style.family, na_action="ignore")
            kinds.update(kind.dropna())
            ax.hlines(
                at, low, high, colors=[palette.get(k, style.SOFT) for k in kind], linewidth=3.2, alpha=0.35
            )
            sns.scatterplot(
                x=time, y=at, hue=kind, palette=palette, s=30, linewidth=0, legend=False, ax=ax, zorder=3
            )
            ax.set(
                title=titles[str(entry)], xlabel=unit, ylabel="", xscale="log", ylim=(len(chips) - 0.4, -0.6)
            )
            ax.set_yticks(at, chips)
            _plain_log_ticks(ax, low, high)
            style.tidy_axes(ax)
        for ax in list(axes.flat)[len(heaviest) :]:
            ax.set_visible(False)
        style.legend(figure, [k for k in palette if k in kinds], palette)
        return style.svg(figure, f"{phase.title}: predicted time with interval, by operator and chip")


def _plain_log_ticks(ax: Any, low: np.ndarray, high: np.ndarray) -> None:
    """Few round labels on a log axis: 1, 2, 5, 10 …"""
    first, last = float(np.nanmin(low)) / 1.25, float(np.nanmax(high)) * 1.25
    ax.set_xlim(first, last)
    steps = (1, 2, 5) if last / first < 60 else (1,)
    exponents = range(int(np.floor(np.log10(first))), int(np.ceil(np.log10(last))) + 1)
    ticks = [s * 10.0**e for e in exponents for s in steps if first <= s * 10.0**e <= last]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())


def rooflines(
    frame: pd.DataFrame,
    chips: Mapping[str, Chip],
    peaks: Mapping[str, float],
    phases: Sequence[Phase],
    groups: Mapping[str, str],
    ranked: Sequence[str],
) -> str:
    """Operators under the roof of each chip: achieved FLOP/s over FLOP a byte of DRAM traffic."""
    shown = [c for c in ranked if c in peaks][:ROOFLINE_CHIPS]
    if not shown:
        return ""
    palette = style.colours(groups.values())
    selected = pd.concat(
        [
            frame[(frame["phase"] == p.id) & (frame["point"] == p.highlight)].assign(pass_=p.title)
            for p in phases
        ]
    )
    selected = selected[selected["flops"] > 0].assign(
        intensity=lambda d: d["flops"] / d["dram_bytes"], part=lambda d: d["group"].map(dict(groups))
    )
    markers = dict(zip((p.title for p in phases), ("o", "D", "s", "^") * len(phases), strict=False))
    columns = next((c for c in (5, 4, 3) if len(shown) % c == 0 or len(shown) < c), 4)
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    x = np.logspace(-1, 4, 60)
    with mpl.rc_context(style.use()):
        figure, axes = _figure(
            rows,
            columns,
            0.5 + (8.6 / columns + 0.35) * rows if columns > 2 else 3.4 * rows,
            sharex=True,
            sharey=True,
        )
        for ax, chip in zip(axes.flat, shown, strict=False):
            bandwidth = chips[chip].dram.bandwidth_bytes_per_s.value
            ax.plot(x, np.minimum(x * bandwidth, peaks[chip]) / 1e12, color=style.SOFT, linewidth=1.1)
            sns.scatterplot(
                data=selected[selected["chip"] == chip].assign(rate=lambda d: d["flop_per_s"] / 1e12),
                x="intensity", y="rate", hue="part", palette=palette, style="pass_", markers=markers,
                s=26, linewidth=0.3, edgecolor=style.PAPER, legend=False, ax=ax,
            )  # fmt: skip
            ax.set(xscale="log", yscale="log", title=chip, xlabel="FLOP per DRAM byte", ylabel="TFLOP/s")
            ax.set(xlim=(0.1, 1e4), ylim=(0.01, 4e3))
            ax.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1k"])
            ax.set_yticks([0.01, 0.1, 1, 10, 100, 1000], ["0.01", "0.1", "1", "10", "100", "1k"])
            ax.minorticks_off()
            ax.grid(visible=True)
            ax.tick_params(length=0)
        for position, ax in enumerate(axes.flat):
            lowest = position + columns >= len(shown)  # nothing is drawn below it
            ax.tick_params(labelbottom=lowest, labelleft=position % columns == 0)
            ax.set(
                xlabel=ax.get_xlabel() if lowest else "",
                ylabel=ax.get_ylabel() if position % columns == 0 else "",
            )
            if position >= len(shown):
                ax.remove()
        style.legend(figure, list(groups.values()), palette)
        shapes = ", ".join(
            f"{ {'o': '●', 'D': '◆', 's': '■', '^': '▲'}[m] } {name}" for name, m in markers.items()
        )
        figure.text(0.995, 1.0, shapes, ha="right", va="bottom", fontsize=8.5, color=style.SOFT)
        return style.svg(figure, "Roofline of each chip with the operators' achieved rates")
