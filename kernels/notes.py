"""What an author notes about a kernel: raster, layouts, bounds, promises, switches of the compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from foretile.kernels.errors import fail
from foretile.kernels.expr import Const, Var
from foretile.kernels.handles import side
from foretile.kernels.ir import Swizzle
from foretile.kernels.messages import text
from foretile.kernels.print_expr import expression_text
from foretile.kernels.tracer import current
from foretile.kernels.values import Index, Value, constant, to_expr


def use_swizzle(panel_size: int, order: str = "row", enable: bool = True) -> None:
    """Walk the grid in panels of ``panel_size`` rows or columns: blocks near in time share L2 lines."""
    tracer = current("T.use_swizzle")
    tracer.need_kernel("T.use_swizzle")
    if not enable:
        return
    if isinstance(panel_size, bool) or not isinstance(panel_size, int) or panel_size < 1:
        fail(f"panel_size={panel_size!r} of T.use_swizzle must be a whole number of at least 1")
    if order not in ("row", "col", "column"):
        fail(f"order={order!r} of T.use_swizzle; use 'row' or 'col'")
    if tracer.swizzle is not None:
        fail("T.use_swizzle is given twice")
    tracer.swizzle = Swizzle(panel_size, "row" if order == "row" else "col")


def annotate_min_blocks_per_sm(blocks: int) -> None:
    """So many blocks are to run on a core at once, which limits the registers of a thread."""
    tracer = current("T.annotate_min_blocks_per_sm")
    tracer.need_kernel("T.annotate_min_blocks_per_sm")
    if isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 1:
        fail(f"T.annotate_min_blocks_per_sm({blocks!r}): a whole number of at least 1 is needed")
    tracer.annotations.append(("min_blocks_per_sm", str(blocks)))


class Layout:
    """Where the elements of a buffer lie: ``T.Layout(shape, lambda i, j: (…))``."""

    def __init__(self, shape: Any, forward_fn: Callable[..., Any]) -> None:
        self.shape = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
        names = [f"i{d}" for d in range(len(self.shape))]
        found = forward_fn(*(Index(Var(n), "dimension") for n in names))
        parts = found if isinstance(found, tuple | list) else (found,)
        self.text = (
            f"T.Layout({_sizes(self.shape)}, lambda {', '.join(names)}: ({', '.join(map(_shown, parts))},))"
        )


class Fragment:
    """Which thread holds an element, and where: ``T.Fragment(shape, lambda i, j: (thread, index))``."""

    def __init__(
        self,
        shape: Any,
        forward_fn: Callable[..., Any] | None = None,
        forward_thread_fn: Callable[..., Any] | None = None,
        replicate: int = 1,
        forward_index_fn: Callable[..., Any] | None = None,
    ) -> None:
        self.shape = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
        names = [f"i{d}" for d in range(len(self.shape))] + (["rep"] if replicate != 1 else [])
        given = [Index(Var(n), "dimension") for n in names]
        if forward_fn is not None:
            thread, index = forward_fn(*given)
        elif forward_thread_fn is not None:
            thread = forward_thread_fn(*given)
            index = forward_index_fn(*given[: len(self.shape)]) if forward_index_fn is not None else ()
        else:
            fail("T.Fragment needs forward_fn, or forward_thread_fn")
        parts = index if isinstance(index, tuple | list) else (index,)
        inside = f"({_shown(thread)}, ({', '.join(map(_shown, parts))},))"
        rep = f", replicate={replicate}" if replicate != 1 else ""
        self.text = f"T.Fragment({_sizes(self.shape)}, lambda {', '.join(names)}: {inside}{rep})"


class SwizzledLayout(Layout):
    """A layout without bank conflicts, whatever the chip wants it to be."""

    def __init__(self) -> None:
        self.text = "swizzled"


def _sizes(shape: tuple[Any, ...]) -> str:
    return f"({', '.join(map(_shown, shape))}{',' if len(shape) == 1 else ''})"


def _shown(value: Any) -> str:
    return expression_text(to_expr(value))


def make_swizzled_layout(buffer: Any, *_args: Any, **_kwargs: Any) -> SwizzledLayout:
    """A bank-conflict-free layout of a shared tile."""
    return SwizzledLayout()


def _annotate(call: str, kind: str, values: Any, show: Any) -> None:
    tracer = current(call)
    tracer.need_kernel(call)
    if not isinstance(values, Mapping):
        fail(f"{call} takes a dictionary from buffers to values")
    for key, value in values.items():
        handle, _, _ = side(key, f"key of {call}")
        tracer.annotations.append((f"{kind}:{handle.name}", show(value)))


def _number(value: Any) -> str:
    e = value.expr if isinstance(value, Value) else constant(value)
    if not isinstance(e, Const):
        fail(f"annotation value {text(e)} must be a constant")
    return repr(int(e.value) if isinstance(e.value, bool) else e.value)


def _layout(value: Any) -> str:
    if not isinstance(value, Layout | Fragment):
        fail(
            f"layout {value!r} of T.annotate_layout is not known; use T.Layout, T.Fragment or "
            f"T.make_swizzled_layout"
        )
    return value.text


def annotate_layout(layout_map: Mapping[Any, Any], **_hints: Any) -> None:
    """Note the layout of shared tiles."""
    _annotate("T.annotate_layout", "layout", layout_map, _layout)


def annotate_l2_hit_ratio(l2_hit_ratio_map: Mapping[Any, Any]) -> None:
    """Note the share of a tensor that should stay in L2."""
    _annotate("T.annotate_l2_hit_ratio", "l2_hit_ratio", l2_hit_ratio_map, _number)


def annotate_safe_value(safe_value_map: Mapping[Any, Any]) -> None:
    """Note what reading outside a tensor's bounds gives instead of zero."""
    _annotate("T.annotate_safe_value", "safe_value", safe_value_map, _number)


def assume(condition: Any) -> None:
    """A promise to the compiler; nothing to trace."""


def annotate_pass_configs(switches: Mapping[str, Any]) -> None:
    """The compiler's switches that the kernel is to be compiled with, by name."""
    tracer = current("T.annotate_pass_configs")
    for name, value in switches.items():
        tracer.annotations.append((f"pass:{getattr(name, 'value', name)}", repr(value)))


def annotate_raster(order: str) -> None:
    """An order of blocks that only the device knows."""
    current("T.annotate_raster").annotations.append(("raster", repr(order)))


def role(name: str) -> None:
    """Mark the branch this stands in as the part of some of the block's warps."""
    tracer = current("T.role")
    tracer.need_kernel("T.role")
    tracer.roles[-1] = name


def annotate_restrict_buffers(*_buffers: Any) -> None:
    """A promise about pointers; nothing to trace."""


def import_source(source: str | None = None) -> None:
    """Inline device code for ``T.call_extern`` and ``T.extern``."""
    current("T.import_source").source = source or ""


__all__ = [
    "Fragment",
    "Layout",
    "annotate_l2_hit_ratio",
    "annotate_layout",
    "annotate_min_blocks_per_sm",
    "annotate_pass_configs",
    "annotate_raster",
    "annotate_restrict_buffers",
    "annotate_safe_value",
    "assume",
    "import_source",
    "make_swizzled_layout",
    "role",
    "use_swizzle",
]
"""The names that are part of the language."""
