"""Loops of a kernel's body: of every kind, with steps, over threads, over dealt points."""

from __future__ import annotations

from typing import Any

from foretile.kernels.expr import Binary, Const, Expr, Var, walk
from foretile.kernels.ir import For, Hints, Loc, LoopKind, Stmt
from foretile.kernels.tilelang.buffers import Buffers
from foretile.kernels.tilelang.effects import Effects
from foretile.kernels.tilelang.expressions import Expressions
from foretile.kernels.tilelang.nodes import annotations_of, element_type, key, kind, number, refuse
from foretile.kernels.tilelang.persistent import recognise
from foretile.kernels.tilelang.tileops import hints_of

_KINDS: tuple[LoopKind, ...] = ("serial", "parallel", "vectorized", "unroll")
_LOOP_HINTS = {
    "pragma_unroll_explicit": "explicit",
    "pragma_unroll_factor": "unroll_factor",
    "tl_pipeline_order": "order",
    "tl_pipeline_stage": "stage",
    "parallel_prefer_async": "prefer_async",
    "parallel_loop_layout": "loop_layout",
}


class Loops:
    """The part of the importer that converts loops."""

    convert: Expressions
    buffers: Buffers
    effects: Effects
    loc: Loc | None
    values: dict[int, Expr]
    macros: dict[int, Any]
    macro_order: list[tuple[int, Any]]
    thread_keys: dict[int, int]
    pending: list[Stmt]

    def block(self, node: Any) -> tuple[Stmt, ...]:
        """The statements of a node."""
        raise NotImplementedError

    def sequence(self, nodes: Any) -> list[Stmt]:
        """Statements in order."""
        raise NotImplementedError

    def layout_text(self, layout: Any, name: str) -> str:
        """A layout as the language writes it."""
        raise NotImplementedError

    def store_value(self, node: Any, dtype: str) -> Expr:
        """A value where a ``dtype`` is stored."""
        raise NotImplementedError

    def for_(self, node: Any) -> list[Stmt]:
        """A loop, or a nest of parallel ones."""
        loc = self.loc
        nest = [node]
        place = int(node.kind)
        if place == 4:
            return self.bound_to_threads(node)
        while place == 1 and kind(nest[-1].body) == "For" and int(nest[-1].body.kind) == 1:
            if nest[-1].body.annotations:
                break
            nest.append(nest[-1].body)
        before, self.pending = self.pending, []
        variables, extents = [], []
        for level in nest:
            var = level.loop_var
            extents.append(self.convert(level.extent))
            self.buffers.held.append(var)
        for level in nest:
            var = level.loop_var
            made = Var(self.buffers.unique(str(var.name)), element_type(var, loc)[0])
            variables.append(made)
            self.values[key(var)] = made
        noted = annotations_of(node)
        dealt = self.persistent(node, variables[0], loc) if place == 0 and self.macro_order else None
        if dealt is not None:
            self.pending = before
            return [dealt]
        found = self.plain(node, nest, variables, extents, noted, loc)
        self.pending = before
        return [found]

    def plain(
        self,
        node: Any,
        nest: list[Any],
        variables: list[Var],
        extents: list[Expr],
        noted: dict[str, Any],
        loc: Loc | None,
    ) -> For:
        """A loop that is what it looks like."""
        start = self.convert(node.min)
        step = number(node.step) if getattr(node, "step", None) is not None else 1
        if step is None:
            refuse("the step of a loop must be a constant to be imported", loc)
        loop_kind: LoopKind = _KINDS[int(node.kind)]
        stages = 0
        scheduled = "tl_pipeline_order" in noted or "tl_pipeline_stage" in noted
        if "num_stages" in noted or scheduled:
            loop_kind, stages = "pipelined", number(noted.pop("num_stages", 0)) or 0
        body = nest[-1].body
        stepped = self.stepped(body, variables) if loop_kind in ("serial", "unroll") else None
        if stepped is not None:
            body, start, step = stepped
        made = self.block(body)
        first = None if start == Const(0) else start
        hints = self.loop_hints(noted)
        kinds = (tuple(variables), tuple(extents), loop_kind, made, stages, 0, first, step)
        return For(*kinds, hints, loc=loc)

    def loop_hints(self, noted: dict[str, Any]) -> Hints:
        """A loop's annotations as keyword arguments."""
        named = {_LOOP_HINTS.get(name, name): value for name, value in noted.items()}
        return hints_of(named, self)

    def stepped(self, body: Any, variables: list[Var]) -> tuple[Any, Expr, int] | None:
        """The author's index of a loop with a step, which begins with a name for it."""
        parts = list(body.seq) if kind(body) == "SeqStmt" else [body]
        first = parts[0]
        if kind(first) != "Bind" or not variables[0].name.startswith("_tmp"):
            return None
        e = self.convert(first.value)
        loop = variables[0]
        start: Expr = Const(0)
        if isinstance(e, Binary) and e.op in ("add", "sub") and loop not in walk(e.a):
            sign = 1 if e.op == "add" else -1
            start, advance = e.a, e.b
        else:
            sign, advance = 1, e
        if advance == loop:
            step = 1
        elif isinstance(advance, Binary) and advance.op == "mul" and isinstance(advance.b, Const):
            if advance.a != loop:
                return None
            step = int(advance.b.value)
        else:
            return None
        made = Var(self.buffers.unique(str(first.var.name)), loop.dtype)
        variables[0] = made
        self.values[key(first.var)] = made
        self.buffers.held.append(first.var)
        rest = parts[1:]
        return _Sequence(rest), start, sign * step

    def persistent(self, node: Any, loop: Var, loc: Loc | None) -> For | None:
        """A loop that deals the points of a domain to blocks, as the author wrote it."""
        bound = [(at, value) for at, value in self.macro_order if self.effects.uses(value, node.loop_var)]
        if not bound:
            return None
        # The front end binds the last coordinate first.
        points = [self.convert(value) for _, value in reversed(bound)]
        body = node.body
        guard: Expr | None = None
        while kind(body) == "IfThenElse" and body.else_case is None:
            cond = self.convert.truth(body.condition)
            if loop not in walk(cond):
                break
            guard, body = cond, body.then_case
            if isinstance(cond, Binary) and cond.a == points[-1]:
                break
        dealt = recognise(loop, points, guard)
        if dealt is None:
            return None
        names = {at: var for (at, _), var in zip(reversed(bound), self.macro_names(bound), strict=True)}
        for at, var in names.items():
            del self.macros[at]
            self.values[at] = var
        self.macro_order = [item for item in self.macro_order if item[0] not in names]
        variables = list(names.values())
        stages = annotations_of(node).get("num_stages")
        hints = () if stages is None or not number(stages) else (("num_stages", str(number(stages))),)
        # Ours names the grouped coordinate first (see For in statements.py).
        order = (variables[-1], *variables[:-1]), (dealt.domain[-1], *dealt.domain[:-1])
        return For(*order, "persistent", self.block(body), group_size=dealt.group_size, hints=hints, loc=loc)

    def macro_names(self, bound: list[tuple[int, Any]]) -> list[Var]:
        """Loop variables for the coordinates of a dealt domain."""
        return [Var(self.buffers.unique(name)) for name in ("i", "j", "k", "l")[: len(bound)]]

    def bound_to_threads(self, node: Any) -> list[Stmt]:
        """A loop over the threads of the block: its body is what each of them does."""
        axis, _, place = str(node.thread_binding.thread_tag).partition(".")
        if axis != "threadIdx":
            refuse("a loop over blocks inside of a kernel", self.loc)
        self.thread_keys[key(node.loop_var)] = "xyz".index(place)
        self.buffers.held.append(node.loop_var)
        return self.sequence([node.body])


class _Sequence:
    """What is left of a sequence, as a statement."""

    def __init__(self, seq: list[Any]) -> None:
        self.seq = seq


_Sequence.__name__ = "SeqStmt"
