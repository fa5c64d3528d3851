"""Programs whose author wrote out threads, roles and asynchronous work, in the words that lowering knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from foretile.kernels.expr import Call, walk
from foretile.kernels.ir import Copy, Extern, For, Gemm, Hint, If, Stmt, Store, Sync, TileProgram, walk_stmts
from foretile.simulator.lowering.decisions import refuse_decisions
from foretile.simulator.lowering.device import DEVICE_COSTS, DEVICE_NAMES
from foretile.simulator.lowering.elementwise import DEVICE_FUNCTIONS, EXTERN
from foretile.simulator.lowering.lanes import TRIPS, Lanes, marked
from foretile.simulator.lowering.rules import OWN_PRODUCERS
from foretile.simulator.lowering.schedule import Pipelines, one_stream
from foretile.simulator.machine import Machine, SimulationError
from foretile.simulator.threads import by_thread, teams_of


def assume(
    program: TileProgram,
    *,
    extern: Mapping[str, float] | None = None,
    trips: Mapping[int, float] | None = None,
) -> TileProgram:
    """``program`` with what only its user knows, so that it can be timed.

    ``extern``: instructions that a call of opaque code takes in each thread, by name; ``trips``: how often a
    loop that values of the kernel itself decide runs, by line of the source.

    Raises:
        ValueError: a cost below zero, or a name that is not called.
    """
    called = {s.name for s in walk_stmts(program.body) if isinstance(s, Extern)} | set(_called(program))
    for name, count in (extern or {}).items():
        if name not in called:
            known = f"it calls {', '.join(sorted(called))}" if called else "it calls none"
            raise ValueError(f"{program.name} calls no opaque code {name!r}; {known}")
        if count < 0:
            raise ValueError(f"{name}: {count} instructions; expected 0 or more")
    for line, number in (trips or {}).items():
        if number < 0:
            raise ValueError(f"line {line}: {number} trips; expected 0 or more")
    notes = marked(program, extern or {}, EXTERN)
    notes += marked(program, {str(k): v for k, v in (trips or {}).items()}, TRIPS)
    return replace(program, annotations=(*program.annotations, *notes))


def timed(program: TileProgram, machine: Machine) -> TileProgram:
    """The program as lowering times it; one without threads, roles or asynchronous work is itself.

    Raises:
        SimulationError: what the machine has no counterpart of, or what nobody gave a cost of.
    """
    scopes = {b.scope for b in program.buffers}
    plain = not by_thread(program) and not scopes & {"barrier", "tmem", "global"}
    if plain and not any(b.alias for b in program.buffers) and not _has_new(program):
        return _with_indices(program)
    _refuse_opaque(program)
    body, threads = one_stream(program)
    pipelines = Pipelines(program)
    body = pipelines.block(body)
    body, buffers = pipelines.shrunk(body)
    body = Lanes(program, threads).block(body, {})
    kept = tuple(
        replace(b, scope="fragment") if b.scope == "tmem" else b
        for b in buffers
        if b.scope not in ("barrier", "global")
    )
    workspace = tuple(b for b in buffers if b.scope == "global")
    notes = program.annotations
    if len(teams_of(program)) > 1 and program.annotation("min_blocks_per_sm") is None:
        # Who deals registers to roles himself has seen to it that a block fits.
        notes = (*notes, ("min_blocks_per_sm", "1"))
    if len(teams_of(program)) > 1 and threads == program.threads:
        notes = (*notes, (OWN_PRODUCERS, "1"))  # whoever fetches also computes
    return replace(
        program,
        body=body,
        buffers=kept,
        params=(*program.params, *workspace),
        annotations=notes,
        threads=max(threads, 1) if machine.style == "simt" else program.threads,
    )


def degraded(program: TileProgram, machine: Machine) -> tuple[str, ...]:
    """What the source asks for and the machine does in another way, each with the line."""
    found: dict[str, str] = {}
    for s in walk_stmts(program.body):
        where = f"{s.loc}: " if s.loc else ""
        if isinstance(s, Copy) and s.mode:
            has = machine.bulk_copy if s.mode == "tma" else machine.async_copy
            if not has:
                what = "bulk tensor copies" if s.mode == "tma" else "asynchronous copies"
                instead = (
                    "asynchronous copies of threads" if machine.async_copy else "copies through registers"
                )
                found.setdefault(what, f"{where}{machine.id} has no {what}; {instead} are timed")
        elif isinstance(s, Gemm) and s.mode and machine.matrix_instruction != s.mode:
            text = f"{where}{machine.id} has no {s.mode} products; {machine.matrix_instruction} is timed"
            found.setdefault(s.mode, text)
        elif isinstance(s, Gemm) and as_tf32(program, s, machine):
            found.setdefault("tf32", f"{where}products of fp32 are timed as tf32, which they are compiled to")
        elif isinstance(s, If) and s.role and not machine.warp_specialisation:
            found.setdefault("roles", f"{where}{machine.id} runs the roles of warps as one stream")
    held = [b.name for b in program.buffers if b.scope == "tmem"]
    if held and not machine.tensor_memory_bytes:
        found["tmem"] = f"{machine.id} has no tensor memory; {', '.join(held)} is kept in registers"
    if program.cluster and any(n > 1 for n in program.cluster) and not machine.clusters:
        found["cluster"] = f"{machine.id} has no clusters; every block fetches for itself"
    if program.thread_vars and machine.style != "simt":
        found["lanes"] = f"code of single threads is timed as element-wise work on {machine.id}"
    return tuple(found.values())


def as_tf32(program: TileProgram, s: Gemm, machine: Machine) -> bool:
    """Whether a product of fp32 runs in tf32: what TileLang makes of it on matrix engines without fp32."""
    both = {program.buffer(r.buffer).dtype for r in (s.a, s.b)} == {"float32"}
    rates = machine.matrix_flop_per_s
    return both and machine.style == "simt" and "fp32" not in rates and "tf32" in rates


def _with_indices(program: TileProgram) -> TileProgram:
    """The program; where values on the chip decide, with those that a tensor holds read from there."""
    try:
        refuse_decisions(program)
    except SimulationError:
        found = replace(
            program, body=Lanes(program, program.threads, only_indices=True).block(program.body, {})
        )
        refuse_decisions(found)
        return found
    return program


def _has_new(program: TileProgram) -> bool:
    """Statements of which the walk over a program has nothing to say."""
    for s in walk_stmts(program.body):
        if isinstance(s, Hint | Extern) or (isinstance(s, For) and s.kind == "vectorized"):
            return True
        if isinstance(s, Copy | Gemm) and s.mode:
            return True
        if isinstance(s, Sync) and (s.scope != "block" or s.ident is not None):
            return True
        if isinstance(s, Store) and s.atomic and program.annotation("reducer", s.buffer) is not None:
            return True
    return False


def _called(program: TileProgram) -> dict[str, Stmt]:
    """Opaque functions that expressions call, and where."""
    found: dict[str, Stmt] = {}
    for s in walk_stmts(program.body):
        for name in ("value", "cond"):
            e = getattr(s, name, None)
            for x in walk(e) if e is not None else ():
                if isinstance(x, Call) and x.fn.startswith("extern:"):
                    found.setdefault(x.fn.split(":", 2)[2], s)
    return found


def _refuse_opaque(program: TileProgram) -> None:
    calls = _called(program)
    for s in walk_stmts(program.body):
        if isinstance(s, Extern):
            calls.setdefault(s.name, s)
    for name, s in calls.items():
        if not known_cost(program, name):
            raise SimulationError(
                f"{s.loc or program.name}: {name} is opaque device code; to time it, say how many "
                f"instructions a call takes a thread (foretile.assume(program, extern={{{name!r}: N}}))"
            )


def known_cost(program: TileProgram, name: str) -> bool:
    """Whether a call of opaque code has a cost."""
    known = program.annotation(EXTERN, name) is not None
    named = any(name in table for table in (DEVICE_FUNCTIONS, DEVICE_COSTS, DEVICE_NAMES))
    return known or named or name.startswith("clc_")
