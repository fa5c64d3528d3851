"""Multi-head latent attention of one new query a sequence (absorbed form): the keys split over blocks."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, OperatorError, Param, Shape, Tolerance
from foretile.kernels.operators._common import full, numpy_dtype, random_operand, size, whole
from foretile.kernels.operators._mla import (
    ABSORBED,
    LATENT,
    ROPE,
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
from foretile.kernels.operators._mla_pieces import decode_in_pieces, fits_pieces
from foretile.kernels.operators._softmax import attention_tolerance

GROUP = 128
"""Elements of an fp8 latent vector that share a scale (FlashMLA, README: "FP8 with scale")."""

_GROUPS = LATENT // GROUP
_FP8_MAX = 448.0


def _cache(shape: Shape) -> dict[str, Any]:
    """Parameters of the kernels that hold the cache: (shape, dtype) by name."""
    batch, kv_len, dtype = shape["batch"], shape["kv_len"], full(shape["dtype"])
    if shape["kv_dtype"] != "fp8":
        return {"KV": ((batch, kv_len, ABSORBED), dtype)}
    return {
        "KV": ((batch, kv_len, LATENT), "float8_e4m3fn"),
        "KV_scale": ((batch, kv_len, _GROUPS), "float32"),
        "K_rope": ((batch, kv_len, ROPE), dtype),
    }


def _decode(shape: Shape, config: Config) -> TileProgram:
    """One block ``block_h`` query heads of a sequence, a part of its keys and ``block_v`` values of each.

    Where an accumulator of all 512 values does not fit, two blocks do the same scores and half of
    the values each.
    With one part a block writes O; with more, its own normalised O and the log-sum-exp (base two) of
    its scores, for the combination.
    """
    batch, kv_len, heads = shape["batch"], shape["kv_len"], shape["heads"]
    dtype = full(shape["dtype"])
    block_H, block_N, num_split = config["block_h"], config["block_n"], config["num_split"]
    num_stages, threads, policy = config["num_stages"], config["threads"], warp_policy(config)
    fp8 = shape["kv_dtype"] == "fp8"
    cache = _cache(shape)
    q_shape, o_shape = (batch, heads, ABSORBED), (batch, heads, LATENT)
    block_V, v_parts = config["block_v"], LATENT // config["block_v"]
    grid = (num_split, v_parts * T.ceildiv(heads, block_H), batch)

    @T.macro
    def attend_part(Q: Any, stored: tuple[Any, ...], part: Any, by: Any, bz: Any) -> Tiles:
        """The block's tiles after its share of the keys, normalised."""
        tiles = alloc_tiles(config, by % v_parts if v_parts > 1 else 0, dtype)
        h0 = by // v_parts * block_H
        if fp8:
            KV_fp8 = T.alloc_shared((block_N, LATENT), "float8_e4m3fn")
            KV_scale_shared = T.alloc_shared((block_N, _GROUPS), "float32")

        T.copy(Q[bz, h0 : h0 + block_H, 0:LATENT], tiles.Q_shared)
        T.copy(Q[bz, h0 : h0 + block_H, LATENT:ABSORBED], tiles.Q_rope_shared)
        clear_tiles(tiles)
        k_tiles = T.ceildiv(kv_len, block_N)  # dealt out evenly: parts differ by one tile
        first, last = part * k_tiles // num_split, (part + 1) * k_tiles // num_split
        for k in T.Pipelined(first, last, num_stages=num_stages):
            if fp8:
                KV, KV_scale, K_rope = stored
                T.copy(KV[bz, k * block_N : (k + 1) * block_N, 0:LATENT], KV_fp8)
                T.copy(KV_scale[bz, k * block_N : (k + 1) * block_N, 0:_GROUPS], KV_scale_shared)
                T.copy(K_rope[bz, k * block_N : (k + 1) * block_N, 0:ROPE], tiles.K_rope_shared)
                for i, j in T.Parallel(block_N, LATENT):
                    tiles.KV_shared[i, j] = T.cast(KV_fp8[i, j], "float32") * KV_scale_shared[i, j // GROUP]
            else:
                (KV,) = stored
                T.copy(KV[bz, k * block_N : (k + 1) * block_N, 0:LATENT], tiles.KV_shared)
                T.copy(KV[bz, k * block_N : (k + 1) * block_N, LATENT:ABSORBED], tiles.K_rope_shared)
            for i, j in T.Parallel(block_H, block_N):
                tiles.acc_s[i, j] = T.if_then_else(k * block_N + j < kv_len, 0.0, -T.infinity("float32"))
            attend(tiles, policy)
        finish(tiles, partial=num_split > 1)
        return tiles

    @T.macro
    def write_result(tiles: Tiles, Out: Any, by: Any, bz: Any) -> None:
        h0 = by // v_parts * block_H
        T.copy(tiles.acc_o, Out[bz, h0 : h0 + block_H, tiles.column : tiles.column + block_V])

    @T.macro
    def write_part(tiles: Tiles, O_part: Any, LSE: Any, bx: Any, by: Any, bz: Any) -> None:
        h0 = by // v_parts * block_H
        T.copy(tiles.acc_o, O_part[bz, h0 : h0 + block_H, bx, tiles.column : tiles.column + block_V])
        if tiles.column == 0:
            T.copy(tiles.rows.logsum, LSE[bz, h0 : h0 + block_H, bx])

    if fp8 and num_split == 1:

        @T.prim_func
        def mla_decode_fp8(
            Q: T.Tensor(q_shape, dtype),
            KV: T.Tensor(*cache["KV"]),
            KV_scale: T.Tensor(*cache["KV_scale"]),
            K_rope: T.Tensor(*cache["K_rope"]),
            O: T.Tensor(o_shape, dtype),  # noqa: E741
        ) -> None:
            with T.Kernel(*grid, threads=threads) as (bx, by, bz):
                write_result(attend_part(Q, (KV, KV_scale, K_rope), bx, by, bz), O, by, bz)

        return traced(mla_decode_fp8)
    if fp8:

        @T.prim_func
        def mla_decode_fp8_split(
            Q: T.Tensor(q_shape, dtype),
            KV: T.Tensor(*cache["KV"]),
            KV_scale: T.Tensor(*cache["KV_scale"]),
            K_rope: T.Tensor(*cache["K_rope"]),
            O_part: T.Tensor((batch, heads, num_split, LATENT), "float32"),
            LSE: T.Tensor((batch, heads, num_split), "float32"),
        ) -> None:
            with T.Kernel(*grid, threads=threads) as (bx, by, bz):
                write_part(attend_part(Q, (KV, KV_scale, K_rope), bx, by, bz), O_part, LSE, bx, by, bz)

        return traced(mla_decode_fp8_split)
    if num_split == 1:

        @T.prim_func
        def mla_decode(
            Q: T.Tensor(q_shape, dtype),
            KV: T.Tensor(*cache["KV"]),
            O: T.Tensor(o_shape, dtype),  # noqa: E741
        ) -> None:
            with T.Kernel(*grid, threads=threads) as (bx, by, bz):
                write_result(attend_part(Q, (KV,), bx, by, bz), O, by, bz)

        return traced(mla_decode)

    @T.prim_func
    def mla_decode_split(
        Q: T.Tensor(q_shape, dtype),
        KV: T.Tensor(*cache["KV"]),
        O_part: T.Tensor((batch, heads, num_split, LATENT), "float32"),
        LSE: T.Tensor((batch, heads, num_split), "float32"),
    ) -> None:
        with T.Kernel(*grid, threads=threads) as (bx, by, bz):
            write_part(attend_part(Q, (KV,), bx, by, bz), O_part, LSE, bx, by, bz)

    return traced(mla_decode_split)


def program(shape: Shape, config: Config) -> TileProgram | tuple[TileProgram, ...]:
    """One launch that writes O, or with ``num_split`` > 1 two: the parts, then their combination."""
    num_split = config["num_split"]
    if config.get("block_d"):
        return decode_in_pieces(shape, config)
    if num_split == 1:
        return _decode(shape, config)
    queries = (shape["batch"], shape["heads"])
    return _decode(shape, config), combine(queries, num_split, full(shape["dtype"]))


# (block_h, block_n, block_v, num_stages, threads) and parts of the keys, likeliest first. Tiles of 16 heads
# are for small shared memories or few heads, those of 256 values for accumulators that do not fit otherwise.
# Up to one part for every core of a large chip (FlashMLA, trtllm-gen); one is what a kernel for many
# queries does.
_SPLITS, _FEW_SPLITS = (8, 4, 2, 16, 1, 32, 64, 128), (8, 2, 1, 32)
_TILES = (
    (64, 64, 512, 2, 256, _SPLITS),
    (64, 32, 512, 2, 256, _FEW_SPLITS),
    (64, 64, 512, 1, 256, _SPLITS),
    (32, 32, 512, 2, 128, _FEW_SPLITS),
    (16, 16, 512, 2, 128, _FEW_SPLITS),
    (16, 32, 512, 2, 128, _SPLITS),
    (16, 64, 512, 2, 128, _SPLITS),
    (64, 64, 256, 1, 128, (1,)),
    (64, 32, 256, 1, 128, (1,)),
    (64, 16, 256, 1, 128, (1,)),
)
# The same with the depth of a piece in place of parts: one block does all keys.
_IN_PIECES = ((64, 64, 256, 2, 128, 64), (64, 32, 256, 2, 128, 64), (64, 16, 256, 2, 128, 64))


def configs(shape: Shape) -> list[Config]:
    """The space: query heads, keys and values of a tile, tiles in flight, parts of the keys."""
    longest = int(np.max(shape["kv_len"]))
    names = ("block_h", "block_n", "block_v", "num_stages", "threads")
    whole_depth = [
        {**dict(zip(names, tile, strict=True)), "num_split": split, "block_d": 0}
        for (*tile, splits) in _TILES
        for split in splits
        if split == 1 or split <= -(-longest // tile[1])
    ]
    in_pieces = [
        {**dict(zip(names, tile, strict=True)), "num_split": 1, "block_d": depth}
        for (*tile, depth) in _IN_PIECES
        if fits_pieces(shape)
    ]
    return whole_depth + in_pieces


def flops(shape: Shape) -> Any:
    """2·(576 + 512) for every (query head, key) pair: scores, then values.

    Neither the softmax, nor the combination of parts, nor the widening of an fp8 cache is counted.
    """
    pairs = whole(shape["batch"]) * whole(shape["heads"]) * whole(shape["kv_len"])
    return 2 * (ABSORBED + LATENT) * pairs


def min_bytes(shape: Shape) -> Any:
    """Q read and O written once; every token of the cache read once, as keys and values together."""
    batch, heads, kv_len = (whole(shape[name]) for name in ("batch", "heads", "kv_len"))
    token = sum(dims[-1] * size(dtype) for dims, dtype in _cache(shape).values())
    return batch * (heads * (ABSORBED + LATENT) * size(shape["dtype"]) + kv_len * token)


def _quantised(latent: np.ndarray) -> Arrays:
    """fp8 latents and the float32 scales, maximum / 448, of their groups of 128."""
    groups = latent.reshape(*latent.shape[:-1], _GROUPS, GROUP)
    scale = np.maximum(np.abs(groups).max(axis=-1), 1e-4) / np.float32(_FP8_MAX)
    stored = (groups / scale[..., None]).astype(numpy_dtype("fp8"))
    return {"KV": stored.reshape(latent.shape), "KV_scale": scale.astype(np.float32)}


def _operands(shape: Shape, q: np.ndarray, tokens: np.ndarray) -> Arrays:
    """Q and the cache in their storage types, of float32 values (…, 576)."""
    dtype = numpy_dtype(shape["dtype"])
    operands = {"Q": q.astype(dtype)}
    if shape["kv_dtype"] != "fp8":
        return {**operands, "KV": tokens.astype(dtype)}
    return {**operands, **_quantised(tokens[..., :LATENT]), "K_rope": tokens[..., LATENT:].astype(dtype)}


def _random(shape: Shape, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    batch = shape["batch"]
    q = random_operand(rng, (batch, shape["heads"], ABSORBED), "fp32")
    return q, random_operand(rng, (batch, shape["kv_len"], ABSORBED), "fp32")


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Q of (batch, heads, 576); KV of (batch, kv_len, 576), or for fp8 KV of (…, 512), KV_scale, K_rope."""
    return _operands(shape, *_random(shape, rng))


def _one_key_wins(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Scores so far apart that one weight is nearly one."""
    q, tokens = _random(shape, rng)
    return _operands(shape, 4 * q, tokens)


def _equal_keys(shape: Shape, rng: np.random.Generator) -> Arrays:
    """All keys alike: every weight is 1 / kv_len, and O the common value."""
    q, tokens = _random(shape, rng)
    return _operands(shape, q, np.broadcast_to(tokens[:, :1], tokens.shape))


def _rising_scores(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Each key larger than the one before: the running maximum rises in every tile, groups in range."""
    q, tokens = _random(shape, rng)
    growth = np.geomspace(1e-2, 4, shape["kv_len"], dtype=np.float32)
    return _operands(shape, np.abs(q) / 8, np.abs(tokens) * growth[:, None])


def reference(shape: Shape, Q: np.ndarray, KV: np.ndarray, **scaled_cache: np.ndarray) -> Arrays:
    """O of (batch, heads, 512) in float64, not rounded; an fp8 cache enters with its scales applied."""
    q, latent = Q.astype(np.float64), KV.astype(np.float64)[..., :LATENT]
    if shape["kv_dtype"] == "fp8":
        latent = latent * np.repeat(scaled_cache["KV_scale"].astype(np.float64), GROUP, axis=-1)
        rope = scaled_cache["K_rope"].astype(np.float64)
    else:
        rope = KV[..., LATENT:].astype(np.float64)
    keys = np.concatenate((latent, rope), axis=-1)
    return {"O": softmax(q @ keys.swapaxes(1, 2) * SCALE) @ latent}


def tolerance(shape: Shape) -> Tolerance:
    """That of attention; an fp8 cache is rounded once more, as it is widened to the type of the products.

    The values pass that rounding on as the weights do theirs; the scores (of the usual size, below about
    thirty) pass on less.
    """
    base = attention_tolerance(shape)
    roundings = 1.5 if shape["kv_dtype"] == "fp8" else 1.0
    return Tolerance(norm=roundings * base.norm, peak=roundings * base.peak)


def check(shape: Shape) -> None:
    """Refuse a cache type that the kernel does not widen."""
    dtype, kv_dtype = shape["dtype"], shape["kv_dtype"]
    if kv_dtype not in (dtype, "fp8"):
        raise OperatorError(
            f"mla_decode: kv_dtype={kv_dtype} does not go with dtype={dtype}; the cache holds {dtype} or fp8"
        )


OPERATOR = Operator(
    name="mla_decode",
    doc=(
        "Absorbed multi-head latent attention (DeepSeek-V3) of the newest query of each sequence: one latent "
        "key/value head serves all query heads, its first 512 of 576 elements being the values. Q is (batch, "
        "heads, 576), KV (batch, kv_len, 576), O (batch, heads, 512); the scores' scale is 1/√192. With "
        "kv_dtype=fp8 a token is 512 fp8 in KV, 4 float32 in KV_scale (one a group of 128) and 64 elements "
        "of dtype in K_rope: FlashMLA's 656 bytes, in three tensors."
    ),
    params=(
        Param("batch", "sequences, one query each", dynamic=True),
        Param("kv_len", "keys of each sequence, the query's own included", dynamic=True),
        Param("heads", "query heads", dynamic=True),
        Param(
            "dtype", "type of Q, O and the products", kind="dtype", default="bf16", choices=("bf16", "fp16")
        ),
        Param(
            "kv_dtype",
            "stored type of the cache",
            kind="dtype",
            default="=dtype",
            choices=("bf16", "fp16", "fp8"),
        ),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    check=check,
    tolerance=tolerance,
    adversarial={
        "one_key_wins": _one_key_wins,
        "equal_keys": _equal_keys,
        "rising_scores": _rising_scores,
    },
    example={"batch": 2, "kv_len": 333, "heads": 20},
)
