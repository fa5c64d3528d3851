"""Published measurements on chips that nothing was fitted to: the list, its errors, its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from validation import Fake, measured

from foretile.calibration import published as published_module
from foretile.calibration.published import (
    GOAL_CHIPS,
    GOAL_MEDIAN,
    GOAL_POINTS,
    Point,
    PublishedError,
    Reproduction,
    load_published,
    reproduce,
    reproduced,
    standing,
)
from foretile.calibration.validate import validate
from foretile.cli import main
from foretile.hwmodels import load_chip
from foretile.hwmodels.checks import peak_flop_per_s
from foretile.kernels.operator import load_operator
from foretile.report import accuracy
from foretile.report import published as tables

POINTS = load_published()
GOOD = {
    "chip": "metax-c500",
    "kind": "bandwidth",
    "operator": "copy",
    "shape": {"bytes": 1000},
    "measured": {"bytes_per_s": 1e12},
    "source": "a page that can be looked up",
}


def test_the_list_is_of_other_vendors_chips_and_large_enough() -> None:
    counted = [p for p in POINTS if not p.circular]
    assert len(counted) >= GOAL_POINTS
    assert len({p.chip for p in counted}) >= GOAL_CHIPS
    assert {p.kind for p in counted} == {"matrix", "bandwidth", "kernel"}
    for point in POINTS:
        chip = load_chip(point.chip)
        assert chip.vendor != "NVIDIA"
        assert chip.calibration is None


def test_a_figure_that_a_chip_file_quotes_is_circular() -> None:
    """The converse of the rule: no counted point's own rate stands in a source of its chip's file."""
    for point in POINTS:
        unit, figure = point.stated
        if point.circular or unit == "time_s":
            continue
        scale = 1e12 if unit == "flop_per_s" else 1e9
        quoted = {f"{figure / scale:g} {unit_name}" for unit_name in ("TFLOP/s", "GB/s", "TOP/s")}
        for path, quantity in load_chip(point.chip).quantities().items():
            assert not any(text in quantity.source for text in quoted), (point.chip, path)


def test_errors_are_what_the_goal_asks() -> None:
    over = standing(reproduced())
    assert over.points >= GOAL_POINTS
    assert over.median <= GOAL_MEDIAN
    assert over.inside >= 0.7 * over.points  # of 90 % intervals


def test_the_table_in_the_docs_is_the_one_that_the_program_makes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "accuracy.md").read_text(encoding="utf-8")
    assert " ".join(tables.words(reproduced())) in page
    for line in tables.table(reproduced()).markdown().strip().splitlines():
        assert line in page


def test_no_point_is_predicted_faster_than_the_chip_can() -> None:
    for r in reproduced():
        chip, operator = load_chip(r.point.chip), load_operator(r.point.operator)
        shape = operator.shape(**r.point.shape)
        rate = chip.matrix.flop_per_cycle.get(operator.compute_dtype(shape))
        if rate is not None and r.point.kind == "matrix":
            peak = peak_flop_per_s(chip, operator.compute_dtype(shape))
            assert float(operator.flops(shape)) / r.predicted_s <= peak
        if not r.point.warm:
            least = float(operator.min_bytes(shape)) / chip.dram.bandwidth_bytes_per_s.value
            assert r.predicted_s >= least


def test_rates_become_times_and_circular_points_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "points.yaml"
    path.write_text(yaml.safe_dump([GOOD, {**GOOD, "circular": "its own fraction", "cache": "warm"}]))
    plain, circular = load_published(path)
    assert plain.measured_s == pytest.approx(2000 / 1e12)
    assert (plain.warm, circular.warm) == (False, True)
    found = [Reproduction(plain, 1.1 * plain.measured_s, (0.0, 1.0)), Reproduction(circular, 9.0, (0.0, 1.0))]
    over = standing(found)
    assert (over.points, over.chips, over.inside) == (1, 1, 1)
    assert over.median == pytest.approx(0.1)
    again = reproduce([plain])[0]
    assert again.predicted_s > plain.measured_s  # a launch alone takes longer


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "guess"}, "entry 1: kind 'guess' is not one of matrix, bandwidth, kernel"),
        ({"cache": "hot"}, "entry 1: cache 'hot' is neither cold nor warm"),
        ({"source": "web"}, "entry 1: source must say where"),
        ({"measured": {"time_s": 1.0, "flop_per_s": 1.0}}, "entry 1: measured must be one of"),
        ({"measured": {"time_s": -1.0}}, r"entry 1: measured\.time_s: -1\.0 is not a positive number"),
        ({"speed": 1}, "entry 1: unknown speed"),
        ({"chip": "hygon-k100"}, "hygon-k100 is incomplete"),
        ({"operator": "gemn"}, "gemn"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = tmp_path / "points.yaml"
    path.write_text(yaml.safe_dump([{**GOOD, **change}]))
    with pytest.raises(ValueError, match=said):
        load_published(path)


def test_an_entry_without_a_source_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "points.yaml"
    path.write_text(yaml.safe_dump([{key: value for key, value in GOOD.items() if key != "source"}]))
    with pytest.raises(PublishedError, match="entry 1: missing source"):
        load_published(path)


def _some() -> list[Reproduction]:
    one, two = next(p for p in POINTS if not p.circular), next(p for p in POINTS if p.circular)
    return [Reproduction(p, 1.2 * p.measured_s, (p.measured_s, 2 * p.measured_s)) for p in (one, two)]


def test_the_pages_have_every_point_with_source_and_error() -> None:
    found = _some()
    made = validate(measured(), models=Fake().models)
    for text in (accuracy.html(made, found), accuracy.markdown(made.summary, "", found)):
        assert "Published measurements" in text
        for r in found:
            assert r.point.source in text
        assert "+20.0 %" in text
        assert "circular: " in text
        assert "n = 1, 1 chips" in text
    assert "Published measurements" not in accuracy.markdown(made.summary)
    assert "missed" in tables.words(found)[1]


def test_the_command_prints_and_gives_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(points: list[Point]) -> list[Reproduction]:
        return [Reproduction(p, p.measured_s, (p.measured_s, p.measured_s)) for p in points]

    monkeypatch.setattr(published_module, "reproduce", fake)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*argv: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["validate", "--published", *argv])
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    code, out, _ = run("--chip", "c500")
    assert code == 0
    assert "metax-c500" in out
    assert "circular" in out
    code, out, _ = run("--json")
    told = json.loads(out)
    assert code == 0
    assert len(told["points"]) == len(POINTS)
    assert told["standing"]["points"] == sum(not p.circular for p in POINTS)
    code, _, err = run("--chip", "h100")
    assert (code, "no published measurement on h100-sxm5-80gb" in err) == (2, True)
    code, _, err = run("--operator", "gemm")
    assert (code, "--published goes with --chip and --json only" in err) == (2, True)
