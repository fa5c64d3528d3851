"""Copy of a flat buffer: what memory alone can do."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Operator, OperatorError, Param, Shape, Tolerance
from foretile.kernels.operators._common import random_operand, whole

_STAGING = {"fragment": T.alloc_fragment, "shared": T.alloc_shared}


def program(shape: Shape, config: Config) -> TileProgram:
    """One block a tile of ``block_bytes``, through registers or through shared memory.

    Elements are bytes, so that any size works; a tile is a multiple of 16 bytes a thread, so
    that only the last one cannot move in the widest accesses.

    Raises:
        OperatorError: an unknown ``staging``.
    """
    total, block, threads = shape["bytes"], config["block_bytes"], config["threads"]
    if config["staging"] not in _STAGING:
        raise OperatorError(f"copy: staging={config['staging']!r} is not one of {', '.join(_STAGING)}")
    alloc = _STAGING[config["staging"]]

    @T.prim_func
    def copy(Src: T.Tensor((total,), "uint8"), Dst: T.Tensor((total,), "uint8")) -> None:
        with T.Kernel(T.ceildiv(total, block), threads=threads) as bx:
            tile = alloc((block,), "uint8")
            T.copy(Src[bx * block], tile)
            T.copy(tile, Dst[bx * block])

    traced: TileProgram = copy
    return traced


# (staging, 16-byte accesses a thread, threads), likeliest first.
_TILES = (
    ("fragment", 4, 256),
    ("fragment", 2, 256),
    ("fragment", 8, 256),
    ("fragment", 1, 256),
    ("fragment", 4, 128),
    ("fragment", 4, 512),
    ("fragment", 1, 1024),
    ("fragment", 2, 1024),
    ("shared", 4, 256),
    ("shared", 8, 256),
    ("shared", 16, 128),
)


def configs(shape: Shape) -> list[Config]:
    """The space: 4 to 32 KiB a block, through registers or shared memory."""
    return [
        {"staging": staging, "block_bytes": 16 * accesses * threads, "threads": threads}
        for staging, accesses, threads in _TILES
    ]


def flops(shape: Shape) -> Any:
    """None: zero, in the shape of ``bytes``."""
    return 0 * whole(shape["bytes"])


def min_bytes(shape: Shape) -> Any:
    """Every byte read once and written once."""
    return 2 * whole(shape["bytes"])


def inputs(shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Src of (bytes,) bytes."""
    return {"Src": random_operand(rng, (shape["bytes"],), "uint8")}


def reference(shape: Shape, Src: np.ndarray) -> dict[str, np.ndarray]:
    """Dst of (bytes,), in float64 as every reference (bytes are exact in it)."""
    return {"Dst": Src.astype(np.float64)}


def counting(shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Bytes that count up to a prime: a piece moved to another place cannot look right."""
    return {"Src": (np.arange(shape["bytes"]) % 251).astype(np.uint8)}


def extremes(shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Nothing but 0 and 255."""
    return {"Src": rng.choice(np.array([0, 255], np.uint8), shape["bytes"])}


def tolerance(shape: Shape) -> Tolerance:
    """None: bytes are moved as they are."""
    return Tolerance(0.0, 0.0)


OPERATOR = Operator(
    name="copy",
    doc="Copy of a flat buffer in device memory, Dst = Src; both are (bytes,) of uint8.",
    params=(Param("bytes", "size of the buffer in bytes", dynamic=True),),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    tolerance=tolerance,
    adversarial={"counting": counting, "extremes": extremes},
    compute_dtype=lambda shape: "fp32",
    example={"bytes": 40_001},
)
