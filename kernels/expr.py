"""Expressions of tile programs: frozen trees compared by structure, evaluated over NumPy arrays.

An expression is an index, an extent, a predicate or an element value. Evaluation broadcasts, so
one call gives a loop's trip count for a thousand shapes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class Expr:
    """Base of all expressions."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Const(Expr):
    """A literal; ``dtype`` is a canonical name ("int32", "float32", "bool", …)."""

    value: int | float | bool
    dtype: str = "int32"


@dataclass(frozen=True, slots=True)
class Var(Expr):
    """A loop index, a block index or a symbolic dimension, known by its (unique) name."""

    name: str
    dtype: str = "int32"


@dataclass(frozen=True, slots=True)
class Binary(Expr):
    """``op`` is a key of :data:`BINARY_OPS`."""

    op: str
    a: Expr
    b: Expr


@dataclass(frozen=True, slots=True)
class Call(Expr):
    """A function of values: a name in :data:`FUNCTIONS` (``exp2``, ``if_then_else``, …), one of
    :data:`THREAD_FUNCTIONS`, or ``extern:DTYPE:NAME`` for opaque device code that returns a ``DTYPE``.
    """

    fn: str
    args: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Cast(Expr):
    """Conversion of ``a`` to the canonical dtype name ``dtype``; with ``bits`` its bits read as that type."""

    dtype: str
    a: Expr
    bits: bool = False


@dataclass(frozen=True, slots=True)
class Load(Expr):
    """One element of the buffer called ``buffer``."""

    buffer: str
    indices: tuple[Expr, ...]


class Stacked:
    """One tensor a row, told apart by the first axis: what :func:`evaluate` reads is each row's own.

    The rows may differ in length along the only further axis; shorter ones are padded with their last
    value. An index has one value a row (rows, …) or one for all of them (1, …).
    """

    __slots__ = ("changes", "lengths", "unique", "values")

    def __init__(self, rows: Sequence[np.ndarray]) -> None:
        self.lengths = np.array([len(row) for row in rows], dtype=np.int64).reshape(-1, 1)
        longest = int(self.lengths.max())
        self.values = np.stack([np.pad(row, (0, longest - len(row)), mode="edge") for row in rows])
        ordered = np.sort(self.values, axis=1)
        # How many neighbours differ, and how many different values there are: (rows, 1).
        self.changes, others = (
            np.count_nonzero(np.diff(v, axis=1), axis=1).reshape(-1, 1) for v in (self.values, ordered)
        )
        self.unique = 1 + others

    def at(self, index: np.ndarray) -> np.ndarray:
        """The elements that each row has at these places."""
        return np.asarray(self.values[np.arange(len(self.values)).reshape(-1, 1), index])


def _floordiv(a: Any, b: Any) -> Any:
    # Whole numbers held as floats: one division and a floor cost a fifth of NumPy's floor_divide,
    # and are exact below 2**53.
    if isinstance(a, np.ndarray) and a.dtype.kind == "f":
        return np.floor(a / b)
    return a // b


def _truncdiv(a: Any, b: Any) -> Any:
    quotient = np.abs(a) // np.abs(b)
    return np.where((np.asarray(a) < 0) != (np.asarray(b) < 0), -quotient, quotient)


def _bits(a: Any) -> Any:
    """A whole number that is held as a float, as the model holds indices, as an integer."""
    kind = getattr(a, "dtype", None)
    if kind is not None and kind.kind == "f":
        return np.asarray(a).astype(np.int64)
    return int(a) if isinstance(a, float) else a


BINARY_OPS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "floordiv": _floordiv,
    "mod": lambda a, b: a % b,
    "min": np.minimum,
    "max": np.maximum,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": np.logical_and,
    "or": np.logical_or,
    "bitand": lambda a, b: _bits(a) & _bits(b),
    "bitor": lambda a, b: _bits(a) | _bits(b),
    "bitxor": lambda a, b: _bits(a) ^ _bits(b),
    "shl": lambda a, b: _bits(a) << _bits(b),
    "shr": lambda a, b: _bits(a) >> _bits(b),
    "pow": lambda a, b: a**b,
    "truncdiv": _truncdiv,
    "truncmod": np.fmod,
}
COMPARISONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne", "and", "or"})


def _erf(x: Any) -> Any:
    from scipy.special import erf

    return erf(x)


def _popc(x: Any) -> Any:
    return np.bitwise_count(_unsigned(x))


def _clz(x: Any) -> Any:
    bits = _unsigned(x)
    return 8 * bits.dtype.itemsize - _bit_length(bits)


def _ffs(x: Any) -> Any:
    bits = _unsigned(x)
    return _bit_length(bits & (~bits + np.ones_like(bits)))


def _unsigned(x: Any) -> Any:
    array = np.asarray(x)
    if array.dtype.kind == "u":
        return array
    return array.astype(np.int64 if array.dtype.itemsize > 4 else np.int32).view(f"u{max(4, array.itemsize)}")


def _bit_length(x: Any) -> Any:
    length = np.zeros(x.shape, dtype=np.int32)
    for step in (32, 16, 8, 4, 2, 1):
        if step >= 8 * x.dtype.itemsize:
            continue
        high = x >> x.dtype.type(step)
        length = np.where(high != 0, length + step, length)
        x = np.where(high != 0, high, x)
    return np.where(x != 0, length + 1, 0)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log2": np.log2,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "erf": _erf,
    "abs": np.abs,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "isnan": np.isnan,
    "neg": lambda x: -x,
    "not": np.logical_not,
    "bitnot": lambda x: ~x,
    "if_then_else": np.where,
    "clamp": np.clip,
    "likely": lambda x: x,
    "isinf": np.isinf,
    "isfinite": np.isfinite,
    "log10": np.log10,
    "log1p": np.log1p,
    "exp10": lambda x: np.power(10.0, x),
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "atan2": np.arctan2,
    "hypot": np.hypot,
    "fmod": np.fmod,
    "trunc": np.trunc,
    "rcp": lambda x: 1.0 / x,
    "copysign": np.copysign,
    "fma": lambda a, b, c: a * b + c,
    "popc": _popc,
    "clz": _clz,
    "ffs": _ffs,
}

_WARP = ("sum", "max", "min", "bitand", "bitor")
THREAD_FUNCTIONS = frozenset(
    {
        # Of a warp's threads: (value, lane or offset, width).
        *("shfl", "shfl_xor", "shfl_up", "shfl_down"),
        # Over a warp's threads: (value).
        *(f"warp_{kind}" for kind in _WARP),
        # Over the block's threads that differ in the given thread indices only: (value, index, …).
        *(f"block_{kind}" for kind in _WARP),
        # Votes of a warp, and of the block's threads at a barrier: (condition).
        *("any_sync", "all_sync", "ballot", "activemask", "match_any", "match_all"),
        *("syncthreads_or", "syncthreads_and", "syncthreads_count"),
        # Place in the cluster: (); what a query for the next block answered: (first element of the answer).
        *("block_rank_in_cluster", "clc_is_canceled"),
        *(f"clc_get_first_ctaid_{axis}" for axis in "xyz"),
        # The next number of the thread's generator: (); uniform or normal floats: ().
        *("rng_rand", "rng_uniform", "rng_normal", "rng_uniform_double", "rng_normal_double"),
    }
)
"""Functions whose value depends on which threads run together, or on their state."""


def is_function(name: str) -> bool:
    """Whether a call may have this name."""
    return name in FUNCTIONS or name in THREAD_FUNCTIONS or name.startswith("extern:")


def evaluate(e: Expr, env: Mapping[str, Any]) -> Any:
    """Value of ``e`` with variables (and whole tensors, for :class:`Load`) taken from ``env``.

    A tensor may be :class:`Stacked`: one for each row of the variables' arrays.

    Arrays in ``env`` broadcast against each other; integer division and modulo are floored.

    Raises:
        KeyError: a variable or a tensor is not in ``env``.
    """
    if isinstance(e, Const):
        return e.value
    if isinstance(e, Var):
        return env[e.name]
    if isinstance(e, Binary):
        return BINARY_OPS[e.op](evaluate(e.a, env), evaluate(e.b, env))
    if isinstance(e, Call):
        if e.fn not in FUNCTIONS:
            raise TypeError(f"{e.fn} decides no size or place that is known before a kernel runs")
        return FUNCTIONS[e.fn](*(evaluate(a, env) for a in e.args))
    if isinstance(e, Load):
        # Indices are whole numbers, held as floats where shapes are evaluated in bulk.
        indices = tuple(np.asarray(evaluate(i, env)).astype(np.int64) for i in e.indices)
        tensor = env[e.buffer]
        if isinstance(tensor, Stacked):
            return tensor.at(*indices)
        held = np.asarray(tensor)
        # Beyond the end lies what a condition around it excludes: all blocks are evaluated at once.
        return held[tuple(np.clip(i, 0, n - 1) for i, n in zip(indices, held.shape, strict=True))]
    if isinstance(e, Cast):
        if e.bits:
            raise TypeError("the bits of a number decide no size or place that is known before a kernel runs")
        value = evaluate(e.a, env)
        if e.dtype.startswith(("int", "uint")):
            return value.astype(np.int64) if isinstance(value, np.ndarray) else int(value)
        return value
    raise TypeError(f"not an expression: {e!r}")


def children(e: Expr) -> tuple[Expr, ...]:
    """Direct sub-expressions, left to right."""
    if isinstance(e, Binary):
        return (e.a, e.b)
    if isinstance(e, Call):
        return e.args
    if isinstance(e, Cast):
        return (e.a,)
    if isinstance(e, Load):
        return e.indices
    return ()


def walk(e: Expr) -> Iterator[Expr]:
    """``e`` and everything below it, parents first."""
    yield e
    for child in children(e):
        yield from walk(child)


def variables(e: Expr) -> frozenset[str]:
    """Names of all variables in ``e``."""
    return frozenset(x.name for x in walk(e) if isinstance(x, Var))


def loads(e: Expr) -> tuple[Load, ...]:
    """All element reads in ``e``, in order of appearance."""
    return tuple(x for x in walk(e) if isinstance(x, Load))


def substitute(e: Expr, values: Mapping[str, Expr]) -> Expr:
    """``e`` with each variable named in ``values`` replaced, constants folded on the way up."""
    if isinstance(e, Var):
        return values.get(e.name, e)
    if isinstance(e, Binary):
        return binary(e.op, substitute(e.a, values), substitute(e.b, values))
    if isinstance(e, Call):
        return call(e.fn, tuple(substitute(a, values) for a in e.args))
    if isinstance(e, Cast):
        return Cast(e.dtype, substitute(e.a, values), e.bits)
    if isinstance(e, Load):
        return Load(e.buffer, tuple(substitute(i, values) for i in e.indices))
    return e


def call(fn: str, args: tuple[Expr, ...]) -> Expr:
    """``Call(fn, args)`` with what constants decide folded: a sign, a negation, a choice."""
    first = args[0] if args else None
    if isinstance(first, Const):
        if fn == "neg" and not isinstance(first.value, bool):
            return Const(-first.value, first.dtype)
        if fn == "not" and isinstance(first.value, bool):
            return Const(not first.value, "bool")
        if fn == "if_then_else" and isinstance(first.value, bool):
            return args[1] if first.value else args[2]
    return Call(fn, args)


_FOLDABLE = frozenset({"add", "sub", "mul", "floordiv", "mod", "min", "max"}) | COMPARISONS - {"and", "or"}


def binary(op: str, a: Expr, b: Expr) -> Expr:
    """``Binary(op, a, b)`` with integer constants folded and the neutral elements dropped.

    The simplifications are the few that keep printed programs readable and equal programs equal
    by structure; this is no algebra system.
    """
    if isinstance(a, Const) and isinstance(b, Const) and op in _FOLDABLE:
        ints = isinstance(a.value, int) and isinstance(b.value, int)
        if ints and not (op in ("floordiv", "mod") and b.value == 0):
            value = BINARY_OPS[op](a.value, b.value)
            return Const(bool(value), "bool") if op in COMPARISONS else Const(int(value), a.dtype)
    if op in ("and", "or"):
        for this, other in ((a, b), (b, a)):
            if isinstance(this, Const) and isinstance(this.value, bool):
                return other if this.value == (op == "and") else this
    if isinstance(b, Const) and isinstance(b.value, int) and not isinstance(b.value, bool):
        if op in ("add", "sub") and b.value == 0:
            return a
        if op in ("mul", "floordiv") and b.value == 1:
            return a
        if (op == "mod" and b.value == 1) or (op == "mul" and b.value == 0 and isinstance(a, Var)):
            return Const(0, b.dtype)
    if isinstance(a, Const) and isinstance(a.value, int) and not isinstance(a.value, bool):
        if op == "add" and a.value == 0:
            return b
        if op == "mul" and a.value == 1:
            return b
    return Binary(op, a, b)
