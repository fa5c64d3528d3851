"""Every operator of the library is predicted on every chip of the catalogue."""

from __future__ import annotations

import math

import pytest

from foretile.hwmodels import list_chips, load_chip
from foretile.kernels.operator import load_operator, operator_names
from foretile.simulator.predictor import predict
from foretile.simulator.types import native


@pytest.mark.parametrize("name", operator_names())
def test_an_operator_is_predicted_on_every_chip(name: str) -> None:
    """In its default types, or in those of their width that the chip multiplies in."""
    operator = load_operator(name)
    for chip in list_chips():
        described = load_chip(chip)
        given, note = native(operator, dict(operator.example), described)
        assert bool(note) == (given != operator.example), chip
        if "bf16" in described.matrix.flop_per_cycle:
            assert not note, chip
        found = predict(operator, operator.shape(**given), described, model="cost_model")
        assert math.isfinite(found.time_s), chip
        assert found.time_s > 0, chip
        assert sum(found.breakdown_s.values()) == pytest.approx(found.time_s, rel=1e-9), chip
