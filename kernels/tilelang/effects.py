"""What a node touches: the storage it writes, the variables it uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from foretile.kernels.tilelang.nodes import key, kind, number, op_name

_PARTS = ("a", "b", "value", "condition", "true_value", "false_value", "base", "stride", "body")
# The arguments of tile operations are regions that say how they are used; of these calls they are not.
_WRITES_FIRST = ("tl.reducer_update",)


class Effects:
    """Answers are kept by node: a body is asked about as often as it binds names."""

    def __init__(self) -> None:
        self._written: dict[int, frozenset[int]] = {}
        self._mentioned: dict[int, frozenset[int]] = {}
        self._held: list[Any] = []

    def written(self, node: Any) -> frozenset[int]:
        """The storage variables (by identity) that a statement writes."""
        at = key(node) if hasattr(node, "__chandle__") else id(node)
        found = self._written.get(at)
        if found is None:
            found = self._written[at] = frozenset(self._writes(node))
            self._held.append(node)
        return found

    def _writes(self, node: Any) -> Iterator[int]:
        what = kind(node)
        if what == "SeqStmt":
            for part in node.seq:
                yield from self.written(part)
        elif what == "BufferStore":
            yield key(node.buffer.data)
            yield from self._in_value(node.value)
        elif what == "Evaluate":
            yield from self._in_value(node.value)
        elif what in ("For", "While", "AttrStmt", "LetStmt"):
            yield from self.written(node.body)
        elif what == "IfThenElse":
            yield from self.written(node.then_case)
            if node.else_case is not None:
                yield from self.written(node.else_case)
        elif what in ("SBlockRealize", "BlockRealize"):
            yield from self.written(node.block.body)
        elif what == "Bind":
            yield from self._in_value(node.value)

    def _in_value(self, node: Any) -> Iterator[int]:
        for call in _calls(node):
            name = op_name(call)
            if name == "tl.region":
                if (number(call.args[1]) or 0) & 2:
                    yield from _storage(call.args[0])
            elif name == "tl.access_ptr":
                if (number(call.args[-1]) or 3) & 2:
                    yield from _storage(call.args[0])
            elif name == "tirx.tvm_access_ptr":
                if (number(call.args[4]) or 3) & 2:
                    yield key(call.args[1])
            elif name in ("tirx.address_of", *_WRITES_FIRST):
                yield from _storage(call.args[0])
            elif name == "tirx.tvm_thread_allreduce":
                for argument in call.args:
                    yield from _storage(argument)

    def variables(self, node: Any) -> Iterator[Any]:
        """The variables of an expression."""
        what = kind(node)
        if what == "Var":
            yield node
        elif what == "BufferLoad":
            for i in node.indices:
                yield from self.variables(i)
        elif what == "Call":
            for a in node.args:
                if kind(a) != "StringImm":
                    yield from self.variables(a)
        elif what == "Shuffle":
            for a in node.vectors:
                yield from self.variables(a)
        else:
            for name in _PARTS:
                part = getattr(node, name, None)
                if part is not None and hasattr(part, "__chandle__"):
                    yield from self.variables(part)

    def mentioned(self, node: Any) -> frozenset[int]:
        """The variables (by identity) that a statement uses."""
        at = key(node) if hasattr(node, "__chandle__") else id(node)
        found = self._mentioned.get(at)
        if found is None:
            found = self._mentioned[at] = frozenset(self._mentions(node))
            self._held.append(node)
        return found

    def _mentions(self, node: Any) -> Iterator[int]:
        what = kind(node)
        parts: list[Any] = []
        if what == "SeqStmt":
            parts = list(node.seq)
        elif what == "BufferStore":
            parts = [node.value, *node.indices]
        elif what == "For":
            parts = [node.min, node.extent, node.body]
        elif what == "IfThenElse":
            parts = [node.condition, node.then_case, node.else_case]
        elif what == "While":
            parts = [node.condition, node.body]
        elif what in ("SBlockRealize", "BlockRealize"):
            parts = [node.block.body]
        elif what in ("Evaluate", "Bind"):
            parts = [node.value]
        elif what in ("AttrStmt", "LetStmt"):
            parts = [node.value, node.body]
        else:
            for var in self.variables(node):
                yield key(var)
        for part in parts:
            if part is not None and not isinstance(part, bool | int | float | str):
                yield from self.mentioned(part)

    def overtaken(self, statements: list[Any], var: Any, storage: frozenset[int]) -> bool:
        """Whether ``storage`` is written before the last use of a variable that was read from it."""
        at = key(var)
        uses = [i for i, node in enumerate(statements) if at in self.mentioned(node)]
        if not uses:
            return False
        last = statements[uses[-1]]
        if any(self.written(node) & storage for node in statements[: uses[-1]]):
            return True
        if not self.written(last) & storage:
            return False
        what = kind(last)
        if what == "SeqStmt":
            return self.overtaken(list(last.seq), var, storage)
        if what == "AttrStmt":
            return self.overtaken([last.body], var, storage)
        if what == "IfThenElse":
            sides = [side for side in (last.then_case, last.else_case) if side is not None]
            return any(self.overtaken([side], var, storage) for side in sides)
        if what in ("For", "While"):  # the next iteration would read what this one writes
            return what == "While" or at in self.mentioned(last.body)
        return what not in ("BufferStore", "Evaluate", "Bind")

    def buffers(self, node: Any) -> Iterator[Any]:
        """The buffers that a statement or an expression touches."""
        what = kind(node)
        if what == "SeqStmt":
            for part in node.seq:
                yield from self.buffers(part)
            return
        if what in ("BufferLoad", "BufferStore", "DeclBuffer"):
            yield node.buffer
        if what in ("SBlockRealize", "BlockRealize"):
            yield from self.buffers(node.block.body)
            return
        if what == "Call":
            for a in node.args:
                yield from self.buffers(a)
        for name in (*_PARTS, "then_case", "else_case", "extent", "min"):
            part = getattr(node, name, None)
            if part is not None and hasattr(part, "__chandle__"):
                yield from self.buffers(part)

    def shuffles(self, node: Any) -> bool:
        """Whether a vector in an expression is put together of others' elements."""
        what = kind(node)
        if what == "Shuffle":
            return True
        parts = list(node.args) if what == "Call" else [getattr(node, name, None) for name in _PARTS]
        return any(p is not None and hasattr(p, "__chandle__") and self.shuffles(p) for p in parts)

    def uses(self, node: Any, var: Any) -> bool:
        """Whether an expression depends on a variable."""
        return any(key(v) == key(var) for v in self.variables(node))


def _calls(node: Any) -> Iterator[Any]:
    what = kind(node)
    if what == "Call":
        yield node
        for a in node.args:
            yield from _calls(a)
    elif what == "BufferLoad":
        for i in node.indices:
            yield from _calls(i)
    else:
        for name in _PARTS:
            part = getattr(node, name, None)
            if part is not None and hasattr(part, "__chandle__"):
                yield from _calls(part)


def _storage(node: Any) -> Iterator[int]:
    if kind(node) == "BufferLoad":
        yield key(node.buffer.data)
    elif kind(node) == "Call" and node.args:
        yield from _storage(node.args[0])
