"""Functions of the CUDA Math API that kernels call by name, exact in their roundings.

NVIDIA, "CUDA Math API Reference Manual": single precision, half precision and bfloat16 intrinsics, integer
intrinsics, type casting intrinsics. Names end in how they round: ``rn`` to nearest even, ``rz`` towards
zero, ``rd`` down, ``ru`` up. The fast approximations (``__expf``, …) have the values of the accurate
functions, within the errors that the manual gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from foretile.simulator.numerics.formats import carrier, decode, encode, round_to, storage

Values = Any  # an array in the carrier of its type
ROUNDINGS = ("rn", "rz", "rd", "ru")
_STORED: dict[str, Any] = {
    "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32
}  # fmt: skip


@dataclass(frozen=True)
class DeviceFunction:
    """``run`` takes values of these types, in their carriers, and gives one of type ``result``."""

    takes: tuple[str, ...]
    result: str
    run: Callable[..., Values]


def device_value(name: str, declared: str) -> DeviceFunction | None:
    """The function called ``name``, which the program declares to return a ``declared``; None: not known."""
    if name in _CACHED:
        return DeviceFunction((declared,), declared, lambda x: x)
    if name in _HALVES:
        if declared not in ("float16", "bfloat16"):
            return None
        count, run = _HALVES[name]
        return DeviceFunction((declared,) * count, declared, partial(run, dtype=declared, how="rn"))
    return _FUNCTIONS.get(name)


def known_names() -> frozenset[str]:
    """Every name that :func:`device_value` knows."""
    return frozenset((*_CACHED, *_HALVES, *_FUNCTIONS))


# ---- Rounding --------------------------------------------------------------------------------------


def _towards(near: np.ndarray, error: np.ndarray, dtype: str, how: str) -> np.ndarray:
    """Nearest values of ``dtype``, one step on where ``how`` asks for it; ``error``: exact less nearest."""
    if how == "rn":
        return near
    stored = near.astype(_STORED[dtype])
    zero, infinity = _STORED[dtype](0), _STORED[dtype](np.inf)
    if how == "rz":
        step, to = error * np.sign(near) < 0, zero
    elif how == "rd":
        step, to = error < 0, -infinity
    else:
        step, to = error > 0, infinity
    return np.where(step, np.nextafter(stored, to), stored).astype(near.dtype)


def _rounded(exact: np.ndarray, dtype: str, how: str) -> np.ndarray:
    """float64 values rounded once."""
    near = round_to(exact, dtype, saturate=False)
    return _towards(near, exact - near.astype(np.float64), dtype, how)


def _odd_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A float64 sum rounded to odd, which a later rounding to fewer bits cannot tell from the exact one.

    (S. Boldo and G. Melquiond, IEEE Trans. Computers 57, 2008; the error by D. Knuth's two-sum.)
    """
    total = np.asarray(a + b)
    other = total - a
    error = (a - (total - other)) + (b - other)
    even = (np.ascontiguousarray(total).view(np.int64) & 1 == 0).reshape(total.shape)
    inexact = np.isfinite(total) & (error != 0)
    return np.where(inexact & even, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)


def _wide(x: Values) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def _add(a: Values, b: Values, *, dtype: str, how: str) -> np.ndarray:
    return _rounded(_odd_sum(_wide(a), _wide(b)), dtype, how)


def _sub(a: Values, b: Values, *, dtype: str, how: str) -> np.ndarray:
    return _rounded(_odd_sum(_wide(a), -_wide(b)), dtype, how)


def _mul(a: Values, b: Values, *, dtype: str, how: str) -> np.ndarray:
    return _rounded(_wide(a) * _wide(b), dtype, how)


def _fma(a: Values, b: Values, c: Values, *, dtype: str, how: str) -> np.ndarray:
    return _rounded(_odd_sum(_wide(a) * _wide(b), _wide(c)), dtype, how)


def _div(a: Values, b: Values, *, dtype: str, how: str) -> np.ndarray:
    # Twice 11 bits and two more are enough for a quotient of halves to be rounded twice.
    near = round_to(_wide(a) / _wide(b), dtype, saturate=False)
    rest = (_wide(a) - _wide(near) * _wide(b)) * np.sign(_wide(b))
    return _towards(near, rest, dtype, how)


def _sqrt(x: Values, *, dtype: str, how: str) -> np.ndarray:
    near = round_to(np.sqrt(_wide(x)), dtype, saturate=False)
    return _towards(near, _wide(x) - _wide(near) ** 2, dtype, how)


def _reciprocal(x: Values, *, dtype: str, how: str) -> np.ndarray:
    return _div(np.ones_like(x), x, dtype=dtype, how=how)


def _narrowed(x: Values, *, dtype: str, how: str) -> np.ndarray:
    return _rounded(_wide(x), dtype, how)


_WHOLE = {"rn": np.rint, "rz": np.trunc, "rd": np.floor, "ru": np.ceil}


def _whole(x: Values, *, dtype: str, how: str) -> np.ndarray:
    return round_to(_WHOLE[how](_wide(x)), dtype)


def _same_bits(x: Values, *, source: str, dtype: str) -> np.ndarray:
    held = np.ascontiguousarray(encode(np.asarray(x).astype(carrier(source)), source))
    return decode(held.view(storage(dtype)), dtype).reshape(np.shape(x))


def _quotient(x: Values, y: Values) -> np.ndarray:
    """``__fdividef``: zero (of an infinity NaN) where the divisor lies between 2**126 and 2**128."""
    large = (np.abs(y) > np.float32(2.0**126)) & np.isfinite(y)
    return np.where(large, np.where(np.isinf(x), np.nan, np.copysign(0, x * np.sign(y))), x / y).astype(
        np.float32
    )


# ---- Bits of 32-bit integers, which are carried as int64 -------------------------------------------

_LOW = (1 << 32) - 1


def _signed(x: Values) -> Any:
    return (np.asarray(x) & _LOW ^ 1 << 31) - (1 << 31)


def _reversed_bits(x: Values) -> Any:
    found = np.asarray(x) & _LOW
    for step, mask in ((1, 0x5555_5555), (2, 0x3333_3333), (4, 0x0F0F_0F0F), (8, 0x00FF_00FF), (16, 0xFFFF)):
        found = (found >> step & mask) | (found & mask) << step
    return found


def _byte_perm(x: Values, y: Values, selector: Values) -> Any:
    """Four of the eight bytes of ``y:x``, chosen by three bits each."""
    found: Any = 0
    for i in range(4):
        pick = np.asarray(selector) >> 4 * i & 0x7
        word = np.where(pick & 4, y, x)
        found = found | (word >> 8 * (pick & 3) & 0xFF) << 8 * i
    return np.asarray(found)


def _funnel(low: Values, high: Values, shift: Values, *, left: bool, clamp: bool) -> Any:
    """``high:low`` shifted, the upper (left) or lower (right) word of it."""
    amount = np.minimum(np.asarray(shift) & _LOW, 32) if clamp else np.asarray(shift) & 31
    low, high = np.asarray(low) & _LOW, np.asarray(high) & _LOW
    if left:
        return (high << amount | low >> 32 - amount) & _LOW
    return (low >> amount | high << 32 - amount) & _LOW


def _high_word(a: Values, b: Values) -> Any:
    """The upper 32 bits of a product, by halves of the unsigned factors."""
    a, b = np.asarray(a), np.asarray(b)
    low = a * (b & 0xFFFF)
    return ((low >> 16) + a * (b >> 16)) >> 16


def _low_24(x: Values, *, signed: bool) -> Any:
    found = np.asarray(x) & 0xFF_FFFF
    return (found ^ 1 << 23) - (1 << 23) if signed else found


def _mul24(a: Values, b: Values) -> Any:
    return _signed(_low_24(a, signed=True) * _low_24(b, signed=True))


def _umul24(a: Values, b: Values) -> Any:
    return _low_24(a, signed=False) * _low_24(b, signed=False) & _LOW


# ---- Names -----------------------------------------------------------------------------------------


def _table() -> dict[str, DeviceFunction]:
    found: dict[str, DeviceFunction] = {}

    def add(name: str, takes: tuple[str, ...], result: str, run: Callable[..., Values]) -> None:
        found[name] = DeviceFunction(takes, result, run)

    f, i, u = "float32", "int32", "uint32"
    for how in ROUNDINGS:
        for target, short in (("float16", "half"), ("bfloat16", "bfloat16")):
            add(f"__float2{short}_{how}", (f,), target, partial(_narrowed, dtype=target, how=how))
        add(f"__double2float_{how}", ("float64",), f, partial(_narrowed, dtype=f, how=how))
        for word, letter in ((i, "int"), (u, "uint")):
            add(f"__{letter}2float_{how}", (word,), f, partial(_narrowed, dtype=f, how=how))
            for source, held in (
                ("float", f),
                ("double", "float64"),
                ("half", "float16"),
                ("bfloat16", "bfloat16"),
            ):
                add(f"__{source}2{letter}_{how}", (held,), word, partial(_whole, dtype=word, how=how))
        for name, count, run in (
            ("fadd", 2, _add), ("fsub", 2, _sub), ("fmul", 2, _mul), ("fmaf", 3, _fma), ("fdiv", 2, _div),
            ("frcp", 1, _reciprocal), ("fsqrt", 1, _sqrt),
        ):  # fmt: skip
            add(f"__{name}_{how}", (f,) * count, f, partial(run, dtype=f, how=how))
    found["__float2half"] = found["__float2half_rn"]
    found["__float2bfloat16"] = found["__float2bfloat16_rn"]
    for name, source in (("__half2float", "float16"), ("__bfloat162float", "bfloat16")):
        add(name, (source,), f, lambda x: x)
    for name, source, target in (
        ("__float_as_int", f, i),
        ("__float_as_uint", f, u),
        ("__int_as_float", i, f),
        ("__uint_as_float", u, f),
    ):
        add(name, (source,), target, partial(_same_bits, source=source, dtype=target))
    single: dict[str, Callable[..., Values]] = {
        "__expf": np.exp, "__exp10f": lambda x: np.power(np.float32(10), x), "__logf": np.log,
        "__log2f": np.log2, "__log10f": np.log10, "__sinf": np.sin, "__cosf": np.cos, "__tanf": np.tan,
        "__frsqrt_rn": lambda x: round_to(1 / np.sqrt(_wide(x)), f),
        "__saturatef": lambda x: np.where(np.isnan(x), np.float32(0), np.clip(x, 0, 1)),
    }  # fmt: skip
    for name, run in single.items():
        add(name, (f,), f, run)
    add("__fdividef", (f, f), f, _quotient)
    add("__powf", (f, f), f, np.power)
    add("__brev", (u,), u, _reversed_bits)
    add("__byte_perm", (u, u, u), u, _byte_perm)
    for side in "lr":
        for end in ("", "c"):
            run = partial(_funnel, left=side == "l", clamp=bool(end))
            add(f"__funnelshift_{side}{end}", (u, u, u), u, run)
    add("__umulhi", (u, u), u, _high_word)
    add("__mulhi", (i, i), i, lambda a, b: np.asarray(a) * np.asarray(b) >> 32)
    add("__mul24", (i, i), i, _mul24)
    add("__umul24", (u, u), u, _umul24)
    return found


_FUNCTIONS = _table()
_HALVES: dict[str, tuple[int, Callable[..., Values]]] = {
    "__hadd": (2, _add), "__hsub": (2, _sub), "__hmul": (2, _mul), "__hfma": (3, _fma), "__hdiv": (2, _div),
}  # fmt: skip
_CACHED = ("__ldg", "__ldca", "__ldcg", "__ldcs", "__ldcv", "__ldlu")  # loads with a hint for the caches
