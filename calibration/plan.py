"""Which kernels to run on a chip that one can borrow for an hour: those that teach its parameters most."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from foretile.calibration.parameters import CHIP_PARAMETERS, prepared, with_factors
from foretile.calibration.predictions import batches
from foretile.calibration.problem import Problem
from foretile.hwmodels import Chip

Array = np.ndarray
# Standard deviation of log(measured / predicted) that remains when every parameter is known: the noise
# of one row, as fits of 300 rows leave it.
_ROW_SIGMA = 0.08


def choose(
    chip: Chip,
    candidates: pd.DataFrame,
    count: int,
    prior: Mapping[str, tuple[float, float]],
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """``count`` of the candidate rows, the most informative first.

    Greedily those that lower the mean variance of log time over all candidates the most, given the
    prior (Bayesian I-optimal design): what is learned counts where it will be used.
    """
    start = prepared(chip)
    mean = np.array([prior.get(p.name, (0.0, p.sigma))[0] for p in CHIP_PARAMETERS])
    sigma = np.array([prior.get(p.name, (0.0, p.sigma))[1] for p in CHIP_PARAMETERS])

    def chip_at(x: Array) -> Chip:
        return with_factors(
            start, {p.name: float(np.exp(v)) for p, v in zip(CHIP_PARAMETERS, x, strict=True)}
        )

    parts = batches(candidates, start)
    problem = Problem(parts, chip_at)
    problem.refresh(mean)
    slopes = problem.jacobian(mean)
    where = np.concatenate([part.where for part in parts])
    covariance = np.diag(sigma**2)
    chosen: list[int] = []
    for number in range(min(count, len(slopes))):
        along = slopes @ covariance
        gain = np.sum((along @ slopes.T) ** 2, axis=0) / (_ROW_SIGMA**2 + np.sum(along * slopes, axis=1))
        gain[chosen] = -np.inf
        best = int(np.argmax(gain))
        chosen.append(best)
        step = along[best]
        covariance = covariance - np.outer(step, step) / (_ROW_SIGMA**2 + slopes[best] @ step)
        if progress:
            progress(f"{number + 1} of {count}")
    return candidates.iloc[where[chosen]]
