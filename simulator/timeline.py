"""The course of one block in closed form: operations in order, loops at their steady interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretile.simulator.plan import Array, Plan
from foretile.simulator.raster import Dealing
from foretile.simulator.workload import CLOCKED, Branch, Loop, Node, Op


def soft_max(a: Array, b: Array) -> Array:
    """The 4-norm of two times, a maximum that is soft where they are close.

    Work that competes (agents inside a loop, blocks that have drifted apart) overlaps one's waiting
    with another's service, but not perfectly. The exponent is fitted to the event engine.
    """
    a2, b2 = a * a, b * b
    return np.sqrt(np.sqrt(a2 * a2 + b2 * b2))


def _after(t: Array, pending: dict[str, Array], names: tuple[str, ...], early: Array = 0.0) -> Array:
    """``t`` or, if later, ``early`` before those of ``names`` that are on their way have arrived."""
    for name in names:
        if name in pending:
            t = np.maximum(t, pending.pop(name) - early)
    return t


@dataclass
class _Queues:
    """Operations that an agent has sent off: when each ends, and when its queues are free again."""

    ends: dict[str, Array] = field(default_factory=dict)
    free: dict[str, Array] = field(default_factory=dict)

    def send(self, op: Op, at: Array, duration: Array) -> Array:
        """Queue ``op`` at ``at``; returns when it starts."""
        for engine, _ in op.work:
            at = np.maximum(at, self.free.get(engine, 0.0))
        for engine, _ in op.work:
            self.free[engine] = at + duration
        self.ends[op.writes] = at + duration
        return at

    def after(self, t: Array) -> _Queues:
        """The same, counted from ``t``."""
        return _Queues(
            {name: np.maximum(0.0, end - t) for name, end in self.ends.items()},
            {engine: np.maximum(0.0, end - t) for engine, end in self.free.items()},
        )


class Timeline:
    """The course of one block while ``resident`` blocks share its core and ``active`` the chip."""

    def __init__(self, plan: Plan, slow: Array, resident: Array, active: Array, dealing: Dealing) -> None:
        self.plan = plan
        self.dealing = dealing
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
        self.first_wait: Array = 0.0  # of the loop entered last
        self._ahead: Array = 0.0

    def run(self) -> Timeline:
        """Walk the block: sets ``total``, ``looped``, ``fill``, ``epilogue`` and ``outside``."""
        self.block(self.plan.workload.nodes)
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
        arrived: Array = 0.0
        service: dict[str, Array] = {"port": 0.0, "l2": 0.0, "dram": 0.0}
        share = self.active / self.resident  # the core gets its blocks' share of the chip's engines
        for op in ops:
            moved = t.l2_bytes[op.access] * share
            service["port"] = service["port"] + t.port_bytes[op.access] / m.port_bytes_per_s
            service["l2"] = service["l2"] + moved / m.l2_chip_bytes_per_s
            service["dram"] = service["dram"] + moved * t.stall_share[op.access] / self.plan.dram_rate
            for engine, seconds in self.plan.work(op):
                service[engine] = service.get(engine, 0.0) + seconds
            queue: Array = 0.0  # this tile's own turn and those of the tiles issued before it
            for seconds in service.values():
                queue = np.maximum(queue, seconds)
            latency = t.latency_s[op.access] + (0.0 if first else op.latency_s)
            arrived = np.maximum(arrived, latency + queue / self.agents)
        return arrived

    def queueing(self, op: Op) -> Array:
        """What a load outside of loops waits beyond its own turn: all blocks ask at the same time."""
        t, m = self.plan.traffic, self.machine
        moved = t.l2_bytes[op.access]
        share = self.active / self.resident / self.agents
        own = np.maximum(
            t.port_bytes[op.access] / self.agents / m.port_bytes_per_s,
            np.maximum(
                share * moved / m.l2_chip_bytes_per_s,
                share * moved * t.stall_share[op.access] / self.plan.dram_rate,
            ),
        )
        longest = np.maximum(
            self.resident * t.port_bytes[op.access] / m.port_bytes_per_s,
            self.active * moved / m.l2_chip_bytes_per_s,
        )
        longest = np.maximum(longest, self.active * moved * t.stall_share[op.access] / self.plan.dram_rate)
        return np.maximum(0.0, longest - own)

    def sequence(
        self,
        nodes: tuple[Node, ...],
        spans: dict[str, tuple[Array, Array]] | None = None,
        queues: _Queues | None = None,
    ) -> Array:
        """Time of ``nodes`` in program order; ``spans`` collects first and last use of each engine.

        What ``queues`` hold at the end is not waited for; without them, everything is.
        """
        t: Array = np.zeros((1, 1))
        pending: dict[str, Array] = {}
        sent = _Queues() if queues is None else queues
        for node in nodes:
            before = t
            if isinstance(node, Op):
                early = node.early_s * self.slow / self.agents
                t = _after(_after(t, pending, node.reads, early), sent.ends, node.reads, early)
                began = t
                if node.queued:
                    began = t = sent.send(node, t, self.duration(node))
                    ended = sent.ends[node.writes]
                else:
                    ended = t = t + self.duration(node)
                if spans is not None:
                    for engine, _ in node.work:
                        spans[engine] = (spans[engine][0] if engine in spans else began, ended)
                if node.kind == "load":
                    pending[node.writes] = t + self.arrival(node)
                self._ahead = np.where(self._ahead > 0, self._ahead + t - before, self._ahead)
            elif isinstance(node, Loop):
                t = t + self._enter(node, t, pending)
            else:
                t = _after(t, pending, tuple(pending)) + self._branch(node)
        t = _after(t, pending, tuple(pending))
        return t if queues is not None else _after(t, sent.ends, tuple(sent.ends))

    def _pace(
        self, body: tuple[Node, ...], spans: dict[str, tuple[Array, Array]] | None = None
    ) -> tuple[Array, Array, Array]:
        """One iteration until everything is done, the agent's own part of it, and the next one's pace.

        An agent that sends operations to queues is through before they are: what the next iteration
        waits for, a second pass shows.
        """
        queues = _Queues()
        own = self.sequence(body, spans, queues)
        if not queues.ends and not queues.free:
            return own, own, own
        whole = own
        for end in queues.ends.values():
            whole = np.maximum(whole, end)
        return whole, own, self.sequence(body, None, queues.after(own))

    def _enter(self, node: Loop, t: Array, pending: Mapping[str, Array]) -> Array:
        """Duration of a loop entered at ``t`` while loads its body needs are still on their way."""
        late: Array = 0.0
        for ready in pending.values():
            late = np.maximum(late, ready - t)
        steady, waited, chain = self.loop(node, late)
        return np.minimum(1.0, self.plan.trips[id(node)]) * (waited + steady + chain)

    def _branch(self, node: Branch) -> Array:
        chance = self.plan.chance[id(node)]
        return chance * self.sequence(node.then) + (1.0 - chance) * self.sequence(node.orelse)

    def block(self, nodes: tuple[Node, ...]) -> None:
        """The whole block: its time, and what of it lies in loops, before and after them.

        The blocks of a round start together. Either they queue for their loads, arrive one after the
        other and then take turns on the engines for free; or the loads come at once and the last
        block ends after the others' turns on the busiest engine. The later of the two counts.
        """
        queued: Array = np.zeros((1, 1))
        quiet: Array = np.zeros((1, 1))
        longest: Array = np.zeros((1, 1))
        self.looped = np.zeros((1, 1))
        after: Array = np.zeros((1, 1))
        pending: dict[str, Array] = {}
        pending_quiet: dict[str, Array] = {}
        loops = 0
        for node in nodes:
            if isinstance(node, Op):
                duration = self.duration(node)
                before = queued
                early = node.early_s * self.slow / self.agents
                queued = _after(queued, pending, node.reads, early)
                quiet = _after(quiet, pending_quiet, node.reads, early)
                if node.queued:
                    pending[node.writes], pending_quiet[node.writes] = queued + duration, quiet + duration
                else:
                    queued, quiet = queued + duration, quiet + duration
                self._outside(node)
                if node.kind == "load":
                    arrival = self.arrival(node)
                    pending[node.writes] = queued + arrival + self.queueing(node)
                    pending_quiet[node.writes] = quiet + arrival
                longest = np.maximum(longest, duration)
                self._ahead = np.where(self._ahead > 0, self._ahead + queued - before, self._ahead)
                after = after + (queued - before)
            elif isinstance(node, Loop):
                duration = self._enter(node, queued, pending)
                if not loops:
                    self.fill = queued + np.minimum(self.first_wait, duration)
                queued = queued + duration
                quiet = quiet + duration
                loops += 1
                self.looped = self.looped + duration
                after = np.zeros((1, 1))
            else:
                part = self._branch(node)
                queued = _after(queued, pending, tuple(pending)) + part
                quiet = _after(quiet, pending_quiet, tuple(pending_quiet)) + part
        queued = _after(queued, pending, tuple(pending))
        quiet = _after(quiet, pending_quiet, tuple(pending_quiet))
        turns: Array = 0.0
        for seconds in self.outside.values():
            turns = np.maximum(turns, seconds)
        self.total = np.maximum(queued, quiet + turns * np.maximum(0.0, self.resident - 1.0 / self.agents))
        self.epilogue = after if loops else np.zeros((1, 1))
        if not loops:
            self.fill = self.total - longest

    def _outside(self, op: Op) -> None:
        if op.access >= 0:
            port = self.plan.traffic.port_bytes[op.access] / self.machine.port_bytes_per_s
            self.outside["port"] = self.outside.get("port", 0.0) + port
        for engine, seconds in self.plan.work(op):
            service = seconds * self.slow if engine in CLOCKED else seconds
            self.outside[engine] = self.outside.get(engine, 0.0) + service

    def loop(self, loop: Loop, late: Array) -> tuple[Array, Array, Array]:
        """Time in the steady state, wait for the first loads, and one chain, if it runs at all.

        ``late``: how long after its entry the last load from before the loop arrives.

        Every engine needs its service for all iterations of all resident blocks, plus the parts of
        one chain before its first and after its last use.
        """
        trips = self.plan.trips[id(loop)]
        nested = any(isinstance(node, Loop) for node in loop.body)
        ahead_before = self._ahead
        self._ahead = 0.0
        spans: dict[str, tuple[Array, Array]] = {}
        chain, own, interval = self._pace(loop.body, spans)
        if nested:  # agents drift apart: one's epilogue hides behind the others' products
            shared = self.resident, self.active
            self.resident, self.active = 1.0 / self.agents, shared[1] / (shared[0] * self.agents)
            # Only the first tile's first loads are waited for where the loads run ahead.
            self._ahead = np.inf if loop.run_ahead else 0.0
            _, _, single = self._pace(loop.body)
            self.resident, self.active = shared
            interval = np.minimum(interval, single)
        self._ahead = ahead_before
        rest: Array = np.zeros((1, 1))
        wait: Array = np.zeros((1, 1))
        if loop.loads:
            # Later tiles arrive behind the operations that use the leading ones.
            wait = np.maximum(0.0, (self.arrival(*loop.loads[: loop.lead]) + own) / loop.stages - interval)
            ahead = self._ahead if loop.run_ahead else 0.0
            rest = np.maximum(0.0, self.arrival(*loop.loads[: loop.lead], first=True) - ahead)
        rest = np.maximum(rest, late)
        self.first_wait = rest
        # The first ``stages`` iterations' loads are all under way before the first one starts.
        steady = np.maximum(0.0, trips - 1.0) * interval + np.maximum(0.0, trips - loop.stages) * wait
        busiest: Array = np.zeros((1, 1))
        for service, own in self.service(loop, spans, rest):
            if nested:  # the chain holds the inner loops' contention already
                own = service
            busiest = np.maximum(busiest, trips * service - np.minimum(rest + chain, own))
        # A single agent competes with nobody for its core.
        crowded = self.agents * self.resident > 1
        steady = np.where(crowded, soft_max(steady, busiest), np.maximum(steady, busiest))
        # How long before its end this loop has buffers to spare for the next one's first loads.
        spare = np.where(trips < loop.stages, steady + rest + chain, (loop.stages - 1) * interval)
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
        alike = self.dealing.company[id(loop)]
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

    def _collect(
        self, nodes: tuple[Node, ...], times: Array, core: dict[str, Array], chip: dict[str, Any]
    ) -> None:
        t = self.plan.traffic
        for node in nodes:
            if isinstance(node, Op):
                for engine, seconds in self.plan.work(node):
                    core[engine] = core.get(engine, 0.0) + seconds * times
                if node.access >= 0:
                    chip["port"] = chip["port"] + t.port_bytes[node.access] * times
                if node.kind == "load":
                    bytes_ = t.l2_bytes[node.access] * times
                    chip["l2"] = chip["l2"] + bytes_
                    chip["dram"] = chip["dram"] + bytes_ * t.dram_share[node.access]
            elif isinstance(node, Loop):
                self._collect((*node.loads, *node.body), times * self.plan.trips[id(node)], core, chip)
            else:
                chance = self.plan.chance[id(node)]
                self._collect(node.then, times * chance, core, chip)
                self._collect(node.orelse, times * (1.0 - chance), core, chip)
