"""Element types that a chip's matrix engine takes, for operators that leave the choice open."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from foretile.hwmodels.schema import Chip
from foretile.kernels.dtypes import dtype
from foretile.kernels.operator import Operator, Shape

_PARAMETER = "dtype"  # what an operator computes in; types of scales, caches and results are storage only


def native(
    operator: Operator, shape: Shape, chip: Chip, fixed: Collection[str] = ()
) -> tuple[dict[str, Any], str]:
    """``shape`` with an element type that the chip multiplies in, and in words what was changed.

    A default of ``dtype`` that the chip's matrix engine does not take (bf16 before Ampere, on Ascend 910A
    and 310P) gives way to the operator's first other type of its kind and width that it does take: models
    trained in bf16 are run in fp16 there (vLLM refuses bf16 below compute capability 8.0 and names
    ``--dtype=half``; SGLang changes over by itself). Names in ``fixed`` were asked for and stay.
    """
    names = [p for p in operator.params if p.name == _PARAMETER and p.choices]
    if not names or _PARAMETER in fixed:
        return dict(shape), ""
    wanted = str(shape.get(_PARAMETER, names[0].default))
    rates = chip.matrix.flop_per_cycle
    plain = [choice for choice in names[0].choices if choice in rates]
    if wanted in rates or wanted not in _plain_names(names[0].choices):
        return dict(shape), ""
    like = dtype(wanted)
    for choice in plain:
        other = dtype(choice)
        if (other.kind, other.bits) == (like.kind, like.bits):
            note = f"{wanted} is no type of this chip's matrix engine; in {choice} instead"
            return {**shape, _PARAMETER: choice}, note
    return dict(shape), ""


def _plain_names(choices: Collection[str]) -> list[str]:
    """Choices that are element types, not formats with scales."""
    known = []
    for choice in choices:
        try:
            known.append(dtype(choice).short)
        except ValueError:
            continue
    return known
