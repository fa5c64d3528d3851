"""Element types of expressions: which dtype an operation on given dtypes yields.

The rules are TVM's where it has one. Literals are weak: a Python number takes the type of what it
meets (``x * 2.0`` with a float16 ``x`` is float16), so that constants never widen a computation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import COMPARISONS, Binary, Call, Cast, Const, Expr, Load, Var

_WEAK = frozenset({"int32", "float32", "bool"})
_NEXT_FLOAT = {4: "float16", 8: "float16", 16: "float32", 32: "float32", 64: "float64"}
_BOOL_FUNCTIONS = frozenset({"isnan", "isinf", "isfinite", "not", "likely"})
_SAME_TYPE_FUNCTIONS = frozenset(
    {
        *("abs", "neg", "bitnot", "floor", "ceil", "round", "trunc", "copysign"),
        *("shfl", "shfl_xor", "shfl_up", "shfl_down"),
        *(f"{who}_{kind}" for who in ("warp", "block") for kind in ("sum", "max", "min", "bitand", "bitor")),
    }
)
_OWN_TYPE = {
    **dict.fromkeys(("popc", "clz", "ffs", "any_sync", "all_sync", "block_rank_in_cluster"), "int32"),
    **dict.fromkeys(("syncthreads_or", "syncthreads_and", "syncthreads_count"), "int32"),
    **dict.fromkeys(("ballot", "activemask"), "uint64"),
    **dict.fromkeys(("match_any", "match_all", "rng_rand"), "uint32"),
    **dict.fromkeys((f"clc_get_first_ctaid_{axis}" for axis in "xyz"), "uint32"),
    **{"clc_is_canceled": "int32", "rng_uniform": "float32", "rng_normal": "float32"},
    **dict.fromkeys(("rng_uniform_double", "rng_normal_double"), "float64"),
}
"""Result types that do not depend on the arguments'."""


_FLOATS = frozenset(name for name, d in DTYPES.items() if d.kind == "float")


def is_float(name: str) -> bool:
    """Whether the canonical dtype ``name`` is a floating-point type."""
    return name in _FLOATS


@cache
def promote(a: str, b: str) -> str:
    """The common type of two (strong) operand types.

    Floats win over integers, the wider over the narrower; two floats of one width and different
    format meet in the next width that holds both; at equal width unsigned wins, as in C.
    """
    if a == b:
        return a
    first, second = DTYPES[a], DTYPES[b]
    if (first.kind == "float") != (second.kind == "float"):
        return a if first.kind == "float" else b
    if "bool" in (first.kind, second.kind):
        return b if first.kind == "bool" else a
    if first.bits != second.bits:
        return a if first.bits > second.bits else b
    if first.kind == "float":
        return _NEXT_FLOAT[first.bits]
    return a if first.kind == "uint" else b


def binary_dtype(op: str, a: Expr, a_dtype: str, b: Expr, b_dtype: str) -> str:
    """Type of ``Binary(op, a, b)`` given the operands' types."""
    if op in COMPARISONS:
        return "bool"
    weak_a = isinstance(a, Const) and a_dtype in _WEAK
    weak_b = isinstance(b, Const) and b_dtype in _WEAK
    if weak_a != weak_b:
        weak, strong = (a_dtype, b_dtype) if weak_a else (b_dtype, a_dtype)
        wins = strong == "bool" or (is_float(weak) and not is_float(strong))
        result = weak if wins else strong
    else:
        result = promote(a_dtype, b_dtype)
    return "float32" if op == "div" and not is_float(result) else result


def call_dtype(fn: str, args: tuple[Expr, ...], dtypes: tuple[str, ...]) -> str:
    """Type of ``Call(fn, args)`` given the arguments' types."""
    if fn in _BOOL_FUNCTIONS:
        return "bool"
    if fn in _SAME_TYPE_FUNCTIONS:
        return dtypes[0]
    if fn in _OWN_TYPE:
        return _OWN_TYPE[fn]
    if fn.startswith("extern:"):
        return fn.split(":")[1]
    if fn == "if_then_else":
        return binary_dtype("add", args[1], dtypes[1], args[2], dtypes[2])
    if fn == "clamp":
        low = binary_dtype("add", args[0], dtypes[0], args[1], dtypes[1])
        return binary_dtype("add", args[0], low, args[2], dtypes[2])
    return dtypes[0] if is_float(dtypes[0]) else "float32"


def dtype_of(e: Expr, buffers: Mapping[str, str] | Callable[[str], str]) -> str:
    """Canonical dtype of ``e``; ``buffers`` gives each buffer's dtype by name.

    Raises:
        KeyError: a buffer is unknown.
    """
    if isinstance(e, Const | Var | Cast):
        return e.dtype
    if isinstance(e, Load):
        return buffers[e.buffer] if isinstance(buffers, Mapping) else buffers(e.buffer)
    if isinstance(e, Binary):
        return binary_dtype(e.op, e.a, dtype_of(e.a, buffers), e.b, dtype_of(e.b, buffers))
    if isinstance(e, Call):
        return call_dtype(e.fn, e.args, tuple(dtype_of(a, buffers) for a in e.args))
    raise TypeError(f"not an expression: {e!r}")
