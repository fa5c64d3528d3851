"""Two-dimensional convolution of NHWC images as an implicit matrix product: no unfolded image is stored."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, OperatorError, Param, Shape
from foretile.kernels.operators._common import every, full, numpy_dtype, random_operand, size, whole


def _out(extent: int, shape: Shape) -> int:
    """Height or width of the result for that of the image."""
    out: int = (extent + 2 * shape["padding"] - shape["kernel"]) // shape["stride"] + 1
    return out


def program(shape: Shape, config: Config) -> TileProgram:
    """One block a tile of ``block_m`` result pixels × ``block_n`` result channels.

    Row m of the left operand is a result pixel, column k a tap (row, column, channel) of the
    filter: the tile is gathered from the image by taking m and k apart, with zeros where a tap
    falls on the padding. Channels vary fastest, so neighbours in k are neighbours in memory.

    Raises:
        OperatorError: a tile that is no multiple of 16.
    """
    for key in ("block_m", "block_n", "block_k"):
        if config[key] % 16:
            raise OperatorError(f"conv2d: {key}={config[key]} is not a multiple of 16")
    batch, height, width = shape["batch"], shape["height"], shape["width"]
    channels, out_channels, kernel = shape["in_channels"], shape["out_channels"], shape["kernel"]
    stride, padding, dtype = shape["stride"], shape["padding"], full(shape["dtype"])
    out_height, out_width = _out(height, shape), _out(width, shape)
    pixels, depth = batch * (out_height * out_width), kernel * kernel * channels
    block_M, block_N, block_K = config["block_m"], config["block_n"], config["block_k"]
    num_stages, threads, swizzle = config["num_stages"], config["threads"], config["swizzle"]

    def inside(m: Any, k: Any, row: Any, column: Any) -> Any:
        """Whether the tap reads the image; what the shape alone decides is not tested."""
        tests = [m < pixels]
        if depth % block_K:
            tests.append(k < depth)
        if padding:
            tests += [row >= 0, row < height, column >= 0, column < width]
        return every(tests)

    @T.prim_func
    def conv2d(
        X: T.Tensor((batch, height, width, channels), dtype),
        F: T.Tensor((depth, out_channels), dtype),
        Y: T.Tensor((pixels, out_channels), dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(out_channels, block_N), T.ceildiv(pixels, block_M), threads=threads) as (
            bx,
            by,
        ):
            X_shared = T.alloc_shared((block_M, block_K), dtype)
            F_shared = T.alloc_shared((block_K, block_N), dtype)
            Y_local = T.alloc_fragment((block_M, block_N), "float32")
            if swizzle:
                T.use_swizzle(panel_size=swizzle)
            T.clear(Y_local)
            for ko in T.Pipelined(T.ceildiv(depth, block_K), num_stages=num_stages):
                for i, j in T.Parallel(block_M, block_K):
                    m, k = by * block_M + i, ko * block_K + j
                    image, row, column = (
                        m // (out_height * out_width),
                        m // out_width % out_height * stride + k // (kernel * channels) - padding,
                        m % out_width * stride + k // channels % kernel - padding,
                    )
                    X_shared[i, j] = T.if_then_else(
                        inside(m, k, row, column), X[image, row, column, k % channels], 0
                    )
                T.copy(F[ko * block_K, bx * block_N], F_shared)
                T.gemm(X_shared, F_shared, Y_local)
            T.copy(Y_local, Y[by * block_M, bx * block_N])

    traced: TileProgram = conv2d
    return traced


# (block_m, block_n, block_k, num_stages, threads), likeliest first.
_TILES = (
    (128, 128, 64, 3, 256),
    (128, 128, 32, 3, 256),
    (128, 256, 64, 3, 256),
    (256, 128, 64, 3, 256),
    (128, 64, 64, 3, 128),
    (64, 128, 64, 3, 128),
    (64, 64, 64, 3, 128),
    (64, 64, 32, 2, 128),
    (128, 64, 32, 2, 128),
    (128, 128, 32, 2, 256),
    (32, 64, 64, 3, 128),
    (64, 32, 64, 2, 128),
    (128, 32, 32, 2, 128),
)


def configs(shape: Shape) -> list[Config]:
    """The space: block shapes, tiles in flight, threads, and the raster order's panel (0: none)."""
    return [
        {
            "block_m": m,
            "block_n": n,
            "block_k": k,
            "num_stages": stages,
            "threads": threads,
            "swizzle": swizzle,
        }
        for swizzle in (8, 0)
        for m, n, k, stages, threads in _TILES
    ]


def flops(shape: Shape) -> Any:
    """2·in_channels·kernel² for every result element; taps on the padding count, as is usual."""
    pixels = whole(shape["batch"]) * _out(shape["height"], shape) * _out(shape["width"], shape)
    return 2 * shape["kernel"] ** 2 * shape["in_channels"] * whole(shape["out_channels"]) * pixels


def _seen(extent: int, shape: Shape) -> int:
    """Rows (or columns) of the image that some tap falls on: a stride may step over some."""
    taps = {
        position * shape["stride"] + tap - shape["padding"]
        for position in range(_out(extent, shape))
        for tap in range(shape["kernel"])
    }
    return sum(0 <= tap < extent for tap in taps)


def min_bytes(shape: Shape) -> Any:
    """Every pixel that some tap falls on and the filter read once, the result written once."""
    batch, channels, out_channels = (whole(shape[n]) for n in ("batch", "in_channels", "out_channels"))
    image = batch * _seen(shape["height"], shape) * _seen(shape["width"], shape) * channels
    filters = shape["kernel"] ** 2 * channels * out_channels
    result = batch * _out(shape["height"], shape) * _out(shape["width"], shape) * out_channels
    return (image + filters + result) * size(shape["dtype"])


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """X of (batch, height, width, in_channels); F of (kernel·kernel·in_channels, out_channels).

    F is (kernel, kernel, in_channels, out_channels) with the first three dimensions as one. Its values
    are scaled so that results are about as large as the image's.
    """
    depth = shape["kernel"] ** 2 * shape["in_channels"]
    image = (shape["batch"], shape["height"], shape["width"], shape["in_channels"])
    weights = rng.standard_normal((depth, shape["out_channels"])) / np.sqrt(depth)
    return {
        "X": random_operand(rng, image, shape["dtype"]),
        "F": weights.astype(numpy_dtype(shape["dtype"])),
    }


def _border(shape: Shape, rng: np.random.Generator) -> Arrays:
    """An image of large values at its edges only, where a gather that wraps around would show."""
    found = inputs(shape, rng)
    edge = np.ones(found["X"].shape[1:3], dtype=bool)
    edge[1:-1, 1:-1] = False
    found["X"] = (found["X"].astype(np.float32) * np.where(edge, 64.0, 0.0)[..., None]).astype(
        found["X"].dtype
    )
    return found


def _wide_range(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Channels from 2^-10 to 2^10, undone by the filter."""
    found = inputs(shape, rng)
    scale = 2.0 ** rng.integers(-10, 11, shape["in_channels"])
    found["X"] = (found["X"].astype(np.float64) * scale).astype(found["X"].dtype)
    taps = np.tile(scale, shape["kernel"] ** 2)[:, None]
    found["F"] = (found["F"].astype(np.float64) / taps).astype(found["F"].dtype)
    return found


def _one_tap(shape: Shape, rng: np.random.Generator) -> Arrays:
    """A filter of one tap, its last: the result is a shifted image, exactly."""
    found = inputs(shape, rng)
    found["F"] = np.zeros_like(found["F"])
    found["F"][-1] = 1
    return found


def reference(shape: Shape, X: np.ndarray, F: np.ndarray) -> Arrays:
    """Y of (batch·out_height·out_width, out_channels) in float64, not rounded: tap after tap."""
    kernel, stride, padding = shape["kernel"], shape["stride"], shape["padding"]
    height, width = _out(shape["height"], shape), _out(shape["width"], shape)
    around = (padding, padding)
    padded = np.pad(X.astype(np.float64), ((0, 0), around, around, (0, 0)))
    taps = F.astype(np.float64).reshape(kernel, kernel, shape["in_channels"], shape["out_channels"])
    out = np.zeros((shape["batch"], height, width, shape["out_channels"]))
    for row in range(kernel):
        for column in range(kernel):
            rows = slice(row, row + (height - 1) * stride + 1, stride)
            columns = slice(column, column + (width - 1) * stride + 1, stride)
            out += padded[:, rows, columns] @ taps[row, column]
    return {"Y": out.reshape(-1, shape["out_channels"])}


def check(shape: Shape) -> None:
    """Refuse filters that are larger than the padded image."""
    for name in ("height", "width"):
        padded = shape[name] + 2 * shape["padding"]
        if padded < shape["kernel"]:
            raise OperatorError(
                f"conv2d: kernel={shape['kernel']} is larger than the padded {name}, "
                f"{name} + 2·padding = {padded}"
            )


OPERATOR = Operator(
    name="conv2d",
    doc=(
        "Convolution (cross-correlation) of NHWC images with square filters, zero padding and a stride: X is "
        "(batch, height, width, in_channels); F (kernel·kernel·in_channels, out_channels), that is (kernel, "
        "kernel, in_channels, out_channels); Y (batch·out_height·out_width, out_channels), that is NHWC, "
        "with out_height = (height + 2·padding - kernel) // stride + 1. Accumulates in fp32."
    ),
    params=(
        Param("batch", "images", dynamic=True),
        Param("height", "rows of an image"),
        Param("width", "columns of an image"),
        Param("in_channels", "channels of an image"),
        Param("out_channels", "channels of the result, filters", dynamic=True),
        Param("kernel", "rows and columns of a filter"),
        Param("stride", "pixels from one filter position to the next", default=1),
        Param("padding", "zeros around the image on every side", default=0, minimum=0),
        Param("dtype", "type of X, F and Y", kind="dtype", default="bf16", choices=("bf16", "fp16")),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    check=check,
    adversarial={"border": _border, "wide_range": _wide_range, "one_tap": _one_tap},
    example={
        "batch": 2,
        "height": 9,
        "width": 11,
        "in_channels": 16,
        "out_channels": 24,
        "kernel": 3,
        "padding": 1,
    },
)
