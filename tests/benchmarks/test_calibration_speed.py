"""How long fits of a calibration take: ``pytest tests/benchmarks --benchmark-only``; docs/calibration.md."""

from __future__ import annotations

import time
from typing import Any

import pytest

from foretile.calibration.fit import fit_chip
from foretile.calibration.measurements import fit_rows
from foretile.calibration.profiles import fit_family
from foretile.calibration.sample import load_sample
from foretile.hwmodels import load_chip

CHIP = "h100-sxm5-80gb"
FAMILIES = ("moe.fp8", "moe.bf16", "attention_decode", "attention_prefill", "gemm.fp8", "mla_decode")


def rows_of(family: str) -> Any:
    found = fit_rows(load_sample(CHIP, family))
    return found[(found["comparable"] == "") & (found["launch"] == "graph")]


def test_fitting_a_chips_own_parameters(benchmark: Any) -> None:
    """Tracing and lowering included: once, from cold."""
    rows, chip, start = rows_of("gemm.bf16"), load_chip(CHIP, calibrated=False), time.process_time()
    _, fitted = benchmark.pedantic(fit_chip, (chip, rows), {"starts": 1}, rounds=1)
    benchmark.extra_info.update(rows=len(rows), cpu_s=time.process_time() - start)
    assert len(fitted.residuals) == len(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_fitting_a_family(benchmark: Any, family: str) -> None:
    """The profiles of a family and of its kernel sources."""
    rows, chip, start = rows_of(family), load_chip(CHIP), time.process_time()
    result = benchmark.pedantic(fit_family, (chip, rows), rounds=1)
    benchmark.extra_info.update(rows=len(rows), cpu_s=time.process_time() - start)
    assert result.fits
