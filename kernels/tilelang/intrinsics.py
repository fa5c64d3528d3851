"""Calls that stand as statements: barriers, asynchronous engines, atomics, hints, opaque code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from foretile.kernels.expr import Call, Cast, Const, Expr, Load, binary
from foretile.kernels.ir import (
    AsyncCommit,
    AsyncWait,
    BarrierArrive,
    BarrierWait,
    Extern,
    Hint,
    Jump,
    RandomInit,
    Region,
    Stmt,
    Store,
    Sync,
)
from foretile.kernels.messages import text
from foretile.kernels.tilelang.expressions import is_pointer
from foretile.kernels.tilelang.nodes import annotations_of, kind, number, op_name, text_of
from foretile.kernels.tilelang.tileops import Context, hints_of, stored

_HINTS = frozenset(
    {
        *("set_max_nreg", "no_set_max_nreg", "annotate_producer_reg_dealloc", "annotate_consumer_reg_alloc"),
        *("fence_proxy_async", "pdl_sync", "pdl_trigger", "deallocate_tmem", "warpgroup_arrive"),
        *("warpgroup_fence_operand", "tcgen05_before_thread_sync", "tcgen05_after_thread_sync"),
        *("ptx_fence_barrier_init", "device_assert", "device_assert_with_msg", "prefetch_tma_descriptor"),
    }
)
"""Calls that change no value: by name, without ``tl.``."""
_SILENT = frozenset({"tirx.assume", "tirx.type_annotation", "tirx.undef"})
_OPAQUE = ("tirx.call_extern", "tirx.call_pure_extern", "tirx.call_intrin", "tirx.call_llvm")
_RAW = (
    "tirx.ptx_",
    "tl.ptx_",
    "tl.tvm_mfma",
    "tl.tvm_rdna",
    "tirx.mma_",
    "tl.initialize_",
    "tl.increase_desc",
)
_RAW_NAMES = frozenset(
    {
        *("tl.tma_load", "tl.tma_store", "tl.create_tma_descriptor", "tl.stg32", "tl.stg64", "tl.stg128"),
        *("tl.stg256", "tl.sts32", "tl.sts64", "tl.sts128", "tirx.tvm_load_matrix_sync", "tl.clc_try_cancel"),
        *("tirx.tvm_mma_sync", "tirx.tvm_store_matrix_sync", "tl.clc_try_cancel_multicast"),
        *("tl.ptx_tcgen05_cp_warpx4", "tl.ptx_tcgen05_sf_warp_transpose", "tl.__ldg"),
    }
)
_PRINTS = ("debug_print",)
_ATOMIC = {"add": "add", "max": "max", "min": "min", "or": "or", "and": "and", "xor": "xor", "store": "store"}

Converter = Callable[[Context, Any], list[Stmt]]


def _wait(context: Context, node: Any) -> list[Stmt]:
    barrier, parity = node.args
    return [BarrierWait(context.convert.place(barrier), context.convert(parity), loc=context.loc)]


def _arrive(context: Context, node: Any) -> list[Stmt]:
    cta = context.convert(node.args[1]) if len(node.args) > 1 else None
    return [BarrierArrive(context.convert.place(node.args[0]), cta=cta, loc=context.loc)]


def _arrive_expect(context: Context, node: Any) -> list[Stmt]:
    barrier, count = context.convert.place(node.args[0]), context.convert(node.args[1])
    announced = op_name(node) == "tl.mbarrier_expect_tx"
    return [BarrierArrive(barrier, count, arrive=not announced, loc=context.loc)]


def _arrive_after_copies(context: Context, node: Any) -> list[Stmt]:
    return [BarrierArrive(context.convert.place(node.args[0]), after="cp_async", loc=context.loc)]


def _arrive_after_products(context: Context, node: Any) -> list[Stmt]:
    hints = hints_of(annotations_of(node), context)
    place = context.convert.place(node.args[0])
    return [BarrierArrive(place, after="tcgen05", hints=hints, loc=context.loc)]


def _storage_sync(context: Context, node: Any) -> list[Stmt]:
    where, *rest = node.args
    if text_of(where) == "warp":
        return [Sync("warp", loc=context.loc)]
    ident, threads, *_ = (*(context.convert(a) for a in rest), None, None)
    return [Sync("block", ident, threads, loc=context.loc)]


def _named_arrive(context: Context, node: Any) -> list[Stmt]:
    ident, threads = (context.convert(a) for a in node.args)
    return [Sync("block", ident, threads, "arrive", loc=context.loc)]


def _sync(scope: str, phase: str = "") -> Converter:
    return lambda context, _: [Sync(scope, phase=phase, loc=context.loc)]  # type: ignore[arg-type]


def _commit(which: str) -> Converter:
    return lambda context, _: [AsyncCommit(which, loc=context.loc)]  # type: ignore[arg-type]


def _pending(which: str) -> Converter:
    def convert(context: Context, node: Any) -> list[Stmt]:
        count: Expr = context.convert(node.args[0]) if len(node.args) else Const(0)
        return [AsyncWait(which, count, loc=context.loc)]  # type: ignore[arg-type]

    return convert


def _jump(which: str) -> Converter:
    return lambda context, _: [Jump(which, loc=context.loc)]  # type: ignore[arg-type]


def _random(context: Context, node: Any) -> list[Stmt]:
    seed, sequence, offset, *generator = node.args
    first, which, behind = (context.convert(e) for e in (seed, sequence, offset))
    made = RandomInit(first, which, behind, loc=context.loc)
    return [replace(made, generator=text_of(generator[0])) if generator else made]


def _cp_async(context: Context, node: Any) -> list[Stmt]:
    """One thread's asynchronous copy of a few bytes: destination, source, elements[, predicate]."""
    target, source = (context.convert.place(a) for a in node.args[:2])
    count = context.convert(node.args[2])
    hints = []
    if len(node.args) > 3:
        hints.append(("predicate", text(context.convert(node.args[3]))))
    from foretile.kernels.ir import Copy  # the one operation of a tile among these

    def row(place: Load) -> Region:
        ones = (Const(1),) * (len(place.indices) - 1)
        return Region(place.buffer, place.indices, (*ones, count))

    return [Copy(row(source), row(target), "async", hints=tuple(hints), loc=context.loc)]


STATEMENT_CALLS: dict[str, Converter] = {
    "tl.mbarrier_wait_parity": _wait,
    "tirx.ptx_wait_barrier": _wait,
    "tirx.ptx_arrive_barrier": _arrive,
    "tl.ptx_arrive_cluster_barrier": _arrive,
    "tirx.ptx_arrive_barrier_expect_tx": _arrive_expect,
    "tl.mbarrier_expect_tx": _arrive_expect,
    "tl.ptx_cp_async_barrier_noinc": _arrive_after_copies,
    "tl.tcgen05_mma_arrive": _arrive_after_products,
    "tirx.tvm_storage_sync": _storage_sync,
    "tl.named_barrier_arrive": _named_arrive,
    "tl.sync_warp": _sync("warp"),
    "tl.sync_grid": _sync("grid"),
    "tl.cluster_sync": _sync("cluster"),
    "tl.cluster_arrive": _sync("cluster", "arrive"),
    "tl.cluster_arrive_relaxed": _sync("cluster", "arrive"),
    "tl.cluster_wait": _sync("cluster", "wait"),
    "tirx.ptx_commit_group": _commit("cp_async"),
    "tl.tma_store_arrive": _commit("tma_store"),
    "tl.warpgroup_commit_batch": _commit("wgmma"),
    "tirx.ptx_wait_group": _pending("cp_async"),
    "tl.tma_store_wait": _pending("tma_store"),
    "tl.wait_wgmma": _pending("wgmma"),
    "tl.warpgroup_wait": _pending("wgmma"),
    "tl.loop_break": _jump("break"),
    "tirx.break_loop": _jump("break"),
    "tirx.continue_loop": _jump("continue"),
    "tirx.thread_return": _jump("return"),
    "tl.thread_return": _jump("return"),
    "tl.rng_init": _random,
    "tl.ptx_cp_async": _cp_async,
}


def atomic(context: Context, node: Any, previous: Load | None = None) -> list[Stmt]:
    """An atomic update of one element, or of two or four in a row (``x2``, ``x4``)."""
    name = op_name(node).removeprefix("tl.atomic_").removesuffix("_elem_op").removesuffix("_ret")
    width = 1
    for suffix, lanes in (("x2", 2), ("x4", 4)):
        if name.endswith(suffix):
            name, width = name.removesuffix(suffix), lanes
    place = context.convert.place(node.args[0])
    dtype = context.buffers.by_name[place.buffer].dtype
    if width == 1:
        value = stored(context.store_value(node.args[1], dtype), dtype)
        return [Store(place.buffer, place.indices, value, _ATOMIC[name], previous, loc=context.loc)]
    source = context.convert.place(node.args[1])
    found: list[Stmt] = []
    for lane in range(width):
        at, value_at, kept = (_behind(p, lane) for p in (place, source, previous))
        assert at is not None
        assert value_at is not None
        found.append(Store(at.buffer, at.indices, value_at, _ATOMIC[name], kept, loc=context.loc))
    return found


def _behind(place: Load | None, lane: int) -> Load | None:
    if place is None:
        return None
    return Load(place.buffer, (*place.indices[:-1], binary("add", place.indices[-1], Const(lane))))


def is_atomic(name: str) -> bool:
    """Whether a call updates an element atomically."""
    return name.startswith("tl.atomic_") and name.endswith("_elem_op") and "load" not in name


def other(context: Context, node: Any, source: str) -> list[Stmt] | None:
    """Hints and opaque code; ``None`` for a call that is neither.

    ``source``: the inline device code that the kernel brings along.
    """
    name = op_name(node)
    short = name.removeprefix("tl.").removeprefix("tirx.")
    if name in _SILENT:
        return []
    if short in _HINTS:
        return [Hint(short.removesuffix("_with_msg"), _shown(context, node), loc=context.loc)]
    if name in _OPAQUE:
        called = text_of(node.args[0])
        if called.startswith(_PRINTS):
            return [Hint("print", tuple(repr(text_of(a)) for a in node.args[1:2]), loc=context.loc)]
        if called == "DP4A" and called not in source:
            return [_dot_of_four(context, list(node.args[1:4]))]
        return [_extern(context, called, list(node.args[1:]), source)]
    if name in _RAW_NAMES or name.startswith(_RAW):
        return [_extern(context, short, list(node.args), "")]
    return None


def _shown(context: Context, node: Any) -> tuple[str, ...]:
    """Arguments of a hint as text; what is no value (memory, messages) is left out."""
    if op_name(node) in ("tl.warpgroup_fence_operand", "tl.deallocate_tmem"):
        return ()
    values = [a for a in node.args if kind(a) in ("IntImm", "FloatImm")]
    return tuple(repr(a.value) for a in values)


def _dot_of_four(context: Context, args: list[Any]) -> Store:
    """``T.dp4a``: four products of int8 added to an int32, written out as what it stands for."""
    first, second, total = (context.convert.place(a) for a in args)
    value: Expr = total
    for lane in range(4):
        factors = [Cast("int32", place) for p in (first, second) if (place := _behind(p, lane)) is not None]
        value = binary("add", value, binary("mul", *factors))
    return Store(total.buffer, total.indices, value, loc=context.loc)


def _extern(context: Context, name: str, args: list[Any], source: str) -> Extern:
    values: list[Expr] = []
    reads: list[Region] = []
    writes: list[Region] = []
    for a in args:
        if is_pointer(a):
            place = context.convert.place(a)
            region = Region(place.buffer, place.indices, (Const(1),) * len(place.indices))
            mask = _access(a)
            if mask & 1:
                reads.append(region)
            if mask & 2:
                writes.append(region)
        elif kind(a) == "StringImm":
            name = f"{name}.{text_of(a)}"
        elif kind(a) == "Var" and str(a.dtype) == "handle":
            place = context.convert.place(a)
            writes.append(Region(place.buffer, place.indices, (Const(1),) * len(place.indices)))
        else:
            values.append(context.convert(a))
    return Extern(name, tuple(values), tuple(reads), tuple(writes), source, loc=context.loc)


def _access(pointer: Any) -> int:
    """1 for a pointer that is read through, 2 written, 3 both (or not said)."""
    if op_name(pointer) == "tirx.address_of":
        return 3
    return number(pointer.args[-1]) or 3


__all__ = ["STATEMENT_CALLS", "Call", "atomic", "is_atomic", "other"]
