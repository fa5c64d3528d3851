"""Properties of the error figures: what a perfect, a scaled and a noisy predictor must score."""

from __future__ import annotations

import json
import math
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from foretile.calibration.floors import FLOORS, floor_of, verdicts
from foretile.calibration.metrics import Accuracy, Line, accuracy, column, lines, wilson
from foretile.calibration.regimes import SIZES, aspect_of, dtype_of, sizes
from foretile.calibration.sample import load_sample
from foretile.kernels.operator import load_operator

TIMES = np.geomspace(2e-6, 5e-2, 200)


def test_a_perfect_predictor_has_no_error() -> None:
    over = accuracy(TIMES, TIMES, TIMES * 0.9, TIMES * 1.1)
    assert (over.mape, over.median_ape, over.p90_ape, over.bias_log, over.bias) == (0, 0, 0, 0, 0)
    assert (over.n, over.refused, over.intervals, over.coverage) == (200, 0, 200, 1.0)


@given(st.floats(0.05, 20.0))
def test_a_constant_factor_is_the_bias_and_every_error(factor: float) -> None:
    over = accuracy(TIMES, TIMES * factor)
    assert over.bias_log == pytest.approx(math.log(factor), abs=1e-9)
    assert over.bias == pytest.approx(factor - 1, abs=1e-9)
    for error in (over.mape, over.median_ape, over.p90_ape):
        assert error == pytest.approx(abs(factor - 1), abs=1e-9)


def test_no_time_unit_and_no_order_matters() -> None:
    rng = np.random.default_rng(3)
    predicted = TIMES * np.exp(rng.normal(0, 0.2, TIMES.size))
    mixed = rng.permutation(TIMES.size)
    first = accuracy(TIMES, predicted)
    assert accuracy(TIMES[mixed] * 1e3, predicted[mixed] * 1e3).mape == pytest.approx(first.mape)


def test_figures_by_hand() -> None:
    over = accuracy([1.0, 2.0, 4.0, 10.0], [1.1, 1.0, 4.0, math.nan])
    assert (over.n, over.refused) == (3, 1)
    assert over.mape == pytest.approx((0.1 + 0.5 + 0.0) / 3)
    assert over.median_ape == pytest.approx(0.1)
    assert over.p90_ape == pytest.approx(0.1 + 0.8 * 0.4)
    assert over.bias_log == 0.0


def test_coverage_of_a_known_normal() -> None:
    """A 90 % interval of log-normal errors holds nine of ten times; one of 68 % holds two of three."""
    rng, sigma, n = np.random.default_rng(11), 0.15, 40_000
    measured = np.geomspace(1e-6, 1e-2, n)
    predicted = measured * np.exp(rng.normal(0, sigma, n))
    for share in (0.9, 0.6827):
        factor = math.exp(sigma * NormalDist().inv_cdf(0.5 + share / 2))
        over = accuracy(measured, predicted, predicted / factor, predicted * factor)
        assert over.coverage == pytest.approx(share, abs=0.01)
        assert over.coverage_low < share < over.coverage_high


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (7, 7), (45, 50), (900, 1000)])
def test_the_confidence_interval_is_wilsons(hits: int, n: int) -> None:
    known = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson(hits, n) == pytest.approx((known.low, known.high))


def test_rows_without_an_interval_are_not_covered_nor_counted() -> None:
    nan = math.nan
    over = accuracy([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.9, nan, 1.1], [1.1, nan, 1.2])
    assert (over.intervals, over.coverage) == (2, 0.5)


def test_nothing_predicted_is_no_error_of_zero() -> None:
    over = accuracy([1.0, 2.0], [math.nan, math.nan])
    assert (over.n, over.refused) == (0, 2)
    assert math.isnan(over.mape)
    assert over.to_json()["mape"] is None
    assert json.dumps(Accuracy.from_json(over.to_json()).to_json()) == json.dumps(over.to_json())


def test_what_cannot_be_a_time_is_refused() -> None:
    with pytest.raises(ValueError, match="not positive"):
        accuracy([1.0, 0.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="2 measured times, but 1"):
        accuracy([1.0, 2.0], [1.0])


def _rows() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    n = 600
    latency = np.geomspace(1e-6, 1e-1, n)
    return pd.DataFrame(
        {
            "device": rng.choice(["a", "b"], n),
            "family": rng.choice(["x", "y", "z"], n),
            "comparable": rng.choice(["", "", "fallback"], n),
            "latency_s": latency,
            "size": sizes(latency).array,
            column("fitted"): latency * np.exp(rng.normal(0, 0.1, n)),
        },
        index=np.arange(n) + 1000,
    )


def test_groups_are_the_parts_of_the_whole() -> None:
    rows = _rows()
    whole = lines(rows, ["fitted"])[0]
    groups = lines(rows, ["fitted"], ["device", "family"])
    assert len(groups) == 6
    for scope in ("comparable", "every"):
        parts = [getattr(line, scope) for line in groups]
        total: Accuracy = getattr(whole, scope)
        assert sum(part.n for part in parts) == total.n
        assert sum(part.n * part.mape for part in parts) / total.n == pytest.approx(total.mape)
    assert whole.every.n == len(rows) > whole.comparable.n == (rows["comparable"] == "").sum()
    assert Line.from_json(groups[0].to_json()).to_json() == groups[0].to_json()


def test_size_bins_keep_their_order_and_hold_every_row() -> None:
    rows = _rows()
    found = [line.group["size"] for line in lines(rows, ["fitted"], ["size"])]
    assert found == list(SIZES)
    edges = [4.9e-6, 5e-6, 9.9e-6, 10e-6, 499e-6, 500e-6, 9.9e-3, 10e-3]
    assert list(sizes(np.array(edges))) == [
        "< 5 µs", "5–10 µs", "5–10 µs", "10–20 µs", "100–500 µs", "0.5–10 ms", "0.5–10 ms", "> 10 ms",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sizes_", "said"),
    [
        ({"m": 512, "n": 512, "k": 512}, "even"),
        ({"m": 16, "n": 512, "k": 512}, "m thin"),
        ({"m": 1, "n": 4096, "k": 4096}, "m very thin"),
        ({"m": 4096, "n": 4096, "k": 32}, "k very thin"),
    ],
)
def test_the_aspect_names_the_smallest_extent(sizes_: dict[str, int], said: str) -> None:
    shape = load_operator("gemm").shape(**sizes_)
    assert aspect_of("gemm", shape) == said


def test_types_are_named_once_each() -> None:
    gemm = load_operator("gemm")
    assert dtype_of("gemm", gemm.shape(m=1, n=1, k=1)) == "bf16"
    assert dtype_of("gemm", gemm.shape(m=1, n=1, k=1, dtype="fp8", out_dtype="bf16")) == "fp8, bf16"


def test_a_floor_is_met_at_its_limit_and_missed_above() -> None:
    floor = floor_of("gemm.bf16", "a100-sxm4-80gb")
    assert floor is not None
    assert (floor.fitted, floor.unseen) == (0.06, 0.15)
    for error, part, standing in (
        (0.0599, "fitted", "met"), (0.0601, "fitted", "missed"), (0.0601, "unseen", "met"),
    ):  # fmt: skip
        over = accuracy(TIMES, TIMES * (1 + error))
        group = {"device": "a100-sxm4-80gb", "family": "gemm.bf16"}
        verdict = verdicts([Line(part, group, over, over)])[0]
        assert (verdict.standing, verdict.n) == (standing, 200)
    empty = accuracy([1.0], [math.nan])
    group = {"device": "a100-sxm4-80gb", "family": "gemm.bf16"}
    assert verdicts([Line("fitted", group, empty, empty)])[0].standing == "not measured"
    assert floor_of("linear_attention", "h200-sxm") is None


def test_every_family_that_is_measured_has_a_floor_unless_the_targets_name_none() -> None:
    held = {(str(f), str(d)) for f, d in load_sample()[["family", "device"]].drop_duplicates().to_numpy()}
    free = {family for family, device in held if floor_of(family, device) is None}
    assert len(held) > 50
    assert free <= {"bmm.bf16", "bmm.fp8", "linear_attention"}


def test_a_chip_never_seen_is_never_held_to_less() -> None:
    assert all(0 < floor.fitted <= floor.unseen < 1 for floor in FLOORS)
