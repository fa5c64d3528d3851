"""Gated activation of a packed projection: ``Y = silu(left half of X) · right half of X``."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, Shape
from foretile.kernels.operators._common import full, random_operand, size, whole
from foretile.kernels.operators._elementwise import (
    activation_tolerance,
    apply_gate,
    saturating,
    silu,
    tile_configs,
    tile_grid,
)
from foretile.kernels.operators._rows import in_computing_dtype, replacing, row_params, subnormals


def program(shape: Shape, config: Config) -> TileProgram:
    """One block a tile of ``block_rows`` × ``block_cols`` of Y; tiles in row-major order.

    A gate's tile that reaches over the left half reads a few columns of the right one; their results
    fall outside Y and are dropped.
    """
    rows, cols, dtype = shape["rows"], shape["cols"], full(shape["dtype"])
    block_rows, block_cols = config["block_rows"], config["block_cols"]
    blocks, col_tiles = tile_grid(shape, config)

    @T.prim_func
    def swiglu(X: T.Tensor((rows, 2 * cols), dtype), Y: T.Tensor((rows, cols), dtype)) -> None:
        with T.Kernel(blocks, threads=config["threads"]) as bx:
            gate = T.alloc_fragment((block_rows, block_cols), "float32")
            up = T.alloc_fragment((block_rows, block_cols), "float32")
            row, col = bx // col_tiles * block_rows, bx % col_tiles * block_cols
            T.copy(X[row, col], gate)
            T.copy(X[row, cols + col], up)
            apply_gate(gate, up)
            T.copy(gate, Y[row, col])

    traced: TileProgram = swiglu
    return traced


def flops(shape: Shape) -> Any:
    """5 an element of Y: negation, exponential, addition, division, product."""
    return 5 * whole(shape["rows"]) * whole(shape["cols"])


def min_bytes(shape: Shape) -> Any:
    """X of twice as many columns read once, Y written once."""
    return 3 * whole(shape["rows"]) * whole(shape["cols"]) * size(shape["dtype"])


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """X of (rows, 2·cols): gates on the left, what they scale on the right."""
    return {"X": random_operand(rng, (shape["rows"], 2 * shape["cols"]), shape["dtype"])}


def reference(shape: Shape, X: np.ndarray) -> Arrays:
    """Y of (rows, cols) in float64, not rounded."""
    cols = shape["cols"]
    return {"Y": silu(X[:, :cols]) * X[:, cols:].astype(np.float64)}


OPERATOR = Operator(
    name="swiglu",
    doc=(
        "Gated activation of one packed tensor, Y = G / (1 + exp(−G)) · U, G the left and U the right half "
        "of the columns of X; X is (rows, 2·cols), Y is (rows, cols)."
    ),
    params=row_params("X and Y", "elements of a row of Y (intermediate size)", cols_dynamic=True),
    program=program,
    configs=tile_configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    tolerance=activation_tolerance,
    adversarial=replacing(inputs, "X", saturating=saturating, subnormal=subnormals),
    example={"rows": 37, "cols": 300},
    compute_dtype=in_computing_dtype,
)
