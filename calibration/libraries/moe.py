"""Libraries of mixtures of experts: tiles they have or pick, and what they launch beside the operator.

The operator gates, permutes rows while quantising them, fuses SwiGLU and quantisation into the first
product, and combines. Libraries differ in where they quantise, what their first product writes, and tiles.
What is marked * is inferred from the public timings, the rest is in the published sources named.

* CUTLASS (TensorRT-LLM, and FlashInfer's copy of it): the grouped product writes gate and up, a kernel of
  its own applies SwiGLU and quantises. Both take the first of their tactics where they were not tuned
  (``mAllProfiles.front()``, flashinfer_cutlass_fused_moe_binding.cu), and aiconfigurator's collector for
  vllm does not tune: on Hopper 128 rows by 16 columns of the weights in one core, two tiles under way*.
  The one for trtllm loads tactics that another case saved; nvfp4 on Blackwell mostly runs as an untuned
  tile of 128 rows by 64 columns would*.
* TensorRT-LLM's block-scaled products on Hopper (fp8_blockscale_gemm): rows are permuted in bf16 and
  quantised by a kernel of their own before each product; time grows by an expert as with DeepGEMM*.
* DeepGEMM's masked products (TensorRT-LLM's fused_moe_deepgemm.py): every block finds its tile by going
  through the groups' counts one after the other, in both products: 0.27 us an expert on B200*.
* trtllm-gen (FlashInfer's trtllm_fused_moe_kernel_launcher.cu): X is quantised token by token; tiles have
  about as many rows as the mean expert; with scales by block SwiGLU is a kernel of its own.
* Triton's fused_moe (vllm, sglang): products of 64 rows by 128 columns, 16 rows for few tokens (vllm's
  ``get_default_config``), SwiGLU and quantisation kernels of their own; in tensor memory one step after
  the other*. An expert's rows are padded to the tile's, and every tile is a block (``moe_align_block_size``).
* TensorRT-LLM's Triton kernel on RTX PRO (fused_moe_triton_fp8_block_scale.py): tiles of 16 rows whatever the
  number of tokens, activations in bf16, weights widened to it on chip; depth and warps tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from foretile.calibration.libraries.library import Library, Where, always
from foretile.kernels.operator import Config, Shape

_GATE_TOKENS = 16  # of a block of the gate, as the operator's first configurations have it
# Cycles of a core for an element of the permuted rows, in TensorRT-LLM's kernel that quantises them on
# Hopper, beyond moving them. Read off the tables of H200 at 16384 tokens; its fit rows are left with errors
# of 13 % at 1.3, 10 % at 1.75 and 9 % at 2.2, those of H100 with 9.5 % at 1.75.
_SLOW_ROWS = 1.75
_FEW_TOKENS = 64  # up to which vllm's default configuration for scales by block has 16 rows


def _dtype(*names: str) -> Callable[[Shape], bool]:
    return lambda shape: shape["dtype"] in names


def _mean_rows(most: int) -> Where:
    return lambda s: np.asarray(s["tokens"]) * s["topk"] <= most * np.asarray(s["experts"])


def _config(rows: int, columns: int, depth: int, stages: int, threads: int, product: str = "fp8") -> Config:
    """Tile of a product; ``columns`` of gate and as many of up."""
    names = ("block_m", "block_n", "block_k", "num_stages", "threads")
    sizes = dict(zip(names, (rows, columns, depth, stages, threads), strict=True))
    return {**sizes, "product": product, "block_t": _GATE_TOKENS}


def _first_tactic(shape: Shape) -> Sequence[Config]:
    """128 rows by 16 columns: eight of gate and eight of up; two tiles under way, as the times say."""
    return [_config(128, 8, 128, 2, 256)]


def _triton_tiles(shape: Shape) -> Sequence[Config]:
    """64 rows take one step after the other: partial sums leave the tensor memory before the next."""
    return [_config(16, 128, 128, 4, 128), _config(64, 128, 128, 1, 128)]


def _wide_rows(shape: Shape) -> Sequence[Config]:
    """16 rows of bf16 by weights widened on chip, the fastest of some depths and warps."""
    return [
        _config(16, 128, depth, stages, threads, "bf16")
        for depth in (64, 128)
        for stages in (3, 4)
        for threads in (128, 256)
    ]


_BLOCK_SCALED_ROWS = (
    (_mean_rows(16), {"block_m": 16, "product": "fp8"}),
    (_mean_rows(32), {"block_m": 32, "product": "fp8"}),
    (always, {"block_m": 64, "block_k": 128, "product": "fp8"}),
)
_TRITON_ROWS = ((lambda s: s["tokens"] <= _FEW_TOKENS, {"block_m": 16}), (always, {"block_m": 64}))
_CUTLASS = "moe_torch_flow_cutlass sglang_flashinfer_cutlass_moe vllm_*_flashinfer_cutlass_*"
_TRITON = "sglang_fused_moe_triton vllm_fused_moe vllm_*_triton_tritonexperts moe_torch_flow_triton_*"
_TRTLLM_GEN = "*flashinfer_trtllm*"
_QUANTISED = ("quantised_tokens", "activation", "quantised_h")

MOE: tuple[Library, ...] = (
    Library(
        "moe",
        "vllm_*_flashinfer_cutlass_*",
        "wgmma",
        shapes=_dtype("fp8"),
        tiles=_first_tactic,
        beside=("activation",),
    ),
    Library(
        "moe",
        _CUTLASS,
        "wgmma",
        shapes=_dtype("fp8_block"),
        beside=("quantised_rows", "activation", "quantised_h"),
        walks=2,
        row_cycles=_SLOW_ROWS,
    ),
    Library(
        "moe",
        "moe_torch_flow_cutlass",
        "tcgen05",
        shapes=_dtype("nvfp4"),
        choices=((always, {"block_m": 128, "block_n": 32}),),
        beside=("activation",),
    ),
    Library("moe", _CUTLASS, shapes=_dtype("fp8", "nvfp4"), beside=("activation",)),
    Library("moe", "deepgemm", "tcgen05", shapes=_dtype("fp8_block"), beside=("activation",), walks=2),
    Library(
        "moe",
        _TRTLLM_GEN,
        "tcgen05",
        shapes=_dtype("fp8_block"),
        choices=_BLOCK_SCALED_ROWS,
        beside=("quantised_tokens", "activation_quantised"),
    ),
    Library("moe", _TRTLLM_GEN, "tcgen05", shapes=_dtype("nvfp4", "fp8"), beside=("quantised_tokens",)),
    Library(
        "moe",
        "moe_torch_flow_triton_fp8_block",
        "mma_sync+*",
        shapes=_dtype("fp8_block"),
        tiles=_wide_rows,
        padded=True,
        beside=("activation",),
    ),
    Library(
        "moe",
        _TRITON,
        "tcgen05",
        shapes=_dtype("fp8_block"),
        tiles=_triton_tiles,
        choices=_TRITON_ROWS,
        padded=True,
        beside=_QUANTISED,
    ),
    Library(
        "moe",
        _TRITON,
        shapes=_dtype("fp8", "fp8_block"),
        padded=True,
        beside=_QUANTISED,
    ),
)
