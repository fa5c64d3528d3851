"""From one core to the whole chip: waves, tails and unequal blocks, played by the event engine."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from foretile.kernels.expr import evaluate
from foretile.simulator.cost import Estimate, block_times, estimate, matrix_slowdown
from foretile.simulator.engine import Core, Run
from foretile.simulator.plan import Plan, plan, sampled_vars
from foretile.simulator.program import ENGINES, compile_agent, write_buffer_ps
from foretile.simulator.workload import Workload

_ROUNDS = 3  # rounds of resident blocks played before the last interval repeats
_ROUNDS_UNEQUAL = 2  # the same, for each of the classes that are played where blocks differ
_CLASSES = 128  # distinct block lengths told apart at most, per index
_LAST_WAVES = 3  # waves of unequal blocks placed one by one; those before only fill the slots evenly
_EXACT_NUMBERING = 1 << 17  # beyond so many places gaps in the raster order are ignored
_EXACT_BLOCKS = 1 << 16  # up to so many blocks their lengths are summed one by one
_PS = 1e12


@dataclass(frozen=True)
class Simulation:
    """Result of the event engine for one shape: seconds, and the run on the representative core."""

    time_s: float
    tail_s: float
    estimate: Estimate
    plan: Plan
    run: Run


def simulate(
    workload: Workload,
    dims: dict[str, Any],
    tensors: Mapping[str, np.ndarray] | None = None,
    *,
    trace: bool = False,
) -> Simulation:
    """Play ``workload`` for one shape (``dims`` maps symbolic dimensions to numbers)."""
    unequal = bool(sampled_vars(workload))
    planned = plan(workload, dims, tensors, resolution=_CLASSES if unequal else None)
    closed = estimate(planned)
    machine = workload.machine
    slow = float(matrix_slowdown(planned)[0, 0])
    time_s, tail_s, run = _play(planned, slow, trace)
    # No engine can do with less than its service for the whole kernel, however the blocks fall.
    floor = max(float(np.ravel(b)[0]) for b in closed.busy.values())
    time_s = max(time_s, machine.launch_s + floor)
    return Simulation(time_s, tail_s, closed, planned, run)


def _play(p: Plan, slow: float, trace: bool) -> tuple[float, float, Run]:
    machine = p.workload.machine
    launch = machine.launch_s + machine.ramp_s
    blocks = float(p.blocks[0, 0])
    alike = all(np.ptp(trips) == 0.0 for trips in (*p.trips.values(), *p.chance.values()))
    time_s, tail_s, run = _equal(p, slow, trace) if alike else _unequal(p, slow, trace)
    return launch + max(time_s, blocks * machine.dispatch_s), tail_s, run


def _equal(p: Plan, slow: float, trace: bool) -> tuple[float, float, Run]:
    """Blocks of one length: full rounds on the busiest core, then what is left."""
    w = p.workload
    resident = w.occupancy.blocks_per_core
    rounds, tail = int(p.full_waves[0, 0]), float(p.tail_blocks[0, 0])
    last = ceil(tail / w.machine.cores)
    played = min(rounds, _ROUNDS)
    codes = []
    if played:
        codes += [compile_agent(p, 0, slow, resident, p.slots)] * (played * resident)
    if last:
        codes += [compile_agent(p, 0, slow, last, tail)] * last
    run = Core(ENGINES, w.agents, write_buffer_ps=write_buffer_ps(p), trace=trace).run(codes, resident)
    ends = run.finish_ps
    total = max(*ends, run.drained_ps)
    tail_ps = 0
    if played:
        marks = [max(ends[: (i + 1) * resident]) for i in range(played)]
        interval = marks[-1] - marks[-2] if played > 1 else marks[-1]
        total += (rounds - played) * interval
        if last:
            tail_ps = max(0, max(ends) - marks[-1]) - int(interval * tail / p.slots)
    else:  # fewer blocks than slots: cores without a block are the tail
        tail_ps = int(total * max(0.0, 1.0 - tail / (last * w.machine.cores)))
    return total / _PS, max(0, tail_ps) / _PS, run


def _unequal(p: Plan, slow: float, trace: bool) -> tuple[float, float, Run]:
    """Blocks of different lengths, dealt to free slots in raster order.

    The engine plays the longest, the middle and the shortest class; the closed form's times of all
    other classes are corrected by what it missed on those.
    """
    w = p.workload
    blocks, slots = float(p.blocks[0, 0]), float(p.slots)
    active = min(blocks, slots)
    resident = min(w.occupancy.blocks_per_core, ceil(blocks / w.machine.cores))
    modelled = block_times(p, slow, float(resident), active)
    order = np.argsort(modelled, kind="stable")
    chosen = sorted({int(order[0]), int(order[len(order) // 2]), int(order[-1])}, key=lambda i: modelled[i])

    def played(index: int, residents: float, actives: float, rounds: int, traced: bool = False) -> Run:
        code = compile_agent(p, index, slow, residents, actives)
        core = Core(ENGINES, w.agents, write_buffer_ps=write_buffer_ps(p), trace=traced)
        return core.run([code] * (int(residents) * rounds), int(residents))

    rounds = _ROUNDS_UNEQUAL if blocks > slots else 1
    runs = [played(i, resident, active, rounds) for i in chosen]
    shown = played(chosen[-1], resident, active, 1, traced=True) if trace else runs[-1]
    first = [max(run.finish_ps[:resident]) / _PS for run in runs]
    points = modelled[chosen]
    starting = modelled * np.interp(modelled, points, np.asarray(first) / points)
    if blocks <= slots:
        durations = starting[_classes(p, np.arange(int(blocks)))]
        together = _mixing(
            p, slow, resident, chosen, modelled, starting, int(np.argmax(durations)) % w.machine.cores
        )
        longest = float(np.max(durations)) * together
        return longest, max(0.0, longest - float(np.mean(durations)) * together), shown

    # Later blocks have drifted apart; those of the last, partial wave share the chip with fewer.
    later = [(max(r.finish_ps) / _PS - f) / (rounds - 1) for r, f in zip(runs, first, strict=True)]
    following = modelled * np.interp(modelled, points, np.asarray(later) / points)
    following = following * _mixing(p, slow, resident, chosen, modelled, following, p.slots)
    tail = blocks % slots
    ends_at = int(blocks - tail)
    ending = following
    if tail:
        # The class in the middle of those that end the kernel stands for them: one run, not one a class.
        ended = float(np.median(modelled[_classes(p, np.arange(ends_at, int(blocks)))]))
        typical = min(chosen, key=lambda i: abs(modelled[i] - ended))
        last = max(played(typical, ceil(tail / w.machine.cores), tail, 1).finish_ps) / _PS
        ending = np.minimum(following, modelled * last / modelled[typical])
    head = starting[_classes(p, np.arange(int(slots)))]
    begin = max(int(slots), int(blocks - _LAST_WAVES * slots))
    begin = min(begin, ends_at)
    durations = np.concatenate(
        [
            following[_classes(p, np.arange(begin, ends_at))],
            ending[_classes(p, np.arange(ends_at, int(blocks)))],
        ]
    )
    if begin < _EXACT_BLOCKS:
        between = float(np.sum(following[_classes(p, np.arange(int(slots), begin))]))
    else:
        between = (begin - slots) * float(np.mean(following))
    total = _deal(durations, head + max(0.0, between) / slots)
    even = (float(np.sum(head)) + between + float(np.sum(durations))) / slots
    return total, max(0.0, total - even), shown


def _mixing(
    p: Plan,
    slow: float,
    resident: int,
    chosen: list[int],
    modelled: np.ndarray,
    alone: np.ndarray,
    start: int,
) -> float:
    """How much faster blocks of different classes pass a core together than each among its own kind.

    What one class waits for (DRAM, say) another may not need. The real sequence of blocks of the core
    that block ``start`` falls to is played, each block as the nearest of the ``chosen`` classes;
    ``alone`` are the times by class among blocks of the same class.
    """
    w = p.workload
    rounds = 1 if start < p.slots else _ROUNDS_UNEQUAL
    places = start + w.machine.cores * np.arange(resident * rounds)
    classes = _classes(p, places[places < p.blocks[0, 0]])
    nearest = [min(chosen, key=lambda i: abs(modelled[i] - modelled[c])) for c in classes]
    if len(set(nearest)) < 2:
        return 1.0
    active = min(float(p.blocks[0, 0]), float(p.slots))
    codes = {i: compile_agent(p, i, slow, resident, active) for i in set(nearest)}
    core = Core(ENGINES, w.agents, write_buffer_ps=write_buffer_ps(p))
    finish = max(core.run([codes[i] for i in nearest], resident).finish_ps) / _PS
    expected = float(np.max(alone[nearest])) if rounds == 1 else float(np.sum(alone[nearest])) / resident
    return min(1.0, finish / expected)


def _deal(durations: np.ndarray, free: np.ndarray) -> float:
    """Finish time when blocks in order go to whichever slot is free first."""
    slots: list[float] = free.tolist()
    heapq.heapify(slots)
    for duration in durations.tolist():
        heapq.heapreplace(slots, slots[0] + duration)
    return max(slots)


def _classes(p: Plan, linear: np.ndarray) -> np.ndarray:
    """Class index (sample) of each block, given its place in the raster order."""
    w = p.workload
    extents = [int(max(1, np.ravel(evaluate(digit.extent, p.env))[0])) for digit in w.raster]
    numbered = int(np.prod(extents, dtype=np.int64))
    if int(p.blocks[0, 0]) < numbered <= _EXACT_NUMBERING:
        # A last, thinner panel leaves gaps in the numbering: skip places outside of the grid.
        values = _digits(w, extents, np.arange(numbered))
        inside = np.ones(numbered, dtype=bool)
        for name, value in values.items():
            inside &= value < np.ravel(evaluate(w.ranges[name], p.env))[0]
        linear = np.flatnonzero(inside)[np.minimum(linear, int(np.count_nonzero(inside)) - 1)]
    values = _digits(w, extents, linear)
    names = sampled_vars(w)
    if p.period:
        return np.asarray(values[names[0]] % p.period, dtype=np.int64)
    index = np.zeros(len(linear), dtype=np.int64)
    per_index = round(p.samples ** (1 / len(names)))
    for name in names:
        size = float(np.ravel(evaluate(w.ranges[name], p.env))[0])
        step = np.minimum(per_index - 1, np.floor(values[name] / size * per_index)).astype(np.int64)
        index = index * per_index + np.maximum(0, step)
    return index


def _digits(w: Workload, extents: Sequence[int], linear: np.ndarray) -> dict[str, np.ndarray]:
    """Block variables of places in the raster order (a variable may have several digits)."""
    values: dict[str, np.ndarray] = {}
    scale: dict[str, int] = {}
    rest = linear
    for digit, extent in zip(w.raster, extents, strict=True):
        values[digit.var] = values.get(digit.var, 0) + rest % extent * scale.get(digit.var, 1)
        scale[digit.var] = scale.get(digit.var, 1) * extent
        rest = rest // extent
    return values
