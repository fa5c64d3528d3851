"""Mixture-of-experts layer, from router logits to combined results: gate, permutation, grouped products."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.dtypes import dtype as dtype_of
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, OperatorError, Param, Shape, Tolerance
from foretile.kernels.operators._common import full, random_operand, size, whole
from foretile.kernels.operators._moe import choose_experts, combine_rows, scatter_row
from foretile.kernels.operators._moe_grouped import down, gate_up
from foretile.kernels.operators._moe_host import (
    ALIGNMENT,
    active_experts,
    assignment,
    check_topk,
    expert_loads,
    gate,
    gate_logits,
    resolved,
    routing_sizes,
    rows_bound,
    skewed_loads,
    tile_tables,
)

_GATE_THREADS = 256
_BLOCKS_AHEAD = 16  # blocks of the gate whose counts are summed in one step
_TABLE_TILES = 16  # tiles of rows whose expert is looked up in one step
_COPY_COLS, _COPY_THREADS = 2048, 256  # of a block that scatters or combines rows
_COMBINE_STAGES = 4


def _rows(shape: Shape) -> Any:
    return rows_bound(shape["tokens"], shape["experts"], shape["topk"], shape["align"])


def _gate(shape: Shape, config: Config) -> TileProgram:
    """One block ``block_t`` tokens: their experts and weights, and how many of them each expert gets.

    A token's rank among the block's tokens of its expert is a running count over the one-hot choices;
    the counts of all blocks meet in ``Count`` by atomic addition.
    """
    tokens, experts, topk, block_t = shape["tokens"], shape["experts"], shape["topk"], config["block_t"]

    @T.prim_func
    def moe_gate(
        Logits: T.Tensor((tokens, experts), "float32"),
        Bias: T.Tensor((experts,), "float32"),
        Indices: T.Tensor((tokens, topk), "int32"),
        Weights: T.Tensor((tokens, topk), "float32"),
        Rank: T.Tensor((tokens, topk), "int32"),
        BlockCount: T.Tensor((T.ceildiv(tokens, block_t), experts), "int32"),
        Count: T.Tensor((experts,), "int32"),
    ) -> None:
        with T.Kernel(T.ceildiv(tokens, block_t), threads=_GATE_THREADS) as bx:
            running = T.alloc_shared((block_t, experts), "int32")
            rank = T.alloc_fragment((block_t, topk), "int32")
            t0 = bx * block_t
            index, weight, choice = choose_experts(Logits, Bias, t0, block_t, topk, 1, 1)
            for i, e in T.Parallel(block_t, experts):  # scores are above −1: what is far below was chosen
                running[i, e] = T.if_then_else(T.all_of(choice[i, e] < -2.0, t0 + i < tokens), 1, 0)
            T.cumsum(running, dim=0)
            for i, j in T.Parallel(block_t, topk):
                rank[i, j] = running[i, index[i, j]] - 1
            T.copy(index, Indices[t0, 0])
            T.copy(weight, Weights[t0, 0])
            T.copy(rank, Rank[t0, 0])
            T.copy(running[block_t - 1, 0:experts], BlockCount[bx, 0:experts])
            T.atomic_add(Count[0:experts], running[block_t - 1, 0:experts])

    traced: TileProgram = moe_gate
    return traced


def _place(shape: Shape, config: Config) -> TileProgram:
    """One block ``block_t`` tokens: their rows; and its share of the tables of experts by tile.

    An expert's rows begin at the padded counts of those before it; within, at the counts of the blocks
    before this one.
    """
    tokens, experts, topk, block_t = shape["tokens"], shape["experts"], shape["topk"], config["block_t"]
    align = shape["align"]
    tiles, blocks = _rows(shape) // align, T.ceildiv(tokens, block_t)

    @T.prim_func
    def moe_place(
        Indices: T.Tensor((tokens, topk), "int32"),
        Rank: T.Tensor((tokens, topk), "int32"),
        BlockCount: T.Tensor((blocks, experts), "int32"),
        Count: T.Tensor((experts,), "int32"),
        Rows: T.Tensor((tokens, topk), "int32"),
        TileExpert: T.Tensor((tiles,), "int32"),
        TileRows: T.Tensor((tiles,), "int32"),
    ) -> None:
        with T.Kernel(blocks, threads=_GATE_THREADS) as bx:
            count = T.alloc_shared((experts,), "int32")
            end = T.alloc_shared((experts,), "int32")  # first row behind the expert's padded ones
            start = T.alloc_shared((experts,), "int32")  # first row of this block's tokens
            part = T.alloc_shared((_BLOCKS_AHEAD, experts), "int32")
            earlier = T.alloc_fragment((_BLOCKS_AHEAD, experts), "int32")
            before = T.alloc_fragment((experts,), "int32")
            index = T.alloc_shared((block_t, topk), "int32")
            row = T.alloc_fragment((block_t, topk), "int32")
            passed = T.alloc_fragment((_TABLE_TILES, experts), "int32")
            filled = T.alloc_fragment((_TABLE_TILES, experts), "int32")
            tile_expert = T.alloc_fragment((_TABLE_TILES,), "int32")
            tile_rows = T.alloc_fragment((_TABLE_TILES,), "int32")

            T.copy(Count, count)
            for e in T.Parallel(experts):
                end[e] = T.ceildiv(count[e], align) * align
            T.cumsum(end, dim=0)

            T.clear(before)
            for b in T.Pipelined(T.ceildiv(bx, _BLOCKS_AHEAD), num_stages=2):
                T.copy(BlockCount[b * _BLOCKS_AHEAD, 0], part)
                for i, e in T.Parallel(_BLOCKS_AHEAD, experts):
                    earlier[i, e] = T.if_then_else(b * _BLOCKS_AHEAD + i < bx, part[i, e], 0)
                T.reduce_sum(earlier, before, dim=0, clear=False)
            for e in T.Parallel(experts):
                start[e] = end[e] - T.ceildiv(count[e], align) * align + before[e]
            T.copy(Indices[bx * block_t, 0], index)
            T.copy(Rank[bx * block_t, 0], row)
            for i, j in T.Parallel(block_t, topk):
                row[i, j] = start[index[i, j]] + row[i, j]
            T.copy(row, Rows[bx * block_t, 0])

            for s in T.serial(T.ceildiv(tiles, blocks * _TABLE_TILES)):
                tile0 = (s * blocks + bx) * _TABLE_TILES
                for i, e in T.Parallel(_TABLE_TILES, experts):
                    # Rows of the expert in front of the tile's end, as many as the tile can hold.
                    first = end[e] - T.ceildiv(count[e], align) * align
                    passed[i, e] = T.if_then_else(end[e] <= (tile0 + i) * align, 1, 0)
                    filled[i, e] = T.if_then_else(
                        T.all_of(first <= (tile0 + i) * align, (tile0 + i) * align < end[e]),
                        T.min(first + count[e] - (tile0 + i) * align, align),
                        0,
                    )
                T.reduce_sum(passed, tile_expert, dim=1)
                T.reduce_sum(filled, tile_rows, dim=1)
                for i in T.Parallel(_TABLE_TILES):  # tiles behind the last expert's name it, and have no rows
                    tile_expert[i] = T.min(tile_expert[i], experts - 1)
                T.copy(tile_expert, TileExpert[tile0])
                T.copy(tile_rows, TileRows[tile0])

    traced: TileProgram = moe_place
    return traced


def _permute(shape: Shape) -> TileProgram:
    """Every token's row to its experts' tiles; padding rows stay as they were: nobody reads their results."""
    tokens, hidden, topk, dtype = shape["tokens"], shape["hidden"], shape["topk"], full(shape["dtype"])

    @T.prim_func
    def moe_permute(
        X: T.Tensor((tokens, hidden), dtype),
        Rows: T.Tensor((tokens, topk), "int32"),
        X_sorted: T.Tensor((_rows(shape), hidden), dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(hidden, _COPY_COLS), tokens, threads=_COPY_THREADS) as (bx, by):
            scatter_row(X, Rows, X_sorted, by, bx * _COPY_COLS, _COPY_COLS, dtype)

    traced: TileProgram = moe_permute
    return traced


def _combine(shape: Shape) -> TileProgram:
    """Every token's weighted sum of its experts' rows."""
    tokens, hidden, topk, dtype = shape["tokens"], shape["hidden"], shape["topk"], full(shape["dtype"])

    @T.prim_func
    def moe_combine(
        Y: T.Tensor((_rows(shape), hidden), dtype),
        Rows: T.Tensor((tokens, topk), "int32"),
        Weights: T.Tensor((tokens, topk), "float32"),
        O: T.Tensor((tokens, hidden), dtype),  # noqa: E741
    ) -> None:
        with T.Kernel(T.ceildiv(hidden, _COPY_COLS), tokens, threads=_COPY_THREADS) as (bx, by):
            combine_rows(Y, Rows, Weights, O, by, bx * _COPY_COLS, _COPY_COLS, _COMBINE_STAGES, dtype)

    traced: TileProgram = moe_combine
    return traced


def program(shape: Shape, config: Config) -> tuple[TileProgram, ...]:
    """Six launches: gate, rows of the tokens, permutation, gate and up with SwiGLU, down, combination.

    Raises:
        OperatorError: ``block_m`` does not divide ``align``: a tile would hold rows of two experts.
    """
    if shape["align"] % config["block_m"]:
        raise OperatorError(f"moe: block_m={config['block_m']} does not divide align={shape['align']}")
    return (
        _gate(shape, config),
        _place(shape, config),
        _permute(shape),
        gate_up(shape, config, _rows(shape)),
        down(shape, config, _rows(shape)),
        _combine(shape),
    )


# (block_m, block_n, block_k, num_stages, threads), likeliest first.
_TILES = (
    (128, 128, 64, 4, 256),
    (64, 128, 64, 4, 256),
    (128, 64, 64, 4, 256),
    (64, 64, 64, 4, 128),
    (128, 128, 64, 3, 256),
    (64, 128, 64, 3, 256),
    (128, 64, 64, 3, 256),
    (64, 64, 64, 3, 128),
    (32, 128, 64, 4, 256),
    (32, 64, 64, 4, 128),
    (16, 128, 64, 4, 256),
    (16, 64, 64, 4, 128),
    (16, 64, 128, 3, 128),
    (64, 64, 64, 2, 128),
    (32, 64, 64, 2, 128),
    (16, 64, 64, 2, 128),
    (64, 64, 32, 3, 128),
    (16, 32, 64, 4, 64),
)
_GATE_TOKENS = (16, 4)


def configs(shape: Shape) -> list[Config]:
    """The space: rows (a divisor of ``align``) and columns of gate and up, depth of a tile; gate tokens.

    The tile of the product down is twice as wide, so that it holds as many accumulators and bytes.
    """
    return [
        {"block_m": m, "block_n": n, "block_k": k, "num_stages": stages, "threads": threads, "block_t": t}
        for t in _GATE_TOKENS
        for m, n, k, stages, threads in _TILES
        if shape["align"] % m == 0
    ]


def flops(shape: Shape) -> Any:
    """A token: 5·experts + 3·topk for the gate; topk·(6·hidden·inter + 5·inter); hidden·(2·topk − 1).

    The gate as in ``moe_route``; a SwiGLU is a negation, an exponential, an addition, a division and a
    product. Padding rows are not counted.
    """
    hidden, inter, topk, experts = (whole(shape[n]) for n in ("hidden", "inter", "topk", "experts"))
    expert = topk * (6 * hidden * inter + 5 * inter)
    return whole(shape["tokens"]) * (5 * experts + 3 * topk + expert + hidden * (2 * topk - 1))


def min_bytes(shape: Shape) -> Any:
    """X, Logits, Bias and the weights of experts that ``distribution`` gives tokens read, O written; once."""
    tokens, hidden, inter, experts = (whole(shape[n]) for n in ("tokens", "hidden", "inter", "experts"))
    element = size(shape["dtype"])
    weights = active_experts(shape) * 3 * inter * hidden * element
    return weights + 2 * tokens * hidden * element + 4 * (tokens + 1) * experts


def _operands(shape: Shape, rng: np.random.Generator, gating: Arrays) -> Arrays:
    hidden, inter, experts = shape["hidden"], shape["inter"], shape["experts"]
    half = np.float32(0.5)  # keeps bf16 and fp16 products of deep sums in range
    w_gate_up = random_operand(rng, (experts, 2, inter, hidden), shape["dtype"])
    w_down = random_operand(rng, (experts, hidden, inter), shape["dtype"])
    return {
        "X": random_operand(rng, (shape["tokens"], hidden), shape["dtype"]),
        **gating,
        "W_gate_up": (w_gate_up.astype(np.float32) * half * hidden**-0.5).astype(w_gate_up.dtype),
        "W_down": (w_down.astype(np.float32) * half * inter**-0.5).astype(w_down.dtype),
    }


def _routed(shape: Shape, rng: np.random.Generator, loads: np.ndarray) -> Arrays:
    chosen = assignment(rng, loads, shape["tokens"], shape["topk"])
    return _operands(shape, rng, gate_logits(rng, chosen, shape["experts"]))


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """X of (tokens, hidden); Logits (tokens, experts) and Bias (experts,) fp32 that give the loads of
    ``distribution``; W_gate_up (experts, 2, inter, hidden), gate first, and W_down (experts, hidden, inter).
    """
    loads = expert_loads(*routing_sizes(shape), shape["distribution"])
    return _routed(shape, rng, loads)


def _ties(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Few different scores and no bias: most choices are ties, and the loads lean to the first experts."""
    logits = rng.integers(-1, 2, (shape["tokens"], shape["experts"])).astype(np.float32)
    return _operands(shape, rng, {"Logits": logits, "Bias": np.zeros(shape["experts"], np.float32)})


def reference(
    shape: Shape,
    X: np.ndarray,
    Logits: np.ndarray,
    Bias: np.ndarray,
    W_gate_up: np.ndarray,
    W_down: np.ndarray,
) -> Arrays:
    """O of (tokens, hidden) in float64, not rounded."""
    indices, weights = gate(Logits, Bias, shape["topk"])
    x = X.astype(np.float64)
    result = np.zeros((shape["tokens"], shape["hidden"]))
    for expert in np.unique(indices):
        token, choice = np.nonzero(indices == expert)
        g, u = (x[token] @ w.astype(np.float64).T for w in W_gate_up[expert])
        y = (g / (1.0 + np.exp(-g)) * u) @ W_down[expert].astype(np.float64).T
        result[token] += weights[token, choice, None] * y
    return {"O": result}


def comparable(shape: Shape, inputs: Arrays, outputs: Arrays) -> Arrays:
    """O without the tokens whose experts float32 scores cannot decide."""
    clear = resolved(inputs["Logits"], inputs["Bias"], shape["topk"])
    return {"O": np.where(clear[:, None], outputs["O"].astype(np.float64), 0.0)}


def tolerance(shape: Shape) -> Tolerance:
    """Three roundings to ``dtype``: the SwiGLU's results, the experts' rows, and O.

    Each changes its values by at most u relative to themselves, u/√3 in the mean square, independently
    of the others, and the sums after it carry that over to O: √3·u/√3 = u all together; as much again is
    left for values near a power of two and for the float32 arithmetic.
    """
    u = 2.0 ** -(1 + dtype_of(shape["dtype"]).mantissa_bits)
    return Tolerance(norm=2.0 * u, peak=4.0 * u)


def tensors(shape: Shape) -> Arrays:
    """Expert and filled rows of every tile, for the loads of ``distribution``."""
    tokens, experts, topk = routing_sizes(shape)
    loads = expert_loads(tokens, experts, topk, int(np.asarray(shape["distribution"]).item()))
    align = shape["align"]
    tile_expert, tile_rows = tile_tables(loads, align, rows_bound(tokens, experts, topk, align) // align)
    return {"TileExpert": tile_expert, "TileRows": tile_rows}


def check(shape: Shape) -> None:
    """Refuse more choices than experts, and an alignment that no tile divides."""
    check_topk("moe", shape)
    if shape["align"] % 16:
        raise OperatorError(f"moe: align={shape['align']} is not a multiple of 16, the rows of a product")


OPERATOR = Operator(
    name="moe",
    doc=(
        "Mixture-of-experts layer O[t] = Σ_j w[t, j] · W_down[e] (silu(W_gate[e] x) · W_up[e] x), e the j-th "
        "expert of token t by DeepSeek-V3's gate (moe_route without groups) from router Logits. X and O are "
        "(tokens, hidden), Logits (tokens, experts) and Bias (experts,) fp32, W_gate_up (experts, 2, inter, "
        "hidden), W_down (experts, hidden, inter). Contiguous grouped layout: rows padded to align."
    ),
    params=(
        Param("tokens", "tokens", dynamic=True),
        Param("hidden", "elements of a token's row", dynamic=True),
        Param("inter", "intermediate size of an expert", dynamic=True),
        Param("topk", "experts chosen for a token"),
        Param("experts", "experts"),
        Param(
            "dtype", "type of X, the weights and O", kind="dtype", default="bf16", choices=("bf16", "fp16")
        ),
        Param(
            "distribution",
            "expert loads: Zipf exponent in hundredths, 0: even",
            default=0,
            minimum=0,
            dynamic=True,
        ),
        Param("align", "multiple to which an expert's rows are padded", default=ALIGNMENT),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    check=check,
    tensors=tensors,
    tolerance=tolerance,
    adversarial={
        "same_experts": lambda shape, rng: _routed(shape, rng, skewed_loads(shape)["one_expert"]),
        "empty_experts": lambda shape, rng: _routed(shape, rng, skewed_loads(shape)["empty"]),
        "ties": _ties,
    },
    comparable=comparable,
    example={"tokens": 50, "hidden": 200, "inter": 100, "topk": 3, "experts": 8},
)
