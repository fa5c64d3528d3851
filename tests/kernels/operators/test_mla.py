"""Latent attention, its indexer and its selection: contract, counts, references, refusals."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from foretile.kernels.operator import Operator, OperatorError, load_operator

# name: its parameters as (name, default, dynamic); None for no default.
CONTRACT: dict[str, tuple[tuple[str, Any, bool], ...]] = {
    "mla_decode": (
        ("batch", None, True),
        ("kv_len", None, True),
        ("heads", None, True),
        ("dtype", "bf16", False),
        ("kv_dtype", "=dtype", False),
    ),
    "mla_prefill": (
        ("batch", None, True),
        ("seq", None, True),
        ("heads", None, True),
        ("prefix", 0, True),
        ("dtype", "bf16", False),
    ),
    "indexer_logits": (
        ("batch", None, True),
        ("seq", None, True),
        ("kv_len", None, True),
        ("heads", 64, False),
        ("causal", True, False),
    ),
    "topk_select": (("rows", None, True), ("cols", None, False), ("k", None, False)),
    "sparse_mla": (
        ("batch", None, True),
        ("seq", None, True),
        ("heads", 128, True),
        ("topk", 2048, True),
        ("kv_len", 32768, True),
        ("dtype", "bf16", False),
    ),
}
SMALL: dict[str, dict[str, Any]] = {
    "mla_decode": {"batch": 2, "kv_len": 5, "heads": 3},
    "mla_prefill": {"batch": 2, "seq": 4, "heads": 3, "prefix": 2},
    "indexer_logits": {"batch": 2, "seq": 3, "kv_len": 5, "heads": 8},
    "topk_select": {"rows": 3, "cols": 50, "k": 7},
    "sparse_mla": {"batch": 2, "seq": 1, "heads": 3, "topk": 6, "kv_len": 6},
}

EACH = pytest.mark.parametrize("name", CONTRACT)


def _made(
    name: str, seed: int = 1, **given: Any
) -> tuple[Operator, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The operator, its shape, operands in float64 and their reference."""
    operator = load_operator(name)
    shape = operator.shape(**{**SMALL[name], **given})
    inputs = operator.inputs(shape, np.random.default_rng(seed))
    return (
        operator,
        shape,
        {k: v.astype(np.float64) for k, v in inputs.items()},
        operator.reference(shape, **inputs),
    )


def _attended(scores: list[float], values: np.ndarray) -> np.ndarray:
    """Softmax of a list of scores, applied to rows of values, term by term."""
    weights = [math.exp(s - max(scores)) for s in scores]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)


@EACH
def test_parameters(name: str) -> None:
    operator = load_operator(name)
    assert tuple((p.name, p.default, p.dynamic) for p in operator.params) == CONTRACT[name]
    assert operator.name == name
    assert operator.shape(**operator.example)


@EACH
def test_configurations_are_plain_distinct_and_of_whole_warps(name: str) -> None:
    operator = load_operator(name)
    for given in (SMALL[name], operator.example):
        space = operator.configs(operator.shape(**given))
        assert 8 <= len(space) <= 48
        assert len({tuple(c.items()) for c in space}) == len(space)
        assert {tuple(c) for c in space} == {tuple(space[0])}
        assert all(c["threads"] % 32 == 0 and c["threads"] <= 1024 for c in space)


@pytest.mark.parametrize(
    ("name", "given"),
    [*((name, {}) for name in CONTRACT), ("mla_decode", {"kv_dtype": "fp8"}), ("topk_select", {"k": 50})],
)
def test_bytes_are_those_of_the_operands_and_results(name: str, given: dict[str, Any]) -> None:
    operator = load_operator(name)
    shape = operator.shape(**{**SMALL[name], **given})
    inputs = operator.inputs(shape, np.random.default_rng(0))
    stored = 4 if name in ("indexer_logits", "topk_select") else 2
    results = sum(r.size * stored for r in operator.reference(shape, **inputs).values())
    assert operator.min_bytes(shape) == sum(a.nbytes for a in inputs.values()) + results


def test_a_token_of_the_fp8_cache_has_the_656_bytes_of_flash_mla() -> None:
    decode = load_operator("mla_decode")
    one, two = (decode.shape(batch=1, kv_len=n, heads=1, kv_dtype="fp8") for n in (1, 2))
    assert decode.min_bytes(two) - decode.min_bytes(one) == 512 + 4 * 4 + 64 * 2


@pytest.mark.parametrize(
    ("name", "given", "pairs", "each"),
    [
        ("mla_decode", {}, 2 * 3 * 5, 2 * (576 + 512)),
        ("mla_prefill", {}, 2 * 3 * (3 + 4 + 5 + 6), 2 * (192 + 128)),
        ("indexer_logits", {}, 2 * 8 * (3 + 4 + 5), 2 * 128),
        ("indexer_logits", {"causal": False}, 2 * 8 * 3 * 5, 2 * 128),
        ("sparse_mla", {"seq": 4, "topk": 5}, 2 * 4 * 3 * 5, 2 * (576 + 512)),
        ("sparse_mla", {"seq": 4, "topk": 9}, 2 * 4 * 3 * 6, 2 * (576 + 512)),
        ("topk_select", {}, 3 * 50, 1),
    ],
)
def test_operations_are_those_of_the_visible_pairs(
    name: str, given: dict[str, Any], pairs: int, each: int
) -> None:
    operator = load_operator(name)
    assert operator.flops(operator.shape(**{**SMALL[name], **given})) == pairs * each


@EACH
def test_counts_of_columns_are_those_of_their_elements(name: str) -> None:
    operator = load_operator(name)
    key = {"topk_select": "rows", "sparse_mla": "topk", "mla_prefill": "seq"}.get(name, "kv_len")
    sizes = np.array([5, 7, 130, 200_000], dtype=np.int32)
    for count in (operator.flops, operator.min_bytes):
        alone = [count(operator.shape(**{**SMALL[name], key: int(n)})) for n in sizes]
        assert all(type(n) is int for n in alone)
        assert list(count(operator.shape(**{**SMALL[name], key: sizes}))) == alone


# -- references ------------------------------------------------------------------------------


def test_absorbed_decode_is_the_last_query_of_expanded_prefill() -> None:
    """Keys and values expanded from the latents by any projection give what absorbing them gives."""
    rng, heads, kv_len = np.random.default_rng(2), 3, 9
    up_k, up_v = rng.standard_normal((heads, 128, 512)) / 20, rng.standard_normal((heads, 512, 128))
    latent, rope = rng.standard_normal((2, kv_len, 512)), rng.standard_normal((2, kv_len, 64))
    q = rng.standard_normal((2, 1, heads, 192))

    prefill, decode = load_operator("mla_prefill"), load_operator("mla_decode")
    expanded = prefill.reference(
        prefill.shape(batch=2, seq=1, heads=heads, prefix=kv_len - 1),
        Q=q,
        K=np.einsum("btl,hdl->bthd", latent, up_k),
        K_rope=rope,
        V=np.einsum("btl,hld->bthd", latent, up_v),
    )["O"]
    absorbed_q = np.concatenate((np.einsum("bhd,hdl->bhl", q[:, 0, :, :128], up_k), q[:, 0, :, 128:]), -1)
    absorbed = decode.reference(
        decode.shape(batch=2, kv_len=kv_len, heads=heads),
        Q=absorbed_q,
        KV=np.concatenate((latent, rope), axis=-1),
    )["O"]
    np.testing.assert_allclose(np.einsum("bhl,hld->bhd", absorbed, up_v), expanded[:, 0], rtol=1e-10)


@pytest.mark.parametrize("kv_dtype", ["bf16", "fp8"])
def test_decode_reference(kv_dtype: str) -> None:
    _, _, x, out = _made("mla_decode", kv_dtype=kv_dtype)
    for b, h in itertools.product(range(2), range(3)):
        keys = x["KV"][b]
        if kv_dtype == "fp8":
            assert np.abs(x["KV"]).max() == 448.0
            scales = [[x["KV_scale"][b, t, i // 128] for i in range(512)] for t in range(5)]
            keys = np.concatenate((keys * np.array(scales), x["K_rope"][b]), axis=-1)
        scores = [float(x["Q"][b, h] @ key) / math.sqrt(192) for key in keys]
        np.testing.assert_allclose(out["O"][b, h], _attended(scores, keys[:, :512]), rtol=1e-9, atol=1e-12)


def test_prefill_reference() -> None:
    _, _, x, out = _made("mla_prefill")
    for b, s, h in itertools.product(range(2), range(4), range(3)):
        q = x["Q"][b, s, h]
        seen = range(2 + s + 1)
        scores = [
            (float(q[:128] @ x["K"][b, t, h]) + float(q[128:] @ x["K_rope"][b, t])) / 192**0.5 for t in seen
        ]
        values = x["V"][b, : len(seen), h]
        np.testing.assert_allclose(out["O"][b, s, h], _attended(scores, values), rtol=1e-9, atol=1e-12)


def test_sparse_reference_with_holes_repetitions_and_nothing() -> None:
    operator, shape, x, _ = _made("sparse_mla", seq=3)
    indices = np.array([[[0, 3, -1, 3, -1, 5], [-1] * 6, [2, -1, -1, -1, -1, -1]]] * 2, dtype=np.int32)
    out = operator.reference(shape, Q=x["Q"], KV=x["KV"], Indices=indices)["O"]
    for b, h in itertools.product(range(2), range(3)):
        named = x["KV"][b, [0, 3, 3, 5]]
        scores = [float(x["Q"][b, 0, h] @ key) / math.sqrt(192) for key in named]
        np.testing.assert_allclose(out[b, 0, h], _attended(scores, named[:, :512]), rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(out[b, 1, h], 0.0)
        np.testing.assert_allclose(out[b, 2, h], x["KV"][b, 2, :512], rtol=1e-12)


def test_sparse_attention_to_all_keys_is_dense() -> None:
    _, _, x, sparse = _made("sparse_mla")
    decode = load_operator("mla_decode")
    dense = decode.reference(decode.shape(batch=2, kv_len=6, heads=3), Q=x["Q"][:, 0], KV=x["KV"])
    np.testing.assert_allclose(sparse["O"][:, 0], dense["O"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_indexer_reference(causal: bool) -> None:
    _, _, x, out = _made("indexer_logits", causal=causal)
    for b, s, t in itertools.product(range(2), range(3), range(5)):
        if causal and t > 5 - 3 + s:
            assert out["Logits"][b, s, t] == -math.inf
            continue
        terms = [x["W"][b, s, h] * max(0.0, float(x["Q"][b, s, h] @ x["K"][b, t])) for h in range(8)]
        assert out["Logits"][b, s, t] == pytest.approx(math.fsum(terms) * x["K_scale"][b, t], rel=1e-9)


def test_selection_reference() -> None:
    operator, shape, x, out = _made("topk_select")
    for row, index in zip(x["X"], out["Index"].astype(int), strict=True):
        assert sorted(row[index]) == sorted(row)[-7:]
    other = {"Index": out["Index"][:, ::-1]}
    for name, wanted in operator.comparable(shape, x, out).items():
        np.testing.assert_array_equal(operator.comparable(shape, x, other)[name], wanted)


def test_wrong_selections_are_told_from_right_ones() -> None:
    operator, shape, x, out = _made("topk_select")
    right = operator.comparable(shape, x, out)
    smallest = np.argmin(x["X"], axis=1)
    for column, wrong in ((0, smallest), (1, out["Index"][:, 0])):  # a smaller element, the same one twice
        index = out["Index"].copy()
        index[:, column] = wrong
        found = operator.comparable(shape, x, {"Index": index})
        assert any(np.any(found[name] != right[name]) for name in right)
    twice = {"X": np.zeros_like(x["X"])}  # among equal elements only the count tells
    found = operator.comparable(shape, twice, {"Index": np.zeros((3, 7))})
    assert np.all(found["distinct"] == 1)


# -- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("mla_decode", {"kv_dtype": "fp16"}, "the cache holds bf16 or fp8"),
        ("mla_decode", {"dtype": "fp8"}, "not one of bf16, fp16"),
        ("mla_prefill", {"prefix": -1}, "at least 0"),
        ("indexer_logits", {"seq": 9}, "seq=9 is more than kv_len=5"),
        ("indexer_logits", {"heads": 12}, "heads=12 is not a multiple of 8"),
        ("topk_select", {"k": 51}, "k=51 is more than cols=50"),
        ("sparse_mla", {"topk": 0}, "at least 1"),
    ],
)
def test_refusals_say_what_is_right(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        load_operator(name).shape(**{**SMALL[name], **given})
