"""The k largest of each row: their indices, by narrowing down a threshold and one ordered pass."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, OperatorError, Param, Shape, Tolerance
from foretile.kernels.operators._common import random_operand, size, whole
from foretile.kernels.operators._mla import traced
from foretile.kernels.operators._radix import radix_config, radix_configs, radix_program

_KEY_BITS = 32
_BINADE = 2**23  # float32 numbers of one sign and exponent
_SMALLEST_NORMAL = 2.0**-126
_VARIANTS = ("radix", "radix_kept", "resident", "streamed")
_LONG_ROW = 49152  # elements from which a row hardly fits on chip


@T.macro
def _values(keys: Any, values: Any, power: Any) -> None:
    """``values[d]`` = the float32 whose place in the order of all float32 is ``keys[d]``.

    Keys from 0 up are the bits of the numbers from +0 up to infinity, keys from -1 down those of -0 to
    -infinity, as signed integers. The numbers are put together by exact products, not by their bits, so
    that larger keys never give smaller values; keys beyond infinity give infinity too. ``power`` is a
    fragment for what is left of the exponents.
    """
    count = keys.shape[0]
    for d in T.Parallel(count):
        magnitude = T.if_then_else(keys[d] < 0, -1 - keys[d], keys[d])
        fraction = T.cast(magnitude % _BINADE, "float32") * (1.0 / _BINADE)
        values[d] = T.if_then_else(magnitude < _BINADE, fraction, 1.0 + fraction) * _SMALLEST_NORMAL
        power[d] = T.max(magnitude // _BINADE, 1) - 1
    factor: Any = T.alloc_var("float32")
    factor = 2.0
    for _ in T.serial(7):
        for d in T.Parallel(count):
            values[d] = values[d] * T.if_then_else(power[d] % 2 > 0, factor, 1.0)
            power[d] = power[d] // 2
        factor = T.if_then_else(factor < 2.0**64, factor * factor, factor)
    for d in T.Parallel(count):  # the eighth bit in two steps: 2^128 itself is no float32
        high = T.if_then_else(power[d] > 0, 2.0**64, 1.0)
        values[d] = T.if_then_else(keys[d] < 0, -values[d], values[d]) * high * high


@T.macro
def _fetch(X: Any, row: Any, X_shared: Any, x: Any, c: Any, resident: bool) -> None:
    """Tile ``c`` of the row into the fragment ``x``, -infinity behind its end.

    ``X_shared`` holds the whole row if ``resident``, else it takes the tile on its way.
    """
    cols, tile = X.shape[1], x.shape[0]
    if resident:
        T.copy(X_shared[c * tile : (c + 1) * tile], x)
    else:
        T.copy(X[row, c * tile : (c + 1) * tile], X_shared)
        T.copy(X_shared, x)
    if cols % tile:
        for i in T.Parallel(tile):
            x[i] = T.if_then_else(c * tile + i < cols, x[i], -T.infinity("float32"))


def program(shape: Shape, config: Config) -> TileProgram:
    """One block a row.

    The k-th largest value is found by its place in the order of all float32, ``bits`` bits at a time:
    each round counts how many elements reach each of the 2^bits - 1 values that divide what is left
    of the order. A last pass writes the indices of all larger elements, then of as many equal ones as
    are missing, in the order of the row. ``resident`` keeps the row in shared memory; ``streamed``
    reads it again in every round.
    """
    rows, cols, k = shape["rows"], shape["cols"], shape["k"]
    if config["variant"] not in _VARIANTS:
        known = ", ".join(_VARIANTS)
        raise OperatorError(f"topk_select: variant={config['variant']!r} is not one of {known}")
    if config["variant"].startswith("radix"):
        return radix_program(shape, config)
    tile, num_stages, threads = config["block_cols"], config["num_stages"], config["threads"]
    resident, bits = config["variant"] == "resident", config["bits"]
    if bits not in (2, 4):
        raise OperatorError(f"topk_select: bits={bits} is not one of 2, 4")
    tiles, half = -(-cols // tile), 2**bits // 2
    marks = 2 * half - 1

    def over_tiles() -> Any:
        return T.serial(tiles) if resident else T.Pipelined(tiles, num_stages=num_stages)

    @T.prim_func
    def topk_select(X: T.Tensor((rows, cols), "float32"), Index: T.Tensor((rows, k), "int32")) -> None:
        with T.Kernel(rows, threads=threads) as row:
            X_shared = T.alloc_shared((tiles * tile if resident else tile,), "float32")
            x = T.alloc_fragment((tile,), "float32")
            reached = T.alloc_fragment((marks, tile), "int32")
            keys = T.alloc_fragment((marks,), "int32")
            power = T.alloc_fragment((marks,), "int32")
            threshold = T.alloc_fragment((marks,), "float32")
            count = T.alloc_fragment((marks,), "int32")
            enough = T.alloc_fragment((marks,), "int32")
            digit = T.alloc_fragment((1,), "int32")
            larger = T.alloc_fragment((1,), "int32")
            chosen = T.alloc_shared((2, tile), "int32")
            place = T.alloc_shared((2, tile), "int32")

            if resident:
                T.copy(X[row, 0 : tiles * tile], X_shared)

            # The key of the k-th value is in [middle - half·step, middle + half·step).
            middle = T.alloc_var("int32", init=0)
            step = T.alloc_var("int32", init=2 ** (_KEY_BITS - bits))
            T.clear(larger)
            for _ in T.serial(_KEY_BITS // bits):
                for d in T.Parallel(marks):
                    keys[d] = middle + (d + 1 - half) * step
                _values(keys, threshold, power)
                T.clear(reached)
                for c in over_tiles():
                    _fetch(X, row, X_shared, x, c, resident)
                    for d, i in T.Parallel(marks, tile):
                        reached[d, i] = reached[d, i] + T.if_then_else(x[i] >= threshold[d], 1, 0)
                T.reduce_sum(reached, count, dim=1)
                for d in T.Parallel(marks):
                    enough[d] = T.if_then_else(count[d] >= k, 1, 0)
                    count[d] = T.if_then_else(count[d] >= k, 0, count[d])
                T.reduce_sum(enough, digit, dim=0)
                T.reduce_max(count, larger, dim=0, clear=False)
                middle = middle + (digit[0] - half) * step
                step = step // (2 * half)
                middle = middle + half * step
            T.fill(keys, middle)
            _values(keys, threshold, power)

            found = T.alloc_var("int32", init=0)
            equal = T.alloc_var("int32", init=0)
            for c in over_tiles():
                _fetch(X, row, X_shared, x, c, resident)
                for i in T.Parallel(tile):
                    chosen[0, i] = T.if_then_else(x[i] > threshold[0], 1, 0)
                    chosen[1, i] = T.if_then_else(x[i] == threshold[0], 1, 0)
                T.cumsum(chosen, place, dim=1)
                for i in T.Parallel(tile):
                    if chosen[0, i] > 0:
                        Index[row, found + place[0, i] - 1] = c * tile + i
                    if chosen[1, i] > 0 and larger[0] + equal + place[1, i] <= k:
                        Index[row, larger[0] + equal + place[1, i] - 1] = c * tile + i
                found = found + place[0, tile - 1]
                equal = equal + place[1, tile - 1]

    return traced(topk_select)


# (bits, block_cols, threads), likeliest first; the last of each for few columns or small cores.
_RESIDENT = (
    (2, 1024, 512),
    (2, 1024, 1024),
    (2, 4096, 1024),
    (2, 2048, 1024),
    (4, 1024, 1024),
    (2, 512, 256),
)
_STREAMED = (
    (4, 1024, 1024),
    (4, 1024, 512),
    (2, 4096, 1024),
    (4, 2048, 1024),
    (2, 2048, 512),
    (2, 1024, 256),
)


def configs(shape: Shape) -> list[Config]:
    """The space: where the row is kept, bits a round, columns of a tile, tiles in flight, threads."""

    def config(variant: str, bits: int, cols: int, threads: int, stages: int) -> Config:
        like = radix_config(variant, cols, cols, threads, 0, "warps")  # what only radix selections have
        return {**like, "bits": bits, "num_stages": stages}

    resident = [config("resident", *tile, 1) for tile in _RESIDENT]
    streamed = [config("streamed", *tile, stages) for stages in (2, 3) for tile in _STREAMED]
    if int(np.max(shape["cols"])) > _LONG_ROW:
        return [*radix_configs(), *streamed, *resident]
    return [*radix_configs(), *resident, *streamed]


def flops(shape: Shape) -> Any:
    """cols a row: one comparison of each element with the k-th value; what finds that is not counted."""
    return whole(shape["rows"]) * whole(shape["cols"])


def min_bytes(shape: Shape) -> Any:
    """Logits read once, indices written once."""
    rows = whole(shape["rows"])
    return rows * (whole(shape["cols"]) * size("fp32") + whole(shape["k"]) * size("int32"))


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """X of (rows, cols): normal values."""
    return {"X": random_operand(rng, (shape["rows"], shape["cols"]), "fp32")}


def _all_equal(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Rows of one value each: zeros of both signs, the largest and smallest numbers, infinities."""
    values = np.array([0.0, -0.0, 1.5, -1.5, 3.4e38, -3.4e38, 1.2e-38, np.inf, -np.inf], dtype=np.float32)
    rows = values[rng.integers(len(values), size=shape["rows"])]
    return {"X": np.repeat(rows[:, None], shape["cols"], axis=1)}


def _few_values(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Seven different values: the k-th is nearly always one of many ties."""
    values = np.array([-2.0, -1.0, -0.0, 0.0, 1e-30, 1.0, 2.0], dtype=np.float32)
    return {"X": rng.choice(values, (shape["rows"], shape["cols"]))}


def _padded(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Rows that are -inf from some column on, as behind a causal mask; often fewer than k are left."""
    x, ends = inputs(shape, rng)["X"], rng.integers(0, shape["cols"] + 1, shape["rows"])
    return {"X": np.where(np.arange(shape["cols"]) < ends[:, None], x, np.float32(-np.inf))}


def _all_magnitudes(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Values of both signs with exponents drawn from the whole range of normal numbers."""
    dims = (shape["rows"], shape["cols"])
    magnitude = np.ldexp(rng.uniform(1, 2, dims), rng.integers(-126, 128, dims)).astype(np.float32)
    return {"X": np.where(rng.random(dims) < 0.5, magnitude, -magnitude).astype(np.float32)}


def _neighbours(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Numbers next to each other: only the last bits tell them apart."""
    start = np.float32(1.0).view(np.int32)
    offsets = rng.integers(-64, 64, (shape["rows"], shape["cols"]), dtype=np.int32)
    return {"X": (start + offsets).view(np.float32)}


def reference(shape: Shape, X: np.ndarray) -> Arrays:
    """Index of (rows, k): columns of the k largest of each row, the leftmost of equal ones, falling."""
    order = np.argsort(-X.astype(np.float64), axis=1, kind="stable")
    return {"Index": order[:, : shape["k"]].astype(np.float64)}


def comparable(shape: Shape, inputs: Arrays, outputs: Arrays) -> Arrays:
    """The selected values in falling order, as ranks among the row's distinct values; and how many.

    Any choice among equal elements and any order is right. Ranks, not the values themselves, are
    compared because these may be infinite. ``distinct`` counts the different valid indices of a row: k.
    """
    x, index = inputs["X"], np.asarray(outputs["Index"]).astype(np.int64)
    selected, distinct = np.empty(index.shape), np.empty(len(index))
    for row, columns in enumerate(index):
        valid = np.unique(columns[(columns >= 0) & (columns < x.shape[1])])
        distinct[row] = len(valid)
        ranks = np.searchsorted(np.unique(x[row]), x[row, columns.clip(0, x.shape[1] - 1)])
        selected[row] = np.sort(ranks)[::-1]
    return {"Index": selected, "distinct": distinct}


def check(shape: Shape) -> None:
    """Refuse to select more elements than there are."""
    if np.any(np.asarray(shape["k"]) > shape["cols"]):
        raise OperatorError(
            f"topk_select: k={shape['k']} is more than cols={shape['cols']}; k is at most cols"
        )


OPERATOR = Operator(
    name="topk_select",
    doc=(
        "Indices of the k largest elements of each row: X is (rows, cols) float32 without NaN, Index (rows, "
        "k) int32. Among equal elements any may be chosen; the order of the indices is unspecified. Timed "
        "for rows whose k largest stand out; ties and close numbers at the boundary take longer (to 2.5x)."
    ),
    params=(
        Param("rows", "rows (queries)", dynamic=True),
        Param("cols", "elements of a row (keys)"),
        Param("k", "elements to select, at most cols"),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    check=check,
    tolerance=lambda shape: Tolerance(norm=0.0, peak=0.0),
    adversarial={
        "all_equal": _all_equal,
        "few_values": _few_values,
        "padded": _padded,
        "all_magnitudes": _all_magnitudes,
        "neighbours": _neighbours,
    },
    example={"rows": 5, "cols": 1500, "k": 40},
    comparable=comparable,
    compute_dtype=lambda shape: "fp32",
)
