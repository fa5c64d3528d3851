"""Rows that name a configuration: each predicted in its own; a fit to them finds what was perturbed."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
from tables import row, table

from foretile.calibration.calibrate import calibrate
from foretile.calibration.device.tables import ONE_CONFIGURATION
from foretile.calibration.measurements import canonical
from foretile.calibration.parameters import prepared, with_factors
from foretile.calibration.predictions import allowed, batches, predict_table
from foretile.hwmodels import Chip, load_chip
from foretile.kernels.ir import TILELANG
from foretile.kernels.operator import load_operator
from foretile.simulator.predictor import target
from foretile.simulator.search import rank

DEVICE = "h200-sxm"
TRUE = {"launch": 1.3, "dram": 0.85, "matrix": 0.9}
# The first may not be fitted by the hash of their shapes, the others may.
SIZES = ((64, 4096, 4096), (32, 24576, 1536), (512, 7168, 2048), (512, 7168, 16384), (4096, 7168, 2048))
OWN = {
    "kernel_source": "foretile/tile",
    "framework": "tilelang",
    "comparable": ONE_CONFIGURATION,
    "runs": 300,
}


@cache
def base() -> Chip:
    return load_chip(DEVICE, calibrated=False)


@cache
def measured() -> pd.DataFrame:
    """Tile programs of products as a chip would take them that differs from the catalogue's."""
    operator = load_operator("gemm")
    found = []
    for m, n, k in SIZES:
        shape = operator.shape(m=m, n=n, k=k, trans_b=True)
        ranking = rank(operator, shape, target(operator, shape, base()).machine)
        order = np.argsort(ranking.time_s[:, 0], kind="stable")
        for i in np.linspace(0, len(order) // 2, 6).astype(int):
            config = canonical(ranking.configs[order[i]])
            sizes = {"m": m, "n": n, "k": k, "trans_b": True}
            found.append(row("gemm", **sizes, **OWN, config=config, copies='{"A":3,"B":3,"C":3}'))
    frame = table(*found)
    true = with_factors(prepared(base()), TRUE)
    return frame.assign(latency_s=predict_table(frame, lambda _: true)["time_s"])


def test_each_row_is_predicted_in_its_own_configuration() -> None:
    frame = measured()
    found = batches(frame, base())
    assert sum(len(b) for b in found) == len(frame)
    for batch in found:
        (only,) = allowed(base(), batch)
        assert {canonical(only)} == set(frame["config"].iloc[batch.where])
    times = predict_table(frame, lambda _: prepared(base()))
    assert (times["refused"] == "").all()
    for _, shape in times.groupby(frame["shape"]):
        assert shape["time_s"].nunique() == len(shape)  # not the best one's time for all
    library = predict_table(frame.assign(config="{}"), lambda _: prepared(base()))["time_s"]
    assert (times["time_s"] >= 0.8 * library).all()


def test_what_the_l2_holds_is_what_the_row_says() -> None:
    frame = measured().head(6)
    kept = frame.assign(copies="{}")
    chip = prepared(base())
    rotating, cached, flushed = (
        predict_table(f, lambda _: chip)["time_s"] for f in (frame, kept, kept.assign(cache="flushed"))
    )
    assert (
        cached <= 1.01 * rotating
    ).all()  # a graph holds whole rounds of the copies: its gap weighs otherwise
    assert (cached < flushed).any()


def test_a_fit_finds_what_was_perturbed() -> None:
    fitted = calibrate(base(), measured()).fitted  # by few of the rows, as anyone's table is fitted
    found = fitted.factors()
    seen = {name for name, was in zip(fitted.names, fitted.seen, strict=True) if was}
    assert np.abs(fitted.residuals).mean() < 0.02
    for name in ("dram", "matrix"):  # the launch's cost hides behind other latencies of so few kernels
        assert name in seen
        assert found[name] == pytest.approx(TRUE[name], rel=0.1)


def test_rows_with_a_configuration_are_fitted_and_misfits_are_told() -> None:
    frame = measured()
    wide = canonical({"block_m": 256, "block_n": 256, "block_k": 128, "num_stages": 16})
    misfit = row("gemm", m=512, n=7168, k=2048, trans_b=True, **OWN, config=wide, latency_s=1e-4)
    made = calibrate(base(), pd.concat([frame, table(misfit)], ignore_index=True))
    assert made.chip.calibration is not None
    assert made.chip.calibration.rows == 4 * len(frame) // 5
    ((family, why),) = made.skipped.items()
    assert family.startswith("gemm.bf16, rows in a configuration")
    assert "scratchpad" in why or "shared" in why


def test_compiled_rows_are_predicted_as_their_compiler_makes_them() -> None:
    frame = measured()
    library = frame.assign(kernel_source="elsewhere")
    chip = prepared(base())
    compiled, taken = (predict_table(f, lambda _: chip)["time_s"] for f in (frame, library))
    assert not np.allclose(compiled, taken, rtol=1e-6)
    assert {b.operator.toolchain for b in batches(frame, chip)} == {TILELANG}
    assert {b.operator.toolchain for b in batches(library, chip)} == {""}


def test_compiled_rows_fit_no_family() -> None:
    operator = load_operator("rmsnorm")
    shape = {"rows": 4096, "cols": 7168}
    config = canonical(operator.configs(operator.shape(**shape))[0])
    other = table(row("rmsnorm", **shape, **OWN, config=config))
    made = calibrate(base(), pd.concat([measured(), other], ignore_index=True))
    assert [f.key for f in made.families] == []
    ((_, why),) = made.skipped.items()
    assert "foretile/tile" in why
