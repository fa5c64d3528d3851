"""Blocks of different lengths (causal attention, ragged work): a few classes played, the rest inferred."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from math import ceil

import numpy as np

from foretile.simulator.engine import Core, Run
from foretile.simulator.plan import Plan
from foretile.simulator.program import ENGINES, Programs, write_buffer_ps
from foretile.simulator.raster import Raster

_ROUNDS = 2  # rounds of resident blocks played: the first opens the kernel, the others are like the second
_LAST_WAVES = 3  # waves of blocks placed one by one; those before only fill the slots evenly
_ALIKE = 0.05  # relative difference of the closed form's times below which one class stands for both
_PS = 1e12


class Unequal:
    """Plays a plan whose blocks differ, for its first shape.

    The engine plays the longest, the middle and the shortest class; the closed form's times of all
    other classes (``block_s``, seconds) are corrected by what it missed on those. The blocks are then
    dealt to free slots in raster order.
    """

    def __init__(self, plan: Plan, slow: float, block_s: np.ndarray) -> None:
        w = plan.workload
        self.plan = plan
        self.cores = w.machine.cores
        self.blocks = int(plan.blocks[0, 0])
        self.active = min(self.blocks, plan.slots)
        self.resident = min(w.occupancy.blocks_per_core, ceil(self.blocks / self.cores))
        # A class without work takes no time; a ratio of times needs some.
        self.modelled = np.maximum(np.broadcast_to(block_s, plan.samples), 1.0 / _PS)
        order = np.argsort(self.modelled, kind="stable")
        longest, middle, shortest = (int(i) for i in order[[-1, len(order) // 2, 0]])
        self.chosen = [longest]
        for i in (middle, shortest):  # an even split's parts are all but alike: one is played
            if self.modelled[i] < (1.0 - _ALIKE) * self.modelled[self.chosen[0]]:
                self.chosen.insert(0, i)
        self.raster = Raster(plan)
        self.programs = Programs(plan, slow)

    def play(self, trace: bool) -> tuple[float, float, Run]:
        """Seconds of the kernel after its launch, idle seconds at its end, and the longest class's run."""
        rounds = _ROUNDS if self.blocks > self.plan.slots else 1
        runs = [self._core([i] * (self.resident * rounds), self.resident, self.active) for i in self.chosen]
        shown = runs[-1]
        if trace:
            shown = self._core([self.chosen[-1]] * self.resident, self.resident, self.active, trace=True)
        first = [max(run.finish_ps[: self.resident]) / _PS for run in runs]
        starting = self._inferred(first)
        if rounds == 1:
            return *self._at_once(starting), shown
        # Later blocks have drifted apart.
        later = [(max(r.finish_ps) / _PS - f) / (rounds - 1) for r, f in zip(runs, first, strict=True)]
        return *self._dealt(starting, self._inferred(later)), shown

    def _core(self, classes: Sequence[int], resident: int, active: int, *, trace: bool = False) -> Run:
        """Blocks of these classes, in order, on one core."""
        codes = {i: self.programs.code(i, resident, active) for i in set(classes)}
        buffer = write_buffer_ps(self.plan)
        core = Core(ENGINES, self.plan.workload.agents, write_buffer_ps=buffer, trace=trace)
        return core.run([codes[i] for i in classes], resident)

    def _inferred(self, seconds: Sequence[float]) -> np.ndarray:
        """Seconds of every class from those of the chosen ones."""
        points = self.modelled[self.chosen]
        inferred: np.ndarray = self.modelled * np.interp(self.modelled, points, np.asarray(seconds) / points)
        return inferred

    def _at_once(self, starting: np.ndarray) -> tuple[float, float]:
        """Time and idle time where all blocks are resident at once."""
        durations = starting[self.raster.classes(np.arange(self.blocks))]
        durations = durations * self._mixing(starting, int(np.argmax(durations)) % self.cores, 1)
        longest = float(np.max(durations))
        return longest, longest - float(np.mean(durations))

    def _dealt(self, starting: np.ndarray, following: np.ndarray) -> tuple[float, float]:
        """Time and idle time of several waves: the first's blocks take ``starting``, then ``following``."""
        slots = self.plan.slots
        following = following * self._mixing(following, slots, _ROUNDS)
        tail = self.blocks % slots
        ends_at = self.blocks - tail
        last = self.raster.classes(np.arange(ends_at, self.blocks))
        head = self.raster.classes(np.arange(slots))
        begin = min(max(slots, self.blocks - _LAST_WAVES * slots), ends_at)
        body = self.raster.classes(np.arange(begin, ends_at))
        placed = np.concatenate([following[body], self._ending(last, following)[last]])
        mean = float(np.dot(self.raster.shares(), following))
        others = (
            float(np.sum(following[head])) + float(np.sum(following[body])) + float(np.sum(following[last]))
        )
        between = max(0.0, self.blocks * mean - others) if begin > slots else 0.0
        time_s = _deal(placed, starting[head] + between / slots)
        even = (float(np.sum(starting[head])) + between + float(np.sum(placed))) / slots
        return time_s, max(0.0, time_s - even)

    def _ending(self, last: np.ndarray, following: np.ndarray) -> np.ndarray:
        """Seconds by class of the blocks in the last, partial wave, which share the chip with fewer.

        The class in the middle of those that end the kernel (``last``) stands for them: one run, not
        one a class.
        """
        if not len(last):
            return following
        middle = float(np.median(self.modelled[last]))
        typical = self._nearest(middle)
        run = self._core([typical] * ceil(len(last) / self.cores), ceil(len(last) / self.cores), len(last))
        alone = self.modelled * (max(run.finish_ps) / _PS / self.modelled[typical])
        ending: np.ndarray = np.minimum(alone, following)
        return ending

    def _mixing(self, alone: np.ndarray, start: int, rounds: int) -> float:
        """How much faster blocks of different classes pass a core together than each among its own kind.

        What one class waits for (DRAM, say) another may not need. The real sequence of blocks of the
        core that block ``start`` falls to is played, each block as the nearest of the chosen
        classes; ``alone`` are the seconds by class among blocks of the same class.
        """
        places = start + self.cores * np.arange(self.resident * rounds)
        classes = self.raster.classes(places[places < self.blocks])
        nearest = [self._nearest(float(self.modelled[c])) for c in classes]
        if len(set(nearest)) < 2:
            return 1.0
        finish = max(self._core(nearest, self.resident, self.active).finish_ps) / _PS
        times = alone[nearest]
        expected = float(np.max(times)) if rounds == 1 else float(np.sum(times)) / self.resident
        return min(1.0, finish / expected)

    def _nearest(self, modelled_s: float) -> int:
        return min(self.chosen, key=lambda i: abs(float(self.modelled[i]) - modelled_s))


def _deal(durations: np.ndarray, free: np.ndarray) -> float:
    """Finish time when blocks in order go to whichever slot is free first."""
    slots: list[float] = free.tolist()
    heapq.heapify(slots)
    for duration in durations.tolist():
        heapq.heapreplace(slots, slots[0] + duration)
    return max(slots)
