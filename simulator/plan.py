"""A workload with its shape filled in: trip counts, executions, traffic. Arrays over shapes.

Axis 0 runs over shapes, axis 1 over *samples*: blocks whose trip counts differ (a causal query
block sees as many keys as it has behind it) are represented by points spread evenly over the block
indices that matter, each standing for an equal share of the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foretile.kernels.expr import Expr, Stacked, evaluate, variables
from foretile.simulator.conditions import COLD, Conditions
from foretile.simulator.machine import Machine, SimulationError
from foretile.simulator.memory import Traffic, traffic
from foretile.simulator.workload import CHIP_ENGINES, Branch, Loop, Node, Op, Workload

Array = Any
_SAMPLES = {0: 1, 1: 32, 2: 6, 3: 4}  # points per index, by number of indices that matter
_LOOP_SAMPLES = 8
_CANDIDATES = 1024  # values of an index among which those are chosen that stand for all
_FAR = 0.3  # logarithm by which the samples' mean trip count may miss that of all blocks


@dataclass(frozen=True)
class Plan:
    """Everything about a workload that depends on the shape but not on contention.

    ``blocks``, ``slots`` (resident at once), ``full_waves``, ``tail_blocks``; ``period`` of the
    classes where they repeat (else 0); ``trips`` and ``chance`` by loop or branch (keyed by
    identity); ``counts`` executions per block by access; ``core_busy`` seconds of service per block
    by core engine; ``chip_busy`` seconds for the whole kernel by chip engine; ``dram_rate`` bytes a
    second for this kernel's mix of reads and writes; ``dram_stall`` the part of the DRAM's service
    that holds up reads (the rest waits in the L2); ``waiting`` seconds that a load holds its queue beyond
    its own work, by access: for lines that others read too, and for DRAM; ``executed_flops`` of the
    matrix instructions, ``tile_flops`` of the tiles before padding to an instruction's shape.
    """

    workload: Workload
    conditions: Conditions
    env: Mapping[str, Any]
    blocks: Array
    slots: int
    full_waves: Array
    tail_blocks: Array
    samples: int
    period: int
    trips: Mapping[int, Array]
    chance: Mapping[int, Array]
    traffic: Traffic
    core_busy: Mapping[str, Array]
    chip_busy: Mapping[str, Array]
    dram_rate: Array
    dram_stall: Array
    waiting: Mapping[int, Array]
    executed_flops: Array
    tile_flops: Array

    def work(self, op: Op) -> tuple[tuple[str, Array], ...]:
        """Seconds of service of one execution of ``op`` by one block, by core engine."""
        if op.access not in self.waiting or not op.work:
            return op.work
        (queue, seconds), *others = op.work
        return ((queue, seconds + self.waiting[op.access]), *others)


@dataclass(frozen=True)
class Filled:
    """What of a plan depends on the shape and the cores, and on no number outside of them.

    ``counts``: mean executions of each access per block; ``busy``: seconds of service per block by core
    engine, without the port; ``waiting``: loads whose queue may have to wait for the memory. The other
    fields are those of :class:`Plan`.
    """

    env: Mapping[str, Any]
    blocks: Array
    samples: int
    period: int
    trips: Mapping[int, Array]
    chance: Mapping[int, Array]
    counts: list[Array]
    busy: Mapping[str, Array]
    waiting: list[Op]
    executed_flops: Array
    tile_flops: Array


def plan(
    workload: Workload,
    dims: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray | Stacked] | None = None,
    *,
    resolution: int | None = None,
    conditions: Conditions = COLD,
) -> Plan:
    """Fill the shape in. ``dims`` values are numbers or equal-length 1-D arrays.

    ``tensors`` binds integer tensors whose values decide trip counts: one for all shapes, or
    ``Stacked`` with one a shape. ``resolution`` is the largest
    number of classes per block index (for a single shape); without it a few samples stand for all.
    ``conditions`` say what the L2 holds at the start.

    Raises:
        SimulationError: a trip count depends on the values of a tensor that is not given.
    """
    filled = fill(workload, dims, tensors, resolution)
    return planned(workload, filled, traffic_of(workload, filled, conditions), conditions)


def fill(
    workload: Workload,
    dims: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray | Stacked] | None = None,
    resolution: int | None = None,
) -> Filled:
    """The first step of :func:`plan`: the same for machines whose cores are alike."""
    env: dict[str, Any] = {k: np.asarray(v, dtype=np.float64).reshape(-1, 1) for k, v in dims.items()}
    env.update(tensors or {})
    blocks: Array = np.ones((1, 1))
    for extent in workload.grid:
        blocks = blocks * np.maximum(1.0, evaluate(extent, env))
    if workload.persistent is not None:  # blocks without a tile leave at once
        blocks = np.minimum(blocks, np.maximum(1.0, evaluate(workload.persistent, env)))
    unbound = workload.deciding - set(env)
    if unbound:
        raise SimulationError(
            f"{workload.program.name}: trip counts depend on the values of {', '.join(sorted(unbound))}; "
            "give them as tensors={name: array} (on the command line --tensors operands.npz)"
        )
    env, samples, period = _with_samples(workload, env, resolution)
    counter = _Counter(workload, env, blocks)
    counter.visit(workload.nodes, np.ones((1, 1)))
    return Filled(
        env=env,
        blocks=blocks,
        samples=samples,
        period=period,
        trips=counter.trips,
        chance=counter.chance,
        counts=[np.mean(c, axis=-1, keepdims=True) for c in counter.counts],
        busy={e: np.mean(t, axis=-1, keepdims=True) for e, t in counter.busy.items()},
        waiting=counter.waiting,
        executed_flops=np.mean(counter.flops, axis=-1, keepdims=True) * blocks,
        tile_flops=np.mean(counter.tile_flops, axis=-1, keepdims=True) * blocks,
    )


def traffic_of(workload: Workload, filled: Filled, conditions: Conditions) -> Traffic:
    """The second step of :func:`plan`: the same for machines that differ in ``RATES`` only."""
    wave = np.minimum(float(_slots(workload)), filled.blocks)
    return traffic(workload, filled.counts, filled.blocks, wave, filled.env, conditions)


def planned(workload: Workload, filled: Filled, moved: Traffic, conditions: Conditions) -> Plan:
    """The last step of :func:`plan`; the machine may be one of alternatives (``alternatives.py``)."""
    machine = workload.machine
    if np.any(machine.answer != 1.0):
        moved = replace(moved, latency_s=[x * machine.answer for x in moved.latency_s])
    slots = _slots(workload)
    port = sum(
        (b * c for b, c in zip(moved.port_bytes, filled.counts, strict=True)),
        np.zeros((1, 1)),
    )
    # The mix of what has to cross at least: with it a larger L2 never lowers the rate.
    rate = dram_rate(workload, moved.dram_first_bytes, moved.dram_write_bytes)
    core_busy = {**filled.busy, "port": port / machine.port_bytes_per_s}
    waiting = _waiting(machine, filled, moved, rate)
    for op in filled.waiting:
        queue, _ = op.work[0]
        core_busy[queue] = core_busy[queue] + waiting[op.access] * filled.counts[op.access]
    written = np.maximum(machine.l2_write_cost, machine.fabric_cost) * moved.l2_write_bytes
    chip_busy = {
        "l2": (moved.l2_read_cost + written) / machine.l2_chip_bytes_per_s,
        "dram": (moved.dram_read_bytes + moved.dram_write_bytes) / rate,
        "atomic": moved.atomic_bytes / machine.atomic_chip_bytes_per_s,
    }
    assert tuple(chip_busy) == CHIP_ENGINES
    held = np.minimum(moved.dram_write_bytes, machine.l2_bytes)
    full = np.floor(filled.blocks / slots)
    return Plan(
        workload=workload,
        conditions=conditions,
        env=filled.env,
        blocks=filled.blocks,
        slots=slots,
        full_waves=full,
        tail_blocks=filled.blocks - full * slots,
        samples=filled.samples,
        period=filled.period,
        trips=filled.trips,
        chance=filled.chance,
        traffic=moved,
        core_busy=core_busy,
        chip_busy=chip_busy,
        dram_rate=rate,
        dram_stall=chip_busy["dram"] - held / rate,
        waiting=waiting,
        executed_flops=filled.executed_flops,
        tile_flops=filled.tile_flops,
    )


def _slots(workload: Workload) -> int:
    return workload.machine.cores * workload.occupancy.blocks_per_core


def _waiting(machine: Machine, filled: Filled, moved: Traffic, rate: Array) -> dict[int, Array]:
    """Seconds that a load holds its queue beyond its own work, by access: see :class:`Plan`."""
    waiting: dict[int, Array] = {}
    cores = np.minimum(filled.blocks, float(machine.cores))
    for op in filled.waiting:
        wait = op.from_memory
        assert wait is not None
        shared = wait.line_s * moved.readers[op.access] - wait.moved_s
        missed = moved.missed_bytes[op.access] * cores / rate
        hit_s = wait.moved_s * moved.missed_share[op.access]  # what they would take from the L2
        waiting[op.access] = np.maximum(0.0, np.maximum(shared, missed - hit_s))
    return waiting


def dram_rate(workload: Workload, read: Array, write: Array) -> Array:
    """DRAM bytes a second at this mix: linear between read-only, half-and-half (copy) and write-only."""
    m = workload.machine
    share = write / np.maximum(1.0, read + write)
    mixed = np.where(
        share <= 0.5,
        m.dram_read_fraction + (m.dram_copy_fraction - m.dram_read_fraction) * 2.0 * share,
        m.dram_copy_fraction + (m.dram_write_fraction - m.dram_copy_fraction) * (2.0 * share - 1.0),
    )
    return m.dram_bytes_per_s * mixed


def _with_samples(
    workload: Workload, env: dict[str, Any], resolution: int | None
) -> tuple[dict[str, Any], int, int]:
    names = workload.sampled
    per_index = _SAMPLES[min(3, len(names))]
    if resolution is not None and len(names) == 1:
        per_index = int(min(resolution, np.max(np.maximum(1.0, evaluate(workload.ranges[names[0]], env)))))
    period = workload.period
    if 0 < period <= _SAMPLES[1]:  # all there is to see repeats: take every value once
        env[names[0]] = np.arange(period, dtype=np.float64).reshape(1, -1)
        for name in workload.ranges:
            env.setdefault(name, 0.0)
        return env, period, period
    # One point in every stratum, shifted by the golden ratio: even spacing would beat with trip
    # counts that alternate from block to block, as those that tensors decide do (every other tile of
    # a group is padding, say).
    index = np.arange(per_index)
    even = resolution is not None and not workload.deciding
    shift = 0.5 if even else (0.618034 * (index + 1.0)) % 1.0
    centres = (index + shift) / per_index
    grid = np.meshgrid(*([centres] * len(names)), indexing="ij")
    for name, points in zip(names, grid, strict=True):
        extent = np.maximum(1.0, evaluate(workload.ranges[name], env))
        env[name] = np.floor(points.reshape(1, -1) * extent)
    for name in workload.ranges:
        env.setdefault(name, 0.0)
    if resolution is None and len(names) == 1 and workload.deciding:
        env[names[0]] = _representative(workload, env, names[0])
    return env, per_index ** len(names), 0


def _representative(workload: Workload, env: Mapping[str, Any], name: str) -> Array:
    """Values of the index ``name``, (shapes, samples), whose mean trip count comes near that of all.

    Where tensors decide, few blocks may have work, anywhere in the grid (a tile of rows in each of a
    thousand groups), and samples spread over the grid miss them. Rows whose mean is far off take other
    values: sorted by trips, at equal steps of rank, and the longest where hardly any has work.
    """
    held: Array = env[name]
    extent = np.asarray(np.maximum(1.0, evaluate(workload.ranges[name], dict(env))), dtype=np.float64)
    extent = np.broadcast_to(extent.reshape(-1, 1), (max(np.size(extent), len(held)), 1))
    width = int(min(_CANDIDATES, np.max(extent)))
    index = np.arange(width)
    spread = np.floor((index + (0.618034 * (index + 1.0)) % 1.0) / width * extent)
    values = np.where(extent <= width, np.minimum(index, extent - 1.0), spread)
    valid = np.minimum(extent, width)  # places of a row; those beyond repeat its last value
    trips = _trips(workload, env, name, values)
    order = np.argsort(np.where(index < valid, trips, np.inf), axis=-1, kind="stable")
    count = np.shape(held)[-1]
    places = np.floor((np.arange(count) + 0.5) / count * valid).astype(np.int64)
    ranked = np.take_along_axis(trips, order, axis=-1)
    missed = np.take_along_axis(ranked, places[:, -1:], axis=-1) == 0.0
    places[:, -1:] = np.where(missed, valid.astype(np.int64) - 1, places[:, -1:])
    other = np.take_along_axis(values, np.take_along_axis(order, places, axis=-1), axis=-1)
    whole = np.sum(np.where(index < valid, trips, 0.0), axis=-1, keepdims=True) / valid

    def far(chosen: Array) -> Array:
        mean = np.mean(_trips(workload, env, name, chosen), axis=-1, keepdims=True)
        return np.abs(np.log((mean + 1e-3) / (whole + 1e-3)))

    off = far(held)
    return np.where((off > _FAR) & (far(other) < off), other, held)


def _trips(workload: Workload, env: Mapping[str, Any], name: str, values: Array) -> Array:
    """Iterations of the loops whose extent depends on ``name`` or on tensors, by its values."""
    trial = {**env, name: values}
    total: Array = np.zeros(np.shape(values))
    for loop in _loops(workload.nodes):
        used = variables(loop.extent)
        if used & (workload.deciding | {name}) and used <= set(trial):
            total = total + np.maximum(0.0, np.asarray(evaluate(loop.extent, trial), dtype=np.float64))
    return total


def _loops(nodes: tuple[Node, ...]) -> Iterator[Loop]:
    for node in nodes:
        if isinstance(node, Loop):
            yield node
            yield from _loops(node.body)
        elif isinstance(node, Branch):
            yield from _loops(node.then)
            yield from _loops(node.orelse)


class _Counter:
    """Trip counts, branch chances, executions and service time of one block."""

    def __init__(self, workload: Workload, env: dict[str, Any], blocks: Array) -> None:
        self.env = env
        self.blocks = blocks
        self.trips: dict[int, Array] = {}
        self.chance: dict[int, Array] = {}
        self.counts: list[Array] = [np.zeros((1, 1))] * len(workload.accesses)
        self.busy: dict[str, Array] = {}
        self.flops: Array = np.zeros((1, 1))
        self.tile_flops: Array = np.zeros((1, 1))
        self.waiting: list[Op] = []  # loads whose queue may have to wait for the memory
        self.open: dict[str, tuple[Array, int, Array]] = {}

    def visit(self, nodes: tuple[Node, ...], times: Array) -> None:
        for node in nodes:
            if isinstance(node, Op):
                self.operation(node, times)
            elif isinstance(node, Loop):
                self.loop(node, times)
            else:
                self.branch(node, times)

    def operation(self, op: Op, times: Array) -> None:
        for engine, seconds in op.work:
            self.busy[engine] = self.busy.get(engine, 0.0) + seconds * times
        if op.access >= 0:
            self.counts[op.access] = self.counts[op.access] + times
            if op.work and op.from_memory is not None:
                self.waiting.append(op)
        if op.flops:
            self.flops = self.flops + op.flops * times
            self.tile_flops = self.tile_flops + op.tile_flops * times

    def loop(self, loop: Loop, times: Array) -> None:
        trips = np.maximum(0.0, np.asarray(evaluate(loop.extent, self.env), dtype=np.float64))
        start = 0.0 if loop.start is None else evaluate(loop.start, self.env)
        self.trips[id(loop)] = trips
        self.open[loop.var] = (start, loop.step, trips)
        self.env[loop.var] = np.floor(start + loop.step * np.maximum(0.0, trips - 1.0) / 2)
        # Blocks of a persistent grid do a whole or one fewer round of tiles: count the mean.
        mean = trips if loop.dealt is None else evaluate(loop.dealt, self.env) / self.blocks
        for op in loop.loads:
            self.operation(op, times * mean)
        self.visit(loop.body, times * mean)
        del self.open[loop.var]

    def branch(self, branch: Branch, times: Array) -> None:
        chance = self._chance(branch.cond)
        self.chance[id(branch)] = chance
        self.visit(branch.then, times * chance)
        self.visit(branch.orelse, times * (1.0 - chance))

    def _chance(self, cond: Expr) -> Array:
        """Share of executions in which ``cond`` holds: over iterations of the innermost loop it uses."""
        inside = [name for name in self.open if name in variables(cond)]
        if not inside:
            return self._held(cond)
        name = inside[-1]
        start, step, trips = self.open[name]
        held = self.env[name]
        total: Array = 0.0
        for i in range(_LOOP_SAMPLES):
            self.env[name] = np.floor(start + step * np.floor(trips * (i + 0.5) / _LOOP_SAMPLES))
            total = total + self._held(cond)
        self.env[name] = held
        return total / _LOOP_SAMPLES

    def _held(self, cond: Expr) -> Array:
        try:
            return np.asarray(evaluate(cond, self.env), dtype=np.float64)
        except KeyError as error:
            raise SimulationError(
                f"a branch depends on {error.args[0]}, which tells threads apart; it cannot be timed"
            ) from None
