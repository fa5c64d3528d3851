"""Kernel-level tables of sparse attention, linear attention, quantisation: what each kernel was given.

``glm5_mqa_logits_module`` (collector/sglang/glm5_dsa_sparse_modules.py): DeepGEMM's fp8_mqa_logits,
``batch_size`` sequences of ``isl`` queries after ``step`` cached keys, causal, 32 index heads of 128
(``num_heads`` counts attention heads). Later keys are left as they were, not set to -inf.

``glm5_topk_module``: 2048 of float32 scores for each of ``batch_size · isl`` rows; indices are turned into
cache positions in the same kernel. ``score_mode`` (flat: all zero, top_last: 2048 clear winners) decides the
passes and is part of the kernel source. Lengths are causal, step + i + 1: calls of equal rows and longest
length differ up to ninefold with isl (H200, n = 492). Mapped where lengths differ by less than a tenth.
Calls of 2048 scores or fewer have a time of zero and are refused.

``glm5_dsa_attn_module``: FlashMLA's flash_mla_sparse_fwd, heads of 576 against 512, bf16: the model's 64
up to Hopper, padded to 128 from Blackwell on, whatever ``num_heads`` says. Every query has 2048 indices:
the first keys of its sequence, and -1 behind them. Keys beyond those are never touched (the time does not
depend on ``step + isl`` past 2048; H200, n = 3025), so kv_len is 2048 at most.

``dsv4_paged_mqa_logits_module`` (deepseekv4_sparse_modules.py): the paged kernel over keys compressed
4 to 1, 64 index heads; each token is a request of its own with its causal length (step + i + 1) / 4, all
reading one cache. Mapped to one sequence of ``batch_size · isl`` queries without a mask where causal
lengths differ by less than a tenth; otherwise the mask over compressed keys is not the operator's.

``dsv4_csa_topk_calib``: 512 (DeepSeek-V4-Flash, 64 heads) or 1024 (Pro, 128 heads) of (step + isl) / 4
scores; v1 in prefill, with causal lengths, v2 in decode. Mapped where lengths differ by less than a tenth.

``gdn`` (collect_gdn.py): chunk_gated_delta_rule of the context phase, all its kernels, with initial and
final states in float32 and the norm of q and k. q and k have ``num_k_heads`` heads, shared by
``num_v_heads``; the operator has as many q and k heads as states.

``scale_matrix`` (collect_computescale.py): bf16 → fp8 with one given scale, no maximum to find: mapped to
quantize with groups of 128, whose bytes differ by one per cent. sglang's are four element-wise kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from foretile.calibration.sources._aic_common import Mapped, Place, Refused, refuse

_GLM5_INDEX_HEADS, _DSV4_INDEX_HEADS = 32, 64
_GLM5_HEADS, _GLM5_HEADS_PADDED = 64, 128
_GLM5_TOPK = 2048
_DSV4_TOPK = {64: 512, 128: 1024}  # by attention heads: Flash, Pro
_COMPRESSED = 4  # tokens a key of DeepSeek-V4's indexer
_UNEVEN = 0.1  # largest spread of causal lengths that counts as equal
_CAUSAL = "a causal mask over keys compressed 4 to 1: the operator's advances a key a query"
_UNEQUAL_ROWS = "rows of unequal length (causal): the operator's are equal"
_NO_DECODE = "one step of a recurrence: no operator"
_NO_CONV = "causal convolution over time: no operator"


def glm5_logits(frame: pd.DataFrame, place: Place) -> Iterator[Mapped | Refused]:
    """Table ``glm5_mqa_logits_module`` → indexer_logits."""
    del place
    params = {
        "batch": frame["batch_size"].to_numpy(),
        "seq": frame["isl"].to_numpy(),
        "kv_len": (frame["step"] + frame["isl"]).to_numpy(),
        "heads": _GLM5_INDEX_HEADS,
        "causal": True,
    }
    yield Mapped(frame.index, "indexer_logits", params)


def glm5_topk(frame: pd.DataFrame, place: Place) -> Iterator[Mapped | Refused]:
    """Table ``glm5_topk_module`` → topk_select."""
    even = frame["isl"] <= _UNEVEN * (frame["step"] + frame["isl"])
    if not even.all():
        yield refuse(place, "long prefill", int((~even).sum()), _UNEQUAL_ROWS)
    for mode, rows in frame[even].groupby("score_mode", sort=False):
        params = {
            "rows": (rows["batch_size"] * rows["isl"]).to_numpy(),
            "cols": (rows["step"] + rows["isl"]).to_numpy(),
            "k": _GLM5_TOPK,
        }
        yield Mapped(rows.index, "topk_select", params, variant=str(mode))


def glm5_attention(frame: pd.DataFrame, place: Place) -> Iterator[Mapped | Refused]:
    """Table ``glm5_dsa_attn_module`` → sparse_mla."""
    heads = _GLM5_HEADS_PADDED if place.instruction == "tcgen05" else _GLM5_HEADS
    params = {
        "batch": frame["batch_size"].to_numpy(),
        "seq": frame["isl"].to_numpy(),
        "heads": heads,
        "topk": _GLM5_TOPK,
        "kv_len": np.minimum(_GLM5_TOPK, (frame["step"] + frame["isl"]).to_numpy()),
        "dtype": "bf16",
    }
    yield Mapped(frame.index, "sparse_mla", params)


def dsv4_logits(frame: pd.DataFrame, place: Place) -> Iterator[Mapped | Refused]:
    """Table ``dsv4_paged_mqa_logits_module`` → indexer_logits without a mask."""
    queries = frame["batch_size"] * frame["isl"]
    even = queries <= _UNEVEN * (frame["step"] + frame["isl"])
    if not even.all():
        yield refuse(place, "long prefill", int((~even).sum()), _CAUSAL)
    rows = frame[even]
    params = {
        "batch": 1,
        "seq": queries[even].to_numpy(),
        "kv_len": np.maximum(1, (rows["step"] + rows["isl"]).to_numpy() // _COMPRESSED),
        "heads": _DSV4_INDEX_HEADS,
        "causal": False,
    }
    yield Mapped(rows.index, "indexer_logits", params)


def dsv4_topk(frame: pd.DataFrame, place: Place) -> Iterator[Mapped | Refused]:
    """Table ``dsv4_csa_topk_calib`` → topk_select."""
    known = frame["num_heads"].isin(list(_DSV4_TOPK))
    if not known.all():
        yield refuse(place, "num_heads", int((~known).sum()), "how many keys this model selects is not known")
    even = frame["isl"] <= _UNEVEN * (frame["step"] + frame["isl"])
    if (known & ~even).any():
        yield refuse(place, "long prefill", int((known & ~even).sum()), _UNEQUAL_ROWS)
    for mode, rows in frame[known & even].groupby("score_mode", sort=False):
        params = {
            "rows": (rows["batch_size"] * rows["isl"]).to_numpy(),
            "cols": ((rows["step"] + rows["isl"]) // _COMPRESSED).to_numpy(),
            "k": rows["num_heads"].map(_DSV4_TOPK).to_numpy(),
        }
        yield Mapped(rows.index, "topk_select", params, variant=str(mode).partition("_")[2])


def delta_rule(frame: pd.DataFrame, place: Place) -> Iterator[Mapped | Refused]:
    """Table ``gdn``: chunk kernels of the context phase → linear_attention."""
    kernels = frame["kernel_source"].astype(str)
    chunk = kernels.str.startswith("chunk_gated_delta_rule") & (frame["phase"] == "context")
    for kernel in sorted(kernels[~chunk].unique()):
        reason = _NO_CONV if "conv1d" in kernel else _NO_DECODE
        yield refuse(place, f"kernel_source={kernel}", int((kernels[~chunk] == kernel).sum()), reason)
    rows = frame[chunk]
    if not len(rows):
        return
    params = {
        "batch": rows["batch_size"].to_numpy(),
        "seq": rows["seq_len"].to_numpy(),
        "heads": rows["num_v_heads"].to_numpy(),
        "head_dim": rows["head_k_dim"].to_numpy(),
        "value_dim": rows["head_v_dim"].to_numpy(),
        "dtype": "bf16",
    }
    # Models of equal states but different q and k heads are different kernels' work: kept apart.
    for shared, part in rows.groupby(rows["num_v_heads"] // rows["num_k_heads"], sort=False):
        chosen = rows.index.isin(part.index)
        own = {k: v[chosen] if isinstance(v, np.ndarray) else v for k, v in params.items()}
        yield Mapped(part.index, "linear_attention", own, variant=f"v_heads_per_k={shared}")


def channel_delta_rule(frame: pd.DataFrame, place: Place) -> Iterator[Mapped | Refused]:
    """Table ``kda``: a decay for every channel, not for every head."""
    for kernel, rows in frame.groupby("kernel_source", sort=True):
        chunk = "the decay is a vector a step and head (KDA): linear_attention's is a number"
        reason = _NO_CONV if "conv1d" in str(kernel) else _NO_DECODE if "fused" in str(kernel) else chunk
        yield refuse(place, f"kernel_source={kernel}", len(rows), reason)


def scale_matrix(frame: pd.DataFrame, place: Place) -> Iterator[Mapped | Refused]:
    """Table ``scale_matrix`` → quantize."""
    del place
    params = {"rows": frame["m"].to_numpy(), "cols": frame["k"].to_numpy(), "dtype": "bf16", "group": 128}
    yield Mapped(frame.index, "quantize", params)
