"""Libraries of attention: published tiles by head size, and kernels launched by the same call.

A library has one tile for a head size, and keeps it where a smaller one would be faster: a FlashAttention
3 decode block of one key takes as long as one of 128.

Two kinds of entries. FlashAttention 2 and 3: tile sizes as the libraries have them by head size, as far as
a tile program can (3: hopper/tile_size.h); rows of decode with more than 16 query heads a K/V head, of
FlashInfer and trtllm-gen. How decode splits keys is in ``splits``. All other tiles
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
from foretile.calibration.libraries.splits import (
    PARTS,
    flash2,
    flash3,
    flash3_combines,
    flash3_graph,
    flash3_graph_combines,
    gen,
    masked,
    whole,
    xqa,
)
from foretile.kernels.operator import Config, Shape

Tile = tuple[int, int, int, int]  # query rows, keys, stages, threads
Tiles = Callable[[Shape], tuple[Tile, ...]]
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
        # Some rules split hidden keys, too.
        keys = min(longest, shape["window"]) if shape["window"] and "parts" not in more else longest
        return [
            {"block_h": h, "block_n": n, "num_stages": stages, "threads": threads, "num_split": parts}
            for h, n, stages, threads in tiles(shape)
            for parts in PARTS
            if parts == 1 or parts <= -(-keys // n)
        ]

    def shapes(shape: Shape) -> bool:
        return bool(shape["heads"] != shape["kv_heads"]) == grouped

    some = more.pop("shapes", any_shape) if grouped is None else shapes
    more.setdefault("fills", "parts" not in more)
    return Library(_DECODE, kernels, engines, some, tiles=configs, **more)


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
_FA3_NEW_DECODE = _by_head(
    {
        64: ((64, 192, 2, 128),),
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


_FEW = 16  # query heads a K/V head that the least tile of a matrix instruction serves


def _many(shape: Shape) -> bool:
    """More query heads a K/V head than the least tile has rows."""
    return bool(shape["heads"] > _FEW * shape["kv_heads"])


def _filled_by(rows: int) -> Tiles:
    """Tiles of 128 keys, in as many stages as shared memory holds: one block a core."""

    def tiles(shape: Shape) -> tuple[Tile, ...]:
        for keys in (128, 64, 32):
            stages = int(_SHARED_BYTES // (2 * keys * shape["head_dim"] * CACHE_BYTES[shape["kv_dtype"]]))
            if stages > 1:
                return ((rows, keys, stages, 128),)
        return ()

    return tiles


def _gen(kernels: str, beside: tuple[str, ...]) -> tuple[Library, ...]:
    """trtllm-gen on Blackwell: 32 heads a block where 16 are too few, as its split rule counts them."""
    wide = _decode(kernels, _filled_by(32), "tcgen05", shapes=_many, parts=gen, merges="last", beside=beside)
    return wide, _decode(kernels, _filled_by(_FEW), "tcgen05", parts=gen, merges="last", beside=beside)


_NARROW = _by_head({128: ((16, 128, 2, 128), (16, 64, 2, 128)), 256: ((16, 64, 2, 128), (16, 32, 2, 128))})


# FlashInfer's kernel of 16 rows: keys by the shared memory of half a core, one tile of K and V at a time.
_INFER = _by_head(
    {64: ((16, 128, 1, 128),), 128: ((16, 64, 1, 128),), 256: ((16, 64, 1, 128), (16, 32, 1, 128))}
)


# FlashInfer with more than 16 query heads a K/V head: 64 rows (attention/scheduler.cuh, DetermineCtaTileQ;
# its 128 above 64 heads are left out), one tile of K and V, two blocks a core if they fit (prefill.cuh).
_INFER_ROWS, _INFER_SHARED, _INFER_STEP = 64, 100 * 1024, 16


def _infer_many(shape: Shape) -> tuple[Tile, ...]:
    """Keys in steps of 16, doubled up to 128 as far as shared memory of Ada and GB20x holds them."""
    queries = _INFER_ROWS * shape["head_dim"] * CACHE_BYTES[shape["dtype"]]
    step = 2 * _INFER_STEP * shape["head_dim"] * CACHE_BYTES[shape["kv_dtype"]]
    blocks = 2 if 2 * (queries + step) <= _INFER_SHARED else 1
    steps = (_INFER_SHARED // blocks - queries) // step
    tiles = tuple((_INFER_ROWS, n * _INFER_STEP, 1, 128) for n in (8, 4, 2, 1) if n <= steps)
    # Of a narrower cache the program keeps a copy in the products' type: only half of the keys may fit.
    return tiles[: 1 if shape["kv_dtype"] == shape["dtype"] else 2]


def _xqa_tiles(shared: int) -> Tiles:
    """16 query heads, and keys in stages that fill shared memory: one block a core."""

    def tiles(shape: Shape) -> tuple[Tile, ...]:
        bytes_ = CACHE_BYTES[shape["kv_dtype"]]
        wide = 2.0 if bytes_ < CACHE_BYTES[shape["dtype"]] else 0.0  # a copy in the products' type
        found = []
        for keys in (256, 128, 64, 32):
            each = 2 * keys * shape["head_dim"]
            stages = int((shared - wide * each) // (each * bytes_))
            if stages > 1:
                found.append((16, keys, min(stages, 4), 256))
        return tuple(found[:1])

    return tiles


_XQA = _xqa_tiles(200 * 1024)  # Hopper
_XQA_SMALL = _xqa_tiles(88 * 1024)


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


def _MASKED(shape: Shape) -> tuple[Tile, ...]:
    """One query head a block, no matrix instruction."""
    return ((1, 32 if shape["head_dim"] > 128 else 64, 2, 256),)


def _ungrouped(cores: int) -> Callable[[Shape], bool]:
    """Where TensorRT-LLM does not take its kernel for grouped queries (decoderXQAImplJIT/kernelUtils.cpp)."""

    def shapes(shape: Shape) -> bool:
        beyond = bool(shape["window"]) and shape["kv_len"] > shape["window"] and shape["kv_dtype"] != "fp8"
        blocks = shape["batch"] * shape["kv_heads"] * max(1, (shape["kv_len"] - 1) // 128)
        return bool(shape["heads"] == shape["kv_heads"]) or beyond or 4 * blocks < cores

    return shapes


def _wide(shape: Shape) -> bool:
    return bool(shape["head_dim"] >= 128)


def _fp8_cache(shape: Shape) -> bool:
    return bool(shape["kv_dtype"] == "fp8")


def _unknown(shape: Shape) -> tuple[Tile, ...]:
    """The whole space."""
    del shape
    return ()


ATTENTION: tuple[Library, ...] = (
    _decode(
        "fa3*",
        _FA3_DECODE,
        "wgmma",
        parts=flash3,
        merges="dependent",
        combines=flash3_combines,
        beside=("cache",),
    ),
    _decode(
        "vllm_flash_attn_fa3*",
        _FA3_NEW_DECODE,
        "wgmma",
        parts=flash3_graph,
        merges="dependent",
        combines=flash3_graph_combines,
        beside=("cache",),
    ),
    _decode("vllm_flash_attn_fa2*", _FA2, parts=flash2, beside=("cache", "lengths", "lengths")),
    _decode("vllm_flash_attn*", _FA2, parts=flash2, beside=("cache",)),
    _decode("flash_attention*", _FA2, beside=("cache",)),
    *_gen("torch_flow torch_flow/*", ("cache", "lengths")),
    *_gen("vllm_flashinfer_trtllmdecode*", ("cache", "lengths")),
    *(
        _decode(
            "torch_flow torch_flow/*", _MASKED, engine, shapes=_ungrouped(cores), parts=masked, merges="last"
        )
        for engine, cores in (("wgmma", 132), ("mma_sync mma_sync/fp8", 142), ("mma_sync+bulk", 188))
    ),
    # The fp8 kernel of chips without wgmma does not split.
    _decode("torch_flow", _XQA_SMALL, "mma_sync*", shapes=_fp8_cache, parts=whole, beside=("cache",)),
    # On Hopper it applies RoPE and writes an fp8 cache itself, where the rotated part is the whole head.
    _decode("torch_flow/*", _XQA, "wgmma", shapes=_wide, parts=xqa, merges="last"),
    _decode("torch_flow torch_flow/*", _XQA, "wgmma", parts=xqa, merges="last", beside=("cache",)),
    _decode("torch_flow", _XQA_SMALL, "mma_sync*", parts=xqa, merges="last", beside=("cache",)),
    # Three kernels more for an fp8 cache, as the least times say: sglang casts Q, K and V, presumably.
    *_gen("trtllm_mha*", ("cache", "cast", "narrowed", "narrowed")),
    *_gen("torch_flow* *flashinfer*", ("cache",)),
    _decode("torch_flow*", _NARROW, beside=("cache",)),
    # sglang turns new keys and values into the cache's type, each by a kernel.
    _decode(
        "flashinfer",
        _infer_many,
        "mma_sync/fp8 mma_sync+bulk",
        shapes=_many,
        beside=("cache", "narrowed", "narrowed"),
    ),
    _decode(
        "vllm_flashinfer_fidecode",
        _infer_many,
        "mma_sync/fp8 mma_sync+bulk",
        shapes=_many,
        beside=("cache", "lengths", "lengths"),
    ),
    _decode("flashinfer", _NARROW, beside=("cache", "narrowed", "narrowed")),
    _decode("vllm_flashinfer_fidecode", _INFER, beside=("cache", "lengths", "lengths")),
    _decode("*flashinfer*", _NARROW, beside=("cache",)),
    _decode("*", _unknown, beside=("cache",)),
    # Encoders have no cache: the head size of 80 is served by tiles for 96.
    _prefill("flash_attention_v3", _FA3_PREFILL, "wgmma"),
    _prefill("vllm_vit_flash_attn_fa3", _FA3_PREFILL, "wgmma", beside=("lengths",)),
    _prefill("fa3*", _FA3_PREFILL, "wgmma", packs=True, beside=("cache",)),
    _prefill("vllm_flash_attn_fa3*", _FA3_PREFILL, "wgmma", packs=True, beside=("cache", "lengths")),
    # Before Hopper and on GB20x: published tiles (FlashAttention 2: 128 queries of four warps) take more
    # registers than the program is counted to have; whichever tile is best stands for them.
    _prefill("vllm_flash_attn*", _unknown, "mma_sync*", beside=("cache",)),
    _prefill("flashinfer vllm_flashinfer_fi*", _unknown, "mma_sync*", packs=True, beside=("cache",)),
    _prefill("torch_flow*", _unknown, "mma_sync+*", beside=("packed", "lengths", "lengths")),
    _prefill("torch_flow*", _unknown, "mma_sync*", beside=("packed",)),
    _prefill("vllm_flash_attn*", _FA2, beside=("cache",)),
    _prefill("*fa4 *_v4", _PAIRED, "tcgen05"),
    # SGLang's is FlashAttention 3 there, which packs queries.
    _prefill("flash_attention", _unknown, "mma_sync", packs=True, beside=("cache",)),
    _prefill("flash_attention", _FLASH, beside=("cache",)),
    _prefill("*flash_attention* *fa2 *fa3 *fa4", _FLASH),
    _prefill("flashinfer vllm_flashinfer_fi*", _FLASH, packs=True, beside=("cache",)),
    _prefill(
        "trtllm_mha*",
        _PAIRED,
        "tcgen05",
        beside=("cache", "lengths", "lengths", "cast", "narrowed", "narrowed"),
    ),
    _prefill("vllm_flashinfer_trtllmprefill*", _PAIRED, "tcgen05", beside=("cache", "lengths", "lengths")),
    _prefill("*flashinfer*", _PAIRED, "tcgen05", beside=("cache",)),
    _prefill("torch_flow*", _PAIRED, "tcgen05", beside=("packed", "lengths", "lengths", "lengths")),
    _prefill("torch_flow*", _FA3_PREFILL, "wgmma", beside=("packed", "lengths", "lengths", "lengths")),
    _prefill("*flashinfer*", _FLASH, beside=("cache",)),
    _prefill("*triton*", _unknown, beside=("cache",)),
)
