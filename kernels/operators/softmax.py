"""Softmax of rows: ``Y = exp(X − max X) / Σ exp(X − max X)``."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Operator, Shape, Tolerance
from foretile.kernels.operators._common import (
    LOG2E,
    LOWEST,
    full,
    numpy_dtype,
    random_operand,
    row_configs,
    row_variant,
    size,
    whole,
)
from foretile.kernels.operators._rows import (
    equal_rows,
    exponentials,
    in_computing_dtype,
    mask_tail,
    masked_logits,
    online_sum,
    replacing,
    rounded,
    row_params,
    smallest_number,
    subnormals,
    wide_range,
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
            exponentials(X_local, row_max, row_sum)
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
            row_sum = T.alloc_fragment((block_rows,), "float32")
            T.fill(row_max, LOWEST)
            T.clear(row_sum)
            for k in T.Pipelined(T.ceildiv(cols, block_cols), num_stages=num_stages):
                T.copy(X[bx * block_rows, k * block_cols], X_shared)
                T.copy(X_shared, X_local)
                mask_tail(X_local, k * block_cols, cols)
                online_sum(X_local, row_max, row_sum)
            for k in T.Pipelined(T.ceildiv(cols, block_cols), num_stages=num_stages):
                T.copy(X[bx * block_rows, k * block_cols], X_shared)
                T.copy(X_shared, X_local)
                for i, j in T.Parallel(block_rows, block_cols):
                    X_local[i, j] = T.exp2((X_local[i, j] - row_max[i]) * LOG2E) / row_sum[i]
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


def tolerance(shape: Shape) -> Tolerance:
    """Y rounded to its type, after the roundings of an exponential, of a sum and of a division.

    A rounding of the exponent d moves exp(−d) by d·2⁻²⁴ of itself: most, relative to the row's largest
    result, where d is small. Results below the type's normal numbers are rounded by half the smallest
    one, s, whatever their size. A row's results sum to one, their root mean square is at least 1/cols:
    this adds cols·s/2 (only fp16, whose range ends at 6e-5, notices, in long flat rows).
    """
    usual = rounded(shape, 16)
    subnormal = shape["cols"] * smallest_number(numpy_dtype(shape["dtype"])) / 2.0
    return Tolerance(norm=usual.norm + subnormal, peak=usual.peak + subnormal)


OPERATOR = Operator(
    name="softmax",
    doc="Softmax over each row, Y = exp(X − max X) / Σ exp(X − max X); X and Y are (rows, cols).",
    params=row_params("X and Y"),
    program=program,
    configs=row_configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    tolerance=tolerance,
    adversarial=replacing(
        inputs, "X", equal=equal_rows, wide_range=wide_range, subnormal=subnormals, masked=masked_logits
    ),
    compute_dtype=in_computing_dtype,
    example={"rows": 37, "cols": 300},
)
