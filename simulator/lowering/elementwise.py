"""Counting the instructions of an element expression.

Counts are results per element by pipe. Rates per pipe and cycle come from the chip file; how many
instructions a function expands to follows the CUDA C++ programming guide (intrinsics of the
special-function unit plus the multiply-adds that scale their argument or result).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import COMPARISONS, Binary, Call, Cast, Const, Expr, Load, Var, loads, variables
from foretile.kernels.ir import Buffer, Store, TileProgram


@dataclass(frozen=True, slots=True)
class Count:
    """Results per element by pipe, and the depth of the longest dependent chain."""

    fp32: float = 0.0
    alu: float = 0.0
    special: float = 0.0
    convert: float = 0.0
    depth: int = 0
    loads: tuple[Load, ...] = field(default=())

    def __add__(self, other: Count) -> Count:
        return Count(
            self.fp32 + other.fp32,
            self.alu + other.alu,
            self.special + other.special,
            self.convert + other.convert,
            max(self.depth, other.depth),
            self.loads + other.loads,
        )

    def then(self, *, fp32: float = 0, alu: float = 0, special: float = 0, convert: float = 0) -> Count:
        """This count followed by more instructions that depend on it."""
        steps = int(fp32 + alu + special + convert + 0.999)
        return Count(
            self.fp32 + fp32,
            self.alu + alu,
            self.special + special,
            self.convert + convert,
            self.depth + steps,
            self.loads,
        )

    @property
    def total(self) -> float:
        """All results together."""
        return self.fp32 + self.alu + self.special + self.convert


_CALLS: dict[str, dict[str, float]] = {
    "exp2": {"special": 1},
    "exp": {"special": 1, "fp32": 1},
    "log2": {"special": 1},
    "log": {"special": 1, "fp32": 1},
    "rsqrt": {"special": 1},
    "sqrt": {"special": 1, "fp32": 1},
    "tanh": {"special": 1},
    "sin": {"special": 1, "fp32": 1},
    "cos": {"special": 1, "fp32": 1},
    "sigmoid": {"special": 2, "fp32": 2},
    "erf": {"special": 1, "fp32": 9},
    "abs": {},
    "neg": {},
    "not": {},
    "bitnot": {"alu": 1},
    "floor": {"convert": 1},
    "ceil": {"convert": 1},
    "round": {"convert": 1},
    "isnan": {"alu": 1},
    "if_then_else": {"alu": 1},
    "clamp": {"alu": 2},
    "likely": {},
}


def value_dtype(e: Expr, program: TileProgram) -> str:
    """Canonical element type an expression yields (the wider operand wins, floats over integers)."""
    if isinstance(e, Const | Var):
        return e.dtype
    if isinstance(e, Cast):
        return e.dtype
    if isinstance(e, Load):
        return program.buffer(e.buffer).dtype
    if isinstance(e, Binary):
        if e.op in COMPARISONS:
            return "bool"
        return _wider((value_dtype(e.a, program), value_dtype(e.b, program)))
    if isinstance(e, Call):
        args = e.args[1:] if e.fn == "if_then_else" else e.args
        return _wider(value_dtype(a, program) for a in args)
    raise TypeError(f"not an expression: {e!r}")


def _wider(names: Iterable[str]) -> str:
    return max(names, key=lambda n: (DTYPES[n].kind == "float", DTYPES[n].bits))


def count(e: Expr, program: TileProgram) -> Count:
    """Instructions to compute one element of ``e``.

    Index arithmetic (integers without loads) is hoisted out of loops by compilers and costs
    nothing by itself; comparing indices costs the comparison.
    """
    if isinstance(e, Const | Var):
        return Count()
    if isinstance(e, Load):
        return Count(depth=1, loads=(e,))
    if isinstance(e, Cast) and e.bits:
        return count(e.a, program)
    if isinstance(e, Cast):
        return _cast(count(e.a, program), value_dtype(e.a, program), e.dtype)
    if isinstance(e, Call):
        below = Count()
        for arg in e.args:
            below = below + count(arg, program)
        return below.then(**_CALLS[e.fn])
    assert isinstance(e, Binary)
    below = count(e.a, program) + count(e.b, program)
    if e.op in COMPARISONS or e.op in ("min", "max"):
        return below.then(alu=1)
    kind = DTYPES[value_dtype(e, program)].kind
    if kind != "float":
        return below if not below.loads else below.then(alu=1)
    if e.op == "div":
        return below.then(fp32=1) if isinstance(e.b, Const) else below.then(special=1, fp32=1)
    if e.op == "pow":
        return below.then(special=2, fp32=1)
    if e.op in ("add", "sub") and any(isinstance(x, Binary) and x.op == "mul" for x in (e.a, e.b)):
        return below  # the multiplication below becomes a multiply-add
    return below.then(fp32=1)


def _cast(below: Count, source: str, target: str) -> Count:
    a, b = DTYPES[source], DTYPES[target]
    if a.name == b.name or (a.kind != "float" and b.kind != "float"):
        return below
    if a.kind == b.kind == "float" and a.bits < b.bits:
        return below.then(alu=1)  # widening is a shift or a permute
    return below.then(convert=1)


def store_count(value: Expr, target: Buffer, program: TileProgram) -> Count:
    """Instructions to compute ``value`` and convert it to the target buffer's type."""
    return _cast(count(value, program), value_dtype(value, program), target.dtype)


def update_count(
    stmt: Store, inside: Container[str], each: Count, target: Buffer, program: TileProgram
) -> tuple[Count, Buffer]:
    """An atomic update of shared memory in a nest over ``inside``: instructions, and what is written.

    ``each`` computes the value. An element of its own a lane is read and written (lanes that meet in a bank,
    or in an element, are not told apart). One element for all lanes takes one update a warp: compilers let
    each warp count its lanes first.
    """
    own = False
    for index in stmt.indices:
        each = each + count(index, program)
        private = any(program.buffer(x.buffer).scope in ("local", "var") for x in loads(index))
        own = own or private or any(name in inside for name in variables(index))
    if own:
        return each + Count(loads=(Load(stmt.buffer, stmt.indices),)), target
    # Vote and count; where each lane is told what it finds, the lanes below it, a shuffle and a sum.
    return each.then(alu=5 if stmt.previous is not None else 2), replace(target, scope="fragment")


def convert_count(source: str, target: str) -> Count:
    """Instructions to convert one element from canonical dtype ``source`` to ``target``."""
    return _cast(Count(), source, target)
