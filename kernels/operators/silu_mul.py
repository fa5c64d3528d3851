"""Gated activation ``Out = silu(Gate) · Up`` with ``silu(x) = x / (1 + exp(−x))``."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Operator, Shape
from foretile.kernels.operators._common import full, random_operand, size, whole
from foretile.kernels.operators._elementwise import (
    activation_tolerance,
    apply_gate,
    saturating,
    silu,
    tile_configs,
    tile_grid,
)
from foretile.kernels.operators._rows import (
    equal_rows,
    in_computing_dtype,
    replacing,
    row_params,
    subnormals,
    wide_range,
)


def program(shape: Shape, config: Config) -> TileProgram:
    """One block a tile of ``block_rows`` × ``block_cols``; tiles in row-major order."""
    rows, cols, dtype = shape["rows"], shape["cols"], full(shape["dtype"])
    block_rows, block_cols = config["block_rows"], config["block_cols"]
    blocks, col_tiles = tile_grid(shape, config)

    @T.prim_func
    def silu_mul(
        Gate: T.Tensor((rows, cols), dtype),
        Up: T.Tensor((rows, cols), dtype),
        Out: T.Tensor((rows, cols), dtype),
    ) -> None:
        with T.Kernel(blocks, threads=config["threads"]) as bx:
            gate = T.alloc_fragment((block_rows, block_cols), "float32")
            up = T.alloc_fragment((block_rows, block_cols), "float32")
            row, col = bx // col_tiles * block_rows, bx % col_tiles * block_cols
            T.copy(Gate[row, col], gate)
            T.copy(Up[row, col], up)
            apply_gate(gate, up)
            T.copy(gate, Out[row, col])

    traced: TileProgram = silu_mul
    return traced


def flops(shape: Shape) -> Any:
    """5 an element: negation, exponential, addition, division, product."""
    return 5 * whole(shape["rows"]) * whole(shape["cols"])


def min_bytes(shape: Shape) -> Any:
    """Gate and Up read once, Out written once."""
    return 3 * whole(shape["rows"]) * whole(shape["cols"]) * size(shape["dtype"])


def inputs(shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Gate and Up of (rows, cols)."""
    dims = (shape["rows"], shape["cols"])
    return {name: random_operand(rng, dims, shape["dtype"]) for name in ("Gate", "Up")}


def reference(shape: Shape, Gate: np.ndarray, Up: np.ndarray) -> dict[str, np.ndarray]:
    """Out of (rows, cols) in float64, not rounded."""
    return {"Out": silu(Gate) * Up.astype(np.float64)}


OPERATOR = Operator(
    name="silu_mul",
    doc="Gated activation Out = Gate / (1 + exp(−Gate)) · Up, element by element; all are (rows, cols).",
    params=row_params("all three", "elements of a row (intermediate size)", cols_dynamic=True),
    program=program,
    configs=tile_configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    tolerance=activation_tolerance,
    adversarial=replacing(inputs, "Gate", saturating=saturating, wide_range=wide_range)
    | replacing(inputs, "Gate Up", equal=equal_rows, subnormal=subnormals),
    compute_dtype=in_computing_dtype,
    example={"rows": 37, "cols": 300},
)
