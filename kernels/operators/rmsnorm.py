"""Root-mean-square normalisation of rows: ``Y = X / sqrt(mean(X²) + eps) · W``."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Operator, Shape, Tolerance
from foretile.kernels.operators._common import full, random_operand, row_configs, row_variant, size, whole
from foretile.kernels.operators._rmsnorm import EPS, ROUNDINGS, VARIANTS, normalised, zero_rows
from foretile.kernels.operators._rows import (
    equal_rows,
    in_computing_dtype,
    replacing,
    rounded,
    row_params,
    subnormals,
    wide_range,
)


def program(shape: Shape, config: Config) -> TileProgram:
    """Whole rows on chip (``variant`` "row"), or two passes over column tiles ("tiled")."""
    rows, cols, dtype = shape["rows"], shape["cols"], full(shape["dtype"])
    normalise = row_variant("rmsnorm", VARIANTS, config)

    @T.prim_func
    def rmsnorm(
        X: T.Tensor((rows, cols), dtype),
        W: T.Tensor((cols,), dtype),
        Y: T.Tensor((rows, cols), dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(rows, config["block_rows"]), threads=config["threads"]) as bx:
            normalise(X, None, W, None, Y, bx, shape, config)

    traced: TileProgram = rmsnorm
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
    return {"Y": normalised(X, W)}


def tolerance(shape: Shape) -> Tolerance:
    """Y rounded to its type, after a few roundings of float32."""
    return rounded(shape, ROUNDINGS)


OPERATOR = Operator(
    name="rmsnorm",
    doc=(
        f"Row normalisation Y = X / sqrt(mean(X²) + {EPS:g}) · W, the mean over each row; "
        "X and Y are (rows, cols), W is (cols,)."
    ),
    params=row_params("X, W and Y", "elements of a row (hidden size)"),
    program=program,
    configs=row_configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    tolerance=tolerance,
    adversarial=replacing(
        inputs, "X", equal=equal_rows, wide_range=wide_range, subnormal=subnormals, zero_rows=zero_rows
    ),
    compute_dtype=in_computing_dtype,
    example={"rows": 37, "cols": 300},
)
