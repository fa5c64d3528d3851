"""The cost model: closed form, vectorised over shapes.

A block's time is walked once, symbolically: operations add up in program order, a pipelined loop
costs its fill plus its trips at the steady interval, and that interval is the longest of

* the agent's own chain of dependent operations,
* every engine's service for all blocks resident on the core (or chip),
* what the loads' latency allows with the given number of buffers: (latency + chain) / stages.

Waves of blocks follow each other; no engine can do with less than its total service. See
docs/model.md for the derivation and tests/simulator for its agreement with the event engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from foretile.simulator.conditions import column
from foretile.simulator.machine import SETTLE_DECADES
from foretile.simulator.plan import Array, Plan
from foretile.simulator.raster import Dealing
from foretile.simulator.timeline import Timeline, soft_max
from foretile.simulator.workload import CLOCKED

_SPREAD = 0.3  # relative difference of block lengths beyond which waves no longer line up


@dataclass(frozen=True)
class Estimate:
    """Times in seconds, arrays of shape (shapes, 1); with alternatives of a machine before it.

    ``block_s``: one block of the first round, of shape (shapes, samples); ``busy``: by engine, the
    mean over cores of its service time; ``tail_s``: idle cores in the last wave; ``epilogue_s``:
    after the last loop of the last block; ``fill_s``: before the first.
    """

    time_s: Array
    block_s: Array
    busy: Mapping[str, Array]
    launch_s: Array
    fill_s: Array
    tail_s: Array
    epilogue_s: Array


def joined(parts: Sequence[Estimate]) -> Estimate:
    """Estimates of several groups of shapes as one; ``block_s`` is the mean over samples."""

    def column(values: Iterable[Array], times: Iterable[Array]) -> Array:
        means = (_mean(np.asarray(v)) for v in values)
        return np.concatenate([np.broadcast_to(m, np.shape(t)) for m, t in zip(means, times, strict=True)])

    times = [p.time_s for p in parts]
    named = ("time_s", "block_s", "launch_s", "fill_s", "tail_s", "epilogue_s")
    return Estimate(
        **{name: column((getattr(p, name) for p in parts), times) for name in named},
        busy={engine: column((p.busy[engine] for p in parts), times) for engine in parts[0].busy},
    )


def estimate(plan: Plan, dealing: Dealing | None = None) -> Estimate:
    """Predicted time of the whole kernel, at the clock its matrix load leaves.

    ``dealing``: the plan's own, where it is known already.
    """
    return _at_clock(plan, core_slowdown(plan), dealing or Dealing.of(plan))


def core_slowdown(plan: Plan) -> Array:
    """Factor by which work in the cores' clock domain takes longer than at the burst clock.

    Two causes: what these kernels make of the cores (``machine.pace``), and the clock. Dense matrix
    work draws the power that lowers the clock, so what counts is how long the matrix engines are
    busy, in all runs that follow each other: a kernel that waits for memory cools meanwhile. Operands
    that switch fewer bits draw less, and the clock sinks by as much less; so do matrix engines that
    wait for another engine of their core, as those of attention do for its exponentials.
    """
    machine = plan.workload.machine
    if not plan.workload.dtype or np.all(machine.matrix_sustained_ratio >= 1.0):
        return np.ones((1, 1)) / machine.pace
    busy = plan.core_busy["matrix"] * plan.blocks / machine.cores * column(plan.conditions.runs)
    decades = np.log10(np.maximum(1.0, busy / machine.settle_s))
    busiest = reduce(np.maximum, plan.core_busy.values())
    duty = plan.core_busy["matrix"] / np.maximum(1e-30, busiest)
    settled = np.minimum(1.0, decades / SETTLE_DECADES) * column(plan.conditions.switching) * duty
    return 1.0 / (1.0 - (1.0 - machine.matrix_sustained_ratio) * settled) / machine.pace


def _at_clock(plan: Plan, slow: Array, dealing: Dealing) -> Estimate:
    w = plan.workload
    machine = w.machine
    resident = float(w.occupancy.blocks_per_core)
    slots = float(plan.slots)
    tail = plan.tail_blocks
    tail_resident = np.ceil(tail / machine.cores)

    company = [(resident, slots), (np.maximum(1.0, tail_resident), np.maximum(1.0, tail))]
    if resident > 1:
        company.append((1.0, np.minimum(float(machine.cores), plan.blocks)))
    full, last, *single = _courses(plan, slow, company, dealing)
    alone = single[0] if single else full
    has_tail = tail > 0
    waves = plan.blocks / slots
    pick = plan.full_waves > 0

    # The first blocks of a core start together and contend throughout; later ones have drifted
    # apart, and one's ramp and epilogue hide behind the others' main loops.
    service = _service(plan, slow, resident, slots) * full.total / np.maximum(1e-30, _mean(full.total))
    apart = np.minimum(full.total, soft_max(alone.total, service))
    apart = np.where(pick, np.maximum(service, apart), apart)
    first = np.where(pick, _mean(full.total), 0.0)
    tail_time = np.where(has_tail, _mean(last.total), 0.0)
    # The tail's blocks start when the first of the last full round ends, not the last.
    # Through a loop the blocks of a round go abreast, so they end within an iteration of each other.
    abreast: Array = np.ones((1, 1))
    for trips in plan.trips.values():
        abreast = np.maximum(abreast, _mean(trips))
    opening = first - (first - np.minimum(first, _mean(alone.total))) / abreast
    rounds = np.maximum(0.0, plan.full_waves - 1.0) * _mean(apart)
    lined_up = rounds + np.where(has_tail, np.maximum(first, np.where(pick, opening, 0.0) + tail_time), first)
    even = first + (waves - 1.0) * _mean(apart)
    course = np.where(pick, full.total, last.total)
    if plan.samples > 1:
        lined_up = _unequal(plan, dealing, course, apart, np.minimum(apart, last.total), lined_up, even)

    fill = _mean(np.where(pick, full.fill, last.fill))
    epilogue = _mean(np.where(pick, full.epilogue, last.epilogue))
    idle = _mean(alone.total - alone.looped)
    if resident == 1:  # full and last differ in nothing but the number of active cores
        idle = np.where(pick, idle, _mean(last.total - last.looped))

    core_blocks = np.ceil(plan.blocks / machine.cores) if plan.samples == 1 else plan.blocks / machine.cores
    time = lined_up
    busy: dict[str, Array] = {}
    for engine, seconds in plan.core_busy.items():
        service = seconds * slow if engine in CLOCKED else seconds
        busy[engine] = service * plan.blocks / machine.cores
        before = idle - alone.outside.get(engine, 0.0)
        time = np.maximum(time, np.maximum(0.0, before) + core_blocks * service)
    for engine, seconds in plan.chip_busy.items():
        busy[engine] = seconds
        time = np.maximum(time, seconds)
    dispatch = plan.blocks * machine.dispatch_s
    launch = machine.launch_s + machine.ramp_s + 0.0 * plan.blocks
    total = launch + np.maximum(overlapped(time, busy, overlap_exponent(plan)), dispatch)
    return Estimate(
        time_s=total,
        block_s=course,
        busy=busy,
        launch_s=launch,
        fill_s=fill,
        tail_s=np.maximum(0.0, lined_up - even),
        epilogue_s=epilogue,
    )


def overlap_exponent(plan: Plan) -> float:
    """The chip's, for kernels with products; where data only streams through, the levels pass it on."""
    return plan.workload.machine.overlap if plan.workload.dtype else np.inf


def overlapped(time: Array, busy: Mapping[str, Array], exponent: float) -> Array:
    """``time`` of a course in which engines that work at the same time hold each other up.

    The norm of ``time`` and of all busy times but the longest, which ``time`` contains: a kernel
    whose matrix and memory time are alike takes longer than either (2^(1/p) at most for two).
    Faster engines never make it longer.
    """
    if np.all(np.isinf(exponent)):
        return time
    shares = np.broadcast_arrays(*(seconds / np.maximum(time, 1e-30) for seconds in busy.values()))
    others = sum(s**exponent for s in shares) - np.max(shares, axis=0) ** exponent
    return time * (1.0 + others) ** (1.0 / exponent)


@dataclass(frozen=True)
class _Course:
    """A block's course among a given number of others: seconds, arrays over (shapes, samples)."""

    total: Array
    looped: Array
    fill: Array
    epilogue: Array
    outside: Mapping[str, Array]


def _courses(
    plan: Plan, slow: Array, company: Sequence[tuple[Array, Array]], dealing: Dealing
) -> list[_Course]:
    """One course for each (resident, active) pair, walked at once along a leading axis."""
    axes = max(2, np.ndim(plan.workload.machine.launch_s))  # three with alternatives of a machine
    shapes = np.shape(plan.blocks)
    shapes = (1,) * (axes - len(shapes)) + shapes
    resident, active = (
        np.stack([np.broadcast_to(v, shapes) for v in side]) for side in zip(*company, strict=True)
    )
    walked = Timeline(plan, slow, resident, active, dealing).run()

    def part(values: Array, i: int) -> Array:
        return values[i] if np.ndim(values) > axes else values

    return [
        _Course(
            total=part(walked.total, i),
            looped=part(walked.looped, i),
            fill=part(walked.fill, i),
            epilogue=part(walked.epilogue, i),
            outside={engine: part(v, i) for engine, v in walked.outside.items()},
        )
        for i in range(len(company))
    ]


def _unequal(
    plan: Plan, dealing: Dealing, course: Array, apart: Array, ending: Array, lined_up: Array, even: Array
) -> Array:
    """Time of blocks of unequal length, dealt in raster order to whichever slot is free.

    Nearly equal blocks stay lined up in waves. Very unequal ones even out, but for half of a short
    block at the end, or for a long block that is dealt late. In between the two are mixed by the spread.
    ``ending``: times of blocks of the last, partial wave, which share the chip with fewer.
    """
    course = np.broadcast_to(course, (*np.broadcast_shapes(np.shape(even), (1, 1))[:-1], plan.samples))
    longest = np.max(course, axis=-1, keepdims=True)
    shortest = np.min(course, axis=-1, keepdims=True)
    spread = (longest - shortest) / np.maximum(longest, 1e-30)
    alike = np.clip(1.0 - spread / _SPREAD, 0.0, 1.0)
    slowest = np.argmax(course, axis=-1, keepdims=True)
    first, last = (
        np.take_along_axis(np.broadcast_to(v, course.shape), slowest, axis=-1)
        for v in (dealing.first, dealing.last)
    )
    opening = np.broadcast_to(dealing.opening, course.shape)
    # The last of the longest blocks, and the last of them before the partial wave.
    whole = np.minimum(last, plan.blocks - plan.tail_blocks - 1.0)
    late = _dealt_at(plan, course, opening, apart, even, last) + np.max(ending, axis=-1, keepdims=True)
    before = _dealt_at(plan, course, opening, apart, even, whole) + np.max(apart, axis=-1, keepdims=True)
    late = np.where(first <= whole, np.maximum(before, late), late)
    dealt = np.maximum(even + 0.5 * np.min(ending, axis=-1, keepdims=True), late)
    mixed = alike * lined_up + (1.0 - alike) * dealt
    return np.where(plan.full_waves > 0, np.maximum(longest, mixed), longest)


def _dealt_at(plan: Plan, course: Array, opening: Array, apart: Array, even: Array, at: Array) -> Array:
    """When the block at place ``at`` of the raster order gets its slot.

    The second wave's blocks are dealt as the first wave's end, the shortest first (``opening``: how
    many of each class it has); later ones at the pace of the whole, half a block before the average
    slot is through with what came earlier.
    """
    order = np.argsort(course, axis=-1, kind="stable")
    ended = np.cumsum(np.take_along_axis(opening, order, axis=-1), axis=-1)
    turn = np.sum(ended <= np.minimum(at - plan.slots, ended[..., -1:] - 0.5), axis=-1, keepdims=True)
    by_time = np.take_along_axis(course, order, axis=-1)
    second = np.take_along_axis(by_time, turn, axis=-1)
    later = np.maximum(0.0, even * at / plan.blocks - 0.5 * _mean(apart))
    return np.where(at < plan.slots, 0.0, np.where(at < 2 * plan.slots, second, later))


def _service(plan: Plan, slow: Array, resident: float, slots: float) -> Array:
    """Longest service any engine needs for one round of resident blocks."""
    longest: Array = np.zeros((1, 1))
    for engine, seconds in plan.core_busy.items():
        longest = np.maximum(longest, resident * (seconds * slow if engine in CLOCKED else seconds))
    for engine in ("l2", "dram"):  # nobody waits for atomics: they are posted, and no read shares their path
        stalling = plan.dram_stall if engine == "dram" else plan.chip_busy[engine]
        longest = np.maximum(longest, stalling * slots / plan.blocks)
    return longest


def _mean(values: Array) -> Array:
    if np.ndim(values) < 2 or values.shape[-1] == 1:
        return values
    return np.mean(values, axis=-1, keepdims=True)
