"""What TileLang's compiler says of a kernel it has lowered, as plain data. Runs where TileLang is imported.

Numbers that depend on symbolic dimensions are nested lists: a whole number, a dimension's name, or
``[operation, operand, …]`` with the operations of :data:`foretile.kernels.expr.BINARY_OPS` and ``if``.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

TENSOR_MAP_CALL = "__tvm_tensormap_create_tiled"
_OPERATIONS = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "FloorDiv": "floordiv", "FloorMod": "mod", "Div": "floordiv",
    "Mod": "mod", "Min": "min", "Max": "max", "LT": "lt", "LE": "le", "GT": "gt", "GE": "ge", "EQ": "eq",
    "NE": "ne", "And": "and", "Or": "or",
}  # fmt: skip
# Scopes of on-chip buffers as our programs name them.
_SCOPES = {"shared": "shared", "shared.dyn": "shared", "local.fragment": "fragment", "local": "local"}


class UnreadError(ValueError):
    """Something in the lowered module that is not known; the message names it."""


def plain(e: Any) -> Any:
    """A whole-number expression over symbolic dimensions as nested lists.

    Raises:
        UnreadError: an operation that is none of whole numbers.
    """
    if isinstance(e, int):
        return e
    kind = type(e).__name__
    if kind == "IntImm":
        return int(e.value)
    if kind == "Var":
        return str(e.name)
    if kind == "Cast":
        return plain(e.value)
    if kind in _OPERATIONS:
        return [_OPERATIONS[kind], plain(e.a), plain(e.b)]
    if kind == "Select":
        return ["if", plain(e.condition), plain(e.true_value), plain(e.false_value)]
    if kind == "Call" and str(e.op.name) in ("tirx.if_then_else", "tirx.shift_right", "tirx.bitwise_and"):
        name = {"if_then_else": "if", "shift_right": "shr", "bitwise_and": "bitand"}[e.op.name[5:]]
        return [name, *(plain(a) for a in e.args)]
    raise UnreadError(f"{kind} in a launch's sizes: {e}")


def read_launch(made: Any, function: Any) -> dict[str, Any]:
    """Symbol, extents, shared memory, arguments and tensor maps of the one kernel of ``made``.

    Raises:
        UnreadError: there are several kernels, or a part of the launch is not known.
    """
    from tilelang import tvm

    device = list(made.device_mod.functions.values())
    if len(device) != 1:
        raise UnreadError(f"{len(device)} kernels came out of one program; one was expected")
    kernel = device[0]
    symbol = str(kernel.attrs["global_symbol"])
    host = next(iter(made.host_mod.functions.values()))
    calls: dict[str, list[Any]] = {}

    def visit(node: Any) -> None:
        if isinstance(node, tvm.tirx.Call) and node.args and isinstance(node.args[0], tvm.tirx.StringImm):
            calls.setdefault(str(node.args[0].value), []).append(node)

    tvm.tirx.stmt_functor.post_order_visit(host.body, visit)
    maps = {_name(call.args[1]): list(call.args[2:]) for call in calls.get(TENSOR_MAP_CALL, [])}
    other = [name for name in calls if name.startswith("__tvm_tensormap") and name != TENSOR_MAP_CALL]
    if other:
        raise UnreadError(f"a tensor map made by {other[0]}")
    given = list(calls[symbol][0].args[1 : 1 + len(kernel.params)])
    extents = kernel.attrs["thread_extent"]
    axes = [[plain(extents[f"{axis}.{d}"]) if f"{axis}.{d}" in extents else 1 for d in "xyz"]
            for axis in ("blockIdx", "threadIdx")]  # fmt: skip
    cluster = kernel.attrs.get("cluster_dims")
    shared = kernel.attrs.get("dyn_shared_memory_buf")
    return {
        "symbol": symbol,
        "grid": axes[0],
        "block": axes[1],
        "cluster": [1, 1, 1] if cluster is None else [int(n) for n in cluster],
        "shared_bytes": 0 if shared is None else plain(shared),
        "args": [_argument(arg, maps) for arg in given],
        "tensors": [str(buffer.data.name) for buffer in _buffers(function)],
    }


def _buffers(function: Any) -> list[Any]:
    return [function.buffer_map[p] for p in function.params if p in function.buffer_map]


def _name(e: Any) -> str:
    return str(e.name)


def _argument(arg: Any, maps: dict[str, list[Any]]) -> dict[str, Any]:
    name = getattr(arg, "name", "")
    if name in maps:
        return {"kind": "tensor_map", **_tensor_map(maps[name])}
    if type(arg).__name__ == "Var" and str(arg.dtype) == "handle":
        return {"kind": "tensor", "name": str(name)}
    return {"kind": "scalar", "ctype": str(arg.dtype), "name": str(name), "value": plain(arg)}


def _tensor_map(fields: list[Any]) -> dict[str, Any]:
    """The arguments of ``cuTensorMapEncodeTiled`` in order, the innermost stride (an element) among them."""
    dtype, rank = int(fields[0]), int(fields[1])
    parts = [[plain(e) for e in fields[3 + i * rank : 3 + (i + 1) * rank]] for i in range(4)]
    rest = [int(e) for e in fields[3 + 4 * rank :]]
    names = ("global_dim", "global_strides_bytes", "box_dim", "element_strides")
    return {
        "tensor": _name(fields[2]),
        "dtype": dtype,
        "rank": rank,
        **dict(zip(names, parts, strict=True)),
        **dict(zip(("interleave", "swizzle", "l2_promotion", "oob_fill"), rest, strict=True)),
    }


def read_layouts(module: Any) -> dict[str, Any]:
    """Threads, warp roles, barriers and buffers (versions, layouts) of a module after layout inference."""
    from tilelang import tvm

    function = next(iter(module.functions.values()))
    found: dict[str, Any] = {"threads": 1, "roles": [], "barriers": [], "buffers": [], "operations": {}}
    layouts: dict[str, Any] = {}
    operations: Counter[str] = Counter()
    seen: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, tvm.tirx.AttrStmt) and str(node.attr_key) == "thread_extent":
            if str(node.node.thread_tag).startswith("threadIdx") and str(node.node.thread_tag) not in seen:
                seen.add(str(node.node.thread_tag))
                found["threads"] *= int(node.value)
        elif isinstance(node, tvm.tirx.AttrStmt) and str(node.attr_key) == "kWarpSpecializationScope":
            found["roles"] = [int(n) for n in node.node]
        elif isinstance(node, tvm.tirx.SBlock):
            for data, layout in dict(node.annotations.get("layout_map") or {}).items():
                layouts[str(data.name)] = layout
            for counts in dict(node.annotations.get("barrier_init") or {}).values():
                found["barriers"] = [int(n) for n in counts]
            for buffer in node.alloc_buffers:
                found["buffers"].append(buffer)
        elif isinstance(node, tvm.tirx.Call) and str(getattr(node.op, "name", "")).startswith("tl.tileop."):
            operations[str(node.op.name).removeprefix("tl.tileop.")] += 1

    tvm.tirx.stmt_functor.post_order_visit(function.body, visit)
    unique = {str(b.data.name): b for b in found["buffers"] if str(b.scope()) in _SCOPES}
    found["buffers"] = [_buffer(b, layouts.get(name)) for name, b in sorted(unique.items())]
    found["operations"] = dict(sorted(operations.items()))
    return found


def _buffer(buffer: Any, layout: Any) -> dict[str, Any]:
    shape = [int(n) for n in buffer.shape]
    scope = _SCOPES[str(buffer.scope())]
    described: dict[str, Any] = {
        "name": str(buffer.name), "dtype": str(buffer.dtype), "scope": scope, "shape": shape,
    }  # fmt: skip
    if layout is None:
        return described
    if scope == "fragment":
        stored = 1
        for extent in layout.get_output_shape():
            stored *= int(extent)
        return {**described, "elements_per_thread": stored}
    return {**described, "layout": _swizzle(buffer, layout)}


def _swizzle(buffer: Any, layout: Any) -> str:
    """The name of a shared tile's layout: linear, a swizzle of so many bytes, or something else."""
    from tilelang.layout import (
        make_full_bank_swizzled_layout,
        make_half_bank_swizzled_layout,
        make_linear_layout,
        make_quarter_bank_swizzled_layout,
    )

    known = (
        ("linear", make_linear_layout),
        ("swizzle 128B", make_full_bank_swizzled_layout),
        ("swizzle 64B", make_half_bank_swizzled_layout),
        ("swizzle 32B", make_quarter_bank_swizzled_layout),
    )
    for name, make in known:
        try:
            if layout.is_equal(make(buffer)):
                return name
        except Exception:  # a layout that this tile cannot have
            continue
    return "other"
