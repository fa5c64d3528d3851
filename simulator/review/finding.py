"""What the reviewer says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from foretile.kernels.ir import Loc

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One remark on a kernel.

    ``rule``: what was looked at ("pipeline depth", "bank conflicts", …). ``level``: ``error`` where the
    result is wrong or undefined, ``warning`` where time is lost, ``note`` for what one should know.
    ``gain``: share of the kernel's time that the remedy saves (0.1: ten per cent), at most where
    ``at_most``; None where it cannot be told.
    """

    rule: str
    level: Level
    message: str
    loc: Loc | None = None
    gain: float | None = None
    at_most: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        where = {"file": self.loc.file, "line": self.loc.line} if self.loc else None
        return asdict(self) | {"loc": where}


def saved(before_s: float, after_s: float) -> float:
    """Share of the time that goes when ``before_s`` becomes ``after_s``."""
    return 1.0 - after_s / before_s
