"""Roles and barriers that a kernel writes out, as the pipelined loops they make.

A kernel for which the author chose the schedule has teams of threads that run side by side, copies that
complete later, and barriers in between. What a machine does with it is what it does with a pipelined
loop: loads run as many iterations ahead as there are tiles in the ring, the rest follows in order. The
streams of the teams become one, loops of equal trips side by side in one loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from foretile.kernels.expr import Binary, Const, Expr, Load, Var, binary, loads, substitute, variables
from foretile.kernels.ir import (
    AsyncCommit,
    AsyncWait,
    BarrierArrive,
    BarrierWait,
    Buffer,
    Copy,
    For,
    Gemm,
    Hint,
    If,
    Jump,
    Region,
    Stmt,
    Store,
    Sync,
    TileProgram,
    While,
    walk_stmts,
)
from foretile.kernels.rewrite import map_body
from foretile.simulator.lowering.lanes import rebuilt
from foretile.simulator.threads import lanes_where, teams_of, thread_indices

_SILENT = (AsyncCommit, AsyncWait, BarrierArrive, Hint, Jump)


def one_stream(program: TileProgram) -> tuple[tuple[Stmt, ...], int]:
    """The statements of all teams as one stream, and the threads that do more than fetch tiles."""
    places = thread_indices(program)
    teams = teams_of(program)
    streams = [_of_team(program.body, lanes, places, program.threads) for lanes in teams]
    fetching = [_only_fetches(s, program) for s in streams]
    order = sorted(range(len(teams)), key=lambda n: fetching[n])  # those that compute give the frame
    merged = streams[order[0]]
    for n in order[1:]:
        merged = _merge(merged, streams[n])
    working = [int(t.sum()) for t, f in zip(teams, fetching, strict=True) if not f]
    return merged, sum(working) if working else program.threads


def _of_team(
    body: Sequence[Stmt], lanes: np.ndarray, places: Mapping[str, np.ndarray], threads: int
) -> tuple[Stmt, ...]:
    """What the threads of one team do."""
    found: list[Stmt] = []
    for s in body:
        if isinstance(s, If):
            holds = lanes_where(s, dict(places), threads)
            if holds is not None and (holds[lanes].all() or not holds[lanes].any()):
                found.extend(_of_team(s.then if holds[lanes].all() else s.orelse, lanes, places, threads))
                continue
            then, orelse = (_of_team(x, lanes, places, threads) for x in (s.then, s.orelse))
            s = replace(s, then=then, orelse=orelse)
        elif isinstance(s, For | While) and not (isinstance(s, For) and s.kind == "parallel"):
            s = replace(s, body=_of_team(s.body, lanes, places, threads))
        found.append(s)
    return tuple(found)


def _only_fetches(body: tuple[Stmt, ...], program: TileProgram) -> bool:
    """Whether a stream does nothing but bring tiles from global memory, and the barriers for it."""
    copies = 0
    for s in walk_stmts(body):
        if isinstance(s, Copy):
            copies += 1
            if program.buffer(s.src.buffer).scope != "global":
                return False
        elif isinstance(s, For):
            if s.kind == "parallel":
                return False
        elif not isinstance(s, (*_SILENT, If, While, BarrierWait, Sync)):
            return False
    return copies > 0


def _merge(first: Sequence[Stmt], second: Sequence[Stmt]) -> tuple[Stmt, ...]:
    """Two streams as one: what both execute together once, loops of equal trips as one loop."""
    out: list[Stmt] = []
    at = 0
    for s in second:
        place = next((j for j in range(at, len(first)) if _alike(first[j], s)), None)
        if place is None:
            out.append(s)
            continue
        out.extend(first[at:place])
        out.append(_joined(first[place], s))
        at = place + 1
    return (*out, *first[at:])


def _alike(a: Stmt, b: Stmt) -> bool:
    if a is b:
        return True
    if isinstance(a, For) and isinstance(b, For):
        same = _ratio(a, b) or (a.extents == b.extents and a.start == b.start and a.step == b.step)
        return bool(same) and len(a.vars) == len(b.vars) and a.kind == b.kind and a.kind != "parallel"
    return isinstance(a, If) and isinstance(b, If) and a.cond == b.cond


def _joined(a: Stmt, b: Stmt) -> Stmt:
    if isinstance(a, For) and isinstance(b, For) and a is not b:
        times = _ratio(a, b)
        if times > 1:
            b = _repeated(b, times)
        elif times < -1:
            a = _repeated(a, -times)
        names: dict[str, Expr] = dict(zip((v.name for v in b.vars), a.vars, strict=True))
        renamed = map_body(b.body, lambda e: substitute(e, names))
        return replace(a, body=_merge(a.body, renamed))
    if isinstance(a, If) and isinstance(b, If) and a is not b:
        return replace(a, then=_merge(a.then, b.then), orelse=_merge(a.orelse, b.orelse))
    return a


def _ratio(a: For, b: For) -> int:
    """How many trips of ``b`` (negative: of ``a``) there are for each of the other; 0: not a whole number."""
    if len(a.vars) > 1 or len(b.vars) > 1 or a.start is not None or b.start is not None:
        return 0
    if a.extents == b.extents:
        return 1 if a.step == b.step else 0
    m, n = a.extents[0], b.extents[0]
    if not (isinstance(m, Const) and isinstance(n, Const)) or a.step != 1 or b.step != 1:
        return 0
    if m.value and n.value and int(n.value) % int(m.value) == 0:
        return int(n.value) // int(m.value)
    if m.value and n.value and int(m.value) % int(n.value) == 0:
        return -(int(m.value) // int(n.value))
    return 0


def _repeated(s: For, times: int) -> For:
    """A loop with ``times`` iterations in one."""
    var = s.vars[0]
    body: list[Stmt] = []
    for r in range(times):
        place: dict[str, Expr] = {var.name: binary("add", binary("mul", var, Const(times)), Const(r))}
        body.extend(map_body(s.body, lambda e, place=place: substitute(e, place)))  # type: ignore[misc]
    extent = s.extents[0]
    assert isinstance(extent, Const)
    return replace(s, extents=(Const(int(extent.value) // times),), body=tuple(body))


def buffers_read(body: Sequence[Stmt]) -> set[str]:
    """Names of the buffers that statements read."""
    found: set[str] = set()
    for s in walk_stmts(tuple(body)):
        for f in fields(s):
            part = getattr(s, f.name)
            if isinstance(part, Region) and f.name != "dst":
                found.add(part.buffer)
            elif isinstance(part, Expr):
                found |= {x.buffer for x in loads(part)}
    return found


class Pipelines:
    """Finds loops whose copies the author lets run ahead. ``rings``: buffer → dimension and its tiles."""

    def __init__(self, program: TileProgram) -> None:
        self.program = program
        self.rings: dict[str, tuple[int, int]] = {}

    def block(self, body: Sequence[Stmt]) -> tuple[Stmt, ...]:
        """Statements, with such loops pipelined and the author's own bookkeeping dropped."""
        out: list[Stmt] = []
        for s in body:
            if isinstance(s, _SILENT):
                continue
            if isinstance(s, BarrierWait):
                out.append(Sync(loc=s.loc))
            elif isinstance(s, For) and s.kind != "parallel":
                loop, filled = self.loop(s)
                # Tiles fetched before the loop are those of its first iterations.
                out = [x for x in out if not (_fetched(x) and x.dst.buffer in filled)]  # type: ignore[attr-defined]
                out.append(loop)
            elif isinstance(s, If):
                then, orelse = self.block(s.then), self.block(s.orelse)
                if then or orelse:
                    out.append(replace(s, then=then, orelse=orelse))
            elif isinstance(s, While):
                out.append(replace(s, body=self.block(s.body)))
            else:
                out.append(s)
        return tuple(out)

    def loop(self, s: For) -> tuple[For, frozenset[str]]:
        """A loop, and the buffers that its own pipeline fills."""
        flat: list[Stmt] = []
        for x in s.body:
            flat.extend(self._ahead(x, s) if isinstance(x, If) else (x,))
        ahead = [x for x in flat if _fetched(x) and self._fetches(x)]
        if not ahead or (s.kind == "pipelined" and s.num_stages > 0) or len(s.vars) > 1:
            return replace(s, body=self.block(s.body)), frozenset()
        depths = [self._ring(x.dst) for x in ahead if isinstance(x, Copy)]
        rest = self.block([x for x in flat if not any(x is y for y in ahead)])
        if not any(x.dst.buffer in buffers_read(rest) for x in ahead if isinstance(x, Copy)):
            return replace(s, body=self.block(s.body)), frozenset()  # nobody uses them here
        # The barriers of the ring are those of any pipelined loop.
        rest = tuple(x for x in rest if not isinstance(x, Sync))
        plain = tuple(replace(x, mode="", barrier=None) for x in ahead if isinstance(x, Copy))
        filled = frozenset(x.dst.buffer for x in plain)
        loop = replace(s, kind="pipelined", num_stages=max(depths), body=(*plain, *rest))
        return loop, filled

    def _ahead(self, s: If, loop: For) -> Sequence[Stmt]:
        """A guarded prefetch of a later iteration's tiles, as this iteration's.

        Whole tiles are what is expected, where the other side fetches a tail in another way.
        """
        name = loop.vars[0].name
        if not any(_fetched(x) for x in s.then) or not all(
            _fetched(x) or isinstance(x, _SILENT) for x in s.then
        ):
            return (s,)
        shift = _shift(s.cond, name) if name in variables(s.cond) else 0
        back: dict[str, Expr] = {name: Binary("sub", Var(name), Const(shift))} if shift else {}
        return map_body(s.then, lambda e: substitute(e, back)) if back else s.then

    def _fetches(self, s: Stmt) -> bool:
        assert isinstance(s, Copy)
        here, there = self.program.buffer(s.src.buffer), self.program.buffer(s.dst.buffer)
        return here.scope == "global" and there.scope == "shared"

    def _ring(self, dst: Region) -> int:
        """How many tiles the buffer has, by the dimension whose index the iterations turn through."""
        buffer = self.program.buffer(dst.buffer)
        for d, (low, extent, size) in enumerate(zip(dst.mins, dst.extents, buffer.shape, strict=True)):
            if variables(low) and extent == Const(1) and isinstance(size, Const) and int(size.value) > 1:
                self.rings[buffer.name] = (d, int(size.value))
                return int(size.value)
        return 1

    def shrunk(self, body: tuple[Stmt, ...]) -> tuple[tuple[Stmt, ...], tuple[Buffer, ...]]:
        """Statements and buffers with one tile of each ring: a pipelined loop adds the others."""

        def first_tile(e: Expr) -> Expr:
            return _in_ring(e, self.rings)

        def region(r: Region) -> Region:
            if r.buffer not in self.rings:
                return r
            d, _ = self.rings[r.buffer]
            return replace(r, mins=(*r.mins[:d], Const(0), *r.mins[d + 1 :]))

        buffers = []
        for b in self.program.buffers:
            if b.name in self.rings:
                d, _ = self.rings[b.name]
                b = replace(b, shape=(*b.shape[:d], Const(1), *b.shape[d + 1 :]))
            buffers.append(b)
        mapped = _map_places(map_body(body, first_tile), region, self.rings)
        return _in_order(mapped), tuple(buffers)


def _in_order(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """Statements of which every one is done when it is: what completes later has its place by now."""
    out: list[Stmt] = []
    for s in body:
        if isinstance(s, For | While):
            s = replace(s, body=_in_order(s.body))
        elif isinstance(s, If):
            s = replace(s, then=_in_order(s.then), orelse=_in_order(s.orelse))
        elif isinstance(s, Copy) and (s.mode or s.barrier is not None):
            s = replace(s, mode="", barrier=None)
        elif isinstance(s, Gemm) and (s.mode or s.barrier is not None):
            s = replace(s, mode="", barrier=None, wait=None)
        out.append(s)
    return tuple(out)


def _fetched(s: Stmt) -> bool:
    return isinstance(s, Copy) and s.mode in ("async", "tma")


def _shift(cond: Expr, name: str) -> int:
    """By how many iterations a prefetch runs ahead, where its guard shows it (``i + 2 < n``)."""
    if isinstance(cond, Binary) and cond.op in ("lt", "le"):
        a, b = cond.a, cond.b
        if isinstance(a, Binary) and a.op == "add" and a.a == Var(name) and isinstance(a.b, Const):
            return int(a.b.value)
        if a == Var(name) and isinstance(b, Binary) and b.op == "sub" and isinstance(b.b, Const):
            return int(b.b.value)
        if a == Var(name) and isinstance(b, Const):
            return 1
    return 0


def _in_ring(e: Expr, rings: Mapping[str, tuple[int, int]]) -> Expr:
    """``e`` with elements of rings taken from their first tile."""
    if isinstance(e, Load):
        indices = tuple(_in_ring(i, rings) for i in e.indices)
        if e.buffer in rings:
            d, _ = rings[e.buffer]
            indices = (*indices[:d], Const(0), *indices[d + 1 :])
        return Load(e.buffer, indices)
    return rebuilt(e, lambda x: _in_ring(x, rings))


def _map_places(
    body: tuple[Stmt, ...], fn: Callable[[Region], Region], rings: Mapping[str, tuple[int, int]]
) -> tuple[Stmt, ...]:
    """Statements with regions, and elements of rings that are written, replaced."""
    out: list[Stmt] = []
    for s in body:
        changes: dict[str, Any] = {
            f.name: fn(getattr(s, f.name)) for f in fields(s) if isinstance(getattr(s, f.name), Region)
        }
        if isinstance(s, For | While):
            changes["body"] = _map_places(s.body, fn, rings)
        elif isinstance(s, If):
            changes |= {side: _map_places(getattr(s, side), fn, rings) for side in ("then", "orelse")}
        elif isinstance(s, Store) and s.buffer in rings:
            d, _ = rings[s.buffer]
            changes["indices"] = (*s.indices[:d], Const(0), *s.indices[d + 1 :])
        out.append(replace(s, **changes) if changes else s)
    return tuple(out)
