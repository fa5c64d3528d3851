"""Library kernels that come in some configurations only: one table, by operator and kernel source.

A kernel source that splits no keys, or has tiles of one height, is predicted as what it is, and not as the
fastest of an operator's space. No rule looks at a time or an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from foretile.kernels.operator import Config


@dataclass(frozen=True)
class Variant:
    """``kernels`` and ``instructions`` (of the matrix engine) are patterns; ``has`` picks configurations."""

    operator: str
    kernels: str
    instructions: str
    has: Callable[[Config], bool]
    reason: str


VARIANTS: tuple[Variant, ...] = (
    Variant(
        "sparse_mla",
        "flash_mla_sparse_fwd",
        "*",
        lambda c: c["num_split"] == 1,
        "FlashMLA's prefill kernel: a block does all keys of its query",
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


def variant_of(operator: str, kernel_source: str, instruction: str) -> int:
    """Place in ``VARIANTS`` of the first that names these kernels, -1 for none."""
    for place, variant in enumerate(VARIANTS):
        named = any(fnmatchcase(kernel_source, pattern) for pattern in variant.kernels.split())
        if variant.operator == operator and named and fnmatchcase(instruction, variant.instructions):
            return place
    return -1
