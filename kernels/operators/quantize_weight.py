"""Weight quantisation to fp8: ``Y = X / S``, one float32 scale ``S`` a block of 128 × 128."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, OperatorError, Param, Shape, Tolerance
from foretile.kernels.operators._common import full, random_operand, size, whole
from foretile.kernels.operators._quant import BLOCK, groups_of, quantised, saturated, scale_of, settled


def program(shape: Shape, config: Config) -> TileProgram:
    """One block of threads a block of weights, which stays on chip: X is read once.

    With ``strip_rows`` 128 the weights are held in registers; with fewer in shared memory, and
    registers hold a strip of rows at a time.

    Raises:
        OperatorError: ``strip_rows`` does not divide 128.
    """
    rows, cols, dtype = shape["rows"], shape["cols"], full(shape["dtype"])
    strip_rows, threads, round_scale = config["strip_rows"], config["threads"], shape["round_scale"]
    if BLOCK % strip_rows:
        raise OperatorError(f"quantize_weight: strip_rows={strip_rows} does not divide {BLOCK}")

    @T.prim_func
    def quantize_weight(
        X: T.Tensor((rows, cols), dtype),
        Y: T.Tensor((rows, cols), "float8_e4m3"),
        S: T.Tensor((groups_of(rows), groups_of(cols)), "float32"),
    ) -> None:
        with T.Kernel(groups_of(cols), groups_of(rows), threads=threads) as (bx, by):
            X_local = T.alloc_fragment((strip_rows, BLOCK), dtype)
            Y_local = T.alloc_fragment((strip_rows, BLOCK), "float8_e4m3")
            row_absmax = T.alloc_fragment((strip_rows,), "float32")
            scale = T.alloc_fragment((1,), "float32")
            if strip_rows == BLOCK:
                T.copy(X[by * BLOCK, bx * BLOCK], X_local)
                T.reduce_absmax(X_local, row_absmax, dim=1)
            else:
                X_shared = T.alloc_shared((BLOCK, BLOCK), dtype)
                T.copy(X[by * BLOCK, bx * BLOCK], X_shared)
                T.clear(row_absmax)
                for strip in T.serial(BLOCK // strip_rows):
                    T.copy(X_shared[strip * strip_rows, 0], X_local)
                    T.reduce_absmax(X_local, row_absmax, dim=1, clear=False)
            T.reduce_max(row_absmax, scale, dim=0)
            for i in T.Parallel(1):
                scale[i] = scale_of(scale[i], round_scale)
            T.copy(scale, S[by, bx : bx + 1])
            for strip in T.serial(BLOCK // strip_rows):
                if strip_rows < BLOCK:
                    T.copy(X_shared[strip * strip_rows, 0], X_local)
                for i, j in T.Parallel(strip_rows, BLOCK):
                    Y_local[i, j] = saturated(T.cast(X_local[i, j], "float32"), scale[0])
                T.copy(Y_local, Y[by * BLOCK + strip * strip_rows, bx * BLOCK])

    traced: TileProgram = quantize_weight
    return traced


# (strip_rows, threads), likeliest first.
_STRIPS = (
    (128, 256),
    (128, 512),
    (128, 128),
    (128, 1024),
    (64, 256),
    (64, 512),
    (64, 128),
    (32, 256),
    (32, 128),
    (32, 512),
    (16, 128),
    (16, 256),
)


def configs(shape: Shape) -> list[Config]:
    """The space: rows held in registers at a time, and threads."""
    return [{"strip_rows": rows, "threads": threads} for rows, threads in _STRIPS]


def flops(shape: Shape) -> Any:
    """2 an element and 1 a scale, as in ``quantize``: a maximum and a division each."""
    rows, cols = whole(shape["rows"]), whole(shape["cols"])
    return 2 * rows * cols + groups_of(rows) * groups_of(cols)


def min_bytes(shape: Shape) -> Any:
    """X read once; Y (a byte an element) and S (four bytes a block) written once."""
    rows, cols = whole(shape["rows"]), whole(shape["cols"])
    return rows * cols * (size(shape["dtype"]) + 1) + 4 * groups_of(rows) * groups_of(cols)


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """X of (rows, cols)."""
    return {"X": random_operand(rng, (shape["rows"], shape["cols"]), shape["dtype"])}


def reference(shape: Shape, X: np.ndarray) -> Arrays:
    """Y of (rows, cols) and S of (ceil(rows / 128), ceil(cols / 128)), rounded as in ``quantize``."""
    values, scale = quantised(X, BLOCK, BLOCK, shape["round_scale"])
    return {"Y": values, "S": scale}


def comparable(shape: Shape, inputs: Arrays, outputs: Arrays) -> Arrays:
    """Y with values on a rounding boundary settled (see ``quantize``), and S as it is."""
    return settled(inputs["X"], BLOCK, BLOCK, shape["round_scale"], outputs)


def _zeros(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Every other block of columns is zero: its scale is the floor's."""
    X = inputs(shape, rng)["X"]
    X[:, np.arange(shape["cols"]) // BLOCK % 2 == 0] = 0
    return {"X": X}


def _one_large(shape: Shape, rng: np.random.Generator) -> Arrays:
    """The last weight is ten thousand times the others, which its block rounds to subnormals and zero."""
    X = inputs(shape, rng)["X"]
    X[-1, -1] = 1e4
    return {"X": X}


OPERATOR = Operator(
    name="quantize_weight",
    doc=(
        "Quantisation of weights to fp8 e4m3, Y = X / S with S = max(max |X|, 1e-4) / 448 over each block of "
        "128 × 128; X and Y are (rows, cols), S is (ceil(rows / 128), ceil(cols / 128)) in float32."
    ),
    params=(
        Param("rows", "rows (output channels)", dynamic=True),
        Param("cols", "columns (input channels)", dynamic=True),
        Param("dtype", "type of X", kind="dtype", default="bf16", choices=("bf16", "fp16", "fp32")),
        Param("round_scale", "round scales up to powers of two (ue8m0)", kind="bool", default=False),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    # The scale's two units in the last place, as in ``quantize``; Y, settled, is exact.
    tolerance=lambda shape: Tolerance(norm=2.0**-22, peak=2.0**-22),
    adversarial={"zero_blocks": _zeros, "one_large": _one_large},
    comparable=comparable,
    compute_dtype=lambda shape: "fp32",
    example={"rows": 200, "cols": 300},
)
