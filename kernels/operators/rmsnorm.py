"""Root-mean-square normalisation of rows: ``Y = X / sqrt(mean(X²) + eps) · W``."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Operator, Param, Shape
from foretile.kernels.operators._common import full, random_operand, row_configs, row_variant, size, whole

EPS = 1e-6


def _row(shape: Shape, config: Config) -> TileProgram:
    """Whole rows on chip: X is read once."""
    rows, cols, dtype = shape["rows"], shape["cols"], full(shape["dtype"])
    block_rows, threads = config["block_rows"], config["threads"]

    @T.prim_func
    def rmsnorm(
        X: T.Tensor((rows, cols), dtype),
        W: T.Tensor((cols,), dtype),
        Y: T.Tensor((rows, cols), dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(rows, block_rows), threads=threads) as bx:
            X_local = T.alloc_fragment((block_rows, cols), "float32")
            X_square = T.alloc_fragment((block_rows, cols), "float32")
            W_local = T.alloc_fragment((cols,), "float32")
            rstd = T.alloc_fragment((block_rows,), "float32")
            T.copy(X[bx * block_rows, 0], X_local)
            T.copy(W, W_local)
            for i, j in T.Parallel(block_rows, cols):
                X_square[i, j] = X_local[i, j] * X_local[i, j]
            T.reduce_sum(X_square, rstd, dim=1)
            for i in T.Parallel(block_rows):
                rstd[i] = T.rsqrt(rstd[i] / cols + EPS)
            for i, j in T.Parallel(block_rows, cols):
                X_local[i, j] = X_local[i, j] * rstd[i] * W_local[j]
            T.copy(X_local, Y[bx * block_rows, 0])

    traced: TileProgram = rmsnorm
    return traced


def _tiled(shape: Shape, config: Config) -> TileProgram:
    """Two passes over tiles of columns: rows too long to stay on chip are read twice."""
    rows, cols, dtype = shape["rows"], shape["cols"], full(shape["dtype"])
    block_rows, block_cols = config["block_rows"], config["block_cols"]
    threads, num_stages = config["threads"], config["num_stages"]

    @T.prim_func
    def rmsnorm_tiled(
        X: T.Tensor((rows, cols), dtype),
        W: T.Tensor((cols,), dtype),
        Y: T.Tensor((rows, cols), dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(rows, block_rows), threads=threads) as bx:
            X_shared = T.alloc_shared((block_rows, block_cols), dtype)
            X_local = T.alloc_fragment((block_rows, block_cols), "float32")
            X_square = T.alloc_fragment((block_rows, block_cols), "float32")
            W_local = T.alloc_fragment((block_cols,), "float32")
            rstd = T.alloc_fragment((block_rows,), "float32")
            T.clear(X_square)  # columns past the end read as zero and add nothing
            for k in T.Pipelined(T.ceildiv(cols, block_cols), num_stages=num_stages):
                T.copy(X[bx * block_rows, k * block_cols], X_shared)
                T.copy(X_shared, X_local)
                for i, j in T.Parallel(block_rows, block_cols):
                    X_square[i, j] = X_square[i, j] + X_local[i, j] * X_local[i, j]
            T.reduce_sum(X_square, rstd, dim=1)
            for i in T.Parallel(block_rows):
                rstd[i] = T.rsqrt(rstd[i] / cols + EPS)
            for k in T.Pipelined(T.ceildiv(cols, block_cols), num_stages=num_stages):
                T.copy(X[bx * block_rows, k * block_cols], X_shared)
                T.copy(X_shared, X_local)
                T.copy(W[k * block_cols], W_local)
                for i, j in T.Parallel(block_rows, block_cols):
                    X_local[i, j] = X_local[i, j] * rstd[i] * W_local[j]
                T.copy(X_local, Y[bx * block_rows, k * block_cols])

    traced: TileProgram = rmsnorm_tiled
    return traced


def program(shape: Shape, config: Config) -> TileProgram:
    """Whole rows on chip (``variant`` "row"), or two passes over column tiles ("tiled")."""
    traced: TileProgram = row_variant("rmsnorm", {"row": _row, "tiled": _tiled}, config)(shape, config)
    return traced


def flops(shape: Shape) -> Any:
    """4·cols + 2 a row: cols squares, cols − 1 additions, mean, + eps, rsqrt, 2·cols products."""
    return whole(shape["rows"]) * (4 * whole(shape["cols"]) + 2)


def min_bytes(shape: Shape) -> Any:
    """X and W read once, Y written once."""
    rows, cols = whole(shape["rows"]), whole(shape["cols"])
    return (2 * rows + 1) * cols * size(shape["dtype"])


def inputs(shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """X of (rows, cols), W of (cols,)."""
    return {
        "X": random_operand(rng, (shape["rows"], shape["cols"]), shape["dtype"]),
        "W": random_operand(rng, (shape["cols"],), shape["dtype"]),
    }


def reference(shape: Shape, X: np.ndarray, W: np.ndarray) -> dict[str, np.ndarray]:
    """Y of (rows, cols) in float64, not rounded."""
    x = X.astype(np.float64)
    return {"Y": x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + EPS) * W.astype(np.float64)}


OPERATOR = Operator(
    name="rmsnorm",
    doc=(
        f"Row normalisation Y = X / sqrt(mean(X²) + {EPS:g}) · W, the mean over each row; "
        "X and Y are (rows, cols), W is (cols,)."
    ),
    params=(
        Param("rows", "rows (tokens)", dynamic=True),
        Param("cols", "elements of a row (hidden size)"),
        Param("dtype", "type of X, W and Y", kind="dtype", default="bf16", choices=("bf16", "fp16", "fp32")),
    ),
    program=program,
    configs=row_configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    compute_dtype=lambda shape: "fp32",
)
