"""The split: by shape alone, stable for ever, with limits."""

from __future__ import annotations

import hashlib
from typing import Any

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import row, table

from foretile.calibration.measurements import fit_rows, fold, folds, row_key, row_keys, test_rows

DEVICES = ("h200-sxm", "l40s", "a100-sxm4-80gb")


def grid(devices: tuple[str, ...] = DEVICES, shapes: int = 400) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for m in range(1, shapes + 1):
        one = row(m=m, n=4096, k=4096)
        rows += [{**one, "device": d, "kernel_source": s} for d in devices for s in ("cublas", "cutlass")]
    return table(*rows)


def test_keys_never_change() -> None:
    """These are written down so that no change of the library moves a test row into the fit."""
    shape = row(m=16, n=4096, k=4096)["shape"]
    key = row_key("gemm", shape)
    assert key == hashlib.sha256(f"gemm|{shape}".encode()).hexdigest()
    assert key.startswith("3fc147cabe47d42b")
    assert fold(key) == int(key, 16) % 100


def test_a_shape_is_on_the_same_side_everywhere() -> None:
    frame = grid()
    side = folds(row_keys(frame)) < 10
    assert side.groupby(frame["shape"]).nunique().max() == 1
    assert 0 < side.mean() < 0.2


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_limit_and_order(seed: int, limit: int) -> None:
    frame = FRAME.sample(frac=1.0, random_state=seed)
    fit = fit_rows(frame, limit)
    assert fit.groupby(["device", "family"]).size().max() <= limit
    assert (folds(row_keys(fit)) < 10).all()
    assert fit.index.isin(frame.index).all()
    first = fit_rows(FRAME, limit)
    pd.testing.assert_frame_equal(fit.sort_index(), first.sort_index())


def test_sides_do_not_meet() -> None:
    fit, test = fit_rows(FRAME, 10_000), test_rows(FRAME)
    assert len(fit) + len(test) == len(FRAME)
    assert not set(fit["shape"]) & set(test["shape"])


def test_more_rows_do_not_push_out_smaller_keys() -> None:
    few, many = fit_rows(FRAME, 20), fit_rows(FRAME, 40)
    assert set(few.index) <= set(many.index)


FRAME = grid(shapes=150)
