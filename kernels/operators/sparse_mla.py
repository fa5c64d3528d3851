"""Sparse multi-head latent attention: every query attends to the keys its row of indices names."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, Param, Shape
from foretile.kernels.operators._common import full, random_operand, size, whole
from foretile.kernels.operators._mla import (
    ABSORBED,
    LATENT,
    SCALE,
    Tiles,
    alloc_tiles,
    attend,
    clear_tiles,
    combine,
    finish,
    softmax,
    traced,
    warp_policy,
)
from foretile.kernels.operators._softmax import attention_tolerance


def _attention(shape: Shape, config: Config) -> TileProgram:
    """One block ``block_h`` heads of a query, a part of its indices and ``block_v`` values of each key.

    The rows of the cache that a tile of indices names are gathered into shared memory; in place of an
    index of -1 the first row is read and hidden from the softmax.
    """
    batch, seq, heads, topk = (shape[name] for name in ("batch", "seq", "heads", "topk"))
    kv_len, dtype = shape["kv_len"], full(shape["dtype"])
    block_H, block_N, block_V = config["block_h"], config["block_n"], config["block_v"]
    num_split, num_stages, policy = config["num_split"], config["num_stages"], warp_policy(config)
    v_parts = LATENT // block_V
    blocks = v_parts * T.ceildiv(heads, block_H) * num_split  # of a query

    @T.macro
    def attend_part(
        Q: Any, KV: Any, Indices: Any, part: Any, h0: Any, v_part: Any, by: Any, bz: Any
    ) -> Tiles:
        """The block's tiles after its share of the indices, normalised."""
        tiles = alloc_tiles(config, v_part, dtype)
        index = T.alloc_shared((block_N,), "int32")
        T.copy(Q[bz, by, h0 : h0 + block_H, 0:LATENT], tiles.Q_shared)
        T.copy(Q[bz, by, h0 : h0 + block_H, LATENT:ABSORBED], tiles.Q_rope_shared)
        clear_tiles(tiles)
        steps = T.ceildiv(topk, block_N)  # dealt out evenly: parts differ by one tile
        for t in T.Pipelined(
            part * steps // num_split, (part + 1) * steps // num_split, num_stages=num_stages
        ):
            T.copy(Indices[bz, by, t * block_N : (t + 1) * block_N], index)
            for i, j in T.Parallel(block_N, LATENT):
                tiles.KV_shared[i, j] = KV[bz, T.max(index[i], 0), j]
            for i, j in T.Parallel(block_N, ABSORBED - LATENT):
                tiles.K_rope_shared[i, j] = KV[bz, T.max(index[i], 0), LATENT + j]
            for i, j in T.Parallel(block_H, block_N):
                named = index[j] >= 0 and t * block_N + j < topk
                tiles.acc_s[i, j] = T.if_then_else(named, 0.0, -T.infinity("float32"))
            attend(tiles, policy, config["lazy"])
        finish(tiles, partial=num_split > 1)
        return tiles

    grid, threads = (blocks, seq, batch), config["threads"]
    q_shape, kv_shape = (batch, seq, heads, ABSORBED), (batch, kv_len, ABSORBED)

    def share(bx: Any) -> tuple[Any, Any, Any]:
        """Part of the indices, first head and part of the values of block ``bx``; parts vary fastest."""
        v_part = bx // num_split % v_parts if v_parts > 1 else 0
        return bx % num_split, bx // (num_split * v_parts) * block_H, v_part

    if num_split == 1:

        @T.prim_func
        def sparse_mla(
            Q: T.Tensor(q_shape, dtype),
            KV: T.Tensor(kv_shape, dtype),
            Indices: T.Tensor((batch, seq, topk), "int32"),
            O: T.Tensor((batch, seq, heads, LATENT), dtype),  # noqa: E741
        ) -> None:
            with T.Kernel(*grid, threads=threads) as (bx, by, bz):
                part, h0, v_part = share(bx)
                tiles = attend_part(Q, KV, Indices, part, h0, v_part, by, bz)
                T.copy(tiles.acc_o, O[bz, by, h0 : h0 + block_H, tiles.column : tiles.column + block_V])

        return traced(sparse_mla)

    @T.prim_func
    def sparse_mla_split(
        Q: T.Tensor(q_shape, dtype),
        KV: T.Tensor(kv_shape, dtype),
        Indices: T.Tensor((batch, seq, topk), "int32"),
        O_part: T.Tensor((batch, seq, heads, num_split, LATENT), "float32"),
        LSE: T.Tensor((batch, seq, heads, num_split), "float32"),
    ) -> None:
        with T.Kernel(*grid, threads=threads) as (bx, by, bz):
            part, h0, v_part = share(bx)
            tiles = attend_part(Q, KV, Indices, part, h0, v_part, by, bz)
            v0 = tiles.column
            T.copy(tiles.acc_o, O_part[bz, by, h0 : h0 + block_H, part, v0 : v0 + block_V])
            if v0 == 0:
                T.copy(tiles.rows.logsum, LSE[bz, by, h0 : h0 + block_H, part])

    return traced(sparse_mla_split)


def program(shape: Shape, config: Config) -> TileProgram | tuple[TileProgram, ...]:
    """One launch that writes O, or with ``num_split`` > 1 two: the parts, then their combination."""
    if config["num_split"] == 1:
        return _attention(shape, config)
    queries = (shape["batch"], shape["seq"], shape["heads"])
    return _attention(shape, config), combine(queries, config["num_split"], full(shape["dtype"]))


# (block_h, block_n, block_v, num_stages, threads, lazy), likeliest first; those with few heads for small
# shared memories, the last two for accumulators in a memory of their own.
_TILES = (
    (64, 64, 512, 2, 256, False),
    (64, 64, 512, 1, 256, False),
    (64, 32, 512, 2, 256, False),
    (32, 32, 512, 2, 128, False),
    (16, 16, 512, 2, 128, False),
    (16, 32, 512, 2, 128, False),
    (32, 64, 512, 2, 128, False),
    (64, 64, 256, 2, 256, False),
    (64, 64, 512, 2, 384, True),
)


def configs(shape: Shape) -> list[Config]:
    """The space: heads, keys, values of a tile, tiles in flight, threads, rescaling, parts of the indices."""
    keys = ("block_h", "block_n", "block_v", "num_stages", "threads", "lazy", "num_split")
    return [
        dict(zip(keys, (*tile, split), strict=True))
        for split in (1, 4, 2, 8)
        for tile in _TILES
        if split == 1 or split <= -(-int(np.max(shape["topk"])) // tile[1])
    ]


def _keys(shape: Shape) -> Any:
    """Keys of a query: as many as are asked for and there are."""
    keys = np.minimum(whole(shape["topk"]), whole(shape["kv_len"]))
    return keys if keys.ndim else int(keys)


def flops(shape: Shape) -> Any:
    """2·(576 + 512) for every (query head, key) pair, topk keys (at most kv_len) a query.

    Rows of indices with -1 before their end need less; what they need is not known from the shape.
    """
    queries = whole(shape["batch"]) * whole(shape["seq"]) * whole(shape["heads"])
    return 2 * (ABSORBED + LATENT) * queries * _keys(shape)


def min_bytes(shape: Shape) -> Any:
    """Q and indices read and O written once, and the keys that one query names, once a sequence.

    Every query names topk keys (at most kv_len). Whether the others of a sequence name different ones
    is not known from the shape: with one query a sequence this is exact, with more it is the least.
    """
    batch, seq, heads, topk = (whole(shape[name]) for name in ("batch", "seq", "heads", "topk"))
    queries = seq * (heads * (ABSORBED + LATENT) * size(shape["dtype"]) + topk * size("int32"))
    return batch * (queries + _keys(shape) * ABSORBED * size(shape["dtype"]))


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Q (batch, seq, heads, 576), KV (batch, kv_len, 576), Indices (batch, seq, topk).

    Indices are different keys in random order; behind them, where topk exceeds kv_len, -1.
    """
    batch, seq, heads, topk, kv_len = (shape[n] for n in ("batch", "seq", "heads", "topk", "kv_len"))
    indices = np.full((batch, seq, topk), -1, dtype=np.int32)
    for query in np.ndindex(batch, seq):
        indices[query][: min(topk, kv_len)] = rng.permutation(kv_len)[:topk]
    return {
        "Q": random_operand(rng, (batch, seq, heads, ABSORBED), shape["dtype"]),
        "KV": random_operand(rng, (batch, kv_len, ABSORBED), shape["dtype"]),
        "Indices": indices,
    }


def _holes(shape: Shape, rng: np.random.Generator) -> Arrays:
    """-1 anywhere in the rows, half of all indices."""
    operands = inputs(shape, rng)
    holes = rng.random(operands["Indices"].shape) < 0.5
    return {**operands, "Indices": np.where(holes, np.int32(-1), operands["Indices"])}


def _nothing_named(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Every other query names no key at all, the others one."""
    operands = inputs(shape, rng)
    indices = np.full_like(operands["Indices"], -1)
    named = np.arange(shape["batch"] * shape["seq"]).reshape(indices.shape[:2]) % 2 == 0
    indices[..., -1] = np.where(named, operands["Indices"][..., 0], -1)
    return {**operands, "Indices": indices}


def _one_key(shape: Shape, rng: np.random.Generator) -> Arrays:
    """The last key, again and again: each counts."""
    operands = inputs(shape, rng)
    return {**operands, "Indices": np.full_like(operands["Indices"], shape["kv_len"] - 1)}


def _rising_scores(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Keys in order, each larger than the one before: maxima rise far, and a little, from tile to tile."""
    operands = inputs(shape, rng)
    growth = np.geomspace(1e-2, 4, shape["kv_len"], dtype=np.float32)[:, None]
    positive = {name: np.abs(operands[name].astype(np.float32)) for name in ("Q", "KV")}
    dtype = operands["KV"].dtype
    return {
        "Q": (positive["Q"] / 8).astype(dtype),
        "KV": (positive["KV"] * growth).astype(dtype),
        "Indices": np.where(operands["Indices"] < 0, -1, np.sort(operands["Indices"], axis=-1)),
    }


def reference(shape: Shape, Q: np.ndarray, KV: np.ndarray, Indices: np.ndarray) -> Arrays:
    """O of (batch, seq, heads, 512) in float64, not rounded; zero where a query names no key."""
    kv = KV.astype(np.float64)
    result = np.empty((*Q.shape[:-1], LATENT))
    for b, s in np.ndindex(*Indices.shape[:2]):
        keys = kv[b, Indices[b, s].clip(0)]
        scores = Q[b, s].astype(np.float64) @ keys.T * SCALE
        result[b, s] = softmax(np.where(Indices[b, s] >= 0, scores, -np.inf)) @ keys[:, :LATENT]
    return {"O": result}


OPERATOR = Operator(
    name="sparse_mla",
    doc=(
        "Absorbed multi-head latent attention over selected keys (DeepSeek-V3.2): query (b, s) attends to "
        "the rows KV[b, Indices[b, s, :]], -1 naming none; an index that occurs twice counts twice, and "
        "without any O is zero. Q is (batch, seq, heads, 576), KV (batch, kv_len, 576), Indices (batch, seq, "
        "topk) int32, O (batch, seq, heads, 512); the scores' scale is 1/√192. No mask: whoever selects sees "
        "to causality."
    ),
    params=(
        Param("batch", "sequences", dynamic=True),
        Param("seq", "queries of each sequence", dynamic=True),
        Param("heads", "query heads", default=128, dynamic=True),
        Param("topk", "indices of each query", default=2048, dynamic=True),
        Param("kv_len", "keys of each sequence to select from", default=32768, dynamic=True),
        Param("dtype", "type of Q, KV and O", kind="dtype", default="bf16", choices=("bf16", "fp16")),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    tolerance=attention_tolerance,
    adversarial={
        "holes": _holes,
        "nothing_named": _nothing_named,
        "one_key": _one_key,
        "rising_scores": _rising_scores,
    },
    example={"batch": 2, "seq": 3, "heads": 20, "topk": 70, "kv_len": 300},
)
