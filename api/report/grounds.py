"""On which grounds a prediction stands: calibration, share of inferred inputs, warnings, peaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foretile.hwmodels.schema import Chip
    from foretile.simulator.prediction import Prediction

CONFIDENCES = ("measured", "datasheet", "derived", "inferred")


@dataclass(frozen=True)
class Provenance:
    """How many of a chip's numbers are of which confidence."""

    counts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All numbers in the chip's file."""
        return sum(self.counts.values())

    def share(self, confidence: str) -> float:
        """Share of the numbers with this confidence, 0 to 1."""
        return self.counts.get(confidence, 0) / self.total if self.total else 0.0

    @property
    def mark(self) -> str:
        """``datasheet only`` if no number was measured, else empty."""
        return "" if self.counts.get("measured") else "datasheet only"

    def words(self) -> str:
        """``12 measured, 30 datasheet, 4 inferred``."""
        return ", ".join(f"{self.counts[c]} {c}" for c in CONFIDENCES if self.counts.get(c))


def provenance(chip: Chip) -> Provenance:
    """Count the confidences of the numbers that describe a chip."""
    found = Counter(str(q.confidence) for q in chip.described().values())
    return Provenance({c: found.get(c, 0) for c in CONFIDENCES})


def peak_flop_per_s(chip: Chip, dtype: str | None) -> float | None:
    """Dense matrix peak in FLOP/s: the vendor's figure, else cores × rate × highest clock.

    ``None`` if the chip's file has no rate for the dtype.
    """
    stated = chip.stated_peak_flop_per_s.get(dtype or "")
    if stated:
        return stated.value
    rate = chip.matrix.flop_per_cycle.get(dtype or "")
    return chip.cores.value * rate.value * chip.clock.max_hz.value if rate else None


@dataclass(frozen=True)
class Achieved:
    """What a prediction reaches of the chip's peaks; shares are ``None`` where no peak is known."""

    flop_per_s: float
    dram_bytes_per_s: float
    flop_share: float | None
    dram_share: float

    @property
    def of_peak(self) -> tuple[str, float]:
        """The resource that comes closer to its peak, and how close."""
        if self.flop_share is not None and self.flop_share >= self.dram_share:
            return "FLOP peak", self.flop_share
        return "DRAM peak", self.dram_share


def achieved(prediction: Prediction, chip: Chip) -> Achieved:
    """Rates of ``prediction`` beside the peaks of ``chip``."""
    dtype = prediction.shape.get("dtype")
    peak = peak_flop_per_s(chip, str(dtype) if dtype else None)
    return Achieved(
        flop_per_s=prediction.flop_per_s,
        dram_bytes_per_s=prediction.dram_bytes_per_s,
        flop_share=prediction.flop_per_s / peak if peak else None,
        dram_share=prediction.dram_bytes_per_s / chip.dram.bandwidth_bytes_per_s.value,
    )


def warnings(model: Mapping[str, Any]) -> tuple[str, ...]:
    """The warnings a prediction carries."""
    found = model.get("warnings", ())
    return (found,) if isinstance(found, str) else tuple(str(w) for w in found)


def calibrated(model: Mapping[str, Any]) -> bool:
    """Whether measurements of the chip were used to fit the model."""
    return not str(model.get("calibration", "none")).startswith("none")


def standing(model: Mapping[str, Any]) -> str:
    """Calibration and inferred inputs in words: ``not calibrated; 11 of 59 chip numbers are inferred``."""
    words = [str(model["calibration"]) if calibrated(model) else "not calibrated"]
    if model.get("inferred_inputs"):
        words.append(f"{model['inferred_inputs']} of {model['inputs']} chip numbers are inferred")
    return "; ".join(words)
