"""How long a TileLang kernel takes to become a tile program, beyond TileLang's own time."""

from typing import Any

import pytest


def _attention(T: Any, heads: int = 32, seq: int = 4096, dim: int = 128) -> Any:
    shape = (1, heads, seq, dim)

    @T.prim_func
    def attention(
        Q: T.Tensor(shape, "float16"),
        K: T.Tensor(shape, "float16"),
        V: T.Tensor(shape, "float16"),
        O: T.Tensor(shape, "float16"),  # noqa: E741
    ) -> None:
        with T.Kernel(T.ceildiv(seq, 128), heads, threads=256) as (bx, by):
            q = T.alloc_shared((128, dim), "float16")
            k = T.alloc_shared((128, dim), "float16")
            v = T.alloc_shared((128, dim), "float16")
            s = T.alloc_fragment((128, 128), "float32")
            p = T.alloc_fragment((128, 128), "float16")
            o = T.alloc_fragment((128, dim), "float32")
            m = T.alloc_fragment((128,), "float32")
            before = T.alloc_fragment((128,), "float32")
            total = T.alloc_fragment((128,), "float32")
            part = T.alloc_fragment((128,), "float32")
            T.copy(Q[0, by, bx * 128, 0], q)
            T.clear(o)
            T.clear(total)
            T.fill(m, -T.infinity("float32"))
            for t in T.Pipelined(T.ceildiv((bx + 1) * 128, 128), num_stages=2):
                T.copy(K[0, by, t * 128, 0], k)
                for i, j in T.Parallel(128, 128):
                    s[i, j] = T.if_then_else(bx * 128 + i >= t * 128 + j, 0, -T.infinity("float32"))
                T.gemm(q, k, s, transpose_B=True)
                T.copy(m, before)
                T.reduce_max(s, m, dim=1, clear=False)
                for i, j in T.Parallel(128, 128):
                    s[i, j] = T.exp2(s[i, j] * 0.127 - m[i] * 0.127)
                T.reduce_sum(s, part, dim=1)
                for i in T.Parallel(128):
                    total[i] = total[i] * T.exp2(before[i] * 0.127 - m[i] * 0.127) + part[i]
                for i, j in T.Parallel(128, dim):
                    o[i, j] = o[i, j] * T.exp2(before[i] * 0.127 - m[i] * 0.127)
                T.copy(s, p)
                T.copy(V[0, by, t * 128, 0], v)
                T.gemm(p, v, o)
            for i, j in T.Parallel(128, dim):
                o[i, j] = o[i, j] / total[i]
            T.copy(o, O[0, by, bx * 128, 0])

    return attention


def test_import_of_a_tilelang_kernel(benchmark: Any) -> None:
    """An attention kernel as TileLang's front end built it; the limit is 50 ms."""
    language = pytest.importorskip("tilelang.language", reason="TileLang is not installed")
    from foretile.kernels.tilelang import from_prim_func

    function = _attention(language)
    program = benchmark(from_prim_func, function)
    assert program.grid[1].value == 32
    assert benchmark.stats["min"] < 0.05
