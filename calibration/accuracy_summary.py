"""The figures of a validation: by chip, family, kernel source and regime, with floors and refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from foretile.calibration.floors import Verdict, verdicts
from foretile.calibration.metrics import Line, column, lines
from foretile.calibration.regimes import REGIMES
from foretile.hwmodels import load_chip

SCHEMA = 1
GROUPINGS: dict[str, tuple[str, ...]] = {
    "family": ("device", "family"),
    "chip": ("device",),
    "pooled": ("family",),
    "kernel": ("device", "family", "kernel_source"),
    **{regime: ("family", regime) for regime in REGIMES},
}
"""Name of a grouping → the columns whose equal values make a group."""
_WITH_BASELINES = ("family", "chip", "pooled")


@dataclass(frozen=True)
class Share:
    """How much a validation speaks of: rows of a chip and family, test rows, comparable test rows."""

    device: str
    family: str
    rows: int
    test: int
    comparable: int


@dataclass(frozen=True)
class Reason:
    """Why ``rows`` test rows of a family were left out: not comparable, or refused by a part of the model."""

    kind: str
    device: str
    family: str
    reason: str
    rows: int


@dataclass(frozen=True)
class Summary:
    """All figures of a validation; ``lines`` by name of a grouping (:data:`GROUPINGS`).

    ``unfitted``: chips that carry no fit of their own, whose "fitted" figures are those of the chip file
    as it stands.
    """

    sources: tuple[str, ...]
    parts: tuple[str, ...]
    baselines: tuple[str, ...]
    unfitted: tuple[str, ...]
    shares: tuple[Share, ...]
    reasons: tuple[Reason, ...]
    lines: dict[str, tuple[Line, ...]]
    verdicts: tuple[Verdict, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data; the same figures give the same text."""
        return {
            "schema": SCHEMA,
            "sources": list(self.sources),
            "parts": list(self.parts),
            "baselines": list(self.baselines),
            "unfitted": list(self.unfitted),
            "shares": [asdict(share) for share in self.shares],
            "reasons": [asdict(reason) for reason in self.reasons],
            "lines": {name: [line.to_json() for line in some] for name, some in self.lines.items()},
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
        }

    def to_text(self) -> str:
        """The JSON file's text."""
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(data: dict[str, Any]) -> Summary:
        """Rebuild from :meth:`to_json`'s data.

        Raises:
            ValueError: written by another version of the schema.
        """
        if data.get("schema") != SCHEMA:
            raise ValueError(f"summary of schema {data.get('schema')}; this release reads schema {SCHEMA}")
        return Summary(
            sources=tuple(data["sources"]),
            parts=tuple(data["parts"]),
            baselines=tuple(data["baselines"]),
            unfitted=tuple(data["unfitted"]),
            shares=tuple(Share(**share) for share in data["shares"]),
            reasons=tuple(Reason(**reason) for reason in data["reasons"]),
            lines={k: tuple(Line.from_json(line) for line in some) for k, some in data["lines"].items()},
            verdicts=tuple(Verdict.from_json(verdict) for verdict in data["verdicts"]),
        )

    def line(self, grouping: str, part: str, **group: str) -> Line | None:
        """The line of one part and group, None if no row is in it."""
        return next((x for x in self.lines[grouping] if x.part == part and x.group == group), None)


def summarise(
    table: pd.DataFrame, rows: pd.DataFrame, parts: Sequence[str], baselines: Sequence[str]
) -> Summary:
    """The figures of ``rows`` (test rows with the columns of every part), out of the whole ``table``."""
    found: dict[str, tuple[Line, ...]] = {}
    for name, by in GROUPINGS.items():
        spoken = [*parts, *(baselines if name in _WITH_BASELINES else ())]
        found[name] = tuple(lines(rows, spoken, by))
    sources = sorted({str(text).partition(":")[0] for text in table["source"].unique()})
    return Summary(
        sources=tuple(sources),
        parts=tuple(parts),
        baselines=tuple(baselines),
        unfitted=tuple(name for name in sorted(map(str, rows["device"].unique())) if not _is_fitted(name)),
        shares=tuple(_shares(table, rows)),
        reasons=tuple(_reasons(rows, parts)),
        lines=found,
        verdicts=tuple(verdicts(found["family"])),
    )


def _is_fitted(device: str) -> bool:
    calibration = load_chip(device).calibration
    return calibration is not None and calibration.kind == "fitted"


def _shares(table: pd.DataFrame, rows: pd.DataFrame) -> list[Share]:
    by = ["device", "family"]
    whole = table.groupby(by, observed=True).size()
    tested = rows.groupby(by, observed=True).size()
    compared = rows[rows["comparable"] == ""].groupby(by, observed=True).size()
    found = []
    for key, count in zip(whole.index.to_list(), whole, strict=True):
        tests, equal = (int(part.get(key, 0)) for part in (tested, compared))
        found.append(Share(str(key[0]), str(key[1]), int(count), tests, equal))
    return found


def _reasons(rows: pd.DataFrame, parts: Sequence[str]) -> list[Reason]:
    columns = {"not comparable": "comparable", **{part: column(part, "refused") for part in parts}}
    found = []
    for kind, name in columns.items():
        left = rows[rows[name] != ""]
        counts = left.groupby(["device", "family", name], observed=True).size()
        for key, count in zip(counts.index.to_list(), counts, strict=True):
            device, family, reason = (str(part) for part in key)
            found.append(Reason(kind, device, family, reason, int(count)))
    return found
