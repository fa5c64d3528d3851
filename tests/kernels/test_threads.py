"""What single threads do, barriers and asynchronous engines: recorded, printed, traced again, as data."""

import pytest

from foretile.kernels.canonical import canonical
from foretile.kernels.errors import TraceError
from foretile.kernels.expr import Binary, Call, Const, Var, evaluate
from foretile.kernels.ir import BarrierArrive, Extern, For, Jump, Store, TileProgram, walk_stmts
from foretile.kernels.load import from_script

HEAD = """
@T.prim_func
def main(A: T.Tensor((64, 128), "float32"), P: T.Tensor((4,), "uint64"), n: T.int32):
    with T.Kernel(8, threads={threads}) as bx:
        tx = T.get_thread_binding(0)
        s = T.alloc_shared((4, 128), "float32")
        x = T.alloc_local((4,), "float32")
        v = T.alloc_var("int32", init=0)
        bar = T.alloc_barrier([128, 1])
"""
STATEMENTS = """
if tx < 32: T.sync_warp()
T.sync_threads(1, 64)
T.named_barrier_arrive(1, 128)
T.sync_grid()
T.cluster_sync()
T.cluster_arrive()
T.cluster_wait()
T.mbarrier_arrive(bar[0])
T.mbarrier_arrive(bar[0], v)
T.mbarrier_expect_tx(bar[1], 512)
T.mbarrier_arrive_expect_tx(bar[1], 512)
T.mbarrier_wait_parity(bar[v], v % 2)
T.cp_async_barrier_noinc(bar[0])
T.tcgen05_mma_arrive(bar[0])
T.ptx_commit_group()
T.ptx_wait_group(v)
T.tma_store_arrive()
T.tma_store_wait(0)
T.warpgroup_commit_batch()
T.wait_wgmma(1)
T.thread_return()
T.rng_init(42, tx, 0)
x[0] = T.rng_uniform() + T.rng_normal()
x[0] = T.shfl_sync(x[1], tx % 4, 8) + T.shfl_xor(x[1], 1) + T.shfl_up(x[0], 1) + T.shfl_down(x[0], v)
x[1] = T.warp_reduce_sum(x[0]) + T.warp_reduce_max(x[0])
x[1] = T.block_reduce_sum(x[0], tx)
v = T.any_sync(x[0] > 0) + T.syncthreads_count(x[0] > 0)
v = T.popcount(T.ballot(x[0] > 0)) + T.clz(v) + T.ffs(v)
v = T.truncdiv(v, n) + T.truncmod(v, 3)
x[0] = T.call_extern("float32", "twice", x[0])
x[0] = T.copysign(T.fma(x[0], x[1], 1.0), -1.0)
T.extern("fill", v, reads=[A[0:1, :]], writes=[s])
T.async_copy(A[bx, 0], s[0, :])
T.tma_copy(A[bx : bx + 1, :], s[0:1, :], barrier=bar[1])
T.atomic_max(A[0, 0], x[0])
T.atomic_or(s[0, 0], 1)
T.atomic_store(A[0, 0], 1.0)
x[2] = T.atomic_add(A[0, 0], 1.0, return_prev=True)
T.set_max_nreg(24, 0)
T.fence_proxy_async()
T.cummax(s, dim=1)
T.transpose(s, T.alloc_shared((128, 4), "float32"))
""".strip().splitlines()


def trace(*lines: str, threads: str = "128") -> TileProgram:
    return from_script(HEAD.format(threads=threads) + "".join(f"        {line}\n" for line in lines))


@pytest.mark.parametrize("line", STATEMENTS)
def test_statements_are_text_and_data(line):
    program = trace(line)
    assert len(program.body) == 2  # the variable's first value, and the statement
    assert TileProgram.from_json(program.to_json()) == program
    again = from_script(program.script())
    assert canonical(again) == canonical(program)
    assert canonical(trace()) != canonical(program)


def test_jumps_leave_recorded_loops_and_python_loops_as_in_python():
    program = trace(
        "for i in T.serial(n):",
        "    if A[i, 0] > 0:",
        "        continue",
        "    elif A[i, 1] > 0:",
        "        v = v + 1",
        "        break",
        "    for j in [0, 1, 2, 3]:",
        "        if j == 2:",
        "            break",
        "        v = v + j",
    )
    assert [s.kind for s in walk_stmts(program.body) if isinstance(s, Jump)] == ["continue", "break"]
    added = [
        s.value.b for s in walk_stmts(program.body) if isinstance(s, Store) and isinstance(s.value, Binary)
    ]
    assert added == [Const(1), Const(1)]  # + 0 is dropped; the loop over a list ends at 2
    assert canonical(from_script(program.script())) == canonical(program)


def test_lanes_and_warps_are_expressions_of_the_thread():
    program = trace("v = T.get_lane_idx() + T.get_warp_idx() * 100", threads="(32, 4)")
    assert [v.name for v in program.thread_vars] == ["tx", "ty"]
    assert program.thread_shape == (32, 4)
    program = trace(
        "v = T.get_lane_idx() + T.get_warp_idx() * 100 + T.get_thread_binding(1)", threads="(16, 8)"
    )
    tx, ty = program.thread_vars
    for x, y in ((0, 0), (5, 3), (15, 7)):
        linear = y * 16 + x
        found = evaluate(program.body[-1].value, {tx.name: x, ty.name: y})
        assert found == linear % 32 + linear // 32 * 100 + y


def test_reducers_take_every_update_once():
    program = trace(
        'r = T.alloc_reducer((4,), "float32", op="max", replication="all")',
        "T.fill(r, -T.infinity('float32'))",
        "for i, j in T.Parallel(4, 128):",
        "    r[i] = T.max(r[i], s[i, j])",
        "T.finalize_reducer(r)",
    )
    (update,) = (s for s in walk_stmts(program.body) if isinstance(s, Store) and s.buffer == "r")
    assert update.atomic == "max"
    assert program.annotation("reducer", "r") == "max:all"


def test_pointers_and_views_are_declared_where_they_are_known():
    program = trace(
        "for i in T.serial(4):",
        '    t = T.make_tensor(P[i], (n, 8), "float16")',
        "    x[0] = t[0, tx % 8]",
        'w = T.view(s, (2, 256), "int32")',
        "v = w[1, tx]",
    )
    t, w = (program.buffer(name) for name in ("t", "w"))
    assert t.address is not None
    assert w.alias == "s"
    assert not program.dims  # the loop's index is no dimension
    assert canonical(from_script(program.script())) == canonical(program)


def test_opaque_code_keeps_its_source_and_its_line():
    program = trace('T.import_source("float twice(float);")', 'T.extern("twice", 1.0, writes=[s[0:1, 0:4]])')
    (stmt,) = (s for s in walk_stmts(program.body) if isinstance(s, Extern))
    assert stmt.source == "float twice(float);"
    assert stmt.loc is not None
    assert stmt.loc.line == 11
    call = Call("extern:float32:twice", (Var("x", "float32"),))
    with pytest.raises(TypeError, match="decides no size"):
        evaluate(call, {"x": 1.0})


def test_vectorised_loops_and_numbers_keep_apart():
    program = trace("for i in T.vectorized(4):", "    x[i] = A[bx, tx * 4 + i] * n")
    (loop,) = (s for s in walk_stmts(program.body) if isinstance(s, For))
    assert loop.kind == "vectorized"
    assert [v.name for v in program.scalars] == ["n"]
    assert not program.bind(n=3).scalars
    with pytest.raises(ValueError, match=r"n=2.5 is not a int32"):
        program.bind(n=2.5)
    with pytest.raises(ValueError, match="no symbolic dimension 'q'"):
        program.bind(q=3)


def test_a_barrier_without_arrivals_is_refused():
    with pytest.raises(TraceError, match="arrivals are whole numbers of at least 1"):
        trace("b = T.alloc_barrier([0])")
    arrive = [s for s in trace("T.barrier_arrive(bar[1])").body if isinstance(s, BarrierArrive)]
    assert arrive[0].barrier.indices == (Const(1),)
