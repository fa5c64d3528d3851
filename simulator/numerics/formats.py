"""Number formats of tiles: exact carriers, rounding as the hardware converts, storage codes, spacing.

A value of a tile is held in a NumPy array of a *carrier* type that represents every value of the
element type exactly. What the formats are:

* float64, float32, float16: IEEE 754-2019, gradual underflow everywhere. bfloat16 and tfloat32 are
  float32 with 7 and 10 mantissa bits; tfloat32 is stored in 32 bits.
* float8_e4m3 (the ``e4m3fn`` of other libraries: no infinity, one NaN) and float8_e5m2: OCP 8-bit
  Floating Point Specification (OFP8) rev. 1.0.
* float4_e2m1 (neither infinity nor NaN) and float8_e8m0 (a power of two from 2**-127 to 2**127, no
  sign, no zero, one NaN): OCP Microscaling Formats (MX) v1.0.

How values are converted is what the ``cvt`` instruction of the PTX ISA does; see :func:`round_to`.
Payloads of NaN are not kept, their sign is.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import ml_dtypes
import numpy as np

from foretile.kernels.dtypes import dtype as find_dtype
from foretile.simulator.numerics._bits import (
    ROUNDERS,
    FormatInfo,
    codes_of,
    finfo,
    in_chunks,
    look_up,
    scale_codes_of,
    truncate,
    value_table,
    wrap,
)

__all__ = [
    "FormatInfo",
    "carrier",
    "decode",
    "encode",
    "finfo",
    "round_to",
    "storage",
    "truncate_tf32",
    "ulp",
]

_ML_DTYPES = {
    "float8_e4m3": "float8_e4m3fn",
    "float8_e8m0": "float8_e8m0fnu",
    "float4_e2m1": "float4_e2m1fn",
}


@cache
def carrier(dtype: str) -> np.dtype[Any]:
    """The NumPy type that holds values of ``dtype`` exactly.

    float64 for float64, float32 for every other floating-point type, int32 for integers of up to 16
    bits, int64 for wider ones, bool for bool. A uint64 of 2**63 or more is held modulo 2**64, that
    is, as a negative int64: sums, products and storage are right, comparisons and quotients are not.

    Raises:
        ValueError: unknown dtype.
    """
    found = find_dtype(dtype)
    if found.kind == "float":
        return np.dtype(np.float64 if found.bits == 64 else np.float32)
    if found.kind == "bool":
        return np.dtype(np.bool_)
    return np.dtype(np.int32 if found.bits <= 16 else np.int64)


@cache
def storage(dtype: str) -> np.dtype[Any]:
    """The NumPy type (from ``ml_dtypes`` where NumPy has none) of arrays that store ``dtype``.

    Four-bit types take a byte an element there; tfloat32 is stored as float32.

    Raises:
        ValueError: unknown dtype.
    """
    name = find_dtype(dtype).name
    if name == "tfloat32":
        return np.dtype(np.float32)
    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_DTYPES.get(name, name), name))
    return found


def round_to(
    values: np.ndarray, dtype: str, *, saturate: bool = True, out: np.ndarray | None = None
) -> np.ndarray:
    """``values`` converted to ``dtype``, in its carrier.

    Every conversion rounds once, from float64 and from 64-bit integers too. To floating point it
    rounds to nearest, ties to even, keeps subnormals, and what overflows becomes infinite, except:

    * tfloat32: ties away from zero, as ``cvt.rna.tf32.f32``.
    * float8_e4m3, float8_e5m2: with ``saturate`` as ``cvt.rn.satfinite``: overflow and infinities give
      the largest finite value of their sign, NaN stays NaN. Without, OFP8's non-saturating mode: NaN
      (e4m3) or infinity (e5m2).
    * float4_e2m1: overflow and infinities always give ±6. There is no NaN: with ``saturate`` it
      becomes +6 (``cvt.rn.satfinite.e2m1x2``); without, what ``ml_dtypes`` makes of it, the zero of
      the other sign.
    * float8_e8m0: with ``saturate`` as ``cvt.rp.satfinite.ue8m0x2``, what CUDA's C++ type for it
      converts with: the magnitude rounded up to a power of two and clamped to 2**-127 … 2**127, so
      that zero gives 2**-127 and the sign is dropped; NaN stays NaN. Without, ``ml_dtypes``' rule:
      nearest power of two, ties up, but everything between 2**-127 and 1.5 * 2**-126 gives 2**-126;
      overflow and what is not positive give NaN.

    Floating point to integer truncates towards zero and saturates at the limits of ``dtype``; NaN
    gives 0 (``cvt.rzi.s32.f32``; for a float64 source or a 64-bit result the PTX ISA gives the
    integer of the sign bit alone instead, which C leaves undefined and which is not reproduced).
    Integer to narrower integer keeps the low bits. To bool: not equal to zero.

    Args:
        values: float32, float64, integers or bool, of any shape.
        dtype: element type to convert to.
        saturate: see above; matters for types of eight bits and less only.
        out: array of the carrier type and the shape of ``values`` to write to; may be ``values``.

    Raises:
        ValueError: unknown dtype, or ``out`` of another shape or type.
        TypeError: values of a storage type; :func:`decode` them first.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "fiub" or values.dtype == np.float16:
        raise TypeError(f"cannot round an array of {values.dtype}: decode it to its carrier first")
    target = carrier(dtype)
    if out is None:
        out = np.empty(values.shape, target)
    elif out.dtype != target or out.shape != values.shape:
        raise ValueError(f"out is {out.dtype}{out.shape}, must be {target}{values.shape}")
    elif out is not values and np.may_share_memory(values, out):
        values = values.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        found = find_dtype(dtype)
        if found.kind == "bool":
            np.not_equal(values, 0, out=out)
        elif found.kind == "float" and found.name in ("float32", "float64"):
            np.copyto(out, values, casting="same_kind")
        elif found.kind == "float":
            in_chunks(ROUNDERS[found.name], values, out, saturate)
        elif values.dtype.kind == "f":
            in_chunks(partial(truncate, found.bits, found.kind == "int"), values, out, saturate)
        else:
            np.copyto(out, values, casting="unsafe")
            wrap(out, found.bits, found.kind == "int")
    return out


def truncate_tf32(values: np.ndarray) -> np.ndarray:
    """float32 ``values`` as tensor cores read them for a tfloat32 product: the low 13 bits ignored.

    The PTX ISA leaves ``mma`` undefined on operands that were not converted with ``cvt.rna.tf32``; the
    hardware drops the bits (CUTLASS relies on it: its conversion ``round_half_ulp_truncate`` adds
    half a unit and leaves the cut to the tensor core), which biases products towards zero.
    """
    out = np.array(values, np.float32)
    bits = out.view(np.uint32)
    nan = np.isnan(out)
    bits &= 0xFFFF_E000
    np.copyto(out, np.float32(np.nan), where=nan)  # a payload in the low bits alone must not become infinity
    return out


def decode(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Values of an array in the storage type of ``dtype``, in a new array of its carrier.

    Raises:
        ValueError: unknown dtype, or an array of another type.
    """
    stored = np.asarray(stored)
    name, target = find_dtype(dtype).name, carrier(dtype)
    if stored.dtype != storage(dtype):
        raise ValueError(f"{name} is stored as {storage(dtype)}, not {stored.dtype}")
    if name == "bfloat16":
        bits = np.empty(stored.shape, np.uint32)
        np.left_shift(stored.view(np.uint16), 16, out=bits, dtype=np.uint32)
        return bits.view(np.float32)
    if name == "int4":
        return (stored.view(np.int8) << 4 >> 4).astype(target)
    if find_dtype(dtype).kind != "float" or target == stored.dtype:
        return stored.astype(target)
    out = np.empty(stored.shape, target)
    codes = stored.view(np.uint16 if stored.dtype.itemsize == 2 else np.uint8)
    in_chunks(partial(look_up, value_table(name)), codes, out, False)
    return out


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """The storage array of carrier ``values`` that ``dtype`` represents exactly (see :func:`round_to`).

    Raises:
        ValueError: unknown dtype, or an array of another type than the carrier.
    """
    values = np.asarray(values)
    name, target = find_dtype(dtype).name, storage(dtype)
    if values.dtype != carrier(dtype):
        raise ValueError(f"values of {name} are carried as {carrier(dtype)}, not {values.dtype}")
    if name == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(target)
    if name == "int4":
        return values.astype(np.int8).view(target)
    if find_dtype(dtype).kind != "float" or target == values.dtype:
        return values.astype(target)
    codes = np.empty(values.shape, np.uint16 if target.itemsize == 2 else np.uint8)
    step = scale_codes_of if name == "float8_e8m0" else partial(codes_of, finfo(name))
    in_chunks(step, values, codes, False)
    return codes.view(target)


def ulp(values: np.ndarray, dtype: str) -> np.ndarray:
    """Spacing of ``dtype`` at ``abs(values)``, in float64.

    The distance to the next larger magnitude: at a power of two, the spacing above it; at and below
    the smallest normal number, that of the subnormals; beyond the largest number, that of the top
    binade. One for integers. NaN where the value is not finite.
    """
    values = np.asarray(values)
    if find_dtype(dtype).kind != "float":
        return np.ones(values.shape)
    info = finfo(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaN
        wide = values.astype(np.float64)
    exponent = np.where(wide == 0, info.min_exponent, np.frexp(wide)[1] - 1)
    exponent = np.clip(exponent, info.min_exponent, info.max_exponent)
    return np.where(np.isfinite(wide), np.ldexp(1.0, exponent - info.mantissa_bits), np.nan)
