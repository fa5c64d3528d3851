"""Token rows copied into expert-contiguous order, every expert's rows padded with zeros to a tile."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, Param, Shape, Tolerance
from foretile.kernels.operators._common import full, random_operand, size, whole
from foretile.kernels.operators._moe import scatter_row
from foretile.kernels.operators._moe_host import (
    ALIGNMENT,
    adversarial_rows,
    check_topk,
    expert_loads,
    routed_rows,
    routing_sizes,
    rows_bound,
)


def _rows(shape: Shape) -> Any:
    return rows_bound(shape["tokens"], shape["experts"], shape["topk"], shape["align"])


def _scatter(shape: Shape, config: Config) -> TileProgram:
    """One block a token: its row is read once and written ``topk`` times, and those rows marked used."""
    tokens, hidden, topk, dtype = shape["tokens"], shape["hidden"], shape["topk"], full(shape["dtype"])
    rows, threads = _rows(shape), config["threads"]

    @T.prim_func
    def moe_permute(
        X: T.Tensor((tokens, hidden), dtype),
        Rows: T.Tensor((tokens, topk), "int32"),
        X_sorted: T.Tensor((rows, hidden), dtype),
        Used: T.Tensor((rows,), "int32"),
    ) -> None:
        with T.Kernel(tokens, threads=threads) as bx:
            scatter_row(X, Rows, X_sorted, bx, 0, hidden, dtype)
            for j in T.Parallel(topk):
                Used[Rows[bx, j]] = 1

    traced: TileProgram = moe_permute
    return traced


def _pad(shape: Shape, config: Config) -> TileProgram:
    """One block some rows: zeros where no token went; the marks are left zero for the next call."""
    hidden, dtype, rows, threads = shape["hidden"], full(shape["dtype"]), _rows(shape), config["threads"]
    block_rows = config["block_rows"]

    @T.prim_func
    def moe_permute_pad(
        X_sorted: T.Tensor((rows, hidden), dtype),
        Used: T.Tensor((rows,), "int32"),
    ) -> None:
        with T.Kernel(T.ceildiv(rows, block_rows), threads=threads) as bx:
            zeros = T.alloc_fragment((hidden,), dtype)
            unused = T.alloc_fragment((block_rows,), "int32")
            T.clear(zeros)
            T.clear(unused)
            for r in T.serial(T.min(block_rows, rows - bx * block_rows)):
                if Used[bx * block_rows + r] == 0:
                    T.copy(zeros, X_sorted[bx * block_rows + r, 0])
            T.copy(unused, Used[bx * block_rows])

    traced: TileProgram = moe_permute_pad
    return traced


def program(shape: Shape, config: Config) -> tuple[TileProgram, TileProgram]:
    """Two launches: tokens to their rows, then zeros to the rows no token went to."""
    return _scatter(shape, config), _pad(shape, config)


# (rows of a block that pads, threads), likeliest first.
_TILES = (
    (8, 256),
    (8, 128),
    (16, 256),
    (4, 256),
    (16, 128),
    (32, 256),
    (8, 512),
    (16, 512),
    (4, 128),
    (32, 1024),
)


def configs(shape: Shape) -> list[Config]:
    """The space: rows of a block of the second launch, threads of both."""
    return [{"block_rows": rows, "threads": threads} for rows, threads in _TILES]


def flops(shape: Shape) -> Any:
    """None: rows are copied."""
    return 0 * whole(shape["tokens"])


def min_bytes(shape: Shape) -> Any:
    """X and Rows read once; every row of X_sorted, padding included, written once."""
    tokens, topk, hidden, experts = (whole(shape[n]) for n in ("tokens", "topk", "hidden", "experts"))
    rows = rows_bound(tokens, experts, topk, shape["align"])
    return (tokens + rows) * hidden * size(shape["dtype"]) + 4 * tokens * topk


def _operands(shape: Shape, rng: np.random.Generator, loads: np.ndarray) -> Arrays:
    return {
        "X": random_operand(rng, (shape["tokens"], shape["hidden"]), shape["dtype"]),
        "Rows": routed_rows(shape, rng, loads),
    }


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """X of (tokens, hidden); Rows of (tokens, topk) int32, destinations of an even routing."""
    return _operands(shape, rng, expert_loads(*routing_sizes(shape), 0))


def reference(shape: Shape, X: np.ndarray, Rows: np.ndarray) -> Arrays:
    """X_sorted of (rows, hidden), zero where no token goes."""
    result = np.zeros((_rows(shape), shape["hidden"]), np.float64)
    for j in range(shape["topk"]):
        result[Rows[:, j]] = X.astype(np.float64)
    return {"X_sorted": result}


def tensors(shape: Shape) -> Arrays:
    """Rows of an even routing, and the rows it uses."""
    tokens, experts, topk = routing_sizes(shape)
    rows = routed_rows(shape, np.random.default_rng(0), expert_loads(tokens, experts, topk, 0))
    used = np.zeros(rows_bound(tokens, experts, topk, shape["align"]), dtype=np.int32)
    used[rows] = 1
    return {"Rows": rows, "Used": used}


OPERATOR = Operator(
    name="moe_permute",
    doc=(
        "Rows of tokens into expert-contiguous order: X_sorted[Rows[t, j]] = X[t], zeros elsewhere. X is "
        "(tokens, hidden), Rows (tokens, topk) int32 and X_sorted (rows, hidden) with rows = n + min(n, "
        "experts)·(align − 1), n = tokens·topk, rounded up to align: room for every routing with each "
        "expert's rows padded to align (the contiguous layout of DeepGEMM)."
    ),
    params=(
        Param("tokens", "tokens", dynamic=True),
        Param("hidden", "elements of a row"),
        Param("topk", "rows that each token goes to"),
        Param("experts", "experts", dynamic=True),
        Param("dtype", "type of X", kind="dtype", default="bf16", choices=("bf16", "fp16", "fp8", "fp32")),
        Param("align", "multiple to which an expert's rows are padded", default=ALIGNMENT),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    check=lambda shape: check_topk("moe_permute", shape),
    tensors=tensors,
    tolerance=lambda shape: Tolerance(norm=0.0, peak=0.0),
    adversarial=adversarial_rows(_operands),
    example={"tokens": 50, "hidden": 200, "topk": 3, "experts": 8},
)
