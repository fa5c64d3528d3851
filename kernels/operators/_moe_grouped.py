"""Grouped products of a mixture of experts: rows in expert-contiguous order, one expert a tile of rows."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Shape
from foretile.kernels.operators._common import full
from foretile.kernels.operators._moe import scatter_row
from foretile.kernels.operators._scaled_gemm import depth_tile, plain_products

PANEL = 8
"""Tiles of rows side by side: those of one expert share its weights in the L2."""


# (block_m, block_n, block_k, num_stages, threads), likeliest first. Others were never better by more than
# half a per cent on A100, L40S, H200 and B200 (618 measured shapes).
_PLAIN = (
    (128, 128, 64, 4, 256),
    (64, 128, 64, 4, 256),
    (128, 64, 64, 4, 256),
    (64, 64, 64, 4, 128),
    (128, 128, 64, 3, 256),
    (128, 64, 64, 3, 256),
    (64, 64, 64, 3, 128),
    (32, 128, 64, 4, 256),
    (32, 64, 64, 4, 128),
    (16, 64, 64, 4, 128),
    (16, 64, 128, 3, 128),
    (32, 64, 64, 2, 128),
    (16, 64, 64, 2, 128),
    (16, 32, 64, 4, 64),
    # Long rows, for cores with half a megabyte of memory of their own; no other has room for them.
    (128, 128, 256, 2, 256),
)
TILES = {"bf16": _PLAIN, "fp16": _PLAIN}
"""Tiles by dtype, as the configuration's first keys."""

_COPY_COLS, _COPY_THREADS = 2048, 256  # of a block that scatters


def check(config: Config, dtype: str) -> None:
    """Every tile goes with operands that have no scales."""


@T.macro
def swiglu_rows(gate: Any, up: Any, filled: Any) -> None:
    """``gate`` becomes silu(gate) · up in its first ``filled`` rows, and zero in the rows of padding."""
    for i, j in T.Parallel(*gate.shape):
        gate[i, j] = T.if_then_else(i < filled, gate[i, j] / (1.0 + T.exp(-gate[i, j])) * up[i, j], 0.0)


@T.macro
def clear_counts(Count: Any, bx: Any, by: Any) -> None:
    """The experts' counts, which nobody reads any more, become zero for the next call."""
    zeros = T.alloc_fragment(Count.shape, "int32")
    T.clear(zeros)
    if by == 0:  # block (0, 0) clears: for the others the region lies behind the tensor's end
        T.copy(zeros, Count[bx * Count.shape[0]])


def permute(shape: Shape, config: Config) -> TileProgram:
    """Every token's row to its experts' tiles; padding rows stay as they were: nobody reads their results."""
    tokens, hidden, topk, dtype = shape["tokens"], shape["hidden"], shape["topk"], full(shape["dtype"])
    rows = shape["rows"]

    @T.prim_func
    def moe_permute(
        X: T.Tensor((tokens, hidden), dtype),
        Rows: T.Tensor((tokens, topk), "int32"),
        X_sorted: T.Tensor((rows, hidden), dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(hidden, _COPY_COLS), tokens, threads=_COPY_THREADS) as (bx, by):
            scatter_row(X, Rows, X_sorted, by, bx * _COPY_COLS, _COPY_COLS, dtype)

    traced: TileProgram = moe_permute
    return traced


def gate_up(shape: Shape, config: Config) -> TileProgram:
    """One block a tile of ``align`` rows and ``block_n`` columns of gate and of up: products, then SwiGLU.

    Only the filled part of the tile is multiplied, ``block_m`` rows at a time; of the last ones, padding
    rows become zeros, whatever an earlier call left in them.
    """
    hidden, inter, experts, align, rows = (
        shape[name] for name in ("hidden", "inter", "experts", "align", "rows")
    )
    block_M, block_N, block_K = config["block_m"], config["block_n"], config["block_k"]
    threads, dtype = config["threads"], full(shape["dtype"])

    @T.prim_func
    def moe_gate_up(
        X_sorted: T.Tensor((rows, hidden), dtype),
        W_gate_up: T.Tensor((experts, 2, inter, hidden), dtype),
        TileExpert: T.Tensor((rows // align,), "int32"),
        TileRows: T.Tensor((rows // align,), "int32"),
        H: T.Tensor((rows, inter), dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(inter, block_N), rows // align, threads=threads) as (bx, by):
            T.use_swizzle(panel_size=PANEL)
            filled = T.alloc_var("int32", init=TileRows[by])
            expert, n0 = TileExpert[by], bx * block_N
            for s in T.serial(T.ceildiv(TileRows[by], block_M)):
                m0 = by * align + s * block_M
                gate, up = plain_products(
                    config,
                    depth_tile(X_sorted, slice(m0, m0 + block_M), depth=block_K),
                    [
                        depth_tile(W_gate_up, expert, part, slice(n0, n0 + block_N), depth=block_K)
                        for part in range(2)
                    ],
                    T.ceildiv(hidden, block_K),
                    dtype,
                )
                swiglu_rows(gate, up, filled - s * block_M)
                T.copy(gate, H[m0, n0])

    traced: TileProgram = moe_gate_up
    return traced


def down(shape: Shape, config: Config) -> TileProgram:
    """One block a tile of ``align`` rows and 2·``block_n`` columns: the product with the expert's W_down.

    ``Count``, which nobody reads any more, is left zero for the next call.
    """
    hidden, inter, experts, align, rows = (
        shape[name] for name in ("hidden", "inter", "experts", "align", "rows")
    )
    block_M, block_N, block_K = config["block_m"], 2 * config["block_n"], config["block_k"]
    threads, dtype = config["threads"], full(shape["dtype"])

    @T.prim_func
    def moe_down(
        H: T.Tensor((rows, inter), dtype),
        W_down: T.Tensor((experts, hidden, inter), dtype),
        TileExpert: T.Tensor((rows // align,), "int32"),
        TileRows: T.Tensor((rows // align,), "int32"),
        Count: T.Tensor((experts,), "int32"),
        Y: T.Tensor((rows, hidden), dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(hidden, block_N), rows // align, threads=threads) as (bx, by):
            T.use_swizzle(panel_size=PANEL)
            expert, n0 = TileExpert[by], bx * block_N
            clear_counts(Count, bx, by)
            for s in T.serial(T.ceildiv(TileRows[by], block_M)):
                m0 = by * align + s * block_M
                (Y_local,) = plain_products(
                    {**config, "block_n": block_N},
                    depth_tile(H, slice(m0, m0 + block_M), depth=block_K),
                    [depth_tile(W_down, expert, slice(n0, n0 + block_N), depth=block_K)],
                    T.ceildiv(inter, block_K),
                    dtype,
                )
                T.copy(Y_local, Y[m0, n0])

    traced: TileProgram = moe_down
    return traced
