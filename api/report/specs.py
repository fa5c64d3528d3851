"""Chips beside each other, spec by spec: values in plain units, ratios, and how far to trust each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foretile.report import units
from foretile.report.grounds import CONFIDENCES, provenance

if TYPE_CHECKING:
    from foretile.hwmodels.schema import Chip

Better = Literal["more", "less", ""]


class SpecsError(ValueError):
    """Chips that cannot be set beside each other, or a file name that says no known kind of output."""


@dataclass(frozen=True)
class Spec:
    """One line of the comparison: a value a chip (None: not known), and the least certain number behind it.

    ``better``: whether more or less of it makes kernels faster; empty where neither does by itself.
    """

    name: str
    group: str
    unit: str
    better: Better
    values: tuple[float | None, ...]
    confidence: tuple[str, ...]

    @property
    def ratios(self) -> tuple[float | None, ...]:
        """Each value over the first chip's."""
        first = self.values[0]
        return tuple(v / first if v is not None and first else None for v in self.values)

    def shown(self, place: int) -> str:
        """The value of one chip for people, ``–`` where it is not known."""
        value = self.values[place]
        return "–" if value is None else _FORM[self.unit](value)


_FORM: Mapping[str, Callable[[float], str]] = {
    "FLOP/s": units.flop_rate,
    "B/s": units.byte_rate,
    "B": units.size,
    "Hz": lambda v: f"{v / 1e6:,.0f} MHz",
    "s": units.seconds,
    "W": lambda v: f"{v:,.0f} W",
    "FLOP/B": lambda v: f"{units.digits(v)} FLOP/B",
    "/s": lambda v: f"{units.digits(v / 1e12)} T/s",
    "": lambda v: f"{v:,.0f}",
    "share": units.percent,
}

# (name, group, unit, better, paths of the numbers that are multiplied, and of those that are divided by)
_Product = tuple[str, str, str, Better, tuple[str, ...], tuple[str, ...]]
_HZ = "clock.max_hz"
_PRODUCTS: tuple[_Product, ...] = (
    ("cores", "cores", "", "more", ("cores",), ()),
    ("clock, highest", "cores", "Hz", "more", (_HZ,), ()),
    ("clock under matrix load", "cores", "Hz", "more", ("clock.matrix_burst_hz",), ()),
    ("fp32 multiply-adds", "cores", "/s", "more", ("cores", "vector.fp32_per_cycle", _HZ), ()),
    ("special functions", "cores", "/s", "more", ("cores", "vector.special_per_cycle", _HZ), ()),
    ("scratchpad of a core", "on-chip memory", "B", "more", ("scratchpad.capacity_bytes",), ()),
    ("scratchpad, whole chip", "on-chip memory", "B", "more", ("cores", "scratchpad.capacity_bytes"), ()),
    ("scratchpad bandwidth", "on-chip memory", "B/s", "more",
     ("cores", "scratchpad.bandwidth_bytes_per_cycle", _HZ), ()),
    ("L1 of a core", "on-chip memory", "B", "more", ("davinci.l1_bytes",), ()),
    ("registers of a core", "on-chip memory", "B", "more", ("registers.bytes_per_core",), ()),
    ("L2 capacity", "on-chip memory", "B", "more", ("l2.capacity_bytes",), ()),
    ("L2 bandwidth", "on-chip memory", "B/s", "more", ("l2.bandwidth_bytes_per_cycle", _HZ), ()),
    ("L2 latency", "on-chip memory", "s", "less", ("l2.latency_cycles",), (_HZ,)),
    ("DRAM capacity", "DRAM", "B", "more", ("dram.capacity_bytes",), ()),
    ("DRAM bandwidth", "DRAM", "B/s", "more", ("dram.bandwidth_bytes_per_s",), ()),
    ("DRAM bandwidth, reading", "DRAM", "B/s", "more",
     ("dram.bandwidth_bytes_per_s", "dram.read_fraction"), ()),
    ("DRAM latency", "DRAM", "s", "less", ("dram.latency_cycles",), (_HZ,)),
    ("launch of a kernel", "overheads", "s", "less", ("launch.kernel_s",), ()),
    ("start of all cores", "overheads", "s", "less", ("launch.ramp_s",), ()),
    ("board power", "overheads", "W", "", ("tdp_w",), ()),
)  # fmt: skip
_DTYPES = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4", "int4")


def specs(chips: Sequence[Chip]) -> list[Spec]:
    """The comparison of ``chips``, line by line; lines that no chip has are left out.

    Raises:
        SpecsError: less than two chips, or one given twice.
    """
    ids = [chip.id for chip in chips]
    if len(ids) < 2 or len(set(ids)) < len(ids):
        raise SpecsError(f"give two or more different chips to compare, not {', '.join(ids) or 'none'}")
    lines = [_product(chips, spec) for spec in _PRODUCTS]
    for place, dtype in enumerate(_DTYPES):
        paths = ("cores", f"matrix.flop_per_cycle.{dtype}", _HZ)
        lines.insert(place, _product(chips, (f"{dtype} peak", "matrix peak", "FLOP/s", "more", paths, ())))
    lines.insert(len(_DTYPES), _ridge(chips))
    return [line for line in lines if any(v is not None for v in line.values)]


def _product(chips: Sequence[Chip], spec: _Product) -> Spec:
    name, group, unit, better, times, over = spec
    values: list[float | None] = []
    trusts: list[str] = []
    for chip in chips:
        known = chip.quantities()
        if not all(path in known for path in (*times, *over)):
            values.append(None)
            trusts.append("")
            continue
        value = 1.0
        for path in times:
            value *= known[path].value
        for path in over:
            value /= known[path].value
        values.append(value)
        trusts.append(max((known[p].confidence for p in (*times, *over)), key=CONFIDENCES.index))
    return Spec(name, group, unit, better, tuple(values), tuple(trusts))


def sixteen_bit(chip: Chip) -> str:
    """The 16-bit dtype a chip's roof is drawn for: bf16, or fp16 where it has no other."""
    return "bf16" if "bf16" in chip.matrix.flop_per_cycle else "fp16"


def _ridge(chips: Sequence[Chip]) -> Spec:
    """FLOP a byte above which a kernel is bound by arithmetic."""
    paths = [("cores", f"matrix.flop_per_cycle.{sixteen_bit(chip)}", _HZ) for chip in chips]
    parts = [
        _product([chip], ("", "", "FLOP/B", "", times, ("dram.bandwidth_bytes_per_s",)))
        for chip, times in zip(chips, paths, strict=True)
    ]
    values, trusts = tuple(p.values[0] for p in parts), tuple(p.confidence[0] for p in parts)
    return Spec("ridge point, 16 bit", "matrix peak", "FLOP/B", "", values, trusts)


def to_json(chips: Sequence[Chip], lines: Sequence[Spec]) -> dict[str, Any]:
    """Plain data for ``json.dumps``: one object a line, values in the order of the chips."""
    return {
        "chips": [
            {"id": c.id, "name": c.name, "vendor": c.vendor, "confidence": dict(provenance(c).counts)}
            for c in chips
        ],
        "specs": [
            {
                "name": line.name,
                "group": line.group,
                "unit": line.unit,
                "better": line.better,
                "values": list(line.values),
                "ratios": list(line.ratios),
                "confidence": list(line.confidence),
            }
            for line in lines
        ],
    }


_KINDS = (".html", ".svg", ".png", ".pdf")


def require_kind(path: Path) -> Path:
    """``path``, if its ending is one this comparison can be written as.

    Raises:
        SpecsError: it is not.
    """
    if path.suffix not in _KINDS:
        raise SpecsError(f"{path}: unknown kind of file; end it in {', '.join(_KINDS)}")
    return path


def render(chips: Sequence[Chip], lines: Sequence[Spec], kind: str) -> str | bytes:
    """The comparison as a page (``.html``: table and figure) or as the figure alone."""
    from foretile.report import specs_figure

    if kind != ".html":
        return specs_figure.image(chips, lines, kind.removeprefix("."))
    from markupsafe import Markup

    from foretile import __version__
    from foretile.report.page import asset, environment

    return (
        environment()
        .get_template("specs.html.j2")
        .render(
            chips=chips,
            lines=lines,
            confidences=CONFIDENCES,
            grounds={chip.id: provenance(chip) for chip in chips},
            drawing=Markup(specs_figure.drawing(chips, lines)),
            style=Markup(asset("page.css")),
            version=__version__,
        )
    )
