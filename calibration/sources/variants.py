"""Library kernels that come in some configurations only: one table, by operator and kernel source.

A kernel source that splits no keys, or has tiles of one height, is predicted as what it is, and not as the
fastest of an operator's space. No rule looks at a time or an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from foretile.kernels.operator import Config, Shape


@dataclass(frozen=True)
class Variant:
    """``kernels`` and ``instructions`` (of the matrix engine) are patterns; ``has`` picks configurations.

    ``used`` says for which shapes (columns of parameters) the library uses one of them.
    """

    operator: str
    kernels: str
    instructions: str
    has: Callable[[Config], bool]
    reason: str
    used: Callable[[Config, Shape], Any] | None = None


def _few_heads(config: Config, shape: Shape) -> Any:
    """Tiles of 16 heads for up to 32, of 64 for more."""
    return (np.asarray(shape["heads"]) <= 32) == (config["block_h"] == 16)


VARIANTS: tuple[Variant, ...] = (
    Variant(
        "indexer_logits",
        "deep_gemm.fp8_mqa_logits",
        "*",
        lambda c: c["chunk"] == 0 and c["product"] == "fp8",
        "DeepGEMM: a block does all keys of its queries",
    ),
    Variant(
        "sparse_mla",
        "flash_mla_sparse_fwd",
        "*",
        lambda c: c["num_split"] == 1,
        "FlashMLA's prefill kernel: a block does all keys of its query",
    ),
    Variant(
        "mla_decode",
        "default trtllm_mla",
        "tcgen05",
        lambda c: c["block_h"] in (16, 64) and c["block_n"] == 64,
        "trtllm-gen: keys in tiles of 64 at least, so that one block fills a core; 16 or 64 heads",
        _few_heads,
    ),
    Variant(
        "mla_decode",
        "default flash_attention",
        "wgmma",
        lambda c: c["block_h"] == 64 and c["block_n"] == 64,
        "FlashMLA and FlashAttention 3: 64 heads, whatever their number, against tiles of 64 keys",
    ),
    Variant(
        "mla_decode",
        "default",
        "mma_sync",
        lambda c: c["num_split"] == 1 and c["block_h"] == 64 and c["block_v"] == 256,
        "TensorRT-LLM's context kernel of 576 against 512 does decode where there is no other: 64 heads a "
        "block whatever their number, keys not split, half of the values each for two blocks",
    ),
)


def use(variant: int, config: Config, shape: Shape, seconds: np.ndarray) -> np.ndarray:
    """``seconds`` by shape, infinite where the library does not use this configuration."""
    rule = VARIANTS[variant].used if variant >= 0 else None
    return seconds if rule is None else np.where(rule(config, shape), seconds, np.inf)


def variant_of(operator: str, kernel_source: str, instruction: str) -> int:
    """Place in ``VARIANTS`` of the first that names these kernels, -1 for none."""
    for place, variant in enumerate(VARIANTS):
        named = any(fnmatchcase(kernel_source, pattern) for pattern in variant.kernels.split())
        if variant.operator == operator and named and fnmatchcase(instruction, variant.instructions):
            return place
    return -1
