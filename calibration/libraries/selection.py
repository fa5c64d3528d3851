"""Libraries of top-k selection: SGLang's radix kernels for the indexers of sparse attention."""

from __future__ import annotations

from foretile.calibration.libraries.library import Library
from foretile.kernels.operator import Config, Shape
from foretile.kernels.operators._radix import radix_config

_UNROLLED = 4  # elements that a thread has under way: nvcc unrolls loops of unknown length by four


def _selection(threads: int, listed: int) -> list[Config]:
    """One kernel; where a row fits on chip, the second pass finds it there (in the L1 cache)."""
    return [
        radix_config(variant, _UNROLLED * threads, threads, listed) for variant in ("radix", "radix_kept")
    ]


def _one_thread_a_place(shape: Shape) -> list[Config]:
    """Blocks of k threads, 64 KB for candidates (jit_kernel/csrc/deepseek_v4/topk_v1.cuh)."""
    return _selection(int(shape["k"]), 16384)


def _wide(shape: Shape) -> list[Config]:
    """Blocks of 1024 threads, 32 KB for candidates (sgl-kernel/csrc/elementwise/topk.cu)."""
    del shape
    return _selection(1024, 8192)


SELECTION: tuple[Library, ...] = (
    Library("topk_select", "topk_transform_v1/*", tiles=_one_thread_a_place),
    Library("topk_select", "fast_topk_* topk_transform_v2/*", tiles=_wide),
)
