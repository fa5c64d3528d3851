"""The error on measured rows that no fit saw does not grow: at most a tenth above what was recorded."""

from __future__ import annotations

import json

import pytest
from record_accuracy import FILE, measured

RECORDED = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("device", "family"), [(device, family) for device, families in RECORDED.items() for family in families]
)
def test_the_error_is_at_most_a_tenth_above_the_recorded_one(device: str, family: str) -> None:
    then, now = RECORDED[device][family], measured(device, family)
    assert now is not None
    assert now["n"] == then["n"]
    assert now["mape"] <= 1.1 * then["mape"] + 0.1
    assert now["median"] <= 1.1 * then["median"] + 0.1


def test_bf16_products_are_recorded_on_every_measured_chip() -> None:
    from foretile.calibration.sample import sample_devices

    assert all("gemm.bf16" in RECORDED[name] for name in sample_devices())
