"""How far predictions are from measurements: errors, bias and interval coverage, each with its n."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

_Z = NormalDist().inv_cdf(0.975)  # of the 95 % confidence interval around a coverage


@dataclass(frozen=True)
class Accuracy:
    """Errors of ``n`` rows; shares are fractions of one, NaN where there is no row.

    ``mape``, ``median_ape``, ``p90_ape``: mean, median and 90th percentile of |predicted − measured| /
    measured, every row counting the same. ``bias_log``: median of ln(predicted / measured); ``bias``:
    the same as a share, positive if predictions are too long. ``coverage``: share of the
    ``intervals`` rows with an interval whose measurement lies within it, and its 95 % confidence
    interval (Wilson score), which takes rows for independent. ``refused``: rows without a prediction,
    counted nowhere else.
    """

    n: int
    refused: int
    mape: float
    median_ape: float
    p90_ape: float
    bias_log: float
    bias: float
    intervals: int
    coverage: float
    coverage_low: float
    coverage_high: float

    def to_json(self) -> dict[str, int | float | None]:
        """Plain data; figures that no row supports are None."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Accuracy:
        """Rebuild from :meth:`to_json`'s data."""
        figures: dict[str, Any] = {k: math.nan if v is None else v for k, v in data.items()}
        return Accuracy(**figures)


@dataclass(frozen=True)
class Line:
    """The accuracy of one part of a validation in one group of rows, over comparable rows and over all."""

    part: str
    group: dict[str, str]
    comparable: Accuracy
    every: Accuracy

    def to_json(self) -> dict[str, Any]:
        """``{"part": …, <group>, "comparable": {…}, "all": {…}}``."""
        figures = {"comparable": self.comparable.to_json(), "all": self.every.to_json()}
        return {"part": self.part, **self.group, **figures}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Line:
        """Rebuild from :meth:`to_json`'s data."""
        group = {k: v for k, v in data.items() if k not in ("part", "comparable", "all")}
        both = (Accuracy.from_json(data[scope]) for scope in ("comparable", "all"))
        return Line(data["part"], group, *both)


def absolute_errors(measured: ArrayLike, predicted: ArrayLike) -> np.ndarray:
    """|predicted − measured| / measured, NaN where nothing was predicted."""
    truth = np.asarray(measured, dtype=float)
    errors: np.ndarray = np.abs(np.asarray(predicted, dtype=float) - truth) / truth
    return errors


def accuracy(
    measured: ArrayLike,
    predicted: ArrayLike,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
) -> Accuracy:
    """The accuracy of predictions (rows,), in seconds; NaN is a row that was refused.

    ``low`` and ``high`` are the ends of the intervals, NaN where a row has none.

    Raises:
        ValueError: arrays of unequal length, or a time that is not positive.
    """
    truth, made = np.asarray(measured, dtype=float), np.asarray(predicted, dtype=float)
    if truth.shape != made.shape:
        raise ValueError(f"{truth.size} measured times, but {made.size} predicted ones")
    known = ~np.isnan(made)
    if not (np.all(truth > 0) and np.all(made[known] > 0)):
        raise ValueError("a measured or predicted time is not positive")
    n = int(known.sum())
    if n == 0:
        nan = math.nan
        return Accuracy(0, truth.size, nan, nan, nan, nan, nan, 0, nan, nan, nan)
    errors = absolute_errors(truth[known], made[known])
    bias_log = float(np.median(np.log(made[known] / truth[known])))
    ends = [np.full(truth.shape, math.nan) if end is None else np.asarray(end, float) for end in (low, high)]
    return Accuracy(
        n,
        truth.size - n,
        float(errors.mean()),
        float(np.median(errors)),
        float(np.quantile(errors, 0.9)),
        bias_log,
        math.expm1(bias_log),
        *_coverage(truth[known], ends[0][known], ends[1][known]),
    )


def _coverage(truth: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[int, float, float, float]:
    """Intervals, share that holds the truth, and the confidence interval of that share."""
    given = ~(np.isnan(low) | np.isnan(high))
    n = int(given.sum())
    if n == 0:
        return 0, math.nan, math.nan, math.nan
    inside = int(((low[given] <= truth[given]) & (truth[given] <= high[given])).sum())
    return n, inside / n, *wilson(inside, n)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share of which ``hits`` of ``n`` were seen.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    share, z2 = hits / n, _Z**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def column(part: str, what: str = "") -> str:
    """The column of a part's time, or of its ``low``, ``high`` (seconds) or ``refused`` (a reason)."""
    if what == "refused":
        return f"{part}_refused"
    return f"{part}_{what}_s" if what else f"{part}_s"


def lines(rows: pd.DataFrame, parts: Iterable[str], by: Sequence[str] = ()) -> list[Line]:
    """One line a part and group of equal values in the columns ``by``, groups in sorted order.

    ``rows``: ``latency_s``, ``comparable`` and each part's columns (:func:`column`; intervals may be
    absent). Categorical columns keep the order of their categories; groups without a row are left out.
    """
    if by:
        numbered = rows.reset_index(drop=True).groupby(list(by), observed=True, sort=True)
        groups = [
            ({name: str(value) for name, value in zip(by, key, strict=True)}, chosen.index.to_numpy())
            for key, chosen in numbered["latency_s"]
        ]
    else:
        groups = [({}, np.arange(len(rows)))]
    measured = rows["latency_s"].to_numpy(dtype=float)
    comparable = (rows["comparable"] == "").to_numpy()
    found = []
    for part in parts:
        columns = [measured] + [
            rows[name].to_numpy(dtype=float) if name in rows else np.full(len(rows), math.nan)
            for name in (column(part), column(part, "low"), column(part, "high"))
        ]
        for group, at in groups:
            scopes = (at[comparable[at]], at)
            found.append(Line(part, group, *(accuracy(*(c[w] for c in columns)) for w in scopes)))
    return found
