"""Stores that TileLang is told to make asynchronous copies of, and the arrival that waits for them."""

from __future__ import annotations

import numpy as np

import foretile
from foretile.kernels.tilelang import from_prim_func


def test_stores_that_may_become_asynchronous_copies_are_stores(tilelang_language) -> None:
    T = tilelang_language

    @T.prim_func
    def main(A: T.Tensor((64, 32), "float16"), B: T.Tensor((64, 32), "float16")):
        with T.Kernel(1, threads=64) as _:
            tile = T.alloc_shared((64, 32), "float16")
            filled = T.alloc_barrier(arrive_count=64)
            tx = T.get_thread_binding()
            with T.attr("default", "async_scope", 1):
                for u in T.serial(4):
                    for v in T.vectorized(8):
                        tile[tx, 8 * u + v] = A[63 - tx, 8 * u + v]
            T.cp_async_barrier_noinc(filled[0])
            T.barrier_wait(filled[0], 0)
            T.copy(tile, B)

    a = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float16)
    program = from_prim_func(main)
    assert np.array_equal(foretile.execute(program, {"A": a})["B"], a[::-1])
    assert foretile.predict(program, "h200-sxm").time_s > 0
