"""What the executor refuses: each fault is named with the kernel's line, the block and the element."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.execute import execute

A = T.Tensor((64,), "float32")
MATRIX = T.Tensor((16, 16), "float32")


def unwritten_shared() -> TileProgram:
    @T.prim_func
    def kernel(A: A, B: A) -> None:
        with T.Kernel(4, threads=32) as bx:
            tile = T.alloc_shared((16,), "float32")
            if bx != 2:
                T.copy(A[bx * 16], tile)
            T.copy(tile, B[bx * 16])  # <-

    return kernel


def unwritten_part_of_a_fragment() -> TileProgram:
    @T.prim_func
    def kernel(A: A, B: A) -> None:
        with T.Kernel(4, threads=32) as bx:
            tile = T.alloc_fragment((16,), "float32")
            for i in T.Parallel(15):
                tile[i] = A[bx * 16 + i]
            for i in T.Parallel(16):
                B[bx * 16 + i] = tile[i]  # <-

    return kernel


def accumulator_not_cleared() -> TileProgram:
    @T.prim_func
    def kernel(A: MATRIX, B: MATRIX) -> None:
        with T.Kernel(1, threads=32) as _:
            tile = T.alloc_shared((16, 16), "float32")
            acc = T.alloc_fragment((16, 16), "float32")
            T.copy(A, tile)
            T.gemm(tile, tile, acc)  # <-
            T.copy(acc, B)

    return kernel


def output_read_before_it_is_written() -> TileProgram:
    @T.prim_func
    def kernel(A: A, B: A) -> None:
        with T.Kernel(4, threads=32) as bx:
            for i in T.Parallel(16):
                B[bx * 16 + i] = A[bx * 16 + i] + B[bx * 16 + i]  # <-

    return kernel


def output_with_a_hole() -> TileProgram:
    @T.prim_func
    def kernel(A: A, B: A) -> None:
        with T.Kernel(4, threads=32) as bx:
            for i in T.Parallel(15):
                B[bx * 16 + i] = A[bx * 16 + i]

    return kernel


def two_blocks_write_one_tile() -> TileProgram:
    @T.prim_func
    def kernel(A: A, B: A) -> None:
        with T.Kernel(8, threads=32) as bx:
            tile = T.alloc_shared((16,), "float32")
            T.copy(A[bx // 2 * 16], tile)
            T.copy(tile, B[bx // 2 * 16])  # <-

    return kernel


def two_blocks_write_one_element() -> TileProgram:
    @T.prim_func
    def kernel(A: A, B: A) -> None:
        with T.Kernel(4, threads=32) as bx:
            for i in T.Parallel(17):
                if bx * 16 + i < 64:
                    B[bx * 16 + i] = A[bx * 16 + i]  # <-

    return kernel


def one_block_reads_what_another_writes() -> TileProgram:
    @T.prim_func
    def kernel(A: A, B: A) -> None:
        with T.Kernel(4, threads=32) as bx:
            tile = T.alloc_shared((16,), "float32")
            T.copy(A[bx * 16], tile)
            T.copy(tile, B[bx * 16])
            T.copy(B[(bx + 1) % 4 * 16], tile)  # <-

    return kernel


def iterations_write_one_element() -> TileProgram:
    @T.prim_func
    def kernel(A: A, B: A) -> None:
        with T.Kernel(4, threads=32) as bx:
            tile = T.alloc_shared((16,), "float32")
            for i in T.Parallel(16):
                tile[i // 2] = A[bx * 16 + i]  # <-
            T.copy(tile, B[bx * 16])

    return kernel


def iterations_write_one_element_of_a_tensor() -> TileProgram:
    @T.prim_func
    def kernel(A: A, B: A) -> None:
        with T.Kernel(4, threads=32) as bx:
            for i, j in T.Parallel(16, 2):
                B[bx * 16 + i] = A[bx * 16 + i] + j  # <-

    return kernel


def an_iteration_reads_its_neighbour() -> TileProgram:
    @T.prim_func
    def kernel(A: A, B: A) -> None:
        with T.Kernel(4, threads=32) as bx:
            tile = T.alloc_shared((16,), "float32")
            T.copy(A[bx * 16], tile)
            for i in T.Parallel(15):
                tile[i] = tile[i + 1]  # <-
            T.copy(tile, B[bx * 16])

    return kernel


def an_iteration_reads_what_another_wrote() -> TileProgram:
    @T.prim_func
    def kernel(A: A, B: A) -> None:
        with T.Kernel(4, threads=32) as bx:
            tile = T.alloc_shared((16,), "float32")
            for i in T.Parallel(16):
                tile[i] = A[bx * 16 + i]
                B[bx * 16 + i] = tile[15 - i]  # <-

    return kernel


def an_index_leaves_the_tile() -> TileProgram:
    @T.prim_func
    def kernel(A: A, B: A) -> None:
        with T.Kernel(4, threads=32) as bx:
            tile = T.alloc_shared((16,), "float32")
            T.copy(A[bx * 16], tile)
            for i in T.Parallel(16):
                B[bx * 16 + i] = tile[i + bx]  # <-

    return kernel


def a_region_leaves_the_tile() -> TileProgram:
    @T.prim_func
    def kernel(A: A, B: A) -> None:
        with T.Kernel(4, threads=32) as bx:
            tile = T.alloc_shared((32,), "float32")
            T.fill(tile, 0)
            T.copy(tile[bx * 8 : bx * 8 + 16], B[bx * 16])  # <-

    return kernel


def a_variable_of_a_thread_used_by_the_block() -> TileProgram:
    @T.prim_func
    def kernel(A: A, B: A) -> None:
        with T.Kernel(4, threads=32) as bx:
            x = T.alloc_var("float32", init=0)
            for i in T.Parallel(16):
                x = A[bx * 16 + i]
                B[bx * 16 + i] = x
            B[bx * 16] = x  # <-

    return kernel


def an_endless_loop() -> TileProgram:
    @T.prim_func
    def kernel(A: A, B: A) -> None:
        with T.Kernel(1, threads=32) as _:
            x = T.alloc_var("int32", init=1)
            while x > 0:  # <-
                x = 1

    return kernel


FAULTS: list[tuple[Callable[[], TileProgram], str]] = [
    (
        unwritten_shared,
        r"reads tile, which was never written there at index \(0\) of the tile, in block \(2\)",
    ),
    (
        unwritten_part_of_a_fragment,
        r"reads an element of tile that was never written at index \(15\).*block \(0\)",
    ),
    (accumulator_not_cleared, "reads acc, which was never written"),
    (output_read_before_it_is_written, r"reads B\[0\], which was never written, in block \(0\)"),
    (output_with_a_hole, r"B\[15\] was never written \(4 of 64 elements were not\)"),
    (two_blocks_write_one_tile, r"several blocks write B\[0\], in block"),
    (two_blocks_write_one_element, r"several blocks write B\[16\], in block"),
    (
        one_block_reads_what_another_writes,
        r"reads B\[16\], which another block writes in the same launch, in block \(0\)",
    ),
    (iterations_write_one_element, "two iterations of a parallel loop write one element of tile at index"),
    (iterations_write_one_element_of_a_tensor, r"two iterations of a parallel loop write B\[0\]"),
    (
        an_iteration_reads_its_neighbour,
        "an iteration of a parallel loop writes an element of tile that another one reads",
    ),
    (
        an_iteration_reads_what_another_wrote,
        "an iteration of a parallel loop reads an element of tile that another one writes",
    ),
    (an_index_leaves_the_tile, r"an index of tile leaves the buffer of 16, in block \(1\)"),
    (a_region_leaves_the_tile, r"tile\[24:\+16\] leaves the buffer of 32, in block \(3\)"),
    (a_variable_of_a_thread_used_by_the_block, "reads x, which was never written"),
    (an_endless_loop, "the while loop has not ended after"),
]


@pytest.mark.parametrize(("kernel", "message"), FAULTS, ids=lambda v: getattr(v, "__name__", None))
def test_faults_are_found_and_placed(
    kernel: Callable[[], TileProgram], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foretile.simulator.numerics import interpret

    monkeypatch.setattr(interpret, "_ENDLESS", 1000)
    program = kernel()
    tensors: dict[str, Any] = {"A": np.ones(256, np.float32)[:64].copy()}
    if program.buffer("A").shape == program.params[0].shape and len(program.params[0].shape) == 2:
        tensors = {"A": np.ones((16, 16), np.float32)}
    with pytest.raises(NumericsError, match=message) as raised:
        execute(program, tensors, outputs=["B"])
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    marked = [n for n, line in enumerate(lines, 1) if line.endswith("# <-")]
    start = kernel.__code__.co_firstlineno
    expected = [n for n in marked if n > start][:1]
    if kernel is not output_with_a_hole:
        assert raised.value.loc is not None
        assert raised.value.loc.line == expected[0], f"named line {raised.value.loc.line}, not {expected[0]}"
        assert raised.value.loc.file.endswith("test_num_faults.py")


def test_what_no_iteration_needs_is_not_refused() -> None:
    """Guards protect: an index that is computed but not needed may lie anywhere."""

    @T.prim_func
    def guarded(A: T.Tensor((10,), "float32"), B: T.Tensor((10,), "float32")) -> None:
        with T.Kernel(1, threads=32) as _:
            tile = T.alloc_shared((10,), "float32")
            T.copy(A, tile)
            for i in T.Parallel(16):
                if i < 10:
                    B[i] = T.if_then_else(i > 0, tile[i - 1], 0.0)

    a = np.arange(10, dtype=np.float32)
    np.testing.assert_array_equal(execute(guarded, {"A": a}).tensors["B"], [0, *a[:-1]])


def test_an_iteration_may_use_its_own_element_again() -> None:
    @T.prim_func
    def own(A: T.Tensor((4, 16), "float32"), B: T.Tensor((4, 16), "float32")) -> None:
        with T.Kernel(4, threads=32) as bx:
            tile = T.alloc_fragment((16,), "float32")
            for i in T.Parallel(16):
                tile[i] = A[bx, i]
                tile[i] = tile[i] * 2.0
                if tile[i] > 0:
                    tile[i] = tile[i] + 1.0
                B[bx, i] = tile[i]

    a = np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16)
    np.testing.assert_array_equal(execute(own, {"A": a}).tensors["B"], np.where(a > 0, 2 * a + 1, 2 * a))
