"""How much of what a program allocates on a core holds values that are still needed, at once at most.

Compilers give the room of a buffer whose values nobody reads any more to the next one: registers always,
scratchpad where the buffers of a kernel are merged (TileLang's ``MergeSharedMemoryAllocations``). Where in
doubt a buffer counts as needed: bodies of pipelined loops overlap, and so do the sides of a branch that
tells threads apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from foretile.kernels.expr import Const, Expr, Load, variables, walk
from foretile.kernels.ir import (
    Copy,
    Fill,
    For,
    Gemm,
    If,
    Reduce,
    Region,
    Stmt,
    Store,
    TileProgram,
    While,
    walk_stmts,
)

_BODIES = ("loc", "body", "then", "orelse")


def most_at_once(program: TileProgram, sizes: Mapping[str, float]) -> float:
    """The largest sum of ``sizes`` (by buffer; others do not count) over what is needed at one moment."""
    spans = _Spans(program, sizes)
    spans.visit(program.body)
    held = spans.spans
    return max(
        (
            sum(sizes[b] for b, (first, last) in held.items() if first <= at <= last)
            for at, _ in held.values()
        ),
        default=0.0,
    )


def named(stmt: Stmt) -> set[str]:
    """Buffers that ``stmt`` itself names, bodies aside."""
    found: set[str] = {stmt.buffer} if isinstance(stmt, Store) else set()
    for part in _parts(stmt):
        exprs = (*part.mins, *part.extents) if isinstance(part, Region) else (part,)
        found |= {part.buffer} if isinstance(part, Region) else set()
        found |= {e.buffer for whole in exprs for e in walk(whole) if isinstance(e, Load)}
    return found


class _Spans:
    """``spans``: from which statement to which each buffer is needed, counted in program order."""

    def __init__(self, program: TileProgram, sizes: Mapping[str, float]) -> None:
        self.bases = {b.name: b.alias for b in program.buffers if b.alias}
        self.shared = {b.name for b in program.buffers if b.scope == "shared"}
        self.on_chip = {b.name for b in program.buffers if b.scope != "global"}
        self.lanes = {v.name for v in program.thread_vars}
        self.sizes = sizes
        self.time = 0
        self.spans: dict[str, tuple[int, int]] = {}

    def visit(self, body: tuple[Stmt, ...]) -> tuple[set[str], set[str]]:
        """Buffers used in ``body``, and those of them whose former value is kept or read."""
        used: set[str] = set()
        kept: set[str] = set()
        for stmt in body:
            touched, needed = self._one(stmt)
            kept |= needed - used
            used |= touched
        return used, kept

    def _one(self, stmt: Stmt) -> tuple[set[str], set[str]]:
        self.time += 1
        start, used = self.time, self._named(stmt)
        if isinstance(stmt, If):
            heads = set(used)
            used |= self.visit(stmt.then)[0] | self.visit(stmt.orelse)[0]
            # Different threads run both sides at once.
            self._extend(used if stmt.role or self._apart(stmt.cond) else heads, start)
            return used, used  # what a side that is left out would have written keeps its value
        if isinstance(stmt, While) or (isinstance(stmt, For) and stmt.kind != "parallel"):
            inside, needed = self.visit(stmt.body)
            kept = used | needed
            if isinstance(stmt, For) and stmt.kind == "pipelined":
                kept |= inside & self.shared
            self._extend(kept, start)
            return used | inside, kept
        made: set[str] = set()
        swept = {v.name for v in stmt.vars} if isinstance(stmt, For) else set()
        for inner in stmt.body if isinstance(stmt, For) else (stmt,):
            made |= set(self._made(inner, swept)) - (used if inner is not stmt else set())
            used = used.union(*(self._named(s) for s in walk_stmts((inner,))))
        self._extend(used, start)
        return used, used - made

    def _extend(self, names: set[str], start: int) -> None:
        for name in names & self.sizes.keys():
            first, last = self.spans.get(name, (start, start))
            self.spans[name] = min(first, start), max(last, self.time)

    def _apart(self, cond: Expr) -> bool:
        return bool(variables(cond) & self.lanes) or any(
            isinstance(e, Load) and e.buffer in self.on_chip for e in walk(cond)
        )

    def _named(self, stmt: Stmt) -> set[str]:
        """Buffers that ``stmt`` itself names, bodies aside; views by what they are views of."""
        return {self._base(name) for name in named(stmt)}

    def _base(self, name: str) -> str:
        while name in self.bases:
            name = self.bases[name]
        return name

    def _made(self, stmt: Stmt, swept: set[str]) -> Iterator[str]:
        """Buffers that ``stmt`` gives new values throughout, reading none of the former."""
        read: set[str] = set()
        name = ""
        if isinstance(stmt, Store) and not stmt.atomic and swept:
            if all(variables(i) <= swept for i in stmt.indices):
                name = stmt.buffer
                read = {e.buffer for e in walk(stmt.value) if isinstance(e, Load)}
        elif isinstance(stmt, Copy | Fill) or (isinstance(stmt, Reduce) and stmt.clear):
            if all(m == Const(0) for m in stmt.dst.mins):
                name = stmt.dst.buffer
                read = set() if isinstance(stmt, Fill) else {stmt.src.buffer}
        elif isinstance(stmt, Gemm) and stmt.clear_accum and all(m == Const(0) for m in stmt.c.mins):
            name, read = stmt.c.buffer, {stmt.a.buffer, stmt.b.buffer}
        if name and name not in self.bases and name not in {self._base(r) for r in read}:
            yield name


def _parts(stmt: Stmt) -> Iterator[Region | Expr]:
    for name in stmt.__dataclass_fields__:
        value = getattr(stmt, name) if name not in _BODIES else ()
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Region | Expr):
                yield part
