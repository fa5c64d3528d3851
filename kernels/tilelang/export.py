"""Tile programs as source files for TileLang, as a person would have written them.

The vocabulary is shared, so that most of a program is written as it is for our own tracer
(:mod:`foretile.kernels.printer`). What TileLang spells otherwise is here: element types, layouts, swizzles,
block-scaled products, reducers, warp roles. Names follow TileLang 0.1.15.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NoReturn

from foretile.kernels.expr import Binary, Call, Const, Expr, evaluate
from foretile.kernels.infer import dtype_of, is_float
from foretile.kernels.ir import AtomicAdd, Buffer, Extern, For, Gemm, If, Stmt, TileProgram
from foretile.kernels.printer import Printer

# TileLang's names of the types that carry a suffix there for how they treat infinities and zero.
_DTYPES = {
    "float8_e4m3": "float8_e4m3fn",
    "float8_e8m0": "float8_e8m0fnu",
    "float4_e2m1": "float4_e2m1fn",
}
_NOTED = ("layout", "l2_hit_ratio", "safe_value")
_WIDTH = 88
# TileLang's CUDA back end has no lowering of T.likely, which promises something and computes nothing.
_LIKELY = (
    "# The CUDA back end leaves T.likely as it is; it stands for its argument.",
    'if Op.get("tirx.likely").get_attr("cuda.FLowerIntrinsic") is None:',
    '    register_intrin_lowering("tirx.likely", target="cuda", f=lambda call: call.args[0])',
)


class ExportError(ValueError):
    """A program that TileLang cannot express; the message names what and why."""


def source(programs: TileProgram | Sequence[TileProgram], comment: str = "") -> str:
    """A Python file of one ``@T.prim_func`` a program, launched in that order.

    ``comment``: what the file says of itself at the top (where it comes from, sizes, configuration); lines
    are kept, long ones broken.

    Raises:
        ExportError: a program holds something that TileLang has no words for.
    """
    several = (programs,) if isinstance(programs, TileProgram) else tuple(programs)
    printers = [_TileLangPrinter(program) for program in several]
    swizzled = any(value == "swizzled" for p in several for _, value in p.annotations)
    dims = dict.fromkeys(line for printer in printers for line in printer.dimensions())
    functions = [printer.function() for printer in printers]
    likely = any("T.likely(" in line for lines in functions for line in lines)
    parts = [
        [f"# {part}".rstrip() for line in comment.splitlines() for part in _broken(line)],
        [
            *(["import tilelang"] if swizzled else []),
            "import tilelang.language as T",
            *(["from tvm.ir.op import Op, register_intrin_lowering"] if likely else []),
        ],
        list(_LIKELY if likely else ()),
        list(dims),
    ]
    head = "\n\n".join("\n".join(part) for part in parts if part)
    return "\n\n\n".join([head, *("\n".join(lines) for lines in functions)]) + "\n"


def _broken(line: str) -> list[str]:
    return textwrap.wrap(line, _WIDTH, subsequent_indent="  ", break_on_hyphens=False) or [""]


class _TileLangPrinter(Printer):
    def dimensions(self) -> Iterator[str]:
        for dim in self.program.dims:
            suffix = "" if dim.dtype == "int32" else f', "{dim.dtype}"'
            yield f'{self.var(dim)} = T.dynamic("{dim.name}"{suffix})'

    def function(self) -> list[str]:
        """The kernel without the declarations of its dimensions."""
        written = list(self.lines(header=False))
        return written[written.index("@T.prim_func") :]

    def refuse(self, what: str, why: str, stmt: Stmt | None = None) -> NoReturn:
        place = str(stmt.loc) if stmt is not None and stmt.loc is not None else self.program.name
        raise ExportError(f"{place}: {what} cannot be written for TileLang: {why}")

    def dtype(self, name: str) -> str:
        return _DTYPES.get(name, name)

    def declarations(self) -> Iterator[str]:
        for i, var in enumerate(self.program.thread_vars):
            yield f"{var.name} = T.get_thread_binding({i})"
        for b in self.program.buffers:
            yield f"{b.name} = {self.allocation(b)}"
        # What is noted of several buffers is one dictionary: a second call would replace the first.
        grouped: dict[str, list[str]] = {}
        for key, value in self.program.annotations:
            kind, _, name = key.partition(":")
            if not name:
                yield f"T.annotate_{kind}({value})"
            elif kind in _NOTED:
                shown = f"tilelang.layout.make_swizzled_layout({name})" if value == "swizzled" else value
                grouped.setdefault(kind, []).append(f"{name}: {shown}")
            elif kind == "pass":
                grouped.setdefault("pass_configs", []).append(f'"{name}": {value}')
        for kind, entries in grouped.items():
            yield f"T.annotate_{kind}({{{', '.join(entries)}}})"
        swizzle = self.program.swizzle
        if swizzle is not None:
            order = "" if swizzle.order == "row" else ', order="column"'
            yield f"T.use_swizzle({swizzle.panel_size}{order})"

    def allocation(self, b: Buffer) -> str:
        if b.alias and b.offset is not None:
            self.refuse(f"the view {b.name}", "T.view starts at the first element of what it shows")
        if b.address is not None:
            self.refuse(f"{b.name}", "where it lies is read from a table of pointers")
        return super().allocation(b)

    def for_(self, s: For) -> Iterator[str]:
        # What is dealt row by row is dealt in groups of one; no groups of none.
        dealt = s.kind == "persistent" and s.group_size < 1
        yield from super().for_(replace(s, group_size=1) if dealt else s)

    def gemm(self, s: Gemm) -> Iterator[str]:
        if s.a_scale is None or s.b_scale is None:
            yield from super().gemm(s)
            return
        (text,) = super().gemm(s)
        depth = int(evaluate(s.a.extents[-2 if s.trans_a else -1], {}))
        groups = {
            side: depth // int(evaluate(scale.extents[-1], {}))
            for side, scale in (("a", s.a_scale), ("b", s.b_scale))
        }
        start = [] if s.k_start is not None else ["k_start=0"]
        options = [*start, *(f"sf_{side}_granularity_k={group}" for side, group in groups.items())]
        yield f"{text.removesuffix(')')}, {', '.join(options)})"

    def atomic_add(self, s: AtomicAdd) -> Iterator[str]:
        source, _ = self.pair(s.src, s.dst)
        if source == self.region(s.src):
            yield from super().atomic_add(s)
        else:  # the corner of a tile would be the one number to add everywhere
            yield f"T.atomic_{s.kind}({self.region(s.dst)}, {self.region(s.src)})"

    def if_(self, s: If) -> Iterator[str]:
        if s.role:
            self.refuse("a branch marked as the part of some warps", "the mark names no warp group", s)
        yield from super().if_(s)

    def extern(self, s: Extern) -> Iterator[str]:
        self.refuse(f"the call of {s.name}", "it is opaque code that came with another kernel", s)

    def binary(self, e: Binary) -> tuple[str, int]:
        a, b = self._typed((e.a, e.b))
        return super().binary(Binary(e.op, a, b))

    def _typed(self, args: tuple[Expr, ...]) -> tuple[Expr, ...]:
        """Literals in the narrow type they meet: there they would be float32, and the others with them."""
        met = {
            dtype_of(a, self.dtypes)
            for a in args
            if not isinstance(a, Const) and is_float(dtype_of(a, self.dtypes))
        }
        if len(met) != 1 or met == {"float32"}:
            return args
        (dtype,) = met
        return tuple(
            Const(a.value, dtype) if isinstance(a, Const) and a.dtype == "float32" else a for a in args
        )

    def call(self, e: Call) -> tuple[str, int]:
        if e.fn == "if_then_else":
            return super().call(Call(e.fn, (e.args[0], *self._typed(e.args[1:]))))
        if e.fn == "clamp":
            return super().call(Call(e.fn, self._typed(e.args)))
        if e.fn.startswith("extern:"):
            self.refuse(
                f"the call of {e.fn.rpartition(':')[2]}", "it is opaque code that came with another kernel"
            )
        return super().call(e)
