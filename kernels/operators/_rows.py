"""What operators on rows share: parameters, tolerances, provoking operands, the online softmax's sum."""

from collections.abc import Callable
from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.operator import Arrays, Param, Shape, Tolerance, storage_tolerance
from foretile.kernels.operators._common import LOG2E

ROW_DTYPES = ("bf16", "fp16", "fp32")
Inputs = Callable[[Shape, np.random.Generator], Arrays]
Kind = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def row_params(
    typed: str, cols: str = "elements of a row", *, cols_dynamic: bool = False
) -> tuple[Param, ...]:
    """``rows``, ``cols`` and ``dtype``; ``typed`` says what the type is of, ``cols`` what a row holds."""
    return (
        Param("rows", "rows (tokens)", dynamic=True),
        Param("cols", cols, dynamic=cols_dynamic),
        Param("dtype", f"type of {typed}", kind="dtype", default="bf16", choices=ROW_DTYPES),
    )


def rounded(shape: Shape, roundings: float) -> Tolerance:
    """One rounding to the stored type after ``roundings`` roundings of float32 arithmetic (2⁻²⁴ each)."""
    stored = storage_tolerance(shape)
    spent = roundings * 2.0**-24
    return Tolerance(norm=stored.norm + spent, peak=stored.peak + 2.0 * spent)


def float32_result(roundings: float) -> Tolerance:
    """A float32 result after ``roundings`` roundings of float32 arithmetic."""
    return rounded({"dtype": "fp32"}, roundings)


def in_computing_dtype(shape: Shape) -> str:
    """Row operators compute in fp32 whatever they store."""
    return "fp32"


def smallest_number(stored: np.dtype[Any]) -> float:
    """The smallest positive (subnormal) number of a floating-point type."""
    return float(np.nextafter(stored.type(0), stored.type(1)))


def equal_rows(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """One random value a row: no spread, every element the maximum."""
    value = rng.standard_normal((*like.shape[:-1], 1))
    return np.broadcast_to(value, like.shape).astype(like.dtype)


def wide_range(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """Normal values times 2⁻¹⁰ to 2¹⁰ within each row: as far as fp16 reaches without overflow."""
    scale = np.exp2(rng.uniform(-10, 10, like.shape))
    return (rng.standard_normal(like.shape) * scale).astype(like.dtype)


def subnormals(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """Every other value a few times the type's smallest number, the rest normal."""
    tiny = smallest_number(like.dtype) * rng.integers(-7, 8, like.shape)
    return np.where(rng.random(like.shape) < 0.5, tiny, rng.standard_normal(like.shape)).astype(like.dtype)


def masked_logits(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """Half of each row −∞, in every other row the first three quarters too; the last value is finite."""
    x = rng.standard_normal(like.shape)
    x[rng.random(like.shape) < 0.5] = -np.inf
    x[::2, : like.shape[1] * 3 // 4] = -np.inf
    x[:, -1] = rng.standard_normal(like.shape[0])
    return x.astype(like.dtype)


def replacing(inputs: Inputs, names: str, **kinds: Kind) -> dict[str, Inputs]:
    """``inputs`` with the operands ``names`` (separated by spaces) replaced by each kind in turn."""

    def of(kind: Kind) -> Inputs:
        def make(shape: Shape, rng: np.random.Generator) -> Arrays:
            usual = inputs(shape, rng)
            return usual | {name: kind(rng, usual[name]) for name in names.split()}

        return make

    return {name: of(kind) for name, kind in kinds.items()}


@T.macro
def mask_tail(X_local: Any, first: Any, cols: int) -> None:
    """A tile whose first column is ``first``: −∞ in the columns past the last."""
    if cols % X_local.shape[1]:
        for i, j in T.Parallel(*X_local.shape):
            X_local[i, j] = T.if_then_else(first + j < cols, X_local[i, j], -T.infinity("float32"))


@T.macro
def exponentials(X_local: Any, row_max: Any, row_sum: Any) -> None:
    """``X_local`` becomes exp(X − row_max), ``row_sum`` its sum over each row.

    The difference is taken first: it is exact where it matters (near the maximum), however large X.
    """
    for i, j in T.Parallel(*X_local.shape):
        X_local[i, j] = T.exp2((X_local[i, j] - row_max[i]) * LOG2E)
    T.reduce_sum(X_local, row_sum, dim=1)


@T.macro
def online_sum(X_local: Any, row_max: Any, row_sum: Any) -> None:
    """One tile of an online softmax: the running maximum and the sum of exponentials relative to it.

    ``X_local`` of (rows, columns) becomes exp(X − row_max).
    """
    row_max_prev = T.alloc_fragment(row_max.shape, "float32")
    tile_sum = T.alloc_fragment(row_max.shape, "float32")
    T.copy(row_max, row_max_prev)
    T.reduce_max(X_local, row_max, dim=1, clear=False)
    exponentials(X_local, row_max, tile_sum)
    for i in T.Parallel(row_max.shape[0]):
        row_sum[i] = row_sum[i] * T.exp2((row_max_prev[i] - row_max[i]) * LOG2E) + tile_sum[i]
