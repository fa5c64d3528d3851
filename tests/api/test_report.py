"""The report from a made-up predictor: whole, self-contained, the same numbers in all three files."""

from __future__ import annotations

import csv
import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from foretile.hwmodels import IncompleteChipError, load_chip
from foretile.report import units
from foretile.report.collect import collect, complete, totals
from foretile.report.compare import Report, write_report
from foretile.report.findings import findings
from foretile.report.output import OutputError
from foretile.report.suite import SuiteError, cases, load_suite, parse_suite
from foretile.simulator.machine import SimulationError

from . import fakes
from .conftest import Run
from .test_suite import GOOD


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("report")
    return write_report(load_suite("deepseek-v3"), fakes.CHIPS, folder, predict=fakes.predict)


def _text(report: Report, name: str) -> str:
    return next(path for path in report.files if path.name == name).read_text(encoding="utf-8")


class _Page(html.parser.HTMLParser):
    """Collects everything a browser would load, and checks that elements close."""

    empty = frozenset({"meta", "link", "input", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.empty:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster", "action") or (
                name.endswith("href") and not (value or "").startswith("#")
            ):
                self.loads.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(written: Report) -> None:
    text = _text(written, "report.html")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert page.loads == ["data:,"]
    assert not re.search(r"url\(\s*['\"]?(?!#)", text)
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_every_operator_and_chip_is_on_the_page(written: Report) -> None:
    text = _text(written, "report.html")
    for case in cases(load_suite("deepseek-v3")):
        assert f"{case.entry.title}" in text
    for chip in fakes.CHIPS:
        assert chip.id in text
    assert text.count("<svg") == 6
    assert text.count("datasheet only") >= 2
    assert "stand-in" not in text  # every operator is there in its exact form


def test_figures_follow_the_page_and_repeat_no_id(written: Report) -> None:
    text = _text(written, "report.html")
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "var(--ink)" in drawings
    assert "#1f2328" not in drawings
    ids = [i for i in re.findall(r'(?<!xlink)\bid="([^"]+)"', text) if not re.match(r"[mpC0-9]", i)]
    assert len(ids) == len(set(ids))


def test_csv_and_markdown_hold_the_same_numbers(written: Report) -> None:
    with next(p for p in written.files if p.suffix == ".csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    suite = load_suite("deepseek-v3")
    assert len(table) == len(cases(suite)) * len(fakes.CHIPS)
    passes = {(p.id, q.id): f"{p.title}, {q.title}" for p in suite.phases for q in p.points}
    lines = set(_text(written, "report.md").splitlines())
    for row in table:
        times = (units.digits(float(row[c]) * 1e6, 4) for c in ("time_s", "low_s", "high_s"))
        place = f"| {passes[row['phase'], row['point']]} | {row['title']} | {row['chip']} | "
        assert place + " | ".join(times) + f" | {row['count']} | {row['bound']} |" in lines


def test_markdown_tables_have_equal_columns(written: Report) -> None:
    for block in re.findall(r"(?:^\|.*\n)+", _text(written, "report.md"), flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block[:200]


def test_findings_name_the_leader_and_the_doubt(written: Report) -> None:
    decode, prefill, *_ = written.findings
    assert decode.startswith("Decode: big-one leads with ")
    assert prefill.startswith("Prefill: big-one leads with ")
    assert any("2 of 4 chips are described by datasheets" in line for line in written.findings)


def test_the_same_input_gives_the_same_files(written: Report, tmp_path: Path) -> None:
    again = write_report(load_suite("deepseek-v3"), fakes.CHIPS, tmp_path, predict=fakes.predict)
    for path in written.files:
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    assert json.loads(json.dumps(again.to_json()["totals"])) == again.to_json()["totals"]


def test_totals_multiply_by_count_and_add_intervals() -> None:
    frame = collect(parse_suite(GOOD, "small"), fakes.CHIPS[:1], predict=fakes.predict)
    at = frame[frame["point"] == "b2"]
    row = totals(frame).set_index("point").loc["b2"]
    assert row["time_s"] == pytest.approx((at["time_s"] * at["count"]).sum())
    assert row["low_s"] == pytest.approx((at["low_s"] * at["count"]).sum())
    assert row["tokens_per_s"] == pytest.approx(2 / row["time_s"])


def test_equal_calls_are_predicted_once() -> None:
    seen: list[Any] = []

    def count(op: str, chip: Any, **shape: Any) -> Any:
        seen.append((op, chip.id, tuple(shape.items())))
        return fakes.predict(op, chip, **shape)

    collect(load_suite("deepseek-v3"), fakes.CHIPS[:2], predict=count)
    assert len(seen) == len(set(seen))


def _no_gemm_on_the_small_one(op: str, chip: Any, **shape: Any) -> Any:
    if op == "gemm" and chip.id == "small-one":
        raise SimulationError("small-one: gemm: no matrix engine <for bf16>")
    return fakes.predict(op, chip, **shape)


def test_what_a_chip_cannot_run_is_said_and_its_total_left_out(tmp_path: Path) -> None:
    report = write_report(
        parse_suite(GOOD, "small"), fakes.CHIPS, tmp_path, predict=_no_gemm_on_the_small_one
    )
    assert any(line.startswith("No total for small-one") for line in report.findings)
    assert "small-one" not in set(complete(report.totals)["chip"])
    page = (tmp_path / "report.html").read_text()
    assert "not predicted: small-one: gemm: no matrix engine &lt;for bf16&gt;" in page
    assert "<for bf16>" not in page


def test_one_chip_is_enough(tmp_path: Path) -> None:
    report = write_report(parse_suite(GOOD, "small"), fakes.CHIPS[:1], tmp_path, predict=fakes.predict)
    assert report.findings[0].startswith("Decode: ")


def test_nothing_predictable_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise SimulationError("no such engine")

    with pytest.raises(SuiteError, match="nothing could be predicted; big-one: up: no such engine"):
        write_report(parse_suite(GOOD, "small"), fakes.CHIPS, tmp_path, predict=never)
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_ours_is_not_taken_for_a_missing_feature(tmp_path: Path) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("operands could not be broadcast")

    with pytest.raises(ValueError, match="broadcast"):
        write_report(parse_suite(GOOD, "small"), fakes.CHIPS, tmp_path, predict=broken)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("work began")

    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "below"):
        with pytest.raises(OutputError, match="is a file, or lies below one"):
            write_report(parse_suite(GOOD, "small"), fakes.CHIPS, place, predict=never)


def test_workers_give_what_one_process_gives() -> None:
    suite = parse_suite(GOOD, "small")
    alone = collect(suite, fakes.CHIPS, predict=fakes.predict, workers=1)
    shared = collect(suite, fakes.CHIPS, predict=fakes.predict, workers=2)
    assert alone.equals(shared)


@pytest.mark.usefixtures("fake")
def test_compare_prints_the_files_and_the_findings(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    said = run("compare", "--chips", "big-one,small-one", "--out", str(tmp_path / "new" / "folder"))
    assert said.code == 0
    names = [Path(line).name for line in said.out.splitlines()]
    assert names == ["report.html", "report.md", "predictions.csv"]
    assert "Decode: big-one leads" in said.err
    found = json.loads(run("compare", "--chips", "big-one", "--out", str(tmp_path), "--json").out)
    assert found["chips"] == ["big-one"]
    assert {row["point"] for row in found["totals"]} >= {"tokens-4096", "batch-32"}


def test_an_incomplete_chip_is_named_and_has_no_number(tmp_path: Path) -> None:
    suite = parse_suite(GOOD, "small")
    report = write_report(
        suite, fakes.CHIPS[:2], tmp_path, incomplete=[fakes.INCOMPLETE], predict=fakes.predict
    )
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert fakes.INCOMPLETE.id not in set(table["chip"])
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if fakes.INCOMPLETE.id in line]
        assert len(lines) == 1, name
        assert fakes.INCOMPLETE.missing_in_words() in lines[0]
        assert "Incomplete: not predicted" in text
    assert report.to_json()["incomplete"] == [
        {"chip": fakes.INCOMPLETE.id, "missing": list(fakes.INCOMPLETE.missing)}
    ]


def test_only_incomplete_chips_are_no_report(tmp_path: Path) -> None:
    with pytest.raises(IncompleteChipError, match="half-known is incomplete"):
        write_report(parse_suite(GOOD, "small"), [], tmp_path, incomplete=[fakes.INCOMPLETE])
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("fake")
def test_compare_takes_incomplete_chips(run: Run, tmp_path: Path) -> None:
    said = run("compare", "--chips", "half-known", "--out", str(tmp_path))
    assert said.code == 2
    assert "half-known is incomplete" in said.err


def test_a_chip_without_the_suites_type_runs_another_and_the_report_says_so(tmp_path: Path) -> None:
    suite = parse_suite(GOOD, "small")
    chips = [load_chip("v100"), load_chip("l40s")]
    frame = collect(suite, chips, workers=1)
    noted = frame[frame["note"] != ""]
    assert set(noted["chip"]) == {"v100-sxm2-32gb"}
    assert not frame["time_s"].isna().any()
    said = [str(f) for f in findings(suite, frame, totals(frame), chips)]
    assert any(s.startswith("In another type on v100-sxm2-32gb: bf16") for s in said)
