"""Which kernel a library launches: where it chooses by shape and not by time, its rule.

A search takes the fastest configuration for every shape. Libraries that are built from templates hold
a few kernels and pick by the number of rows; what they launch is then slower than the best there is, by
a multiple where the choice is poor. Rules name block shapes only; a row whose kernel is not in the space,
or does not fit the chip, takes the best of those that are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretile.hwmodels import Chip
from foretile.kernels.operator import Config, Shape

Array = np.ndarray
_Choice = Callable[[Array, Array, Array], Any]  # m, n, k by row (zero where there is none) → its rows


@dataclass(frozen=True)
class Rule:
    """``choices``: what the configuration must hold, for the rows where a condition holds first.

    ``engine``: of the chips that the kernels are made for, see :func:`engine_of`.
    """

    operator: str
    kernels: str
    engine: str
    choices: tuple[tuple[_Choice, dict[str, Any]], ...]


def _always(m: Array, n: Array, k: Array) -> Any:
    del n, k
    return np.ones(len(m), dtype=bool)


def _rows(most: int) -> _Choice:
    return lambda m, n, k: m <= most


# vLLM, csrc/quantization/w8a8/cutlass/c3x/scaled_mm_sm90_fp8_dispatch.cuh; tiles of few rows are those of
# the transposed product.
_HOPPER = (
    (_rows(16), {"variant": "tile", "block_m": 16, "block_n": 64, "block_k": 256}),
    (
        lambda m, n, k: (m <= 64) & (n <= 1280),
        {"variant": "tile", "block_m": 16, "block_n": 64, "block_k": 256},
    ),
    (_rows(64), {"variant": "tile", "block_m": 64, "block_n": 64, "block_k": 256}),
    (_rows(128), {"variant": "persistent", "block_m": 64, "block_n": 128}),
    (_always, {"variant": "persistent", "block_m": 128, "block_n": 128}),
)
# …scaled_mm_sm100_fp8_dispatch.cuh; tiles of 128 rows and more are those of two cores: half for each.
_BLACKWELL = (
    (_rows(16), {"variant": "tile", "block_m": 32, "block_n": 128, "block_k": 128}),
    (_rows(64), {"variant": "tile", "block_m": 64, "block_n": 128, "block_k": 256}),
    (_rows(256), {"variant": "tile", "block_m": 128, "block_n": 64}),
    (_always, {"variant": "persistent", "block_m": 128, "block_n": 128}),
)
# sglang, sgl-kernel/csrc/gemm/fp8_gemm_kernel.cu.
_SGL_BLACKWELL = (
    (_rows(64), {"variant": "tile", "block_m": 64, "block_n": 64, "block_k": 128}),
    (_rows(256), {"variant": "tile", "block_m": 128, "block_n": 64}),
    (_always, {"variant": "persistent", "block_m": 128, "block_n": 128}),
)
# …, kernels of chips without and with bulk copies.
_SGL_ADA = (
    (
        lambda m, n, k: (m <= 16) & (n <= 8192),
        {"variant": "tile", "block_m": 16, "block_n": 64, "block_k": 128},
    ),
    (
        lambda m, n, k: (m == 1) | (m <= 64) & (n <= 16384),
        {"variant": "tile", "block_m": 32, "block_n": 64, "block_k": 128},
    ),
    (_rows(64), {"variant": "tile", "block_m": 16, "block_n": 64, "block_k": 128}),
    (
        lambda m, n, k: (m <= 128) & (n <= 16384),
        {"variant": "tile", "block_m": 64, "block_n": 64, "block_k": 128},
    ),
    (_rows(128), {"variant": "tile", "block_m": 32, "block_n": 64, "block_k": 128}),
    (
        lambda m, n, k: (m <= 256) & (n > 8192) & (n <= 16384),
        {"variant": "tile", "block_m": 64, "block_n": 128},
    ),
    (_rows(256), {"variant": "tile", "block_m": 128, "block_n": 64}),
    (_always, {"variant": "tile", "block_m": 128, "block_n": 128, "block_k": 64}),
)
_SGL_BULK = ((_always, {"variant": "tile", "block_m": 128, "block_n": 128, "block_k": 128}),)
# vLLM, csrc/quantization/w8a8/cutlass/c3x/scaled_mm_sm120_fp8_dispatch.cuh and scaled_mm_c2x_sm89_….
_VLLM_BULK = (
    (_rows(16), {"variant": "tile", "block_m": 16, "block_n": 64, "block_k": 128}),
    (_rows(32), {"variant": "tile", "block_m": 32, "block_n": 64, "block_k": 128}),
    (_rows(256), {"variant": "tile", "block_m": 64, "block_n": 64, "block_k": 128}),
    (_always, {"variant": "tile", "block_m": 128, "block_n": 128, "block_k": 128}),
)
_VLLM_ADA = (
    (
        lambda m, n, k: (m <= 16) & (n <= 8192),
        {"variant": "tile", "block_m": 16, "block_n": 64, "block_k": 128},
    ),
    (lambda m, n, k: (m <= 16) & (n <= 24576), {"variant": "tile", "block_m": 16, "block_n": 128}),
    (
        lambda m, n, k: (m <= 32) & (n > 8192) & (n <= 16384),
        {"variant": "tile", "block_m": 32, "block_n": 128},
    ),
    (_rows(32), {"variant": "tile", "block_m": 32, "block_n": 64, "block_k": 128}),
    (
        lambda m, n, k: (m <= 64) & (n > 8192) & (n <= 16384),
        {"variant": "tile", "block_m": 64, "block_n": 128},
    ),
    (_rows(64), {"variant": "tile", "block_m": 64, "block_n": 64, "block_k": 128}),
    (
        lambda m, n, k: (m <= 128) & (n <= 8192) | (m <= 256) & (n <= 4096),
        {"variant": "tile", "block_m": 64, "block_n": 128},
    ),
    (lambda m, n, k: (m <= 128) & (n > 16384), {"variant": "tile", "block_m": 128, "block_n": 64}),
    (
        lambda m, n, k: (m > 256) & (n > 4096) & (n <= 8192),
        {"variant": "tile", "block_m": 256, "block_n": 128, "block_k": 64},
    ),
    (_always, {"variant": "tile", "block_m": 128, "block_n": 128, "block_k": 64}),
)
# One tile whatever the shape: time a step of k is that of the whole tile even for one row or 128 columns
# (nvfp4 on Blackwell: 65536 of k take as long for 128 columns as for 2048, in the tables themselves).
_TILE_128 = ((_always, {"variant": "persistent", "block_m": 128, "block_n": 128}),)
_TILE_256 = ((_always, {"variant": "persistent", "block_m": 128, "block_n": 256}),)
# vLLM, csrc/quantization/w8a8/fp8/common.cu: a block of 256 threads a row.
_BLOCK_A_ROW = ((_always, {"variant": "walk"}),)
_ENGINES = ("wgmma", "tcgen05", "mma_sync", "mma_sync with bulk copies")
_CUTE_DSL = "FlashInferCuteDslNvFp4LinearKernel sglang_flashinfer_cutedsl_nvfp4"
_VLLM, _SGLANG = "CutlassFP8ScaledMMLinearKernel", "sglang_sgl_kernel_fp8_scaled_mm"


RULES: tuple[Rule, ...] = (
    Rule("gemm_fp8", f"{_VLLM} {_SGLANG}", "wgmma", _HOPPER),
    Rule("gemm_fp8", _VLLM, "tcgen05", _BLACKWELL),
    Rule("gemm_fp8", _SGLANG, "tcgen05", _SGL_BLACKWELL),
    Rule("gemm_fp8", _SGLANG, "mma_sync", _SGL_ADA),
    *(Rule("quantize", "static_scaled_fp8_quant", engine, _BLOCK_A_ROW) for engine in _ENGINES),
    Rule("gemm_nvfp4", _CUTE_DSL, "tcgen05", _TILE_128),
    Rule("gemm_nvfp4", "torch_flow", "tcgen05", _TILE_256),
    Rule("gemm_fp8", _SGLANG, "mma_sync with bulk copies", _SGL_BULK),
    Rule("gemm_fp8", _VLLM, "mma_sync", _VLLM_ADA),
    Rule("gemm_fp8", _VLLM, "mma_sync with bulk copies", _VLLM_BULK),
)


def engine_of(chip: Chip) -> str:
    """What decides which kernels a chip runs: its matrix instruction, and bulk copies beside the oldest."""
    instruction = chip.matrix.instruction
    bulk = instruction == "mma_sync" and chip.features.bulk_copy
    return f"{instruction} with bulk copies" if bulk else instruction


def rule_for(operator: str, source: str, engine: str) -> Rule | None:
    """The rule of a kernel source on such chips, None if it may take the best."""
    for rule in RULES:
        if rule.operator == operator and rule.engine == engine and source in rule.kernels.split():
            return rule
    return None


def launched(rule: Rule, configs: Sequence[Config], shape: Shape, rows: int) -> Array:
    """By configuration and row, whether the library launches it: of shape (configs, rows)."""
    m, n, k = (np.broadcast_to(np.asarray(shape.get(name, 0)), (rows,)) for name in ("m", "n", "k"))
    open_ = np.ones(rows, dtype=bool)
    found = np.zeros((len(configs), rows), dtype=bool)
    for condition, held in rule.choices:
        mine = open_ & condition(m, n, k)
        open_ &= ~mine
        for i, config in enumerate(configs):
            if all(config.get(name) == value for name, value in held.items()):
                found[i] |= mine
    found[:, ~found.any(axis=0)] = True
    return found
