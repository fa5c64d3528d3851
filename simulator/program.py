"""From a planned workload to the instructions an agent steps through in the event engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from foretile.simulator.plan import Array, Plan
from foretile.simulator.workload import CHIP_ENGINES, CLOCKED, CORE_ENGINES, Branch, Loop, Node, Op

ENGINES = (*CORE_ENGINES, *CHIP_ENGINES)
_INDEX = {name: i for i, name in enumerate(ENGINES)}
_PS = 1e12
_ANY = -1  # classes that differ in nothing but trip counts
_POSTED = "posted write "  # nobody waits for these: a block may end while its writes drain


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """A tile on its way to the core (or, ``posted``, from it): service by engine, then latency."""

    label: str
    target: int
    service: tuple[tuple[int, int], ...]
    latency_ps: int
    lag_ps: int = 0  # until the producer learns that a buffer is free again
    posted: bool = False  # a write: nobody waits for it, and reads overtake it


@dataclass(frozen=True, slots=True)
class LoopSpec:
    """A loop of one agent; ``next_loop`` is where freed buffers are filled for when it runs out."""

    number: int
    stages: int
    loads: tuple[LoadSpec, ...]
    run_ahead: bool
    innermost: bool
    next_loop: int | None = None


@dataclass(frozen=True, slots=True)
class Instruction:
    """One step: an operation, or the head ("enter") or foot ("end") of a loop.

    ``duration_ps`` when nothing competes, ``beyond_ps`` the part of it beyond its longest single
    service; ``target`` is where an empty loop continues, or where the next iteration begins.
    ``result``: what is ready when a queued operation ends; the agent itself goes on when it starts (-1:
    the agent waits for the end). ``early_ps``: how long before what it waits for it can start.
    """

    kind: Literal["op", "enter", "end"]
    label: str = ""
    duration_ps: int = 0
    beyond_ps: int = 0
    latency_ps: int = 0
    service: tuple[tuple[int, int], ...] = ()
    waits: tuple[int, ...] = ()
    load: LoadSpec | None = None
    loop: LoopSpec | None = None
    target: int = 0
    result: int = -1
    early_ps: int = 0


@dataclass(frozen=True, slots=True)
class Code:
    """What one agent executes; ``loops`` and their ``trips`` are indexed by loop number."""

    instructions: tuple[Instruction, ...]
    loops: tuple[LoopSpec, ...] = ()
    trips: tuple[int, ...] = ()


class Programs:
    """Code of the agents of a plan's blocks, by class, for the first shape of the plan.

    ``slow`` stretches work in the cores' clock domain (clock under load).
    """

    def __init__(self, plan: Plan, slow: float) -> None:
        self.plan = plan
        self.slow = slow
        self.compiled: dict[tuple[int, float], _Compiler] = {}

    def code(self, sample: int, resident: float, active: float) -> Code:
        """Code of a block of class ``sample``.

        ``resident`` blocks share the core and ``active`` the chip, which sets the core's share of the
        chip-wide engines.
        """
        share = resident / active
        found = self.compiled.get((sample, share)) or self.compiled.get((_ANY, share))
        if found is None:
            found = _Compiler(self.plan, sample, self.slow, share).compile()
            self.compiled[sample if found.differs else _ANY, share] = found
        trips = tuple(round(found.value(self.plan.trips[loop], sample)) for loop in found.order)
        return Code(tuple(found.instructions), tuple(found.loops), trips)


def write_buffer_ps(plan: Plan) -> int:
    """Picoseconds of DRAM writing that the L2 holds back while reads go first."""
    return _ps(plan.workload.machine.l2_bytes / float(np.ravel(plan.dram_rate)[0]))


class _Compiler:
    def __init__(self, plan: Plan, sample: int, slow: float, share: float) -> None:
        self.plan = plan
        self.sample = sample
        self.slow = slow
        w = plan.workload
        self.machine = w.machine
        self.agents = w.agents
        self.rate = w.agents * w.agent_rate
        self.chip_rate = {
            "l2": self.machine.l2_chip_bytes_per_s * share,
            "atomic": self.machine.atomic_chip_bytes_per_s * share,
            "dram": float(np.ravel(plan.dram_rate)[0]) * share,
        }
        self.instructions: list[Instruction] = []
        self.loops: list[LoopSpec] = []
        self.order: list[int] = []  # the loops' keys in the plan
        self.differs = False  # from another class in more than trip counts
        self.targets: dict[str, int] = {}
        self.passing: list[Instruction] = []  # element-wise operations, not yet added

    def compile(self) -> _Compiler:
        # Who reads the result of a queued operation may stand before it in a loop's body.
        for node in _inside(self.plan.workload.nodes):
            if isinstance(node, Op) and node.queued:
                self._target(node.writes)
        self.emit(self.plan.workload.nodes, 1.0)
        self.flush()
        self._link_loops()
        # A load nobody reads still has to arrive before the block ends.
        loaded = tuple(t for name, t in self.targets.items() if not name.startswith(_POSTED))
        self.instructions.append(Instruction("op", "end", waits=loaded))
        return self

    @staticmethod
    def value(array: Array, sample: int) -> float:
        """The entry of an array over (shapes, samples) for the first shape and a block class."""
        flat = np.ravel(np.asarray(array)[0] if np.ndim(array) > 1 else array)
        return float(flat[sample] if flat.size > 1 else flat[0])

    def own(self, array: Array) -> float:
        """The entry for the class that is compiled."""
        self.differs |= np.size(array) > 1
        return self.value(array, self.sample)

    def emit(self, nodes: tuple[Node, ...], chance: float) -> None:
        for node in nodes:
            if isinstance(node, Op):
                self.append(self.operation(node, chance), node.kind)
            elif isinstance(node, Loop):
                self.loop(node, chance)
            else:
                self.branch(node, chance)

    def append(self, instruction: Instruction, kind: str) -> None:
        """Add an operation; element-wise ones that follow each other become one step.

        An agent passes through a run of them without waiting for anything but the engines, so one
        event stands for all: their services and their durations add up.
        """
        if kind not in ("vector", "barrier"):
            self.flush()
            self.instructions.append(instruction)
            return
        if instruction.waits:
            self.flush()
        self.passing.append(instruction)

    def flush(self) -> None:
        """End a run of element-wise operations."""
        if len(self.passing) < 2:
            self.instructions += self.passing
        else:
            service: dict[int, int] = {}
            for engine, busy in (pair for x in self.passing for pair in x.service):
                service[engine] = service.get(engine, 0) + busy
            duration = sum(x.duration_ps for x in self.passing)
            beyond = duration - max(service.values(), default=0)
            first = self.passing[0]
            self.instructions.append(
                Instruction(
                    "op", f"{first.label} …", duration, beyond, 0, tuple(service.items()), first.waits
                )
            )
        self.passing.clear()

    def branch(self, node: Branch, chance: float) -> None:
        taken = self.own(self.plan.chance[id(node)])
        if taken > 0.0:
            self.emit(node.then, chance * taken)
        if taken < 1.0:
            self.emit(node.orelse, chance * (1.0 - taken))

    def loop(self, node: Loop, chance: float) -> None:
        self.order.append(id(node))
        spec = LoopSpec(
            number=len(self.loops),
            stages=node.stages,
            loads=tuple(self.load(op, chance) for op in node.loads),
            run_ahead=node.run_ahead,
            innermost=not any(isinstance(n, Loop) for n in _inside(node.body)),
        )
        self.loops.append(spec)
        self.flush()
        head = len(self.instructions)
        self.instructions.append(Instruction("enter", loop=spec))
        self.emit(node.body, chance)
        self.flush()
        self.instructions.append(Instruction("end", loop=spec, target=head + 1))
        self.instructions[head] = replace(self.instructions[head], target=len(self.instructions))

    def _link_loops(self) -> None:
        """Where the loads of a loop that is running out go on: the next loop with loads, cyclically
        inside an outer loop (the next tile of a persistent block)."""
        outer: list[int] = []
        order: list[tuple[int, int | None]] = []
        for instruction in self.instructions:
            if instruction.kind == "enter" and instruction.loop is not None:
                if instruction.loop.loads:
                    order.append((instruction.loop.number, outer[0] if outer else None))
                outer.append(instruction.loop.number)
            elif instruction.kind == "end":
                outer.pop()
        for i, (number, around) in enumerate(order):
            following = order[i + 1][0] if i + 1 < len(order) else None
            if following is None and around is not None:
                following = next(n for n, o in order if o == around)
            self.loops[number] = replace(self.loops[number], next_loop=following)
        self.instructions = [
            replace(x, loop=self.loops[x.loop.number]) if x.loop is not None else x for x in self.instructions
        ]

    def operation(self, op: Op, chance: float) -> Instruction:
        waits = tuple(self.targets[name] for name in op.reads if name in self.targets)
        if op.kind == "barrier":
            waiting = _ps(op.serial_s * chance)
            return Instruction("op", op.label, waiting, waiting)
        seconds: dict[str, float] = {}
        for engine, busy in op.work:
            stretched = busy * self.slow if engine in CLOCKED else busy
            seconds[engine] = stretched * chance / self.agents
        longest = max(seconds.values(), default=0.0)
        rate = self.rate if op.kind == "vector" else self.agents
        duration = max(longest, op.serial_s / rate * self.slow * chance)
        if op.kind == "store":
            traffic = self.plan.traffic
            port = self.own(traffic.port_bytes[op.access]) * chance / self.agents
            seconds["port"] = port / self.machine.port_bytes_per_s
            self._chip(op, chance, seconds)
            longest = max(longest, seconds["port"])
            duration = max(duration, longest)
            # Posted: the agent goes on when its bytes have left the core.
            service = _service({e: s for e, s in seconds.items() if e in CORE_ENGINES})
            posted = _service({e: s for e, s in seconds.items() if e in CHIP_ENGINES})
            write = LoadSpec(op.label, self._target(f"{_POSTED}{op.access}"), posted, 0, posted=True)
            result = self._target(op.writes) if op.queued else -1
            return Instruction(
                "op",
                op.label,
                _ps(duration),
                _ps(duration) - _ps(longest),
                0,
                service,
                waits,
                write,
                result=result,
                early_ps=_ps(op.early_s * self.slow / self.agents),
            )
        load = self.load(op, chance) if op.kind == "load" else None
        service = () if load else _service(seconds)
        issue = _ps(duration) if load is None else _ps(op.serial_s / self.rate * chance)
        beyond = issue - (_ps(longest) if load is None else 0)
        latency = _ps(op.latency_s * chance) if op.kind == "matrix" else 0
        result = self._target(op.writes) if op.queued else -1
        return Instruction("op", op.label, issue, beyond, latency, service, waits, load, result=result)

    def _chip(self, op: Op, chance: float, seconds: dict[str, float]) -> None:
        traffic = self.plan.traffic
        moved = self.own(traffic.l2_bytes[op.access]) * chance / self.agents
        seconds["l2"] = moved / self.chip_rate["l2"]
        seconds["dram"] = moved * self.own(traffic.dram_share[op.access]) / self.chip_rate["dram"]
        if self.plan.workload.accesses[op.access].direction == "atomic":
            seconds["atomic"] = moved / self.chip_rate["atomic"]

    def load(self, op: Op, chance: float) -> LoadSpec:
        traffic = self.plan.traffic
        seconds = {e: self.own(busy) * chance / self.agents for e, busy in self.plan.work(op)}
        port = self.own(traffic.port_bytes[op.access]) * chance / self.agents
        seconds["port"] = port / self.machine.port_bytes_per_s
        self._chip(op, chance, seconds)
        latency = self.own(traffic.latency_s[op.access])
        return LoadSpec(op.label, self._target(op.writes), _service(seconds), _ps(latency), _ps(op.latency_s))

    def _target(self, name: str) -> int:
        return self.targets.setdefault(name, len(self.targets))


def _ps(seconds: float) -> int:
    return round(seconds * _PS)


def _service(seconds: dict[str, float]) -> tuple[tuple[int, int], ...]:
    """By engine; one that is not needed is not queued for."""
    return tuple((_INDEX[e], _ps(s)) for e, s in seconds.items() if _ps(s) > 0)


def _inside(nodes: tuple[Node, ...]) -> Iterator[Node]:
    for node in nodes:
        yield node
        if isinstance(node, Loop):
            yield from _inside(node.body)
        elif isinstance(node, Branch):
            yield from _inside(node.then)
            yield from _inside(node.orelse)
