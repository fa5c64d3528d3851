"""What is wrong with a chip file, in the words of the file: field, value, remedy."""

from __future__ import annotations

import difflib
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from foretile.hwmodels.quantity import Quantity
from foretile.hwmodels.schema import Chip

LEAF = "{value, source, confidence}"
LEAF_KEYS = ("value", "source", "confidence")
Location = tuple[str, ...]
Problem = tuple[Location, str]


class ChipError(ValueError):
    """A chip that cannot be found or a chip file that cannot be used; one problem a line."""


def is_leaf(node: object) -> bool:
    """Whether a mapping of the file is one number with its source."""
    return isinstance(node, Mapping) and "value" in node


def show(value: object) -> str:
    """A value as the user wrote it, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def number_problems(data: object, at: Location = ()) -> Iterator[Problem]:
    """Leaf values pydantic would quietly turn into a number: booleans, quoted text, infinities."""
    if not isinstance(data, Mapping):
        return
    for key, node in data.items():
        where = (*at, str(key))
        if key == "value" and at:
            if isinstance(node, bool | str):
                yield where, f"{show(node)} is not valid: must be a number"
            elif isinstance(node, float) and not math.isfinite(node):
                yield where, f"{node} is not valid: must be finite"
        else:
            yield from number_problems(node, where)


def model_at(location: Sequence[str | int]) -> type[BaseModel] | None:
    """The schema class whose fields are allowed at a location, None inside free mappings."""
    model: type[BaseModel] | None = Chip
    for step in location:
        if model is None or not isinstance(step, str) or step not in model.model_fields:
            return None
        model = _model_in(model.model_fields[step].annotation)
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in typing.get_args(annotation):
        if part is not str and (found := _model_in(part)) is not None:
            return found
    return None


def _unknown_field(location: Location) -> str:
    *parents, name = location
    model = model_at(parents)
    # A wrong key inside a leaf of a free mapping (flop_per_cycle.bf16.valeu) has the leaf's fields.
    known = list((model or Quantity[float]).model_fields)
    if not parents:
        known += ["extends", "complete"]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"unknown field; did you mean '{near[0]}'?"
    return f"unknown field; known: {', '.join(known)}"


def _not_a_mapping(location: Location, given: object) -> str:
    model = model_at(location)
    if model is None or issubclass(model, Quantity):
        if isinstance(given, int | float) and not isinstance(given, bool):
            return (
                f"{given!r} is a bare number; write {{value: {given!r}, source: ..., "
                "confidence: measured|datasheet|derived|inferred}"
            )
        return f"{show(given)} is not valid: must be a mapping {LEAF}"
    return f"{show(given)} is not valid: must be a mapping of {', '.join(model.model_fields)}"


def _missing(location: Location) -> str:
    if location[-1] in LEAF_KEYS and len(location) > 1:
        return f"missing; every number needs {LEAF}"
    model = model_at(location)
    if model is not None and issubclass(model, Quantity):
        return f"missing; give {LEAF}"
    if model is not None:
        needed = [name for name, field in model.model_fields.items() if field.is_required()]
        return f"missing; a mapping of {', '.join(needed)}"
    return "missing"


_REMEDIES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda c: f"must be greater than {c['gt']:g}",
    "greater_than_equal": lambda c: f"must be at least {c['ge']:g}",
    "less_than": lambda c: f"must be less than {c['lt']:g}",
    "less_than_equal": lambda c: f"must be at most {c['le']:g}",
    "literal_error": lambda c: f"must be {c['expected']}",
    "string_too_short": lambda c: "must name where the number comes from (paper, datasheet, data set)",
    "string_pattern_mismatch": lambda c: "must be lower-case letters and digits joined by single hyphens",
    "float_type": lambda c: "must be a number",
    "float_parsing": lambda c: "must be a number",
    "int_type": lambda c: "must be a whole number",
    "int_parsing": lambda c: "must be a whole number",
    "int_from_float": lambda c: "must be a whole number",
    "string_type": lambda c: "must be text",
    "bool_type": lambda c: "must be true or false",
    "bool_parsing": lambda c: "must be true or false",
    "tuple_type": lambda c: "must be a list, such as [a, b]",
    "dict_type": lambda c: "must be a mapping",
}


def schema_problems(error: ValidationError) -> list[Problem]:
    """The findings of a failed validation as (location, sentence), without the validator's jargon."""
    problems: list[Problem] = []
    for found in error.errors(include_url=False):
        location = tuple(str(step) for step in found["loc"])
        kind, given, context = found["type"], found["input"], found.get("ctx", {})
        if kind == "missing":
            text = _missing(location)
        elif kind == "extra_forbidden":
            text = _unknown_field(location)
        elif kind in ("model_type", "model_attributes_type"):
            text = _not_a_mapping(location, given)
        elif kind == "value_error":
            text = str(context["error"])
        elif kind in _REMEDIES:
            text = f"{show(given)} is not valid: {_REMEDIES[kind](context)}"
        else:
            text = f"{show(given)} is not valid: {found['msg'][0].lower()}{found['msg'][1:]}"
        problems.append((location, text))
    return problems
