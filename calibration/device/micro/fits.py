"""From repeated and swept measurements to numbers with intervals. All intervals are of 95 %."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import t as student
from scipy.stats import theilslopes

from foretile.calibration.device.timing import median, median_half_width
from foretile.simulator.machine import SETTLE_DECADES

_FEW = 6  # repetitions below which no interval of a median can be given
UNSTEADY = 0.02  # relative half-width of an interval, beyond which a number is called so


@dataclass(frozen=True, slots=True)
class Number:
    """A value, its interval, how many repetitions it rests on, and what makes it doubtful."""

    value: float
    low: float
    high: float
    n: int
    flags: tuple[str, ...] = ()

    def times(self, factor: float) -> Number:
        """The number in another unit, or its share of something known (``factor`` > 0)."""
        return Number(self.value * factor, self.low * factor, self.high * factor, self.n, self.flags)

    def plus(self, offset: float) -> Number:
        """The number with something known added."""
        return Number(self.value + offset, self.low + offset, self.high + offset, self.n, self.flags)

    def over(self, other: Number) -> Number:
        """The quotient; relative half-widths add up in quadrature."""
        value = self.value / other.value
        width = value * math.hypot(self._relative(), other._relative())
        flags = tuple(dict.fromkeys((*self.flags, *other.flags)))
        return Number(value, value - width, value + width, min(self.n, other.n), flags)

    def flagged(self, *flags: str) -> Number:
        """The same with further doubts."""
        return Number(self.value, self.low, self.high, self.n, tuple(dict.fromkeys((*self.flags, *flags))))

    def _relative(self) -> float:
        return (self.high - self.low) / 2 / abs(self.value) if self.value else 0.0


def middle(values: Sequence[float], flags: Sequence[str] = ()) -> Number:
    """The median; its interval from ranks, or the whole range where there are too few repetitions."""
    value = median(values)
    width = median_half_width(values)
    found = list(flags)
    if math.isinf(width):
        low, high = min(values), max(values)
        found += ["few repetitions"] if len(values) < _FEW else []
    else:
        low, high = value * (1 - width), value * (1 + width)
    if high - low > 2 * UNSTEADY * abs(value):
        found.append("unsteady")
    return Number(value, low, high, len(values), tuple(dict.fromkeys(found)))


def line(x: Sequence[float], y: Sequence[float]) -> tuple[Number, Number]:
    """Slope and intercept of a straight line that a few outliers do not move (Theil and Sen).

    The intercept's interval is what the slope's makes of it at the mean of ``x``.
    """
    found = theilslopes(y, x, alpha=0.95)
    slope = Number(float(found.slope), float(found.low_slope), float(found.high_slope), len(x))
    centre = float(np.mean(x))
    reach = (slope.high - slope.low) / 2 * centre
    value = float(np.median(np.asarray(y) - slope.value * np.asarray(x)))
    return slope, Number(value, value - reach, value + reach, len(x))


@dataclass(frozen=True, slots=True)
class Saturation:
    """How a rate grows with the bytes in flight: ``limit`` at last, half-way at about ``half`` (bytes).

    ``error``: root mean square of the logarithm of measured over fitted.
    """

    limit: Number
    half: float
    sharpness: float
    error: float


def saturation(flight: Sequence[float], rate: Sequence[float]) -> Saturation:
    """Fit ``rate = limit / (1 + (half / flight) ** p) ** (1 / p)`` on logarithms.

    With little in flight Little's law holds (rate = flight / latency); ``p`` says how sharp the knee is.
    Needs four points at least.
    """
    x, y = np.log(np.asarray(flight, float)), np.log(np.asarray(rate, float))

    def off(q: np.ndarray) -> np.ndarray:
        p = np.exp(q[2])
        return np.asarray(q[0] - np.logaddexp(0.0, p * (q[1] - x)) / p - y)

    start = np.array([y.max(), x[np.argmin(np.abs(y - y.max() + math.log(2)))], math.log(2.0)])
    low, high = [y.max() - 0.5, x.min() - 3, math.log(0.5)], [y.max() + 1.5, x.max() + 3, math.log(20.0)]
    done = least_squares(off, np.clip(start, low, high), bounds=(low, high), loss="soft_l1", f_scale=0.05)
    width = _half_widths(np.asarray(done.jac), off(done.x))[0]
    limit = math.exp(done.x[0])
    number = Number(limit, limit * math.exp(-width), limit * math.exp(width), len(x))
    error = float(np.sqrt(np.mean(off(done.x) ** 2)))
    return Saturation(number, math.exp(done.x[1]), math.exp(done.x[2]), error)


@dataclass(frozen=True, slots=True)
class Knee:
    """A cache met by a growing working set: the rates on either side, and the bytes that it keeps."""

    inside: float
    outside: float
    kept_bytes: Number
    error: float


def knee(sizes: Sequence[float], rates: Sequence[float]) -> Knee:
    """Fit ``1 / rate = hit / inside + (1 - hit) / outside``, ``hit = min(1, kept / size)``, on logarithms.

    The form is that of the simulator's traffic model, so that ``kept`` means there what it means here.
    """
    x, y = np.asarray(sizes, float), np.log(np.asarray(rates, float))

    def off(q: np.ndarray) -> np.ndarray:
        hit = np.minimum(1.0, np.exp(q[2]) / x)
        return np.asarray(-np.log(hit * np.exp(-q[0]) + (1 - hit) * np.exp(-q[1])) - y)

    tries = []
    for at in np.quantile(x, (0.2, 0.4, 0.6, 0.8)):  # the knee makes several minima
        start = [float(y.max()), float(y.min()), math.log(at)]
        bounds = (
            [y.max() - 1, y.min() - 3, math.log(x.min()) - 0.5],
            [y.max() + 1, y.max(), math.log(x.max())],
        )
        start = [min(max(s, a + 1e-9), b - 1e-9) for s, a, b in zip(start, *bounds, strict=True)]
        tries.append(least_squares(off, start, bounds=bounds, loss="soft_l1", f_scale=0.05))
    done = min(tries, key=lambda r: float(r.cost))
    width = _half_widths(np.asarray(done.jac), off(done.x))[2]
    kept = math.exp(done.x[2])
    number = Number(kept, kept * math.exp(-width), kept * math.exp(width), len(x))
    error = float(np.sqrt(np.mean(off(done.x) ** 2)))
    return Knee(math.exp(done.x[0]), math.exp(done.x[1]), number, error)


def settling(busy_s: Sequence[float], hz: Sequence[float], burst_hz: float, sustained_hz: float) -> Number:
    """Seconds of matrix work after which a clock begins to sink from ``burst_hz``.

    It sinks with the logarithm of the time and ends ``SETTLE_DECADES`` later: the simulator's form.
    """
    x, y = np.log10(np.asarray(busy_s, float)), np.asarray(hz, float)

    def off(q: np.ndarray) -> np.ndarray:
        share = np.clip((x - q[0]) / SETTLE_DECADES, 0.0, 1.0)
        return np.asarray(
            (burst_hz + (sustained_hz - burst_hz) * share - y) / max(burst_hz - sustained_hz, 1.0)
        )

    tries = [
        least_squares(off, [at], bounds=([x.min() - SETTLE_DECADES], [x.max()]), loss="soft_l1", f_scale=0.1)
        for at in np.linspace(x.min(), x.max() - 0.01, 7)
    ]
    done = min(tries, key=lambda r: float(r.cost))
    width = _half_widths(np.asarray(done.jac), off(done.x))[0]
    value = float(10.0 ** done.x[0])
    return Number(value, value * 10.0**-width, value * 10.0**width, len(x))


def _half_widths(jacobian: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """Half-widths of the parameters' intervals from the curvature; infinite where undetermined."""
    free = len(residuals) - jacobian.shape[1]
    if free <= 0:
        return np.full(jacobian.shape[1], math.inf)
    variance = float(np.sum(residuals**2)) / free
    covariance = np.linalg.pinv(jacobian.T @ jacobian) * variance
    undetermined = np.abs(jacobian).max(axis=0) < 1e-12
    widths = student.ppf(0.975, free) * np.sqrt(np.maximum(0.0, np.diag(covariance)))
    return np.where(undetermined, math.inf, widths)
