"""Expressions, shapes and regions as text that reads back as the same."""

from __future__ import annotations

import math
from collections.abc import Mapping

from foretile.kernels.affine import difference
from foretile.kernels.expr import THREAD_FUNCTIONS, Binary, Call, Cast, Const, Expr, Load, Var, binary
from foretile.kernels.handles import fit
from foretile.kernels.infer import dtype_of, is_float
from foretile.kernels.ir import Buffer, Region, TileProgram
from foretile.kernels.values import FLOAT_ARGUMENTS

# Python's precedences: a higher number binds tighter.
_BINARY: dict[str, tuple[str, int]] = {
    "or": ("or", 1),
    "and": ("and", 2),
    "lt": ("<", 4),
    "le": ("<=", 4),
    "gt": (">", 4),
    "ge": (">=", 4),
    "eq": ("==", 4),
    "ne": ("!=", 4),
    "bitor": ("|", 5),
    "bitxor": ("^", 6),
    "bitand": ("&", 7),
    "shl": ("<<", 8),
    "shr": (">>", 8),
    "add": ("+", 9),
    "sub": ("-", 9),
    "mul": ("*", 10),
    "div": ("/", 10),
    "floordiv": ("//", 10),
    "mod": ("%", 10),
    "pow": ("**", 12),
}
_NOT, _COMPARISON, _UNARY, _POWER, _ATOM = 3, 4, 11, 12, 20
_ZERO, _ONE = Const(0), Const(1)
_FUNCTION_NAMES = {
    "popc": "popcount",
    "shfl": "shfl_sync",
    **{f"warp_{kind}": f"warp_reduce_{kind}" for kind in ("sum", "max", "min", "bitand", "bitor")},
    **{f"block_{kind}": f"block_reduce_{kind}" for kind in ("sum", "max", "min", "bitand", "bitor")},
    **{"match_any": "match_any_sync", "match_all": "match_all_sync"},
}
"""Functions that the language calls by another name than the program."""


class ExprPrinter:
    """Writes the expressions of one program."""

    def __init__(self, program: TileProgram) -> None:
        self.program = program
        self.buffers: Mapping[str, Buffer] = {b.name: b for b in (*program.params, *program.buffers)}
        self.dtypes = {name: b.dtype for name, b in self.buffers.items()}
        # The language itself is called T; a dimension of that name gets another Python name.
        self.renamed = {"T": _free_name(program)} if any(d.name == "T" for d in program.dims) else {}

    # -- regions ------------------------------------------------------------------------------

    def shape(self, shape: tuple[Expr, ...]) -> str:
        """``(128, n)``."""
        inside = ", ".join(self.expr(e) for e in shape)
        return f"({inside},)" if len(shape) == 1 else f"({inside})"

    def whole(self, r: Region) -> bool:
        """Whether the region is all of its buffer."""
        return all(m == _ZERO for m in r.mins) and r.extents == self.buffers[r.buffer].shape

    def region(self, r: Region) -> str:
        """A buffer or a slice of it."""
        if self.whole(r):
            return r.buffer
        parts = []
        shape = self.buffers[r.buffer].shape
        # A region needs one slice at least, or it would be an element.
        points = [e == _ONE for e in r.extents]
        if all(points):
            points[-1] = False
        for low, extent, size, point in zip(r.mins, r.extents, shape, points, strict=True):
            if point:
                parts.append(self.expr(low))
            elif low == _ZERO and extent == size:
                parts.append(":")
            else:
                parts.append(f"{self.expr(low)}:{self.expr(stop_of(low, extent))}")
        return f"{r.buffer}[{', '.join(parts)}]"

    def pair(self, a: Region, b: Region) -> tuple[str, str]:
        """Two regions of equal extents: a corner suffices where the other side fixes the extents."""
        if not self.whole(a) and a.extents == fit(b.extents, len(a.mins)):
            return self.element(a.buffer, a.mins), self.region(b)
        if not self.whole(b) and b.extents == fit(a.extents, len(b.mins)):
            return self.region(a), self.element(b.buffer, b.mins)
        return self.region(a), self.region(b)

    def element(self, buffer: str, indices: tuple[Expr, ...]) -> str:
        """One element, or the name of a variable."""
        if self.buffers[buffer].scope == "var":
            return buffer
        return f"{buffer}[{', '.join(self.expr(i) for i in indices)}]"

    # -- expressions --------------------------------------------------------------------------

    def expr(self, e: Expr, above: int = 0, wanted: str = "int32") -> str:
        """Text of ``e`` under an operator of precedence ``above``, where a ``wanted`` is expected."""
        text, precedence = self.parts(e, wanted)
        return text if precedence >= above else f"({text})"

    def parts(self, e: Expr, wanted: str) -> tuple[str, int]:
        """Text and precedence."""
        if isinstance(e, Const):
            # A bare integer beside floats would be read as a float.
            text = self.const(e, bare=not (is_float(wanted) and e.dtype in ("int32", "int64")))
            return text, _UNARY if text.startswith("-") else _ATOM
        if isinstance(e, Var):
            return self.var(e), _ATOM
        if isinstance(e, Load):
            return self.element(e.buffer, e.indices), _ATOM
        if isinstance(e, Cast):
            name = "reinterpret" if e.bits else "cast"
            return f'T.{name}({self.expr(e.a)}, "{e.dtype}")', _ATOM
        if isinstance(e, Binary):
            return self.binary(e)
        if isinstance(e, Call):
            return self.call(e)
        raise TypeError(f"not an expression: {e!r}")

    def var(self, e: Var) -> str:
        """A variable's name."""
        return self.renamed.get(e.name, e.name)

    def const(self, e: Const, bare: bool = True) -> str:
        """A literal; not ``bare`` it is spelled with its type."""
        value = e.value
        if isinstance(value, bool):
            text, plain = str(value), "bool"
        elif isinstance(value, int):
            text, plain = str(value), "int32" if -(2**31) <= value < 2**31 else "int64"
        elif math.isnan(value):
            return f'T.{e.dtype}("nan")'
        elif math.isinf(value):
            return f'{"-" if value < 0 else ""}T.infinity("{e.dtype}")'
        else:
            text, plain = repr(value), "float32"
        return text if bare and e.dtype == plain else f"T.{e.dtype}({text})"

    def binary(self, e: Binary) -> tuple[str, int]:
        """An operation, by precedence."""
        ceil = _ceildiv(e)
        if ceil is not None:
            return f"T.ceildiv({self.expr(ceil[0])}, {self.expr(ceil[1])})", _ATOM
        a_dtype, b_dtype = dtype_of(e.a, self.dtypes), dtype_of(e.b, self.dtypes)
        wanted = "float32" if is_float(a_dtype) or is_float(b_dtype) else "int32"
        if e.op in ("min", "max"):
            return f"T.{e.op}({self.literal(e.a, e.b, wanted)}, {self.expr(e.b, 0, wanted)})", _ATOM
        if e.op in ("truncdiv", "truncmod"):
            return f"T.{e.op}({self.literal(e.a, e.b, wanted)}, {self.expr(e.b, 0, wanted)})", _ATOM
        symbol, precedence = _BINARY[e.op]
        right_assoc = e.op == "pow"
        left_needs = precedence + 1 if right_assoc or precedence == _COMPARISON else precedence
        right_needs = _UNARY if right_assoc else precedence + 1
        if precedence == _COMPARISON and isinstance(e.a, Const):
            left = self.const(e.a, bare=False)  # Python would turn `1 < x` into `x > 1`
        else:
            left = self.literal(e.a, e.b, wanted, left_needs)
        return f"{left} {symbol} {self.expr(e.b, right_needs, wanted)}", precedence

    def literal(self, a: Expr, b: Expr, wanted: str, above: int = 0) -> str:
        """Left operand; between two literals it is spelled as a value, or Python would compute them."""
        if isinstance(a, Const) and isinstance(b, Const):
            text = self.const(a, bare=False)
            return f"({text})" if text.startswith("-") and above > _UNARY else text
        return self.expr(a, above, wanted)

    def call(self, e: Call) -> tuple[str, int]:
        """A function's call."""
        if e.fn == "not":
            return f"not {self.expr(e.args[0], _NOT)}", _NOT
        if e.fn in ("neg", "bitnot"):
            sign = "-" if e.fn == "neg" else "~"
            (a,) = e.args
            inner = self.const(a, bare=False) if isinstance(a, Const) else self.expr(a, _UNARY)
            return f"{sign}{inner}", _UNARY
        if e.fn == "if_then_else":
            condition, a, b = e.args
            wanted = self.wanted((a, b))
            chosen = f"{self.expr(a, 0, wanted)}, {self.expr(b, 0, wanted)}"
            return f"T.if_then_else({self.expr(condition)}, {chosen})", _ATOM
        if e.fn in FLOAT_ARGUMENTS:
            wanted = "float32"
        elif e.fn in THREAD_FUNCTIONS:
            wanted = "int32"  # lanes and widths stand beside a value of any type
        else:
            wanted = self.wanted(e.args)
        args = ", ".join(self.expr(a, 0, wanted) for a in e.args)
        if e.fn.startswith("extern:"):
            _, dtype, name = e.fn.split(":", 2)
            return f'T.call_extern("{dtype}", "{name}"{", " if args else ""}{args})', _ATOM
        return f"T.{_FUNCTION_NAMES.get(e.fn, e.fn)}({args})", _ATOM

    def wanted(self, args: tuple[Expr, ...]) -> str:
        """What literals beside these stand for: floats beside a float."""
        return "float32" if any(is_float(dtype_of(a, self.dtypes)) for a in args) else "int32"


def stop_of(start: Expr, extent: Expr, step: int = 1) -> Expr:
    """The end of a range: as it was probably written, if that gives this very extent again."""
    written = extent.a if isinstance(extent, Binary) and extent.op == "sub" and extent.b == start else None
    if step == 1 and written is not None and difference(written, start) == extent:
        return written
    return binary("add", start, extent if step == 1 else binary("mul", extent, Const(step)))


def _ceildiv(e: Binary) -> tuple[Expr, Expr] | None:
    """Operands of ``T.ceildiv`` if ``e`` is what it builds."""
    if e.op != "floordiv" or not isinstance(e.a, Binary):
        return None
    if isinstance(e.b, Const):
        # Of a constant numerator nothing is left to divide, so it is not one.
        if e.a.op == "add" and e.a.b == Const(int(e.b.value) - 1) and not isinstance(e.a.a, Const):
            return e.a.a, e.b
        return None
    inner = e.a.a
    if (
        e.a.op == "sub"
        and e.a.b == _ONE
        and isinstance(inner, Binary)
        and inner.op == "add"
        and inner.b == e.b
    ):
        return inner.a, e.b
    return None


def _free_name(program: TileProgram) -> str:
    taken = {program.name, *(d.name for d in program.dims), *(b.name for b in program.params)}
    taken |= {b.name for b in program.buffers}
    name = "T_"
    while name in taken:
        name += "_"
    return name


def expression_text(e: Expr) -> str:
    """An expression without buffers as the language writes it."""
    empty = TileProgram("expression", (), (), (), (), 1, (), ())
    return ExprPrinter(empty).expr(e)
