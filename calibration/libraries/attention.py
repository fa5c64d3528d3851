"""Libraries of attention: published tiles by head size, and kernels launched by the same call.

A library has one tile for a head size, and keeps it where a smaller one would be faster: a FlashAttention
3 decode block of one key takes as long as one of 128.

Two kinds of entries. FlashAttention 2 and 3: tile sizes as the libraries have them by head size, as far as
a tile program can (to be checked against their sources: written down from knowledge of them). All others
are stand-ins, picked among a few candidates by the error on rows that may be fitted (H200, B200, L40S,
A100): tiles of TensorRT-LLM's and FlashInfer's kernels, and what a call launches beside them, which was
inferred from the least times of the tables (one launch of the chip for each kernel).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from foretile.calibration.libraries.beside import CACHE_BYTES
from foretile.calibration.libraries.library import Library, any_shape
from foretile.kernels.operator import Config, Shape

Tile = tuple[int, int, int, int]  # query rows, keys, stages, threads
Tiles = Callable[[Shape], tuple[Tile, ...]]
_PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)  # into which decode may split the keys
_SHARED_BYTES = 200 * 1024  # of a core's shared memory, what the stages of one block may take on Blackwell
_DECODE, _PREFILL = "attention_decode", "attention_prefill"


def _prefill(kernels: str, tiles: Tiles, engines: str = "*", **more: Any) -> Library:
    def configs(shape: Shape) -> list[Config]:
        return [
            {"block_m": m, "block_n": n, "num_stages": stages, "threads": threads, "swizzle": swizzle}
            for m, n, stages, threads in tiles(shape)
            for swizzle in (8, 0)
        ]

    return Library(_PREFILL, kernels, engines, tiles=configs, **more)


def _decode(
    kernels: str, tiles: Tiles, engines: str = "*", grouped: bool | None = None, **more: Any
) -> Library:
    """``grouped``: whether the tiles are for more than one query head a K/V head (None: for any)."""

    def configs(shape: Shape) -> list[Config]:
        longest = int(np.max(shape["kv_len"]))
        keys = min(longest, shape["window"]) if shape["window"] else longest
        return [
            {"block_h": h, "block_n": n, "num_stages": stages, "threads": threads, "num_split": parts}
            for h, n, stages, threads in tiles(shape)
            for parts in _PARTS
            if parts == 1 or parts <= -(-keys // n)
        ]

    def shapes(shape: Shape) -> bool:
        return bool(shape["heads"] != shape["kv_heads"]) == grouped

    some = any_shape if grouped is None else shapes
    return Library(_DECODE, kernels, engines, some, tiles=configs, fills=True, **more)


def _by_head(sizes: Mapping[int, tuple[Tile, ...]]) -> Callable[[Shape], tuple[Tile, ...]]:
    """Tiles by the largest head size that they serve."""

    def tiles(shape: Shape) -> tuple[Tile, ...]:
        return next((found for most, found in sizes.items() if shape["head_dim"] <= most), ())

    return tiles


# FlashAttention 3 on Hopper (tile sizes by head size; decode of 128 has one group of 64 rows). With a head
# of 64 the published tile has 192 rows, whose registers the program does not share as the library does.
_FA3_DECODE = _by_head(
    {
        64: ((128, 128, 2, 256),),
        128: ((64, 128, 2, 128),),
        192: ((128, 96, 2, 256),),
        256: ((128, 64, 2, 256),),
    }
)
_FA3_PREFILL = _by_head(
    {
        64: ((192, 128, 2, 384), (128, 128, 2, 256)),
        96: ((192, 128, 2, 384), (128, 128, 2, 256)),
        128: ((128, 128, 2, 256),),
        192: ((128, 96, 2, 256),),
        256: ((128, 64, 2, 256),),
    }
)
# FlashAttention 2 with a paged cache: the kernel that can split keys, 64 rows for every head size.
_FA2 = _by_head(
    {64: ((64, 256, 1, 128), (64, 128, 1, 128)), 128: ((64, 128, 1, 128),), 256: ((64, 64, 1, 128),)}
)


def _filled(shape: Shape) -> tuple[Tile, ...]:
    """Tiles of 128 keys for 16 query heads, in as many stages as shared memory holds: one block a core."""
    for keys in (128, 64, 32):
        stages = int(_SHARED_BYTES // (2 * keys * shape["head_dim"] * CACHE_BYTES[shape["kv_dtype"]]))
        if stages > 1:
            return ((16, keys, stages, 128),)
    return ()


_NARROW = _by_head({128: ((16, 128, 2, 128), (16, 64, 2, 128)), 256: ((16, 64, 2, 128), (16, 32, 2, 128))})

# Blackwell: two tiles of 128 queries a block, as far as tensor memory holds their results.
_PAIRED = _by_head(
    {
        64: ((256, 128, 3, 512), (256, 128, 2, 512)),
        128: ((256, 128, 2, 512),),
        192: ((128, 128, 1, 256),),
        256: ((128, 128, 1, 256), (128, 64, 2, 256)),
    }
)
# Elsewhere: 128 queries, and keys as shared memory and registers allow.
_FLASH = _by_head(
    {
        96: ((128, 128, 2, 256), (128, 64, 2, 256), (128, 64, 1, 128)),
        128: ((128, 128, 2, 256), (128, 64, 2, 256), (128, 32, 2, 128)),
        192: ((128, 64, 2, 256), (128, 32, 2, 256), (64, 32, 2, 128)),
        256: ((128, 64, 2, 256), (128, 32, 2, 256), (64, 32, 1, 128)),
    }
)


def _unknown(shape: Shape) -> tuple[Tile, ...]:
    """The whole space."""
    del shape
    return ()


ATTENTION: tuple[Library, ...] = (
    _decode("fa3*", _FA3_DECODE, "wgmma", beside=("cache",)),
    _decode("vllm_flash_attn_fa3*", _FA3_DECODE, "wgmma", beside=("cache", "lengths")),
    _decode("vllm_flash_attn* flash_attention*", _FA2, beside=("cache",)),
    _decode("torch_flow torch_flow/*", _filled, "tcgen05", beside=("cache",)),
    _decode("torch_flow torch_flow/*", _NARROW, grouped=False, beside=("cache",)),
    _decode(
        "torch_flow torch_flow/*",
        _by_head({256: ((128, 128, 1, 256), (128, 64, 1, 256))}),
        "wgmma",
        grouped=True,
        beside=("cache",),
    ),
    # Three kernels more for an fp8 cache, as the least times say: sglang casts Q, K and V, presumably.
    _decode("trtllm_mha*", _filled, "tcgen05", beside=("cache", "cast", "cast", "cast")),
    _decode("torch_flow* trtllm_mha* *flashinfer*", _filled, "tcgen05", beside=("cache",)),
    _decode("torch_flow* *flashinfer*", _NARROW, beside=("cache",)),
    _decode("*", _unknown, beside=("cache",)),
    # Encoders have no cache: the head size of 80 is served by tiles for 96.
    _prefill("flash_attention_v3", _FA3_PREFILL, "wgmma"),
    _prefill("vllm_vit_flash_attn_fa3", _FA3_PREFILL, "wgmma", beside=("lengths",)),
    _prefill("fa3*", _FA3_PREFILL, "wgmma", packs=True, beside=("cache",)),
    _prefill("vllm_flash_attn_fa3*", _FA3_PREFILL, "wgmma", packs=True, beside=("cache", "lengths")),
    _prefill("vllm_flash_attn*", _FA2, beside=("cache",)),
    _prefill("*fa4 *_v4", _PAIRED, "tcgen05"),
    _prefill("flash_attention", _FLASH, beside=("cache",)),
    _prefill("*flash_attention* *fa2 *fa3 *fa4", _FLASH),
    _prefill("flashinfer vllm_flashinfer_fi*", _FLASH, packs=True, beside=("cache",)),
    _prefill("trtllm_mha*", _PAIRED, "tcgen05", beside=("cache", "cast", "cast", "cast")),
    _prefill("*flashinfer*", _PAIRED, "tcgen05", beside=("cache",)),
    _prefill("torch_flow*", _PAIRED, "tcgen05", beside=("packed",)),
    _prefill("torch_flow*", _FA3_PREFILL, "wgmma", beside=("packed",)),
    _prefill("torch_flow*", _FLASH, beside=("packed",)),
    _prefill("*flashinfer*", _FLASH, beside=("cache",)),
    _prefill("*triton*", _unknown, beside=("cache",)),
)
