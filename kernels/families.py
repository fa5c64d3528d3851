"""Operator families: what shares kernels, and so calibrated numbers and stated errors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from foretile.kernels.ir import Gemm, TileProgram, walk_stmts
from foretile.kernels.operator import load_operator

# Operators that have a family of their own for each type of operand.
_BY_DTYPE = ("gemm", "grouped_gemm", "moe")
# Operators that quantise their own operand: of the family of products of that type.
_QUANTISING = ("gemm_fp8", "gemm_nvfp4")


def family_of(operator: str, shape: Mapping[str, Any]) -> str:
    """The family that an operator of this name belongs to at this resolved shape.

    Products are told apart by type (``gemm.bf16``), batched ones from single ones (``bmm.bf16``),
    attention without a mask (encoders) from prefill.
    """
    if operator in _QUANTISING:
        return operator.replace("_", ".")
    if operator == "attention_prefill" and shape.get("causal") is False:
        return "attention_encoder"
    if operator in _BY_DTYPE:
        batched = operator == "gemm" and bool(np.any(np.asarray(shape.get("batch", 1)) != 1))
        name = "bmm" if batched else operator
        return f"{name}.{shape['dtype']}"
    return operator


# Families named after something else than their operator.
_OPERATOR = {"bmm": "gemm", "attention_encoder": "attention_prefill"}


def operators_of(family: str) -> tuple[str, ...]:
    """The operators that a family's rows may be of."""
    name = family.partition(".")[0]
    return (_OPERATOR.get(name, name), *(o for o in _QUANTISING if family == o.replace("_", ".")))


@cache
def multiplies(family: str) -> bool:
    """Whether the kernels of this family use the matrix engine."""
    operator = load_operator(operators_of(family)[0])
    shape = operator.shape(**operator.example)
    traced = operator.program(shape, operator.configs(shape)[0])
    programs = (traced,) if isinstance(traced, TileProgram) else traced
    return any(isinstance(stmt, Gemm) for program in programs for stmt in walk_stmts(program.body))
