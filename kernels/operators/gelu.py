"""Gaussian error linear unit: ``Y = X · Φ(X)``, exact or by its approximation with tanh."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

import math
from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, Param, Shape
from foretile.kernels.operators._common import full, random_operand, size, whole
from foretile.kernels.operators._elementwise import (
    activation_tolerance,
    saturating,
    tile_configs,
    tile_grid,
)
from foretile.kernels.operators._rows import (
    in_computing_dtype,
    replacing,
    row_params,
    subnormals,
    wide_range,
)

# tanh form: tanh(√(2/π)·(x + 0.044715·x³)), D. Hendrycks and K. Gimpel, "Gaussian Error Linear Units",
# arXiv:1606.08415, written as x · (LINEAR + CUBIC·x²).
LINEAR = math.sqrt(2.0 / math.pi)
CUBIC = 0.044715 * LINEAR


def program(shape: Shape, config: Config) -> TileProgram:
    """One block a tile of ``block_rows`` × ``block_cols``; tiles in row-major order."""
    rows, cols, dtype, tanh = shape["rows"], shape["cols"], full(shape["dtype"]), shape["tanh"]
    block_rows, block_cols = config["block_rows"], config["block_cols"]
    blocks, col_tiles = tile_grid(shape, config)

    @T.prim_func
    def gelu(X: T.Tensor((rows, cols), dtype), Y: T.Tensor((rows, cols), dtype)) -> None:
        with T.Kernel(blocks, threads=config["threads"]) as bx:
            x = T.alloc_fragment((block_rows, block_cols), "float32")
            y = T.alloc_fragment((block_rows, block_cols), "float32")
            row, col = bx // col_tiles * block_rows, bx % col_tiles * block_cols
            T.copy(X[row, col], x)
            for i, j in T.Parallel(block_rows, block_cols):
                if tanh:
                    y[i, j] = T.tanh(x[i, j] * (LINEAR + x[i, j] * x[i, j] * CUBIC))
                else:
                    y[i, j] = T.erf(x[i, j] * math.sqrt(0.5))
            for i, j in T.Parallel(block_rows, block_cols):
                y[i, j] = x[i, j] * 0.5 * (1.0 + y[i, j])
            T.copy(y, Y[row, col])

    traced: TileProgram = gelu
    return traced


def flops(shape: Shape) -> Any:
    """5 an element: a product, the error function, an addition, two products; 8 with tanh.

    There the argument of the function takes four: a square, a product, an addition and a product.
    """
    return (8 if shape["tanh"] else 5) * whole(shape["rows"]) * whole(shape["cols"])


def min_bytes(shape: Shape) -> Any:
    """X read once, Y written once."""
    return 2 * whole(shape["rows"]) * whole(shape["cols"]) * size(shape["dtype"])


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """X of (rows, cols)."""
    return {"X": random_operand(rng, (shape["rows"], shape["cols"]), shape["dtype"])}


def reference(shape: Shape, X: np.ndarray) -> Arrays:
    """Y of (rows, cols) in float64, not rounded; the exact form by the complementary error function."""
    from scipy.special import erfc

    x = X.astype(np.float64)
    if shape["tanh"]:
        return {"Y": 0.5 * x * (1.0 + np.tanh(x * (LINEAR + CUBIC * x * x)))}
    return {"Y": 0.5 * x * erfc(-x * math.sqrt(0.5))}


OPERATOR = Operator(
    name="gelu",
    doc=(
        "Gaussian error linear unit Y = X/2 · (1 + erf(X/√2)), or with tanh "
        "Y = X/2 · (1 + tanh(√(2/π) · (X + 0.044715·X³))); X and Y are (rows, cols)."
    ),
    params=(
        *row_params("X and Y", "elements of a row (intermediate size)", cols_dynamic=True),
        Param("tanh", "the approximation with tanh, not the error function", kind="bool", default=False),
    ),
    program=program,
    configs=tile_configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    tolerance=activation_tolerance,
    adversarial=replacing(inputs, "X", saturating=saturating, wide_range=wide_range, subnormal=subnormals),
    example={"rows": 37, "cols": 300},
    compute_dtype=in_computing_dtype,
)
