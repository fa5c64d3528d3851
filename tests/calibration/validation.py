"""A small table and made-up models, for tests of validation and of its page."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pandas as pd
from tables import row, table

from foretile.calibration.baselines import roof
from foretile.calibration.validate import Models
from foretile.hwmodels import Chip, load_chip

DEVICES = ("h200-sxm", "l40s")
CROWDED = "another algorithm: many tokens"  # as a rule of comparable rows would say it


def measured() -> pd.DataFrame:
    """Two chips and families, about a hundred rows each; a noisy multiple of the roofline."""
    rows = []
    for device in DEVICES:
        for m, n, k in product((1, 16, 256, 4096), (512, 2048, 8192), (512, 1024, 4096)):
            for framework in ("one", "two"):
                rows.append(row("gemm", m=m, n=n, k=k, device=device, framework=framework))
        for tokens, cols in product((1, 8, 64, 512, 4096, 32768), (1024, 2048, 4096, 7168, 8192)):
            said = CROWDED if tokens > 4096 else ""
            rows.append(row("quantize", rows=tokens, cols=cols, device=device, comparable=said))
    frame = table(*rows)
    noise = np.random.default_rng(0).normal(0, 0.05, len(frame))
    frame["latency_s"] = (roof(frame).time_s * 1.3 + 3e-6) * np.exp(noise)
    return frame


@dataclass
class Fake:
    """A model that multiplies the roofline, differently for a chip it does not know; counts its calls."""

    identity: str = "one"
    calls: list[str] = field(default_factory=list)
    fail_at: int = -1

    def predict(self, frame: pd.DataFrame, chip_of: Callable[[str], Chip] | None) -> pd.DataFrame:
        assert (frame["latency_s"] == 1.0).all(), "the model was shown what was measured"
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        device = str(frame["device"].iloc[0])
        self.calls.append(device)
        factor = 1.3 if chip_of is None else 1.6
        assert chip_of is None or chip_of(device).id == device
        time_s = roof(frame).time_s * factor + 3e-6
        refused = frame["shape"].str.contains('"m":1,').to_numpy()
        time_s[refused] = np.nan
        reason = np.where(refused, "one row is too few", "")
        bounds = {"low_s": time_s / 1.1, "high_s": time_s * 1.1}
        return pd.DataFrame({"time_s": time_s, **bounds, "refused": reason}, index=frame.index)

    def without_family(self, device: str, family: str) -> Chip:
        if device == "l40s" and family == "quantize":
            raise ValueError("nothing is left to fit from")
        return load_chip(device)

    @property
    def models(self) -> Models:
        name = hashlib.sha256(self.identity.encode()).hexdigest()
        return Models(self.predict, load_chip, self.without_family, name)
