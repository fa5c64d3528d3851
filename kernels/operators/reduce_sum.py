"""Sum of each row: ``Y = Σ X`` over the columns, in float32."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, Shape, Tolerance
from foretile.kernels.operators._common import full, random_operand, row_configs, row_variant, size, whole
from foretile.kernels.operators._rows import (
    equal_rows,
    float32_result,
    in_computing_dtype,
    replacing,
    row_params,
    subnormals,
    wide_range,
)


@T.macro
def _row(X: Any, Y_local: Any, bx: Any, shape: Shape, config: Config) -> None:
    """Whole rows on chip."""
    X_local = T.alloc_fragment((config["block_rows"], shape["cols"]), "float32")
    T.copy(X[bx * config["block_rows"], 0], X_local)
    T.reduce_sum(X_local, Y_local, dim=1)


@T.macro
def _tiled(X: Any, Y_local: Any, bx: Any, shape: Shape, config: Config) -> None:
    """Tiles of columns are added up place by place; one reduction at the end."""
    block_rows, block_cols = config["block_rows"], config["block_cols"]
    X_shared = T.alloc_shared((block_rows, block_cols), X.dtype)
    total = T.alloc_fragment((block_rows, block_cols), "float32")
    T.clear(total)  # columns past the end read as zero and add nothing
    for k in T.Pipelined(T.ceildiv(shape["cols"], block_cols), num_stages=config["num_stages"]):
        T.copy(X[bx * block_rows, k * block_cols], X_shared)
        for i, j in T.Parallel(block_rows, block_cols):
            total[i, j] = total[i, j] + X_shared[i, j]
    T.reduce_sum(total, Y_local, dim=1)


def program(shape: Shape, config: Config) -> TileProgram:
    """Whole rows on chip (``variant`` "row"), or a pass over column tiles ("tiled")."""
    rows, cols, dtype = shape["rows"], shape["cols"], full(shape["dtype"])
    block_rows = config["block_rows"]
    add_up = row_variant("reduce_sum", {"row": _row, "tiled": _tiled}, config)

    @T.prim_func
    def reduce_sum(X: T.Tensor((rows, cols), dtype), Y: T.Tensor((rows,), "float32")) -> None:
        with T.Kernel(T.ceildiv(rows, block_rows), threads=config["threads"]) as bx:
            Y_local = T.alloc_fragment((block_rows,), "float32")
            add_up(X, Y_local, bx, shape, config)
            T.copy(Y_local, Y[bx * block_rows])

    traced: TileProgram = reduce_sum
    return traced


def flops(shape: Shape) -> Any:
    """cols − 1 additions a row."""
    return whole(shape["rows"]) * (whole(shape["cols"]) - 1)


def min_bytes(shape: Shape) -> Any:
    """X read once, Y (float32) written once."""
    return whole(shape["rows"]) * (whole(shape["cols"]) * size(shape["dtype"]) + size("fp32"))


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """X of (rows, cols)."""
    return {"X": random_operand(rng, (shape["rows"], shape["cols"]), shape["dtype"])}


def alternating(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """Whole numbers up to 255 whose signs alternate: every partial sum of 65 thousand is exact in float32."""
    x = rng.integers(0, 256, like.shape)
    x[:, 1::2] *= -1
    return x.astype(like.dtype)


def reference(shape: Shape, X: np.ndarray) -> Arrays:
    """Y of (rows,) in float64, not rounded."""
    return {"Y": X.astype(np.float64).sum(axis=1)}


def tolerance(shape: Shape) -> Tolerance:
    """Float32 additions in any order: up to 4096 follow each other, and independent roundings add as √4096.

    Relative to the result, not to the sum of magnitudes: independent operands cancel in the partial sums
    as they do in the result.
    """
    return float32_result(64)


OPERATOR = Operator(
    name="reduce_sum",
    doc="Sum over each row, Y = Σ X in float32; X is (rows, cols), Y is (rows,).",
    params=row_params("X"),
    program=program,
    configs=row_configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    tolerance=tolerance,
    adversarial=replacing(
        inputs,
        "X",
        equal=equal_rows,
        wide_range=wide_range,
        subnormal=subnormals,
        alternating=alternating,
    ),
    example={"rows": 37, "cols": 300},
    compute_dtype=in_computing_dtype,
)
