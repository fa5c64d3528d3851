"""Mixture of experts in nvfp4: rows quantised on their way, products scaled by the matrix engine.

X and H have a static float32 scale a tensor beside those of their groups of 16, every matrix of weights one.
"""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Shape
from foretile.kernels.operators._blockscaled import NVFP4, blockscaled_products, check_blockscaled, nvfp4_rows
from foretile.kernels.operators._moe_grouped import PANEL, clear_counts, swiglu_rows
from foretile.kernels.operators._nvfp4 import GROUP
from foretile.kernels.operators._scaled_gemm import depth_tile

_COPY_COLS, _COPY_THREADS = 2048, 128  # of a block that quantises and scatters

# (block_m, block_n, block_k, num_stages, threads, product), likeliest first.
_TILES = (
    (128, 128, 256, 4, 256, "fp4"),
    (128, 64, 256, 4, 256, "fp4"),
    (128, 128, 256, 3, 256, "fp4"),
    (128, 64, 256, 3, 256, "fp4"),
    (64, 128, 256, 4, 256, "fp4"),
    (64, 64, 256, 4, 128, "fp4"),
    (64, 64, 256, 2, 128, "fp4"),
    (128, 32, 256, 4, 128, "fp4"),
    (32, 128, 256, 4, 256, "fp4"),
    (32, 64, 256, 4, 128, "fp4"),
    (16, 128, 256, 4, 256, "fp4"),
    (16, 64, 256, 4, 128, "fp4"),
    (16, 64, 512, 3, 128, "fp4"),
    (16, 32, 256, 4, 64, "fp4"),
    (64, 64, 128, 2, 256, "bf16"),
    (32, 64, 64, 2, 128, "bf16"),
    (16, 64, 64, 2, 128, "bf16"),
    (16, 32, 64, 2, 64, "bf16"),
)
TILES = {"nvfp4": _TILES}
"""Tiles by dtype, as the configuration's first keys."""


def check(config: Config, dtype: str) -> None:
    """Refuse tiles that do not go with groups of 16.

    Raises:
        OperatorError: what is wrong, and what would be right.
    """
    check_blockscaled("moe", {**config, "variant": "tile"}, NVFP4, "fp4")


def permute(shape: Shape, config: Config) -> TileProgram:
    """Every token's row, quantised, to its experts' tiles; rows of padding stay as they were."""
    tokens, hidden, topk, rows = (shape[name] for name in ("tokens", "hidden", "topk", "rows"))

    @T.prim_func
    def moe_permute_nvfp4(
        X: T.Tensor((tokens, hidden), "bfloat16"),
        X_scale: T.Tensor((1,), "float32"),
        Rows: T.Tensor((tokens, topk), "int32"),
        X_sorted: T.Tensor((rows, hidden), NVFP4.element),
        X_sorted_scale: T.Tensor(NVFP4.scales(rows, hidden), NVFP4.scale),
    ) -> None:
        with T.Kernel(T.ceildiv(hidden, _COPY_COLS), tokens, threads=_COPY_THREADS) as (bx, by):
            X_shared = T.alloc_shared((1, _COPY_COLS), "bfloat16")
            row = T.alloc_shared((1, _COPY_COLS), NVFP4.element)
            T.copy(X[by, bx * _COPY_COLS], X_shared)
            scale = nvfp4_rows(X_shared, X_scale[0], row)
            for j in T.serial(topk):
                T.copy(row, X_sorted[Rows[by, j], bx * _COPY_COLS])
                T.copy(scale, X_sorted_scale[Rows[by, j], bx * (_COPY_COLS // GROUP)])

    traced: TileProgram = moe_permute_nvfp4
    return traced


def gate_up(shape: Shape, config: Config) -> TileProgram:
    """One block a tile of ``align`` rows and ``block_n`` columns of gate and of up; SwiGLU; H in nvfp4."""
    hidden, inter, experts, align, rows = (
        shape[name] for name in ("hidden", "inter", "experts", "align", "rows")
    )
    block_M, block_N, block_K = config["block_m"], config["block_n"], config["block_k"]
    groups = block_K // GROUP

    @T.prim_func
    def moe_gate_up_nvfp4(
        X_sorted: T.Tensor((rows, hidden), NVFP4.element),
        X_sorted_scale: T.Tensor(NVFP4.scales(rows, hidden), NVFP4.scale),
        X_scale: T.Tensor((1,), "float32"),
        W_gate_up: T.Tensor((experts, 2, inter, hidden), NVFP4.element),
        W_gate_up_scale: T.Tensor((experts, 2, *NVFP4.scales(inter, hidden)), NVFP4.scale),
        W_gate_up_global: T.Tensor((experts, 2), "float32"),
        H_scale: T.Tensor((1,), "float32"),
        TileExpert: T.Tensor((rows // align,), "int32"),
        TileRows: T.Tensor((rows // align,), "int32"),
        H: T.Tensor((rows, inter), NVFP4.element),
        H_block_scale: T.Tensor(NVFP4.scales(rows, inter), NVFP4.scale),
    ) -> None:
        with T.Kernel(T.ceildiv(inter, block_N), rows // align, threads=config["threads"]) as (bx, by):
            T.use_swizzle(panel_size=PANEL)
            gate = T.alloc_fragment((block_M, block_N), "float32")
            up = T.alloc_fragment((block_M, block_N), "float32")
            H_local = T.alloc_fragment((block_M, block_N), NVFP4.element)
            filled = T.alloc_var("int32", init=TileRows[by])
            expert, n0 = TileExpert[by], bx * block_N
            columns = slice(n0, n0 + block_N)
            for s in T.serial(T.ceildiv(TileRows[by], block_M)):
                m0 = by * align + s * block_M
                blockscaled_products(
                    config,
                    NVFP4,
                    T.ceildiv(hidden, block_K),
                    depth_tile(X_sorted, slice(m0, m0 + block_M), depth=block_K),
                    depth_tile(X_sorted_scale, slice(m0, m0 + block_M), depth=groups),
                    [
                        (
                            depth_tile(W_gate_up, expert, part, columns, depth=block_K),
                            depth_tile(W_gate_up_scale, expert, part, columns, depth=groups),
                        )
                        for part in range(2)
                    ],
                    [gate, up],
                )
                for i, j in T.Parallel(block_M, block_N):
                    gate[i, j] = gate[i, j] * (X_scale[0] * W_gate_up_global[expert, 0])
                    up[i, j] = up[i, j] * (X_scale[0] * W_gate_up_global[expert, 1])
                swiglu_rows(gate, up, filled - s * block_M)
                scale = nvfp4_rows(gate, H_scale[0], H_local)
                T.copy(H_local, H[m0, n0])
                T.copy(scale, H_block_scale[m0, bx * (block_N // GROUP)])

    traced: TileProgram = moe_gate_up_nvfp4
    return traced


def down(shape: Shape, config: Config) -> TileProgram:
    """One block a tile of ``align`` rows and 2·``block_n`` columns: H · W_downᵀ."""
    hidden, inter, experts, align, rows = (
        shape[name] for name in ("hidden", "inter", "experts", "align", "rows")
    )
    block_M, block_N, block_K = config["block_m"], 2 * config["block_n"], config["block_k"]
    groups = block_K // GROUP

    @T.prim_func
    def moe_down_nvfp4(
        H: T.Tensor((rows, inter), NVFP4.element),
        H_block_scale: T.Tensor(NVFP4.scales(rows, inter), NVFP4.scale),
        H_scale: T.Tensor((1,), "float32"),
        W_down: T.Tensor((experts, hidden, inter), NVFP4.element),
        W_down_scale: T.Tensor((experts, *NVFP4.scales(hidden, inter)), NVFP4.scale),
        W_down_global: T.Tensor((experts,), "float32"),
        TileExpert: T.Tensor((rows // align,), "int32"),
        TileRows: T.Tensor((rows // align,), "int32"),
        Count: T.Tensor((experts,), "int32"),
        Y: T.Tensor((rows, hidden), "bfloat16"),
    ) -> None:
        with T.Kernel(T.ceildiv(hidden, block_N), rows // align, threads=config["threads"]) as (bx, by):
            T.use_swizzle(panel_size=PANEL)
            Y_local = T.alloc_fragment((block_M, block_N), "float32")
            expert, n0 = TileExpert[by], bx * block_N
            columns = slice(n0, n0 + block_N)
            clear_counts(Count, bx, by)
            for s in T.serial(T.ceildiv(TileRows[by], block_M)):
                m0 = by * align + s * block_M
                blockscaled_products(
                    {**config, "block_n": block_N},
                    NVFP4,
                    T.ceildiv(inter, block_K),
                    depth_tile(H, slice(m0, m0 + block_M), depth=block_K),
                    depth_tile(H_block_scale, slice(m0, m0 + block_M), depth=groups),
                    [
                        (
                            depth_tile(W_down, expert, columns, depth=block_K),
                            depth_tile(W_down_scale, expert, columns, depth=groups),
                        )
                    ],
                    [Y_local],
                )
                for i, j in T.Parallel(block_M, block_N):
                    Y_local[i, j] = Y_local[i, j] * (H_scale[0] * W_down_global[expert])
                T.copy(Y_local, Y[m0, n0])

    traced: TileProgram = moe_down_nvfp4
    return traced
