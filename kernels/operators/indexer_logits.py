"""DeepSeek-V3.2's lightning indexer: ``logits[s, t] = Σ_h w[s, h] · relu(q[s, h] · k[t]) · scale[t]``."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, OperatorError, Param, Shape, Tolerance
from foretile.kernels.operators._common import full, numpy_dtype, random_operand, size, whole
from foretile.kernels.operators._mla import traced
from foretile.kernels.operators._softmax import load_keys

HEAD_DIM = 128
"""Elements of an index head (DeepSeek-V3.2, config.json: index_head_dim)."""

_FP8 = "float8_e4m3fn"


_CHAINS = 4  # sums of a query's heads that a thread keeps going at a time


def _dot(scores: Any, weights: Any, row: Any, first: Any, heads: int) -> Any:
    """Sum of ``heads`` weighted scores of a row, negative ones left out, the first of column ``first``."""

    def term(head: int) -> Any:
        return T.max(scores[row, first + head], 0.0) * weights[first + head]

    sums = []
    for chain in range(min(_CHAINS, heads)):
        total = term(chain)
        for head in range(chain + _CHAINS, heads, _CHAINS):
            total = total + term(head)
        sums.append(total)
    result = sums[0]
    for total in sums[1:]:
        result = result + total
    return result


def program(shape: Shape, config: Config) -> TileProgram:
    """One block ``block_q`` queries, all their heads, against ``chunk`` tiles of ``block_n`` keys (0: all).

    The heads of a query are the columns of a product whose rows are the keys, ``joined`` those of all the
    block's queries (DeepGEMM), whether they exist or not. ``product`` "bf16" or "fp16" widens the operands
    on chip, without rounding, for matrix engines that take no fp8. Under the causal mask tiles that no
    query of the block sees are filled without being read.
    """
    batch, seq, kv_len, heads = shape["batch"], shape["seq"], shape["kv_len"], shape["heads"]
    block_Q, block_N, chunk = config["block_q"], config["block_n"], config["chunk"]
    num_stages, threads, causal = config["num_stages"], config["threads"], shape["causal"]
    joined = config["joined"]
    columns = block_Q * heads if joined else heads  # of a product
    product, convert = full(config["product"]), config["product"] != "fp8"
    hidden = -T.infinity("float32")

    @T.prim_func
    def indexer_logits(
        Q: T.Tensor((batch, seq, heads, HEAD_DIM), _FP8),
        K: T.Tensor((batch, kv_len, HEAD_DIM), _FP8),
        K_scale: T.Tensor((batch, kv_len), "float32"),
        W: T.Tensor((batch, seq, heads), "float32"),
        Logits: T.Tensor((batch, seq, kv_len), "float32"),
    ) -> None:
        tiles = T.ceildiv(kv_len, block_N)
        grid = (T.ceildiv(kv_len, block_N * chunk) if chunk else 1, T.ceildiv(seq, block_Q), batch)
        with T.Kernel(*grid, threads=threads) as (bx, by, bz):
            Q_shared = T.alloc_shared((block_Q * heads, HEAD_DIM), product)
            Q_local = T.alloc_fragment((heads, HEAD_DIM), _FP8) if convert else None
            W_shared = T.alloc_shared((block_Q, heads), "float32")
            K_shared = T.alloc_shared((block_N, HEAD_DIM), product)
            K_stored = T.alloc_shared((block_N, HEAD_DIM), _FP8) if convert else K_shared
            K_local = T.alloc_fragment((block_N, HEAD_DIM), _FP8) if convert else None
            K_scale_shared = T.alloc_shared((block_N,), "float32")
            scores = T.alloc_fragment((block_N, columns), "float32")
            weights = T.alloc_fragment((columns,), "float32")
            logits = T.alloc_fragment((block_N,), "float32")

            q0 = by * block_Q
            position = kv_len - seq + q0  # of the block's first query among the keys
            queries = T.min(block_Q, seq - q0)
            if joined:
                T.clear(Q_shared)
                T.clear(weights)
            for s in T.serial(queries):
                if convert:
                    T.copy(Q[bz, q0 + s, 0:heads, 0:HEAD_DIM], Q_local)
                    T.copy(Q_local, Q_shared[s * heads : (s + 1) * heads, :])
                else:
                    T.copy(Q[bz, q0 + s, 0:heads, 0:HEAD_DIM], Q_shared[s * heads : (s + 1) * heads, :])
            T.copy(W[bz, q0 : q0 + block_Q, 0:heads], W_shared)
            if joined:
                for s, h in T.Parallel(block_Q, heads):
                    weights[s * heads + h] = W_shared[s, h]

            first = bx * chunk
            last = T.min(first + chunk, tiles) if chunk else tiles
            seen = T.ceildiv(T.min(position + block_Q, kv_len), block_N) if causal else last
            # No tile that is seen lies behind the last one.
            edge = (T.max(first, T.min(first + chunk, seen)) if chunk else seen) if causal else last
            for t in T.Pipelined(first, edge, num_stages=num_stages):
                load_keys(K[bz, t * block_N : (t + 1) * block_N, 0:HEAD_DIM], K_stored, K_local, K_shared)
                T.copy(K_scale[bz, t * block_N : (t + 1) * block_N], K_scale_shared)
                if joined:
                    T.gemm(K_shared, Q_shared, scores, transpose_B=True, clear_accum=True)
                for s in T.serial(queries):
                    if joined:
                        for j in T.Parallel(block_N):
                            logits[j] = _dot(scores, weights, j, s * heads, heads)
                    else:
                        T.gemm(
                            K_shared,
                            Q_shared[s * heads : (s + 1) * heads, :],
                            scores,
                            transpose_B=True,
                            clear_accum=True,
                        )
                        T.copy(W_shared[s, :], weights)
                        for j, h in T.Parallel(block_N, heads):
                            scores[j, h] = T.max(scores[j, h], 0.0) * weights[h]
                        T.reduce_sum(scores, logits, dim=1)
                    for j in T.Parallel(block_N):
                        if causal:
                            visible = t * block_N + j <= position + s
                            logits[j] = T.if_then_else(visible, logits[j] * K_scale_shared[j], hidden)
                        else:
                            logits[j] = logits[j] * K_scale_shared[j]
                    T.copy(logits, Logits[bz, q0 + s, t * block_N : (t + 1) * block_N])
            if causal:
                T.fill(logits, hidden)
                for i in T.serial(last - edge):
                    for s in T.serial(queries):
                        T.copy(logits, Logits[bz, q0 + s, (edge + i) * block_N])

    return traced(indexer_logits)


# (block_q, block_n, num_stages, threads, chunk, joined), likeliest first; those of all keys as DeepGEMM's.
_TILES = (
    (4, 128, 2, 256, 8, False),
    (4, 128, 2, 128, 16, False),
    (2, 128, 2, 128, 8, False),
    (1, 128, 2, 128, 8, False),
    (1, 128, 2, 128, 4, False),
    (1, 128, 3, 128, 16, False),
    (1, 64, 2, 128, 8, False),
    (2, 64, 2, 128, 4, False),
    (4, 64, 2, 128, 8, False),
    (1, 256, 2, 256, 4, False),
    (8, 128, 2, 256, 8, False),
    (1, 64, 2, 64, 2, False),
    (4, 256, 3, 512, 0, False),
    (4, 128, 3, 256, 0, False),
    (2, 128, 3, 256, 0, False),
    (4, 256, 3, 256, 0, True),
    (4, 128, 3, 128, 0, True),
)


def configs(shape: Shape) -> list[Config]:
    """The space: type of the products, queries and keys of a tile, key tiles in flight and of a block."""
    keys = ("block_q", "block_n", "num_stages", "threads", "chunk", "joined")
    return [
        {"product": product, **dict(zip(keys, tile, strict=True))}
        for product in ("fp8", "bf16")
        for tile in _TILES
    ]


def _visible_pairs(shape: Shape) -> Any:
    """(query, key) pairs of a sequence; under the causal mask query s sees kv_len - seq + s + 1 keys."""
    seq, kv_len = whole(shape["seq"]), whole(shape["kv_len"])
    return seq * kv_len - (seq * (seq - 1) // 2 if shape["causal"] else 0)


def flops(shape: Shape) -> Any:
    """2·128 for every visible (query, key) pair of every head.

    The rectifier, the weighted sum over heads and the keys' scales are not counted, as in DeepGEMM's
    figures for this kernel.
    """
    return 2 * HEAD_DIM * whole(shape["batch"]) * whole(shape["heads"]) * _visible_pairs(shape)


def min_bytes(shape: Shape) -> Any:
    """Queries, weights, keys and scales read once; every logit, hidden ones included, written once."""
    batch, seq, heads = (whole(shape[name]) for name in ("batch", "seq", "heads"))
    kv_len, word = whole(shape["kv_len"]), size("fp32")
    query = heads * (HEAD_DIM * size("fp8") + word)
    key = HEAD_DIM * size("fp8") + word
    return batch * (seq * query + kv_len * key + seq * kv_len * word)


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Q (batch, seq, heads, 128), K (batch, kv_len, 128), K_scale (batch, kv_len), W (batch, seq, heads).

    Normal values as per-token quantisation leaves them: keys fill the range of fp8 (their largest
    magnitude is 448) and scales are positive; a weight has the query's scale in it.
    """
    batch, seq, kv_len, heads = (shape[name] for name in ("batch", "seq", "kv_len", "heads"))
    k = random_operand(rng, (batch, kv_len, HEAD_DIM), "fp32")
    scale = np.abs(k).max(axis=-1) / np.float32(448.0)
    return {
        "Q": random_operand(rng, (batch, seq, heads, HEAD_DIM), "fp8"),
        "K": (k / scale[..., None]).astype(numpy_dtype("fp8")),
        "K_scale": scale,
        "W": random_operand(rng, (batch, seq, heads), "fp32"),
    }


def _nothing_passes(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Products all negative: every visible logit is exactly zero."""
    operands = inputs(shape, rng)
    q, k = (np.abs(operands[name].astype(np.float32)) for name in ("Q", "K"))
    return {**operands, "Q": q.astype(numpy_dtype("fp8")), "K": (-k).astype(numpy_dtype("fp8"))}


def _scales_apart(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Scales of the keys over eight orders of magnitude, some zero."""
    operands = inputs(shape, rng)
    factor = (10.0 ** rng.uniform(-4, 4, operands["K_scale"].shape)).astype(np.float32)
    factor[rng.random(factor.shape) < 0.1] = 0.0
    return {**operands, "K_scale": operands["K_scale"] * factor}


def reference(shape: Shape, Q: np.ndarray, K: np.ndarray, K_scale: np.ndarray, W: np.ndarray) -> Arrays:
    """Logits of (batch, seq, kv_len) in float64, not rounded; -inf where the mask hides a key."""
    q, k, scale, w = (x.astype(np.float64) for x in (Q, K, K_scale, W))
    passed = np.maximum(np.einsum("bshd,btd->bhst", q, k), 0.0)
    logits = np.einsum("bsh,bhst->bst", w, passed) * scale[:, None, :]
    if shape["causal"]:
        seq, kv_len = logits.shape[-2:]
        key, query = np.arange(kv_len)[None, :], np.arange(seq)[:, None]
        logits = np.where(key <= kv_len - seq + query, logits, -np.inf)
    return {"Logits": logits}


def tolerance(shape: Shape) -> Tolerance:
    """Float32 sums: 128 products, exact by themselves, then ``heads`` weighted terms of either sign.

    A sum of n terms is off by at most n·u of the terms' magnitudes, in random order about √n·u; the terms
    of a logit add up to about √heads times its own magnitude. So the error is (√128 + √heads)·√heads·u
    or less for the usual logit, at most 2^-17 with 64 heads; twice that is allowed for single ones.
    """
    heads = float(shape["heads"])
    relative = (HEAD_DIM**0.5 + heads**0.5) * heads**0.5 * 2.0**-24
    return Tolerance(norm=relative, peak=2.0 * relative)


def check(shape: Shape) -> None:
    """Refuse queries that stand before the first key, and heads that make no product."""
    seq, kv_len = shape["seq"], shape["kv_len"]
    if shape["causal"] and np.any(np.asarray(seq) > kv_len):
        raise OperatorError(
            f"indexer_logits: seq={seq} is more than kv_len={kv_len}; with causal=true the last query "
            "stands at the last key, so that kv_len is at least seq"
        )
    if shape["heads"] % 8:
        raise OperatorError(f"indexer_logits: heads={shape['heads']} is not a multiple of 8")


OPERATOR = Operator(
    name="indexer_logits",
    doc=(
        "Index scores of DeepSeek-V3.2: Logits[b, s, t] = Σ_h W[b, s, h] · relu(Q[b, s, h] · K[b, t]) · "
        "K_scale[b, t]. Q is (batch, seq, heads, 128) and K (batch, kv_len, 128) in fp8, K_scale (batch, "
        "kv_len), W (batch, seq, heads), with the query's scale in it, and Logits (batch, seq, kv_len) in "
        "fp32. With causal, query s stands at key kv_len - seq + s and later keys hold -inf."
    ),
    params=(
        Param("batch", "sequences", dynamic=True),
        Param("seq", "queries of each sequence", dynamic=True),
        Param("kv_len", "keys of each sequence, those of its queries included", dynamic=True),
        Param("heads", "index heads, a multiple of 8", default=64),
        Param("causal", "a query sees the keys up to its own", kind="bool", default=True),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    check=check,
    tolerance=tolerance,
    adversarial={"nothing_passes": _nothing_passes, "scales_apart": _scales_apart},
    example={"batch": 2, "seq": 7, "kv_len": 333, "heads": 16},
    compute_dtype=lambda shape: "fp8",
)
