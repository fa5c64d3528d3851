"""Matrix-vector product ``y = A x``: every element of A is used once, so its bytes are the time."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, Param, Shape, Tolerance
from foretile.kernels.operators._common import full, random_operand, size, whole
from foretile.kernels.operators._scaled_gemm import product_tolerance


def program(shape: Shape, config: Config) -> TileProgram:
    """One block ``block_n`` rows of A, walked in tiles of ``block_k`` columns.

    Each thread keeps partial sums of its own elements of the tile; only after the last tile are
    they added up over the threads.
    """
    N, K, dtype = shape["n"], shape["k"], full(shape["dtype"])
    block_N, block_K = config["block_n"], config["block_k"]
    threads, num_stages = config["threads"], config["num_stages"]

    @T.prim_func
    def gemv(
        A: T.Tensor((N, K), dtype),
        x: T.Tensor((K,), dtype),
        y: T.Tensor((N,), dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(N, block_N), threads=threads) as bx:
            A_shared = T.alloc_shared((block_N, block_K), dtype)
            x_shared = T.alloc_shared((block_K,), dtype)
            A_local = T.alloc_fragment((block_N, block_K), dtype)
            x_local = T.alloc_fragment((block_K,), dtype)
            partial = T.alloc_fragment((block_N, block_K), "float32")
            y_local = T.alloc_fragment((block_N,), "float32")
            T.clear(partial)  # columns past the end read as zero and add nothing
            for ko in T.Pipelined(T.ceildiv(K, block_K), num_stages=num_stages):
                T.copy(A[bx * block_N, ko * block_K], A_shared)
                T.copy(x[ko * block_K], x_shared)
                T.copy(A_shared, A_local)
                T.copy(x_shared, x_local)
                for i, j in T.Parallel(block_N, block_K):
                    partial[i, j] = partial[i, j] + T.cast(A_local[i, j], "float32") * T.cast(
                        x_local[j], "float32"
                    )
            T.reduce_sum(partial, y_local, dim=1)
            T.copy(y_local, y[bx * block_N])

    traced: TileProgram = gemv
    return traced


# (block_n, bytes of a row of a tile, num_stages, threads), likeliest first.
_TILES = (
    (8, 1024, 4, 128),
    (8, 1024, 3, 256),
    (4, 1024, 4, 128),
    (4, 2048, 4, 128),
    (4, 4096, 3, 256),
    (2, 2048, 4, 128),
    (2, 4096, 4, 128),
    (1, 4096, 4, 128),
    (1, 2048, 4, 64),
    (1, 8192, 3, 256),
    (16, 512, 4, 128),
    (16, 1024, 3, 256),
    (32, 512, 4, 256),
    (64, 256, 4, 256),
)


def configs(shape: Shape) -> list[Config]:
    """The space: rows of a block, tiles by bytes of a row, tiles in flight and threads."""
    return [
        {"block_n": n, "block_k": row // size(shape["dtype"]), "num_stages": stages, "threads": threads}
        for n, row, stages, threads in _TILES
    ]


def flops(shape: Shape) -> Any:
    """2·n·k: one multiplication and one addition a term."""
    return 2 * whole(shape["n"]) * whole(shape["k"])


def min_bytes(shape: Shape) -> Any:
    """A and x read once, y written once."""
    n, k = whole(shape["n"]), whole(shape["k"])
    return (n * k + n + k) * size(shape["dtype"])


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """A of (n, k), x of (k,)."""
    return {
        "A": random_operand(rng, (shape["n"], shape["k"]), shape["dtype"]),
        "x": random_operand(rng, (shape["k"],), shape["dtype"]),
    }


def reference(shape: Shape, A: np.ndarray, x: np.ndarray) -> Arrays:
    """y of (n,) in float64, not rounded."""
    return {"y": A.astype(np.float64) @ x.astype(np.float64)}


def tolerance(shape: Shape) -> Tolerance:
    """One rounding to ``dtype`` and those of float32 sums over k."""
    return product_tolerance(shape["dtype"], shape["k"])


def _one_term(shape: Shape, rng: np.random.Generator) -> Arrays:
    """x is zero but for its last element: the last column, at the end of the last tile, is the result."""
    given = inputs(shape, rng)
    given["x"][:-1] = 0
    return given


OPERATOR = Operator(
    name="gemv",
    doc="Matrix-vector product y = A x with A (n, k), x (k) and y (n), accumulated in fp32.",
    params=(
        Param("n", "rows of A, elements of y", dynamic=True),
        Param("k", "columns of A, elements of x", dynamic=True),
        Param("dtype", "type of A, x and y", kind="dtype", default="bf16", choices=("bf16", "fp16", "fp32")),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    tolerance=tolerance,
    adversarial={"one_term": _one_term},
    compute_dtype=lambda shape: "fp32",
    example={"n": 300, "k": 500},
)
