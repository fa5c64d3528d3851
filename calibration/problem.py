"""What a fit minimises: logarithms of predicted over measured time, and their slopes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from foretile.calibration.predictions import Batch, allowed, batch_machine, graph_s, times
from foretile.hwmodels import Chip
from foretile.kernels.operator import Config
from foretile.simulator.search import evaluate_config

Array = np.ndarray
_SHORTLIST = 5  # configurations a row that a change of parameters may make the fastest
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
    over a shortlist, which :meth:`refresh` takes from the whole space at given parameters.
    """

    def __init__(self, batches: Sequence[Batch], chip_at: Callable[[Array], Chip]) -> None:
        self.batches = list(batches)
        self.chip_at = chip_at
        self.latency = np.concatenate([b.latency_s for b in self.batches])
        self.parts: list[_Part] = []
        self._choices: list[Array] = []

    def refresh(self, x: Array) -> None:
        """Take the shortlist at these parameters."""
        chip = self.chip_at(x)
        self.parts = []
        for batch in self.batches:
            configs = allowed(chip, batch)
            ranked = times(chip, batch, configs)
            order = np.argsort(ranked, axis=0)[:_SHORTLIST]
            rows = [
                np.flatnonzero((order == c).any(axis=0) & np.isfinite(ranked[c])) for c in range(len(configs))
            ]
            used = [c for c in range(len(configs)) if len(rows[c])]
            self.parts.append(_Part(batch, [configs[c] for c in used], [rows[c] for c in used]))

    def residuals(self, x: Array) -> Array:
        """log(predicted / measured) by row, each with the fastest configuration of its shortlist."""
        chip = self.chip_at(x)
        found: list[Array] = []
        self._choices = []
        for part in self.parts:
            best = np.full(len(part.batch), np.inf)
            choice = np.zeros(len(part.batch), dtype=np.int64)
            for c, rows in enumerate(part.keep):
                seconds = _times_of(chip, part, c, rows)
                faster = seconds < best[rows]
                best[rows[faster]] = seconds[faster]
                choice[rows[faster]] = c
            found.append(best)
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


def _times_of(chip: Chip, part: _Part, c: int, rows: Array) -> Array:
    shape, conditions = part.batch.rows(rows)
    launches = evaluate_config(
        part.batch.operator, shape, part.configs[c], batch_machine(chip, part.batch), conditions
    )
    return np.asarray(launches.time_s + graph_s(chip, part.batch)[rows])


def _chosen(chip: Chip, part: _Part, choice: Array) -> Array:
    found = np.empty(len(part.batch))
    for c in np.unique(choice):
        rows = np.flatnonzero(choice == c)
        found[rows] = _times_of(chip, part, int(c), rows)
    return found
