"""Choosing a configuration: the whole space by the cost model, the finalists on the event engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from foretile.hwmodels.schema import KernelProfile, Tiles
from foretile.kernels.expr import Stacked
from foretile.kernels.operator import Config, Operator, Shape
from foretile.simulator.conditions import COLD, Conditions
from foretile.simulator.cost import Estimate, estimate, joined
from foretile.simulator.launches import Frozen, dynamic_part, frozen, static_part, workloads
from foretile.simulator.machine import Machine, SimulationError
from foretile.simulator.plan import Plan, plan
from foretile.simulator.simulate import Simulation, simulate
from foretile.simulator.workload import Workload

_FINALISTS = 4
_CHUNK = 8192  # shapes evaluated together: bounds the memory of one step
_STACKED = 1 << 22  # elements of the tensors of shapes evaluated together, likewise


def for_machine(config: Config, machine: Machine) -> Config:
    """``config`` with what a space leaves to the machine.

    ``cores``, where the program wants one block a core, is its core count. ``product``, the type in which
    operands widened on chip are multiplied, is fp16 where the matrix engine takes that and not bf16.
    """
    found = dict(config)
    if "cores" in config:
        found["cores"] = machine.cores
    if config.get("product") == "bf16" and "bf16" not in machine.matrix_peak_flop_per_s:
        found["product"] = "fp16" if "fp16" in machine.matrix_peak_flop_per_s else "bf16"
    return found


@dataclass(frozen=True)
class Launches:
    """One configuration's launches for some shapes: plans and estimates, one each."""

    config: Config
    plans: tuple[Plan, ...]
    estimates: tuple[Estimate, ...]

    @property
    def time_s(self) -> np.ndarray:
        """Seconds by shape."""
        total = sum(e.time_s for e in self.estimates)
        return np.asarray(total, dtype=np.float64).reshape(-1)


# Launches by identity, held so that none of them is taken for a later one.
Evaluated = dict[int, tuple[Workload, Plan, Estimate]]


def evaluate_config(
    operator: Operator,
    shape: Shape,
    config: Config,
    machine: Machine,
    conditions: Conditions = COLD,
    *,
    shared: Evaluated | None = None,
) -> Launches:
    """The cost model for one configuration; dynamic shape values (and ``conditions``) may be arrays.

    ``shared``: launches evaluated for this shape, machine and conditions, to which this configuration's
    are added; those that configurations have in common are evaluated once.

    Raises:
        SimulationError: the configuration does not fit the machine.
    """
    launches = workloads(operator, shape, config, machine)
    known = {} if shared is None else shared
    missing = tuple(w for w in launches if id(w) not in known)
    if missing:
        for w, planned, found in zip(missing, *_evaluated(operator, shape, missing, conditions), strict=True):
            known[id(w)] = (w, planned, found)
    return Launches(
        config, tuple(known[id(w)][1] for w in launches), tuple(known[id(w)][2] for w in launches)
    )


def _evaluated(
    operator: Operator, shape: Shape, launches: tuple[Workload, ...], conditions: Conditions
) -> tuple[tuple[Plan, ...], tuple[Estimate, ...]]:
    """Plans (of the first shapes, where not all go together) and estimates."""
    plans: list[tuple[Plan, ...]] = []
    estimates: list[tuple[Estimate, ...]] = []
    for some in bound(operator, shape, conditions):
        plans.append(tuple(plan(w, some.dims, some.tensors, conditions=some.conditions) for w in launches))
        estimates.append(tuple(estimate(p) for p in plans[-1]))
    if len(plans) == 1:
        return plans[0], estimates[0]
    return plans[0], tuple(joined(parts) for parts in zip(*estimates, strict=True))


@dataclass(frozen=True)
class Bound:
    """Shapes that are evaluated together: their dynamic parts, and the tensors that decide trip counts."""

    dims: Shape
    tensors: Mapping[str, np.ndarray | Stacked] | None
    conditions: Conditions


def bound(operator: Operator, shape: Shape, conditions: Conditions) -> list[Bound]:
    """All rows of ``shape`` at once; where each has tensors of its own, as many as memory allows."""
    dims = dynamic_part(operator, shape)
    if operator.tensors is None or all(np.size(v) <= 1 for v in dims.values()):
        return [Bound(dims, bound_tensors(operator, shape), conditions)]
    columns = dict(zip(dims, np.broadcast_arrays(*dims.values()), strict=True))
    length = len(next(iter(columns.values())))
    found: list[Bound] = []
    first = 0
    while first < length:
        rows: list[Mapping[str, np.ndarray]] = []
        held = 0
        while first + len(rows) < length and (not rows or held * (len(rows) + 1) <= _STACKED):
            row = {n: v[first + len(rows)] for n, v in columns.items()}
            tensors = bound_tensors(operator, {**shape, **row}) or {}
            held = max(held, *(t.size for t in tensors.values()))
            rows.append(tensors)
        part = slice(first, first + len(rows))
        stacked = {name: Stacked([t[name] for t in rows]) for name in rows[0]}
        found.append(Bound({n: v[part] for n, v in columns.items()}, stacked, conditions.rows(part)))
        first += len(rows)
    return found


def bound_tensors(operator: Operator, shape: Shape) -> Mapping[str, np.ndarray] | None:
    """The integer operands that decide trip counts, for one shape (values may be arrays of one element)."""
    if operator.tensors is None:
        return None
    plain = {name: v.item() if isinstance(v, np.ndarray | np.generic) else v for name, v in shape.items()}
    return _tensors(operator, frozen({n: int(v) if isinstance(v, float) else v for n, v in plain.items()}))


@lru_cache(maxsize=1024)
def _tensors(operator: Operator, shape: Frozen) -> Mapping[str, np.ndarray]:
    assert operator.tensors is not None
    return operator.tensors(dict(shape))


def space(
    operator: Operator, shape: Shape, machine: Machine, profile: KernelProfile | None = None
) -> list[Config]:
    """The configurations that fit the machine, of those that the library of ``profile`` has.

    Raises:
        SimulationError: none does; the message repeats the reason of the most promising one.
    """
    fitting: list[Config] = []
    reason: SimulationError | None = None
    for config in operator.configs(shape):
        if profile is not None and not _in_library(config, profile.tiles):
            continue
        candidate = for_machine(config, machine)
        try:
            workloads(operator, shape, candidate, machine)
        except SimulationError as error:
            reason = reason or error
            continue
        fitting.append(candidate)
    if not fitting:
        raise SimulationError(f"no configuration of {operator.name} fits {machine.id}: {reason}")
    return fitting


_LEAST_SIDE = 64  # of a library's blocks
_FEW_PARTS = 16  # into which a library splits a sum


def _in_library(config: Config, tiles: Tiles) -> bool:
    """Whether a library that has such ``tiles`` (see :class:`KernelProfile`) has this configuration."""
    if tiles == "any":
        return True
    if tiles == "few_parts":
        return bool(config.get("split_k", 1) <= _FEW_PARTS)
    if config.get("variant") == "persistent":
        return False
    sides = [value for name, value in config.items() if name in ("block_m", "block_n")]
    return tiles == "one_a_block" or all(side >= _LEAST_SIDE and side & (side - 1) == 0 for side in sides)


@dataclass(frozen=True)
class Ranking:
    """Seconds by configuration (rows) and shape (columns)."""

    configs: list[Config]
    time_s: np.ndarray

    def best(self) -> np.ndarray:
        """Index of the fastest configuration for every shape."""
        return np.asarray(np.argmin(self.time_s, axis=0))


def rank(
    operator: Operator,
    shape: Shape,
    machine: Machine,
    conditions: Conditions = COLD,
    profile: KernelProfile | None = None,
) -> Ranking:
    """The whole space by the cost model; dynamic shape values may be equal-length arrays."""
    dims = dynamic_part(operator, shape)
    length = max((np.size(v) for v in dims.values()), default=1)
    columns = {k: np.broadcast_to(np.asarray(v, dtype=np.float64), (length,)) for k, v in dims.items()}
    configs = space(operator, shape, machine, profile)
    times = np.empty((len(configs), length))
    for first in range(0, length, _CHUNK):
        part = slice(first, min(length, first + _CHUNK))
        piece = {**shape, **{k: v[part] for k, v in columns.items()}}
        state = conditions.rows(part)
        shared: Evaluated = {}
        for i, config in enumerate(configs):
            times[i, part] = evaluate_config(operator, piece, config, machine, state, shared=shared).time_s
    return Ranking(configs, times)


@dataclass(frozen=True)
class Played:
    """One configuration's launches for one shape, played on the event engine (``runs`` empty: not played)."""

    config: Config
    runs: tuple[Simulation, ...]

    @property
    def time_s(self) -> float:
        """Seconds of all launches together."""
        return sum(run.time_s for run in self.runs)


def play(
    operator: Operator,
    shape: Shape,
    config: Config,
    machine: Machine,
    conditions: Conditions = COLD,
    *,
    trace: bool = False,
) -> Played:
    """The event engine for one configuration and one shape."""
    dims = dynamic_part(operator, shape)
    tensors = bound_tensors(operator, shape)
    launches = workloads(operator, shape, config, machine)
    return Played(
        config,
        tuple(simulate(w, dims, tensors, trace=trace, conditions=conditions) for w in launches),
    )


def stack(operator: Operator, shapes: Sequence[Shape]) -> Shape:
    """Shapes that share their static parameters as one, dynamic parameters as columns."""
    columns = {
        p.name: np.asarray([shape[p.name] for shape in shapes], dtype=np.float64)
        for p in operator.params
        if p.dynamic
    }
    return {**shapes[0], **columns}


def best(
    operator: Operator,
    shapes: Sequence[Shape],
    machine: Machine,
    conditions: Conditions = COLD,
    profile: KernelProfile | None = None,
    *,
    play_finalists: bool = True,
) -> list[Played]:
    """The fastest configuration of every shape: ranked by the cost model, finalists played.

    Without ``play_finalists`` the cost model decides alone and nothing is played.
    """
    found: list[Played] = [Played({}, ())] * len(shapes)
    groups: dict[Frozen, list[int]] = {}
    for i, shape in enumerate(shapes):
        groups.setdefault(frozen(static_part(operator, shape)), []).append(i)
    for rows in groups.values():
        stacked = stack(operator, [shapes[i] for i in rows])
        ranking = rank(operator, stacked, machine, conditions, profile)
        order = np.argsort(ranking.time_s, axis=0, kind="stable")
        for place, i in enumerate(rows):
            finalists = [ranking.configs[c] for c in order[: _FINALISTS if play_finalists else 1, place]]
            if play_finalists:
                played = [play(operator, shapes[i], config, machine, conditions) for config in finalists]
                found[i] = min(played, key=lambda p: p.time_s)
            else:
                found[i] = Played(finalists[0], ())
    return found


def chosen(
    operator: Operator,
    shape: Shape,
    machine: Machine,
    config: Config | None,
    conditions: Conditions = COLD,
    profile: KernelProfile | None = None,
) -> Config:
    """The configuration to use: the given one, checked, or the best by the cost model.

    Raises:
        OperatorError: the operator has no such configuration key.
        SimulationError: it does not fit the machine.
    """
    if config is None:
        ranking = rank(operator, shape, machine, conditions, profile)
        return ranking.configs[int(ranking.best()[0])]
    complete = for_machine(operator.config(shape, **config), machine)
    if "cores" in config:
        complete["cores"] = config["cores"]
    workloads(operator, shape, complete, machine)
    return complete
