"""User programs that cannot be timed as they stand: what running them tells, what a compiler would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from foretile.kernels.expr import evaluate
from foretile.kernels.ir import If, TileProgram, walk_stmts
from foretile.simulator.lowering import lower
from foretile.simulator.lowering.explicit import assume
from foretile.simulator.lowering.lanes import TRIPS
from foretile.simulator.lowering.spills import spilled
from foretile.simulator.machine import Machine, RegistersError, SimulationError, UndecidedError
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.execute import execute
from foretile.simulator.operands import operands

_BLOCKS = 8  # of a launch that are run to see how often its loops run
_MOST_ELEMENTS = 1 << 27  # of all tensors together; beyond, drawing them takes longer than anybody waits
_ATTEMPTS = 3


def foreseen(
    launches: Sequence[TileProgram],
    machine: Machine,
    tensors: Mapping[str, np.ndarray] | None = None,
    trips: Mapping[int, float] | None = None,
) -> tuple[tuple[TileProgram, ...], tuple[str, ...]]:
    """The launches with what stands in the way of timing them settled, and in words what was done.

    * Loops and branches that the kernel's own values decide: as often as ``trips`` says of their line (what
      an execution has counted), else as often as in some blocks run on ``tensors`` and drawn operands.
    * Registers beyond what a thread can have are spilled.

    What cannot be settled is left as it is, to be refused by whoever times it.
    """
    notes: list[str] = []
    done = []
    counted = trips
    for program in launches:
        for _ in range(_ATTEMPTS):
            try:
                lower(program, machine)
            except UndecidedError:
                if counted is None:
                    counted = _counted(launches, tensors or {})
                how = "as executed" if trips is not None else "as in some blocks run on drawn operands"
                program, said = _decided(program, counted, how)
                notes += said
                if not said:
                    break
            except RegistersError as error:
                program = spilled(program, error.excess)
                notes.append(f"{error}; {error.excess} are timed as spilled to local memory")
            except (SimulationError, KeyError):
                break
            else:
                break
        done.append(program)
    return tuple(done), tuple(notes)


def _decided(
    program: TileProgram, counted: Mapping[int, float], how: str
) -> tuple[TileProgram, tuple[str, ...]]:
    """``program`` with its undecided loops and branches decided by what was counted."""
    branches = {s.loc.line for s in walk_stmts(program.body) if isinstance(s, If) and s.loc}
    lines = {s.loc.line for s in walk_stmts(program.body) if s.loc}
    known: dict[int, float] = {}
    said = []
    for line, mean in counted.items():
        if line not in lines:
            continue
        known[line] = mean if line in branches else max(1, round(mean)) if mean > 0 else 0
        what = f"taken by {mean:.0%} of the blocks" if line in branches else f"{known[line]} iterations"
        said.append(f"line {line}: {what}, {how}")
    if not known or any(name.startswith(f"{TRIPS}:") for name, _ in program.annotations):
        return program, ()
    return assume(program, trips=known), tuple(said)


def _counted(launches: Sequence[TileProgram], tensors: Mapping[str, np.ndarray]) -> dict[int, float]:
    """How often loops run in some blocks; nothing where the program cannot be executed."""
    sizes = [prod(int(evaluate(e, {})) for e in p.shape) for program in launches for p in program.params]
    if sum(sizes) > _MOST_ELEMENTS:
        return {}
    given = {**operands(launches), **tensors}
    try:
        return execute(launches, given, blocks=_BLOCKS).trips
    except (NumericsError, KeyError, IndexError):
        return {}
