"""Several machines as one whose numbers are columns: what a fit's derivatives evaluate at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from foretile.simulator.machine import OUTSIDE, RATES, Machine

# Numbers that the cost model takes as they come; those that decide which way it goes must be the same.
_FREE = OUTSIDE - {"id", "l2_parts", "line_bytes", "dies"}


def alternatives(machines: Sequence[Machine]) -> Machine:
    """One machine for all of ``machines``: numbers that differ have the shape (machines, 1, 1).

    Only the cost model takes it, and broadcasts: times of (shapes, 1) become (machines, shapes, 1).
    ``launch_s`` has that shape in any case and tells such a machine from others.

    Raises:
        ValueError: the machines' cores differ, or their structure.
    """
    first = machines[0]
    changed: dict[str, Any] = {}
    for f in fields(Machine):
        values = [getattr(m, f.name) for m in machines]
        if all(v == values[0] for v in values) and f.name != "launch_s":
            continue
        if f.name not in _FREE:
            raise ValueError(f"machines that differ in {f.name} are no alternatives of each other")
        changed[f.name] = np.array(values, dtype=np.float64).reshape(-1, 1, 1)
    return replace(first, **changed)


def traffic_numbers(machine: Machine) -> tuple[Any, ...]:
    """What the bytes that kernels move and their latencies depend on, beside the cores: a key."""
    return _numbers(machine, OUTSIDE - RATES)


def outside_numbers(machine: Machine) -> tuple[Any, ...]:
    """All numbers of a machine but those of its cores: a key."""
    return _numbers(machine, OUTSIDE)


def _numbers(machine: Machine, names: frozenset[str]) -> tuple[Any, ...]:
    values = (getattr(machine, name) for name in sorted(names))
    return tuple(v.tobytes() if isinstance(v, np.ndarray) else v for v in values)
