"""What the libraries behind kernel sources run: published tiles, and kernels launched by the same call.

An operator's space holds every tile program that may be the fastest. A library has one tile for a head
size, and keeps it where a smaller one would be faster: a FlashAttention 3 decode block of one key takes
as long as one of 128. Nothing here is fitted; tiles are those of the libraries' sources, as far as a tile
program can have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from foretile.kernels.operator import Config, Shape

Array = np.ndarray
Tile = tuple[int, int, int, int]  # query rows, keys, stages, threads
_PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)  # into which decode may split the keys
_CACHE_TYPES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0}
_SHARED_BYTES = 200 * 1024  # of a core's shared memory, what the stages of one block may take on Blackwell
_ACTIVATION_BYTES = 2.0  # new keys and values come in bf16, whatever the cache holds


@dataclass(frozen=True)
class Library:
    """Kernels of some sources. ``operators``, ``kernels`` and ``instructions`` (of matrices) are patterns.

    ``tiles``: those for a shape, most wanted first. ``grouped``: whether the tiles are for more than one
    query head a K/V head (None: for any). ``packs``: whether the rows of a prefill tile are queries of
    all the heads that share a K/V head. ``beside``: what else a call launches:

    * ``cache``: a kernel that writes new keys and values to the paged cache;
    * ``packed``: one that takes packed queries, keys and values apart, and writes the cache;
    * ``cast``: one that turns queries (or keys, or values) into fp8, if the cache is;
    * ``lengths``: one that plans the work from the sequences' lengths.
    """

    operators: str
    kernels: str
    tiles: Callable[[Shape], tuple[Tile, ...]]
    instructions: str = "*"
    grouped: bool | None = None
    packs: bool = False
    beside: tuple[str, ...] = ()

    def configs(self, name: str, shape: Shape) -> list[Config]:
        """The library's configurations of the operator ``name``."""
        tiles = self.tiles(shape)
        if name == "attention_prefill":
            return [
                {"block_m": m, "block_n": n, "num_stages": stages, "threads": threads, "swizzle": swizzle}
                for m, n, stages, threads in tiles
                for swizzle in (8, 0)
            ]
        longest = int(np.max(shape["kv_len"]))
        keys = min(longest, shape["window"]) if shape["window"] else longest
        return [
            {"block_h": h, "block_n": n, "num_stages": stages, "threads": threads, "num_split": parts}
            for h, n, stages, threads in tiles
            for parts in _PARTS
            if parts == 1 or parts <= -(-keys // n)
        ]

    def launched(self, shape: Shape, config: Config) -> Shape:
        """The shape whose blocks do what the library's do.

        Packed, queries fewer than a tile's rows fill it up with the other heads of their K/V head: as many
        rows of fewer heads. (The few keys of so short a sequence are counted longer, too.)
        """
        if not self.packs or "block_m" not in config:
            return shape
        rows = min(config["block_m"], config["block_n"])
        seq, kv_heads = np.asarray(shape["seq"]), np.asarray(shape["kv_heads"])
        packed = seq * np.asarray(shape["heads"]) / kv_heads
        short = seq < rows
        return {
            **shape,
            "seq": np.where(short, np.minimum(rows, packed), seq),
            "heads": np.where(short, kv_heads * np.ceil(packed / rows), shape["heads"]),
        }


def _by_head(sizes: Mapping[int, tuple[Tile, ...]]) -> Callable[[Shape], tuple[Tile, ...]]:
    """Tiles by the largest head size that they serve."""

    def tiles(shape: Shape) -> tuple[Tile, ...]:
        return next((found for most, found in sizes.items() if shape["head_dim"] <= most), ())

    return tiles


_DECODE, _PREFILL = "attention_decode", "attention_prefill"
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
        stages = int(_SHARED_BYTES // (2 * keys * shape["head_dim"] * _CACHE_TYPES[shape["kv_dtype"]]))
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


LIBRARIES: tuple[Library, ...] = (
    Library(_DECODE, "fa3*", _FA3_DECODE, "wgmma", beside=("cache",)),
    Library(_DECODE, "vllm_flash_attn_fa3*", _FA3_DECODE, "wgmma", beside=("cache", "lengths")),
    Library(_DECODE, "vllm_flash_attn* flash_attention*", _FA2, beside=("cache",)),
    Library(_DECODE, "torch_flow torch_flow/*", _filled, "tcgen05", beside=("cache",)),
    Library(_DECODE, "torch_flow torch_flow/*", _NARROW, grouped=False, beside=("cache",)),
    Library(
        _DECODE,
        "torch_flow torch_flow/*",
        _by_head({256: ((128, 128, 1, 256), (128, 64, 1, 256))}),
        "wgmma",
        grouped=True,
        beside=("cache",),
    ),
    # sglang casts Q, K and V for an fp8 cache, one kernel each.
    Library(_DECODE, "trtllm_mha*", _filled, "tcgen05", beside=("cache", "cast", "cast", "cast")),
    Library(_DECODE, "torch_flow* trtllm_mha* *flashinfer*", _filled, "tcgen05", beside=("cache",)),
    Library(_DECODE, "torch_flow* *flashinfer*", _NARROW, beside=("cache",)),
    Library(_DECODE, "*", _unknown, beside=("cache",)),
    # Encoders have no cache: the head size of 80 is served by tiles for 96.
    Library(_PREFILL, "flash_attention_v3", _FA3_PREFILL, "wgmma"),
    Library(_PREFILL, "vllm_vit_flash_attn_fa3", _FA3_PREFILL, "wgmma", beside=("lengths",)),
    Library(_PREFILL, "fa3*", _FA3_PREFILL, "wgmma", packs=True, beside=("cache",)),
    Library(_PREFILL, "vllm_flash_attn_fa3*", _FA3_PREFILL, "wgmma", packs=True, beside=("cache", "lengths")),
    Library(_PREFILL, "vllm_flash_attn*", _FA2, beside=("cache",)),
    Library(_PREFILL, "*fa4 *_v4", _PAIRED, "tcgen05"),
    Library(_PREFILL, "flash_attention", _FLASH, beside=("cache",)),
    Library(_PREFILL, "*flash_attention* *fa2 *fa3 *fa4", _FLASH),
    Library(_PREFILL, "flashinfer vllm_flashinfer_fi*", _FLASH, packs=True, beside=("cache",)),
    Library(_PREFILL, "trtllm_mha*", _PAIRED, "tcgen05", beside=("cache", "cast", "cast", "cast")),
    Library(_PREFILL, "*flashinfer*", _PAIRED, "tcgen05", beside=("cache",)),
    Library(_PREFILL, "torch_flow*", _PAIRED, "tcgen05", beside=("packed",)),
    Library(_PREFILL, "torch_flow*", _FA3_PREFILL, "wgmma", beside=("packed",)),
    Library(_PREFILL, "torch_flow*", _FLASH, beside=("packed",)),
    Library(_PREFILL, "*flashinfer*", _FLASH, beside=("cache",)),
    Library(_PREFILL, "*triton*", _unknown, beside=("cache",)),
)


def library_of(operator: str, kernel: str, instruction: str, grouped: bool) -> Library | None:
    """The first library of the table that runs this kernel source, None if nothing is known of it."""
    for library in LIBRARIES:
        if (
            _named(operator, library.operators)
            and _named(kernel, library.kernels)
            and _named(instruction, library.instructions)
            and library.grouped in (None, grouped)
        ):
            return library
    return None


def _named(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns.split())


def bytes_beside(library: Library, shape: Shape) -> list[Array]:
    """Bytes that each kernel beside the operator's moves one way, by row."""
    batch = np.asarray(shape["batch"], dtype=np.float64)
    found: list[Any] = []
    for kernel in library.beside:
        if kernel == "cache":  # read in the activations' type, written in the cache's
            each = (_ACTIVATION_BYTES + _CACHE_TYPES[shape["kv_dtype"]]) / 2.0
            found.append(2.0 * each * batch * shape.get("seq", 1) * shape["kv_heads"] * shape["head_dim"])
        elif kernel == "cast" and shape["kv_dtype"] == "fp8":
            found.append(1.5 * batch * shape.get("seq", 1) * shape["heads"] * shape["head_dim"])
        elif kernel == "packed":  # read packed, written as Q and into the cache
            heads = shape["heads"] + 2 * np.asarray(shape["kv_heads"])
            found.append(_ACTIVATION_BYTES * batch * shape.get("seq", 1) * heads * shape["head_dim"])
        elif kernel == "lengths":
            found.append(4.0 * batch)
    return found
