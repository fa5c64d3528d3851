"""Baselines: what each must get right by construction, and what it must not know."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from tables import row, table

from foretile.calibration.baselines import (
    Roof,
    fit_scaled_roofline,
    nearest,
    peak_flop_per_s,
    roof,
    scaled_roofline,
)
from foretile.calibration.metrics import accuracy
from foretile.calibration.regimes import add_regimes
from foretile.hwmodels import load_chip


def gemms(count: int, seed: int = 0, **columns: object) -> pd.DataFrame:
    """Rows of random distinct GEMM shapes whose time is a smooth function of the shape."""
    rng = np.random.default_rng(seed)
    rows = []
    for m, n, k in np.unique(np.exp2(rng.uniform(4, 13, (count, 3))).astype(int), axis=0):
        latency = 1e-12 * m**0.7 * n**0.8 * k**0.9 + 4e-6
        rows.append(row("gemm", m=int(m), n=int(n), k=int(k), latency_s=latency, **columns))
    return table(*rows)


def test_the_roofline_is_peak_and_bandwidth_by_hand() -> None:
    rows = table(row("gemm", m=4096, n=4096, k=4096), row("gemm", m=1, n=8192, k=8192))
    above = roof(rows)
    chip = load_chip("h200-sxm")
    peak, bandwidth = 989.5e12, chip.dram.bandwidth_bytes_per_s.value
    assert peak_flop_per_s(chip, "bf16") == peak
    assert above.compute_s == pytest.approx([2 * 4096**3 / peak, 2 * 8192**2 / peak])
    moved = [2 * 3 * 4096**2, 2 * (8192**2 + 2 * 8192)]
    assert above.memory_s == pytest.approx(np.array(moved) / bandwidth)
    assert list(above.time_s) == [above.compute_s[0], above.memory_s[1]]
    assert list(add_regimes(rows, above)["bound"]) == ["compute", "memory"]


def test_arithmetic_without_a_matrix_rate_is_left_out() -> None:
    rows = table(row("quantize", rows=64, cols=7168))
    assert peak_flop_per_s(load_chip("h200-sxm"), "fp32") is None
    above = roof(rows)
    assert above.compute_s[0] == 0.0 < above.memory_s[0]


def test_a_scaled_roofline_finds_its_own_constants_despite_outliers() -> None:
    rng = np.random.default_rng(1)
    above = Roof(np.exp(rng.uniform(-15, -5, 300)), np.exp(rng.uniform(-15, -5, 300)))
    measured = np.maximum(above.compute_s / 0.7, above.memory_s / 0.85) + 3e-6
    measured[::30] *= 5.0
    found = fit_scaled_roofline(above, measured)
    assert found.n == 300
    assert found.compute_share == pytest.approx(0.7, rel=0.01)
    assert found.memory_share == pytest.approx(0.85, rel=0.01)
    assert found.constant_s == pytest.approx(3e-6, rel=0.05)
    with pytest.raises(ValueError, match="at least one row"):
        fit_scaled_roofline(above.at(np.array([], dtype=int)), np.array([]))


def test_a_scaled_roofline_speaks_only_of_chips_and_families_it_saw() -> None:
    known = gemms(40)
    other = gemms(10, device="l40s")
    both = pd.concat([gemms(20, seed=9), other], ignore_index=True)
    made = scaled_roofline(known, both)
    assert made[both["device"] == "h200-sxm"].notna().all()
    assert made[both["device"] == "l40s"].isna().all()


def test_nearest_recovers_a_smooth_function() -> None:
    known, rows = gemms(2500, seed=2), gemms(200, seed=3)
    over = accuracy(rows["latency_s"], nearest(known, rows))
    assert over.n == len(rows)
    assert over.median_ape < 0.01
    assert over.mape < 0.03


def test_a_plane_in_log_shape_is_met_exactly() -> None:
    known = gemms(400, seed=4)
    shapes = [json.loads(text) for text in known["shape"]]
    known["latency_s"] = [1e-12 * s["m"] ** 0.5 * s["n"] ** 0.8 * s["k"] for s in shapes]
    inner = [i for i, s in enumerate(shapes) if all(64 < s[name] < 2048 for name in "mnk")]
    rows = known.iloc[inner]
    assert len(rows) > 50
    assert accuracy(rows["latency_s"], nearest(known, rows)).median_ape < 0.01


def test_a_row_is_never_its_own_neighbour() -> None:
    """Nor is the same shape measured again: a wrong time of one row must not reach its own prediction."""
    known = gemms(300, seed=5)
    marked = known.copy()
    marked.loc[7, "latency_s"] *= 1000.0
    again = pd.concat([marked, marked.iloc[[7]].assign(framework="other")], ignore_index=True)
    honest, spoiled = nearest(known, known.iloc[[7]]), nearest(again, again.iloc[[7]])
    assert spoiled.iloc[0] == pytest.approx(honest.iloc[0])


def test_neighbours_share_chip_kernel_types_and_switches() -> None:
    known = gemms(200, seed=6)
    wanted = row("gemm", m=512, n=512, k=512)
    apart = [
        wanted | {"device": "l40s"},
        wanted | {"kernel_source": "other"},
        row("gemm", m=512, n=512, k=512, dtype="fp16"),
        row("gemm", m=512, n=512, k=512, trans_b=True),
    ]
    made = nearest(known, table(wanted, *apart))
    assert list(made.notna()) == [True, False, False, False, False]


def test_one_shape_only_knows_nothing() -> None:
    known = table(row("gemm", m=64, n=64, k=64))
    assert nearest(known, known).isna().all()
    two = table(row("gemm", m=64, n=64, k=64, latency_s=1e-5), row("gemm", m=128, n=64, k=64, latency_s=2e-5))
    assert list(nearest(two, two)) == pytest.approx([2e-5, 1e-5])


def test_the_index_of_the_rows_is_kept() -> None:
    known = gemms(100, seed=7)
    rows = known.iloc[[50, 3, 20]]
    assert list(nearest(known, rows).index) == [50, 3, 20]
    assert list(scaled_roofline(known, rows).index) == [50, 3, 20]
