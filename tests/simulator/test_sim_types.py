"""Default element types give way to those that a chip's matrix engine takes; chosen ones do not."""

from __future__ import annotations

import pytest

from foretile.frontdoor import explain, predict, predict_each, predict_many
from foretile.hwmodels import load_chip
from foretile.kernels.operator import load_operator
from foretile.simulator.machine import SimulationError
from foretile.simulator.predictor import machine_of
from foretile.simulator.search import for_machine
from foretile.simulator.types import native

SHAPE = {"m": 256, "n": 512, "k": 256}
WITHOUT_BF16 = ("v100", "t4", "910a", "310p")


@pytest.mark.parametrize("chip", WITHOUT_BF16)
def test_a_default_of_bf16_becomes_fp16_and_a_warning_says_so(chip: str) -> None:
    found = predict("gemm", chip, model="cost_model", **SHAPE)
    assert found.shape["dtype"] == found.shape["out_dtype"] == "fp16"
    assert found.model["warnings"] == ["bf16 is no type of this chip's matrix engine; in fp16 instead"]
    asked = predict("gemm", chip, model="cost_model", dtype="fp16", **SHAPE)
    assert asked.time_s == found.time_s
    assert "warnings" not in asked.model


def test_a_chosen_type_is_refused_where_the_chip_lacks_it() -> None:
    with pytest.raises(SimulationError, match=r"matrix\.flop_per_cycle\.bf16: unknown"):
        predict("gemm", "v100", dtype="bf16", **SHAPE)


@pytest.mark.parametrize("chip", ["h100", "910b3", "mi300x", "s5000"])
def test_nothing_changes_where_the_chip_has_the_type(chip: str) -> None:
    for name in ("gemm", "attention_prefill", "rmsnorm", "gemm_fp8", "top_p_sample"):
        operator = load_operator(name)
        assert native(operator, dict(operator.example), load_chip(chip)) == (dict(operator.example), "")


def test_types_without_a_relative_of_their_width_stay() -> None:
    v100 = load_chip("v100")
    sample, gemm = load_operator("top_p_sample"), load_operator("gemm")  # the first computes in fp32
    assert native(sample, dict(sample.example), v100) == (dict(sample.example), "")
    assert native(gemm, {**SHAPE, "dtype": "fp8"}, v100)[1] == ""  # int8 is of its width, not of its kind
    assert native(load_operator("moe"), {"dtype": "nvfp4"}, v100) == ({"dtype": "nvfp4"}, "")


def test_every_way_to_ask_agrees() -> None:
    one = predict_each("gemm", "v100", [SHAPE])[0]
    assert one.model["warnings"]
    assert explain("gemm", "v100", **SHAPE).prediction.model["warnings"] == one.model["warnings"]
    many = predict_many("gemm", "v100", {name: [size] for name, size in SHAPE.items()}, details=True)
    assert list(many["dtype"]) == ["fp16"]


def test_widened_operands_take_the_sixteen_bits_that_the_engine_has() -> None:
    config = {"block_m": 64, "product": "bf16"}
    for chip, product in (("v100", "fp16"), ("h100", "bf16"), ("910b3", "bf16")):
        assert for_machine(config, machine_of(load_chip(chip)))["product"] == product
    found = predict("gemm_fp8", "v100", model="cost_model", m=64, n=256, k=256)
    assert found.config["product"] == "fp16"
