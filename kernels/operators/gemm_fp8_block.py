"""Matrix product of block-scaled fp8 operands, ``C = (A · scales) (B · scales)ᵀ``."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import ml_dtypes
import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, Param, Shape, Tolerance
from foretile.kernels.operators._blockscaled import (
    FP8_E8M0,
    PACKED,
    blockscaled_product,
    check_blockscaled,
    quantise_fp8,
    quantise_fp8_in_turn,
)
from foretile.kernels.operators._common import full, random_operand, size, whole
from foretile.kernels.operators._quant import (
    BLOCK,
    dequantised,
    groups_of,
    quantised_float32,
    quantised_operand,
)
from foretile.kernels.operators._scaled_gemm import (
    check_config,
    product_tolerance,
    scaled_configs,
    scaled_products,
)


def _two_level(shape: Shape, config: Config) -> TileProgram:
    """Float32 scales: one block an output tile, partial products of 128 scaled and added."""
    check_config("gemm_fp8_block", config)
    M, N, K, out_dtype = shape["m"], shape["n"], shape["k"], full(shape["out_dtype"])
    block_M, block_N, threads = config["block_m"], config["block_n"], config["threads"]
    swizzle = config["swizzle"]

    @T.prim_func
    def gemm_fp8_block(
        A: T.Tensor((M, K), "float8_e4m3fn"),
        A_scale: T.Tensor((M, groups_of(K)), "float32"),
        B: T.Tensor((N, K), "float8_e4m3fn"),
        B_scale: T.Tensor((groups_of(N), groups_of(K)), "float32"),
        C: T.Tensor((M, N), out_dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=threads) as (bx, by):
            if swizzle:
                T.use_swizzle(panel_size=swizzle)
            (C_accum,) = scaled_products(
                config,
                lambda k: A[by * block_M : (by + 1) * block_M, k * BLOCK : (k + 1) * BLOCK],
                (lambda k: B[bx * block_N : (bx + 1) * block_N, k * BLOCK : (k + 1) * BLOCK],),
                lambda k: A_scale[by * block_M : (by + 1) * block_M, k : k + 1],
                (lambda k: B_scale[bx * block_N // BLOCK, k : k + 1],),
                groups_of(K),
            )
            T.copy(C_accum, C[by * block_M, bx * block_N])

    traced: TileProgram = gemm_fp8_block
    return traced


def _in_engine(shape: Shape, config: Config) -> TileProgram:
    """Scales that are powers of two, applied by the matrix engine; one block a tile or a core."""
    check_blockscaled("gemm_fp8_block", config, FP8_E8M0, "fp8")
    M, N, K, out_dtype = shape["m"], shape["n"], shape["k"], full(shape["out_dtype"])
    block_M, block_N, cores = config["block_m"], config["block_n"], config["cores"]
    tiles, group_size = [T.ceildiv(M, block_M), T.ceildiv(N, block_N)], max(1, config["swizzle"])
    persistent = config["variant"] == "persistent"
    grid = (cores,) if persistent else tuple(reversed(tiles))

    @T.prim_func
    def gemm_fp8_e8m0(
        A: T.Tensor((M, K), FP8_E8M0.element),
        A_scale: T.Tensor(FP8_E8M0.scales(M, K), FP8_E8M0.scale),
        B: T.Tensor((N, K), FP8_E8M0.element),
        B_scale: T.Tensor(FP8_E8M0.scales(N, K), FP8_E8M0.scale),
        C: T.Tensor((M, N), out_dtype),
    ) -> None:
        with T.Kernel(*grid, threads=config["threads"]) as at:
            C_local = T.alloc_fragment((block_M, block_N), "float32")
            operands = (A, A_scale, B, B_scale)
            if persistent:
                for bx, by in T.Persistent(tiles[::-1], cores, at, group_size=group_size):
                    blockscaled_product(config, FP8_E8M0, operands, C_local, by * block_M, bx * block_N)
                    T.copy(C_local, C[by * block_M, bx * block_N])
            else:
                if config["swizzle"]:
                    T.use_swizzle(panel_size=config["swizzle"])
                blockscaled_product(config, FP8_E8M0, operands, C_local, at[1] * block_M, at[0] * block_N)
                T.copy(C_local, C[at[1] * block_M, at[0] * block_N])

    traced: TileProgram = gemm_fp8_e8m0
    return traced


def program(shape: Shape, config: Config) -> TileProgram | tuple[TileProgram, ...]:
    """The product in the form that the scales allow; with ``quantize_a`` behind the launch that makes A.

    Raises:
        OperatorError: a tile that does not go with the blocks of the scales.
    """
    packed = shape["scale_dtype"] == "fp8_e8m0"
    product = (_in_engine if packed else _two_level)(shape, config)
    if not shape["quantize_a"]:
        return product
    quantise = quantise_fp8_in_turn if config["in_turn"] else quantise_fp8
    return quantise(shape["m"], shape["k"], packed), product


# (variant, block_m, block_n, block_k, num_stages, threads, swizzle, product) with scales in the engine.
_TILES = (
    ("persistent", 128, 256, 128, 4, 256, 8, "fp8"),
    ("persistent", 256, 128, 128, 4, 256, 8, "fp8"),
    ("persistent", 128, 128, 128, 5, 256, 8, "fp8"),
    ("persistent", 128, 192, 128, 4, 256, 8, "fp8"),
    ("tile", 128, 256, 128, 4, 256, 8, "fp8"),
    ("tile", 128, 128, 128, 5, 256, 8, "fp8"),
    ("tile", 128, 128, 128, 3, 256, 8, "fp8"),
    ("tile", 128, 64, 128, 6, 128, 8, "fp8"),
    ("tile", 128, 32, 128, 6, 128, 0, "fp8"),
    ("tile", 64, 128, 128, 5, 128, 8, "fp8"),
    ("tile", 64, 64, 128, 6, 128, 0, "fp8"),
    ("tile", 32, 128, 128, 4, 128, 0, "fp8"),
    ("tile", 16, 128, 128, 5, 128, 0, "fp8"),
    ("tile", 16, 64, 256, 4, 128, 0, "fp8"),
    ("tile", 128, 128, 128, 3, 256, 8, "bf16"),
    ("tile", 128, 128, 128, 2, 256, 8, "bf16"),
    ("tile", 64, 128, 128, 2, 256, 8, "bf16"),
    ("tile", 64, 64, 128, 2, 128, 8, "bf16"),
    ("tile", 16, 64, 128, 3, 128, 0, "bf16"),
)


def configs(shape: Shape) -> list[Config]:
    """The space of two-level products, or of products scaled in the engine and widened to bf16.

    ``in_turn`` (not in the space): few warps quantise A, row after row.
    """
    if shape["scale_dtype"] == "fp32":
        return [{**config, "in_turn": 0} for config in scaled_configs()]
    keys = ("variant", "block_m", "block_n", "block_k", "num_stages", "threads", "swizzle", "product")
    return [{**dict(zip(keys, tile, strict=True)), "cores": 132, "in_turn": 0} for tile in _TILES]


def flops(shape: Shape) -> Any:
    """2·m·n·k: one multiplication and one addition a term; scales and padding are not counted.

    Quantising A is 2 an element and 1 a scale, as in ``quantize``.
    """
    m, n, k = (whole(shape[name]) for name in ("m", "n", "k"))
    return 2 * m * n * k + (m * (2 * k + groups_of(k)) if shape["quantize_a"] else 0)


def min_bytes(shape: Shape) -> Any:
    """A, B and their scales (four bytes each, or packed bytes) read once, C written once.

    With ``quantize_a`` X (two bytes an element) instead of A and its scales.
    """
    m, n, k = (whole(shape[name]) for name in ("m", "n", "k"))
    if shape["scale_dtype"] == "fp32":
        a_scale, b_scale = 4 * m * groups_of(k), 4 * groups_of(n) * groups_of(k)
    else:
        packed = PACKED * groups_of(k, PACKED * BLOCK)
        a_scale, b_scale = m * packed, n * packed
    a_bytes = 2 * m * k if shape["quantize_a"] else m * k + a_scale
    return a_bytes + n * k + b_scale + m * n * size(shape["out_dtype"])


def _pack(scale: np.ndarray) -> np.ndarray:
    """Scales of (rows, groups) as (ceil(groups / 4), rows, 4), ones behind the last."""
    rows, groups = scale.shape
    wide = np.ones((rows, groups_of(groups, PACKED) * PACKED), scale.dtype)
    wide[:, :groups] = scale
    return np.ascontiguousarray(wide.reshape(rows, -1, PACKED).swapaxes(0, 1))


def _unpack(packed: np.ndarray, depth: int) -> np.ndarray:
    """The scales of (rows, groups) that :func:`_pack` packed, in float64."""
    rows = packed.shape[1]
    return packed.astype(np.float64).swapaxes(0, 1).reshape(rows, -1)[:, : groups_of(depth)]


def _operand(shape: Shape, rng: np.random.Generator, name: str, rows: int, octaves: float) -> Arrays:
    """An operand with its scales: of ``rows`` rows each, packed powers of two for every row if asked for."""
    dims = (shape["m" if name == "A" else "n"], shape["k"])
    values, scale = quantised_operand(rng, dims, rows, octaves=octaves)
    if shape["scale_dtype"] == "fp32":
        return {name: values, f"{name}_scale": scale}
    each = np.repeat(np.exp2(np.round(np.log2(scale))), rows, axis=0)[: dims[0]]
    return {name: values, f"{name}_scale": _pack(each.astype(ml_dtypes.float8_e8m0fnu))}


def _inputs(shape: Shape, rng: np.random.Generator, octaves: float) -> Arrays:
    if not shape["quantize_a"]:
        found = _operand(shape, rng, "A", 1, octaves)
    else:
        found = {"X": random_operand(rng, (shape["m"], shape["k"]), "bf16")}
    return found | _operand(shape, rng, "B", BLOCK, 2.0)


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """A of (m, k) with scales (m, ceil(k / 128)), B of (n, k) with scales (ceil(n / 128), ceil(k / 128)).

    Packed scales are (ceil(k / 512), m or n, 4); with ``quantize_a`` X of (m, k) in bf16 takes A's place.
    """
    return _inputs(shape, rng, 2.0)


def reference(shape: Shape, B: np.ndarray, B_scale: np.ndarray, **a_operand: np.ndarray) -> Arrays:
    """C of (m, n) in float64, not rounded to ``out_dtype``."""
    packed, depth = shape["scale_dtype"] == "fp8_e8m0", shape["k"]
    if shape["quantize_a"]:
        a = quantised_float32(a_operand["X"], packed)
    else:
        scale = a_operand["A_scale"]
        a = dequantised(a_operand["A"], _unpack(scale, depth) if packed else scale, 1)
    b = dequantised(B, _unpack(B_scale, depth), 1) if packed else dequantised(B, B_scale, BLOCK)
    return {"C": a @ b.T}


def tolerance(shape: Shape) -> Tolerance:
    """One rounding to ``out_dtype`` and those of float32 sums over k; products of fp8 numbers are exact.

    Matrix units that keep fewer bits within a partial product (about 13 after the point on Hopper)
    stay within this for bf16 and fp16 results, and not for fp32 ones.
    """
    return product_tolerance(shape["out_dtype"], shape["k"])


def _wide_scales(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Scales over forty binary orders: a few groups decide every sum."""
    given = _inputs(shape, rng, 10.0)
    scale = given["B_scale"]
    wide = scale.astype(np.float32) * np.exp2(rng.integers(-20, 21, scale.shape)).astype(np.float32)
    return {**given, "B_scale": wide.astype(scale.dtype)}


def _cancelling(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Largest e4m3 numbers of either sign: partial products as large as they get."""
    given = inputs(shape, rng)
    signs = {n: rng.choice((-448.0, 448.0), given[n].shape) for n in ("A", "B", "X") if n in given}
    return {**given, **{name: values.astype(given[name].dtype) for name, values in signs.items()}}


OPERATOR = Operator(
    name="gemm_fp8_block",
    doc=(
        "Matrix product C = A Bᵀ of fp8 e4m3 operands with float32 scales: A is (m, k) with a scale a row "
        "and 128 of k, A_scale (m, ceil(k / 128)); B is (n, k) with a scale a block of 128 × 128, B_scale "
        "(ceil(n / 128), ceil(k / 128)); C is (m, n). Each 128 of k are a partial product of their own, "
        "scaled and added in float32. With scale_dtype=fp8_e8m0 scales are powers of two that the matrix "
        "engine applies (DeepGEMM on Blackwell): one a row and 128 of k for B too, packed as (ceil(k / 512), "
        "rows, 4). "
        "With quantize_a, A and A_scale are made of X (m, k) in bf16 by a launch of their own (quantize)."
    ),
    params=(
        Param("m", "rows of A and C (tokens)", dynamic=True),
        Param("n", "rows of B, columns of C", dynamic=True),
        Param("k", "depth of the product", dynamic=True),
        Param("out_dtype", "type of C", kind="dtype", default="bf16", choices=("bf16", "fp16", "fp32")),
        Param(
            "scale_dtype", "type of the scales", kind="dtype", default="fp32", choices=("fp32", "fp8_e8m0")
        ),
        Param("quantize_a", "A is quantised from bf16 by a launch of its own", kind="bool", default=False),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    tolerance=tolerance,
    adversarial={"wide_scales": _wide_scales, "cancelling": _cancelling},
    compute_dtype=lambda shape: "fp8",
    example={"m": 150, "n": 200, "k": 300},
)
