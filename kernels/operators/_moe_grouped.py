"""Grouped products of a mixture of experts: rows in expert-contiguous order, one expert a tile of rows."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Shape
from foretile.kernels.operators._common import full

_PANEL = 8  # tiles of rows side by side: those of one expert share its weights in the L2


def gate_up(shape: Shape, config: Config, rows: Any) -> TileProgram:
    """One block a tile of ``align`` rows and ``block_n`` columns of gate and of up: products, then SwiGLU.

    Only the filled part of the tile is multiplied, ``block_m`` rows at a time; of the last ones, padding
    rows become zeros, whatever an earlier call left in them.
    """
    hidden, inter, experts, align = (shape[name] for name in ("hidden", "inter", "experts", "align"))
    block_M, block_N, block_K = config["block_m"], config["block_n"], config["block_k"]
    num_stages, threads, dtype = config["num_stages"], config["threads"], full(shape["dtype"])

    @T.prim_func
    def moe_gate_up(
        X_sorted: T.Tensor((rows, hidden), dtype),
        W_gate_up: T.Tensor((experts, 2, inter, hidden), dtype),
        TileExpert: T.Tensor((rows // align,), "int32"),
        TileRows: T.Tensor((rows // align,), "int32"),
        H: T.Tensor((rows, inter), dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(inter, block_N), rows // align, threads=threads) as (bx, by):
            T.use_swizzle(panel_size=_PANEL)
            X_shared = T.alloc_shared((block_M, block_K), dtype)
            gate_shared = T.alloc_shared((block_N, block_K), dtype)
            up_shared = T.alloc_shared((block_N, block_K), dtype)
            gate = T.alloc_fragment((block_M, block_N), "float32")
            up = T.alloc_fragment((block_M, block_N), "float32")
            filled = T.alloc_var("int32", init=TileRows[by])
            expert, n0 = TileExpert[by], bx * block_N
            for s in T.serial(T.ceildiv(TileRows[by], block_M)):
                m0 = by * align + s * block_M
                T.clear(gate)
                T.clear(up)
                for k in T.Pipelined(T.ceildiv(hidden, block_K), num_stages=num_stages):
                    T.copy(X_sorted[m0, k * block_K], X_shared)
                    T.copy(W_gate_up[expert, 0, n0, k * block_K], gate_shared)
                    T.copy(W_gate_up[expert, 1, n0, k * block_K], up_shared)
                    T.gemm(X_shared, gate_shared, gate, transpose_B=True)
                    T.gemm(X_shared, up_shared, up, transpose_B=True)
                for i, j in T.Parallel(block_M, block_N):
                    gate[i, j] = T.if_then_else(
                        s * block_M + i < filled, gate[i, j] / (1.0 + T.exp(-gate[i, j])) * up[i, j], 0.0
                    )
                T.copy(gate, H[m0, n0])

    traced: TileProgram = moe_gate_up
    return traced


def down(shape: Shape, config: Config, rows: Any) -> TileProgram:
    """One block a tile of ``align`` rows and 2·``block_n`` columns: the product with the expert's W_down.

    ``Count``, which nobody reads any more, is left zero for the next call.
    """
    hidden, inter, experts, align = (shape[name] for name in ("hidden", "inter", "experts", "align"))
    block_M, block_N, block_K = config["block_m"], 2 * config["block_n"], config["block_k"]
    num_stages, threads, dtype = config["num_stages"], config["threads"], full(shape["dtype"])

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
            T.use_swizzle(panel_size=_PANEL)
            H_shared = T.alloc_shared((block_M, block_K), dtype)
            W_shared = T.alloc_shared((block_N, block_K), dtype)
            Y_local = T.alloc_fragment((block_M, block_N), "float32")
            zeros = T.alloc_fragment((experts,), "int32")
            expert, n0 = TileExpert[by], bx * block_N
            T.clear(zeros)
            if by == 0:  # block (0, 0) clears: for the others the region lies behind the tensor's end
                T.copy(zeros, Count[bx * experts])
            for s in T.serial(T.ceildiv(TileRows[by], block_M)):
                m0 = by * align + s * block_M
                T.clear(Y_local)
                for k in T.Pipelined(T.ceildiv(inter, block_K), num_stages=num_stages):
                    T.copy(H[m0, k * block_K], H_shared)
                    T.copy(W_down[expert, n0, k * block_K], W_shared)
                    T.gemm(H_shared, W_shared, Y_local, transpose_B=True)
                T.copy(Y_local, Y[m0, n0])

    traced: TileProgram = moe_down
    return traced
