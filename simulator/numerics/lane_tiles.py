"""Tile operations among per-thread code: what they need of threads' variables, which are per thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from foretile.kernels.expr import THREAD_FUNCTIONS, Call, Const, Expr, Load, Var, binary, walk
from foretile.kernels.ir import Copy, Fill, For, Reduce, Region, Stmt, Store
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.frame import Tile
from foretile.simulator.numerics.lane_access import Access
from foretile.simulator.numerics.resident import Resident
from foretile.simulator.numerics.settled import Varies, settle


def _uses(s: Stmt, resident: Resident) -> tuple[frozenset[str], frozenset[str], frozenset[str], bool]:
    held = resident.machine.memo.get(id(s))
    if held is None:
        held = resident.machine.memo[id(s)] = (s, uses_of(s))
    found: tuple[frozenset[str], frozenset[str], frozenset[str], bool] = held[1]
    return found


def uses_of(s: Stmt) -> tuple[frozenset[str], frozenset[str], frozenset[str], bool]:
    """Variables and buffers that a statement reads, buffers it writes; whether threads talk to each other."""
    names: set[str] = set()
    reads: set[str] = set()
    writes: set[str] = set()
    talks = False
    stack: list[Any] = [s]
    while stack:
        x = stack.pop()
        if isinstance(x, Expr):
            for e in walk(x):
                if isinstance(e, Var):
                    names.add(e.name)
                elif isinstance(e, Load):
                    reads.add(e.buffer)
                talks = talks or (isinstance(e, Call) and e.fn in THREAD_FUNCTIONS)
        elif isinstance(x, Store):
            writes |= {x.buffer} | ({x.previous.buffer} if x.previous is not None else set())
            stack.extend((*x.indices, x.value, *(x.previous.indices if x.previous is not None else ())))
        elif isinstance(x, Region):
            reads.add(x.buffer)
            stack.extend((*x.mins, *x.extents))
        elif isinstance(x, tuple):
            stack.extend(x)
        elif is_dataclass(x):
            dst = getattr(x, "dst", None) if not isinstance(x, For) else None
            if isinstance(dst, Region):
                writes.add(dst.buffer)
            stack.extend(getattr(x, f.name) for f in fields(x) if f.name not in ("loc", "vars"))
    return frozenset(names), frozenset(reads), frozenset(writes), talks


def is_per_thread(s: Stmt, resident: Resident) -> bool:
    """Whether each thread does all of it: copies and fills of its own arrays, loops over them alone.

    A parallel loop is spread over the threads unless all it writes is the thread's own and it touches no
    fragment (as TileLang lowers it).
    """
    scopes = resident.machine.scopes
    if isinstance(s, Copy):
        return any(scopes.get(r.buffer) in ("local", "var") for r in (s.src, s.dst))
    if isinstance(s, Fill):
        return scopes.get(s.dst.buffer) in ("local", "var")
    if not isinstance(s, For):
        return False
    names, reads, writes, talks = _uses(s, resident)
    if talks or names & {v.name for v in resident.machine.program.thread_vars}:
        return True
    return all(scopes.get(w) == "local" for w in writes) and not any(
        scopes.get(b) == "fragment" for b in reads | writes
    )


def element_loop(s: Stmt, resident: Resident) -> Stmt:
    """A copy or fill of a thread's own array as a loop over its elements."""
    held = resident.machine.loops.get(id(s))
    if held is None:
        held = resident.machine.loops[id(s)] = (s, _element_loop(s))
    return held[1]


def _element_loop(s: Stmt) -> Stmt:
    if isinstance(s, Fill):
        return _loop(s.dst, s.value, None, s)
    assert isinstance(s, Copy)
    return _loop(s.dst, None, s.src, s)


def _loop(dst: Region, value: Expr | None, src: Region | None, s: Stmt) -> Stmt:
    moving = [d for d, e in enumerate(dst.extents) if not (isinstance(e, Const) and e.value == 1)]
    variables = tuple(Var(f"{dst.buffer}%{d}") for d in moving)
    at = tuple(
        binary("add", low, variables[moving.index(d)]) if d in moving else low
        for d, low in enumerate(dst.mins)
    )
    if src is not None:
        there = [d for d, e in enumerate(src.extents) if not (isinstance(e, Const) and e.value == 1)]
        if len(there) != len(moving):
            raise NumericsError(
                f"a copy of {src.buffer} to {dst.buffer}: {len(there)} dimensions to {len(moving)}", s.loc
            )
        value = Load(
            src.buffer,
            tuple(
                binary("add", low, variables[there.index(d)]) if d in there else low
                for d, low in enumerate(src.mins)
            ),
        )
    assert value is not None
    store = Store(dst.buffer, at, value, loc=s.loc)
    if not variables:
        return store
    return For(variables, tuple(dst.extents[d] for d in moving), "serial", (store,), loc=s.loc)


@contextmanager
def exposed(s: Stmt, mask: Any, access: Access) -> Iterator[None]:
    """The threads' variables that a tile operation uses, as the block's.

    Raises:
        Varies: a parallel loop needs one that differs between its threads.
        NumericsError: any other operation does.
    """
    resident, axes = access.resident, access.axes
    names, reads, writes, _ = _uses(s, resident)
    frame, held = resident.frame, access.scope.iterations
    lent, tiles = [], []
    try:
        for name in names & set(held):
            frame.env[name] = settle(held[name], mask, axes)
            lent.append(name)
        for name in (reads | writes) & set(resident.own):
            mine = resident.own[name]
            tile = Tile(mine.dtype, mine.shape, garbage=mine.garbage)
            if mine.data is not None and name in reads and not _replaces(s, name, mine.shape):
                tile.data = settle(mine.data, mask, axes)
                tile.written = mine.written
                if isinstance(mine.written, np.ndarray):
                    tile.written = settle(mine.written, mask, axes)
            frame.tiles[name] = tile
            tiles.append(name)
    except Varies:
        _return(frame, lent, tiles)
        if isinstance(s, For) and resident.machine.scopes.get(name) != "fragment":
            raise
        raise NumericsError(
            f"a {type(s).__name__.lower()} of the whole block uses {name}, which differs between its threads",
            s.loc,
        ) from None
    try:
        yield
        for name in writes & set(tiles):  # a parallel loop's are those of its iterations, but for fragments
            if not isinstance(s, For) or resident.machine.scopes[name] == "fragment":
                _spread(resident.own[name], frame.tiles[name], mask, axes)
    finally:
        _return(frame, lent, tiles)


def _replaces(s: Stmt, name: str, shape: tuple[int, ...]) -> bool:
    """Whether an operation overwrites all of a variable without reading it."""
    if not isinstance(s, Fill | Copy | Reduce) or (isinstance(s, Reduce) and not s.clear):
        return False
    if s.dst.buffer != name or (not isinstance(s, Fill) and s.src.buffer == name):
        return False
    return s.dst.mins == (Const(0),) * len(shape) and s.dst.extents == tuple(map(Const, shape))


def _return(frame: Any, lent: list[str], tiles: list[str]) -> None:
    for name in lent:
        del frame.env[name]
    for name in tiles:
        del frame.tiles[name]


def _spread(mine: Tile, found: Tile, mask: Any, axes: int) -> None:
    """What a tile operation left in a thread's variable, for every thread."""
    if found.data is None:
        return
    data = np.expand_dims(found.data, axes)
    flags = np.expand_dims(found.written, axes) if isinstance(found.written, np.ndarray) else found.written
    if mask is None:
        mine.set(data.copy(), owned=True)
        mine.written = flags
        return
    wide = mask.reshape(mask.shape + (1,) * len(mine.shape))
    old = np.full_like(data, mine.garbage or 0) if mine.data is None else mine.data
    written = np.where(wide, flags, mine.written)
    mine.set(np.where(wide, data, old), owned=True)
    mine.written = (
        True if written.all() else np.broadcast_to(written, np.broadcast_shapes(written.shape, data.shape))
    )
