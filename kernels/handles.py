"""Buffers as the kernel's author sees them: indexing, slicing, storing, and regions that match."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foretile.kernels.affine import difference
from foretile.kernels.errors import fail, here
from foretile.kernels.expr import Binary, Const, Expr, Load, binary
from foretile.kernels.ir import Buffer, Region, Scope, Store
from foretile.kernels.messages import shape_text, text
from foretile.kernels.tracer import Tracer, current
from foretile.kernels.values import Index, Poison, Result, Value, coerced, index_expr

ZERO = Const(0)
ONE = Const(1)
REDUCING = {"add": "add", "max": "max", "min": "min", "bitand": "and", "bitor": "or", "bitxor": "xor"}
"""Operations by which a reducer is updated, and the atomic store that does the same."""


class Previous:
    """What an atomic update finds: to be stored at once in a variable or an element."""

    __slots__ = ("update",)

    def __init__(self, update: Store) -> None:
        self.update = update


class BufferHandle:
    """A tensor or an on-chip allocation of the kernel being traced."""

    __slots__ = ("_name", "address", "alias", "dims", "dtype", "kind", "notes", "offset", "strides", "tracer")
    __iter__ = None  # indexing never ends by itself, so iteration must not try

    def __init__(self, tracer: Tracer, name: str, dims: tuple[Expr, ...], dtype: str, kind: Scope) -> None:
        self.tracer = tracer
        self._name = name
        self.dims = dims
        self.dtype = dtype
        self.kind: Scope = kind
        self.strides: tuple[Expr, ...] = ()
        self.alias = ""
        self.offset: Expr | None = None
        self.address: Load | None = None
        self.notes: list[tuple[str, str]] = []  # annotations that wait for the name

    @property
    def name(self) -> str:
        """The unique name; one is made up if the handle is used before it is assigned to a variable."""
        if not self._name:
            self._name = self.tracer.unique(self.kind)
        return self._name

    def suggest(self, name: str) -> None:
        """Take the name of the Python variable first assigned to."""
        if not self._name:
            self._name = self.tracer.unique(name)

    @property
    def shape(self) -> tuple[Any, ...]:
        """Extents: numbers, or values where symbolic."""
        return tuple(e.value if isinstance(e, Const) else Result(e, "int32") for e in self.dims)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.dims)

    def scope(self) -> str:
        """``global``, ``shared``, ``fragment``, ``local``, ``var``, ``barrier`` or ``tmem``."""
        return self.kind

    def buffer(self) -> Buffer:
        """The declaration in the program."""
        more = (self.strides, self.alias, self.offset, self.address)
        return Buffer(self.name, self.dims, self.dtype, self.kind, *more)

    def region(self) -> Region:
        """All of it."""
        return Region(self.name, (ZERO,) * len(self.dims), self.dims)

    def __repr__(self) -> str:
        return f"<{self.kind} buffer {self.name}{shape_text(self.dims)} {self.dtype}>"

    def __bool__(self) -> bool:
        return True

    def _indices(self, key: Any) -> tuple[Any, ...]:
        keys: tuple[Any, ...] = key if type(key) is tuple else (key,)
        if len(keys) != len(self.dims):
            fail(
                f"{self.name} has {len(self.dims)} dimensions {shape_text(self.dims)} but is indexed with "
                f"{len(keys)}; give one index or slice a dimension"
            )
        return keys

    def _index(self, axis: int, key: Any) -> Expr:
        if type(key) is Index:
            return key.expr
        e = index_expr(key, f"index {axis} of {self.name}")
        extent = self.dims[axis]
        if type(e) is Const and type(extent) is Const:
            at, size = int(e.value), int(extent.value)
            if -size <= at < 0:
                return Const(at + size)
            if at < 0 or (at >= size and self.kind != "global"):
                fail(
                    f"index {at} is out of bounds for dimension {axis} of "
                    f"{self.name}{shape_text(self.dims)}; valid are 0 to {size - 1}"
                )
        elif type(e) is Const and e.value < 0:
            return binary("add", extent, e)
        return e

    def _slice(self, axis: int, key: slice) -> tuple[Expr, Expr]:
        if key.step is not None and key.step != 1:
            fail(f"slice step {key.step} of {self.name}: only contiguous slices are supported")
        extent = self.dims[axis]
        start = ZERO if key.start is None else self._bound(axis, key.start)
        stop = extent if key.stop is None else self._bound(axis, key.stop)
        size = difference(stop, start)
        if type(size) is Const:
            if size.value <= 0:
                fail(f"slice {text(start)}:{text(stop)} of dimension {axis} of {self.name} is empty")
            if self.kind != "global" and type(start) is Const and type(extent) is Const:
                end = int(start.value) + int(size.value)
                if end > extent.value:
                    fail(
                        f"slice {text(start)}:{end} is out of bounds for dimension {axis} of "
                        f"{self.name}{shape_text(self.dims)}"
                    )
        return start, size

    def _bound(self, axis: int, key: Any) -> Expr:
        e = index_expr(key, f"slice bound of {self.name}")
        return binary("add", self.dims[axis], e) if type(e) is Const and e.value < 0 else e

    def __getitem__(self, key: Any) -> Any:
        keys = self._indices(key)
        if slice not in map(type, keys):
            return Element(self, tuple([self._index(i, k) for i, k in enumerate(keys)]))
        mins, extents = [], []
        for axis, k in enumerate(keys):
            start, size = self._slice(axis, k) if type(k) is slice else (self._index(axis, k), ONE)
            mins.append(start)
            extents.append(size)
        return RegionHandle(self, tuple(mins), tuple(extents))

    def __setitem__(self, key: Any, value: Any) -> None:
        self.store(key, value)

    def store(self, key: Any, value: Any, atomic: str = "") -> None:
        """Record ``self[key] = value`` (or an atomic update)."""
        keys = self._indices(key)
        if slice in map(type, keys):
            fail(f"{self.name}[...] = ... stores one element; for a slice use T.copy or T.fill")
        if isinstance(value, BufferHandle | RegionHandle):
            fail(
                f"a whole buffer cannot be stored to one element of {self.name}; use T.copy, "
                f"or index {value!r}"
            )
        indices = tuple([self._index(i, k) for i, k in enumerate(keys)])
        if isinstance(value, Previous):
            self._keep(indices, value)
            return
        stored = coerced(value, self.dtype)
        if not atomic and self.notes:
            stored, atomic = self._update(indices, stored)
        self.tracer.emit(Store(self.name, indices, stored, atomic, loc=here()), self.name)

    def _update(self, indices: tuple[Expr, ...], value: Expr) -> tuple[Expr, str]:
        """``r[i] = r[i] + x`` of a reducer is an update by ``x``: every iteration adds to the one value."""
        own = Load(self.name, indices)
        if self.notes[0][0] == "reducer" and isinstance(value, Binary) and value.op in REDUCING:
            for this, other in ((value.a, value.b), (value.b, value.a)):
                if this == own:
                    return other, REDUCING[value.op]
        return value, ""

    def _keep(self, indices: tuple[Expr, ...], found: Previous) -> None:
        """``self[indices] = T.atomic_add(…, return_prev=True)``: one statement that updates and stores."""
        if self.kind == "global":
            fail(
                f"what T.atomic_{found.update.atomic} finds is kept on chip; store it to {self.name} after it"
            )
        statements = self.tracer.scopes[-1]
        if not statements or statements[-1] is not found.update:
            fail("what an atomic update finds must be stored where it is made: x = T.atomic_add(…)")
        statements.pop()
        self.tracer.emit(replace(found.update, previous=Load(self.name, indices)), self.name)


class RegionHandle:
    """``buffer[a:b, i]``: a box of a buffer."""

    __slots__ = ("extents", "handle", "mins")
    __iter__ = None

    def __init__(self, handle: BufferHandle, mins: tuple[Expr, ...], extents: tuple[Expr, ...]) -> None:
        self.handle = handle
        self.mins = mins
        self.extents = extents

    @property
    def shape(self) -> tuple[Any, ...]:
        """Extents: numbers, or values where symbolic."""
        return tuple(e.value if isinstance(e, Const) else Result(e, "int32") for e in self.extents)

    @property
    def dtype(self) -> str:
        """The buffer's element type."""
        return self.handle.dtype

    def region(self) -> Region:
        """The region in the program."""
        return Region(self.handle.name, self.mins, self.extents)

    def __repr__(self) -> str:
        return f"<region {shape_text(self.extents)} of {self.handle.name}>"


class Element(Value):
    """``buffer[i, j]``: a value; in ``T.copy`` the first corner of a region."""

    __slots__ = ("handle", "indices")

    def __init__(self, handle: BufferHandle, indices: tuple[Expr, ...]) -> None:
        self.expr = Load(handle.name, indices)
        self.dtype = handle.dtype
        self.binding = None
        self.handle = handle
        self.indices = indices


class VarHandle(Value):
    """A scalar variable (``T.alloc_var``): reading gives its value, assigning records a store."""

    __slots__ = ("fresh", "handle", "init", "loc")

    def __init__(self, handle: BufferHandle, init: Expr | None = None) -> None:
        # ``expr`` and the first store wait for the variable's name, which both carry.
        self.handle = handle
        self.dtype = handle.dtype
        self.binding = None
        self.fresh = True
        self.init = init
        self.loc = here()

    def suggest(self, name: str) -> None:
        """Take the name of the Python variable first assigned to, and store the initial value."""
        if self.fresh:
            self.fresh = False
            self.handle.suggest(name)
            self.expr = Load(self.handle.name, (ZERO,))
            if self.init is not None:
                store = Store(self.handle.name, (ZERO,), self.init, loc=self.loc)
                self.handle.tracer.emit(store, self.handle.name)

    def __getattr__(self, name: str) -> Any:
        if name == "expr" and self.fresh:  # used before it was assigned to a Python name
            self.suggest("var")
            return self.expr
        raise AttributeError(name)

    def assign(self, value: Any) -> None:
        """Record ``variable = value``."""
        self.suggest("var")
        self.handle.store(0, value)

    def __getitem__(self, key: Any) -> Any:
        self.suggest("var")
        return self.handle[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.suggest("var")
        self.handle[key] = value


Side = tuple[BufferHandle, tuple[Expr, ...], tuple[Expr, ...] | None]


def side(x: Any, what: str) -> Side:
    """Buffer, first corner and (if it fixes them) extents of an operand of a tile operation."""
    if isinstance(x, BufferHandle):
        return x, (ZERO,) * len(x.dims), x.dims
    if isinstance(x, RegionHandle):
        return x.handle, x.mins, x.extents
    if isinstance(x, Element):
        return x.handle, x.indices, None
    if isinstance(x, VarHandle):
        x.suggest("var")
        return x.handle, (ZERO,), (ONE,)
    if isinstance(x, Poison):
        x.refuse()
    shown = f"the index `{x.name}`" if isinstance(x, Index) else repr(x)
    fail(f"{what} must be a buffer, buffer[i, j] or buffer[a:b, c:d]; got {shown}")


def region_of(x: Any, what: str) -> tuple[BufferHandle, Region]:
    """The region of an operand that has to fix its extents itself."""
    handle, mins, extents = side(x, what)
    if extents is None:
        fail(f"{what} is one element of {handle.name}; give the buffer or a slice {handle.name}[a:b, ...]")
    _own(handle, what)
    return handle, Region(handle.name, mins, extents)


def _own(handle: BufferHandle, what: str) -> None:
    if handle.tracer is not current(what):
        fail(f"{what}: {handle.name} belongs to another kernel")


def match(a: Any, b: Any, op: str) -> tuple[BufferHandle, Region, BufferHandle, Region]:
    """Regions of two operands of equal extents, each completed from the other where it is a corner.

    Ranks may differ: dimensions of extent one are skipped when extents are compared, and added in
    front (or dropped) where a corner needs more (or fewer), as TileLang does.
    """
    a_handle, a_mins, a_extents = side(a, f"source of {op}")
    b_handle, b_mins, b_extents = side(b, f"destination of {op}")
    _own(a_handle, f"source of {op}")
    _own(b_handle, f"destination of {op}")
    if a_extents is None and b_extents is None:
        fail(f"{op} between two single elements: at least one side must be a buffer or a slice")
    if a_extents is None:
        assert b_extents is not None
        a_extents = _completed(b_extents, len(a_mins), a_handle, b_handle, op)
    elif b_extents is None:
        b_extents = _completed(a_extents, len(b_mins), b_handle, a_handle, op)
    elif a_extents != b_extents and _solid(a_extents) != _solid(b_extents):
        fail(
            f"{op} with different extents: {a_handle.name} {shape_text(a_extents)} and "
            f"{b_handle.name} {shape_text(b_extents)}; give equal slices, or a corner like "
            f"{a_handle.name}[i, j] whose extents come from the other side"
        )
    return (
        a_handle,
        Region(a_handle.name, a_mins, a_extents),
        b_handle,
        Region(b_handle.name, b_mins, b_extents),
    )


def _solid(extents: tuple[Expr, ...]) -> list[Expr]:
    return [e for e in extents if e != ONE]


def fit(extents: tuple[Expr, ...], rank: int) -> tuple[Expr, ...] | None:
    """``extents`` with ones added in front, or dropped, to have ``rank`` of them; ``None`` if impossible."""
    kept = [ONE] * (rank - len(extents)) + list(extents)
    while len(kept) > rank:
        if ONE not in kept:
            return None
        kept.remove(ONE)
    return tuple(kept)


def _completed(
    extents: tuple[Expr, ...], rank: int, corner: BufferHandle, other: BufferHandle, op: str
) -> tuple[Expr, ...]:
    fitted = fit(extents, rank)
    if fitted is None:
        fail(
            f"{op}: extents {shape_text(extents)} of {other.name} have more dimensions than "
            f"{corner.name}{shape_text(corner.dims)}"
        )
    return fitted
