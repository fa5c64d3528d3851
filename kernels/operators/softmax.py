"""Softmax of rows: ``Y = exp(X − max X) / Σ exp(X − max X)``."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Operator, Param, Shape
from foretile.kernels.operators._common import (
    LOG2E,
    LOWEST,
    full,
    random_operand,
    row_configs,
    row_variant,
    size,
    whole,
)


def _row(shape: Shape, config: Config) -> TileProgram:
    """Whole rows on chip: X is read once."""
    rows, cols, dtype = shape["rows"], shape["cols"], full(shape["dtype"])
    block_rows, threads = config["block_rows"], config["threads"]

    @T.prim_func
    def softmax(X: T.Tensor((rows, cols), dtype), Y: T.Tensor((rows, cols), dtype)) -> None:
        with T.Kernel(T.ceildiv(rows, block_rows), threads=threads) as bx:
            X_local = T.alloc_fragment((block_rows, cols), "float32")
            row_max = T.alloc_fragment((block_rows,), "float32")
            row_sum = T.alloc_fragment((block_rows,), "float32")
            T.copy(X[bx * block_rows, 0], X_local)
            T.reduce_max(X_local, row_max, dim=1)
            for i, j in T.Parallel(block_rows, cols):
                X_local[i, j] = T.exp2(X_local[i, j] * LOG2E - row_max[i] * LOG2E)
            T.reduce_sum(X_local, row_sum, dim=1)
            for i, j in T.Parallel(block_rows, cols):
                X_local[i, j] = X_local[i, j] / row_sum[i]
            T.copy(X_local, Y[bx * block_rows, 0])

    traced: TileProgram = softmax
    return traced


def _tiled(shape: Shape, config: Config) -> TileProgram:
    """Two passes over tiles of columns (online softmax): rows too long to stay on chip are read twice."""
    rows, cols, dtype = shape["rows"], shape["cols"], full(shape["dtype"])
    block_rows, block_cols = config["block_rows"], config["block_cols"]
    threads, num_stages = config["threads"], config["num_stages"]

    @T.prim_func
    def softmax_tiled(X: T.Tensor((rows, cols), dtype), Y: T.Tensor((rows, cols), dtype)) -> None:
        with T.Kernel(T.ceildiv(rows, block_rows), threads=threads) as bx:
            X_shared = T.alloc_shared((block_rows, block_cols), dtype)
            X_local = T.alloc_fragment((block_rows, block_cols), "float32")
            row_max = T.alloc_fragment((block_rows,), "float32")
            row_max_prev = T.alloc_fragment((block_rows,), "float32")
            row_sum = T.alloc_fragment((block_rows,), "float32")
            tile_sum = T.alloc_fragment((block_rows,), "float32")
            T.fill(row_max, LOWEST)
            T.clear(row_sum)
            for k in T.Pipelined(T.ceildiv(cols, block_cols), num_stages=num_stages):
                T.copy(X[bx * block_rows, k * block_cols], X_shared)
                T.copy(X_shared, X_local)
                if cols % block_cols:
                    for i, j in T.Parallel(block_rows, block_cols):
                        X_local[i, j] = T.if_then_else(
                            k * block_cols + j < cols, X_local[i, j], -T.infinity("float32")
                        )
                T.copy(row_max, row_max_prev)
                T.reduce_max(X_local, row_max, dim=1, clear=False)
                for i, j in T.Parallel(block_rows, block_cols):
                    X_local[i, j] = T.exp2(X_local[i, j] * LOG2E - row_max[i] * LOG2E)
                T.reduce_sum(X_local, tile_sum, dim=1)
                for i in T.Parallel(block_rows):
                    row_sum[i] = row_sum[i] * T.exp2((row_max_prev[i] - row_max[i]) * LOG2E) + tile_sum[i]
            for k in T.Pipelined(T.ceildiv(cols, block_cols), num_stages=num_stages):
                T.copy(X[bx * block_rows, k * block_cols], X_shared)
                T.copy(X_shared, X_local)
                for i, j in T.Parallel(block_rows, block_cols):
                    X_local[i, j] = T.exp2(X_local[i, j] * LOG2E - row_max[i] * LOG2E) / row_sum[i]
                T.copy(X_local, Y[bx * block_rows, k * block_cols])

    traced: TileProgram = softmax_tiled
    return traced


def program(shape: Shape, config: Config) -> TileProgram:
    """Whole rows on chip (``variant`` "row"), or two passes over column tiles ("tiled")."""
    traced: TileProgram = row_variant("softmax", {"row": _row, "tiled": _tiled}, config)(shape, config)
    return traced


def flops(shape: Shape) -> Any:
    """5·cols − 2 a row: cols − 1 maxima and additions, cols subtractions, exponentials and divisions."""
    return whole(shape["rows"]) * (5 * whole(shape["cols"]) - 2)


def min_bytes(shape: Shape) -> Any:
    """X read once, Y written once."""
    return 2 * whole(shape["rows"]) * whole(shape["cols"]) * size(shape["dtype"])


def inputs(shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """X of (rows, cols)."""
    return {"X": random_operand(rng, (shape["rows"], shape["cols"]), shape["dtype"])}


def reference(shape: Shape, X: np.ndarray) -> dict[str, np.ndarray]:
    """Y of (rows, cols) in float64, not rounded."""
    x = X.astype(np.float64)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return {"Y": e / e.sum(axis=1, keepdims=True)}


OPERATOR = Operator(
    name="softmax",
    doc="Softmax over each row, Y = exp(X − max X) / Σ exp(X − max X); X and Y are (rows, cols).",
    params=(
        Param("rows", "rows", dynamic=True),
        Param("cols", "elements of a row"),
        Param("dtype", "type of X and Y", kind="dtype", default="bf16", choices=("bf16", "fp16", "fp32")),
    ),
    program=program,
    configs=row_configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    compute_dtype=lambda shape: "fp32",
)
