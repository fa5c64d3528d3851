"""What a prediction is: one frozen value that prints itself and round-trips to JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Prediction:
    """Predicted time of one kernel on one chip, and the grounds for it.

    ``time_s`` seconds from launch to the last byte written, ``interval_s`` its 90 % interval.
    ``bound``: the engine or level with the most work ("matrix", "vector", "special", "scratchpad",
    "l2", "dram", …) or "latency"/"launch" when none is busy most of the time.
    ``breakdown_s``: named parts of the critical path; they sum to ``time_s``.
    ``utilisation``: busy share of ``time_s`` by engine and level, 0 to 1.
    ``traffic_bytes``: by level and direction. ``flops``: the operator's exact count.
    ``overhead_flops``: what the tiles execute beyond it, by name ("padding", "masked").
    ``occupancy``: blocks, blocks_per_core, limited_by, waves, active_cores, threads, scratchpad_bytes,
    registers_per_thread, spilled_bytes_per_thread. ``config``: the configuration used. ``model``: how the
    figure was made
    ("engine" or "cost_model"), calibration state, share of inferred inputs, ``toolchain`` (who makes the
    kernel) and what was ``assumed`` of it, warnings.
    """

    operator: str
    shape: Mapping[str, Any]
    chip: str
    time_s: float
    interval_s: tuple[float, float]
    bound: str
    breakdown_s: Mapping[str, float]
    utilisation: Mapping[str, float]
    traffic_bytes: Mapping[str, float]
    flops: float
    overhead_flops: Mapping[str, float]
    occupancy: Mapping[str, Any]
    config: Mapping[str, Any]
    model: Mapping[str, Any]

    @property
    def flop_per_s(self) -> float:
        """Achieved arithmetic rate, counting the operator's own FLOPs only."""
        return self.flops / self.time_s

    @property
    def dram_bytes_per_s(self) -> float:
        """Achieved DRAM rate."""
        return (self.traffic_bytes["dram_read"] + self.traffic_bytes["dram_write"]) / self.time_s

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        return asdict(self) | {"interval_s": list(self.interval_s)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Prediction:
        """Rebuild from :meth:`to_json`'s data."""
        low, high = data["interval_s"]
        return Prediction(**{**data, "interval_s": (low, high)})

    def __str__(self) -> str:
        low, high = self.interval_s
        shape = " ".join(f"{k}={v}" for k, v in self.shape.items())
        return (
            f"{self.operator} {shape} on {self.chip}: {self.time_s * 1e6:.4g} µs "
            f"[{low * 1e6:.4g}, {high * 1e6:.4g}], bound by {self.bound}"
        )


@dataclass(frozen=True)
class Explanation:
    """Why a kernel takes as long as it does.

    ``sentences`` say it in words. ``bounds_s`` is the lower bound each engine or level sets on its
    own, longest first (the second is the next bound). ``gains`` is, by resource, the relative
    change of the time when that resource is ten per cent better (−0.08: eight per cent faster).
    """

    prediction: Prediction
    sentences: tuple[str, ...]
    bounds_s: Mapping[str, float]
    gains: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        return {
            "prediction": self.prediction.to_json(),
            "sentences": list(self.sentences),
            "bounds_s": dict(self.bounds_s),
            "gains": dict(self.gains),
        }
