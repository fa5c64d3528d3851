"""Operators of quantised formats, launch by launch, with what they quantise themselves."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from foretile.kernels.operator import OperatorError, load_operator
from foretile.simulator.numerics.execute import execute
from foretile.simulator.numerics.verify import input_kinds, verify

PRODUCT = {"m": 150, "n": 200, "k": 700}
MOE = {"tokens": 40, "hidden": 300, "inter": 260, "topk": 3, "experts": 6, "align": 64}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("gemm_nvfp4", {**PRODUCT, "quantize_a": True}, {"variant": "tile", "block_m": 64}),
    ("gemm_nvfp4", {**PRODUCT, "quantize_a": True}, {"variant": "persistent", "cores": 5}),
    ("gemm_nvfp4", {**PRODUCT}, {"product": "bf16", "block_m": 64}),
    ("gemm_fp8_block", {**PRODUCT, "quantize_a": True}, {"block_m": 64}),
    ("gemm_fp8_block", {**PRODUCT, "quantize_a": True}, {"product": "bf16"}),
    ("gemm_fp8_block", {**PRODUCT, "quantize_a": True, "scale_dtype": "fp8_e8m0"}, {"variant": "tile"}),
    (
        "gemm_fp8_block",
        {**PRODUCT, "quantize_a": True, "scale_dtype": "fp8_e8m0"},
        {"variant": "persistent", "cores": 5},
    ),
    ("gemm_fp8_block", {**PRODUCT, "scale_dtype": "fp8_e8m0"}, {"product": "bf16", "block_m": 16}),
    ("gemm_fp8", {**PRODUCT, "quantize_a": True}, {"variant": "persistent", "cores": 5}),
    ("gemm_fp8", {**PRODUCT, "k": 5000, "quantize_a": True, "per_row": True}, {"variant": "tile"}),
    ("gemm_fp8", {**PRODUCT, "per_row": True}, {"variant": "persistent", "cores": 5}),
    ("gemm_fp8", {**PRODUCT, "quantize_a": True, "find_scale": True}, {"variant": "tile"}),
    ("gemm_fp8", {**PRODUCT, "m": 20, "quantize_a": True}, {"variant": "split_k", "split_k": 4}),
    ("gemm_fp8", {**PRODUCT, "m": 20, "per_row": True}, {"variant": "split_k", "split_k": 8}),
    ("grouped_gemm", {"m": 300, "n": 150, "k": 300, "groups": 4, "dtype": "fp8", "masked": True}, {}),
    ("grouped_gemm", {"m": 300, "n": 150, "k": 300, "groups": 4, "dtype": "fp8_block", "skew": 200}, {}),
    ("moe", {**MOE, "dtype": "fp8", "distribution": 100}, {"block_m": 32, "block_t": 4}),
    ("moe", {**MOE, "dtype": "fp8"}, {"product": "bf16"}),
    ("moe", {**MOE, "dtype": "fp8_block", "distribution": 100}, {"block_m": 32, "block_t": 4}),
    ("moe", {**MOE, "dtype": "fp8_block"}, {"product": "bf16", "block_k": 64}),
    ("moe", {**MOE, "dtype": "fp8_block"}, {"block_m": 64, "block_k": 64}),
    ("moe", {**MOE, "dtype": "nvfp4", "distribution": 100}, {"block_m": 32, "block_t": 4}),
    ("moe", {**MOE, "dtype": "nvfp4"}, {"product": "bf16"}),
    # As on chips whose matrix engines take fp16 and no bf16.
    ("gemm_fp8", {**PRODUCT, "per_row": True}, {"variant": "tile", "product": "fp16"}),
    ("gemm_fp8_block", PRODUCT, {"product": "fp16"}),
    ("gemm_nvfp4", PRODUCT, {"product": "fp16"}),
    ("moe", {**MOE, "dtype": "nvfp4"}, {"product": "fp16"}),
]


@pytest.mark.parametrize(("name", "given", "chosen"), CASES)
def test_every_kind_of_inputs(name: str, given: dict[str, Any], chosen: dict[str, Any]) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    for kind in input_kinds(operator):
        found = verify(operator, shape, operator.config(shape, **chosen), kind=kind, seed=5)
        assert found.ok, (kind, found.fault, [(o.name, o.norm_error, o.peak_error) for o in found.outputs])


def test_fp16_holds_no_scales_that_are_powers_of_two() -> None:
    operator = load_operator("gemm_fp8_block")
    shape = operator.shape(**PRODUCT, scale_dtype="fp8_e8m0")
    with pytest.raises(OperatorError, match="product=fp16 cannot hold scales"):
        operator.program(shape, operator.config(shape, product="fp16"))


@pytest.mark.parametrize("in_turn", [0, 1])
@pytest.mark.parametrize("packed", [False, True])
def test_quantised_activations_are_those_of_quantize(packed: bool, in_turn: int) -> None:
    """The launch in front of the product writes what the operator ``quantize`` does, bit by bit.

    So it does where few warps take row after row (70 are more than one turn of 64).
    """
    product, quantize = load_operator("gemm_fp8_block"), load_operator("quantize")
    scale_dtype = "fp8_e8m0" if packed else "fp32"
    shape = product.shape(m=70, n=16, k=700, quantize_a=True, scale_dtype=scale_dtype)
    launches = product.program(shape, product.config(shape, in_turn=in_turn))
    assert isinstance(launches, tuple)
    inputs = product.inputs(shape, np.random.default_rng(0))
    given = {"X": inputs["X"]}
    if packed:  # the scales behind a row's last group belong to nothing
        given["A_scale"] = np.ones((2, 70, 4), ml_dtypes.float8_e8m0fnu)
    got = execute(launches[0], given).tensors
    rows = quantize.shape(rows=70, cols=700, round_scale=packed)
    alone = quantize.program(rows, quantize.configs(rows)[0])
    want = execute(alone, {"X": inputs["X"]}).tensors
    np.testing.assert_array_equal(got["A"].astype(np.float32), want["Y"].astype(np.float32))
    scales = got["A_scale"].astype(np.float32)
    if packed:
        scales = scales.swapaxes(0, 1).reshape(70, -1)[:, :6]
    np.testing.assert_array_equal(scales, want["S"])
