"""Verification: what counts as close, and that faults in kernels are noticed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from foretile.hwmodels import load_chip
from foretile.kernels.expr import Binary, Const, Expr
from foretile.kernels.ir import Copy, Fill, For, Gemm, If, Reduce, Stmt, Store, TileProgram
from foretile.kernels.operator import Tolerance, load_operator
from foretile.simulator.numerics.verify import Settings, accumulation_of, compare, verify

TOLERANCE = Tolerance(norm=1e-2, peak=1e-2)


def test_equal_arrays_have_no_error() -> None:
    x = np.random.default_rng(0).standard_normal((4, 5))
    check = compare("X", x, x, TOLERANCE)
    assert (check.norm_error, check.peak_error, check.max_relative, check.mismatched) == (0, 0, 0, 0)
    assert check.cosine_distance == pytest.approx(0, abs=1e-15)
    assert check.within


def test_errors_are_measured_as_they_are_defined() -> None:
    ref = np.array([3.0, -4.0, 0.0])
    check = compare("X", np.array([3.3, -4.0, 0.01]), ref, TOLERANCE)
    assert check.norm_error == pytest.approx(np.hypot(0.3, 0.01) / 5)
    assert check.peak_error == pytest.approx(0.3 / 4)
    assert check.max_relative == pytest.approx(0.1)
    assert check.mean_relative == pytest.approx(0.05)
    assert check.mismatches[0].index == (0,)
    assert not check.within


def test_distances_are_counted_in_spacings_of_the_stored_type() -> None:
    ref = np.array([1.0, 1.0, 1.0, 1.0])
    out = np.array([1.0, 1 + 2**-7, 1 + 2**-6, 2.0]).astype(ml_dtypes.bfloat16)  # bf16 steps by 2**-7 at one
    shares = compare("X", out, ref, TOLERANCE).ulps
    assert shares == {"≤ 0.5": 0.25, "≤ 1": 0.25, "≤ 2": 0.25, "≤ 4": 0, "≤ 8": 0, "≤ 16": 0, "> 16": 0.25}


@pytest.mark.parametrize(
    ("out", "ref", "within"),
    [
        ([np.nan, 1], [np.nan, 1], True),
        ([np.inf, 1], [np.inf, 1], True),
        ([-np.inf, 1], [np.inf, 1], False),
        ([0.0, 1], [np.nan, 1], False),
        ([np.nan, 1], [0.0, 1], False),
    ],
)
def test_infinities_and_nan_must_be_where_the_reference_has_them(
    out: list[float], ref: list[float], within: bool
) -> None:
    assert compare("X", np.array(out), np.array(ref), TOLERANCE).within == within


def test_a_result_for_a_zero_reference_is_infinitely_wrong() -> None:
    assert compare("X", np.array([1e-9]), np.zeros(1), TOLERANCE).norm_error == np.inf
    assert compare("X", np.zeros(3), np.zeros(3), TOLERANCE).within


# -- faults planted in kernels --------------------------------------------------------------------


def edit(body: tuple[Stmt, ...], change: Any) -> tuple[Stmt, ...]:
    """``body`` with every statement replaced by ``change(statement)``, a tuple of statements."""
    found: list[Stmt] = []
    for s in body:
        if isinstance(s, For):
            s = replace(s, body=edit(s.body, change))
        elif isinstance(s, If):
            s = replace(s, then=edit(s.then, change), orelse=edit(s.orelse, change))
        found += change(s)
    return tuple(found)


class Nth:
    """Changes the n-th statement that fits (and, of a store, whose value fits)."""

    def __init__(self, fits: Any, to: Any, n: int = 0) -> None:
        self.fits, self.to, self.n, self.seen = fits, to, n, 0

    def __call__(self, s: Stmt) -> tuple[Stmt, ...]:
        if not self.fits(s):
            return (s,)
        self.seen += 1
        return self.to(s) if self.seen == self.n + 1 else (s,)


def off_by_one(e: Expr) -> Expr:
    return Binary("add", e, Const(1))


def swapped(s: Copy) -> tuple[Stmt, ...]:
    return (replace(s, src=replace(s.src, mins=(*s.src.mins[:-2], s.src.mins[-1], s.src.mins[-2]))),)


def is_load(s: Stmt) -> bool:
    return isinstance(s, Copy) and s.src.buffer[:1].isupper() and "_" not in s.src.buffer


def dropped(s: Stmt) -> tuple[Stmt, ...]:
    return ()


def rescale(s: Stmt) -> bool:
    return (
        isinstance(s, Store) and s.buffer == "acc_o" and isinstance(s.value, Binary) and s.value.op == "mul"
    )


def one_trip_less(s: For) -> tuple[Stmt, ...]:
    return (replace(s, extents=(Binary("sub", s.extents[0], Const(1)),)),)


def shifted(s: Copy) -> tuple[Stmt, ...]:
    mins = (*s.src.mins[:-1], off_by_one(s.src.mins[-1]))
    return (replace(s, src=replace(s.src, mins=mins)),)


def not_transposed(s: Gemm) -> tuple[Stmt, ...]:
    return (replace(s, trans_b=not s.trans_b),)


def negated(s: Store) -> tuple[Stmt, ...]:
    return (replace(s, value=Binary("sub", Const(0.0, "float32"), s.value)),)


def one(s: Store) -> tuple[Stmt, ...]:
    return (replace(s, value=Const(1.0, "float32")),)


def to_max(s: Reduce) -> tuple[Stmt, ...]:
    return (replace(s, kind="max"),)


def stores(buffer: str) -> Any:
    return lambda s: isinstance(s, Store) and s.buffer == buffer


def pipelined(s: Stmt) -> bool:
    return isinstance(s, For) and s.kind == "pipelined"


GEMM, PREFILL = {"m": 100, "n": 64, "k": 200}, {"batch": 1, "seq": 200, "heads": 2, "head_dim": 64}
DECODE = {"batch": 2, "kv_len": 300, "heads": 8, "head_dim": 64}
SHORT, LONG = {"rows": 9, "cols": 300}, {"rows": 9, "cols": 3000}
TILE = {"variant": "tile", "block_m": 64, "block_n": 64}
BLOCKS = {"block_m": 64, "block_n": 64}
PLANTED: list[tuple[str, dict[str, Any], dict[str, Any], Any, Any]] = [
    ("gemm", GEMM, TILE, is_load, swapped),
    ("gemm", GEMM, TILE, pipelined, one_trip_less),
    ("gemm", GEMM, TILE, lambda s: isinstance(s, Fill), dropped),
    ("attention_prefill", PREFILL, BLOCKS, rescale, dropped),
    ("attention_prefill", PREFILL, BLOCKS, lambda s: isinstance(s, Gemm), not_transposed),
    ("attention_decode", DECODE, {"num_split": 1}, rescale, dropped),
    ("attention_decode", DECODE, {"num_split": 1}, pipelined, one_trip_less),
    ("rmsnorm", LONG, {"variant": "tiled"}, pipelined, one_trip_less),
    ("rmsnorm", SHORT, {"variant": "row"}, is_load, shifted),
    ("softmax", SHORT, {"variant": "row"}, is_load, shifted),
    ("softmax", LONG, {"variant": "tiled"}, pipelined, one_trip_less),
    ("silu_mul", SHORT, {}, is_load, shifted),
    ("copy", {"bytes": 5000}, {}, is_load, shifted),
    ("gemm_fp8_block", {"m": 100, "n": 140, "k": 300}, {}, stores("scale"), one),  # no scale
    ("gemm_fp8_block", {"m": 100, "n": 140, "k": 300}, {}, stores("C_accum_0"), dropped),
    ("quantize", SHORT, {}, stores("scale"), one),
    ("layernorm", SHORT, {"variant": "row"}, lambda s: isinstance(s, Reduce), dropped),
    ("mla_decode", {"batch": 2, "kv_len": 200, "heads": 8}, {"num_split": 1}, rescale, dropped),
    ("mla_decode", {"batch": 2, "kv_len": 200, "heads": 8}, {}, pipelined, one_trip_less),
    ("rope", SHORT, {}, stores("Y_shared"), negated),
    ("cross_entropy", SHORT, {"variant": "row"}, lambda s: isinstance(s, Reduce) and s.kind == "sum", to_max),
    ("moe_combine", {"tokens": 20, "hidden": 100, "topk": 3}, {}, pipelined, one_trip_less),
    ("transpose", SHORT, {}, is_load, swapped),
]


@pytest.mark.parametrize(
    ("name", "given", "chosen", "fits", "to"), PLANTED, ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_planted_fault_is_noticed(
    name: str, given: dict[str, Any], chosen: dict[str, Any], fits: Any, to: Any
) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    config = operator.config(shape, **chosen)
    right = operator.program(shape, config)
    launches = (right,) if isinstance(right, TileProgram) else right
    assert verify(operator, shape, config).ok
    change = Nth(fits, to)
    wrong = (replace(launches[0], body=edit(launches[0].body, change)), *launches[1:])
    assert change.seen, "nothing to change: the fault was not planted"
    assert not verify(operator, shape, config, programs=wrong).ok


# -- the chip's accumulation ----------------------------------------------------------------------


def test_short_accumulation_loses_what_two_levels_keep() -> None:
    """Hopper sums fp8 products with about 14 bits; it shows on long sums, and only with ``chip``."""
    operator = load_operator("gemm")
    shape = operator.shape(m=64, n=64, k=4096, dtype="fp8", out_dtype="fp32")
    config = operator.config(shape, variant="tile", block_m=64, block_n=64)
    exact = verify(operator, shape, config).outputs[0].norm_error
    short = Settings(accumulation=accumulation_of(load_chip("h100")))
    lossy = verify(operator, shape, config, settings=short).outputs[0].norm_error
    assert exact < 1e-6
    assert 1e-4 < lossy < 1e-1


def test_ten_operators_have_a_planted_fault() -> None:
    assert len({name for name, *_ in PLANTED}) >= 10


def test_only_chips_that_say_so_accumulate_short() -> None:
    assert set(accumulation_of(load_chip("h20"))) == {"float8_e4m3"}
    assert accumulation_of(load_chip("h20"))["float8_e4m3"].depth == 32
    assert accumulation_of(load_chip("b200")) == {}
