"""Tile operations (``tl.tileop.*``) as statements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import Call, Const, Expr, binary
from foretile.kernels.infer import is_float
from foretile.kernels.ir import (
    AtomicAdd,
    Copy,
    CumSum,
    Fill,
    FinalizeReducer,
    Gemm,
    GemmMode,
    Hints,
    Im2col,
    Loc,
    Reduce,
    Region,
    Stmt,
    Transpose,
)
from foretile.kernels.tilelang.buffers import Buffers
from foretile.kernels.tilelang.expressions import Expressions
from foretile.kernels.tilelang.nodes import annotations_of, kind, number, op_name, refuse, text_of

_POLICIES = {0: "square", 1: "full_row", 2: "full_col"}
_REDUCERS = {"sum": "add", "max": "max", "min": "min", "bitand": "and", "bitor": "or", "bitxor": "xor"}
_EVICTION = {0: "evict_normal", 1: "evict_first", 2: "evict_last"}


class Context(Protocol):
    """What converting an operation needs of the importer."""

    convert: Expressions
    buffers: Buffers
    loc: Loc | None

    def layout_text(self, layout: Any, name: str) -> str:
        """A layout as the language writes it."""

    def store_value(self, node: Any, dtype: str) -> Expr:
        """A value where a ``dtype`` is stored."""


Converter = Callable[[Context, Any], list[Stmt]]


def hints_of(noted: dict[str, Any], context: Context, skip: Sequence[str] = ()) -> Hints:
    """Annotations as keyword arguments; those in ``skip`` have fields of their own."""
    found = []
    for name, value in sorted(noted.items()):
        if name not in skip:
            found.append((name, literal(value, context, name)))
    return tuple(found)


def literal(value: Any, context: Context, name: str = "") -> str:
    """An annotation's value as Python text."""
    if name == "eviction_policy":
        return repr(_EVICTION.get(number(value) or 0, "evict_normal"))
    what = kind(value)
    if what in ("int", "float", "str", "bool", "NoneType"):
        return repr(value)
    if what == "IntImm":
        return repr(bool(value.value) if str(value.dtype) == "bool" else int(value.value))
    if what == "FloatImm":
        return repr(float(value.value))
    if what in ("StringImm", "String"):
        return repr(str(text_of(value)))
    if what in ("Layout", "Fragment", "PartialFragment"):
        return context.layout_text(value, name)
    if what in ("Array", "list", "tuple", "List"):
        return "[" + ", ".join(literal(v, context) for v in value) + "]"
    return repr(str(value))


def copy(context: Context, node: Any) -> list[Stmt]:
    """``tl.tileop.copy`` and its asynchronous kin."""
    noted = annotations_of(node)
    source, target = context.convert.region(node.args[0]), context.convert.region(node.args[1])
    mode = {"async_copy": "async", "tma_copy": "tma"}.get(op_name(node).rpartition(".")[2], "")
    barrier = noted.get("barrier")
    # Version 0.1.14 passes hints of copies in places behind the regions, if at all.
    skip = ("barrier", "is_gather4", "is_scatter4", "gather4_rows", "gather4_col", "dst_block")
    made = Copy(
        source,
        target,
        mode,  # type: ignore[arg-type]
        None if barrier is None else context.convert.place(barrier),
        hints_of(noted, context, skip),
        loc=context.loc,
    )
    if noted.get("dst_block") is not None:
        block = context.convert(noted["dst_block"])
        made = replace(made, hints=(*made.hints, ("dst_block", _constant(block, "dst_block", context))))
    if "is_gather4" in noted or "is_scatter4" in noted:
        return _rows(context, made, noted)
    return [made]


def _rows(context: Context, made: Copy, noted: dict[str, Any]) -> list[Stmt]:
    """A copy of four rows that lie apart, as four copies of a row."""
    rows = [context.convert(r) for r in noted["gather4_rows"]]
    column = context.convert(noted["gather4_col"])
    gather = "is_gather4" in noted
    near, far = (made.dst, made.src) if gather else (made.src, made.dst)
    width = near.extents[-1]
    found: list[Stmt] = []
    for i, row in enumerate(rows):
        here = Region(near.buffer, (binary("add", near.mins[0], Const(i)), near.mins[1]), (Const(1), width))
        there = Region(far.buffer, (row, column), (Const(1), width))
        source, target = (there, here) if gather else (here, there)
        # Their bytes are announced by the author, for all four at once.
        hints = (*made.hints, ("expect_bytes", "False"))
        found.append(replace(made, src=source, dst=target, mode="tma", hints=hints))
    return found


def _constant(e: Expr, what: str, context: Context) -> str:
    if not isinstance(e, Const):
        refuse(f"{what} must be a constant to be imported", context.loc)
    return repr(e.value)


def fill(context: Context, node: Any) -> list[Stmt]:
    """``tl.tileop.fill``."""
    region = context.convert.region(node.args[0])
    dtype = context.buffers.by_name[region.buffer].dtype
    return [Fill(region, stored(context.convert(node.args[1]), dtype), loc=context.loc)]


def stored(value: Expr, dtype: str) -> Expr:
    """A value where ``dtype`` is stored: literals as one writes them."""
    if not isinstance(value, Const):
        return value
    if dtype == "bool":
        return Const(bool(value.value), "bool")
    if is_float(dtype) and value.dtype != "bool":
        return Const(float(value.value), "float32")
    if not is_float(value.dtype) and value.dtype != "bool":
        small = -(2**31) <= value.value < 2**31
        return Const(int(value.value), "int32" if small else "int64")
    return value


def gemm(context: Context, node: Any) -> list[Stmt]:
    """``tl.tileop.gemm``, ``wgmma_gemm``, ``tcgen05_gemm`` and the block-scaled forms."""
    name = op_name(node).rpartition(".")[2]
    noted = annotations_of(node)
    args = list(node.args)
    # Three regions, transpositions, M, N, K, policy, clear; then strides and offsets (until 0.1.14,
    # with k_pack and wg_wait), the barrier, and where C begins.
    old = len(args) >= 19
    barrier, wait = args[16] if old else args[10], number(args[15]) if old else 0
    scaled = args[13:16] if name.endswith("_blockscaled") and not old else []
    if name.endswith("_blockscaled") and old:
        scaled = args[19:22]
    if old and (number(args[14]) or 1) != 1:
        noted["k_pack"] = number(args[14])
    wait = number(noted.pop("wg_wait", wait)) or 0
    mode: GemmMode = ""
    if name.startswith("wgmma"):
        mode = "wgmma"
    elif name.startswith("tcgen05") or noted.pop("is_tcgen05", 0):
        mode = "tcgen05"
    clear = context.convert(args[9])
    has_barrier = kind(barrier) not in ("IntImm", "int")
    a, b, c = (context.convert.region(x) for x in args[:3])
    made = Gemm(
        *(a, b, c, bool(number(args[3])), bool(number(args[4]))),
        bool(clear.value) if isinstance(clear, Const) else False,
        _policy(args[8], noted),
        mode=mode,
        barrier=context.convert.place(barrier) if has_barrier else None,
        wait=None if mode == "wgmma" or wait == 0 else wait,
        clear_if=None if isinstance(clear, Const) else clear,
        hints=hints_of(noted, context, ("is_tcgen05", "policy")),
        loc=context.loc,
    )
    if mode == "" and wait < 0:  # not waited for at all: the explicit form
        made = replace(made, mode="wgmma", wait=None)
    if scaled:
        start = context.convert(scaled[2]) if len(scaled) > 2 else Const(0)
        made = replace(
            made,
            a_scale=context.convert.region(scaled[0]),
            b_scale=context.convert.region(scaled[1]),
            k_start=None if start == Const(0) else start,
        )
        made = replace(made, hints=_plain_scales(context, made))
    return [made]


def _plain_scales(context: Context, made: Gemm) -> Hints:
    """The hints without the groups of the scales where their shapes already tell them."""
    assert made.a_scale is not None
    assert made.b_scale is not None
    depth = made.a.extents[-2 if made.trans_a else -1]
    kept = []
    for name, value in made.hints:
        scale = {"sf_a_granularity_k": made.a_scale, "sf_b_granularity_k": made.b_scale}.get(name)
        if scale is not None and context.buffers.by_name[scale.buffer].dtype.startswith("float"):
            groups = scale.extents[-1]
            told = isinstance(groups, Const) and isinstance(depth, Const)
            if told and int(groups.value) * int(value) == int(depth.value):  # type: ignore[attr-defined]
                continue
        kept.append((name, value))
    return tuple(kept)


def _policy(node: Any, noted: dict[str, Any]) -> str:
    value = number(node)
    return _POLICIES.get(0 if value is None else value, "square")


def gemm_sparse(context: Context, node: Any) -> list[Stmt]:
    """``tl.tileop.gemm_sp``: the operand, its metadata, the dense operand, the sum."""
    noted = annotations_of(node)
    args = list(node.args)
    a, metadata, b, c = (context.convert.region(x) for x in args[:4])
    flags = [x for x in args[4:] if kind(x) == "IntImm" and str(x.dtype) == "bool"]
    trans_a, _trans_e, trans_b = (bool(number(x)) for x in flags[:3])
    clear = bool(number(flags[3])) if len(flags) > 3 else False
    name = op_name(node).rpartition(".")[2]
    wait = number(noted.pop("wg_wait", 0)) or 0
    mode: GemmMode = "wgmma" if name.startswith("wgmma") else "tcgen05" if name.startswith("tcgen05") else ""
    return [
        Gemm(
            *(a, b, c, trans_a, trans_b, clear),
            mode=mode,
            wait=None if mode == "wgmma" or wait <= 0 else wait,
            metadata=metadata,
            hints=hints_of(noted, context),
            loc=context.loc,
        )
    ]


def reduce(context: Context, node: Any) -> list[Stmt]:
    """``tl.tileop.reduce``."""
    src, dst, what, dim, clear, *_ = node.args
    return [
        Reduce(
            text_of(what),  # type: ignore[arg-type]
            context.convert.region(src),
            context.convert.region(dst),
            number(dim) or 0,
            bool(number(clear)),
            hints_of(annotations_of(node), context),
            loc=context.loc,
        )
    ]


def scan(context: Context, node: Any) -> list[Stmt]:
    """``tl.tileop.cumsum`` and ``cummax``."""
    src, dst, dim, reverse, *_ = node.args
    best = op_name(node).endswith("cummax")
    return [
        CumSum(
            context.convert.region(src),
            context.convert.region(dst),
            number(dim) or 0,
            bool(number(reverse)),
            "max" if best else "sum",
            loc=context.loc,
        )
    ]


def atomic(context: Context, node: Any) -> list[Stmt]:
    """``tl.tileop.atomicadd`` and its kin: a tile combined with a region of a tensor."""
    how = op_name(node).rpartition("atomic")[2]
    source, target = context.convert.region(node.args[0]), context.convert.region(node.args[1])
    hints = hints_of(annotations_of(node), context, ("memory_order",))
    return [AtomicAdd(source, target, how, hints, loc=context.loc)]  # type: ignore[arg-type]


def im2col(context: Context, node: Any) -> list[Stmt]:
    """``tl.tileop.im2col``."""
    src, dst, nhw, c, *window = node.args
    kernel, stride, dilation, padding = (number(w) or 0 for w in window[:4])
    source, target = context.convert.region(src), context.convert.region(dst)
    steps = context.convert(nhw), context.convert(c)
    hints = hints_of(annotations_of(node), context)
    return [Im2col(source, target, *steps, kernel, stride, dilation, padding, hints, loc=context.loc)]


def transpose(context: Context, node: Any) -> list[Stmt]:
    """``tl.tileop.transpose``."""
    source, target = (context.convert.region(a) for a in node.args[:2])
    return [Transpose(source, target, loc=context.loc)]


def finalize(context: Context, node: Any) -> list[Stmt]:
    """``tl.tileop.finalize_reducer`` of both kinds of reducers."""
    src, dst = context.convert.region(node.args[0]), None
    if op_name(node).endswith("_v2"):
        dst = context.convert.region(node.args[1])
    return [FinalizeReducer(src, dst, hints_of(annotations_of(node), context), loc=context.loc)]


def start_reducer(op: str) -> Converter:
    """``tl.tileop.reducer_init`` of a reducer by ``op``: its value before the first update."""

    def convert(context: Context, node: Any) -> list[Stmt]:
        region = context.convert.region(node.args[0])
        dtype = context.buffers.by_name[region.buffer].dtype
        value = context.convert(node.args[1]) if len(node.args) > 1 else identity(op, dtype)
        return [Fill(region, stored(value, dtype), loc=context.loc)]

    return convert


def identity(op: str, dtype: str) -> Expr:
    """What a reduction starts from: its result over nothing."""
    info = DTYPES[dtype]
    if op in ("sum", "bitor", "bitxor"):
        return Const(0.0, "float32") if info.kind == "float" else Const(0, dtype)
    if op == "bitand":
        return Const(-1, dtype) if info.kind == "int" else Const((1 << info.bits) - 1, dtype)
    if info.kind == "float":
        return Const(float("-inf") if op == "max" else float("inf"), "float32")
    low = 0 if info.kind == "uint" else -(1 << (info.bits - 1))
    high = (1 << (info.bits - (info.kind == "int"))) - 1
    return Const(low if op == "max" else high, dtype)


def update_kind(op: str) -> str:
    """The atomic store that a reducer's update is."""
    return _REDUCERS[op]


TILE_OPS: dict[str, Converter] = {
    **dict.fromkeys(("copy", "async_copy", "tma_copy"), copy),
    "fill": fill,
    **dict.fromkeys(("gemm", "wgmma_gemm", "tcgen05_gemm", "gemm_py"), gemm),
    **dict.fromkeys((f"{n}gemm_blockscaled" for n in ("", "tcgen05_", "mma_")), gemm),
    **dict.fromkeys((f"{n}gemm_sp" for n in ("", "wgmma_", "tcgen05_")), gemm_sparse),
    "gemm_sp_py": gemm_sparse,
    "reduce": reduce,
    **dict.fromkeys(("cumsum", "cummax"), scan),
    **dict.fromkeys(("atomicadd", "atomicmax", "atomicmin"), atomic),
    **dict.fromkeys(("im2col", "c2d_im2col"), im2col),
    "transpose": transpose,
    **dict.fromkeys(("finalize_reducer", "finalize_reducer_v2"), finalize),
}
"""By the operation's name without ``tl.tileop.``."""

__all__ = ["TILE_OPS", "Call", "Context", "Converter", "hints_of", "literal", "start_reducer", "update_kind"]
