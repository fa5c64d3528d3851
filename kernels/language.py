"""The tile language: ``from foretile.kernels import language as T``.

Names and signatures are TileLang's, so that one kernel source works with either import. What each
name does is described in ``docs/language.md``; unknown names fail with the nearest known ones.
"""

from __future__ import annotations

import difflib
from typing import NoReturn

from foretile.kernels.blocks import Kernel, Tensor, dynamic
from foretile.kernels.errors import TraceError
from foretile.kernels.frontend import macro, prim_func
from foretile.kernels.loops import Parallel, Persistent, Pipelined, grid, serial, unroll, vectorized
from foretile.kernels.mathops import (
    Cast,
    all_of,
    any_of,
    ceil,
    ceildiv,
    clamp,
    cos,
    erf,
    exp,
    exp2,
    floor,
    floordiv,
    floormod,
    if_then_else,
    infinity,
    isnan,
    likely,
    log,
    log2,
    max_value,
    min_value,
    rsqrt,
    sigmoid,
    sin,
    sqrt,
    tanh,
    truncdiv,
    truncmod,
)
from foretile.kernels.mathops import absolute as abs
from foretile.kernels.mathops import if_then_else as Select
from foretile.kernels.mathops import maximum as max
from foretile.kernels.mathops import minimum as min
from foretile.kernels.mathops import power as pow
from foretile.kernels.mathops import round_ as round
from foretile.kernels.products import GemmWarpPolicy, gemm, gemm_blockscaled
from foretile.kernels.tileops import (
    alloc_fragment,
    alloc_local,
    alloc_shared,
    alloc_var,
    annotate_l2_hit_ratio,
    annotate_layout,
    annotate_min_blocks_per_sm,
    annotate_safe_value,
    assume,
    atomic_add,
    atomic_max,
    atomic_min,
    clear,
    copy,
    cumsum,
    fill,
    make_swizzled_layout,
    reduce,
    reduce_absmax,
    reduce_abssum,
    reduce_max,
    reduce_min,
    reduce_sum,
    sync_threads,
    use_swizzle,
)
from foretile.kernels.values import DTypeName, cast, reinterpret

Buffer = Tensor
symbolic = dynamic
Serial = serial
Unroll = unroll
Vectorized = vectorized

float64 = DTypeName("float64")
float32 = DTypeName("float32")
tfloat32 = DTypeName("tfloat32")
float16 = DTypeName("float16")
bfloat16 = DTypeName("bfloat16")
float8_e4m3 = DTypeName("float8_e4m3")
float8_e4m3fn = DTypeName("float8_e4m3")
float8_e5m2 = DTypeName("float8_e5m2")
float8_e8m0 = DTypeName("float8_e8m0")
float8_e8m0fnu = DTypeName("float8_e8m0")
float4_e2m1 = DTypeName("float4_e2m1")
float4_e2m1fn = DTypeName("float4_e2m1")
int64 = DTypeName("int64")
int32 = DTypeName("int32")
int16 = DTypeName("int16")
int8 = DTypeName("int8")
int4 = DTypeName("int4")
uint64 = DTypeName("uint64")
uint32 = DTypeName("uint32")
uint16 = DTypeName("uint16")
uint8 = DTypeName("uint8")
bool = DTypeName("bool")
float = DTypeName("float32")
int = DTypeName("int32")

_REFUSED = {
    "per-thread code (lanes, shuffles, thread indices); a tile program says what a whole block does": """
        get_thread_binding get_thread_bindings get_lane_idx get_warp_idx thread_binding launch_thread
        shfl_sync shfl_xor_sync shfl_down shfl_up warp_reduce_sum warp_reduce_max tvm_warp_shuffle
        sync_warp thread_return""",
    "explicit barriers, asynchronous copies and warp roles; write T.Pipelined, lowering places them": """
        alloc_barrier mbarrier_wait_parity mbarrier_arrive barrier_wait barrier_arrive
        ptx_arrive_barrier async_copy tma_copy wgmma_gemm wait_wgmma tcgen05_gemm alloc_tmem ws
        tcgen05_gemm_blockscaled mma_gemm_blockscaled
        set_max_nreg no_set_max_nreg annotate_producer_reg_dealloc annotate_consumer_reg_alloc
        ptx_cp_async ptx_commit_group ptx_wait_group""",
    "code that is opaque to a simulator": """
        call_extern call_intrin import_source ptx_mma ptx_ldmatrix""",
}


def __getattr__(name: str) -> NoReturn:
    for reason, names in _REFUSED.items():
        if name in names.split():
            raise AttributeError(f"T.{name} is refused: {reason}")
    near = difflib.get_close_matches(name, __all__, n=3)
    hint = f"; did you mean {', '.join(f'T.{n}' for n in near)}?" if near else " (see docs/language.md)"
    raise AttributeError(f"T.{name} is not part of the tile language{hint}")


__all__ = [
    "Buffer",
    "Cast",
    "GemmWarpPolicy",
    "Kernel",
    "Parallel",
    "Persistent",
    "Pipelined",
    "Select",
    "Serial",
    "Tensor",
    "TraceError",
    "Unroll",
    "Vectorized",
    "abs",
    "all_of",
    "alloc_fragment",
    "alloc_local",
    "alloc_shared",
    "alloc_var",
    "annotate_l2_hit_ratio",
    "annotate_layout",
    "annotate_min_blocks_per_sm",
    "annotate_safe_value",
    "any_of",
    "assume",
    "atomic_add",
    "atomic_max",
    "atomic_min",
    "bfloat16",
    "bool",
    "cast",
    "ceil",
    "ceildiv",
    "clamp",
    "clear",
    "copy",
    "cos",
    "cumsum",
    "dynamic",
    "erf",
    "exp",
    "exp2",
    "fill",
    "float",
    "float4_e2m1",
    "float4_e2m1fn",
    "float8_e4m3",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e8m0",
    "float8_e8m0fnu",
    "float16",
    "float32",
    "float64",
    "floor",
    "floordiv",
    "floormod",
    "gemm",
    "gemm_blockscaled",
    "grid",
    "if_then_else",
    "infinity",
    "int",
    "int4",
    "int8",
    "int16",
    "int32",
    "int64",
    "isnan",
    "likely",
    "log",
    "log2",
    "macro",
    "make_swizzled_layout",
    "max",
    "max_value",
    "min",
    "min_value",
    "pow",
    "prim_func",
    "reduce",
    "reduce_absmax",
    "reduce_abssum",
    "reduce_max",
    "reduce_min",
    "reduce_sum",
    "reinterpret",
    "round",
    "rsqrt",
    "serial",
    "sigmoid",
    "sin",
    "sqrt",
    "symbolic",
    "sync_threads",
    "tanh",
    "tfloat32",
    "truncdiv",
    "truncmod",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "unroll",
    "use_swizzle",
    "vectorized",
]
