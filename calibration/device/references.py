"""What operators should give, straightforwardly in float64 on the device: references for measured kernels.

Each takes ``xp`` (NumPy or CuPy), the operator's resolved shape and its operands, decoded, and returns the
outputs. Long axes are worked through in pieces, so that temporaries stay within a few gigabytes. The tests
hold every one of them against the operator's own reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Shape = Mapping[str, Any]
Arrays = dict[str, Any]
Formula = Callable[[Any, Shape, Mapping[str, Any]], Arrays]

_BLOCK = 128  # elements that share a scale: of fp8 block products, and of an fp8 latent cache
_LATENT, _ABSORBED_SCALE = 512, 192.0**-0.5  # DeepSeek-V3's latent width; 1/√(128 + 64)
_PIECE = 1 << 27  # elements of a temporary, about


def _double(x: Any) -> Any:
    return x.astype("float64")


def _softmax(xp: Any, scores: Any) -> Any:
    """Along the last axis; a row without any finite score is zero."""
    top = scores.max(axis=-1, keepdims=True)
    weights = xp.exp(scores - xp.where(xp.isfinite(top), top, 0.0))
    total = weights.sum(axis=-1, keepdims=True)
    return weights / xp.where(total > 0, total, 1.0)


def _gemm(xp: Any, shape: Shape, given: Mapping[str, Any]) -> Arrays:
    a, b = _double(given["A"]), _double(given["B"])
    a = a.swapaxes(-1, -2) if shape["trans_a"] else a
    b = b.swapaxes(-1, -2) if shape["trans_b"] else b
    return {"C": xp.matmul(a, b)}


def _gemm_fp8(xp: Any, shape: Shape, given: Mapping[str, Any]) -> Arrays:
    product = xp.matmul(_double(given["A"]), _double(given["B"]).T)
    return {"C": product * _double(given["A_scale"])[:, None] * _double(given["B_scale"])[None, :]}


def _gemm_fp8_block(xp: Any, shape: Shape, given: Mapping[str, Any]) -> Arrays:
    columns, depth = given["B"].shape
    along = xp.arange(depth) // _BLOCK
    a = _double(given["A"]) * _double(given["A_scale"])[:, along]
    b = _double(given["B"]) * _double(given["B_scale"])[xp.arange(columns) // _BLOCK][:, along]
    return {"C": xp.matmul(a, b.T)}


def _attention_prefill(xp: Any, shape: Shape, given: Mapping[str, Any]) -> Arrays:
    q, k, v = (given[name] for name in ("Q", "K", "V"))
    batch, seq, heads, dim = q.shape
    keys, group = k.shape[1], heads // k.shape[2]
    out = xp.empty(q.shape, "float64")
    step = max(1, _PIECE // keys)
    for b in range(batch):
        for h in range(heads):
            kh, vh = _double(k[b, :, h // group]), _double(v[b, :, h // group])
            for s in range(0, seq, step):
                scores = xp.matmul(_double(q[b, s : s + step, h]), kh.T) * dim**-0.5
                if shape["causal"]:
                    own = shape["prefix"] + xp.arange(s, s + scores.shape[0])[:, None]
                    key = xp.arange(keys)[None, :]
                    seen = key <= own
                    if shape["window"]:
                        seen &= key > own - shape["window"]
                    scores = xp.where(seen, scores, -np.inf)
                out[b, s : s + step, h] = xp.matmul(_softmax(xp, scores), vh)
    return {"O": out}


def _attention_decode(xp: Any, shape: Shape, given: Mapping[str, Any]) -> Arrays:
    q, k, v = (given[name] for name in ("Q", "K", "V"))
    keys = k.shape[1]
    first = keys - min(keys, shape["window"]) if shape["window"] else 0
    out = xp.empty(q.shape, "float64")
    for b in range(q.shape[0]):
        kb, vb = (_double(x[b, first:]).swapaxes(0, 1) for x in (k, v))  # (kv_heads, keys, head_dim)
        weights = _softmax(xp, xp.matmul(_double(q[b]), kb.swapaxes(1, 2)) * q.shape[-1] ** -0.5)
        out[b] = xp.matmul(weights, vb)
    return {"O": out}


def _mla_decode(xp: Any, shape: Shape, given: Mapping[str, Any]) -> Arrays:
    q, kv = given["Q"], given["KV"]
    out = xp.empty((*q.shape[:-1], _LATENT), "float64")
    for b in range(q.shape[0]):
        latent = _double(kv[b, :, :_LATENT])
        if "KV_scale" in given:
            latent = latent * _double(given["KV_scale"][b])[:, xp.arange(_LATENT) // _BLOCK]
            rope = _double(given["K_rope"][b])
        else:
            rope = _double(kv[b, :, _LATENT:])
        tokens = xp.concatenate((latent, rope), axis=-1)
        out[b] = xp.matmul(_softmax(xp, xp.matmul(_double(q[b]), tokens.T) * _ABSORBED_SCALE), latent)
    return {"O": out}


def _sparse_mla(xp: Any, shape: Shape, given: Mapping[str, Any]) -> Arrays:
    q, kv, indices = given["Q"], given["KV"], given["Indices"]
    batch, seq, topk = indices.shape
    out = xp.empty((*q.shape[:-1], _LATENT), "float64")
    step = max(1, _PIECE // (topk * q.shape[-1]))
    for b in range(batch):
        for s in range(0, seq, step):
            picked = indices[b, s : s + step]
            tokens = _double(kv[b][xp.maximum(picked, 0)])  # (queries, topk, 576)
            scores = xp.matmul(_double(q[b, s : s + step]), tokens.swapaxes(1, 2)) * _ABSORBED_SCALE
            scores = xp.where(picked[:, None, :] >= 0, scores, -np.inf)
            out[b, s : s + step] = xp.matmul(_softmax(xp, scores), tokens[:, :, :_LATENT])
    return {"O": out}


def _indexer_logits(xp: Any, shape: Shape, given: Mapping[str, Any]) -> Arrays:
    q, k, scale, w = (given[name] for name in ("Q", "K", "K_scale", "W"))
    batch, seq, heads, _ = q.shape
    keys = k.shape[1]
    out = xp.zeros((batch, seq, keys), "float64")
    for b in range(batch):
        kb = _double(k[b]).T
        for h in range(heads):
            passed = xp.maximum(xp.matmul(_double(q[b, :, h]), kb), 0.0)
            out[b] += _double(w[b, :, h])[:, None] * passed
        out[b] *= _double(scale[b])[None, :]
    if shape["causal"]:
        hidden = xp.arange(keys)[None, :] > keys - seq + xp.arange(seq)[:, None]
        out = xp.where(hidden, -np.inf, out)
    return {"Logits": out}


_RMS_EPS, _LAYER_EPS = 1e-6, 1e-5


def _normalised(xp: Any, x: Any, w: Any) -> Any:
    return x / xp.sqrt((x * x).mean(axis=-1, keepdims=True) + _RMS_EPS) * _double(w)


def _rmsnorm(xp: Any, shape: Shape, given: Mapping[str, Any]) -> Arrays:
    return {"Y": _normalised(xp, _double(given["X"]), given["W"])}


def _add_rmsnorm(xp: Any, shape: Shape, given: Mapping[str, Any]) -> Arrays:
    total = _double(given["X"]) + _double(given["R"])
    return {"R_out": total, "Y": _normalised(xp, total, given["W"])}


def _layernorm(xp: Any, shape: Shape, given: Mapping[str, Any]) -> Arrays:
    x = _double(given["X"])
    x = x - x.mean(axis=-1, keepdims=True)
    deviation = xp.sqrt((x * x).mean(axis=-1, keepdims=True) + _LAYER_EPS)
    return {"Y": x / deviation * _double(given["W"]) + _double(given["B"])}


def _row_softmax(xp: Any, shape: Shape, given: Mapping[str, Any]) -> Arrays:
    return {"Y": _softmax(xp, _double(given["X"]))}


def _copy(xp: Any, shape: Shape, given: Mapping[str, Any]) -> Arrays:
    return {"Dst": given["Src"]}


def _transpose(xp: Any, shape: Shape, given: Mapping[str, Any]) -> Arrays:
    return {"Y": _double(given["X"]).swapaxes(-1, -2)}


def _silu_mul(xp: Any, shape: Shape, given: Mapping[str, Any]) -> Arrays:
    gate = _double(given["Gate"])
    return {"Out": gate / (1.0 + xp.exp(-gate)) * _double(given["Up"])}


FORMULAS: Mapping[str, Formula] = {
    "gemm": _gemm,
    "gemm_fp8": _gemm_fp8,
    "gemm_fp8_block": _gemm_fp8_block,
    "attention_prefill": _attention_prefill,
    "attention_decode": _attention_decode,
    "mla_decode": _mla_decode,
    "sparse_mla": _sparse_mla,
    "indexer_logits": _indexer_logits,
    "rmsnorm": _rmsnorm,
    "add_rmsnorm": _add_rmsnorm,
    "layernorm": _layernorm,
    "softmax": _row_softmax,
    "copy": _copy,
    "transpose": _transpose,
    "silu_mul": _silu_mul,
}
