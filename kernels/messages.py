"""Short renderings of expressions for error messages (the printer writes programs)."""

from __future__ import annotations

from foretile.kernels.expr import Binary, Call, Cast, Const, Expr, Load, Var


def text(e: Expr) -> str:
    """A short rendering of ``e`` for messages."""
    if isinstance(e, Const):
        return str(e.value)
    if isinstance(e, Var):
        return e.name
    if isinstance(e, Binary):
        symbols = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%"}
        if e.op in symbols:
            return f"({text(e.a)} {symbols[e.op]} {text(e.b)})"
        return f"{e.op}({text(e.a)}, {text(e.b)})"
    if isinstance(e, Call):
        return f"{e.fn}({', '.join(text(a) for a in e.args)})"
    if isinstance(e, Cast):
        return f"reinterpret({text(e.a)}, {e.dtype})" if e.bits else f"{e.dtype}({text(e.a)})"
    if isinstance(e, Load):
        return f"{e.buffer}[{', '.join(text(i) for i in e.indices)}]"
    return repr(e)


def shape_text(shape: tuple[Expr, ...] | list[Expr]) -> str:
    """``(128, n)`` for messages."""
    inside = ", ".join(text(e) for e in shape)
    return f"({inside},)" if len(shape) == 1 else f"({inside})"
