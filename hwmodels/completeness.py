"""How far a chip file is filled in: what is given, by confidence, and what a prediction still needs."""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from foretile.hwmodels.fields import Field, fields
from foretile.hwmodels.incomplete import IncompleteChip
from foretile.hwmodels.loader import _line, file_chain, merge_documents
from foretile.hwmodels.problems import ChipError, is_leaf, number_problems, schema_problems
from foretile.hwmodels.quantity import Confidence
from foretile.hwmodels.schema import STYLE_PARTS, Chip, Style

CONFIDENCES: tuple[Confidence, ...] = typing.get_args(Confidence)


@dataclass(frozen=True)
class Completeness:
    """What a chip file gives of what a file of its style can hold.

    ``missing``: needed for a prediction and not given; ``open``: optional and not given; ``counts``:
    numbers by confidence, by dtype where a field has several; ``chip``: None while anything is missing;
    ``style``: None where the file says ``complete: false`` and no lowering describes the machine.
    """

    id: str
    style: Style | None
    chip: Chip | IncompleteChip
    needed: int
    optional: int
    missing: tuple[Field, ...]
    open: tuple[Field, ...]
    counts: Mapping[str, int]

    @property
    def complete(self) -> bool:
        """Whether the chip can be predicted on."""
        return not self.missing

    @property
    def share(self) -> float:
        """Share of the needed fields that are given, 0 to 1."""
        return 1 - len(self.missing) / self.needed

    def words(self) -> str:
        """``51 of 52 needed fields, 9 of 26 optional ones; 30 measured, 12 datasheet``."""
        known = ", ".join(f"{n} {c}" for c, n in self.counts.items() if n) or "no number"
        return (
            f"{self.needed - len(self.missing)} of {self.needed} needed fields, "
            f"{self.optional - len(self.open)} of {self.optional} optional ones; {known}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        return {
            "complete": self.complete,
            "share": self.share,
            "needed": {"given": self.needed - len(self.missing), "of": self.needed},
            "optional": {"given": self.optional - len(self.open), "of": self.optional},
            "confidence": dict(self.counts),
            "missing": [_plain(f) for f in self.missing],
            "open": [_plain(f) for f in self.open],
        }


def _plain(field: Field) -> dict[str, str]:
    return {"field": field.path, "unit": field.unit, "meaning": field.meaning, "where": field.where}


def completeness(path: Path, search: Sequence[Path] = ()) -> Completeness:
    """How far a chip file, with what it ``extends``, is filled in.

    Raises:
        ChipError: no such file, broken YAML, or anything in it that is wrong rather than absent.
    """
    names, documents = file_chain(path, search)
    whole = merge_documents(documents)
    data = without_empty(whole)
    incomplete = data.pop("complete", True) is False  # it says so itself
    # A misspelt section is a mistake, even if it is empty.
    data |= {k: v for k, v in whole.items() if k not in (*Chip.model_fields, "complete")}
    style = None if incomplete and "style" not in data else _style(data, names[0])
    needed = [f for f in fields(style) if f.required or _needs(data, f)]
    optional = [f for f in fields(style) if f not in needed and f.kind not in ("text", "list")]
    absent = {f.path for f in needed if _at(data, f.path) is None}
    problems = list(number_problems(data))
    chip: Chip | IncompleteChip | None = None
    try:
        chip = Chip.model_validate(data)
    except ValidationError as error:
        told = {location for location, _ in problems}
        for location, text in schema_problems(error):
            here = ".".join(location)
            expected = any(a == here or a.startswith(f"{here}.") for a in absent)
            if location in told or (absent and (expected or not location)):
                continue
            if text.startswith("missing") and (found := [f for f in optional if f.path == here]):
                needed += found  # a part of an optional section that has been begun
                optional = [f for f in optional if f not in found]
                absent.add(here)
                continue
            problems.append((location, text))
    if problems:
        raise ChipError("\n".join(_line(problem, names, documents) for problem in problems))
    known = Counter(_confidences({k: v for k, v in data.items() if k not in ("kernels", "calibration")}))
    chip_id = str(data.get("id", path.stem))
    missing = tuple(f for f in needed if f.path in absent)
    return Completeness(
        id=chip_id,
        style=style,
        chip=chip or _known(chip_id, style, data, missing),
        needed=len(needed),
        optional=len(optional),
        missing=missing,
        open=tuple(f for f in optional if _at(data, f.path) is None),
        counts={c: known.get(c, 0) for c in CONFIDENCES},
    )


def _known(
    chip_id: str, style: Style | None, data: Mapping[str, Any], missing: Sequence[Field]
) -> IncompleteChip:
    """What a file says so far, of which even the name may be missing."""
    name, vendor, family = (str(data.get(field, "")) for field in ("name", "vendor", "family"))
    return IncompleteChip(
        id=chip_id,
        name=name,
        vendor=vendor,
        family=family,
        style=style,
        aliases=tuple(data.get("aliases", ())),
        summary=str(data.get("summary", "")),
        unknown=tuple(data.get("unknown", ())),
        conflicts=tuple(data.get("conflicts", ())),
        missing=tuple(field.path for field in missing),
        known=data,
    )


def without_empty(data: Mapping[str, Any]) -> dict[str, Any]:
    """A chip file's mapping without nulls, numbers whose value is null, and sections that are empty."""
    kept: dict[str, Any] = {}
    for key, node in data.items():
        if isinstance(node, Mapping):
            if is_leaf(node) and node["value"] is None:
                continue
            node = node if is_leaf(node) else without_empty(node)
            if not node:
                continue
        if node is not None:
            kept[key] = node
    return kept


def _style(data: Mapping[str, Any], name: str) -> Style:
    style = data.get("style")
    for known in STYLE_PARTS:
        if style == known:
            return known
    raise ChipError(f"{name}: style: {style!r} is not valid: must be {' or '.join(STYLE_PARTS)}")


def _needs(data: Mapping[str, Any], field: Field) -> bool:
    """Whether what the file says makes an optional section necessary."""
    return field.section == "tensor_memory" and _at(data, "matrix.instruction") == "tcgen05"


def _at(data: Mapping[str, Any], path: str) -> Any:
    node: Any = data
    for step in path.split("."):
        node = node.get(step) if isinstance(node, Mapping) else None
    return node


def _confidences(node: Mapping[str, Any]) -> Iterator[str]:
    for below in node.values():
        if isinstance(below, Mapping):
            if is_leaf(below):
                yield str(below.get("confidence"))
            else:
                yield from _confidences(below)
