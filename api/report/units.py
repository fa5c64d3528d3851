"""Numbers for people: seconds, rates and bytes with the prefix that fits."""

from __future__ import annotations

import math

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_FACTOR = {unit: factor for factor, unit in _SECONDS}
_DECIMAL = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_BINARY = ((2.0**40, "Ti"), (2.0**30, "Gi"), (2.0**20, "Mi"), (2.0**10, "Ki"), (1.0, ""))


def digits(value: float, significant: int = 3) -> str:
    """``value`` with so many significant digits and no exponent for everyday sizes."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.{significant - 1}e}"
    places = max(0, significant - 1 - math.floor(math.log10(abs(value))))
    # 99.96 rounds up to 100.0, one digit more than asked for.
    if round(abs(value), places) >= 10 ** (math.floor(math.log10(abs(value))) + 1):
        places = max(0, places - 1)
    return f"{value:,.{places}f}"


def _scaled(value: float, steps: tuple[tuple[float, str], ...], unit: str, significant: int) -> str:
    for factor, prefix in steps:
        # Compare the rounded figure, so that 999.9 µs reads 1.00 ms.
        if abs(value) >= factor * (1 - 0.5 * 10.0**-significant):
            return f"{digits(value / factor, significant)} {prefix}{unit}"
    factor, prefix = steps[-1]
    return f"{digits(value / factor, significant)} {prefix}{unit}"


def best_unit(value: float) -> str:
    """The unit that shows a time with at least one digit before the point."""
    return next((unit for factor, unit in _SECONDS if value >= factor), "ns")


def seconds(value: float, significant: int = 3, *, unit: str = "") -> str:
    """``1.23e-5`` → ``12.3 µs``; in ``unit`` if one is given."""
    if not unit:
        return _scaled(value, _SECONDS, "", significant)
    return f"{digits(value / _FACTOR[unit], significant)} {unit}"


def interval(low: float, high: float, significant: int = 3, *, unit: str = "") -> str:
    """Both ends in one unit, by default the larger's: ``11.0 – 13.6 µs``."""
    unit = unit or best_unit(high)
    factor = _FACTOR[unit]
    return f"{digits(low / factor, significant)} – {digits(high / factor, significant)} {unit}"


def flop_rate(value: float) -> str:
    """``9.7e13`` → ``97.0 TFLOP/s``."""
    return _scaled(value, _DECIMAL, "FLOP/s", 3)


def byte_rate(value: float) -> str:
    """``4e12`` → ``4.00 TB/s`` (decimal, as vendors state it)."""
    return _scaled(value, _DECIMAL, "B/s", 3)


def size(value: float) -> str:
    """``262144`` → ``256 KiB``."""
    return f"{_plain(value)} B" if abs(value) < 1024 else _scaled(value, _BINARY, "B", 3)


def percent(share: float) -> str:
    """``0.876`` → ``88 %``; small shares keep a digit."""
    return f"{share * 100:.0f} %" if abs(share) >= 0.095 or share == 0 else f"{share * 100:.1f} %"


def ratio(value: float) -> str:
    """``1.234`` → ``1.23×``."""
    return f"{digits(value, 3)}×"


def quantity(path: str, value: float | int) -> str:
    """A chip file's number, formatted by the unit its field name ends in."""
    name = path.rsplit(".", 1)[-1]
    holder = path.split(".", 2)[-2] if "." in path else ""
    if holder == "stated_peak_flop_per_s":
        return flop_rate(value)
    if holder == "flop_per_cycle":
        return f"{_plain(value)} FLOP/cycle"
    for suffix, form in _FORMS:
        if name.endswith(suffix):
            return form(value)
    return f"{value:,}" if isinstance(value, int) or float(value).is_integer() else digits(value, 4)


def _plain(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else digits(value, 4)


_FORMS = (
    ("_bytes_per_s", byte_rate),
    ("_bytes_per_cycle", lambda v: f"{_plain(v)} B/cycle"),
    ("_per_cycle", lambda v: f"{_plain(v)} /cycle"),
    ("_cycles_per_warp", lambda v: f"{_plain(v)} cycles/warp"),
    ("_cycles", lambda v: f"{_plain(v)} cycles"),
    ("_bytes", size),
    ("bytes_per_core", size),
    ("_hz", lambda v: _scaled(v, _DECIMAL, "Hz", 4)),
    ("_fraction", lambda v: f"{v * 100:.3g} %"),
    ("_w", lambda v: f"{_plain(v)} W"),
    ("_s", seconds),
)
