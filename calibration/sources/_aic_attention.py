"""Attention tables: lengths, cached types, what runs beside attention, and the absorbed forms of MLA.

``context_attention`` (collector/{trtllm,vllm,sglang}/collect_attn.py): ``isl`` queries of each of
``batch_size`` sequences, causal; ``step`` is 0, nothing is cached before. ``window_size`` 0 is none; a
window counts the query's own key (vllm passes ``window - 1`` to the left). Heads are those of one rank.
The time includes writing K and V to the paged cache: a kernel of its own in vllm and sglang (which also
turns them into fp8 for an fp8 cache); trtllm's kernel before attention splits the packed QKV, applies
RoPE and writes the cache. With ``head_dim`` 64 trtllm adds attention sinks.

``generation_attention``: one query; ``step`` keys are cached before it, so kv_len is ``step + 1``.
The new token's K and V are written in the same time.

Types. ``attn_dtype`` fp8 is fp8 Q, K, V and products. With ``attn_dtype`` bfloat16 and an fp8 cache,
kernels that take the cache as it is multiply in fp8 (vllm casts Q outside the measured time, sglang
inside): FlashAttention 3 and 4, FlashInfer's trtllm kernels, and trtllm's own where the matrix unit is
asynchronous. They are mapped to dtype fp8, marked ``kv_fp8`` in the kernel source; FlashInfer's own and
Triton's kernels widen the cache and stay bf16. (Of trtllm's this is inferred: on Hopper these rows of
prefill reach 745 TFLOP/s, those with a bf16 cache 510; on L40S both 141.)

``encoder_attention`` (collect_attn_encoder.py): no mask, no cache, as many K/V heads as query heads.

``context_mla``, ``generation_mla`` (collect_mla.py): ``num_heads`` are those of one rank already
(64 or 128 over ``tp_size``), so shapes repeat. trtllm prefill: heads of 192 against 128, RoPE and latent
cache written by a kernel before. sglang prefill with flash_attention and triton: absorbed, 576 against
512, one key head, so no mla_prefill; with trtllm_mla heads of 192 against 128. Decode: absorbed, the
latent cache of 576. With an fp8 cache it holds 576 fp8 a token and one scale in all.

All repeat one set of buffers: what fits the L2 is found there.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd

from foretile.calibration.sources._aic_common import ASYNCHRONOUS, Mapped, Place, Refused, refuse, version_of

_DTYPES = {"bfloat16": "bf16", "fp8": "fp8"}
# Kernels that multiply in fp8 when the cache is fp8, whatever attn_dtype says.
_FP8_PRODUCTS = ("fa3", "trtllm_mha", "vllm_flash_attn_fa[34]", "vllm_flashinfer", "vllm_flashinfer_trtllm*")
_FP8_PRODUCTS_ASYNC = ("torch_flow*",)  # only where the matrix unit is asynchronous (Hopper on)

_ABSORBED = ("flash_attention", "triton")  # sglang's prefill of MLA where it is not expanded to heads


def context(frame: pd.DataFrame, place: Place) -> Iterator[Mapped | Refused]:
    """Table ``context_attention`` → attention_prefill."""
    if (frame["step"] != 0).any():
        cached = frame["step"] != 0
        yield refuse(place, "step", int(cached.sum()), "what a step of prefill means is not stated")
        frame = frame[~cached]
    for rows, params, variant in _by_types(frame, place):
        sizes = {"batch": rows["batch_size"].to_numpy(), "seq": rows["isl"].to_numpy()}
        yield Mapped(rows.index, "attention_prefill", {**sizes, **params, "causal": True}, variant=variant)


def generation(frame: pd.DataFrame, place: Place) -> Iterator[Mapped | Refused]:
    """Table ``generation_attention`` → attention_decode."""
    if place.framework == "trtllm" and version_of(place.version) < (1, 3):
        reason = "the cache held one tensor for K and V (SELFKONLY): half of attention's bytes"
        yield refuse(place, "all", len(frame), reason)
        return
    for rows, params, variant in _by_types(frame, place):
        sizes = {"batch": rows["batch_size"].to_numpy(), "kv_len": rows["step"].to_numpy() + 1}
        yield Mapped(rows.index, "attention_decode", {**sizes, **params}, variant=variant)


def _by_types(frame: pd.DataFrame, place: Place) -> Iterator[tuple[pd.DataFrame, dict[str, object], str]]:
    """Rows of one kernel source and pair of types, with the parameters that both operators share."""
    for (kernel, attn, cache), rows in frame.groupby(
        ["kernel_source", "attn_dtype", "kv_cache_dtype"], sort=False
    ):
        cast = attn != "fp8" and cache == "fp8" and _multiplies_fp8(str(kernel), place)
        window = rows["window_size"].fillna(0) if "window_size" in rows else pd.Series(0, index=rows.index)
        params: dict[str, object] = {
            "heads": rows["num_heads"].to_numpy(),
            "kv_heads": rows["num_key_value_heads"].to_numpy(),
            "head_dim": rows["head_dim"].to_numpy(),
            "window": window.to_numpy().astype(int),
            "dtype": "fp8" if cast else _DTYPES[str(attn)],
            "kv_dtype": _DTYPES[str(cache)],
        }
        yield rows, params, "kv_fp8" if cast else ""


def _multiplies_fp8(kernel: str, place: Place) -> bool:
    patterns = _FP8_PRODUCTS + (_FP8_PRODUCTS_ASYNC if place.instruction in ASYNCHRONOUS else ())
    return any(fnmatchcase(kernel, pattern) for pattern in patterns)


def encoder(frame: pd.DataFrame, place: Place) -> Iterator[Mapped | Refused]:
    """Table ``encoder_attention`` → attention_prefill without a mask."""
    del place
    params = {
        "batch": frame["batch_size"].to_numpy(),
        "seq": frame["isl"].to_numpy(),
        "heads": frame["num_heads"].to_numpy(),
        "head_dim": frame["head_dim"].to_numpy(),
        "causal": False,
        "dtype": "bf16",
    }
    yield Mapped(frame.index, "attention_prefill", params)


def context_mla(frame: pd.DataFrame, place: Place) -> Iterator[Mapped | Refused]:
    """Table ``context_mla`` → mla_prefill, where keys and values are bf16."""
    fp8 = frame["kv_cache_dtype"] == "fp8"
    if fp8.any():
        reason = "mla_prefill has no type of its own for keys and values, and kernels multiply in fp8"
        yield refuse(place, "kv_cache_dtype=fp8", int(fp8.sum()), reason)
    absorbed = ~fp8 & frame["kernel_source"].isin(_ABSORBED)
    if absorbed.any():
        reason = (
            "absorbed: 576 against 512 of one latent head, results in the latent; no operator of many queries"
        )
        kernels = ", ".join(sorted(frame["kernel_source"][absorbed].unique()))
        yield refuse(place, f"kernel_source={kernels}", int(absorbed.sum()), reason)
    rows = frame[~fp8 & ~absorbed]
    if not len(rows):
        return
    params = {
        "batch": rows["batch_size"].to_numpy(),
        "seq": rows["isl"].to_numpy(),
        "heads": rows["num_heads"].to_numpy(),
        "prefix": rows["step"].to_numpy(),
        "dtype": "bf16",
    }
    yield Mapped(rows.index, "mla_prefill", params)


def generation_mla(frame: pd.DataFrame, place: Place) -> Iterator[Mapped | Refused]:
    """Table ``generation_mla`` → mla_decode."""
    del place
    params = {
        "batch": frame["batch_size"].to_numpy(),
        "kv_len": frame["step"].to_numpy() + 1,
        "heads": frame["num_heads"].to_numpy(),
        "dtype": "bf16",
        "kv_dtype": np.where(frame["kv_cache_dtype"] == "fp8", "fp8", "bf16"),
    }
    yield Mapped(frame.index, "mla_decode", params)
