"""Every configuration traces, with numbers and with symbols, and does the work the counts say."""

from typing import Any

import numpy as np
import pytest
from test_operator_contract import CONTRACT, SMALL
from tile_oracle import gemm_flops

from foretile.kernels import language as T
from foretile.kernels.expr import Binary, Call, Expr, evaluate
from foretile.kernels.ir import Copy, Store, TileProgram, walk_stmts
from foretile.kernels.operator import load_operator
from foretile.kernels.rewrite import map_exprs

VARIATIONS: dict[str, list[dict[str, Any]]] = {
    "gemm": [{}, {"dtype": "fp8", "trans_b": True}, {"dtype": "int8", "trans_a": True, "batch": 3}],
    "attention_prefill": [
        {"prefix": 17},
        {"causal": False, "prefix": 117},
        {"window": 40, "prefix": 17, "kv_dtype": "fp8"},
    ],
    "attention_decode": [{}, {"window": 100, "kv_dtype": "fp8"}],
    "rmsnorm": [{}, {"cols": 40_000}],
    "softmax": [{}, {"cols": 40_000}],
    "silu_mul": [{}],
    "copy": [{}],
}
CASES = [
    pytest.param(name, {**SMALL[name], **other}, id=f"{name}-{i}")
    for name in CONTRACT
    for i, other in enumerate(VARIATIONS[name])
]


def _launches(traced: TileProgram | tuple[TileProgram, ...]) -> tuple[TileProgram, ...]:
    return traced if isinstance(traced, tuple) else (traced,)


def _mirrored(e: Expr) -> Expr:
    """``e`` with every ``b > a`` turned into ``a < b``: Python picks the form by the operands' types."""
    if isinstance(e, Binary):
        a, b = _mirrored(e.a), _mirrored(e.b)
        return Binary({"gt": "lt", "ge": "le"}[e.op], b, a) if e.op in ("gt", "ge") else Binary(e.op, a, b)
    return Call(e.fn, tuple(map(_mirrored, e.args))) if isinstance(e, Call) else e


def _symbolic(name: str, shape: dict[str, Any]) -> dict[str, Any]:
    dynamic = [p.name for p in load_operator(name).params if p.dynamic]
    return {**shape, **{key: T.dynamic(key) for key in dynamic}}


@pytest.mark.parametrize(("name", "given"), CASES)
def test_every_configuration_traces_alike_with_numbers_and_with_symbols(
    name: str, given: dict[str, Any]
) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    for config in operator.configs(shape):
        concrete = _launches(operator.program(shape, config))
        symbolic = _launches(operator.program(_symbolic(name, shape), config))
        assert len(symbolic) == len(concrete)
        for with_numbers, with_symbols in zip(concrete, symbolic, strict=True):
            assert not with_numbers.dims
            assert with_numbers.threads <= 1024
            names = {v.name for v in with_symbols.dims}
            assert names <= {p.name for p in operator.params if p.dynamic}
            bound = with_symbols.bind(**{n: shape[n] for n in names})
            assert map_exprs(bound, _mirrored) == map_exprs(with_numbers, _mirrored), config


@pytest.mark.parametrize(("name", "given"), CASES)
def test_tensors_are_the_inputs_and_the_results(name: str, given: dict[str, Any]) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    inputs = operator.inputs(shape, np.random.default_rng(0))
    results = operator.reference(shape, **inputs)
    for config in operator.configs(shape):
        launches = _launches(operator.program(shape, config))
        tensors = {p.name: tuple(evaluate(e, {}) for e in p.shape) for q in launches for p in q.params}
        for key, array in (inputs | results).items():
            assert tensors[key] == array.shape, (config, key)
        statements = [s for q in launches for s in walk_stmts(q.body)]
        copied = {s.dst.buffer for s in statements if isinstance(s, Copy)}
        stored = {s.buffer for s in statements if isinstance(s, Store)}
        written = (copied | stored) & tensors.keys()
        assert set(results) <= written
        assert not set(inputs) & written


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_gemm_does_the_exact_work_when_tiles_divide_the_shape(dtype: str) -> None:
    gemm = load_operator("gemm")
    shape = gemm.shape(m=768, n=1536, k=4096, batch=2, dtype=dtype)
    dims = {key: shape[key] for key in ("m", "n", "k", "batch")}
    exact = 0
    for config in gemm.configs(shape):
        if any(shape[key] % config[f"block_{key}"] for key in "mnk"):
            continue
        work = gemm_flops(gemm.program(_symbolic("gemm", shape), config), **dims)
        assert work == gemm.flops(shape), config
        exact += 1
    assert exact > 50  # tiles of 160, 224 and more do not divide this shape


def test_gemm_pads_up_to_whole_tiles_and_no_further() -> None:
    gemm = load_operator("gemm")
    shape = gemm.shape(m=100, n=1000, k=500, batch=3)
    dims = {key: shape[key] for key in ("m", "n", "k", "batch")}
    for config in gemm.configs(shape):
        padded = gemm.flops(
            {
                "batch": 3,
                **{key: -(-shape[key] // config[f"block_{key}"]) * config[f"block_{key}"] for key in "mnk"},
            }
        )
        assert (
            gemm_flops(gemm.program(_symbolic("gemm", shape), config), **dims) == padded > gemm.flops(shape)
        )


@pytest.mark.parametrize(
    "given",
    [{}, {"prefix": 300}, {"causal": False}, {"window": 256}, {"window": 130, "prefix": 1000}],
    ids=str,
)
def test_prefill_visits_only_tiles_with_a_visible_key(given: dict[str, Any]) -> None:
    prefill = load_operator("attention_prefill")
    shape = prefill.shape(batch=1, seq=1000, heads=2, head_dim=64, **given)
    dims = {key: shape[key] for key in ("batch", "seq", "heads", "kv_heads", "prefix")}
    for config in prefill.configs(shape):
        m, n = config["block_m"], config["block_n"]
        tiles = 0
        for q in range(0, shape["seq"], m):
            oldest, newest = shape["prefix"] + q, shape["prefix"] + min(q + m, shape["seq"]) - 1
            low = max(0, oldest - shape["window"] + 1) // n if shape["window"] else 0
            high = newest if shape["causal"] else shape["prefix"] + shape["seq"] - 1
            tiles += high // n - low + 1
        work = gemm_flops(prefill.program(_symbolic("attention_prefill", shape), config), **dims)
        assert work == 2 * tiles * 4 * m * n * 64, config
        assert work >= prefill.flops(shape)


@pytest.mark.parametrize("window", [0, 700])
def test_decode_reads_every_visible_tile_once(window: int) -> None:
    decode = load_operator("attention_decode")
    shape = decode.shape(batch=3, kv_len=2000, heads=24, kv_heads=2, head_dim=64, window=window)
    dims = {key: shape[key] for key in ("batch", "kv_len", "heads", "kv_heads")}
    for config in decode.configs(shape):
        h, n = config["block_h"], config["block_n"]
        tiles = -(-2000 // n) - (2000 - window if window else 0) // n
        work = gemm_flops(decode.program(_symbolic("attention_decode", shape), config), **dims)
        assert work == 3 * 2 * -(-12 // h) * tiles * 4 * h * n * 64, config
