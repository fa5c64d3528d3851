"""Mixture-of-experts tables: one rank's share of a layer, and how its routing is expressed.

``moe`` (collector/{trtllm,vllm,sglang}/collect_moe.py, routing in collector/helper.py): a rank of
``moe_ep_size`` holds ``num_experts / moe_ep_size`` experts with ``inter_size / moe_tp_size`` columns; all
``num_tokens`` tokens and their router logits are given, and what falls on other ranks' experts is skipped.
Measured are choice of experts (mostly), quantisation of activations, permutation, both products and the
combination; no communication. ``power_law`` rows are five routings in one graph, run once.

* balanced: token t chooses experts t + j·stride, j < topk, stride = ceil(experts / topk), or with fewer
  tokens than the stride t·stride/tokens + j·stride. The rank's rows follow exactly. Where every token has
  c choices on the rank, or c is 0 or 1, they are ``moe`` with c (or 1) choices among the rank's experts;
  the tokens that have none on the rank, and the logits of other ranks' experts, are left out.
* power_law_a: each expert's load is drawn from the density x^-a on [1, 0.8·tokens] ([0.01, 2] for no more
  choices than experts) and scaled to tokens·topk, no more than tokens; the fullest rank is measured. The
  draws are not in the table: with one rank ``distribution`` stands for the density's quantiles, with
  several the rank's rows are not known.
* TensorRT-LLM's Triton kernel (moe_torch_flow_triton_fp8_block) multiplies all choices: they are the rank's.
* Weights are the same in every repetition. What fits the L2 is found there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from foretile.calibration.sources._aic_common import Mapped, Place, Refused, refuse

# Triton kernels, which pass over all choices, and trtllm-gen, which quantises and combines all tokens: those
# of other ranks too.
_ALL_TOKENS = "^triton|sglang_fused_moe_triton|tritonexperts|vllm_fused_moe|flashinfer_trtllm"
# TensorRT-LLM's Triton kernel multiplies the choices that fall on other ranks too: times at 16384 tokens
# are the same for 1 and for 128 ranks.
_MULTIPLIES_ALL = "torch_flow_triton"
_DTYPES = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
# (hidden, inter, experts, topk) of models whose experts are two products without a gate (relu²).
_NO_GATE = {
    (1024, 2688, 512, 22),
    (2048, 5120, 512, 22),
    (2688, 1856, 128, 6),
    (4096, 2688, 512, 22),
    (8192, 5120, 512, 22),
}


def moe(frame: pd.DataFrame, place: Place) -> Iterator[Mapped | Refused]:
    """Table ``moe``: the rank's share as operator ``moe``."""
    for dtype, rows in frame.groupby("moe_dtype", sort=False):
        if dtype not in _DTYPES:
            reason = "weights of four bits with activations of more: moe has no such type"
            yield refuse(place, f"moe_dtype={dtype!s}", len(rows), reason)
            continue
        shape = zip(*(rows[c] for c in ("hidden_size", "inter_size", "num_experts", "topk")), strict=True)
        gateless = np.array([tuple(map(int, key)) in _NO_GATE for key in shape], dtype=bool)
        gateless |= rows["kernel_source"].str.contains("nongated").to_numpy(dtype=bool)
        if gateless.any():
            reason = "experts without a gate: two products, not three"
            yield refuse(place, f"moe_dtype={dtype!s}", int(gateless.sum()), reason)
        yield from _routed(rows[~gateless], str(dtype), place)


def _routed(rows: pd.DataFrame, dtype: str, place: Place) -> Iterator[Mapped | Refused]:
    keys = ["num_tokens", "num_experts", "topk", "moe_ep_size", "distribution"]
    codes = rows.groupby(keys, sort=False).ngroup().to_numpy()
    first = pd.Series(codes).drop_duplicates().index
    shares = [_share(*values) for values in rows[keys].iloc[first].itertuples(index=False, name=None)]
    problems = np.array([share if isinstance(share, str) else "" for share in shares], dtype=object)[codes]
    for problem in sorted(set(problems) - {""}):
        yield refuse(place, f"moe_dtype={dtype}", int((problems == problem).sum()), problem)
    cut = (rows["inter_size"] % rows["moe_tp_size"] != 0).to_numpy() & (problems == "")
    if cut.any():
        reason = "inter_size is no multiple of moe_tp_size"
        yield refuse(place, f"moe_dtype={dtype}", int(cut.sum()), reason)
    good = (problems == "") & ~cut
    kept = rows[good]
    if not len(kept):
        return
    routing = np.array([(0, 0, 0) if isinstance(share, str) else share for share in shares])[codes][good]
    ranks = kept["moe_ep_size"].to_numpy()
    everything = (ranks > 1) & kept["kernel_source"].str.contains(_MULTIPLIES_ALL).to_numpy(dtype=bool)
    routing[everything] = _all_choices(kept[everything])
    params = {
        "tokens": routing[:, 0],
        "hidden": kept["hidden_size"].to_numpy(),
        "inter": (kept["inter_size"] // kept["moe_tp_size"]).to_numpy(),
        "topk": routing[:, 1],
        "experts": (kept["num_experts"] // kept["moe_ep_size"]).to_numpy(),
        "dtype": _DTYPES[dtype],
        "distribution": routing[:, 2],
    }
    # Also those of other ranks' experts, which the others skip.
    shared = (ranks > 1) & kept["kernel_source"].str.contains(_ALL_TOKENS).to_numpy(dtype=bool)
    for variant, chosen in (("", ~shared), ("ranks", shared)):
        if chosen.any():
            some = {n: v[chosen] if isinstance(v, np.ndarray) else v for n, v in params.items()}
            yield Mapped(kept.index[chosen], "moe", some, variant=variant)


def _all_choices(rows: pd.DataFrame) -> np.ndarray:
    """(tokens, choices, distribution) where a rank's experts multiply all choices: of (rows, 3)."""
    topk = np.minimum(rows["topk"].to_numpy(), (rows["num_experts"] // rows["moe_ep_size"]).to_numpy())
    tokens = -(-(rows["num_tokens"] * rows["topk"]).to_numpy() // topk)
    return np.stack([tokens, topk, np.zeros(len(rows), dtype=np.int64)], axis=1)


def _share(tokens: int, experts: int, topk: int, ranks: int, distribution: str) -> tuple[int, int, int] | str:
    """(tokens, choices, distribution) of the rank as operator ``moe`` knows them, or why there are none."""
    tokens, experts, topk, ranks = int(tokens), int(experts), int(topk), int(ranks)
    if distribution == "balanced":
        return _balanced(tokens, experts, topk, ranks)
    name, _, exponent = distribution.rpartition("_")
    if name != "power_law":
        return f"distribution {distribution!r} is not known"
    if ranks > 1:
        return (
            "power law over several ranks: the fullest rank's rows are drawn at random and not in the table"
        )
    return tokens, topk, round(100 * float(exponent))


def _balanced(tokens: int, experts: int, topk: int, ranks: int) -> tuple[int, int, int] | str:
    stride = -(-experts // topk)
    start = np.arange(tokens, dtype=np.float64)[:, None]
    if tokens < stride:
        start = start * stride / tokens
    chosen = np.floor((start + np.arange(topk)[None, :] * stride) % experts).astype(np.int64)
    here = (chosen < experts // ranks).sum(axis=1)
    if (here == here[0]).all() and here[0] > 0:
        return tokens, int(here[0]), 0
    if here.max() == 1:
        return int(here.sum()), 1, 0
    if here.max() == 0:
        return "no token has a choice on the rank"
    return "tokens with different numbers of choices on the rank"
