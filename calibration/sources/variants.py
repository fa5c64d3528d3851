"""Kernel sources whose algorithm is known: the configurations of an operator that can be theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class Variant:
    """``kernels``: patterns (``*``) of kernel sources; ``config``: what their configurations have."""

    operator: str
    kernels: str
    config: Mapping[str, Any] = field(hash=False)


VARIANTS: tuple[Variant, ...] = (
    # FlashInfer's is one kernel, a block a sequence and head; flash-linear-attention's Triton kernels
    # prepare all chunks side by side and pass U and W through memory.
    Variant("linear_attention", "*_flashinfer *_flashinfer/*", {"variant": "fused"}),
    Variant("linear_attention", "*", {"variant": "chunked"}),
)


def variant_of(operator: str, kernel_source: str) -> Mapping[str, Any]:
    """Keys and values that the kernel's configurations have; empty where its algorithm is any."""
    for variant in VARIANTS:
        if variant.operator == operator and any(
            fnmatchcase(kernel_source, pattern) for pattern in variant.kernels.split()
        ):
            return variant.config
    return {}
