"""Operator families: what shares kernels, and so calibrated numbers and stated errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# Operators that have a family of their own for each type of operand.
_BY_DTYPE = ("gemm", "grouped_gemm", "moe")


def family_of(operator: str, shape: Mapping[str, Any]) -> str:
    """The family that an operator of this name belongs to at this resolved shape.

    Products are told apart by type (``gemm.bf16``), batched ones from single ones (``bmm.bf16``),
    attention without a mask (encoders) from prefill.
    """
    if operator in ("gemm_fp8", "gemm_nvfp4"):
        return operator.replace("_", ".")
    if operator == "attention_prefill" and shape.get("causal") is False:
        return "attention_encoder"
    if operator in _BY_DTYPE:
        batched = operator == "gemm" and bool(np.any(np.asarray(shape.get("batch", 1)) != 1))
        name = "bmm" if batched else operator
        return f"{name}.{shape['dtype']}"
    return operator
