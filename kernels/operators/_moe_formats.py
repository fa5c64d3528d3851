"""Formats of a mixture of experts' operands on the host: types, counts, random operands, exact values.

``bf16`` and ``fp16`` are stored as they are; ``fp8``, ``fp8_block`` (see ``_moe_fp8``) and ``nvfp4`` quantise
the activations of both products, whose results and inputs are bf16.
"""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from foretile.kernels.operator import Arrays, Shape
from foretile.kernels.operators._common import random_operand, size, whole
from foretile.kernels.operators._nvfp4 import (
    FP4_MAX,
    GROUP,
    exact_nvfp4,
    nvfp4_bytes,
    quantised_nvfp4,
    tensor_scale,
)
from foretile.kernels.operators._quant import (
    BLOCK,
    FP8_MAX,
    dequantised,
    groups_of,
    quantised,
    quantised_float32,
    round_e4m3,
)

_ELEMENTS = {"fp8": "fp8", "fp8_block": "fp8", "nvfp4": "fp4"}
QUANTISED = tuple(_ELEMENTS)
"""Formats whose products are of quantised numbers."""

# Largest magnitude of a format with a static scale for the tensor.
_LARGEST = {"fp8": FP8_MAX, "nvfp4": FP8_MAX * FP4_MAX}
_HALF = np.float32(0.5)  # keeps bf16 and fp16 products of deep sums in range
_LARGEST_H = 2.0  # where H is cut off with a static scale: beyond four standard deviations of silu(g) · u


def activations(shape: Shape) -> str:
    """Type of X and O."""
    return "bf16" if shape["dtype"] in QUANTISED else str(shape["dtype"])


def element(shape: Shape) -> str:
    """Type of the weights."""
    return _ELEMENTS.get(shape["dtype"], str(shape["dtype"]))


def quantising_flops(shape: Shape) -> Any:
    """Operations that quantise X and H: a division an element, and a maximum and a division for scales."""
    if shape["dtype"] not in QUANTISED:
        return 0
    tokens, hidden, inter, topk = (whole(shape[n]) for n in ("tokens", "hidden", "inter", "topk"))
    if shape["dtype"] == "fp8":
        return tokens * (hidden + topk * inter)
    group = GROUP if shape["dtype"] == "nvfp4" else BLOCK
    x, h = (2 * columns + groups_of(columns, group) for columns in (hidden, inter))
    return tokens * (x + topk * h)


def weight_bytes(shape: Shape, experts: Any) -> Any:
    """Bytes of the weights of ``experts`` experts, with their scales and the static ones of X and H."""
    hidden, inter = whole(shape["hidden"]), whole(shape["inter"])
    if shape["dtype"] == "nvfp4":
        rows = nvfp4_bytes(2 * inter, hidden) + nvfp4_bytes(hidden, inter)
        return experts * rows + 4 * (3 * experts + 2)
    elements = experts * 3 * inter * hidden * size(element(shape))
    if shape["dtype"] == "fp8":
        return elements + 4 * (3 * experts + 2)
    if shape["dtype"] == "fp8_block":
        return elements + 4 * 3 * experts * groups_of(inter) * groups_of(hidden)
    return elements


def random_weights(shape: Shape, rng: np.random.Generator) -> Arrays:
    """W_gate_up (experts, 2, inter, hidden), W_down (experts, hidden, inter), and the format's scales."""
    hidden, inter, experts = shape["hidden"], shape["inter"], shape["experts"]
    drawn = {
        "W_gate_up": ((experts, 2, inter, hidden), hidden),
        "W_down": ((experts, hidden, inter), inter),
    }
    if shape["dtype"] not in QUANTISED:
        return {
            name: (w.astype(np.float32) * _HALF * depth**-0.5).astype(w.dtype)
            for name, (dims, depth) in drawn.items()
            for w in (random_operand(rng, dims, shape["dtype"]),)
        }
    found: Arrays = {}
    for name, (dims, depth) in drawn.items():
        w = rng.standard_normal(dims, dtype=np.float32) * _HALF * np.float32(depth**-0.5)
        found |= _stored(shape, name, w)
    if shape["dtype"] in _LARGEST:
        found["H_scale"] = np.full(1, _LARGEST_H / _LARGEST[shape["dtype"]], np.float32)
    return found


def _stored(shape: Shape, name: str, w: np.ndarray) -> Arrays:
    """Weights in the format: numbers, scales, and for nvfp4 the scale of each matrix."""
    if shape["dtype"] == "nvfp4":
        matrices = w.reshape(-1, *w.shape[-2:])
        unit = np.array([tensor_scale(m) for m in matrices], np.float32)
        parts = [quantised_nvfp4(m, float(u)) for m, u in zip(matrices, unit, strict=True)]
        values, groups = (np.stack(x).reshape(*w.shape[:-1], -1) for x in zip(*parts, strict=True))
        return {
            name: values.astype(ml_dtypes.float4_e2m1fn),
            f"{name}_scale": groups.astype(ml_dtypes.float8_e4m3fn),
            f"{name}_global": unit.reshape(w.shape[:-2]),
        }
    by_block = shape["dtype"] == "fp8_block"
    rows, cols = (BLOCK, BLOCK) if by_block else w.shape[-2:]
    values, scale = quantised(w, rows, cols)
    scale = scale.astype(np.float32)
    return {
        name: values.astype(ml_dtypes.float8_e4m3fn),
        f"{name}_scale": scale if by_block else scale[..., 0, 0],
    }


def static_scale(shape: Shape, X: np.ndarray) -> Arrays:
    """``X_scale`` of a format that has one: so that the largest element is the largest number."""
    if shape["dtype"] not in _LARGEST:
        return {}
    return {"X_scale": np.full(1, np.abs(X.astype(np.float32)).max() / _LARGEST[shape["dtype"]], np.float32)}


def rounded(shape: Shape, x: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    """Activations (rows, columns) as the products see them, in float64: quantised and times their scales.

    Scales and quotients are those of float32, as kernels divide: X gives every kernel the same numbers.
    """
    if shape["dtype"] not in QUANTISED:
        return x
    if scale is None:
        return quantised_float32(x)
    unit = float(scale[0])
    if shape["dtype"] == "nvfp4":
        return exact_nvfp4(*quantised_nvfp4(x, unit)) * unit
    quotient = x.astype(np.float32) / scale
    return np.asarray(round_e4m3(quotient.astype(np.float64)) * unit)


def exact_weights(shape: Shape, name: str, operands: Mapping[str, np.ndarray], expert: int) -> np.ndarray:
    """An expert's weights ``name`` (…, rows, columns) in float64, times their scales."""
    w = operands[name][expert].astype(np.float64)
    if shape["dtype"] not in QUANTISED:
        return np.asarray(w)
    scale = operands[f"{name}_scale"][expert].astype(np.float64)
    if shape["dtype"] == "fp8":
        return np.asarray(w * scale[..., None, None])
    if shape["dtype"] == "nvfp4":
        unit = operands[f"{name}_global"][expert].astype(np.float64)
        return np.asarray(exact_nvfp4(w, scale) * unit[..., None, None])
    return dequantised(w, scale, BLOCK)
