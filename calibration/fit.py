"""Fitting a chip's parameters to measured times: robust least squares on log time, priors, uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from foretile.calibration.parameters import (
    CHIP_PARAMETERS,
    FamilyParameter,
    Parameter,
    prepared,
    with_factors,
)
from foretile.calibration.predictions import Batch, batches
from foretile.calibration.problem import Pool, Problem
from foretile.hwmodels import Chip

Array = np.ndarray
Progress = Callable[[str], None]
# Residuals beyond this count linearly: a library's odd choice of kernel is not the chip's doing.
_SCALE = 0.1
# Weight of a prior's standard deviation, in the residuals' unit.
_PRIOR = 0.1
_ROUNDS = 2  # of shortlist and fit
_EVALUATIONS = 12
# A parameter whose uncertainty the data leave above this share of the prior's was not seen by them.
_UNSEEN = 0.85


class FitError(ValueError):
    """A fit that did not converge, or data that cannot be fitted; the message says what to do."""


@dataclass(frozen=True)
class Fitted:
    """Result of one fit.

    ``x``: logarithms of the factors; ``sigma``: their standard deviations; ``correlation``;
    ``seen``: by parameter, whether the data narrowed the prior; ``residuals``: log(predicted / measured);
    ``predicted_s``: seconds by row, in the order of the batches.
    """

    names: tuple[str, ...]
    x: Array
    sigma: Array
    covariance: Array
    seen: tuple[bool, ...]
    residuals: Array
    predicted_s: Array
    cost: float
    evaluations: int

    def factors(self) -> dict[str, float]:
        """The fitted factors by parameter."""
        return {n: float(np.exp(v)) for n, v in zip(self.names, self.x, strict=True)}


def fit_chip(
    chip: Chip,
    rows: pd.DataFrame,
    *,
    prior: Mapping[str, tuple[float, float]] | None = None,
    starts: int = 2,
    progress: Progress | None = None,
) -> tuple[Chip, Fitted]:
    """The chip with its parameters fitted to ``rows`` (one device's).

    ``prior``: by parameter, mean and standard deviation of the factor's logarithm where other chips
    have taught them; ``starts``: from how many points the fit starts.

    Raises:
        FitError: nothing to fit, or no start converged.
    """
    start = prepared(chip)

    def chip_at(x: Array) -> Chip:
        factors = {p.name: float(np.exp(v)) for p, v in zip(CHIP_PARAMETERS, x, strict=True)}
        return with_factors(start, factors)

    fitted = solve(
        batches(rows, start), chip_at, CHIP_PARAMETERS, prior=prior, starts=starts, progress=progress
    )
    return chip_at(fitted.x), fitted


def solve(
    parts: Sequence[Batch],
    chip_at: Callable[[Array], Chip],
    parameters: Sequence[Parameter | FamilyParameter],
    *,
    prior: Mapping[str, tuple[float, float]] | None = None,
    starts: int = 2,
    rounds: int = _ROUNDS,
    pool: Pool | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Fit ``parameters`` to the batches, from several starting points; the best fit wins.

    ``rounds``: how often the shortlist of configurations is taken anew at what has been fitted;
    ``pool``: see :class:`Problem`.

    Raises:
        FitError: nothing to fit, or no start converged.
    """
    if not parts or not sum(len(p) for p in parts):
        raise FitError("no rows to fit: give rows of the chip's families with fold < 10")
    known = prior or {}
    mean = np.array([known.get(p.name, (0.0, p.sigma))[0] for p in parameters])
    sigma = np.array([known.get(p.name, (0.0, p.sigma))[1] for p in parameters])
    low = np.array([p.bounds[0] for p in parameters])
    high = np.array([p.bounds[1] for p in parameters])
    problem = Problem(parts, chip_at, pool)
    found: Fitted | None = None
    for number in range(starts):
        say = (lambda text, i=number: progress(f"start {i + 1}/{starts}: {text}")) if progress else None
        first = np.clip(mean + number * _away(number, sigma), low + 1e-3, high - 1e-3)
        result = _descend(problem, first, (low, high), mean, sigma, parameters, rounds, say)
        if found is None or result.cost < found.cost:
            found = result
    if found is None or not np.isfinite(found.cost):
        raise FitError(
            "the fit did not converge: check the rows (foretile calibrate --dry-run lists the worst)"
        )
    return found


def _away(seed: int, sigma: Array) -> Array:
    """A fixed direction, half a prior's standard deviation long in every parameter."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=len(sigma))
    return np.asarray(0.5 * signs * sigma)


def _descend(
    problem: Problem,
    first: Array,
    bounds: tuple[Array, Array],
    mean: Array,
    sigma: Array,
    parameters: Sequence[Parameter | FamilyParameter],
    rounds: int,
    progress: Progress | None,
) -> Fitted:
    def residuals(x: Array) -> Array:
        return np.concatenate([problem.residuals(x), _PRIOR * (x - mean) / sigma])

    def jacobian(x: Array) -> Array:
        return np.concatenate([problem.jacobian(x), np.diag(_PRIOR / sigma)])

    x, evaluations, cost = first, 0, np.inf
    for turn in range(rounds):
        problem.refresh(x)
        result = least_squares(
            residuals,
            x,
            jac=jacobian,
            bounds=bounds,
            loss="soft_l1",
            f_scale=_SCALE,
            x_scale=sigma,
            max_nfev=_EVALUATIONS,
            ftol=1e-3,
            xtol=1e-3,
        )
        evaluations += int(result.nfev)
        x = result.x
        done = cost - result.cost < 1e-2 * result.cost
        cost = float(result.cost)
        if progress:
            progress(f"round {turn + 1}, {evaluations} evaluations, cost {cost:.3f}")
        if done:
            break
    problem.refresh(x)
    left = problem.residuals(x)
    slopes = problem.jacobian(x)
    covariance = _covariance(slopes, left, sigma)
    spread = np.sqrt(np.diag(covariance))
    return Fitted(
        names=tuple(p.name for p in parameters),
        x=x,
        sigma=spread,
        covariance=covariance,
        seen=tuple(bool(s < _UNSEEN * p) for s, p in zip(spread, sigma, strict=True)),
        residuals=left,
        predicted_s=problem.latency * np.exp(left),
        cost=cost,
        evaluations=evaluations,
    )


def _covariance(slopes: Array, residuals: Array, sigma: Array) -> Array:
    """Of the parameters' logarithms: rows weighted as the loss weighs them, the prior added."""
    weight = 1.0 / np.sqrt(1.0 + (residuals / _SCALE) ** 2)
    variance = float(np.sum(weight * residuals**2) / max(1.0, np.sum(weight) - slopes.shape[1]))
    information = (slopes.T * weight) @ slopes / variance + np.diag(1.0 / sigma**2)
    return np.asarray(np.linalg.inv(information))
