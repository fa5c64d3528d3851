"""Where a number of a chip plausibly lies: by the fit that made it, else by its confidence."""

from __future__ import annotations

import math

from foretile.calibration.parameters import CHIP_PARAMETERS
from foretile.hwmodels.schema import Chip
from foretile.simulator.uncertainty import PRIOR_SIGMA

# A 90 % interval reaches this many standard deviations of a normal distribution to either side.
_NORMAL_90 = 1.6449
_PARAMETER = {path: p.name for p in CHIP_PARAMETERS for path in p.paths}


def number_sigma(chip: Chip, path: str) -> float:
    """Standard deviation of the logarithm of one number (docs/model.md, intervals).

    Raises:
        KeyError: the chip has no such number.
    """
    confidence = chip.quantities()[path].confidence
    if chip.calibration is not None and (fitted := chip.calibration.sigma.get(_PARAMETER.get(path, ""))):
        return fitted
    return PRIOR_SIGMA[confidence]


def plausible_range(chip: Chip, path: str) -> tuple[float, float]:
    """The 90 % interval of one number; a share ends at 1.

    Raises:
        KeyError: the chip has no such number.
    """
    value = chip.quantities()[path].value
    factor = math.exp(_NORMAL_90 * number_sigma(chip, path))
    high = value * factor
    return value / factor, min(1.0, high) if path.endswith("_fraction") else high
