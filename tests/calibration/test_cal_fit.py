"""Fitting: known parameters are found again, unseen ones are said, files round-trip, plans teach."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from foretile.calibration.calibrate import calibrate, digest
from foretile.calibration.checkpoint import Checkpoint
from foretile.calibration.fit import FitError, Fitted, fit_chip
from foretile.calibration.measurements import fit_rows, row_keys
from foretile.calibration.overlay import write_overlay
from foretile.calibration.parameters import (
    CHIP_PARAMETERS,
    FAMILY_PARAMETERS,
    parameters_markdown,
    prepared,
    with_factors,
)
from foretile.calibration.plan import choose
from foretile.calibration.predictions import allowed, batches, predict_table, summary
from foretile.calibration.problem import Problem, portfolio
from foretile.calibration.sample import load_sample
from foretile.hwmodels import Chip, load_chip

DEVICE = "h200-sxm"
TRUE = {"launch": 1.4, "dram": 0.85, "l2": 0.7, "matrix": 0.9, "latency": 1.5, "block_start": 2.0}


@cache
def base() -> Chip:
    return load_chip(DEVICE, calibrated=False)


@cache
def rows(count: int = 40) -> pd.DataFrame:
    return fit_rows(load_sample(DEVICE, "gemm.bf16")).head(count)


@cache
def few_families() -> pd.DataFrame:
    """A dozen rows of three families."""
    others = [fit_rows(load_sample(DEVICE, f)).head(12) for f in ("mla_prefill", "bmm.bf16")]
    return pd.concat([rows(12), *others], ignore_index=True)


@cache
def chip_fit() -> Fitted:
    return fit_chip(base(), rows(12), starts=1)[1]


def begun(path: Path) -> Checkpoint:
    """A calibration to ``few_families`` that has the chip's own parameters so far."""
    sha256 = digest(fit_rows(few_families()))
    checkpoint = Checkpoint(path)
    checkpoint.open(base(), sha256, 1)
    checkpoint.add_chip(chip_fit())
    return Checkpoint(path)


@cache
def synthetic() -> pd.DataFrame:
    """Rows whose times are those of a chip with known factors."""
    truth = with_factors(prepared(base()), TRUE)
    return rows().assign(latency_s=predict_table(rows(), lambda _: truth)["time_s"])


def test_known_factors_are_found_again() -> None:
    _, fitted = fit_chip(base(), synthetic(), starts=1)
    assert np.median(np.abs(fitted.residuals)) < 0.01
    found = fitted.factors()
    for name in ("launch", "dram", "matrix"):
        assert found[name] == pytest.approx(TRUE[name], rel=0.15), name


def test_a_fit_lowers_the_error_and_stays_in_its_bounds() -> None:
    start = prepared(base())
    before = np.abs(np.log(predict_table(rows(), lambda _: start)["time_s"] / rows()["latency_s"])).mean()
    _, fitted = fit_chip(base(), rows(), starts=1)
    assert np.abs(fitted.residuals).mean() < 0.8 * before
    for p, x in zip(CHIP_PARAMETERS, fitted.x, strict=True):
        assert p.bounds[0] <= x <= p.bounds[1], p.name


def test_what_the_data_cannot_see_is_said_and_stays_at_its_prior() -> None:
    """Kernels of a few microseconds do not tell how far the clock sinks under lasting load."""
    short = synthetic()[synthetic()["latency_s"] < 8e-6]
    _, fitted = fit_chip(base(), short, starts=1)
    place = fitted.names.index("sustained")
    assert not fitted.seen[place]
    assert abs(fitted.x[place]) < 0.5 * CHIP_PARAMETERS[place].sigma


def test_no_rows_are_refused_with_what_is_needed() -> None:
    with pytest.raises(FitError, match=r"h200-sxm: no rows .* gemm\.bf16 .* families with rows: none"):
        calibrate(base(), rows().head(0))


def test_an_interrupted_calibration_goes_on_where_it_stopped(tmp_path: Path) -> None:
    table = few_families()
    whole = calibrate(base(), table, checkpoint=begun(tmp_path / "one.json"))

    class Interrupted(Exception):
        pass

    def stop(text: str) -> None:
        if text.startswith("family"):
            raise Interrupted

    path = tmp_path / "two.json"
    with pytest.raises(Interrupted):
        calibrate(base(), table, checkpoint=begun(path), progress=stop)
    said: list[str] = []
    again = calibrate(base(), table, checkpoint=Checkpoint(path), progress=said.append)
    assert not any("start" in text for text in said), "the chip's own fit was not done again"
    assert again.chip == whole.chip
    other = Checkpoint(path)
    other.open(base(), "other rows", 1)
    assert other.chip_fit is None, "another task's checkpoint is not used"


def test_families_fitted_in_other_processes_are_the_same(tmp_path: Path) -> None:
    table = few_families()
    one, two = (calibrate(base(), table, jobs=n, checkpoint=begun(tmp_path / f"{n}")) for n in (1, 2))
    assert one.chip == two.chip
    assert {f.key.split("/")[0] for f in two.families} == {"mla_prefill", "bmm.bf16"}


def test_a_portfolio_is_small_and_nearly_as_good_as_all() -> None:
    rng = np.random.default_rng(5)
    seconds = np.exp(rng.normal(size=(30, 200)) * 0.05) * np.linspace(1.0, 3.0, 30)[:, None]
    used = portfolio(seconds)
    assert len(used) < 15
    assert np.mean(np.log(seconds[used].min(axis=0) / seconds.min(axis=0))) <= 0.002
    # Configurations that a library runs for some rows only (times are infinite elsewhere).
    seconds[:15, :100] = np.inf
    seconds[15:, 100:] = np.inf
    split = portfolio(seconds)
    assert np.isfinite(seconds[split].min(axis=0)).all()
    assert len(set(split)) == len(split)


def test_the_jacobian_is_the_slope_of_the_residuals() -> None:
    start = prepared(base())

    def chip_at(x: np.ndarray) -> Chip:
        return with_factors(
            start, {p.name: float(np.exp(v)) for p, v in zip(CHIP_PARAMETERS, x, strict=True)}
        )

    problem = Problem(batches(rows(20), start), chip_at)
    x = np.zeros(len(CHIP_PARAMETERS))
    problem.refresh(x)
    slopes = problem.jacobian(x)
    step = np.full(len(x), 0.003)
    moved = problem.residuals(x + step) - problem.residuals(x)
    assert np.quantile(np.abs(moved - slopes @ step), 0.9) < 2e-3


def test_an_overlay_is_the_chip_it_was_made_of(tmp_path: Path) -> None:
    made = with_factors(prepared(base()), TRUE, "fitted in a test")
    file = tmp_path / "h200-fitted.yaml"
    write_overlay(base(), made, file)
    again = load_chip(file)
    assert again.id == DEVICE
    for path, quantity in made.quantities().items():
        assert again.quantities()[path].value == pytest.approx(quantity.value, rel=1e-5), path
    assert again.clock.matrix_burst_hz is None
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_at_most_fifteen_parameters_a_chip_and_three_a_family_each_explained() -> None:
    assert len(CHIP_PARAMETERS) <= 15
    assert len(FAMILY_PARAMETERS) <= 3
    text = parameters_markdown()
    for p in (*CHIP_PARAMETERS, *FAMILY_PARAMETERS):
        assert p.meaning in text
        assert p.low < p.high
        assert p.bounds[0] <= 0.0 <= p.bounds[1]
    numbers = base().quantities()
    for parameter in CHIP_PARAMETERS:
        known = with_factors(prepared(base()), {}).quantities()
        assert any(path in known or path in numbers for path in parameter.paths), parameter.name


def test_the_start_of_a_fit_forgets_what_the_chips_own_timings_said() -> None:
    """Else a chip left out would be known by way of its file."""
    one, other = (prepared(load_chip(n, calibrated=False)) for n in ("h200-sxm", "l40s"))
    assert one.matrix.mainloop_fraction == other.matrix.mainloop_fraction
    assert one.dram.read_fraction == other.dram.read_fraction
    assert one.clock.matrix_burst_hz is None
    assert one.clock.matrix_sustained_hz is not None
    assert one.clock.matrix_sustained_hz.value == pytest.approx(0.7 * one.clock.max_hz.value)


def test_a_plan_has_distinct_kernels_and_teaches_more_than_a_draw() -> None:
    candidates = rows(60)
    plan = choose(base(), candidates, 8, {})
    assert len(plan) == 8
    assert not row_keys(plan).duplicated().any() or plan["framework"].nunique() > 1
    start = prepared(base())

    def chip_at(x: np.ndarray) -> Chip:
        return with_factors(
            start, {p.name: float(np.exp(v)) for p, v in zip(CHIP_PARAMETERS, x, strict=True)}
        )

    def left(chosen: pd.DataFrame) -> float:
        """Mean variance of log time over all candidates after these rows."""
        x = np.zeros(len(CHIP_PARAMETERS))
        slopes = []
        for frame in (chosen, candidates):
            problem = Problem(batches(frame, start), chip_at)
            problem.refresh(x)
            slopes.append(problem.jacobian(x))
        prior = np.diag([1 / p.sigma**2 for p in CHIP_PARAMETERS])
        covariance = np.linalg.inv(slopes[0].T @ slopes[0] / 0.08**2 + prior)
        return float(np.mean(np.sum((slopes[1] @ covariance) * slopes[1], axis=1)))

    draws = [left(candidates.sample(8, random_state=seed)) for seed in range(4)]
    assert left(plan) < min(draws)


def test_a_summary_of_a_known_error() -> None:
    measured = np.array([1.0, 2.0, 4.0, 8.0])
    said = summary(measured, 1.1 * measured)
    assert said["n"] == 4
    assert said["mape"] == pytest.approx(10.0)
    assert said["median"] == pytest.approx(10.0)
    assert said["bias"] == pytest.approx(10.0)


def test_kernels_of_a_known_algorithm_are_predicted_by_its_configurations_only() -> None:
    rows = load_sample("h200-sxm", "linear_attention")
    one = rows.groupby(rows["kernel_source"].str.contains("flashinfer")).head(1)
    chip = load_chip("h200-sxm")
    for batch in batches(one, chip):
        fused = "flashinfer" in str(one["kernel_source"].iloc[int(batch.where[0])])
        configs = allowed(chip, batch)
        assert batch.library is not None
        launched = batch.library.launched(configs, batch.shape, len(batch)).all(axis=1)
        variants = {config["variant"] for config, kept in zip(configs, launched, strict=True) if kept}
        assert variants == {"fused" if fused else "chunked"}
