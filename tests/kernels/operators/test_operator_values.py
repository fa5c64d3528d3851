"""Programs compute what their references say: run block by block on shapes that divide nothing."""

from typing import Any

import numpy as np
import pytest
from tile_oracle import execute

from foretile.kernels.operator import load_operator

GEMM = {"m": 70, "n": 90, "k": 200, "batch": 2}
PREFILL = {"batch": 2, "seq": 150, "heads": 4, "kv_heads": 2, "head_dim": 32}
DECODE = {"batch": 2, "kv_len": 333, "heads": 10, "kv_heads": 2, "head_dim": 32}
TOLERANCE = {"bf16": 2e-2, "fp16": 3e-3, "fp8": 8e-2}

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("gemm", {**GEMM}, {"block_m": 64, "block_n": 64}),
    ("gemm", {**GEMM, "trans_a": True}, {"block_m": 64, "block_n": 64}),
    ("gemm", {**GEMM, "trans_b": True, "dtype": "fp8"}, {"block_m": 16}),
    ("gemm", {**GEMM, "trans_a": True, "trans_b": True, "dtype": "fp16"}, {"block_m": 32}),
    ("gemm", {**GEMM, "dtype": "int8"}, {"block_m": 64, "block_n": 64}),
    ("gemm", {**GEMM}, {"variant": "split_k", "split_k": 2, "block_m": 64}),
    ("gemm", {**GEMM, "dtype": "int8"}, {"variant": "split_k", "split_k": 4, "block_m": 64}),
    ("gemm", {**GEMM}, {"variant": "split_k", "split_k": 8, "block_m": 16}),
    ("gemm", {**GEMM}, {"variant": "persistent", "cores": 5, "block_m": 16, "block_n": 32}),
    ("attention_prefill", {**PREFILL}, {"block_m": 64, "block_n": 64}),
    ("attention_prefill", {**PREFILL, "dtype": "fp16"}, {"block_m": 128, "block_n": 32}),
    ("attention_prefill", {**PREFILL}, {"block_m": 64, "block_n": 128}),
    ("attention_prefill", {**PREFILL, "prefix": 75}, {"block_m": 64, "block_n": 64}),
    ("attention_prefill", {**PREFILL, "causal": False}, {"block_m": 64, "block_n": 64}),
    ("attention_prefill", {**PREFILL, "causal": False, "prefix": 42}, {"block_m": 128, "block_n": 64}),
    ("attention_prefill", {**PREFILL, "window": 20}, {"block_m": 64, "block_n": 32}),
    ("attention_prefill", {**PREFILL, "window": 100, "prefix": 75}, {"block_m": 32, "block_n": 64}),
    ("attention_prefill", {**PREFILL, "window": 1000}, {"block_m": 64, "block_n": 64}),
    ("attention_prefill", {**PREFILL, "seq": 1, "prefix": 90}, {"block_m": 16, "block_n": 64}),
    ("attention_prefill", {**PREFILL, "kv_dtype": "fp8"}, {"block_m": 64, "block_n": 64}),
    ("attention_prefill", {**PREFILL, "dtype": "fp8"}, {"block_m": 64, "block_n": 64}),
    ("attention_decode", {**DECODE}, {"num_split": 1}),
    ("attention_decode", {**DECODE}, {"num_split": 4, "block_h": 16}),
    ("attention_decode", {**DECODE}, {"num_split": 16, "block_h": 64}),
    ("attention_decode", {**DECODE, "heads": 40}, {"num_split": 2, "block_h": 16}),
    ("attention_decode", {**DECODE, "window": 100}, {"num_split": 2}),
    ("attention_decode", {**DECODE, "window": 500}, {"num_split": 1}),
    ("attention_decode", {**DECODE, "kv_dtype": "fp8"}, {"num_split": 4}),
    ("attention_decode", {**DECODE, "dtype": "fp8"}, {"num_split": 4}),
    ("attention_decode", {**DECODE}, {"num_split": 1, "block_h": 1}),
    ("attention_decode", {**DECODE, "window": 100, "kv_dtype": "fp8"}, {"num_split": 3, "block_h": 1}),
    ("rmsnorm", {"rows": 9, "cols": 300}, {"variant": "row", "block_rows": 4}),
    ("rmsnorm", {"rows": 9, "cols": 3000}, {"variant": "tiled", "block_rows": 4}),
    ("softmax", {"rows": 9, "cols": 300}, {"variant": "row", "block_rows": 4}),
    ("softmax", {"rows": 9, "cols": 3000}, {"variant": "tiled", "block_rows": 4}),
    ("softmax", {"rows": 9, "cols": 2048, "dtype": "fp16"}, {"variant": "tiled", "block_rows": 4}),
    ("silu_mul", {"rows": 9, "cols": 300}, {"block_rows": 8}),
    ("silu_mul", {"rows": 3, "cols": 3000}, {"block_rows": 2}),
    ("copy", {"bytes": 40_001}, {"staging": "fragment"}),
    ("copy", {"bytes": 40_001}, {"staging": "shared"}),
]


@pytest.mark.parametrize(
    ("name", "given", "chosen"), CASES, ids=lambda v: str(v) if isinstance(v, str) else None
)
def test_program_computes_the_reference(name: str, given: dict[str, Any], chosen: dict[str, Any]) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    config = operator.config(shape, **chosen)
    inputs = operator.inputs(shape, np.random.default_rng(3))
    tensors = execute(operator.program(shape, config), inputs)
    for key, want in operator.reference(shape, **inputs).items():
        got = tensors[key].astype(np.float64)
        if shape.get("dtype") == "int8" or name == "copy":
            np.testing.assert_array_equal(got, want)
        else:
            # Rounding of stored values, relative to the largest result of the row.
            scale = np.abs(want).max(axis=-1, keepdims=True)
            narrow = min((shape["dtype"], shape.get("kv_dtype", "bf16")), key=("fp8", "bf16", "fp16").index)
            assert np.max(np.abs(got - want) / scale) < TOLERANCE[narrow]


def test_split_k_leaves_its_workspace_as_it_found_it() -> None:
    gemm = load_operator("gemm")
    shape = gemm.shape(**GEMM)
    programs = gemm.program(shape, gemm.config(shape, split_k=4, block_m=64))
    inputs = gemm.inputs(shape, np.random.default_rng(4))
    first = execute(programs, inputs)
    assert not first["W"].any()
    again = execute(programs, inputs, {"W": first["W"]})
    np.testing.assert_array_equal(first["C"], again["C"])


@pytest.mark.parametrize("variant", ["tile", "persistent"])
@pytest.mark.parametrize("transposed", [(False, True), (True, False)])
def test_blocks_may_compute_the_transpose_of_their_tile(variant: str, transposed: tuple[bool, bool]) -> None:
    """Rows in steps of eight, of which neither the tile nor the shape is a power of two; two batches."""
    gemm = load_operator("gemm")
    trans_a, trans_b = transposed
    shape = gemm.shape(m=73, n=150, k=100, batch=2, trans_a=trans_a, trans_b=trans_b)
    tile = {"block_m": 40, "block_n": 64, "block_k": 32, "threads": 128, "num_stages": 2, "cores": 5}
    config = gemm.config(shape, **tile, variant=variant, swap=1, swizzle=0, split_k=1)
    inputs = gemm.inputs(shape, np.random.default_rng(6))
    found = execute(gemm.program(shape, config), inputs)["C"].astype(np.float64)
    want = gemm.reference(shape, **inputs)["C"]
    assert np.linalg.norm(found - want) <= gemm.tolerance(shape).norm * np.linalg.norm(want)


def test_decode_parts_without_keys_weigh_nothing() -> None:
    decode = load_operator("attention_decode")
    shape = decode.shape(**{**DECODE, "kv_len": 65})
    inputs = decode.inputs(shape, np.random.default_rng(5))
    tensors = execute(decode.program(shape, decode.config(shape, num_split=64, block_n=64)), inputs)
    want = decode.reference(shape, **inputs)["O"]
    np.testing.assert_allclose(tensors["O"].astype(np.float64), want, atol=2e-2)
    assert np.all(np.isfinite(tensors["LSE"]))
