"""Arrays as a device stores them: bytes, with types of less than a byte packed, and back."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from foretile.kernels.dtypes import dtype

_NUMPY: dict[str, Any] = {
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e8m0": ml_dtypes.float8_e8m0fnu,
    "float4_e2m1": ml_dtypes.float4_e2m1fn,
    "int4": ml_dtypes.int4,
    "tfloat32": np.float32,
}


def numpy_type(name: str) -> np.dtype[Any]:
    """The NumPy type whose elements a dtype's values are kept in (unpacked: one a byte at least)."""
    full = dtype(name).name
    kept: np.dtype[Any] = np.dtype(_NUMPY.get(full, full))
    return kept


def to_device(array: np.ndarray, name: str) -> np.ndarray:
    """``array`` as flat bytes (uint8); of four-bit types the first of two elements in the low half.

    Raises:
        ValueError: elements of another type than ``name``.
    """
    if array.dtype != numpy_type(name):
        raise ValueError(f"an array of {array.dtype} is not one of {dtype(name).name}")
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if dtype(name).bits != 4:
        return flat
    nibbles = np.zeros(-(-flat.size // 2) * 2, np.uint8)
    nibbles[: flat.size] = flat & 15
    return np.asarray(nibbles[0::2] | nibbles[1::2] << 4, np.uint8)


def from_device(stored: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of ``shape`` whose bytes :func:`to_device` gave."""
    kept = numpy_type(name)
    if dtype(name).bits != 4:
        return stored.view(kept).reshape(shape)
    nibbles = np.stack((stored & 15, stored >> 4), axis=-1).reshape(-1)[: int(np.prod(shape))]
    if dtype(name).kind == "int":  # the sign fills the byte
        nibbles = (nibbles ^ 8) - np.uint8(8)
    return np.ascontiguousarray(nibbles).view(kept).reshape(shape)
