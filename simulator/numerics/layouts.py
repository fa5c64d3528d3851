"""Tensors whose elements lie in memory as an annotated layout says.

``T.annotate_layout`` of a tensor in global memory makes TileLang address it so (metadata of 2:4 sparse
operands, in the order that CUTLASS's compressor writes). Operands are given and results returned as they lie
in memory; a program's indices are its own.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from foretile.kernels.ir import TileProgram
from foretile.simulator.numerics.errors import NumericsError

_OPERATIONS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_FUNCTIONS: dict[str, Any] = {
    "min": np.minimum,
    "max": np.maximum,
    "if_then_else": np.where,
    "Select": np.where,
}


def places_in_memory(
    program: TileProgram, shapes: Mapping[str, tuple[int, ...]], bound: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """By tensor with an annotated layout: the place in memory of every element, row by row.

    Raises:
        NumericsError: the layout is none of these elements' places, or not understood.
    """
    found = {}
    for key, text in program.annotations:
        kind, _, name = key.partition(":")
        if kind == "layout" and name in shapes and text.startswith("T.Layout("):
            try:
                found[name] = _places(text, shapes[name], bound)
            except (ValueError, SyntaxError, ZeroDivisionError) as error:
                raise NumericsError(
                    f"the layout of {name} cannot be followed ({error}): {text}", program.loc
                ) from None
    return found


def as_indexed(array: np.ndarray | None, places: np.ndarray) -> np.ndarray | None:
    """What lies in memory, as the program indexes it."""
    return None if array is None else array.reshape(-1)[places].reshape(array.shape)


def as_in_memory(array: np.ndarray | None, places: np.ndarray) -> np.ndarray | None:
    """What a program has by index, as it lies in memory."""
    if array is None:
        return None
    flat = np.empty(array.size, array.dtype)
    flat[places] = array.reshape(-1)
    return flat.reshape(array.shape)


def _places(text: str, shape: tuple[int, ...], bound: Mapping[str, Any]) -> np.ndarray:
    call = ast.parse(text, mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.args[-1], ast.Lambda):
        raise ValueError("it is no function of indices")
    function = call.args[-1]
    names = [a.arg for a in function.args.args]
    if len(names) != len(shape) or not isinstance(function.body, ast.Tuple):
        raise ValueError(f"it has {len(names)} indices, the tensor {len(shape)}")
    env = {**bound, **dict(zip(names, np.indices(shape, sparse=True), strict=True))}
    parts = [np.broadcast_to(_value(e, env), shape).reshape(-1) for e in function.body.elts]
    # Row by row in the box that the places fill.
    place = np.zeros(int(np.prod(shape)), np.int64)
    for part in parts:
        place = place * (int(part.max()) + 1) + part
    if not np.array_equal(np.bincount(place, minlength=place.size), np.ones(place.size, np.int64)):
        raise ValueError("two elements would share a place")
    return place


def _value(node: ast.expr, env: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name) and node.id in env:
        return env[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, env)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left, env), _value(node.right, env))
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _OPERATIONS:
        return _OPERATIONS[type(node.ops[0])](_value(node.left, env), _value(node.comparators[0], env))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _FUNCTIONS:
        return _FUNCTIONS[node.func.attr](*(_value(a, env) for a in node.args))
    raise ValueError(f"{ast.unparse(node)} is not understood")
