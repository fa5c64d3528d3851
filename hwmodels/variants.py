"""A chip with one number changed: for what-if questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from foretile.hwmodels.quantity import Quantity
from foretile.hwmodels.schema import Chip


def with_values(chip: Chip, values: Mapping[str, float]) -> Chip:
    """``chip`` with the numbers at these dotted paths replaced, their sources and confidences kept.

    A number that the chip does not have becomes an inferred one. Counts are rounded; a share stays at most 1.

    Raises:
        KeyError: no such field.
    """
    for path, value in values.items():
        chip = _set(chip, path.split("."), value)
    return chip


def _set(node: Any, steps: list[str], value: float) -> Any:
    if not steps:
        return _number(node, value)
    step, *rest = steps
    if isinstance(node, BaseModel) and not isinstance(node, Quantity):
        if step not in type(node).model_fields:
            raise KeyError(f"{type(node).__name__} has no field {step}")
        below = getattr(node, step)
        changed = _share(step, value) if not rest else value
        return node.model_copy(update={step: _set(below, rest, changed)})
    if isinstance(node, Mapping):
        return {**node, step: _set(node.get(step), rest, value)}
    raise KeyError(f"there is nothing below {step}")


def _share(name: str, value: float) -> float:
    return min(1.0, value) if name.endswith("_fraction") else value


def _number(node: Any, value: float) -> Quantity[Any]:
    if node is None:
        return Quantity[float](value=value, source="a what-if", confidence="inferred")
    if not isinstance(node, Quantity):
        raise KeyError("it is no number")
    whole = isinstance(node.value, int)
    return node.model_copy(update={"value": max(1, round(value)) if whole else value})
