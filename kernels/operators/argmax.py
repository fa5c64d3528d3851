"""Index of the first maximum of each row."""

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
    in_computing_dtype,
    mask_tail,
    masked_logits,
    replacing,
    row_params,
    subnormals,
)


@T.macro
def _row(X: Any, first: Any, bx: Any, shape: Shape, config: Config) -> None:
    """Whole rows on chip: the maximum, then the lowest index that holds it."""
    cols, block_rows = shape["cols"], config["block_rows"]
    X_local = T.alloc_fragment((block_rows, cols), "float32")
    place = T.alloc_fragment((block_rows, cols), "int32")
    row_max = T.alloc_fragment((block_rows,), "float32")
    T.copy(X[bx * block_rows, 0], X_local)
    T.reduce_max(X_local, row_max, dim=1)
    for i, j in T.Parallel(block_rows, cols):
        place[i, j] = T.if_then_else(X_local[i, j] == row_max[i], j, cols)
    T.reduce_min(place, first, dim=1)


@T.macro
def _tiled(X: Any, first: Any, bx: Any, shape: Shape, config: Config) -> None:
    """Tiles of columns: each place of a tile keeps its maximum and the first tile that held it."""
    cols, block_rows, block_cols = shape["cols"], config["block_rows"], config["block_cols"]
    X_shared = T.alloc_shared((block_rows, block_cols), X.dtype)
    X_local = T.alloc_fragment((block_rows, block_cols), "float32")
    best = T.alloc_fragment((block_rows, block_cols), "float32")
    place = T.alloc_fragment((block_rows, block_cols), "int32")
    row_max = T.alloc_fragment((block_rows,), "float32")
    T.fill(best, -T.infinity("float32"))
    T.clear(place)
    for k in T.Pipelined(T.ceildiv(cols, block_cols), num_stages=config["num_stages"]):
        T.copy(X[bx * block_rows, k * block_cols], X_shared)
        T.copy(X_shared, X_local)
        mask_tail(X_local, k * block_cols, cols)
        for i, j in T.Parallel(block_rows, block_cols):
            place[i, j] = T.if_then_else(X_local[i, j] > best[i, j], k, place[i, j])
            best[i, j] = T.max(best[i, j], X_local[i, j])
    T.reduce_max(best, row_max, dim=1)
    for i, j in T.Parallel(block_rows, block_cols):
        place[i, j] = T.if_then_else(best[i, j] == row_max[i], place[i, j] * block_cols + j, cols)
    T.reduce_min(place, first, dim=1)


def program(shape: Shape, config: Config) -> TileProgram:
    """Whole rows on chip (``variant`` "row"), or a pass over column tiles ("tiled")."""
    rows, cols, dtype = shape["rows"], shape["cols"], full(shape["dtype"])
    block_rows = config["block_rows"]
    find = row_variant("argmax", {"row": _row, "tiled": _tiled}, config)

    @T.prim_func
    def argmax(X: T.Tensor((rows, cols), dtype), Index: T.Tensor((rows,), "int32")) -> None:
        with T.Kernel(T.ceildiv(rows, block_rows), threads=config["threads"]) as bx:
            first = T.alloc_fragment((block_rows,), "int32")
            find(X, first, bx, shape, config)
            T.copy(first, Index[bx * block_rows])

    traced: TileProgram = argmax
    return traced


def flops(shape: Shape) -> Any:
    """cols − 1 comparisons a row."""
    return whole(shape["rows"]) * (whole(shape["cols"]) - 1)


def min_bytes(shape: Shape) -> Any:
    """X read once, Index (int32) written once."""
    return whole(shape["rows"]) * (whole(shape["cols"]) * size(shape["dtype"]) + size("int32"))


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """X of (rows, cols)."""
    return {"X": random_operand(rng, (shape["rows"], shape["cols"]), shape["dtype"])}


def few_values(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """Three different values: the maximum is held many times, in every tile."""
    return rng.integers(-1, 2, like.shape).astype(like.dtype)


def last_column(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """All values negative, the maximum in the last column: zeros read past the end must not win."""
    x = -1.0 - np.abs(rng.standard_normal(like.shape))
    x[:, -1] = -0.5
    return x.astype(like.dtype)


def infinities(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """Rows with −∞ and +∞ in turn, and rows of nothing but −∞, whose first maximum is at 0."""
    x = rng.choice([-np.inf, 1.0, np.inf], like.shape)
    x[1::2] = -np.inf
    return x.astype(like.dtype)


def reference(shape: Shape, X: np.ndarray) -> Arrays:
    """Index of (rows,), whole numbers in float64."""
    return {"Index": np.argmax(X.astype(np.float64), axis=1).astype(np.float64)}


def tolerance(shape: Shape) -> Tolerance:
    """None: nothing is rounded."""
    return Tolerance(0.0, 0.0)


OPERATOR = Operator(
    name="argmax",
    doc=(
        "Index of the largest element of each row, of equal ones the lowest; "
        "X is (rows, cols) without NaN, Index is (rows,) of int32."
    ),
    params=row_params("X", "elements of a row (vocabulary)"),
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
        few_values=few_values,
        equal=equal_rows,
        last_column=last_column,
        infinities=infinities,
        masked=masked_logits,
        subnormal=subnormals,
    ),
    example={"rows": 37, "cols": 300},
    compute_dtype=in_computing_dtype,
)
