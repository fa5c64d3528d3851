"""Latent attention of a block that keeps neither its queries nor a tile of keys whole: pieces of the depth.

A tile of 64 queries and one of 64 keys, 576 deep, take most of a core's shared memory, so that one block runs
there. FMHA kernels for deep heads load both in pieces of the depth, the queries once more for every tile of
keys (TensorRT-LLM, fmha_v2: "granular tiling"): more is read from the L2, and two blocks share a core.
"""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Shape
from foretile.kernels.operators._common import LOG2E, full
from foretile.kernels.operators._mla import ABSORBED, LATENT, SCALE, normalise, traced, warp_policy
from foretile.kernels.operators._softmax import alloc_rows, clear_rows, online_softmax


def decode_in_pieces(shape: Shape, config: Config) -> TileProgram:
    """One block ``block_h`` query heads of a sequence, all of its keys and ``block_v`` values of each.

    The depth of the scores is taken ``block_d`` elements at a time.
    """
    batch, kv_len, heads, dtype = shape["batch"], shape["kv_len"], shape["heads"], full(shape["dtype"])
    rows, keys, values, depth = (config[f"block_{x}"] for x in "hnvd")
    num_stages, threads, policy = config["num_stages"], config["threads"], warp_policy(config)
    v_parts = LATENT // values

    @T.prim_func
    def mla_decode_pieces(
        Q: T.Tensor((batch, heads, ABSORBED), dtype),
        KV: T.Tensor((batch, kv_len, ABSORBED), dtype),
        O: T.Tensor((batch, heads, LATENT), dtype),  # noqa: E741
    ) -> None:
        with T.Kernel(1, v_parts * T.ceildiv(heads, rows), batch, threads=threads) as (_, by, bz):
            Q_shared = T.alloc_shared((rows, depth), dtype)
            K_shared = T.alloc_shared((keys, depth), dtype)
            V_shared = T.alloc_shared((keys, values), dtype)
            S_shared = T.alloc_shared((rows, keys), dtype)
            acc_s = T.alloc_fragment((rows, keys), "float32")
            acc_o = T.alloc_fragment((rows, values), "float32")
            stats = alloc_rows(rows)
            h0, column = by // v_parts * rows, by % v_parts * values
            clear_rows(stats, acc_o)
            for k in T.serial(T.ceildiv(kv_len, keys)):
                k0 = k * keys
                T.copy(KV[bz, k0 : k0 + keys, column : column + values], V_shared)
                for i, j in T.Parallel(rows, keys):
                    acc_s[i, j] = T.if_then_else(k0 + j < kv_len, 0.0, -T.infinity("float32"))
                for d in T.Pipelined(ABSORBED // depth, num_stages=num_stages):
                    T.copy(Q[bz, h0 : h0 + rows, d * depth : (d + 1) * depth], Q_shared)
                    T.copy(KV[bz, k0 : k0 + keys, d * depth : (d + 1) * depth], K_shared)
                    T.gemm(Q_shared, K_shared, acc_s, transpose_B=True, policy=policy)
                online_softmax(acc_s, acc_o, stats, SCALE * LOG2E)
                T.copy(acc_s, S_shared)
                T.gemm(S_shared, V_shared, acc_o, policy=policy)
            normalise(acc_o, stats)
            T.copy(acc_o, O[bz, h0 : h0 + rows, column : column + values])

    return traced(mla_decode_pieces)


def fits_pieces(shape: Shape) -> bool:
    """Whether a cache can be multiplied as it is stored."""
    found: Any = shape["kv_dtype"] == shape["dtype"]
    return bool(found)
