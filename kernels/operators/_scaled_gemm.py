"""Products of fp8 tiles with a scale a row (or block) and 128 of the depth, and of plain tiles.

The two-level accumulation is DeepSeek's (DeepSeek-V3 report, section 3.3.2; DeepGEMM; DeepSeek-V3.2-Exp
``fp8_gemm_kernel``): the matrix unit's partial product of 128 terms goes to a fragment of its own, which
is scaled and added to a float32 accumulator, because Hopper's fp8 products accumulate in fewer bits.
"""

from collections.abc import Callable
from typing import Any

from foretile.kernels import language as T
from foretile.kernels.dtypes import dtype
from foretile.kernels.operator import Config, OperatorError, Tolerance
from foretile.kernels.operators._common import full
from foretile.kernels.operators._quant import BLOCK
from foretile.kernels.operators._softmax import load_keys

Tile = Callable[[Any], Any]
"""The region of an operand that belongs to step ``k`` of the depth."""


@T.macro
def scaled_product(config: Config, a: Tile, b: Tile, a_scale: Tile, b_scale: Tile, steps: Any) -> Any:
    """The tile Σₖ a(k) · b(k)ᵀ · a_scale(k) ⊗ b_scale(k) of ``steps`` steps of 128, a float32 fragment.

    ``a(k)`` is (block_m, 128) and ``b(k)`` (block_n, 128) in fp8, ``a_scale(k)`` (block_m, 1) and
    ``b_scale(k)`` one element. With ``product`` "bf16" the tiles are widened on chip first, which
    changes no value: that is for chips whose matrix units do not take fp8.
    """
    block_M, block_N, num_stages = config["block_m"], config["block_n"], config["num_stages"]
    widened = config["product"] != "fp8"
    product = full(config["product"])

    A_shared = T.alloc_shared((block_M, BLOCK), "float8_e4m3")
    B_shared = T.alloc_shared((block_N, BLOCK), product)
    A_operand = T.alloc_fragment((block_M, BLOCK), product) if widened else A_shared
    B_stored = T.alloc_shared((block_N, BLOCK), "float8_e4m3") if widened else B_shared
    B_staged = T.alloc_fragment((block_N, BLOCK), "float8_e4m3") if widened else None
    A_scale_shared = T.alloc_shared((block_M,), "float32")
    B_scale_shared = T.alloc_shared((1,), "float32")
    scale = T.alloc_fragment((block_M,), "float32")
    C_local = T.alloc_fragment((block_M, block_N), "float32")
    C_accum = T.alloc_fragment((block_M, block_N), "float32")

    T.clear(C_accum)
    for ko in T.Pipelined(steps, num_stages=num_stages):
        T.copy(a(ko), A_shared)
        if widened:
            T.copy(A_shared, A_operand)
        load_keys(b(ko), B_stored, B_staged, B_shared)
        T.copy(a_scale(ko), A_scale_shared)
        T.copy(b_scale(ko), B_scale_shared)
        for i in T.Parallel(block_M):
            scale[i] = A_scale_shared[i] * B_scale_shared[0]
        T.gemm(A_operand, B_shared, C_local, transpose_B=True, clear_accum=True)
        for i, j in T.Parallel(block_M, block_N):
            C_accum[i, j] = C_accum[i, j] + C_local[i, j] * scale[i]
    return C_accum


@T.macro
def plain_product(config: Config, a: Tile, b: Tile, steps: Any, stored: str) -> Any:
    """The tile Σₖ a(k) · b(k)ᵀ in float32, of ``a(k)`` (block_m, block_k) and ``b(k)`` (block_n, block_k)."""
    block_M, block_N, block_K = config["block_m"], config["block_n"], config["block_k"]
    A_shared = T.alloc_shared((block_M, block_K), stored)
    B_shared = T.alloc_shared((block_N, block_K), stored)
    C_local = T.alloc_fragment((block_M, block_N), "float32")
    T.clear(C_local)
    for ko in T.Pipelined(steps, num_stages=config["num_stages"]):
        T.copy(a(ko), A_shared)
        T.copy(b(ko), B_shared)
        T.gemm(A_shared, B_shared, C_local, transpose_B=True)
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


def check_config(operator: str, config: Config) -> None:
    """Refuse tiles that the matrix unit or the scales' blocks do not divide.

    Raises:
        OperatorError: what is wrong, and what would be right.
    """
    for key in ("block_m", "block_n", "block_k"):
        if config[key] % 16:
            raise OperatorError(f"{operator}: {key}={config[key]} is not a multiple of 16")
    if "product" in config:
        if config["product"] not in ("fp8", "bf16"):
            raise OperatorError(f"{operator}: product={config['product']!r} is not one of fp8, bf16")
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
