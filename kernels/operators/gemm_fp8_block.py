"""Matrix product of block-scaled fp8 operands, ``C = (A · scales) (B · scales)ᵀ``, in two-level sums."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, Param, Shape, Tolerance
from foretile.kernels.operators._common import full, size, whole
from foretile.kernels.operators._quant import BLOCK, dequantised, groups_of, quantised_operand
from foretile.kernels.operators._scaled_gemm import (
    check_config,
    product_tolerance,
    scaled_configs,
    scaled_product,
)


def program(shape: Shape, config: Config) -> TileProgram:
    """One block an output tile.

    Raises:
        OperatorError: a tile that does not go with the blocks of the scales.
    """
    check_config("gemm_fp8_block", config)
    M, N, K, out_dtype = shape["m"], shape["n"], shape["k"], full(shape["out_dtype"])
    block_M, block_N, threads = config["block_m"], config["block_n"], config["threads"]
    swizzle = config["swizzle"]

    @T.prim_func
    def gemm_fp8_block(
        A: T.Tensor((M, K), "float8_e4m3"),
        A_scale: T.Tensor((M, groups_of(K)), "float32"),
        B: T.Tensor((N, K), "float8_e4m3"),
        B_scale: T.Tensor((groups_of(N), groups_of(K)), "float32"),
        C: T.Tensor((M, N), out_dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=threads) as (bx, by):
            if swizzle:
                T.use_swizzle(panel_size=swizzle)
            C_accum = scaled_product(
                config,
                lambda k: A[by * block_M : (by + 1) * block_M, k * BLOCK : (k + 1) * BLOCK],
                lambda k: B[bx * block_N : (bx + 1) * block_N, k * BLOCK : (k + 1) * BLOCK],
                lambda k: A_scale[by * block_M : (by + 1) * block_M, k : k + 1],
                lambda k: B_scale[bx * block_N // BLOCK, k : k + 1],
                groups_of(K),
            )
            T.copy(C_accum, C[by * block_M, bx * block_N])

    traced: TileProgram = gemm_fp8_block
    return traced


def flops(shape: Shape) -> Any:
    """2·m·n·k: one multiplication and one addition a term; scales and padding are not counted."""
    return 2 * whole(shape["m"]) * whole(shape["n"]) * whole(shape["k"])


def min_bytes(shape: Shape) -> Any:
    """A, B and their scales (four bytes each) read once, C written once."""
    m, n, k = (whole(shape[name]) for name in ("m", "n", "k"))
    scales = (m + groups_of(n)) * groups_of(k)
    return m * k + n * k + 4 * scales + m * n * size(shape["out_dtype"])


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """A of (m, k) with scales (m, ceil(k / 128)), B of (n, k) with scales (ceil(n / 128), ceil(k / 128))."""
    A, A_scale = quantised_operand(rng, (shape["m"], shape["k"]), 1)
    B, B_scale = quantised_operand(rng, (shape["n"], shape["k"]), BLOCK)
    return {"A": A, "A_scale": A_scale, "B": B, "B_scale": B_scale}


def reference(shape: Shape, A: np.ndarray, A_scale: np.ndarray, B: np.ndarray, B_scale: np.ndarray) -> Arrays:
    """C of (m, n) in float64, not rounded to ``out_dtype``."""
    return {"C": dequantised(A, A_scale, 1) @ dequantised(B, B_scale, BLOCK).T}


def tolerance(shape: Shape) -> Tolerance:
    """One rounding to ``out_dtype`` and those of float32 sums over k; products of fp8 numbers are exact.

    Matrix units that keep fewer bits within a partial product (about 13 after the point on Hopper)
    stay within this for bf16 and fp16 results, and not for fp32 ones.
    """
    return product_tolerance(shape["out_dtype"], shape["k"])


def _wide_scales(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Scales over forty binary orders: a few groups decide every sum."""
    A, A_scale = quantised_operand(rng, (shape["m"], shape["k"]), 1, octaves=10.0)
    given = inputs(shape, rng)
    wide = np.exp2(rng.integers(-20, 21, given["B_scale"].shape)).astype(np.float32)
    return {**given, "A": A, "A_scale": A_scale, "B_scale": given["B_scale"] * wide}


def _cancelling(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Largest e4m3 numbers of either sign: partial products as large as they get."""
    given = inputs(shape, rng)
    signs = {name: rng.choice((-448.0, 448.0), given[name].shape) for name in ("A", "B")}
    return {**given, **{name: values.astype(given[name].dtype) for name, values in signs.items()}}


OPERATOR = Operator(
    name="gemm_fp8_block",
    doc=(
        "Matrix product C = A Bᵀ of fp8 e4m3 operands with float32 scales: A is (m, k) with a scale a row "
        "and 128 of k, A_scale (m, ceil(k / 128)); B is (n, k) with a scale a block of 128 × 128, B_scale "
        "(ceil(n / 128), ceil(k / 128)); C is (m, n). Each 128 of k are a partial product of their own, "
        "scaled and added in float32."
    ),
    params=(
        Param("m", "rows of A and C (tokens)", dynamic=True),
        Param("n", "rows of B, columns of C", dynamic=True),
        Param("k", "depth of the product", dynamic=True),
        Param("out_dtype", "type of C", kind="dtype", default="bf16", choices=("bf16", "fp16", "fp32")),
    ),
    program=program,
    configs=lambda shape: scaled_configs(),
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    tolerance=tolerance,
    adversarial={"wide_scales": _wide_scales, "cancelling": _cancelling},
    compute_dtype=lambda shape: "fp8",
    example={"m": 150, "n": 200, "k": 300},
)
