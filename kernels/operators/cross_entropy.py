"""Cross entropy of each row: ``Loss = log Σ exp(Logits) − Logits[Target]``."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, Shape, Tolerance
from foretile.kernels.operators._common import (
    LOWEST,
    full,
    random_operand,
    row_configs,
    row_variant,
    size,
    whole,
)
from foretile.kernels.operators._rows import (
    equal_rows,
    exponentials,
    float32_result,
    in_computing_dtype,
    mask_tail,
    masked_logits,
    online_sum,
    row_params,
    subnormals,
    wide_range,
)


@T.macro
def _row(Logits: Any, row_max: Any, row_sum: Any, bx: Any, shape: Shape, config: Config) -> None:
    """Whole rows on chip."""
    X_local = T.alloc_fragment((config["block_rows"], shape["cols"]), "float32")
    T.copy(Logits[bx * config["block_rows"], 0], X_local)
    T.reduce_max(X_local, row_max, dim=1)
    exponentials(X_local, row_max, row_sum)


@T.macro
def _tiled(Logits: Any, row_max: Any, row_sum: Any, bx: Any, shape: Shape, config: Config) -> None:
    """Tiles of columns, each read once (online log-sum-exp)."""
    cols, block_rows, block_cols = shape["cols"], config["block_rows"], config["block_cols"]
    X_shared = T.alloc_shared((block_rows, block_cols), Logits.dtype)
    X_local = T.alloc_fragment((block_rows, block_cols), "float32")
    T.fill(row_max, LOWEST)
    T.clear(row_sum)
    for k in T.Pipelined(T.ceildiv(cols, block_cols), num_stages=config["num_stages"]):
        T.copy(Logits[bx * block_rows, k * block_cols], X_shared)
        T.copy(X_shared, X_local)
        mask_tail(X_local, k * block_cols, cols)
        online_sum(X_local, row_max, row_sum)


def program(shape: Shape, config: Config) -> TileProgram:
    """Whole rows on chip (``variant`` "row"), or a pass over column tiles ("tiled").

    The target's logit is fetched by its index; the maximum is subtracted from it first, so that large
    logits cost no accuracy.
    """
    rows, cols, dtype = shape["rows"], shape["cols"], full(shape["dtype"])
    block_rows = config["block_rows"]
    log_sum_exp = row_variant("cross_entropy", {"row": _row, "tiled": _tiled}, config)

    @T.prim_func
    def cross_entropy(
        Logits: T.Tensor((rows, cols), dtype),
        Target: T.Tensor((rows,), "int32"),
        Loss: T.Tensor((rows,), "float32"),
    ) -> None:
        with T.Kernel(T.ceildiv(rows, block_rows), threads=config["threads"]) as bx:
            row_max = T.alloc_fragment((block_rows,), "float32")
            row_sum = T.alloc_fragment((block_rows,), "float32")
            target = T.alloc_fragment((block_rows,), "int32")
            loss = T.alloc_fragment((block_rows,), "float32")
            T.copy(Target[bx * block_rows], target)
            log_sum_exp(Logits, row_max, row_sum, bx, shape, config)
            for i in T.Parallel(block_rows):
                # Rows past the end read target 0 of the last row.
                logit = Logits[T.min(bx * block_rows + i, rows - 1), target[i]]
                loss[i] = T.log(row_sum[i]) + (row_max[i] - T.cast(logit, "float32"))
            T.copy(loss, Loss[bx * block_rows])

    traced: TileProgram = cross_entropy
    return traced


def flops(shape: Shape) -> Any:
    """4·cols + 1 a row.

    cols − 1 maxima, cols differences, cols exponentials, cols − 1 additions; then a logarithm, the
    difference of the maximum and the target's logit, and an addition.
    """
    return whole(shape["rows"]) * (4 * whole(shape["cols"]) + 1)


def min_bytes(shape: Shape) -> Any:
    """Logits and Target (int32) read once, Loss (float32) written once."""
    return whole(shape["rows"]) * (whole(shape["cols"]) * size(shape["dtype"]) + size("int32") + size("fp32"))


def _with_targets(rng: np.random.Generator, logits: np.ndarray) -> Arrays:
    """Each row's target a random one of its finite logits."""
    chance = np.where(np.isfinite(logits.astype(np.float64)), rng.random(logits.shape), -1.0)
    return {"Logits": logits, "Target": np.argmax(chance, axis=1).astype(np.int32)}


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Logits of (rows, cols), Target of (rows,) int32 in [0, cols)."""
    return _with_targets(rng, random_operand(rng, (shape["rows"], shape["cols"]), shape["dtype"]))


def _adversarial(kind: Any) -> Any:
    return lambda shape, rng: _with_targets(rng, kind(rng, inputs(shape, rng)["Logits"]))


def far_from_zero(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """Logits near ±10⁴, whose exponentials overflow or vanish unless the maximum is taken off first."""
    sign = np.where(rng.random((like.shape[0], 1)) < 0.5, -1.0, 1.0)
    return (1e4 * sign + 100.0 * rng.standard_normal(like.shape)).astype(like.dtype)


def targets_at_the_edges(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Targets in the first and the last column in turn."""
    target = np.where(np.arange(shape["rows"]) % 2, 0, shape["cols"] - 1)
    return inputs(shape, rng) | {"Target": target.astype(np.int32)}


def reference(shape: Shape, Logits: np.ndarray, Target: np.ndarray) -> Arrays:
    """Loss of (rows,) in float64, not rounded."""
    x = Logits.astype(np.float64)
    top = x.max(axis=1)
    chosen = np.take_along_axis(x, Target.astype(np.int64)[:, None], axis=1)[:, 0]
    return {"Loss": np.log(np.exp(x - top[:, None]).sum(axis=1)) + (top - chosen)}


def tolerance(shape: Shape) -> Tolerance:
    """Float32: exponentials within a few roundings, a sum of positive terms, a logarithm, two additions.

    The error of the sum's logarithm is absolute, some roundings of one; losses are about log(cols), and
    those near zero (a target far above the rest) are held to the largest loss of the operands.
    """
    return float32_result(16)


OPERATOR = Operator(
    name="cross_entropy",
    doc=(
        "Cross entropy of each row, Loss = log Σ exp(Logits) − Logits[Target] (natural logarithm, float32); "
        "Logits is (rows, cols), Target is (rows,) of int32 in [0, cols), Loss is (rows,)."
    ),
    params=row_params("Logits", "elements of a row (vocabulary)"),
    program=program,
    configs=row_configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    tolerance=tolerance,
    adversarial={
        "edges": targets_at_the_edges,
        "equal": _adversarial(equal_rows),
        "wide_range": _adversarial(wide_range),
        "subnormal": _adversarial(subnormals),
        "masked": _adversarial(masked_logits),
        "far": _adversarial(far_from_zero),
    },
    example={"rows": 37, "cols": 300},
    compute_dtype=in_computing_dtype,
)
