"""The errors that must not be exceeded, by operator family and chip, and whether they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from foretile.calibration.metrics import Accuracy, Line

FITTED, UNSEEN = "fitted", "unseen"
COVERAGE = {FITTED: (0.85, 0.96), UNSEEN: (0.80, 1.0)}  # of the 90 % intervals
Standing = Literal["met", "missed", "not measured"]


@dataclass(frozen=True)
class Floor:
    """The highest MAPE (fractions of one) allowed on test rows, comparable ones.

    ``families`` and ``devices`` are patterns. ``fitted``: the chip's own rows were fitted; ``unseen``:
    no row of its die was.
    """

    title: str
    families: tuple[str, ...]
    devices: tuple[str, ...]
    fitted: float
    unseen: float

    def covers(self, family: str, device: str) -> bool:
        """Whether the floor holds for rows of this family on this chip."""
        named = any(fnmatchcase(family, pattern) for pattern in self.families)
        return named and any(fnmatchcase(device, pattern) for pattern in self.devices)

    def limit(self, part: str) -> float:
        """The floor of ``fitted`` or ``unseen``."""
        return self.fitted if part == FITTED else self.unseen


_GEMM, _ANY = ("gemm.bf16",), ("*",)
# The project's own targets. Of a family and chip that several name, the first holds.
FLOORS: tuple[Floor, ...] = (
    Floor("GEMM bf16", _GEMM, ("a100-*",), 0.06, 0.15),
    Floor("GEMM bf16", _GEMM, ("h100-*", "h200-*"), 0.06, 0.12),
    Floor("GEMM bf16", _GEMM, ("b200-*", "b300-*", "gb200", "gb300", "rtx-pro-6000"), 0.08, 0.15),
    Floor("GEMM bf16", _GEMM, ("l40s",), 0.10, 0.25),
    Floor("GEMM fp8, nvfp4", ("gemm.fp8*", "gemm_fp8*", "gemm.nvfp4*"), _ANY, 0.10, 0.18),
    Floor("Attention", ("attention_*",), _ANY, 0.12, 0.20),
    Floor("MLA, sparse attention", ("mla_*", "sparse_mla", "indexer_logits"), _ANY, 0.15, 0.25),
    Floor("MoE", ("moe.*", "grouped_gemm.*"), _ANY, 0.15, 0.25),
    Floor(
        "Memory-bound",
        ("quantize*", "*norm", "softmax", "swiglu", "silu_mul", "gelu", "rope", "copy", "transpose",
         "cross_entropy", "argmax", "reduce_sum", "moe_permute", "moe_combine", "topk_select"),
        _ANY, 0.12, 0.18,
    ),
)  # fmt: skip


def floor_of(family: str, device: str) -> Floor | None:
    """The floor of a family on a chip; None where the targets name none."""
    return next((floor for floor in FLOORS if floor.covers(family, device)), None)


@dataclass(frozen=True)
class Verdict:
    """One floor held against one family on one chip, comparable test rows."""

    title: str
    family: str
    device: str
    part: str
    limit: float | None
    mape: float
    n: int
    standing: Standing | Literal["no floor"]

    def to_json(self) -> dict[str, Any]:
        """Plain data; an error of no rows is None."""
        return asdict(self) | {"mape": None if math.isnan(self.mape) else self.mape}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Verdict:
        """Rebuild from :meth:`to_json`'s data."""
        return Verdict(**{**data, "mape": math.nan if data["mape"] is None else data["mape"]})


def verdicts(lines: Sequence[Line]) -> list[Verdict]:
    """One verdict for each line by device and family of a part that floors speak of."""
    found = []
    for line in lines:
        if line.part not in (FITTED, UNSEEN):
            continue
        family, device = line.group["family"], line.group["device"]
        floor, over = floor_of(family, device), line.comparable
        limit = floor.limit(line.part) if floor else None
        found.append(
            Verdict(
                title=floor.title if floor else "",
                family=family,
                device=device,
                part=line.part,
                limit=limit,
                mape=over.mape,
                n=over.n,
                standing=_standing(over, limit),
            )
        )
    return found


def _standing(over: Accuracy, limit: float | None) -> Standing | Literal["no floor"]:
    if limit is None:
        return "no floor"
    if over.n == 0:
        return "not measured"
    return "met" if over.mape <= limit else "missed"
