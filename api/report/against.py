"""Every chip beside the one that leads, operator by operator: how much slower, and which resource it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretile.report import units
from foretile.report.sweep import LEVEL
from foretile.report.why import cause, pairs
from foretile.report.why_words import resource_words

if TYPE_CHECKING:
    import pandas as pd

    from foretile.hwmodels.schema import Chip
    from foretile.report.suite import Phase, Suite


@dataclass(frozen=True)
class Cell:
    """A chip's time of one operator over the leader's, and the resource by which the two differ."""

    ratio: float
    resource: str

    def words(self) -> str:
        """``5.30× matrix peak``; of chips that are level, that they are."""
        if abs(math.log(self.ratio)) <= LEVEL:
            return "level"
        return f"{units.ratio(self.ratio)} {resource_words(self.resource)}"


@dataclass(frozen=True)
class Against:
    """One phase at its highlighted point: rows of (title, seconds on the leader, cell by chip)."""

    phase: Phase
    leader: str
    chips: tuple[str, ...]
    rows: tuple[tuple[str, float, dict[str, Cell]], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        return {
            "phase": self.phase.id,
            "leader": self.leader,
            "operators": [
                {
                    "title": title,
                    "leader_s": seconds,
                    "chips": {
                        chip: {"ratio": cell.ratio, "resource": cell.resource} for chip, cell in cells.items()
                    },
                }
                for title, seconds, cells in self.rows
            ],
        }


def against_leader(
    suite: Suite, frame: pd.DataFrame, total: pd.DataFrame, chips: Sequence[Chip]
) -> tuple[Against, ...]:
    """All chips beside the fastest of each phase, its heaviest operators first.

    The resource is what binds the slower of two chips: the leader where it is the slower one.
    """
    by_id = {chip.id: chip for chip in chips}
    found = []
    for phase in suite.phases:
        here = total[(total["phase"] == phase.id) & (total["point"] == phase.highlight)]
        here = here[here["missing"] == 0].sort_values("time_s")
        if len(here) < 2:
            continue
        leader, *others = (str(chip) for chip in here["chip"])
        rows: dict[str, tuple[float, str, float, dict[str, Cell]]] = {}
        for other in others:
            for row in pairs(suite, frame, leader, other):
                if row["phase"] != phase.id:
                    continue
                held = rows.setdefault(
                    row["entry"], (row["first"] * row["count"], row["title"], row["first"], {})
                )
                slower = "second" if row["second"] > row["first"] else "first"
                by = cause(row, by_id[leader], by_id[other])
                held[3][other] = Cell(
                    row["second"] / row["first"], by.resource if by else row[f"{slower}_bound"]
                )
        ordered = sorted(rows.values(), key=lambda row: -row[0])
        found.append(Against(phase, leader, tuple(others), tuple(row[1:] for row in ordered)))
    return tuple(found)
