"""``T.Parallel``: all iterations of a nest at once, each running the statements in order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from foretile.kernels.expr import Binary, Expr, Load, Var, loads
from foretile.kernels.ir import For, If, Stmt, Store, While
from foretile.simulator.numerics import strided
from foretile.simulator.numerics.elements import (
    Indices,
    around,
    block_indices,
    clip,
    combine_elements,
    fetch,
    read_elements,
    replaces,
    wide,
    write_elements,
)
from foretile.simulator.numerics.errors import NumericsError, undefined
from foretile.simulator.numerics.evaluate import Scope, Value, convert
from foretile.simulator.numerics.formats import carrier
from foretile.simulator.numerics.frame import Frame, Tile
from foretile.simulator.numerics.races import Races
from foretile.simulator.numerics.tensors import combine, gather, scatter

if TYPE_CHECKING:
    from foretile.simulator.numerics.interpret import Machine

_PRIVATE = ("local", "var")  # scopes of which every thread has its own


def run_parallel(
    machine: Machine, nest: tuple[tuple[Var, Expr], ...], body: tuple[Stmt, ...], frame: Frame
) -> None:
    """Run ``body`` for all points of ``nest`` (none: once) and all blocks of the frame."""
    shapes = {name: t.data.shape for name, t in machine.tensors.items()}
    shapes |= {name: tile.shape for name, tile in frame.tiles.items()}
    shapes |= {name: alias.shape for name, alias in machine.aliases.items()}
    scope = Scope(frame, machine.dtypes, _nothing)
    outer = _Nest(machine, frame, scope, Races(shapes, frozenset(machine.tensors)), {})
    inner = outer.deeper(nest) if nest else outer
    if 0 in inner.scope.nest:
        return
    inner.run(body)
    # A thread's variables hold what its last iteration left: nothing that the block could use.
    for name in inner.private:
        tile = frame.tiles[name]
        tile.data, tile.written, tile.changed, tile.owned = None, False, True, False


def _nothing(load: Load, indices: Indices, mask: Any, scope: Scope) -> Value:
    raise AssertionError("read outside of a nest")


@dataclass(frozen=True)
class _Private:
    """A thread's variable by (block axes, iteration axes, the buffer's), and where it has been written."""

    values: np.ndarray
    written: np.ndarray

    def lifted(self, rank: int, ndim: int) -> _Private:
        """The variable of an outer nest, for the iterations of an inner one of ``ndim`` axes."""
        inner = self.values.ndim - rank
        shape = (*self.values.shape[:inner], *(1,) * (ndim - inner), *self.values.shape[inner:])
        return _Private(self.values.reshape(shape), self.written.reshape(shape))


@dataclass
class _Nest:
    """Iterations that run together. ``private``: variables of which every thread has its own, by name."""

    machine: Machine
    frame: Frame
    scope: Scope
    races: Races
    private: dict[str, _Private]

    def __post_init__(self) -> None:
        self.scope.read = self.read

    @property
    def axes(self) -> int:
        """Number of block axes."""
        return len(self.frame.axes)

    def deeper(self, nest: tuple[tuple[Var, Expr], ...]) -> _Nest:
        """The nest with more parallel loops inside."""
        old = self.scope
        limits = [old.value(e) for _, e in nest]
        extents = tuple(max(0, int(np.max(v))) for v in limits)
        deep = (*old.nest, *extents)
        scope = Scope(self.frame, old.dtypes, old.read, deep, dict(old.iterations), old.mask, old.loc)
        for i, ((var, _), n) in enumerate(zip(nest, extents, strict=True)):
            place = self.axes + len(old.nest) + i
            scope.iterations[var.name] = np.arange(n).reshape(
                [-1 if d == place else 1 for d in range(scope.ndim)]
            )
        for name, value in old.iterations.items():
            scope.iterations[name] = scope.lift(value)
        if scope.mask is not None:
            scope.mask = scope.lift(np.asarray(scope.mask))
        for (var, _), limit in zip(nest, limits, strict=True):
            if np.ndim(limit) and np.ptp(limit):  # blocks of different extents
                scope = scope.where(scope.iterations[var.name] < scope.lift(limit))
        return _Nest(self.machine, self.frame, scope, self.races, self.private)

    def run(self, body: tuple[Stmt, ...]) -> None:
        """Statements in order."""
        for s in body:
            self.scope.loc = s.loc
            if isinstance(s, Store):
                self.store(s)
            elif isinstance(s, If):
                self.branch(s)
            elif isinstance(s, For):
                self.loop(s)
            elif isinstance(s, While):
                self.repeat(s)
            else:
                what = type(s).__name__.lower()
                raise NumericsError(
                    f"{what} inside a parallel loop: tile operations are the whole block's", s.loc
                )

    # -- control ---------------------------------------------------------------------------------

    def under(self, mask: Value, body: tuple[Stmt, ...]) -> None:
        """Run ``body`` for the iterations where ``mask`` holds."""
        inner = self.scope.where(mask)
        if np.any(inner.mask):
            _Nest(self.machine, self.frame, inner, self.races, self.private).run(body)

    def branch(self, s: If) -> None:
        """Iterations take either side."""
        cond = self.scope.value(s.cond)
        if np.all(cond):
            self.run(s.then)
        elif not np.any(cond):
            self.run(s.orelse)
        else:
            self.under(cond, s.then)
            self.under(np.logical_not(cond), s.orelse)

    def loop(self, s: For) -> None:
        """A loop inside of the iterations; those with fewer trips wait."""
        if s.kind == "parallel":
            self.inside(s)
            return
        if len(s.vars) > 1:
            inner = For(s.vars[1:], s.extents[1:], s.kind, s.body, loc=s.loc)
            s = For(s.vars[:1], s.extents[:1], s.kind, (inner,), loc=s.loc)
        extent = self.scope.value(s.extents[0])
        start = 0 if s.start is None else self.scope.value(s.start)
        name = s.vars[0].name
        for i in range(max(0, int(np.max(extent)))):
            self.scope.iterations[name] = start + s.step * i
            active = np.asarray(i < extent)
            if active.all():
                self.run(s.body)
            else:
                self.under(active, s.body)
        self.scope.iterations.pop(name, None)

    def inside(self, s: For) -> None:
        """A parallel loop in a parallel loop; what it leaves in variables is of no use after it."""
        inner = self.deeper(tuple(zip(s.vars, s.extents, strict=True)))
        if 0 in inner.scope.nest:
            return
        inner.private = dict(self.private)
        inner.run(s.body)
        for name, held in inner.private.items():
            if held is not self.private.get(name):
                tile = self.frame.tiles[name]
                rank, ndim = len(tile.shape), self.scope.ndim
                old = (self.private.get(name) or self._of_the_block(tile)).lifted(rank, ndim)
                ran = wide(np.True_ if self.scope.mask is None else self.scope.mask, ndim)
                known = old.written & ~ran.reshape(ran.shape + (1,) * rank)
                values = np.broadcast_to(old.values, known.shape)
                if tile.garbage is not None:
                    values = np.where(known, values, values.dtype.type(tile.garbage))
                self.private[name] = _Private(values, known)

    def repeat(self, s: While) -> None:
        """A while loop; iterations that are through wait."""
        while True:
            cond = self.scope.value(s.cond)
            active = cond if self.scope.mask is None else np.logical_and(cond, self.scope.mask)
            if not np.any(active):
                return
            self.under(cond, s.body)

    # -- elements --------------------------------------------------------------------------------

    def is_private(self, name: str) -> bool:
        """Whether every thread has its own."""
        return bool(self.scope.nest) and self.machine.scopes.get(name) in _PRIVATE

    def read(self, load: Load, indices: Indices, mask: Any, scope: Scope) -> Value:
        """Elements at index values, one for every block and iteration."""
        indices = tuple(_whole(i) for i in indices)
        if self.is_private(load.buffer):
            return self.read_private(load.buffer, indices, mask, scope)
        self.races.read(load.buffer, load.indices, indices, mask, scope)
        tensor, ndim = self.machine.tensors.get(load.buffer), scope.ndim
        if tensor is None:
            if self.machine.watch is not None:
                self.machine.watch(load.buffer, around(indices, mask), scope.loc, False)
            tile = self.machine.tile(load.buffer, self.frame)
            return read_elements(tile, load.buffer, indices, mask, self.frame, ndim, scope.loc)
        untouched = tensor.written is None and tensor.writer is None
        if untouched and strided.in_range(indices, tensor.data.shape):
            view = strided.elements(tensor.data, indices, ndim)
            if view is not None:
                return view.copy() if tensor.changes else view
        return gather(tensor, [wide(i, ndim) for i in indices], mask, self.frame, scope.loc)

    def store(self, s: Store) -> None:
        """One element of every block and iteration."""
        scope, nest, ndim = self.scope, self.scope.nest, self.scope.ndim
        indices = tuple(_whole(scope.value(i)) for i in s.indices)
        value, source = scope.typed(s.value)
        value = convert(value, source, self.machine.dtypes[s.buffer])
        tensor = self.machine.tensors.get(s.buffer)
        if self.machine.unchecked and not s.atomic and self.machine.scopes.get(s.buffer) == "fragment":
            combined = accumulated(s)
            if combined is not None and not self.told_apart(indices):
                s = combined
                value, source = scope.typed(s.value)
                value = convert(value, source, self.machine.dtypes[s.buffer])
        if s.atomic and s.atomic != "store":
            found: np.ndarray | None
            if tensor is not None:
                at = [wide(i, ndim) for i in indices]
                value = np.broadcast_to(
                    wide(value, ndim),
                    np.broadcast_shapes((1,) * self.axes + nest, np.shape(wide(value, ndim))),
                )
                found = combine(
                    tensor,
                    s.atomic,
                    at,
                    value,
                    scope.mask,
                    self.frame,
                    s.loc,
                    previous=s.previous is not None,
                )
            else:
                tile = self.machine.tile(s.buffer, self.frame)
                found = combine_elements(
                    tile, s.buffer, s.atomic, indices, value, scope.mask, nest, self.frame, s.loc
                )
                self.machine.wrote(s.buffer, tile, self.frame)
            if s.previous is not None:
                place = tuple(_whole(scope.value(i)) for i in s.previous.indices)
                dtype = self.machine.dtypes[s.previous.buffer]
                kept = convert(found, self.machine.dtypes[s.buffer], dtype)
                self.keep(s.previous.buffer, s.previous.indices, place, kept)
            return
        self.keep(s.buffer, s.indices, indices, value)

    def keep(self, name: str, exprs: tuple[Expr, ...], indices: Indices, value: Value) -> None:
        """A value of every block and iteration into an element of a buffer (``exprs``: its indices)."""
        scope, nest, ndim = self.scope, self.scope.nest, self.scope.ndim
        tensor = self.machine.tensors.get(name)
        if self.is_private(name):
            self.store_private(name, indices, value)
            return
        self.races.write(name, exprs, indices, scope.mask, scope)
        apart = self.told_apart(indices)
        if tensor is not None:
            number = None if apart else np.arange(int(np.prod(nest))).reshape((1,) * self.axes + nest)
            at = [wide(i, ndim) for i in indices]
            scatter(tensor, at, value, scope.mask, self.frame, scope.loc, within_block=number)
            return
        tile = self.machine.tile(name, self.frame)
        if self.machine.watch is not None:
            self.machine.watch(name, around(indices, scope.mask), scope.loc, True)
        if scope.mask is not None or not replaces(tile, indices, value, nest, self.axes):
            write_elements(tile, name, indices, value, scope.mask, nest, self.frame, scope.loc, apart=apart)
        self.machine.wrote(name, tile, self.frame)

    def told_apart(self, indices: Indices) -> bool:
        """Whether no two iterations have the same indices, as far as one sees without looking at all."""
        reached = strided.shape_of(indices, self.scope.ndim)[self.axes :]
        if any(n > 1 and m == 1 for n, m in zip(self.scope.nest, reached, strict=True)):
            return False
        return strided.distinct(indices, range(self.axes, self.scope.ndim), self.scope.ndim)

    # -- a thread's own variables ----------------------------------------------------------------

    def read_private(self, name: str, indices: Indices, mask: Any, scope: Scope) -> Value:
        """A variable of each iteration; before the first write, what the block had in it."""
        tile, ndim = self.frame.tiles[name], scope.ndim
        held = self.private.get(name)
        if held is None:
            return read_elements(tile, name, indices, mask, self.frame, ndim, scope.loc)
        held = held.lifted(len(tile.shape), ndim)
        indices = clip(tile, name, indices, mask, self.frame, ndim, scope.loc)
        missing = ~fetch(held.written, indices, ndim, ndim) & (np.True_ if mask is None else mask)
        if missing.any() and tile.garbage is None:
            raise undefined(self.frame, scope.loc, f"reads {name}, which was never written there", missing)
        return fetch(held.values, indices, ndim, ndim)

    def store_private(self, name: str, indices: Indices, value: Value) -> None:
        """A variable of each iteration."""
        scope, tile = self.scope, self.frame.tiles[name]
        ndim = scope.ndim
        indices = clip(tile, name, indices, scope.mask, self.frame, ndim, scope.loc)
        old = self.private.get(name) or self._of_the_block(tile)
        old = old.lifted(len(tile.shape), ndim)
        shapes = [np.shape(x) for x in (value, scope.mask, *indices) if np.ndim(x)]
        lead = np.broadcast_shapes(old.values.shape[:ndim], *shapes)
        every = block_indices(lead, ndim) + indices
        mask = np.True_ if scope.mask is None else np.asarray(scope.mask)

        def changed(array: np.ndarray, to: Any) -> np.ndarray:
            new = np.array(np.broadcast_to(array, (*lead, *tile.shape)))
            view = strided.elements(new, every, ndim)
            if view is not None:
                np.copyto(view, np.asarray(to), where=mask)
            else:
                at = tuple(np.asarray(i) for i in every)
                new[at] = np.where(mask, to, new[at])
            return new

        self.private[name] = _Private(changed(old.values, value), changed(old.written, True))

    def _of_the_block(self, tile: Tile) -> _Private:
        """What the block has in a variable, which is what its threads begin with."""
        shape = (1,) * self.axes + tile.shape
        values = tile.data
        if values is None:
            values = np.full(shape, tile.garbage or 0, carrier(tile.dtype))
        written = np.broadcast_to(tile.written, np.broadcast_shapes(np.shape(tile.written), values.shape))
        return _Private(np.broadcast_to(values, written.shape), written)


def accumulated(s: Store) -> Store | None:
    """``f[i] = op(f[i], x)`` as an update: iterations of one thread follow each other.

    Where the author has switched the compiler's check for races off, he has laid the fragment out so that
    those that meet in an element are of one thread.
    """
    held = Load(s.buffer, s.indices)
    if isinstance(s.value, Binary) and s.value.op in ("add", "max", "min"):
        for mine, other in ((s.value.a, s.value.b), (s.value.b, s.value.a)):
            if mine == held and held not in loads(other):
                return replace(s, value=other, atomic=s.value.op)
    return None


def _whole(index: Value) -> Value:
    """An index as an int or an integer array; arrays of one element as numbers."""
    if np.ndim(index) == 0:
        return int(index)
    return int(index.reshape(())) if index.size == 1 else index
