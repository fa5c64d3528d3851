"""Multi-head latent attention of many queries (non-absorbed form): heads of 192 against values of 128."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from dataclasses import dataclass
from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, Param, Shape
from foretile.kernels.operators._common import LOG2E, full, random_operand, size, whole
from foretile.kernels.operators._mla import NOPE, ROPE, SCALE, softmax, traced
from foretile.kernels.operators._softmax import (
    Rows,
    alloc_rows,
    attention_tolerance,
    clear_rows,
    online_softmax,
)

VALUE = 128
"""Elements of a value head (DeepSeek-V3, config.json: v_head_dim)."""

_SHAPES = {
    "Q": ("batch", "seq", "heads", NOPE + ROPE),
    "K": ("batch", "kv_len", "heads", NOPE),
    "K_rope": ("batch", "kv_len", ROPE),
    "V": ("batch", "kv_len", "heads", VALUE),
    "O": ("batch", "seq", "heads", VALUE),
}


def _tensors(shape: Shape) -> dict[str, tuple[Any, ...]]:
    """Shapes by name; kv_len is prefix + seq."""
    sizes = {**shape, "kv_len": shape["prefix"] + shape["seq"]}
    return {
        name: tuple(sizes[d] if isinstance(d, str) else d for d in dims) for name, dims in _SHAPES.items()
    }


@dataclass(frozen=True)
class _Tiles:
    """What a block holds on chip: tiles of the operands, scores, weights and the result so far."""

    Q: Any
    Q_rope: Any
    K: Any
    K_rope: Any
    V: Any
    acc_s: Any
    weights: Any
    acc_o: Any


@T.macro
def _attend(
    K: Any, K_rope: Any, V: Any, at: tuple[Any, Any], k: Any, position: Any, tiles: _Tiles, rows: Rows
) -> None:
    """Tile ``k`` of the keys of the sequence and head ``at``.

    ``position`` is that of the block's first query among the keys, None where every query sees the tile.
    """
    bz, bx = at
    block_M, block_N = tiles.acc_s.shape
    rowwise, k0 = T.GemmWarpPolicy.FullRow, k * block_N
    T.copy(K[bz, k0 : k0 + block_N, bx, 0:NOPE], tiles.K)
    T.copy(K_rope[bz, k0 : k0 + block_N, 0:ROPE], tiles.K_rope)
    if position is not None:
        for i, j in T.Parallel(block_M, block_N):
            tiles.acc_s[i, j] = T.if_then_else(k0 + j <= position + i, 0.0, -T.infinity("float32"))
    else:
        T.clear(tiles.acc_s)
    T.gemm(tiles.Q, tiles.K, tiles.acc_s, transpose_B=True, policy=rowwise)
    T.gemm(tiles.Q_rope, tiles.K_rope, tiles.acc_s, transpose_B=True, policy=rowwise)
    online_softmax(tiles.acc_s, tiles.acc_o, rows, SCALE * LOG2E)
    T.copy(tiles.acc_s, tiles.weights)
    T.copy(V[bz, k0 : k0 + block_N, bx, 0:VALUE], tiles.V)
    T.gemm(tiles.weights, tiles.V, tiles.acc_o, policy=rowwise)


def program(shape: Shape, config: Config) -> TileProgram:
    """One block a tile of ``block_m`` queries of one head.

    Blocks are ordered as those of attention_prefill are: heads vary fastest, so that neighbours share
    the rotary keys, and the last queries, which see the most keys, come first.
    """
    batch, seq, heads, prefix = (shape[name] for name in ("batch", "seq", "heads", "prefix"))
    tensors, dtype = _tensors(shape), full(shape["dtype"])
    block_M, block_N, swizzle = config["block_m"], config["block_n"], config["swizzle"]
    num_stages, threads = config["num_stages"], config["threads"]

    @T.prim_func
    def mla_prefill(
        Q: T.Tensor(tensors["Q"], dtype),
        K: T.Tensor(tensors["K"], dtype),
        K_rope: T.Tensor(tensors["K_rope"], dtype),
        V: T.Tensor(tensors["V"], dtype),
        O: T.Tensor(tensors["O"], dtype),  # noqa: E741
    ) -> None:
        with T.Kernel(heads, T.ceildiv(seq, block_M), batch, threads=threads) as (bx, by, bz):
            Q_shared = T.alloc_shared((block_M, NOPE), dtype)
            Q_rope_shared = T.alloc_shared((block_M, ROPE), dtype)
            K_shared = T.alloc_shared((block_N, NOPE), dtype)
            K_rope_shared = T.alloc_shared((block_N, ROPE), dtype)
            V_shared = T.alloc_shared((block_N, VALUE), dtype)
            acc_s = T.alloc_fragment((block_M, block_N), "float32")
            weights = T.alloc_fragment((block_M, block_N), dtype)
            acc_o = T.alloc_fragment((block_M, VALUE), "float32")
            rows = alloc_rows(block_M)
            tiles = _Tiles(Q_shared, Q_rope_shared, K_shared, K_rope_shared, V_shared, acc_s, weights, acc_o)
            if swizzle:
                T.use_swizzle(panel_size=swizzle)

            q0 = (T.ceildiv(seq, block_M) - 1 - by) * block_M
            position = prefix + q0  # of the block's first query among the keys

            T.copy(Q[bz, q0 : q0 + block_M, bx, 0:NOPE], Q_shared)
            T.copy(Q[bz, q0 : q0 + block_M, bx, NOPE : NOPE + ROPE], Q_rope_shared)
            clear_rows(rows, acc_o)
            # Every query of the block sees the keys up to its first one's position: tiles of these need
            # no mask, those from there to the last query's position do.
            whole_tiles = (position + 1) // block_N
            for k in T.Pipelined(0, whole_tiles, num_stages=num_stages):
                _attend(K, K_rope, V, (bz, bx), k, None, tiles, rows)
            last = T.ceildiv(T.min(prefix + seq, position + block_M), block_N)
            for k in T.Pipelined(whole_tiles, last, num_stages=num_stages):
                _attend(K, K_rope, V, (bz, bx), k, position, tiles, rows)
            for i, j in T.Parallel(block_M, VALUE):
                acc_o[i, j] = acc_o[i, j] / rows.logsum[i]
            T.copy(acc_o, O[bz, q0 : q0 + block_M, bx, 0:VALUE])

    return traced(mla_prefill)


# (block_m, block_n, num_stages, threads), likeliest first; the last two for 64 KiB of shared memory.
_TILES = (
    (128, 128, 2, 256),
    (128, 64, 2, 256),
    (192, 64, 2, 384),
    (128, 64, 1, 256),
    (64, 64, 2, 128),
    (64, 64, 1, 128),
    (64, 32, 1, 128),
    (32, 32, 2, 64),
)


def configs(shape: Shape) -> list[Config]:
    """The space: query and key rows of a tile, K/V tiles in flight, threads, order of the blocks."""
    keys = ("block_m", "block_n", "num_stages", "threads", "swizzle")
    return [dict(zip(keys, (*tile, swizzle), strict=True)) for swizzle in (8, 0) for tile in _TILES]


def flops(shape: Shape) -> Any:
    """2·(192 + 128) for every visible (query, key) pair of every head; query i sees prefix + i + 1 keys.

    The softmax is not counted, as is usual.
    """
    seq, prefix = whole(shape["seq"]), whole(shape["prefix"])
    pairs = seq * prefix + seq * (seq + 1) // 2
    return 2 * (NOPE + ROPE + VALUE) * whole(shape["batch"]) * whole(shape["heads"]) * pairs


def min_bytes(shape: Shape) -> Any:
    """Q, K, K_rope and V read once, O written once; the rotary keys are one for all heads."""
    batch, seq, heads = (whole(shape[name]) for name in ("batch", "seq", "heads"))
    kv_len = seq + whole(shape["prefix"])
    queries = seq * heads * (NOPE + ROPE + VALUE)
    return batch * (queries + kv_len * (heads * (NOPE + VALUE) + ROPE)) * size(shape["dtype"])


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Q (batch, seq, heads, 192), K and V (batch, prefix + seq, heads, 128), K_rope (…, 64)."""
    tensors = _tensors(shape)
    return {name: random_operand(rng, tensors[name], shape["dtype"]) for name in ("Q", "K", "K_rope", "V")}


def _last_key_wins(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Positive operands that grow along the keys: the running maximum rises in every tile."""
    operands = inputs(shape, rng)
    growth = np.geomspace(1e-2, 1, shape["prefix"] + shape["seq"], dtype=np.float32)
    rising = {"Q": np.float32(1), "K": growth[:, None, None], "K_rope": growth[:, None]}
    return {
        **operands,
        **{
            name: (np.abs(operands[name].astype(np.float32)) * factor).astype(operands[name].dtype)
            for name, factor in rising.items()
        },
    }


def _equal_keys(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Keys of zero: each result is the mean of the values seen so far."""
    operands = inputs(shape, rng)
    return {**operands, **{name: np.zeros_like(operands[name]) for name in ("K", "K_rope")}}


def reference(shape: Shape, Q: np.ndarray, K: np.ndarray, K_rope: np.ndarray, V: np.ndarray) -> Arrays:
    """O of (batch, seq, heads, 128) in float64, not rounded."""
    q, k, rope, v = (x.astype(np.float64) for x in (Q, K, K_rope, V))
    scores = np.einsum("bshd,bthd->bhst", q[..., :NOPE], k)
    scores += np.einsum("bshd,btd->bhst", q[..., NOPE:], rope)
    seq, kv_len = scores.shape[-2:]
    hidden = np.triu(np.ones((seq, kv_len), dtype=bool), k=kv_len - seq + 1)
    return {"O": np.einsum("bhst,bthd->bshd", softmax(np.where(hidden, -np.inf, scores * SCALE)), v)}


OPERATOR = Operator(
    name="mla_prefill",
    doc=(
        "Causal multi-head latent attention (DeepSeek-V3) of many queries, keys and values expanded to "
        "heads: query and key heads are 128 elements and 64 of rotary position, the key's shared by all. "
        "Q is (batch, seq, heads, 192), K and V (batch, prefix + seq, heads, 128), K_rope (batch, prefix + "
        "seq, 64), O (batch, seq, heads, 128); query i stands at key position prefix + i."
    ),
    params=(
        Param("batch", "sequences", dynamic=True),
        Param("seq", "queries of each sequence", dynamic=True),
        Param("heads", "heads", dynamic=True),
        Param("prefix", "cached keys before the first query", default=0, dynamic=True, minimum=0),
        Param("dtype", "type of all operands", kind="dtype", default="bf16", choices=("bf16", "fp16")),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    tolerance=attention_tolerance,
    adversarial={"last_key_wins": _last_key_wins, "equal_keys": _equal_keys},
    example={"batch": 2, "seq": 70, "heads": 3, "prefix": 75},
)
