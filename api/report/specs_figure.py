"""The figure of a comparison of chips: their roofs, and each spec as a ratio to the first chip."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from foretile.report import style
from foretile.report.specs import Spec, sixteen_bit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from foretile.hwmodels.schema import Chip

_INTENSITY = (0.3, 3000.0)  # FLOP a byte: from element-wise code to large products


def _figure(chips: Sequence[Chip], lines: Sequence[Spec]) -> Figure:
    compared = [line for line in lines if line.better and _known(line)]
    height = max(4.2, 0.9 + 0.24 * len(compared) + 0.2 * len({line.group for line in compared}))
    figure = Figure(figsize=(10.0, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.15))
    palette = style.colours(chip.id for chip in chips)
    _roofs(left, chips, palette)
    _ratios(right, chips, compared, palette)
    style.legend(figure, [chip.id for chip in chips], palette, y=1.005)
    return figure


def _known(line: Spec) -> bool:
    """Whether there is a ratio to show: the first chip's value and another's."""
    return sum(r is not None for r in line.ratios) > 1


def _roofs(ax: Axes, chips: Sequence[Chip], palette: dict[str, str]) -> None:
    x = np.geomspace(*_INTENSITY, 200)
    roofs = []
    for chip in chips:
        rate = chip.matrix.flop_per_cycle.get(sixteen_bit(chip))
        if rate is None:
            continue
        peak = chip.cores.value * rate.value * chip.clock.max_hz.value
        bandwidth = chip.dram.bandwidth_bytes_per_s.value
        roofs.append(pd.DataFrame({"x": x, "y": np.minimum(x * bandwidth, peak) / 1e12, "chip": chip.id}))
        ax.plot([peak / bandwidth], [peak / 1e12], "o", color=palette[chip.id], markersize=4)
    if roofs:
        sns.lineplot(
            pd.concat(roofs), x="x", y="y", hue="chip", palette=palette, ax=ax, legend=False, linewidth=1.8
        )
    ax.set(xscale="log", yscale="log", xlabel="FLOP per DRAM byte", ylabel="TFLOP/s")
    ax.set_title("Roofs, 16-bit matrix work (dot: ridge point)")
    ax.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1k"])
    low, high = ax.get_ylim()
    ticks = [10.0**e for e in range(-3, 6) if low <= 10.0**e <= high]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.grid(visible=True)
    ax.tick_params(length=0)


def _ratios(ax: Axes, chips: Sequence[Chip], lines: Sequence[Spec], palette: dict[str, str]) -> None:
    rows = pd.DataFrame(
        [
            # Where less is better the ratio is turned over, so that right of the line is always faster.
            {"spec": line.name, "ratio": 1 / r if line.better == "less" else r, "chip": chip.id}
            for line in lines
            for chip, r in list(zip(chips, line.ratios, strict=True))[1:]
            if r is not None
        ]
    )
    ax.set_title(f"Times {chips[0].id}'s (right: better)")
    if rows.empty:
        return
    rows["spec"] = pd.Categorical(rows["spec"], [line.name for line in lines])
    sns.scatterplot(
        rows,
        x="ratio",
        y="spec",
        hue="chip",
        palette=palette,
        s=34,
        linewidth=0,
        legend=False,
        ax=ax,
        zorder=3,
    )
    ax.axvline(1.0, color=palette[chips[0].id], linewidth=1.4, zorder=2)
    ax.set(xscale="log", xlabel="", ylabel="")
    low, high = min(0.8, rows["ratio"].min() / 1.15), max(1.25, rows["ratio"].max() * 1.15)
    steps = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
    ax.set_xlim(low, high)
    ax.set_ylim(len(lines) - 0.5, -0.5)
    ticks = [t for t in steps if low <= t <= high]
    ax.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    style.tidy_axes(ax)
    ax.grid(visible=True, axis="both")


def drawing(chips: Sequence[Chip], lines: Sequence[Spec]) -> str:
    """The figure as an ``<svg>`` element of a page."""
    with mpl.rc_context(style.use()):
        names = ", ".join(chip.id for chip in chips)
        return style.svg(_figure(chips, lines), f"Roofs and specs of {names}")


def image(chips: Sequence[Chip], lines: Sequence[Spec], kind: str) -> bytes:
    """The figure as a file's bytes: ``svg``, ``png`` or ``pdf``."""
    settings = style.use() | {"figure.facecolor": style.PAPER, "savefig.facecolor": style.PAPER}
    buffer = io.BytesIO()
    with mpl.rc_context(settings):
        dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        _figure(chips, lines).savefig(
            buffer, format=kind, dpi=150, bbox_inches="tight", pad_inches=0.1, metadata=dated
        )
    return buffer.getvalue()
