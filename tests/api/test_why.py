"""Why two chips differ: the product of ratios is the ratio, changes are where they are said to be,
and the range in which a verdict stays is the one in which it stays."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretile.calibration.ranges import number_sigma, plausible_range
from foretile.frontdoor import predict, predict_many
from foretile.hwmodels import load_chip
from foretile.hwmodels.checks import peak_flop_per_s
from foretile.hwmodels.variants import with_values
from foretile.kernels.operator import load_operator
from foretile.report.collect import collect
from foretile.report.compare import write_report
from foretile.report.sensitivity import sensitivity, uncertain
from foretile.report.suite import SuiteError, parse_suite
from foretile.report.sweep import PASS, sweeps
from foretile.report.why import Why, _subject, pairs, why
from foretile.report.why_words import holds_words, sentences, why_words
from foretile.simulator.whatif import UNKNOWN_OF, Call, changed, times_s, unknown_range

from . import fakes
from .conftest import Run

SUITE = parse_suite(
    {
        "name": "few",
        "title": "A few operators",
        "subtitle": "For tests",
        "model": {"name": "None", "source": "made up", "facts": {"hidden": 4096, "layers": 2}},
        "assumptions": ["None."],
        "groups": {"all": "All"},
        "dtypes": ["bf16"],
        "phases": [
            {
                "id": "step",
                "title": "Step",
                "unit": "step",
                "tokens": "rows",
                "highlight": "r128",
                "points": [{"id": "r128", "title": "128 rows", "variables": {"rows": 128}}],
                "entries": [
                    {"name": "up", "title": "up", "group": "all", "operator": "gemm", "count": "layers",
                     "shape": {"m": "rows", "n": "hidden", "k": "hidden", "dtype": "bf16"}},
                    {"name": "norm", "title": "norm", "group": "all", "operator": "rmsnorm", "count": 2,
                     "shape": {"rows": "rows", "cols": "hidden"}},
                    {"name": "fixed", "title": "fixed", "group": "all", "operator": "rmsnorm", "count": 1,
                     "shape": {"rows": 4096, "cols": "hidden"}},
                ],
            }
        ],
    },
    "few",
)  # fmt: skip
PHASE = SUITE.phases[0]
H20, H100, ASCEND = (load_chip(c) for c in ("h20", "h100", "910b3"))


@pytest.fixture(scope="module")
def frame() -> Any:
    return collect(SUITE, [H20, H100, ASCEND], workers=1)


@pytest.fixture(scope="module")
def explained(frame: Any) -> Why:
    return why(SUITE, frame, H20, H100, [H20, H100, ASCEND])


def test_the_factors_multiply_to_the_ratio(explained: Why, frame: Any) -> None:
    across = why(SUITE, frame, H20, ASCEND, [H20, ASCEND])
    rows = [*explained.differences, *across.differences]
    assert len(rows) == 6
    for d in rows:
        assert d.cause is not None
        assert d.cause.ratio == pytest.approx(max(d.ratio, 1 / d.ratio), rel=1e-9), d.title
    for found in (explained, across):
        assert sum(d.part for d in found.differences) == pytest.approx(1.0)


def test_the_times_are_those_of_the_report(explained: Why, frame: Any) -> None:
    for d in explained.differences:
        for chip, time in (("h20", d.first_s), ("h100-sxm5-80gb", d.second_s)):
            row = frame[(frame["chip"] == chip) & (frame["entry"] == d.entry)].iloc[0]
            assert time == row["time_s"]


def test_a_large_product_differs_by_the_matrix_peak(explained: Why) -> None:
    up = next(d for d in explained.differences if d.entry == "up")
    assert up.first_bound == "matrix"
    assert up.cause is not None
    assert up.cause.resource == "matrix"
    assert up.cause.rate == pytest.approx(132 * 4096 / (78 * 1024))
    assert "matrix peak" in why_words(explained, up)


def test_a_chip_with_half_the_memory_is_explained_by_it() -> None:
    """Only one number differs, so it has to be the answer; launches keep the ratio below two."""
    half = with_values(ASCEND, {"dram.bandwidth_bytes_per_s": 0.8e12}).model_copy(update={"id": "half"})
    found = why(SUITE, collect(SUITE, [ASCEND, half], workers=1), ASCEND, half, [])
    fixed = next(d for d in found.differences if d.entry == "fixed")
    assert fixed.cause is not None
    assert (fixed.cause.resource, fixed.cause.rate) == ("dram", pytest.approx(2.0))
    assert fixed.cause.work == pytest.approx(1.0, rel=1e-6)
    assert 1.5 < fixed.ratio <= 2.0
    assert "both bound by DRAM bandwidth: rate 2.00×" in why_words(found, fixed)
    assert "half takes" in sentences(found, PHASE)[0]


def test_a_change_of_winner_is_where_the_cost_model_has_it() -> None:
    """Few rows are bound by memory, of which the H20 has more; many by arithmetic."""
    up = next(s for s in sweeps(SUITE, PHASE, "rows", H20, H100) if s.entry == "up")
    assert len(up.changes) == 1
    change = up.changes[0]
    assert change.winner == "h100-sxm5-80gb"

    def ratio(rows: int) -> float:
        shape = {"m": [rows], "n": [4096], "k": [4096], "dtype": ["bf16"]}
        return float(predict_many("gemm", H100, shape)[0] / predict_many("gemm", H20, shape)[0])

    assert ratio(change.size) < 1
    below = round(change.size / 1.03) - 1
    assert ratio(below) > 1
    assert up.words() == f"h20 below rows {change.size}, h100-sxm5-80gb from {change.size} on"
    assert up.ratios[128] == pytest.approx(ratio(128))


def test_a_sweep_covers_the_pass_and_what_depends_on_the_variable() -> None:
    found = sweeps(SUITE, PHASE, "rows", H20, H100)
    assert [s.entry for s in found] == [PASS, "up", "norm"]
    sizes = list(found[0].ratios)
    assert (sizes[0], sizes[-1], len(sizes)) == (2, 2048, 11)
    same = sweeps(SUITE, PHASE, "rows", H20, H20.model_copy(update={"id": "twin"}))
    assert all(s.words() == "level at every size" for s in same)
    with pytest.raises(SuiteError, match="step: no variable 'batch'; known: rows"):
        sweeps(SUITE, PHASE, "batch", H20, H100)


def test_what_a_chip_cannot_run_has_no_sweep() -> None:
    """V100 has no bf16."""
    found = sweeps(SUITE, PHASE, "rows", H20, load_chip("v100"))
    assert [s.entry for s in found] == ["norm"]


def test_a_verdict_turns_at_the_value_that_is_named() -> None:
    """Two chips that differ by five per cent of DRAM bandwidth, one of them uncertain about its share."""
    near = with_values(ASCEND, {"dram.bandwidth_bytes_per_s": 1.68e12}).model_copy(update={"id": "near"})
    rows = pairs(SUITE, collect(SUITE, [ASCEND, near], workers=1), ASCEND.id, "near")
    first, second = _subject(ASCEND, rows, "first"), _subject(near, rows, "second")
    (verdict,) = sensitivity(first, second, [])
    assert verdict.ratio < 1
    turning = {(i.number.chip, i.number.path): i for i in verdict.turning}
    # ``read_fraction`` alone turns it: higher on the one, lower on the other.
    found = turning["near", "dram.read_fraction"]
    assert found.turns_at is not None
    assert found.number.low < found.turns_at < ASCEND.dram.read_fraction.value

    def ratio(fraction: float) -> float:
        base = times_s(second.calls, near)
        moved = times_s(second.calls, changed(near, "dram.read_fraction", fraction))
        total = float(np.sum(second.time_s * moved / base * second.counts))
        return total / float(np.sum(first.time_s * first.counts))

    assert ratio(found.turns_at * 1.01) < 1 < ratio(found.turns_at * 0.99)
    assert not verdict.firm
    widths = [i.width for i in verdict.influences]
    assert widths == sorted(widths, reverse=True)


def test_a_verdict_that_nothing_turns_is_firm(explained: Why) -> None:
    verdict = explained.verdicts["step"]
    assert verdict.ratio < 0.7
    assert verdict.turning == ()
    assert verdict.firm
    assert verdict.ratio <= verdict.worst < 1
    assert verdict.worst >= max(max(i.at_low, i.at_high) for i in verdict.influences) * 0.99
    text = " ".join(sentences(explained, PHASE))
    assert "The answer stays for every value" in text
    assert "even all at once" in text


def test_uncertain_numbers_are_the_inferred_and_the_unknown_ones() -> None:
    found = {n.path: n for n in uncertain(H20, [H100, load_chip("h200")])}
    assert set(H20.inferred()) - {p for p in found if found[p].value is not None} == set()
    for number in found.values():
        assert number.low < number.high
        if number.value is not None:
            assert number.low <= number.value <= number.high
    amd, other = load_chip("mi300x"), load_chip("a100")
    assert "launch.block_cycles" not in amd.quantities()
    low, high = unknown_range(amd, "launch.block_cycles", [other]) or (0.0, 0.0)
    assert low == high == other.quantities()["launch.block_cycles"].value
    assert unknown_range(other, "launch.block_cycles", [amd]) is None
    assert unknown_range(H20, "clock.matrix_burst_hz", [amd]) is None  # its fit did without
    assert unknown_range(ASCEND, "launch.block_cycles", [other]) is None  # of another style
    assert set(UNKNOWN_OF) <= set(_optional_paths())


def _optional_paths() -> list[str]:
    from foretile.hwmodels.fields import fields

    return [f.path for f in fields() if not f.required]


def test_ranges_follow_the_confidence_or_the_fit() -> None:
    plain = load_chip("h20", calibrated=False)
    low, high = plausible_range(plain, "l2.bandwidth_bytes_per_cycle")
    assert math.log(high / low) == pytest.approx(2 * 1.6449 * 0.30)
    assert plausible_range(plain, "dram.write_fraction")[1] == 1.0
    assert H20.calibration is not None
    assert number_sigma(H20, "l2.bandwidth_bytes_per_cycle") == H20.calibration.sigma["l2"]
    assert number_sigma(H20, "registers.base_per_thread") == 0.30
    with pytest.raises(KeyError):
        plausible_range(plain, "l2.nothing")


def test_changed_numbers_reach_the_prediction() -> None:
    shape = load_operator("gemm").shape(m=128, n=4096, k=4096)
    config = predict("gemm", ASCEND, model="cost_model", m=128, n=4096, k=4096).config
    call = Call("gemm", shape, dict(config))
    base = times_s([call], ASCEND)[0]
    assert base == predict("gemm", ASCEND, model="cost_model", m=128, n=4096, k=4096).time_s
    slower = times_s([call], changed(ASCEND, "dram.read_fraction", 0.45))[0]
    assert 1.3 < slower / base <= 2.0
    # A configuration that no longer fits gives way to one that does.
    h100 = load_chip("h100", calibrated=False)
    mine = Call("gemm", shape, dict(predict("gemm", h100, model="cost_model", m=128, n=4096, k=4096).config))
    small = with_values(h100, {"scratchpad.max_block_bytes": 40000, "scratchpad.capacity_bytes": 40000})
    assert times_s([mine], small)[0] > times_s([mine], h100)[0]


def test_a_stated_peak_stays_when_cores_are_moved() -> None:
    """The MetaX C550's cores are a guess, its peak is not."""
    chip = load_chip("metax-c550")
    assert chip.matrix.flop_per_cycle["bf16"].confidence in ("derived", "inferred")
    for path, value in (("cores", 80.2), ("clock.max_hz", 1.0e9)):
        moved = changed(chip, path, value)
        assert moved.quantities()[path].value == pytest.approx(value, rel=0.01)
        assert peak_flop_per_s(moved, "bf16") == pytest.approx(peak_flop_per_s(chip, "bf16"))
    names = {number.path for number in uncertain(chip, [])}
    assert "cores" in names
    assert not any(f"matrix.flop_per_cycle.{d}" in names for d in chip.stated_peak_flop_per_s)
    cores = next(n for n in uncertain(chip, []) if n.path == "cores")
    assert cores.range() == "63 to 170"


def test_with_values_keeps_types_and_sources() -> None:
    chip = with_values(H20, {"cores": 50.6, "dram.read_fraction": 1.4, "l2.partitions": 2.0})
    assert chip.cores.value == 51
    assert chip.cores.source == H20.cores.source
    assert chip.dram.read_fraction.value == 1.0
    assert chip.l2.partitions is not None
    assert chip.l2.partitions.value == 2
    assert H20.cores.value == 78
    rate = with_values(H20, {"matrix.flop_per_cycle.bf16": 2048}).matrix.flop_per_cycle
    assert (rate["bf16"].value, rate["fp16"].value) == (2048, 1024)
    for path in ("l2.nothing", "nothing", "name", "clock"):
        with pytest.raises(KeyError):
            with_values(H20, {path: 1.0})


def test_the_page_and_the_json_tell_it(frame: Any, explained: Why, tmp_path: Path) -> None:
    report = write_report(SUITE, [H20, H100], tmp_path, workers=1, why=["h20", "h100-sxm5-80gb"])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Why h20 and h100-sxm5-80gb differ" in page
    assert "## Why h20 and h100-sxm5-80gb differ" in text
    for d in explained.differences:
        assert why_words(explained, d) in page
        assert why_words(explained, d) in text
    for line in sentences(explained, PHASE):
        assert line in text
    assert "details" not in (tmp_path / "predictions.csv").read_text().splitlines()[0]
    (told,) = json.loads(json.dumps(report.to_json(), default=float))["why"]
    assert [row["entry"] for row in told["differences"]] == ["up", "norm", "fixed"]
    assert told["verdicts"][0]["numbers"]
    for row in told["differences"]:
        factors = row["factors"]
        assert math.prod(factors.values()) == pytest.approx(max(row["ratio"], 1 / row["ratio"]))


def test_the_leader_and_the_next_of_another_architecture_are_explained_by_default(tmp_path: Path) -> None:
    report = write_report(SUITE, [ASCEND, H20, H100], tmp_path, workers=1, why=[])
    assert [(w.first, w.second) for w in report.why] == [("h100-sxm5-80gb", ASCEND.id)]
    for wrong in (["h20", "910b3"], ["h20"], ["h20", "h20"]):
        with pytest.raises(SuiteError, match="give two or more different chips of those compared"):
            write_report(SUITE, [H20, H100], tmp_path, workers=1, why=wrong)


def test_one_chip_is_explained_beside_several_others(
    frame: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And every chip stands beside the fastest, with the resource by which the two differ."""
    monkeypatch.setattr("foretile.report.collect.collect", lambda *given, **named: frame)
    asked = ["h20", "h100-sxm5-80gb", ASCEND.id]
    report = write_report(SUITE, [ASCEND, H20, H100], tmp_path, workers=1, why=asked)
    assert [(w.first, w.second) for w in report.why] == [("h20", asked[1]), ("h20", asked[2])]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for other in asked[1:]:
        assert f"Why h20 and {other} differ" in page
        assert f"## Why h20 and {other} differ" in text
    (phase,) = report.against
    assert phase.leader == "h100-sxm5-80gb"
    times = {(r["chip"], r["title"]): r["time_s"] for r in frame.to_dict("records")}
    for title, seconds, cells in phase.rows:
        assert seconds == times[phase.leader, title]
        assert set(cells) == {"h20", ASCEND.id}
        for chip, cell in cells.items():
            assert cell.ratio == pytest.approx(times[chip, title] / seconds)
            assert cell.words() in page
            assert cell.words() in text
    found = {title: cells for title, _, cells in phase.rows}
    assert found["up"]["h20"].resource == "matrix"
    assert json.loads(json.dumps(report.to_json(), default=float))["against_the_leader"][0]["operators"]


def test_an_open_winner_says_which_number_it_hangs_on() -> None:
    """Two chips five per cent of DRAM bandwidth apart: what is copied hangs on the share that is reached."""
    near = with_values(ASCEND, {"dram.bandwidth_bytes_per_s": 1.68e12}).model_copy(update={"id": "near"})
    found = why(SUITE, collect(SUITE, [ASCEND, near], workers=1), ASCEND, near, [])
    fixed = next(d for d in found.differences if d.entry == "fixed")
    assert not fixed.stays
    number = fixed.turned_by
    assert number is not None
    assert holds_words(fixed) == f"open: {number.name}, {number.range()}"
    side = {ASCEND.id: ("first", ASCEND), "near": ("second", near)}[number.chip]
    row = next(r for r in pairs(SUITE, collect(SUITE, [ASCEND, near], workers=1), ASCEND.id, "near")
               if r["entry"] == "fixed")  # fmt: skip
    call = Call(row["operator"], row[f"{side[0]}_details"]["shape"], row[f"{side[0]}_details"]["config"])
    turned = []
    for value in (number.low, number.high):
        moved = times_s([call], changed(side[1], number.path, value)) / times_s([call], side[1])
        seconds = {"first": row["first"], "second": row["second"], side[0]: row[side[0]] * float(moved[0])}
        turned.append((seconds["second"] > seconds["first"]) != (row["second"] > row["first"]))
    assert any(turned)


@pytest.mark.usefixtures("fake")
def test_why_on_the_command_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    argv = ("compare", "--chips", "big-one,small-one", "--out", str(tmp_path))
    wrong = run(*argv, "--why", "big-one,compute-heavy")
    assert wrong.code == 2
    assert "give two or more different chips of those compared" in wrong.err


def test_chips_are_grouped_by_vendor_with_their_confidence(tmp_path: Path) -> None:
    chips = [
        chip.model_copy(update={"vendor": vendor})
        for chip, vendor in zip(fakes.CHIPS, ("One", "Two", "One", "Two"), strict=True)
    ]
    write_report(SUITE, chips, tmp_path, predict=fakes.predict)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    summary = page[page.index("One pass on each chip") : page.index("<h2>Figures")]
    order = [summary.index(f">{word}<") for word in ("One", "big-one", "compute-heavy", "Two", "small-one")]
    assert order == sorted(order)
    assert summary.count("datasheet") >= len(chips)  # each chip's bar names its confidences
    rows = [
        r for r in (tmp_path / "report.md").read_text().splitlines() if r.startswith(("| One |", "| Two |"))
    ]
    assert len(rows) == 2 * len(chips)
    assert all("inferred" in row or "description" not in row for row in rows)
