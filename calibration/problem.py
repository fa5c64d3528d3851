"""What a fit minimises: logarithms of predicted over measured time, and their slopes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from foretile.calibration.predictions import Batch, allowed, around_s, launched, times
from foretile.calibration.trials import Trials
from foretile.hwmodels import Chip
from foretile.kernels.operator import Config
from foretile.simulator.alternatives import outside_numbers
from foretile.simulator.ensemble import Store
from foretile.simulator.launches import Frozen, core_of, frozen, static_part
from foretile.simulator.predictor import machine_of

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
        self._store = Store()
        self._trials = Trials([])
        self._spaces = _Spaces(self.batches, self._store)
        self._around = _Around(self.batches)
        self._found: _Found | None = None

    def refresh(self, x: Array) -> None:
        """Take the shortlist at these parameters."""
        chip = self.chip_at(x)
        self.parts = []
        self._found = None
        spaces: list[list[Config]] = []
        keys: list[tuple[str, int, Frozen, Frozen]] = []
        for batch in self.batches:
            library = id(batch.library) if batch.library is not None else 0
            static = frozen(static_part(batch.operator, batch.shape))
            keys.append((batch.operator.name, library, static, frozen(batch.config or {})))
            spaces.append(self.pool.get(keys[-1]) or allowed(chip, batch))
        ranked = self._spaces.times(chip, spaces, self._around.seconds(chip))
        for batch, key, configs, seconds in zip(self.batches, keys, spaces, ranked, strict=True):
            near = (seconds <= _HOPELESS * seconds.min(axis=0)).any(axis=1)
            self.pool.setdefault(key, [c for c, kept in zip(configs, near, strict=True) if kept])
            used = portfolio(seconds)
            order = np.argsort(seconds[used], axis=0)[:_SHORTLIST]
            rows = [
                np.flatnonzero((order == i).any(axis=0) & np.isfinite(seconds[c])) for i, c in enumerate(used)
            ]
            self.parts.append(_Part(batch, [configs[c] for c in used], rows))
        self._trials = Trials(
            [
                # Few rows cost as much as one: with all of them configurations share what their
                # launches have in common.
                (part.batch, config, None if len(part.batch) <= _FEW_ROWS else rows)
                for part in self.parts
                for config, rows in zip(part.configs, part.keep, strict=True)
            ],
            self._store,
        )

    def residuals(self, x: Array) -> Array:
        """log(predicted / measured) by row, each with the fastest configuration of its shortlist."""
        return self._at(x).residuals

    def jacobian(self, x: Array) -> Array:
        """Derivatives of the residuals, of shape (rows, parameters).

        The fastest configuration stays the same under a small step (and where two tie, either's slope
        is one of the minimum), so only that one is looked at again.
        """
        base = self._at(x)
        if not len(x):
            return np.empty((len(self.latency), 0))
        chips = [self.chip_at(x + step) for step in _STEP * np.eye(len(x))]
        seconds = iter(self._trials.seconds(chips))
        around = [self._around.seconds(chip) for chip in chips]
        moved: list[Array] = []
        for number, (part, choice) in enumerate(zip(self.parts, base.choices, strict=True)):
            found = np.full((len(chips), len(part.batch)), np.nan)
            for c, rows in enumerate(part.keep):
                each, mine = next(seconds), choice[rows] == c
                some = each[:, rows] if len(part.batch) <= _FEW_ROWS else each
                found[:, rows[mine]] = some[:, mine]
            moved.append(found + np.stack([each[number] for each in around]))
        stepped = np.log(np.concatenate(moved, axis=1) / self.latency)
        return np.asarray(((stepped - base.residuals) / _STEP).T)

    def _at(self, x: Array) -> _Found:
        if self._found is not None and np.array_equal(self._found.x, x):
            return self._found
        chip = self.chip_at(x)
        seconds = iter(self._trials.seconds([chip]))
        around = self._around.seconds(chip)
        found: list[Array] = []
        choices: list[Array] = []
        for part, beside in zip(self.parts, around, strict=True):
            best = np.full(len(part.batch), np.inf)
            choice = np.zeros(len(part.batch), dtype=np.int64)
            for c, rows in enumerate(part.keep):
                (each,) = next(seconds)
                some = each[rows] if len(part.batch) <= _FEW_ROWS else each
                faster = some < best[rows]
                best[rows[faster]] = some[faster]
                choice[rows[faster]] = c
            found.append(best + beside)
            choices.append(choice)
        residuals = np.asarray(np.log(np.concatenate(found) / self.latency))
        self._found = _Found(x.copy(), residuals, choices)
        return self._found


@dataclass(frozen=True)
class _Found:
    """Residuals at ``x``, and by batch and row the fastest configuration of the shortlist."""

    x: Array
    residuals: Array
    choices: list[Array]


class _Spaces:
    """Times of whole spaces: of few rows all at once, and kept; of many a batch at a time."""

    def __init__(self, batches: Sequence[Batch], store: Store) -> None:
        self.batches = list(batches)
        self._store = store
        self._places: list[dict[int, int]] = []  # by batch, of its configurations (by identity) in the trials
        self._trials = Trials([])

    def times(self, chip: Chip, spaces: Sequence[list[Config]], around: Sequence[Array]) -> list[Array]:
        """By batch, seconds by configuration and row."""
        few = [
            configs if len(b) <= _FEW_ROWS else [] for b, configs in zip(self.batches, spaces, strict=True)
        ]
        self._hold(few)
        seconds = self._trials.seconds([chip])
        found: list[Array] = []
        for batch, configs, places, beside in zip(self.batches, spaces, self._places, around, strict=True):
            if len(batch) > _FEW_ROWS:
                found.append(times(chip, batch, configs))
                continue
            mine = np.stack([seconds[places[id(config)]][0] for config in configs])
            found.append(launched(batch, configs, mine) + beside)
        return found

    def _hold(self, spaces: Sequence[list[Config]]) -> None:
        """Have trials of all these configurations, and perhaps of others that were dropped meanwhile."""
        pairs = list(zip(self.batches, spaces, strict=True))
        held = self._places and all(
            id(config) in places
            for places, (_, configs) in zip(self._places, pairs, strict=True)
            for config in configs
        )
        if not held:
            trials = [(batch, config, None) for batch, configs in pairs for config in configs]
            numbers = iter(range(len(trials)))
            self._places = [{id(config): next(numbers) for config in configs} for configs in spaces]
            self._trials = Trials(trials, self._store)


class _Around:
    """:func:`around_s` of every batch, worked out anew where it changes."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = list(batches)
        self._held: dict[Hashable, list[Array]] = {}

    def seconds(self, chip: Chip) -> list[Array]:
        """By batch, seconds by row."""
        machine = machine_of(chip, "")
        gap = chip.launch.graph_s.value if chip.launch.graph_s else 0.0
        key = gap, core_of(machine), outside_numbers(machine)
        if key not in self._held:
            self._held = {key: [around_s(chip, batch) for batch in self.batches]}
        return self._held[key]


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
