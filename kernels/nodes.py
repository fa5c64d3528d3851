"""Small syntax trees: questions about statements, and the calls that rewriting puts in."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import cast

RUNTIME = "__ft__"
INNER_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def walk_until(nodes: Iterable[ast.AST], stop: tuple[type[ast.AST], ...]) -> Iterable[ast.AST]:
    """``nodes`` and what is below, not looking into ``stop`` nodes (which are still yielded)."""
    for node in nodes:
        yield node
        if not isinstance(node, stop):
            yield from walk_until(ast.iter_child_nodes(node), stop)


def assigned_names(nodes: Iterable[ast.AST]) -> list[str]:
    """Names assigned by statements, in order, not those of inner functions and comprehensions."""
    names = (
        n.id
        for n in walk_until(nodes, INNER_SCOPES + COMPREHENSIONS)
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    )
    return list(dict.fromkeys(names))


def jump_in(nodes: Iterable[ast.stmt]) -> str:
    """``break``, ``continue`` or ``return`` that leaves ``nodes``; empty if none does.

    A ``return`` is named before the others.
    """
    nodes = list(nodes)
    if any(isinstance(node, ast.Return) for node in walk_until(nodes, INNER_SCOPES)):
        return "return"
    for node in walk_until(nodes, (*INNER_SCOPES, ast.For, ast.While)):
        if isinstance(node, ast.Break):
            return "break"
        if isinstance(node, ast.Continue):
            return "continue"
    return ""


def target_names(target: ast.expr) -> tuple[str, ...] | None:
    """Names a target assigns, ``None`` if it is not made of plain names."""
    if isinstance(target, ast.Name):
        return (target.id,)
    if isinstance(target, ast.Tuple | ast.List) and all(isinstance(e, ast.Name) for e in target.elts):
        return tuple(cast(ast.Name, e).id for e in target.elts)
    return None


def load_name(name: str) -> ast.Name:
    """The name, read."""
    return ast.Name(id=name, ctx=ast.Load())


def store_name(name: str) -> ast.Name:
    """The name, assigned."""
    return ast.Name(id=name, ctx=ast.Store())


def runtime(function: str) -> ast.Attribute:
    """A function of :mod:`control`."""
    return ast.Attribute(value=load_name(RUNTIME), attr=function, ctx=ast.Load())


def call(function: str, *args: ast.expr) -> ast.Call:
    """A call of a function of :mod:`control`."""
    return ast.Call(func=runtime(function), args=list(args), keywords=[])


def method(owner: str, function: str, *args: ast.expr) -> ast.Call:
    """A method call on a local object."""
    callee = ast.Attribute(value=load_name(owner), attr=function, ctx=ast.Load())
    return ast.Call(func=callee, args=list(args), keywords=[])


def delayed(body: ast.expr) -> ast.Lambda:
    """``lambda: body``."""
    empty = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    return ast.copy_location(ast.Lambda(args=empty, body=body), body)


def strings(names: Sequence[str] | None) -> ast.expr:
    """The names as a tuple of texts (``None`` stays ``None``)."""
    if names is None:
        return ast.Constant(value=None)
    return ast.Tuple(elts=[ast.Constant(value=n) for n in names], ctx=ast.Load())


def load_tuple(names: Sequence[str]) -> ast.Tuple:
    """``(a, b)``, read."""
    return ast.Tuple(elts=[load_name(n) for n in names], ctx=ast.Load())


def store_tuple(names: Sequence[str]) -> ast.Tuple:
    """``a, b = ...``."""
    return ast.Tuple(elts=[store_name(n) for n in names], ctx=ast.Store())


def is_alloc_var(value: ast.expr | None) -> bool:
    """Whether ``value`` is a call of ``T.alloc_var``."""
    if not isinstance(value, ast.Call):
        return False
    callee = value.func
    return (isinstance(callee, ast.Attribute) and callee.attr == "alloc_var") or (
        isinstance(callee, ast.Name) and callee.id == "alloc_var"
    )
