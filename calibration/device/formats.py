"""Element types as arrays of a module that lacks them (CuPy): stored as integers, decoded and encoded.

Everything is arithmetic that NumPy and CuPy do alike, bit for bit. ``xp`` is either module.

Formats: bfloat16 is the upper half of float32; e4m3 and e5m2 as in the OCP 8-bit Floating Point
Specification (revision 1.0), e8m0 and e2m1 as in the OCP Microscaling Formats Specification (version 1.0).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from foretile.kernels.dtypes import dtype

_STORED = {
    "bfloat16": "uint16", "float8_e4m3": "uint8", "float8_e5m2": "uint8", "float8_e8m0": "uint8",
    "float4_e2m1": "uint8", "int4": "uint8", "tfloat32": "float32", "bool": "uint8",
}  # fmt: skip
# Exponent bits, mantissa bits, bias, largest finite magnitude.
_SMALL = {"float8_e4m3": (4, 3, 7, 448.0), "float8_e5m2": (5, 2, 15, 57344.0), "float4_e2m1": (2, 1, 1, 6.0)}


def stored(name: str) -> str:
    """The NumPy type that holds elements of a dtype on the device; four-bit types are two to a byte."""
    return _STORED.get(name, name)


def stored_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the stored array: that of the tensor, or flat bytes for four-bit types."""
    return (-(-math.prod(shape) // 2),) if dtype(name).bits == 4 else shape


@cache
def _values(name: str) -> np.ndarray:
    """What each code stands for, as float32."""
    if name == "float8_e8m0":
        return np.concatenate((np.exp2(np.arange(255.0) - 127), [np.nan])).astype(np.float32)
    exponent_bits, mantissa_bits, bias, _ = _SMALL[name]
    codes = np.arange(2 ** (1 + exponent_bits + mantissa_bits))
    mantissa = (codes & (2**mantissa_bits - 1)) / 2**mantissa_bits
    exponent = (codes >> mantissa_bits) & (2**exponent_bits - 1)
    size = np.where(
        exponent > 0, np.exp2(exponent - bias) * (1 + mantissa), np.exp2(float(1 - bias)) * mantissa
    )
    if name == "float8_e4m3":
        size[(codes & 0x7F) == 0x7F] = np.nan
    if name == "float8_e5m2":
        size[(codes & 0x7F) == 0x7C] = np.inf
        size[(codes & 0x7F) > 0x7C] = np.nan
    signed: np.ndarray = np.where(codes >> (exponent_bits + mantissa_bits), -size, size).astype(np.float32)
    return signed


def decode(xp: Any, raw: Any, name: str, shape: tuple[int, ...]) -> Any:
    """Values of a stored array: float32 for types of up to 32 bits, integers and float64 as they are."""
    if dtype(name).bits == 4:
        raw = xp.stack((raw & 15, raw >> 4), axis=-1).reshape(-1)[: math.prod(shape)].reshape(shape)
        if name == "int4":
            return (raw ^ 8).astype("int8") - np.int8(8)
    if name == "bfloat16":
        return (raw.astype("uint32") << np.uint32(16)).view("float32")
    if name in _SMALL or name == "float8_e8m0":
        return xp.asarray(_values(name))[raw.astype("int32")]
    return raw.astype("float32") if raw.dtype == np.float16 else raw


def encode(xp: Any, values: Any, name: str) -> Any:
    """Float32 or integer ``values`` as stored: rounded to nearest even, small types within their range."""
    if name == "bfloat16":
        bits = values.astype("float32").view("uint32")
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return (rounded >> np.uint32(16)).astype("uint16")
    if name == "float8_e8m0":
        return (_exponents(xp, values) + 127).astype("uint8")
    if name in _SMALL:
        return _packed(xp, _small(xp, values, name), name)
    if name == "int4":
        return _packed(xp, values.astype("uint8") & np.uint8(15), name)
    return values.astype(stored(name))


def _exponents(xp: Any, values: Any) -> Any:
    """floor(log2) of positive normal float32 values, from their bits."""
    return ((values.astype("float32").view("uint32") >> np.uint32(23)) & np.uint32(255)).astype("int32") - 127


def _small(xp: Any, values: Any, name: str) -> Any:
    exponent_bits, mantissa_bits, bias, largest = _SMALL[name]
    given = values.astype("float32")
    size = xp.minimum(xp.abs(given), np.float32(largest))
    exponent = xp.maximum(_exponents(xp, size), 1 - bias)
    # The spacing of codes around a value is a power of two, so that both products are exact.
    steps = xp.rint(xp.ldexp(size, mantissa_bits - exponent)).astype("int32")
    code = steps + (exponent + bias - 1) * 2**mantissa_bits
    code = xp.where(size > 0, code, 0)
    sign = (given.view("uint32") >> np.uint32(31)).astype("int32")
    return (code + (sign << (exponent_bits + mantissa_bits))).astype("uint8")


def _packed(xp: Any, codes: Any, name: str) -> Any:
    if dtype(name).bits != 4:
        return codes
    flat = codes.reshape(-1)
    if flat.size % 2:
        flat = xp.concatenate((flat, flat[:1] * np.uint8(0)))
    return flat[0::2] | (flat[1::2] << np.uint8(4))
