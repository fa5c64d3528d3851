"""TVM's syntax trees, read without importing TVM: what a node is, what it is called, where it stands.

Everything here takes the objects as they are and asks them for attributes, so that the importer itself
needs neither TileLang nor TVM; whoever made the objects has imported both.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

from foretile.kernels.dtypes import dtype as look_up_dtype
from foretile.kernels.errors import TraceError
from foretile.kernels.ir import Loc

_VECTOR = re.compile(r"x(\d+)$")
_CUSTOM = re.compile(r"custom\[(\w+)\]\d+$")
# Names of TVM's types that are other spellings of ours, or other ways to hold the same numbers.
_SPELLINGS = {
    "float4_e2m1_unpacked": "float4_e2m1",  # one element a byte instead of two
    "float8_e8m0fnu": "float8_e8m0",
    "float4_e2m1fn": "float4_e2m1",
    "int1": "bool",
    "uint1": "bool",
}
_KNOWN: dict[str, tuple[str, int]] = {}


def kind(node: Any) -> str:
    """The class of a node: ``BufferLoad``, ``Call``, …"""
    return type(node).__name__


def key(node: Any) -> int:
    """What tells a node from others: two Python objects may stand for one node."""
    return int(node.__chandle__())


def element_type(node: Any, loc: Loc | None) -> tuple[str, int]:
    """Canonical dtype and vector lanes of an expression or a buffer.

    Raises:
        TraceError: a type that tile programs do not have.
    """
    text = str(node.dtype)
    found = _KNOWN.get(text)
    if found is None:
        found = _KNOWN[text] = _read_type(text, loc)
    return found


def _read_type(text: str, loc: Loc | None) -> tuple[str, int]:
    vector = _VECTOR.search(text)
    lanes = int(vector.group(1)) if vector else 1
    name = text[: vector.start()] if vector else text
    custom = _CUSTOM.match(name)
    if custom:
        name = custom.group(1)
    try:
        return look_up_dtype(_SPELLINGS.get(name, name)).name, lanes
    except ValueError as error:
        raise TraceError(str(error), loc) from None


def op_name(call: Any) -> str:
    """The operator that a call calls, ``tl.tileop.copy``; of a function its own name."""
    op = call.op
    name = getattr(op, "name", None) or getattr(op, "name_hint", None)
    return str(name if name is not None else op)


def text_of(node: Any) -> str:
    """A string argument, with or without its node."""
    return str(getattr(node, "value", node))


def number(node: Any) -> int | None:
    """The value of an integer literal, ``None`` if it is no literal."""
    if isinstance(node, bool | int):
        return int(node)
    return int(node.value) if kind(node) == "IntImm" else None


def annotations_of(node: Any) -> dict[str, Any]:
    """What is noted on a call, a loop or a block, by name."""
    noted = getattr(node, "annotations", None)
    return {} if noted is None else {str(k): v for k, v in noted.items()}


def location(span: Any) -> Loc | None:
    """A span of TVM's as a line."""
    if span is None or span.source_name is None:
        return None
    return Loc(str(span.source_name.name), int(span.line))


def refuse(reason: str, loc: Loc | None) -> NoReturn:
    """Raise :class:`~foretile.kernels.errors.TraceError`."""
    raise TraceError(reason, loc)
