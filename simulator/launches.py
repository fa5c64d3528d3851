"""An operator's launches on a machine: traced, lowered and set up once for all shapes alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import Sync, TileProgram, walk_stmts
from foretile.kernels.operator import Config, Operator, Shape
from foretile.simulator.lowering import lower
from foretile.simulator.machine import Machine, SimulationError, core_numbers
from foretile.simulator.workload import BLOCK_START, Op, Workload

Frozen = tuple[tuple[str, Any], ...]


def frozen(mapping: Mapping[str, Any]) -> Frozen:
    """A mapping as a hashable key."""
    return tuple(sorted(mapping.items()))


def static_part(operator: Operator, shape: Shape) -> Shape:
    """The parameters that are constants of a trace."""
    return {p.name: shape[p.name] for p in operator.params if not p.dynamic}


def dynamic_part(operator: Operator, shape: Shape) -> Shape:
    """The parameters that may be symbolic while tracing."""
    return {p.name: shape[p.name] for p in operator.params if p.dynamic}


def made_by(program: TileProgram, toolchain: str) -> TileProgram:
    """``program`` as ``toolchain`` makes it; as whoever it names, where ``toolchain`` is empty."""
    return replace(program, toolchain=toolchain) if toolchain else program


@lru_cache(maxsize=4096)
def _programs(operator: Operator, static: Frozen, config: Frozen) -> tuple[TileProgram, ...]:
    shape: Shape = dict(static)
    for p in operator.params:
        if p.dynamic:
            shape[p.name] = T.dynamic(p.name)
    traced = operator.program(shape, dict(config))
    launches = (traced,) if isinstance(traced, TileProgram) else tuple(traced)
    return tuple(made_by(p, operator.toolchain) for p in launches)


class Core:
    """A machine as a key: equal to others whose cores have the same numbers, which is what lowering reads."""

    def __init__(self, machine: Machine, latencies: bool = False) -> None:
        self.machine = machine
        self.numbers = core_numbers(machine)
        if latencies:
            self.numbers += (machine.l2_latency_s, machine.dram_latency_s)
        self._hash = hash(self.numbers)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Core) and self.numbers == other.numbers)

    def __hash__(self) -> int:
        return self._hash


@lru_cache(maxsize=256)
def core_of(machine: Machine, latencies: bool = False) -> Core:
    """The key of a machine's cores; with the memory's ``latencies``, for programs that wait for it."""
    return Core(machine, latencies)


class _Traced:
    """A program as a key: itself only, since comparing programs costs more than lowering them."""

    def __init__(self, program: TileProgram) -> None:
        self.program = program

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Traced) and self.program is other.program

    def __hash__(self) -> int:
        return id(self.program)


@lru_cache(maxsize=32768)
def _lowered(traced: _Traced, core: Core) -> Workload | SimulationError:
    try:
        return lower(traced.program, core.machine)
    except SimulationError as error:
        return error


@lru_cache(maxsize=8192)
def _launch(traced: _Traced, machine: Machine) -> Workload | SimulationError:
    found = _lowered(traced, core_of(machine, latencies=_asks_memory(traced.program)))
    return found if isinstance(found, SimulationError) else set_up(found, machine)


def _asks_memory(program: TileProgram) -> bool:
    """Whether operations last as long as the memory's latency, so that lowering reads more than the cores."""
    barriers = any(isinstance(s, Sync) and s.scope == "grid" for s in walk_stmts(program.body))
    return barriers or bool(program.scalars)


@lru_cache(maxsize=8192)
def _workloads(
    operator: Operator, static: Frozen, config: Frozen, machine: Machine
) -> tuple[Workload, ...] | SimulationError:
    found: list[Workload] = []
    for program in _programs(operator, static, config):
        launch = _launch(_Traced(program), machine)
        if isinstance(launch, SimulationError):
            return launch
        found.append(launch)
    return tuple(found)


def lowered(operator: Operator, shape: Shape, config: Config, machine: Machine) -> tuple[Workload, ...]:
    """As :func:`workloads`, before :func:`set_up`: the same objects for machines whose cores are alike.

    Raises:
        SimulationError: the configuration does not fit the machine.
    """
    found: list[Workload] = []
    for program in _programs(operator, frozen(static_part(operator, shape)), frozen(config)):
        launch = _lowered(_Traced(program), core_of(machine, latencies=_asks_memory(program)))
        if isinstance(launch, SimulationError):
            raise launch
        found.append(launch)
    return tuple(found)


def set_up(workload: Workload, machine: Machine) -> Workload:
    """The workload on this machine; longer set-up comes at the start of every block that stages tiles."""
    if not np.any(machine.setup_s):
        return workload if workload.machine is machine else replace(workload, machine=machine)
    start, *rest = workload.nodes
    if isinstance(start, Op) and start.label == BLOCK_START:
        begun = replace(start, serial_s=start.serial_s + machine.setup_s)
        return replace(workload, machine=machine, nodes=(begun, *rest))
    once = replace(machine, ramp_s=machine.ramp_s + machine.setup_s, setup_s=0.0)
    return replace(workload, machine=once)


def workloads(operator: Operator, shape: Shape, config: Config, machine: Machine) -> tuple[Workload, ...]:
    """The launches of one configuration, with the dynamic dimensions still symbolic.

    Raises:
        SimulationError: the configuration does not fit the machine.
    """
    found = _workloads(operator, frozen(static_part(operator, shape)), frozen(config), machine)
    if isinstance(found, SimulationError):
        raise found
    return found
