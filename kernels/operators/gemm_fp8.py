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
from foretile.kernels.operators._quant import FP8_MAX, reference_scale, round_e4m3, saturated, scale_of
from foretile.kernels.operators._scaled_gemm import (
    check_config,
    depth_tile,
    plain_products,
    product_tolerance,
)

_FP8 = "float8_e4m3"
_ROWS, _COLS, _THREADS = 4, 2048, 256  # of a block that quantises


def _scales(shape: Shape, rows: Any) -> tuple[Any, ...]:
    """Shape of an operand's scales."""
    return (rows,) if shape["per_row"] else (1,)


def _quantise(shape: Shape) -> TileProgram:
    """A of X: by the tensor's scale, which is given, or by the rows' own, of two passes over each."""
    M, K = shape["m"], shape["k"]

    if not shape["per_row"]:

        @T.prim_func
        def quantise_fp8_tensor(
            X: T.Tensor((M, K), "bfloat16"),
            A_scale: T.Tensor((1,), "float32"),
            A: T.Tensor((M, K), _FP8),
        ) -> None:
            with T.Kernel(T.ceildiv(K, _COLS), T.ceildiv(M, _ROWS), threads=_THREADS) as (bx, by):
                X_local = T.alloc_fragment((_ROWS, _COLS), "bfloat16")
                A_local = T.alloc_fragment((_ROWS, _COLS), _FP8)
                T.copy(X[by * _ROWS, bx * _COLS], X_local)
                for i, j in T.Parallel(_ROWS, _COLS):
                    A_local[i, j] = saturated(T.cast(X_local[i, j], "float32"), A_scale[0])
                T.copy(A_local, A[by * _ROWS, bx * _COLS])

        static: TileProgram = quantise_fp8_tensor
        return static

    @T.prim_func
    def quantise_fp8_rows(
        X: T.Tensor((M, K), "bfloat16"),
        A_scale: T.Tensor((M,), "float32"),
        A: T.Tensor((M, K), _FP8),
    ) -> None:
        with T.Kernel(M, threads=_THREADS) as row:
            X_shared = T.alloc_shared((1, _COLS), "bfloat16")
            X_local = T.alloc_fragment((1, _COLS), "float32")
            A_local = T.alloc_fragment((1, _COLS), _FP8)
            absmax = T.alloc_fragment((1,), "float32")
            scale = T.alloc_fragment((1,), "float32")
            T.clear(absmax)
            for step in T.Pipelined(T.ceildiv(K, _COLS), num_stages=2):
                T.copy(X[row, step * _COLS], X_shared)
                T.copy(X_shared, X_local)
                T.reduce_absmax(X_local, absmax, dim=1, clear=False)
            scale[0] = scale_of(absmax[0], False)
            T.copy(scale, A_scale[row])
            for step in T.Pipelined(T.ceildiv(K, _COLS), num_stages=2):
                T.copy(X[row, step * _COLS], X_shared)
                T.copy(X_shared, X_local)
                for i, j in T.Parallel(1, _COLS):
                    A_local[i, j] = saturated(X_local[i, j], scale[0])
                T.copy(A_local, A[row, step * _COLS])

    dynamic: TileProgram = quantise_fp8_rows
    return dynamic


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
        _FP8,
    )
    if not per_row:
        for i, j in T.Parallel(block_M, block_N):
            C_local[i, j] = C_local[i, j] * (A_scale[0] * B_scale[0])
    else:
        row_scale = T.alloc_fragment((block_M,), "float32")
        column_scale = T.alloc_fragment((block_N,), "float32")
        T.copy(A_scale[m0], row_scale)
        T.copy(B_scale[n0], column_scale)
        for i, j in T.Parallel(block_M, block_N):
            C_local[i, j] = C_local[i, j] * row_scale[i] * column_scale[j]
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
        A: T.Tensor((M, K), _FP8),
        A_scale: T.Tensor(_scales(shape, M), "float32"),
        B: T.Tensor((N, K), _FP8),
        B_scale: T.Tensor(_scales(shape, N), "float32"),
        C: T.Tensor((M, N), out_dtype),
    ) -> None:
        with T.Kernel(*grid, threads=config["threads"]) as at:
            operands = (A, A_scale, B, B_scale)
            if persistent:
                for by, bx in T.Persistent(tiles, cores, at, group_size=group_size):
                    _tile(config, shape["per_row"], steps, operands, C, by * block_M, bx * block_N)
            else:
                if config["swizzle"]:
                    T.use_swizzle(panel_size=config["swizzle"])
                _tile(config, shape["per_row"], steps, operands, C, at[1] * block_M, at[0] * block_N)

    traced: TileProgram = gemm_fp8
    return traced


def program(shape: Shape, config: Config) -> TileProgram | tuple[TileProgram, ...]:
    """The product; with ``quantize_a`` behind the launch that makes A.

    Raises:
        OperatorError: an unknown variant, or a tile that is no multiple of 16.
    """
    check_config("gemm_fp8", config, blocks=False)
    if config["variant"] not in ("tile", "persistent"):
        raise OperatorError(f"gemm_fp8: variant={config['variant']!r} is not one of tile, persistent")
    product = _product(shape, config)
    return (_quantise(shape), product) if shape["quantize_a"] else product


# (variant, block_m, block_n, block_k, num_stages, threads, swizzle, product), likeliest first.
_TILES = (
    ("persistent", 128, 256, 128, 4, 256, 8, "fp8"),
    ("persistent", 256, 128, 128, 4, 256, 8, "fp8"),
    ("persistent", 128, 128, 128, 4, 256, 8, "fp8"),
    ("tile", 128, 256, 128, 3, 256, 8, "fp8"),
    ("tile", 128, 256, 128, 4, 256, 8, "fp8"),
    ("tile", 256, 128, 128, 3, 256, 8, "fp8"),
    ("tile", 128, 128, 128, 4, 256, 8, "fp8"),
    ("tile", 128, 128, 64, 3, 256, 8, "fp8"),
    ("tile", 128, 64, 128, 4, 128, 8, "fp8"),
    ("tile", 64, 128, 128, 4, 128, 8, "fp8"),
    ("tile", 64, 64, 128, 5, 128, 0, "fp8"),
    ("tile", 64, 64, 256, 3, 128, 0, "fp8"),
    ("tile", 32, 128, 128, 5, 128, 0, "fp8"),
    ("tile", 32, 64, 128, 5, 128, 0, "fp8"),
    ("tile", 16, 128, 256, 4, 128, 0, "fp8"),
    ("tile", 16, 64, 256, 4, 128, 0, "fp8"),
    ("tile", 128, 32, 128, 4, 128, 0, "fp8"),
    ("tile", 128, 128, 128, 3, 256, 8, "bf16"),
    ("tile", 128, 128, 64, 2, 256, 8, "bf16"),
    ("tile", 64, 64, 64, 3, 128, 8, "bf16"),
    ("tile", 16, 128, 128, 3, 128, 0, "bf16"),
    ("tile", 16, 64, 64, 3, 128, 0, "bf16"),
)


def configs(shape: Shape) -> list[Config]:
    """The space: products of fp8, then of operands widened to bf16; ``cores`` is to be set to the chip's."""
    keys = ("variant", "block_m", "block_n", "block_k", "num_stages", "threads", "swizzle", "product")
    return [{**dict(zip(keys, tile, strict=True)), "cores": 132} for tile in _TILES]


def flops(shape: Shape) -> Any:
    """2·m·n·k: one multiplication and one addition a term; scales and padding are not counted.

    Quantising A is a division an element, with the rows' own scales a maximum more and a division a row.
    """
    m, n, k = (whole(shape[name]) for name in ("m", "n", "k"))
    quantising = m * (2 * k + 1) if shape["per_row"] else m * k
    return 2 * m * n * k + (quantising if shape["quantize_a"] else 0)


def min_bytes(shape: Shape) -> Any:
    """A (with ``quantize_a`` X, two bytes an element), B and the scales given read once, C written once."""
    m, n, k = (whole(shape[name]) for name in ("m", "n", "k"))
    a_scales, b_scales = (m, n) if shape["per_row"] else (1, 1)
    if shape["quantize_a"] and shape["per_row"]:
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

    With ``quantize_a`` X of (m, k) in bf16 takes A's place, and the rows' scales are made of it.
    """
    found = _operand(shape, rng, "A", shape["m"]) | _operand(shape, rng, "B", shape["n"])
    if shape["quantize_a"]:
        del found["A"], found["A_scale"]
        found["X"] = random_operand(rng, (shape["m"], shape["k"]), "bf16")
        if not shape["per_row"]:
            absmax = np.abs(found["X"].astype(np.float32)).max()
            found["A_scale"] = np.full(1, absmax / FP8_MAX, np.float32)
    return found


def reference(shape: Shape, B: np.ndarray, B_scale: np.ndarray, **a_operand: np.ndarray) -> Arrays:
    """C of (m, n) in float64, not rounded to ``out_dtype``; quotients of X are those of float32."""
    if shape["quantize_a"]:
        x = a_operand["X"].astype(np.float32)
        own = reference_scale(np.abs(x).max(axis=1), False).astype(np.float32)
        scale = own if shape["per_row"] else a_operand["A_scale"]
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
    if name == "X" and not shape["per_row"]:
        found["A_scale"] = np.full(1, np.abs(x).max() / FP8_MAX, np.float32)
    return found


OPERATOR = Operator(
    name="gemm_fp8",
    doc=(
        "Matrix product C = (A Bᵀ) · a_scale ⊗ b_scale of fp8 e4m3 operands with float32 scales, one a "
        "tensor or (per_row) one a row of each: A is (m, k), B (n, k), A_scale (m,) and B_scale (n,) or (1,) "
        "each, C (m, n). With quantize_a, A is made of X (m, k) in bf16 by a launch of its own, by the given "
        "A_scale or, per_row, by max(max |X|, 1e-4) / 448 of each row."
    ),
    params=(
        Param("m", "rows of A and C (tokens)", dynamic=True),
        Param("n", "rows of B, columns of C", dynamic=True),
        Param("k", "depth of the product", dynamic=True),
        Param("per_row", "a scale a row of A and of B, not a tensor", kind="bool", default=False),
        Param("quantize_a", "A is quantised from bf16 by a launch of its own", kind="bool", default=False),
        Param("out_dtype", "type of C", kind="dtype", default="bf16", choices=("bf16", "fp16", "fp32")),
    ),
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
