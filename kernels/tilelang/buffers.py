"""Buffers of a PrimFunc: parameters, allocations, and the views that share their storage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foretile.kernels.affine import difference
from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import Const, Expr, Load, binary
from foretile.kernels.ir import Buffer, Loc, Scope
from foretile.kernels.tilelang.expressions import Expressions
from foretile.kernels.tilelang.nodes import element_type, key, location, number, refuse

_SCOPES: dict[str, Scope] = {
    "global": "global",
    "": "global",
    "shared": "shared",
    "shared.dyn": "shared",
    "local.fragment": "fragment",
    "local.reducer": "fragment",
    "local": "local",
    "local.var": "var",
    "shared.barrier": "barrier",
    "shared.cluster_barrier": "barrier",
    "shared.tmem": "tmem",
}
# Files of the front end itself: what they allocate is scratch of an operation, not the author's.
_OWN_FILES = ("tilelang/language/", "tilelang\\language\\")


class Buffers:
    """The buffers met so far, by node and by the storage they lie in."""

    def __init__(self, expressions: Expressions) -> None:
        self.convert = expressions
        self.names: set[str] = {"T"}
        self.suffixes: dict[str, int] = {}
        self.params: list[Buffer] = []
        self.allocated: list[Buffer] = []
        self.by_node: dict[int, str] = {}
        self.by_data: dict[int, str] = {}  # storage variable -> the buffer it was made for
        self.by_shape: dict[tuple[int, object], str] = {}
        self.by_name: dict[str, Buffer] = {}
        self.addresses: dict[int, Load] = {}  # pointer variables -> where the pointer stands
        self.scratch: set[str] = set()  # made by an operation for itself
        self.of_cluster: set[str] = set()  # barriers that all blocks of a cluster reach
        self.vectors: set[str] = set()  # whose elements are vectors, here a dimension of their own
        self.held: list[Any] = []  # nodes whose identity is used as a key must stay alive

    def unique(self, base: str) -> str:
        """``base``, or ``base_1``, ``base_2``, … if taken; the name is taken from now on."""
        base = base if base.isidentifier() else "v"
        name, i = base, self.suffixes.get(base, 0)
        while name in self.names:
            i += 1
            name = f"{base}_{i}"
        self.suffixes[base] = i
        self.names.add(name)
        return name

    def parameter(self, node: Any, loc: Loc | None) -> None:
        """A tensor that is passed to the kernel."""
        self._add(node, self._described(node, "global", loc), self.params)

    def allocation(self, node: Any, loc: Loc | None) -> None:
        """A buffer that a block makes (or finds made for the launch, in scope ``global``)."""
        text = str(node.scope())
        scope = _SCOPES.get(text)
        if scope is None:
            refuse(f"{node.name} is in the memory {text!r}, which is not known to this importer", loc)
        if key(node.data) in self.by_data:
            self.view(node, loc)
            return
        self._add(node, self._described(node, scope, loc), self.allocated)
        if text == "shared.cluster_barrier":
            self.of_cluster.add(self.by_node[key(node)])
        place = location(getattr(node, "span", None))
        if place is not None and any(part in place.file for part in _OWN_FILES):
            self.scratch.add(self.by_node[key(node)])

    def name_of(self, node: Any, loc: Loc | None) -> str:
        """The name of the buffer that a load, a store or a region means."""
        found = self.by_node.get(key(node))
        return found if found is not None else self.view(node, loc)

    def view(self, node: Any, loc: Loc | None) -> str:
        """A buffer seen for the first time: a view of a known one, or of where a pointer points."""
        data = key(node.data)
        text = str(node.scope())
        owner = self.by_data.get(data)
        address = self.addresses.get(data)
        if owner is None and address is None:
            refuse(f"{node.name} lies in memory that no parameter and no allocation of the kernel is", loc)
        if owner is not None:
            made = self._described(node, self.by_name[owner].scope, loc)
            offset = self.convert(node.elem_offset)
            known = self.by_shape.get((data, (made.shape, made.dtype, made.strides, offset)))
            if known is not None:
                self.by_node[key(node)] = known
                self.held.append(node)
                return known
            offset_expr = None if offset == Const(0) else offset
            made = replace(made, alias=owner, offset=offset_expr)
        else:
            made = self._described(node, _SCOPES.get(text, "global"), loc)
            made = replace(made, address=address)
        self._add(node, made, self.allocated, own=False)
        return made.name

    def _add(self, node: Any, made: Buffer, where: list[Buffer], own: bool = True) -> None:
        made = replace(made, name=self.unique(made.name))
        where.append(made)
        self.held.append(node)
        self.by_node[key(node)] = made.name
        self.by_name[made.name] = made
        if len(made.shape) > max(1, len(node.shape)) or (not len(node.shape) and len(made.shape) > 1):
            self.vectors.add(made.name)
        data = node.data
        self.held.append(data)
        if own:
            self.by_data[key(data)] = made.name
        offset = self.convert(node.elem_offset)
        self.by_shape[key(data), (made.shape, made.dtype, made.strides, offset)] = made.name

    def _described(self, node: Any, scope: Scope, loc: Loc | None) -> Buffer:
        shape = tuple(_int32(self.convert(e)) for e in node.shape)
        strides = tuple(_int32(self.convert(e)) for e in node.strides)
        if _dense(shape, strides):
            strides = ()
        dtype, lanes = element_type(node, loc)
        if lanes > 1:  # elements of a vector are a dimension of their own
            shape, strides = (*shape, Const(lanes)), ()
        return Buffer(str(node.name), shape or (Const(1),), dtype, scope, strides)

    def storage_of(self, name: str) -> list[int]:
        """The storage variables (by identity) that a buffer lies in."""
        owner = self.by_name[name].alias or name
        return [at for at, held in self.by_data.items() if held == owner] or [hash(owner)]

    def element(self, data: Any, offset: Expr, loc: Loc | None) -> Load:
        """The element so many after the first of the storage's buffer."""
        name = self.by_data.get(key(data))
        if name is None:
            refuse("a pointer into memory that no parameter and no allocation of the kernel is", loc)
        shape = self.by_name[name].shape
        indices: list[Expr] = []
        rest = offset
        for size in reversed(shape[1:]):
            indices.append(binary("mod", rest, size))
            rest = binary("floordiv", rest, size)
        return Load(name, (rest, *reversed(indices)))

    def bytes_of(self, name: str) -> int | None:
        """Bytes of a buffer of constant size."""
        total = DTYPES[self.by_name[name].dtype].bits
        for e in self.by_name[name].shape:
            if not isinstance(e, Const):
                return None
            total *= int(e.value)
        return total // 8


def _int32(e: Expr) -> Expr:
    """Sizes are whole numbers of whatever width."""
    return Const(int(e.value)) if isinstance(e, Const) else e


def _dense(shape: tuple[Expr, ...], strides: tuple[Expr, ...]) -> bool:
    step: Expr = Const(1)
    for size, stride in zip(reversed(shape), reversed(strides), strict=True) if strides else ():
        # Of a dimension of one the step is never taken.
        if difference(stride, step) != Const(0) and size != Const(1):
            return False
        step = binary("mul", size, step)
    return True


def counts(values: Any) -> str:
    """Arrivals by barrier, as an annotation says them."""
    return ",".join(str(number(v)) for v in values)
