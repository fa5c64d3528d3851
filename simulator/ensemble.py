"""Many configurations of many shapes, evaluated together, again and again, on machines that differ little."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from foretile.kernels.operator import Config, Operator, Shape
from foretile.simulator.alternatives import alternatives, traffic_numbers
from foretile.simulator.conditions import Conditions
from foretile.simulator.joined import Launch, joined
from foretile.simulator.launches import Core, core_of, lowered, set_up
from foretile.simulator.machine import Machine
from foretile.simulator.plan import Filled, fill, planned, traffic_of
from foretile.simulator.raster import Dealing
from foretile.simulator.search import Bound, bound
from foretile.simulator.workload import Workload

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Case:
    """One configuration at ``count`` shapes, which differ in dynamic parameters only.

    Cases that have the same ``shape`` object share the launches that they have in common.
    """

    operator: Operator
    shape: Shape
    config: Config
    conditions: Conditions
    count: int


@dataclass(frozen=True, eq=False)
class _Filling:
    """A launch at some shapes of a case: ``rows`` of them, from ``first`` on."""

    workload: Workload
    bound: Bound
    filled: Filled
    first: int
    rows: int


class Store:
    """Launches filled in for the machine asked for last: what ensembles of the same shapes have in common."""

    def __init__(self) -> None:
        self._core: Core | None = None
        self._key: Hashable = None
        # Keyed by identity; what the numbers stand for is held with them.
        self._fillings: dict[tuple[int, int, int], tuple[Case, Workload, list[_Filling]]] = {}
        self._launches: dict[int, tuple[_Filling, Launch]] = {}
        self._bound: dict[tuple[int, int], tuple[Case, list[Bound]]] = {}

    def fillings(self, case: Case, workload: Workload, core: Core) -> list[_Filling]:
        """A workload at the shapes of a case, as many together as memory allows."""
        if core != self._core:
            self._fillings, self._launches, self._core, self._key = {}, {}, core, None
        key = id(case.shape), id(case.conditions), id(workload)
        if key not in self._fillings:
            rows = key[:2]
            if rows not in self._bound:
                self._bound[rows] = case, bound(case.operator, case.shape, case.conditions)
            self._fillings[key] = case, workload, _filled(workload, self._bound[rows][1], case.count)
        return self._fillings[key][2]

    def launch(self, filling: _Filling, machine: Machine) -> Launch:
        """The launch with its traffic."""
        key = traffic_numbers(machine)
        if key != self._key:
            self._launches, self._key = {}, key
        if id(filling) not in self._launches:
            self._launches[id(filling)] = filling, _launch(filling, machine)
        return self._launches[id(filling)][1]


class Ensemble:
    """The cost model for many cases.

    What shapes and cores decide is worked out once, and kept for the machine asked for last; machines that
    differ in rates only take the rest of the way. ``store``: shared with other ensembles.
    """

    def __init__(self, cases: Sequence[Case], store: Store | None = None) -> None:
        self.cases = list(cases)
        self._store = store or Store()
        self._core: Core | None = None
        self._fillings: list[list[_Filling]] = []  # by different launch, its shapes as memory allows
        self._launches: list[list[int]] = []  # by case, the different launches
        self._key: Hashable = None
        self._joined: list[tuple[Launch, list[tuple[int, int, int]]]] = []

    def time_s(self, machines: Sequence[Machine]) -> list[Array]:
        """Seconds by case, as :func:`evaluate_config` has them: arrays of shape (machines, shapes).

        Raises:
            SimulationError: a configuration does not fit one of the machines.
        """
        found = [np.empty((len(machines), case.count)) for case in self.cases]
        cores: dict[Core, list[int]] = {}
        for i, machine in enumerate(machines):
            cores.setdefault(core_of(machine), []).append(i)
        # Those whose cores are filled in already come first.
        for core in sorted(cores, key=lambda c: c != self._core):
            alike = [machines[i] for i in cores[core]]
            times = self._times(alternatives(alike) if len(alike) > 1 else alike[0])
            for result, seconds in zip(found, times, strict=True):
                result[cores[core]] = seconds
        return found

    def first_launch(self, number: int, machine: Machine) -> tuple[Array, int]:
        """Blocks by shape of a case's first launch, and how many run at once."""
        self._fill(machine)
        parts = self._fillings[self._launches[number][0]]
        blocks = [np.broadcast_to(p.filled.blocks.reshape(-1), (p.rows,)) for p in parts]
        return np.concatenate(blocks), machine.cores * parts[0].workload.occupancy.blocks_per_core

    def _times(self, machine: Machine) -> list[Array]:
        self._join(machine)
        seconds: list[Array] = []
        several = np.ndim(machine.launch_s) > 0
        for parts in self._fillings:
            shape = (np.size(machine.launch_s), sum(p.rows for p in parts))
            seconds.append(np.empty(shape if several else shape[1:]))
        for launch, places in self._joined:
            times, start = launch.time_s(machine), 0
            for number, first, rows in places:
                seconds[number][..., first : first + rows] = times[..., start : start + rows]
                start += rows
        return [np.asarray(sum(seconds[i] for i in launches)) for launches in self._launches]

    def _fill(self, machine: Machine) -> None:
        core = core_of(machine)
        if core == self._core:
            return
        self._fillings, self._launches, self._joined, self._key = [], [], [], None
        numbers: dict[int, int] = {}
        for case in self.cases:
            mine: list[int] = []
            for workload in lowered(case.operator, case.shape, case.config, machine):
                found = self._store.fillings(case, workload, core)
                if id(found) not in numbers:
                    numbers[id(found)] = len(self._fillings)
                    self._fillings.append(found)
                mine.append(numbers[id(found)])
            self._launches.append(mine)
        self._core = core

    def _join(self, machine: Machine) -> None:
        self._fill(machine)
        key = traffic_numbers(machine)
        if key == self._key:
            return
        like: dict[Hashable, list[tuple[Launch, tuple[int, int, int]]]] = {}
        for number, parts in enumerate(self._fillings):
            for p in parts:
                launch = self._store.launch(p, machine)
                place = number, p.first, p.rows
                like.setdefault(launch.structure(), []).append((launch, place))
        self._joined = [
            (joined([launch for launch, _ in members]), [place for _, place in members])
            for members in like.values()
        ]
        self._key = key


def _filled(workload: Workload, some: Sequence[Bound], count: int) -> list[_Filling]:
    found: list[_Filling] = []
    first = 0
    for part in some:
        rows = count if len(some) == 1 else max(np.size(v) for v in part.dims.values())
        found.append(_Filling(workload, part, fill(workload, part.dims, part.tensors), first, rows))
        first += rows
    return found


def _launch(filling: _Filling, machine: Machine) -> Launch:
    workload, conditions = set_up(filling.workload, machine), filling.bound.conditions
    moved = traffic_of(workload, filling.filled, conditions)
    dealing = Dealing.of(planned(workload, filling.filled, moved, conditions))
    return Launch(filling.workload, filling.filled, moved, dealing, conditions, filling.rows)
