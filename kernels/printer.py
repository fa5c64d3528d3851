"""Programs as text: TileLang source a person would write, which traces to the same program again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from foretile.kernels.affine import difference
from foretile.kernels.expr import Binary, Call, Cast, Const, Expr, Load, Var, binary
from foretile.kernels.handles import fit
from foretile.kernels.infer import dtype_of, is_float
from foretile.kernels.ir import (
    AtomicAdd,
    Buffer,
    Copy,
    CumSum,
    Fill,
    For,
    Gemm,
    If,
    Reduce,
    Region,
    Stmt,
    Store,
    Sync,
    TileProgram,
    While,
)
from foretile.kernels.values import FLOAT_ARGUMENTS

INDENT = "    "
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
_POLICIES = {"full_row": "T.GemmWarpPolicy.FullRow", "full_col": "T.GemmWarpPolicy.FullCol"}
_ALLOCATE = {"shared": "alloc_shared", "fragment": "alloc_fragment", "local": "alloc_local"}
_ZERO, _ONE = Const(0), Const(1)


def script(program: TileProgram, header: bool = False) -> str:
    """The program's source text; with ``header`` it starts with the import it needs.

    Raises:
        ValueError: the program holds something the language cannot express.
    """
    return "\n".join(_Printer(program).lines(header)) + "\n"


class _Printer:
    def __init__(self, program: TileProgram) -> None:
        self.program = program
        self.buffers: Mapping[str, Buffer] = {b.name: b for b in (*program.params, *program.buffers)}
        self.dtypes = {name: b.dtype for name, b in self.buffers.items()}
        # The language itself is called T; a dimension of that name gets another Python name.
        self.renamed = {"T": _free_name(program)} if any(d.name == "T" for d in program.dims) else {}

    def lines(self, header: bool) -> Iterator[str]:
        program = self.program
        if header:
            yield from ("from foretile.kernels import language as T", "")
        for dim in program.dims:
            suffix = "" if dim.dtype == "int32" else f', "{dim.dtype}"'
            yield f'{self.var(dim)} = T.dynamic("{dim.name}"{suffix})'
        if program.dims:
            yield ""
        yield "@T.prim_func"
        yield f"def {program.name}("
        for param in program.params:
            yield f'{INDENT}{param.name}: T.Tensor({self.shape(param.shape)}, "{param.dtype}"),'
        yield "):"
        grid = ", ".join(self.expr(e) for e in program.grid)
        names = [v.name for v in program.block_vars]
        target = names[0] if len(names) == 1 else f"({', '.join(names)})"
        yield f"{INDENT}with T.Kernel({grid}, threads={program.threads}) as {target}:"
        inside = [*self.declarations(), *self.block(program.body)]
        for line in inside or ["pass"]:
            yield f"{INDENT * 2}{line}"

    def declarations(self) -> Iterator[str]:
        for b in self.program.buffers:
            if b.scope == "var":
                yield f'{b.name} = T.alloc_var("{b.dtype}")'
            else:
                yield f'{b.name} = T.{_ALLOCATE[b.scope]}({self.shape(b.shape)}, "{b.dtype}")'
        for key, value in self.program.annotations:
            kind, _, name = key.partition(":")
            if not name:
                yield f"T.annotate_{kind}({value})"
                continue
            if kind == "layout":
                shown = f"T.make_swizzled_layout({name})"
            else:
                whole = value.lstrip("-").isdigit()
                shown = self.const(Const(int(value)) if whole else Const(float(value), "float32"))
            yield f"T.annotate_{kind}({{{name}: {shown}}})"
        swizzle = self.program.swizzle
        if swizzle is not None:
            yield f'T.use_swizzle({swizzle.panel_size}, order="{swizzle.order}")'

    def block(self, body: tuple[Stmt, ...]) -> Iterator[str]:
        for stmt in body:
            yield from _STATEMENTS[type(stmt)](self, stmt)

    def indented(self, body: tuple[Stmt, ...]) -> Iterator[str]:
        for line in self.block(body) if body else ["pass"]:
            yield INDENT + line

    # -- statements ---------------------------------------------------------------------------

    def copy(self, s: Copy) -> Iterator[str]:
        yield f"T.copy({', '.join(self.pair(s.src, s.dst))})"

    def atomic_add(self, s: AtomicAdd) -> Iterator[str]:
        source, target = self.pair(s.src, s.dst)
        yield f"T.atomic_add({target}, {source})"

    def gemm(self, s: Gemm) -> Iterator[str]:
        options = [
            *(["transpose_A=True"] if s.trans_a else []),
            *(["transpose_B=True"] if s.trans_b else []),
            *([f"policy={_POLICIES[s.policy]}"] if s.policy != "square" else []),
            *(["clear_accum=True"] if s.clear_accum else []),
        ]
        regions = [self.region(r) for r in (s.a, s.b, s.c, s.a_scale, s.b_scale) if r is not None]
        name = "gemm" if s.a_scale is None else "gemm_blockscaled"
        yield f"T.{name}({', '.join([*regions, *options])})"

    def fill(self, s: Fill) -> Iterator[str]:
        dtype = self.dtypes[s.dst.buffer]
        zero = (
            Const(0.0, "float32") if is_float(dtype) else Const(False, "bool") if dtype == "bool" else _ZERO
        )
        if s.value == zero:
            yield f"T.clear({self.region(s.dst)})"
        else:
            yield f"T.fill({self.region(s.dst)}, {self.expr(s.value, 0, dtype)})"

    def reduce(self, s: Reduce) -> Iterator[str]:
        keep = "" if s.clear else ", clear=False"
        yield f"T.reduce_{s.kind}({self.region(s.src)}, {self.region(s.dst)}, dim={s.dim}{keep})"

    def cumsum(self, s: CumSum) -> Iterator[str]:
        reverse = ", reverse=True" if s.reverse else ""
        yield f"T.cumsum({self.region(s.src)}, {self.region(s.dst)}, dim={s.dim}{reverse})"

    def store(self, s: Store) -> Iterator[str]:
        value = self.expr(s.value, 0, self.dtypes[s.buffer])
        place = self.element(s.buffer, s.indices)
        if s.previous is not None:
            found = self.element(s.previous.buffer, s.previous.indices)
            yield f"{found} = T.atomic_{s.atomic}({place}, {value}, return_prev=True)"
        else:
            yield f"T.atomic_{s.atomic}({place}, {value})" if s.atomic else f"{place} = {value}"

    def sync(self, s: Sync) -> Iterator[str]:
        yield "T.sync_threads()"

    def if_(self, s: If) -> Iterator[str]:
        word = "if"
        while True:
            yield f"{word} {self.expr(s.cond)}:"
            yield from self.indented(s.then)
            if len(s.orelse) != 1 or not isinstance(s.orelse[0], If):
                break
            s, word = s.orelse[0], "elif"
        if s.orelse:
            yield "else:"
            yield from self.indented(s.orelse)

    def while_(self, s: While) -> Iterator[str]:
        yield f"while {self.expr(s.cond)}:"
        yield from self.indented(s.body)

    def for_(self, s: For) -> Iterator[str]:
        names = ", ".join(v.name for v in s.vars)
        yield f"for {names} in {self.iterable(s)}:"
        yield from self.indented(s.body)

    def iterable(self, s: For) -> str:
        extents = ", ".join(self.expr(e) for e in s.extents)
        if s.kind in ("parallel", "persistent"):
            if s.start is not None or s.step != 1:
                raise ValueError(f"a {s.kind} loop over {extents} cannot have a start or a step")
            if s.kind == "parallel":
                return f"T.Parallel({extents})"
            wave, index = self.expr(self.program.grid[0]), self.program.block_vars[0].name
            return f"T.Persistent([{extents}], {wave}, {index}, group_size={s.group_size})"
        if len(s.vars) != 1:
            raise ValueError(f"a {s.kind} loop has one variable, not {len(s.vars)}")
        span = self.span(s)
        if s.kind == "pipelined":
            return f"T.Pipelined({span}, num_stages={s.num_stages})"
        return f"T.{s.kind}({span})"

    def span(self, s: For) -> str:
        (extent,) = s.extents
        if s.start is None and s.step == 1:
            return self.expr(extent)
        start = _ZERO if s.start is None else s.start
        stop = self.expr(_stop(start, extent, s.step))
        if s.step == 1:
            return f"{self.expr(start)}, {stop}"
        if s.kind == "pipelined":
            raise ValueError(f"a pipelined loop cannot have the step {s.step}")
        return f"{self.expr(start)}, {stop}, {s.step}"

    # -- regions ------------------------------------------------------------------------------

    def shape(self, shape: tuple[Expr, ...]) -> str:
        inside = ", ".join(self.expr(e) for e in shape)
        return f"({inside},)" if len(shape) == 1 else f"({inside})"

    def whole(self, r: Region) -> bool:
        return all(m == _ZERO for m in r.mins) and r.extents == self.buffers[r.buffer].shape

    def region(self, r: Region) -> str:
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
                parts.append(f"{self.expr(low)}:{self.expr(_stop(low, extent))}")
        return f"{r.buffer}[{', '.join(parts)}]"

    def pair(self, a: Region, b: Region) -> tuple[str, str]:
        """Two regions of equal extents: a corner suffices where the other side fixes the extents."""
        if not self.whole(a) and a.extents == fit(b.extents, len(a.mins)):
            return self.element(a.buffer, a.mins), self.region(b)
        if not self.whole(b) and b.extents == fit(a.extents, len(b.mins)):
            return self.region(a), self.element(b.buffer, b.mins)
        return self.region(a), self.region(b)

    def element(self, buffer: str, indices: tuple[Expr, ...]) -> str:
        if self.buffers[buffer].scope == "var":
            return buffer
        return f"{buffer}[{', '.join(self.expr(i) for i in indices)}]"

    # -- expressions --------------------------------------------------------------------------

    def expr(self, e: Expr, above: int = 0, wanted: str = "int32") -> str:
        """Text of ``e`` under an operator of precedence ``above``, where a ``wanted`` is expected."""
        text, precedence = self.parts(e, wanted)
        return text if precedence >= above else f"({text})"

    def parts(self, e: Expr, wanted: str) -> tuple[str, int]:
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
        return self.renamed.get(e.name, e.name)

    def const(self, e: Const, bare: bool = True) -> str:
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
        ceil = _ceildiv(e)
        if ceil is not None:
            return f"T.ceildiv({self.expr(ceil[0])}, {self.expr(ceil[1])})", _ATOM
        a_dtype, b_dtype = dtype_of(e.a, self.dtypes), dtype_of(e.b, self.dtypes)
        wanted = "float32" if is_float(a_dtype) or is_float(b_dtype) else "int32"
        if e.op in ("min", "max"):
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
        wanted = "float32" if e.fn in FLOAT_ARGUMENTS else self.wanted(e.args)
        return f"T.{e.fn}({', '.join(self.expr(a, 0, wanted) for a in e.args)})", _ATOM

    def wanted(self, args: tuple[Expr, ...]) -> str:
        return "float32" if any(is_float(dtype_of(a, self.dtypes)) for a in args) else "int32"


def _stop(start: Expr, extent: Expr, step: int = 1) -> Expr:
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


_STATEMENTS: dict[type[Stmt], Callable[[_Printer, Any], Iterator[str]]] = {
    Copy: _Printer.copy,
    Gemm: _Printer.gemm,
    Fill: _Printer.fill,
    Reduce: _Printer.reduce,
    CumSum: _Printer.cumsum,
    AtomicAdd: _Printer.atomic_add,
    Store: _Printer.store,
    Sync: _Printer.sync,
    For: _Printer.for_,
    If: _Printer.if_,
    While: _Printer.while_,
}
