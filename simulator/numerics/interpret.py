"""Statements of a tile program, executed for all blocks of a frame at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretile.kernels.expr import Const, Expr, Load
from foretile.kernels.ir import (
    AtomicAdd,
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
    Loc,
    Reduce,
    Region,
    Stmt,
    Store,
    Sync,
    TileProgram,
    Transpose,
    While,
)
from foretile.simulator.copies import matched
from foretile.simulator.numerics.aliases import Alias, put_back, view_tile
from foretile.simulator.numerics.counts import Counts
from foretile.simulator.numerics.errors import NumericsError, Uneven
from foretile.simulator.numerics.evaluate import Scope, Value, convert
from foretile.simulator.numerics.formats import carrier, round_to
from foretile.simulator.numerics.frame import Frame, Tile
from foretile.simulator.numerics.onchip import fit, matrix, read_tile, write_tile
from foretile.simulator.numerics.parallel import run_parallel
from foretile.simulator.numerics.products import Accumulation, accumulate
from foretile.simulator.numerics.reductions import REDUCE_PAIR, raster, reduce
from foretile.simulator.numerics.tensors import Box, GlobalTensor, gather, read_region, write_region
from foretile.simulator.numerics.tileops import (
    atomic_tile,
    decided,
    expand_sparse,
    finalize_reducer,
    hint,
    im2col,
    opaque,
    scales,
    transpose,
)

Watch = Callable[[str, Box, Loc | None, bool], None]
_ENDLESS = 1_000_000  # iterations of a while loop after which it is called endless


@dataclass
class Machine:
    """What executes a program: its tensors, and how its matrix engine adds.

    ``short``: reduced accumulation by operand dtype; ``shapes``: of the program's buffers; ``garbage``: what
    unwritten elements hold (None: they may not be read); ``watch``: told of
    every access of a buffer on chip (its name, where, the line, whether it is written); ``memo`` and
    ``loops``: what is known of statements, by identity.
    """

    program: TileProgram
    tensors: Mapping[str, GlobalTensor]
    short: Mapping[str, Accumulation] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    garbage: int | None = None
    watch: Watch | None = None
    dtypes: dict[str, str] = field(init=False)
    scopes: dict[str, str] = field(init=False)
    unchecked: bool = field(init=False)  # the author has switched the check for races off
    memo: dict[int, tuple[Stmt, Any]] = field(default_factory=dict)
    loops: dict[int, tuple[Stmt, Stmt]] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self.scopes = {b.name: b.scope for b in self.program.buffers if b.scope != "global"}
        self.unchecked = any(
            "DISABLE_DATA_RACE_CHECK" in k and v == "True" for k, v in self.program.annotations
        )
        self.dtypes = {b.name: b.dtype for b in (*self.program.params, *self.program.buffers)}

    def run(self, body: tuple[Stmt, ...], frame: Frame) -> None:
        """Execute statements in order."""
        for stmt in body:
            try:
                _ACTIONS[type(stmt)](self, stmt, frame)
            except Uneven as uneven:  # before anything was done
                for extent in np.unique(uneven.extents):
                    with frame.only(uneven.extents == extent) as active:
                        self.run((stmt,), active)

    def tile(self, name: str, frame: Frame) -> Tile:
        """A buffer on chip; of an alias, what it sees now (see :meth:`wrote`)."""
        alias = self.aliases.get(name)
        if alias is None:
            return frame.tiles[name]
        return view_tile(frame.tiles[alias.base], alias, len(frame.axes))

    def wrote(self, name: str, tile: Tile, frame: Frame) -> None:
        """Called after :meth:`tile` was written: what an alias wrote belongs to its buffer."""
        alias = self.aliases.get(name)
        if alias is not None:
            put_back(frame.tiles[alias.base], alias, tile, len(frame.axes))

    # -- values and regions --------------------------------------------------------------------

    def scope(self, frame: Frame, loc: Loc | None) -> Scope:
        """Where expressions outside of parallel loops are evaluated."""
        return Scope(frame, self.dtypes, self.read_element, loc=loc)

    def index(self, e: Expr, frame: Frame, loc: Loc | None) -> Any:
        """A whole number, or an int64 array over block axes."""
        if isinstance(e, Const):
            return int(e.value)
        value = self.scope(frame, loc).value(e)
        if np.ndim(value) == 0:
            return int(value)
        if value.size == 1:
            return int(value.reshape(()))
        return value.astype(np.int64, copy=False)

    def box(self, region: Region, frame: Frame, loc: Loc | None) -> Box:
        """Where a region lies."""
        extents = []
        for e in region.extents:
            extent = self.index(e, frame, loc)
            if not isinstance(extent, int):
                if np.ptp(extent):
                    raise Uneven(extent)
                extent = int(extent.flat[0])
            extents.append(max(0, extent))
        return Box(tuple(self.index(e, frame, loc) for e in region.mins), tuple(extents))

    def read(self, region: Region, frame: Frame, loc: Loc | None) -> np.ndarray:
        """A region's values: block axes, then its extents."""
        box = self.box(region, frame, loc)
        tensor = self.tensors.get(region.buffer)
        if tensor is not None:
            return read_region(tensor, box, frame, loc)
        if self.watch is not None:
            self.watch(region.buffer, box, loc, False)
        return read_tile(self.tile(region.buffer, frame), region.buffer, box, frame, loc)

    def kept(self, region: Region, frame: Frame, loc: Loc | None) -> np.ndarray:
        """A region's values, to be held on to: its buffer will not be changed in place."""
        values = self.read(region, frame, loc)
        held = self.aliases.get(region.buffer)
        tile = frame.tiles.get(region.buffer if held is None else held.base)
        if tile is not None:
            tile.owned = False
        return values

    def write(
        self, region: Region, values: np.ndarray, frame: Frame, loc: Loc | None, *, owned: bool
    ) -> None:
        """Write a region; ``values`` (block axes, extents) are in the carrier of its dtype, rounded."""
        box = self.box(region, frame, loc)
        values = fit(values, box.extents, len(frame.axes))
        tensor = self.tensors.get(region.buffer)
        if tensor is not None:
            write_region(tensor, box, values, frame, loc)
        else:
            if self.watch is not None:
                self.watch(region.buffer, box, loc, True)
            tile = self.tile(region.buffer, frame)
            write_tile(tile, region.buffer, box, values, frame, loc, owned=owned)
            self.wrote(region.buffer, tile, frame)

    def read_element(self, load: Load, indices: tuple[Value, ...], mask: Any, scope: Scope) -> Value:
        """One element of a buffer for every block (outside of parallel loops)."""
        frame, axes = scope.frame, len(scope.frame.axes)
        tensor = self.tensors.get(load.buffer)
        if tensor is not None:
            at = [np.asarray(i, dtype=np.int64).reshape(np.shape(i) or (1,) * axes) for i in indices]
            return gather(tensor, at, mask, frame, scope.loc)
        mins = tuple(int(i) if np.ndim(i) == 0 else i for i in indices)
        box = Box(mins, (1,) * len(mins))
        tile = self.tile(load.buffer, frame)
        values = read_tile(tile, load.buffer, box, frame, scope.loc, mask=mask)
        return values.reshape(values.shape[:axes])

    # -- tile operations -----------------------------------------------------------------------

    def copy(self, s: Copy, frame: Frame) -> None:
        """A region to a region, converted to its type."""
        held = self.loops.get(id(s))
        if held is None:
            held = self.loops[id(s)] = (s, matched(s, lambda name: self.scopes.get(name, "global")))
        assert isinstance(held[1], Copy)
        s = held[1]
        values = self.kept(s.src, frame, s.loc)
        source, target = self.dtypes[s.src.buffer], self.dtypes[s.dst.buffer]
        converted = values if source == target else convert(values, source, target)
        self.write(s.dst, converted, frame, s.loc, owned=converted is not values)

    def fill(self, s: Fill, frame: Frame) -> None:
        """One value everywhere."""
        dtype = self.dtypes[s.dst.buffer]
        value, source = self.scope(frame, s.loc).typed(s.value)
        value = np.asarray(convert(value, source, dtype), dtype=carrier(dtype))
        axes = len(frame.axes)
        box = self.box(s.dst, frame, s.loc)
        lead = value.shape or (1,) * axes
        full = np.broadcast_to(value.reshape(lead + (1,) * len(box.extents)), (*lead, *box.extents))
        self.write(s.dst, full, frame, s.loc, owned=False)
        tile = frame.tiles.get(s.dst.buffer)
        if tile is not None and not np.any(value):
            tile.zero = box.extents == tile.shape

    def operand(self, region: Region, scale: Region | None, turn: bool, s: Gemm, frame: Frame) -> np.ndarray:
        """A product's operand with its depth last, times its scales: products of narrow types are exact."""
        found = matrix(self.kept(region, frame, s.loc), len(frame.axes))
        found = found.swapaxes(-1, -2) if turn else found
        if s.metadata is not None and region == s.a:
            places = matrix(self.kept(s.metadata, frame, s.loc), len(frame.axes))
            kinds = (self.dtypes[region.buffer], self.dtypes[s.metadata.buffer])
            found = expand_sparse(found, places, *kinds, s.loc)
        if scale is None:
            return found
        return np.asarray(found * scales(self, scale, s, found.shape[-1], frame))

    def gemm(self, s: Gemm, frame: Frame) -> None:
        """A product of tiles, added to the accumulator."""
        a = self.operand(s.a, s.a_scale, s.trans_a, s, frame)  # (block axes, M, K)
        b = self.operand(s.b, s.b_scale, not s.trans_b, s, frame).swapaxes(-1, -2)
        if s.clear_if is not None:
            s = decided(self, s, frame)
        tile, dtype = self.tile(s.c.buffer, frame), self.dtypes[s.c.buffer]
        box = self.box(s.c, frame, s.loc)
        if self.watch is not None:
            self.watch(s.c.buffer, box, s.loc, True)
        shape = tuple(n for n in box.extents if n > 1)
        if a.shape[-1] != b.shape[-2] or tuple(n for n in (a.shape[-2], b.shape[-1]) if n > 1) != shape:
            raise NumericsError(
                f"gemm of {a.shape[-2]}×{a.shape[-1]} and {b.shape[-2]}×{b.shape[-1]} into {s.c.buffer} of "
                f"{'×'.join(map(str, box.extents))}",
                s.loc,
            )
        short = self.short.get(self.dtypes[s.a.buffer])
        if box.extents != tile.shape or len(tile.shape) != 2:  # a part of a larger accumulator
            part = Tile(dtype, (a.shape[-2], b.shape[-1]))
            if not s.clear_accum:
                part.set(matrix(self.read(s.c, frame, s.loc), len(frame.axes)), owned=False)
            accumulate(part, a, b, clear=s.clear_accum, short=short)
            assert part.data is not None
            self.write(s.c, round_to(part.data, dtype), frame, s.loc, owned=True)
            return
        if not s.clear_accum and tile.written is not True:
            self.read(s.c, frame, s.loc)  # says what was never written
        if tile.held is None:
            tile.held = np.full((1,) * len(frame.axes) + tile.shape, tile.garbage or 0, carrier(dtype))
        accumulate(tile, a, b, clear=s.clear_accum, short=short)
        if dtype not in ("float32", "float64"):
            assert tile.data is not None
            tile.set(round_to(tile.data, dtype), owned=True)
        self.wrote(s.c.buffer, tile, frame)

    def reduce(self, s: Reduce, frame: Frame) -> None:
        """A reduction along one dimension."""
        values = self.read(s.src, frame, s.loc)
        dtype, source = self.dtypes[s.dst.buffer], self.dtypes[s.src.buffer]
        found = reduce(s.kind, values, len(frame.axes) + s.dim)
        found = round_to(found, dtype) if source == dtype else convert(found, source, dtype)
        if not s.clear:
            old = fit(self.read(s.dst, frame, s.loc), found.shape[len(frame.axes) :], len(frame.axes))
            found = round_to(REDUCE_PAIR[s.kind](old, found), dtype)
        self.write(s.dst, found, frame, s.loc, owned=True)

    def cumsum(self, s: CumSum, frame: Frame) -> None:
        """Inclusive prefix sums."""
        values = self.read(s.src, frame, s.loc)
        axis = len(frame.axes) + s.dim
        turned = np.flip(values, axis) if s.reverse else values
        found = np.cumsum(turned, axis=axis, dtype=values.dtype)
        found = np.flip(found, axis) if s.reverse else found
        found = convert(
            round_to(found, self.dtypes[s.src.buffer]), self.dtypes[s.src.buffer], self.dtypes[s.dst.buffer]
        )
        self.write(s.dst, found, frame, s.loc, owned=True)

    def store(self, s: Store, frame: Frame) -> None:
        """One element of every block."""
        run_parallel(self, (), (s,), frame)

    def sync(self, s: Sync, frame: Frame) -> None:
        """Blocks execute statement by statement: every statement ends with a barrier."""

    # -- control -------------------------------------------------------------------------------

    def loop(self, s: For, frame: Frame) -> None:
        """A loop of any kind."""
        if s.kind == "parallel":
            run_parallel(self, tuple(zip(s.vars, s.extents, strict=True)), s.body, frame)
        elif s.kind == "persistent":
            self.persistent(s, frame)
        elif len(s.vars) > 1:
            inner = For(s.vars[1:], s.extents[1:], s.kind, s.body, loc=s.loc)
            self.loop(For(s.vars[:1], s.extents[:1], s.kind, (inner,), loc=s.loc), frame)
        else:
            self.counted(s, frame)

    def counted(self, s: For, frame: Frame) -> None:
        """A loop of one variable; blocks that are through wait for the others."""
        extent = self.index(s.extents[0], frame, s.loc)
        start = 0 if s.start is None else self.index(s.start, frame, s.loc)
        name = s.vars[0].name
        if self.counts.decided(s, self.scopes):
            trips = np.broadcast_to(np.maximum(0, extent), frame.block.shape)
            self.counts.add(s, trips.size, float(trips.sum()))
        if isinstance(extent, int):
            for i in range(extent):
                frame.env[name] = start + s.step * i
                self.run(s.body, frame)
            frame.env.pop(name, None)
            return
        if not isinstance(start, int):
            frame.env[name] = start  # only to be narrowed with the blocks
        done = 0
        for end in np.unique(extent[extent > 0]):
            with frame.only(extent > done) if (extent <= done).any() else nullcontext(frame) as active:
                first = active.env[name] if not isinstance(start, int) else start
                for i in range(done, int(end)):
                    active.env[name] = first + s.step * i
                    self.run(s.body, active)
                if active is frame and not isinstance(start, int):
                    frame.env[name] = start
            done = int(end)
        frame.env.pop(name, None)

    def persistent(self, s: For, frame: Frame) -> None:
        """Points dealt to the blocks of the launch round robin."""
        extents = [self.index(e, frame, s.loc) for e in s.extents]
        if not all(isinstance(e, int) for e in extents):
            raise NumericsError("the points of a persistent loop differ by block", s.loc)
        points = raster(extents, s.group_size)
        blocks = int(np.prod(frame.grid))
        for first in range(0, len(points), blocks):
            mine = frame.block + first
            inside = mine < len(points)
            if not inside.any():
                return
            with nullcontext(frame) if inside.all() else frame.only(inside) as active:
                chosen = points[active.block + first]
                for d, v in enumerate(s.vars):
                    active.env[v.name] = chosen[..., d]
                self.run(s.body, active)
        for v in s.vars:
            frame.env.pop(v.name, None)

    def branch(self, s: If, frame: Frame) -> None:
        """The blocks where the condition holds, then the others."""
        cond = np.asarray(self.scope(frame, s.loc).value(s.cond))
        if self.counts.decided(s, self.scopes):
            taken = np.broadcast_to(cond.astype(bool), frame.block.shape)
            self.counts.add(s, taken.size, float(taken.sum()))
        if cond.all() or not cond.any():
            self.run(s.then if cond.any() else s.orelse, frame)
            return
        for mask, body in ((cond, s.then), (~cond, s.orelse)):
            if body:
                with frame.only(mask.astype(bool)) as active:
                    self.run(body, active)

    def repeat(self, s: While, frame: Frame, *, again: bool = False) -> None:
        """A while loop; blocks that are through wait for the others. ``again``: they have been here."""
        counted = self.counts.decided(s, self.scopes)
        if counted and not again:
            self.counts.add(s, frame.block.size, 0.0)
        for _ in range(_ENDLESS):
            cond = np.asarray(self.scope(frame, s.loc).value(s.cond)).astype(bool)
            if not cond.any():
                return
            if cond.all():
                if counted:
                    self.counts.add(s, 0.0, frame.block.size)
                self.run(s.body, frame)
                continue
            with frame.only(cond) as active:
                self.repeat(s, active, again=True)
            return
        raise NumericsError(f"the while loop has not ended after {_ENDLESS} iterations", s.loc)


_ACTIONS: dict[type[Stmt], Callable[[Machine, Any, Frame], None]] = {
    Copy: Machine.copy,
    Fill: Machine.fill,
    Gemm: Machine.gemm,
    Reduce: Machine.reduce,
    CumSum: Machine.cumsum,
    AtomicAdd: atomic_tile,
    Im2col: im2col,
    Transpose: transpose,
    FinalizeReducer: finalize_reducer,
    Hint: hint,
    Extern: opaque,
    Store: Machine.store,
    Sync: Machine.sync,
    For: Machine.loop,
    If: Machine.branch,
    While: Machine.repeat,
}
