"""The nvfp4 format: fp4 e2m1 numbers, an e4m3 scale for 16 of them in a row, a float32 scale a tensor.

As NVIDIA published it (cuDNN and TensorRT documentation of block scaling; Transformer Engine): the tensor's
scale is absmax / (448 · 6), a group's scale absmax / (6 · tensor scale) rounded to e4m3.
"""

from typing import Any

import ml_dtypes
import numpy as np

from foretile.kernels.operators._quant import FP8_MAX, group_absmax, groups_of, round_e4m3, spread

FP4_MAX = 6.0
"""Largest number of float4 e2m1."""

GROUP = 16
"""Elements of a row that share a scale."""


def round_e2m1(x: np.ndarray) -> np.ndarray:
    """Float64 values rounded once to the nearest e2m1 number, ties to even, beyond ±6 to ±6."""
    _, exponent = np.frexp(x)
    step = np.ldexp(1.0, np.maximum(exponent - 2, -1))  # one stored bit; subnormal below one
    return np.asarray(np.clip(np.rint(x / step) * step, -FP4_MAX, FP4_MAX))


def tensor_scale(x: np.ndarray) -> float:
    """The float32 scale of a whole tensor, with which its largest group's scale is 448."""
    return float(np.float32(max(float(np.abs(x).max()), 1e-30) / (FP8_MAX * FP4_MAX)))


def quantised_nvfp4(x: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Values and e4m3 scales of ``x`` given its tensor's scale, in float64: x ≈ values · scales · scale.

    Scales and quotients are those of float32, as kernels divide; a group whose scale rounds to zero has
    values of zero.
    """
    narrow, unit = x.astype(np.float32), np.float32(scale)
    quotient = group_absmax(narrow, 1, GROUP) / (np.float32(FP4_MAX) * unit)
    groups = round_e4m3(quotient.astype(np.float64))
    step = spread(groups, x.shape, 1, GROUP).astype(np.float32) * unit
    values = np.divide(narrow, step, out=np.zeros(x.shape, np.float32), where=step > 0)
    return round_e2m1(values.astype(np.float64)), groups


def nvfp4_operand(
    rng: np.random.Generator, shape: tuple[int, ...], octaves: float = 2.0
) -> tuple[np.ndarray, np.ndarray, float]:
    """A random operand: e2m1 numbers, e4m3 scales of 16 of the last axis, and the tensor's scale.

    Standard normal values, each row times a power of two of ``octaves`` standard deviations.
    """
    magnitude = np.exp2(octaves * rng.standard_normal((*shape[:-1], 1)))
    x = rng.standard_normal(shape) * magnitude
    scale = tensor_scale(x)
    values, groups = quantised_nvfp4(x, scale)
    return values.astype(ml_dtypes.float4_e2m1fn), groups.astype(ml_dtypes.float8_e4m3fn), scale


def exact_nvfp4(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Values times their groups' scales, in float64."""
    wide = spread(groups.astype(np.float64), values.shape, 1, GROUP)
    return np.asarray(values.astype(np.float64) * wide)


def nvfp4_bytes(rows: Any, columns: Any) -> Any:
    """Bytes of rows of an even number of columns: half a byte an element, and one for each group's scale."""
    return rows * (columns // 2 + groups_of(columns, GROUP))
