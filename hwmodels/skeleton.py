"""A chip file to be filled in, and the JSON Schema that an editor completes one by."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from foretile.hwmodels.checks import DTYPE_BITS
from foretile.hwmodels.completeness import without_empty
from foretile.hwmodels.fields import Field, fields
from foretile.hwmodels.loader import merge_documents, parent_chain
from foretile.hwmodels.problems import ChipError, is_leaf
from foretile.hwmodels.schema import STYLE_PARTS, Chip, Style

_HEAD = """\
# {id}: a chip file to be filled in. Check it as you go: foretile chips check {file}
#
# A number is {{value: 1.5e9, source: "data sheet 1.2, table 3", confidence: datasheet}}, where confidence is
#   measured   on this chip        datasheet  the vendor says so (data sheet, manual, source code)
#   derived    arithmetic on such numbers, written into source
#   inferred   from a relative, a hint or a guess; source says which
# Cycles are cycles of clock.max_hz. Lines that begin with ## explain;
# {meaning}
# What you do not know: leave it, and say so under `unknown`.
"""
_FRESH = "delete the # of a line to use it."
_VARIANT = (
    "what {parent} says stands behind #: delete it, and that of the section's line, to say something else."
)
_NUMBER = '{{value: {value}, source: "", confidence: {confidence}}}'
_WIDTH = 118


_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def new_file(
    chip_id: str,
    style: str | None = None,
    extends: str | None = None,
    *,
    file: str = "",
    folder: Path = Path(),
    search: Sequence[Path] = (),
) -> str:
    """The text of a chip file in which every field of ``style`` stands, explained.

    Without ``extends`` what a prediction needs is there to be filled in, the rest behind ``#``; with it
    only what the parent (found as from a file in ``folder``) lacks is, and its values stand behind ``#``.

    Raises:
        ChipError: a wrong id or style, no such parent, a style that contradicts the parent's, or neither.
    """
    if not _ID.fullmatch(chip_id):
        raise ChipError(
            f"id {chip_id!r} is not valid: must be lower-case letters and digits joined by hyphens"
        )
    if style is not None and style not in STYLE_PARTS:
        raise ChipError(f"style {style!r} is not valid: must be {' or '.join(STYLE_PARTS)}")
    inherited: dict[str, Any] = {}
    if extends is not None:
        inherited = without_empty(merge_documents(parent_chain(extends, folder, search)))
    of_parent = inherited.get("style")
    if style is not None and of_parent not in (None, style):
        raise ChipError(f"style {style}: {extends} is of style {of_parent}; leave --style out or change one")
    chosen = next((known for known in STYLE_PARTS if known == (style or of_parent)), None)
    if chosen is None:
        raise ChipError(f"give --style {' or '.join(STYLE_PARTS)}, or a chip to extend")
    how = _FRESH if extends is None else _VARIANT.format(parent=extends)
    lines = [*_HEAD.format(id=chip_id, file=file or f"{chip_id}.yaml", meaning=how).splitlines(), ""]
    for section, members in groupby(fields(chosen), key=lambda f: f.section):
        lines += _section(section, list(members), chip_id, chosen, extends, inherited)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _section(
    name: str, members: list[Field], chip_id: str, style: Style, extends: str | None, above: Mapping[str, Any]
) -> list[str]:
    lines: list[str] = []
    used = False
    for field in members:
        given = _at(above, field.path)
        active = (field.required and given is None) or field.path in ("id", "name")
        used = used or active
        indent = "  " if name else ""
        optional = "" if field.required else "Optional. "
        plain = is_leaf(given) or not isinstance(given, Mapping | None)
        state = f" {extends}: {_shown(given)}." if plain else ""
        before = indent if active else "# " + indent
        lines += _comment(indent, f"{optional}{field.words}{state}")
        lines += [before + line for line in _value(field, chip_id, style, given, active)]
        if field.path == "style" and extends is not None:
            lines += ["## The chip or base that says what this file does not.", f"extends: {extends}"]
        if not name:
            lines.append("")
    if name:
        lines = [f"{'' if used else '# '}{name}:", *lines, ""]
    return lines


def _comment(indent: str, text: str) -> list[str]:
    """``text`` in lines that begin with ``##``."""
    lines, line = [], ""
    for word in text.split():
        if line and len(indent) + 3 + len(line) + 1 + len(word) > _WIDTH:
            lines.append(f"{indent}## {line}")
            line = ""
        line = f"{line} {word}".strip()
    return [*lines, f"{indent}## {line}"]


def _value(field: Field, chip_id: str, style: Style, given: Any, active: bool) -> list[str]:
    if field.path == "id":
        return [f"id: {chip_id}"]
    if field.path == "name":  # a variant is another product
        return ["name: null"]
    if field.path == "style":
        return [f"style: {style}"]
    if field.kind == "number":
        return [f"{field.name}: {_number(given)}"]
    if field.kind == "numbers":
        entries = given if isinstance(given, Mapping) else {}
        dtypes = list(entries) or ["fp16", "bf16", "fp8", "int8"]
        first, *rest = dtypes
        # Of an active mapping one row is there to be filled in, the others wait behind #.
        return [
            f"{field.name}:",
            f"  {first}: {_number(entries.get(first))}",
            *(f"{'# ' if active else ''}  {d}: {_number(entries.get(d))}" for d in rest),
        ]
    if field.kind == "list":
        return [f"{field.name}: []"]
    options = f"   # {', '.join(field.options)}" if field.options else ""
    plain = "null" if given is None else str(given).lower() if isinstance(given, bool) else given
    return [f"{field.name}: {plain}{options}"]


def _number(given: Any) -> str:
    """A number to be filled in, or the parent's with the source to be given anew."""
    if not is_leaf(given):
        return _NUMBER.format(value="null", confidence="datasheet")
    return _NUMBER.format(value=given["value"], confidence=given.get("confidence"))


def _shown(given: Any) -> str:
    if is_leaf(given):
        return f"{given['value']} ({given.get('confidence')})"
    return str(given).lower() if isinstance(given, bool) else str(given)


def _at(data: Mapping[str, Any], path: str) -> Any:
    node: Any = data
    for step in path.split("."):
        node = node.get(step) if isinstance(node, Mapping) else None
    return node


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a chip file, bases and variants included.

    Nothing but a number's own parts is required, since ``extends`` may bring the rest; ``null`` is allowed
    everywhere, since it removes what is inherited. What is missing is for :func:`completeness` to say.
    """
    made = Chip.model_json_schema()
    by_section: dict[str, dict[str, Field]] = {}
    for field in fields():
        by_section.setdefault(field.section, {})[field.name] = field
    sections = {"": made}
    for name, node in made["properties"].items():
        if name in by_section:
            sections[name] = made["$defs"][_reference(node)]
    for name, node in made["properties"].items():  # what calibrations make is said by their classes
        if name not in by_section and name in ("kernels", "calibration"):
            node["description"] = "Made by foretile calibrate, not by hand."
    for name, node in sections.items():
        node.pop("required", None)
        for key, value in node["properties"].items():
            described = by_section.get(name, {}).get(key)
            if described is not None:
                value = {**value, "description": described.words}
                if described.kind == "numbers":
                    value = _dtypes_only(value)
            node["properties"][key] = _or_null(value)
    for node in made["$defs"].values():
        if {"value", "source", "confidence"} <= set(node["properties"]):
            node["properties"]["value"] = _or_null(node["properties"]["value"])
            node["description"] = "One number with its source; a value of null is not known yet."
    made["properties"]["complete"] = {
        "type": "boolean",
        "description": "false: what is public does not suffice for a prediction.",
    }
    made["properties"]["extends"] = {
        "type": "string",
        "description": "Id or alias of a chip, a base of the catalogue, or a file beside this one.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **made,
        "title": "Foretile chip file",
        "description": "One device as a runtime shows it; every number with its source.",
    }


def _reference(node: Mapping[str, Any]) -> str:
    """The definition that a section's property points at."""
    for part in (node, *node.get("anyOf", ())):
        if "$ref" in part:
            return str(part["$ref"]).rpartition("/")[2]
    raise KeyError(f"no reference in {node}")


def _or_null(node: dict[str, Any]) -> dict[str, Any]:
    if any(part == {"type": "null"} for part in node.get("anyOf", ())):
        return node
    words: dict[str, Any] = {k: node[k] for k in ("description", "title") if k in node}
    return {**words, "anyOf": [{k: v for k, v in node.items() if k not in words}, {"type": "null"}]}


def _dtypes_only(node: dict[str, Any]) -> dict[str, Any]:
    """A mapping by dtype: its keys are dtypes, and null removes one that is inherited."""
    for part in node.get("anyOf", [node]):
        if part.get("type") == "object":
            part["propertyNames"] = {"enum": list(DTYPE_BITS)}
            part["additionalProperties"] = _or_null(part["additionalProperties"])
    return node
