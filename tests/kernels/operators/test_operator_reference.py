"""References against formulas written element by element in plain Python."""

import math
from typing import Any

import numpy as np
import pytest

from foretile.kernels.operator import load_operator


def _run(name: str, **given: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    operator = load_operator(name)
    shape = operator.shape(**given)
    inputs = operator.inputs(shape, np.random.default_rng(1))
    return {k: v.astype(np.float64) for k, v in inputs.items()}, operator.reference(shape, **inputs)


def _softmax(x: list[float]) -> list[float]:
    e = [math.exp(v - max(x)) for v in x]
    return [v / math.fsum(e) for v in e]


@pytest.mark.parametrize(("trans_a", "trans_b"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp8", "int8"])
def test_gemm(dtype: str, trans_a: bool, trans_b: bool) -> None:
    x, out = _run("gemm", m=3, n=4, k=5, batch=2, dtype=dtype, trans_a=trans_a, trans_b=trans_b)
    assert x["A"].shape == ((2, 5, 3) if trans_a else (2, 3, 5))
    assert x["B"].shape == ((2, 4, 5) if trans_b else (2, 5, 4))
    for b in range(2):
        for i in range(3):
            for j in range(4):
                terms = [
                    (x["A"][b, p, i] if trans_a else x["A"][b, i, p])
                    * (x["B"][b, j, p] if trans_b else x["B"][b, p, j])
                    for p in range(5)
                ]
                assert out["C"][b, i, j] == pytest.approx(math.fsum(terms), rel=1e-12)


@pytest.mark.parametrize(
    "mask",
    [{"causal": False}, {"causal": False, "prefix": 2}, {}, {"prefix": 3}, {"prefix": 3, "window": 2}],
    ids=str,
)
def test_attention_prefill(mask: dict[str, Any]) -> None:
    x, out = _run("attention_prefill", batch=2, seq=5, heads=4, kv_heads=2, head_dim=16, **mask)
    prefix, window = mask.get("prefix", 0), mask.get("window", 0)
    for b in range(2):
        for i in range(5):
            for h in range(4):
                keys = range(prefix + 5)
                if mask.get("causal", True):
                    keys = range(max(0, prefix + i - window + 1) if window else 0, prefix + i + 1)
                scores = [float(x["Q"][b, i, h] @ x["K"][b, j, h // 2]) / 4.0 for j in keys]
                want = sum(p * x["V"][b, j, h // 2] for p, j in zip(_softmax(scores), keys, strict=True))
                np.testing.assert_allclose(out["O"][b, i, h], want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("window", [0, 3, 9])
def test_attention_decode(window: int) -> None:
    x, out = _run("attention_decode", batch=2, kv_len=7, heads=6, kv_heads=2, head_dim=16, window=window)
    keys = range(max(0, 7 - window) if window else 0, 7)
    for b in range(2):
        for kv_head in range(2):
            for g in range(3):
                scores = [float(x["Q"][b, kv_head, g] @ x["K"][b, j, kv_head]) / 4.0 for j in keys]
                want = sum(p * x["V"][b, j, kv_head] for p, j in zip(_softmax(scores), keys, strict=True))
                np.testing.assert_allclose(out["O"][b, kv_head, g], want, rtol=1e-9, atol=1e-12)


def test_decode_is_the_last_query_of_prefill() -> None:
    prefill, decode = load_operator("attention_prefill"), load_operator("attention_decode")
    shape = prefill.shape(batch=2, seq=9, heads=4, kv_heads=2, head_dim=16, window=5)
    x = prefill.inputs(shape, np.random.default_rng(2))
    last = x["Q"][:, -1].reshape(2, 2, 2, 16)
    alone = decode.shape(batch=2, kv_len=9, heads=4, kv_heads=2, head_dim=16, window=5)
    got = decode.reference(alone, Q=last, K=x["K"], V=x["V"])["O"].reshape(2, 4, 16)
    np.testing.assert_allclose(got, prefill.reference(shape, **x)["O"][:, -1], rtol=1e-12)


def test_rmsnorm() -> None:
    x, out = _run("rmsnorm", rows=3, cols=10)
    for i in range(3):
        mean = math.fsum(v * v for v in x["X"][i]) / 10
        want = [v / math.sqrt(mean + 1e-6) * w for v, w in zip(x["X"][i], x["W"], strict=True)]
        np.testing.assert_allclose(out["Y"][i], want, rtol=1e-12)


def test_softmax() -> None:
    x, out = _run("softmax", rows=3, cols=10, dtype="fp32")
    for i in range(3):
        np.testing.assert_allclose(out["Y"][i], _softmax(list(x["X"][i])), rtol=1e-12)


def test_silu_mul() -> None:
    x, out = _run("silu_mul", rows=3, cols=10)
    want = [g / (1 + math.exp(-g)) * u for g, u in zip(x["Gate"].flat, x["Up"].flat, strict=True)]
    np.testing.assert_allclose(out["Out"].ravel(), want, rtol=1e-12)


def test_copy() -> None:
    x, out = _run("copy", bytes=77)
    np.testing.assert_array_equal(out["Dst"], x["Src"])


def test_operands_are_stored_in_their_type() -> None:
    gemm = load_operator("gemm")
    for short, stored in (("bf16", "bfloat16"), ("fp8", "float8_e4m3fn"), ("int8", "int8")):
        x = gemm.inputs(gemm.shape(m=4, n=4, k=4, dtype=short), np.random.default_rng(0))
        assert x["A"].dtype.name == stored
