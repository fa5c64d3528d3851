"""Rotary position embedding: pairs of each head's elements turned by the angles of their position."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, OperatorError, Param, Shape, Tolerance
from foretile.kernels.operators._common import full, random_operand, size, whole
from foretile.kernels.operators._rows import (
    in_computing_dtype,
    replacing,
    rounded,
    row_params,
    subnormals,
    wide_range,
)

BASE = 10000.0  # of the angles' geometric series, J. Su et al., "RoFormer", arXiv:2104.09864


def program(shape: Shape, config: Config) -> TileProgram:
    """One block a tile of ``block_rows`` tokens and ``block_heads`` heads, which share the tables.

    Tiles go through shared memory: a pair's two elements are two places of a row, which no vector
    access of one thread need hold together.
    """
    rows, heads, cols = shape["rows"], shape["heads"], shape["cols"]
    dtype, interleaved, half = full(shape["dtype"]), shape["interleaved"], cols // 2
    block_rows, block_heads = config["block_rows"], config["block_heads"]
    tile = (block_rows, block_heads, cols)

    def pair(j: Any) -> tuple[Any, Any]:
        return (2 * j, 2 * j + 1) if interleaved else (j, half + j)

    @T.prim_func
    def rope(
        X: T.Tensor((rows, heads, cols), dtype),
        Cos: T.Tensor((rows, half), "float32"),
        Sin: T.Tensor((rows, half), "float32"),
        Y: T.Tensor((rows, heads, cols), dtype),
    ) -> None:
        head_tiles = T.ceildiv(heads, block_heads)
        with T.Kernel(T.ceildiv(rows, block_rows) * head_tiles, threads=config["threads"]) as bx:
            X_shared = T.alloc_shared(tile, dtype)
            Y_shared = T.alloc_shared(tile, dtype)
            cos = T.alloc_shared((block_rows, half), "float32")
            sin = T.alloc_shared((block_rows, half), "float32")
            row, head = bx // head_tiles * block_rows, bx % head_tiles * block_heads
            T.copy(X[row, head, 0], X_shared)
            T.copy(Cos[row, 0], cos)
            T.copy(Sin[row, 0], sin)
            for r, h, j in T.Parallel(block_rows, block_heads, half):
                a, b = pair(j)
                x = T.cast(X_shared[r, h, a], "float32")
                y = T.cast(X_shared[r, h, b], "float32")
                Y_shared[r, h, a] = x * cos[r, j] - y * sin[r, j]
                Y_shared[r, h, b] = x * sin[r, j] + y * cos[r, j]
            T.copy(Y_shared, Y[row, head, 0])

    traced: TileProgram = rope
    return traced


# (block_rows, block_heads, threads).
_TILES = (
    (1, 16, 128),
    (1, 32, 256),
    (2, 16, 256),
    (4, 8, 256),
    (1, 64, 256),
    (1, 128, 256),
    (8, 4, 256),
    (4, 4, 128),
    (16, 2, 256),
    (32, 1, 256),
    (16, 1, 128),
    (64, 1, 256),
)


def configs(shape: Shape) -> list[Config]:
    """The space: tokens and heads of a tile, those that pad the heads least first."""
    heads = int(np.max(shape["heads"]))
    tiles = sorted(_TILES, key=lambda tile: -(-heads // tile[1]) * tile[1])
    return [{"block_rows": r, "block_heads": h, "threads": threads} for r, h, threads in tiles]


def flops(shape: Shape) -> Any:
    """6 a pair: four products, a difference and an addition."""
    return 3 * whole(shape["rows"]) * whole(shape["heads"]) * shape["cols"]


def min_bytes(shape: Shape) -> Any:
    """X and the float32 tables read once, Y written once."""
    rows, heads, cols = whole(shape["rows"]), whole(shape["heads"]), shape["cols"]
    return rows * cols * (2 * heads * size(shape["dtype"]) + size("fp32"))


def _tables(angles: np.ndarray) -> Arrays:
    return {"Cos": np.cos(angles).astype(np.float32), "Sin": np.sin(angles).astype(np.float32)}


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """X of (rows, heads, cols); Cos and Sin of (rows, cols / 2) float32, row r at position r."""
    rows, cols = shape["rows"], shape["cols"]
    angles = np.arange(rows)[:, None] * BASE ** (-2.0 * np.arange(cols // 2) / cols)
    return {"X": random_operand(rng, (rows, shape["heads"], cols), shape["dtype"]), **_tables(angles)}


def any_angles(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Angles all around the circle, unrelated from pair to pair."""
    return inputs(shape, rng) | _tables(rng.uniform(-np.pi, np.pi, (shape["rows"], shape["cols"] // 2)))


def quarter_turns(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Exact quarter turns: elements are swapped and negated, a wrong pair or sign cannot hide."""
    turns = rng.integers(0, 4, (shape["rows"], shape["cols"] // 2))
    cos, sin = np.array([1, 0, -1, 0])[turns], np.array([0, 1, 0, -1])[turns]
    return inputs(shape, rng) | {"Cos": cos.astype(np.float32), "Sin": sin.astype(np.float32)}


def reference(shape: Shape, X: np.ndarray, Cos: np.ndarray, Sin: np.ndarray) -> Arrays:
    """Y of (rows, heads, cols) in float64, not rounded: a product of complex numbers for each pair."""
    x, half = X.astype(np.float64), shape["cols"] // 2
    first = slice(0, None, 2) if shape["interleaved"] else slice(0, half)
    second = slice(1, None, 2) if shape["interleaved"] else slice(half, None)
    turn = Cos.astype(np.float64) + 1j * Sin.astype(np.float64)
    turned = (x[..., first] + 1j * x[..., second]) * turn[:, None, :]
    y = np.empty_like(x)
    y[..., first], y[..., second] = turned.real, turned.imag
    return {"Y": y}


def tolerance(shape: Shape) -> Tolerance:
    """Y rounded to its type, after two products and a sum in float32 (relative to the pair's length)."""
    return rounded(shape, 2)


def check(shape: Shape) -> None:
    """Refuse rows that are not made of pairs."""
    if shape["cols"] % 2:
        raise OperatorError(f"rope: cols={shape['cols']} is odd; the elements of a head are turned in pairs")


OPERATOR = Operator(
    name="rope",
    doc=(
        "Rotary embedding: each pair (x, y) of a head becomes (x·cos − y·sin, x·sin + y·cos). Pairs are "
        "elements 2j and 2j + 1 (interleaved) or j and cols/2 + j. X and Y are (rows, heads, cols), "
        "Cos and Sin are (rows, cols / 2) in float32."
    ),
    params=(
        *row_params("X and Y", "elements of a head that are turned, an even number"),
        Param("heads", "heads of a row, turned alike", default=1, dynamic=True),
        Param("interleaved", "pairs side by side; otherwise half a head apart", kind="bool", default=True),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    check=check,
    tolerance=tolerance,
    adversarial={
        "any_angles": any_angles,
        "quarter_turns": quarter_turns,
        **replacing(inputs, "X", wide_range=wide_range, subnormal=subnormals),
    },
    example={"rows": 37, "cols": 24, "heads": 5},
    compute_dtype=in_computing_dtype,
)
