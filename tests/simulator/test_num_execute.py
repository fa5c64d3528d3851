"""The executor: every construct of the language, against NumPy on whole arrays."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretile.kernels import language as T
from foretile.kernels.operator import load_operator
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.execute import execute

RNG = np.random.default_rng(0)


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32).astype(dtype)


def run(program: Any, /, **tensors: np.ndarray) -> dict[str, np.ndarray]:
    return execute(program, tensors).tensors


def test_tiles_beyond_the_edge_read_zero_and_write_nothing() -> None:
    @T.prim_func
    def shift(A: T.Tensor((10, 7), "float32"), B: T.Tensor((10, 7), "float32")) -> None:
        with T.Kernel(T.ceildiv(7, 4), T.ceildiv(10, 4), threads=64) as (bx, by):
            tile = T.alloc_shared((4, 4), "float32")
            T.copy(A[by * 4 - 2, bx * 4 + 1], tile)
            T.copy(tile, B[by * 4, bx * 4])

    a = normal(10, 7)
    expected = np.zeros((10, 7), np.float32)
    expected[2:, :6] = a[:8, 1:]
    np.testing.assert_array_equal(run(shift, A=a)["B"], expected)


def test_a_safe_value_stands_for_what_lies_outside() -> None:
    @T.prim_func
    def edge(A: T.Tensor((5,), "float32"), B: T.Tensor((8,), "float32")) -> None:
        with T.Kernel(1, threads=32) as _:
            T.annotate_safe_value({A: 7.0})
            tile = T.alloc_fragment((8,), "float32")
            T.copy(A[0:8], tile)
            T.copy(tile, B)

    a = normal(5)
    np.testing.assert_array_equal(run(edge, A=a)["B"], [*a, 7, 7, 7])


@pytest.mark.parametrize("kind", ["sum", "max", "min", "absmax", "abssum"])
@pytest.mark.parametrize("dim", [0, 1])
def test_reductions(kind: str, dim: int) -> None:
    @T.prim_func
    def reduce(A: T.Tensor((6, 9), "float32"), B: T.Tensor(((9, 6)[dim],), "float32")) -> None:
        with T.Kernel(1, threads=32) as _:
            tile = T.alloc_fragment((6, 9), "float32")
            out = T.alloc_fragment(((9, 6)[dim],), "float32")
            T.copy(A, tile)
            T.reduce(tile, out, kind, dim, True)
            T.copy(out, B)

    a = normal(6, 9)
    x = np.abs(a) if kind.startswith("abs") else a
    expected = {"sum": np.sum, "max": np.max, "min": np.min}[kind.removeprefix("abs")](x, axis=dim)
    np.testing.assert_allclose(run(reduce, A=a)["B"], expected, rtol=1e-6)


def test_a_reduction_that_keeps_the_old_value() -> None:
    @T.prim_func
    def running(A: T.Tensor((4, 32), "float32"), B: T.Tensor((4,), "float32")) -> None:
        with T.Kernel(1, threads=32) as _:
            tile = T.alloc_fragment((4, 8), "float32")
            top = T.alloc_fragment((4,), "float32")
            T.fill(top, -T.infinity("float32"))
            for k in T.serial(4):
                T.copy(A[0, k * 8], tile)
                T.reduce_max(tile, top, dim=1, clear=False)
            T.copy(top, B)

    a = normal(4, 32)
    np.testing.assert_array_equal(run(running, A=a)["B"], a.max(axis=1))


@pytest.mark.parametrize("reverse", [False, True])
def test_prefix_sums(reverse: bool) -> None:
    @T.prim_func
    def scan(A: T.Tensor((3, 8), "int32"), B: T.Tensor((3, 8), "int32")) -> None:
        with T.Kernel(3, threads=32) as bx:
            row = T.alloc_shared((1, 8), "int32")
            T.copy(A[bx, 0], row)
            T.cumsum(row, dim=1, reverse=reverse)
            T.copy(row, B[bx, 0])

    a = RNG.integers(-9, 9, (3, 8), dtype=np.int32)
    turn = slice(None, None, -1 if reverse else 1)
    np.testing.assert_array_equal(run(scan, A=a)["B"], np.cumsum(a[:, turn], axis=1)[:, turn])


def test_blocks_take_different_branches_and_trip_counts() -> None:
    @T.prim_func
    def ragged(
        A: T.Tensor((6, 8, 4), "float32"), L: T.Tensor((6,), "int32"), B: T.Tensor((6, 4), "float32")
    ) -> None:
        with T.Kernel(6, threads=32) as bx:
            total = T.alloc_fragment((4,), "float32")
            T.clear(total)
            for k in T.serial(L[bx]):
                for j in T.Parallel(4):
                    total[j] = total[j] + A[bx, k, j]
            if bx % 2 == 0:
                for j in T.Parallel(4):
                    total[j] = -total[j]
            else:
                total[0] = 100.0
            T.copy(total, B[bx, 0:4])

    a, length = normal(6, 8, 4), np.array([3, 0, 8, 1, 3, 5], np.int32)
    expected = np.stack([a[b, : length[b]].sum(axis=0) * (-1) ** (b % 2 == 0) for b in range(6)])
    expected[1::2, 0] = 100
    np.testing.assert_allclose(run(ragged, A=a, L=length)["B"], expected, rtol=1e-6, atol=1e-7)


def test_a_while_loop_ends_for_each_block_by_itself() -> None:
    @T.prim_func
    def halve(A: T.Tensor((5,), "int32"), B: T.Tensor((5,), "int32")) -> None:
        with T.Kernel(5, threads=32) as bx:
            n = T.alloc_var("int32", init=0)
            x = T.alloc_var("int32", init=0)
            x = A[bx]
            while x > 1:
                x = x // 2
                n = n + 1
            B[bx] = n

    a = np.array([1, 2, 1000, 0, 65], np.int32)
    np.testing.assert_array_equal(run(halve, A=a)["B"], [0, 1, 9, 0, 6])


def test_gathers_and_scatters_follow_the_indices() -> None:
    @T.prim_func
    def permute(
        A: T.Tensor((12, 8), "float32"),
        Where: T.Tensor((10,), "int32"),
        B: T.Tensor((12, 8), "float32"),
        C: T.Tensor((10, 8), "float32"),
    ) -> None:
        with T.Kernel(2, threads=32) as bx:
            tile = T.alloc_shared((5, 8), "float32")
            for i, j in T.Parallel(5, 8):
                tile[i, j] = T.if_then_else(Where[bx * 5 + i] >= 0, A[Where[bx * 5 + i], j], -1.0)
            T.copy(tile, C[bx * 5, 0])
            for i, j in T.Parallel(5, 8):
                if Where[bx * 5 + i] >= 0:
                    B[Where[bx * 5 + i], j] = tile[i, j] * 2.0

    a = normal(12, 8)
    index = np.array([3, -1, 0, 11, 7, 5, 1, 2, -1, 9], np.int32)
    found = execute(permute, {"A": a, "Where": index, "B": np.zeros((12, 8), np.float32)}).tensors
    expected = np.where((index >= 0)[:, None], a[index], np.float32(-1))
    np.testing.assert_array_equal(found["C"], expected)
    scattered = np.zeros((12, 8), np.float32)
    scattered[index[index >= 0]] = 2 * a[index[index >= 0]]
    np.testing.assert_array_equal(found["B"], scattered)


def test_atomics_of_elements_and_tiles_add_up() -> None:
    @T.prim_func
    def histogram(
        A: T.Tensor((4, 50), "int32"),
        H: T.Tensor((8,), "int32"),
        S: T.Tensor((8,), "float32"),
        M: T.Tensor((1,), "int32"),
    ) -> None:
        with T.Kernel(4, threads=64) as bx:
            counts = T.alloc_shared((8,), "int32")
            ones = T.alloc_fragment((8,), "float32")
            T.clear(counts)
            T.fill(ones, 0.5)
            for i in T.Parallel(50):
                T.atomic_add(counts[A[bx, i]], 1)
            for i in T.Parallel(8):
                T.atomic_add(H[i], counts[i])
            T.atomic_add(S[0:8], ones)
            for i in T.Parallel(50):
                T.atomic_max(M[0], A[bx, i])

    a = RNG.integers(0, 8, (4, 50), dtype=np.int32)
    zero = {"H": np.zeros(8, np.int32), "S": np.zeros(8, np.float32), "M": np.zeros(1, np.int32)}
    found = execute(histogram, {"A": a, **zero}).tensors
    np.testing.assert_array_equal(found["H"], np.bincount(a.ravel(), minlength=8))
    np.testing.assert_array_equal(found["S"], np.full(8, 2.0))
    assert found["M"][0] == a.max()


def test_threads_have_variables_of_their_own() -> None:
    @T.prim_func
    def collatz(A: T.Tensor((3, 16), "int32"), B: T.Tensor((3, 16), "int32")) -> None:
        with T.Kernel(3, threads=32) as bx:
            x = T.alloc_var("int32", init=0)
            n = T.alloc_var("int32", init=0)
            for i in T.Parallel(16):
                x = A[bx, i]
                n = 0
                while x != 1:
                    x = T.if_then_else(x % 2 == 0, x // 2, 3 * x + 1)
                    n = n + 1
                B[bx, i] = n

    def steps(x: int) -> int:
        return 0 if x == 1 else 1 + steps(x // 2 if x % 2 == 0 else 3 * x + 1)

    a = RNG.integers(1, 60, (3, 16), dtype=np.int32)
    np.testing.assert_array_equal(run(collatz, A=a)["B"], np.vectorize(steps)(a))


def test_launches_follow_each_other_and_share_workspace() -> None:
    @T.prim_func
    def first(A: T.Tensor((8,), "float32"), W: T.Tensor((8,), "float32")) -> None:
        with T.Kernel(4, threads=32) as bx:
            for i in T.Parallel(2):
                T.atomic_add(W[7 - bx * 2 - i], A[bx * 2 + i])

    @T.prim_func
    def second(W: T.Tensor((8,), "float32"), B: T.Tensor((8,), "float32")) -> None:
        with T.Kernel(2, threads=32) as bx:
            for i in T.Parallel(4):
                B[bx * 4 + i] = W[bx * 4 + i] + W[(bx * 4 + i + 1) % 8]

    a = normal(8)
    found = execute((first, second), {"A": a}, outputs=["B"]).tensors["B"]
    np.testing.assert_array_equal(found, a[::-1] + np.roll(a[::-1], -1))


def test_persistent_blocks_take_every_point_once() -> None:
    @T.prim_func
    def tiles(A: T.Tensor((40, 24), "float32"), B: T.Tensor((40, 24), "float32")) -> None:
        with T.Kernel(7, threads=32) as b:
            tile = T.alloc_shared((8, 8), "float32")
            for i, j in T.Persistent([5, 3], 7, b, group_size=2):
                T.copy(A[i * 8, j * 8], tile)
                T.copy(tile, B[i * 8, j * 8])

    a = normal(40, 24)
    np.testing.assert_array_equal(run(tiles, A=a)["B"], a)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3", "float4_e2m1"])
def test_arithmetic_rounds_to_the_type_it_is_written_in(dtype: str) -> None:
    """Every operation on a narrow type is rounded to it, as a chip without wider registers would."""
    stored = {
        "float8_e4m3": ml_dtypes.float8_e4m3fn,
        "float4_e2m1": ml_dtypes.float4_e2m1fn,
        "bfloat16": ml_dtypes.bfloat16,
    }.get(dtype, np.float16)

    @T.prim_func
    def sums(A: T.Tensor((64,), dtype), B: T.Tensor((64,), dtype), C: T.Tensor((64,), dtype)) -> None:
        with T.Kernel(1, threads=32) as _:
            for i in T.Parallel(64):
                C[i] = (A[i] + B[i]) * A[i]

    a, b = (RNG.uniform(-1, 1, 64).astype(np.float32).astype(stored) for _ in range(2))
    x, y = a.astype(np.float32), b.astype(np.float32)
    wide = (x + y).astype(stored).astype(np.float32) * a.astype(np.float32)
    np.testing.assert_array_equal(
        run(sums, A=a, B=b)["C"].astype(np.float32), wide.astype(stored).astype(np.float32)
    )


def test_unsigned_arithmetic_wraps() -> None:
    @T.prim_func
    def mix(A: T.Tensor((16,), "uint32"), B: T.Tensor((16,), "uint32")) -> None:
        with T.Kernel(1, threads=32) as _:
            for i in T.Parallel(16):
                B[i] = (A[i] * T.cast(2654435761, "uint32")) ^ (A[i] >> 3)

    a = RNG.integers(0, 2**32, 16, dtype=np.uint32)
    with np.errstate(over="ignore"):
        expected = (a * np.uint32(2654435761)) ^ (a >> np.uint32(3))
    np.testing.assert_array_equal(run(mix, A=a)["B"], expected)


@given(
    m=st.integers(1, 150),
    n=st.integers(1, 150),
    k=st.integers(1, 200),
    batch=st.integers(1, 3),
    dtype=st.sampled_from(["bf16", "fp16", "fp8", "int8"]),
    trans_a=st.booleans(),
    trans_b=st.booleans(),
    pick=st.integers(0, 500),
)
@settings(max_examples=40, deadline=None)
def test_products_of_any_size_and_configuration(
    m: int, n: int, k: int, batch: int, dtype: str, trans_a: bool, trans_b: bool, pick: int
) -> None:
    gemm = load_operator("gemm")
    shape = gemm.shape(m=m, n=n, k=k, batch=batch, dtype=dtype, trans_a=trans_a, trans_b=trans_b)
    space = gemm.configs(shape)
    config = {**space[pick % len(space)], "cores": 6}
    inputs = gemm.inputs(shape, np.random.default_rng(pick))
    found = execute(
        gemm.program(shape, config), inputs, outputs=["C"], dims=shape | {"dtype": 0, "out_dtype": 0}
    ).tensors["C"]
    expected = gemm.reference(shape, **inputs)["C"]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        found.astype(np.float64) / scale, expected / scale, atol=0.0 if dtype == "int8" else 2**-8
    )


@pytest.mark.parametrize("blocks", [1, 3, 100])
def test_a_sample_of_the_grid_computes_its_part(blocks: int) -> None:
    gemm = load_operator("gemm")
    shape = gemm.shape(m=200, n=200, k=64)
    config = gemm.config(shape, variant="tile", block_m=64, block_n=64)
    inputs = gemm.inputs(shape, np.random.default_rng(1))
    whole = execute(gemm.program(shape, config), inputs).tensors["C"]
    part = execute(gemm.program(shape, config), inputs, blocks=blocks, seed=3)
    written = part.written["C"]
    assert part.blocks == min(blocks, 16)
    assert written.any() and written.all() == (blocks >= 16)  # noqa: PT018
    found, expected = (x[written].astype(np.float32) for x in (part.tensors["C"], whole))
    np.testing.assert_allclose(found, expected, rtol=2**-7)  # BLAS adds up in another order


def test_large_grids_run_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from foretile.simulator.numerics import execute as module

    gemm = load_operator("gemm")
    shape = gemm.shape(m=300, n=260, k=96, batch=2)
    config = gemm.config(shape, variant="tile", block_m=64, block_n=64)
    inputs = gemm.inputs(shape, np.random.default_rng(1))
    whole = execute(gemm.program(shape, config), inputs).tensors["C"]
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1 << 18)
    pieces = execute(
        gemm.program(shape, config), inputs, progress=lambda done, total: seen.append((done, total))
    )
    # BLAS adds up in another order for matrices of another size.
    np.testing.assert_allclose(pieces.tensors["C"].astype(np.float32), whole.astype(np.float32), rtol=2**-7)
    assert len(seen) > 3
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (50, 50)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"A": np.zeros((8, 9), np.float32)}, r"A is \(8, 9\); narrow takes \(8, 8\)"),
        ({"A": np.zeros((8, 8), np.float16)}, "A holds float16; narrow takes float32"),
        ({"A": [[0.0] * 8] * 8}, "A is a builtins.list; a NumPy array is needed"),
    ],
)
def test_operands_that_do_not_fit_are_named(tensors: dict[str, np.ndarray], message: str) -> None:
    @T.prim_func
    def narrow(A: T.Tensor((8, 8), "float32"), B: T.Tensor((8, 8), "float32")) -> None:
        with T.Kernel(1, threads=32) as _:
            T.copy(A, B)

    with pytest.raises(NumericsError, match=message):
        execute(narrow, tensors)
