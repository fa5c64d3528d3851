"""Suites of kernels to measure: operators, shapes and how many configurations, from YAML.

Those that come with foretile are the files of the folder ``suites`` beside this module.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from foretile.kernels.operator import Operator, OperatorError, Shape, load_operator

FOLDER = Path(__file__).parent / "suites"


class SuiteError(ValueError):
    """A suite that is not there or not right; the message names file, field and what would be right."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Strict):
    """Kernels of one operator.

    ``shapes``: parameters by name; a list of values stands for each of them, several lists for every
    combination. ``tile``: how many configurations of the tile program are measured, or the configurations
    themselves. ``cuda``: whether the hand-written kernel is.
    """

    operator: str
    shapes: tuple[dict[str, Any], ...] = Field(min_length=1)
    tile: Annotated[int, Field(ge=0)] | tuple[dict[str, Any], ...] = 1
    cuda: bool = True

    def resolved(self) -> Iterator[tuple[Operator, Shape]]:
        """Every shape, complete.

        Raises:
            OperatorError: an operator or parameter that is wrong.
        """
        operator = load_operator(self.operator)
        for given in self.shapes:
            lists = [value if isinstance(value, list) else [value] for value in given.values()]
            for values in itertools.product(*lists):
                yield operator, operator.shape(**dict(zip(given, values, strict=True)))


class Timing(_Strict):
    """How times are taken; see ``foretile.calibration.device.timing.Plan``."""

    tolerance: float = Field(default=0.01, gt=0)
    budget_s: float = Field(default=0.25, gt=0)


class Suite(_Strict):
    """Kernels to measure in one run.

    ``case_s`` is what the estimate of a run allows for making the operands and the reference of a shape, and
    ``baseline_factor`` how many times as long as the best tile program it lets a hand-written kernel take.
    """

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    title: str
    entries: tuple[Entry, ...] = Field(min_length=1)
    timing: Timing = Timing()
    case_s: float = Field(default=1.0, ge=0)
    baseline_factor: float = Field(default=20.0, ge=1)
    kind: Literal["measurement"] = "measurement"


def suite_names() -> tuple[str, ...]:
    """The suites that come with foretile."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def load_suite(name: str) -> Suite:
    """A suite by name, or from a YAML file.

    Raises:
        SuiteError: there is none of that name, or the file is not right.
    """
    is_file = name.endswith((".yaml", ".yml")) or "/" in name
    path = Path(name) if is_file else FOLDER / f"{name}.yaml"
    if not path.is_file():
        if is_file:
            raise SuiteError(f"{name}: no such file; expected a suite of measurements (.yaml)")
        near = difflib.get_close_matches(name, suite_names(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SuiteError(
            f"no suite {name!r}; {hint}there are: {', '.join(suite_names())}, or give a .yaml file"
        )
    try:
        suite = Suite.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise SuiteError(f"{path}: not YAML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SuiteError(f"{path}: {place}: {first['msg']}; found {first['input']!r}") from None
    for number, entry in enumerate(suite.entries):
        try:
            for _ in entry.resolved():
                pass
        except OperatorError as error:
            raise SuiteError(f"{path}: entries.{number}: {error}") from None
    return suite
