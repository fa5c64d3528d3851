"""Root-mean-square normalisation of rows, of X or of X plus a residual R that is written out."""

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.operator import Config, Shape

EPS = 1e-6


@T.macro
def _scale_of_rows(X_square: Any, rstd: Any, cols: int) -> None:
    """``rstd`` = 1 / sqrt(mean + eps) from the squares of each row."""
    T.reduce_sum(X_square, rstd, dim=1)
    for i in T.Parallel(rstd.shape[0]):
        rstd[i] = T.rsqrt(rstd[i] / cols + EPS)


@T.macro
def _add(X_local: Any, R_tile: Any) -> None:
    """``X_local`` += ``R_tile``."""
    for i, j in T.Parallel(*X_local.shape):
        X_local[i, j] = X_local[i, j] + R_tile[i, j]


@T.macro
def norm_rows(X: Any, R: Any, W: Any, R_out: Any, Y: Any, bx: Any, shape: Shape, config: Config) -> None:
    """Whole rows on chip: X (and R, if there is one) is read once."""
    cols, block_rows = shape["cols"], config["block_rows"]
    X_local = T.alloc_fragment((block_rows, cols), "float32")
    X_square = T.alloc_fragment((block_rows, cols), "float32")
    W_local = T.alloc_fragment((cols,), "float32")
    rstd = T.alloc_fragment((block_rows,), "float32")
    T.copy(X[bx * block_rows, 0], X_local)
    if R is not None:
        T.copy(R[bx * block_rows, 0], X_square)
        _add(X_local, X_square)
        T.copy(X_local, R_out[bx * block_rows, 0])
    T.copy(W, W_local)
    for i, j in T.Parallel(block_rows, cols):
        X_square[i, j] = X_local[i, j] * X_local[i, j]
    _scale_of_rows(X_square, rstd, cols)
    for i, j in T.Parallel(block_rows, cols):
        X_local[i, j] = X_local[i, j] * rstd[i] * W_local[j]
    T.copy(X_local, Y[bx * block_rows, 0])


@T.macro
def norm_tiles(X: Any, R: Any, W: Any, R_out: Any, Y: Any, bx: Any, shape: Shape, config: Config) -> None:
    """Two passes over tiles of columns: rows too long to stay on chip are read twice.

    The second pass adds X and R again instead of reading R_out, whose rounding Y does not share.
    """
    cols, block_rows, block_cols = shape["cols"], config["block_rows"], config["block_cols"]
    num_stages = config["num_stages"]
    X_shared = T.alloc_shared((block_rows, block_cols), X.dtype)
    X_local = T.alloc_fragment((block_rows, block_cols), "float32")
    X_square = T.alloc_fragment((block_rows, block_cols), "float32")
    W_local = T.alloc_fragment((block_cols,), "float32")
    rstd = T.alloc_fragment((block_rows,), "float32")
    R_shared = T.alloc_shared((block_rows, block_cols), X.dtype) if R is not None else None
    T.clear(X_square)  # columns past the end read as zero and add nothing
    for k in T.Pipelined(T.ceildiv(cols, block_cols), num_stages=num_stages):
        T.copy(X[bx * block_rows, k * block_cols], X_shared)
        if R is not None:
            T.copy(R[bx * block_rows, k * block_cols], R_shared)
        T.copy(X_shared, X_local)
        if R is not None:
            _add(X_local, R_shared)
        for i, j in T.Parallel(block_rows, block_cols):
            X_square[i, j] = X_square[i, j] + X_local[i, j] * X_local[i, j]
    _scale_of_rows(X_square, rstd, cols)
    for k in T.Pipelined(T.ceildiv(cols, block_cols), num_stages=num_stages):
        T.copy(X[bx * block_rows, k * block_cols], X_shared)
        if R is not None:
            T.copy(R[bx * block_rows, k * block_cols], R_shared)
        T.copy(X_shared, X_local)
        if R is not None:
            _add(X_local, R_shared)
            T.copy(X_local, R_out[bx * block_rows, k * block_cols])
        T.copy(W[k * block_cols], W_local)
        for i, j in T.Parallel(block_rows, block_cols):
            X_local[i, j] = X_local[i, j] * rstd[i] * W_local[j]
        T.copy(X_local, Y[bx * block_rows, k * block_cols])


VARIANTS = {"row": norm_rows, "tiled": norm_tiles}

# float32 roundings of a result: the sum of squares (its terms are positive, so that its roundings
# do not grow with their number beyond the few levels of the sum; the root halves them), the mean,
# eps, the root and two products.
ROUNDINGS = 16


def zero_rows(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """Every other row zero, the others so small that eps matters."""
    x = rng.standard_normal(like.shape) * 1e-3
    x[::2] = 0.0
    return x.astype(like.dtype)


def normalised(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x / sqrt(mean(x²) + eps) · w over the last axis, in float64."""
    x = x.astype(np.float64)
    y: np.ndarray = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + EPS) * w.astype(np.float64)
    return y
