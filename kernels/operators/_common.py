"""What the operators share: storage types as NumPy knows them, exact counts, random operands."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np

from foretile.kernels.dtypes import dtype
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, OperatorError, Shape
from foretile.kernels.values import Value

LOG2E = 1.4426950408889634
"""log2(e): softmax runs in base two, because exp2 is the chip's native exponential."""

LOWEST = -1e30
"""Start of a running maximum: below every score, yet finite, so that a row that has seen no key
keeps ``exp2(LOWEST - LOWEST) = 1`` and ``exp2(-inf - LOWEST) = 0`` instead of NaN."""

_NUMPY: dict[str, Any] = {
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e8m0": ml_dtypes.float8_e8m0fnu,
    "float4_e2m1": ml_dtypes.float4_e2m1fn,
    "int4": ml_dtypes.int4,
    "tfloat32": np.float32,
}


# Where TileLang's name of a type is not ours: it tells the formats without infinities from those with.
_TILELANG = {
    "float8_e4m3": "float8_e4m3fn",
    "float8_e8m0": "float8_e8m0fnu",
    "float4_e2m1": "float4_e2m1fn",
}


def full(short: str) -> str:
    """A dtype's name in kernels, which TileLang knows too: "bf16" gives "bfloat16"."""
    name = dtype(short).name
    return _TILELANG.get(name, name)


def every(tests: list[Any]) -> Any:
    """Whether all conditions hold, combined pairwise (TileLang's ``T.all_of`` takes a buffer)."""
    while len(tests) > 1:
        pairs = [a & b for a, b in zip(tests[::2], tests[1::2], strict=False)]
        tests = pairs + (tests[-1:] if len(tests) % 2 else [])
    return tests[0]


def numpy_dtype(short: str) -> np.dtype[Any]:
    """The NumPy type (from ``ml_dtypes`` for bf16 and fp8) that stores ``short``."""
    name = dtype(short).name
    stored: np.dtype[Any] = np.dtype(_NUMPY.get(name, name))
    return stored


def size(short: str) -> int:
    """Bytes of one element of a type of whole bytes; of packed four-bit types count ``bits``."""
    assert dtype(short).bits % 8 == 0, f"{short} is packed: count its bits"
    return dtype(short).bits // 8


def smallest_normal(short: str) -> float:
    """The smallest normal number of a floating type; numbers below it are subnormal."""
    # ml_dtypes types all but this call.
    limits: Any = ml_dtypes.finfo(numpy_dtype(short))  # type: ignore[no-untyped-call]
    return float(limits.smallest_normal)


def whole(value: Any) -> Any:
    """``value`` as a Python int, or an int64 array, so that products of sizes do not wrap."""
    return value.astype(np.int64) if isinstance(value, np.ndarray) else int(value)


def random_operand(rng: np.random.Generator, shape: tuple[int, ...], short: str) -> np.ndarray:
    """Standard normal values, or the full range of an integer type, in the storage type."""
    target = numpy_dtype(short)
    if target.kind in "iu":
        info = np.iinfo(target)
        return rng.integers(info.min, info.max, shape, dtype=target, endpoint=True)
    return rng.standard_normal(shape, dtype=np.float32).astype(target)


class _Launch:
    """What one launch is traced from, as a key: symbolic dimensions are equal if their expressions are."""

    def __init__(self, trace: Callable[..., TileProgram], shape: Shape, config: Config) -> None:
        self.trace, self.shape, self.config = trace, shape, config
        plain = {name: v.expr if isinstance(v, Value) else v for name, v in shape.items()}
        self.key = (trace, *sorted(plain.items()), *sorted(config.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Launch) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@lru_cache(maxsize=4096)
def _traced(launch: _Launch) -> TileProgram:
    return launch.trace(launch.shape, launch.config)


def traced_once(
    trace: Callable[[Shape, Config], TileProgram], shape: Shape, config: Config, keys: Sequence[str] = ()
) -> TileProgram:
    """``trace(shape, config)`` with only ``keys`` of the configuration; the same program for the same input.

    Configurations of several launches share those that do not depend on what they differ in.
    """
    return _traced(_Launch(trace, shape, {key: config[key] for key in keys if key in config}))


# (block_rows, threads), then (block_rows, block_cols, num_stages, threads), likeliest first.
_ROWS = (
    (1, 256),
    (1, 128),
    (1, 512),
    (1, 1024),
    (2, 256),
    (2, 128),
    (4, 256),
    (4, 128),
    (8, 256),
    (16, 256),
)
_TILES = (
    (1, 4096, 2, 256),
    (1, 2048, 2, 256),
    (1, 4096, 3, 512),
    (1, 8192, 2, 512),
    (1, 1024, 2, 128),
    (2, 2048, 2, 256),
    (4, 1024, 2, 256),
    (8, 512, 2, 256),
    (16, 256, 2, 256),
)
_LONG_ROW = 16384  # elements from which column tiles are the likelier choice


def row_configs(shape: Shape) -> list[Config]:
    """The space of operators that reduce rows: whole rows on chip, or tiles of columns.

    Both kinds are always listed; what fits on a chip is the chip's business.
    """
    row: list[Config] = [
        {
            "variant": "row",
            "block_rows": rows,
            "block_cols": shape["cols"],
            "num_stages": 1,
            "threads": threads,
        }
        for rows, threads in _ROWS
    ]
    tiled: list[Config] = [
        {"variant": "tiled", "block_rows": rows, "block_cols": cols, "num_stages": stages, "threads": threads}
        for rows, cols, stages, threads in _TILES
    ]
    return tiled + row if shape["cols"] > _LONG_ROW else row + tiled


def row_variant(operator: str, variants: Mapping[str, Any], config: Config) -> Any:
    """The program factory that ``config["variant"]`` names.

    Raises:
        OperatorError: there is none.
    """
    if config["variant"] not in variants:
        raise OperatorError(f"{operator}: variant={config['variant']!r} is not one of {', '.join(variants)}")
    return variants[config["variant"]]
