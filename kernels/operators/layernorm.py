"""Layer normalisation of rows: ``Y = (X − mean X) / sqrt(var X + eps) · W + B``."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, Shape, Tolerance
from foretile.kernels.operators._common import full, random_operand, row_configs, row_variant, size, whole
from foretile.kernels.operators._rows import (
    in_computing_dtype,
    replacing,
    rounded,
    row_params,
    subnormals,
    wide_range,
)

EPS = 1e-5
OFFSET = 64  # largest |mean| / sqrt(var + eps) of a row that the tolerance allows for


@T.macro
def _row(X: Any, W: Any, B: Any, Y: Any, bx: Any, shape: Shape, config: Config) -> None:
    """Whole rows on chip: mean first, then the variance of what is left (two passes over registers)."""
    cols, block_rows = shape["cols"], config["block_rows"]
    X_local = T.alloc_fragment((block_rows, cols), "float32")
    X_square = T.alloc_fragment((block_rows, cols), "float32")
    W_local = T.alloc_fragment((cols,), "float32")
    B_local = T.alloc_fragment((cols,), "float32")
    mean = T.alloc_fragment((block_rows,), "float32")
    rstd = T.alloc_fragment((block_rows,), "float32")
    T.copy(X[bx * block_rows, 0], X_local)
    T.copy(W, W_local)
    T.copy(B, B_local)
    T.reduce_sum(X_local, mean, dim=1)
    for i in T.Parallel(block_rows):
        mean[i] = mean[i] / cols
    for i, j in T.Parallel(block_rows, cols):
        X_local[i, j] = X_local[i, j] - mean[i]
    for i, j in T.Parallel(block_rows, cols):
        X_square[i, j] = X_local[i, j] * X_local[i, j]
    T.reduce_sum(X_square, rstd, dim=1)
    for i in T.Parallel(block_rows):
        rstd[i] = T.rsqrt(rstd[i] / cols + EPS)
    for i, j in T.Parallel(block_rows, cols):
        X_local[i, j] = X_local[i, j] * rstd[i] * W_local[j] + B_local[j]
    T.copy(X_local, Y[bx * block_rows, 0])


def _seen(j: Any, cols: Any, block_cols: int) -> Any:
    """How many values column ``j`` of a tile sees in all, in float32."""
    return T.cast((cols - j + block_cols - 1) // block_cols, "float32")


@T.macro
def _tiled(X: Any, W: Any, B: Any, Y: Any, bx: Any, shape: Shape, config: Config) -> None:
    """Two passes over tiles of columns; the first keeps Welford's mean and squares for each place of a tile.

    Column j of a tile sees ``_seen(j)`` values in all. The places' means and squares are merged by Chan's
    formula: the squares about the row's mean are those about the place's mean plus seen · (difference)².
    """
    cols, block_rows, block_cols = shape["cols"], config["block_rows"], config["block_cols"]
    tiles, num_stages = T.ceildiv(cols, block_cols), config["num_stages"]
    X_shared = T.alloc_shared((block_rows, block_cols), X.dtype)
    X_local = T.alloc_fragment((block_rows, block_cols), "float32")
    place_mean = T.alloc_fragment((block_rows, block_cols), "float32")
    place_square = T.alloc_fragment((block_rows, block_cols), "float32")
    W_local = T.alloc_fragment((block_cols,), "float32")
    B_local = T.alloc_fragment((block_cols,), "float32")
    mean = T.alloc_fragment((block_rows,), "float32")
    rstd = T.alloc_fragment((block_rows,), "float32")
    share: Any = T.alloc_var("float32")

    T.clear(place_mean)
    T.clear(place_square)
    for k in T.Pipelined(tiles, num_stages=num_stages):
        T.copy(X[bx * block_rows, k * block_cols], X_shared)
        T.copy(X_shared, X_local)
        share = 1.0 / T.cast(k + 1, "float32")
        for i, j in T.Parallel(block_rows, block_cols):
            X_local[i, j] = X_local[i, j] - place_mean[i, j]
        if cols % block_cols:
            for i, j in T.Parallel(block_rows, block_cols):
                X_local[i, j] = T.if_then_else(k * block_cols + j < cols, X_local[i, j], 0.0)
        for i, j in T.Parallel(block_rows, block_cols):
            place_mean[i, j] = place_mean[i, j] + X_local[i, j] * share
            place_square[i, j] = place_square[i, j] + X_local[i, j] * X_local[i, j] * (1.0 - share)
    for i, j in T.Parallel(block_rows, block_cols):
        X_local[i, j] = place_mean[i, j] * _seen(j, cols, block_cols)
    T.reduce_sum(X_local, mean, dim=1)
    for i in T.Parallel(block_rows):
        mean[i] = mean[i] / cols
    for i, j in T.Parallel(block_rows, block_cols):
        X_local[i, j] = place_mean[i, j] - mean[i]
    for i, j in T.Parallel(block_rows, block_cols):
        place_square[i, j] = place_square[i, j] + X_local[i, j] * X_local[i, j] * _seen(j, cols, block_cols)
    T.reduce_sum(place_square, rstd, dim=1)
    for i in T.Parallel(block_rows):
        rstd[i] = T.rsqrt(rstd[i] / cols + EPS)
    for k in T.Pipelined(tiles, num_stages=num_stages):
        T.copy(X[bx * block_rows, k * block_cols], X_shared)
        T.copy(X_shared, X_local)
        T.copy(W[k * block_cols], W_local)
        T.copy(B[k * block_cols], B_local)
        for i, j in T.Parallel(block_rows, block_cols):
            X_local[i, j] = (X_local[i, j] - mean[i]) * rstd[i] * W_local[j] + B_local[j]
        T.copy(X_local, Y[bx * block_rows, k * block_cols])


def program(shape: Shape, config: Config) -> TileProgram:
    """Whole rows on chip (``variant`` "row"), or two passes over column tiles ("tiled")."""
    rows, cols, dtype = shape["rows"], shape["cols"], full(shape["dtype"])
    normalise = row_variant("layernorm", {"row": _row, "tiled": _tiled}, config)

    @T.prim_func
    def layernorm(
        X: T.Tensor((rows, cols), dtype),
        W: T.Tensor((cols,), dtype),
        B: T.Tensor((cols,), dtype),
        Y: T.Tensor((rows, cols), dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(rows, config["block_rows"]), threads=config["threads"]) as bx:
            normalise(X, W, B, Y, bx, shape, config)

    traced: TileProgram = layernorm
    return traced


def flops(shape: Shape) -> Any:
    """7·cols + 2 a row.

    cols − 1 additions and a division for the mean; cols differences, cols squares, cols − 1 additions and
    a division for the variance; an addition and a root; two products and an addition an element.
    """
    return whole(shape["rows"]) * (7 * whole(shape["cols"]) + 2)


def min_bytes(shape: Shape) -> Any:
    """X, W and B read once, Y written once."""
    rows, cols = whole(shape["rows"]), whole(shape["cols"])
    return (2 * rows + 2) * cols * size(shape["dtype"])


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """X of (rows, cols), W and B of (cols,)."""
    dims = {"X": (shape["rows"], shape["cols"]), "W": (shape["cols"],), "B": (shape["cols"],)}
    return {name: random_operand(rng, extents, shape["dtype"]) for name, extents in dims.items()}


def far_from_zero(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """Rows whose mean is ±64 deviations: mean of squares minus squared mean would lose the variance."""
    sign = np.where(rng.random((like.shape[0], 1)) < 0.5, -1.0, 1.0)
    return (OFFSET * sign + rng.standard_normal(like.shape)).astype(like.dtype)


def constant_rows(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """One value a row, up to 64 times √eps: the variance is zero, Y is B."""
    value = rng.uniform(-OFFSET, OFFSET, (like.shape[0], 1)) * EPS**0.5
    return np.broadcast_to(value, like.shape).astype(like.dtype)


def reference(shape: Shape, X: np.ndarray, W: np.ndarray, B: np.ndarray) -> Arrays:
    """Y of (rows, cols) in float64, not rounded."""
    centred = X.astype(np.float64)
    centred -= centred.mean(axis=1, keepdims=True)
    deviation = np.sqrt(np.mean(centred * centred, axis=1, keepdims=True) + EPS)
    return {"Y": centred / deviation * W.astype(np.float64) + B.astype(np.float64)}


def tolerance(shape: Shape) -> Tolerance:
    """Y rounded to its type, after float32 roundings that the row's mean magnifies.

    A mean that is off by a few (eight here) roundings of itself moves all results of the row by as many
    times |mean| / sqrt(var + eps), which is at most 64 in the operands given here. A variance taken as
    mean of squares minus squared mean would be off by that ratio squared.
    """
    return rounded(shape, 8 * OFFSET)


OPERATOR = Operator(
    name="layernorm",
    doc=(
        f"Layer normalisation Y = (X − mean X) / sqrt(var X + {EPS:g}) · W + B, "
        "mean and variance over each row; X and Y are (rows, cols), W and B are (cols,)."
    ),
    params=row_params("all tensors", "elements of a row (hidden size)"),
    program=program,
    configs=row_configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    tolerance=tolerance,
    adversarial=replacing(
        inputs, "X", far=far_from_zero, constant=constant_rows, wide_range=wide_range, subnormal=subnormals
    ),
    example={"rows": 37, "cols": 300},
    compute_dtype=in_computing_dtype,
)
