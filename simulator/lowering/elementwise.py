"""Counting the instructions of an element expression.

Counts are results per element by pipe. Rates per pipe and cycle come from the chip file; how many
instructions a function expands to follows the CUDA C++ programming guide (intrinsics of the
special-function unit plus the multiply-adds that scale their argument or result).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import (
    COMPARISONS,
    FUNCTIONS,
    Binary,
    Call,
    Cast,
    Const,
    Expr,
    Load,
    Var,
    loads,
    variables,
)
from foretile.kernels.infer import call_dtype
from foretile.kernels.ir import Buffer, Store, TileProgram
from foretile.simulator.lowering.device import DEVICE_COSTS, DEVICE_NAMES


@dataclass(frozen=True, slots=True)
class Count:
    """Results per element by pipe, and the depth of the longest dependent chain."""

    fp32: float = 0.0
    alu: float = 0.0
    special: float = 0.0
    convert: float = 0.0
    depth: int = 0
    loads: tuple[Load, ...] = field(default=())
    shuffles: float = 0.0  # exchanges between the threads of a warp

    def __add__(self, other: Count) -> Count:
        return Count(
            self.fp32 + other.fp32,
            self.alu + other.alu,
            self.special + other.special,
            self.convert + other.convert,
            max(self.depth, other.depth),
            self.loads + other.loads,
            self.shuffles + other.shuffles,
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
            self.shuffles,
        )

    def exchanged(self, times: float) -> Count:
        """This count followed by exchanges between threads."""
        return replace(self, shuffles=self.shuffles + times)

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
    "isinf": {"alu": 1},
    "isfinite": {"alu": 1},
    "copysign": {"alu": 1},
    "rcp": {"special": 1},
    "fma": {"fp32": 1},
    "trunc": {"convert": 1},
    "log10": {"special": 1, "fp32": 1},
    "exp10": {"special": 1, "fp32": 2},
    # Population count and the position of a bit run at the rate of conversions (CUDA C++ Programming
    # Guide, "Throughput of native arithmetic instructions").
    "popc": {"convert": 1},
    "clz": {"convert": 1},
    "ffs": {"convert": 1, "alu": 2},
    # A quotient or two functions of the unit, and the multiply-adds around them.
    "tan": {"special": 3, "fp32": 1},
    "fmod": {"special": 1, "fp32": 3},
    "hypot": {"special": 1, "fp32": 3},
    # Votes; a warp answers at once.
    **{name: {"alu": 1} for name in ("any_sync", "all_sync", "ballot", "activemask")},
    **{name: {"alu": 1} for name in ("clc_is_canceled", "block_rank_in_cluster")},
    # Philox 4x32: ten rounds of two wide products, four exclusive ors and two additions make four numbers.
    "rng_rand": {"alu": 25.0},
    "rng_uniform": {"alu": 25.0, "convert": 1.0, "fp32": 1.0},
}
EXTERN = "extern_instructions"  # annotation "extern_instructions:NAME": instructions of a call, a thread
DEVICE_FUNCTIONS = {
    "__match_any_sync": "match_any",
    "__match_all_sync": "match_all",
    "__ballot_sync": "ballot",
    "__any_sync": "any_sync",
    "__all_sync": "all_sync",
    "__shfl_sync": "shfl",
    "__shfl_xor_sync": "shfl_xor",
    "__shfl_up_sync": "shfl_up",
    "__shfl_down_sync": "shfl_down",
    "__activemask": "activemask",
    "__popc": "popc",
    "__popcll": "popc",
    "__clz": "clz",
    "__ffs": "ffs",
}
"""Functions of the CUDA C++ Programming Guide by their names here."""
_POLYNOMIAL = {
    "special": 1.0,
    "fp32": 12.0,
}  # a reduction of the argument and a polynomial of single precision
_WARP_STEPS = 5  # exchanges that combine the 32 lanes of a warp


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
    if isinstance(e, Call) and e.fn not in FUNCTIONS:
        return call_dtype(e.fn, e.args, tuple(value_dtype(a, program) for a in e.args))
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
        return _called(e.fn, below, program)
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


def _called(fn: str, below: Count, program: TileProgram) -> Count:
    """A function of operands that are already counted."""
    if fn.startswith("extern:"):
        name = fn.split(":", 2)[2]
        if name in DEVICE_COSTS:
            return below.then(**DEVICE_COSTS[name])
        fn = DEVICE_FUNCTIONS.get(name) or DEVICE_NAMES.get(name, fn)
        if fn.startswith("extern:"):
            return below.then(alu=float(program.annotation(EXTERN, name) or 0.0))
    if fn in _CALLS:
        return below.then(**_CALLS[fn])
    if fn.startswith("shfl"):
        return below.exchanged(1)
    if fn.startswith(("match_", "syncthreads_")):
        return below.then(alu=1).exchanged(1)
    if fn.startswith("warp_"):
        return below.then(alu=_WARP_STEPS).exchanged(_WARP_STEPS)
    if fn.startswith("block_"):  # within warps, through the scratchpad, and once more
        return below.then(alu=2 * _WARP_STEPS).exchanged(2 * _WARP_STEPS + 2)
    return below.then(**_POLYNOMIAL)


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
