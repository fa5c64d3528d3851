"""Matrix product of nvfp4 operands, ``C = alpha · (A · scales) (B · scales)ᵀ``, scaled in the engine."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, OperatorError, Param, Shape, Tolerance
from foretile.kernels.operators._blockscaled import (
    NVFP4,
    blockscaled_product,
    check_blockscaled,
    quantise_nvfp4,
)
from foretile.kernels.operators._common import full, random_operand, size, whole
from foretile.kernels.operators._nvfp4 import (
    GROUP,
    exact_nvfp4,
    nvfp4_bytes,
    nvfp4_operand,
    quantised_nvfp4,
    tensor_scale,
)
from foretile.kernels.operators._quant import groups_of
from foretile.kernels.operators._scaled_gemm import product_tolerance


@T.macro
def _finish(Alpha: Any, C_local: Any, C: Any, m0: Any, n0: Any) -> None:
    """The tile times ``alpha`` to C."""
    for i, j in T.Parallel(*C_local.shape):
        C_local[i, j] = C_local[i, j] * Alpha[0]
    T.copy(C_local, C[m0, n0])


def _tile(shape: Shape, config: Config) -> TileProgram:
    """One block an output tile."""
    M, N, K, out_dtype = shape["m"], shape["n"], shape["k"], full(shape["out_dtype"])
    block_M, block_N = config["block_m"], config["block_n"]

    @T.prim_func
    def gemm_nvfp4(
        A: T.Tensor((M, K), NVFP4.element),
        A_scale: T.Tensor(NVFP4.scales(M, K), NVFP4.scale),
        B: T.Tensor((N, K), NVFP4.element),
        B_scale: T.Tensor(NVFP4.scales(N, K), NVFP4.scale),
        Alpha: T.Tensor((1,), "float32"),
        C: T.Tensor((M, N), out_dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=config["threads"]) as (bx, by):
            if config["swizzle"]:
                T.use_swizzle(panel_size=config["swizzle"])
            C_local = T.alloc_fragment((block_M, block_N), "float32")
            operands = (A, A_scale, B, B_scale)
            blockscaled_product(config, NVFP4, operands, C_local, by * block_M, bx * block_N)
            _finish(Alpha, C_local, C, by * block_M, bx * block_N)

    traced: TileProgram = gemm_nvfp4
    return traced


def _persistent(shape: Shape, config: Config) -> TileProgram:
    """One block a core; the tiles, in groups of ``swizzle`` tile rows, dealt round robin."""
    M, N, K, out_dtype = shape["m"], shape["n"], shape["k"], full(shape["out_dtype"])
    block_M, block_N, cores = config["block_m"], config["block_n"], config["cores"]
    tiles, group_size = [T.ceildiv(M, block_M), T.ceildiv(N, block_N)], max(1, config["swizzle"])

    @T.prim_func
    def gemm_nvfp4_persistent(
        A: T.Tensor((M, K), NVFP4.element),
        A_scale: T.Tensor(NVFP4.scales(M, K), NVFP4.scale),
        B: T.Tensor((N, K), NVFP4.element),
        B_scale: T.Tensor(NVFP4.scales(N, K), NVFP4.scale),
        Alpha: T.Tensor((1,), "float32"),
        C: T.Tensor((M, N), out_dtype),
    ) -> None:
        with T.Kernel(cores, threads=config["threads"]) as block_id:
            C_local = T.alloc_fragment((block_M, block_N), "float32")
            for bx, by in T.Persistent(tiles[::-1], cores, block_id, group_size=group_size):
                operands = (A, A_scale, B, B_scale)
                blockscaled_product(config, NVFP4, operands, C_local, by * block_M, bx * block_N)
                _finish(Alpha, C_local, C, by * block_M, bx * block_N)

    traced: TileProgram = gemm_nvfp4_persistent
    return traced


def program(shape: Shape, config: Config) -> TileProgram | tuple[TileProgram, ...]:
    """The variant ``config["variant"]`` names; with ``quantize_a`` behind the launch that makes A.

    Raises:
        OperatorError: an unknown variant or product, or a tile that the instruction or the groups of the
            scales do not divide.
    """
    check_blockscaled("gemm_nvfp4", config, NVFP4, "fp4")
    product = (_tile if config["variant"] == "tile" else _persistent)(shape, config)
    return (quantise_nvfp4(shape["m"], shape["k"]), product) if shape["quantize_a"] else product


# (variant, block_m, block_n, block_k, num_stages, threads, swizzle, product), likeliest first.
_TILES = (
    ("persistent", 128, 256, 256, 4, 256, 8, "fp4"),
    ("persistent", 128, 256, 256, 5, 256, 8, "fp4"),
    ("persistent", 128, 128, 256, 4, 256, 8, "fp4"),
    ("persistent", 128, 128, 128, 4, 256, 8, "fp4"),
    ("persistent", 128, 192, 256, 4, 256, 8, "fp4"),
    ("persistent", 256, 128, 256, 4, 256, 8, "fp4"),
    ("tile", 128, 256, 256, 4, 256, 8, "fp4"),
    ("tile", 256, 128, 256, 4, 256, 8, "fp4"),
    ("tile", 128, 128, 256, 4, 256, 8, "fp4"),
    ("tile", 128, 128, 256, 3, 256, 8, "fp4"),
    ("tile", 128, 128, 128, 4, 256, 8, "fp4"),
    ("tile", 128, 64, 256, 4, 128, 8, "fp4"),
    ("tile", 64, 128, 256, 4, 128, 8, "fp4"),
    ("tile", 64, 64, 256, 5, 128, 0, "fp4"),
    ("tile", 128, 32, 512, 4, 128, 0, "fp4"),
    ("tile", 32, 128, 256, 4, 128, 0, "fp4"),
    ("tile", 16, 128, 256, 5, 128, 0, "fp4"),
    ("tile", 16, 64, 512, 4, 128, 0, "fp4"),
    ("tile", 128, 128, 128, 3, 256, 8, "bf16"),
    ("tile", 128, 128, 64, 2, 256, 8, "bf16"),
    ("tile", 64, 128, 64, 3, 128, 8, "bf16"),
    ("tile", 64, 64, 128, 3, 128, 8, "bf16"),
    ("tile", 64, 64, 64, 2, 128, 8, "bf16"),
    ("tile", 16, 128, 128, 4, 128, 0, "bf16"),
    ("tile", 16, 64, 128, 3, 128, 0, "bf16"),
)


def configs(shape: Shape) -> list[Config]:
    """The space: scaled by the matrix engine, then on chip; ``cores`` is to be set to the chip's."""
    keys = ("variant", "block_m", "block_n", "block_k", "num_stages", "threads", "swizzle", "product")
    return [{**dict(zip(keys, tile, strict=True)), "cores": 132} for tile in _TILES]


def flops(shape: Shape) -> Any:
    """2·m·n·k: one multiplication and one addition a term; scales and padding are not counted.

    Quantising A is 2 an element (a maximum, a division) and 1 a scale, as in ``quantize``.
    """
    m, n, k = (whole(shape[name]) for name in ("m", "n", "k"))
    return 2 * m * n * k + (m * (2 * k + groups_of(k, GROUP)) if shape["quantize_a"] else 0)


def min_bytes(shape: Shape) -> Any:
    """A, B (half a byte an element), their scales (a byte each) and alpha read once, C written once.

    With ``quantize_a`` X (two bytes an element) and its scale instead of A and its scales.
    """
    m, n, k = (whole(shape[name]) for name in ("m", "n", "k"))
    a_bytes = 2 * m * k + 4 if shape["quantize_a"] else nvfp4_bytes(m, k)
    return a_bytes + nvfp4_bytes(n, k) + 4 + m * n * size(shape["out_dtype"])


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """A of (m, k) and B of (n, k), an element each unpacked, scales (…, ceil(k / 16)), Alpha (1,).

    With ``quantize_a`` X of (m, k) in bf16 and X_scale (1,) instead of A and A_scale.
    """
    B, B_scale, b = nvfp4_operand(rng, (shape["n"], shape["k"]))
    if not shape["quantize_a"]:
        A, A_scale, a = nvfp4_operand(rng, (shape["m"], shape["k"]))
        alpha = np.full(1, a * b, np.float32)
        return {"A": A, "A_scale": A_scale, "B": B, "B_scale": B_scale, "Alpha": alpha}
    X = random_operand(rng, (shape["m"], shape["k"]), "bf16")
    X_scale = np.full(1, tensor_scale(X.astype(np.float32)), np.float32)
    return {"X": X, "X_scale": X_scale, "B": B, "B_scale": B_scale, "Alpha": X_scale * np.float32(b)}


def reference(
    shape: Shape, B: np.ndarray, B_scale: np.ndarray, Alpha: np.ndarray, **a_operand: np.ndarray
) -> Arrays:
    """C of (m, n) in float64, not rounded to ``out_dtype``."""
    if shape["quantize_a"]:
        A, A_scale = quantised_nvfp4(a_operand["X"], float(a_operand["X_scale"][0]))
    else:
        A, A_scale = a_operand["A"], a_operand["A_scale"]
    return {"C": float(Alpha[0]) * (exact_nvfp4(A, A_scale) @ exact_nvfp4(B, B_scale).T)}


def tolerance(shape: Shape) -> Tolerance:
    """One rounding to ``out_dtype`` and those of float32 sums over k; products of terms are exact."""
    return product_tolerance(shape["out_dtype"], shape["k"])


def check(shape: Shape) -> None:
    """Refuse rows that do not fill their bytes."""
    if np.any(np.asarray(shape["k"]) % 2):
        raise OperatorError(f"gemm_nvfp4: k={shape['k']} is odd; two elements of a row share a byte")


def _wide_scales(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Scales over all binary orders of e4m3: a few groups decide every sum."""
    given = inputs(shape, rng)
    wide: Arrays = {
        name: np.exp2(rng.integers(-9, 9, given[name].shape)).astype(given[name].dtype)
        for name in ("A_scale", "B_scale")
        if name in given
    }
    return {**given, **wide, "Alpha": np.ones(1, np.float32)}


def _largest(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Largest numbers of either sign and largest scales: partial products as large as they get."""
    given = inputs(shape, rng)
    largest = {"A": 6.0, "B": 6.0, "A_scale": 448.0, "B_scale": 448.0, "X": 6.0}
    found = {
        name: (value if name.endswith("_scale") else rng.choice((-value, value), given[name].shape))
        * np.ones(given[name].shape)
        for name, value in largest.items()
        if name in given
    }
    if shape["quantize_a"]:
        found["X_scale"] = np.full(1, 1.0 / 448.0)
    return {
        **given,
        **{name: values.astype(given[name].dtype) for name, values in found.items()},
        "Alpha": np.full(1, 2.0**-20, np.float32),
    }


OPERATOR = Operator(
    name="gemm_nvfp4",
    doc=(
        "Matrix product C = alpha · A Bᵀ of nvfp4 operands: fp4 e2m1 numbers with an e4m3 scale a row and 16 "
        "of k, by which the matrix engine multiplies them. A is (m, k), A_scale (m, ceil(k / 16)), B (n, k), "
        "B_scale (n, ceil(k / 16)), Alpha (1,) float32, the product of the tensors' own scales; C is (m, n). "
        "The order of the scales in memory is not modelled. With quantize_a, A and A_scale are made of X "
        "(m, k) in bf16 and its tensor's scale X_scale (1,) by a launch of their own."
    ),
    params=(
        Param("m", "rows of A and C (tokens)", dynamic=True),
        Param("n", "rows of B, columns of C", dynamic=True),
        Param("k", "depth of the product, even", dynamic=True),
        Param("out_dtype", "type of C", kind="dtype", default="bf16", choices=("bf16", "fp16", "fp32")),
        Param("quantize_a", "A is quantised from bf16 by a launch of its own", kind="bool", default=False),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    check=check,
    tolerance=tolerance,
    adversarial={"wide_scales": _wide_scales, "largest": _largest},
    compute_dtype=lambda shape: "fp4",
    example={"m": 150, "n": 200, "k": 300},
)
