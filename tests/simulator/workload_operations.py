"""The operations of a workload, whatever loops and branches they are in."""

from __future__ import annotations

from collections.abc import Iterable

from foretile.simulator.workload import Branch, Loop, Node, Op


def operations(nodes: Iterable[Node]) -> list[Op]:
    found: list[Op] = []
    for node in nodes:
        if isinstance(node, Op):
            found.append(node)
        elif isinstance(node, Loop):
            found += [*node.loads, *operations(node.body)]
        elif isinstance(node, Branch):
            found += [*operations(node.then), *operations(node.orelse)]
    return found
