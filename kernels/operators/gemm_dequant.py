"""Matrix product with four-bit weights, ``C = A · (W · scales)ᵀ``, dequantised on chip (W4A16)."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import ml_dtypes
import numpy as np

from foretile.kernels import language as T
from foretile.kernels.dtypes import dtype
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, OperatorError, Param, Shape, Tolerance
from foretile.kernels.operators._common import full, numpy_dtype, random_operand, size, whole
from foretile.kernels.operators._quant import dequantised, groups_of
from foretile.kernels.operators._scaled_gemm import check_config, product_tolerance


def program(shape: Shape, config: Config) -> TileProgram:
    """One block an output tile.

    With ``weights`` "registers" the dequantised weights are the product's left operand where they are,
    which computes the transposed tile; with "shared" they go back to shared memory and are the right one.

    Raises:
        OperatorError: a tile that is no multiple of 16 or whose depth does not go with the groups, or
            another place for the weights.
    """
    check_config("gemm_dequant", config)
    M, N, K, group = shape["m"], shape["n"], shape["k"], shape["group"]
    stored, weights = full(shape["dtype"]), full(shape["wdtype"])
    block_M, block_N, block_K = config["block_m"], config["block_n"], config["block_k"]
    num_stages, threads, swizzle = config["num_stages"], config["threads"], config["swizzle"]
    if block_K % group and group % block_K:
        raise OperatorError(
            f"gemm_dequant: block_k={block_K} is neither a multiple nor a divisor of group={group}"
        )
    if config["weights"] not in ("registers", "shared"):
        raise OperatorError(f"gemm_dequant: weights={config['weights']!r} is not one of registers, shared")
    transposed = config["weights"] == "registers"
    groups = max(1, block_K // group)  # of a tile

    @T.prim_func
    def gemm_dequant(
        A: T.Tensor((M, K), stored),
        W: T.Tensor((N, K), weights),
        W_scale: T.Tensor((N, groups_of(K, group)), stored),
        C: T.Tensor((M, N), stored),
    ) -> None:
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=threads) as (bx, by):
            A_shared = T.alloc_shared((block_M, block_K), stored)
            W_stored = T.alloc_shared((block_N, block_K), weights)
            W_scale_shared = T.alloc_shared((block_N, groups), stored)
            W_local = T.alloc_fragment((block_N, block_K), weights)
            W_scale_local = T.alloc_fragment((block_N, groups), stored)
            W_dequantised = T.alloc_fragment((block_N, block_K), stored)
            if transposed:
                C_local = T.alloc_fragment((block_N, block_M), "float32")
                C_shared = T.alloc_shared((block_M, block_N), stored)
            else:
                C_local = T.alloc_fragment((block_M, block_N), "float32")
                W_shared = T.alloc_shared((block_N, block_K), stored)
            if swizzle:
                T.use_swizzle(panel_size=swizzle)
            T.clear(C_local)
            for ko in T.Pipelined(T.ceildiv(K, block_K), num_stages=num_stages):
                T.copy(A[by * block_M, ko * block_K], A_shared)
                T.copy(W[bx * block_N, ko * block_K], W_stored)
                T.copy(W_scale[bx * block_N, ko * block_K // group], W_scale_shared)
                T.copy(W_stored, W_local)
                T.copy(W_scale_shared, W_scale_local)
                for i, j in T.Parallel(block_N, block_K):
                    W_dequantised[i, j] = T.cast(W_local[i, j], stored) * W_scale_local[i, j // group]
                if transposed:
                    T.gemm(W_dequantised, A_shared, C_local, transpose_B=True)
                else:
                    T.copy(W_dequantised, W_shared)
                    T.gemm(A_shared, W_shared, C_local, transpose_B=True)
            if transposed:
                for i, j in T.Parallel(block_M, block_N):
                    C_shared[i, j] = C_local[j, i]
                T.copy(C_shared, C[by * block_M, bx * block_N])
            else:
                T.copy(C_local, C[by * block_M, bx * block_N])

    traced: TileProgram = gemm_dequant
    return traced


# (weights, block_m, block_n, block_k, num_stages, threads, swizzle), likeliest first.
_TILES = (
    ("registers", 16, 64, 128, 5, 128, 0),
    ("registers", 16, 64, 256, 4, 128, 0),
    ("registers", 16, 128, 128, 4, 128, 0),
    ("registers", 32, 64, 128, 4, 128, 0),
    ("registers", 32, 128, 128, 4, 128, 0),
    ("registers", 64, 64, 128, 4, 128, 8),
    ("registers", 64, 128, 128, 4, 256, 8),
    ("registers", 128, 128, 128, 3, 256, 8),
    ("registers", 128, 128, 64, 4, 256, 8),
    ("registers", 256, 128, 64, 3, 256, 8),
    ("registers", 128, 256, 64, 3, 256, 8),
    ("registers", 16, 64, 64, 2, 128, 0),
    ("registers", 64, 128, 64, 2, 128, 8),
    ("registers", 128, 128, 64, 1, 256, 8),
    ("shared", 16, 64, 128, 4, 128, 0),
    ("shared", 16, 32, 128, 6, 128, 0),
    ("shared", 16, 32, 128, 2, 128, 0),
    ("shared", 64, 128, 128, 3, 128, 8),
    ("shared", 128, 128, 64, 4, 256, 8),
    ("shared", 128, 256, 64, 3, 256, 8),
    ("shared", 256, 128, 64, 3, 256, 8),
    ("shared", 64, 64, 64, 2, 128, 8),
    ("shared", 128, 128, 64, 1, 256, 8),
)


def configs(shape: Shape) -> list[Config]:
    """The space: where dequantised weights go, and tiles; ``swizzle`` is the raster's panel size, or 0."""
    keys = ("weights", "block_m", "block_n", "block_k", "num_stages", "threads", "swizzle")
    return [dict(zip(keys, tile, strict=True)) for tile in _TILES]


def flops(shape: Shape) -> Any:
    """2·m·n·k: one multiplication and one addition a term; dequantisation and padding are not counted."""
    return 2 * whole(shape["m"]) * whole(shape["n"]) * whole(shape["k"])


def min_bytes(shape: Shape) -> Any:
    """A, W (half a byte a weight, the last byte of the tensor whole) and scales read once, C written once."""
    m, n, k = (whole(shape[name]) for name in ("m", "n", "k"))
    weights = (n * k * dtype(shape["wdtype"]).bits + 7) // 8
    return weights + (m * k + m * n + n * groups_of(k, shape["group"])) * size(shape["dtype"])


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """A of (m, k), W of (n, k) with an element a weight (unpacked), W_scale of (n, ceil(k / group))."""
    m, n, k = shape["m"], shape["n"], shape["k"]
    if shape["wdtype"] == "int4":
        W = rng.integers(-8, 8, (n, k)).astype(ml_dtypes.int4)
    else:  # all sixteen numbers of e2m1 alike
        W = rng.integers(0, 16, (n, k), dtype=np.uint8).view(numpy_dtype(shape["wdtype"]))
    scale = np.exp2(rng.uniform(-8.0, -4.0, (n, groups_of(k, shape["group"])))).astype(np.float32)
    return {
        "A": random_operand(rng, (m, k), shape["dtype"]),
        "W": W,
        "W_scale": scale.astype(numpy_dtype(shape["dtype"])),
    }


def reference(shape: Shape, A: np.ndarray, W: np.ndarray, W_scale: np.ndarray) -> Arrays:
    """C of (m, n) in float64, of weights times scales that are not rounded."""
    return {"C": A.astype(np.float64) @ dequantised(W, W_scale, 1, shape["group"]).T}


def tolerance(shape: Shape) -> Tolerance:
    """Dequantised weights and results are rounded once to ``dtype``, sums over k in float32."""
    return product_tolerance(shape["dtype"], shape["k"], operand=shape["dtype"])


def check(shape: Shape) -> None:
    """Refuse groups that no tile's depth goes with."""
    if shape["group"] not in (16, 32, 64, 128):
        raise OperatorError(f"gemm_dequant: group={shape['group']} is not one of 16, 32, 64, 128")


def _extremes(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Weights at either end of their range, scales over sixteen binary orders from group to group."""
    given = inputs(shape, rng)
    low, high = (-8.0, 7.0) if shape["wdtype"] == "int4" else (-6.0, 6.0)
    W = rng.choice((low, high), given["W"].shape).astype(given["W"].dtype)
    scale = np.exp2(rng.integers(-12, 5, given["W_scale"].shape)).astype(given["W_scale"].dtype)
    return {**given, "W": W, "W_scale": scale}


OPERATOR = Operator(
    name="gemm_dequant",
    doc=(
        "Matrix product C = A Wᵀ with four-bit weights: A is (m, k), W is (n, k) in int4 or fp4 e2m1 with a "
        "scale a row and group of k, W_scale (n, ceil(k / group)), and C is (m, n); scales and C have A's "
        "type."
    ),
    params=(
        Param("m", "rows of A and C (tokens)", dynamic=True),
        Param("n", "rows of W, columns of C", dynamic=True),
        Param("k", "depth of the product", dynamic=True),
        Param("dtype", "type of A, the scales and C", kind="dtype", default="bf16", choices=("bf16", "fp16")),
        Param("wdtype", "type of W, two to a byte", kind="dtype", default="int4", choices=("int4", "fp4")),
        Param("group", "elements of k that share a scale: 16, 32, 64 or 128", default=128),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    check=check,
    tolerance=tolerance,
    adversarial={"extremes": _extremes},
    example={"m": 50, "n": 150, "k": 384},
)
