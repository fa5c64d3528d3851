"""Libraries of low-precision products: which of a few kernels they launch, by the shape.

Libraries that are built from templates hold a few kernels and pick by the number of rows; what they launch
is then slower than the best there is, by a multiple where the choice is poor. Rules of vllm and of sglang on
Ada and Blackwell are those of the published sources; sglang's on Hopper and on RTX PRO 6000 follow the public
tables, which contradict the older thresholds of the source at hand. nvfp4 tiles are read off the tables.
"""

from __future__ import annotations

from foretile.calibration.libraries.library import Library, Where, always
from foretile.kernels.operator import Config, Shape, load_operator


def _in_turn(shape: Shape) -> list[Config]:
    """The operator's space, behind rows quantised one after the other on every core.

    So vLLM's static quantisation takes beside its products, on five chips from Ada to Blackwell: time grows
    by a fixed amount a row and step of 2048 columns, even of 32 columns, ten times what the same kernel
    takes alone (its own table, ``static_scaled_fp8_quant``). Why, is not known.
    """
    return [{**config, "in_turn": True} for config in load_operator("gemm_fp8").configs(shape)]


def _few_warps(shape: Shape) -> list[Config]:
    """The operator's space, behind few warps that quantise row after row, four groups of 128 in turn.

    TensorRT-LLM, tensorrt_llm/_torch/modules/linear.py (FP8BlockScalesLinearMethod) for compute capability
    12.0, and the Triton kernel in tensorrt_llm/quantization/utils/fp8_utils.py that it calls.
    """
    return [{**config, "in_turn": 1} for config in load_operator("gemm_fp8_block").configs(shape)]


def _rows(most: int) -> Where:
    return lambda s: s["m"] <= most


# vLLM, csrc/quantization/w8a8/cutlass/c3x/scaled_mm_sm90_fp8_dispatch.cuh; tiles of few rows are those of
# the transposed product.
_HOPPER = (
    (_rows(16), {"variant": "tile", "block_m": 16, "block_n": 64, "block_k": 256}),
    (
        lambda s: (s["m"] <= 64) & (s["n"] <= 1280),
        {"variant": "tile", "block_m": 16, "block_n": 64, "block_k": 256},
    ),
    (_rows(64), {"variant": "tile", "block_m": 64, "block_n": 64, "block_k": 256}),
    (_rows(128), {"variant": "persistent", "block_m": 64, "block_n": 128}),
    (always, {"variant": "persistent", "block_m": 128, "block_n": 128}),
)
# …scaled_mm_sm100_fp8_dispatch.cuh; tiles of 128 rows and more are those of two cores: half for each.
_BLACKWELL = (
    (_rows(16), {"variant": "tile", "block_m": 32, "block_n": 128, "block_k": 128}),
    (_rows(64), {"variant": "tile", "block_m": 64, "block_n": 128, "block_k": 256}),
    (_rows(256), {"variant": "tile", "block_m": 128, "block_n": 64}),
    (always, {"variant": "persistent", "block_m": 128, "block_n": 128}),
)
# sglang, sgl-kernel/csrc/gemm/fp8_gemm_kernel.cu.
_SGL_BLACKWELL = (
    (_rows(64), {"variant": "tile", "block_m": 64, "block_n": 64, "block_k": 128}),
    (_rows(256), {"variant": "tile", "block_m": 128, "block_n": 64}),
    (always, {"variant": "persistent", "block_m": 128, "block_n": 128}),
)
# …, kernels of chips without and with bulk copies.
_SGL_ADA = (
    (
        lambda s: (s["m"] <= 16) & (s["n"] <= 8192),
        {"variant": "tile", "block_m": 16, "block_n": 64, "block_k": 128},
    ),
    (
        lambda s: (s["m"] == 1) | (s["m"] <= 64) & (s["n"] <= 16384),
        {"variant": "tile", "block_m": 32, "block_n": 64, "block_k": 128},
    ),
    (_rows(64), {"variant": "tile", "block_m": 16, "block_n": 64, "block_k": 128}),
    (
        lambda s: (s["m"] <= 128) & (s["n"] <= 16384),
        {"variant": "tile", "block_m": 64, "block_n": 64, "block_k": 128},
    ),
    (_rows(128), {"variant": "tile", "block_m": 32, "block_n": 64, "block_k": 128}),
    (
        lambda s: (s["m"] <= 256) & (s["n"] > 8192) & (s["n"] <= 16384),
        {"variant": "tile", "block_m": 64, "block_n": 128},
    ),
    (_rows(256), {"variant": "tile", "block_m": 128, "block_n": 64}),
    (always, {"variant": "tile", "block_m": 128, "block_n": 128, "block_k": 64}),
)
_SGL_BULK = ((always, {"variant": "tile", "block_m": 128, "block_n": 128, "block_k": 128}),)
# vLLM, csrc/quantization/w8a8/cutlass/c3x/scaled_mm_sm120_fp8_dispatch.cuh and scaled_mm_c2x_sm89_….
_VLLM_BULK = (
    (_rows(16), {"variant": "tile", "block_m": 16, "block_n": 64, "block_k": 128}),
    (_rows(32), {"variant": "tile", "block_m": 32, "block_n": 64, "block_k": 128}),
    (_rows(256), {"variant": "tile", "block_m": 64, "block_n": 64, "block_k": 128}),
    (always, {"variant": "tile", "block_m": 128, "block_n": 128, "block_k": 128}),
)
_VLLM_ADA = (
    (
        lambda s: (s["m"] <= 16) & (s["n"] <= 8192),
        {"variant": "tile", "block_m": 16, "block_n": 64, "block_k": 128},
    ),
    (lambda s: (s["m"] <= 16) & (s["n"] <= 24576), {"variant": "tile", "block_m": 16, "block_n": 128}),
    (
        lambda s: (s["m"] <= 32) & (s["n"] > 8192) & (s["n"] <= 16384),
        {"variant": "tile", "block_m": 32, "block_n": 128},
    ),
    (_rows(32), {"variant": "tile", "block_m": 32, "block_n": 64, "block_k": 128}),
    (
        lambda s: (s["m"] <= 64) & (s["n"] > 8192) & (s["n"] <= 16384),
        {"variant": "tile", "block_m": 64, "block_n": 128},
    ),
    (_rows(64), {"variant": "tile", "block_m": 64, "block_n": 64, "block_k": 128}),
    (
        lambda s: (s["m"] <= 128) & (s["n"] <= 8192) | (s["m"] <= 256) & (s["n"] <= 4096),
        {"variant": "tile", "block_m": 64, "block_n": 128},
    ),
    (
        lambda s: (s["m"] <= 128) & (s["n"] > 16384),
        {"variant": "tile", "block_m": 128, "block_n": 64},
    ),
    (
        lambda s: (s["m"] > 256) & (s["n"] > 4096) & (s["n"] <= 8192),
        {"variant": "tile", "block_m": 256, "block_n": 128, "block_k": 64},
    ),
    (always, {"variant": "tile", "block_m": 128, "block_n": 128, "block_k": 64}),
)
# cuBLAS on Ada and GB20x: no sum is split in products of less than 2^21 multiply-adds, however few blocks
# there are (4 × 64 × 6144 takes 27 us on L40S, 4 × 64 × 8192 five). Seen in the tables; of the powers of two
# from 2^19 to 2^24 it fits the fit rows of both chips best. One row is another kernel's. A100's tables,
# measured with older versions, have no such bound.
_WHOLE_SUMS = (
    (
        lambda s: (s["m"] * s["n"] * s["k"] < 2**21) & (s["m"] > 1) & (s["batch"] == 1),
        {"split_k": 1},
    ),
)
# One tile whatever the shape: time a step of k is that of the whole tile even for one row or 128 columns
# (nvfp4 on Blackwell: 65536 of k take as long for 128 columns as for 2048, in the tables themselves).
_TILE_128 = ((always, {"variant": "persistent", "block_m": 128, "block_n": 128}),)
_BLOCK_32 = ((always, {"block_m": 32, "block_n": 128, "product": "fp8"}),)
_TILE_256 = ((always, {"variant": "persistent", "block_m": 128, "block_n": 256}),)
# vLLM, csrc/quantization/w8a8/fp8/common.cu: a block of 256 threads a row.
_BLOCK_A_ROW = ((always, {"variant": "walk"}),)
_CUTE_DSL = "FlashInferCuteDslNvFp4LinearKernel sglang_flashinfer_cutedsl_nvfp4"
_VLLM, _SGLANG = "CutlassFP8ScaledMMLinearKernel", "sglang_sgl_kernel_fp8_scaled_mm"


_ADA = "mma_sync/fp8"

PRODUCTS: tuple[Library, ...] = (
    Library("gemm", "*", f"{_ADA} mma_sync+bulk", choices=_WHOLE_SUMS),
    Library("gemm_fp8", _VLLM, "wgmma", tiles=_in_turn, choices=_HOPPER),
    Library("gemm_fp8", _SGLANG, "wgmma", choices=_HOPPER),
    Library("gemm_fp8", _VLLM, "tcgen05", tiles=_in_turn, choices=_BLACKWELL),
    Library("gemm_fp8", _SGLANG, "tcgen05", choices=_SGL_BLACKWELL),
    Library("gemm_fp8", _SGLANG, _ADA, choices=_SGL_ADA),
    Library("quantize", "static_scaled_fp8_quant", choices=_BLOCK_A_ROW),
    Library("gemm_fp8_block", "torch_flow", _ADA, choices=_BLOCK_32),
    Library("gemm_fp8_block", "torch_flow", "mma_sync+bulk", tiles=_few_warps, choices=_BLOCK_32),
    Library("gemm_nvfp4", _CUTE_DSL, "tcgen05", choices=_TILE_128),
    Library("gemm_nvfp4", "torch_flow", "tcgen05", choices=_TILE_256),
    Library("gemm_nvfp4", "*", "mma_sync+bulk", choices=_TILE_128),
    Library("gemm_fp8", _SGLANG, "mma_sync+bulk", choices=_SGL_BULK),
    Library("gemm_fp8", _VLLM, _ADA, tiles=_in_turn, choices=_VLLM_ADA),
    Library("gemm_fp8", _VLLM, "mma_sync+bulk", tiles=_in_turn, choices=_VLLM_BULK),
)
