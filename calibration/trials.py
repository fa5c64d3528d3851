"""Configurations of measured rows, timed together for one chip after another that differ little."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foretile.calibration.predictions import Batch, Split, profile_key
from foretile.hwmodels import Chip
from foretile.kernels.operator import Config, Shape
from foretile.simulator.conditions import Conditions
from foretile.simulator.ensemble import Case, Ensemble, Store
from foretile.simulator.machine import Machine
from foretile.simulator.predictor import machine_of

Array = np.ndarray
Trial = tuple[Batch, Config, Array | None]  # ``None`` for all rows of the batch


class Trials:
    """What :func:`config_s` finds for every trial, on several chips at once.

    The chips have the same kernel profiles, of whatever numbers. ``store``: shared with other trials of
    the same batches.
    """

    def __init__(self, trials: Sequence[Trial], store: Store | None = None) -> None:
        self.trials = list(trials)
        self._store = store
        self._groups: list[_Group] = []

    def seconds(self, chips: Sequence[Chip]) -> list[Array]:
        """By trial, seconds of the operator's own kernels: of shape (chips, rows).

        Raises:
            SimulationError: a configuration does not fit one of the chips.
        """
        if not self._groups:
            keys: dict[str, list[int]] = {}
            for number, (batch, _, _) in enumerate(self.trials):
                keys.setdefault(profile_key(chips[0], batch), []).append(number)
            self._groups = [_Group(key, numbers, self.trials, self._store) for key, numbers in keys.items()]
        found: list[Array] = [np.empty(0)] * len(self.trials)
        for group in self._groups:
            machines = [machine_of(chip, group.key) for chip in chips]
            for number, seconds in zip(group.numbers, group.time_s(machines), strict=True):
                found[number] = seconds
        return found


class _Group:
    """Trials whose kernels have the same profile, ``key`` of the chips' ``kernels``."""

    def __init__(self, key: str, numbers: list[int], trials: Sequence[Trial], store: Store | None) -> None:
        self.key = key
        self.numbers = numbers
        self.trials = [trials[number] for number in numbers]
        pieces: dict[tuple[int, bytes], tuple[Shape, Conditions]] = {}  # one object for the same rows
        self.ensemble = Ensemble([_case(*trial, pieces) for trial in self.trials], store)
        self.splits: list[Split | None] | None = None

    def time_s(self, machines: Sequence[Machine]) -> list[Array]:
        found = self.ensemble.time_s(machines)
        if self.splits is None:
            self.splits = [self._split(place, machines[0]) for place in range(len(self.trials))]
        for place, split in enumerate(self.splits):
            if split is not None:
                each = zip(found[place], machines, strict=True)
                found[place] = np.stack([split.time_s(seconds, m) for seconds, m in each])
        return found

    def _split(self, place: int, machine: Machine) -> Split | None:
        batch, config, _ = self.trials[place]
        if batch.library is None or "num_split" not in config:
            return None
        blocks, slots = self.ensemble.first_launch(place, machine)
        return Split.of(batch.library, self.ensemble.cases[place].shape, config, machine.cores, blocks, slots)


def _case(
    batch: Batch,
    config: Config,
    rows: Array | None,
    pieces: dict[tuple[int, bytes], tuple[Shape, Conditions]],
) -> Case:
    key = id(batch), b"" if rows is None else rows.tobytes()
    if key not in pieces:
        pieces[key] = (batch.shape, batch.conditions) if rows is None else batch.rows(rows)
    shape, conditions = pieces[key]
    if batch.library is not None and batch.library.reshapes:  # a shape of its own for every tile
        shape = batch.library.like(shape, config)
    return Case(batch.operator, shape, config, conditions, len(batch) if rows is None else len(rows))
