"""Libraries of latent and sparse attention: their tiles, whether they split the keys, what runs beside.

The entries of trtllm-gen and of TensorRT-LLM's context kernels are inferred from the shape of the public
timings (flat in the number of heads and in the batch, or in the keys up to a tile; blocks of one query
that take as long as those of a full tile); the others are those of the published sources.

Prefill, beside attention. TensorRT-LLM (attentionOp, ``invokeMLARopeContext`` in mlaKernels.cu): a kernel
for the sequences' offsets, and one that turns the rotary part of Q and of every head's K and writes the
latent cache; from 1.3 on the least times of the tables leave room for one more small kernel (H200, B200:
15 µs against 12.5 µs of sglang's four), which 1.0's on A100 and L40S do not. SGLang
(``TRTLLMMLABackend.forward_extend``): the latent cache is written, Q joined, and K joined, which the
collector gives one head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foretile.calibration.libraries.library import Library, always
from foretile.calibration.libraries.splits import triton_latent
from foretile.kernels.operator import Config, Shape

_MOST_FEW_HEADS = 32


def _few_heads(shape: Mapping[str, Any]) -> Any:
    return shape["heads"] <= _MOST_FEW_HEADS


def _prefill(kernels: str, engines: str, tile: tuple[int, int, int, int], beside: tuple[str, ...]) -> Library:
    """A library of one tile (query rows, keys, stages, threads), in either order of the blocks."""
    m, n, stages, threads = tile

    def configs(shape: Shape) -> list[Config]:
        del shape
        return [
            {"block_m": m, "block_n": n, "num_stages": stages, "threads": threads, "swizzle": swizzle}
            for swizzle in (8, 0)
        ]

    return Library("mla_prefill", kernels, engines, tiles=configs, beside=beside)


_TRTLLM_1_0 = ("lengths", "latent_rope")
_TRTLLM_1_3 = ("lengths", *_TRTLLM_1_0)
_SGLANG = ("latent", "concat_q", "concat_k")


def _triton_decode(shape: Shape) -> list[Config]:
    """decode_attention.py, ``_decode_grouped_att_m_fwd``: four warps, two stages."""
    del shape
    tile: Config = {
        "block_h": 16,
        "block_n": 32,
        "block_v": 512,
        "num_stages": 2,
        "threads": 128,
        "block_d": 0,
    }
    return [{**tile, "num_split": parts} for parts in (1, 2, 4, 8)]


def _always_combined(columns: Mapping[str, Any], config: Config, cores: int) -> Any:
    del columns, config, cores
    return True


LATENT: tuple[Library, ...] = (
    # Two tiles of 128 queries a block; Q in full leaves shared memory for 64 keys twice.
    _prefill("default", "tcgen05", (256, 64, 2, 512), _TRTLLM_1_3),
    _prefill("trtllm_mla", "tcgen05", (256, 64, 2, 512), _SGLANG),
    _prefill("default", "wgmma", (128, 128, 1, 256), _TRTLLM_1_3),
    _prefill("default", "mma_sync mma_sync/fp8", (64, 64, 1, 128), _TRTLLM_1_0),
    _prefill("default", "mma_sync*", (64, 64, 1, 128), _TRTLLM_1_3),  # RTX PRO 6000
    # DeepGEMM: a block does all keys of its queries, on Blackwell with one product for its 128 columns of
    # heads and queries. The tile of half the keys, two blocks a core, stands for blocks that stay and load
    # the next queries ahead, which the program does not do; so does a product a query on Hopper.
    Library(
        "indexer_logits",
        "deep_gemm.fp8_mqa_logits",
        "tcgen05",
        choices=((always, {"chunk": 0, "product": "fp8", "joined": True}),),
    ),
    Library(
        "indexer_logits",
        "deep_gemm.fp8_mqa_logits",
        choices=((always, {"chunk": 0, "product": "fp8", "joined": False}),),
    ),
    # FlashMLA's prefill kernels: a block does all keys of its query; on Blackwell in four groups of 128
    # threads, one of which loads, and the result is seldom rescaled.
    Library(
        "sparse_mla",
        "flash_mla_sparse_fwd",
        "tcgen05",
        choices=((always, {"num_split": 1, "threads": 384, "lazy": True}),),
    ),
    Library("sparse_mla", "flash_mla_sparse_fwd", choices=((always, {"num_split": 1, "lazy": False}),)),
    # trtllm-gen: keys in tiles of 64 at least, so that one block fills a core; 16 or 64 heads.
    Library(
        "mla_decode",
        "default trtllm_mla",
        "tcgen05",
        choices=(
            (_few_heads, {"block_h": 16, "block_n": 64, "block_d": 0}),
            (always, {"block_h": 64, "block_n": 64, "block_d": 0}),
        ),
    ),
    # FlashMLA and FlashAttention 3: 64 heads, whatever their number, against tiles of 64 keys.
    Library(
        "mla_decode",
        "default flash_attention",
        "wgmma",
        choices=((always, {"block_h": 64, "block_n": 64, "block_d": 0}),),
    ),
    # TensorRT-LLM's context kernel of 576 against 512 does decode where there is no other: 64 heads a block
    # whatever their number, keys not split, half of the values each for two blocks, the depth in pieces. Two
    # blocks share a core: on A100 one takes 7.4 µs for 64 keys, two on a core 11.2.
    Library(
        "mla_decode",
        "default",
        "mma_sync*",
        choices=((always, {"num_split": 1, "block_h": 64, "block_v": 256, "block_d": 64}),),
    ),
    # SGLang's Triton kernel: 16 heads against tiles of 32 keys, whose parts are always combined by another.
    Library(
        "mla_decode",
        "triton",
        "mma_sync*",
        tiles=_triton_decode,
        parts=triton_latent,
        combines=_always_combined,
    ),
)
