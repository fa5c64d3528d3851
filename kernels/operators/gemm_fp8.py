"""Matrix product of fp8 operands with scales a tensor or a row, ``C = (A Bᵀ) · a_scale ⊗ b_scale``."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import ml_dtypes
import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, OperatorError, Param, Shape, Tolerance
from foretile.kernels.operators._common import full, random_operand, size, whole
from foretile.kernels.operators._quant import FP8_MAX, reference_scale, round_e4m3
from foretile.kernels.operators._quantise_fp8 import FP8, by_rows, by_tensor, by_tensor_in_turn, tensor_scale
from foretile.kernels.operators._scaled_gemm import (
    check_config,
    depth_tile,
    plain_products,
    product_tolerance,
)

_FINISH_ROWS, _FINISH_COLS, _FINISH_THREADS = 8, 256, 256


def _scales(shape: Shape, rows: Any) -> tuple[Any, ...]:
    """Shape of an operand's scales."""
    return (rows,) if shape["per_row"] else (1,)


def _quantise(shape: Shape, config: Config) -> tuple[TileProgram, ...]:
    """The launches that make A of X, and with ``find_scale`` its scale before."""
    M, K = shape["m"], shape["k"]
    if shape["per_row"]:
        return (by_rows(M, K),)
    if config["in_turn"] and not shape["find_scale"]:
        return (by_tensor_in_turn(M, K, config["cores"]),)
    return (*tensor_scale(M, K), by_tensor(M, K)) if shape["find_scale"] else (by_tensor(M, K),)


@T.macro
def _scaled(per_row: bool, A_scale: Any, B_scale: Any, C_local: Any, m0: Any, n0: Any) -> None:
    """A tile of products times its scales."""
    rows, columns = C_local.shape
    if not per_row:
        for i, j in T.Parallel(rows, columns):
            C_local[i, j] = C_local[i, j] * (A_scale[0] * B_scale[0])
    else:
        row_scale = T.alloc_fragment((rows,), "float32")
        column_scale = T.alloc_fragment((columns,), "float32")
        T.copy(A_scale[m0], row_scale)
        T.copy(B_scale[n0], column_scale)
        for i, j in T.Parallel(rows, columns):
            C_local[i, j] = C_local[i, j] * row_scale[i] * column_scale[j]


@T.macro
def _tile(
    config: Config, per_row: bool, steps: Any, operands: tuple[Any, ...], C: Any, m0: Any, n0: Any
) -> None:
    """The tile of C at row ``m0`` and column ``n0``: the product, scaled as it is written."""
    A, A_scale, B, B_scale = operands
    block_M, block_N, block_K = config["block_m"], config["block_n"], config["block_k"]
    (C_local,) = plain_products(
        config,
        depth_tile(A, slice(m0, m0 + block_M), depth=block_K),
        [depth_tile(B, slice(n0, n0 + block_N), depth=block_K)],
        steps,
        FP8,
    )
    _scaled(per_row, A_scale, B_scale, C_local, m0, n0)
    T.copy(C_local, C[m0, n0])


def _product(shape: Shape, config: Config) -> TileProgram:
    """One block a tile, or one a core with the tiles dealt round robin."""
    M, N, K, out_dtype = shape["m"], shape["n"], shape["k"], full(shape["out_dtype"])
    block_M, block_N, cores = config["block_m"], config["block_n"], config["cores"]
    tiles, group_size = [T.ceildiv(M, block_M), T.ceildiv(N, block_N)], max(1, config["swizzle"])
    steps = T.ceildiv(K, config["block_k"])
    persistent = config["variant"] == "persistent"
    grid = (cores,) if persistent else tuple(reversed(tiles))

    @T.prim_func
    def gemm_fp8(
        A: T.Tensor((M, K), FP8),
        A_scale: T.Tensor(_scales(shape, M), "float32"),
        B: T.Tensor((N, K), FP8),
        B_scale: T.Tensor(_scales(shape, N), "float32"),
        C: T.Tensor((M, N), out_dtype),
    ) -> None:
        with T.Kernel(*grid, threads=config["threads"]) as at:
            operands = (A, A_scale, B, B_scale)
            if persistent:
                for bx, by in T.Persistent(tiles[::-1], cores, at, group_size=group_size):
                    _tile(config, shape["per_row"], steps, operands, C, by * block_M, bx * block_N)
            else:
                if config["swizzle"]:
                    T.use_swizzle(panel_size=config["swizzle"])
                _tile(config, shape["per_row"], steps, operands, C, at[1] * block_M, at[0] * block_N)

    traced: TileProgram = gemm_fp8
    return traced


def _split_k(shape: Shape, config: Config) -> tuple[TileProgram, TileProgram]:
    """``split_k`` blocks an output tile, each with its share of K; then the named epilogue.

    The first launch adds its partial tiles atomically to the float32 workspace ``W``; the second,
    ``gemm_fp8_finish``, scales ``W`` into ``C`` and leaves it zero for the next call.
    """
    M, N, K, out_dtype = shape["m"], shape["n"], shape["k"], full(shape["out_dtype"])
    block_M, block_N, block_K = config["block_m"], config["block_n"], config["block_k"]
    split = config["split_k"]

    @T.prim_func
    def gemm_fp8_split_k(
        A: T.Tensor((M, K), FP8), B: T.Tensor((N, K), FP8), W: T.Tensor((M, N), "float32")
    ) -> None:
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), split, threads=config["threads"]) as (
            bx,
            by,
            part,
        ):
            k_tiles = T.ceildiv(K, block_K)  # dealt out evenly: no two parts differ by more than one
            first, last = part * k_tiles // split, (part + 1) * k_tiles // split
            m0, n0 = by * block_M, bx * block_N
            (C_local,) = plain_products(
                config,
                lambda k: A[m0 : m0 + block_M, (first + k) * block_K : (first + k + 1) * block_K],
                [lambda k: B[n0 : n0 + block_N, (first + k) * block_K : (first + k + 1) * block_K]],
                last - first,
                FP8,
            )
            T.atomic_add(W[m0, n0], C_local)

    rows, cols = _FINISH_ROWS, _FINISH_COLS

    @T.prim_func
    def gemm_fp8_finish(
        A_scale: T.Tensor(_scales(shape, M), "float32"),
        B_scale: T.Tensor(_scales(shape, N), "float32"),
        W: T.Tensor((M, N), "float32"),
        C: T.Tensor((M, N), out_dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(N, cols), T.ceildiv(M, rows), threads=_FINISH_THREADS) as (bx, by):
            W_local = T.alloc_fragment((rows, cols), "float32")
            T.copy(W[by * rows, bx * cols], W_local)
            _scaled(shape["per_row"], A_scale, B_scale, W_local, by * rows, bx * cols)
            T.copy(W_local, C[by * rows, bx * cols])
            T.clear(W_local)
            T.copy(W_local, W[by * rows, bx * cols])

    return gemm_fp8_split_k, gemm_fp8_finish


def program(shape: Shape, config: Config) -> TileProgram | tuple[TileProgram, ...]:
    """The product; with ``quantize_a`` behind the launches that make A.

    Raises:
        OperatorError: an unknown variant, or a tile that is no multiple of 16.
    """
    check_config("gemm_fp8", config, blocks=False)
    if config["variant"] not in ("tile", "persistent", "split_k"):
        raise OperatorError(
            f"gemm_fp8: variant={config['variant']!r} is not one of tile, persistent, split_k"
        )
    split = config["variant"] == "split_k"
    product = _split_k(shape, config) if split else (_product(shape, config),)
    launches = (*_quantise(shape, config), *product) if shape["quantize_a"] else product
    return launches if len(launches) > 1 else launches[0]


# (block_m, block_n, threads, swizzle, ((bytes of a K row of a tile, stages), …)), likeliest first.
_TILES = (
    (128, 256, 256, 8, ((128, 3), (128, 4))),
    (256, 128, 256, 8, ((128, 3), (128, 4), (64, 3), (64, 4))),
    (128, 128, 256, 8, ((128, 4), (128, 6), (128, 3), (64, 3), (64, 5))),
    (128, 192, 256, 8, ((128, 4),)),
    (192, 128, 256, 8, ((128, 4),)),
    (128, 64, 128, 8, ((128, 4), (128, 6))),
    (64, 128, 128, 8, ((128, 4), (128, 8), (256, 4))),
    (64, 256, 256, 8, ((128, 4),)),
    (64, 64, 128, 0, ((128, 5), (128, 12), (256, 3), (256, 6))),
    (32, 128, 128, 0, ((128, 5), (128, 10), (256, 3))),
    (32, 64, 128, 0, ((128, 5), (128, 7))),
    (16, 128, 128, 0, ((256, 4), (128, 5))),
    (16, 64, 128, 0, ((256, 4), (256, 10), (128, 4), (128, 7))),
    (128, 32, 128, 0, ((128, 4), (128, 6))),
    (256, 256, 512, 8, ((128, 2),)),
    (64, 32, 128, 0, ((128, 6),)),
    (64, 16, 128, 0, ((128, 8),)),
    (128, 96, 256, 8, ((128, 4),)),
    (128, 160, 256, 8, ((128, 4),)),
    (64, 192, 128, 8, ((128, 4),)),
    (256, 192, 256, 8, ((128, 3),)),
)
# (block_m, block_n, threads, stages) of one block a core.
_PERSISTENT = (
    (128, 256, 256, 4),
    (256, 128, 256, 4),
    (128, 128, 256, 4),
    (128, 128, 256, 6),
    (128, 192, 256, 4),
    (64, 128, 128, 8),
)
# (block_m, block_n, threads, bytes of a K row, stages, parts of the sum)
_SPLIT = (
    (128, 128, 256, 128, 4, (2, 4, 8)),
    (64, 128, 128, 128, 4, (2, 4, 8, 16)),
    (64, 64, 128, 128, 5, (4, 8, 16, 32, 64)),
    (16, 64, 128, 256, 4, (2, 4, 8, 16, 32, 64)),
    (128, 256, 256, 128, 3, (2, 4)),
)
# Of operands widened to bf16: (block_m, block_n, block_k, stages, threads, swizzle).
_WIDENED = (
    (128, 128, 128, 3, 256, 8),
    (128, 128, 64, 2, 256, 8),
    (64, 64, 64, 3, 128, 8),
    (16, 128, 128, 3, 128, 0),
    (16, 64, 64, 3, 128, 0),
)


def configs(shape: Shape) -> list[Config]:
    """The space: products of fp8, then of operands widened to bf16; ``cores`` is to be set to the chip's.

    ``in_turn`` (not in the space): A is quantised row after row on every core.
    """
    keys = ("variant", "block_m", "block_n", "block_k", "num_stages", "threads", "swizzle", "product")

    def config(*values: Any, split: int = 1) -> Config:
        found = dict(zip(keys, values, strict=True))
        return {**found, "split_k": split, "cores": 132, "in_turn": False}

    space = [config("persistent", m, n, 128, s, threads, 8, "fp8") for m, n, threads, s in _PERSISTENT]
    space += [
        config("tile", m, n, depth, s, threads, swizzle, "fp8")
        for m, n, threads, swizzle, depths in _TILES
        for depth, s in depths
    ]
    space += [
        config("split_k", m, n, depth, s, threads, 0, "fp8", split=split)
        for m, n, threads, depth, s, splits in _SPLIT
        for split in splits
    ]
    space += [config("tile", *tile, "bf16") for tile in _WIDENED]
    return space


def flops(shape: Shape) -> Any:
    """2·m·n·k: one multiplication and one addition a term; scales and padding are not counted.

    Quantising A is a division an element, with the rows' own scales a maximum more and a division a row;
    with the tensor's own a maximum more and one division.
    """
    m, n, k = (whole(shape[name]) for name in ("m", "n", "k"))
    quantising = m * (2 * k + 1) if shape["per_row"] else 2 * m * k + 1 if shape["find_scale"] else m * k
    return 2 * m * n * k + (quantising if shape["quantize_a"] else 0)


def min_bytes(shape: Shape) -> Any:
    """A (with ``quantize_a`` X, two bytes an element), B and the scales given read once, C written once."""
    m, n, k = (whole(shape[name]) for name in ("m", "n", "k"))
    a_scales, b_scales = (m, n) if shape["per_row"] else (1, 1)
    if shape["quantize_a"] and (shape["per_row"] or shape["find_scale"]):
        a_scales = 0
    a_bytes = m * k * (2 if shape["quantize_a"] else 1)
    return a_bytes + n * k + 4 * (a_scales + b_scales) + m * n * size(shape["out_dtype"])


def _operand(shape: Shape, rng: np.random.Generator, name: str, rows: int) -> Arrays:
    """A random operand and its scales, so that the largest element of each part is the largest number."""
    x = random_operand(rng, (rows, shape["k"]), "fp32").astype(np.float64)
    if shape["per_row"]:
        x = x * np.exp2(2.0 * rng.standard_normal((rows, 1)))
    absmax = np.abs(x).max(axis=1) if shape["per_row"] else np.abs(x).max(keepdims=True)[0]
    scale = reference_scale(absmax, False)
    wide = scale[:, None] if shape["per_row"] else scale
    values = round_e4m3(x / wide).astype(ml_dtypes.float8_e4m3fn)
    return {name: values, f"{name}_scale": scale.astype(np.float32)}


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """A of (m, k) and B of (n, k); scales (m,) and (n,), or (1,) each.

    With ``quantize_a`` X of (m, k) in bf16 takes A's place, and the rows' scales are made of it, or with
    ``find_scale`` the tensor's.
    """
    found = _operand(shape, rng, "A", shape["m"]) | _operand(shape, rng, "B", shape["n"])
    if shape["quantize_a"]:
        del found["A"], found["A_scale"]
        found["X"] = random_operand(rng, (shape["m"], shape["k"]), "bf16")
        if not shape["per_row"] and not shape["find_scale"]:
            absmax = np.abs(found["X"].astype(np.float32)).max()
            found["A_scale"] = np.full(1, absmax / FP8_MAX, np.float32)
    return found


def reference(shape: Shape, B: np.ndarray, B_scale: np.ndarray, **a_operand: np.ndarray) -> Arrays:
    """C of (m, n) in float64, not rounded to ``out_dtype``; quotients of X are those of float32."""
    if shape["quantize_a"]:
        x = a_operand["X"].astype(np.float32)
        if shape["per_row"] or shape["find_scale"]:
            absmax = np.abs(x).max(axis=1) if shape["per_row"] else np.abs(x).max(keepdims=True)[0]
            scale = reference_scale(absmax, False).astype(np.float32)
        else:
            scale = a_operand["A_scale"]
        wide = scale[:, None] if shape["per_row"] else scale
        a = round_e4m3((x / wide).astype(np.float64))
    else:
        a, scale = a_operand["A"].astype(np.float64), a_operand["A_scale"]
    outer = np.multiply.outer(scale.astype(np.float64), B_scale.astype(np.float64))
    return {"C": (a @ B.astype(np.float64).T) * outer}


def tolerance(shape: Shape) -> Tolerance:
    """One rounding to ``out_dtype`` and those of float32 sums over k; products of fp8 numbers are exact."""
    return product_tolerance(shape["out_dtype"], shape["k"])


def _outliers(shape: Shape, rng: np.random.Generator) -> Arrays:
    """One element in a hundred is far above the others, which become subnormal or zero."""
    given = inputs(shape, rng)
    name = "X" if shape["quantize_a"] else "A"
    x = given[name].astype(np.float32)
    large = rng.random(x.shape) < 0.01
    x = np.where(large, x * 1000.0, x) if name == "X" else np.where(large, x, x / 256.0)
    found: Arrays = {**given, name: x.astype(given[name].dtype)}
    if name == "X" and not shape["per_row"] and not shape["find_scale"]:
        found["A_scale"] = np.full(1, np.abs(x).max() / FP8_MAX, np.float32)
    return found


def check(shape: Shape) -> None:
    """Refuse a scale to be found where there is nothing to quantise, or where rows have their own."""
    if shape["find_scale"] and (shape["per_row"] or not shape["quantize_a"]):
        raise OperatorError(
            "gemm_fp8: find_scale goes with quantize_a, and with one scale a tensor (not per_row)"
        )


OPERATOR = Operator(
    name="gemm_fp8",
    doc=(
        "Matrix product C = (A Bᵀ) · a_scale ⊗ b_scale of fp8 e4m3 operands with float32 scales, one a "
        "tensor or (per_row) one a row of each: A is (m, k), B (n, k), A_scale (m,) and B_scale (n,) or (1,) "
        "each, C (m, n). With quantize_a, A is made of X (m, k) in bf16 by a launch of its own, by the given "
        "A_scale or, per_row, by max(max |X|, 1e-4) / 448 of each row, or with find_scale of the tensor, "
        "which takes launches of its own."
    ),
    params=(
        Param("m", "rows of A and C (tokens)", dynamic=True),
        Param("n", "rows of B, columns of C", dynamic=True),
        Param("k", "depth of the product", dynamic=True),
        Param("per_row", "a scale a row of A and of B, not a tensor", kind="bool", default=False),
        Param("quantize_a", "A is quantised from bf16 by a launch of its own", kind="bool", default=False),
        Param(
            "find_scale",
            "with quantize_a: the tensor's scale is not given but found in X",
            kind="bool",
            default=False,
        ),
        Param("out_dtype", "type of C", kind="dtype", default="bf16", choices=("bf16", "fp16", "fp32")),
    ),
    check=check,
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    tolerance=tolerance,
    adversarial={"outliers": _outliers},
    compute_dtype=lambda shape: "fp8",
    example={"m": 150, "n": 200, "k": 300},
)
