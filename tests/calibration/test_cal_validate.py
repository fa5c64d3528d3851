"""Validation: blind, complete, resumable, and the same whichever way it was reached."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from validation import CROWDED, DEVICES, Fake, measured

from foretile.calibration.accuracy_summary import Summary
from foretile.calibration.measurements import test_rows as rows_for_testing
from foretile.calibration.metrics import column
from foretile.calibration.validate import (
    BASELINES,
    MODEL_PARTS,
    ROWS_FILE,
    SUMMARY_FILE,
    Step,
    Validation,
    ValidationError,
    folders_identity,
    select,
    source_identity,
    validate,
)

TABLE = measured()


@pytest.fixture(scope="module")
def made() -> Validation:
    return validate(TABLE, models=Fake().models)


def test_every_test_row_is_there_and_no_other(made: Validation) -> None:
    expected = rows_for_testing(TABLE)
    assert 0 < len(expected) < len(TABLE)
    assert list(made.rows.index) == list(expected.index)
    assert (made.rows["latency_s"] == expected["latency_s"]).all()
    for part in (*MODEL_PARTS, *BASELINES):
        assert column(part) in made.rows


def test_predictions_are_those_of_the_rows_they_stand_beside(made: Validation) -> None:
    rows = made.rows[made.rows[column("fitted")].notna()]
    ratio = rows[column("fitted")] / rows["latency_s"]
    assert ratio.between(0.75, 1.3).all()
    assert (rows[column("unseen")] > rows[column("fitted")]).all()
    assert (rows[column("fitted", "low")] < rows[column("fitted")]).all()


def test_refused_rows_are_counted_with_their_reason(made: Validation) -> None:
    refused = made.rows[column("fitted", "refused")] != ""
    assert refused.any()
    assert made.rows.loc[refused, column("fitted")].isna().all()
    counted = [r for r in made.summary.reasons if r.kind == "fitted"]
    assert sum(r.rows for r in counted) == refused.sum()
    assert {r.reason for r in counted} == {"one row is too few"}
    every = made.summary.line("chip", "fitted", device="h200-sxm")
    assert every is not None
    assert every.every.refused == (refused & (made.rows["device"] == "h200-sxm")).sum()


def test_a_chip_that_cannot_be_made_refuses_its_rows(made: Validation) -> None:
    rows = made.rows[(made.rows["device"] == "l40s") & (made.rows["family"] == "quantize")]
    assert (rows[column("operator_out", "refused")] == "nothing is left to fit from").all()
    assert rows[column("operator_out")].isna().all()
    line = made.summary.line("family", "operator_out", device="l40s", family="quantize")
    assert line is not None
    assert (line.every.n, line.every.refused) == (0, len(rows))


def test_all_rows_stand_beside_comparable_ones(made: Validation) -> None:
    line = made.summary.line("family", "fitted", device="h200-sxm", family="quantize")
    assert line is not None
    left = [r for r in made.summary.reasons if r.kind == "not comparable" and r.device == "h200-sxm"]
    assert [r.reason for r in left] == [CROWDED]
    assert line.every.n == line.comparable.n + left[0].rows


def test_every_figure_has_an_n(made: Validation) -> None:
    for grouping in made.summary.lines.values():
        for line in grouping:
            for over in (line.comparable, line.every):
                assert (over.n == 0) == np.isnan(over.mape)
                assert over.n + over.refused > 0 or over is line.comparable


def test_baselines_stand_on_the_same_rows(made: Validation) -> None:
    roofline = made.summary.line("chip", "roofline", device="l40s")
    scaled = made.summary.line("chip", "scaled_roofline", device="l40s")
    assert roofline is not None
    assert scaled is not None
    assert roofline.comparable.n == scaled.comparable.n > 0
    assert scaled.comparable.mape < roofline.comparable.mape
    assert roofline.comparable.bias < 0  # a roofline is never too long


def test_the_summary_round_trips(made: Validation) -> None:
    text = made.summary.to_text()
    assert Summary.from_json(json.loads(text)).to_text() == text
    with pytest.raises(ValueError, match="reads schema"):
        Summary.from_json({"schema": 0})


def test_files_hold_what_was_returned(tmp_path: Path) -> None:
    found = validate(TABLE, tmp_path, models=Fake().models)
    assert {path.name for path in found.files} == {ROWS_FILE, SUMMARY_FILE}
    assert (tmp_path / SUMMARY_FILE).read_text(encoding="utf-8") == found.summary.to_text()
    kept = pd.read_parquet(tmp_path / ROWS_FILE)
    assert kept[column("fitted")].to_numpy() == pytest.approx(
        found.rows[column("fitted")].to_numpy(), nan_ok=True
    )


def test_a_run_that_was_cut_short_is_taken_up(tmp_path: Path, made: Validation) -> None:
    cut = Fake(fail_at=3)
    with pytest.raises(KeyboardInterrupt):
        validate(TABLE, tmp_path, models=cut.models)
    assert not (tmp_path / SUMMARY_FILE).exists()
    steps: list[Step] = []
    rest = Fake()
    found = validate(TABLE, tmp_path, models=rest.models, progress=steps.append)
    whole = Fake()
    validate(TABLE, models=whole.models)
    assert len(cut.calls) == 3
    assert len(rest.calls) == len(whole.calls) - 3
    assert sum(step.resumed for step in steps) == 3 + 1  # and one chip's baselines
    assert (steps[-1].done, steps[-1].total) == (len(steps) // 2, len(steps) // 2)
    assert found.summary.to_text() == made.summary.to_text()
    pd.testing.assert_frame_equal(found.rows, made.rows)


def test_nothing_is_taken_up_that_was_made_of_something_else(tmp_path: Path) -> None:
    one = select(TABLE, ["l40s"])
    validate(one, tmp_path, models=Fake().models)
    same, other, fewer = Fake(), Fake(identity="two"), Fake(identity="two")
    validate(one, tmp_path, models=same.models)
    assert same.calls == []
    validate(one, tmp_path, models=other.models)
    assert len(other.calls) > 0
    validate(one.drop(rows_for_testing(one).index[0]), tmp_path, models=fewer.models)
    assert len(fewer.calls) >= 2


def test_new_measured_times_need_no_new_predictions_but_new_baselines(tmp_path: Path) -> None:
    one = select(TABLE, ["l40s"])
    validate(one, tmp_path, models=Fake().models)
    slower = one.assign(latency_s=one["latency_s"] * 2)
    again = Fake()
    found = validate(slower, tmp_path, models=again.models)
    assert again.calls == []
    fresh = validate(slower, models=Fake().models)
    pd.testing.assert_frame_equal(found.rows, fresh.rows)


def test_a_damaged_part_is_made_again(tmp_path: Path, made: Validation) -> None:
    validate(TABLE, tmp_path, models=Fake().models)
    for path in (tmp_path / "parts").glob("*.fitted.parquet"):
        path.write_bytes(path.read_bytes()[:100])
    found = validate(TABLE, tmp_path, models=Fake().models)
    assert found.summary.to_text() == made.summary.to_text()


def test_a_failure_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validate(TABLE, tmp_path, models=Fake().models)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        validate(TABLE, tmp_path, models=Fake(identity="two").models)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_parts_may_be_chosen() -> None:
    found = validate(TABLE, models=Fake().models, parts=["unseen"])
    assert found.summary.parts == ("unseen",)
    assert column("fitted") not in found.rows
    with pytest.raises(ValidationError, match="no part 'unfitted'; there are: fitted, unseen"):
        validate(TABLE, models=Fake().models, parts=["unfitted"])


def test_rows_are_selected_by_chip_family_or_operator() -> None:
    assert set(select(TABLE, ["l40s"])["device"]) == {"l40s"}
    assert set(select(TABLE, None, ["gemm.bf16"])["family"]) == {"gemm.bf16"}
    assert set(select(TABLE, None, ["gemm"])["family"]) == {"gemm.bf16"}
    assert len(select(TABLE, list(DEVICES), ["gemm", "quantize"])) == len(TABLE)
    with pytest.raises(ValidationError, match=r"no measured rows of chip 'h20'; there are: h200-sxm, l40s"):
        select(TABLE, ["h20"])
    with pytest.raises(ValidationError, match=r"of family 'gem'; there are: gemm, gemm\.bf16, quantize"):
        select(TABLE, None, ["gem"])


def test_rows_that_a_fit_may_see_are_no_validation() -> None:
    fit_only = TABLE.drop(rows_for_testing(TABLE).index)
    with pytest.raises(ValidationError, match="all are in folds that a fit sees"):
        validate(fit_only, models=Fake().models)


def test_the_models_identity_covers_code_chips_and_their_names(tmp_path: Path) -> None:
    (tmp_path / "chips").mkdir()
    chip = tmp_path / "chips" / "a.yaml"
    seen = set()
    for content in ("cores: 132", "cores: 78"):
        chip.write_text(content, encoding="utf-8")
        seen.add(folders_identity({"hwmodels": tmp_path}))
    chip.rename(tmp_path / "chips" / "b.yaml")
    seen.add(folders_identity({"hwmodels": tmp_path}))
    (tmp_path / "model.py").write_text("x = 1", encoding="utf-8")
    seen.add(folders_identity({"hwmodels": tmp_path}))
    assert len(seen) == 4
    (tmp_path / "model.pyc").write_bytes(b"compiled")
    assert folders_identity({"hwmodels": tmp_path}) in seen
    assert source_identity() not in seen
