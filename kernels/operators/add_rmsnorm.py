"""Residual addition and normalisation in one pass: ``R_out = X + R``, ``Y = rmsnorm(R_out) · W``."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, Shape, Tolerance
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
    normalise = row_variant("add_rmsnorm", VARIANTS, config)

    @T.prim_func
    def add_rmsnorm(
        X: T.Tensor((rows, cols), dtype),
        R: T.Tensor((rows, cols), dtype),
        W: T.Tensor((cols,), dtype),
        R_out: T.Tensor((rows, cols), dtype),
        Y: T.Tensor((rows, cols), dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(rows, config["block_rows"]), threads=config["threads"]) as bx:
            normalise(X, R, W, R_out, Y, bx, shape, config)

    traced: TileProgram = add_rmsnorm
    return traced


def flops(shape: Shape) -> Any:
    """5·cols + 2 a row.

    cols additions, then cols squares, cols − 1 additions, mean, + eps, rsqrt, 2·cols products.
    """
    return whole(shape["rows"]) * (5 * whole(shape["cols"]) + 2)


def min_bytes(shape: Shape) -> Any:
    """X, R and W read once, R_out and Y written once."""
    rows, cols = whole(shape["rows"]), whole(shape["cols"])
    return (4 * rows + 1) * cols * size(shape["dtype"])


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """X and R of (rows, cols), W of (cols,)."""
    dims = {"X": (shape["rows"], shape["cols"]), "R": (shape["rows"], shape["cols"]), "W": (shape["cols"],)}
    return {name: random_operand(rng, extents, shape["dtype"]) for name, extents in dims.items()}


def cancelling(shape: Shape, rng: np.random.Generator) -> Arrays:
    """R close to −X: what is left of the sum is a few units of the last place of X."""
    usual = inputs(shape, rng)
    noise = 1.0 + 0.01 * rng.standard_normal(usual["X"].shape)
    return usual | {"R": (-usual["X"].astype(np.float64) * noise).astype(usual["X"].dtype)}


def reference(shape: Shape, X: np.ndarray, R: np.ndarray, W: np.ndarray) -> Arrays:
    """R_out and Y of (rows, cols) in float64, not rounded: Y is of the exact sum."""
    total = X.astype(np.float64) + R.astype(np.float64)
    return {"R_out": total, "Y": normalised(total, W)}


def tolerance(shape: Shape) -> Tolerance:
    """Both rounded to their type; before that a sum in float32, and for Y the normalisation."""
    return rounded(shape, 1 + ROUNDINGS)


OPERATOR = Operator(
    name="add_rmsnorm",
    doc=(
        f"Residual addition with normalisation, R_out = X + R, Y = R_out / sqrt(mean(R_out²) + {EPS:g}) · W, "
        "the mean over each row of the sum before it is rounded; "
        "X, R, R_out and Y are (rows, cols), W is (cols,)."
    ),
    params=row_params("all tensors", "elements of a row (hidden size)"),
    program=program,
    configs=row_configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    tolerance=tolerance,
    adversarial={
        "cancelling": cancelling,
        **replacing(
            inputs, "X R", equal=equal_rows, wide_range=wide_range, subnormal=subnormals, zero_rows=zero_rows
        ),
    },
    example={"rows": 37, "cols": 300},
    compute_dtype=in_computing_dtype,
)
