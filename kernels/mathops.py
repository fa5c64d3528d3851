"""Functions on values: arithmetic, choice, casts, numeric limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.errors import fail
from foretile.kernels.expr import Const, Expr, binary
from foretile.kernels.handles import BufferHandle, RegionHandle, region_of
from foretile.kernels.infer import is_float
from foretile.kernels.ir import Region
from foretile.kernels.values import Result, Value, binary_value, canonical, cast, function, operand

_ANY_OF_LIMIT = 1024


def _unary(fn: str, doc: str) -> Callable[[Any], Value]:
    def apply(x: Any) -> Value:
        return function(fn, x)

    apply.__name__ = apply.__qualname__ = fn
    apply.__doc__ = doc
    return apply


exp = _unary("exp", "e to the power ``x``.")
exp2 = _unary("exp2", "2 to the power ``x``.")
log = _unary("log", "Natural logarithm.")
log2 = _unary("log2", "Binary logarithm.")
sqrt = _unary("sqrt", "Square root.")
rsqrt = _unary("rsqrt", "Reciprocal of the square root.")
tanh = _unary("tanh", "Hyperbolic tangent.")
sin = _unary("sin", "Sine.")
cos = _unary("cos", "Cosine.")
sigmoid = _unary("sigmoid", "``1 / (1 + exp(-x))``.")
erf = _unary("erf", "Error function.")
absolute = _unary("abs", "Absolute value.")
floor = _unary("floor", "Largest whole number not above ``x``.")
ceil = _unary("ceil", "Smallest whole number not below ``x``.")
round_ = _unary("round", "Nearest whole number, ties to even.")
isnan = _unary("isnan", "Whether ``x`` is not a number.")
isinf = _unary("isinf", "Whether ``x`` is infinite.")
isfinite = _unary("isfinite", "Whether ``x`` is a finite number.")
log10 = _unary("log10", "Decimal logarithm.")
log1p = _unary("log1p", "``log(1 + x)``.")
exp10 = _unary("exp10", "10 to the power ``x``.")
tan = _unary("tan", "Tangent.")
asin = _unary("asin", "Arc sine.")
acos = _unary("acos", "Arc cosine.")
atan = _unary("atan", "Arc tangent.")
sinh = _unary("sinh", "Hyperbolic sine.")
cosh = _unary("cosh", "Hyperbolic cosine.")
asinh = _unary("asinh", "Inverse hyperbolic sine.")
acosh = _unary("acosh", "Inverse hyperbolic cosine.")
atanh = _unary("atanh", "Inverse hyperbolic tangent.")
trunc = _unary("trunc", "Whole part of ``x``.")
rcp = _unary("rcp", "Reciprocal.")
popcount = _unary("popc", "How many bits are set.")
clz = _unary("clz", "How many bits in front are not set.")
ffs = _unary("ffs", "The place of the lowest bit that is set, from 1; 0 of zero.")


def _plain(*values: Any) -> bool:
    return all(isinstance(v, int | float) for v in values)


def maximum(a: Any, b: Any, *more: Any) -> Any:
    """The larger value (of Python numbers: a Python number)."""
    return max(a, b, *more) if _plain(a, b, *more) else reduce(_two("max"), (b, *more), a)


def minimum(a: Any, b: Any, *more: Any) -> Any:
    """The smaller value (of Python numbers: a Python number)."""
    return min(a, b, *more) if _plain(a, b, *more) else reduce(_two("min"), (b, *more), a)


def _two(op: str) -> Callable[[Any, Any], Any]:
    return lambda a, b: binary_value(op, a, b)


def clamp(x: Any, low: Any, high: Any) -> Value:
    """``x`` limited to ``low`` … ``high``."""
    return function("clamp", x, low, high)


def _several(fn: str, doc: str) -> Callable[..., Value]:
    def apply(*args: Any) -> Value:
        return function(fn, *args)

    apply.__name__ = apply.__qualname__ = fn
    apply.__doc__ = doc
    return apply


atan2 = _several("atan2", "Angle of the point (``y``, ``x``).")
hypot = _several("hypot", "Length of the vector (``x``, ``y``).")
fmod = _several("fmod", "Remainder with the sign of the first.")
copysign = _several("copysign", "The first with the sign of the second.")
fma = _several("fma", "``a · b + c``, rounded once.")


def power(x: Any, y: Any) -> Value:
    """``x`` to the power ``y``."""
    return binary_value("pow", x, y)


def if_then_else(condition: Any, a: Any, b: Any) -> Value:
    """``a`` where ``condition`` holds, else ``b``; neither side has effects."""
    e, dtype = operand(condition)
    if dtype != "bool" and not isinstance(e, Const):
        condition = binary_value("ne", condition, 0)
    elif not isinstance(e, Const):
        pass
    elif not isinstance(e.value, bool):
        condition = bool(e.value)
    return function("if_then_else", condition, a, b)


def ceildiv(a: Any, b: Any) -> Any:
    """``a / b`` rounded up."""
    if isinstance(a, int) and isinstance(b, int):
        return -(-a // b)
    (ea, da), (eb, db) = operand(a), operand(b)
    if is_float(da) or is_float(db):
        fail(f"T.ceildiv needs whole numbers, got {da} and {db}")
    if isinstance(eb, Const):
        if eb.value <= 0:
            fail(f"T.ceildiv by {eb.value}")
        raised = binary("add", ea, Const(int(eb.value) - 1))
    else:
        raised = binary("sub", binary("add", ea, eb), Const(1))
    return Result(binary("floordiv", raised, eb), binary_value("add", a, b).dtype)


def floordiv(a: Any, b: Any) -> Any:
    """``a / b`` rounded down."""
    return a // b if _plain(a, b) else binary_value("floordiv", a, b)


def floormod(a: Any, b: Any) -> Any:
    """Remainder of :func:`floordiv`, with the sign of ``b``."""
    return a % b if _plain(a, b) else binary_value("mod", a, b)


def truncdiv(a: Any, b: Any) -> Any:
    """``a / b`` rounded towards zero."""
    if isinstance(a, int) and isinstance(b, int):
        return int(math.copysign(1, a) * math.copysign(1, b)) * (abs(a) // abs(b))
    return binary_value("truncdiv", a, b)


def truncmod(a: Any, b: Any) -> Any:
    """Remainder of :func:`truncdiv`, with the sign of ``a``."""
    if isinstance(a, int) and isinstance(b, int):
        return a - truncdiv(a, b) * b
    return binary_value("truncmod", a, b)


def Cast(dtype: Any, value: Any) -> Value:
    """``value`` converted to ``dtype`` (the argument order of TVM's ``Cast``)."""
    return cast(value, dtype)


def likely(condition: Any) -> Value:
    """``condition``, which is expected to hold; a branch on it is timed as taken."""
    e, dtype = operand(condition)
    return function("likely", condition if dtype == "bool" else binary_value("ne", Result(e, dtype), 0))


def infinity(dtype: Any = "float32") -> Value:
    """Positive infinity of a float type."""
    name = canonical(dtype)
    if not is_float(name):
        fail(f"{name} has no infinity; use T.max_value({name!r})")
    return Result(Const(math.inf, name), name)


def max_value(dtype: Any) -> Value:
    """The largest finite number of a type."""
    return _limit(canonical(dtype), largest=True)


def min_value(dtype: Any) -> Value:
    """The smallest (most negative) finite number of a type."""
    return _limit(canonical(dtype), largest=False)


# Largest finite values of the formats NumPy does not know: IEEE 754 layout for bfloat16 and tf32,
# OCP OFP8 rev. 1.0 for float8, OCP MX v1.0 for float4.
_LARGEST = {
    "float64": 1.7976931348623157e308,
    "float32": 3.4028234663852886e38,
    "tfloat32": 3.4011621342146535e38,
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
    "float8_e4m3": 448.0,
    "float8_e5m2": 57344.0,
    "float8_e8m0": 2.0**127,
    "float4_e2m1": 6.0,
}


def _limit(name: str, *, largest: bool) -> Value:
    info = DTYPES[name]
    if info.kind == "float":
        if name == "float8_e8m0" and not largest:
            return Result(Const(2.0**-127, name), name)  # a scale format: positive only
        return Result(Const(_LARGEST[name] if largest else -_LARGEST[name], name), name)
    if info.kind == "bool":
        return Result(Const(largest, name), name)
    if info.kind == "uint":
        return Result(Const(2**info.bits - 1 if largest else 0, name), name)
    half = 1 << (info.bits - 1)
    return Result(Const(half - 1 if largest else -half, name), name)


def _truths(what: str, args: tuple[Any, ...]) -> list[Value]:
    truths: list[Value] = []
    for arg in args:
        if isinstance(arg, BufferHandle | RegionHandle):
            handle, region = region_of(arg, f"argument of {what}")
            for indices in _points(region, what):
                truths.append(binary_value("ne", handle[indices], 0))
        else:
            e, dtype = operand(arg)
            truths.append(Result(e, dtype) if dtype == "bool" else binary_value("ne", arg, 0))
    return truths


def _points(region: Region, what: str) -> list[tuple[Value, ...]]:
    points: list[tuple[Expr, ...]] = [()]
    for low, extent in zip(region.mins, region.extents, strict=True):
        if not isinstance(extent, Const):
            fail(f"{what} needs a region of constant extents, got one of {region.buffer} that is symbolic")
        points = [(*p, binary("add", low, Const(i))) for p in points for i in range(int(extent.value))]
        if len(points) > _ANY_OF_LIMIT:
            fail(f"{what} over more than {_ANY_OF_LIMIT} elements of {region.buffer}; use a T.reduce_max")
    return [tuple(Result(e, "int32") for e in p) for p in points]


def _tree(op: str, truths: list[Value]) -> Value:
    """Combine pairwise, so that depth grows with the logarithm of the count."""
    while len(truths) > 1:
        pairs = [binary_value(op, a, b) for a, b in zip(truths[::2], truths[1::2], strict=False)]
        truths = pairs + ([truths[-1]] if len(truths) % 2 else [])
    return truths[0]


def any_of(*args: Any) -> Value:
    """Whether any of the conditions, or any element of a (small) buffer or slice, is true."""
    return _tree("or", _truths("T.any_of", args))


def all_of(*args: Any) -> Value:
    """Whether all of the conditions, or all elements of a (small) buffer or slice, are true."""
    return _tree("and", _truths("T.all_of", args))


__all__ = [
    "Cast",
    "acos",
    "acosh",
    "all_of",
    "any_of",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "ceil",
    "ceildiv",
    "clamp",
    "clz",
    "copysign",
    "cos",
    "cosh",
    "erf",
    "exp",
    "exp2",
    "exp10",
    "ffs",
    "floor",
    "floordiv",
    "floormod",
    "fma",
    "fmod",
    "hypot",
    "if_then_else",
    "infinity",
    "isfinite",
    "isinf",
    "isnan",
    "likely",
    "log",
    "log1p",
    "log2",
    "log10",
    "max_value",
    "min_value",
    "popcount",
    "rcp",
    "rsqrt",
    "sigmoid",
    "sin",
    "sinh",
    "sqrt",
    "tan",
    "tanh",
    "trunc",
    "truncdiv",
    "truncmod",
]
"""The names that are part of the language."""
