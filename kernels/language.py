"""The tile language: ``from foretile.kernels import language as T``.

Names and signatures are TileLang's, so that one kernel source works with either import. What each
name does is described in ``docs/language.md``; unknown names fail with the nearest known ones.
"""

from __future__ import annotations

import difflib
from typing import Any

from foretile.kernels import allocations, mathops, notes, products, threads, tileops
from foretile.kernels.allocations import *
from foretile.kernels.blocks import Kernel, StridedTensor, Tensor, dynamic
from foretile.kernels.errors import TraceError
from foretile.kernels.frontend import macro, prim_func
from foretile.kernels.loops import Parallel, Persistent, Pipelined, grid, serial, unroll, vectorized
from foretile.kernels.mathops import *
from foretile.kernels.mathops import absolute as abs
from foretile.kernels.mathops import if_then_else as Select
from foretile.kernels.mathops import maximum as max
from foretile.kernels.mathops import minimum as min
from foretile.kernels.mathops import power as pow
from foretile.kernels.mathops import round_ as round
from foretile.kernels.notes import *
from foretile.kernels.products import *
from foretile.kernels.threads import *
from foretile.kernels.threads import hint
from foretile.kernels.tileops import *
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

_HINTS = frozenset(
    (
        *("print", "device_assert", "set_max_nreg", "inc_max_nreg", "dec_max_nreg", "no_set_max_nreg"),
        *("annotate_producer_reg_dealloc", "annotate_consumer_reg_alloc", "disable_warp_group_reg_alloc"),
        *("fence_proxy_async", "pdl_sync", "pdl_trigger", "deallocate_tmem", "warpgroup_arrive"),
        *("warpgroup_fence_operand", "tcgen05_before_thread_sync", "tcgen05_after_thread_sync"),
        *("ptx_fence_barrier_init", "prefetch_tma_descriptor"),
    )
)
_REFUSED = frozenset(["call_intrin", "ptx_mma", "ptx_ldmatrix", "ptx_cp_async", "tvm_mfma", "ws"])


def __getattr__(name: str) -> Any:
    if name in _HINTS:
        return hint(name)
    if name in _REFUSED:
        raise AttributeError(
            f"T.{name} is refused: it is not traced here; a kernel that needs it is imported from TileLang"
        )
    near = difflib.get_close_matches(name, [*_public(), *_HINTS], n=3)
    hint_ = f"; did you mean {', '.join(f'T.{n}' for n in near)}?" if near else " (see docs/language.md)"
    raise AttributeError(f"T.{name} is not part of the tile language{hint_}")


def _public() -> list[str]:
    """The names of the language."""
    return __all__


__all__ = [
    "Buffer",
    "Kernel",
    "Parallel",
    "Persistent",
    "Pipelined",
    "Select",
    "Serial",
    "StridedTensor",
    "Tensor",
    "TraceError",
    "Unroll",
    "Vectorized",
    "abs",
    "bfloat16",
    "bool",
    "cast",
    "dynamic",
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
    "grid",
    "int",
    "int4",
    "int8",
    "int16",
    "int32",
    "int64",
    "macro",
    "max",
    "min",
    "pow",
    "prim_func",
    "reinterpret",
    "round",
    "serial",
    "symbolic",
    "tfloat32",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "unroll",
    "vectorized",
]
__all__ += allocations.__all__
__all__ += notes.__all__
__all__ += mathops.__all__
__all__ += products.__all__
__all__ += threads.__all__
__all__ += tileops.__all__
