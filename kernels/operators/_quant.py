"""What quantising operators share: e4m3 rounding, scales, and results that lie on a rounding boundary.

The conventions are those DeepSeek published (DeepSeek-V3.2-Exp ``inference/kernel.py``, DeepGEMM
``deep_gemm/utils/math.py``): a scale is max(absmax, 1e-4) / 448 in float32, activations have one a
row and 128 columns, weights one a block of 128 × 128.
"""

from typing import Any

import ml_dtypes
import numpy as np

from foretile.kernels import language as T

FP8_MAX = 448.0
"""Largest finite number of float8 e4m3 (fn)."""

ABSMAX_FLOOR = float(np.float32(1e-4))
"""Smallest absolute maximum a scale is made of, so that groups of zeros have one."""

BLOCK = 128
"""Columns of a group of activations, rows and columns of a block of weights."""

_BAND = 2.0**-21
"""Relative error allowed to a float32 quotient: a scale and a division, each two units in the last place."""


@T.macro
def scale_of(absmax: Any, round_scale: bool) -> Any:
    """The scale of a group or block, given its absolute maximum (a float32 value).

    With ``round_scale`` the next power of two not below it. The binary logarithm only has to find one
    of the two nearest exponents: the comparison decides between it and the next.
    """
    quotient = T.max(absmax, ABSMAX_FLOOR) / FP8_MAX
    if not round_scale:
        return quotient
    near = T.exp2(T.round(T.log2(quotient)))
    return T.if_then_else(near < quotient, 2.0 * near, near)


def saturated(x: Any, scale: Any) -> Any:
    """``x / scale`` limited to what e4m3 holds; storing it in an fp8 buffer rounds it."""
    return T.clamp(x / scale, -FP8_MAX, FP8_MAX)


@T.macro
def quantised_rows(values: Any, result: Any, round_scale: bool) -> Any:
    """``values``, (rows, 128) in float32, rounded to e4m3 in ``result``; returns the rows' scales."""
    absmax = T.alloc_fragment((values.shape[0],), "float32")
    scale = T.alloc_fragment((values.shape[0],), "float32")
    T.reduce_absmax(values, absmax, dim=1)
    for i in T.Parallel(values.shape[0]):
        scale[i] = scale_of(absmax[i], round_scale)
    for i, j in T.Parallel(*values.shape):
        result[i, j] = saturated(values[i, j], scale[i])
    return scale


def groups_of(width: Any, group: int = BLOCK) -> Any:
    """Scales along ``width`` elements (a number, an array or symbolic): the last may cover fewer."""
    return (width + group - 1) // group


def reference_scale(absmax: np.ndarray, round_scale: bool) -> np.ndarray:
    """Float32 scales, in float64, of absolute maxima; ``round_scale`` as in :func:`scale_of`."""
    quotient = np.float32(
        np.maximum(absmax, ABSMAX_FLOOR) / FP8_MAX
    )  # the float32 division, correctly rounded
    if not round_scale:
        return np.asarray(quotient, np.float64)
    mantissa, exponent = np.frexp(np.asarray(quotient, np.float64))
    return np.asarray(np.ldexp(1.0, exponent - (mantissa == 0.5)), np.float64)


def round_e4m3(x: np.ndarray) -> np.ndarray:
    """Float64 values rounded once to the nearest e4m3 number, ties to even, beyond ±448 to ±448."""
    _, exponent = np.frexp(x)
    step = np.ldexp(1.0, np.maximum(exponent - 4, -9))  # three stored bits; subnormal below 2**-6
    return np.asarray(np.clip(np.rint(x / step) * step, -FP8_MAX, FP8_MAX))


def spread(scale: np.ndarray, shape: tuple[int, ...], rows: int, cols: int) -> np.ndarray:
    """Scales of groups of ``rows`` × ``cols`` (last two axes) repeated over the elements of ``shape``."""
    wide = np.repeat(np.repeat(scale, rows, axis=-2), cols, axis=-1)
    return wide[..., : shape[-2], : shape[-1]]


def group_absmax(x: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Absolute maxima over groups of ``rows`` × ``cols`` of the last two axes, the last ones cut short."""
    by_rows = np.maximum.reduceat(np.abs(x), np.arange(0, x.shape[-2], rows), axis=-2)
    return np.asarray(np.maximum.reduceat(by_rows, np.arange(0, x.shape[-1], cols), axis=-1))


def quantised(
    x: np.ndarray, rows: int, cols: int, round_scale: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Values (on the e4m3 grid) and scales of ``x``, both float64; one scale a ``rows`` × ``cols`` group."""
    x = x.astype(np.float64)
    scale = reference_scale(group_absmax(x, rows, cols), round_scale)
    return round_e4m3(x / spread(scale, x.shape, rows, cols)), scale


def quantised_float32(x: np.ndarray, round_scale: bool = False) -> np.ndarray:
    """``x`` (rows, columns) quantised with a scale a row and 128 columns, times its scales, in float64.

    Scales and quotients are those of float32, as kernels divide: bf16 numbers give every kernel the same.
    """
    narrow = x.astype(np.float32)
    wide = spread(reference_scale(group_absmax(narrow, 1, BLOCK), round_scale), x.shape, 1, BLOCK)
    quotient = narrow / wide.astype(np.float32)
    return np.asarray(round_e4m3(quotient.astype(np.float64)) * wide)


def settled(
    x: np.ndarray, rows: int, cols: int, round_scale: bool, outputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Results Y and S for ``x``, where an element of Y may be either of two numbers brought to one of them.

    A float32 kernel rounds its scale and its quotient before it rounds to e4m3. Where a boundary
    between two e4m3 numbers lies within that error of the exact quotient both of them are right:
    about one value in a million, but one in a thousand of bf16 inputs, whose ratio to their maximum
    often is a boundary itself. Scales that are powers of two divide exactly: no choice is left.
    """
    value = outputs["Y"].astype(np.float64)
    if not round_scale:
        x = x.astype(np.float64)
        quotient = x / spread(reference_scale(group_absmax(x, rows, cols), False), x.shape, rows, cols)
        low, high = round_e4m3(quotient * (1.0 - _BAND)), round_e4m3(quotient * (1.0 + _BAND))
        value = np.where((value == low) | (value == high), low, value)
    return {"Y": value, "S": outputs["S"]}


def quantised_operand(
    rng: np.random.Generator, shape: tuple[int, ...], rows: int, cols: int = BLOCK, octaves: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
    """A random fp8 operand and its float32 scales, one a ``rows`` × ``cols`` group of the last two axes.

    Standard normal values, each row times a power of two of ``octaves`` standard deviations.
    """
    magnitude = np.exp2(octaves * rng.standard_normal((*shape[:-1], 1), dtype=np.float32))
    values, scale = quantised(rng.standard_normal(shape, dtype=np.float32) * magnitude, rows, cols)
    return values.astype(ml_dtypes.float8_e4m3fn), scale.astype(np.float32)


def dequantised(values: np.ndarray, scale: np.ndarray, rows: int, cols: int = BLOCK) -> np.ndarray:
    """``values`` times their scales, in float64."""
    return np.asarray(values.astype(np.float64) * spread(scale.astype(np.float64), values.shape, rows, cols))
