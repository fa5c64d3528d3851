"""Published measurements on chips that were never calibrated, predicted from the chips' files as they are.

The points, with the source of each, are in ``data/published.yaml``. A point whose prediction rests on a
number that the chip's file takes from the same document is circular: it is shown, and never counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, Literal

import yaml

from foretile.hwmodels import Chip, load_chip
from foretile.kernels.operator import load_operator
from foretile.simulator.conditions import COLD, REPEATED
from foretile.simulator.prediction import Prediction
from foretile.simulator.predictor import predict

Kind = Literal["matrix", "bandwidth", "kernel"]
KINDS: tuple[Kind, ...] = ("matrix", "bandwidth", "kernel")
GOAL_MEDIAN, GOAL_POINTS, GOAL_CHIPS = 0.15, 25, 10
_FILE = Path(__file__).parent / "data" / "published.yaml"
_KEYS = {"chip", "kind", "operator", "shape", "measured", "source", "cache", "circular", "note"}
_UNITS = ("time_s", "flop_per_s", "bytes_per_s")


class PublishedError(ValueError):
    """An entry of the list that cannot be used; the message names file, entry and what is wrong."""


@dataclass(frozen=True)
class Point:
    """One published figure: ``measured_s`` is its time, ``stated`` the figure as it was published."""

    chip: str
    kind: Kind
    operator: str
    shape: Mapping[str, Any]
    measured_s: float
    stated: tuple[str, float]
    source: str
    warm: bool = False
    circular: str = ""
    note: str = ""


@dataclass(frozen=True)
class Reproduction:
    """A point and what the model says; ``error`` is predicted over measured time less one."""

    point: Point
    predicted_s: float
    interval_s: tuple[float, float]

    @property
    def error(self) -> float:
        """Relative error of the predicted time: −0.1 is a tenth too fast."""
        return self.predicted_s / self.point.measured_s - 1

    @property
    def inside(self) -> bool:
        """Whether the measured time lies in the 90 % interval."""
        return self.interval_s[0] <= self.point.measured_s <= self.interval_s[1]

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        p = self.point
        return {
            "chip": p.chip,
            "kind": p.kind,
            "operator": p.operator,
            "shape": dict(p.shape),
            "stated": {p.stated[0]: p.stated[1]},
            "measured_s": p.measured_s,
            "predicted_s": self.predicted_s,
            "interval_s": list(self.interval_s),
            "error": self.error,
            "source": p.source,
            "circular": p.circular,
            "note": p.note,
        }


@dataclass(frozen=True)
class Standing:
    """The counted points (not circular) together: how many, of how many chips, and how far off."""

    points: int
    chips: int
    median: float
    mean: float
    inside: int


def load_published(path: Path = _FILE) -> list[Point]:
    """The points of the list, in its order.

    Raises:
        PublishedError: an entry that is incomplete or wrong.
        OperatorError, ChipError: an operator, shape or chip that does not exist.
    """
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(data, list):
        raise PublishedError(f"{path.name}: must be a list of points")
    return [_point(entry, f"{path.name}: entry {number}") for number, entry in enumerate(data, 1)]


def _point(entry: Any, where: str) -> Point:
    if not isinstance(entry, Mapping):
        raise PublishedError(f"{where}: must be a mapping of {', '.join(sorted(_KEYS))}")
    wrong = set(entry) - _KEYS
    missing = {"chip", "kind", "operator", "shape", "measured", "source"} - set(entry)
    if wrong or missing:
        said = [f"unknown {', '.join(sorted(wrong))}"] if wrong else []
        said += [f"missing {', '.join(sorted(missing))}"] if missing else []
        raise PublishedError(f"{where}: {'; '.join(said)}")
    if entry["kind"] not in KINDS:
        raise PublishedError(f"{where}: kind {entry['kind']!r} is not one of {', '.join(KINDS)}")
    if entry.get("cache", "cold") not in ("cold", "warm"):
        raise PublishedError(f"{where}: cache {entry['cache']!r} is neither cold nor warm")
    if len(str(entry["source"])) < 8:
        raise PublishedError(f"{where}: source must say where the figure can be looked up")
    measured = entry["measured"]
    if not isinstance(measured, Mapping) or len(measured) != 1 or next(iter(measured)) not in _UNITS:
        raise PublishedError(f"{where}: measured must be one of {', '.join(_UNITS)}")
    unit, figure = next(iter(measured.items()))
    try:
        value = float(figure)  # YAML 1.1 reads 4081.64e-6 as text
    except (TypeError, ValueError):
        value = math.nan
    if not value > 0:
        raise PublishedError(f"{where}: measured.{unit}: {figure!r} is not a positive number")
    return Point(
        chip=load_chip(str(entry["chip"])).id,
        kind=entry["kind"],
        operator=str(entry["operator"]),
        shape=dict(entry["shape"]),
        measured_s=_seconds(str(entry["operator"]), entry["shape"], unit, value),
        stated=(unit, value),
        source=str(entry["source"]),
        warm=entry.get("cache") == "warm",
        circular=str(entry.get("circular", "")),
        note=str(entry.get("note", "")),
    )


def _seconds(operator_name: str, shape: Mapping[str, Any], unit: str, value: float) -> float:
    """A figure as seconds: rates are over the operator's exact FLOPs or its least bytes."""
    if unit == "time_s":
        return value
    operator = load_operator(operator_name)
    full = operator.shape(**shape)
    amount = operator.flops(full) if unit == "flop_per_s" else operator.min_bytes(full)
    return float(amount) / value


def reproduce(
    points: Iterable[Point], *, chip_of: Callable[[str], Chip] = load_chip, model: Predictor = predict
) -> list[Reproduction]:
    """Predict every point with the best configuration of the library, on the event engine."""
    found = []
    for point in points:
        operator = load_operator(point.operator)
        made = model(
            operator,
            operator.shape(**point.shape),
            chip_of(point.chip),
            conditions=REPEATED if point.warm else COLD,
        )
        found.append(Reproduction(point, made.time_s, made.interval_s))
    return found


Predictor = Callable[..., Prediction]


@cache
def reproduced() -> tuple[Reproduction, ...]:
    """The whole list, predicted once a process."""
    return tuple(reproduce(load_published()))


def standing(found: Sequence[Reproduction]) -> Standing:
    """The counted points together; the circular ones are left out."""
    counted = [r for r in found if not r.point.circular]
    errors = [abs(r.error) for r in counted]
    return Standing(
        points=len(counted),
        chips=len({r.point.chip for r in counted}),
        median=median(errors) if errors else math.nan,
        mean=sum(errors) / len(errors) if errors else math.nan,
        inside=sum(r.inside for r in counted),
    )
