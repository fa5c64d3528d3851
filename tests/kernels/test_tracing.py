"""What the tracer records: programs written as users write them, statement by statement."""

# ruff: noqa: E741

from __future__ import annotations

import numpy as np
import pytest
from zoo import ZOO, flash_attention, grouped_rows, layer, matmul, persistent_matmul

from foretile.kernels import language as T
from foretile.kernels.errors import TraceError
from foretile.kernels.expr import Binary, Call, Cast, Const, Load, Var
from foretile.kernels.ir import (
    AtomicAdd,
    Copy,
    Fill,
    For,
    Gemm,
    If,
    Reduce,
    Region,
    Store,
    TileProgram,
    While,
    walk_stmts,
)


def body_of(build, grid=(4,)):
    """The statements that ``build(env)`` records inside a kernel with the usual tensors."""

    @T.prim_func
    def program(
        A: T.Tensor((64, 32), "float32"),
        B: T.Tensor((T.dynamic("m"), 32), "float16"),
        I: T.Tensor((64,), "int32"),
    ):
        with T.Kernel(*grid) as bx:
            build(A, B, I, bx)

    return program.body


def c(value, dtype="int32"):
    return Const(value, dtype)


def test_gemm_program():
    p = matmul()
    m = Var("m")
    assert p.name == "gemm"
    assert [b.name for b in p.params] == ["A", "B", "C"]
    assert p.params[0].shape == (m, c(512))
    assert p.dims == (m,)
    assert p.grid == (c(8), Binary("floordiv", Binary("add", m, c(127)), c(128)))
    assert [v.name for v in p.block_vars] == ["bx", "by"]
    assert [(b.name, b.scope, b.dtype) for b in p.buffers] == [
        ("A_shared", "shared", "float16"),
        ("B_shared", "shared", "float16"),
        ("C_local", "fragment", "float32"),
    ]
    assert p.annotations == (("layout:A_shared", "swizzled"),)
    assert p.swizzle is not None
    assert p.swizzle.panel_size == 10
    fill, loop, store = p.body
    assert fill == Fill(Region("C_local", (c(0), c(0)), (c(128), c(128))), c(0.0, "float32"))
    assert isinstance(loop, For)
    assert (loop.kind, loop.num_stages, loop.extents) == ("pipelined", 3, (c(16),))
    copy, parallel, gemm = loop.body
    assert copy == Copy(
        Region("A", (Binary("mul", Var("by"), c(128)), Binary("mul", Var("ko"), c(32))), (c(128), c(32))),
        Region("A_shared", (c(0), c(0)), (c(128), c(32))),
    )
    assert isinstance(parallel, For)
    assert isinstance(parallel.body[0], Store)
    assert [v.name for v in parallel.vars] == ["k", "j"]
    assert isinstance(gemm, Gemm)
    assert (gemm.trans_a, gemm.trans_b, gemm.policy) == (False, False, "square")
    assert store == Copy(
        Region("C_local", (c(0), c(0)), (c(128), c(128))),
        Region("C", (Binary("mul", Var("by"), c(128)), Binary("mul", Var("bx"), c(128))), (c(128), c(128))),
    )


def test_a_python_condition_decides_and_a_symbolic_one_is_recorded():
    assert len(matmul(relu=True).body) == len(matmul().body) + 1
    causal = [s for s in walk_stmts(flash_attention().body) if isinstance(s, Fill)]
    full = [s for s in walk_stmts(flash_attention(causal=False).body) if isinstance(s, Fill)]
    assert len(full) == len(causal) + 1
    ifs = [s for s in walk_stmts(grouped_rows().body) if isinstance(s, If)]
    assert len(ifs) == 5  # if, its elif, the tail's, the variable's, the block's
    assert isinstance(ifs[0].orelse[0], If)
    assert ifs[0].orelse[0].orelse


def test_dims_in_order_of_appearance():
    assert [d.name for d in flash_attention().dims] == ["batch", "seq_len"]
    n, g = T.dynamic("n"), T.dynamic("g")

    @T.prim_func
    def program(A: T.Tensor((n,), "float32")):
        with T.Kernel(g) as bx:
            A[bx] = T.cast(T.dynamic("late"), "float32")

    assert [d.name for d in program.dims] == ["n", "g", "late"]


def test_locations_are_the_users():
    p = layer()
    first = p.body[0].loc
    assert first is not None
    assert first.file.endswith("zoo.py")
    with open(first.file) as f:  # noqa: PTH123
        lines = f.read().splitlines()
    assert lines[first.line - 1].strip() == "T.clear(sums)"
    for stmt in walk_stmts(p.body):
        assert stmt.loc is not None
        assert stmt.loc.file == first.file
    texts = {type(s): lines[s.loc.line - 1].strip() for s in walk_stmts(p.body) if s.loc}
    assert texts[For].startswith("for ")
    assert texts[Reduce].startswith("T.reduce_sum")


def test_equality_ignores_locations():
    def make_a():
        @T.prim_func
        def main(A: T.Tensor((4,), "float32")):
            with T.Kernel(1) as bx:
                A[bx] = 1.0

        return main

    def make_b():
        @T.prim_func
        def main(A: T.Tensor((4,), "float32")):
            with T.Kernel(1) as bx:
                A[bx] = 1.0

        return main

    a, b = make_a(), make_b()
    assert a == b
    assert hash(a) == hash(b)
    assert a.body[0].loc != b.body[0].loc


def test_tracing_is_deterministic():
    for make in ZOO.values():
        assert make() == make()


def test_names_are_made_unique():
    p = flash_attention()
    names = [v.name for s in walk_stmts(p.body) if isinstance(s, For) for v in s.vars]
    assert len(names) == len(set(names))
    assert names[:4] == ["k", "i", "j", "i_1"]

    @T.prim_func
    def program(A: T.Tensor((4,), "float32")):
        with T.Kernel(2):
            tiles = [T.alloc_fragment((4,), "float32") for _ in range(2)]
            a = b = T.alloc_shared((4,), "float32")
            a = T.alloc_shared((8,), "float32")
            T.clear(tiles[1])
            T.clear(a)
            T.clear(b)
            for _ in T.serial(3):
                T.clear(T.alloc_local((2,), "float32"))

    assert [x.name for x in program.buffers] == ["tiles_0", "tiles_1", "a", "a_1", "local"]
    assert program.block_vars == (Var("bx"),)
    assert program.body[-1].vars == (Var("i"),)


def test_dimension_names_are_kept_from_loops():
    k = T.dynamic("k")

    @T.prim_func
    def program(A: T.Tensor((k,), "float32")):
        with T.Kernel(1):
            for k_ in T.serial(k):
                A[k_] = 0
            for m in T.serial(2):
                A[m] = k

    def loop_named_like_the_dimension():
        K = k

        @T.prim_func
        def inner(A: T.Tensor((K,), "float32")):
            with T.Kernel(1):
                for k in T.serial(K):
                    A[k] = 0

        return inner

    loop = loop_named_like_the_dimension().body[0]
    assert loop.vars == (Var("k_1"),)
    assert loop.extents == (Var("k"),)


def test_variables():
    p = grouped_rows()
    stores = [s for s in walk_stmts(p.body) if isinstance(s, Store) and s.buffer == "seen"]
    seen = Load("seen", (c(0),))
    assert [s.value for s in stores] == [
        c(0),
        Binary("add", seen, c(1)),
        Binary("floordiv", seen, c(2)),
        Binary("sub", seen, c(1)),
    ]
    loop = next(s for s in p.body if isinstance(s, While))
    assert loop.cond == Binary("gt", seen, c(1))


def test_variables_in_tuples_and_macros():
    @T.macro
    def bump(x, by=2):
        x += by

    @T.prim_func
    def program(A: T.Tensor((4,), "float32")):
        with T.Kernel(1):
            x, y = T.alloc_var("int32"), T.alloc_var("float32", 0)
            x = y = 3
            bump(x)
            bump(y, by=0.5)
            A[x] = y
            x, y = y, x

    assert [(b.name, b.scope) for b in program.buffers] == [("x", "var"), ("y", "var")]
    stores = [(s.buffer, s.value) for s in program.body]
    assert stores[0] == ("y", c(0.0, "float32"))
    assert stores[1:3] == [("x", c(3)), ("y", c(3.0, "float32"))]
    assert stores[3] == ("x", Binary("add", Load("x", (c(0),)), c(2)))
    assert stores[4] == ("y", Binary("add", Load("y", (c(0),)), c(0.5, "float32")))
    assert stores[5] == ("A", Load("y", (c(0),)))


def test_a_name_given_to_a_variable_is_a_copy():
    @T.prim_func
    def program(A: T.Tensor((4,), "float32")):
        with T.Kernel(1):
            x = T.alloc_var("float32", 1.0)
            y = x
            A[0] = y
            x = 2.0
            z = x + 1
            A[1] = z

    assert [s.buffer for s in program.body] == ["x", "A", "x", "A"]

    with pytest.raises(TraceError, match="`y` was read from x"):

        @T.prim_func
        def stale(A: T.Tensor((4,), "float32")):
            with T.Kernel(1):
                x = T.alloc_var("float32", 1.0)
                y = x
                x = 2.0
                A[0] = y


def test_other_statements_of_python():
    mode = "fast"

    @T.prim_func
    def program(A: T.Tensor((4,), "float32")):
        with T.Kernel(4) as bx:

            @T.macro
            def inner(i):
                if i > 2:
                    A[i] = 5

            try:
                first: int = len("ab")
                A[first] = 1
            finally:
                A[3] = 2
            match mode:
                case "fast":
                    value = bx * 2
                    A[0] = value
                case _:
                    A[1] = 3
            for pair in [(0, 1), (2, 3)]:
                a, b = pair
                if a == 2:
                    A[b] = a
            inner(bx)
            scale = (lambda c: 1.0 if c > 1 else 0.0)(bx)
            A[0] += scale
            assert mode == "fast", "concrete conditions may be asserted"

    kinds = [type(s).__name__ for s in program.body]
    assert kinds == ["Store"] * 4 + ["If", "Store"]
    assert program.body[-1].value.b.fn == "if_then_else"


@pytest.mark.parametrize("taken", [True, False])
def test_a_static_branch_assigns_as_python_does(taken: bool):
    @T.prim_func
    def program(A: T.Tensor((8,), "float32")):
        with T.Kernel(1):
            alone, both = 1, 2
            if taken:
                alone = 3
                made = 4
            if taken:
                both = 5
            else:
                both = 6
                made = 7
            A[alone] = 0
            A[both] = 0
            A[made] = 0

    indices = [store.indices for store in program.body]
    assert indices == [(c(i),) for i in ((3, 5, 4) if taken else (1, 6, 7))]


def test_a_name_rebound_in_a_branch_keeps_its_old_value_in_the_other():
    @T.prim_func
    def program(A: T.Tensor((4,), "float32")):
        with T.Kernel(4) as bx:
            i = bx + 1
            if bx > 1:
                i = bx + 2
                A[i] = 1
            else:
                A[i] = 2
            for i in T.serial(2):
                A[i] = 3

    branch = program.body[0]
    assert branch.then[0].indices == (Binary("add", Var("bx"), c(2)),)
    assert branch.orelse[0].indices == (Binary("add", Var("bx"), c(1)),)


def test_loops():
    def build(A, B, I, bx):
        for i in T.serial(4):
            A[i, 0] = 0
        for i in T.serial(1, 10, 3):
            A[i, 0] = 0
        for i in T.serial(9, -1, -2):
            A[i, 0] = 0
        for i in T.serial(I[0], I[1]):
            A[i, 0] = 0
        for i, j in T.grid(2, 3):
            A[i, j] = 0
        for i in T.unroll(bx, bx + 4):
            A[i, 0] = 0

    loops = body_of(build)
    facts = [(s.kind, s.extents, s.start, s.step) for s in loops]
    first, second = Load("I", (c(0),)), Load("I", (c(1),))
    assert facts[0] == ("serial", (c(4),), None, 1)
    assert facts[1] == ("serial", (c(3),), c(1), 3)
    assert facts[2] == ("serial", (c(5),), c(9), -2)
    assert facts[3] == ("serial", (Binary("sub", second, first),), first, 1)
    assert facts[4] == ("serial", (c(2),), None, 1)
    assert loops[4].body[0].extents == (c(3),)
    assert facts[5] == ("unroll", (c(4),), Var("bx"), 1)


def test_range_is_a_serial_loop_and_other_iterables_are_python():
    @T.prim_func
    def program(A: T.Tensor((8,), "float32")):
        with T.Kernel(1):
            for i in range(2, 8, 2):
                A[i] = 0
            for i in (1, 2, 3):
                if i == 2:
                    continue
                A[i] = i
            for n, i in enumerate([5, 6, 7]):
                if n == 1:
                    break
                A[i] = n
            count = 0
            while count < 2:
                A[count] = 9
                count += 1

    loop, *stores = program.body
    assert (loop.start, loop.extents, loop.step) == (c(2), (c(3),), 2)
    assert [s.indices[0].value for s in stores] == [1, 3, 5, 0, 1]


def test_logic_is_recorded_or_decided():
    flag = True

    @T.prim_func
    def program(A: T.Tensor((8,), "float32")):
        with T.Kernel(8) as bx:
            if flag and bx > 2:
                A[0] = 1
            if not flag or bx > 2:
                A[1] = 1
            if 1 < bx <= 5 and not (bx == 3):  # noqa: SIM201
                A[2] = 1.0 if flag else 2.0
            A[3] = 1.0 if bx % 2 else 2.0
            if flag or bx > 2:
                A[4] = 1

    more = Binary("gt", Var("bx"), c(2))
    assert program.body[0].cond == more
    assert program.body[1].cond == more
    between = Binary("and", Binary("gt", Var("bx"), c(1)), Binary("le", Var("bx"), c(5)))
    assert program.body[2].cond == Binary("and", between, Call("not", (Binary("eq", Var("bx"), c(3)),)))
    odd = Binary("ne", Binary("mod", Var("bx"), c(2)), c(0))
    assert program.body[3].value == Call("if_then_else", (odd, c(1.0, "float32"), c(2.0, "float32")))
    assert isinstance(program.body[4], Store)


def test_values():
    def build(A, B, I, bx):
        x = A[0, 0]
        A[0, 0] = x * 2 + 1
        A[0, 1] = 3 - bx
        A[0, 2] = T.max(x, 0)
        A[0, 3] = -(x**2)
        I[0] = (bx << 2 | 1) ^ ~bx
        A[0, 4] = T.cast(2, "float16") * B[0, 0]
        A[0, 5] = np.int64(3) * bx + np.float32(0.5)
        A[0, 6] = T.float32(bx)
        A[0, 7] = x.astype("float32")

    values = [s.value for s in body_of(build)]
    a = Load("A", (c(0), c(0)))
    assert values[0] == Binary("add", Binary("mul", a, c(2.0, "float32")), c(1.0, "float32"))
    assert values[1] == Binary("sub", c(3), Var("bx"))
    assert values[2] == Binary("max", a, c(0.0, "float32"))
    assert values[3] == Call("neg", (Binary("pow", a, c(2.0, "float32")),))
    assert values[5] == Binary("mul", c(2.0, "float16"), Load("B", (c(0), c(0))))
    assert values[6] == Binary("add", Binary("mul", c(3), Var("bx")), c(0.5, "float32"))
    assert values[7] == Cast("float32", Var("bx"))
    assert values[8] == a


def test_comparison_keeps_its_side():
    def build(A, B, I, bx):
        A[0, 0] = T.if_then_else(bx + 1 < I[0], 1, 0)

    cond = body_of(build)[0].value.args[0]
    assert cond == Binary("lt", Binary("add", Var("bx"), c(1)), Load("I", (c(0),)))


def test_copy_regions():
    def build(A, B, I, bx):
        tile = T.alloc_shared((16, 32), "float32")
        row = T.alloc_fragment((32,), "float32")
        T.copy(A[bx * 16, 0], tile)
        T.copy(A[bx * 16 : (bx + 1) * 16, 0:32], tile[:, :])
        T.copy(A[3, :], row)
        T.copy(row, tile[5, 0])
        T.copy(tile[-1, :], row)
        T.copy(A[0, 0], tile[0, 0])

    copies = body_of(build)
    assert (
        copies[0].src == copies[1].src == Region("A", (Binary("mul", Var("bx"), c(16)), c(0)), (c(16), c(32)))
    )
    assert copies[2].src == Region("A", (c(3), c(0)), (c(1), c(32)))
    assert copies[3].dst == Region("shared", (c(5), c(0)), (c(1), c(32)))
    assert copies[4].src == Region("shared", (c(15), c(0)), (c(1), c(32)))
    assert isinstance(copies[5], Store)  # two elements: a scalar store, as in TileLang


def test_slice_extents_cancel():
    n = T.dynamic("n")

    def build(A, B, I, bx):
        tile = T.alloc_shared((8, 32), "float16")
        T.copy(B[n - 8 : n, :], tile)
        T.copy(B[(bx + 1) * 8 + n : n + bx * 8 + 16, :], tile)

    for copy in body_of(build):
        assert copy.src.extents == (c(8), c(32))


def test_persistent():
    loop = persistent_matmul().body[0]
    assert (loop.kind, loop.group_size) == ("persistent", 8)
    assert [v.name for v in loop.vars] == ["by", "bx"]  # the grouped coordinate, which is dealt first
    assert loop.extents == (c(4), c(8))


def test_atomics():
    def build(A, B, I, bx):
        tile = T.alloc_fragment((8, 32), "float32")
        T.atomic_add(A[bx, 0], 1)
        T.atomic_min(I[0], bx)
        T.atomic_add(A[bx * 8, 0], tile)
        T.atomic_add(A[bx * 8 : bx * 8 + 8, :], tile)

    add, low, tile, same = body_of(build)
    assert (add.atomic, add.value) == ("add", c(1.0, "float32"))
    assert low.atomic == "min"
    assert isinstance(tile, AtomicAdd)
    assert tile == same


def test_functions_and_limits():
    assert T.ceildiv(10, 4) == 3
    assert T.floordiv(10, 4) == 2
    assert T.floormod(10, 4) == 2
    assert T.truncdiv(-7, 2) == -3
    assert T.truncmod(-7, 2) == -1
    assert T.max(1, 2) == 2
    assert T.min(1, 2, 0) == 0
    assert T.infinity("float16").expr == c(float("inf"), "float16")
    assert T.max_value("bfloat16").expr == c(3.3895313892515355e38, "bfloat16")
    assert T.min_value("int8").expr == c(-128, "int8")
    assert T.max_value("uint8").expr == c(255, "uint8")
    assert T.float8_e4m3fn == "float8_e4m3"


def test_any_of_and_all_of():
    @T.prim_func
    def program(A: T.Tensor((8,), "float32"), I: T.Tensor((8,), "int32")):
        with T.Kernel(8) as bx:
            if T.any_of(I[bx] > 3, bx == 0):
                A[0] = 1
            if T.all_of(I[0:3]):
                A[1] = 1

    either, every = program.body
    assert either.cond.op == "or"
    tests = [Binary("ne", Load("I", (c(i),)), c(0)) for i in range(3)]
    assert every.cond == Binary("and", Binary("and", tests[0], tests[1]), tests[2])


def test_text_annotations_use_the_factorys_scope():
    # `from __future__ import annotations` is on in this file: `size` is in no closure of the kernel.
    def factory(size):
        kind = "bfloat16"

        @T.prim_func
        def program(A: T.Tensor((size, 2), kind)):
            with T.Kernel(1):
                A[0, 0] = 0

        return program

    assert factory(6).params[0].shape == (c(6), c(2))
    assert factory(7).params[0].dtype == "bfloat16"


def test_closures_are_rebound_and_rewritten_once():
    from foretile.kernels import rewriter

    before = len(rewriter._CODES)
    programs = [matmul(block_K=b) for b in (16, 32, 64)]
    assert [p.body[1].extents[0].value for p in programs] == [32, 16, 8]
    assert len(rewriter._CODES) <= before + 1


def test_options_of_the_decorator():
    @T.prim_func(private=True)
    def program(A: T.Tensor((4,), "float32")):
        with T.Kernel(1):
            A[0] = 0

    assert isinstance(program, TileProgram)


def test_plain_helpers_run_as_they_are():
    def helper(A, scale):
        for i in T.Parallel(4):
            A[i] = A[i] * scale

    @T.prim_func
    def program(A: T.Tensor((4,), "float32")):
        with T.Kernel(1):
            helper(A, 2.0)

    assert program.body[0].vars == (Var("i"),)


def test_macro_with_branches_and_result():
    @T.macro
    def limited(A, i, top):
        if A[i] > top:
            A[i] = top
        return A[i] * 2

    @T.prim_func
    def program(A: T.Tensor((4,), "float32")):
        with T.Kernel(1):
            A[1] = limited(A, 0, 5)

    assert isinstance(program.body[0], If)
    assert program.body[1].value == Binary("mul", Load("A", (c(0),)), c(2.0, "float32"))


def test_threads():
    @T.prim_func
    def program(A: T.Tensor((4,), "float32")):
        with T.Kernel(1, 2, 3, threads=(32, 4)):
            A[0] = 0

    assert program.threads == 128
    assert [v.name for v in program.block_vars] == ["bx", "by", "bz"]


@pytest.mark.parametrize("name", sorted(ZOO))
def test_bind_everything(name):
    p = ZOO[name]()
    q = p.bind(**{d.name: 100 for d in p.dims})
    assert q.dims == ()
    assert isinstance(q, TileProgram)


def test_a_failed_trace_leaves_no_trace_open():
    with pytest.raises(TraceError):

        @T.prim_func
        def program(A: T.Tensor((4,), "float32")):
            with T.Kernel(1):
                A[9, 9] = 0

    assert isinstance(matmul(), TileProgram)
