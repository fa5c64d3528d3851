"""Rows that measure another algorithm than the operator's: one table of rules, in shape and kernel source.

No rule looks at a time or an error. A row that several rules name gets the reason of the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Rule:
    """``operators`` and ``kernels`` are patterns (``*``); ``when`` picks rows of resolved shapes."""

    operators: str
    kernels: str
    when: Callable[[pd.DataFrame], pd.Series[bool]]
    reason: str


def _every(rows: pd.DataFrame) -> pd.Series[bool]:
    return pd.Series(True, index=rows.index)


def _group(rows: pd.DataFrame) -> pd.Series[int]:
    """Query heads that share a K/V head."""
    return rows["heads"] // rows["kv_heads"]


def _sequences(rows: pd.DataFrame) -> pd.Series[int]:
    """Independent streams of keys: sequences times K/V heads."""
    return rows["batch"] * rows["kv_heads"]


def _masked(rows: pd.DataFrame) -> pd.Series[bool]:
    """Where TensorRT-LLM takes its masked multi-head kernel, not that for grouped queries.

    cpp/tensorrt_llm/kernels/decoderMaskedMultiheadAttention/decoderXQAImplJIT/kernelUtils.cpp. Blackwell's
    data-centre chips have kernels of their own (trtllmGenKernels/fmha).
    """
    beyond = (rows["window"] > 0) & (rows["kv_len"] > rows["window"])
    own_window = (rows["engine"] == "wgmma") & (rows["kv_dtype"] == "fp8")
    return (rows["engine"] != "tcgen05") & ((_group(rows) == 1) | (beyond & ~own_window))


def _limited_groups(rows: pd.DataFrame) -> pd.Series[bool]:
    """DeepSeek-V3's experts: 7168 to 2048 columns, 256 of them, or a rank's share of either."""
    experts, inter = rows["experts"], rows["inter"]
    share = (256 % experts == 0) & (2048 % inter == 0)
    return (rows["hidden"] == 7168) & share


_PREFILL, _DECODE = "attention_prefill", "attention_decode"
RULES: tuple[Rule, ...] = (
    Rule("*", "*", lambda r: r["launch"] == "eager", "launched eagerly: the host's time is measured"),
    # Prefill and encoders.
    Rule(_PREFILL, "*decode *decode/*", _every, "prefill of one query a sequence by a decode kernel"),
    Rule(
        _PREFILL,
        "vllm_flashinfer vllm_flashinfer/*",
        lambda r: r["seq"] == 1,
        "vLLM hands sequences of one query to FlashInfer's decode kernel",
    ),
    Rule(
        _PREFILL,
        "triton vllm_triton_attn",
        lambda r: ~r["causal"] | (r["head_dim"] >= 192) | (r["window"] > 0),
        "Triton fallback: encoders, head_dim of 192 or more, and windows, whose hidden keys it visits",
    ),
    Rule(
        "attention_*",
        "vllm_flash_attn_fa4",
        lambda r: r["head_dim"] > 256,
        "FlashAttention 4 with head_dim above 256",
    ),
    # Decode.
    Rule(
        _DECODE,
        "torch_flow torch_flow/*",
        lambda r: _group(r) > 32,
        "trtllm decode, more than 32 query heads a K/V head: a kernel that reads K and V once a query head",
    ),
    Rule(
        _DECODE,
        "torch_flow torch_flow/*",
        _masked,
        "trtllm decode before Blackwell without grouped queries, or (but for fp8 on Hopper) beyond a window: "
        "a kernel without matrix instructions, a block a query head",
    ),
    Rule(
        _DECODE,
        "vllm_flash_attn vllm_flash_attn_fa2",
        lambda r: (_group(r) == 1) & (_sequences(r) < 64),
        "FlashAttention 2 without grouped queries does not split the keys: too few blocks below 64 heads",
    ),
    Rule(
        _DECODE,
        "vllm_flash_attn vllm_flash_attn_fa2",
        lambda r: (_group(r) > 1) & (r["window"] > 0),
        "FlashAttention 2 with a window groups no queries: K and V are read once a query head",
    ),
    Rule(
        _DECODE,
        "fa3/* vllm_flash_attn_fa3/*",
        _every,
        "FlashAttention 3 on an fp8 cache transposes V within the kernel",
    ),
    Rule(
        _DECODE,
        "triton vllm_triton_attn",
        lambda r: (_sequences(r) <= 16) | (r["head_dim"] >= 192),
        "Triton decode: at most 8 splits of the keys, or head_dim of 192 or more",
    ),
    # Multi-head latent attention.
    Rule(
        "mla_decode",
        "*",
        lambda r: r["kv_dtype"] == "fp8",
        "an fp8 cache of 576 bytes a token with one scale; the operator's has 656 with a scale a group",
    ),
    Rule(
        "mla_decode",
        "triton",
        lambda r: r["heads"] >= 32,
        "Triton decode reads the cache once for every 16 heads",
    ),
    # Sparse attention.
    Rule("indexer_logits", "*paged*", _every, "paged kernel: every query is a request of its own"),
    Rule(
        "indexer_logits",
        "deep_gemm.fp8_mqa_logits",
        lambda r: r["seq"] % (128 // r["heads"]) != 0,
        "DeepGEMM's blocks of 128 / heads queries reach into the next sequence and do the keys of both",
    ),
    # All scores are zero: every one is a candidate to the last digit, of which the kernels keep as many as
    # fit (sgl-kernel/csrc/elementwise/topk.cu); the operator is timed for clear winners.
    Rule("topk_select", "*/flat", _every, "all scores equal: ties only"),
    # Others.
    Rule("quantize", "sglang", _every, "four element-wise kernels one after the other"),
    Rule("moe", "*_min_latency", _every, "without the combination of the experts' results"),
    Rule(
        "moe",
        "sglang_* vllm_fp8moe_* vllm_modelopt* vllm_compressedtensors* vllm_unquantized*",
        _limited_groups,
        "DeepSeek-V3's own gate: four of eight groups, so that an even routing reaches half of the experts",
    ),
    Rule(
        "moe",
        "*/ranks",
        _every,
        "several ranks' experts in Triton or trtllm-gen: tokens and choices of other ranks take time too",
    ),
)


def reasons(operator: str, rows: pd.DataFrame) -> np.ndarray:
    """Why each row is not comparable (rows,), empty if it is.

    ``rows`` has a column for each parameter of the operator, ``kernel_source``, ``launch`` and ``engine``
    (the matrix instruction of the chip).
    """
    result = np.full(len(rows), "", dtype=object)
    for rule in RULES:
        if not any(fnmatchcase(operator, pattern) for pattern in rule.operators.split()):
            continue
        codes, kernels = pd.factorize(rows["kernel_source"].astype(object))
        named = np.array([any(fnmatchcase(k, p) for p in rule.kernels.split()) for k in kernels], dtype=bool)[
            codes
        ]
        chosen = named & rule.when(rows).to_numpy(dtype=bool) & (result == "")
        result[chosen] = rule.reason
    return result
