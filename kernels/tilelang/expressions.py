"""TVM's expressions as ours.

What TVM's front end makes explicit and our expressions imply is left out again, so that an imported
program reads like its source: conversions to the type that two operands meet in, the type of
literals beside typed operands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import Binary, Call, Cast, Const, Expr, Load, binary, call, is_function
from foretile.kernels.infer import binary_dtype, dtype_of, is_float, promote
from foretile.kernels.ir import Loc, Region
from foretile.kernels.tilelang.nodes import element_type, key, kind, number, op_name, refuse, text_of

_BINARY = {
    **{"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Mod": "truncmod", "FloorDiv": "floordiv"},
    **{"FloorMod": "mod", "Min": "min", "Max": "max", "EQ": "eq", "NE": "ne", "LT": "lt", "LE": "le"},
    **{"GT": "gt", "GE": "ge", "And": "and", "Or": "or"},
}
_BINARY_CALLS = {
    **{"tirx.bitwise_and": "bitand", "tirx.bitwise_or": "bitor", "tirx.bitwise_xor": "bitxor"},
    **{"tirx.shift_left": "shl", "tirx.shift_right": "shr", "tirx.pow": "pow", "tirx.power": "pow"},
    **{"tl.fmul": "mul", "tl.add2": "add", "tl.sub2": "sub", "tl.mul2": "mul", "tl.max2": "max"},
    **{"tl.min2": "min", "tl.ieee_add": "add", "tl.ieee_sub": "sub", "tl.ieee_mul": "mul"},
    "tl.ieee_fdiv": "div",
}
_CALLS = {
    # The fast variants of a function compute the same, less precisely; ours are the functions.
    **{f"tl.__{fn}": fn for fn in ("exp", "exp10", "log", "log2", "log10", "tan", "cos", "sin")},
    **{"tirx.fabs": "abs", "tirx.nearbyint": "round", "tirx.popcount": "popc", "tirx.bitwise_not": "bitnot"},
    **{"tl.fast_rcp": "rcp", "tl.ieee_frcp": "rcp", "tl.ieee_fsqrt": "sqrt", "tl.ieee_frsqrt": "rsqrt"},
    **{"tl.ieee_fmaf": "fma", "tl.fma": "fma", "tl.fma2": "fma", "tl.abs2": "abs", "tl.__ffs": "ffs"},
    **{f"tl.{fn}_sync": fn for fn in ("match_any", "match_all")},
    **{f"tl.warp_reduce_{kind}": f"warp_{kind}" for kind in ("sum", "max", "min", "bitand", "bitor")},
}
_MASKED = {
    **{"tl.shfl_sync": "shfl", "tl.shfl_xor_sync": "shfl_xor", "tl.shfl_up_sync": "shfl_up"},
    **{"tl.shfl_down_sync": "shfl_down", "tl.any_sync": "any_sync", "tl.all_sync": "all_sync"},
    **{"tl.ballot_sync": "ballot", "tl.match_any_sync": "match_any", "tl.match_all_sync": "match_all"},
}
"""Functions of a warp whose first argument says which threads take part."""
_OF_TRUTHS = {"bitand": "and", "bitor": "or", "bitxor": "ne"}
_EXTERN = ("tirx.call_extern", "tirx.call_pure_extern")
_ROUNDED = ("tl.ieee_",)
_ANY_OF_LIMIT = 1024


class Names(Protocol):
    """What expressions refer to, as the importer knows it."""

    loc: Loc | None

    def variable(self, var: Any) -> Expr:
        """The expression that a variable stands for."""

    def buffer(self, node: Any) -> str:
        """The name of a buffer."""

    def dtype(self, name: str) -> str:
        """The element type of a buffer, by its name."""

    def is_vector(self, name: str) -> bool:
        """Whether a buffer's elements are vectors."""

    def thread(self, axis: int) -> Expr:
        """The index of a thread in its block along an axis."""

    def linear_thread(self) -> Expr:
        """The number of a thread in its block."""

    def element_at(self, data: Any, offset: Expr) -> Load:
        """The element so many after the first of a storage's."""

    def previous(self, call: Any) -> Expr:
        """What an atomic update found, which is made before this expression."""


class Expressions:
    """Converts expressions; those of vectors stand for their element number ``lane``."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.lane: Expr | None = None
        self.special: Mapping[str, Callable[[Any], Expr]] = {
            "tirx.if_then_else": self._if_then_else,
            "tirx.reinterpret": self._reinterpret,
            "tl.infinity": self._infinity,
            "tirx.infinity": self._infinity,
            "tl.get_lane_idx": lambda c: self._part(c, 0),
            "tl.get_warp_idx": lambda c: self._part(c, 1),
            "tl.get_warp_idx_sync": lambda c: self._part(c, 1),
            "tl.get_warp_group_idx": self._warp_group,
            "tl.tl_shuffle_elect": self._elect,
            "tl.launch_thread_idx": lambda c: self.names.thread(number(c.args[0]) or 0),
            "tl.atomic_load_elem_op": lambda c: self.place(c.args[0]),
            "tl.__ldg": lambda c: self(c.args[0]),
            "tl.any_of": lambda c: self._fold(c, "or"),
            "tl.all_of": lambda c: self._fold(c, "and"),
            "tl.rng_rand_float": self._random,
            "tirx.large_uint_imm": self._large,
            "tirx.tvm_warp_shuffle": lambda c: self._shuffle(c, "shfl"),
            "tirx.tvm_warp_shuffle_up": lambda c: self._shuffle(c, "shfl_up"),
            "tirx.tvm_warp_shuffle_down": lambda c: self._shuffle(c, "shfl_down"),
            **dict.fromkeys(_EXTERN, self._extern),
        }

    def __call__(self, node: Any) -> Expr:
        """The expression of a node."""
        name = kind(node)
        if name == "BufferLoad":
            return self.element(node)
        if name == "Var":
            return self.names.variable(node)
        if name in ("IntImm", "FloatImm"):
            return self._literal(node)
        if name in _BINARY:
            return self._binary(_BINARY[name], node.a, node.b, node)
        if name == "Call":
            return self._call(node)
        if name == "Cast":
            return self.cast(self(node.value), element_type(node, self.names.loc)[0])
        if name == "Not":
            return call("not", (self.truth(node.a),))
        if name == "Select":
            return self._choice(node.condition, node.true_value, node.false_value)
        if name == "Ramp":
            if self.lane is None:
                refuse("a vector where one element is wanted", self.names.loc)
            return binary("add", self(node.base), binary("mul", self.lane, self(node.stride)))
        if name == "Broadcast":
            return self(node.value)
        if name == "Shuffle":
            return self._shuffled(node)
        if isinstance(node, bool):
            return Const(node, "bool")
        if isinstance(node, int):
            return Const(node)
        if isinstance(node, float):
            return Const(node, "float32")
        return refuse(f"an expression of the kind {name} is not known to this importer", self.names.loc)

    def element(self, node: Any) -> Load:
        """The element that a load or a store means; of a buffer of vectors that number ``lane``."""
        name = self.names.buffer(node.buffer)
        indices = tuple(self(i) for i in node.indices)
        if self.names.is_vector(name):
            if self.lane is None:
                refuse(f"a whole vector of {name} where one element is wanted", self.names.loc)
            indices = (*indices, self.lane)
        return Load(name, indices)

    def _shuffled(self, node: Any) -> Expr:
        """The element of a vector that is put together of others'."""
        if not isinstance(self.lane, Const):
            refuse("a vector is put together where one element is wanted", self.names.loc)
        at = number(node.indices[int(self.lane.value)]) or 0
        before = self.lane
        for vector in node.vectors:
            lanes = element_type(vector, self.names.loc)[1]
            if at < lanes:
                self.lane = Const(at)
                found = self(vector)
                self.lane = before
                return found
            at -= lanes
        return refuse("a vector is put together of too few elements", self.names.loc)

    # -- literals and conversions --------------------------------------------------------------

    def _literal(self, node: Any) -> Expr:
        dtype, _ = element_type(node, self.names.loc)
        value = node.value
        if dtype == "bool":
            return Const(bool(value), "bool")
        if is_float(dtype):
            return Const(math.nan if value != value else float(value), dtype)
        return Const(int(value), dtype)

    def cast(self, e: Expr, dtype: str) -> Expr:
        """``e`` converted to ``dtype``, literals on the spot."""
        source = dtype_of(e, self.names.dtype)
        if source == dtype and not isinstance(e, Const):
            return e
        if isinstance(e, Const) and math.isfinite(e.value):
            if is_float(dtype):
                return Const(float(e.value), dtype)
            if not is_float(e.dtype):
                return Const(bool(e.value) if dtype == "bool" else int(e.value), dtype)
        return Cast(dtype, e)

    def _infinity(self, node: Any) -> Expr:
        return Const(math.inf, element_type(node, self.names.loc)[0])

    def _large(self, node: Any) -> Expr:
        low, high = (number(a) or 0 for a in node.args)
        return Const((high << 32) | low, element_type(node, self.names.loc)[0])

    def _reinterpret(self, node: Any) -> Expr:
        if str(node.dtype) == "handle":
            refuse("a pointer is made of a number here and used as no tensor", self.names.loc)
        target, _ = element_type(node, self.names.loc)
        e = self(node.args[0])
        source = dtype_of(e, self.names.dtype)
        if DTYPES[source].bits != DTYPES[target].bits:
            refuse(f"the bits of {source} read as {target}: the sizes differ", self.names.loc)
        return e if source == target else Cast(target, e, bits=True)

    # -- operations ----------------------------------------------------------------------------

    def _binary(self, op: str, left: Any, right: Any, node: Any) -> Expr:
        if op in ("and", "or"):
            return self.binary(op, self.truth(left), self.truth(right))
        a, b = self(left), self(right)
        if op == "div" and not is_float(element_type(node, self.names.loc)[0]):
            op = "truncdiv"
        if op == "mul" and isinstance(b, Const) and b.value == -1:
            return call("neg", (a,))  # how TVM writes it
        return self.binary(op, a, b)

    def binary(self, op: str, a: Expr, b: Expr) -> Expr:
        """The operation, with what its operands' types imply left out."""
        if op in _OF_TRUTHS and "bool" == dtype_of(a, self.names.dtype) == dtype_of(b, self.names.dtype):
            op = _OF_TRUTHS[op]
        a, b = self._beside(a, b)
        if op in ("truncdiv", "truncmod") and isinstance(a, Const) and isinstance(b, Const) and b.value:
            quotient = abs(int(a.value)) // abs(int(b.value))
            quotient = -quotient if (a.value < 0) != (b.value < 0) else quotient
            return Const(quotient if op == "truncdiv" else int(a.value) - quotient * int(b.value), a.dtype)
        if op in ("add", "sub") and isinstance(b, Const) and type(b.value) is int:
            return _shifted(a, b if op == "add" else Const(-b.value, b.dtype))
        return binary(op, a, b)

    def _beside(self, a: Expr, b: Expr) -> tuple[Expr, Expr]:
        """Two operands of one type, each without what the other implies."""
        if isinstance(a, Const) != isinstance(b, Const):
            return (_weak(a), b) if isinstance(a, Const) else (a, _weak(b) if isinstance(b, Const) else b)
        if isinstance(a, Const) and isinstance(b, Const):
            return a, b
        for this, other, swap in ((a, b, False), (b, a, True)):
            if isinstance(this, Cast) and not this.bits and not isinstance(this.a, Const):
                inner = dtype_of(this.a, self.names.dtype)
                meets = dtype_of(other, self.names.dtype) == this.dtype
                if meets and promote(inner, this.dtype) == this.dtype:
                    return (other, this.a) if swap else (this.a, other)
        return a, b

    def _choice(self, condition: Any, true_value: Any, false_value: Any) -> Expr:
        a, b = self._beside(self(true_value), self(false_value))
        return call("if_then_else", (self.truth(condition), a, b))

    def truth(self, node: Any) -> Expr:
        """A condition: a number holds where it is not zero."""
        e = self(node)
        return e if dtype_of(e, self.names.dtype) == "bool" else self.binary("ne", e, Const(0))

    def _if_then_else(self, node: Any) -> Expr:
        return self._choice(*node.args)

    def _call(self, node: Any) -> Expr:
        name = op_name(node)
        special = self.special.get(name)
        if special is not None:
            return special(node)
        if name.startswith("tl.atomic_") and "_ret_" in name:
            return self.names.previous(node)
        if name in _BINARY_CALLS:
            if name.startswith(_ROUNDED):
                self._nearest(node)
            op = _BINARY_CALLS[name]
            return self.binary(op, self(node.args[0]), self(node.args[1]))
        if name in _MASKED:
            return call(_MASKED[name], tuple(self(a) for a in node.args[1:]))
        args = list(node.args)
        if name.startswith(_ROUNDED):
            self._nearest(node)
            args = args[:3] if name == "tl.ieee_fmaf" else args[:1]
        if name.startswith("tl.clc_"):
            return call(name.removeprefix("tl."), (self.place(args[0]),))
        fn = _CALLS.get(name) or name.removeprefix("tirx.").removeprefix("tl.")
        if not is_function(fn) or fn.startswith("extern:"):
            refuse(
                f"{name} is not known to this importer; write it with operations that are (see "
                f"docs/language.md), or as T.call_extern to have the kernel timed with a cost of yours",
                self.names.loc,
            )
        values = [self(a) for a in args]
        if fn == "clamp":
            values = [values[0], *(_weak(v) if isinstance(v, Const) else v for v in values[1:])]
        return call(fn, tuple(values))

    def _nearest(self, node: Any) -> None:
        """Refuse roundings other than to the nearest, which our arithmetic does not have."""
        modes = [text_of(a) for a in node.args if kind(a) == "StringImm"]
        if any(mode != "rn" for mode in modes):
            refuse(f"{op_name(node)} rounds {modes[0]}; only rn, to the nearest, is known", self.names.loc)

    def _extern(self, node: Any) -> Expr:
        dtype, _ = element_type(node, self.names.loc)
        args = tuple(self.argument(a) for a in node.args[1:])
        return Call(f"extern:{dtype}:{text_of(node.args[0])}", args)

    def argument(self, node: Any) -> Expr:
        """An argument of opaque code: a value, or the element that a pointer points to."""
        if kind(node) == "Call" and op_name(node) in _POINTERS:
            return self.place(node)
        return self(node)

    # -- threads -------------------------------------------------------------------------------

    def _part(self, node: Any, which: int) -> Expr:
        """A thread's place in its warp (0), or the number of its warp (1)."""
        warp = number(node.args[0]) if len(node.args) else 32
        return binary(("mod", "floordiv")[which], self.names.linear_thread(), Const(warp or 32))

    def _warp_group(self, node: Any) -> Expr:
        sizes = [number(a) or 0 for a in node.args]
        warp, warps = (*sizes, *(32, 4)[len(sizes) :])
        return binary("floordiv", self.names.linear_thread(), Const(warp * warps))

    def _elect(self, node: Any) -> Expr:
        threads = number(node.args[0]) or 0
        thread = self.names.linear_thread()
        return binary("eq", binary("mod", thread, Const(threads)) if threads else thread, Const(0))

    def _random(self, node: Any) -> Expr:
        wide = "_double" if str(node.dtype) == "float64" else ""
        return Call(f"rng_{text_of(node.args[0])}{wide}", ())

    def _shuffle(self, node: Any, fn: str) -> Expr:
        _mask, value, lane, width, *_ = node.args
        return call(fn, (self(value), self(lane), self(width)))

    def _fold(self, node: Any, op: str) -> Expr:
        """Whether any, or all, of some elements in a row are true."""
        first = self.place(node.args[0])
        count = number(node.args[1])
        if count is None or count > _ANY_OF_LIMIT:
            refuse(
                f"{op_name(node)} needs a constant number of elements up to {_ANY_OF_LIMIT}", self.names.loc
            )
        truths = []
        for i in range(count):
            element = Load(first.buffer, (*first.indices[:-1], binary("add", first.indices[-1], Const(i))))
            is_bool = self.names.dtype(first.buffer) == "bool"
            truths.append(element if is_bool else self.binary("ne", element, Const(0)))
        while len(truths) > 1:
            pairs = [binary(op, a, b) for a, b in zip(truths[::2], truths[1::2], strict=False)]
            truths = pairs + ([truths[-1]] if len(truths) % 2 else [])
        return truths[0]

    # -- places --------------------------------------------------------------------------------

    def place(self, node: Any) -> Load:
        """The element that a pointer points to, or that a barrier is."""
        name = kind(node)
        if name == "Call":
            op = op_name(node)
            if op in ("tl.access_ptr", "tirx.address_of"):
                return self.place(node.args[0])
            if op == "tirx.tvm_access_ptr":
                return self.names.element_at(node.args[1], self(node.args[2]))
            if op == "tl.region":
                return self.place(node.args[0])
        if name == "BufferLoad":
            return Load(self.names.buffer(node.buffer), tuple(self(i) for i in node.indices))
        if name == "Buffer":
            return Load(self.names.buffer(node), (Const(0),) * len(node.shape))
        if name == "Var":
            return self.names.element_at(node, Const(0))
        return refuse(f"expected a place in memory, got {name}", self.names.loc)

    def region(self, node: Any) -> Region:
        """The region that an argument of a tile operation is."""
        if kind(node) == "Call" and op_name(node) == "tl.region":
            load, _mask, *extents = node.args
            corner = self.place(load)
            sizes = [self(e) for e in extents]
            # A region may have fewer extents than its buffer dimensions: the first are single ones.
            sizes = [Const(1)] * (len(corner.indices) - len(sizes)) + sizes
            return Region(corner.buffer, corner.indices, tuple(sizes))
        if kind(node) == "BufferRegion":
            ranges = list(node.region)
            mins, extents = tuple(self(r.min) for r in ranges), tuple(self(r.extent) for r in ranges)
            return Region(self.names.buffer(node.buffer), mins, extents)
        if kind(node) == "Buffer":
            shape = tuple(self(e) for e in node.shape)
            return Region(self.names.buffer(node), (Const(0),) * len(shape), shape)
        corner = self.place(node)
        return Region(corner.buffer, corner.indices, (Const(1),) * len(corner.indices))


_POINTERS = ("tl.access_ptr", "tirx.address_of", "tirx.tvm_access_ptr")


def is_pointer(node: Any) -> bool:
    """Whether an argument is a pointer into a buffer."""
    return kind(node) == "Call" and op_name(node) in _POINTERS


def _shifted(a: Expr, by: Const) -> Expr:
    """``a + by``, with a whole number added to ``a`` before in one with it."""
    if isinstance(a, Binary) and a.op in ("add", "sub") and isinstance(a.b, Const) and type(a.b.value) is int:
        before = int(a.b.value) if a.op == "add" else -int(a.b.value)
        by = Const(before + int(by.value), a.b.dtype)
        a = a.a
    if by.value < 0:
        return binary("sub", a, Const(-by.value, by.dtype))
    return binary("add", a, by)


def _weak(literal: Const) -> Const:
    """The literal as one writes it beside a typed operand, if it then means the same."""
    if literal.dtype == "bool":
        return literal
    if is_float(literal.dtype):
        return Const(literal.value, "float32")
    small = -(2**31) <= literal.value < 2**31
    return Const(literal.value, "int32") if small else literal


def same(a: Any, b: Any) -> bool:
    """Whether two objects stand for one node."""
    return key(a) == key(b)


__all__ = ["Binary", "Expressions", "Names", "binary_dtype", "is_pointer", "same"]
