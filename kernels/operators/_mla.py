"""What the kernels of multi-head latent attention share: sizes, a step over keys, the parts' combination."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from dataclasses import dataclass
from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operators._common import LOG2E
from foretile.kernels.operators._softmax import Rows, alloc_rows, clear_rows, lazy_softmax, online_softmax

NOPE, ROPE = 128, 64
"""Elements of a query or key head without and with rotary position (DeepSeek-V3, config.json)."""

LATENT = 512
"""Elements of a token's latent vector: key (without position) and value of every head after absorption."""

ABSORBED = LATENT + ROPE
"""Elements of an absorbed query, and of what the cache keeps of a token."""

SCALE = (NOPE + ROPE) ** -0.5
"""Softmax scale: that of the heads before absorption, which changes the scores' form, not their value."""

_TINY = 1e-30  # below the sum of any row that has seen a key: its largest term is 1
_COMBINE_COLS, _COMBINE_THREADS = 128, 128


@dataclass(frozen=True)
class Tiles:
    """On-chip tiles of one block: ``rows`` query heads against ``keys`` keys.

    ``KV_shared`` of (keys, 512) is read twice, as the keys without position and as the values.
    ``V_shared`` is its part whose values ``acc_o`` collects: all of it, or the 256 from ``column`` on.
    """

    Q_shared: Any
    Q_rope_shared: Any
    KV_shared: Any
    K_rope_shared: Any
    V_shared: Any
    S_shared: Any
    acc_s: Any
    acc_o: Any
    rows: Rows
    column: Any


@T.macro
def alloc_tiles(config: Any, v_part: Any, dtype: str) -> Tiles:
    """The tiles of a block, nothing in them initialised; it does part ``v_part`` of the values."""
    rows, keys, values = config["block_h"], config["block_n"], config["block_v"]
    Q_shared = T.alloc_shared((rows, LATENT), dtype)
    Q_rope_shared = T.alloc_shared((rows, ROPE), dtype)
    KV_shared = T.alloc_shared((keys, LATENT), dtype)
    K_rope_shared = T.alloc_shared((keys, ROPE), dtype)
    S_shared = T.alloc_shared((rows, keys), dtype)
    acc_s = T.alloc_fragment((rows, keys), "float32")
    acc_o = T.alloc_fragment((rows, values), "float32")
    stats = alloc_rows(rows)
    column = v_part * values
    return Tiles(
        Q_shared,
        Q_rope_shared,
        KV_shared,
        K_rope_shared,
        # No name in between: TileLang forgets the extents of a slice that is given one.
        KV_shared if values == LATENT else KV_shared[0:keys, column : column + values],
        S_shared,
        acc_s,
        acc_o,
        stats,
        column,
    )


@T.macro
def clear_tiles(tiles: Tiles) -> None:
    """Before the first tile of keys."""
    clear_rows(tiles.rows, tiles.acc_o)


@T.macro
def attend(tiles: Tiles, policy: str, lazy: bool = False) -> None:
    """One tile of keys; ``acc_s`` holds the mask, 0 where a key is seen and -inf where not.

    ``lazy``: the result is scaled down only where a maximum has risen far.
    """
    T.gemm(tiles.Q_shared, tiles.KV_shared, tiles.acc_s, transpose_B=True, policy=policy)
    T.gemm(tiles.Q_rope_shared, tiles.K_rope_shared, tiles.acc_s, transpose_B=True, policy=policy)
    if lazy:
        lazy_softmax(tiles.acc_s, tiles.acc_o, tiles.rows, SCALE * LOG2E)
    else:
        online_softmax(tiles.acc_s, tiles.acc_o, tiles.rows, SCALE * LOG2E)
    T.copy(tiles.acc_s, tiles.S_shared)
    T.gemm(tiles.S_shared, tiles.V_shared, tiles.acc_o, policy=policy)


@T.macro
def normalise(acc_o: Any, rows: Rows) -> None:
    """Divide the result by the sum of its weights; it is zero where no key was seen."""
    for i, j in T.Parallel(*acc_o.shape):
        acc_o[i, j] = acc_o[i, j] / T.max(rows.logsum[i], _TINY)


@T.macro
def finish(tiles: Tiles, partial: bool) -> None:
    """Normalise ``acc_o``, to zero where no key was seen; of a part, leave log2(Σ 2^score) in ``logsum``."""
    logsum = tiles.rows.logsum
    normalise(tiles.acc_o, tiles.rows)
    if partial:
        for i in T.Parallel(tiles.acc_s.shape[0]):
            logsum[i] = T.log2(T.max(logsum[i], _TINY)) + tiles.rows.scores_max[i] * (SCALE * LOG2E)


def warp_policy(config: Any) -> str:
    """A warp takes 16 rows at least: with too few rows for the warps they share the columns."""
    enough = config["block_h"] * 2 >= config["threads"]
    return T.GemmWarpPolicy.FullRow if enough else T.GemmWarpPolicy.FullCol


def combine(queries: tuple[Any, ...], num_split: int, dtype: str) -> TileProgram:
    """The parts' results, weighted by their share of the softmax's sum.

    ``queries`` are the leading dimensions of O, heads last. One block takes 128 of the 512 elements
    of one query, so that all its parts are loaded at once.
    """
    heads, outer = queries[-1], queries[:-1]
    chunks = LATENT // _COMBINE_COLS

    @T.prim_func
    def mla_combine(
        O_part: T.Tensor((*queries, num_split, LATENT), "float32"),
        LSE: T.Tensor((*queries, num_split), "float32"),
        O: T.Tensor((*queries, LATENT), dtype),  # noqa: E741
    ) -> None:
        with T.Kernel(heads * chunks, *reversed(outer), threads=_COMBINE_THREADS) as block:
            share = T.alloc_fragment((num_split,), "float32")
            largest = T.alloc_fragment((1,), "float32")
            total = T.alloc_fragment((1,), "float32")
            parts = T.alloc_fragment((num_split, _COMBINE_COLS), "float32")
            acc_o = T.alloc_fragment((_COMBINE_COLS,), "float32")
            query = (*reversed(block[1:]), block[0] // chunks)
            j0 = block[0] % chunks * _COMBINE_COLS
            T.copy(O_part[*query, 0:num_split, j0 : j0 + _COMBINE_COLS], parts)
            T.copy(LSE[*query, 0:num_split], share)
            T.reduce_max(share, largest, dim=0)
            for s in T.Parallel(num_split):
                share[s] = T.exp2(share[s] - largest[0])
            T.reduce_sum(share, total, dim=0)
            for s, j in T.Parallel(num_split, _COMBINE_COLS):
                parts[s, j] = parts[s, j] * (share[s] / total[0])
            T.reduce_sum(parts, acc_o, dim=0)
            T.copy(acc_o, O[*query, j0 : j0 + _COMBINE_COLS])

    return traced(mla_combine)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax over the last axis in float64; a row of -inf only has weights of zero."""
    largest = scores.max(axis=-1, keepdims=True)
    e = np.exp(scores - np.where(np.isfinite(largest), largest, 0.0))
    total = e.sum(axis=-1, keepdims=True)
    return np.asarray(e / np.where(total > 0.0, total, 1.0))


def traced(program: Any) -> TileProgram:
    """What ``T.prim_func`` made of a kernel: a program, which its annotations do not say."""
    made: TileProgram = program
    return made
