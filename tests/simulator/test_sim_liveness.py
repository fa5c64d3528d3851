"""What is needed at once: never more than the sum, and less where values are dead."""

from __future__ import annotations

from itertools import pairwise

import pytest

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.simulator.lowering.liveness import most_at_once


def _chain(count: int, *, loop: bool, last_reads_first: bool) -> TileProgram:
    """Tiles of 64 rows, each made of the one before; in a serial loop, or not."""

    @T.prim_func
    def chain(A: T.Tensor((64, 64), "float32"), B: T.Tensor((64, 64), "float32")) -> None:  # type: ignore[valid-type]
        with T.Kernel(1, threads=128) as _:
            tiles = [T.alloc_fragment((64, 64), "float32") for _ in range(count)]

            def steps() -> None:
                T.copy(A, tiles[0])
                for a, b in pairwise(tiles):
                    for i, j in T.Parallel(64, 64):
                        b[i, j] = a[i, j] * 2
                if last_reads_first:
                    for i, j in T.Parallel(64, 64):
                        tiles[-1][i, j] += tiles[0][i, j]
                T.copy(tiles[-1], B)

            if loop:
                for _ in T.serial(4):
                    steps()
            else:
                steps()

    return chain


def _needed(program: TileProgram) -> float:
    return most_at_once(program, {b.name: 1.0 for b in program.buffers if b.scope == "fragment"})


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("count", [2, 5])
def test_a_chain_needs_two_at_once_and_one_more_if_the_first_is_read_again(count: int, loop: bool) -> None:
    assert _needed(_chain(count, loop=loop, last_reads_first=False)) == 2
    assert _needed(_chain(count, loop=loop, last_reads_first=True)) == min(count, 3)


def test_what_a_loop_carries_is_needed_throughout() -> None:
    @T.prim_func
    def carried(A: T.Tensor((64, 64), "float32"), B: T.Tensor((64, 64), "float32")) -> None:  # type: ignore[valid-type]
        with T.Kernel(1, threads=128) as _:
            total, tile, other = (T.alloc_fragment((64, 64), "float32") for _ in range(3))
            T.clear(total)
            for _ in T.serial(4):
                T.copy(A, tile)
                for i, j in T.Parallel(64, 64):
                    total[i, j] += tile[i, j]
                T.copy(A, other)
                for i, j in T.Parallel(64, 64):
                    total[i, j] += other[i, j]
            T.copy(total, B)

    assert _needed(carried) == 2
