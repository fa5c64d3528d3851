"""Chips whose public data do not suffice for a prediction: what is known, and what is missing.

Such a file says ``complete: false``. Every number in it keeps the rules of the schema (source, confidence,
range); only required fields may be absent, and they are the list of what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from foretile.hwmodels.problems import LEAF_KEYS, ChipError, Location, is_leaf, model_at
from foretile.hwmodels.quantity import Quantity
from foretile.hwmodels.schema import STYLE_PARTS, Chip, Style

# What every file can say: a chip without them is a broken file, not an incomplete one.
_IDENTITY = frozenset({"id", "name", "vendor", "family"})


@dataclass(frozen=True)
class IncompleteChip:
    """A chip that cannot be predicted; ``missing`` are dotted paths of the fields that a prediction needs.

    ``style`` is None where no lowering describes the machine. ``known`` is the content of the file.
    """

    id: str
    name: str
    vendor: str
    family: str
    style: Style | None
    aliases: tuple[str, ...]
    summary: str
    unknown: tuple[str, ...]
    conflicts: tuple[str, ...]
    missing: tuple[str, ...]
    known: Mapping[str, Any]

    def quantities(self) -> dict[str, Quantity[float] | Quantity[int]]:
        """Every number in the file: dotted path → quantity, in file order."""
        return dict(_quantities(self.known, ()))

    def value(self, path: str) -> float | int | None:
        """The number at a dotted path, None if it is not known."""
        found = self.quantities().get(path)
        return None if found is None else found.value

    def missing_in_words(self) -> str:
        """The missing fields by section: ``clock.max_hz; l2 (latency_cycles, reuse_fraction)``."""
        return in_words(self.missing)

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``: the file's content, that it is incomplete, and what is missing."""
        return {**self.known, "complete": False, "missing": list(self.missing)}


class IncompleteChipError(ChipError):
    """A prediction (or anything else that needs all numbers) was asked of an incomplete chip."""

    def __init__(self, chip: IncompleteChip) -> None:
        super().__init__(
            f"{chip.id} is incomplete: what is public of it does not suffice for a prediction; "
            f"missing: {chip.missing_in_words()}"
        )
        self.chip = chip

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.chip,)  # an exception's own way would call it with the message


def in_words(paths: Iterable[str]) -> str:
    """Dotted paths, those of one section together."""
    sections: dict[str, list[str]] = {}
    for path in paths:
        section, _, rest = path.partition(".")
        sections.setdefault(section, []).append(rest)
    return "; ".join(
        section
        if rest == [""]
        else f"{section}.{rest[0]}"
        if len(rest) == 1
        else f"{section} ({', '.join(rest)})"
        for section, rest in sections.items()
    )


def absent(document: Mapping[str, Any], error: ValidationError) -> list[Location]:
    """Locations of required fields that ``document`` does not have, out of a failed validation."""
    found = [
        tuple(str(step) for step in problem["loc"])
        for problem in error.errors(include_url=False)
        if problem["type"] == "missing"
    ]
    # A style's sections are asked for by the model as a whole, whose finding has the empty location.
    parts: list[Location] = [(name,) for name in _parts(document)]
    if parts:
        found += [(), *parts]
    return [
        location
        for location in found
        if not location
        or (location[0] not in _IDENTITY and not (len(location) > 1 and location[-1] in LEAF_KEYS))
    ]


def _parts(document: Mapping[str, Any]) -> Sequence[str]:
    """Sections that the document's style needs and that it has not."""
    return [
        name
        for style, needed in STYLE_PARTS.items()
        for name in needed
        if style == document.get("style") and document.get(name) is None
    ]


def incomplete_chip(document: Mapping[str, Any], missing: Sequence[Location]) -> IncompleteChip:
    """The chip of a valid document in which ``missing`` are absent."""
    paths = dict.fromkeys(path for location in missing if location for path in _leaves(location))
    return IncompleteChip(
        id=document["id"],
        name=document["name"],
        vendor=document["vendor"],
        family=document["family"],
        style=document.get("style"),
        aliases=tuple(document.get("aliases", ())),
        summary=document.get("summary", ""),
        unknown=tuple(document.get("unknown", ())),
        conflicts=tuple(document.get("conflicts", ())),
        missing=tuple(sorted(paths, key=_order)),
        known=document,
    )


def _order(path: str) -> int:
    return list(Chip.model_fields).index(path.partition(".")[0])


def _leaves(location: Location) -> Iterator[str]:
    """The required fields below a location of the schema, itself if it is a number."""
    model = model_at(location)
    if model is None or issubclass(model, Quantity):
        yield ".".join(location)
        return
    for name, field in model.model_fields.items():
        if field.is_required():
            yield from _leaves((*location, name))


def _quantities(node: Mapping[str, Any], at: Location) -> Iterator[tuple[str, Quantity[Any]]]:
    for key, value in node.items():
        if is_leaf(value):
            yield ".".join((*at, key)), _quantity((*at, key), value)
        elif isinstance(value, Mapping):
            yield from _quantities(value, (*at, key))


def _quantity(location: Location, leaf: Mapping[str, Any]) -> Quantity[Any]:
    model: type[BaseModel] | None = model_at(location)
    found = (model or Quantity[float]).model_validate(leaf)
    assert isinstance(found, Quantity)
    return found
