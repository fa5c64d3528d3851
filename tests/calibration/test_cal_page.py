"""Accuracy page, docs/accuracy.md, ``foretile validate``: whole, deterministic, each error with its n."""

from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from validation import CROWDED, Fake, measured

import foretile.calibration.validate as validation_module
from foretile.calibration.accuracy_summary import Summary
from foretile.calibration.measurements import write_table
from foretile.calibration.sources.comparable import RULES
from foretile.calibration.validate import Validation, validate
from foretile.cli import main
from foretile.report import accuracy
from foretile.report import accuracy_tables as tables

ERROR = re.compile(r"\d %")


@pytest.fixture(scope="module")
def made() -> Validation:
    return validate(measured(), models=Fake().models)


@pytest.fixture(scope="module")
def page(made: Validation) -> str:
    return accuracy.html(made)


class _Page(html.parser.HTMLParser):
    empty = frozenset({"meta", "link", "input", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.empty:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "data") or (name.endswith("href") and not (value or "").startswith("#")):
                self.loads.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    parsed = _Page()
    parsed.feed(page)
    assert parsed.open == []
    assert parsed.loads
    assert all(load.startswith("data:") for load in parsed.loads)
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL).lower()


def test_the_page_says_what_the_summary_says(page: str, made: Validation) -> None:
    for verdict in made.summary.verdicts:
        if verdict.n:
            assert f"{tables.percent(verdict.mape)}" in page
            assert f"n {verdict.n:,}" in page
    for rule in RULES:
        assert rule.reason.replace("'", "&#39;") in page
    assert page.count("<svg") == 6  # parity and regimes twice, residuals, coverage


def _tables(text: str) -> list[list[list[str]]]:
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    return [[line.strip("|").split("|") for line in block.strip().splitlines()] for block in blocks]


def test_markdown_is_the_same_every_time(made: Validation) -> None:
    text = accuracy.markdown(made.summary, "| launch | s |")
    again = Summary.from_json(json.loads(made.summary.to_text()))
    assert accuracy.markdown(again, "| launch | s |") == text
    assert "## Fitted parameters\n\n| launch | s |\n" in text
    assert "Fitted parameters" not in accuracy.markdown(made.summary)
    assert "Tile programs, configuration" not in text
    none_yet = accuracy.markdown(made.summary, devices=[])
    assert "No tile program has been measured on a device yet" in none_yet


def test_every_row_with_an_error_has_its_n(made: Validation) -> None:
    text = accuracy.markdown(made.summary)
    found = _tables(text)
    assert len(found) > 10
    with_errors = 0
    for block in found:
        widths = {len(cells) for cells in block}
        assert len(widths) == 1, block[0]
        for cells in block[2:]:
            if any(ERROR.search(cell) for cell in cells):
                with_errors += 1
                assert any(re.search(r"n = [\d,]+", cell) for cell in cells), cells
    assert with_errors > 40
    assert CROWDED in text


def test_an_error_without_rows_is_a_dash_not_a_zero(made: Validation) -> None:
    left = tables.operators_left_out(made.summary)
    assert left.rows  # quantize cannot be left out on the one chip, but on the other
    matrix = tables.matrix(made.summary, "operator_out")
    row = next(cells for cells in matrix.rows if cells[0].text == "quantize")
    by_chip = dict(zip(matrix.heads, row, strict=True))
    assert by_chip["l40s"].text == tables.NOTHING
    assert by_chip["h200-sxm"].n


def test_a_chip_without_a_fit_is_said_to_have_none(made: Validation) -> None:
    said = [head for head, _ in accuracy.lead(replace(made.summary, unfitted=("l40s",)))]
    assert "Not fitted: l40s." in said
    assert not any("Not fitted" in head for head, _ in accuracy.lead(replace(made.summary, unfitted=())))


def test_what_a_cell_says() -> None:
    assert tables.percent(0.0412) == "4.1 %"
    assert tables.percent(1.5) == "150 %"
    assert tables.percent(0.9996) == "100 %"
    assert tables.signed(-0.012) == "−1.2 %"
    cell = tables.Cell("4.1 %", "1,200", "missed, ≤ 4 %", "missed")
    assert cell.plain() == "**4.1 % (n = 1,200)**, missed, ≤ 4 %"
    assert tables.Table(("a",), ((tables.Cell("x|y"),),)).markdown() == "| a |\n| --- |\n| x\\|y |"


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORETILE_DEBUG", raising=False)
    monkeypatch.setattr(validation_module, "shipped_models", lambda: Fake().models)
    monkeypatch.setattr(accuracy, "parameters_markdown", lambda: "| parameter | unit |")

    def call(*argv: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["validate", *argv])
        caught = capsys.readouterr()
        return int(left.value.code or 0), caught.out, caught.err

    return call


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_table(measured(), tmp_path_factory.mktemp("data") / "table.parquet"))


def test_the_command_writes_page_rows_summary_and_markdown(run: Run, data: str, tmp_path: Path) -> None:
    out, text = tmp_path / "out", tmp_path / "accuracy.md"
    code, said, _ = run("--data", data, "--chip", "l40s", "--out", str(out), "--markdown", str(text))
    assert code == 0
    for name in ("accuracy.html", "results.parquet", "summary.json"):
        assert (out / name).is_file()
        assert str(out / name) in said
    assert "gemm.bf16" in said
    assert "h200-sxm" not in said
    assert text.read_text(encoding="utf-8").startswith("# Accuracy\n")
    assert "| parameter | unit |" in text.read_text(encoding="utf-8")


def test_json_is_the_summary(run: Run, data: str) -> None:
    code, said, _ = run("--data", data, "--operator", "gemm", "--part", "fitted", "--json")
    assert code == 0
    summary = Summary.from_json(json.loads(said))
    assert summary.parts == ("fitted",)
    assert {v.family for v in summary.verdicts} == {"gemm.bf16"}
    assert all(v.n > 0 for v in summary.verdicts)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--chip", "h20"], "no measured rows of chip 'h20'"),
        (["--chip", "nosuch"], "nosuch"),
        (["--operator", "gemn"], "no measured rows of family 'gemn'"),
        (["--part", "halves"], "no part 'halves'"),
        (["--markdown", "/no/such/folder/x.md"], "does not exist"),
    ],
)
def test_a_wrong_request_is_code_two_and_one_message(
    run: Run, data: str, argv: list[str], message: str
) -> None:
    code, said, err = run("--data", data, *argv)
    assert (code, said) == (2, "")
    assert err.startswith("error: ")
    assert message in err


def test_a_missing_table_is_named(run: Run, tmp_path: Path) -> None:
    code, _, err = run("--data", str(tmp_path / "none.parquet"))
    assert code == 2
    assert "none.parquet" in err
