"""Every operator of the library is predicted on every chip of the catalogue."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest

from foretile.hwmodels import list_chips, load_chip
from foretile.kernels.operator import load_operator, operator_names
from foretile.simulator.machine import SimulationError
from foretile.simulator.predictor import predict


@pytest.mark.parametrize("name", operator_names())
def test_an_operator_is_predicted_on_every_chip(name: str) -> None:
    """But for chips without bf16: they may refuse by name what they have no products for."""
    operator = load_operator(name)
    shape = operator.shape(**operator.example)
    for chip in list_chips():
        described = load_chip(chip)
        if "bf16" not in described.matrix.flop_per_cycle:
            with suppress(SimulationError):
                predict(operator, shape, described, model="cost_model")
            continue
        found = predict(operator, shape, described, model="cost_model")
        assert math.isfinite(found.time_s), chip
        assert found.time_s > 0, chip
        assert sum(found.breakdown_s.values()) == pytest.approx(found.time_s, rel=1e-9), chip
