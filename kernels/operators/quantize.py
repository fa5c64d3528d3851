"""Activation quantisation to fp8: ``Y = X / S``, one float32 scale ``S`` a row and group of columns."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from math import gcd
from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, OperatorError, Param, Shape, Tolerance
from foretile.kernels.operators._common import full, random_operand, row_variant, size, whole
from foretile.kernels.operators._quant import FP8_MAX, groups_of, quantised, saturated, scale_of, settled


def _width(shape: Shape) -> int:
    """Columns that share a scale: ``group``, or the whole row."""
    cols = int(shape["cols"])
    return min(int(shape["group"]) or cols, cols)


def _group(shape: Shape, config: Config) -> TileProgram:
    """One block a tile of whole groups on chip: X is read once."""
    rows, cols, width, dtype = shape["rows"], shape["cols"], _width(shape), full(shape["dtype"])
    block_rows, threads, round_scale = config["block_rows"], config["threads"], shape["round_scale"]

    @T.prim_func
    def quantize(
        X: T.Tensor((rows, cols), dtype),
        Y: T.Tensor((rows, cols), "float8_e4m3fn"),
        S: T.Tensor((rows, groups_of(cols, width)), "float32"),
    ) -> None:
        with T.Kernel(groups_of(cols, width), T.ceildiv(rows, block_rows), threads=threads) as (bx, by):
            X_local = T.alloc_fragment((block_rows, width), dtype)
            Y_local = T.alloc_fragment((block_rows, width), "float8_e4m3fn")
            absmax = T.alloc_fragment((block_rows,), "float32")
            scale = T.alloc_fragment((block_rows,), "float32")
            T.copy(X[by * block_rows, bx * width], X_local)
            T.reduce_absmax(X_local, absmax, dim=1)
            for i in T.Parallel(block_rows):
                scale[i] = scale_of(absmax[i], round_scale)
            for i, j in T.Parallel(block_rows, width):
                Y_local[i, j] = saturated(T.cast(X_local[i, j], "float32"), scale[i])
            T.copy(scale, S[by * block_rows : (by + 1) * block_rows, bx])
            T.copy(Y_local, Y[by * block_rows, bx * width])

    traced: TileProgram = quantize
    return traced


def _tiled(shape: Shape, config: Config) -> TileProgram:
    """Two passes over tiles of columns: groups too long to stay on chip are read twice."""
    rows, cols, width, dtype = shape["rows"], shape["cols"], _width(shape), full(shape["dtype"])
    block_rows, threads, round_scale = config["block_rows"], config["threads"], shape["round_scale"]
    num_stages = config["num_stages"]
    # A tile that reached past its group would write into the next one's.
    block_cols = config["block_cols"] if width == cols else gcd(width, config["block_cols"])
    tiles = -(-width // block_cols)

    @T.prim_func
    def quantize_tiled(
        X: T.Tensor((rows, cols), dtype),
        Y: T.Tensor((rows, cols), "float8_e4m3fn"),
        S: T.Tensor((rows, groups_of(cols, width)), "float32"),
    ) -> None:
        with T.Kernel(groups_of(cols, width), T.ceildiv(rows, block_rows), threads=threads) as (bx, by):
            X_shared = T.alloc_shared((block_rows, block_cols), dtype)
            X_local = T.alloc_fragment((block_rows, block_cols), "float32")
            Y_local = T.alloc_fragment((block_rows, block_cols), "float8_e4m3fn")
            absmax = T.alloc_fragment((block_rows,), "float32")
            scale = T.alloc_fragment((block_rows,), "float32")
            T.clear(absmax)
            for k in T.Pipelined(tiles, num_stages=num_stages):
                T.copy(X[by * block_rows, bx * width + k * block_cols], X_shared)
                T.copy(X_shared, X_local)
                T.reduce_absmax(X_local, absmax, dim=1, clear=False)
            for i in T.Parallel(block_rows):
                scale[i] = scale_of(absmax[i], round_scale)
            T.copy(scale, S[by * block_rows : (by + 1) * block_rows, bx])
            for k in T.Pipelined(tiles, num_stages=num_stages):
                T.copy(X[by * block_rows, bx * width + k * block_cols], X_shared)
                T.copy(X_shared, X_local)
                for i, j in T.Parallel(block_rows, block_cols):
                    Y_local[i, j] = saturated(X_local[i, j], scale[i])
                T.copy(Y_local, Y[by * block_rows, bx * width + k * block_cols])

    traced: TileProgram = quantize_tiled
    return traced


def _walk(shape: Shape, config: Config) -> TileProgram:
    """One block a row, which takes ``block_cols`` columns, whole groups, at a time."""
    rows, cols, width, dtype = shape["rows"], shape["cols"], _width(shape), full(shape["dtype"])
    groups = max(1, config["block_cols"] // width)
    block_cols, round_scale = groups * width, shape["round_scale"]

    @T.prim_func
    def quantize_walk(
        X: T.Tensor((rows, cols), dtype),
        Y: T.Tensor((rows, cols), "float8_e4m3fn"),
        S: T.Tensor((rows, groups_of(cols, width)), "float32"),
    ) -> None:
        with T.Kernel(rows, threads=config["threads"]) as row:
            X_local = T.alloc_fragment((1, block_cols), dtype)
            grouped = T.alloc_fragment((groups, width), "float32")
            Y_local = T.alloc_fragment((1, block_cols), "float8_e4m3fn")
            absmax = T.alloc_fragment((groups,), "float32")
            scale = T.alloc_fragment((1, groups), "float32")
            for step in T.serial(-(-cols // block_cols)):
                T.copy(X[row, step * block_cols], X_local)
                for g, j in T.Parallel(groups, width):
                    grouped[g, j] = X_local[0, g * width + j]
                T.reduce_absmax(grouped, absmax, dim=1)
                for g in T.Parallel(groups):
                    scale[0, g] = scale_of(absmax[g], round_scale)
                for g, j in T.Parallel(groups, width):
                    Y_local[0, g * width + j] = saturated(grouped[g, j], scale[0, g])
                T.copy(scale, S[row, step * groups])
                T.copy(Y_local, Y[row, step * block_cols])

    traced: TileProgram = quantize_walk
    return traced


_VARIANTS = {"group": _group, "tiled": _tiled, "walk": _walk}


def program(shape: Shape, config: Config) -> TileProgram:
    """Whole groups on chip (``variant`` "group"), two passes over tiles of a group ("tiled"), or a block a
    row ("walk")."""
    traced: TileProgram = row_variant("quantize", _VARIANTS, config)(shape, config)
    return traced


# Elements of X a thread holds, likeliest first, by threads of a block.
_HELD = ((128, 32), (256, 32), (128, 16), (128, 64), (256, 16), (512, 32), (1024, 16), (1024, 32), (1024, 64))
# (block_rows, block_cols, num_stages, threads)
_TILES = ((1, 4096, 2, 256), (1, 2048, 2, 256), (2, 2048, 3, 256), (4, 1024, 2, 256), (8, 512, 2, 256))
_WALK_COLS, _WALK_THREADS = 4096, 256  # most columns a step: vectors of 16 a thread
_LONG_GROUP = 16384  # elements from which column tiles are the likelier choice


def configs(shape: Shape) -> list[Config]:
    """The space: rows of whole groups by what a thread holds, and tiles of columns for long groups."""
    width = _width(shape)
    group: list[Config] = []
    for threads, held in _HELD:
        config = {
            "variant": "group",
            "block_rows": max(1, threads * held // width),
            "block_cols": width,
            "num_stages": 1,
            "threads": threads,
        }
        if config not in group:
            group.append(config)
    tiled: list[Config] = [
        {"variant": "tiled", "block_rows": rows, "block_cols": cols, "num_stages": stages, "threads": threads}
        for rows, cols, stages, threads in _TILES
    ]
    wide = min(_WALK_COLS, groups_of(int(shape["cols"]), width) * width)
    walk: list[Config] = [
        {
            "variant": "walk",
            "block_rows": 1,
            "block_cols": wide,
            "num_stages": 1,
            "threads": _WALK_THREADS,
        }
    ]
    return tiled + group if width > _LONG_GROUP else group + tiled + (walk if width <= _WALK_COLS else [])


def flops(shape: Shape) -> Any:
    """2 an element (a maximum, a division) and 1 a scale; the floor is a group's first maximum.

    Saturation and rounding belong to the conversion and are not counted, nor is ``round_scale``.
    """
    return whole(shape["rows"]) * (2 * shape["cols"] + groups_of(shape["cols"], _width(shape)))


def min_bytes(shape: Shape) -> Any:
    """X read once; Y (a byte an element) and S (four bytes a group) written once."""
    scales = groups_of(shape["cols"], _width(shape))
    return whole(shape["rows"]) * (shape["cols"] * (size(shape["dtype"]) + 1) + 4 * scales)


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """X of (rows, cols)."""
    return {"X": random_operand(rng, (shape["rows"], shape["cols"]), shape["dtype"])}


def reference(shape: Shape, X: np.ndarray) -> Arrays:
    """Y of (rows, cols) on the e4m3 grid and S of (rows, groups) on the float32 grid, in float64.

    Rounding is the operation: S is the float32 quotient, Y the exact quotient by that S, rounded once
    to the nearest e4m3 number (ties to even) and saturated at ±448.
    """
    values, scale = quantised(X, 1, _width(shape), shape["round_scale"])
    return {"Y": values, "S": scale}


def tolerance(shape: Shape) -> Tolerance:
    """Two units in the last place of S, which some chips' division has; Y, settled, is exact.

    One wrong step in the smallest normal e4m3 numbers (2**-9 of 448) is eighteen times the peak.
    """
    return Tolerance(norm=2.0**-22, peak=2.0**-22)


def comparable(shape: Shape, inputs: Arrays, outputs: Arrays) -> Arrays:
    """Y with values on a rounding boundary settled, and S as it is.

    A kernel divides in float32: where the quotient comes within that error of the middle between
    two e4m3 numbers, it may be rounded to either.
    """
    return settled(inputs["X"], 1, _width(shape), shape["round_scale"], outputs)


def check(shape: Shape) -> None:
    """Refuse groups that vector instructions cannot divide."""
    group = shape["group"]
    if group % 16 and group < shape["cols"]:
        raise OperatorError(
            f"quantize: group={group} is not a multiple of 16; DeepSeek's is 128, and 0 is one scale a row"
        )


def _zeros(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Rows of zeros between others: their scale is the floor's."""
    X = inputs(shape, rng)["X"]
    X[::2] = 0
    return {"X": X}


def _boundaries(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Scales of exactly a power of two, and values in the middle between two e4m3 numbers."""
    exponent = rng.integers(-6, 8, (shape["rows"], shape["cols"]))
    x = np.ldexp(1.0 + rng.integers(0, 16, exponent.shape) / 16.0, exponent)
    x[:, :: _width(shape)] = FP8_MAX
    return {"X": (x * rng.choice((-1.0, 1.0), x.shape)).astype(inputs(shape, rng)["X"].dtype)}


def _outliers(shape: Shape, rng: np.random.Generator) -> Arrays:
    """One element in a thousand is ten thousand times the others, which become subnormal or zero."""
    X = inputs(shape, rng)["X"]
    large = rng.random(X.shape) < 1e-3
    return {"X": np.where(large, X.astype(np.float32) * 1e4, X.astype(np.float32)).astype(X.dtype)}


OPERATOR = Operator(
    name="quantize",
    doc=(
        "Quantisation of activations to fp8 e4m3, Y = X / S with S = max(max |X|, 1e-4) / 448 over each "
        "row's groups of columns; X and Y are (rows, cols), S is (rows, ceil(cols / group)) in float32."
    ),
    params=(
        Param("rows", "rows (tokens)", dynamic=True),
        Param("cols", "elements of a row (hidden size)"),
        Param("dtype", "type of X", kind="dtype", default="bf16", choices=("bf16", "fp16", "fp32")),
        Param("group", "columns that share a scale; 0: the whole row (per token)", default=128, minimum=0),
        Param("round_scale", "round scales up to powers of two (ue8m0)", kind="bool", default=False),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    check=check,
    tolerance=tolerance,
    adversarial={"zero_rows": _zeros, "rounding_boundaries": _boundaries, "outliers": _outliers},
    comparable=comparable,
    compute_dtype=lambda shape: "fp32",
    example={"rows": 37, "cols": 300},
)
