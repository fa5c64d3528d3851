"""From one core to the whole chip: waves, tails and unequal blocks, played by the event engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from foretile.simulator.conditions import COLD, Conditions
from foretile.simulator.cost import Estimate, core_slowdown, estimate, overlap_exponent, overlapped
from foretile.simulator.engine import Core, Run
from foretile.simulator.plan import Plan, plan
from foretile.simulator.program import ENGINES, Programs, write_buffer_ps
from foretile.simulator.unequal import Unequal
from foretile.simulator.workload import Workload

_ROUNDS = 3  # rounds of resident blocks played before the last interval repeats
_CLASSES = 128  # distinct block lengths told apart at most, per index
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
    conditions: Conditions = COLD,
) -> Simulation:
    """Play ``workload`` for one shape (``dims`` maps symbolic dimensions to numbers)."""
    unequal = bool(workload.sampled)
    planned = plan(workload, dims, tensors, resolution=_CLASSES if unequal else None, conditions=conditions)
    closed = estimate(planned)
    machine = workload.machine
    slow = float(core_slowdown(planned)[0, 0])
    time_s, tail_s, run = _play(planned, slow, np.ravel(closed.block_s), trace)
    # No engine can do with less than its service for the whole kernel, however the blocks fall.
    fixed = machine.launch_s + machine.ramp_s
    floor = max(float(np.ravel(b)[0]) for b in closed.busy.values())
    time_s = max(time_s, machine.launch_s + floor)
    if time_s > fixed:
        course = overlapped(time_s - fixed, closed.busy, overlap_exponent(planned))
        time_s = fixed + float(np.ravel(course)[0])
    return Simulation(time_s, tail_s, closed, planned, run)


def _play(p: Plan, slow: float, block_s: np.ndarray, trace: bool) -> tuple[float, float, Run]:
    machine = p.workload.machine
    launch = machine.launch_s + machine.ramp_s
    blocks = float(p.blocks[0, 0])
    alike = all(np.ptp(trips) == 0.0 for trips in (*p.trips.values(), *p.chance.values()))
    time_s, tail_s, run = _equal(p, slow, trace) if alike else Unequal(p, slow, block_s).play(trace)
    return launch + max(time_s, blocks * machine.dispatch_s), tail_s, run


def _equal(p: Plan, slow: float, trace: bool) -> tuple[float, float, Run]:
    """Blocks of one length: full rounds on the busiest core, then what is left."""
    w = p.workload
    resident = w.occupancy.blocks_per_core
    rounds, tail = int(p.full_waves[0, 0]), float(p.tail_blocks[0, 0])
    last = ceil(tail / w.machine.cores)
    played = min(rounds, _ROUNDS)
    programs = Programs(p, slow)
    codes = []
    if played:
        codes += [programs.code(0, resident, p.slots)] * (played * resident)
    if last:
        codes += [programs.code(0, last, tail)] * last
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
