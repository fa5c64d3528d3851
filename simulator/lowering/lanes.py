"""Per-thread code as parallel nests over the threads, so that it is costed as element-wise work is.

What a statement of one thread does, every thread does: it is a nest over as many points as there are
threads. Loops around stay loops (threads with fewer trips wait), both sides of a branch on values of the
threads are issued, and an exit from a loop is not expected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import (
    Binary,
    Call,
    Cast,
    Const,
    Expr,
    Load,
    Var,
    binary,
    loads,
    substitute,
    variables,
)
from foretile.kernels.ir import (
    Copy,
    Extern,
    Fill,
    For,
    If,
    Loc,
    RandomInit,
    Region,
    Stmt,
    Store,
    TileProgram,
    While,
    walk_stmts,
)
from foretile.kernels.rewrite import map_body

OWN = ("local", "var")
Element = Callable[[tuple[Expr, ...]], Expr]  # what an element holds, by its indices
Known = Mapping[str, Element]
TRIPS = "trips"  # annotation "trips:LINE": how often the loop at that line of the source runs


def rebuilt(e: Expr, fn: Callable[[Expr], Expr]) -> Expr:
    """``e`` with ``fn`` applied to its parts."""
    if isinstance(e, Binary):
        return Binary(e.op, fn(e.a), fn(e.b))
    if isinstance(e, Call):
        return Call(e.fn, tuple(map(fn, e.args)))
    if isinstance(e, Cast):
        return Cast(e.dtype, fn(e.a), e.bits)
    if isinstance(e, Load):
        return Load(e.buffer, tuple(map(fn, e.indices)))
    return e


class Lanes:
    """Turns per-thread statements of ``program`` into nests over ``threads`` threads."""

    def __init__(self, program: TileProgram, threads: int, *, only_indices: bool = False) -> None:
        self.program, self.threads = program, threads
        self.only_indices = only_indices  # leave all but what elements hold as it is
        self.names = {v.name for v in program.thread_vars}
        self.on_chip = {b.name for b in program.buffers if b.scope != "global"}
        self.own = {b.name for b in program.buffers if b.scope in OWN}
        self.lane = program.thread_vars[0] if program.thread_vars else Var("thread")

    def block(self, body: Sequence[Stmt], known: Known) -> tuple[Stmt, ...]:
        """Statements; ``known``: what elements of buffers on the chip hold, where it is told by indices."""
        here: dict[str, Element] = dict(known)
        out: list[Stmt] = []
        nest: list[Stmt] = []

        def close() -> None:
            if nest:
                out.append(self.nest(tuple(nest)))
                nest.clear()

        # A branch whose condition is known is replaced by the statements it selects.
        waiting = list(reversed(body))
        while waiting:
            old = waiting.pop()
            found = map_body((old,), lambda e: _replaced(e, here))
            if len(found) != 1 or (isinstance(old, If) and not isinstance(found[0], If)):
                waiting.extend(reversed(found))
                continue
            s = found[0]
            before = dict(here)
            self.learn(s, here)
            if self.is_simple(s):
                nest.append(s)
                continue
            close()
            out.extend(self.statement(s, before))
        close()
        return tuple(out)

    def learn(self, s: Stmt, known: dict[str, Element]) -> None:
        """What a statement tells of the elements that it writes, or makes unknown."""
        for x in walk_stmts((s,)):
            for name in _assigned(x):
                known.pop(name, None)
        if isinstance(s, Store) and s.buffer in self.own and self._is_integer(s.buffer) and not s.atomic:
            sizes = self.program.buffer(s.buffer).shape
            if all(e == Const(1) for e in sizes) and not self._chip_values(s.value):
                known[s.buffer] = lambda indices, value=s.value: value  # type: ignore[misc]
        filled = _filled(s)
        if filled is not None and self._is_integer(filled.buffer) and not self._chip_values(filled.value):
            known[filled.buffer] = lambda indices, f=filled: _element(f, indices)  # type: ignore[misc]
        if isinstance(s, Copy) and self._is_integer(s.dst.buffer) and s.src.buffer not in self.on_chip:
            known[s.dst.buffer] = lambda indices, s=s: _behind(s, indices)  # type: ignore[misc]

    def _is_integer(self, name: str) -> bool:
        return name in self.on_chip and DTYPES[self.program.buffer(name).dtype].kind in (
            "int",
            "uint",
            "bool",
        )

    def is_simple(self, s: Stmt) -> bool:
        """Whether a statement is per-thread code without loops of its own."""
        if self.only_indices:
            return False
        if isinstance(s, Store):
            return True
        if isinstance(s, If):
            return all(self.is_simple(x) for x in (*s.then, *s.orelse)) and (
                bool(self.names & variables(s.cond)) or bool(self._chip_values(s.cond))
            )
        constant = isinstance(s, For) and s.kind in ("unroll", "vectorized")
        if constant and isinstance(s, For):
            plain = not any(variables(e) or loads(e) for e in s.extents)
            return plain and all(self.is_simple(x) for x in s.body)
        return False

    def nest(self, body: tuple[Stmt, ...]) -> For:
        """Per-thread statements, by all threads."""
        return For((self.lane,), (Const(self.threads),), "parallel", body, loc=body[0].loc)

    def statement(self, s: Stmt, known: Known) -> tuple[Stmt, ...]:
        """A statement that is more than simple per-thread code."""
        if isinstance(s, Copy) and any(r.buffer in self.own for r in (s.src, s.dst)):
            return (self.each(s.dst, s.src, None, s.loc),)
        if isinstance(s, Fill) and s.dst.buffer in self.own:
            return (self.each(s.dst, None, s.value, s.loc),)
        if isinstance(s, RandomInit):
            return ()
        if isinstance(s, If):
            then, orelse = self.block(s.then, known), self.block(s.orelse, known)
            share = self._given(s.loc) if self._chip_values(s.cond) else None
            if share is not None:
                return (*(then if share != Const(0) else ()), *(orelse if share != Const(1) else ()))
            if self.names & variables(s.cond) or (self._chip_values(s.cond) and not self.only_indices):
                return (*then, *orelse)  # either may be taken by some of the threads
            return (replace(s, then=then, orelse=orelse),)
        if isinstance(s, While):
            extent = self._given(s.loc)
            if extent is None:
                return (s,)
            body = self.block(s.body, self._kept(known, s.body))
            return (For((Var(f"while{id(s)}"),), (extent,), "serial", body, loc=s.loc),)
        if isinstance(s, For) and s.kind == "parallel":
            return (s,)
        if isinstance(s, For):
            return (self.loop(s, known),)
        return (s,)

    def loop(self, s: For, known: Known) -> For:
        """A loop of threads: as many trips as the thread with most of them makes."""
        extents = tuple(self._most(e) for e in s.extents)
        given = self._given(s.loc)
        if given is not None and any(self._chip_values(e) for e in extents):
            extents = (given, *(Const(1) for _ in extents[1:]))
        body, start = s.body, s.start
        if start is not None and (self.names & variables(start) or self._chip_values(start)):
            shift = {s.vars[0].name: binary("add", start, s.vars[0])}
            body, start = map_body(body, lambda e: substitute(e, shift)), None
        body = self.block(body, self._kept(known, body))
        return replace(s, extents=extents, start=start, body=body)

    def each(self, dst: Region, src: Region | None, value: Expr | None, loc: Loc | None) -> For:
        """A copy or fill that every thread does by itself."""
        moving = [d for d, e in enumerate(dst.extents) if e != Const(1)]
        names = tuple(Var(f"{dst.buffer}%{d}") for d in moving)
        at = _swept(dst.mins, moving, names)
        if src is not None:
            there = [d for d, e in enumerate(src.extents) if e != Const(1)]
            value = Load(src.buffer, _swept(src.mins, there, names))
        assert value is not None
        extents = (Const(self.threads), *(dst.extents[d] for d in moving))
        return For(
            (self.lane, *names), extents, "parallel", (Store(dst.buffer, at, value, loc=loc),), loc=loc
        )

    # -- helpers ---------------------------------------------------------------------------------

    def _chip_values(self, e: Expr) -> set[str]:
        return {x.buffer for x in loads(e)} & self.on_chip

    def _kept(self, known: Known, body: Sequence[Stmt]) -> dict[str, Element]:
        """What still holds in every iteration of a loop."""
        written = {name for s in walk_stmts(tuple(body)) for name in _assigned(s)}
        return {name: value for name, value in known.items() if name not in written}

    def _most(self, e: Expr) -> Expr:
        """An upper bound of an extent over the threads: extents are monotonic in the thread's index."""
        if not self.names & variables(e):
            return e
        first: dict[str, Expr] = {name: Const(0) for name in self.names}
        last: dict[str, Expr] = {name: Const(self.threads - 1) for name in self.names}
        return binary("max", substitute(e, first), substitute(e, last))

    def _given(self, loc: Loc | None) -> Expr | None:
        """How often the user says that a loop runs."""
        text = self.program.annotation(TRIPS, str(loc.line)) if loc is not None else None
        return None if text is None else Const(float(text) if "." in text else int(text))


def _swept(mins: tuple[Expr, ...], moving: list[int], names: tuple[Var, ...]) -> tuple[Expr, ...]:
    return tuple(
        binary("add", low, names[moving.index(d)]) if d in moving and moving.index(d) < len(names) else low
        for d, low in enumerate(mins)
    )


def _assigned(s: Stmt) -> list[str]:
    found: list[str] = []
    if isinstance(s, Store):
        found.append(s.buffer)
        if s.previous is not None:
            found.append(s.previous.buffer)
    dst = getattr(s, "dst", None)
    if isinstance(dst, Region):
        found.append(dst.buffer)
    if isinstance(s, Extern):
        found.extend(r.buffer for r in s.writes)
    return found


def _filled(s: Stmt) -> Store | None:
    """The one store of a loop nest that gives every element of an array its own value."""
    names: list[str] = []
    while isinstance(s, For) and s.start is None and s.step == 1 and len(s.body) == 1:
        names += [v.name for v in s.vars]
        s = s.body[0]
    if not names or not isinstance(s, Store) or s.atomic or s.previous is not None:
        return None
    at = [i.name if isinstance(i, Var) else "" for i in s.indices]
    return s if sorted(at) == sorted(names) and len(set(at)) == len(at) else None


def _element(s: Store, indices: tuple[Expr, ...]) -> Expr:
    """What such a store leaves at ``indices``."""
    there = {i.name: e for i, e in zip(s.indices, indices, strict=True) if isinstance(i, Var)}
    return substitute(s.value, there)


def _behind(s: Copy, indices: tuple[Expr, ...]) -> Expr:
    """The element of a tensor that a copy has brought to an element of a buffer."""
    there = [d for d, e in enumerate(s.src.extents) if e != Const(1)]
    moving = [d for d, e in enumerate(s.dst.extents) if e != Const(1)]
    at = list(s.src.mins)
    for d, place in zip(moving, there, strict=False):
        shift = binary("sub", indices[d], s.dst.mins[d])
        at[place] = binary("add", at[place], shift)
    return Load(s.src.buffer, tuple(at))


def _replaced(e: Expr, known: Known) -> Expr:
    """``e`` with elements on the chip replaced by what they hold."""
    if not known:
        return e
    if isinstance(e, Load) and e.buffer in known:
        return known[e.buffer](tuple(_replaced(i, known) for i in e.indices))
    return rebuilt(e, lambda x: _replaced(x, known))


def marked(program: TileProgram, costs: Mapping[str, Any], kind: str) -> tuple[tuple[str, str], ...]:
    """Annotations that say ``costs`` of a ``kind``."""
    return tuple((f"{kind}:{name}", str(value)) for name, value in costs.items())
