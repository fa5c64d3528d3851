"""Nucleus sampling: a token of each row drawn from the most probable ones that make up ``TopP``."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from dataclasses import dataclass
from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, OperatorError, Param, Shape, Tolerance
from foretile.kernels.operators._common import full, numpy_dtype, row_configs, row_variant, size, whole
from foretile.kernels.operators._nucleus import NO_TOKEN, decide, deviation, find_threshold, places, sample
from foretile.kernels.operators._rows import ROW_DTYPES, in_computing_dtype


@dataclass(frozen=True)
class _Held:
    """What the passes over a block's rows, from ``row`` on, read and write on chip.

    Rows that are read tile by tile come through ``P_shared``, ``num_stages`` tiles at a time, and have
    ``before`` and ``tile_sum``, the sums of the tiles so far and of one; for whole rows these are None.
    """

    P: Any
    row: Any
    num_stages: int
    P_shared: Any
    P_local: Any
    kept: list[Any]
    place: Any
    before: Any
    tile_sum: Any


@T.macro
def _hold_row(P: Any, bx: Any, config: Config) -> _Held:
    """Whole rows on chip: every pass reads registers."""
    cols, block_rows = P.shape[1], config["block_rows"]
    P_local = T.alloc_fragment((block_rows, cols), "float32")
    kept = T.alloc_fragment((block_rows, cols), "float32")
    place = T.alloc_fragment((block_rows, cols), "int32")
    T.copy(P[bx * block_rows, 0], P_local)
    return _Held(P, bx * block_rows, 0, None, P_local, [kept], place, None, None)


@T.macro
def _row_masses(held: _Held, cuts: list[Any], sums: list[Any]) -> None:
    P_local, kept = held.P_local, held.kept[0]
    for cut, total in list(zip(cuts, sums, strict=True)):
        for i, j in T.Parallel(*P_local.shape):
            kept[i, j] = T.if_then_else(P_local[i, j] >= cut[i], P_local[i, j], 0.0)
        T.reduce_sum(kept, total, dim=1)


@T.macro
def _row_scan(held: _Held, cut: Any, wanted: Any, found: Any) -> None:
    P_local, kept = held.P_local, held.kept[0]
    for i, j in T.Parallel(*P_local.shape):
        kept[i, j] = T.if_then_else(P_local[i, j] >= cut[i], P_local[i, j], 0.0)
    T.cumsum(kept, dim=1)
    places(P_local, kept, cut, wanted, held.place, 0, held.P.shape[1])
    T.reduce_min(held.place, found, dim=1)


@T.macro
def _hold_tile(P: Any, bx: Any, config: Config) -> _Held:
    """Rows too long to stay on chip: every pass reads the row's tiles again, from L2 if it holds them.

    Columns past the end read as zero, below every cut.
    """
    block_rows, block_cols, num_stages = config["block_rows"], config["block_cols"], config["num_stages"]
    P_shared = T.alloc_shared((block_rows, block_cols), P.dtype)
    P_local = T.alloc_fragment((block_rows, block_cols), "float32")
    kept = [
        T.alloc_fragment((block_rows, block_cols), "float32") for _ in list(range(2 ** config["bits"] - 1))
    ]
    place = T.alloc_fragment((block_rows, block_cols), "int32")
    before = T.alloc_fragment((block_rows,), "float32")
    tile_sum = T.alloc_fragment((block_rows,), "float32")
    return _Held(P, bx * block_rows, num_stages, P_shared, P_local, kept, place, before, tile_sum)


@T.macro
def _tiled_masses(held: _Held, cuts: list[Any], sums: list[Any]) -> None:
    P, P_shared, P_local, kept = held.P, held.P_shared, held.P_local, held.kept
    block_rows, block_cols = P_local.shape
    for _, mine in list(zip(cuts, kept, strict=False)):
        T.clear(mine)
    for k in T.Pipelined(T.ceildiv(P.shape[1], block_cols), num_stages=held.num_stages):
        T.copy(P[held.row, k * block_cols], P_shared)
        T.copy(P_shared, P_local)
        for cut, mine in list(zip(cuts, kept, strict=False)):
            for i, j in T.Parallel(block_rows, block_cols):
                mine[i, j] = mine[i, j] + T.if_then_else(P_local[i, j] >= cut[i], P_local[i, j], 0.0)
    for mine, total in list(zip(kept, sums, strict=False)):
        T.reduce_sum(mine, total, dim=1)


@T.macro
def _tiled_scan(held: _Held, cut: Any, wanted: Any, found: Any) -> None:
    P, P_shared, P_local, kept = held.P, held.P_shared, held.P_local, held.kept[0]
    block_rows, block_cols = P_local.shape
    before, tile_sum, cols = held.before, held.tile_sum, P.shape[1]
    T.clear(before)
    T.fill(found, NO_TOKEN)
    for k in T.Pipelined(T.ceildiv(cols, block_cols), num_stages=held.num_stages):
        T.copy(P[held.row, k * block_cols], P_shared)
        T.copy(P_shared, P_local)
        for i, j in T.Parallel(block_rows, block_cols):
            kept[i, j] = T.if_then_else(P_local[i, j] >= cut[i], P_local[i, j], 0.0)
        T.reduce_sum(kept, tile_sum, dim=1)
        T.cumsum(kept, dim=1)
        for i, j in T.Parallel(block_rows, block_cols):
            kept[i, j] = kept[i, j] + before[i]
        places(P_local, kept, cut, wanted, held.place, k * block_cols, cols)
        T.reduce_min(held.place, found, dim=1, clear=False)
        for i in T.Parallel(block_rows):
            before[i] = before[i] + tile_sum[i]


_PASSES = {
    "row": (_hold_row, _row_masses, _row_scan),
    "tiled": (_hold_tile, _tiled_masses, _tiled_scan),
}
"""By variant: what holds rows, what sums those not below each cut, what finds the token."""


def program(shape: Shape, config: Config) -> TileProgram:
    """The nucleus' threshold bit by bit from masked sums, then the inverse of its distribution function.

    ``variant`` "row" keeps rows on chip, "tiled" reads them again for each pass; a pass settles ``bits``
    bits of the threshold with 2^bits − 1 masked sums.

    Raises:
        OperatorError: ``bits`` is not 1, 2 or 3.
    """
    rows, cols, dtype = shape["rows"], shape["cols"], full(shape["dtype"])
    block_rows, bits = config["block_rows"], config["bits"]
    if bits not in (1, 2, 3):
        raise OperatorError(f"top_p_sample: bits={bits!r} is not one of 1, 2, 3")
    hold, masses, scan = row_variant("top_p_sample", _PASSES, config)

    @T.prim_func
    def top_p_sample(
        P: T.Tensor((rows, cols), dtype),
        U: T.Tensor((rows,), "float32"),
        TopP: T.Tensor((rows,), "float32"),
        Token: T.Tensor((rows,), "int32"),
    ) -> None:
        with T.Kernel(T.ceildiv(rows, block_rows), threads=config["threads"]) as bx:
            share = T.alloc_fragment((block_rows,), "float32")
            wanted = T.alloc_fragment((block_rows,), "float32")
            total = T.alloc_fragment((block_rows,), "float32")
            threshold = T.alloc_fragment((block_rows,), "float32")
            token = T.alloc_fragment((block_rows,), "int32")
            held = hold(P, bx, config)
            T.copy(TopP[bx * block_rows], share)
            T.copy(U[bx * block_rows], wanted)
            find_threshold(masses, held, share, threshold, bits)
            masses(held, [threshold], [total])
            for i in T.Parallel(block_rows):
                wanted[i] = wanted[i] * total[i]
            scan(held, threshold, wanted, token)
            decide(token, cols)
            T.copy(token, Token[bx * block_rows])

    traced: TileProgram = top_p_sample
    return traced


def configs(shape: Shape) -> list[Config]:
    """The space of row operators with two bits a pass, and its first members with three and one."""
    space = row_configs(shape)
    two = [{**config, "bits": 2} for config in space]
    return two + [{**config, "bits": bits} for bits in (3, 1) for config in space[:8]]


def flops(shape: Shape) -> Any:
    """3·cols a row: cols comparisons, and two sums of cols, each multiplied with what takes its share.

    Finding the threshold is the algorithm's business and is not counted.
    """
    return 3 * whole(shape["rows"]) * whole(shape["cols"])


def min_bytes(shape: Shape) -> Any:
    """P, U and TopP (float32) read once, Token (int32) written once."""
    each_row = 2 * size("fp32") + size("int32")
    return whole(shape["rows"]) * (whole(shape["cols"]) * size(shape["dtype"]) + each_row)


def _operands(shape: Shape, rng: np.random.Generator, logits: np.ndarray) -> Arrays:
    """The softmax of ``logits`` as probabilities, random numbers in [0, 1), TopP from 0.1 to 0.95."""
    e: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True))
    rows = shape["rows"]
    p: np.ndarray = e / e.sum(axis=1, keepdims=True)
    return {
        "P": p.astype(numpy_dtype(shape["dtype"])),
        "U": rng.random((rows,), dtype=np.float32),
        "TopP": (0.1 + 0.85 * rng.random((rows,))).astype(np.float32),
    }


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """P of (rows, cols), the softmax of normal logits of deviation 3; U and TopP of (rows,) float32."""
    return _operands(shape, rng, 3.0 * rng.standard_normal((shape["rows"], shape["cols"])))


def equal(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Equal probabilities: all are in the nucleus, whatever TopP."""
    return _operands(shape, rng, np.zeros((shape["rows"], shape["cols"])))


def ties(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Three different probabilities: the nucleus ends in the middle of equal ones, and takes them all."""
    return _operands(shape, rng, rng.integers(0, 3, (shape["rows"], shape["cols"])).astype(float))


def close(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Probabilities that differ in their last bits only: the nucleus is decided there."""
    logits = np.log1p(rng.integers(0, 1024, (shape["rows"], shape["cols"])) * 2.0**-22)
    return _operands(shape, rng, logits)


def wide(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Probabilities over 40 powers of ten, many of them zero in the stored type."""
    return _operands(shape, rng, rng.uniform(-92.0, 0.0, (shape["rows"], shape["cols"])))


def one_hot(shape: Shape, rng: np.random.Generator) -> Arrays:
    """One token of probability one, the others zero: it is drawn, whatever U."""
    logits = np.full((shape["rows"], shape["cols"]), -np.inf)
    logits[np.arange(shape["rows"]), rng.integers(0, shape["cols"], shape["rows"])] = 0.0
    return _operands(shape, rng, logits)


def edges(shape: Shape, rng: np.random.Generator) -> Arrays:
    """TopP of 0 (the most probable only) and 1 (all), U of 0 and of the largest number below 1."""
    usual, number = inputs(shape, rng), np.arange(shape["rows"])
    last = np.nextafter(np.float32(1), np.float32(0))
    u = np.where(number // 2 % 2, last, 0.0).astype(np.float32)
    return usual | {"U": u, "TopP": (number % 2).astype(np.float32)}


def reference(shape: Shape, P: np.ndarray, U: np.ndarray, TopP: np.ndarray) -> Arrays:
    """Token of (rows,), whole numbers in float64: sorting, in float64, what the program bisects."""
    return {"Token": sample(P.astype(np.float64), U.astype(np.float64), TopP.astype(np.float64))}


def comparable(shape: Shape, inputs: Arrays, outputs: Arrays) -> Arrays:
    """One plus how far each row's token is from being right, as a share of the row's probability."""
    p, u, share = (inputs[name].astype(np.float64) for name in ("P", "U", "TopP"))
    return {"Token": 1.0 + deviation(p, u, share, outputs["Token"].astype(np.int64))}


def tolerance(shape: Shape) -> Tolerance:
    """Tokens are exact; what is compared is by how much of the row's probability they miss their interval.

    Sums of positive numbers in float32 are within some roundings of themselves (64 here, see reduce_sum):
    a boundary of the nucleus or of an interval may move by that share of the row's sum.
    """
    return Tolerance(norm=64 * 2.0**-24, peak=64 * 2.0**-24)


OPERATOR = Operator(
    name="top_p_sample",
    doc=(
        "Nucleus sampling. With S the sum of a row of P, the nucleus is all tokens of probability t or more, "
        "t the largest for which they sum to TopP · S or more (of equally probable tokens all or none). "
        "Token is the first, in the order of indices, up to which the nucleus sums to more than U times its "
        "sum. P is (rows, cols) with values in [0, 1], U (in [0, 1)) and TopP are (rows,) of float32, "
        "Token is (rows,) of int32."
    ),
    params=(
        Param("rows", "rows (sequences)", dynamic=True),
        Param("cols", "elements of a row (vocabulary)"),
        Param("dtype", "type of P", kind="dtype", default="fp32", choices=ROW_DTYPES),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    tolerance=tolerance,
    adversarial={
        "equal": equal,
        "ties": ties,
        "close": close,
        "wide": wide,
        "one_hot": one_hot,
        "edges": edges,
    },
    comparable=comparable,
    example={"rows": 9, "cols": 300},
    compute_dtype=in_computing_dtype,
)
