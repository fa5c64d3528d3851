"""Bits of number formats: limits, rounding and codes of float32 and integer arrays, cachefuls at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import numpy as np

from foretile.kernels.dtypes import dtype as find_dtype

# What the codes of the highest exponent mean: IEEE infinity and NaN, NaN alone, numbers but for
# the code of all ones, or numbers throughout.
_Top = Literal["ieee", "nan", "numbers and nan", "numbers"]

# Exponent bits, and the rule above. Biases are 2**(bits - 1) - 1 in every one of these formats.
_LAYOUT: dict[str, tuple[int, _Top]] = {
    "float64": (11, "ieee"),
    "float32": (8, "ieee"),
    "tfloat32": (8, "ieee"),
    "float16": (5, "ieee"),
    "bfloat16": (8, "ieee"),
    "float8_e4m3": (4, "numbers and nan"),
    "float8_e5m2": (5, "ieee"),
    "float8_e8m0": (8, "nan"),
    "float4_e2m1": (2, "numbers"),
}

_CHUNK = 1 << 15  # elements at a time: the few temporaries of a conversion stay in the L2 cache

_ALL_BITS = 0xFFFF_FFFF
_SIGN = 0x8000_0000
_MAGNITUDE = 0x7FFF_FFFF
_EXPONENT = 0x7F80_0000
_QUIET_NAN = 0x7FC0_0000
_BINADE = 1 << 23  # in float32 codes, one step of the exponent


@dataclass(frozen=True, slots=True)
class FormatInfo:
    """Limits of a floating-point type, derived from its exponent and mantissa bits.

    ``max`` is the largest finite value; ``eps`` the spacing above one; ``unit_roundoff`` half of it.
    float8_e8m0 has neither zero nor subnormals: ``smallest_subnormal`` is its smallest value.
    """

    dtype: str
    exponent_bits: int
    mantissa_bits: int  # stored, without the leading one
    bias: int
    min_exponent: int  # of the smallest normal number (of float8_e8m0: of the smallest number)
    max_exponent: int  # floor(log2(max))
    max: float
    smallest_normal: float
    smallest_subnormal: float
    eps: float
    unit_roundoff: float
    top: _Top


@cache
def finfo(dtype: str) -> FormatInfo:
    """Limits of the floating-point type ``dtype``.

    Raises:
        ValueError: not a floating-point type, or unknown.
    """
    found = find_dtype(dtype)
    if found.kind != "float":
        raise ValueError(
            f"{found.name} is not a floating-point type; its range follows from its {found.bits} bits"
        )
    exponent_bits, top = _LAYOUT[found.name]
    mantissa_bits = found.mantissa_bits
    bias = (1 << (exponent_bits - 1)) - 1
    highest = (1 << exponent_bits) - 1 - bias
    max_exponent = highest if top.startswith("numbers") else highest - 1
    lost = 2 if top == "numbers and nan" else 1  # codes of the top binade that are not its numbers, plus one
    min_exponent = -bias if top == "nan" else 1 - bias
    return FormatInfo(
        dtype=found.name,
        exponent_bits=exponent_bits,
        mantissa_bits=mantissa_bits,
        bias=bias,
        min_exponent=min_exponent,
        max_exponent=max_exponent,
        max=(2.0 - lost * 2.0**-mantissa_bits) * 2.0**max_exponent,
        smallest_normal=2.0**min_exponent,
        smallest_subnormal=2.0 ** (min_exponent - mantissa_bits),
        eps=2.0**-mantissa_bits,
        unit_roundoff=2.0 ** -(mantissa_bits + 1),
        top=top,
    )


# ---- How arrays are walked -------------------------------------------------------------------------

Step = Callable[[np.ndarray, np.ndarray, bool], object]


def in_chunks(step: Step, values: np.ndarray, out: np.ndarray, saturate: bool) -> None:
    """Apply ``step(part of values, part of out, saturate)`` to all elements, a cacheful at a time."""
    source = values.reshape(-1)
    target = out.reshape(-1) if out.flags.c_contiguous else np.empty(out.size, out.dtype)
    for start in range(0, source.size, _CHUNK):
        step(source[start : start + _CHUNK], target[start : start + _CHUNK], saturate)
    if not out.flags.c_contiguous:
        out[...] = target.reshape(out.shape)


# ---- To floating point -----------------------------------------------------------------------------


def _as_float32(values: np.ndarray) -> np.ndarray:
    """``values`` in float32, rounded to odd: what is inexact gets a last bit of one.

    A later rounding to at least two bits fewer then gives what rounding the value itself gives
    (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using
    rounding to odd", IEEE Trans. Computers 57, 2008).
    """
    if values.dtype == np.float32:
        return values
    if values.dtype.kind != "f":
        if values.dtype.itemsize <= 2 or (values.min() >= -(1 << 24) and values.max() <= 1 << 24):
            return values.astype(np.float32)
        values = _jam(values).astype(np.float64)
    near = values.astype(np.float32)
    bits: np.ndarray = near.view(np.uint32)
    back = near.astype(np.float64)
    bits -= np.abs(back) > np.abs(values)  # one step back where nearest went away from zero
    bits |= back != values
    return near


def _jam(values: np.ndarray) -> np.ndarray:
    """Integers of at most 53 significant bits that round as ``values`` do: low bits or-ed into one."""
    limit = 1 << 53
    large = values >= limit
    if values.dtype.kind == "i":
        large |= values <= -limit
    if values.dtype.itemsize < 8 or not large.any():
        return values
    low = (1 << 11) - 1
    jammed = (values & ~values.dtype.type(low)) | (((values & low) != 0).astype(values.dtype) << 11)
    return np.where(large, jammed, values)


def _restore_nan(bits: np.ndarray, magnitude: np.ndarray, result: np.ndarray) -> None:
    """Write quiet NaNs of the right sign to ``result`` where ``bits``, of that ``magnitude``, are NaN."""
    if magnitude.max() > _EXPONENT:
        nan = magnitude > _EXPONENT
        result[nan] = (bits[nan] & _SIGN) | _QUIET_NAN


def _drop_bits(count: int, to_even: bool, values: np.ndarray, out: np.ndarray, saturate: bool) -> None:
    """float32 with the last ``count`` bits rounded off: a carry into the exponent is the right one."""
    bits = _as_float32(values).view(np.uint32)
    half = 1 << (count - 1)
    rounded: np.ndarray
    if to_even:
        rounded = bits >> count
        rounded &= 1
        rounded += half - 1
        rounded += bits
    else:
        rounded = bits + half
    rounded &= _ALL_BITS << count & _ALL_BITS
    _restore_nan(bits, bits & _MAGNITUDE, rounded)
    out.view(np.uint32)[:] = rounded


def _power_of_two(values: np.ndarray, out: np.ndarray, saturate: bool) -> None:
    """float8_e8m0: the mantissa rounded off into the exponent. 2**-127 is subnormal in float32."""
    smallest, largest = _BINADE >> 1, 254 * _BINADE
    bits = _as_float32(values).view(np.uint32)
    magnitude = bits & _MAGNITUDE
    power = np.minimum(magnitude, _EXPONENT)  # of NaN, the sum would leave the 32 bits
    power += _BINADE - 1 if saturate else _BINADE >> 1
    power &= _EXPONENT
    power[magnitude <= smallest] = smallest
    if saturate:
        np.minimum(power, largest, out=power)
        _restore_nan(bits, magnitude, power)
    else:
        power[(power > largest) | (bits == 0) | (bits >= _SIGN)] = _QUIET_NAN
    out.view(np.uint32)[:] = power


def _nearest_even(info: FormatInfo, values: np.ndarray, out: np.ndarray, saturate: bool) -> None:
    """Types of fewer exponent bits than float32, by float32's own rounding to nearest even.

    Adding and subtracting ``2**23`` units of the value's last place (that of the subnormals, for
    small values) rounds the magnitude there. The limit is exact, so clamping first is as good as after.
    """
    clamp = info.top == "numbers" or (saturate and 1 + info.exponent_bits + info.mantissa_bits <= 8)
    bits = _as_float32(values).view(np.uint32)
    sign = bits & _SIGN
    result = bits & _MAGNITUDE
    nan = result > _EXPONENT if result.max() > _EXPONENT else None
    magnitude = result.view(np.float32)
    np.minimum(magnitude, np.float32(info.max if clamp else 2.0 ** (info.max_exponent + 1)), out=magnitude)
    units = result & _EXPONENT
    np.maximum(units, (info.min_exponent + 127) * _BINADE, out=units)
    units += (23 - info.mantissa_bits) * _BINADE
    magnitude += units.view(np.float32)
    magnitude -= units.view(np.float32)
    largest = np.float32(info.max)
    if not clamp and result.max() > largest.view(np.uint32):
        result[magnitude > largest] = _EXPONENT if info.top == "ieee" else _QUIET_NAN
    if nan is not None and info.top != "numbers":
        result[nan] = _QUIET_NAN
    elif nan is not None:  # float4_e2m1
        magnitude[nan] = info.max if saturate else 0.0
        sign[nan] = 0 if saturate else sign[nan] ^ _SIGN
    result |= sign
    out.view(np.uint32)[:] = result


ROUNDERS: dict[str, Step] = {
    "tfloat32": partial(_drop_bits, 13, False),
    "bfloat16": partial(_drop_bits, 16, True),
    "float8_e8m0": _power_of_two,
    **{
        name: partial(_nearest_even, finfo(name))
        for name in ("float16", "float8_e4m3", "float8_e5m2", "float4_e2m1")
    },
}


# ---- To integers -----------------------------------------------------------------------------------


def truncate(bits: int, signed: bool, values: np.ndarray, out: np.ndarray, saturate: bool) -> None:
    """Floating point to an integer of ``bits``: towards zero, saturating, NaN to 0."""
    low = -(1 << (bits - 1)) if signed else 0
    above = 1 << (bits - 1 if signed else bits)  # both are powers of two, which floats hold exactly
    inside = (values > float(low)) & (values < float(above))
    whole = np.where(inside, values, 0).astype(np.uint64 if above > 1 << 63 else np.int64)
    np.copyto(out, whole, casting="unsafe")
    if not inside.all():
        highest = np.array(above - 1, np.uint64).astype(out.dtype)  # of uint64: -1, the same bits
        np.copyto(out, highest, where=values >= float(above))
        np.copyto(out, low, where=values <= float(low))


def wrap(values: np.ndarray, bits: int, signed: bool) -> None:
    """Keep the low ``bits`` of the integers of a carrier, in place: two's complement if ``signed``."""
    spare = 8 * values.dtype.itemsize - bits
    if spare and signed:
        values <<= spare
        values >>= spare
    elif spare:
        values &= (1 << bits) - 1


# ---- Storage codes ---------------------------------------------------------------------------------


@cache
def value_table(dtype: str) -> np.ndarray:
    """Value of each code of a floating-point type of up to 16 bits, in float32."""
    info = finfo(dtype)
    code_bits = find_dtype(dtype).bits
    code = np.arange(1 << code_bits)
    fields = code if info.top == "nan" else code & ((1 << (code_bits - 1)) - 1)  # the MX scale has no sign
    ones = (1 << info.exponent_bits) - 1
    exponent, mantissa = fields >> info.mantissa_bits, fields & ((1 << info.mantissa_bits) - 1)
    leading = np.where(exponent > 0, 1 << info.mantissa_bits, 0) if info.top != "nan" else 1
    scale = np.maximum(exponent - info.bias, info.min_exponent) - info.mantissa_bits
    value = np.ldexp((leading + mantissa).astype(np.float64), scale)
    if info.top == "ieee":
        value[exponent == ones] = np.inf
        value[(exponent == ones) & (mantissa > 0)] = np.nan
    elif info.top != "numbers":
        value[fields == fields.max()] = np.nan
    table = np.where(code == fields, value, -value).astype(np.float32)
    # An array of four-bit elements has a byte for each; only its low half counts.
    return np.tile(table, 16) if code_bits == 4 else table


def look_up(table: np.ndarray, codes: np.ndarray, out: np.ndarray, saturate: bool) -> None:
    """Values of ``codes``: a step of :func:`in_chunks`."""
    np.take(table, codes, out=out, mode="wrap")


def codes_of(info: FormatInfo, values: np.ndarray, out: np.ndarray, saturate: bool) -> None:
    """Codes of float32 ``values`` that the type represents: float32's own with another bias."""
    bits = values.view(np.uint32)
    magnitude = bits & _MAGNITUDE
    smallest_normal = (info.min_exponent + 127) * _BINADE
    # The part up to the smallest normal number: adding 2**23 units of the subnormals leaves the
    # number of units in the low bits of the sum.
    unit = np.float32(info.smallest_subnormal * 2.0**23)
    codes = np.minimum(magnitude, smallest_normal)
    float_codes = codes.view(np.float32)
    float_codes += unit
    codes -= unit.view(np.uint32)
    # And the part from there on, where codes differ by the bias and the bits dropped.
    beyond = np.maximum(magnitude, smallest_normal)
    beyond -= smallest_normal
    beyond >>= 23 - info.mantissa_bits
    codes += beyond
    if magnitude.max() >= _EXPONENT:
        infinity = ((1 << info.exponent_bits) - 1) << info.mantissa_bits
        quiet = 1 << (info.mantissa_bits - 1) if info.top == "ieee" else (1 << info.mantissa_bits) - 1
        codes[magnitude == _EXPONENT] = infinity
        codes[magnitude > _EXPONENT] = infinity + quiet
    codes |= bits >> 31 << (info.exponent_bits + info.mantissa_bits)
    np.copyto(out, codes, casting="unsafe")


def scale_codes_of(values: np.ndarray, out: np.ndarray, saturate: bool) -> None:
    """Codes of float8_e8m0: float32's exponent."""
    np.copyto(out, values.view(np.uint32) >> 23, casting="unsafe")
