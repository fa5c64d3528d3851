"""What an author tells the compiler beside what a kernel computes: keyword arguments as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foretile.kernels.errors import fail
from foretile.kernels.expr import Const
from foretile.kernels.ir import Hints
from foretile.kernels.notes import Fragment, Layout
from foretile.kernels.print_expr import expression_text
from foretile.kernels.values import Value


def hints(annotations: Mapping[str, Any] | None = None, **given: Any) -> Hints:
    """Hints in alphabetical order; what is ``None`` was not given, ``annotations`` go before."""
    found = {**given, **(annotations or {})}
    return tuple((name, _text(name, value)) for name, value in sorted(found.items()) if value is not None)


def _text(name: str, value: Any) -> str:
    if isinstance(value, Layout | Fragment):
        return value.text
    if isinstance(value, Value):
        if not isinstance(value.expr, Const):
            return expression_text(value.expr)
        value = value.expr.value
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_text(name, v) for v in value) + "]"
    if isinstance(value, bool | int | float | str):
        return repr(value)
    fail(f"{name}={value!r} is no hint that a program can carry")
