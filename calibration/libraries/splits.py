"""How libraries split the keys of decode over blocks: their published rules, by row of a table.

Each rule takes the columns of a shape, a configuration and the number of cores, and gives the parts as one
of ``PARTS`` (the nearest below), never more than there are tiles of visible keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from foretile.kernels.operator import Config

Columns = Mapping[str, Any]
Array = np.ndarray
PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_MOST_ELEMENTS = 64 * 256  # of the results of all parts of one head


def held(parts: Any, columns: Columns, config: Config, keys: Any = None) -> Array:
    """The nearest of ``PARTS`` that is not more, nor more than tiles of ``keys`` (the visible ones).

    The program that combines them holds all parts of a head in registers.
    """
    tiles = np.ceil((visible(columns) if keys is None else keys) / config["block_n"])
    most = np.minimum(tiles, _MOST_ELEMENTS // columns["head_dim"])
    wanted = np.maximum(1.0, np.minimum(parts, most))
    found: Array = np.asarray(PARTS)[np.searchsorted(PARTS, wanted, side="right") - 1]
    return found


def visible(columns: Columns) -> Array:
    """Keys that a query sees."""
    keys: Array = np.asarray(columns["kv_len"], dtype=np.float64)
    seen: Array = np.minimum(keys, float(columns["window"]) if columns["window"] else np.inf)
    return seen


def _groups(columns: Columns, rows: int) -> Array:
    """Blocks for the query heads that share a K/V head."""
    found: Array = np.ceil(np.asarray(columns["heads"]) / columns["kv_heads"] / rows)
    return found


def _fullest(blocks: Array, cores: int, tiles: Array, most: int, *, distinct: bool) -> Array:
    """Fewest parts whose last wave is nearly as full as that of the best number of parts.

    Of FlashAttention: 85 % of the best; one part where blocks fill 80 % of the cores. ``distinct``: only
    numbers that make the parts shorter than one part fewer does.
    """
    counts = np.arange(1, most + 1, dtype=np.float64)
    blocks, tiles = (
        np.broadcast_to(x, np.broadcast(blocks, tiles).shape).reshape(-1, 1) for x in (blocks, tiles)
    )
    waves = blocks * counts / cores
    full = waves / np.ceil(waves)
    possible = counts <= np.minimum(tiles, cores)
    if distinct:
        possible &= (counts == 1) | (np.ceil(tiles / counts) != np.ceil(tiles / np.maximum(1.0, counts - 1)))
    full = np.where(possible, full, 0.0)
    enough = full >= 0.85 * full.max(axis=1, keepdims=True)
    return np.where(blocks[:, 0] >= 0.8 * cores, 1.0, counts[np.argmax(enough, axis=1)])


def _flash3_most(columns: Columns, config: Config, cores: int) -> Array:
    """FlashAttention 3's bound for lengths that only the device knows: that of one sequence alone."""
    keys = np.asarray(columns["kv_len"], dtype=np.float64)
    if columns["window"]:
        keys = np.minimum(keys, columns["window"] + config["block_h"])
    tiles = np.ceil(keys / config["block_n"])
    blocks = columns["kv_heads"] * _groups(columns, config["block_h"])
    found = _fullest(blocks, cores, tiles, 128, distinct=False)
    return np.where(tiles <= 4, 1.0, found)


def _flash3_graph_most(columns: Columns, config: Config, cores: int) -> Array:
    """vLLM fixes the bound where it captures graphs: up to 512 tokens."""
    return np.where(np.asarray(columns["batch"]) <= 512, 32.0, _flash3_most(columns, config, cores))


def _flash3(columns: Columns, config: Config, cores: int, most: Array) -> Array:
    """What the kernel before it finds: as many as give every core its share of all tiles, and a tenth.

    hopper/flash_prepare_scheduler.cu; hidden keys of a window are counted.
    """
    tiles = np.ceil(np.asarray(columns["kv_len"], dtype=np.float64) / config["block_n"])
    blocks = columns["batch"] * columns["kv_heads"] * _groups(columns, config["block_h"])
    share = np.ceil(1.1 * tiles * blocks / cores)
    return held(np.minimum(np.ceil(tiles / share), most), columns, config, columns["kv_len"])


def flash3(columns: Columns, config: Config, cores: int) -> Array:
    """FlashAttention 3 (hopper/heuristics.h, flash_prepare_scheduler.cu)."""
    return _flash3(columns, config, cores, _flash3_most(columns, config, cores))


def flash3_graph(columns: Columns, config: Config, cores: int) -> Array:
    """FlashAttention 3 as vLLM calls it."""
    return _flash3(columns, config, cores, _flash3_graph_most(columns, config, cores))


def flash3_combines(columns: Columns, config: Config, cores: int) -> Array:
    """The combination is launched where the bound allows for parts, even if none are made."""
    return np.asarray(_flash3_most(columns, config, cores) > 1)


def flash3_graph_combines(columns: Columns, config: Config, cores: int) -> Array:
    """The same as vLLM calls it."""
    return np.asarray(_flash3_graph_most(columns, config, cores) > 1)


def flash2(columns: Columns, config: Config, cores: int) -> Array:
    """FlashAttention 2: two blocks a core; not without grouped queries (csrc/flash_attn/flash_api.cpp)."""
    tiles = np.ceil(visible(columns) / config["block_n"])
    blocks = columns["batch"] * columns["kv_heads"] * _groups(columns, config["block_h"])
    found = _fullest(blocks, 2 * cores, tiles, 128, distinct=True)
    grouped = np.asarray(columns["heads"]) > columns["kv_heads"]
    return held(np.where(grouped, found, 1.0), columns, config)


_XQA_KEYS, _XQA_WAVES, _XQA_SLOTS = 128, 8, 6000


def xqa(columns: Columns, config: Config, cores: int) -> Array:
    """TensorRT-LLM before Blackwell (decoderMaskedMultiheadAttention/decoderXQAImplCommon.h)."""
    parts = np.floor((np.asarray(columns["kv_len"]) - 1.0) / _XQA_KEYS)
    parts = np.maximum(1.0, np.minimum(parts, np.round(np.sqrt(8.0 * parts))))
    waves = columns["batch"] * columns["kv_heads"] * parts / cores / _XQA_WAVES
    parts = np.floor(parts / np.maximum(1.0, waves))
    return held(np.minimum(parts, _XQA_SLOTS // np.asarray(columns["batch"])), columns, config)


def whole(columns: Columns, config: Config, cores: int) -> Array:
    """Never split."""
    del cores
    return held(np.ones(np.shape(columns["kv_len"])), columns, config)


_MASKED_KEYS = 1024  # of a part, at least


def masked(columns: Columns, config: Config, cores: int) -> Array:
    """TensorRT-LLM's kernel of one query head a block: as many as run at once, of 1024 keys at least."""
    blocks = columns["batch"] * np.asarray(columns["heads"]) / config["block_h"]
    return held(np.minimum(visible(columns) / _MASKED_KEYS, 4.0 * cores / blocks), columns, config)


_GEN_KEYS, _GEN_FEW, _GEN_HEADS = 256, 16, 32


def gen(columns: Columns, config: Config, cores: int) -> Array:
    """trtllm-gen on Blackwell: as many as there are cores, of 256 keys (trtllmGenKernels/fmha)."""
    group = np.asarray(columns["heads"]) / columns["kv_heads"]
    tiles = np.where(group <= _GEN_FEW, 1.0, np.ceil(group / _GEN_HEADS))
    blocks = columns["batch"] * columns["kv_heads"] * tiles
    parts = np.minimum(np.ceil(visible(columns) / _GEN_KEYS), np.floor(cores / blocks))
    return held(parts, columns, config)


_TRITON_KEYS, _TRITON_HEADS, _TRITON_PARTS = 64, 16, (1, 2, 4, 8)


def triton_latent(columns: Columns, config: Config, cores: int) -> Array:
    """SGLang's Triton kernel, sequences of one length: as many as there are cores and more for long ones.

    Eight at most (srt/layers/attention/triton_backend.py, ``get_num_kv_splits_triton``).
    """
    del config
    keys = np.asarray(columns["kv_len"], dtype=np.float64)
    wanted = cores * np.maximum(1.0, np.log2(keys / _TRITON_KEYS))
    blocks = columns["batch"] * np.ceil(np.asarray(columns["heads"]) / _TRITON_HEADS)
    wanted = np.clip(np.floor(wanted / blocks), 1.0, _TRITON_PARTS[-1])
    found: Array = np.asarray(_TRITON_PARTS)[np.searchsorted(_TRITON_PARTS, wanted, side="right") - 1]
    return found
