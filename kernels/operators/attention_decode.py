"""Attention of one new query a sequence (decode): flash decoding, the keys split over blocks."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Operator, OperatorError, Param, Shape
from foretile.kernels.operators._common import LOG2E, every, full, random_operand, size, whole
from foretile.kernels.operators._softmax import (
    alloc_rows,
    attention_adversarial,
    attention_tolerance,
    clear_rows,
    load_keys,
    online_softmax,
)

_COMBINE_THREADS = 128
_TINY = 1e-30  # below the sum of any part that has a visible key: its largest term is 1


def _out_dtype(shape: Shape) -> str:
    """Results are written in ``dtype``, in bf16 for fp8 (whose range needs a scale to hold them)."""
    return "bf16" if shape["dtype"] == "fp8" else str(shape["dtype"])


def _tensors(shape: Shape) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Shapes of Q (and O) and of K (and V)."""
    batch, kv_len, kv_heads, head_dim = (shape[name] for name in ("batch", "kv_len", "kv_heads", "head_dim"))
    return (batch, kv_heads, shape["heads"] // kv_heads, head_dim), (batch, kv_len, kv_heads, head_dim)


def _visible(key: Any, oldest: Any, shape: Shape) -> Any:
    """Whether the query sees a key, given the first one that the window leaves visible."""
    inside = key < shape["kv_len"]
    return every([key >= oldest, inside]) if shape["window"] else inside


def _cut(begin: Any, end: Any, oldest: Any, shape: Shape) -> Any:
    """Whether the keys of a tile from ``begin`` to ``end`` have hidden ones: only those pay for a mask."""
    above = end > shape["kv_len"]
    return T.any_of(begin < oldest, above) if shape["window"] else above


def _decode(shape: Shape, config: Config) -> TileProgram:
    """One block a K/V head (and tile of its query heads), sequence and part of the keys.

    The query heads that share a K/V head are the rows of the products, padded to ``block_h``. Blocks of
    one query head (``block_h`` 1) use no matrix instruction: sums of products, element by element.
    With one part a block writes O; with more, its own normalised O and the log-sum-exp (base
    two) of its scores, for :func:`_combine`.
    """
    q_shape, kv_shape = _tensors(shape)
    batch, kv_heads, group, head_dim = q_shape
    kv_len, window = shape["kv_len"], shape["window"]
    dtype, kv_dtype, out_dtype = full(shape["dtype"]), full(shape["kv_dtype"]), full(_out_dtype(shape))
    block_H, block_N, num_split = config["block_h"], config["block_n"], config["num_split"]
    num_stages, threads = config["num_stages"], config["threads"]
    scale = head_dim**-0.5 * LOG2E
    plain = block_H == 1
    convert = kv_dtype != dtype and not plain
    # A warp takes 16 rows at least: with too few rows for the warps they share the columns, and the
    # weights, which every warp then needs all of, go through shared memory.
    own_rows = block_H * 2 >= threads
    policy = T.GemmWarpPolicy.FullRow if own_rows else T.GemmWarpPolicy.FullCol

    @T.macro
    def attend(Q: Any, K: Any, V: Any, part: Any, by: Any, bz: Any) -> tuple[Any, Any, Any, Any]:
        """The block's K/V head, first row among its query heads, normalised result and log-sum-exp."""
        Q_shared = T.alloc_shared((block_H, head_dim), dtype)
        K_shared = T.alloc_shared((block_N, head_dim), kv_dtype if plain else dtype)
        V_shared = T.alloc_shared((block_N, head_dim), kv_dtype if plain else dtype)
        if plain:
            q = T.alloc_fragment((head_dim,), "float32")
            terms = T.alloc_fragment((block_N, head_dim), "float32")
            score = T.alloc_fragment((block_N,), "float32")
            added = T.alloc_fragment((head_dim,), "float32")
        else:
            weights = (T.alloc_fragment if own_rows else T.alloc_shared)((block_H, block_N), dtype)
        K_stored = T.alloc_shared((block_N, head_dim), kv_dtype) if convert else K_shared
        V_stored = T.alloc_shared((block_N, head_dim), kv_dtype) if convert else V_shared
        KV_local = T.alloc_fragment((block_N, head_dim), kv_dtype) if convert else None
        acc_s = T.alloc_fragment((block_H, block_N), "float32")
        acc_o = T.alloc_fragment((block_H, head_dim), "float32")
        rows = alloc_rows(block_H)

        h_tiles = T.ceildiv(group, block_H)
        kv_head, h0 = by // h_tiles, by % h_tiles * block_H
        oldest = T.max(0, kv_len - window) if window else 0  # first key the window leaves visible
        begin, end = oldest // block_N, T.ceildiv(kv_len, block_N)
        first = begin + part * (end - begin) // num_split  # dealt out evenly: parts differ by one tile
        last = begin + (part + 1) * (end - begin) // num_split

        T.copy(Q[bz, kv_head, h0 : h0 + block_H, 0:head_dim], Q_shared)
        if plain:
            for j in T.Parallel(head_dim):
                q[j] = T.cast(Q_shared[0, j], "float32")
        clear_rows(rows, acc_o)
        for k in T.Pipelined(first, last, num_stages=num_stages):
            load_keys(
                K[bz, k * block_N : (k + 1) * block_N, kv_head, 0:head_dim], K_stored, KV_local, K_shared
            )
            if plain:
                for i, j in T.Parallel(block_N, head_dim):
                    terms[i, j] = T.cast(K_shared[i, j], "float32") * q[j]
                T.reduce_sum(terms, score, dim=1)
                for i in T.Parallel(block_N):
                    acc_s[0, i] = score[i]
            else:
                T.gemm(Q_shared, K_shared, acc_s, transpose_B=True, policy=policy, clear_accum=True)
            if _cut(k * block_N, (k + 1) * block_N, oldest, shape):
                for i, j in T.Parallel(block_H, block_N):
                    acc_s[i, j] = T.if_then_else(
                        _visible(k * block_N + j, oldest, shape), acc_s[i, j], -T.infinity("float32")
                    )
            online_softmax(acc_s, acc_o, rows, scale)
            load_keys(
                V[bz, k * block_N : (k + 1) * block_N, kv_head, 0:head_dim], V_stored, KV_local, V_shared
            )
            if plain:
                for i, j in T.Parallel(block_N, head_dim):
                    terms[i, j] = T.cast(V_shared[i, j], "float32") * acc_s[0, i]
                T.reduce_sum(terms, added, dim=0)
                for j in T.Parallel(head_dim):
                    acc_o[0, j] = acc_o[0, j] + added[j]
            else:
                T.copy(acc_s, weights)
                T.gemm(weights, V_shared, acc_o, policy=policy)
        # A part without keys (more parts than tiles) ends with O = 0 / tiny = 0.
        for i in T.Parallel(block_H):
            rows.logsum[i] = T.max(rows.logsum[i], _TINY)
        for i, j in T.Parallel(block_H, head_dim):
            acc_o[i, j] = acc_o[i, j] / rows.logsum[i]
        if num_split > 1:
            for i in T.Parallel(block_H):
                rows.logsum[i] = T.log2(rows.logsum[i]) + rows.scores_max[i] * scale
        return kv_head, h0, acc_o, rows.logsum

    grid = (num_split, kv_heads * T.ceildiv(group, block_H), batch)
    if num_split == 1:

        @T.prim_func
        def attention_decode(
            Q: T.Tensor(q_shape, dtype),
            K: T.Tensor(kv_shape, kv_dtype),
            V: T.Tensor(kv_shape, kv_dtype),
            O: T.Tensor(q_shape, out_dtype),  # noqa: E741
        ) -> None:
            with T.Kernel(*grid, threads=threads) as (bx, by, bz):
                kv_head, h0, acc_o, _ = attend(Q, K, V, bx, by, bz)
                T.copy(acc_o, O[bz, kv_head, h0 : h0 + block_H, 0:head_dim])

        whole_pass: TileProgram = attention_decode
        return whole_pass

    @T.prim_func
    def attention_decode_split(
        Q: T.Tensor(q_shape, dtype),
        K: T.Tensor(kv_shape, kv_dtype),
        V: T.Tensor(kv_shape, kv_dtype),
        O_part: T.Tensor((batch, kv_heads, group, num_split, head_dim), "float32"),
        LSE: T.Tensor((batch, kv_heads, group, num_split), "float32"),
    ) -> None:
        with T.Kernel(*grid, threads=threads) as (bx, by, bz):
            kv_head, h0, acc_o, lse = attend(Q, K, V, bx, by, bz)
            T.copy(acc_o, O_part[bz, kv_head, h0 : h0 + block_H, bx, 0:head_dim])
            T.copy(lse, LSE[bz, kv_head, h0 : h0 + block_H, bx])

    split_pass: TileProgram = attention_decode_split
    return split_pass


def _combine(shape: Shape, config: Config) -> TileProgram:
    """One block a query: the parts' results, weighted by their share of the softmax's sum."""
    q_shape, _ = _tensors(shape)
    batch, kv_heads, group, head_dim = q_shape
    num_split, out_dtype = config["num_split"], full(_out_dtype(shape))

    @T.prim_func
    def attention_decode_combine(
        O_part: T.Tensor((batch, kv_heads, group, num_split, head_dim), "float32"),
        LSE: T.Tensor((batch, kv_heads, group, num_split), "float32"),
        O: T.Tensor(q_shape, out_dtype),  # noqa: E741
    ) -> None:
        with T.Kernel(group, kv_heads, batch, threads=_COMBINE_THREADS) as (bx, by, bz):
            weight = T.alloc_fragment((num_split,), "float32")
            lse_max = T.alloc_fragment((1,), "float32")
            total = T.alloc_fragment((1,), "float32")
            part = T.alloc_fragment((num_split, head_dim), "float32")
            acc_o = T.alloc_fragment((head_dim,), "float32")
            T.copy(LSE[bz, by, bx, 0:num_split], weight)
            T.copy(O_part[bz, by, bx, 0:num_split, 0:head_dim], part)
            T.reduce_max(weight, lse_max, dim=0)
            for s in T.Parallel(num_split):
                weight[s] = T.exp2(weight[s] - lse_max[0])
            T.reduce_sum(weight, total, dim=0)
            for s, j in T.Parallel(num_split, head_dim):
                part[s, j] = part[s, j] * weight[s]
            T.reduce_sum(part, acc_o, dim=0)
            for j in T.Parallel(head_dim):
                acc_o[j] = acc_o[j] / total[0]
            T.copy(acc_o, O[bz, by, bx, 0:head_dim])

    traced: TileProgram = attention_decode_combine
    return traced


def program(shape: Shape, config: Config) -> TileProgram | tuple[TileProgram, ...]:
    """One launch that writes O, or with ``num_split`` > 1 two: the parts, then their combination."""
    if config["num_split"] == 1:
        return _decode(shape, config)
    return _decode(shape, config), _combine(shape, config)


# (block_h, block_n, num_stages, threads), likeliest first.
# The last ones are for chips with 64 KB of shared memory a block, or wide heads. None has one query head
# a block: such kernels exist, and are slower.
_TILES = (
    (16, 64, 3, 128),
    (16, 128, 2, 128),
    (64, 64, 2, 128),
    (64, 128, 2, 128),
    (32, 64, 3, 128),
    (128, 64, 2, 256),
    (128, 128, 1, 256),
    (16, 32, 2, 128),
    (64, 32, 2, 128),
    (16, 16, 2, 128),
    (32, 16, 2, 128),
    (64, 16, 1, 128),
)


def configs(shape: Shape) -> list[Config]:
    """The space: rows of query heads, keys of a tile, K/V tiles in flight, parts of the keys.

    No more parts than there are tiles of keys (in the longest sequence, if ``kv_len`` is a column).
    """
    longest = int(np.max(_visible_keys(shape)))
    return [
        {"block_h": h, "block_n": n, "num_stages": stages, "threads": threads, "num_split": split}
        for split in (8, 4, 16, 2, 1, 32, 64)
        for h, n, stages, threads in _TILES
        if split == 1 or split <= -(-longest // n)
    ]


def _visible_keys(shape: Shape) -> Any:
    """Keys the query of one sequence sees: all, or the last ``window``."""
    kv_len, window = whole(shape["kv_len"]), whole(shape["window"])
    keys: Any = np.where(window > 0, np.minimum(kv_len, window), kv_len)
    return keys if keys.ndim else int(keys)


def flops(shape: Shape) -> Any:
    """4·head_dim for every (query, visible key) pair: 2 for Q·Kᵀ, 2 for P·V.

    The softmax and the combination of parts are not counted, nor is the padding of query heads.
    """
    return 4 * shape["head_dim"] * whole(shape["batch"]) * whole(shape["heads"]) * _visible_keys(shape)


def min_bytes(shape: Shape) -> Any:
    """Q read and O written once; every visible key and value read once; no workspace."""
    batch, heads, kv_heads = (whole(shape[name]) for name in ("batch", "heads", "kv_heads"))
    rows = heads * (size(shape["dtype"]) + size(_out_dtype(shape)))
    return batch * shape["head_dim"] * (rows + 2 * _visible_keys(shape) * kv_heads * size(shape["kv_dtype"]))


def inputs(shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Q of (batch, kv_heads, heads / kv_heads, head_dim); K and V of (batch, kv_len, kv_heads, head_dim)."""
    q_shape, kv_shape = _tensors(shape)
    return {
        "Q": random_operand(rng, q_shape, shape["dtype"]),
        "K": random_operand(rng, kv_shape, shape["kv_dtype"]),
        "V": random_operand(rng, kv_shape, shape["kv_dtype"]),
    }


def reference(shape: Shape, Q: np.ndarray, K: np.ndarray, V: np.ndarray) -> dict[str, np.ndarray]:
    """O of Q's shape in float64, not rounded."""
    seen = slice(-int(_visible_keys(shape)), None)
    q = Q.astype(np.float64)
    k, v = (x[:, seen].astype(np.float64).swapaxes(1, 2) for x in (K, V))  # (batch, kv_heads, keys, head_dim)
    scores = q @ k.swapaxes(2, 3) / np.sqrt(shape["head_dim"])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return {"O": weights @ v}


def check(shape: Shape) -> None:
    """Refuse head counts and types that do not go together."""
    heads, kv_heads = shape["heads"], shape["kv_heads"]
    if np.any(np.asarray(heads) % kv_heads):
        raise OperatorError(
            f"attention_decode: heads={heads} is not a multiple of kv_heads={kv_heads}; "
            "every K/V head serves the same number of query heads"
        )
    if shape["head_dim"] % 16:
        raise OperatorError(f"attention_decode: head_dim={shape['head_dim']} is not a multiple of 16")
    if shape["kv_dtype"] not in (shape["dtype"], "fp8"):
        raise OperatorError(
            f"attention_decode: kv_dtype={shape['kv_dtype']} does not go with dtype={shape['dtype']}; "
            f"K and V are stored in {shape['dtype']} or fp8"
        )


_DTYPES = ("bf16", "fp16", "fp8")

OPERATOR = Operator(
    name="attention_decode",
    doc=(
        "Softmax attention O = softmax(Q Kᵀ / √head_dim) V of the newest query of each sequence. "
        "Q and O are (batch, kv_heads, heads / kv_heads, head_dim), that is (batch, heads, head_dim) "
        "with the heads that share a K/V head side by side; K and V are (batch, kv_len, kv_heads, "
        "head_dim), the query's own key last."
    ),
    params=(
        Param("batch", "sequences, one query each", dynamic=True),
        Param("kv_len", "keys of each sequence, the query's own included", dynamic=True),
        Param("heads", "query heads", dynamic=True),
        Param("kv_heads", "key/value heads, a divisor of heads", default="=heads", dynamic=True),
        Param("head_dim", "elements of a head, a multiple of 16", default=128),
        Param("dtype", "type of Q and of the products", kind="dtype", default="bf16", choices=_DTYPES),
        Param("kv_dtype", "stored type of K and V", kind="dtype", default="=dtype", choices=_DTYPES),
        Param("window", "keys the query sees at most, the newest ones; 0: all", default=0, minimum=0),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    check=check,
    tolerance=attention_tolerance,
    adversarial=attention_adversarial(inputs),
    example={"batch": 2, "kv_len": 333, "heads": 8, "kv_heads": 2, "head_dim": 32},
)
