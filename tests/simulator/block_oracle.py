"""A slow, direct interpreter of tile programs: one block after the other, one iteration after the other.

It shares nothing with the executor it is compared with. Buffers are flat lists of Python values: ints,
bools, ``np.float32`` (every floating-point type but float64) with narrow values rounded after every
operation through ``ml_dtypes``. An element that was never written is None.

What the executor may do otherwise is the order in which floats are added. Buffers that such sums reach
are called *noisy*; ``Oracle.flips`` counts the roundings and comparisons of noisy values that an error of
``NOISE`` would turn, and ``Oracle.largest`` is the largest noisy value: what tolerances are made of.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import COMPARISONS, Binary, Call, Cast, Const, Expr, Load, Var, walk
from foretile.kernels.infer import binary_dtype, call_dtype, dtype_of
from foretile.kernels.ir import (
    AtomicAdd,
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
    walk_stmts,
)

NOISE = 2.0**-19
_NARROW = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e8m0": ml_dtypes.float8_e8m0fnu,
    "float4_e2m1": ml_dtypes.float4_e2m1fn,
    "int4": ml_dtypes.int4,
}
_LARGEST = {"float8_e4m3": 448.0, "float8_e5m2": 57344.0, "float4_e2m1": 6.0}
Env = dict[str, int]
Thunk = Callable[[Env], Any]


class OracleError(Exception):
    """The program does what is undefined: reads what was not written, leaves an on-chip buffer, …"""


# -- scalars ---------------------------------------------------------------------------------------


def storage(dtype: str) -> Any:
    """The NumPy type of arrays of ``dtype``."""
    return np.float32 if dtype == "tfloat32" else _NARROW.get(dtype, dtype)


def _is_float(dtype: str) -> bool:
    return DTYPES[dtype].kind == "float"


def _whole(value: int, dtype: str) -> int:
    bits = DTYPES[dtype].bits
    value &= (1 << bits) - 1
    return value - (1 << bits) if DTYPES[dtype].kind == "int" and value >> (bits - 1) else value


def _tf32(x: np.float32) -> np.float32:
    if not np.isfinite(x):
        return x
    mantissa, exponent = math.frexp(abs(float(x)))
    ticks = math.floor(math.ldexp(mantissa, 11) + 0.5)  # ties away from zero
    return np.float32(math.copysign(math.ldexp(ticks, exponent - 11), x))


def rounded(x: Any, dtype: str) -> Any:
    """A number as one of the floating-point type ``dtype``."""
    if dtype == "float64":
        return np.float64(x)
    if dtype == "float32":
        return np.float32(x)
    if dtype == "tfloat32":
        return _tf32(np.float32(x))
    if dtype == "float8_e8m0":
        if np.isnan(x):
            return np.float32(x)
        mantissa, exponent = math.frexp(min(abs(float(x)), 2.0**127))
        power = exponent - 1 if mantissa == 0.5 else exponent
        return np.float32(2.0 ** (max(-127, min(127, power)) if x else -127))
    most = _LARGEST.get(dtype)
    if most is not None:
        x = np.float32(most if dtype == "float4_e2m1" else x) if np.isnan(x) else max(-most, min(most, x))
    return np.float32(_NARROW[dtype](x))


def converted(x: Any, dtype: str) -> Any:
    """A scalar of any type as ``dtype``."""
    kind = DTYPES[dtype].kind
    if kind == "bool":
        return bool(x != 0)
    if kind == "float":
        return rounded(x, dtype)
    if isinstance(x, np.floating):
        if np.isnan(x):
            return 0
        bits = DTYPES[dtype].bits
        low, high = (0, (1 << bits) - 1) if kind == "uint" else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        return int(max(low, min(high, int(x)))) if np.isfinite(x) else (high if x > 0 else low)
    return _whole(int(x), dtype)


_FLOAT_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "floordiv": lambda a, b: np.floor(a / b),
    "mod": np.mod,
    "min": np.fmin,
    "max": np.fmax,
    "pow": np.power,
}
_WHOLE_BINARY: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "min": min,
    "max": max,
    "bitand": lambda a, b: a & b,
    "bitor": lambda a, b: a | b,
    "bitxor": lambda a, b: a ^ b,
    "shl": lambda a, b: a << b,
    "shr": lambda a, b: a >> b,
    "truncdiv": lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
    "truncmod": lambda a, b: abs(a) % abs(b) * (-1 if a < 0 else 1),
    "pow": lambda a, b: a**b,
}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
}
_ONE = np.float32(1)


def _erf(x: Any) -> Any:
    from scipy.special import erf

    return erf(x)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log2": np.log2,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: x.dtype.type(1) / np.sqrt(x),
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "sigmoid": lambda x: x.dtype.type(1) / (x.dtype.type(1) + np.exp(-x)),
    "erf": _erf,
    "abs": abs,
    "neg": lambda x: -x,
    "floor": lambda x: x if isinstance(x, int) else np.floor(x),
    "ceil": lambda x: x if isinstance(x, int) else np.ceil(x),
    "round": lambda x: x if isinstance(x, int) else np.rint(x),
    "bitnot": lambda x: not x if isinstance(x, bool) else ~x,
    "clamp": lambda x, low, high: min(max(x, low), high),
}
_JUMPING = ("floor", "ceil", "round")


# -- memory ----------------------------------------------------------------------------------------


class Memory:
    """A tensor or an on-chip buffer. ``outside``: what reading beyond it gives (None: it is an error)."""

    def __init__(self, name: str, shape: Sequence[int], dtype: str, outside: Any = None) -> None:
        self.name, self.shape, self.dtype, self.outside = name, tuple(shape), dtype, outside
        self.data: list[Any] = [None] * math.prod(self.shape)

    def place(self, indices: Iterable[int]) -> int:
        """Position of an element, -1 outside."""
        at = 0
        for index, size in zip(indices, self.shape, strict=True):
            if not 0 <= index < size:
                return -1
            at = at * size + index
        return at

    def get(self, indices: Iterable[int]) -> Any:
        at = self.place(indices)
        if at >= 0:
            found = self.data[at]
        elif self.outside is not None:
            return self.outside
        else:
            raise OracleError(f"{self.name}{list(indices)} is outside of {self.shape}")
        if found is None:
            raise OracleError(f"{self.name}{list(indices)} was never written")
        return found

    def put(self, indices: Iterable[int], value: Any) -> None:
        at = self.place(indices)
        if at >= 0:
            self.data[at] = value
        elif self.outside is None:
            raise OracleError(f"{self.name}{list(indices)} is outside of {self.shape}")

    def load_array(self, array: np.ndarray) -> None:
        """Take over an array of the storage type."""
        if _is_float(self.dtype):
            wide = array.astype(np.float64 if self.dtype == "float64" else np.float32)
            self.data = list(wide.ravel())
        else:
            self.data = [bool(x) if self.dtype == "bool" else int(x) for x in array.ravel()]

    def array(self) -> np.ndarray:
        """The values in the storage type, unwritten ones zero."""
        if any(x is None for x in self.data):
            raise OracleError(f"{self.name} was not written everywhere")
        kind = np.float64 if self.dtype == "float64" else np.float32 if _is_float(self.dtype) else np.int64
        return np.array(self.data, kind).reshape(self.shape).astype(storage(self.dtype))


# -- programs --------------------------------------------------------------------------------------


class Oracle:
    """One program over its tensors (changed in place). ``exact_products``: sums of products need no care."""

    def __init__(self, program: TileProgram, tensors: dict[str, Memory], exact_products: bool) -> None:
        self.program, self.memory = program, dict(tensors)
        self.dtypes = {b.name: b.dtype for b in (*program.params, *program.buffers)}
        self.scopes = {b.name: b.scope for b in program.buffers}
        self.noisy = _noisy(program, exact_products)
        self.flips = 0
        self.largest = 0.0
        self.block, self.blocks = 0, 1
        self.depth = 0  # of parallel loops around the statement that is run

    def run(self, dims: Mapping[str, int]) -> None:
        """All blocks, in order."""
        env: Env = dict(dims)
        grid = [int(self.expr(e)[0](env)) for e in self.program.grid]
        self.blocks = math.prod(grid)
        body = self.body(self.program.body)
        for self.block, index in enumerate(itertools.product(*(range(n) for n in reversed(grid)))):
            for b in self.program.buffers:
                shape = [int(self.expr(e)[0](env)) for e in b.shape]
                self.memory[b.name] = Memory(b.name, shape, b.dtype)
            names = (v.name for v in self.program.block_vars)
            body({**env, **dict(zip(names, reversed(index), strict=True))})

    # -- expressions -------------------------------------------------------------------------------

    def expr(self, e: Expr) -> tuple[Thunk, str]:
        """``e`` as a function of loop and block indices, and its type."""
        dtype = dtype_of(e, self.dtypes)
        if isinstance(e, Const):
            if isinstance(e.value, bool):
                constant: Any = e.value
            elif _is_float(dtype):
                constant = rounded(e.value, dtype)
            else:
                constant = int(e.value)
            return (lambda env: constant), dtype
        if isinstance(e, Var):
            name = e.name
            return (lambda env: env[name]), dtype
        if isinstance(e, Load):
            memory, buffer, indices = self.memory, e.buffer, [self.expr(i)[0] for i in e.indices]
            return (lambda env: memory[buffer].get([i(env) for i in indices])), dtype
        if isinstance(e, Cast):
            return self.cast(*self.expr(e.a), e.dtype, self.is_noisy(e.a)), dtype
        if isinstance(e, Binary):
            return self.binary(e), dtype
        assert isinstance(e, Call)
        return self.call(e), dtype

    def cast(self, value: Thunk, source: str, target: str, noisy: bool) -> Thunk:
        """Conversion, if there is one."""
        if source == target:
            return value
        if noisy and target not in ("float32", "float64"):
            return lambda env: self.turn(value(env), lambda x: converted(x, target))
        if target == "float32" and source not in ("float64",) and _is_float(source):
            return value
        return lambda env: converted(value(env), target)

    def turn(self, x: Any, step: Callable[[Any], Any]) -> Any:
        """A step function of a noisy value; counts where noise would turn it."""
        self.largest = max(self.largest, abs(float(x)))
        noise = NOISE * (abs(float(x)) + 1)
        above, below = step(np.float32(x + noise)), step(np.float32(x - noise))
        self.flips += bool(abs(float(above) - float(below)) > 8 * noise)
        return step(x)

    def binary(self, e: Binary) -> Thunk:
        (a, a_dtype), (b, b_dtype) = self.expr(e.a), self.expr(e.b)
        if e.op == "and":
            return lambda env: bool(a(env)) and bool(b(env))
        if e.op == "or":
            return lambda env: bool(a(env)) or bool(b(env))
        noisy = self.is_noisy(e.a), self.is_noisy(e.b)
        meet = binary_dtype("add" if e.op in COMPARISONS else e.op, e.a, a_dtype, e.b, b_dtype)
        a, b = self.cast(a, a_dtype, meet, noisy[0]), self.cast(b, b_dtype, meet, noisy[1])
        if e.op in COMPARISONS:
            compare = _COMPARE[e.op]
            if any(noisy) and _is_float(meet):
                return lambda env: self.turned(compare, a(env), b(env))
            return lambda env: bool(compare(a(env), b(env)))
        if _is_float(meet):
            join = _FLOAT_BINARY[e.op]
            return self.finish(lambda env: join(a(env), b(env)), meet, any(noisy))
        op = _WHOLE_BINARY[e.op]
        if meet == "bool":
            return lambda env: bool(op(a(env), b(env)))

        def whole(env: Env) -> int:
            found = op(a(env), b(env))
            return found if -(2**31) <= found < 2**31 and meet == "int32" else _whole(found, meet)

        return whole

    def turned(self, compare: Callable[[Any, Any], bool], a: Any, b: Any) -> bool:
        self.flips += bool(abs(a - b) <= NOISE * (1 + abs(a)))
        return bool(compare(a, b))

    def finish(self, value: Thunk, dtype: str, noisy: bool) -> Thunk:
        """Round the result of an operation."""
        if dtype in ("float32", "float64"):
            return value
        if noisy:
            return lambda env: self.turn(value(env), lambda x: rounded(x, dtype))
        return lambda env: rounded(value(env), dtype)

    def call(self, e: Call) -> Thunk:
        args = [self.expr(a) for a in e.args]
        dtypes = tuple(d for _, d in args)
        dtype = call_dtype(e.fn, e.args, dtypes)
        if e.fn == "if_then_else":
            cond = args[0][0]
            yes, no = (self.cast(*args[i], dtype, self.is_noisy(e.args[i])) for i in (1, 2))
            return lambda env: yes(env) if cond(env) else no(env)
        if e.fn == "not":
            return lambda env: not args[0][0](env)
        if e.fn == "isnan":
            return lambda env: bool(np.isnan(args[0][0](env)))
        noisy = self.is_noisy(e)
        values = [self.cast(v, d, dtype, self.is_noisy(a)) for (v, d), a in zip(args, e.args, strict=True)]
        fn = _FUNCTIONS[e.fn]
        if len(values) == 1:
            only = values[0]
            if noisy and e.fn in _JUMPING:
                return lambda env: self.turn(only(env), fn)
            plain: Thunk = lambda env: fn(only(env))  # noqa: E731
        else:
            plain = lambda env: fn(*(v(env) for v in values))  # noqa: E731
        if _is_float(dtype):
            return self.finish(plain, dtype, noisy)
        return lambda env: converted(plain(env), dtype)

    def is_noisy(self, e: Expr) -> bool:
        return any(isinstance(x, Load) and x.buffer in self.noisy for x in walk(e))

    # -- regions -----------------------------------------------------------------------------------

    def region(self, r: Region) -> Callable[[Env], tuple[list[int], list[int]]]:
        mins, extents = [self.expr(e)[0] for e in r.mins], [self.expr(e)[0] for e in r.extents]
        return lambda env: ([m(env) for m in mins], [n(env) for n in extents])

    def reader(self, r: Region) -> Callable[[Env], tuple[list[Any], list[int]]]:
        """The region's values, last dimension fastest, and its extents."""
        box = self.region(r)

        def read(env: Env) -> tuple[list[Any], list[int]]:
            mins, extents = box(env)
            memory = self.memory[r.buffer]
            return [memory.get(i) for i in _points(mins, extents)], extents

        return read

    def writer(self, r: Region) -> Callable[[Env, list[Any]], None]:
        box = self.region(r)

        def write(env: Env, values: list[Any]) -> None:
            mins, extents = box(env)
            memory = self.memory[r.buffer]
            for i, value in zip(_points(mins, extents), values, strict=True):
                memory.put(i, value)

        return write

    def change(self, source: str, target: str, noisy: bool) -> Callable[[Any], Any]:
        """Conversion of single values from buffer to buffer."""
        if source == target or (target == "float32" and _is_float(source) and source != "float64"):
            return lambda x: x
        if noisy and target not in ("float32", "float64"):
            return lambda x: self.turn(x, lambda y: converted(y, target))
        return lambda x: converted(x, target)

    # -- statements --------------------------------------------------------------------------------

    def body(self, body: tuple[Stmt, ...]) -> Callable[[Env], None]:
        steps = [self.statement(s) for s in body]

        def run(env: Env) -> None:
            for step in steps:
                step(env)

        return run

    def statement(self, s: Stmt) -> Callable[[Env], None]:
        return getattr(self, f"do_{type(s).__name__.lower()}")(s)  # type: ignore[no-any-return]

    def do_sync(self, s: Sync) -> Callable[[Env], None]:
        return lambda env: None

    def do_copy(self, s: Copy) -> Callable[[Env], None]:
        read, write = self.reader(s.src), self.writer(s.dst)
        change = self.change(self.dtypes[s.src.buffer], self.dtypes[s.dst.buffer], s.src.buffer in self.noisy)
        return lambda env: write(env, [change(x) for x in read(env)[0]])

    def do_fill(self, s: Fill) -> Callable[[Env], None]:
        value, source = self.expr(s.value)
        value = self.cast(value, source, self.dtypes[s.dst.buffer], self.is_noisy(s.value))
        box, write = self.region(s.dst), self.writer(s.dst)
        return lambda env: write(env, [value(env)] * math.prod(box(env)[1]))

    def do_gemm(self, s: Gemm) -> Callable[[Env], None]:
        a, b, c, write = self.reader(s.a), self.reader(s.b), self.reader(s.c), self.writer(s.c)
        box, dtype = self.region(s.c), self.dtypes[s.c.buffer]
        finish = self.change("float64", dtype, s.c.buffer in self.noisy)

        def matrix(values: list[Any], extents: list[int], turn: bool) -> np.ndarray:
            found = np.array(values, np.float64).reshape(extents[-2:])
            return found.T if turn else found

        scales = [None if r is None else self.reader(r) for r in (s.a_scale, s.b_scale)]

        def scaled(env: Env, which: int, depth_last: np.ndarray) -> np.ndarray:
            read = scales[which]
            if read is None:
                return depth_last
            scale = matrix(*read(env), False)
            group = depth_last.shape[1] // scale.shape[1]
            return depth_last * scale[:, np.arange(depth_last.shape[1]) // group]

        def multiply(env: Env) -> None:
            left = scaled(env, 0, matrix(*a(env), s.trans_a))
            right = scaled(env, 1, matrix(*b(env), not s.trans_b))
            product = (left @ right.T).ravel()
            if not s.clear_accum:
                product = product + np.array(c(env)[0], np.float64)
            assert len(product) == math.prod(box(env)[1])
            if s.c.buffer in self.noisy:
                self.largest = max(self.largest, float(np.abs(product).max()))
            write(env, [finish(x if _is_float(dtype) else int(x)) for x in product])

        return multiply

    def do_reduce(self, s: Reduce) -> Callable[[Env], None]:
        read, old, write = self.reader(s.src), self.reader(s.dst), self.writer(s.dst)
        source, target = self.dtypes[s.src.buffer], self.dtypes[s.dst.buffer]
        pair = {"sum": "add", "abssum": "add", "max": "max", "absmax": "max", "min": "min"}[s.kind]
        join = (_FLOAT_BINARY if _is_float(source) else _WHOLE_BINARY)[pair]
        join_old = (_FLOAT_BINARY if _is_float(target) else _WHOLE_BINARY)[pair]
        noisy = s.dst.buffer in self.noisy
        keep = self.change("float64" if _is_float(target) else "int64", target, noisy)

        def reduce(env: Env) -> None:
            values, extents = read(env)
            inner = math.prod(extents[s.dim + 1 :])
            count = extents[s.dim]
            found = []
            for first in _starts(extents, s.dim):
                line = values[first : first + count * inner : inner]
                if s.kind.startswith("abs"):
                    line = [abs(x) for x in line]
                total = line[0]
                for x in line[1:]:
                    total = join(total, x)
                    if noisy:
                        self.largest = max(self.largest, abs(float(total)))
                found.append(keep(total))
            if not s.clear:
                found = [keep(join_old(x, y)) for x, y in zip(old(env)[0], found, strict=True)]
            write(env, found)

        return reduce

    def do_cumsum(self, s: CumSum) -> Callable[[Env], None]:
        read, write = self.reader(s.src), self.writer(s.dst)
        source, target = self.dtypes[s.src.buffer], self.dtypes[s.dst.buffer]
        first_keep = self.change("float64" if _is_float(source) else "int64", source, True)
        keep = self.change(source, target, s.dst.buffer in self.noisy)

        def scan(env: Env) -> None:
            values, extents = read(env)
            inner, count = math.prod(extents[s.dim + 1 :]), extents[s.dim]
            for first in _starts(extents, s.dim):
                order = range(first, first + count * inner, inner)
                total: Any = 0
                for place in reversed(order) if s.reverse else order:
                    total = values[place] + (total if total is not None else 0)
                    self.largest = max(self.largest, abs(float(total)))
                    values[place] = total
            write(env, [keep(first_keep(x)) for x in values])

        return scan

    def do_atomicadd(self, s: AtomicAdd) -> Callable[[Env], None]:
        read, box = self.reader(s.src), self.region(s.dst)
        dtype = self.dtypes[s.dst.buffer]
        change = self.change(self.dtypes[s.src.buffer], dtype, s.src.buffer in self.noisy)

        def add(env: Env) -> None:
            for i, value in zip(_points(*box(env)), read(env)[0], strict=True):
                self.update(self.memory[s.dst.buffer], i, "add", change(value))

        return add

    def update(self, memory: Memory, indices: Sequence[int], how: str, value: Any) -> None:
        """An atomic operation on one element."""
        at = memory.place(indices)
        if at < 0:
            memory.put(indices, value)  # dropped, or an error
            return
        operations = _FLOAT_BINARY if _is_float(memory.dtype) else _WHOLE_BINARY
        old = memory.data[at] if memory.data[at] is not None or memory.outside is None else 0
        if old is None:
            raise OracleError(f"{memory.name}{list(indices)} was never written")
        memory.data[at] = converted(operations[how](old, value), memory.dtype)

    def do_store(self, s: Store) -> Callable[[Env], None]:
        value, source = self.expr(s.value)
        value = self.cast(value, source, self.dtypes[s.buffer], self.is_noisy(s.value))
        indices, memory = [self.expr(i)[0] for i in s.indices], self.memory
        if s.atomic:
            return lambda env: self.update(memory[s.buffer], [i(env) for i in indices], s.atomic, value(env))
        return lambda env: memory[s.buffer].put([i(env) for i in indices], value(env))

    # -- control -----------------------------------------------------------------------------------

    def do_if(self, s: If) -> Callable[[Env], None]:
        cond, then, orelse = self.expr(s.cond)[0], self.body(s.then), self.body(s.orelse)
        return lambda env: then(env) if cond(env) else orelse(env)

    def do_while(self, s: While) -> Callable[[Env], None]:
        cond, body = self.expr(s.cond)[0], self.body(s.body)

        def repeat(env: Env) -> None:
            while cond(env):
                body(env)

        return repeat

    def do_for(self, s: For) -> Callable[[Env], None]:
        extents = [self.expr(e)[0] for e in s.extents]
        start = self.expr(s.start)[0] if s.start is not None else lambda env: 0
        names, body = [v.name for v in s.vars], self.body(s.body)
        private = sorted(
            {
                x.buffer
                for x in walk_stmts(s.body)
                if isinstance(x, Store) and self.scopes.get(x.buffer) in ("local", "var")
            }
            if s.kind == "parallel"
            else ()
        )

        def loop(env: Env) -> None:
            counts = [n(env) for n in extents]
            if s.kind == "persistent":
                points: Iterable[tuple[int, ...]] = _dealt(counts, s.group_size)[self.block :: self.blocks]
            else:
                points = itertools.product(*(range(n) for n in counts))
            first = start(env) if len(names) == 1 else 0
            before = {name: self.memory[name].data for name in private}
            ran = False
            for point in points:
                ran = True
                if len(point) == 1:
                    env[names[0]] = first + s.step * point[0]
                else:
                    env.update(zip(names, point, strict=True))
                for name, data in before.items():  # every thread has its own
                    self.memory[name].data = list(data)
                body(env)
            if ran:
                for name in private:
                    self.memory[name].data = [None] * len(before[name])

        return loop


def _points(mins: list[int], extents: list[int]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(low, low + n) for low, n in zip(mins, extents, strict=True)))


def _starts(extents: list[int], dim: int) -> Iterator[int]:
    """First positions of the lines along ``dim``."""
    inner = math.prod(extents[dim + 1 :])
    for outer in range(math.prod(extents[:dim])):
        yield from range(outer * inner * extents[dim], outer * inner * extents[dim] + inner)


def _dealt(counts: list[int], group: int) -> list[tuple[int, ...]]:
    """Points of a persistent loop in the order in which they are dealt."""
    points = list(itertools.product(*(range(n) for n in counts)))
    if group > 1:
        points.sort(key=lambda p: (p[0] // group, p[1:], p[0]))
    return points


def _noisy(program: TileProgram, exact_products: bool) -> frozenset[str]:
    """Buffers that hold sums of floats, or what was computed from them."""
    floats = {b.name for b in (*program.params, *program.buffers) if _is_float(b.dtype)}
    noisy: set[str] = set()
    flows: list[tuple[set[str], str]] = []
    for s in walk_stmts(program.body):
        if isinstance(s, Reduce | CumSum):
            if isinstance(s, CumSum) or s.kind in ("sum", "abssum"):
                noisy.add(s.dst.buffer)
            flows.append(({s.src.buffer}, s.dst.buffer))
        elif isinstance(s, Gemm):
            if not exact_products:
                noisy.add(s.c.buffer)
            operands = {r.buffer for r in (s.a, s.b, s.a_scale, s.b_scale) if r is not None}
            flows.append((operands, s.c.buffer))
        elif isinstance(s, Copy | AtomicAdd):
            flows.append(({s.src.buffer}, s.dst.buffer))
        elif isinstance(s, Fill | Store):
            target = s.dst.buffer if isinstance(s, Fill) else s.buffer
            flows.append(({x.buffer for x in walk(s.value) if isinstance(x, Load)}, target))
    noisy &= floats
    while True:
        more = {target for sources, target in flows if sources & noisy} & floats - noisy
        if not more:
            return frozenset(noisy)
        noisy |= more


def execute(
    programs: TileProgram | Sequence[TileProgram],
    tensors: Mapping[str, np.ndarray],
    dims: Mapping[str, int] | None = None,
    *,
    exact_products: bool = False,
) -> tuple[dict[str, np.ndarray], list[Oracle]]:
    """All tensors afterwards, in their storage types, and the interpreters of the launches.

    Tensors that are not given are unwritten. The given ones are not changed.

    Raises:
        OracleError: the program does what is undefined.
    """
    launches = (programs,) if isinstance(programs, TileProgram) else tuple(programs)
    memory: dict[str, Memory] = {}
    oracles = []
    with np.errstate(all="ignore"):
        for program in launches:
            for p in program.params:
                if p.name in memory:
                    continue
                safe = next((v for k, v in program.annotations if k == f"safe_value:{p.name}"), "0")
                outside = converted(np.float64(float(safe)), p.dtype)
                given = tensors.get(p.name)
                shape = given.shape if given is not None else [_size(e, dims or {}) for e in p.shape]
                memory[p.name] = Memory(p.name, shape, p.dtype, outside)
                if given is not None:
                    memory[p.name].load_array(given)
            oracle = Oracle(program, memory, exact_products)
            oracle.run(dims or {})
            oracles.append(oracle)
        return {name: m.array() for name, m in memory.items()}, oracles


def _size(e: Expr, dims: Mapping[str, int]) -> int:
    if isinstance(e, Const):
        return int(e.value)
    assert isinstance(e, Var)
    return dims[e.name]
