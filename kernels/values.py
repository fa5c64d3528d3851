"""Values of a trace: Python objects around expressions, with operators that build expressions."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.dtypes import dtype as look_up_dtype
from foretile.kernels.errors import fail
from foretile.kernels.expr import Cast, Const, Expr, Var, binary, call
from foretile.kernels.infer import binary_dtype, call_dtype, is_float
from foretile.kernels.messages import text

_INT32_MAX = 2**31 - 1


class Binding(Protocol):
    """What a named value read, and when; :meth:`use` fails if that has been overwritten since."""

    def use(self) -> None:
        """Check that using the value now still means what it meant when it was named."""


class DTypeName(str):
    """A dtype's canonical name that can also be called to cast: ``T.float32(x)``."""

    __slots__ = ()

    def __call__(self, value: Any = 0) -> Value:
        """``value`` cast to this type."""
        return cast(value, self)


def canonical(name: Any) -> str:
    """The canonical name of a dtype given as a name, a ``T.float16``, a NumPy or a torch type."""
    if type(name) is not str and not isinstance(name, str):
        try:
            name = np.dtype(name).name
        except TypeError:
            name = str(name)
    name = name.removeprefix("torch.")
    try:
        return look_up_dtype(name).name
    except ValueError as error:
        fail(str(error))


class Value:
    """An expression with its dtype; operators give new values, comparisons included."""

    __slots__ = ("binding", "dtype", "expr")
    __array_ufunc__ = None  # NumPy scalars on the left leave the operation to us
    __iter__ = None  # a value is no sequence; without this, ``a, b = value`` would never end
    binding: Binding | None
    dtype: str
    expr: Expr

    def __init__(self, expr: Expr, dtype: str) -> None:
        self.expr = expr
        self.dtype = dtype
        self.binding = None

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<{self.dtype} {self.expr}>"

    def __bool__(self) -> bool:
        if isinstance(self.expr, Const):
            return bool(self.expr.value)
        fail(
            "a symbolic value has no truth at trace time; write `if`/`while`/`and`/`or` in the body of the "
            "@T.prim_func or of a @T.macro (plain helper functions are not rewritten), or use "
            "T.if_then_else(cond, a, b)"
        )

    def __index__(self) -> int:
        if isinstance(self.expr, Const) and isinstance(self.expr.value, int):
            return int(self.expr.value)
        fail("a whole number is needed here at trace time, but the value is symbolic")

    __int__ = __index__

    def __float__(self) -> float:
        if isinstance(self.expr, Const):
            return float(self.expr.value)
        fail(
            "a number is needed here at trace time, but the value is symbolic; "
            "to convert use T.cast(x, dtype)"
        )

    def astype(self, dtype: Any) -> Value:
        """This value converted to ``dtype``."""
        return cast(self, dtype)

    def __add__(self, other: Any) -> Value:
        return binary_value("add", self, other)

    def __radd__(self, other: Any) -> Value:
        return binary_value("add", other, self)

    def __sub__(self, other: Any) -> Value:
        return binary_value("sub", self, other)

    def __rsub__(self, other: Any) -> Value:
        return binary_value("sub", other, self)

    def __mul__(self, other: Any) -> Value:
        return binary_value("mul", self, other)

    def __rmul__(self, other: Any) -> Value:
        return binary_value("mul", other, self)

    def __truediv__(self, other: Any) -> Value:
        return divide(self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return divide(other, self)

    def __floordiv__(self, other: Any) -> Value:
        return binary_value("floordiv", self, other)

    def __rfloordiv__(self, other: Any) -> Value:
        return binary_value("floordiv", other, self)

    def __mod__(self, other: Any) -> Value:
        return binary_value("mod", self, other)

    def __rmod__(self, other: Any) -> Value:
        return binary_value("mod", other, self)

    def __pow__(self, other: Any) -> Value:
        return binary_value("pow", self, other)

    def __rpow__(self, other: Any) -> Value:
        return binary_value("pow", other, self)

    def __lshift__(self, other: Any) -> Value:
        return binary_value("shl", self, other)

    def __rlshift__(self, other: Any) -> Value:
        return binary_value("shl", other, self)

    def __rshift__(self, other: Any) -> Value:
        return binary_value("shr", self, other)

    def __rrshift__(self, other: Any) -> Value:
        return binary_value("shr", other, self)

    def __and__(self, other: Any) -> Value:
        return bitwise("bitand", "and", self, other)

    def __rand__(self, other: Any) -> Value:
        return bitwise("bitand", "and", other, self)

    def __or__(self, other: Any) -> Value:
        return bitwise("bitor", "or", self, other)

    def __ror__(self, other: Any) -> Value:
        return bitwise("bitor", "or", other, self)

    def __xor__(self, other: Any) -> Value:
        return bitwise("bitxor", "ne", self, other)

    def __rxor__(self, other: Any) -> Value:
        return bitwise("bitxor", "ne", other, self)

    def __lt__(self, other: Any) -> Value:
        return binary_value("lt", self, other)

    def __le__(self, other: Any) -> Value:
        return binary_value("le", self, other)

    def __gt__(self, other: Any) -> Value:
        return binary_value("gt", self, other)

    def __ge__(self, other: Any) -> Value:
        return binary_value("ge", self, other)

    def __eq__(self, other: object) -> Value:  # type: ignore[override]  # a comparison is an expression
        return binary_value("eq", self, other)

    def __ne__(self, other: object) -> Value:  # type: ignore[override]  # as above
        return binary_value("ne", self, other)

    def __neg__(self) -> Value:
        e, dtype = operand(self)
        return Result(call("neg", (e,)), dtype)

    def __pos__(self) -> Value:
        return self

    def __abs__(self) -> Value:
        return function("abs", self)

    def __invert__(self) -> Value:
        e, dtype = operand(self)
        return Result(call("not" if dtype == "bool" else "bitnot", (e,)), dtype)


class Result(Value):
    """The value of an operation.

    All kinds of values are siblings: Python lets the right operand of a comparison go first if its
    type is a subclass of the left one's, which would turn ``a < b`` into ``b > a``.
    """

    __slots__ = ()


class Index(Value):
    """A variable: a loop index, a block index or a symbolic dimension (``kind``)."""

    __slots__ = ("kind",)

    def __init__(self, var: Var, kind: str) -> None:
        super().__init__(var, var.dtype)
        self.kind = kind

    @property
    def name(self) -> str:
        """The variable's unique name."""
        assert isinstance(self.expr, Var)
        return self.expr.name


class Poison:
    """Stands for a Python name whose value only holds inside a branch or a loop already left."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def refuse(self, *_args: Any, **_kwargs: Any) -> Any:
        """Fail: any use of the name does."""
        fail(self.reason)

    __hash__ = object.__hash__


_REFUSED = """
    add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow lshift rlshift
    rshift rrshift and rand or ror xor rxor lt le gt ge eq ne neg pos abs invert bool int float index
    iter len getitem setitem call contains enter exit str
"""
for _name in _REFUSED.split():
    setattr(Poison, f"__{_name}__", Poison.refuse)


# Literals of small integers are all over a program; one object each saves making and comparing them.
_SMALL = {i: Const(i) for i in range(-1, 1025)}


def constant(value: Any) -> Const:
    """The literal of a Python or NumPy number."""
    if type(value) is int and value in _SMALL:
        return _SMALL[value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return Const(value, "bool")
    if isinstance(value, int):
        return Const(value, "int32" if -_INT32_MAX - 1 <= value <= _INT32_MAX else "int64")
    if isinstance(value, float):
        # One object for "not a number", which compares equal only to itself.
        return Const(math.nan if value != value else value, "float32")
    if isinstance(value, Poison):
        value.refuse()
    fail(f"expected a number or a value of the kernel, got {_describe(value)}")


def operand(value: Any) -> tuple[Expr, str]:
    """Expression and dtype of anything an operator may meet."""
    if isinstance(value, Value):
        if value.binding is not None:
            value.binding.use()
        return value.expr, value.dtype
    literal = constant(value)
    return literal, literal.dtype


def to_expr(value: Any) -> Expr:
    """The expression of a value or a number."""
    return operand(value)[0]


def index_expr(value: Any, what: str) -> Expr:
    """The expression of an integer: an index, an extent, a size (``what``, for the message)."""
    if type(value) is Index:
        return value.expr
    e, dtype = operand(value)
    if dtype == "bool" or is_float(dtype):
        fail(
            f"{what} must be a whole number, got {dtype} {_describe(value)}; convert with T.cast(x, 'int32')"
        )
    return e


def coerced(value: Any, dtype: str) -> Expr:
    """Expression of ``value`` where ``dtype`` is wanted: Python integers become float literals."""
    e, _ = operand(value)
    if (
        type(e) is Const
        and not isinstance(value, Value)
        and e.dtype in ("int32", "int64")
        and is_float(dtype)
    ):
        return Const(float(e.value), "float32")
    return e


def _meet(values: tuple[Any, ...]) -> tuple[list[Expr], list[str]]:
    """Operands of one operation: if one is a float, Python integers beside it are floats too."""
    exprs, dtypes = [], []
    floats = 0
    for value in values:
        e, dtype = operand(value)
        exprs.append(e)
        dtypes.append(dtype)
        floats += is_float(dtype)
    if 0 < floats < len(values):
        for i, value in enumerate(values):
            e = exprs[i]
            if type(e) is Const and dtypes[i] in ("int32", "int64") and not isinstance(value, Value):
                exprs[i], dtypes[i] = Const(float(e.value), "float32"), "float32"
    return exprs, dtypes


def binary_value(op: str, a: Any, b: Any) -> Value:
    """The value of ``Binary(op, a, b)``, constants folded."""
    (ea, eb), (da, db) = _meet((a, b))
    if type(eb) is Const and eb.value == 0 and op in ("floordiv", "mod"):
        fail(f"division by zero: {op} by the constant 0")
    e = binary(op, ea, eb)
    return Result(e, e.dtype if type(e) is Const else binary_dtype(op, ea, da, eb, db))


def divide(a: Any, b: Any) -> Value:
    """``a / b``; of two integers it is refused, as in TileLang."""
    if not is_float(operand(a)[1]) and not is_float(operand(b)[1]):
        fail("`/` of two integers is ambiguous; use `//` (T.floordiv) or cast one side to a float type")
    return binary_value("div", a, b)


def bitwise(op: str, logical: str, a: Any, b: Any) -> Value:
    """``a & b`` and friends: the bit operation, or on two truth values the logical one."""
    da, db = operand(a)[1], operand(b)[1]
    if da == db == "bool":
        return binary_value(logical, a, b)
    if is_float(da) or is_float(db):
        fail(f"{op} needs integers, got {da} and {db}")
    return binary_value(op, a, b)


FLOAT_ARGUMENTS = frozenset(
    {"exp", "exp2", "log", "log2", "sqrt", "rsqrt", "tanh", "sin", "cos", "sigmoid", "erf"}
)


def function(fn: str, *args: Any) -> Value:
    """The value of ``Call(fn, args)``."""
    if fn in FLOAT_ARGUMENTS:
        args = tuple(float(a) if isinstance(a, int) and not isinstance(a, bool) else a for a in args)
    if fn == "if_then_else":
        condition = operand(args[0])
        chosen_exprs, chosen_dtypes = _meet(args[1:])
        exprs, dtypes = [condition[0], *chosen_exprs], [condition[1], *chosen_dtypes]
    else:
        exprs, dtypes = _meet(args)
    e = call(fn, tuple(exprs))
    return Result(e, e.dtype if type(e) is Const else call_dtype(fn, tuple(exprs), tuple(dtypes)))


def cast(value: Any, dtype: Any) -> Value:
    """``value`` converted to ``dtype``; literals are converted on the spot."""
    target = canonical(dtype)
    if isinstance(value, str):  # T.float32("inf"), as in TVM
        value = float(value)
    e, source = operand(value)
    if isinstance(e, Const):
        kind = "float" if is_float(target) else target
        if kind == "float":
            return Result(Const(math.nan if e.value != e.value else float(e.value), target), target)
        if isinstance(e.value, float) and not math.isfinite(e.value):
            fail(f"{e.value} cannot be converted to {target}")
        return Result(Const(bool(e.value) if kind == "bool" else int(e.value), target), target)
    if source == target:
        return value if isinstance(value, Value) else Result(e, source)
    return Result(Cast(target, e), target)


def reinterpret(value: Any, dtype: Any) -> Value:
    """The bits of ``value``, read as ``dtype`` (either order of the two, as in TileLang)."""
    if isinstance(value, str | type):
        value, dtype = dtype, value
    target = canonical(dtype)
    e, source = operand(value)
    if "bool" in (source, target) or DTYPES[source].bits != DTYPES[target].bits:
        fail(f"T.reinterpret of {source} as {target}: the types must have equally many bits")
    return Result(e if source == target else Cast(target, e, bits=True), target)


def _describe(value: Any) -> str:
    shown = text(value.expr) if isinstance(value, Value) else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
