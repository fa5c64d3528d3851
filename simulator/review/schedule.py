"""Pipelines that are too shallow, cores that wait for the last wave, room for more blocks on a core."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from foretile.kernels.ir import Copy, For, If, Stmt, TileProgram, While, walk_stmts
from foretile.simulator.lowering.analysis import is_load
from foretile.simulator.machine import Machine, SimulationError
from foretile.simulator.predictor import as_operator
from foretile.simulator.review.finding import Finding, saved
from foretile.simulator.search import Launches, evaluate_config

WORTH = 0.02  # of the time: what brings less is not said
_DEEPEST = 6  # stages tried


@dataclass(frozen=True)
class Timer:
    """The cost model, asked about variants of one program. ``tensors``: operands that decide trip counts."""

    tensors: Mapping[str, np.ndarray] | None = None

    def launches(self, program: TileProgram, machine: Machine) -> Launches:
        """The program's one launch.

        Raises:
            SimulationError: it does not fit the machine.
        """
        return evaluate_config(as_operator(program, tensors=self.tensors), {}, {}, machine)

    def time_s(self, program: TileProgram, machine: Machine) -> float:
        """Seconds; infinite where it does not fit."""
        try:
            return float(np.ravel(self.launches(program, machine).time_s)[0])
        except SimulationError:
            return np.inf


def pipelines(program: TileProgram, machine: Machine, timer: Timer, time_s: float) -> Iterator[Finding]:
    """Loops whose copies would hide more latency with more buffers."""
    for loop in walk_stmts(program.body):
        if not isinstance(loop, For) or loop.kind not in ("pipelined", "serial"):
            continue
        if len(loop.vars) != 1 or not _stages_tiles(loop, program):
            continue
        now = loop.num_stages if loop.kind == "pipelined" else 0
        variants = {
            depth: timer.time_s(_with_loop(program, loop, depth), machine)
            for depth in range(max(2, now + 1), _DEEPEST + 1)
        }
        if not variants:
            continue
        depth = min(variants, key=lambda d: (round(variants[d] / time_s, 3), d))
        gain = saved(time_s, variants[depth])
        if gain < WORTH:
            continue
        what = f"num_stages={now}" if now else "a loop without a pipeline"
        change = f"num_stages={depth}" if now else f"T.Pipelined with num_stages={depth}"
        yield Finding(
            "pipeline depth",
            "warning",
            f"{what} leaves copies exposed: {change} hides more of their latency, and still fits",
            loop.loc,
            gain,
        )


def waves(program: TileProgram, machine: Machine, timer: Timer, time_s: float) -> Iterator[Finding]:
    """Cores without work while the last blocks finish."""
    found = timer.launches(program, machine)
    plan = found.plans[0]
    slots = plan.workload.occupancy.blocks_per_core * machine.cores
    blocks = float(np.ravel(plan.blocks)[0])
    if blocks < machine.cores:
        idle, what = 1 - blocks / machine.cores, f"{blocks:g} blocks for {machine.cores} cores"
    else:
        rounds = blocks / slots
        idle = 1 - rounds / np.ceil(rounds) if rounds > 1 else 0.0
        what = f"{blocks:g} blocks on {slots} places make {rounds:.2f} waves: in the last one cores wait"
    tail = min(idle, float(np.ravel(found.estimates[0].tail_s)[0]) / time_s)
    if tail < WORTH:
        return
    yield Finding(
        "wave quantisation",
        "warning",
        f"{what}. Tiles of another size, a split of the reduction, or T.Persistent spread it more evenly",
        program.loc,
        tail,
        at_most=True,
    )


def occupancy(program: TileProgram, machine: Machine, timer: Timer, time_s: float) -> Iterator[Finding]:
    """Whether one more block on every core would help, and what stands in its way."""
    held = timer.launches(program, machine).plans[0].workload.occupancy
    enough = {
        "shared memory": "scratchpad_bytes",
        "registers": "register_bytes",
        "threads": "threads_per_core",
    }
    field = enough.get(held.limited_by)
    if field is None:
        return
    room = replace(machine, **{field: getattr(machine, field) * 2})
    gain = saved(time_s, timer.time_s(program, room))
    if gain < WORTH:
        return
    uses = {
        "shared memory": f"{held.scratchpad_bytes} bytes of shared memory",
        "registers": f"{held.registers_per_thread} registers a thread",
        "threads": f"{held.threads} threads",
    }[held.limited_by]
    yield Finding(
        "occupancy",
        "warning",
        f"{held.blocks_per_core} block{'s' if held.blocks_per_core > 1 else ''} to a core, limited by "
        f"{held.limited_by} ({uses} a block): with half of it twice as many would fit",
        program.loc,
        gain,
        at_most=True,
    )


def _stages_tiles(loop: For, program: TileProgram) -> bool:
    """Whether the loop copies tiles into shared memory and works on them."""
    loads = [s for s in loop.body if isinstance(s, Copy) and is_load(s, program) and not s.mode]
    return bool(loads) and len(loop.body) > len(loads)


def _with_loop(program: TileProgram, loop: For, depth: int) -> TileProgram:
    changed = replace(loop, kind="pipelined", num_stages=depth)
    return replace(program, body=_swapped(program.body, loop, changed))


def _swapped(body: tuple[Stmt, ...], old: For, new: For) -> tuple[Stmt, ...]:
    found: list[Stmt] = []
    for stmt in body:
        if stmt is old:
            found.append(new)
        elif isinstance(stmt, For | While):
            found.append(replace(stmt, body=_swapped(stmt.body, old, new)))
        elif isinstance(stmt, If):
            found.append(
                replace(stmt, then=_swapped(stmt.then, old, new), orelse=_swapped(stmt.orelse, old, new))
            )
        else:
            found.append(stmt)
    return tuple(found)
