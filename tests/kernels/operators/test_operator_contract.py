"""The public contract of every operator: parameters, defaults, refusals, configuration spaces."""

from typing import Any

import numpy as np
import pytest

from foretile.kernels.dtypes import dtype
from foretile.kernels.operator import Operator, OperatorError, load_operator, operator_names

# name: (default, dynamic); "required" for no default.
CONTRACT: dict[str, dict[str, tuple[Any, bool]]] = {
    "gemm": {
        "m": ("required", True),
        "n": ("required", True),
        "k": ("required", True),
        "dtype": ("bf16", False),
        "batch": (1, True),
        "trans_a": (False, False),
        "trans_b": (False, False),
        "out_dtype": ("=dtype", False),
    },
    "attention_prefill": {
        "batch": ("required", True),
        "seq": ("required", True),
        "heads": ("required", True),
        "kv_heads": ("=heads", True),
        "head_dim": (128, False),
        "dtype": ("bf16", False),
        "causal": (True, False),
        "prefix": (0, True),
        "window": (0, False),
        "kv_dtype": ("=dtype", False),
    },
    "attention_decode": {
        "batch": ("required", True),
        "kv_len": ("required", True),
        "heads": ("required", True),
        "kv_heads": ("=heads", True),
        "head_dim": (128, False),
        "dtype": ("bf16", False),
        "kv_dtype": ("=dtype", False),
        "window": (0, False),
    },
    "rmsnorm": {"rows": ("required", True), "cols": ("required", False), "dtype": ("bf16", False)},
    "softmax": {"rows": ("required", True), "cols": ("required", False), "dtype": ("bf16", False)},
    "silu_mul": {"rows": ("required", True), "cols": ("required", True), "dtype": ("bf16", False)},
    "copy": {"bytes": ("required", True)},
}
SMALL: dict[str, dict[str, Any]] = {
    "gemm": {"m": 40, "n": 72, "k": 96},
    "attention_prefill": {"batch": 2, "seq": 50, "heads": 4, "kv_heads": 2, "head_dim": 32},
    "attention_decode": {"batch": 2, "kv_len": 300, "heads": 8, "kv_heads": 2, "head_dim": 32},
    "rmsnorm": {"rows": 5, "cols": 96},
    "softmax": {"rows": 5, "cols": 96},
    "silu_mul": {"rows": 5, "cols": 96},
    "copy": {"bytes": 1001},
}
SPACE_SIZES = {"gemm": range(40, 181), "attention_prefill": range(12, 41), "attention_decode": range(30, 91)}


@pytest.mark.parametrize("name", CONTRACT)
def test_parameters_and_defaults(name: str) -> None:
    operator = load_operator(name)
    given = {p.name: ("required" if p.default is None else p.default, p.dynamic) for p in operator.params}
    assert given == CONTRACT[name]
    assert all(p.doc for p in operator.params)
    assert operator.name == name
    assert operator.doc


def test_every_operator_of_the_contract_is_found() -> None:
    assert set(CONTRACT) <= set(operator_names())


@pytest.mark.parametrize("name", CONTRACT)
def test_a_required_parameter_is_asked_for_by_name(name: str) -> None:
    first = next(iter(CONTRACT[name]))
    with pytest.raises(OperatorError, match=f"needs {first}"):
        load_operator(name).shape()


@pytest.mark.parametrize("name", CONTRACT)
def test_configurations_are_distinct_plain_and_uniform(name: str) -> None:
    operator = load_operator(name)
    space = operator.configs(operator.shape(**SMALL[name]))
    assert len(space) in SPACE_SIZES.get(name, range(8, 31))
    assert len({tuple(sorted(c.items())) for c in space}) == len(space)
    assert all(c.keys() == space[0].keys() for c in space)
    assert all(type(v) in (int, str) for c in space for v in c.values())
    assert all(c["threads"] % 32 == 0 and c["threads"] <= 1024 for c in space)


@pytest.mark.parametrize("name", CONTRACT)
def test_counts_of_arrays_are_the_counts_of_their_elements(name: str) -> None:
    operator: Operator = load_operator(name)
    key = next(p.name for p in operator.params if p.dynamic and p.name not in ("heads", "kv_heads"))
    sizes = np.array([1, 7, 130, 200_000], dtype=np.int32)
    together = operator.shape(**{**SMALL[name], key: sizes})
    for count in (operator.flops, operator.min_bytes):
        alone = [count(operator.shape(**{**SMALL[name], key: int(n)})) for n in sizes]
        assert all(isinstance(value, int) for value in alone)
        assert list(count(together)) == alone


@pytest.mark.parametrize("name", CONTRACT)
def test_inputs_and_results_are_what_min_bytes_counts(name: str) -> None:
    operator = load_operator(name)
    shape = operator.shape(**SMALL[name])
    inputs = operator.inputs(shape, np.random.default_rng(0))
    results = operator.reference(shape, **inputs)
    assert all(r.dtype == np.float64 and np.all(np.isfinite(r)) for r in results.values())
    out = dtype(shape.get("out_dtype", shape.get("dtype", "uint8"))).bytes
    moved = sum(a.nbytes for a in inputs.values()) + sum(r.size * out for r in results.values())
    assert operator.min_bytes(shape) == moved


@pytest.mark.parametrize(
    ("given", "out_dtype"),
    [
        ({"dtype": "bf16"}, "bf16"),
        ({"dtype": "float16"}, "fp16"),
        ({"dtype": "fp8"}, "bf16"),
        ({"dtype": "int8"}, "int32"),
        ({"dtype": "fp8", "out_dtype": "fp32"}, "fp32"),
    ],
)
def test_gemm_result_type(given: dict[str, str], out_dtype: str) -> None:
    assert load_operator("gemm").shape(m=1, n=1, k=1, **given)["out_dtype"] == out_dtype


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("gemm", {"dtype": "int8", "out_dtype": "fp16"}, "one of int32, fp32, bf16"),
        ("gemm", {"dtype": "fp32"}, "not one of bf16, fp16, fp8, int8"),
        ("gemm", {"m": 0}, "at least 1"),
        ("attention_prefill", {"heads": 6, "kv_heads": 4}, "heads=6 is not a multiple of kv_heads=4"),
        ("attention_prefill", {"head_dim": 100}, "head_dim=100 is not a multiple of 16"),
        ("attention_prefill", {"causal": False, "window": 64}, "needs causal=true"),
        ("attention_prefill", {"kv_dtype": "fp16"}, "K and V are stored in bf16 or fp8"),
        ("attention_prefill", {"prefix": -1}, "at least 0"),
        ("attention_decode", {"heads": 6, "kv_heads": 4}, "heads=6 is not a multiple of kv_heads=4"),
        ("attention_decode", {"head_dim": 8}, "head_dim=8 is not a multiple of 16"),
        ("attention_decode", {"dtype": "fp8", "kv_dtype": "bf16"}, "K and V are stored in fp8"),
        ("softmax", {"dtype": "fp8"}, "not one of bf16, fp16, fp32"),
        ("copy", {"bytes": 0}, "at least 1"),
    ],
)
def test_refusals_say_what_is_right(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        load_operator(name).shape(**{**SMALL[name], **given})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gemm", {"variant": "x"}, "variant='x' is not one of tile, split_k, persistent, stream_k"),
        ("gemm", {"block_m": 20}, "block_m=20 is not a multiple of 16"),
        ("gemm", {"block_m": 44, "swap": 1}, "block_m=44 is not a multiple of 8"),
        ("gemm", {"variant": "split_k", "swap": 1}, "swap does not go with variant='split_k'"),
        ("rmsnorm", {"variant": "x"}, "variant='x' is not one of row, tiled"),
        ("softmax", {"variant": "x"}, "variant='x' is not one of row, tiled"),
        ("copy", {"staging": "x"}, "staging='x' is not one of fragment, shared"),
    ],
)
def test_programs_refuse_configurations_they_cannot_trace(
    name: str, change: dict[str, Any], message: str
) -> None:
    operator = load_operator(name)
    shape = operator.shape(**SMALL[name])
    with pytest.raises(OperatorError, match=message):
        operator.program(shape, operator.config(shape, **change))


def test_a_gemm_configuration_is_completed_from_its_variant() -> None:
    gemm = load_operator("gemm")
    shape = gemm.shape(**SMALL["gemm"])
    assert gemm.config(shape, split_k=8)["variant"] == "split_k"
    assert gemm.config(shape, variant="persistent", cores=78)["cores"] == 78
    assert gemm.config(shape, swizzle=0)["swizzle"] == 0


@pytest.mark.parametrize(("dtype", "block_k"), [("bf16", 64), ("fp8", 128), ("int8", 128)])
def test_gemm_tiles_are_as_deep_in_bytes_for_every_type(dtype: str, block_k: int) -> None:
    gemm = load_operator("gemm")
    assert gemm.configs(gemm.shape(**SMALL["gemm"], dtype=dtype))[0]["block_k"] == block_k
