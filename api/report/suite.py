"""Shape suites: which operators, at which shapes, how often, and where the figures come from.

A suite is one YAML file. Sizes are whole numbers or sums and products of the model's facts and the
point's variables (``n: q_lora_rank + kv_lora_rank``), so that a reader sees where a shape comes from.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Value = int | str | bool


class SuiteError(ValueError):
    """A suite that cannot be used; the message names the file, the entry and what is wrong."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(_Strict):
    """The model whose shapes these are; ``facts`` are its configuration's numbers."""

    name: str
    source: str = Field(min_length=5)
    facts: dict[str, int]


class Point(_Strict):
    """One setting of a phase's variables, e.g. a batch size."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    title: str
    variables: dict[str, int]


class Entry(_Strict):
    """One operator call: its shape, and how often one pass of the model makes it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    title: str
    group: str
    operator: str
    shape: dict[str, Value]
    count: int | str
    note: str = ""
    approximate: bool = False


class Phase(_Strict):
    """Entries that run together, at one or several points. ``tokens`` is what one pass handles."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    unit: str
    tokens: int | str
    points: tuple[Point, ...] = Field(min_length=1)
    highlight: str
    entries: tuple[Entry, ...] = Field(min_length=1)


class Suite(_Strict):
    """A named set of phases."""

    name: str
    title: str
    subtitle: str
    model: Model
    assumptions: tuple[str, ...]
    groups: dict[str, str]
    dtypes: tuple[str, ...] = ()
    phases: tuple[Phase, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Case:
    """One operator call with all sizes worked out."""

    phase: Phase
    point: Point
    entry: Entry
    shape: Mapping[str, int | str | bool]
    count: int

    @property
    def where(self) -> str:
        """``decode/batch-32/q_up``."""
        return f"{self.phase.id}/{self.point.id}/{self.entry.name}"


def suite_names() -> tuple[str, ...]:
    """Names of the suites that come with foretile."""
    return tuple(sorted(path.stem for path in _folder().glob("*.yaml")))


def _folder() -> Path:
    import foretile.suites

    return Path(next(iter(foretile.suites.__path__)))


def load_suite(name: str) -> Suite:
    """The suite called ``name``, or the one in the YAML file ``name``.

    Raises:
        SuiteError: no such suite, or a file that breaks the rules.
    """
    data, file = _read(name)
    return parse_suite(data, file)


def _read(name: str) -> tuple[Any, str]:
    """What the YAML of a suite holds, after what it extends, and the file's name."""
    known = suite_names()
    path = _folder() / f"{name}.yaml" if name in known else Path(name)
    if name not in known and path.suffix not in (".yaml", ".yml"):
        raise SuiteError(f"unknown suite {name!r}; known: {', '.join(known)}; or give a YAML file")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SuiteError(f"{path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if isinstance(data, dict) and "extends" in data:
        base, _ = _read(str(data.pop("extends")))
        data = _extended(base, data, str(path))
    return data, str(path)


def _extended(base: dict[str, Any], own: dict[str, Any], file: str) -> dict[str, Any]:
    """A suite that says only what differs from another one.

    Facts are added; a phase keeps its entries but for those that ``replace`` names, each giving way to
    the list it names; everything else takes the place of what the other suite says.
    """
    merged = {**base, **own}
    if isinstance(own.get("model"), dict):
        facts = {**base["model"]["facts"], **own["model"].get("facts", {})}
        merged["model"] = {**base["model"], **own["model"], "facts": facts}
    changes = {phase["id"]: dict(phase) for phase in own.get("phases", ())}
    merged["phases"] = []
    for phase in base["phases"]:
        change = changes.pop(phase["id"], {})
        replace = change.pop("replace", {})
        missing = set(replace) - {entry["name"] for entry in phase["entries"]}
        if missing:
            raise SuiteError(f"{file}: {phase['id']}: replace: no entry {', '.join(sorted(missing))}")
        entries = [new for entry in phase["entries"] for new in replace.get(entry["name"], [entry])]
        merged["phases"].append({**phase, "entries": entries, **change})
    merged["phases"] += changes.values()
    return merged


def parse_suite(data: object, file: str) -> Suite:
    """Check ``data`` (what the YAML holds) and work out every shape once.

    Raises:
        SuiteError: naming ``file`` and the entry.
    """
    try:
        suite = Suite.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = _place(data, first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise SuiteError(f"{file}: {place}: {first['msg']}, got {first['input']!r:.80}{more}") from None
    try:
        _check(suite)
    except SuiteError as error:
        raise SuiteError(f"{file}: {error}") from None
    return suite


def _place(data: object, location: tuple[int | str, ...]) -> str:
    """A pydantic location with list positions replaced by the ids and names written there."""
    words: list[str] = []
    node: Any = data
    for step in location:
        try:
            node = node[step]
        except (KeyError, IndexError, TypeError):
            node = None
        label = node.get("name") or node.get("id") if isinstance(node, dict) else None
        words.append(str(label if label and isinstance(step, int) else step))
    return ".".join(words) or "the file"


def _check(suite: Suite) -> None:
    for phase in suite.phases:
        _unique([point.id for point in phase.points], f"{phase.id}: point")
        _unique([entry.name for entry in phase.entries], f"{phase.id}: entry")
        if phase.highlight not in {point.id for point in phase.points}:
            raise SuiteError(f"{phase.id}: highlight: {phase.highlight!r} is none of its points")
        for entry in phase.entries:
            if entry.group not in suite.groups:
                raise SuiteError(
                    f"{phase.id}.{entry.name}: group {entry.group!r} is not one of {', '.join(suite.groups)}"
                )
    cases(suite)
    for phase in suite.phases:
        for point in phase.points:
            tokens(suite, phase, point)


def _unique(names: list[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SuiteError(f"{what} {name!r} is there twice")


def tokens(suite: Suite, phase: Phase, point: Point) -> int:
    """Tokens that one pass at ``point`` handles on one device."""
    return _evaluate(phase.tokens, {**suite.model.facts, **point.variables}, f"{phase.id}: tokens")


def cases(suite: Suite) -> tuple[Case, ...]:
    """Every operator call of the suite, phase by phase and point by point.

    Raises:
        SuiteError: a size that is no whole number above zero or uses an unknown name.
    """
    return tuple(
        Case(phase, point, entry, *shape_at(suite, phase, entry, point.variables))
        for phase in suite.phases
        for point in phase.points
        for entry in phase.entries
    )


def shape_at(
    suite: Suite, phase: Phase, entry: Entry, variables: Mapping[str, int]
) -> tuple[dict[str, int | str | bool], int]:
    """An entry's shape and count with these values of the phase's variables.

    Raises:
        SuiteError: a size that is no whole number above zero or uses an unknown name.
    """
    names = {**suite.model.facts, **variables}
    place = f"{phase.id}.{entry.name}"
    shape: dict[str, int | str | bool] = {}
    for key, value in entry.shape.items():
        plain = isinstance(value, bool) or value in suite.dtypes
        shape[key] = value if plain else _evaluate(value, names, f"{place}: shape.{key}")
    return shape, _evaluate(entry.count, names, f"{place}: count")


_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def _evaluate(text: Value, names: Mapping[str, int], place: str) -> int:
    """A sum or product of whole numbers and names; nothing else is understood."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.Name):
            if node.id not in names:
                raise SuiteError(f"{place}: unknown name {node.id!r}; known: {', '.join(names)}")
            return names[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            return _OPERATIONS[type(node.op)](value(node.left), value(node.right))
        raise SuiteError(f"{place}: {text!r} is not a sum or product of whole numbers and names")

    try:
        number = value(ast.parse(str(text), mode="eval").body)
    except (SyntaxError, ZeroDivisionError):
        raise SuiteError(f"{place}: {text!r} is not a sum or product of whole numbers and names") from None
    if number < 1:
        raise SuiteError(f"{place}: {text!r} is {number}; at least 1 is needed")
    return number
