"""Statements of one team of threads: per-thread code under masks, and tile operations of all of them.

All blocks of a frame and all threads of a team are executed side by side: values have the block axes,
then the thread (of length one where threads agree). Where threads part ways, statements run under a mask
over blocks and threads. A tile operation is done once for the block, when every team that takes part has
come to it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import numpy as np

from foretile.kernels.expr import Expr
from foretile.kernels.ir import (
    AsyncCommit,
    AsyncWait,
    AtomicAdd,
    BarrierArrive,
    BarrierWait,
    Copy,
    CumSum,
    Extern,
    Fill,
    FinalizeReducer,
    For,
    Gemm,
    Hint,
    If,
    Im2col,
    Jump,
    Loc,
    RandomInit,
    Reduce,
    Stmt,
    Store,
    Sync,
    Transpose,
    While,
)
from foretile.simulator.numerics.counts import blocks_in
from foretile.simulator.numerics.elements import wide
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.lane_access import Access
from foretile.simulator.numerics.lane_tiles import element_loop, exposed, is_per_thread
from foretile.simulator.numerics.philox import Generators
from foretile.simulator.numerics.reductions import raster
from foretile.simulator.numerics.resident import Meeting, Resident, Waiting
from foretile.simulator.numerics.settled import Varies, settle
from foretile.simulator.numerics.waits import Waits
from foretile.simulator.threads import lanes_where, thread_indices

Steps = Generator[Waiting, None, None]
_NOBODY = object()
_ENDLESS = 1_000_000  # iterations of a while loop after which it is called endless


class Team:
    """Threads that run the same statements together; ``number``: of the team."""

    def __init__(self, resident: Resident, number: int) -> None:
        self.resident, self.number = resident, number
        self.access = Access(resident, number)
        self.waits = Waits(self.access)
        self.axes, self.ndim = self.access.axes, self.access.ndim
        lanes = resident.teams[number]
        self.base = None if lanes.all() else lanes.reshape((1,) * self.axes + (-1,))
        self.places = thread_indices(resident.machine.program)
        self.variables = self.access.scope.iterations
        for name, place in self.places.items():
            self.variables[name] = place.reshape((1,) * self.axes + (-1,))
        self.path = np.ones(resident.threads, dtype=bool)  # threads that come this way, of all teams
        self.visits: dict[int, int] = {}
        self.met = [number]  # the teams that do a tile operation together now
        self.broken: Any = None
        self.continued: Any = None
        self.returned: Any = None

    def start(self) -> Steps:
        """The whole program."""
        yield from self.run(self.resident.machine.program.body, self.base)

    def run(self, body: tuple[Stmt, ...], mask: Any) -> Steps:
        """Statements in order, for the threads where ``mask`` (None: all) holds and that have not left."""
        for s in body:
            now = self.live(mask)
            if now is _NOBODY:
                return
            self.resident.progress += 1
            plain = _PLAIN.get(type(s))
            if plain is not None:
                plain(self, s, now)
            else:
                yield from _STEPS[type(s)](self, s, now)

    def live(self, mask: Any) -> Any:
        """``mask`` less the threads that have left the loop, the iteration or the kernel."""
        gone = None
        for part in (self.broken, self.continued, self.returned):
            if part is not None:
                gone = part if gone is None else gone | part
        if gone is None:
            return mask
        return _normal(~gone if mask is None else mask & ~gone)

    def value(self, e: Expr, now: Any, loc: Loc | None) -> Any:
        """The value of an expression, which later statements do not change."""
        found = self.access.at(now, loc).value(e)
        return found.copy() if isinstance(found, np.ndarray) and found.base is not None else found

    # -- control ---------------------------------------------------------------------------------

    def branch(self, s: If, now: Any) -> Steps:
        """Threads take either side, those of the first one first."""
        cond = self.value(s.cond, now, s.loc)
        if self.came(s, now):
            holds = wide(np.asarray(cond).astype(bool), self.ndim)
            self.ran(s, holds if now is None else now & holds)
        lanes = lanes_where(s, self.places, self.resident.threads)
        sides: list[tuple[tuple[Stmt, ...], Any, np.ndarray | None]]
        if np.ndim(cond) == 0:
            sides = [(s.then if cond else s.orelse, now, None)]
        else:
            holds = cond.astype(bool)
            sides = [
                (s.then, _both(now, holds), lanes),
                (s.orelse, _both(now, ~holds), None if lanes is None else ~lanes),
            ]
        for body, mask, way in sides:
            if body and mask is not _NOBODY:
                before = self.path
                self.path = before if way is None else before & way
                yield from self.run(body, mask)
                self.path = before

    def loop(self, s: For, now: Any) -> Steps:
        """A loop of any kind but parallel ones of the whole team; threads with fewer trips wait."""
        if s.kind == "parallel":
            yield from self.parallel(s, now)
        elif s.kind == "persistent":
            yield from self.persistent(s, now)
        elif len(s.vars) > 1:
            inner = replace(s, vars=s.vars[1:], extents=s.extents[1:])
            yield from self.loop(replace(s, vars=s.vars[:1], extents=s.extents[:1], body=(inner,)), now)
        else:
            yield from self.counted(s, now)

    def counted(self, s: For, now: Any) -> Steps:
        """A loop of one variable."""
        extent = self.value(s.extents[0], now, s.loc)
        start = 0 if s.start is None else self.value(s.start, now, s.loc)
        most = int(np.max(extent)) if now is None else int(np.max(np.where(now, extent, 0)))
        name, outer = s.vars[0].name, (self.broken, self.continued)
        self.broken = None
        counted = self.came(s, now)
        for i in range(max(0, most)):
            self.continued = None
            going = np.asarray(i < extent)
            active = self.live(now if going.all() else _both(now, wide(going, self.ndim)))
            if active is _NOBODY:
                break
            if counted:
                self.ran(s, active)
            self.variables[name] = start + s.step * i
            yield from self.run(s.body, active)
        self.variables.pop(name, None)
        self.broken, self.continued = outer

    def persistent(self, s: For, now: Any) -> Steps:
        """Points dealt to the blocks of the launch round robin."""
        extents = [settle(self.value(e, now, s.loc), now, self.axes) for e in s.extents]
        if any(np.ndim(e) and np.size(e) > 1 for e in extents):
            raise NumericsError("the points of a persistent loop differ by block", s.loc)
        points = raster([int(np.asarray(e).reshape(())) for e in extents], s.group_size)
        blocks = int(np.prod(self.resident.frame.grid))
        outer = (self.broken, self.continued)
        self.broken = None
        for first in range(0, len(points), blocks):
            self.continued = None
            mine = np.minimum(self.resident.frame.block + first, len(points) - 1)
            active = self.live(_both(now, (self.resident.frame.block + first < len(points))[..., None]))
            if active is _NOBODY:
                break
            for d, v in enumerate(s.vars):
                self.variables[v.name] = points[mine][..., d][..., None]
            yield from self.run(s.body, active)
        for v in s.vars:
            self.variables.pop(v.name, None)
        self.broken, self.continued = outer

    def repeat(self, s: While, now: Any) -> Steps:
        """A while loop; threads that are through wait."""
        outer = (self.broken, self.continued)
        self.broken = None
        counted = self.came(s, now)
        for _ in range(_ENDLESS):
            self.continued = None
            active = self.live(now)
            if active is not _NOBODY:
                cond = np.asarray(self.value(s.cond, active, s.loc)).astype(bool)
                active = _both(active, wide(cond, self.ndim))
            if active is _NOBODY:
                self.broken, self.continued = outer
                return
            now = active
            if counted:
                self.ran(s, active)
            yield from self.run(s.body, active)
        raise NumericsError(f"the while loop has not ended after {_ENDLESS} iterations", s.loc)

    def came(self, s: For | If | While, now: Any) -> bool:
        """Threads come to a statement; whether it is one of those that are counted."""
        machine = self.resident.machine
        if not machine.counts.decided(s, machine.scopes):
            return False
        machine.counts.add(s, blocks_in(self.live(now), self.resident.frame.block.size), 0.0)
        return True

    def ran(self, s: For | If | While, active: Any) -> None:
        """Some of them run it once."""
        machine = self.resident.machine
        machine.counts.add(s, 0.0, blocks_in(active, self.resident.frame.block.size))

    def jump(self, s: Jump, now: Any) -> None:
        """These threads leave."""
        leaving = np.ones((1,) * self.ndim, dtype=bool) if now is None else now
        name = {"break": "broken", "continue": "continued", "return": "returned"}[s.kind]
        before = getattr(self, name)
        setattr(self, name, leaving if before is None else before | leaving)

    # -- what a team does together ---------------------------------------------------------------

    def meet(self, s: Stmt, now: Any) -> Generator[Waiting, None, Any]:
        """Wait for the other teams that come here; the mask of all, or nobody if another team goes on."""
        r = self.resident
        partners = [n for n, lanes in enumerate(r.teams) if (lanes & self.path).any()]
        if partners == [self.number]:
            return now
        visit = self.visits[id(s)] = self.visits.get(id(s), 0) + 1
        meeting = r.meetings.setdefault((id(s), visit), Meeting())
        meeting.mask = now if not meeting.came else _union(meeting.mask, now)
        meeting.came.append(self.number)
        while not meeting.done:
            if set(partners) <= set(meeting.came) | r.finished:
                meeting.done = True
                self.met = meeting.came
                self.tell()
                return _normal(meeting.mask)
            yield Waiting(f"for the other threads that take part in this {type(s).__name__.lower()}", s.loc)
        return _NOBODY

    def tell(self) -> None:
        """Teams that have met know of each other's steps: the compiler puts barriers where needed."""
        order = self.resident.order
        if order is not None:
            told = [order.release(n) for n in self.met]
            for n in self.met:
                for what in told:
                    order.acquire(n, what)

    def tile(self, s: Stmt, now: Any) -> Steps:
        """A tile operation."""
        if is_per_thread(s, self.resident):
            yield from self.run((element_loop(s, self.resident),), now)
            return
        mask = yield from self.meet(s, now)
        if mask is not _NOBODY:
            self.together(s, mask)
            yield from self.waits.after(s)

    def together(self, s: Stmt, mask: Any) -> None:
        """Do a tile operation for the blocks where any thread does it."""
        with exposed(s, mask, self.access):
            self.waits.begin(s, mask)
            blocks = None if mask is None else mask.any(axis=-1)
            machine, frame = self.resident.machine, self.resident.frame
            if blocks is None or blocks.all():
                machine.run((s,), frame)
            else:
                with frame.only(blocks) as active:
                    machine.run((s,), active)
            self.waits.issued(s, mask)
        self.tell()
        self.met = [self.number]

    def parallel(self, s: For, now: Any) -> Steps:
        """A parallel loop: spread over the threads, or, of what is each thread's own, done by each."""
        if not is_per_thread(s, self.resident):
            mask = yield from self.meet(s, now)
            if mask is _NOBODY:
                return
            try:
                self.together(s, mask)
                return
            except Varies:
                now = mask if mask is not None or self.base is None else self.base
        yield from self.loop(replace(s, kind="serial"), now)

    def sync(self, s: Sync, now: Any) -> Steps:
        """A barrier."""
        r = self.resident
        if s.scope == "warp" or (s.phase == "arrive" and s.ident is None):
            return
        if s.ident is not None:
            yield from self.waits.named(s, now)
        elif s.scope == "grid":
            seen = r.grid
            while r.grid == seen:
                yield Waiting("for all blocks of the grid", s.loc, grid=True)
            r.progress += 1
        else:
            if s.scope == "block" and len(r.teams) == 1:
                self._refuse_torn(s, now)
            yield from self.meet(s, now)

    def _refuse_torn(self, s: Sync, now: Any) -> None:
        """A barrier of the block that some of its threads do not come to."""
        if now is None:
            return
        everyone = (*self.resident.frame.axes, self.resident.threads)
        here = np.broadcast_to(now, everyone)
        gone = np.broadcast_to(np.False_ if self.returned is None else self.returned, everyone)
        torn = here.any(axis=-1) & ~(here | gone).all(axis=-1)
        if torn.any():
            count = int(here.sum(axis=-1)[torn].min())
            text = (
                f"{count} of the block's {self.resident.threads} threads come to this barrier of all of them"
            )
            raise NumericsError(text, s.loc)

    # -- the rest --------------------------------------------------------------------------------

    def store(self, s: Store, now: Any) -> None:
        """One element of every thread."""
        self.access.store(s, now)

    def seed(self, s: RandomInit, now: Any) -> None:
        """Seed the generators of threads."""
        if "Philox4_32_10" not in s.generator:
            raise NumericsError(f"the random numbers of {s.generator} are not known here", s.loc)
        r = self.resident
        everyone = (*r.frame.axes, r.threads)
        fresh = [
            np.broadcast_to(wide(self.value(e, now, s.loc), self.ndim), everyone).astype(np.uint64)
            for e in (s.seed, s.sequence, s.offset)
        ]
        old = r.random
        if now is not None and old is not None:
            held = (old.seed, old.sequence, old.drawn)
            fresh = [np.where(now, f, h) for f, h in zip(fresh, held, strict=True)]
        r.random = Generators(*fresh)

    def opaque(self, s: Extern, now: Any) -> None:
        """Code that has no numerics, but for a query whose answer may be that there is nothing."""
        if s.name.startswith("clc_try_cancel") and len(s.writes) > 1:
            self.waits.answered(s, now)
            return
        what = "inline device code" if s.source else "external code"
        raise NumericsError(f"{s.name} is {what}, opaque here: it has no numerics", s.loc)

    def hint(self, s: Hint, now: Any) -> None:
        """No effect on values."""


def _normal(mask: Any) -> Any:
    if mask is None or mask is _NOBODY:
        return mask
    return (None if mask.all() else mask) if mask.any() else _NOBODY


def _both(mask: Any, also: np.ndarray) -> Any:
    if mask is _NOBODY:
        return mask
    both = also if mask is None else mask & also
    return both if both.any() else _NOBODY


def _union(a: Any, b: Any) -> Any:
    return None if a is None or b is None else a | b


_PLAIN: dict[type[Stmt], Callable[[Team, Any, Any], None]] = {
    Store: Team.store,
    Jump: Team.jump,
    RandomInit: Team.seed,
    Extern: Team.opaque,
    Hint: Team.hint,
    BarrierArrive: lambda team, s, now: team.waits.arrive(s, now),
    AsyncCommit: lambda team, s, now: team.waits.commit(s),
}
_STEPS: dict[type[Stmt], Callable[[Team, Any, Any], Steps]] = {
    For: Team.loop,
    If: Team.branch,
    While: Team.repeat,
    Sync: Team.sync,
    BarrierWait: lambda team, s, now: team.waits.wait(s, now),
    AsyncWait: lambda team, s, now: team.waits.drain(s, now),
    **dict.fromkeys(
        (Copy, Gemm, Fill, Reduce, CumSum, AtomicAdd, Im2col, Transpose, FinalizeReducer), Team.tile
    ),
}
