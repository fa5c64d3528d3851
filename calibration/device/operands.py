"""What measured kernels are given: which random values suit a tensor of an operator."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from foretile.calibration.device.generate import packed_values
from foretile.kernels.cuda.recipe import TensorArg
from foretile.kernels.dtypes import dtype
from foretile.kernels.operator import Operator, OperatorError, Shape

_PACKED_BYTES = 1 << 18  # operands that are made here and travel in the bundle are no larger
# Values that quantisation leaves: they fill the range of e4m3 (448 at 4.5 deviations), and scales are small.
_QUANTISED = {"kind": "normal", "scale": 100.0}
_SCALES = {"kind": "uniform", "low": 0.005, "high": 0.015}
_BY_TENSOR: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "gemm_fp8": {"A": _QUANTISED, "B": _QUANTISED, "A_scale": _SCALES, "B_scale": _SCALES},
    "gemm_fp8_block": {"A": _QUANTISED, "B": _QUANTISED, "A_scale": _SCALES, "B_scale": _SCALES},
    "indexer_logits": {"K": _QUANTISED, "K_scale": _SCALES},
    "sparse_mla": {"Indices": {"kind": "distinct"}},
}
_FP8_CACHE = {"mla_decode": {"KV": _QUANTISED, "KV_scale": _SCALES}}


def seed_of(operator: str, shape: Shape, tensor: str) -> int:
    """The seed of a tensor's values: the same for every kernel of an operator at a shape."""
    text = "|".join((operator, *(f"{k}={v}" for k, v in sorted(shape.items())), tensor))
    return zlib.crc32(text.encode())


def fill_of(operator: Operator, shape: Shape, tensor: TensorArg) -> dict[str, Any]:
    """How an operand is filled: as quantisation leaves it, as trip counts need it, else normal values.

    Raises:
        OperatorError: an operand of whole numbers of which nothing is known here.
    """
    seeded: dict[str, Any] = {"seed": seed_of(operator.name, shape, tensor.name)}
    own = dict(_BY_TENSOR.get(operator.name, {}))
    if shape.get("kv_dtype") == "fp8":
        own |= _FP8_CACHE.get(operator.name, {})
    if tensor.name in own:
        fill = {**own[tensor.name], **seeded}
        return {**fill, "high": shape["kv_len"]} if fill["kind"] == "distinct" else fill
    given = operator.tensors(shape) if operator.tensors is not None else {}
    if tensor.name in given:
        return packed_values(_stored(given[tensor.name], tensor))
    kind = dtype(tensor.dtype)
    if kind.kind == "float":
        return {"kind": "normal", "scale": 1.0, **seeded}
    if kind.bits <= 8 and kind.kind in ("int", "uint"):
        low = 0 if kind.kind == "uint" else -(1 << (kind.bits - 1))
        return {"kind": "integers", "low": low, "high": low + (1 << kind.bits), **seeded}
    if tensor.bytes <= _PACKED_BYTES:
        made = operator.inputs(shape, np.random.default_rng(seeded["seed"]))
        return packed_values(_stored(made[tensor.name], tensor))
    raise OperatorError(
        f"{operator.name}: no way is known to make operand {tensor.name} ({tensor.dtype}, {tensor.bytes} "
        "bytes) on the device"
    )


def _stored(array: np.ndarray, tensor: TensorArg) -> np.ndarray:
    if array.shape != tensor.shape:
        raise OperatorError(f"operand {tensor.name} has shape {array.shape}; the kernel takes {tensor.shape}")
    kept: np.ndarray = array.astype(np.dtype(tensor.dtype)) if array.dtype.kind in "iu" else array
    return kept
