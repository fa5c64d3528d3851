"""Launches of like structure as one: what told them apart becomes columns, and NumPy goes over all at once.

Programs of one operator with other static shapes or tile sizes mostly lower to the same operations in
the same loops with other numbers. A fit evaluates hundreds of them at every step, each for few shapes:
joined, a step costs about as much as a handful of launches.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from foretile.simulator.conditions import Conditions
from foretile.simulator.cost import estimate
from foretile.simulator.launches import set_up
from foretile.simulator.machine import Machine
from foretile.simulator.memory import Traffic
from foretile.simulator.plan import Array, Filled, planned
from foretile.simulator.raster import Dealing
from foretile.simulator.workload import BLOCK_START, Branch, Loop, Node, Op, Workload


@dataclass(frozen=True)
class Launch:
    """A launch with ``count`` shapes filled in: all that no rate of a machine changes."""

    workload: Workload  # before its set-up
    filled: Filled
    moved: Traffic
    dealing: Dealing
    conditions: Conditions
    count: int

    def time_s(self, machine: Machine) -> Array:
        """Seconds by shape, on a machine of the same cores and capacities; (machines, shapes) of several."""
        workload = set_up(self.workload, machine)
        plan = planned(workload, self.filled, self.moved, self.conditions)
        times = estimate(plan, self.dealing).time_s[..., 0]
        return np.broadcast_to(times, (*np.shape(times)[:-1], self.count))

    def structure(self) -> Hashable:
        """Equal for launches that can be joined."""
        w = self.workload
        return (
            self.filled.samples,
            w.occupancy.blocks_per_core,
            w.agents,
            w.agent_rate,
            bool(w.dtype),
            len(w.accesses),
            tuple(self.filled.busy),
            tuple(_structure(node) for node in w.nodes),
            id(self) if self.filled.waiting else 0,  # what waits is known by operation: such stay alone
        )


def joined(launches: Sequence[Launch]) -> Launch:
    """Launches of one structure, on machines of like cores, as one with all their shapes in turn."""
    first = launches[0]
    if len(launches) == 1:
        return first
    counts = [launch.count for launch in launches]
    loops: dict[int, list[int]] = {}  # by identity of a joined loop or branch, the members'
    nodes = _nodes([launch.workload.nodes for launch in launches], counts, loops)
    filled = [launch.filled for launch in launches]
    dealings = [launch.dealing for launch in launches]

    def by_node(held: Sequence[Mapping[int, Array]]) -> dict[int, Array]:
        return {
            new: _column([values[i] for values, i in zip(held, old, strict=True)], counts)
            for new, old in loops.items()
            if old[0] in held[0]
        }

    def places(name: str) -> Array:
        values = [getattr(d, name) for d in dealings]
        return None if values[0] is None else _column(values, counts)

    return Launch(
        workload=replace(first.workload, nodes=nodes),
        filled=Filled(
            env={},
            blocks=_column([f.blocks for f in filled], counts),
            samples=first.filled.samples,
            period=0,
            trips=by_node([f.trips for f in filled]),
            chance=by_node([f.chance for f in filled]),
            counts=[_column(list(c), counts) for c in zip(*(f.counts for f in filled), strict=True)],
            busy={e: _column([f.busy[e] for f in filled], counts) for e in first.filled.busy},
            waiting=[],
            executed_flops=_column([f.executed_flops for f in filled], counts),
            tile_flops=_column([f.tile_flops for f in filled], counts),
        ),
        moved=_traffic([launch.moved for launch in launches], counts),
        dealing=Dealing(
            places("first"), places("last"), places("opening"), by_node([d.company for d in dealings])
        ),
        conditions=_conditions([launch.conditions for launch in launches], counts),
        count=sum(counts),
    )


def _structure(node: Node) -> Hashable:
    if isinstance(node, Op):
        engines = tuple(engine for engine, _ in node.work)
        begins = node.label == BLOCK_START
        return (node.kind, engines, node.reads, node.writes, node.access, node.queued, begins)
    if isinstance(node, Loop):
        loads, body = (tuple(_structure(n) for n in part) for part in (node.loads, node.body))
        return ("loop", loads, body, node.run_ahead, node.lead)
    return ("branch", *(tuple(_structure(n) for n in part) for part in (node.then, node.orelse)))


def _nodes(
    members: Sequence[tuple[Node, ...]], counts: Sequence[int], loops: dict[int, list[int]]
) -> tuple[Any, ...]:
    return tuple(_node(nodes, counts, loops) for nodes in zip(*members, strict=True))


def _node(nodes: Sequence[Any], counts: Sequence[int], loops: dict[int, list[int]]) -> Node:
    first = nodes[0]
    made: Node
    if isinstance(first, Op):
        numbers = {n: _column([getattr(op, n) for op in nodes], counts) for n in ("serial_s", "latency_s")}
        work = tuple(
            (engine, _column([op.work[i][1] for op in nodes], counts))
            for i, (engine, _) in enumerate(first.work)
        )
        return replace(first, work=work, **numbers)
    if isinstance(first, Loop):
        made = replace(
            first,
            stages=_column([loop.stages for loop in nodes], counts),
            loads=_nodes([loop.loads for loop in nodes], counts, loops),
            body=_nodes([loop.body for loop in nodes], counts, loops),
        )
    else:
        made = Branch(
            first.cond,
            _nodes([branch.then for branch in nodes], counts, loops),
            _nodes([branch.orelse for branch in nodes], counts, loops),
        )
    loops[id(made)] = [id(node) for node in nodes]
    return made


def _traffic(members: Sequence[Traffic], counts: Sequence[int]) -> Traffic:
    found: dict[str, Any] = {}
    for f in fields(Traffic):
        values = [getattr(m, f.name) for m in members]
        if isinstance(values[0], list):
            found[f.name] = [_column(list(v), counts) for v in zip(*values, strict=True)]
        else:
            found[f.name] = _column(values, counts)
    return Traffic(**found)


def _conditions(members: Sequence[Conditions], counts: Sequence[int]) -> Conditions:
    """What the clock depends on; the copies have had their effect on the traffic."""

    def rows(name: str) -> Array:
        return np.concatenate(
            [
                np.broadcast_to(np.reshape(getattr(c, name), -1), (n,))
                for c, n in zip(members, counts, strict=True)
            ]
        )

    return Conditions(None, rows("runs"), rows("switching"))


def _column(values: Sequence[Array], counts: Sequence[int]) -> Array:
    """Values of (…, shapes or 1, samples or 1), or numbers, one under the other; equal numbers as one."""
    if all(np.ndim(v) == 0 for v in values):
        if all(v == values[0] for v in values):
            return values[0]
        return np.repeat(np.array(values, dtype=np.float64), counts).reshape(-1, 1)
    arrays = [np.atleast_2d(v) for v in values]
    before = np.broadcast_shapes(*(a.shape[:-2] for a in arrays))
    wide = max(a.shape[-1] for a in arrays)
    return np.concatenate(
        [np.broadcast_to(a, (*before, n, wide)) for a, n in zip(arrays, counts, strict=True)], axis=-2
    )
