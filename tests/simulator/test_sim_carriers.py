"""An uncalibrated prediction says which inferred numbers its interval rests on."""

from __future__ import annotations

import json

import pytest

from foretile.frontdoor import predict
from foretile.hwmodels import load_chip
from foretile.report.grounds import standing
from foretile.simulator.prediction import Prediction
from foretile.simulator.uncertainty import carriers

BIG = {"m": 8192, "n": 8192, "k": 8192}


def test_the_inferred_numbers_that_carry_an_interval_are_named() -> None:
    chip = load_chip("s5000")
    found = predict("gemm", chip, model="cost_model", **BIG)
    carried = found.model["carried_by"]
    assert carried
    assert set(carried) <= set(chip.inferred())
    assert found.bound in carried[0]  # the resource that binds weighs most
    assert f"the interval rests on {carried[0]}" in standing(found.model)
    assert Prediction.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_numbers_that_are_known_carry_nothing() -> None:
    chip = load_chip("s5000")
    copied = predict("copy", chip, model="cost_model", bytes=2**30)
    assert "l2.latency_cycles" not in copied.model["carried_by"]
    assert carriers(chip, "bf16", {"dram": 0.0, "matrix": 0.0}) == ()


@pytest.mark.parametrize("name", ["h100", "b200"])
def test_a_calibrated_chip_rests_on_its_fit(name: str) -> None:
    found = predict("gemm", name, model="cost_model", m=512, n=512, k=512)
    assert found.model["carried_by"] == []
    assert "the interval rests on" not in standing(found.model)
