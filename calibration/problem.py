"""What a fit minimises: logarithms of predicted over measured time, and their slopes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from foretile.calibration.predictions import Batch, allowed, around_s, config_s, times
from foretile.hwmodels import Chip
from foretile.kernels.operator import Config
from foretile.simulator.search import Evaluated, Frozen, frozen, static_part

Array = np.ndarray
# By operator, library, static shape and the configuration that ran.
Pool = dict[tuple[str, int, Frozen, Frozen], list[Config]]
_SHORTLIST = 5  # configurations a row that a change of parameters may make the fastest
_LOST = 10.0  # logarithm that stands for a configuration that a library does not run (infinite time)
_REGRET = 0.002  # mean logarithm by which a few configurations may fall behind the whole space
_HOPELESS = (
    1.6  # times the fastest, for every row: such a configuration is not looked at again (set, not fitted)
)
_FEW_ROWS = 64  # of a batch: a call's overhead exceeds the arithmetic of so many
_STEP = 0.02  # of a logarithm, for the derivative by one-sided difference


@dataclass
class _Part:
    """One batch with the configurations that matter: ``keep[c]`` are the rows for which ``c`` may win."""

    batch: Batch
    configs: list[Config]
    keep: list[Array]


class Problem:
    """Residuals of many batches as a function of parameters, through ``chip_at``.

    ``chip_at`` turns a vector of parameters into a chip. The search for the fastest configuration is
    over a shortlist, which :meth:`refresh` takes from the whole space at given parameters. ``pool``
    collects, by operator and static shape, the configurations that came near the fastest when the
    whole space was last looked at; problems that share it look no further.
    """

    def __init__(
        self, batches: Sequence[Batch], chip_at: Callable[[Array], Chip], pool: Pool | None = None
    ) -> None:
        self.batches = list(batches)
        self.chip_at = chip_at
        self.pool: Pool = {} if pool is None else pool
        self.latency = np.concatenate([b.latency_s for b in self.batches])
        self.parts: list[_Part] = []
        self._choices: list[Array] = []

    def refresh(self, x: Array) -> None:
        """Take the shortlist at these parameters."""
        chip = self.chip_at(x)
        self.parts = []
        for batch in self.batches:
            library = id(batch.library) if batch.library is not None else 0
            static = frozen(static_part(batch.operator, batch.shape))
            key = batch.operator.name, library, static, frozen(batch.config or {})
            configs = self.pool.get(key) or allowed(chip, batch)
            seconds = times(chip, batch, configs)
            near = (seconds <= _HOPELESS * seconds.min(axis=0)).any(axis=1)
            self.pool.setdefault(key, [c for c, kept in zip(configs, near, strict=True) if kept])
            used = portfolio(seconds)
            order = np.argsort(seconds[used], axis=0)[:_SHORTLIST]
            rows = [
                np.flatnonzero((order == i).any(axis=0) & np.isfinite(seconds[c])) for i, c in enumerate(used)
            ]
            self.parts.append(_Part(batch, [configs[c] for c in used], rows))

    def residuals(self, x: Array) -> Array:
        """log(predicted / measured) by row, each with the fastest configuration of its shortlist."""
        chip = self.chip_at(x)
        found: list[Array] = []
        self._choices = []
        for part in self.parts:
            best = np.full(len(part.batch), np.inf)
            choice = np.zeros(len(part.batch), dtype=np.int64)
            shared: Evaluated = {}
            for c, rows in enumerate(part.keep):
                seconds = _times_of(chip, part, c, rows, shared)
                faster = seconds < best[rows]
                best[rows[faster]] = seconds[faster]
                choice[rows[faster]] = c
            found.append(best + around_s(chip, part.batch))
            self._choices.append(choice)
        return np.asarray(np.log(np.concatenate(found) / self.latency))

    def jacobian(self, x: Array) -> Array:
        """Derivatives of the residuals, of shape (rows, parameters).

        The fastest configuration stays the same under a small step (and where two tie, either's slope
        is one of the minimum), so only that one is evaluated again.
        """
        base = self.residuals(x)
        choices = self._choices
        slopes = np.empty((len(base), len(x)))
        for j in range(len(x)):
            stepped = x.copy()
            stepped[j] += _STEP
            chip = self.chip_at(stepped)
            moved = np.concatenate(
                [_chosen(chip, p, choice) for p, choice in zip(self.parts, choices, strict=True)]
            )
            slopes[:, j] = (np.log(moved / self.latency) - base) / _STEP
        self._choices = choices
        return slopes


def portfolio(seconds: Array) -> list[int]:
    """The few configurations that together do nearly as well as all of them.

    Chosen one after the other, each for what it adds; ``seconds``: by configuration and row.
    """
    behind = np.minimum(_LOST, np.log(seconds / seconds.min(axis=0)))
    left = np.full(seconds.shape[1], _LOST)
    found: list[int] = []
    while len(found) < len(seconds) and (not found or left.mean() > _REGRET):
        found.append(int(np.argmin(np.minimum(left, behind).mean(axis=1))))
        left = np.minimum(left, behind[found[-1]])
    return found


def _times_of(chip: Chip, part: _Part, c: int, rows: Array, shared: Evaluated) -> Array:
    """Seconds of some rows with configuration ``c``.

    Few rows cost as much as one: all of them are evaluated, so that configurations share what their
    launches have in common (``shared``).
    """
    batch = part.batch
    if len(batch) <= _FEW_ROWS:
        return np.asarray(config_s(chip, batch, part.configs[c], shared=shared)[rows])
    return config_s(chip, batch, part.configs[c], rows)


def _chosen(chip: Chip, part: _Part, choice: Array) -> Array:
    found = np.empty(len(part.batch))
    shared: Evaluated = {}
    for c in np.unique(choice):
        rows = np.flatnonzero(choice == c)
        found[rows] = _times_of(chip, part, int(c), rows, shared)
    return np.asarray(found + around_s(chip, part.batch))
