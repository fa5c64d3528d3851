"""Libraries of top-k selection: SGLang's radix kernels for the indexers of sparse attention."""

from __future__ import annotations

from foretile.calibration.libraries.library import Library
from foretile.kernels.operator import Config, Shape
from foretile.kernels.operators._radix import radix_config

_UNROLLED = 4  # elements that a thread has under way: nvcc unrolls loops of unknown length by four …
_ROLLED = 1  # … but not what is left of them, nor loops over an unsigned index, which may wrap around


def _one_thread_a_place(shape: Shape) -> list[Config]:
    """Blocks of k threads, 64 KB for candidates, unsigned (jit_kernel/csrc/deepseek_v4/topk_v1.cuh).

    Three of them leave the L1 cache too little for rows.
    """
    threads = min(1024, -(-int(shape["k"]) // 32) * 32)
    return [radix_config("radix", _ROLLED * threads, _ROLLED * threads, threads, 16384, "steps")]


def _wide(shape: Shape) -> list[Config]:
    """Blocks of 1024 threads, 128 KB for candidates (sgl-kernel/csrc/elementwise/topk.cu).

    Where a row fits on chip, the second pass finds it there (in the L1 cache).
    """
    del shape
    sizes = (_UNROLLED * 1024, _ROLLED * 1024, 1024, 32768)
    return [radix_config(variant, *sizes, "steps") for variant in ("radix", "radix_kept")]


def _in_registers(shape: Shape) -> list[Config]:
    """Blocks of 1024 threads that read four numbers at once (jit_kernel/csrc/deepseek_v4/topk_v2.cuh)."""
    del shape
    sizes = (_UNROLLED * 1024, _UNROLLED * 1024, 1024, 4096)
    return [radix_config(variant, *sizes, "warps") for variant in ("radix", "radix_kept")]


SELECTION: tuple[Library, ...] = (
    Library("topk_select", "topk_transform_v1/*", tiles=_one_thread_a_place),
    Library("topk_select", "topk_transform_v2/*", tiles=_in_registers),
    Library("topk_select", "fast_topk_*", tiles=_wide),
)
