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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretile.simulator.machine import settle_decades
from foretile.simulator.plan import Array, Plan, company, last_longest
from foretile.simulator.workload import CLOCKED, Branch, Loop, Node, Op

_SPREAD = 0.3  # relative difference of block lengths beyond which waves no longer line up


@dataclass(frozen=True)
class Estimate:
    """Times in seconds, arrays of shape (shapes, 1).

    ``busy``: by engine, the mean over cores of its service time; ``tail_s``: idle cores in the last
    wave; ``epilogue_s``: after the last loop of the last block; ``fill_s``: before the first.
    """

    time_s: Array
    busy: Mapping[str, Array]
    launch_s: Array
    fill_s: Array
    tail_s: Array
    epilogue_s: Array


def estimate(plan: Plan) -> Estimate:
    """Predicted time of the whole kernel.

    The clock under matrix load sinks with run time, so the estimate is made at the burst clock and,
    where it exceeds the settling time, once more at the clock that this duration implies.
    """
    first = _at_clock(plan, np.ones((1, 1)))
    machine = plan.workload.machine
    if not plan.workload.dtype or machine.matrix_sustained_ratio >= 1.0 or not np.any(first.time_s > machine.settle_s):
        return first
    return _at_clock(plan, matrix_slowdown(plan, first.time_s))


def matrix_slowdown(plan: Plan, time_s: Array) -> Array:
    """Factor by which matrix work takes longer than at the burst clock in a run of this duration."""
    m = plan.workload.machine
    decades = np.log10(np.maximum(1.0, time_s / m.settle_s))
    settled = np.minimum(1.0, decades / settle_decades())
    return 1.0 / (1.0 - (1.0 - m.matrix_sustained_ratio) * settled)


def _at_clock(plan: Plan, slow: Array) -> Estimate:
    w = plan.workload
    machine = w.machine
    resident = float(w.occupancy.blocks_per_core)
    slots = float(plan.slots)
    tail = plan.tail_blocks
    tail_resident = np.ceil(tail / machine.cores)

    full = _Timeline(plan, slow, resident, slots).run()
    one_each = np.minimum(float(machine.cores), plan.blocks)
    alone = _Timeline(plan, slow, 1.0, one_each).run() if resident > 1 else full
    last = _Timeline(plan, slow, np.maximum(1.0, tail_resident), np.maximum(1.0, tail)).run()
    has_tail = tail > 0
    waves = plan.blocks / slots
    pick = plan.full_waves > 0

    # The first blocks of a core start together and contend throughout; later ones have drifted
    # apart, and one's ramp and epilogue hide behind the others' main loops.
    service = _service(plan, slow, resident, slots) * full.total / np.maximum(1e-30, _mean(full.total))
    apart = np.minimum(full.total, _soft_max(alone.total, service))
    first = np.where(pick, _mean(full.total), 0.0)
    tail_time = np.where(has_tail, _mean(last.total), 0.0)
    # The tail's blocks start when the first of the last full round ends, not the last.
    opening = np.minimum(first, np.maximum(_mean(alone.total), first - _mean(full.stagger)))
    rounds = np.maximum(0.0, plan.full_waves - 1.0) * _mean(apart)
    lined_up = rounds + np.where(has_tail, np.maximum(first, np.where(pick, opening, 0.0) + tail_time), first)
    even = first + (waves - 1.0) * _mean(apart)
    if plan.samples > 1:
        lined_up = _unequal(plan, np.where(pick, full.total, last.total), apart, lined_up, even)

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
    total = launch + np.maximum(time, dispatch)
    return Estimate(
        time_s=total,
        busy=busy,
        launch_s=launch,
        fill_s=fill,
        tail_s=np.maximum(0.0, lined_up - even),
        epilogue_s=epilogue,
    )


def _unequal(plan: Plan, course: Array, apart: Array, lined_up: Array, even: Array) -> Array:
    """Time of blocks of unequal length, dealt in raster order to whichever slot is free.

    Nearly equal blocks stay lined up in waves. Very unequal ones even out, but for half of a short
    block at the end, or for a long block that is dealt late. In between the two are mixed by the spread.
    """
    longest = np.max(course, axis=-1, keepdims=True)
    shortest = np.min(course, axis=-1, keepdims=True)
    spread = (longest - shortest) / np.maximum(longest, 1e-30)
    alike = np.clip(1.0 - spread / _SPREAD, 0.0, 1.0)
    at = last_longest(plan, course)
    dealt_at = np.where(at < plan.slots, 0.0, np.maximum(0.0, even * at / plan.blocks - 0.5 * _mean(apart)))
    late = dealt_at + np.max(apart, axis=-1, keepdims=True)
    dealt = np.maximum(even + 0.5 * np.min(apart, axis=-1, keepdims=True), late)
    mixed = alike * lined_up + (1.0 - alike) * dealt
    return np.where(plan.full_waves > 0, np.maximum(longest, mixed), longest)


def _service(plan: Plan, slow: Array, resident: float, slots: float) -> Array:
    """Longest service any engine needs for one round of resident blocks."""
    longest: Array = np.zeros((1, 1))
    for engine, seconds in plan.core_busy.items():
        longest = np.maximum(longest, resident * (seconds * slow if engine in CLOCKED else seconds))
    for seconds in plan.chip_busy.values():
        longest = np.maximum(longest, seconds * slots / plan.blocks)
    return longest


def block_times(plan: Plan, slow: float, resident: float, active: float) -> Array:
    """Seconds one block of each class takes, for the first shape of the plan; a flat array."""
    timeline = _Timeline(plan, np.full((1, 1), slow), resident, active).run()
    return np.broadcast_to(timeline.total, (1, plan.samples)).ravel().astype(np.float64)


def _mean(values: Array) -> Array:
    if np.ndim(values) < 2 or values.shape[-1] == 1:
        return values
    return np.mean(values, axis=-1, keepdims=True)


def _soft_max(a: Array, b: Array) -> Array:
    """The 4-norm of two times, a maximum that is soft where they are close.

    Work that competes (agents inside a loop, blocks that have drifted apart) overlaps one's waiting
    with another's service, but not perfectly. The exponent is fitted to the event engine.
    """
    a2, b2 = a * a, b * b
    return np.sqrt(np.sqrt(a2 * a2 + b2 * b2))


class _Timeline:
    """The course of one block while ``resident`` blocks share its core and ``active`` the chip."""

    def __init__(self, plan: Plan, slow: Array, resident: Array, active: Array) -> None:
        self.plan = plan
        self.slow = slow
        self.resident = resident
        self.active = active
        w = plan.workload
        self.machine = w.machine
        self.agents = float(w.agents)
        self.rate = self.agents * w.agent_rate
        self.fill: Array = 0.0
        self.looped: Array = 0.0  # time inside loops, fill included
        self.total: Array = 0.0
        self.epilogue: Array = 0.0
        self.outside: dict[str, Array] = {}  # service of operations outside of loops, whole block
        self.stagger: Array = 0.0  # between the first and the last of the blocks that start together
        self.queued: Array = 0.0  # waiting for others' loads, outside of loops
        self._ahead: Array = 0.0
        self._inside = False

    def run(self) -> _Timeline:
        self.total = self.sequence(self.plan.workload.nodes, outer=True)
        return self

    def duration(self, op: Op) -> Array:
        """Time an agent needs for its share of ``op`` when nothing competes."""
        if op.kind == "barrier":
            return op.serial_s
        if op.kind == "matrix":
            return op.serial_s * self.slow / self.agents + op.latency_s
        if op.kind == "store":
            port = self.plan.traffic.port_bytes[op.access] / self.machine.port_bytes_per_s
            return np.maximum(op.serial_s, port) / self.agents
        return op.serial_s * self.slow / self.rate

    def arrival(self, *ops: Op, first: bool = False) -> Array:
        """Time from the issue of loads until all their tiles are on the core.

        The ``first`` loads of a loop find their buffers free: no producer has to be told.
        """
        t, m = self.plan.traffic, self.machine
        latency: Array = 0.0
        service: dict[str, Array] = {"port": 0.0, "l2": 0.0, "dram": 0.0}
        share = self.active / self.resident  # the core gets its blocks' share of the chip's engines
        for op in ops:
            latency = np.maximum(latency, t.latency_s[op.access] + (0.0 if first else op.latency_s))
            moved = t.l2_bytes[op.access] * share
            service["port"] = service["port"] + t.port_bytes[op.access] / m.port_bytes_per_s
            service["l2"] = service["l2"] + moved / m.l2_chip_bytes_per_s
            service["dram"] = service["dram"] + moved * t.dram_share[op.access] / self.plan.dram_rate
            for engine, seconds in op.work:
                service[engine] = service.get(engine, 0.0) + seconds
        longest: Array = 0.0
        for seconds in service.values():
            longest = np.maximum(longest, seconds)
        return latency + longest / self.agents

    def queueing(self, op: Op) -> Array:
        """What a load outside of loops waits beyond its own turn: all blocks ask at the same time."""
        t, m = self.plan.traffic, self.machine
        moved = t.l2_bytes[op.access]
        share = self.active / self.resident / self.agents
        own = np.maximum(
            t.port_bytes[op.access] / self.agents / m.port_bytes_per_s,
            np.maximum(
                share * moved / m.l2_chip_bytes_per_s,
                share * moved * t.dram_share[op.access] / self.plan.dram_rate,
            ),
        )
        longest = np.maximum(
            self.resident * t.port_bytes[op.access] / m.port_bytes_per_s,
            self.active * moved / m.l2_chip_bytes_per_s,
        )
        longest = np.maximum(longest, self.active * moved * t.dram_share[op.access] / self.plan.dram_rate)
        return np.maximum(0.0, longest - own)

    def sequence(
        self, nodes: tuple[Node, ...], outer: bool = False, spans: dict[str, tuple[Array, Array]] | None = None
    ) -> Array:
        """Time of ``nodes`` in program order; ``spans`` collects first and last use of each engine."""
        t: Array = np.zeros((1, 1))
        longest: Array = np.zeros((1, 1))
        looped_time: Array = np.zeros((1, 1))
        after: Array = np.zeros((1, 1))
        pending: dict[str, Array] = {}
        looped = False
        for node in nodes:
            before = t
            if isinstance(node, Op):
                for name in node.reads:
                    if name in pending:
                        t = np.maximum(t, pending.pop(name))
                began = t
                t = t + self.duration(node)
                if outer:
                    self._outside(node)
                if spans is not None:
                    for engine, _ in node.work:
                        spans[engine] = (spans[engine][0] if engine in spans else began, t)
                if node.kind == "load":
                    queue = self.queueing(node)
                    self.queued = self.queued + (queue if outer else 0.0)
                    pending[node.writes] = t + self.arrival(node) + queue
                longest = np.maximum(longest, t - began)
                self._ahead = np.where(self._ahead > 0, self._ahead + t - before, self._ahead)
                after = after + (t - before)
            elif isinstance(node, Loop):
                runs = np.minimum(1.0, self.plan.trips[id(node)])
                steady, rest, chain = self.loop(node)
                waited = rest
                for ready in pending.values():  # the body needs them; an empty loop does not
                    waited = np.maximum(waited, ready - t)
                if outer and not looped:
                    self.fill = t + runs * waited
                looped = True
                t = t + runs * (waited + steady + chain)
                looped_time = looped_time + runs * (rest + steady + chain)
                after = np.zeros((1, 1))
            else:
                for ready in pending.values():
                    t = np.maximum(t, ready)
                pending.clear()
                chance = self.plan.chance[id(node)]
                t = t + chance * self.sequence(node.then) + (1.0 - chance) * self.sequence(node.orelse)
        for ready in pending.values():
            t = np.maximum(t, ready)
        if outer:
            # Of agents that start together the last one ends after the others' turns on the busiest
            # engine.
            turns: Array = 0.0
            for seconds in self.outside.values():
                turns = np.maximum(turns, seconds)
            # Agents that queued for their loads arrive one after the other and take turns for free.
            extra = np.maximum(0.0, turns * (self.resident - 1.0 / self.agents) - self.queued)
            self.stagger = self.stagger + extra + self.queued
            t = t + extra
            self.looped = looped_time
            self.epilogue = after if looped else np.zeros((1, 1))
            self.fill = self.fill if looped else t - longest
        return t

    def _outside(self, op: Op) -> None:
        if op.access >= 0:
            port = self.plan.traffic.port_bytes[op.access] / self.machine.port_bytes_per_s
            self.outside["port"] = self.outside.get("port", 0.0) + port
        for engine, seconds in op.work:
            service = seconds * self.slow if engine in CLOCKED else seconds
            self.outside[engine] = self.outside.get(engine, 0.0) + service

    def loop(self, loop: Loop) -> tuple[Array, Array, Array]:
        """Time in the steady state, wait for the first loads, and one chain, if it runs at all.

        Every engine needs its service for all iterations of all resident blocks, plus the parts of
        one chain before its first and after its last use.
        """
        trips = self.plan.trips[id(loop)]
        nested = any(isinstance(node, Loop) for node in loop.body)
        outermost, self._inside = not self._inside, True
        ahead_before = self._ahead
        # In a loop of tiles whose loads run ahead, only the first tile's first loads are waited for.
        self._ahead = np.inf if nested and loop.run_ahead else 0.0
        spans: dict[str, tuple[Array, Array]] = {}
        chain = self.sequence(loop.body, spans=spans)
        interval = chain
        if nested:  # agents drift apart: one's epilogue hides behind the others' products
            shared = self.resident, self.active
            self.resident, self.active = 1.0 / self.agents, shared[1] / (shared[0] * self.agents)
            self._ahead = np.inf if loop.run_ahead else 0.0
            single = self.sequence(loop.body)
            self.resident, self.active = shared
            services = [service for service, _ in self.service(loop, {}, 0.0)]
            interval = np.minimum(chain, _soft_max(single, np.maximum.reduce(np.broadcast_arrays(*services))))
        self._ahead = ahead_before
        rest: Array = np.zeros((1, 1))
        wait: Array = np.zeros((1, 1))
        if loop.loads:
            # Later tiles arrive behind the operations that use the leading ones.
            wait = np.maximum(0.0, (self.arrival(*loop.loads[: loop.lead]) + chain) / loop.stages - interval)
            ahead = self._ahead if loop.run_ahead else 0.0
            rest = np.maximum(0.0, self.arrival(*loop.loads[: loop.lead], first=True) - ahead)
        # The first ``stages`` iterations' loads are all under way before the first one starts.
        steady = np.maximum(0.0, trips - 1.0) * interval + np.maximum(0.0, trips - loop.stages) * wait
        busiest: Array = np.zeros((1, 1))
        turn: Array = 0.0
        for service, own in self.service(loop, spans, rest):
            turn = np.maximum(turn, service)
            if nested:  # the chain holds the inner loops' contention already
                own = service
            busiest = np.maximum(busiest, trips * service - np.minimum(rest + chain, own))
        if self.agents * np.max(self.resident) > 1:
            steady = _soft_max(steady, busiest)
        else:
            steady = np.maximum(steady, busiest)
        if outermost:  # blocks follow each other through an iteration at the pace of its busiest engine
            behind = turn * (1.0 - 1.0 / (self.resident * self.agents))
            self.stagger = np.maximum(self.stagger, behind * np.minimum(1.0, trips))
            self._inside = False
        # How long before its end this loop has buffers to spare for the next one's first loads.
        spare = np.where(trips < loop.stages, steady + rest + chain, (loop.stages - 1) * (interval + wait))
        self._ahead = np.where(trips > 0, spare, self._ahead)
        return steady, rest, chain

    def service(
        self, loop: Loop, spans: Mapping[str, tuple[Array, Array]], rest: Array
    ) -> list[tuple[Array, Array]]:
        """Per engine: service of one iteration for all resident (or active) blocks, and the part of
        the chain (or of the fill) during which the engine can be at work."""
        core: dict[str, Array] = {}
        chip = {"l2": 0.0, "dram": 0.0, "port": 0.0, "atomic": 0.0}
        self._collect((*loop.loads, *loop.body), 1.0, core, chip)
        m = self.machine
        lead: dict[str, Any] = {"l2": 0.0, "dram": 0.0, "port": 0.0, "atomic": 0.0}
        self._collect(loop.loads[: loop.lead], 1.0, {}, lead)
        alike = company(self.plan, self.plan.trips[id(loop)])
        resident = 1.0 / self.agents + (self.resident - 1.0 / self.agents) * alike
        active = self.active * resident / self.resident
        filling = {engine for op in loop.loads for engine, _ in op.work}
        found: list[tuple[Array, Array]] = []
        for engine, seconds in core.items():
            service = seconds * self.slow if engine in CLOCKED else seconds
            began, ended = spans.get(engine, (0.0, service / self.agents))
            # An engine that loads use too is at work from the first one's issue on.
            found.append((resident * service, ended + rest if engine in filling else ended - began))
        rates = (
            ("port", resident, m.port_bytes_per_s),
            ("l2", active, m.l2_chip_bytes_per_s),
            ("dram", active, self.plan.dram_rate),
            ("atomic", active, m.atomic_chip_bytes_per_s),
        )
        # What arrives after the first operation has started overlaps the chain; what it waits for
        # is partly in the fill already (this block's own turn on the port).
        for name, blocks, rate in rates:
            before = blocks * lead[name] / rate
            turn = before / (resident * self.agents)
            found.append((blocks * chip[name] / rate, blocks * chip[name] / rate - before + turn))
        return found

    def _collect(self, nodes: tuple[Node, ...], times: Array, core: dict[str, Array], chip: dict[str, Any]) -> None:
        t = self.plan.traffic
        for node in nodes:
            if isinstance(node, Op):
                for engine, seconds in node.work:
                    core[engine] = core.get(engine, 0.0) + seconds * times
                if node.access >= 0:
                    bytes_ = t.l2_bytes[node.access] * times
                    chip["l2"] = chip["l2"] + bytes_
                    chip["port"] = chip["port"] + t.port_bytes[node.access] * times
                    chip["dram"] = chip["dram"] + bytes_ * t.dram_share[node.access]
                    if self.plan.workload.accesses[node.access].direction == "atomic":
                        chip["atomic"] = chip["atomic"] + bytes_
            elif isinstance(node, Loop):
                self._collect((*node.loads, *node.body), times * self.plan.trips[id(node)], core, chip)
            else:
                chance = self.plan.chance[id(node)]
                self._collect(node.then, times * chance, core, chip)
                self._collect(node.orelse, times * (1.0 - chance), core, chip)
