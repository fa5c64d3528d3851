"""Libraries of latent and sparse attention: which tiles they have, and whether they split the keys.

The entries of trtllm-gen and of TensorRT-LLM's context kernel are inferred from the shape of the public
timings (flat in the number of heads and in the batch); the others are those of the published sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foretile.calibration.libraries.library import Library, always

_MOST_FEW_HEADS = 32


def _few_heads(shape: Mapping[str, Any]) -> Any:
    return shape["heads"] <= _MOST_FEW_HEADS


LATENT: tuple[Library, ...] = (
    # DeepGEMM: a block does all keys of its queries.
    Library(
        "indexer_logits", "deep_gemm.fp8_mqa_logits", choices=((always, {"chunk": 0, "product": "fp8"}),)
    ),
    # FlashMLA's prefill kernel: a block does all keys of its query.
    Library("sparse_mla", "flash_mla_sparse_fwd", choices=((always, {"num_split": 1}),)),
    # trtllm-gen: keys in tiles of 64 at least, so that one block fills a core; 16 or 64 heads.
    Library(
        "mla_decode",
        "default trtllm_mla",
        "tcgen05",
        choices=(
            (_few_heads, {"block_h": 16, "block_n": 64}),
            (always, {"block_h": 64, "block_n": 64}),
        ),
    ),
    # FlashMLA and FlashAttention 3: 64 heads, whatever their number, against tiles of 64 keys.
    Library(
        "mla_decode",
        "default flash_attention",
        "wgmma",
        choices=((always, {"block_h": 64, "block_n": 64}),),
    ),
    # TensorRT-LLM's context kernel of 576 against 512 does decode where there is no other: 64 heads a block
    # whatever their number, keys not split, half of the values each for two blocks.
    Library(
        "mla_decode",
        "default",
        "mma_sync*",
        choices=((always, {"num_split": 1, "block_h": 64, "block_v": 256}),),
    ),
)
