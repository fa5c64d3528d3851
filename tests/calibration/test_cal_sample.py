"""The shipped sample: whole, attributed, and no fit row beyond the limit."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pandas as pd
import pytest

from foretile.calibration.measurements import (
    FIT_FOLDS,
    MeasurementError,
    fit_rows,
    folds,
    row_keys,
    test_rows,
    validate_table,
)
from foretile.calibration.sample import TEST_ROWS, load_sample, sample_devices, select
from foretile.hwmodels import list_chips

FOLDER = resources.files("foretile.calibration").joinpath("data", "aiconfigurator")
DEVICES = sample_devices()


@pytest.mark.parametrize("device", DEVICES)
def test_every_row_is_valid(device: str) -> None:
    frame = load_sample(device)
    validate_table(frame, f"{device}.parquet")
    assert set(frame["device"]) == {device}
    assert set(frame["licence"]) == {"Apache-2.0"}
    assert frame["source"].str.startswith("aiconfigurator-core ").all()


@pytest.mark.parametrize("device", DEVICES)
def test_counts(device: str) -> None:
    frame = load_sample(device)
    fitted = folds(row_keys(frame)) < FIT_FOLDS
    assert frame[fitted].groupby("family").size().max() <= 300
    assert frame[~fitted].groupby("family").size().max() <= TEST_ROWS
    assert len(fit_rows(frame)) == fitted.sum()
    assert len(test_rows(frame)) == (~fitted).sum()


def test_what_the_sample_covers() -> None:
    assert set(DEVICES) <= set(list_chips())
    assert {"a100-sxm4-80gb", "h100-sxm5-80gb", "h200-sxm", "b200-sxm", "l40s"} <= set(DEVICES)
    frame = load_sample()
    counts = frame.groupby(["device", "family"]).size()
    assert (counts.xs("gemm.bf16", level="family") == 1500).all()
    families = {"attention_decode", "attention_prefill", "mla_decode", "mla_prefill", "quantize", "moe.bf16"}
    assert families | {"sparse_mla", "indexer_logits", "topk_select"} <= set(frame["family"])
    assert (
        frame.groupby(["device", "family"])["framework"].nunique().xs("gemm.bf16", level="family").min() == 3
    )


def test_a_shape_is_on_one_side_of_the_split_on_every_chip() -> None:
    frame = load_sample()
    fitted = folds(row_keys(frame)) < FIT_FOLDS
    assert fitted.groupby(frame["operator"] + frame["shape"]).nunique().max() == 1


def test_at_least_half_of_every_family_is_comparable_but_for_eager_rows() -> None:
    frame = load_sample()
    frame = frame[frame["launch"] == "graph"]
    share = (frame["comparable"] == "").groupby([frame["device"], frame["family"]]).mean()
    assert share.min() > 0.45, "of the sample; of the tables it is half"
    assert (frame.loc[frame["family"].str.startswith("gemm"), "comparable"] == "").all()


def test_the_notice_names_source_licence_and_changes() -> None:
    notice = FOLDER.joinpath("NOTICE.md").read_text(encoding="utf-8")
    for words in ("aiconfigurator-core", "0.12.0", "NVIDIA", "Apache License, Version 2.0", "Changes made"):
        assert words in notice
    assert f"Rows: {len(load_sample()):,}." in notice


def test_the_sample_is_small() -> None:
    files = [Path(str(FOLDER)) / f"{device}.parquet" for device in DEVICES]
    assert sum(file.stat().st_size for file in files) < 5_000_000


def test_parts_of_the_sample_are_fresh_frames() -> None:
    first = load_sample("h200-sxm", "gemm.bf16")
    first["latency_s"] = 1.0
    again = load_sample("h200-sxm", "gemm.bf16")
    assert (again["latency_s"] < 1.0).all()
    whole = load_sample("h200-sxm")
    pd.testing.assert_frame_equal(again, whole[whole["family"] == "gemm.bf16"].reset_index(drop=True))


def test_what_is_not_there_is_refused_with_what_is() -> None:
    with pytest.raises(MeasurementError, match="it holds: a100"):
        load_sample("h20")
    with pytest.raises(MeasurementError, match=r"gemm\.bf16"):
        load_sample("h200-sxm", "gemm.bf17")


def test_selecting_again_changes_nothing() -> None:
    frame = load_sample("l40s")
    pd.testing.assert_frame_equal(select(frame), frame)
    assert len(select(frame.iloc[::2])) == len(frame.iloc[::2])
