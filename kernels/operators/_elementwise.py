"""What elementwise operators on (rows, cols) share: tiles, the gate of SwiGLU, provoking operands."""

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.operator import Config, Shape, Tolerance
from foretile.kernels.operators._rows import rounded

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


def tile_configs(shape: Shape) -> list[Config]:
    """The space: tile shapes of 512 to 4096 elements."""
    return [{"block_rows": r, "block_cols": c, "threads": threads} for r, c, threads in _TILES]


def tile_grid(shape: Shape, config: Config) -> tuple[Any, Any]:
    """Blocks in all and column tiles of a row; tiles come in row-major order.

    One grid axis: the number of row tiles may exceed what chips allow on the second.
    """
    col_tiles = T.ceildiv(shape["cols"], config["block_cols"])
    return T.ceildiv(shape["rows"], config["block_rows"]) * col_tiles, col_tiles


@T.macro
def apply_gate(gate: Any, up: Any) -> None:
    """``gate`` becomes silu(gate) · up."""
    for i, j in T.Parallel(*gate.shape):
        gate[i, j] = gate[i, j] / (1.0 + T.exp(-gate[i, j])) * up[i, j]


def silu(x: np.ndarray) -> np.ndarray:
    """x / (1 + exp(−x)) in float64, without overflow for any x."""
    x = x.astype(np.float64)
    e = np.exp(-np.abs(x))
    y: np.ndarray = np.where(x >= 0, x, x * e) / (1.0 + e)
    return y


def saturating(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """Arguments from −200 to 200: exp(−x) overflows float32 at one end and vanishes at the other."""
    return rng.uniform(-200, 200, like.shape).astype(like.dtype)


def activation_tolerance(shape: Shape) -> Tolerance:
    """Results rounded to their type, after a few (eight here) roundings of float32.

    A rounding of the exponent −x moves exp(−x) by x·2⁻²⁴ of itself: much where x is large, but there the
    function is nearly x, or nearly zero, and errors are relative to the largest results.
    """
    return rounded(shape, 8)
