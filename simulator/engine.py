"""The event engine: plays the operations of the blocks that live on one core.

Time is integer picoseconds; events are ordered by (time, sequence number), so a run is
deterministic. A core's engines are first-in first-out servers with finite rates; its share of the
L2 and of DRAM is the number of its blocks over all active blocks. Agents (groups of warps) step
through the program in order; loads run ahead as far as the loop has buffers.

When the loop that all agents are in repeats itself (two windows of iterations of equal length), the
clock jumps ahead by whole windows, so the cost of a run does not grow with trip counts.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from foretile.simulator.program import Code, Instruction, LoadSpec, LoopSpec

_TOLERANCE = 0.005  # relative difference of windows that count as equally long
# Looking for the steady state of an innermost loop, and of one around it, in iterations: windows that
# are compared; when the mean pace counts as the steady state if no period shows; since when.
_WINDOW, _PATIENCE, _SETTLED = (2, 1), (48, 12), (16, 4)
_COMPARED = 3  # windows of equal length, at least


Arrivals = list[tuple[int, int]]  # (buffer, picoseconds) of the tiles of one iteration


@dataclass(frozen=True, slots=True)
class Slice:
    """An engine occupied by an operation: picoseconds, for traces."""

    engine: str
    label: str
    agent: int
    start_ps: int
    end_ps: int


@dataclass
class Run:
    """What a run found.

    ``finish_ps`` holds the completion time of every block, in order; ``drained_ps`` is when the
    posted writes have left the engines or fit the L2; ``jumps`` records the skipped stretches as
    (time, length).
    """

    finish_ps: list[int]
    busy_ps: list[int]
    slices: list[Slice] = field(default_factory=list)
    jumps: list[tuple[int, int]] = field(default_factory=list)
    steps: int = 0
    drained_ps: int = 0


@dataclass(slots=True)
class _LoopState:
    """Where an agent is in one loop: iteration, and arrival times of tiles loaded ahead."""

    trips: int
    done: int = 0
    issued: int = 0
    arrivals: deque[Arrivals] = field(default_factory=deque)
    marks: list[tuple[int, list[int]]] = field(default_factory=list)


@dataclass(slots=True)
class _Agent:
    number: int
    block: int
    code: Code
    pc: int = 0
    loops: dict[int, _LoopState] = field(default_factory=dict)
    stack: list[int] = field(default_factory=list)
    arrivals: dict[int, int] = field(default_factory=dict)
    prefetched: dict[int, list[Arrivals]] = field(default_factory=dict)


class Core:
    """One core with its engines, the agents on it, and the blocks still to come."""

    def __init__(
        self, engines: Sequence[str], agents_per_block: int, *, write_buffer_ps: int, trace: bool = False
    ) -> None:
        self.engines = tuple(engines)
        self.write_buffer = write_buffer_ps
        self.unwritten = [0] * len(engines)
        self.agents_per_block = agents_per_block
        self.free = [0] * len(engines)
        self.busy = [0] * len(engines)
        self.heap: list[tuple[int, int, _Agent]] = []
        self.sequence = 0
        self.live: dict[int, _Agent] = {}
        self.oldest = 0
        self.left: dict[int, int] = {}
        self.trace = trace
        self.result = Run([], self.busy)

    def run(self, blocks: Sequence[Code], slots: int) -> Run:
        """Play ``blocks`` in order, at most ``slots`` resident at a time."""
        waiting = list(enumerate(blocks))
        waiting.reverse()
        finish = [0] * len(blocks)
        heap = self.heap
        steps = 0
        for _ in range(min(slots, len(blocks))):
            self._start(*waiting.pop(), 0)
        while heap:
            now, _, agent = heap[0]  # replaced below: cheaper than a pop and a push
            steps += 1
            after = self._step(agent, now)
            if after >= 0:
                self.sequence += 1
                heapq.heapreplace(heap, (after, self.sequence, agent))
                continue
            heapq.heappop(heap)
            del self.live[agent.number]
            self.left[agent.block] -= 1
            if self.left[agent.block] == 0:
                finish[agent.block] = now
                if waiting:
                    self._start(*waiting.pop(), now)
            self.oldest = min(self.live, default=0)
        self.result.steps = steps
        self.result.finish_ps = finish
        left = (max(0, unwritten - self.write_buffer) for unwritten in self.unwritten)
        self.result.drained_ps = max(f + w for f, w in zip(self.free, left, strict=True))
        return self.result

    def _start(self, block: int, code: Code, now: int) -> None:
        self.left[block] = self.agents_per_block
        for i in range(self.agents_per_block):
            agent = _Agent(block * self.agents_per_block + i, block, code)
            self.live[agent.number] = agent
            self.sequence += 1
            heapq.heappush(self.heap, (now, self.sequence, agent))

    # -- one event ---------------------------------------------------------------------------

    def _step(self, agent: _Agent, now: int) -> int:
        """Let ``agent`` act at ``now``; returns when it acts next, or -1 when it is done."""
        instructions = agent.code.instructions
        arrivals = agent.arrivals  # rebound by a jump, after which this returns
        free, busy, trace = self.free, self.busy, self.trace
        while agent.pc < len(instructions):
            instruction = instructions[agent.pc]
            if instruction.loop is not None:
                if instruction.kind == "enter":
                    self._enter(agent, instruction, now)
                else:
                    jumped = self._end(agent, instruction, now)
                    if jumped:
                        return now + jumped
                continue
            for target in instruction.waits:
                if arrivals.get(target, 0) - instruction.early_ps > now:
                    return self._ready(agent, instruction, now)
            agent.pc += 1
            if instruction.load is not None:
                arrivals[instruction.load.target] = self._load(agent, instruction.load, now)
            if instruction.result >= 0:
                finish = self._queue(agent, instruction, now)
                if finish > now:
                    return finish
                continue
            finish = now
            for engine, service in instruction.service:
                start = free[engine]
                if start < now:
                    start = now
                end = start + service
                free[engine] = end
                busy[engine] += service
                if end > finish:
                    finish = end
                if trace:
                    self._record(engine, instruction.label, agent, start, end)
            # What the operation takes beyond its service (dependent steps) follows the slowest engine.
            finish += instruction.beyond_ps
            if finish < now + instruction.duration_ps:
                finish = now + instruction.duration_ps
            finish += instruction.latency_ps
            if finish > now:
                if agent.pc < len(instructions) and instructions[agent.pc].waits:
                    return self._ready(agent, instructions[agent.pc], finish)
                return finish
        return -1

    def _queue(self, agent: _Agent, instruction: Instruction, now: int) -> int:
        """Send an operation to its queues; returns when it starts, which is when the agent goes on."""
        begun = ended = now
        for engine, service in instruction.service:
            start = max(now, self.free[engine])
            self.free[engine] = start + service
            self.busy[engine] += service
            begun, ended = max(begun, start), max(ended, start + service)
            if self.trace:
                self._record(engine, instruction.label, agent, start, start + service)
        ended = max(ended + instruction.beyond_ps, begun + instruction.duration_ps)
        agent.arrivals[instruction.result] = ended + instruction.latency_ps
        return begun

    @staticmethod
    def _ready(agent: _Agent, instruction: Instruction, now: int) -> int:
        """When all the tiles that ``instruction`` reads are there, ``now`` at the earliest."""
        ready = now
        for target in instruction.waits:
            arrived = agent.arrivals.get(target, 0) - instruction.early_ps
            if arrived > ready:
                ready = arrived
        return ready

    def _load(self, agent: _Agent, load: LoadSpec, now: int) -> int:
        """Send a tile on its way; returns when it arrives."""
        free, busy, unwritten, trace = self.free, self.busy, self.unwritten, self.trace
        if load.posted:
            for engine, service in load.service:
                unwritten[engine] += service
                busy[engine] += service
            return now + load.latency_ps
        arrived = now
        for engine, service in load.service:
            start = self._free_for_read(engine, now) if unwritten[engine] else free[engine]
            if start < now:
                start = now
            end = start + service
            free[engine] = end
            busy[engine] += service
            if end > arrived:
                arrived = end
            if trace and service:
                self._record(engine, load.label, agent, start, end)
        return arrived + load.latency_ps

    def _record(self, engine: int, label: str, agent: _Agent, start: int, end: int) -> None:
        self.result.slices.append(Slice(self.engines[engine], label, agent.number, start, end))

    def _free_for_read(self, engine: int, now: int) -> int:
        """When a read can start: writes wait in the L2 and drain in the gaps, up to its capacity."""
        free = self.free[engine]
        waiting = self.unwritten[engine]
        if now > free:
            waiting -= min(waiting, now - free)
        if waiting > self.write_buffer:
            free = max(free, now) + waiting - self.write_buffer
            waiting = self.write_buffer
        self.unwritten[engine] = waiting
        return free

    # -- loops -------------------------------------------------------------------------------

    def _enter(self, agent: _Agent, instruction: Instruction, now: int) -> None:
        loop = instruction.loop
        assert loop is not None
        trips = agent.code.trips[loop.number]
        if trips == 0:
            agent.pc = instruction.target
            return
        state = _LoopState(trips)
        agent.loops[loop.number] = state
        agent.stack.append(loop.number)
        state.arrivals.extend(agent.prefetched.pop(loop.number, ()))
        state.issued = len(state.arrivals)
        if loop.loads:
            while state.issued < min(loop.stages, trips):
                state.arrivals.append(self._loads(agent, loop, now))
                state.issued += 1
            self._prefetch(agent, loop, loop.stages - trips, now)
            agent.arrivals.update(state.arrivals.popleft())
        agent.pc += 1

    def _loads(self, agent: _Agent, loop: LoopSpec, now: int) -> Arrivals:
        return [(load.target, self._load(agent, load, now)) for load in loop.loads]

    def _prefetch(self, agent: _Agent, loop: LoopSpec, buffers: int, now: int) -> None:
        """Fill ``buffers`` that this loop no longer needs for the next loop with loads."""
        if buffers < 1 or loop.next_loop is None or not loop.run_ahead:
            return
        following = agent.code.loops[loop.next_loop]
        queue = agent.prefetched.setdefault(following.number, [])
        while buffers > 0 and len(queue) < min(following.stages, agent.code.trips[following.number]):
            queue.append(self._loads(agent, following, now))
            buffers -= 1

    def _end(self, agent: _Agent, instruction: Instruction, now: int) -> int:
        """End of an iteration: free its buffers, load ahead, go round, leave, or jump."""
        loop = instruction.loop
        assert loop is not None
        state = agent.loops[loop.number]
        state.done += 1
        if loop.loads:
            if state.issued < state.trips:
                # The producer learns with a lag that the buffer is free again.
                state.arrivals.append(
                    [(load.target, self._load(agent, load, now) + load.lag_ps) for load in loop.loads]
                )
                state.issued += 1
            else:
                self._prefetch(agent, loop, 1, now)
        if state.done >= state.trips:
            del agent.loops[loop.number]
            agent.stack.pop()
            agent.pc += 1
            return 0
        jumped = self._jump(agent, loop, state, now) if agent.number == self.oldest else 0
        if loop.loads:
            agent.arrivals.update(state.arrivals.popleft())
        agent.pc = instruction.target
        return jumped

    def _jump(self, agent: _Agent, loop: LoopSpec, state: _LoopState, now: int) -> int:
        """Skip whole windows of iterations once they repeat; returns by how much this agent moves."""
        state.marks.append((now, list(self.busy)))
        window, length = _pace(loop, state)
        if not window:
            return 0
        number = loop.number
        remaining = state.trips - state.done
        for other in self.live.values():
            theirs = other.loops.get(number)
            if theirs is None or other.stack[-1 if loop.innermost else 0] != number:
                return 0
            remaining = min(remaining, theirs.trips - theirs.done)
        windows = (remaining - loop.stages - 1) // window
        if windows < 1:
            return 0
        shift = windows * length
        for other in self.live.values():
            self._advance(other, number, windows * window, shift)
        self.heap[:] = [(t + shift, s, a) for t, s, a in self.heap]
        self.free[:] = [t + shift for t in self.free]
        then = state.marks[-1 - window][1]
        for i, value in enumerate(state.marks[-1][1]):
            self.busy[i] += windows * (value - then[i])
        state.marks.clear()
        self.result.jumps.append((now, shift))
        return shift

    @staticmethod
    def _advance(agent: _Agent, number: int, iterations: int, shift: int) -> None:
        agent.arrivals = {k: t + shift for k, t in agent.arrivals.items()}
        for n, state in agent.loops.items():
            moved = iterations if n == number else 0
            state.done += moved
            state.issued += moved
            state.arrivals = deque([(b, t + shift) for b, t in arrivals] for arrivals in state.arrivals)
        for queue in agent.prefetched.values():
            for i, arrivals in enumerate(queue):
                queue[i] = [(b, t + shift) for b, t in arrivals]


def _pace(loop: LoopSpec, state: _LoopState) -> tuple[int, int]:
    """The steady state of a loop: a window of iterations and its length in picoseconds.

    Windows of a fixed size are compared, and of as many iterations as there are buffers, over which
    who waits for whom repeats. Tiles that are asked for together arrive together, in bursts of as many
    as there are buffers, so the windows compared reach at least from one burst into the next one.
    (0, 0) while neither has settled.
    """
    marks, done, outer = state.marks, state.done, not loop.innermost
    size = _WINDOW[outer]
    for window in (size,) if outer or loop.stages <= size else (size, loop.stages):
        compared = _COMPARED if outer else max(_COMPARED, -(-loop.stages // window))
        if done % window or len(marks) <= compared * window:
            continue
        if loop.innermost and done <= loop.stages + window:
            continue
        ends = [marks[-1 - i * window][0] for i in range(compared + 1)]
        last, *others = (later - earlier for later, earlier in pairwise(ends))
        if all(abs(last - other) <= _TOLERANCE * last for other in others):
            return window, last
    settled = _SETTLED[outer]
    if done % size or len(marks) < _PATIENCE[outer]:
        return 0, 0
    return size, (marks[-1][0] - marks[settled - 1][0]) * size // (len(marks) - settled)
