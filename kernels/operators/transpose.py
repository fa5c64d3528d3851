"""Transposition of a matrix: ``Y = Xᵀ``."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, Param, Shape, Tolerance
from foretile.kernels.operators._common import full, random_operand, size, whole
from foretile.kernels.operators._rows import in_computing_dtype


def program(shape: Shape, config: Config) -> TileProgram:
    """One block a tile: read along its rows into shared memory, written along its columns.

    The shared tile is swizzled, so that reading a column does not meet one bank over and over.
    """
    rows, cols, dtype = shape["rows"], shape["cols"], full(shape["dtype"])
    block_rows, block_cols = config["block_rows"], config["block_cols"]
    col_tiles = T.ceildiv(cols, block_cols)

    @T.prim_func
    def transpose(X: T.Tensor((rows, cols), dtype), Y: T.Tensor((cols, rows), dtype)) -> None:
        with T.Kernel(T.ceildiv(rows, block_rows) * col_tiles, threads=config["threads"]) as bx:
            X_shared = T.alloc_shared((block_rows, block_cols), dtype)
            Y_local = T.alloc_fragment((block_cols, block_rows), dtype)
            T.annotate_layout({X_shared: T.make_swizzled_layout(X_shared)})
            row, col = bx // col_tiles * block_rows, bx % col_tiles * block_cols
            T.copy(X[row, col], X_shared)
            for j, i in T.Parallel(block_cols, block_rows):
                Y_local[j, i] = X_shared[i, j]
            T.copy(Y_local, Y[col, row])

    traced: TileProgram = transpose
    return traced


# (block_rows, block_cols, threads), likeliest first.
_TILES = (
    (64, 64, 256),
    (64, 64, 128),
    (128, 64, 256),
    (64, 128, 256),
    (128, 128, 256),
    (128, 128, 512),
    (32, 64, 128),
    (64, 32, 128),
    (32, 32, 128),
    (32, 128, 256),
    (128, 32, 256),
)


def configs(shape: Shape) -> list[Config]:
    """The space: tiles of 1024 to 16384 elements."""
    return [{"block_rows": r, "block_cols": c, "threads": threads} for r, c, threads in _TILES]


def flops(shape: Shape) -> Any:
    """None: zero, in the shape of ``rows`` and ``cols``."""
    return 0 * whole(shape["rows"]) * whole(shape["cols"])


def min_bytes(shape: Shape) -> Any:
    """Every element read once and written once."""
    return 2 * whole(shape["rows"]) * whole(shape["cols"]) * size(shape["dtype"])


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """X of (rows, cols)."""
    return {"X": random_operand(rng, (shape["rows"], shape["cols"]), shape["dtype"])}


def every_pattern(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Random bytes as elements: subnormal numbers, both zeros and the largest; NaN and ∞ made zero."""
    usual = inputs(shape, rng)["X"]
    x = rng.integers(0, 256, usual.nbytes, dtype=np.uint8).view(usual.dtype).reshape(usual.shape)
    with np.errstate(invalid="ignore"):  # signalling NaN
        finite = np.isfinite(x.astype(np.float64))
    return {"X": np.where(finite, x, np.zeros((), usual.dtype))}


def reference(shape: Shape, X: np.ndarray) -> Arrays:
    """Y of (cols, rows) in float64."""
    return {"Y": X.astype(np.float64).T}


def tolerance(shape: Shape) -> Tolerance:
    """None: elements are moved as they are."""
    return Tolerance(0.0, 0.0)


OPERATOR = Operator(
    name="transpose",
    doc="Transposition Y = Xᵀ; X is (rows, cols), Y is (cols, rows).",
    params=(
        Param("rows", "rows of X", dynamic=True),
        Param("cols", "columns of X", dynamic=True),
        Param(
            "dtype",
            "type of X and Y",
            kind="dtype",
            default="bf16",
            choices=("bf16", "fp16", "fp32", "fp8", "int8", "int32"),
        ),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    tolerance=tolerance,
    adversarial={"every_pattern": every_pattern},
    example={"rows": 70, "cols": 90},
    compute_dtype=in_computing_dtype,
)
