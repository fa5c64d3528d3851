"""Gated activation ``Out = silu(Gate) · Up`` with ``silu(x) = x / (1 + exp(−x))``."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Operator, Param, Shape
from foretile.kernels.operators._common import full, random_operand, size, whole


def program(shape: Shape, config: Config) -> TileProgram:
    """One block a tile of ``block_rows`` × ``block_cols``; tiles in row-major order."""
    rows, cols, dtype = shape["rows"], shape["cols"], full(shape["dtype"])
    block_rows, block_cols, threads = config["block_rows"], config["block_cols"], config["threads"]
    # One grid axis: the number of row tiles may exceed what chips allow on the second.
    col_tiles = T.ceildiv(cols, block_cols)

    @T.prim_func
    def silu_mul(
        Gate: T.Tensor((rows, cols), dtype),
        Up: T.Tensor((rows, cols), dtype),
        Out: T.Tensor((rows, cols), dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(rows, block_rows) * col_tiles, threads=threads) as bx:
            gate = T.alloc_fragment((block_rows, block_cols), "float32")
            up = T.alloc_fragment((block_rows, block_cols), "float32")
            row, col = bx // col_tiles * block_rows, bx % col_tiles * block_cols
            T.copy(Gate[row, col], gate)
            T.copy(Up[row, col], up)
            for i, j in T.Parallel(block_rows, block_cols):
                gate[i, j] = gate[i, j] / (1.0 + T.exp(-gate[i, j])) * up[i, j]
            T.copy(gate, Out[row, col])

    traced: TileProgram = silu_mul
    return traced


# (block_rows, block_cols, threads), likeliest first.
_TILES = (
    (1, 2048, 256),
    (1, 1024, 128),
    (2, 1024, 256),
    (1, 4096, 512),
    (1, 4096, 256),
    (2, 2048, 256),
    (4, 1024, 256),
    (4, 512, 256),
    (8, 256, 256),
    (1, 512, 128),
    (1, 1024, 256),
    (16, 128, 256),
    (32, 64, 256),
)


def configs(shape: Shape) -> list[Config]:
    """The space: tile shapes of 512 to 4096 elements."""
    return [{"block_rows": r, "block_cols": c, "threads": threads} for r, c, threads in _TILES]


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
    gate = Gate.astype(np.float64)
    return {"Out": gate / (1.0 + np.exp(-gate)) * Up.astype(np.float64)}


OPERATOR = Operator(
    name="silu_mul",
    doc="Gated activation Out = Gate / (1 + exp(−Gate)) · Up, element by element; all are (rows, cols).",
    params=(
        Param("rows", "rows (tokens)", dynamic=True),
        Param("cols", "elements of a row (intermediate size)", dynamic=True),
        Param("dtype", "type of all three", kind="dtype", default="bf16", choices=("bf16", "fp16", "fp32")),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    compute_dtype=lambda shape: "fp32",
)
