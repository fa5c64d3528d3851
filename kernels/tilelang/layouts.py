"""Layouts that the author annotates, as expressions over the indices of a buffer."""

from __future__ import annotations

from typing import Any

from foretile.kernels.expr import Const, Expr, Var, evaluate
from foretile.kernels.ir import Buffer
from foretile.kernels.print_expr import expression_text
from foretile.kernels.tilelang.expressions import Expressions
from foretile.kernels.tilelang.nodes import key, kind, number

# Element types that TileLang names with a suffix.
_SUFFIXED = {
    "float8_e4m3": "float8_e4m3fn",
    "float8_e8m0": "float8_e8m0fnu",
    "float4_e2m1": "float4_e2m1fn",
}


def layout_text(layout: Any, convert: Expressions) -> str:
    """``T.Layout((64, 32), lambda i0, i1: (i0, i1 ^ i0))``, and ``T.Fragment`` of fragments."""
    inside = _Inside(convert, layout)
    sizes = [inside.text(n) for n in layout.get_input_shape()]
    shape = f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
    names = ", ".join(f"i{d}" for d in range(len(sizes)))
    index = ", ".join(inside.text(e) for e in layout.get_forward_index())
    if kind(layout) == "Layout":
        return f"T.Layout({shape}, lambda {names}: ({index},))"
    replicate = number(layout.replicate_size) or 1
    rep = f", replicate={replicate}" if replicate != 1 else ""
    names = f"{names}, rep" if replicate != 1 else names
    thread = inside.text(layout.thread)
    return f"T.Fragment({shape}, lambda {names}: ({thread}, ({index},)){rep})"


def is_swizzled(layout: Any, buffer: Buffer) -> bool:
    """Whether it is what ``make_swizzled_layout`` gives for a shared tile."""
    from tilelang import tvm
    from tilelang.layout import make_swizzled_layout

    if buffer.scope != "shared" or not all(isinstance(e, Const) for e in buffer.shape):
        return False
    shape = [int(evaluate(e, {})) for e in buffer.shape]
    made = getattr(tvm, "tirx", None) or tvm.tir
    tile = made.decl_buffer(shape, _SUFFIXED.get(buffer.dtype, buffer.dtype), scope="shared.dyn")
    try:
        return bool(layout.is_equal(make_swizzled_layout(tile)))
    except Exception:  # a tile that has no such layout
        return False


class _Inside:
    """Expressions over a layout's own variables."""

    def __init__(self, convert: Expressions, layout: Any) -> None:
        self.convert = convert
        # A fragment's layout has the number of a copy beside its indices; others know the kernel's sizes.
        self.outer = convert.names if kind(layout) == "Layout" else None
        self.values: dict[int, Expr] = {}
        for d, var in enumerate(layout.get_forward_vars()):
            self.values[key(var)] = Var(f"i{d}" if d < len(layout.get_input_shape()) else "rep")

    def text(self, node: Any) -> str:
        outer = self.convert.names
        self.convert.names = self  # type: ignore[assignment]
        try:
            e = self.convert(node)
        finally:
            self.convert.names = outer
        return expression_text(e)

    loc = None

    def variable(self, var: Any) -> Expr:
        known = self.values.get(key(var))
        if known is not None:
            return known
        return Var("rep") if self.outer is None else self.outer.variable(var)

    def dtype(self, name: str) -> str:
        return "int32"


__all__ = ["Const", "layout_text"]
