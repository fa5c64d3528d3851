"""Values of expressions for all blocks of a frame (and all iterations of a ``T.Parallel``) at once.

A value is a number or an array whose axes are the block axes, then the iteration axes of the
parallel nest around it. It is held in the carrier of its element type and rounded to that type after
every operation, as a chip that computes in it would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import (
    BINARY_OPS,
    COMPARISONS,
    FUNCTIONS,
    Binary,
    Call,
    Cast,
    Const,
    Expr,
    Load,
    Var,
)
from foretile.kernels.infer import binary_dtype, call_dtype, dtype_of, is_float
from foretile.kernels.ir import Loc
from foretile.simulator.numerics.crosslane import bits_of
from foretile.simulator.numerics.device import DeviceFunction, device_value
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.formats import carrier, decode, encode, round_to, storage
from foretile.simulator.numerics.frame import Frame

Value = Any  # a Python number or an array over (block axes, iteration axes)

_WIDE = frozenset({"float32", "float64"})
_OF_MAGNITUDE = frozenset({"floordiv", "mod", "truncdiv", "truncmod", "min", "max"})
_BIT_COUNTS = frozenset({"popc", "clz", "ffs"})


def _fmax(a: Value, b: Value) -> Value:
    """Maximum as chips define it: the other operand where one is NaN."""
    found = np.maximum(a, b)
    return np.fmax(a, b) if np.isnan(found).any() else found


def _fmin(a: Value, b: Value) -> Value:
    found = np.minimum(a, b)
    return np.fmin(a, b) if np.isnan(found).any() else found


_FLOAT_OPS: dict[str, Callable[[Any, Any], Any]] = {**BINARY_OPS, "max": _fmax, "min": _fmin}


@dataclass
class Scope:
    """Where an expression is evaluated.

    ``nest``: extents of the parallel iterations around it; ``read(load, indices, mask)`` fetches
    elements; ``mask``: where the value is needed at all (None: everywhere); ``across``: what gives the
    value of functions of several threads, or of code that is opaque here (None: they are refused).
    """

    frame: Frame
    dtypes: Mapping[str, str]
    read: Callable[[Load, tuple[Value, ...], Any, Scope], Value]
    nest: tuple[int, ...] = ()
    iterations: dict[str, Any] = field(default_factory=dict)
    mask: Any = None
    loc: Loc | None = None
    across: Callable[[Call, Scope], tuple[Value, str]] | None = None

    @property
    def ndim(self) -> int:
        """Axes of a value: block axes and iteration axes."""
        return len(self.frame.axes) + len(self.nest)

    def lift(self, value: Value) -> Value:
        """A value over block axes only, with the iteration axes behind."""
        if np.ndim(value) and np.ndim(value) < self.ndim:
            return value.reshape(value.shape + (1,) * (self.ndim - np.ndim(value)))
        return value

    def where(self, mask: Value) -> Scope:
        """The same scope where ``mask`` holds as well."""
        both = mask if self.mask is None else np.logical_and(self.mask, mask)
        narrow = copy(self)
        narrow.mask = both
        return narrow

    def value(self, e: Expr) -> Value:
        """The value of ``e`` in the carrier of its type."""
        return self.typed(e)[0]

    def typed(self, e: Expr) -> tuple[Value, str]:
        """The value of ``e`` and its canonical dtype."""
        if isinstance(e, Const):
            return e.value, e.dtype
        if isinstance(e, Var):
            found = self.iterations.get(e.name)
            return (self.lift(self.frame.env[e.name]) if found is None else found), e.dtype
        if isinstance(e, Load):
            indices = tuple(self.value(i) for i in e.indices)
            return self.read(e, indices, self.mask, self), self.dtypes[e.buffer]
        if isinstance(e, Cast):
            value, dtype = self.typed(e.a)
            if e.bits:
                return reinterpreted(value, dtype, e.dtype), e.dtype
            return convert(value, dtype, e.dtype), e.dtype
        if isinstance(e, Binary):
            return self._binary(e)
        if isinstance(e, Call):
            return self._call(e)
        raise TypeError(f"not an expression: {e!r}")

    def _binary(self, e: Binary) -> tuple[Value, str]:
        a, a_dtype = self.typed(e.a)
        if e.op in ("and", "or"):  # the right side counts only where the left one has not decided
            right = self.where(a if e.op == "and" else np.logical_not(a))
            b = right.value(e.b)
            return BINARY_OPS[e.op](a, b), "bool"
        b, b_dtype = self.typed(e.b)
        if e.op in COMPARISONS:
            meet = binary_dtype("add", e.a, a_dtype, e.b, b_dtype)
            a, b = convert(a, a_dtype, meet), convert(b, b_dtype, meet)
            if meet == "uint64":
                a, b = _natural(a), _natural(b)
            return BINARY_OPS[e.op](a, b), "bool"
        dtype = binary_dtype(e.op, e.a, a_dtype, e.b, b_dtype)
        a, b = convert(a, a_dtype, dtype), convert(b, b_dtype, dtype)
        if is_float(dtype):
            return _rounded(_FLOAT_OPS[e.op](a, b), dtype), dtype
        if e.op in ("shl", "shr"):
            if e.op == "shl" and np.any(np.asarray(b) >= DTYPES[dtype].bits) and DTYPES[dtype].bits < 32:
                # Of its own type nothing would be left: the author counts on C++'s promotion to int.
                a, dtype = convert(a, dtype, "int32"), "int32"
            return _wrapped(_shifted(e.op, a, b, dtype), dtype), dtype
        if dtype == "uint64" and e.op in _OF_MAGNITUDE:
            return np.asarray(BINARY_OPS[e.op](_natural(a), _natural(b))).astype(np.int64), dtype
        return _wrapped(BINARY_OPS[e.op](a, b), dtype), dtype

    def _call(self, e: Call) -> tuple[Value, str]:
        if e.fn == "if_then_else":
            return self._choose(e)
        if e.fn.startswith("extern:"):
            _, declared, name = e.fn.split(":", 2)
            known = device_value(name, declared)
            if known is not None and len(known.takes) == len(e.args):
                return self._device(known, e), declared
        if e.fn not in FUNCTIONS:
            if self.across is None:
                raise NumericsError(_refusal(e.fn), self.loc)
            return self.across(e, self)
        values, dtypes = zip(*(self.typed(a) for a in e.args), strict=True)
        dtype = call_dtype(e.fn, e.args, dtypes)
        if dtype == "bool":
            return FUNCTIONS[e.fn](*values), dtype
        if e.fn in _BIT_COUNTS:
            return np.asarray(FUNCTIONS[e.fn](bits_of(values[0], dtypes[0]))).astype(np.int64)[()], dtype
        values = tuple(convert(v, d, dtype) for v, d in zip(values, dtypes, strict=True))
        found = FUNCTIONS[e.fn](*values)
        return (_rounded(found, dtype) if is_float(dtype) else _wrapped(found, dtype)), dtype

    def _device(self, known: DeviceFunction, e: Call) -> Value:
        """A function of the CUDA Math API; arguments and result are converted as C++ does."""
        values = []
        for arg, takes in zip(e.args, known.takes, strict=True):
            value, dtype = self.typed(arg)
            values.append(np.asarray(convert(value, dtype, takes)).astype(carrier(takes), copy=False))
        return convert(np.asarray(known.run(*values)), known.result, e.fn.split(":")[1])

    def _choose(self, e: Call) -> tuple[Value, str]:
        cond = self.value(e.args[0])
        if np.ndim(cond) == 0:
            chosen, other = (e.args[1], e.args[2]) if cond else (e.args[2], e.args[1])
            value, dtype = self.typed(chosen)
            other_dtype = dtype_of(other, self.dtypes)
            meet = binary_dtype("add", chosen, dtype, other, other_dtype)
            return convert(value, dtype, meet), meet
        a, a_dtype = self.where(cond).typed(e.args[1])
        b, b_dtype = self.where(np.logical_not(cond)).typed(e.args[2])
        dtype = binary_dtype("add", e.args[1], a_dtype, e.args[2], b_dtype)
        a, b = convert(a, a_dtype, dtype), convert(b, b_dtype, dtype)
        found: Any = np.where(cond, a, b)
        return found.astype(carrier(dtype), copy=False), dtype


def _natural(value: Value) -> Value:
    """A uint64, which is held modulo 2**64 in int64, as the number it is."""
    return (
        np.asarray(value).astype(np.int64, copy=False).view(np.uint64)
        if np.ndim(value)
        else np.uint64(int(value) % (1 << 64))
    )


def _shifted(op: str, a: Value, b: Value, dtype: str) -> Value:
    """Shifts as chips do them: by the type's width or more, everything is shifted out."""
    bits = DTYPES[dtype].bits
    if isinstance(a, int) and isinstance(b, int):
        return BINARY_OPS[op](a, min(max(b, 0), 4 * bits))
    a, b = np.asarray(a), np.asarray(b)
    if op == "shl":
        return np.where((b < 0) | (b >= bits), 0, a << np.clip(b, 0, bits - 1))
    if dtype == "uint64":
        a = np.asarray(_natural(a))
        kept = (a >> np.clip(b, 0, 63).astype(np.uint64)).astype(np.int64)
        return np.where((b < 0) | (b >= 64), 0, kept)
    return a >> np.clip(b, 0, 8 * a.dtype.itemsize - 1)


def _refusal(fn: str) -> str:
    if fn.startswith("extern:"):
        return f"{fn.split(':')[2]} is code that is opaque here: it has no numerics"
    return f"{fn} is a function of several threads: it has no value inside of a parallel loop"


def convert(value: Value, source: str, target: str) -> Value:
    """``value`` of type ``source`` as ``target``, rounded and saturated as chips convert."""
    if source == target:
        return _number(value, target)
    if target == "bool":
        return np.not_equal(value, 0)
    if isinstance(value, int | float | bool) and not is_float(target) and not is_float(source):
        return _wrapped(int(value), target)
    if isinstance(value, int | float | bool):
        return round_to(np.asarray(value, dtype=_plain(value)), target)[()]
    if source == "bool":
        return np.asarray(value).astype(carrier(target))
    if target in _WIDE and source not in ("float64", "int64", "uint64", "int32", "uint32"):
        return value.astype(carrier(target), copy=False)
    return round_to(value, target)


def reinterpreted(value: Value, source: str, target: str) -> Value:
    """The bits of ``value`` of type ``source``, read as ``target``."""
    held = np.asarray(_number(value, source) if is_float(source) else value).astype(carrier(source))
    return decode(np.ascontiguousarray(encode(held, source)).view(storage(target)), target).reshape(
        held.shape
    )


def _plain(value: float) -> Any:
    return np.float64 if isinstance(value, float) else np.int64


def _number(value: Value, dtype: str) -> Value:
    """Float literals in the carrier, so that NumPy computes in single precision."""
    return carrier(dtype).type(value) if isinstance(value, float) else value


def _rounded(value: Value, dtype: str) -> Value:
    if dtype in _WIDE:
        return (
            value.astype(carrier(dtype), copy=False)
            if isinstance(value, np.ndarray)
            else carrier(dtype).type(value)
        )
    return round_to(np.asarray(value), dtype)


def _wrapped(value: Value, dtype: str) -> Value:
    """Two's complement of the type's width."""
    kind, bits = DTYPES[dtype].kind, DTYPES[dtype].bits
    if kind == "bool" or bits == 64:
        return value
    low = 0 if kind == "uint" else -(1 << (bits - 1))
    if isinstance(value, int):
        return (value - low) % (1 << bits) + low
    if value.size and (value.min() < low or value.max() > low + (1 << bits) - 1):
        return (value.astype(np.int64) - low) % (1 << bits) + low
    return value
