"""Mixture of experts in fp8: rows quantised on their way, grouped products, SwiGLU quantised when written.

Two formats. ``fp8``: one static float32 scale for X, one for H, one for each matrix of weights.
``fp8_block``: DeepSeek's (DeepSeek-V3 report, section 3.3; DeepGEMM), activations with a scale a row and
128 columns, taken from their maximum, weights with one a block of 128 × 128.
"""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, OperatorError, Shape
from foretile.kernels.operators._moe_grouped import PANEL, clear_counts, swiglu_rows
from foretile.kernels.operators._quant import BLOCK, groups_of, quantised_rows, saturated
from foretile.kernels.operators._scaled_gemm import (
    Tile,
    check_config,
    depth_scale,
    depth_tile,
    plain_products,
    scaled_products,
)

_COPY_COLS, _COPY_THREADS = 2048, 256  # of a block that quantises and scatters
_FP8 = "float8_e4m3fn"

# (block_m, block_n, block_k, num_stages, threads, product) with one scale a tensor, ...
_FP8_TILES = (
    (128, 128, 128, 4, 256, "fp8"),
    (64, 128, 128, 4, 256, "fp8"),
    (128, 64, 128, 4, 256, "fp8"),
    (64, 64, 128, 4, 128, "fp8"),
    (64, 128, 128, 2, 256, "fp8"),
    (64, 64, 128, 2, 128, "fp8"),
    (32, 128, 128, 4, 256, "fp8"),
    (32, 64, 128, 4, 128, "fp8"),
    (16, 128, 128, 4, 256, "fp8"),
    (16, 64, 128, 4, 128, "fp8"),
    (16, 64, 256, 3, 128, "fp8"),
    (16, 32, 128, 4, 64, "fp8"),
    (128, 64, 64, 3, 256, "bf16"),
    (64, 64, 64, 3, 128, "bf16"),
    (32, 64, 64, 2, 128, "bf16"),
    (16, 64, 64, 2, 128, "bf16"),
)
# ... and with scales by block: three accumulators of 128 columns.
_FP8_BLOCK_TILES = (
    (128, 128, 128, 4, 512, "fp8"),
    (128, 128, 128, 3, 512, "fp8"),
    (128, 128, 128, 2, 512, "fp8"),
    (64, 128, 128, 4, 256, "fp8"),
    (64, 128, 128, 3, 256, "fp8"),
    (64, 128, 128, 2, 256, "fp8"),
    (64, 128, 64, 3, 256, "fp8"),
    (32, 128, 128, 4, 256, "fp8"),
    (32, 128, 128, 2, 256, "fp8"),
    (16, 128, 128, 5, 256, "fp8"),
    (16, 128, 128, 4, 128, "fp8"),
    (16, 128, 128, 2, 128, "fp8"),
    (64, 128, 128, 2, 256, "bf16"),
    (64, 128, 64, 2, 256, "bf16"),
    (32, 128, 64, 2, 256, "bf16"),
    (16, 128, 64, 2, 256, "bf16"),
)
TILES = {"fp8": _FP8_TILES, "fp8_block": _FP8_BLOCK_TILES}
"""Tiles by dtype, as the configuration's first keys."""


def check(config: Config, dtype: str) -> None:
    """Refuse tiles that do not go with the scales.

    Raises:
        OperatorError: what is wrong, and what would be right.
    """
    check_config("moe", config, blocks=False)
    if dtype == "fp8_block" and (config["block_n"] != BLOCK or BLOCK % config["block_k"]):
        raise OperatorError(
            f"moe: a group of H is {BLOCK} columns and a step within {BLOCK} of the depth; tiles of "
            f"block_n={config['block_n']} and block_k={config['block_k']} are not"
        )


def permute(shape: Shape, config: Config) -> TileProgram:
    """Every token's row, quantised, to its experts' tiles; rows of padding stay as they were."""
    tokens, hidden, topk, rows = (shape[name] for name in ("tokens", "hidden", "topk", "rows"))
    grid = (T.ceildiv(hidden, _COPY_COLS), tokens)

    if shape["dtype"] == "fp8":

        @T.prim_func
        def moe_permute_fp8(
            X: T.Tensor((tokens, hidden), "bfloat16"),
            X_scale: T.Tensor((1,), "float32"),
            Rows: T.Tensor((tokens, topk), "int32"),
            X_sorted: T.Tensor((rows, hidden), _FP8),
        ) -> None:
            with T.Kernel(*grid, threads=_COPY_THREADS) as (bx, by):
                X_local = T.alloc_fragment((_COPY_COLS,), "bfloat16")
                X_fp8 = T.alloc_fragment((_COPY_COLS,), _FP8)
                T.copy(X[by, bx * _COPY_COLS], X_local)
                for c in T.Parallel(_COPY_COLS):
                    X_fp8[c] = saturated(T.cast(X_local[c], "float32"), X_scale[0])
                for j in T.serial(topk):
                    T.copy(X_fp8, X_sorted[Rows[by, j], bx * _COPY_COLS])

        plain: TileProgram = moe_permute_fp8
        return plain

    blocks = _COPY_COLS // BLOCK

    @T.prim_func
    def moe_permute_fp8_block(
        X: T.Tensor((tokens, hidden), "bfloat16"),
        Rows: T.Tensor((tokens, topk), "int32"),
        X_sorted: T.Tensor((rows, hidden), _FP8),
        X_sorted_scale: T.Tensor((rows, groups_of(hidden)), "float32"),
    ) -> None:
        with T.Kernel(*grid, threads=_COPY_THREADS) as (bx, by):
            X_shared = T.alloc_shared((_COPY_COLS,), "bfloat16")
            X_local = T.alloc_fragment((blocks, BLOCK), "float32")
            X_fp8 = T.alloc_fragment((blocks, BLOCK), _FP8)
            row = T.alloc_shared((_COPY_COLS,), _FP8)
            T.copy(X[by, bx * _COPY_COLS], X_shared)
            for g, c in T.Parallel(blocks, BLOCK):
                X_local[g, c] = X_shared[g * BLOCK + c]
            scale = quantised_rows(X_local, X_fp8, False)
            for g, c in T.Parallel(blocks, BLOCK):
                row[g * BLOCK + c] = X_fp8[g, c]
            for j in T.serial(topk):
                T.copy(row, X_sorted[Rows[by, j], bx * _COPY_COLS])
                T.copy(scale, X_sorted_scale[Rows[by, j], bx * blocks])

    blockwise: TileProgram = moe_permute_fp8_block
    return blockwise


def gate_up(shape: Shape, config: Config) -> TileProgram:
    """One block a tile of ``align`` rows and ``block_n`` columns of gate and of up; SwiGLU; H in fp8.

    With scales by block, the 128 columns of a tile are a group of H.
    """
    hidden, inter, experts, align, rows = (
        shape[name] for name in ("hidden", "inter", "experts", "align", "rows")
    )
    block_M, block_N, block_K = config["block_m"], config["block_n"], config["block_k"]
    grid, steps = (T.ceildiv(inter, block_N), rows // align), T.ceildiv(hidden, block_K)

    def weights(W: Any, expert: Any, n0: Any) -> list[Tile]:
        return [depth_tile(W, expert, part, slice(n0, n0 + block_N), depth=block_K) for part in range(2)]

    if shape["dtype"] == "fp8":

        @T.prim_func
        def moe_gate_up_fp8(
            X_sorted: T.Tensor((rows, hidden), _FP8),
            X_scale: T.Tensor((1,), "float32"),
            W_gate_up: T.Tensor((experts, 2, inter, hidden), _FP8),
            W_gate_up_scale: T.Tensor((experts, 2), "float32"),
            H_scale: T.Tensor((1,), "float32"),
            TileExpert: T.Tensor((rows // align,), "int32"),
            TileRows: T.Tensor((rows // align,), "int32"),
            H: T.Tensor((rows, inter), _FP8),
        ) -> None:
            with T.Kernel(*grid, threads=config["threads"]) as (bx, by):
                T.use_swizzle(panel_size=PANEL)
                H_local = T.alloc_fragment((block_M, block_N), _FP8)
                filled = T.alloc_var("int32", init=TileRows[by])
                expert, n0 = TileExpert[by], bx * block_N
                for s in T.serial(T.ceildiv(TileRows[by], block_M)):
                    m0 = by * align + s * block_M
                    gate, up = plain_products(
                        config,
                        depth_tile(X_sorted, slice(m0, m0 + block_M), depth=block_K),
                        weights(W_gate_up, expert, n0),
                        steps,
                        _FP8,
                    )
                    for i, j in T.Parallel(block_M, block_N):
                        gate[i, j] = gate[i, j] * (X_scale[0] * W_gate_up_scale[expert, 0])
                        up[i, j] = up[i, j] * (X_scale[0] * W_gate_up_scale[expert, 1])
                    swiglu_rows(gate, up, filled - s * block_M)
                    for i, j in T.Parallel(block_M, block_N):
                        H_local[i, j] = saturated(gate[i, j], H_scale[0])
                    T.copy(H_local, H[m0, n0])

        plain: TileProgram = moe_gate_up_fp8
        return plain

    @T.prim_func
    def moe_gate_up_fp8_block(
        X_sorted: T.Tensor((rows, hidden), _FP8),
        X_sorted_scale: T.Tensor((rows, groups_of(hidden)), "float32"),
        W_gate_up: T.Tensor((experts, 2, inter, hidden), _FP8),
        W_gate_up_scale: T.Tensor((experts, 2, groups_of(inter), groups_of(hidden)), "float32"),
        TileExpert: T.Tensor((rows // align,), "int32"),
        TileRows: T.Tensor((rows // align,), "int32"),
        H: T.Tensor((rows, inter), _FP8),
        H_scale: T.Tensor((rows, groups_of(inter)), "float32"),
    ) -> None:
        with T.Kernel(*grid, threads=config["threads"]) as (bx, by):
            T.use_swizzle(panel_size=PANEL)
            H_local = T.alloc_fragment((block_M, block_N), _FP8)
            filled = T.alloc_var("int32", init=TileRows[by])
            expert, n0 = TileExpert[by], bx * block_N
            for s in T.serial(T.ceildiv(TileRows[by], block_M)):
                m0 = by * align + s * block_M
                gate, up = scaled_products(
                    config,
                    depth_tile(X_sorted, slice(m0, m0 + block_M), depth=block_K),
                    weights(W_gate_up, expert, n0),
                    depth_scale(X_sorted_scale, slice(m0, m0 + block_M), depth=block_K),
                    [depth_scale(W_gate_up_scale, expert, part, bx, depth=block_K) for part in range(2)],
                    steps,
                )
                swiglu_rows(gate, up, filled - s * block_M)
                scale = quantised_rows(gate, H_local, False)
                T.copy(H_local, H[m0, n0])
                T.copy(scale, H_scale[m0 : m0 + block_M, bx])

    blockwise: TileProgram = moe_gate_up_fp8_block
    return blockwise


def down(shape: Shape, config: Config) -> TileProgram:
    """One block a tile of ``align`` rows and 128 columns (2·``block_n`` with static scales): H · W_downᵀ."""
    hidden, inter, experts, align, rows = (
        shape[name] for name in ("hidden", "inter", "experts", "align", "rows")
    )
    static = shape["dtype"] == "fp8"
    block_M, block_K = config["block_m"], config["block_k"]
    block_N = 2 * config["block_n"] if static else config["block_n"]
    grid, steps = (T.ceildiv(hidden, block_N), rows // align), T.ceildiv(inter, block_K)

    if static:

        @T.prim_func
        def moe_down_fp8(
            H: T.Tensor((rows, inter), _FP8),
            H_scale: T.Tensor((1,), "float32"),
            W_down: T.Tensor((experts, hidden, inter), _FP8),
            W_down_scale: T.Tensor((experts,), "float32"),
            TileExpert: T.Tensor((rows // align,), "int32"),
            TileRows: T.Tensor((rows // align,), "int32"),
            Count: T.Tensor((experts,), "int32"),
            Y: T.Tensor((rows, hidden), "bfloat16"),
        ) -> None:
            with T.Kernel(*grid, threads=config["threads"]) as (bx, by):
                T.use_swizzle(panel_size=PANEL)
                expert, n0 = TileExpert[by], bx * block_N
                clear_counts(Count, bx, by)
                for s in T.serial(T.ceildiv(TileRows[by], block_M)):
                    m0 = by * align + s * block_M
                    (Y_local,) = plain_products(
                        {**config, "block_n": block_N},
                        depth_tile(H, slice(m0, m0 + block_M), depth=block_K),
                        [depth_tile(W_down, expert, slice(n0, n0 + block_N), depth=block_K)],
                        steps,
                        _FP8,
                    )
                    for i, j in T.Parallel(block_M, block_N):
                        Y_local[i, j] = Y_local[i, j] * (H_scale[0] * W_down_scale[expert])
                    T.copy(Y_local, Y[m0, n0])

        plain: TileProgram = moe_down_fp8
        return plain

    @T.prim_func
    def moe_down_fp8_block(
        H: T.Tensor((rows, inter), _FP8),
        H_scale: T.Tensor((rows, groups_of(inter)), "float32"),
        W_down: T.Tensor((experts, hidden, inter), _FP8),
        W_down_scale: T.Tensor((experts, groups_of(hidden), groups_of(inter)), "float32"),
        TileExpert: T.Tensor((rows // align,), "int32"),
        TileRows: T.Tensor((rows // align,), "int32"),
        Count: T.Tensor((experts,), "int32"),
        Y: T.Tensor((rows, hidden), "bfloat16"),
    ) -> None:
        with T.Kernel(*grid, threads=config["threads"]) as (bx, by):
            T.use_swizzle(panel_size=PANEL)
            expert, n0 = TileExpert[by], bx * block_N
            clear_counts(Count, bx, by)
            for s in T.serial(T.ceildiv(TileRows[by], block_M)):
                m0 = by * align + s * block_M
                (Y_local,) = scaled_products(
                    config,
                    depth_tile(H, slice(m0, m0 + block_M), depth=block_K),
                    [depth_tile(W_down, expert, slice(n0, n0 + block_N), depth=block_K)],
                    depth_scale(H_scale, slice(m0, m0 + block_M), depth=block_K),
                    [depth_scale(W_down_scale, expert, bx, depth=block_K)],
                    steps,
                )
                T.copy(Y_local, Y[m0, n0])

    blockwise: TileProgram = moe_down_fp8_block
    return blockwise
