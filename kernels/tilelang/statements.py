"""The body of a kernel: TVM's statements as ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from foretile.kernels.expr import (
    THREAD_FUNCTIONS,
    Binary,
    Call,
    Cast,
    Const,
    Expr,
    Load,
    Var,
    binary,
    loads,
    walk,
)
from foretile.kernels.handles import REDUCING
from foretile.kernels.ir import Buffer, For, If, Loc, Stmt, Store, Swizzle, While
from foretile.kernels.tilelang import intrinsics
from foretile.kernels.tilelang.allreduce import all_reduce, combiner
from foretile.kernels.tilelang.buffers import Buffers
from foretile.kernels.tilelang.effects import Effects
from foretile.kernels.tilelang.expressions import Expressions
from foretile.kernels.tilelang.layouts import layout_text
from foretile.kernels.tilelang.loops import Loops
from foretile.kernels.tilelang.nodes import (
    element_type,
    key,
    kind,
    location,
    number,
    op_name,
    refuse,
    text_of,
)
from foretile.kernels.tilelang.tileops import TILE_OPS, start_reducer, stored, update_kind

# Attributes around statements that say nothing about what is computed.
_SILENT_ATTRIBUTES = ("tl.", "pragma_", "tirx.", "tir.")
_INLINE_LIMIT = 200


class Body(Loops):
    """Converts one kernel's body; implements what expressions and tile operations ask for."""

    def __init__(self, spans: Callable[[Any], Any] | None, loc: Loc | None, user_file: str | None) -> None:
        self.convert = Expressions(self)
        self.buffers = Buffers(self.convert)
        self.effects = Effects()
        self.spans = spans
        self.loc = loc
        self.user_file = user_file
        self.values: dict[int, Expr] = {}  # variables in scope
        self.macros: dict[int, Any] = {}  # variables that stand for a node, converted where used
        self.macro_order: list[tuple[int, Any]] = []
        self.pending: list[Stmt] = []  # what has to come before the statement being converted
        self.threads: tuple[int, ...] = (1,)
        self.thread_names: dict[int, Var] = {}
        self.thread_keys: dict[int, int] = {}
        self.reducers: dict[str, str] = {}
        self.dimensions: set[str] = set()
        self.swizzle: Swizzle | None = None
        self.annotations: list[tuple[str, str]] = []
        self.source = ""

    # -- names ---------------------------------------------------------------------------------

    def variable(self, var: Any) -> Expr:
        """The expression that a variable stands for."""
        at = key(var)
        found = self.values.get(at)
        if found is not None:
            return found
        axis = self.thread_keys.get(at)
        if axis is not None:
            return self.thread(axis)
        macro = self.macros.get(at)
        if macro is not None:
            return self.convert(macro)
        return refuse(f"the variable {var.name} is used where it has no value", self.loc)

    def buffer(self, node: Any) -> str:
        """The name of a buffer."""
        return self.buffers.name_of(node, self.loc)

    def dtype(self, name: str) -> str:
        """The element type of a buffer, by its name."""
        return self.buffers.by_name[name].dtype

    def storage(self, name: str) -> str:
        """The buffer whose storage a buffer lies in."""
        return self.buffers.by_name[name].alias or name

    def is_vector(self, name: str) -> bool:
        """Whether a buffer's elements are vectors."""
        return name in self.buffers.vectors

    def element_at(self, data: Any, offset: Expr) -> Load:
        """The element so many after the first of a storage's."""
        return self.buffers.element(data, offset, self.loc)

    def thread(self, axis: int) -> Expr:  # a constant along an axis of one thread
        """The index of a thread in its block along an axis."""
        if axis >= len(self.threads) or self.threads[axis] == 1:
            return Const(0)
        found = self.thread_names.get(axis)
        if found is None:
            found = self.thread_names[axis] = Var(self.buffers.unique(("tx", "ty", "tz")[axis]))
        return found

    def linear_thread(self) -> Expr:
        """The number of a thread in its block."""
        number_: Expr = Const(0)
        for axis in reversed(range(len(self.threads))):
            number_ = binary("add", binary("mul", number_, Const(self.threads[axis])), self.thread(axis))
        return number_

    def layout_text(self, layout: Any, name: str) -> str:
        """A layout as the language writes it."""
        return layout_text(layout, self.convert)

    def previous(self, call: Any) -> Expr:
        """What an atomic update found, kept in a variable before this statement."""
        dtype, _ = element_type(call, self.loc)
        held = self.temporary("previous", dtype)
        self.pending.extend(intrinsics.atomic(self, call, held))
        return held

    def temporary(self, name: str, dtype: str) -> Load:
        """A new scalar variable."""
        unique = self.buffers.unique(name)
        made = Buffer(unique, (Const(1),), dtype, "var")
        self.buffers.allocated.append(made)
        self.buffers.by_name[unique] = made
        return Load(unique, (Const(0),))

    # -- statements ----------------------------------------------------------------------------

    def block(self, node: Any) -> tuple[Stmt, ...]:
        """The statements of a node."""
        return tuple(self.sequence([node]))

    def sequence(self, nodes: Iterable[Any]) -> list[Stmt]:
        """Statements in order; what one binds holds for those behind it."""
        flat: list[Any] = []
        for node in nodes:
            flat.extend(node.seq if kind(node) == "SeqStmt" else [node])
        if any(kind(node) == "SeqStmt" for node in flat):
            return self.sequence(flat)
        out: list[Stmt] = []
        for i, node in enumerate(flat):
            self.locate(node)
            made = self.bind(node.var, node.value, flat[i + 1 :]) if kind(node) == "Bind" else self.one(node)
            out.extend(self.pending)
            self.pending = []
            out.extend(made)
        return out

    def locate(self, node: Any) -> None:
        """Note the author's line of a statement; lines of the front end's own files are not."""
        place = location(self.spans(node)) if self.spans is not None else None
        if place is not None and (self.user_file is None or "tilelang/language/" not in place.file):
            self.loc = place

    def one(self, node: Any) -> list[Stmt]:
        """One statement, as any number of ours."""
        what = kind(node)
        convert = _STATEMENTS.get(what)
        if convert is None:
            refuse(f"a statement of the kind {what} is not known to this importer", self.loc)
        return convert(self, node)

    def bind(self, var: Any, value: Any, rest: list[Any]) -> list[Stmt]:
        """A name for a value: put in wherever it is used, unless that would read something else."""
        at = key(var)
        self.buffers.held.append(var)
        if kind(value) == "Call" and op_name(value) == "tl.launch_thread_idx":
            self.thread_keys[at] = number(value.args[0]) or 0
            return []
        if str(var.dtype) == "handle":
            self.pointer(var, value)
            return []
        if any(key(v) not in self.values and key(v) not in self.macros and key(v) not in self.thread_keys
               for v in self.effects.variables(value)):  # fmt: skip
            # The front end binds the coordinates of T.Persistent before the loop they depend on.
            self.macros[at] = value
            self.macro_order.append((at, value))
            return []
        dtype, lanes = element_type(var, self.loc)
        if lanes > 1:
            read = frozenset(key(b.data) for b in self.effects.buffers(value))
            if self.effects.overtaken(rest, var, read):
                refuse(f"the vector {var.name} is kept while what it was read from changes", self.loc)
            self.macros[at] = value
            return []
        e = self.convert(value)
        if self.stable(e, var, rest):
            self.values[at] = self.convert.cast(e, dtype) if isinstance(e, Const) else e
            return []
        held = self.temporary(str(var.name), dtype)
        made = Store(held.buffer, held.indices, stored(e, dtype), loc=self.loc)
        self.values[at] = held
        return [made]

    def stable(self, e: Expr, var: Any, rest: list[Any]) -> bool:
        """Whether an expression means the same anywhere in the rest of its scope."""
        size = 0
        for part in walk(e):
            size += 1
            effect = isinstance(part, Call) and (part.fn in THREAD_FUNCTIONS or part.fn.startswith("extern:"))
            if effect and part.fn != "block_rank_in_cluster":  # type: ignore[attr-defined]
                return False
        if size > _INLINE_LIMIT:
            return False
        read = frozenset(at for x in loads(e) for at in self.buffers.storage_of(x.buffer))
        return not read or not self.effects.overtaken(rest, var, read)

    def pointer(self, var: Any, value: Any) -> None:
        """A pointer out of a table of them: tensors may be made of it."""
        if kind(value) == "Call" and op_name(value) == "tirx.reinterpret":
            value = value.args[0]
        if kind(value) != "BufferLoad":
            refuse(f"{var.name}: a pointer that is no entry of a tensor of pointers", self.loc)
        place = self.convert.place(value)
        self.buffers.addresses[key(var)] = place
        self.buffers.held.append(var)

    def store(self, node: Any) -> list[Stmt]:
        """An element, or a vector of them."""
        _, lanes = element_type(node.value, self.loc)
        if lanes == 1:
            return self.store_element(node)
        before = self.convert.lane
        held = any(key(v) in self.macros for v in self.effects.variables(node.value))
        if held or self.effects.shuffles(node.value):  # each element has an expression of its own
            each: list[Stmt] = []
            for i in range(lanes):
                self.convert.lane = Const(i)
                each.extend(self.store_element(node))
            self.convert.lane = before
            return each
        lane = Var(self.buffers.unique("lane"))
        self.convert.lane = lane
        body = tuple(self.store_element(node))
        self.convert.lane = before
        return [For((lane,), (Const(lanes),), "vectorized", body, loc=self.loc)]

    def store_element(self, node: Any) -> list[Stmt]:
        """One element."""
        place = self.convert.element(node)
        name, indices = place.buffer, place.indices
        dtype = self.dtype(name)
        updates = kind(node.value) == "Call" and intrinsics.is_atomic(op_name(node.value))
        if updates and self.buffers.by_name[name].scope != "global":
            return intrinsics.atomic(self, node.value, Load(name, indices))
        value = stored(self.store_value(node.value, dtype), dtype)
        made: Stmt = Store(name, indices, value, loc=self.loc)
        if name in self.reducers:
            made = self.update(name, indices, value)
        predicate = getattr(node, "predicate", None)
        return [made if predicate is None else If(self.convert(predicate), (made,), loc=self.loc)]

    def store_value(self, node: Any, dtype: str) -> Expr:
        """A value where a ``dtype`` is stored: the conversion to it goes without saying."""
        e = self.convert(node)
        while isinstance(e, Cast) and not e.bits and e.dtype == dtype and not isinstance(e.a, Const):
            e = e.a
        return e

    def update(self, name: str, indices: tuple[Expr, ...], value: Expr) -> Store:
        """``r[i] = r[i] + x`` of a reducer: every iteration adds to the one logical value."""
        own = Load(name, indices)
        if isinstance(value, Binary) and value.op in REDUCING:
            for this, other in ((value.a, value.b), (value.b, value.a)):
                if this == own:
                    other = stored(other, self.dtype(name))
                    return Store(name, indices, other, REDUCING[value.op], loc=self.loc)
        return Store(name, indices, value, loc=self.loc)

    def evaluate(self, node: Any) -> list[Stmt]:
        """A call that stands for itself."""
        call = node.value
        if kind(call) != "Call":
            return []
        name = op_name(call)
        tile_op = TILE_OPS.get(name.removeprefix("tl.tileop.")) if name.startswith("tl.tileop.") else None
        if tile_op is not None:
            return tile_op(self, call)
        if name == "tl.tileop.reducer_init":
            reducer = self.convert.region(call.args[0]).buffer
            return start_reducer(self.reducers.get(reducer, "sum").partition(":")[0])(self, call)
        if name == "tl.reducer_update":
            place = self.convert.place(call.args[0])
            dtype = self.dtype(place.buffer)
            value = stored(self.store_value(call.args[1], dtype), dtype)
            how = update_kind(self.reducers[place.buffer].partition(":")[0])
            return [Store(place.buffer, place.indices, value, how, loc=self.loc)]
        if name == "tirx.tvm_thread_allreduce":
            return all_reduce(self, call, self.combining or "sum")
        converter = intrinsics.STATEMENT_CALLS.get(name)
        if converter is not None:
            return converter(self, call)
        if intrinsics.is_atomic(name):
            return intrinsics.atomic(self, call)
        other = intrinsics.other(self, call, self.source)
        if other is not None:
            return other
        if not name.startswith("tl.tileop."):
            self.convert(call)  # a value that nobody uses; an unknown one is refused
            return []
        return refuse(
            f"{name} is not known to this importer; please report it, and meanwhile write it with "
            f"operations that are (docs/language.md)",
            self.loc,
        )

    combining = ""

    # -- control -------------------------------------------------------------------------------

    def if_(self, node: Any) -> list[Stmt]:
        """A branch."""
        loc = self.loc
        cond = self.convert.truth(node.condition)
        before, self.pending = self.pending, []
        then, role = self.branch(node.then_case)
        orelse = self.branch(node.else_case)[0] if node.else_case is not None else ()
        self.pending = before
        if isinstance(cond, Const):
            return list(then if cond.value else orelse)
        return [If(cond, then, orelse, role, loc=loc)]

    def branch(self, node: Any) -> tuple[tuple[Stmt, ...], str]:
        """The statements of a side, and whether the author marked it as some warps' part."""
        role = ""
        while kind(node) == "AttrStmt" and str(node.attr_key) == "warp_specialize":
            node, role = node.body, "warp_specialize"
        return self.block(node), role

    def while_(self, node: Any) -> list[Stmt]:
        """A loop on a condition."""
        loc = self.loc
        cond = self.convert.truth(node.condition)
        before, self.pending = self.pending, []
        body = self.block(node.body)
        self.pending = before
        return [While(cond, body, loc=loc)]

    def attribute(self, node: Any) -> list[Stmt]:
        """A note around the statements behind it."""
        name = str(node.attr_key)
        if name == "threadblock_swizzle_pattern":
            self.raster(node.value)
        elif name == "tl.min_blocks_per_sm":
            self.annotations.append(("min_blocks_per_sm", str(number(node.value))))
        elif name == "reduce_scope":
            self.combining = combiner(node.node, self.loc)
        elif name == "pragma_import_c":
            self.source = text_of(node.value)
        elif name in ("warp_specialize", "async_scope"):
            # the first is said of the branch around it; stores in the second may become asynchronous
            # copies, which nothing counts but the arrival that waits for them
            pass
        elif not name.startswith(_SILENT_ATTRIBUTES):
            refuse(f"the attribute {name} is not known to this importer", self.loc)
        return self.sequence([node.body])

    def raster(self, value: Any) -> None:
        """The order in which blocks walk the grid."""
        if kind(value) == "Call":
            pattern, *size = value.args
            name, panel = text_of(pattern), number(size[0]) if size else None
        else:  # until 0.1.9 a device function's name with its argument
            name, _, tail = text_of(value).partition("<")
            panel = int("".join(c for c in tail if c.isdigit()) or 0)
        if "Row" in name or "Column" in name:
            self.swizzle = Swizzle(panel or 1, "row" if "Row" in name else "col")
        else:
            self.annotations.append(("raster", f"{name}:{panel}"))

    def nested_block(self, node: Any) -> list[Stmt]:
        """A block inside of the kernel's: its buffers and its body."""
        block = node.block
        self.enter(block)
        return self.sequence([block.body])

    def enter(self, block: Any) -> None:
        """The allocations and notes of a block."""
        for made in block.alloc_buffers:
            self.buffers.allocation(made, self.loc)

    def declared(self, node: Any) -> list[Stmt]:
        """A buffer declared or made in place, in either form of the statement."""
        if kind(node) == "AllocBuffer":
            self.buffers.allocation(node.buffer, self.loc)
        else:
            self.buffers.name_of(node.buffer, self.loc)
        return self.sequence([node.body]) if getattr(node, "body", None) is not None else []

    def let(self, node: Any) -> list[Stmt]:
        """The older form of a name for a value."""
        return [*self.bind(node.var, node.value, [node.body]), *self.sequence([node.body])]

    def asserted(self, node: Any) -> list[Stmt]:
        """A promise to the compiler."""
        return self.sequence([node.body]) if getattr(node, "body", None) is not None else []


_STATEMENTS: dict[str, Callable[[Body, Any], list[Stmt]]] = {
    "SeqStmt": lambda body, node: body.sequence([node]),
    "BufferStore": Body.store,
    "Evaluate": Body.evaluate,
    "For": Body.for_,
    "IfThenElse": Body.if_,
    "While": Body.while_,
    "AttrStmt": Body.attribute,
    "SBlockRealize": Body.nested_block,
    "BlockRealize": Body.nested_block,
    "AllocBuffer": Body.declared,
    "DeclBuffer": Body.declared,
    "LetStmt": Body.let,
    "AssertStmt": Body.asserted,
}
