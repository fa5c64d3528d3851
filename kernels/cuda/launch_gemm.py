"""Launches of the matrix products (gemm.cu) and of the quantisation in front of them (quantise.cu)."""

from __future__ import annotations

from collections.abc import Sequence

from foretile.kernels.cuda.recipe import Argument, KernelSource, Role, ScalarArg, TensorArg
from foretile.kernels.cuda.registry import OUT_TYPES, Launch, Tensors, ceildiv, cuda_version, launch
from foretile.kernels.operator import OperatorError, Shape

TILE, THREADS = 64, 128
"""Rows and columns of a block's tile, and its threads (tile.cuh)."""
_ROW_THREADS = 256
_GRID_Y = 65535


def tiles(name: str, m: int, n: int) -> tuple[int, int]:
    """Blocks along n and m.

    Raises:
        OperatorError: more rows than a grid's second axis has blocks for.
    """
    down = ceildiv(m, TILE)
    if down > _GRID_Y:
        raise OperatorError(f"{name}: {m} rows; the CUDA version takes {_GRID_Y * TILE}")
    return ceildiv(n, TILE), down


def wide(*values: int) -> tuple[Argument, ...]:
    """64-bit sizes."""
    return tuple(ScalarArg("int64", value) for value in values)


def narrow(*values: int) -> tuple[Argument, ...]:
    """32-bit sizes and switches."""
    return tuple(ScalarArg("int32", int(value)) for value in values)


def product(symbol: str, grid: Sequence[int], args: Sequence[Argument]) -> Launch:
    """A launch of gemm.cu."""
    return launch(KernelSource("gemm.cu", symbol), grid, THREADS, args)


def quantising(symbol: str, grid: Sequence[int], args: Sequence[Argument], threads: int = 128) -> Launch:
    """A launch of quantise.cu."""
    return launch(KernelSource("quantise.cu", symbol), grid, threads, args)


def _mnk(shape: Shape) -> tuple[int, int, int]:
    return int(shape["m"]), int(shape["n"]), int(shape["k"])


@cuda_version("gemm")
def gemm(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A block a tile, the batch on the grid's z axis."""
    m, n, k = _mnk(shape)
    switches = (shape["trans_a"], shape["trans_b"], OUT_TYPES[shape["out_dtype"]])
    args = (*tensors.ins("A B"), *tensors.outs("C"), *wide(m, n, k), *narrow(*switches))
    return (product(f"gemm_{shape['dtype']}", (*tiles(name, m, n), shape["batch"]), args),)


@cuda_version("gemm_fp8")
def gemm_fp8(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """The product; with ``quantize_a`` behind what makes A, and with ``find_scale`` behind its scale too."""
    m, n, k = _mnk(shape)
    made = tensors.arg("A", "scratch" if shape["quantize_a"] else "in")
    found = shape["quantize_a"] and (shape["per_row"] or shape["find_scale"])
    scale = tensors.arg("A_scale", "scratch" if found else "in")
    last = narrow(shape["per_row"], OUT_TYPES[shape["out_dtype"]])
    args: tuple[Argument, ...] = (
        made,
        scale,
        *tensors.ins("B B_scale"),
        *tensors.outs("C"),
        *wide(m, n, k),
        *last,
    )
    return (
        *(_fp8_rows(shape, tensors, made, scale) if shape["quantize_a"] else ()),
        product("gemm_fp8_scaled", tiles(name, m, n), args),
    )


def _fp8_rows(shape: Shape, tensors: Tensors, made: TensorArg, scale: TensorArg) -> Sequence[Launch]:
    """A (and its scale) of X."""
    m, _, k = _mnk(shape)
    X = tensors.arg("X")
    if shape["per_row"]:
        return (quantising("quantize_bf16", (m,), (X, made, scale, *narrow(k, k, 0)), _ROW_THREADS),)
    by_scale = quantising("quantize_tensor_bf16", (m,), (X, scale, made, *narrow(k)), _ROW_THREADS)
    if not shape["find_scale"]:
        return (by_scale,)
    largest = TensorArg("row_largest", "float32", (m,), "scratch")
    return (
        quantising("row_absmax", (m,), (X, largest, *narrow(k)), _ROW_THREADS),
        quantising("tensor_scale", (1,), (largest, scale, *narrow(m)), _ROW_THREADS),
        by_scale,
    )


@cuda_version("gemm_fp8_block")
def gemm_fp8_block(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """The product by blocks of 128, with scales in float32 or packed powers of two."""
    m, n, k = _mnk(shape)
    role: Role = "scratch" if shape["quantize_a"] else "in"
    A, A_scale = tensors.arg("A", role), tensors.arg("A_scale", role)
    packed = shape["scale_dtype"] == "fp8_e8m0"
    args: tuple[Argument, ...] = (A, A_scale, *tensors.ins("B B_scale"), *tensors.outs("C"), *wide(m, n, k))
    done = product(
        "gemm_fp8_e8m0" if packed else "gemm_fp8_block",
        tiles(name, m, n),
        (*args, *narrow(OUT_TYPES[shape["out_dtype"]])),
    )
    if not shape["quantize_a"]:
        return (done,)
    X, groups = tensors.arg("X"), ceildiv(k, 128)
    if packed:
        grid = (m * ceildiv(groups, 4) * 4,)
        return quantising("quantize_e8m0", grid, (X, A, A_scale, *wide(m), *narrow(k))), done
    return quantising("quantize_bf16", (m * groups,), (X, A, A_scale, *narrow(k, 128, 0))), done


@cuda_version("gemm_nvfp4")
def gemm_nvfp4(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """The product of operands that are widened, scales applied, to fp16."""
    m, n, k = _mnk(shape)
    role: Role = "scratch" if shape["quantize_a"] else "in"
    A, A_scale = tensors.arg("A", role), tensors.arg("A_scale", role)
    args: tuple[Argument, ...] = (
        A,
        A_scale,
        *tensors.ins("B B_scale Alpha"),
        *tensors.outs("C"),
        *wide(m, n, k),
    )
    done = product("gemm_nvfp4", tiles(name, m, n), (*args, *narrow(OUT_TYPES[shape["out_dtype"]])))
    if not shape["quantize_a"]:
        return (done,)
    X, X_scale = tensors.ins("X X_scale")
    return quantising("quantize_nvfp4_bf16", (m,), (X, X_scale, A, A_scale, *narrow(k))), done


@cuda_version("gemm_dequant")
def gemm_dequant(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """Weights rounded to A's type once scaled, as the tile program does."""
    m, n, k = _mnk(shape)
    switches = narrow(shape["group"], shape["wdtype"] == "int4")
    args = (*tensors.ins("A W W_scale"), *tensors.outs("C"), *wide(m, n, k), *switches)
    return (product(f"gemm_dequant_{shape['dtype']}", tiles(name, m, n), args),)


@cuda_version("conv2d")
def conv2d(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """The product of the unfolded image, gathered as it is staged."""
    depth, filters = tensors.shape("F")
    pixels, _ = tensors.shape("Y")
    height, width, channels = tensors.shape("X")[1:]
    kernel, stride, padding = shape["kernel"], shape["stride"], shape["padding"]
    out = [(extent + 2 * padding - kernel) // stride + 1 for extent in (height, width)]
    sizes = narrow(height, width, channels, kernel, stride, padding, *out)
    args = (*tensors.ins("X F"), *tensors.outs("Y"), *wide(pixels, depth, filters), *sizes)
    return (product(f"conv2d_{shape['dtype']}", tiles(name, pixels, filters), args),)


@cuda_version("quantize")
def quantize(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A block a group of a row."""
    rows, cols = tensors.shape("X")
    group = min(shape["group"] or cols, cols)
    scalars = narrow(cols, group, shape["round_scale"])
    args = (*tensors.ins("X"), *tensors.outs("Y S"), *scalars)
    threads = _ROW_THREADS if group > 128 * 8 else 32
    return (quantising(f"quantize_{shape['dtype']}", (rows * ceildiv(cols, group),), args, threads),)


@cuda_version("quantize_weight")
def quantize_weight(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A block a block of 128 × 128."""
    rows, cols = tensors.shape("X")
    args = (*tensors.ins("X"), *tensors.outs("Y S"), *wide(rows), *narrow(cols, shape["round_scale"]))
    return (
        quantising(f"quantize_weight_{shape['dtype']}", (ceildiv(cols, 128), ceildiv(rows, 128)), args, 256),
    )
