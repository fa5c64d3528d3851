"""Attention of many queries (prefill, chunked prefill): FlashAttention-2's online softmax over K/V tiles."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from dataclasses import dataclass
from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Operator, OperatorError, Param, Shape
from foretile.kernels.operators._common import LOG2E, every, full, random_operand, size, whole
from foretile.kernels.operators._softmax import (
    Rows,
    alloc_rows,
    attention_adversarial,
    attention_tolerance,
    clear_rows,
    load_keys,
    online_softmax,
)


def _out_dtype(shape: Shape) -> str:
    """Results are written in ``dtype``, in bf16 for fp8 (whose range needs a scale to hold them)."""
    return "bf16" if shape["dtype"] == "fp8" else str(shape["dtype"])


@dataclass(frozen=True)
class _Tiles:
    """What a block holds on chip; ``K`` and ``V`` in the products' type and as they are stored.

    ``staged`` is the fragment that converts between the two, or None.
    """

    Q: Any
    K: tuple[Any, Any]
    V: tuple[Any, Any]
    staged: Any
    acc_s: Any
    weights: Any
    acc_o: Any


def _visible(shape: Shape, query: Any, key: Any) -> Any:
    """Whether the query at a position sees the key at another."""
    if not shape["causal"]:
        return key < shape["prefix"] + shape["seq"]
    window = shape["window"]
    return every([key <= query, key > query - window]) if window else key <= query


@T.macro
def _attend(
    shape: Shape, K: Any, V: Any, at: tuple[Any, Any], k: Any, first: Any, tiles: _Tiles, rows: Rows
) -> None:
    """Tile ``k`` of the keys and values of the sequence and head ``at``.

    ``first`` is the position of the block's first query among the keys, None where every query sees the tile.
    """
    bz, kv_head = at
    (K_shared, K_stored), (V_shared, V_stored) = tiles.K, tiles.V
    block_M, block_N = tiles.acc_s.shape
    head_dim, rowwise = shape["head_dim"], T.GemmWarpPolicy.FullRow
    load_keys(K[bz, k * block_N : (k + 1) * block_N, kv_head, 0:head_dim], K_stored, tiles.staged, K_shared)
    T.gemm(tiles.Q, K_shared, tiles.acc_s, transpose_B=True, policy=rowwise, clear_accum=True)
    if first is not None:
        for i, j in T.Parallel(block_M, block_N):
            tiles.acc_s[i, j] = T.if_then_else(
                _visible(shape, first + i, k * block_N + j), tiles.acc_s[i, j], -T.infinity("float32")
            )
    online_softmax(tiles.acc_s, tiles.acc_o, rows, head_dim**-0.5 * LOG2E)
    T.copy(tiles.acc_s, tiles.weights)
    load_keys(V[bz, k * block_N : (k + 1) * block_N, kv_head, 0:head_dim], V_stored, tiles.staged, V_shared)
    T.gemm(tiles.weights, V_shared, tiles.acc_o, policy=rowwise)


def program(shape: Shape, config: Config) -> TileProgram:
    """One block a tile of ``block_m`` queries of one head.

    Heads vary fastest over the grid, so that neighbours share K and V where heads do; ``swizzle``
    puts so many query tiles of a head next to each other, which then share its K and V in the L2.
    Under a causal mask the last queries, which see the most keys, come first, so that the grid
    ends in short blocks.
    Only K/V tiles that hold a visible key are visited. The visit has three parts, and only the
    outer two pay for a mask: tiles cut by the window's lower edge, tiles every query of the block
    sees whole, tiles cut by the diagonal or by the end of the sequence.
    """
    batch, seq, heads, kv_heads = shape["batch"], shape["seq"], shape["heads"], shape["kv_heads"]
    head_dim, causal, prefix, window = shape["head_dim"], shape["causal"], shape["prefix"], shape["window"]
    dtype, kv_dtype, out_dtype = full(shape["dtype"]), full(shape["kv_dtype"]), full(_out_dtype(shape))
    block_M, block_N = config["block_m"], config["block_n"]
    num_stages, threads, swizzle = config["num_stages"], config["threads"], config["swizzle"]
    kv_len, group = prefix + seq, heads // kv_heads
    convert = kv_dtype != dtype
    # Every query of a block sees the same window - block_m + 1 keys; fewer than a tile of them means
    # that the window's two edges cut every tile there is.
    some_whole = not window or window >= block_M + block_N - 1

    @T.prim_func
    def attention_prefill(
        Q: T.Tensor((batch, seq, heads, head_dim), dtype),
        K: T.Tensor((batch, kv_len, kv_heads, head_dim), kv_dtype),
        V: T.Tensor((batch, kv_len, kv_heads, head_dim), kv_dtype),
        O: T.Tensor((batch, seq, heads, head_dim), out_dtype),  # noqa: E741
    ) -> None:
        with T.Kernel(heads, T.ceildiv(seq, block_M), batch, threads=threads) as (bx, by, bz):
            Q_shared = T.alloc_shared((block_M, head_dim), dtype)
            K_shared = T.alloc_shared((block_N, head_dim), dtype)
            V_shared = T.alloc_shared((block_N, head_dim), dtype)
            K_stored = T.alloc_shared((block_N, head_dim), kv_dtype) if convert else K_shared
            V_stored = T.alloc_shared((block_N, head_dim), kv_dtype) if convert else V_shared
            KV_local = T.alloc_fragment((block_N, head_dim), kv_dtype) if convert else None
            acc_s = T.alloc_fragment((block_M, block_N), "float32")
            acc_s_cast = T.alloc_fragment((block_M, block_N), dtype)
            acc_o = T.alloc_fragment((block_M, head_dim), "float32")
            rows = alloc_rows(block_M)
            tiles = _Tiles(
                Q_shared, (K_shared, K_stored), (V_shared, V_stored), KV_local, acc_s, acc_s_cast, acc_o
            )
            if swizzle:
                T.use_swizzle(panel_size=swizzle)

            kv_head = bx // group
            q_block = T.ceildiv(seq, block_M) - 1 - by if causal else by
            first = prefix + q_block * block_M  # position of the block's first query among the keys

            T.copy(Q[bz, q_block * block_M : (q_block + 1) * block_M, bx, 0:head_dim], Q_shared)
            clear_rows(rows, acc_o)

            # K/V tiles: [begin, inside) cut by the window, [inside, edge) whole, [edge, end) cut above.
            end = T.ceildiv(T.min(kv_len, first + block_M) if causal else kv_len, block_N)
            edge = (first + 1 if causal else kv_len) // block_N
            begin = T.max(0, first + 1 - window) // block_N if window else 0
            inside = T.ceildiv(T.max(0, first + block_M - window), block_N) if window else 0
            if window:
                for k in T.Pipelined(begin, inside if some_whole else end, num_stages=num_stages):
                    _attend(shape, K, V, (bz, kv_head), k, first, tiles, rows)
            if some_whole:
                for k in T.Pipelined(inside, edge, num_stages=num_stages):
                    _attend(shape, K, V, (bz, kv_head), k, None, tiles, rows)
                for k in T.Pipelined(edge, end, num_stages=num_stages):
                    _attend(shape, K, V, (bz, kv_head), k, first, tiles, rows)

            for i, j in T.Parallel(block_M, head_dim):
                acc_o[i, j] = acc_o[i, j] / rows.logsum[i]
            T.copy(acc_o, O[bz, q_block * block_M : (q_block + 1) * block_M, bx, 0:head_dim])

    traced: TileProgram = attention_prefill
    return traced


# (block_m, block_n, num_stages, threads), likeliest first.
_TILES = (
    (128, 128, 2, 256),
    (128, 64, 2, 256),
    (64, 64, 2, 128),
    (64, 128, 2, 128),
    (192, 128, 2, 384),
    (192, 64, 2, 384),
    (128, 128, 1, 256),
    (128, 64, 3, 256),
    (128, 64, 1, 256),
    (64, 128, 1, 128),
    (64, 64, 3, 128),
    (64, 64, 1, 128),
    (128, 96, 2, 256),
    (128, 32, 2, 128),
    (128, 64, 2, 128),
    (64, 32, 2, 128),
    (64, 32, 1, 128),
    (32, 64, 2, 64),
    (16, 64, 2, 32),
)


# Bytes of a row of keys times their number in a tile, for cores with half a megabyte of memory of their own
# (two tiles of K and V in flight); no other has room for it.
_WIDE_BYTES = 65536
_WIDEST = 256


def configs(shape: Shape) -> list[Config]:
    """The space: query and key rows of a tile, K/V tiles in flight, threads, order of the blocks."""
    wide = max(16, _WIDE_BYTES // (size(shape["dtype"]) * shape["head_dim"]) // 16 * 16)
    space = [
        {"block_m": m, "block_n": n, "num_stages": stages, "threads": threads, "swizzle": swizzle}
        for swizzle in (8, 0)
        for m, n, stages, threads in _TILES
    ]
    if wide <= _WIDEST:
        space.append({"block_m": 128, "block_n": wide, "num_stages": 2, "threads": 256, "swizzle": 8})
    return space


def visible_pairs(shape: Shape) -> Any:
    """Number of (query, key) pairs one head of one sequence attends to, exactly.

    Query i (at position prefix + i) sees all prefix + seq keys without a mask, the
    prefix + i + 1 keys up to itself under the causal one, and at most the last ``window`` of these.
    """
    seq, prefix, window = whole(shape["seq"]), whole(shape["prefix"]), whole(shape["window"])
    if not shape["causal"]:
        return seq * (prefix + seq)
    # Queries before ``full_from`` see all keys up to themselves; the others a whole window.
    full_from = np.where(window > 0, np.clip(window - prefix, 0, seq), seq)
    pairs = full_from * prefix + full_from * (full_from + 1) // 2 + (seq - full_from) * window
    return pairs if isinstance(pairs, np.ndarray) and pairs.ndim else int(pairs)


def flops(shape: Shape) -> Any:
    """4·head_dim for every visible (query, key) pair of every head: 2 for Q·Kᵀ, 2 for P·V.

    The softmax (scaling, maximum, exponential, sum, division) is not counted, as is usual.
    """
    return 4 * shape["head_dim"] * whole(shape["batch"]) * whole(shape["heads"]) * visible_pairs(shape)


def min_bytes(shape: Shape) -> Any:
    """Q read and O written once; every key and value that some query sees read once."""
    batch, seq, heads, kv_heads = (whole(shape[name]) for name in ("batch", "seq", "heads", "kv_heads"))
    prefix, window = whole(shape["prefix"]), whole(shape["window"])
    keys: Any = np.where(window > 0, np.minimum(prefix + seq, seq + window - 1), prefix + seq)
    keys = keys if keys.ndim else int(keys)
    rows = batch * seq * heads * (size(shape["dtype"]) + size(_out_dtype(shape)))
    return shape["head_dim"] * (rows + 2 * batch * keys * kv_heads * size(shape["kv_dtype"]))


def inputs(shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Q of (batch, seq, heads, head_dim); K and V of (batch, prefix + seq, kv_heads, head_dim)."""
    kv = (shape["batch"], shape["prefix"] + shape["seq"], shape["kv_heads"], shape["head_dim"])
    return {
        "Q": random_operand(
            rng, (shape["batch"], shape["seq"], shape["heads"], shape["head_dim"]), shape["dtype"]
        ),
        "K": random_operand(rng, kv, shape["kv_dtype"]),
        "V": random_operand(rng, kv, shape["kv_dtype"]),
    }


def reference(shape: Shape, Q: np.ndarray, K: np.ndarray, V: np.ndarray) -> dict[str, np.ndarray]:
    """O of (batch, seq, heads, head_dim) in float64, not rounded."""
    q, k, v = (x.astype(np.float64).swapaxes(1, 2) for x in (Q, K, V))  # (batch, heads, length, head_dim)
    group = shape["heads"] // shape["kv_heads"]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = q @ k.swapaxes(2, 3) / np.sqrt(shape["head_dim"])
    if shape["causal"]:
        position = shape["prefix"] + np.arange(shape["seq"])[:, None]
        key = np.arange(shape["prefix"] + shape["seq"])[None, :]
        seen = key <= position
        if shape["window"]:
            seen &= key > position - shape["window"]
        scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return {"O": (weights @ v).swapaxes(1, 2)}


def check(shape: Shape) -> None:
    """Refuse head counts, masks and types that do not go together."""
    heads, kv_heads = shape["heads"], shape["kv_heads"]
    if np.any(np.asarray(heads) % kv_heads):
        raise OperatorError(
            f"attention_prefill: heads={heads} is not a multiple of kv_heads={kv_heads}; "
            "every K/V head serves the same number of query heads"
        )
    if shape["head_dim"] % 16:
        raise OperatorError(f"attention_prefill: head_dim={shape['head_dim']} is not a multiple of 16")
    if not shape["causal"] and np.any(shape["window"]):
        raise OperatorError(
            f"attention_prefill: window={shape['window']} needs causal=true; "
            "without a causal mask use window=0"
        )
    if shape["kv_dtype"] not in (shape["dtype"], "fp8"):
        raise OperatorError(
            f"attention_prefill: kv_dtype={shape['kv_dtype']} does not go with dtype={shape['dtype']}; "
            f"K and V are stored in {shape['dtype']} or fp8"
        )


_DTYPES = ("bf16", "fp16", "fp8")

OPERATOR = Operator(
    name="attention_prefill",
    doc=(
        "Softmax attention O = softmax(Q Kᵀ / √head_dim) V of many queries, heads grouped over K/V heads. "
        "Q and O are (batch, seq, heads, head_dim), K and V (batch, prefix + seq, kv_heads, head_dim); "
        "query i stands at key position prefix + i."
    ),
    params=(
        Param("batch", "sequences", dynamic=True),
        Param("seq", "queries of each sequence", dynamic=True),
        Param("heads", "query heads", dynamic=True),
        Param("kv_heads", "key/value heads, a divisor of heads", default="=heads", dynamic=True),
        Param("head_dim", "elements of a head, a multiple of 16", default=128),
        Param("dtype", "type of Q and of the products", kind="dtype", default="bf16", choices=_DTYPES),
        Param("causal", "query i sees keys up to itself only", kind="bool", default=True),
        Param("prefix", "cached keys before the first query", default=0, dynamic=True, minimum=0),
        Param("window", "keys a query sees at most, itself included; 0: all", default=0, minimum=0),
        Param("kv_dtype", "stored type of K and V", kind="dtype", default="=dtype", choices=_DTYPES),
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
    example={"batch": 2, "seq": 150, "heads": 4, "kv_heads": 2, "head_dim": 32},
)
