"""Launches of programs that say what single threads do."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from foretile.kernels.ir import Sync, TileProgram, walk_stmts
from foretile.simulator.numerics.barriers import Barriers
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.frame import Frame, Tile
from foretile.simulator.numerics.interpret import Machine
from foretile.simulator.numerics.lanes import Team
from foretile.simulator.numerics.ordering import Ordering
from foretile.simulator.numerics.resident import OWN, Resident, is_asynchronous, play, team_name, teams_of


def launch(machine: Machine, frames: Iterator[Frame]) -> Iterator[Frame]:
    """Run the blocks of each frame; yields those that are through.

    Blocks that wait for the whole grid are all kept until they have come.

    Raises:
        NumericsError: what a chip leaves undefined, or a deadlock.
    """
    program = machine.program
    if not any(isinstance(s, Sync) and s.scope == "grid" for s in walk_stmts(program.body)):
        for frame in frames:
            for _ in _start(machine, frame):
                raise AssertionError("a barrier of the grid")
            yield frame
        return
    running = [(frame, _start(machine, frame)) for frame in frames]
    while running:
        waiting = []
        for frame, steps in running:
            if next(steps, True) is None:
                waiting.append((frame, steps))
            else:
                yield frame
        if waiting and len(waiting) != len(running):
            raise NumericsError("some blocks end while others wait for the whole grid", program.loc)
        for tensor in machine.tensors.values():
            tensor.new_launch(changes=tensor.changes)
        running = waiting


def _start(machine: Machine, frame: Frame) -> Iterator[None]:
    program = machine.program
    teams = teams_of(program)
    ordered = len(teams) > 1 or is_asynchronous(program)
    order = Ordering(tuple(team_name(t) for t in teams)) if ordered else None
    own = {
        b.name: Tile(b.dtype, machine.shapes[b.name], garbage=machine.garbage)
        for b in program.buffers
        if b.scope in OWN and not b.alias
    }
    for name in own:
        frame.tiles.pop(name, None)
    resident = Resident(machine, frame, own, order, teams)
    resident.barriers = {
        b.name: Barriers.of(b.name, _counts(program, b.name, machine.shapes[b.name]), resident.blocks)
        for b in program.buffers
        if b.scope == "barrier"
    }
    return play(resident, [Team(resident, number).start() for number in range(len(teams))])


def _counts(program: TileProgram, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many arrivals each barrier of a buffer expects."""
    text = program.annotation("barrier", name) or program.annotation("cluster_barrier", name)
    total = 1
    for n in shape:
        total *= n
    if text is None:
        raise NumericsError(f"nothing says how many arrivals {name} expects", program.loc)
    found = ast.literal_eval(f"({text},)")
    counts = tuple(int(n) for n in found)
    return counts * total if len(counts) == 1 else counts
