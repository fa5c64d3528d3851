"""Binding dimensions, mapping expressions, dtypes of expressions, and the little algebra."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zoo import flash_attention, grouped_rows, layer, matmul

from foretile.kernels import language as T
from foretile.kernels.affine import difference, quotient_up
from foretile.kernels.expr import Binary, Call, Cast, Const, Load, Var, binary, evaluate, substitute, walk
from foretile.kernels.infer import dtype_of, promote
from foretile.kernels.ir import If, Store, walk_stmts
from foretile.kernels.rewrite import bind, loop_extents, map_exprs


def test_bind_folds_everywhere():
    p = matmul().bind(m=300)
    assert p.dims == ()
    assert p.grid == (Const(8), Const(3))
    assert p.params[0].shape == (Const(300), Const(512))
    q = flash_attention().bind(seq_len=1024)
    assert [d.name for d in q.dims] == ["batch"]
    loop, extents = next(iter(loop_extents(layer().bind(rows=10))))
    assert loop.step == 256
    assert extents == (4,)
    loop, extents = next(iter(loop_extents(q)))
    assert extents == (None,)  # depends on the block


def test_bind_accepts_numpy_integers_and_nothing():
    assert matmul().bind(m=np.int64(64)) == matmul().bind(m=64)
    assert bind(matmul(), {}) == matmul()


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"M": 3}, "gemm has no symbolic dimension 'M'; it has: m"),
        ({"mm": 3}, "gemm has no symbolic dimension 'mm'; did you mean 'm'"),
        ({"m": 0}, "gemm: m=0 must be at least 1"),
        ({"m": 1.5}, "gemm: m=1.5 is not a whole number"),
        ({"m": True}, "gemm: m=True is not a whole number"),
    ],
)
def test_bind_errors(dims, message):
    with pytest.raises(ValueError, match=message):
        matmul().bind(**dims)


def test_bind_decides_branches():
    n = T.dynamic("n")

    @T.prim_func
    def program(A: T.Tensor((n,), "float32")):
        with T.Kernel(4):
            if n % 8 == 0:
                A[0] = 1
            else:
                A[0] = T.if_then_else(n > 100, 2, 3)

    assert isinstance(program.body[0], If)
    even = program.bind(n=16).body
    odd = program.bind(n=101).body
    assert [s.value for s in even] == [Const(1.0, "float32")]
    assert [s.value for s in odd] == [Const(2)]


def test_map_exprs_sees_every_expression():
    p = grouped_rows()
    seen = []
    assert map_exprs(p, lambda e: seen.append(e) or e) == p
    names = {x.name for e in seen for x in walk(e) if isinstance(x, Var)}
    assert {"rows", "bx", "t", "i", "j"} <= names
    for stmt in walk_stmts(p.body):
        if isinstance(stmt, Store):
            assert stmt.value in seen


def test_substitute_folds_calls():
    x = Var("x")
    e = Call("if_then_else", (Binary("lt", x, Const(3)), Call("neg", (x,)), x))
    assert substitute(e, {"x": Const(2)}) == Const(-2)
    assert substitute(e, {"x": Const(5)}) == Const(5)
    both = Binary("and", Binary("lt", x, Const(3)), Binary("eq", Var("y"), Const(0)))
    assert substitute(both, {"x": Const(2)}) == Binary("eq", Var("y"), Const(0))
    assert substitute(both, {"x": Const(4)}) == Const(False, "bool")


def test_difference():
    bx, n = Var("bx"), Var("n")
    block = Binary("mul", bx, Const(128))
    following = Binary("mul", Binary("add", bx, Const(1)), Const(128))
    assert difference(following, block) == Const(128)
    assert difference(Binary("add", block, n), block) == n
    assert difference(block, block) == Const(0)
    assert difference(n, bx) == Binary("sub", n, bx)
    assert difference(Binary("mul", Binary("add", bx, Const(1)), n), Binary("mul", bx, n)) == n
    assert quotient_up(Binary("mul", n, Const(4)), 4) == n
    assert quotient_up(Const(9), 4) == Const(3)


_small = st.sampled_from([Var("a"), Var("b"), Const(0), Const(1), Const(3), Const(128)])
_sums = st.recursive(
    _small,
    lambda inner: st.builds(binary, st.sampled_from(["add", "sub", "mul"]), inner, inner),
    max_leaves=6,
)


@given(_sums, _sums, st.integers(-9, 9), st.integers(-9, 9))
def test_difference_is_the_difference(x, y, a, b):
    env = {"a": a, "b": b}
    assert evaluate(difference(x, y), env) == evaluate(x, env) - evaluate(y, env)
    assert evaluate(difference(binary("add", y, x), y), env) == evaluate(x, env)
    assert evaluate(quotient_up(x, 3), env) == -(-evaluate(x, env) // 3)


def test_dtypes():
    buffers = {"H": "float16", "B": "bfloat16", "F": "float32", "I": "int32", "L": "int64", "U": "uint8"}
    h, b, f, i, long, u = (Load(name, (Const(0),)) for name in buffers)
    two, half = Const(2), Const(0.5, "float32")
    expected = {
        Binary("mul", h, half): "float16",
        Binary("mul", h, b): "float32",
        Binary("mul", h, f): "float32",
        Binary("add", i, two): "int32",
        Binary("mul", i, half): "float32",
        Binary("add", i, long): "int64",
        Binary("add", u, i): "int32",
        Binary("div", i, i): "float32",
        Binary("lt", h, f): "bool",
        Call("exp2", (h,)): "float16",
        Call("exp2", (i,)): "float32",
        Call("isnan", (h,)): "bool",
        Call("if_then_else", (Binary("lt", i, two), h, half)): "float16",
        Call("clamp", (h, half, half)): "float16",
        Cast("bfloat16", f): "bfloat16",
        Const(2.0, "float16"): "float16",
    }
    for e, dtype in expected.items():
        assert dtype_of(e, buffers) == dtype, e
    assert promote("uint32", "int32") == "uint32"
    assert promote("float8_e4m3", "float8_e5m2") == "float16"
    assert promote("bool", "int8") == "int8"
