"""Barriers and asynchronous work of one team: who arrives, what is in flight, what a wait makes known."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any

import numpy as np

from foretile.kernels.expr import Expr, Load
from foretile.kernels.ir import (
    AsyncCommit,
    AsyncWait,
    BarrierArrive,
    BarrierWait,
    Copy,
    Extern,
    Gemm,
    Loc,
    Stmt,
    Sync,
    walk_stmts,
)
from foretile.simulator.numerics.barriers import Barriers
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.lane_access import Access
from foretile.simulator.numerics.ordering import Known
from foretile.simulator.numerics.resident import Named, Waiting
from foretile.simulator.numerics.settled import Varies, settle
from foretile.simulator.numerics.tensors import Box

Steps = Generator[Waiting, None, None]
_ANSWER_BYTES = 16  # PTX ISA 8.6, clusterlaunchcontrol.try_cancel: the size of its response


class Waits:
    """The team's part in barriers. ``groups``: closed groups of what it has in flight, oldest first."""

    def __init__(self, access: Access) -> None:
        self.access, self.resident, self.number = access, access.resident, access.number
        self.groups: dict[str, list[list[int]]] = {"cp_async": [], "tma_store": [], "wgmma": []}
        self.open: dict[str, list[int]] = {"cp_async": [], "tma_store": [], "wgmma": []}
        body = self.resident.machine.program.body
        self.closed_by_hand = any(
            isinstance(s, AsyncCommit) and s.kind == "cp_async" for s in walk_stmts(body)
        )
        self.current = 0

    # -- tile operations -------------------------------------------------------------------------

    def begin(self, s: Stmt, mask: Any) -> None:
        """Before a tile operation: its accesses are the team's, or those of work that ends later."""
        order, machine = self.resident.order, self.resident.machine
        if order is None:
            machine.watch = None
            return
        later = _later(s, machine.scopes)
        self.current = order.asynchronous() if later else 0
        queue = {"wgmma": f"wgmma{self.number}", "tcgen05": "tcgen05"}.get(later, "")
        order.blocks = None if mask is None else self.resident.having(mask)
        machine.watch = partial(_watch, order, self.number, self.current, queue)

    def issued(self, s: Stmt, mask: Any) -> None:
        """After a tile operation: where its end is made known."""
        self.resident.machine.watch = None
        later = _later(s, self.resident.machine.scopes)
        number = self.current
        if later == "tma":
            assert isinstance(s, Copy)
            assert s.barrier is not None
            self._attach(s.barrier, [number], mask, s.loc)
        elif later == "tma_store" or later == "wgmma":
            self.groups[later].append([number])
        elif later == "cp_async":
            if self.closed_by_hand:
                self.open[later].append(number)
            else:
                self.groups[later].append([number])
        elif later == "tcgen05":
            assert isinstance(s, Gemm)
            self.resident.products.append(number)
            if self.resident.order is not None:  # what it started after is over when it is
                before = self.resident.order.release(self.number)
                self.resident.before_products = before.join(self.resident.before_products)
            if s.barrier is not None:
                self._products_arrive(s.barrier, mask, s.loc)

    def after(self, s: Stmt) -> Steps:
        """What a product waits for itself."""
        if isinstance(s, Gemm) and s.mode == "wgmma" and s.wait is not None:
            self._drain("wgmma", s.wait)
        return
        yield  # a generator like the other steps

    # -- groups ----------------------------------------------------------------------------------

    def commit(self, s: AsyncCommit) -> None:
        """Close a group."""
        if s.kind == "cp_async":  # other operations close their own
            self.groups[s.kind].append(self.open[s.kind])
            self.open[s.kind] = []

    def drain(self, s: AsyncWait, now: Any) -> Steps:
        """Wait until few enough groups are in flight."""
        self._drain(s.kind, int(self._one(s.pending, now, s.loc)))
        return
        yield

    def _drain(self, kind: str, pending: int) -> None:
        groups = self.groups[kind]
        done = groups[: max(0, len(groups) - pending)]
        del groups[: len(done)]
        if self.resident.order is not None:
            self.resident.order.ended(self.number, [n for group in done for n in group])

    # -- barriers --------------------------------------------------------------------------------

    def arrive(self, s: BarrierArrive, now: Any) -> None:
        """Threads arrive, or what they have issued will."""
        r = self.resident
        barriers, which = self._barrier(s.barrier, now, s.loc)
        threads = self._count(now)
        blocks = np.flatnonzero(threads)
        if s.expect_bytes is not None:
            count = r.flat(self._one(s.expect_bytes, now, s.loc, by_block=True)) * threads
            barriers.expect(blocks, which[blocks], count[blocks], s.loc)
        if not s.arrive:
            return
        if s.after == "tcgen05":
            self._products_arrive(s.barrier, now, s.loc)
            return
        brings = None if r.order is None else r.order.release(self.number)
        if s.after == "cp_async" and brings is not None:
            mine = [n for group in (*self.groups["cp_async"], self.open["cp_async"]) for n in group]
            brings = Known(brings.steps, brings.done | frozenset(mine))
        target = blocks
        if s.cta is not None:
            target = r.peer(self._one(s.cta, now, s.loc, by_block=True), s.loc)[blocks]
        barriers.arrive(target, which[blocks], threads[blocks], brings, s.loc)

    def _products_arrive(self, barrier: Load, mask: Any, loc: Loc | None) -> None:
        """One arrival, when all products issued so far are done."""
        r = self.resident
        barriers, which = self._barrier(barrier, mask, loc)
        blocks = np.flatnonzero(self._count(mask))
        brings = None if r.order is None else self._only(r.products).join(r.before_products)
        barriers.arrive(blocks, which[blocks], np.ones(len(blocks), dtype=np.int64), brings, loc)

    def _attach(self, barrier: Load, numbers: list[int], mask: Any, loc: Loc | None) -> None:
        """A copy ends before the barrier's current phase does: the phase waits for its bytes."""
        barriers, which = self._barrier(barrier, mask, loc)
        barriers.bring(which, self._only(numbers))

    def _only(self, numbers: list[int]) -> Known:
        return Known((0,) * len(self.resident.teams), frozenset(numbers))

    def wait(self, s: BarrierWait, now: Any) -> Steps:
        """Wait until the phase of this parity is over, in every block."""
        r = self.resident
        barriers, which = self._barrier(s.barrier, now, s.loc)
        parity = r.flat(self._one(s.parity, now, s.loc, by_block=True)).astype(np.int64)
        blocks = np.flatnonzero(self._count(now))
        missing = blocks
        while True:
            passed = barriers.passed(missing, which[missing], parity[missing], s.loc)
            missing = missing[~passed]
            if not missing.size:
                break
            b = int(missing[0])
            k = int(which[b])
            yield Waiting(
                f"for {s.barrier.buffer}[{k}] parity {int(parity[b]) & 1} ({barriers.state(k, b)})", s.loc
            )
        r.progress += 1
        if r.order is not None:
            for what in barriers.learned(which[blocks]):
                r.order.acquire(self.number, what)

    def named(self, s: Sync, now: Any) -> Steps:
        """A hardware barrier of some of the block's threads."""
        r = self.resident
        assert s.ident is not None
        ident = int(self._one(s.ident, now, s.loc))
        threads = r.threads if s.threads is None else int(self._one(s.threads, now, s.loc))
        barrier = r.named.setdefault(ident, Named())
        opened = barrier.opened
        if s.phase != "wait":
            barrier.came += int(self._count(now).max())
            if r.order is not None:
                mine = r.order.release(self.number)
                barrier.brought = mine if barrier.brought is None else barrier.brought.join(mine)
            if barrier.came >= threads:
                barrier.came -= threads
                barrier.opened += 1
                barrier.told, barrier.brought = barrier.brought, None
        if s.phase == "arrive":
            return
        while barrier.opened == opened:
            yield Waiting(f"at barrier {ident} ({barrier.came} of {threads} threads have come)", s.loc)
        r.progress += 1
        if r.order is not None:
            r.order.acquire(self.number, barrier.told)

    def answered(self, s: Extern, now: Any) -> None:
        """A query for a block to take over is answered at once: there is none. Its bytes are there."""
        region = s.writes[1]
        barriers, which = self._barrier(Load(region.buffer, region.mins), now, s.loc)
        blocks = np.flatnonzero(self._count(now))
        barriers.expect(blocks, which[blocks], np.full(len(blocks), -_ANSWER_BYTES), s.loc)
        answer = self.resident.frame.tiles.get(s.writes[0].buffer)
        if answer is not None:
            answer.set(np.zeros((1,) * self.access.axes + answer.shape, dtype=np.int64), owned=False)

    # -- helpers ---------------------------------------------------------------------------------

    def _barrier(self, load: Load, now: Any, loc: Loc | None) -> tuple[Barriers, np.ndarray]:
        """The barriers of a buffer, and which of them each block means."""
        barriers = self.resident.barriers.get(load.buffer)
        if barriers is None:
            raise NumericsError(f"{load.buffer} is not a barrier", loc)
        index: Any = 0
        for e, n in zip(load.indices, self.resident.machine.shapes[load.buffer], strict=True):
            index = index * n + np.asarray(self._one(e, now, loc, by_block=True))
        return barriers, self.resident.flat(index).astype(np.int64)

    def _one(self, e: Expr, now: Any, loc: Loc | None, *, by_block: bool = False) -> Any:
        """A value that all threads agree on; with ``by_block``, those of each block."""
        try:
            found = settle(self.access.at(now, loc).value(e), now, self.access.axes)
        except Varies:
            raise NumericsError(
                "the threads of a block name different barriers, or phases of one", loc
            ) from None
        if by_block or np.ndim(found) == 0:
            return found
        if np.unique(found).size > 1:
            raise NumericsError("blocks that run together name different barriers here", loc)
        return found.reshape(-1)[0]

    def _count(self, now: Any) -> np.ndarray:
        """By block, how many of the team's threads are here."""
        r = self.resident
        if now is None:
            return np.full(r.blocks, r.threads)
        full = np.broadcast_to(now, (*r.frame.axes, r.threads))
        return np.asarray(np.count_nonzero(full, axis=-1)).reshape(-1)


def _later(s: Stmt, scopes: Any) -> str:
    """What kind of asynchronous work a statement starts; "" if it is done when the statement is."""
    if isinstance(s, Gemm):
        return s.mode
    if not isinstance(s, Copy) or not s.mode:
        return ""
    if s.mode == "async":
        return "cp_async"
    if s.barrier is not None:
        return "tma"
    return "tma_store" if scopes.get(s.dst.buffer) is None else ""


def _watch(
    order: Any, team: int, number: int, queue: str, name: str, box: Box, loc: Loc | None, write: bool
) -> None:
    low = tuple(int(np.min(m)) for m in box.mins)
    extents = tuple(
        int(np.max(m)) - first + n for m, first, n in zip(box.mins, low, box.extents, strict=True)
    )
    order.touch(team, name, Box(low, extents), loc, write=write, number=number, queue=queue)
