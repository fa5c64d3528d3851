"""GEMM tables: operand types, what is measured with the product, and the copies that repetitions rotate.

``gemm`` (collector/{trtllm,vllm,sglang}/collect_gemm.py): ``y = x · Wᵀ`` with W stored (n, k), bf16 out.

* bf16: one library call (cuBLASLt).
* fp8, fp8_block, nvfp4: the activation comes in bf16 and is quantised by a launch of its own within the
  measured time (``quantize_a``): per token (sglang fp8, with a scale a column of W), static per tensor
  (vllm fp8), per token and 128 columns (fp8_block), per 16 columns (nvfp4). trtllm's fp8 finds the scale
  of the tensor at run time (``find_scale``): launches of its own, a floor of about 12 µs.
* Copies. trtllm: weights, ``max(1, min(5, ceil(L2 / weight bytes)))`` (1.0.0: five). vllm: six layers
  share one x; one layer for fp8_block and nvfp4. sglang: up to six closures with an x and a W each (and an
  output for fp8_block and nvfp4), fewer where they would not fit 45 % of the memory.
* Launch: CUDA graph, except vllm's fp8_block, which runs eagerly (a floor of 170 to 350 µs).

``mla_bmm`` (collect_mla_bmm.py): the two batched products that absorb MLA's projections, one batch
entry a head; ``op_name`` mla_gen_pre is (tokens, 128) × (128, 512), mla_gen_post (tokens, 512) × (512, 128).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from foretile.calibration.sources._aic_common import Mapped, Place, Refused, Values, refuse, version_of

_WEIGHT_BYTES = {"bfloat16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "nvfp4": 0.5}
_TRTLLM_COPIES = 5
_LAYERS = 6  # of vllm and sglang
_MEMORY_SHARE = 0.45  # of sglang's budget for copies
_NO_OPERATOR = {
    "int8_wo": "int8 weights with 16-bit activations: no operator",
    "int4_wo": "int4 weights with one scale a column of W, not a group of k: no operator",
    "sq": "SmoothQuant int8 with scales a token and a column: no operator",
}


def gemm(frame: pd.DataFrame, place: Place) -> Iterator[Mapped | Refused]:
    """Table ``gemm``: m, n, k by type of operands."""
    for dtype, rows in frame.groupby("gemm_dtype", sort=False):
        kind = str(dtype)
        if kind not in _WEIGHT_BYTES:
            yield refuse(place, f"gemm_dtype={kind}", len(rows), _NO_OPERATOR.get(kind, "unknown type"))
            continue
        sizes = {name: rows[name].to_numpy() for name in ("m", "n", "k")}
        operator, params = _operator(kind, sizes, rows, place)
        eager = place.framework == "vllm" and kind == "fp8_block"
        yield Mapped(rows.index, operator, params, _copies(kind, sizes, place), "eager" if eager else "graph")


def _scales(rows: pd.DataFrame, place: Place) -> np.ndarray:
    """Type of block scales (rows,): DeepGEMM on Blackwell takes powers of two, which the engine applies."""
    deep = rows["kernel_source"].str.lower().str.contains("deepgemm").to_numpy(dtype=bool)
    return np.where(deep & (place.instruction == "tcgen05"), "fp8_e8m0", "fp32")


def _operator(kind: str, sizes: Values, rows: pd.DataFrame, place: Place) -> tuple[str, Values]:
    if kind == "bfloat16":
        return "gemm", {**sizes, "dtype": "bf16", "trans_b": True, "out_dtype": "bf16"}
    params = {**sizes, "out_dtype": "bf16", "quantize_a": True}
    if kind == "fp8":
        params["per_row"] = place.framework == "sglang"
        params["find_scale"] = place.framework == "trtllm"
    if kind == "fp8_block":
        params["scale_dtype"] = _scales(rows, place)
    return f"gemm_{kind}", params


def _copies(kind: str, sizes: Values, place: Place) -> Values:
    """Buffers that the repetitions rotate through, by tensor: B the weights, X what A is quantised from."""
    weights = sizes["n"].astype(np.float64) * sizes["k"] * _WEIGHT_BYTES[kind]
    if place.framework == "trtllm":
        if version_of(place.version) < (1, 3):
            return {"B": _TRTLLM_COPIES}
        return {"B": np.clip(np.ceil(place.l2_bytes / weights), 1, _TRTLLM_COPIES).astype(int)}
    if place.framework == "vllm":
        return {} if kind in ("fp8_block", "nvfp4") else {"B": _LAYERS}
    copies = _sglang_copies(kind, sizes, weights, place)
    tensors = {"bfloat16": "A B", "fp8": "X B"}.get(kind, "X B C").split()
    return dict.fromkeys(tensors, copies)


def _sglang_copies(kind: str, sizes: Values, weights: np.ndarray, place: Place) -> np.ndarray:
    """Six, or as many as fit the budget beside what making a weight needs for a moment."""
    m, n, k = (sizes[name].astype(np.float64) for name in ("m", "n", "k"))
    kept = 2 * m * k + 2 * m * n + (0.75 * n * k if kind == "nvfp4" else weights)
    if kind == "fp8":
        kept += m * k
    moment = {"bfloat16": 0.0, "nvfp4": 2.0}.get(kind, 4.0) * n * k
    if version_of(place.version) < (0, 5, 14):
        return np.full(len(m), _LAYERS)
    budget = _MEMORY_SHARE * place.dram_bytes
    copies: np.ndarray = np.clip(np.floor((budget - moment) / kept), 1, _LAYERS).astype(int)
    return copies


_ABSORBED = {"mla_gen_pre": (512, 128), "mla_gen_post": (128, 512)}  # op_name → n, k


def mla_bmm(frame: pd.DataFrame, place: Place) -> Iterator[Mapped | Refused]:
    """Table ``mla_bmm``: batched products, one a head."""
    for (kernel, dtype, name), rows in frame.groupby(["kernel_source", "bmm_dtype", "op_name"], sort=False):
        plain = dtype == "bfloat16" or "dequant_bf16" in str(kernel)
        if not plain and place.framework == "trtllm":
            reason = "fp8 with block scales, in batches: gemm_fp8_block has no batch"
            yield refuse(place, f"kernel_source={kernel}, bmm_dtype={dtype}", len(rows), reason)
            continue
        n, k = _ABSORBED[str(name)]
        params = {
            "m": rows["num_tokens"].to_numpy(),
            "n": n,
            "k": k,
            "batch": rows["num_heads"].to_numpy(),
            "dtype": "bf16" if plain else "fp8",
            "trans_b": True,
            "out_dtype": "bf16",
        }
        yield Mapped(rows.index, "gemm", params)
