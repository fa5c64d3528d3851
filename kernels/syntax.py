"""The syntax-tree side of rewriting: which calls of :mod:`control` stand for which statement.

``if c: a`` becomes ``br = branch(c)`` and ``for _ in br.then(): a`` — a loop that runs once when the
branch is taken or recorded. Names assigned in branches and loops that are only recorded are taken
away afterwards (see :class:`~foretile.kernels.values.Poison`), because their body is traced once.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import cast

RUNTIME = "__ft__"
_OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
    ast.Eq: "eq",
    ast.NotEq: "ne",
}
_INNER_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def _walk(nodes: Iterable[ast.AST], stop: tuple[type[ast.AST], ...]) -> Iterable[ast.AST]:
    """``nodes`` and what is below, not looking into ``stop`` nodes (which are still yielded)."""
    for node in nodes:
        yield node
        if not isinstance(node, stop):
            yield from _walk(ast.iter_child_nodes(node), stop)


def _assigned(nodes: Iterable[ast.AST]) -> list[str]:
    """Names assigned by statements, in order, not those of inner functions and comprehensions."""
    names = (
        n.id
        for n in _walk(nodes, _INNER_SCOPES + _COMPREHENSIONS)
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    )
    return list(dict.fromkeys(names))


def _jump(nodes: Iterable[ast.stmt]) -> str:
    """``break``, ``continue`` or ``return`` that leaves ``nodes``; empty if none does."""
    for node in _walk(nodes, (*_INNER_SCOPES, ast.For, ast.While)):
        if isinstance(node, ast.Break):
            return "break"
        if isinstance(node, ast.Continue):
            return "continue"
        if isinstance(node, ast.Return):
            return "return"
        if isinstance(node, ast.For | ast.While):
            for inner in _walk(node.body + node.orelse, _INNER_SCOPES):
                if isinstance(inner, ast.Return):
                    return "return"
    return ""


def _target_names(target: ast.expr) -> tuple[str, ...] | None:
    if isinstance(target, ast.Name):
        return (target.id,)
    if isinstance(target, ast.Tuple | ast.List) and all(isinstance(e, ast.Name) for e in target.elts):
        return tuple(cast(ast.Name, e).id for e in target.elts)
    return None


def _name(name: str) -> ast.Name:
    return ast.Name(id=name, ctx=ast.Load())


def _store(name: str) -> ast.Name:
    return ast.Name(id=name, ctx=ast.Store())


def _runtime(function: str) -> ast.Attribute:
    return ast.Attribute(value=_name(RUNTIME), attr=function, ctx=ast.Load())


def _call(function: str, *args: ast.expr) -> ast.Call:
    return ast.Call(func=_runtime(function), args=list(args), keywords=[])


def _method(owner: str, function: str, *args: ast.expr) -> ast.Call:
    callee = ast.Attribute(value=_name(owner), attr=function, ctx=ast.Load())
    return ast.Call(func=callee, args=list(args), keywords=[])


def _delayed(body: ast.expr) -> ast.Lambda:
    empty = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    return ast.copy_location(ast.Lambda(args=empty, body=body), body)


def _strings(names: Sequence[str] | None) -> ast.expr:
    if names is None:
        return ast.Constant(value=None)
    return ast.Tuple(elts=[ast.Constant(value=n) for n in names], ctx=ast.Load())


def _loads(names: Sequence[str]) -> ast.Tuple:
    return ast.Tuple(elts=[_name(n) for n in names], ctx=ast.Load())


def _stores(names: Sequence[str]) -> ast.Tuple:
    return ast.Tuple(elts=[_store(n) for n in names], ctx=ast.Store())


def _is_alloc_var(value: ast.expr | None) -> bool:
    if not isinstance(value, ast.Call):
        return False
    callee = value.func
    return (isinstance(callee, ast.Attribute) and callee.attr == "alloc_var") or (
        isinstance(callee, ast.Name) and callee.id == "alloc_var"
    )


class Rewriter(ast.NodeTransformer):
    """Rewrites one function in place."""

    def __init__(self, function: ast.FunctionDef) -> None:
        self.function = function
        self.counter = 0
        self.loops: list[str] = []  # the run objects of the enclosing loops, outermost first
        self.indices: list[str] = []  # names that are indices of enclosing loops or of the grid
        self.unbound: dict[str, None] = {}  # names that need a value before their first assignment
        arguments = function.args
        self.parameters = {
            a.arg
            for a in (
                *arguments.posonlyargs,
                *arguments.args,
                *arguments.kwonlyargs,
                arguments.vararg,
                arguments.kwarg,
            )
            if a is not None
        }
        self.outside = {
            name
            for node in _walk(function.body, _INNER_SCOPES)
            if isinstance(node, ast.Global | ast.Nonlocal)
            for name in node.names
        }
        self.variables = self._variables()

    def _variables(self) -> set[str]:
        """Names that may stand for a ``T.alloc_var``: assigning to them stores."""
        found = self.parameters & set(_assigned(self.function.body))
        for node in _walk(self.function.body, _INNER_SCOPES):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name) and _is_alloc_var(node.value):
                        found.add(target.id)
                    elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                        for t, v in zip(target.elts, node.value.elts, strict=False):
                            if isinstance(t, ast.Name) and _is_alloc_var(v):
                                found.add(t.id)
            elif (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and _is_alloc_var(node.value)
            ):
                found.add(node.target.id)
        return found - self.outside

    def run(self) -> None:
        """Rewrite the function; annotations, defaults and decorators are dropped."""
        function = self.function
        function.decorator_list = []
        function.returns = None
        arguments = function.args
        for a in (
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            arguments.vararg,
            arguments.kwarg,
        ):
            if a is not None:
                a.annotation = None
        # Defaults are bound with the function object; only their count must not be compiled in.
        arguments.defaults = []
        arguments.kw_defaults = [None] * len(arguments.kwonlyargs)
        body = self._block(function.body)
        names = [n for n in self.unbound if n not in self.parameters and n not in self.outside]
        if names:
            first = ast.Assign(targets=[_store(n) for n in names], value=_runtime("UNBOUND"))
            body.insert(0, ast.copy_location(first, function.body[0]))
        function.body = body

    def _block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        new: list[ast.stmt] = []
        for stmt in body:
            result = self.visit(stmt)
            for made in result if isinstance(result, list) else [result]:
                new.append(self._placed(made, stmt))
        return new

    @staticmethod
    def _placed(node: ast.stmt, origin: ast.stmt) -> ast.stmt:
        if not hasattr(node, "lineno"):
            ast.copy_location(node, origin)
            if isinstance(origin, ast.If | ast.For | ast.While | ast.With):
                # The statement's own line, not the span of its body.
                node.end_lineno, node.end_col_offset = origin.lineno, origin.col_offset
        return ast.fix_missing_locations(node)

    def _fresh(self, kind: str) -> str:
        self.counter += 1
        return f"__ft_{kind}{self.counter}"

    def _tracked(self, nodes: Iterable[ast.AST]) -> list[str]:
        names = [n for n in _assigned(nodes) if n not in self.variables and n not in self.outside]
        self.unbound.update(dict.fromkeys(names))
        return names

    # -- statements ---------------------------------------------------------------------------

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Inner functions run as they are."""
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        """Inner functions run as they are."""
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Inner classes run as they are."""
        return node

    def visit_If(self, node: ast.If) -> list[ast.stmt] | ast.stmt:
        """Record or run the branches."""
        jump = _jump([*node.body, *node.orelse])
        test = self.visit(node.test)
        if jump:
            node.test = ast.copy_location(_call("concrete", test, ast.Constant(value=jump)), node.test)
            node.body = self._block(node.body)
            node.orelse = self._block(node.orelse)
            return node
        names = self._tracked([*node.body, *node.orelse])
        run, before, then = self._fresh("if"), self._fresh("before"), self._fresh("then")
        out: list[ast.stmt] = [ast.Assign(targets=[_store(run)], value=_call("branch", test))]
        if names:
            out.append(ast.Assign(targets=[_store(before)], value=_loads(names)))
        out.append(self._once(_method(run, "then"), self._block(node.body)))
        if names:
            out.append(ast.Assign(targets=[_store(then)], value=_loads(names)))
        if node.orelse:
            if names:
                restore = ast.Assign(targets=[_stores(names)], value=_name(before))
                symbolic = ast.Attribute(value=_name(run), attr="symbolic", ctx=ast.Load())
                out.append(ast.If(test=symbolic, body=[restore], orelse=[]))
            out.append(self._once(_method(run, "orelse"), self._block(node.orelse)))
        else:
            out.append(ast.Expr(value=_method(run, "end")))
        if names:
            after = _loads(names) if node.orelse else _name(before)
            merged = _method(run, "merge", _strings(names), _name(before), _name(then), after)
            out.append(ast.Assign(targets=[_stores(names)], value=merged))
        return out

    @staticmethod
    def _once(iterable: ast.expr, body: list[ast.stmt]) -> ast.For:
        return ast.For(target=_store("__ft_once"), iter=iterable, body=body, orelse=[])

    def visit_For(self, node: ast.For) -> list[ast.stmt]:
        """Record or run the loop."""
        source = self.visit(node.iter)
        if (
            isinstance(node.iter, ast.Call)
            and isinstance(node.iter.func, ast.Name)
            and node.iter.func.id == "range"
        ):
            source = ast.copy_location(
                ast.Call(
                    func=_runtime("call_range"),
                    args=[node.iter.func, *node.iter.args],
                    keywords=node.iter.keywords,
                ),
                node.iter,
            )
        targets = _target_names(node.target)
        iterable = _call("loop", source, _strings(targets))
        return self._loop(node, ast.copy_location(iterable, node.iter), list(targets or ()))

    def visit_While(self, node: ast.While) -> list[ast.stmt]:
        """Record or run the loop."""
        test = _delayed(self.visit(node.test))
        return self._loop(node, ast.copy_location(_call("while_", test), node.test), [])

    def _loop(self, node: ast.For | ast.While, iterable: ast.expr, targets: list[str]) -> list[ast.stmt]:
        run = self._fresh("loop")
        carried = self._tracked(node.body)
        self.unbound.update(dict.fromkeys(targets))
        self.loops.append(run)
        self.indices.extend(targets)
        body = self._block(node.body)
        del self.indices[len(self.indices) - len(targets) :]
        self.loops.pop()
        traced = ast.Attribute(value=_name(run), attr="traced", ctx=ast.Load())
        inner = [n for n in carried if n not in targets]
        if inner:
            enter = ast.Assign(targets=[_stores(inner)], value=_method(run, "enter", _strings(inner)))
            start = ast.If(test=traced, body=[enter], orelse=[])
            body.insert(0, self._placed(start, node))
        target = node.target if isinstance(node, ast.For) else _store("__ft_once")
        loop = ast.For(target=target, iter=_name(run), body=body, orelse=self._block(node.orelse))
        begin: ast.stmt = ast.copy_location(ast.Assign(targets=[_store(run)], value=iterable), iterable)
        out = [begin, loop]
        names = list(dict.fromkeys([*carried, *targets]))
        if names:
            left = _method(run, "leave", _strings(names), _loads(names))
            out.append(ast.Assign(targets=[_stores(names)], value=left))
        return out

    def visit_Break(self, node: ast.Break) -> list[ast.stmt]:
        """Check that the loop left is a Python loop."""
        return [self._check("break", self.loops[-1:]), node]

    def visit_Return(self, node: ast.Return) -> list[ast.stmt] | ast.stmt:
        """Check that all loops left are Python loops."""
        node.value = self.visit(node.value) if node.value is not None else None
        return [self._check("return", self.loops), node] if self.loops else node

    @staticmethod
    def _check(jump: str, runs: Sequence[str]) -> ast.Expr:
        return ast.Expr(value=_call("check_jump", ast.Constant(value=jump), *(_name(r) for r in runs)))

    def visit_With(self, node: ast.With) -> ast.With:
        """Tell ``T.Kernel`` the names of its indices."""
        names: list[str] = []
        for item in node.items:
            target = item.optional_vars
            found = _target_names(target) if target is not None else None
            names.extend(found or ())
            shown: ast.expr
            if isinstance(target, ast.Name):
                shown = ast.Constant(value=target.id)
            else:
                shown = _strings(found)
            item.context_expr = ast.copy_location(
                _call("block", self.visit(item.context_expr), shown), item.context_expr
            )
        self.indices.extend(names)
        node.body = self._block(node.body)
        del self.indices[len(self.indices) - len(names) :]
        return node

    # -- assignments --------------------------------------------------------------------------

    def visit_Assign(self, node: ast.Assign) -> list[ast.stmt] | ast.stmt:
        """Stores to variables, names of buffers, reads to watch."""
        value = self.visit(node.value)
        targets = [self.visit(t) for t in node.targets]
        checks = [c for t in targets for c in self._index_checks(t)]
        names = _target_names(targets[0])
        if len(targets) == 1 and isinstance(targets[0], ast.Name):
            return [*checks, self._assign(targets[0].id, value)]
        involved = {n for t in targets for n in _target_names(t) or ()} & self.variables
        if not involved:
            if names is not None and len(names) > 1:
                node.value = _call("names", _strings(names), value)
            elif names is not None:
                node.value = _call("name", ast.Constant(value=names[0]), value)
            else:
                node.value = value
            node.targets = targets
            return [*checks, node]
        held = self._fresh("value")
        out: list[ast.stmt] = [*checks, ast.Assign(targets=[_store(held)], value=value)]
        for target in targets:
            found = _target_names(target)
            if isinstance(target, ast.Name):
                out.append(self._assign(target.id, _name(held)))
            elif found is not None:
                for i, name in enumerate(found):
                    item = ast.Subscript(value=_name(held), slice=ast.Constant(value=i), ctx=ast.Load())
                    out.append(self._assign(name, item))
            else:
                out.append(ast.Assign(targets=[target], value=_name(held)))
        return out

    def visit_AnnAssign(self, node: ast.AnnAssign) -> list[ast.stmt] | ast.stmt:
        """As a plain assignment; the annotation of a local name says nothing here."""
        if node.value is None or not isinstance(node.target, ast.Name):
            node.value = self.visit(node.value) if node.value is not None else None
            return node
        value = self.visit(node.value)
        return [*self._index_checks(node.target), self._assign(node.target.id, value)]

    def visit_AugAssign(self, node: ast.AugAssign) -> list[ast.stmt] | ast.stmt:
        """``x += e`` of a variable is a store."""
        node.value = self.visit(node.value)
        if not isinstance(node.target, ast.Name):
            node.target = self.visit(node.target)
            return node
        name = node.target.id
        checks = self._index_checks(node.target)
        if name not in self.variables:
            return [*checks, node]
        value = ast.BinOp(left=_name(name), op=node.op, right=node.value)
        return [*checks, self._assign(name, ast.copy_location(value, node))]

    def _assign(self, name: str, value: ast.expr) -> ast.Assign:
        if name in self.variables:
            if name not in self.parameters:
                self.unbound[name] = None
            value = _call("assign", ast.Constant(value=name), value, _name(name))
        elif not isinstance(value, ast.Constant | ast.Lambda | ast.JoinedStr):
            value = _call("name", ast.Constant(value=name), value)
        return ast.Assign(targets=[_store(name)], value=value)

    def _index_checks(self, target: ast.expr) -> list[ast.stmt]:
        names = _target_names(target) or ()
        return [
            ast.Expr(value=_call("check_index", ast.Constant(value=n), _name(n)))
            for n in names
            if n in self.indices
        ]

    # -- expressions --------------------------------------------------------------------------

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        """``and``/``or`` with the short circuit decided at trace time where possible."""
        values = [self.visit(v) for v in node.values]
        function = "and_" if isinstance(node.op, ast.And) else "or_"
        return ast.copy_location(_call(function, values[0], *(_delayed(v) for v in values[1:])), node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        """``not``."""
        node.operand = self.visit(node.operand)
        return ast.copy_location(_call("not_", node.operand), node) if isinstance(node.op, ast.Not) else node

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        """``a if c else b``."""
        test, a, b = (self.visit(n) for n in (node.test, node.body, node.orelse))
        return ast.copy_location(_call("choose", test, _delayed(a), _delayed(b)), node)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        """Chained comparisons."""
        self.generic_visit(node)
        kinds = [_OPERATORS.get(type(op)) for op in node.ops]
        if len(kinds) == 1 or None in kinds:
            return node
        return ast.copy_location(
            _call("chain", _strings([k for k in kinds if k]), node.left, *node.comparators), node
        )
