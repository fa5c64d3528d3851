"""Weighted sum of every token's expert rows: ``O[t] = Σ_j Weights[t, j] · Y[Rows[t, j]]``."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, Param, Shape
from foretile.kernels.operators._common import full, random_operand, size, whole
from foretile.kernels.operators._moe import combine_rows


def program(shape: Shape, config: Config) -> TileProgram:
    """One block a token and part of its columns; the rows arrive ``num_stages`` ahead."""
    tokens, hidden, topk, dtype = shape["tokens"], shape["hidden"], shape["topk"], full(shape["dtype"])
    block_h, num_stages, threads = config["block_h"], config["num_stages"], config["threads"]

    @T.prim_func
    def moe_combine(
        Y: T.Tensor((tokens * topk, hidden), dtype),
        Rows: T.Tensor((tokens, topk), "int32"),
        Weights: T.Tensor((tokens, topk), "float32"),
        O: T.Tensor((tokens, hidden), dtype),  # noqa: E741
    ) -> None:
        with T.Kernel(T.ceildiv(hidden, block_h), tokens, threads=threads) as (bx, by):
            combine_rows(Y, Rows, Weights, O, by, bx * block_h, block_h, num_stages, dtype)

    traced: TileProgram = moe_combine
    return traced


# (block_h, num_stages, threads), likeliest first.
_TILES = (
    (2048, 4, 256),
    (1024, 4, 128),
    (4096, 3, 256),
    (2048, 8, 256),
    (2048, 3, 128),
    (1024, 8, 128),
    (4096, 2, 512),
    (512, 4, 64),
    (512, 8, 64),
    (256, 4, 32),
    (8192, 2, 512),
)


def configs(shape: Shape) -> list[Config]:
    """The space: columns of a block, rows in flight, threads."""
    return [{"block_h": h, "num_stages": stages, "threads": threads} for h, stages, threads in _TILES]


def flops(shape: Shape) -> Any:
    """tokens·hidden·(2·topk − 1): topk products and topk − 1 additions a result."""
    return whole(shape["tokens"]) * whole(shape["hidden"]) * (2 * whole(shape["topk"]) - 1)


def min_bytes(shape: Shape) -> Any:
    """Y, Rows and Weights read once, O written once."""
    tokens, hidden, topk = (whole(shape[name]) for name in ("tokens", "hidden", "topk"))
    return tokens * (topk + 1) * hidden * size(shape["dtype"]) + 8 * tokens * topk


def _operands(shape: Shape, rng: np.random.Generator, weights: np.ndarray) -> Arrays:
    tokens, topk = shape["tokens"], shape["topk"]
    return {
        "Y": random_operand(rng, (tokens * topk, shape["hidden"]), shape["dtype"]),
        "Rows": rng.permutation(tokens * topk).astype(np.int32).reshape(tokens, topk),
        "Weights": weights.astype(np.float32),
    }


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Y of (tokens·topk, hidden), Rows of (tokens, topk) a permutation of its rows, positive Weights."""
    return _operands(shape, rng, rng.uniform(0.1, 1.0, (shape["tokens"], shape["topk"])))


def _wide(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Weights over eight decades: small terms must not be lost before the sum is rounded."""
    return _operands(shape, rng, 10.0 ** rng.uniform(-8.0, 0.0, (shape["tokens"], shape["topk"])))


def _zero(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Some weights zero, for some tokens all of them."""
    weights = rng.integers(0, 2, (shape["tokens"], shape["topk"])) * 1.0
    weights[::3] = 0.0
    weights[-1, -1] = 1.0
    return _operands(shape, rng, weights)


def reference(shape: Shape, Y: np.ndarray, Rows: np.ndarray, Weights: np.ndarray) -> Arrays:
    """O of (tokens, hidden) in float64, not rounded."""
    return {"O": np.einsum("tj,tjh->th", Weights.astype(np.float64), Y.astype(np.float64)[Rows])}


OPERATOR = Operator(
    name="moe_combine",
    doc=(
        "Weighted sum of expert rows O[t] = Σ_j Weights[t, j] · Y[Rows[t, j]] in fp32: Y is (tokens·topk, "
        "hidden), Rows (tokens, topk) int32, Weights (tokens, topk) fp32, O (tokens, hidden)."
    ),
    params=(
        Param("tokens", "tokens", dynamic=True),
        Param("hidden", "elements of a row", dynamic=True),
        Param("topk", "rows of each token"),
        Param("dtype", "type of Y and O", kind="dtype", default="bf16", choices=("bf16", "fp16", "fp32")),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    adversarial={"wide_weights": _wide, "zero_weights": _zero},
    compute_dtype=lambda shape: "fp32",
    example={"tokens": 50, "hidden": 200, "topk": 3},
)
