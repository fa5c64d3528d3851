"""``foretile chips new | check | schema | compare`` on real chips: streams, files and exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from foretile.hwmodels import load_chip
from foretile.hwmodels.checks import peak_flop_per_s, ridge_flop_per_byte
from foretile.report.specs import SpecsError, specs
from foretile.report.units import flop_rate

from .conftest import Run


def test_new_writes_what_check_calls_incomplete(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    said = run("chips", "new", "one", "--style", "simt", "--out", str(file))
    assert (said.code, said.out) == (0, f"{file}\n")
    checked = run("chips", "check", str(file))
    assert checked.code == 0
    assert "one: incomplete, so it cannot predict yet: 2 of " in checked.out
    assert "clock.max_hz" in checked.out
    assert run("chips", "check", str(file), "--strict").code == 2
    found = json.loads(run("chips", "check", str(file), "--json").out)
    assert found["complete"] is False
    assert {"field", "unit", "meaning", "where"} == set(found["missing"][0])
    assert found["needed"]["of"] - found["needed"]["given"] == len(found["missing"])


def test_new_prints_without_a_file_and_never_overwrites(run: Run, tmp_path: Path) -> None:
    said = run("chips", "new", "one", "--extends", "h20")
    assert "extends: h20" in said.out
    file = tmp_path / "one.yaml"
    file.write_text("mine")
    refused = run("chips", "new", "one", "--style", "simt", "--out", str(file))
    assert refused.code == 2
    assert "exists" in refused.err
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("new", "One", "--style", "simt"), "id 'One' is not valid"),
        (("new", "one"), "give --style simt or davinci"),
        (("new", "one", "--style", "gpu"), "style 'gpu' is not valid: must be simt or davinci"),
        (("new", "one", "--extends", "hygon-bw10"), "did you mean hygon-bw1000"),
        (("check", "nowhere.yaml"), "nowhere.yaml"),
        (("compare", "h20"), "give two or more different chips"),
        (("compare", "h20", "h20-sxm"), "give two or more different chips"),
        (("compare", "h20", "hygon-bw10"), "did you mean hygon-bw1000"),
        (("compare", "h20", "h100", "--out", "a.txt"), "end it in .html"),
    ],
)
def test_wrong_requests(run: Run, tmp_path: Path, monkeypatch: Any, argv: Any, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    said = run("chips", *argv)
    assert said.code == 2
    assert message in said.err
    assert list(tmp_path.iterdir()) == []


def test_check_says_what_is_wrong_implausible_or_sound(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "v.yaml"
    file.write_text("id: v\nextends: h20\n")
    sound = run("chips", "check", str(file))
    assert sound.code == 0
    assert "nothing to object to" in sound.out
    file.write_text(
        "id: v\nextends: h20\nlaunch:\n  kernel_s: {value: 2, source: a sheet, confidence: datasheet}\n"
    )
    implausible = run("chips", "check", str(file))
    assert implausible.code == 2
    assert "launch.kernel_s: 2 s is outside 0.1 to 100 us" in implausible.out
    assert "nothing to object to" not in implausible.out
    assert json.loads(run("chips", "check", str(file), "--json").out)["warnings"]
    file.write_text("id: v\nextends: h20\ncores: 3\n")
    wrong = run("chips", "check", str(file))
    assert (wrong.code, wrong.out) == (2, "")
    assert "v.yaml: cores: 3 is a bare number" in wrong.err


@pytest.mark.parametrize("head", ["style: simt\n", "style: simt\ncomplete: false\n"])
def test_check_finds_what_is_implausible_in_a_file_that_is_begun(run: Run, tmp_path: Path, head: str) -> None:
    """Before everything is filled in, and also where it never will be."""
    file = tmp_path / "v.yaml"
    number = "{value: %s, source: a sheet, confidence: datasheet}"
    file.write_text(
        f"id: v\nname: V\nvendor: None\nfamily: none\n{head}clock:\n  max_hz: {number % 1410}\n"
        f"dram:\n  bandwidth_bytes_per_s: {number % '1.2e12'}\n"
        f"  bus_bits: {number % 4096}\n  transfers_per_s: {number % '3.2e9'}\n"
    )
    said = run("chips", "check", str(file))
    assert said.code == 2
    assert f"{file}: clock.max_hz: 1410 Hz is outside 0.2 to 5 GHz" in said.out
    assert "bus_bits x transfers_per_s / 8 gives 1.638e+12 (+36.5%)" in said.out
    assert "v: incomplete, so it cannot predict yet" in said.out


def test_schema_is_one_that_editors_take(run: Run, tmp_path: Path) -> None:
    printed = json.loads(run("chips", "schema").out)
    jsonschema.Draft202012Validator.check_schema(printed)
    file = tmp_path / "chip.schema.json"
    assert run("chips", "schema", "--out", str(file)).code == 0
    assert json.loads(file.read_text()) == printed


def test_compare_shows_every_spec_with_its_ratio(run: Run) -> None:
    said = run("chips", "compare", "h20", "h100", "910b3")
    assert said.code == 0
    found = json.loads(run("chips", "compare", "h20", "h100,910b3", "--json").out)
    assert [chip["id"] for chip in found["chips"]] == ["h20", "h100-sxm5-80gb", "ascend-910b3"]
    for line in found["specs"]:
        assert line["name"] in said.out
        assert len(line["values"]) == len(line["ratios"]) == len(line["confidence"]) == 3
    by_name = {line["name"]: line for line in found["specs"]}
    h20, h100, ascend = (load_chip(c) for c in ("h20", "h100", "910b3"))
    peaks = [peak_flop_per_s(chip, "bf16") for chip in (h20, h100, ascend)]
    assert by_name["bf16 peak"]["values"] == pytest.approx(peaks)
    assert by_name["bf16 peak"]["ratios"] == pytest.approx([1.0, peaks[1] / peaks[0], peaks[2] / peaks[0]])
    assert flop_rate(peaks[1]) in said.out
    ridges = [ridge_flop_per_byte(chip) for chip in (h20, h100, ascend)]
    assert by_name["ridge point, 16 bit"]["values"] == pytest.approx(ridges)
    assert by_name["L2 latency"]["values"][2] == pytest.approx(50 / 1.8e9)
    assert by_name["fp8 peak"]["values"][2] is None
    assert by_name["L2 bandwidth"]["confidence"][0] == "inferred"
    assert re.search(r"L2 bandwidth +\S+ TB/s\?", said.out)


@pytest.mark.parametrize("kind", ["html", "svg", "png", "pdf"])
def test_compare_writes_a_page_or_the_figure(run: Run, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"c.{kind}"
    said = run("chips", "compare", "h20", "mi300x", "--out", str(file), "--json")
    assert said.code == 0
    assert json.loads(said.out)["files"] == [str(file)]
    data = file.read_bytes()
    starts = {"html": b"<!doctype html>", "svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}
    assert data.startswith(starts[kind])
    run("chips", "compare", "h20", "mi300x", "--out", str(file))
    assert file.read_bytes() == data
    if kind == "html":
        page = data.decode()
        assert page.count("<svg") == 1
        assert "amd-mi300x" in page
        assert 'href="http' not in page
        assert "src=" not in page


def test_specs_need_two_chips() -> None:
    with pytest.raises(SpecsError, match="two or more different chips"):
        specs([load_chip("h20")])
