"""How figures look: one restrained palette, text as text, colours that follow the page's theme."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import seaborn as sns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stand for the page's own: replaced by CSS variables once the SVG is written, so that a
# figure follows a light or dark page. Nothing else may use them.
INK, SOFT, RULE, PAPER = "#1f2328", "#656d77", "#d8dce2", "#fdfcfb"
_VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", RULE: "var(--rule)", PAPER: "var(--paper)"}

FAMILY = {
    "dram": "memory", "l2": "memory", "port": "memory", "atomic": "memory",
    "matrix": "compute", "vector": "compute", "special": "compute",
    "scratchpad": "on-chip", "latency": "latency", "launch": "latency",
}  # fmt: skip
"""What a bound belongs to; bounds not listed are engines of particular chips: on-chip."""


def family(bound: str) -> str:
    """``memory``, ``compute``, ``on-chip`` or ``latency``."""
    return FAMILY.get(bound, "on-chip")


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour-blind-safe colour for each name, in order; the last of many is grey."""
    palette = sns.color_palette("colorblind").as_hex()
    order = [palette[i] for i in (0, 9, 1, 3, 2, 4, 8, 5, 6, 7)]  # blues, oranges, green: apart in print too
    return {name: order[i % len(order)] for i, name in enumerate(names)}


def family_colours() -> dict[str, str]:
    """Colours of the four kinds of bound."""
    palette = sns.color_palette("colorblind").as_hex()
    return {"memory": palette[0], "compute": palette[1], "on-chip": palette[2], "latency": palette[7]}


def use() -> Any:
    """Matplotlib settings for every figure of a report."""
    return {
        **sns.axes_style("white"),
        **sns.plotting_context("paper"),
        "font.family": "DejaVu Sans",  # wider than what browsers use: text always fits its place
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 8.5,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8.5,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "text.color": INK,
        "axes.titlecolor": INK,
        "axes.labelcolor": SOFT,
        "xtick.color": SOFT,
        "ytick.color": INK,
        "axes.edgecolor": RULE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": RULE,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "svg.fonttype": "none",
        "svg.hashsalt": "foretile",  # same data, same bytes
    }


def svg(figure: Figure, label: str) -> str:
    """``figure`` as an ``<svg>`` element to stand inside a page; ``label`` is for screen readers."""
    buffer = io.StringIO()
    # Without dates and creator the same figure gives the same text.
    figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.04, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-zA-Z0-9]+_\d+"', "", text)  # figure_1, axes_2: would repeat across figures
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = text.replace("'DejaVu Sans'", "var(--sans)").replace("DejaVu Sans", "var(--sans)")
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)  # the page decides, from the viewBox
    label = label.replace("&", "&amp;").replace('"', "&quot;")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def tidy_axes(axes: Axes) -> None:
    """Light grid along x, no ticks, only the line the values start from."""
    axes.grid(visible=True, axis="x")
    axes.tick_params(length=0)
    axes.spines["left"].set_color(SOFT)
    axes.spines["bottom"].set_visible(False)


def legend(figure: Figure, names: Sequence[str], palette: dict[str, str], *, y: float = 1.0) -> None:
    """One row of swatches above the axes."""
    handles = [mpl.patches.Patch(color=palette[name], label=name) for name in names]
    if not names:
        return
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.0, y), ncols=min(len(names), 6),
        handlelength=0.9, handleheight=0.9, columnspacing=1.4, borderaxespad=0.0,
    )  # fmt: skip
