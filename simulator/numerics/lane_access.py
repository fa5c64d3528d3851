"""What threads read, write and update, one element each, and the values of their expressions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from foretile.kernels.expr import Call, Const, Load, Var
from foretile.kernels.ir import Loc, Store
from foretile.simulator.numerics import strided
from foretile.simulator.numerics.aliases import put_back, view_tile
from foretile.simulator.numerics.crosslane import block_reduce, shuffle, vote, warp_reduce
from foretile.simulator.numerics.elements import (
    Indices,
    around,
    combine_elements,
    read_elements,
    wide,
    write_agreeing,
    write_elements,
)
from foretile.simulator.numerics.errors import NumericsError, fault
from foretile.simulator.numerics.evaluate import Scope, Value, convert
from foretile.simulator.numerics.formats import carrier
from foretile.simulator.numerics.frame import Frame, Tile
from foretile.simulator.numerics.philox import uniform
from foretile.simulator.numerics.settled import Varies, settle
from foretile.simulator.numerics.tensors import combine, gather, scatter

if TYPE_CHECKING:
    from foretile.simulator.numerics.resident import Resident

WARP = 32  # lanes of a warp in TileLang's warp functions, whose default width this is


class ThreadFrame(Frame):
    """The threads of a frame's blocks, as if each were a block: the last axis is the thread."""

    threads: int = 1

    def name_of(self, block: int) -> str:
        """The block, and the thread in it."""
        return f"{super().name_of(block // self.threads)}, thread {block % self.threads}"


def threads_of(frame: Frame, threads: int) -> ThreadFrame:
    """The threads of a frame's blocks."""
    number = frame.block[..., None] * threads + np.arange(threads)
    found = ThreadFrame((*frame.axes, threads), frame.env, number, frame.grid)
    found.threads = threads
    return found


@dataclass
class Access:
    """Elements of buffers as the threads of one team reach them. ``number``: of the team."""

    resident: Resident
    number: int

    def __post_init__(self) -> None:
        self.frame, self.machine = self.resident.frame, self.resident.machine
        self.threads = self.resident.threads
        self.axes = len(self.frame.axes)
        self.ndim = self.axes + 1
        self.scope = Scope(self.frame, self.machine.dtypes, self.read, (self.threads,), across=self.across)
        self.lenient = 0  # inside of a shuffle: what a thread passes on unread need not be defined

    def at(self, mask: Any, loc: Loc | None) -> Scope:
        """Where expressions of these threads are evaluated."""
        self.scope.mask, self.scope.loc = mask, loc
        return self.scope

    # -- reading ---------------------------------------------------------------------------------

    def read(self, load: Load, indices: Indices, mask: Any, scope: Scope) -> Value:
        """Elements at index values, one for every block and thread."""
        indices = tuple(_whole(i) for i in indices)
        name = load.buffer
        tensor = self.machine.tensors.get(name)
        if tensor is not None:
            return gather(tensor, [wide(i, self.ndim) for i in indices], mask, self.frame, scope.loc)
        tile = self.own(name)
        if tile is not None:
            if self.lenient:
                if tile.data is None:
                    return np.zeros((1,) * self.ndim, carrier(tile.dtype))
                tile = Tile(tile.dtype, tile.shape, tile.data, written=True)
            return read_elements(tile, name, indices, mask, self.resident.wide, self.ndim, scope.loc)
        self.note(name, indices, mask, scope.loc, write=False)
        tile = self.machine.tile(name, self.frame)
        return read_elements(tile, name, indices, mask, self.frame, self.ndim, scope.loc)

    def own(self, name: str) -> Tile | None:
        """A variable of each thread; of an alias of one, what it sees now."""
        alias = self.machine.aliases.get(name)
        if alias is None:
            return self.resident.own.get(name)
        base = self.resident.own.get(alias.base)
        return None if base is None else view_tile(base, alias, self.ndim)

    def note(self, name: str, indices: Indices, mask: Any, loc: Loc | None, *, write: bool) -> None:
        """Tell the order of accesses about elements."""
        order = self.resident.order
        if order is not None:
            order.blocks = None if mask is None else self.resident.having(mask)
            order.touch(self.number, name, around(indices, mask), loc, write=write)

    # -- writing ---------------------------------------------------------------------------------

    def store(self, s: Store, mask: Any) -> None:
        """One element of every block and thread."""
        scope = self.at(mask, s.loc)
        indices = tuple(_whole(scope.value(i)) for i in s.indices)
        value, source = scope.typed(s.value)
        value = convert(value, source, self.machine.dtypes[s.buffer])
        if s.atomic and s.atomic != "store":
            self.update(s, indices, value, mask)
        else:
            self.put(s.buffer, indices, value, mask, s.loc)

    def put(self, name: str, indices: Indices, value: Value, mask: Any, loc: Loc | None) -> None:
        """A value of every block and thread into an element of a buffer."""
        tile = self.own(name)
        if tile is None and self.parts_ways(name, indices, value, mask):
            tile = self.resident.replicate(name)
        if tile is not None:
            self.put_own(tile, name, indices, value, mask, loc)
            alias = self.machine.aliases.get(name)
            if alias is not None:
                put_back(self.resident.own[alias.base], alias, tile, self.ndim)
            return
        if _shape(value)[-1:] in ((), (1,)) and all(_shape(i)[-1:] in ((), (1,)) for i in indices):
            mask = None if mask is None else mask.any(axis=-1, keepdims=True)
            apart, nest = True, (1,)
        else:
            nest = (self.threads,)
            apart = strided.shape_of(indices, self.ndim)[-1] == self.threads and strided.distinct(
                indices, range(self.axes, self.ndim), self.ndim
            )
        tensor = self.machine.tensors.get(name)
        if tensor is not None:
            at = [wide(i, self.ndim) for i in indices]
            if not apart:
                self._refuse_disagreement(name, at, value, mask, loc)
            scatter(tensor, at, value, mask, self.frame, loc)
            return
        self.note(name, indices, mask, loc, write=True)
        tile = self.machine.tile(name, self.frame)
        if apart:
            write_elements(tile, name, indices, value, mask, nest, self.frame, loc, apart=True)
        else:
            write_agreeing(tile, name, indices, value, mask, nest, self.frame, loc)
        self.machine.wrote(name, tile, self.frame)

    def parts_ways(self, name: str, indices: Indices, value: Value, mask: Any) -> bool:
        """Whether a store leaves the threads' copies of an element of a fragment different.

        Each thread has a copy of what per-thread code uses by the same index in all of them: of a fragment of
        one element always, of a larger one surely where it stores different values.
        """
        if self.machine.scopes.get(name) != "fragment" or any(
            _shape(i)[-1:] not in ((), (1,)) for i in indices
        ):
            return False
        aliases = self.machine.aliases
        if name in aliases or any(a.base == name for a in aliases.values()):
            return False
        if mask is not None and int(np.prod(self.machine.shapes[name])) == 1:
            lanes = self.resident.teams[self.number]
            if not (mask | ~lanes | ~mask.any(axis=-1, keepdims=True)).all():
                return True
        try:
            settle(wide(value, self.ndim), mask, self.axes)
        except Varies:
            return True
        return False

    def put_own(
        self, tile: Tile, name: str, indices: Indices, value: Value, mask: Any, loc: Loc | None
    ) -> None:
        """An element of each thread's own variable."""
        if int(np.prod(tile.shape)) != 1 or any(np.ndim(i) or i for i in indices):
            write_elements(tile, name, indices, value, mask, (), self.resident.wide, loc, apart=True)
            return
        new = wide(value, self.ndim).astype(carrier(tile.dtype), copy=False)
        tail = (1,) * len(tile.shape)
        written: Any = True
        if mask is not None:
            written = np.logical_or(np.reshape(tile.written, np.shape(tile.written)[: self.ndim] or ()), mask)
            old = tile.garbage or 0 if tile.data is None else tile.data.reshape(tile.data.shape[: self.ndim])
            new = np.where(mask, new, old).astype(new.dtype, copy=False)
        elif new.base is not None:  # a view, perhaps of another variable, which may be changed in place
            new = new.copy()
        tile.set(new.reshape(new.shape + tail), owned=True)
        if mask is not None and not written.all():
            tile.written = written.reshape(written.shape + tail)

    def update(self, s: Store, indices: Indices, value: Value, mask: Any) -> None:
        """An atomic update by every thread, in the order of blocks and threads."""
        everyone = (*self.frame.axes, self.threads)
        full = np.broadcast_to(wide(value, self.ndim), everyone)
        tensor = self.machine.tensors.get(s.buffer)
        found: np.ndarray | None
        if tensor is not None:
            at = [wide(i, self.ndim) for i in indices]
            want = s.previous is not None
            found = combine(tensor, s.atomic, at, full, mask, self.frame, s.loc, previous=want)
        else:
            if self.own(s.buffer) is not None:
                raise NumericsError(f"an atomic update of {s.buffer}, which is each thread's own", s.loc)
            tile = self.machine.tile(s.buffer, self.frame)
            nest = (self.threads,)
            self.note(s.buffer, indices, mask, s.loc, write=True)
            found = combine_elements(tile, s.buffer, s.atomic, indices, full, mask, nest, self.frame, s.loc)
            self.machine.wrote(s.buffer, tile, self.frame)
        if s.previous is not None:
            scope = self.at(mask, s.loc)
            place = tuple(_whole(scope.value(i)) for i in s.previous.indices)
            target = self.machine.dtypes[s.previous.buffer]
            kept = convert(found, self.machine.dtypes[s.buffer], target)
            self.put(s.previous.buffer, place, kept, mask, s.loc)

    def _refuse_disagreement(
        self, name: str, at: list[np.ndarray], value: Value, mask: Any, loc: Loc | None
    ) -> None:
        """Threads of a block that write different values to one element of a tensor."""
        tensor = self.machine.tensors[name]
        shape = (*self.frame.axes, self.threads)
        inside = np.broadcast_to(np.True_ if mask is None else mask, shape)
        for i, n in zip(at, tensor.data.shape, strict=True):
            inside = inside & (i >= 0) & (i < n)
        where = tuple(np.broadcast_to(i, shape)[inside] for i in at)
        values = np.broadcast_to(wide(value, self.ndim), shape)[inside]
        places = np.ravel_multi_index(where, tensor.data.shape)
        number = np.broadcast_to(self.frame.block[..., None], shape)[inside]
        order = np.lexsort((places, number))
        same = (np.diff(places[order]) == 0) & (np.diff(number[order]) == 0)
        differ = same & (values[order][1:] != values[order][:-1])
        if differ.any():
            bad = np.zeros(shape, dtype=bool)
            bad[tuple(i[order[1:][differ]] for i in np.nonzero(inside))] = True
            text = f"threads write different values to one element of {name} at once"
            raise fault(self.frame, loc, text, bad, index=False)

    # -- functions of several threads ------------------------------------------------------------

    def across(self, e: Call, scope: Scope) -> tuple[Value, str]:
        """A function of several threads, or of a thread's state."""
        known = device_function(e)
        if known is not None:
            return scope.typed(known)
        if e.fn.startswith("extern:"):
            raise NumericsError(
                f"{e.fn.split(':')[2]} is code that is opaque here: it has no numerics", scope.loc
            )
        if e.fn == "block_rank_in_cluster":
            return self.resident.rank_in_cluster()[..., None], "int32"
        if e.fn.startswith("clc_"):  # no block ever takes over another's work, which the chip may decide too
            return 0, "int32" if e.fn == "clc_is_canceled" else "uint32"
        if e.fn.startswith("rng_"):
            return self._random(e.fn, scope)
        ndim, threads, mask = self.ndim, self.threads, scope.mask
        self.lenient += 1
        try:
            value, dtype = scope.typed(e.args[0]) if e.args else (1, "bool")
        finally:
            self.lenient -= 1
        if isinstance(value, float):
            value = carrier(dtype).type(value)

        def refuse(what: str, bad: np.ndarray) -> NumericsError:
            full = np.broadcast_to(bad, (*bad.shape[:-1], threads))
            return fault(self.resident.wide, scope.loc, what, full, index=False)

        if e.fn.startswith("shfl"):
            operand, width = (scope.value(a) for a in e.args[1:3])
            return shuffle(
                e.fn, value, operand, width, mask, ndim=ndim, threads=threads, refuse=refuse
            ), dtype
        kind = e.fn.split("_")[-1]
        if e.fn.startswith("warp_"):
            found = warp_reduce(
                kind, value, dtype, mask, ndim=ndim, threads=threads, warp=WARP, refuse=refuse
            )
            return found, dtype
        if e.fn.startswith("block_"):
            shape = self.resident.shape
            names = [v.name for v in self.machine.program.thread_vars]
            along = [names.index(a.name) for a in e.args[1:] if isinstance(a, Var) and a.name in names]
            axes = tuple(len(shape) - 1 - d for d in along) or tuple(range(len(shape)))
            return block_reduce(kind, value, dtype, mask, ndim=ndim, shape=shape, axes=axes), dtype
        from foretile.kernels.infer import call_dtype

        found = vote(e.fn, value, dtype, mask, ndim=ndim, threads=threads, warp=WARP)
        return found, call_dtype(e.fn, e.args, (dtype,))

    def _random(self, fn: str, scope: Scope) -> tuple[Value, str]:
        generators = self.resident.random
        if generators is None:
            raise NumericsError("a random number is drawn before the generator has a seed", scope.loc)
        everyone = (*self.frame.axes, self.threads)
        mask = np.broadcast_to(np.True_ if scope.mask is None else scope.mask, everyone)
        if fn not in ("rng_rand", "rng_uniform"):
            raise NumericsError(f"{fn}: only whole numbers and uniform floats are drawn here", scope.loc)
        bits = generators.draw(mask)
        return (bits, "uint32") if fn == "rng_rand" else (uniform(bits), "float32")


_DEVICE_FUNCTIONS = {
    "__match_any_sync": ("match_any", 1),
    "__match_all_sync": ("match_all", 1),
    "__ballot_sync": ("ballot", 1),
    "__any_sync": ("any_sync", 1),
    "__all_sync": ("all_sync", 1),
    "__shfl_sync": ("shfl", 1),
    "__shfl_xor_sync": ("shfl_xor", 1),
    "__shfl_up_sync": ("shfl_up", 1),
    "__shfl_down_sync": ("shfl_down", 1),
    "__activemask": ("activemask", 0),
    "__popc": ("popc", 0),
    "__popcll": ("popc", 0),
    "__clz": ("clz", 0),
    "__ffs": ("ffs", 0),
}
"""Functions of the CUDA C++ Programming Guide that have a name here, and how many arguments (the mask of
threads that take part) come before the value."""


def device_function(e: Call) -> Call | None:
    """A call by name of a device function that is known."""
    name = e.fn.rpartition(":")[2]
    if not e.fn.startswith("extern:") or name not in _DEVICE_FUNCTIONS:
        return None
    fn, skipped = _DEVICE_FUNCTIONS[name]
    args = e.args[skipped:]
    if fn.startswith("shfl") and len(args) == 2:
        args = (*args, Const(WARP))
    return Call(fn, args)


def _shape(value: Value) -> tuple[int, ...]:
    return np.shape(value)


def _whole(index: Value) -> Value:
    """An index as an int or an integer array."""
    if np.ndim(index) == 0:
        return int(index)
    return int(index.reshape(())) if index.size == 1 else np.asarray(index).astype(np.int64, copy=False)
