"""Products whose operands the matrix engine scales, and launches that bring activations to such formats."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, OperatorError
from foretile.kernels.operators._common import full
from foretile.kernels.operators._nvfp4 import FP4_MAX, GROUP
from foretile.kernels.operators._quant import BLOCK, FP8_MAX, groups_of, quantised_rows
from foretile.kernels.operators._scaled_gemm import Tile, depth_tile

PACKED = 4
"""Scales of a row that lie side by side in the packed layout: those of four steps of 128."""


@dataclass(frozen=True)
class Format:
    """An element type with scales for ``group`` of the depth.

    The scales of (rows, depth) operands are (rows, ceil(depth / group)), or ``packed``, as DeepGEMM keeps
    them for Blackwell: (ceil(depth / (4 · group)), rows, 4).
    """

    element: str
    scale: str
    group: int
    packed: bool = False

    def scales(self, rows: Any, depth: Any) -> tuple[Any, ...]:
        """Shape of the scales of an operand."""
        if self.packed:
            return groups_of(depth, PACKED * self.group), rows, PACKED
        return rows, groups_of(depth, self.group)


# Types that operands can be widened to on chip.
WIDENED = ("bf16", "fp16")

NVFP4 = Format("float4_e2m1fn", "float8_e4m3fn", GROUP)
FP8_E8M0 = Format("float8_e4m3fn", "float8_e8m0fnu", BLOCK, packed=True)


@T.macro
def _widen(stored: Any, scales: Any, first: Any, group: int, result: Any) -> None:
    """A tile in shared memory times its scales, to a 16-bit fragment: at most five bits, so exact."""
    rows, columns = stored.shape
    values = T.alloc_fragment(stored.shape, stored.dtype)
    factors = T.alloc_fragment(scales.shape, scales.dtype)
    T.copy(stored, values)
    T.copy(scales, factors)
    for i, j in T.Parallel(rows, columns):
        factor = T.cast(factors[i, first + j // group], result.dtype)
        result[i, j] = T.cast(values[i, j], result.dtype) * factor


@T.macro
def blockscaled_products(
    config: Config, form: Format, steps: Any, a: Tile, a_scale: Tile, bs: Sequence[Any], Cs: Sequence[Any]
) -> None:
    """Each of ``Cs``, fragments, becomes Σₖ (a(k) · a_scale(k)) (b(k) · b_scale(k))ᵀ, of the pairs ``bs``.

    With ``product`` "bf16" or "fp16" the tiles are scaled and widened on chip first, which changes no value:
    that is for chips whose matrix engines do not scale. One widened tile of B serves all in turn.
    """
    block_M, block_N, block_K = config["block_m"], config["block_n"], config["block_k"]
    groups = block_K // form.group
    width = PACKED if form.packed else groups
    A_shared = T.alloc_shared((block_M, block_K), form.element)
    A_scale_shared = T.alloc_shared((block_M, width), form.scale)
    B_shared = [T.alloc_shared((block_N, block_K), form.element) for _ in bs]
    B_scale_shared = [T.alloc_shared((block_N, width), form.scale) for _ in bs]
    widened = config["product"] in WIDENED
    if widened:
        A_wide = T.alloc_fragment((block_M, block_K), full(config["product"]))
        B_local = T.alloc_fragment((block_N, block_K), full(config["product"]))
        B_wide = T.alloc_shared((block_N, block_K), full(config["product"]))
    for C in Cs:
        T.clear(C)
    for ko in T.Pipelined(steps, num_stages=config["num_stages"]):
        first = ko * groups % PACKED if form.packed else 0
        T.copy(a(ko), A_shared)
        T.copy(a_scale(ko), A_scale_shared)
        for (b, b_scale), shared, scale_shared in zip(bs, B_shared, B_scale_shared, strict=True):
            T.copy(b(ko), shared)
            T.copy(b_scale(ko), scale_shared)
        if widened:
            _widen(A_shared, A_scale_shared, first, form.group, A_wide)
        for shared, scale_shared, C in zip(B_shared, B_scale_shared, Cs, strict=True):
            if widened:
                _widen(shared, scale_shared, first, form.group, B_local)
                T.copy(B_local, B_wide)
                T.gemm(A_wide, B_wide, C, transpose_B=True)
            else:
                T.gemm_blockscaled(
                    A_shared,
                    shared,
                    C,
                    A_scale_shared[0:block_M, first : first + groups],
                    scale_shared[0:block_N, first : first + groups],
                    transpose_B=True,
                    k_start=0,
                    sf_a_granularity_k=form.group,
                    sf_b_granularity_k=form.group,
                )


def _scale_tile(form: Format, S: Any, at: slice, groups: int) -> Tile:
    """Step by step, the scales of ``groups`` groups at the rows ``at``; packed ones as they lie."""
    if form.packed:
        return lambda k: S[k * groups // PACKED, at, 0:PACKED]
    return depth_tile(S, at, depth=groups)


@T.macro
def blockscaled_product(
    config: Config, form: Format, operands: tuple[Any, ...], C: Any, m0: Any, n0: Any
) -> None:
    """``C`` becomes the tile of (A · scales) (B · scales)ᵀ at row ``m0`` and column ``n0``.

    ``operands`` are A, its scales, B and its scales.
    """
    A, A_scale, B, B_scale = operands
    block_M, block_N, block_K = config["block_m"], config["block_n"], config["block_k"]
    rows, columns, groups = slice(m0, m0 + block_M), slice(n0, n0 + block_N), block_K // form.group

    blockscaled_products(
        config,
        form,
        T.ceildiv(A.shape[1], block_K),
        depth_tile(A, rows, depth=block_K),
        _scale_tile(form, A_scale, rows, groups),
        [(depth_tile(B, columns, depth=block_K), _scale_tile(form, B_scale, columns, groups))],
        [C],
    )


def check_blockscaled(operator: str, config: Config, form: Format, scaled: str) -> None:
    """Refuse tiles that the instruction or the groups do not divide; ``scaled`` names the engine's product.

    Raises:
        OperatorError: what is wrong, and what would be right.
    """
    if config["product"] == "fp16" and form.packed:
        raise OperatorError(
            f"{operator}: product=fp16 cannot hold scales that are powers of two up to 2^127; it takes a "
            "matrix engine with bf16, or float32 scales"
        )
    for key, known in (("variant", ("tile", "persistent")), ("product", (scaled, *WIDENED))):
        if config[key] not in known:
            raise OperatorError(f"{operator}: {key}={config[key]!r} is not one of {', '.join(known)}")
    for key, step in (("block_m", 16), ("block_n", 16), ("block_k", form.group)):
        if config[key] % step:
            raise OperatorError(f"{operator}: {key}={config[key]} is not a multiple of {step}")
    if form.packed and PACKED % (config["block_k"] // form.group):
        raise OperatorError(
            f"{operator}: block_k={config['block_k']} does not divide {PACKED * form.group}, of which "
            "the scales are packed"
        )


_ROWS, _COLS, _THREADS = 32, 512, 128  # of a block that quantises


def quantise_fp8(M: Any, K: Any, packed: bool) -> TileProgram:
    """A and A_scale of X: e4m3 with a float32 scale a row and 128 columns, or packed powers of two."""
    stored = FP8_E8M0.scales(M, K) if packed else (M, groups_of(K))

    @T.prim_func
    def quantise_fp8_block(
        X: T.Tensor((M, K), "bfloat16"),
        A: T.Tensor((M, K), "float8_e4m3fn"),
        A_scale: T.Tensor(stored, "float8_e8m0fnu" if packed else "float32"),
    ) -> None:
        with T.Kernel(T.ceildiv(K, BLOCK), T.ceildiv(M, _ROWS), threads=_THREADS) as (bx, by):
            X_local = T.alloc_fragment((_ROWS, BLOCK), "float32")
            A_local = T.alloc_fragment((_ROWS, BLOCK), "float8_e4m3fn")
            T.copy(X[by * _ROWS, bx * BLOCK], X_local)
            scale = quantised_rows(X_local, A_local, packed)
            T.copy(A_local, A[by * _ROWS, bx * BLOCK])
            if packed:
                T.copy(scale, A_scale[bx // PACKED, by * _ROWS : (by + 1) * _ROWS, bx % PACKED])
            else:
                T.copy(scale, A_scale[by * _ROWS : (by + 1) * _ROWS, bx])

    traced: TileProgram = quantise_fp8_block
    return traced


_WALKERS = 64  # blocks that share the rows of four groups


def quantise_fp8_in_turn(M: Any, K: Any, packed: bool) -> TileProgram:
    """:func:`quantise_fp8` by few warps, each of which takes row after row and group after group of four.

    None begins before the one before has ended: ``per_token_quant_and_transform`` of TensorRT-LLM
    (tensorrt_llm/quantization/utils/fp8_utils.py), a Triton kernel of (ceil(k / 512), 64) blocks of one warp.
    """
    stored = FP8_E8M0.scales(M, K) if packed else (M, groups_of(K))

    @T.prim_func
    def quantise_fp8_in_turn(
        X: T.Tensor((M, K), "bfloat16"),
        A: T.Tensor((M, K), "float8_e4m3fn"),
        A_scale: T.Tensor(stored, "float8_e8m0fnu" if packed else "float32"),
    ) -> None:
        with T.Kernel(T.ceildiv(K, PACKED * BLOCK), _WALKERS, threads=32) as (bx, by):
            X_local = T.alloc_fragment((1, BLOCK), "float32")
            A_local = T.alloc_fragment((1, BLOCK), "float8_e4m3fn")
            for turn in T.serial(T.ceildiv(M, _WALKERS)):
                row = turn * _WALKERS + by
                for group in T.serial(PACKED):
                    T.copy(X[row, (bx * PACKED + group) * BLOCK], X_local)
                    scale = quantised_rows(X_local, A_local, packed)
                    T.copy(A_local, A[row, (bx * PACKED + group) * BLOCK])
                    if packed:
                        T.copy(scale, A_scale[bx, row : row + 1, group])
                    else:
                        T.copy(scale, A_scale[row : row + 1, bx * PACKED + group])

    traced: TileProgram = quantise_fp8_in_turn
    return traced


@T.macro
def nvfp4_rows(values: Any, tensor_scale: Any, result: Any) -> Any:
    """``values``, (rows, columns), rounded to e2m1 in ``result``; returns the scales of groups, in e4m3."""
    rows, groups = values.shape[0], values.shape[1] // GROUP
    grouped = T.alloc_fragment((rows, groups, GROUP), "float32")
    absmax = T.alloc_fragment((rows, groups), "float32")
    scale = T.alloc_fragment((rows, groups), NVFP4.scale)
    for i, g, j in T.Parallel(rows, groups, GROUP):
        grouped[i, g, j] = values[i, g * GROUP + j]
    T.reduce_absmax(grouped, absmax, dim=2)
    for i, g in T.Parallel(rows, groups):
        scale[i, g] = T.min(absmax[i, g] / (FP4_MAX * tensor_scale), FP8_MAX)
    for i, g, j in T.Parallel(rows, groups, GROUP):
        step = T.cast(scale[i, g], "float32") * tensor_scale
        quotient = T.if_then_else(step > 0.0, grouped[i, g, j] / step, 0.0)
        result[i, g * GROUP + j] = T.clamp(quotient, -FP4_MAX, FP4_MAX)
    return scale


def quantise_nvfp4(M: Any, K: Any) -> TileProgram:
    """A and A_scale of X in nvfp4, given the tensor's scale X_scale."""
    rows = 8

    @T.prim_func
    def quantise_nvfp4(
        X: T.Tensor((M, K), "bfloat16"),
        X_scale: T.Tensor((1,), "float32"),
        A: T.Tensor((M, K), NVFP4.element),
        A_scale: T.Tensor(NVFP4.scales(M, K), NVFP4.scale),
    ) -> None:
        with T.Kernel(T.ceildiv(K, _COLS), T.ceildiv(M, rows), threads=_THREADS) as (bx, by):
            X_shared = T.alloc_shared((rows, _COLS), "bfloat16")
            A_shared = T.alloc_shared((rows, _COLS), NVFP4.element)
            T.copy(X[by * rows, bx * _COLS], X_shared)
            scale = nvfp4_rows(X_shared, X_scale[0], A_shared)
            T.copy(A_shared, A[by * rows, bx * _COLS])
            T.copy(scale, A_scale[by * rows, bx * (_COLS // GROUP)])

    traced: TileProgram = quantise_nvfp4
    return traced
