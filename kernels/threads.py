"""What single threads do: their index, exchange within a warp, barriers, asynchronous engines, hints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from foretile.kernels.allocations import place_of
from foretile.kernels.errors import fail, here
from foretile.kernels.expr import Call, Const, Expr, binary, call
from foretile.kernels.handles import region_of
from foretile.kernels.hints import hints
from foretile.kernels.ir import (
    AsyncCommit,
    AsyncWait,
    BarrierArrive,
    BarrierWait,
    Extern,
    Hint,
    Jump,
    RandomInit,
    Stmt,
    Sync,
)
from foretile.kernels.tracer import current
from foretile.kernels.values import Index, Result, Value, canonical, function, index_expr, operand

WARP = 32


def get_thread_binding(dim: int = 0) -> Value:
    """The index of a thread in its block along an axis."""
    tracer = current("T.get_thread_binding")
    tracer.need_kernel("T.get_thread_binding")
    shape = tracer.thread_shape or (tracer.threads,)
    if dim >= len(shape) or shape[dim] == 1:
        return Result(Const(0), "int32")
    return Index(tracer.thread(dim), "thread")


def get_thread_bindings() -> tuple[Value, ...]:
    """The indices of a thread in its block along x, y and z."""
    return tuple(get_thread_binding(dim) for dim in range(3))


def _linear() -> Expr:
    tracer = current("a thread's number")
    shape = tracer.thread_shape or (tracer.threads,)
    number: Expr = Const(0)
    for axis in reversed(range(len(shape))):
        own = get_thread_binding(axis).expr
        number = binary("add", binary("mul", number, Const(shape[axis])), own)
    return number


def get_lane_idx(warp_size: int = WARP) -> Value:
    """A thread's place in its warp."""
    return Result(binary("mod", _linear(), Const(warp_size)), "int32")


def get_warp_idx(warp_size: int = WARP) -> Value:
    """The number of a thread's warp in the block."""
    return Result(binary("floordiv", _linear(), Const(warp_size)), "int32")


def get_warp_group_idx(warp_size: int = WARP, warps_per_group: int = 4) -> Value:
    """The number of a thread's group of four warps."""
    return Result(binary("floordiv", _linear(), Const(warp_size * warps_per_group)), "int32")


def shuffle_elect(thread_extent: int) -> Value:
    """Whether this thread is the one chosen of ``thread_extent`` (0: of the block)."""
    thread = _linear()
    e = binary("mod", thread, Const(thread_extent)) if thread_extent else thread
    return Result(binary("eq", e, Const(0)), "bool")


def _exchange(fn: str) -> Callable[..., Value]:
    def exchange(value: Any, lane: Any, width: Any = WARP) -> Value:
        e, dtype = operand(value)
        other, among = index_expr(lane, f"lane of T.{fn}"), index_expr(width, f"width of T.{fn}")
        return Result(call(fn, (e, other, among)), dtype)

    exchange.__name__ = exchange.__qualname__ = fn
    exchange.__doc__ = "The value that another thread of the warp holds."
    return exchange


shfl_sync = _exchange("shfl")
shfl_xor = _exchange("shfl_xor")
shfl_up = _exchange("shfl_up")
shfl_down = _exchange("shfl_down")


def _unary(fn: str, doc: str) -> Callable[[Any], Value]:
    def apply(value: Any) -> Value:
        return function(fn, value)

    apply.__name__ = apply.__qualname__ = fn
    apply.__doc__ = doc
    return apply


def _nullary(fn: str, dtype: str, doc: str) -> Callable[[], Value]:
    def apply() -> Value:
        return Result(Call(fn, ()), dtype)

    apply.__name__ = apply.__qualname__ = fn
    apply.__doc__ = doc
    return apply


warp_reduce_sum = _unary("warp_sum", "The sum over the threads of the warp.")
warp_reduce_max = _unary("warp_max", "The maximum over the threads of the warp.")
warp_reduce_min = _unary("warp_min", "The minimum over the threads of the warp.")
warp_reduce_bitand = _unary("warp_bitand", "The bits that all threads of the warp have.")
warp_reduce_bitor = _unary("warp_bitor", "The bits that any thread of the warp has.")
any_sync = _unary("any_sync", "Whether the condition holds for any thread of the warp.")
all_sync = _unary("all_sync", "Whether the condition holds for all threads of the warp.")
ballot = _unary("ballot", "A bit for each thread of the warp: whether the condition holds there.")
match_any_sync = _unary("match_any", "A bit for each thread of the warp: whether it has the same value.")
match_all_sync = _unary("match_all", "All bits if all threads of the warp have the same value, else none.")
syncthreads_or = _unary("syncthreads_or", "A barrier; whether the condition holds for any thread.")
syncthreads_and = _unary("syncthreads_and", "A barrier; whether the condition holds for all threads.")
syncthreads_count = _unary("syncthreads_count", "A barrier; for how many threads the condition holds.")
activemask = _nullary("activemask", "uint64", "A bit for each thread of the warp that is here.")
block_rank_in_cluster = _nullary("block_rank_in_cluster", "int32", "The number of the block in its cluster.")
rng_rand = _nullary("rng_rand", "uint32", "The next number of the thread's generator.")
rng_uniform = _nullary("rng_uniform", "float32", "The next number in (0, 1].")
rng_normal = _nullary("rng_normal", "float32", "The next normally distributed number.")
rng_uniform_double = _nullary("rng_uniform_double", "float64", "The next number in (0, 1].")
rng_normal_double = _nullary("rng_normal_double", "float64", "The next normally distributed number.")
clc_is_canceled = _unary("clc_is_canceled", "Whether a query found another block to do.")
clc_get_first_ctaid_x = _unary("clc_get_first_ctaid_x", "Its index along x.")
clc_get_first_ctaid_y = _unary("clc_get_first_ctaid_y", "Its index along y.")
clc_get_first_ctaid_z = _unary("clc_get_first_ctaid_z", "Its index along z.")


def rng_rand_float(bit: int = 32, dist: str = "uniform") -> Value:
    """The next uniform or normal number of the thread's generator."""
    wide = "_double" if bit == 64 else ""
    return Result(Call(f"rng_{dist}{wide}", ()), f"float{bit}")


def _over_block(kind: str) -> Callable[..., Value]:
    def reduce(value: Any, *indices: Any) -> Value:
        e, dtype = operand(value)
        axes = tuple(index_expr(i, f"index of T.block_reduce_{kind}") for i in indices)
        return Result(call(f"block_{kind}", (e, *axes)), dtype)

    reduce.__name__ = reduce.__qualname__ = f"block_reduce_{kind}"
    reduce.__doc__ = "Combined over the block's threads that differ in these indices only."
    return reduce


block_reduce_sum = _over_block("sum")
block_reduce_max = _over_block("max")
block_reduce_min = _over_block("min")
block_reduce_bitand = _over_block("bitand")
block_reduce_bitor = _over_block("bitor")


def _emit(name: str, stmt: Stmt, *written: str) -> None:
    current(f"T.{name}").emit(stmt, *written)


def sync_threads(barrier_id: Any = None, arrive_count: Any = None) -> None:
    """A barrier of the block's threads, or of ``arrive_count`` of them at a numbered barrier."""
    ident = None if barrier_id is None else index_expr(barrier_id, "barrier_id of T.sync_threads")
    count = None if arrive_count is None else index_expr(arrive_count, "arrive_count of T.sync_threads")
    _emit("sync_threads", Sync("block", ident, count, loc=here()))


def named_barrier_arrive(barrier_id: Any, thread_count: Any) -> None:
    """Arrive at a numbered barrier without waiting."""
    ident = index_expr(barrier_id, "barrier_id of T.named_barrier_arrive")
    count = index_expr(thread_count, "thread_count of T.named_barrier_arrive")
    _emit("named_barrier_arrive", Sync("block", ident, count, "arrive", loc=here()))


def sync_warp(mask: Any = None) -> None:
    """A barrier of a warp's threads."""
    _emit("sync_warp", Sync("warp", loc=here()))


def sync_grid() -> None:
    """A barrier of all blocks, which must be resident."""
    _emit("sync_grid", Sync("grid", loc=here()))


def cluster_sync() -> None:
    """A barrier of a cluster's blocks."""
    _emit("cluster_sync", Sync("cluster", loc=here()))


def cluster_arrive() -> None:
    """Arrive at the cluster's barrier without waiting."""
    _emit("cluster_arrive", Sync("cluster", phase="arrive", loc=here()))


def cluster_wait() -> None:
    """Wait at the cluster's barrier."""
    _emit("cluster_wait", Sync("cluster", phase="wait", loc=here()))


def mbarrier_arrive(mbarrier: Any, cta_id: Any = None) -> None:
    """Arrive at a memory barrier (of another block of the cluster)."""
    cta = None if cta_id is None else index_expr(cta_id, "cta_id of T.mbarrier_arrive")
    place = place_of(mbarrier, "barrier of T.mbarrier_arrive")
    _emit("mbarrier_arrive", BarrierArrive(place, cta=cta, loc=here()))


def barrier_arrive(mbarrier: Any) -> None:
    """Arrive at a memory barrier."""
    mbarrier_arrive(mbarrier)


def mbarrier_expect_tx(mbarrier: Any, tx: Any) -> None:
    """Announce bytes that a barrier's phase waits for."""
    place, count = place_of(mbarrier, "barrier of T.mbarrier_expect_tx"), index_expr(tx, "bytes")
    _emit("mbarrier_expect_tx", BarrierArrive(place, count, arrive=False, loc=here()))


def mbarrier_arrive_expect_tx(mbarrier: Any, tx: Any) -> None:
    """Arrive at a barrier and announce bytes that its phase waits for."""
    place, count = place_of(mbarrier, "barrier of T.mbarrier_arrive_expect_tx"), index_expr(tx, "bytes")
    _emit("mbarrier_arrive_expect_tx", BarrierArrive(place, count, loc=here()))


def cp_async_barrier_noinc(barrier: Any) -> None:
    """Arrive at a barrier when this thread's asynchronous copies are done."""
    place = place_of(barrier, "barrier of T.cp_async_barrier_noinc")
    _emit("cp_async_barrier_noinc", BarrierArrive(place, after="cp_async", loc=here()))


def tcgen05_mma_arrive(mbar: Any, **given: Any) -> None:
    """Arrive at a barrier when the products issued before are done."""
    place = place_of(mbar, "barrier of T.tcgen05_mma_arrive")
    _emit("tcgen05_mma_arrive", BarrierArrive(place, after="tcgen05", hints=hints(**given), loc=here()))


def mbarrier_wait_parity(mbarrier: Any, parity: Any) -> None:
    """Wait until the barrier's phase of this parity has completed."""
    place = place_of(mbarrier, "barrier of T.mbarrier_wait_parity")
    _emit("mbarrier_wait_parity", BarrierWait(place, index_expr(parity, "parity"), loc=here()))


def barrier_wait(mbarrier: Any, parity: Any) -> None:
    """Wait until the barrier's phase of this parity has completed."""
    mbarrier_wait_parity(mbarrier, parity)


def ptx_commit_group() -> None:
    """Close a group of asynchronous copies."""
    _emit("ptx_commit_group", AsyncCommit("cp_async", loc=here()))


def tma_store_arrive() -> None:
    """Close a group of bulk stores."""
    _emit("tma_store_arrive", AsyncCommit("tma_store", loc=here()))


def warpgroup_commit_batch() -> None:
    """Close a group of asynchronous products."""
    _emit("warpgroup_commit_batch", AsyncCommit("wgmma", loc=here()))


def ptx_wait_group(num: Any) -> None:
    """Wait until at most so many groups of copies are in flight."""
    _emit("ptx_wait_group", AsyncWait("cp_async", index_expr(num, "groups"), loc=here()))


def tma_store_wait(count: Any = 0) -> None:
    """Wait until at most so many groups of bulk stores are in flight."""
    _emit("tma_store_wait", AsyncWait("tma_store", index_expr(count, "groups"), loc=here()))


def wait_wgmma(num: Any = 0) -> None:
    """Wait until at most so many asynchronous products are in flight."""
    _emit("wait_wgmma", AsyncWait("wgmma", index_expr(num, "products"), loc=here()))


def loop_break() -> None:
    """Leave the innermost loop."""
    _emit("loop_break", Jump("break", loc=here()))


def thread_return() -> None:
    """End this thread."""
    _emit("thread_return", Jump("return", loc=here()))


def rng_init(seed: Any, seq: Any = None, off: Any = 0, generator: str = "curandStatePhilox4_32_10_t") -> None:
    """Seed the thread's generator; without ``seq`` each thread of a one-axis grid has its own sequence."""
    if seq is None:
        tracer = current("T.rng_init")
        blocks = binary("mul", tracer.block_vars[0], Const((tracer.thread_shape or (tracer.threads,))[0]))
        seq = Result(binary("add", get_thread_binding(0).expr, blocks), "int32")
    parts = (index_expr(seed, "seed"), index_expr(seq, "sequence"), index_expr(off, "offset"))
    _emit("rng_init", RandomInit(*parts, generator, loc=here()))


def hint(name: str) -> Callable[..., None]:
    """The function ``T.name`` that records a hint."""

    def record(*args: Any, **_named: Any) -> None:
        values = [operand(a)[0] for a in args if not isinstance(a, str)]
        shown = tuple(repr(e.value) for e in values if isinstance(e, Const))
        texts = tuple(repr(a) for a in args if isinstance(a, str)) if name == "print" else ()
        _emit(name, Hint(name, (*texts, *shown), loc=here()))

    record.__name__ = record.__qualname__ = name
    record.__doc__ = "A hint to the compiler; it changes no value."
    return record


def extern(name: str, *args: Any, reads: Any = (), writes: Any = (), source: str = "") -> None:
    """A call of opaque device code, with the regions it gets pointers to."""
    regions = [[region_of(r, f"region of T.extern({name!r})") for r in rs] for rs in (reads, writes)]
    values = tuple(operand(a)[0] for a in args)
    read, written = (tuple(region for _, region in found) for found in regions)
    made = Extern(name, values, read, written, source or current("T.extern").source, loc=here())
    _emit("extern", made, *(handle.name for handle, _ in regions[1]))


def call_extern(dtype: Any, name: str, *args: Any) -> Any:
    """A value that opaque device code computes (``dtype`` "handle" or "void": a statement)."""
    if str(dtype) in ("handle", "void"):
        return extern(name, *args)
    kind = canonical(dtype)
    return Result(Call(f"extern:{kind}:{name}", tuple(operand(a)[0] for a in args)), kind)


def refuse_opaque(name: str) -> Callable[..., None]:
    """A function ``T.name`` of raw instructions, which the tracer does not take."""

    def record(*_args: Any, **_named: Any) -> None:
        fail(f"T.{name} is a raw instruction; a kernel that needs it is imported from TileLang")

    return record


__all__ = [
    "activemask",
    "all_sync",
    "any_sync",
    "ballot",
    "barrier_arrive",
    "barrier_wait",
    "block_rank_in_cluster",
    "block_reduce_bitand",
    "block_reduce_bitor",
    "block_reduce_max",
    "block_reduce_min",
    "block_reduce_sum",
    "call_extern",
    "clc_get_first_ctaid_x",
    "clc_get_first_ctaid_y",
    "clc_get_first_ctaid_z",
    "clc_is_canceled",
    "cluster_arrive",
    "cluster_sync",
    "cluster_wait",
    "cp_async_barrier_noinc",
    "extern",
    "get_lane_idx",
    "get_thread_binding",
    "get_thread_bindings",
    "get_warp_group_idx",
    "get_warp_idx",
    "loop_break",
    "match_all_sync",
    "match_any_sync",
    "mbarrier_arrive",
    "mbarrier_arrive_expect_tx",
    "mbarrier_expect_tx",
    "mbarrier_wait_parity",
    "named_barrier_arrive",
    "ptx_commit_group",
    "ptx_wait_group",
    "rng_init",
    "rng_normal",
    "rng_normal_double",
    "rng_rand",
    "rng_rand_float",
    "rng_uniform",
    "rng_uniform_double",
    "shfl_down",
    "shfl_sync",
    "shfl_up",
    "shfl_xor",
    "shuffle_elect",
    "sync_grid",
    "sync_threads",
    "sync_warp",
    "syncthreads_and",
    "syncthreads_count",
    "syncthreads_or",
    "tcgen05_mma_arrive",
    "thread_return",
    "tma_store_arrive",
    "tma_store_wait",
    "wait_wgmma",
    "warp_reduce_bitand",
    "warp_reduce_bitor",
    "warp_reduce_max",
    "warp_reduce_min",
    "warp_reduce_sum",
    "warpgroup_commit_batch",
]
"""The names that are part of the language."""
