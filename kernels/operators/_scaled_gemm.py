"""Products of fp8 tiles with a scale a row (or block) and 128 of the depth, and of plain tiles.

The two-level accumulation is DeepSeek's (DeepSeek-V3 report, section 3.3.2; DeepGEMM; DeepSeek-V3.2-Exp
``fp8_gemm_kernel``): the matrix unit's partial product of 128 terms goes to a fragment of its own, which
is scaled and added to a float32 accumulator, because Hopper's fp8 products accumulate in fewer bits.
"""

from collections.abc import Callable, Sequence
from typing import Any

from foretile.kernels import language as T
from foretile.kernels.dtypes import dtype
from foretile.kernels.operator import Config, OperatorError, Tolerance
from foretile.kernels.operators._common import full
from foretile.kernels.operators._quant import BLOCK

Tile = Callable[[Any], Any]
"""The region of an operand that belongs to step ``k`` of the depth."""


def depth_tile(X: Any, *at: Any, depth: int) -> Tile:
    """Step by step, ``depth`` of the last axis of ``X`` at the indices and slices ``at`` of the others."""
    return lambda k: X[(*at, slice(k * depth, (k + 1) * depth))]


def depth_scale(S: Any, *at: Any, depth: int) -> Tile:
    """The scales that go with :func:`depth_tile`: one for 128 of the depth, of which a step is a part."""
    return lambda k: S[(*at, k * depth // BLOCK)]


@T.macro
def _operand_tiles(config: Config, stored: str, operands: int) -> tuple[Any, ...]:
    """On-chip tiles of A and of ``operands`` Bs as they are stored, and in which they are multiplied.

    With ``product`` "bf16" or "fp16" fp8 tiles are widened on chip first, which changes no value: that is for
    chips whose matrix units do not take fp8. One widened tile of B serves all operands in turn.
    """
    block_M, block_N, block_K = config["block_m"], config["block_n"], config["block_k"]
    widened = config.get("product", "fp8") != "fp8"
    A_shared = T.alloc_shared((block_M, block_K), stored)
    B_shared = [T.alloc_shared((block_N, block_K), stored) for _ in range(operands)]
    A_wide = T.alloc_fragment((block_M, block_K), full(config["product"])) if widened else None
    B_staged = T.alloc_fragment((block_N, block_K), stored) if widened else None
    B_wide = T.alloc_shared((block_N, block_K), full(config["product"])) if widened else None
    return A_shared, B_shared, A_wide, B_staged, B_wide


@T.macro
def _multiply(tiles: tuple[Any, ...], operand: int, C: Any, clear: bool) -> None:
    """``C (+)= A · Bᵀ`` for one of the operands, widened if they are to be."""
    A_shared, B_shared, A_wide, B_staged, B_wide = tiles
    if B_wide is None:
        T.gemm(A_shared, B_shared[operand], C, transpose_B=True, clear_accum=clear)
    else:
        if operand == 0:
            T.copy(A_shared, A_wide)
        T.copy(B_shared[operand], B_staged)
        T.copy(B_staged, B_wide)
        T.gemm(A_wide, B_wide, C, transpose_B=True, clear_accum=clear)


@T.macro
def scaled_products(
    config: Config, a: Tile, bs: Sequence[Tile], a_scale: Tile, b_scales: Sequence[Tile], steps: Any
) -> list[Any]:
    """The tiles Σₖ a(k) · b(k)ᵀ · a_scale(k) ⊗ b_scale(k) of ``steps`` steps, a float32 fragment for each b.

    ``a(k)`` is (block_m, block_k) and ``b(k)`` (block_n, block_k) in fp8, ``a_scale(k)`` (block_m, 1) and
    ``b_scale(k)`` one element. The partial products of a step share one fragment.
    """
    block_M, block_N = config["block_m"], config["block_n"]
    tiles = _operand_tiles(config, "float8_e4m3fn", len(bs))
    A_scale_shared = T.alloc_shared((block_M,), "float32")
    B_scale_shared = [T.alloc_shared((1,), "float32") for _ in bs]
    scale = T.alloc_fragment((block_M,), "float32")
    C_local = T.alloc_fragment((block_M, block_N), "float32")
    C_accum = [T.alloc_fragment((block_M, block_N), "float32") for _ in bs]
    for accum in C_accum:
        T.clear(accum)
    for ko in T.Pipelined(steps, num_stages=config["num_stages"]):
        T.copy(a(ko), tiles[0])
        for b, shared in zip(bs, tiles[1], strict=True):
            T.copy(b(ko), shared)
        T.copy(a_scale(ko), A_scale_shared)
        for b_scale, shared in zip(b_scales, B_scale_shared, strict=True):
            T.copy(b_scale(ko), shared)
        for operand, accum in enumerate(C_accum):
            for i in T.Parallel(block_M):
                scale[i] = A_scale_shared[i] * B_scale_shared[operand][0]
            _multiply(tiles, operand, C_local, True)
            for i, j in T.Parallel(block_M, block_N):
                accum[i, j] = accum[i, j] + C_local[i, j] * scale[i]
    return C_accum


@T.macro
def plain_products(config: Config, a: Tile, bs: Sequence[Tile], steps: Any, stored: str) -> list[Any]:
    """The tiles Σₖ a(k) · b(k)ᵀ in float32 of ``a(k)``, (block_m, block_k), and each ``b(k)``."""
    tiles = _operand_tiles(config, stored, len(bs))
    C_local = [T.alloc_fragment((config["block_m"], config["block_n"]), "float32") for _ in bs]
    for local in C_local:
        T.clear(local)
    for ko in T.Pipelined(steps, num_stages=config["num_stages"]):
        T.copy(a(ko), tiles[0])
        for b, shared in zip(bs, tiles[1], strict=True):
            T.copy(b(ko), shared)
        for operand, local in enumerate(C_local):
            _multiply(tiles, operand, local, False)
    return C_local


# (block_m, block_n, num_stages, threads, swizzle), likeliest first: the partial and the running sum
# together hold twice the registers of a plain product, so tiles are at most 128 × 128.
_TILES = (
    (128, 128, 4, 256, 8),
    (128, 128, 3, 256, 8),
    (128, 128, 5, 256, 8),
    (128, 64, 5, 128, 8),
    (64, 128, 5, 128, 8),
    (64, 128, 4, 128, 8),
    (64, 64, 6, 128, 8),
    (32, 128, 4, 128, 10),
    (32, 64, 6, 128, 0),
    (16, 128, 5, 128, 0),
    (16, 64, 6, 128, 0),
    (16, 32, 8, 128, 0),
    (64, 32, 6, 128, 0),
    (128, 32, 5, 128, 0),
)
# The same with operands widened to bf16 on chip.
_WIDENED = (
    (128, 128, 3, 256, 8),
    (128, 128, 2, 256, 8),
    (64, 128, 3, 128, 8),
    (64, 128, 2, 256, 8),
    (64, 128, 1, 256, 8),
    (64, 64, 3, 128, 8),
    (64, 64, 2, 128, 8),
    (32, 128, 3, 128, 8),
    (32, 128, 1, 128, 8),
    (32, 64, 3, 128, 0),
    (16, 128, 3, 128, 0),
    (16, 64, 3, 128, 0),
    (16, 32, 3, 128, 0),
)


def scaled_configs() -> list[Config]:
    """The space of scaled products: tiles whose products are fp8, then those that are widened to bf16."""
    keys = ("block_m", "block_n", "num_stages", "threads", "swizzle")
    return [
        {**dict(zip(keys, tile, strict=True)), "block_k": BLOCK, "product": product}
        for product, tiles in (("fp8", _TILES), ("bf16", _WIDENED))
        for tile in tiles
    ]


# (block_m, block_n, block_k, num_stages, threads, swizzle) of fp8 products without scales by block, then
# of those widened to bf16.
_UNSCALED = (
    (128, 256, 128, 3, 256, 8),
    (128, 256, 128, 4, 256, 8),
    (128, 128, 128, 4, 256, 8),
    (128, 128, 128, 3, 256, 8),
    (128, 128, 64, 3, 256, 8),
    (128, 64, 128, 4, 128, 8),
    (64, 256, 128, 4, 256, 8),
    (64, 128, 128, 4, 128, 8),
    (64, 128, 128, 2, 128, 8),
    (64, 64, 128, 5, 128, 8),
    (32, 128, 128, 5, 128, 0),
    (32, 64, 128, 3, 128, 0),
    (16, 128, 128, 5, 128, 0),
    (16, 64, 128, 6, 128, 0),
)
_UNSCALED_WIDENED = (
    (128, 128, 128, 3, 256, 8),
    (128, 128, 64, 2, 256, 8),
    (64, 128, 128, 2, 256, 8),
    (64, 64, 64, 3, 128, 8),
    (32, 128, 64, 3, 128, 0),
    (16, 128, 128, 3, 128, 0),
    (16, 64, 128, 3, 128, 0),
    (16, 64, 64, 3, 128, 0),
)


def unscaled_configs() -> list[Config]:
    """The space of fp8 products that are scaled once, at their end: in fp8, then widened to bf16."""
    keys = ("block_m", "block_n", "block_k", "num_stages", "threads", "swizzle")
    return [
        {**dict(zip(keys, tile, strict=True)), "product": product}
        for product, tiles in (("fp8", _UNSCALED), ("bf16", _UNSCALED_WIDENED))
        for tile in tiles
    ]


def check_config(operator: str, config: Config, *, blocks: bool = True) -> None:
    """Refuse tiles that the matrix unit does not divide, nor (with ``blocks``) the blocks of the scales.

    Raises:
        OperatorError: what is wrong, and what would be right.
    """
    for key, step in (("block_m", 16), ("block_n", 8), ("block_k", 16)):
        if config[key] % step:
            raise OperatorError(f"{operator}: {key}={config[key]} is not a multiple of {step}")
    if "product" in config:
        if config["product"] not in ("fp8", "bf16", "fp16"):
            raise OperatorError(f"{operator}: product={config['product']!r} is not one of fp8, bf16, fp16")
        if not blocks:
            return
        if BLOCK % config["block_n"]:
            raise OperatorError(
                f"{operator}: block_n={config['block_n']} does not divide {BLOCK}, the columns of a scale"
            )
        if config["block_k"] != BLOCK:
            raise OperatorError(
                f"{operator}: block_k={config['block_k']}; a scale belongs to {BLOCK} of the depth"
            )


def product_tolerance(out: str, depth: int, operand: str = "") -> Tolerance:
    """What the roundings of a product of ``depth`` random terms explain.

    The result is rounded once to ``out`` (unit roundoff u). Float32 sums are rounded after every
    term: of a random walk that is √depth / √6 roundings of the result's size, for which √depth are
    allowed. Operands computed on chip and rounded to ``operand`` add an independent relative error
    of at most its u a term, and so at most u of the result's norm.
    """
    u = unit_roundoff(out) + depth**0.5 * unit_roundoff("fp32") + (unit_roundoff(operand) if operand else 0.0)
    return Tolerance(norm=u, peak=2.0 * u)


def unit_roundoff(short: str) -> float:
    """Half the spacing of a float type's numbers at one."""
    return float(2.0 ** -(1 + dtype(short).mantissa_bits))
