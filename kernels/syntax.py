"""The syntax-tree side of rewriting: which calls of :mod:`control` stand for which statement.

``if c: a`` becomes ``br = branch(c)`` and ``for _ in br.then(): a`` — a loop that runs once when the
branch is taken or recorded. Names assigned in branches and loops that are only recorded are taken
away afterwards (see :class:`~foretile.kernels.values.Poison`), because their body is traced once.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

from foretile.kernels.nodes import (
    INNER_SCOPES,
    assigned_names,
    call,
    delayed,
    is_alloc_var,
    jump_in,
    load_name,
    load_tuple,
    method,
    runtime,
    store_name,
    store_tuple,
    strings,
    target_names,
    walk_until,
)

_OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
    ast.Eq: "eq",
    ast.NotEq: "ne",
}


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
            for node in walk_until(function.body, INNER_SCOPES)
            if isinstance(node, ast.Global | ast.Nonlocal)
            for name in node.names
        }
        self.variables = self._variables()

    def _variables(self) -> set[str]:
        """Names that may stand for a ``T.alloc_var``: assigning to them stores."""
        found = self.parameters & set(assigned_names(self.function.body))
        for node in walk_until(self.function.body, INNER_SCOPES):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name) and is_alloc_var(node.value):
                        found.add(target.id)
                    elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                        for t, v in zip(target.elts, node.value.elts, strict=False):
                            if isinstance(t, ast.Name) and is_alloc_var(v):
                                found.add(t.id)
            elif (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and is_alloc_var(node.value)
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
            first = ast.Assign(targets=[store_name(n) for n in names], value=runtime("UNBOUND"))
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
        names = [n for n in assigned_names(nodes) if n not in self.variables and n not in self.outside]
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
        jump = jump_in([*node.body, *node.orelse])
        test = self.visit(node.test)
        if jump in ("break", "continue"):
            return self._leaving(node, test)
        if jump:
            node.test = ast.copy_location(call("concrete", test, ast.Constant(value=jump)), node.test)
            node.body = self._block(node.body)
            node.orelse = self._block(node.orelse)
            return node
        names = self._tracked([*node.body, *node.orelse])
        run, before, then = self._fresh("if"), self._fresh("before"), self._fresh("then")
        out: list[ast.stmt] = [ast.Assign(targets=[store_name(run)], value=call("branch", test))]
        if names:
            out.append(ast.Assign(targets=[store_name(before)], value=load_tuple(names)))
        out.append(self._once(method(run, "then"), self._block(node.body)))
        if names:
            out.append(ast.Assign(targets=[store_name(then)], value=load_tuple(names)))
        if node.orelse:
            if names:
                restore = ast.Assign(targets=[store_tuple(names)], value=load_name(before))
                symbolic = ast.Attribute(value=load_name(run), attr="symbolic", ctx=ast.Load())
                out.append(ast.If(test=symbolic, body=[restore], orelse=[]))
            out.append(self._once(method(run, "orelse"), self._block(node.orelse)))
        else:
            out.append(ast.Expr(value=method(run, "end")))
        if names:
            after = load_tuple(names) if node.orelse else load_name(before)
            merged = method(run, "merge", strings(names), load_name(before), load_name(then), after)
            out.append(ast.Assign(targets=[store_tuple(names)], value=merged))
        return out

    def _leaving(self, node: ast.If, test: ast.expr) -> list[ast.stmt]:
        """An ``if`` out of which a loop is left: its branches are no loops of their own."""
        names = self._tracked([*node.body, *node.orelse])
        run, before, then = self._fresh("if"), self._fresh("before"), self._fresh("then")
        symbolic = ast.Attribute(value=load_name(run), attr="symbolic", ctx=ast.Load())
        out: list[ast.stmt] = [ast.Assign(targets=[store_name(run)], value=call("branch", test))]
        if names:
            out.append(ast.Assign(targets=[store_name(before)], value=load_tuple(names)))
        first = [*self._block(node.body), ast.Expr(value=method(run, "leave"))]
        out.append(ast.If(test=method(run, "enter"), body=first, orelse=[]))
        if names:
            out.append(ast.Assign(targets=[store_name(then)], value=load_tuple(names)))
        if node.orelse:
            if names:
                restore = ast.Assign(targets=[store_tuple(names)], value=load_name(before))
                out.append(ast.If(test=symbolic, body=[restore], orelse=[]))
            second = [*self._block(node.orelse), ast.Expr(value=method(run, "leave_else"))]
            out.append(ast.If(test=method(run, "enter_else"), body=second, orelse=[]))
        else:
            out.append(ast.Expr(value=method(run, "end")))
        if names:
            after = load_tuple(names) if node.orelse else load_name(before)
            merged = method(run, "merge", strings(names), load_name(before), load_name(then), after)
            out.append(ast.Assign(targets=[store_tuple(names)], value=merged))
        return out

    @staticmethod
    def _once(iterable: ast.expr, body: list[ast.stmt]) -> ast.For:
        return ast.For(target=store_name("__ft_once"), iter=iterable, body=body, orelse=[])

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
                    func=runtime("call_range"),
                    args=[node.iter.func, *node.iter.args],
                    keywords=node.iter.keywords,
                ),
                node.iter,
            )
        targets = target_names(node.target)
        iterable = call("loop", source, strings(targets))
        return self._loop(node, ast.copy_location(iterable, node.iter), list(targets or ()))

    def visit_While(self, node: ast.While) -> list[ast.stmt]:
        """Record or run the loop."""
        test = delayed(self.visit(node.test))
        return self._loop(node, ast.copy_location(call("while_", test), node.test), [])

    def _loop(self, node: ast.For | ast.While, iterable: ast.expr, targets: list[str]) -> list[ast.stmt]:
        run = self._fresh("loop")
        carried = self._tracked(node.body)
        self.unbound.update(dict.fromkeys(targets))
        self.loops.append(run)
        self.indices.extend(targets)
        body = self._block(node.body)
        del self.indices[len(self.indices) - len(targets) :]
        self.loops.pop()
        traced = ast.Attribute(value=load_name(run), attr="traced", ctx=ast.Load())
        inner = [n for n in carried if n not in targets]
        if inner:
            enter = ast.Assign(targets=[store_tuple(inner)], value=method(run, "enter", strings(inner)))
            start = ast.If(test=traced, body=[enter], orelse=[])
            body.insert(0, self._placed(start, node))
        target = node.target if isinstance(node, ast.For) else store_name("__ft_once")
        loop = ast.For(target=target, iter=load_name(run), body=body, orelse=self._block(node.orelse))
        begin: ast.stmt = ast.copy_location(ast.Assign(targets=[store_name(run)], value=iterable), iterable)
        out = [begin, loop]
        names = list(dict.fromkeys([*carried, *targets]))
        if names:
            left = method(run, "leave", strings(names), load_tuple(names))
            out.append(ast.Assign(targets=[store_tuple(names)], value=left))
        return out

    def visit_Break(self, node: ast.Break) -> ast.stmt:
        """Leave a Python loop; record that a recorded one is left."""
        test = call("leaves", ast.Constant(value="break"), load_name(self.loops[-1]))
        return ast.If(test=test, body=[node], orelse=[])

    def visit_Continue(self, node: ast.Continue) -> ast.stmt:
        """End an iteration of a Python loop; record that of a recorded one."""
        test = call("leaves", ast.Constant(value="continue"), load_name(self.loops[-1]))
        return ast.If(test=test, body=[node], orelse=[])

    def visit_Return(self, node: ast.Return) -> list[ast.stmt] | ast.stmt:
        """Check that all loops left are Python loops."""
        node.value = self.visit(node.value) if node.value is not None else None
        return [self._check("return", self.loops), node] if self.loops else node

    @staticmethod
    def _check(jump: str, runs: Sequence[str]) -> ast.Expr:
        return ast.Expr(value=call("check_jump", ast.Constant(value=jump), *(load_name(r) for r in runs)))

    def visit_With(self, node: ast.With) -> ast.With:
        """Tell ``T.Kernel`` the names of its indices."""
        names: list[str] = []
        for item in node.items:
            target = item.optional_vars
            found = target_names(target) if target is not None else None
            names.extend(found or ())
            shown = ast.Constant(value=target.id) if isinstance(target, ast.Name) else strings(found)
            item.context_expr = ast.copy_location(
                call("block", self.visit(item.context_expr), shown), item.context_expr
            )
        self.indices.extend(names)
        node.body = self._block(node.body)
        del self.indices[len(self.indices) - len(names) :]
        return node

    def visit_Try(self, node: ast.Try) -> ast.Try:
        """Its blocks are statements like any others."""
        node.body, node.orelse = self._block(node.body), self._block(node.orelse)
        node.finalbody = self._block(node.finalbody)
        for handler in node.handlers:
            handler.body = self._block(handler.body)
        return node

    def visit_Match(self, node: ast.Match) -> ast.Match:
        """Decided at trace time; its cases are statements like any others."""
        node.subject = self.visit(node.subject)
        for case in node.cases:
            case.guard = self.visit(case.guard) if case.guard is not None else None
            case.body = self._block(case.body)
        return node

    # -- assignments --------------------------------------------------------------------------

    def visit_Assign(self, node: ast.Assign) -> list[ast.stmt] | ast.stmt:
        """Stores to variables, names of buffers, reads to watch."""
        value = self.visit(node.value)
        targets = [self.visit(t) for t in node.targets]
        checks = [c for t in targets for c in self._index_checks(t)]
        names = target_names(targets[0])
        if len(targets) == 1 and isinstance(targets[0], ast.Name):
            return [*checks, self._assign(targets[0].id, value)]
        involved = {n for t in targets for n in target_names(t) or ()} & self.variables
        if not involved:
            if names is not None and len(names) > 1:
                node.value = call("names", strings(names), value)
            elif names is not None:
                node.value = call("name", ast.Constant(value=names[0]), value)
            else:
                node.value = value
            node.targets = targets
            return [*checks, node]
        held = self._fresh("value")
        out: list[ast.stmt] = [*checks, ast.Assign(targets=[store_name(held)], value=value)]
        for target in targets:
            found = target_names(target)
            if isinstance(target, ast.Name):
                out.append(self._assign(target.id, load_name(held)))
            elif found is not None:
                for i, name in enumerate(found):
                    item = ast.Subscript(value=load_name(held), slice=ast.Constant(value=i), ctx=ast.Load())
                    out.append(self._assign(name, item))
            else:
                out.append(ast.Assign(targets=[target], value=load_name(held)))
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
        value = ast.BinOp(left=load_name(name), op=node.op, right=node.value)
        return [*checks, self._assign(name, ast.copy_location(value, node))]

    def _assign(self, name: str, value: ast.expr) -> ast.Assign:
        if name in self.variables:
            if name not in self.parameters:
                self.unbound[name] = None
            value = call("assign", ast.Constant(value=name), value, load_name(name))
        elif not isinstance(value, ast.Constant | ast.Lambda | ast.JoinedStr):
            value = call("name", ast.Constant(value=name), value)
        return ast.Assign(targets=[store_name(name)], value=value)

    def _index_checks(self, target: ast.expr) -> list[ast.stmt]:
        names = target_names(target) or ()
        return [
            ast.Expr(value=call("check_index", ast.Constant(value=n), load_name(n)))
            for n in names
            if n in self.indices
        ]

    # -- expressions --------------------------------------------------------------------------

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        """``and``/``or`` with the short circuit decided at trace time where possible."""
        values = [self.visit(v) for v in node.values]
        function = "and_" if isinstance(node.op, ast.And) else "or_"
        return ast.copy_location(call(function, values[0], *(delayed(v) for v in values[1:])), node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        """``not``."""
        node.operand = self.visit(node.operand)
        return ast.copy_location(call("not_", node.operand), node) if isinstance(node.op, ast.Not) else node

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        """``a if c else b``."""
        test, a, b = (self.visit(n) for n in (node.test, node.body, node.orelse))
        return ast.copy_location(call("choose", test, delayed(a), delayed(b)), node)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        """Chained comparisons."""
        self.generic_visit(node)
        kinds = [_OPERATORS.get(type(op)) for op in node.ops]
        if len(kinds) == 1 or None in kinds:
            return node
        return ast.copy_location(
            call("chain", strings([k for k in kinds if k]), node.left, *node.comparators), node
        )
