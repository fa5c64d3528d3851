"""Programs as text: readable, and tracing the text gives the same program."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import bindings, programs
from zoo import ZOO, flash_attention, matmul

from foretile.kernels import language as T
from foretile.kernels.expr import Binary, Call, Cast, Const, Load, Var, binary, call
from foretile.kernels.ir import AtomicAdd, Buffer, Copy, For, If, Region, Store, Sync, TileProgram
from foretile.kernels.load import from_script
from foretile.kernels.printer import script
from foretile.kernels.values import cast, function


@pytest.mark.parametrize("name", sorted(ZOO))
def test_zoo_round_trip(name):
    p = ZOO[name]()
    again = from_script(p.script())
    assert again == p
    assert again.script() == p.script()
    bound = p.bind(**{d.name: 96 for d in p.dims})
    assert from_script(bound.script()) == bound


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(programs(), st.data())
def test_random_programs_round_trip(p, data):
    assert from_script(p.script()) == p
    bound = p.bind(**data.draw(bindings(p)))
    assert bound.dims == ()
    assert from_script(bound.script()) == bound


def test_reads_like_source():
    text = matmul().script()
    assert str(matmul()) == text
    assert (
        text
        == """\
m = T.dynamic("m")

@T.prim_func
def gemm(
    A: T.Tensor((m, 512), "float16"),
    B: T.Tensor((512, 1024), "float16"),
    C: T.Tensor((m, 1024), "float16"),
):
    with T.Kernel(8, T.ceildiv(m, 128), threads=128) as (bx, by):
        A_shared = T.alloc_shared((128, 32), "float16")
        B_shared = T.alloc_shared((32, 128), "float16")
        C_local = T.alloc_fragment((128, 128), "float32")
        T.annotate_layout({A_shared: T.make_swizzled_layout(A_shared)})
        T.use_swizzle(10, order="row")
        T.clear(C_local)
        for ko in T.Pipelined(16, num_stages=3):
            T.copy(A[by * 128, ko * 32], A_shared)
            for k, j in T.Parallel(32, 128):
                B_shared[k, j] = B[ko * 32 + k, bx * 128 + j]
            T.gemm(A_shared, B_shared, C_local)
        T.copy(C_local, C[by * 128, bx * 128])
"""
    )


def test_header_makes_a_file_of_it(tmp_path):
    from foretile.kernels.load import load_program

    path = tmp_path / "kernel.py"
    path.write_text(script(flash_attention(), header=True))
    assert load_program(f"{path}:main") == flash_attention()


# -- expressions ------------------------------------------------------------------------------

_I, _F, _H = (Load(name, (Var("i"),)) for name in ("I", "F", "H"))
_int_leaves = st.sampled_from(
    [_I, Var("i"), Var("bx"), Var("n"), *(Const(v) for v in (-3, 0, 1, 2, 127, 128))]
)
_float_leaves = st.sampled_from(
    [
        _F,
        _H,
        *(Const(v, "float32") for v in (-1.5, 0.0, 1.0, 1e-6, float("inf"), float("-inf"))),
        Const(2.0, "float16"),
    ]
)


def _dtype(e):
    from foretile.kernels.infer import dtype_of

    return dtype_of(e, {"I": "int32", "F": "float32", "H": "float16"})


def _binary(ops):
    return lambda inner: st.builds(lambda op, a, b: _checked(op, a, b), st.sampled_from(ops), inner, inner)


def _checked(op, a, b):
    return a if op in ("floordiv", "mod") and b == Const(0) else binary(op, a, b)


def _cast(dtype, e):
    return e if isinstance(e, Const) or _dtype(e) == dtype else Cast(dtype, e)


_ints = st.recursive(
    _int_leaves,
    lambda inner: st.one_of(
        _binary(
            ["add", "sub", "mul", "floordiv", "mod", "min", "max", "bitand", "bitor", "bitxor", "shl", "shr"]
        )(inner),
        st.builds(lambda a: call("neg", (a,)), inner),
        st.builds(lambda a: Call("bitnot", (a,)), inner),
        st.builds(lambda a: _cast("int64", a), inner),
        st.builds(lambda a, d: T.ceildiv(_value(a), d).expr, inner, st.integers(2, 300)),
    ),
    max_leaves=8,
)
_conditions = st.recursive(
    st.builds(binary, st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]), _ints, _ints),
    lambda inner: st.one_of(
        st.builds(binary, st.sampled_from(["and", "or"]), inner, inner),
        st.builds(lambda a: call("not", (a,)), inner),
    ),
    max_leaves=4,
)
_floats = st.recursive(
    _float_leaves,
    lambda inner: st.one_of(
        _binary(["add", "sub", "mul", "div", "min", "max", "pow"])(inner),
        st.builds(lambda a: call("neg", (a,)), inner),
        st.builds(
            lambda fn, a: Call(fn, (a,)), st.sampled_from(["exp2", "tanh", "abs", "floor", "erf"]), inner
        ),
        st.builds(lambda c, a, b: call("if_then_else", (c, a, b)), _conditions, inner, inner),
        st.builds(lambda a: Call("clamp", (a, Const(-1.0, "float32"), Const(1.0, "float32"))), inner),
        st.builds(lambda a, i: binary("mul", a, _cast("float32", i)), inner, _ints),
        st.builds(lambda d, a: _cast(d, a), st.sampled_from(["float16", "bfloat16", "float32"]), inner),
    ),
    max_leaves=8,
)


def _value(e):
    from foretile.kernels.values import Result

    return Result(e, _dtype(e))


def program_with(*values, conditions=()):
    """A program that stores the given expressions."""
    n = Var("n")
    body = [Store("O" if _dtype(v).startswith("float") else "P", (Var("i"),), v) for v in values]
    body += [If(c, (Sync(),)) for c in conditions if not isinstance(c, Const)]
    loop = For((Var("i"),), (n,), "serial", tuple(body))
    buffers = (("I", "int32"), ("F", "float32"), ("H", "float16"), ("O", "float32"), ("P", "int32"))
    return TileProgram(
        name="main",
        params=tuple(Buffer(name, (n,), dtype, "global") for name, dtype in buffers),
        dims=(n,),
        grid=(Const(4),),
        block_vars=(Var("bx"),),
        threads=128,
        buffers=(),
        body=(loop,),
    )


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(_ints, _floats), min_size=1, max_size=4), st.lists(_conditions, max_size=3))
def test_expressions_round_trip(values, conditions):
    p = program_with(*values, conditions=conditions)
    assert from_script(p.script()) == p


def test_parentheses_are_the_fewest():
    a, b, c = Var("bx"), Var("i"), _I
    shown = {
        Binary("mul", Binary("add", a, b), c): "(bx + i) * I[i]",
        Binary("add", a, Binary("mul", b, c)): "bx + i * I[i]",
        Binary("sub", a, Binary("sub", b, c)): "bx - (i - I[i])",
        Binary("sub", Binary("sub", a, b), c): "bx - i - I[i]",
        Binary("floordiv", Binary("add", a, Const(127)), Const(128)): "T.ceildiv(bx, 128)",
        Binary("floordiv", Binary("add", a, Const(126)), Const(128)): "(bx + 126) // 128",
        Binary("floordiv", Binary("sub", Binary("add", a, b), Const(1)), b): "T.ceildiv(bx, i)",
        Binary("shl", a, Binary("bitand", b, Const(3))): "bx << (i & 3)",
        Call("neg", (Binary("add", a, b),)): "-(bx + i)",
        Call("neg", (Binary("pow", _F, Const(2.0, "float32")),)): "-F[i] ** 2.0",
        Binary("pow", Call("neg", (_F,)), Const(2.0, "float32")): "(-F[i]) ** 2.0",
        Binary("add", _F, Const(1)): "F[i] + T.int32(1)",
        Binary("lt", Const(1), a): "T.int32(1) < bx",
        Binary("div", Const(1.0, "float32"), Const(3.0, "float32")): "T.float32(1.0) / 3.0",
        Const(float("-inf"), "float32"): '-T.infinity("float32")',
        Const(float("inf"), "float16"): 'T.infinity("float16")',
        Cast("float16", _F): 'T.cast(F[i], "float16")',
        Call(
            "if_then_else", (Call("not", (Binary("eq", a, b),)), a, b)
        ): "T.if_then_else(not bx == i, bx, i)",
    }
    for e, text in shown.items():
        p = program_with(e)
        assert f"[i] = {text}\n" in p.script()
        assert from_script(p.script()) == p


def test_not_a_number_round_trips():
    nan = cast("nan", "float32")
    p = program_with(nan.expr)
    assert 'T.float32("nan")' in p.script()
    assert from_script(p.script()) == p


def test_functions_keep_weak_literals():
    assert function("exp2", 2).expr == Call("exp2", (Const(2.0, "float32"),))


def test_a_dimension_called_like_the_language():
    tokens = T.dynamic("T")

    @T.prim_func
    def program(A: T.Tensor((tokens, 4), "float32")):
        with T.Kernel(tokens) as bx:
            A[bx, 0] = 0

    assert 'T_ = T.dynamic("T")' in program.script()
    assert from_script(program.script()) == program


def test_regions_print_as_short_as_possible():
    n = Var("n")
    tile = Buffer("t", (Const(1), Const(8)), "float32", "shared")
    other = Buffer("u", (Const(2), Const(1), Const(8)), "float32", "shared")
    base = program_with(_I)
    whole = Region("t", (Const(0), Const(0)), (Const(1), Const(8)))
    third = Region("u", (Const(1), Const(0), Const(0)), (Const(1), Const(1), Const(8)))
    vector = Region("O", (n,), (Const(8),))
    unit = Region("O", (n,), (Const(1),))
    shown = {
        Copy(vector, whole): "T.copy(O[n], t)",
        Copy(whole, vector): "T.copy(t, O[n])",
        Copy(third, vector): "T.copy(u[1, 0, 0], O[n:n + 8])",
        Copy(unit, replace(unit, mins=(Const(3),))): "T.copy(O[n], O[3:4])",
        AtomicAdd(whole, vector): "T.atomic_add(O[n], t)",
    }
    for stmt, text in shown.items():
        p = replace(base, buffers=(tile, other), body=(stmt,))
        assert text in p.script()
        assert from_script(p.script()) == p


def test_what_cannot_be_written_is_refused():
    base = program_with(_I)
    loop = base.body[0]
    assert isinstance(loop, For)
    for wrong in (
        replace(loop, kind="parallel", start=Const(2)),
        replace(loop, kind="pipelined", step=2),
        replace(loop, vars=(Var("i"), Var("j")), extents=(Const(1), Const(2))),
    ):
        with pytest.raises(ValueError, match="loop"):
            replace(base, body=(wrong,)).script()


def test_int64_dimensions():
    n = T.dynamic("n", "int64")

    @T.prim_func
    def program(A: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, 4)) as bx:
            A[bx] = n + 3_000_000_000

    assert 'n = T.dynamic("n", "int64")' in program.script()
    assert from_script(program.script()) == program
