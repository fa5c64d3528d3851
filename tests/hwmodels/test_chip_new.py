"""Skeletons, completeness and the editor's schema: made from the schema, and as strict as they say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from foretile.hwmodels import ChipError, IncompleteChip, list_chips, load_chip
from foretile.hwmodels.checks import check_chip
from foretile.hwmodels.completeness import completeness
from foretile.hwmodels.fields import described_paths, fields
from foretile.hwmodels.loader import CALIBRATED, CATALOGUE, chip_files
from foretile.hwmodels.schema import STYLE_PARTS
from foretile.hwmodels.skeleton import json_schema, new_file
from foretile.hwmodels.yamlfile import parse_yaml, read_mapping

Write = Callable[..., Path]
SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def _uncommented(text: str) -> str:
    """A skeleton with every line in use: the explanations stay comments."""
    kept = [line for line in text.splitlines() if not line.lstrip().startswith("##")]
    body = kept[next(i for i, line in enumerate(kept) if line.startswith("id:")) :]
    return "\n".join(re.sub(r"^( *)# ", r"\1", line) for line in body)


def _filled(text: str) -> dict[str, Any]:
    """A skeleton with a plausible value in every place."""

    def fill(node: Any, path: str = "") -> Any:
        if isinstance(node, dict) and "value" in node:
            return {**node, "value": 0.5 if path.endswith("_fraction") else 8, "source": "made up for a test"}
        if isinstance(node, dict):
            return {key: fill(below, f"{path}.{key}".strip(".")) for key, below in node.items()}
        return node

    return dict(fill(yaml.safe_load(text)))


def test_every_field_is_described_and_nothing_else() -> None:
    every = {field.path: field for field in fields()}
    assert [path for path, field in every.items() if len(field.meaning) < 8] == []
    assert described_paths() <= set(every)
    assert [p for p, f in every.items() if f.kind == "number" and not f.where] == []


@pytest.mark.parametrize("style", STYLE_PARTS)
def test_a_skeleton_is_incomplete_in_exactly_what_the_style_needs(write: Write, style: Any) -> None:
    state = completeness(write(new_file("new-chip", style), "new-chip.yaml"))
    assert isinstance(state.chip, IncompleteChip)
    assert set(state.chip.missing) == {field.path for field in state.missing}
    given = {"id", "style"}
    assert {f.path for f in state.missing} == {f.path for f in fields(style) if f.required} - given
    assert sum(state.counts.values()) == 0
    assert state.share == pytest.approx(2 / state.needed)


@pytest.mark.parametrize("style", STYLE_PARTS)
def test_a_skeleton_has_every_field_of_its_style(style: Any) -> None:
    text = _uncommented(new_file("new-chip", style))
    data = yaml.safe_load(text)
    for field in fields(style):
        node: Any = data
        for step in field.path.split("."):
            assert step in node, field.path
            node = node[step]
    assert [line for line in new_file("new-chip", style).splitlines() if len(line) > 120] == []


@pytest.mark.parametrize(("style", "optional"), [("simt", False), *((style, True) for style in STYLE_PARTS)])
def test_a_filled_skeleton_is_complete_and_loads(write: Write, style: Any, optional: bool) -> None:
    text = new_file("new-chip", style)
    data = _filled(_uncommented(text) if optional else text)
    data |= {"name": "New", "vendor": "Testing", "family": "new"}
    data["matrix"]["instruction"] = "mma_sync"
    data["features"] = dict.fromkeys(data["features"], True)
    if "davinci" in data:
        data["davinci"]["handoff"] = "l2"
    path = write(data, "new-chip.yaml")
    state = completeness(path)
    assert [f.path for f in state.missing] == []
    assert state.chip == load_chip(path)
    assert check_chip(load_chip(path)) != []  # eights are no chip


def test_a_skeleton_is_filled_step_by_step(write: Write) -> None:
    text = new_file("new-chip", "simt")
    before = completeness(write(text, "new-chip.yaml"))
    hz = '  max_hz: {value: null, source: "", confidence: datasheet}'
    after = completeness(
        write(text.replace(hz, hz.replace("null", "1.5e9").replace('""', "a sheet")), "b.yaml")
    )
    assert {f.path for f in before.missing} - {f.path for f in after.missing} == {"clock.max_hz"}
    assert after.counts["datasheet"] == 1
    with pytest.raises(ChipError, match=r"c\.yaml: clock\.max_hz\.source: '' is not valid"):
        completeness(write(text.replace(hz, hz.replace("null", "1.5e9")), "c.yaml"))


@pytest.mark.parametrize("parent", ["h20", "ascend-910b3", "amd-mi300x"])
def test_a_variant_lacks_its_name_only_and_repeats_its_parent(write: Write, parent: str) -> None:
    text = new_file("a-variant", extends=parent)
    state = completeness(write(text, "a-variant.yaml"))
    assert [f.path for f in state.missing] == ["name"]
    whole = parse_yaml(_uncommented(text), "a-variant.yaml")
    for path, number in load_chip(parent, calibrated=False).quantities().items():
        node: Any = whole
        for step in path.split("."):
            node = node.get(step, {})
        if not path.startswith("stated_peak"):
            assert node["value"] == number.value, path


def test_what_a_base_lacks_is_to_be_filled_in(write: Write) -> None:
    state = completeness(write(new_file("my-bin", extends="_ascend_2201"), "my-bin.yaml"))
    missing = {f.path for f in state.missing}
    assert {"cores", "clock.max_hz", "dram.bandwidth_bytes_per_s", "launch.kernel_s"} <= missing
    assert not any(path.startswith(("matrix.", "davinci.")) for path in missing)


@pytest.mark.parametrize("name", list_chips())
def test_chips_of_the_catalogue_are_complete_or_say_what_is_missing(name: str) -> None:
    state = completeness(chip_files()[name])
    if state.complete:
        assert state.chip == load_chip(name, calibrated=False)
        assert sum(state.counts.values()) == len(load_chip(name, calibrated=False).quantities())
    else:
        assert all(field.required for field in state.missing)


def test_a_wrong_file_is_no_incomplete_file(write: Write) -> None:
    for wrong, message in (
        ("clok: {}", "clok: unknown field; did you mean 'clock'?"),
        ("cores: {value: -1, source: a sheet, confidence: datasheet}", "cores.value: -1 is not valid"),
        ("cores: {value: true, source: a sheet, confidence: datasheet}", "cores.value: True is not valid"),
        ("cores: 5", "cores: 5 is a bare number"),
    ):
        number = '{value: null, source: "", confidence: datasheet}'
        text = new_file("new-chip", "simt").replace(f"\ncores: {number}", "")
        with pytest.raises(ChipError, match=re.escape(f"new-chip.yaml: {message}")):
            completeness(write(f"{text}\n{wrong}\n", "new-chip.yaml"))
    with pytest.raises(ChipError, match="style: 'vliw' is not valid: must be simt or davinci"):
        completeness(write("id: a\nstyle: vliw\n", "a.yaml"))


def test_tensor_memory_is_needed_where_accumulators_live_there(write: Write) -> None:
    text = new_file("new-chip", "simt").replace("instruction: null", "instruction: tcgen05")
    missing = {f.path for f in completeness(write(text, "new-chip.yaml")).missing}
    assert {"tensor_memory.capacity_bytes", "tensor_memory.read_bytes_per_cycle"} <= missing


def test_wrong_requests_are_refused() -> None:
    for args, message in (
        (("New",), "id 'New' is not valid"),
        (("new",), "give --style simt or davinci"),
        (("new", "vliw"), "style 'vliw' is not valid"),
        (("new", "davinci", "h20"), "h20 is of style simt"),
        (("new", None, "hygon-bw10"), "unknown chip 'hygon-bw10'; did you mean hygon-bw1000"),
    ):
        with pytest.raises(ChipError, match=re.escape(message)):
            new_file(*args)


FILES = sorted([*CATALOGUE.rglob("*.yaml"), *CALIBRATED.glob("*.yaml")])


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_file_of_the_catalogue_is_valid_by_the_editors_schema(path: Path) -> None:
    errors = [f"{'.'.join(map(str, e.path))}: {e.message}" for e in VALIDATOR.iter_errors(read_mapping(path))]
    assert errors == []


@pytest.mark.parametrize("style", STYLE_PARTS)
def test_a_skeleton_is_valid_by_the_editors_schema(style: Any) -> None:
    """But for the empty sources, which an editor may well mark."""
    data = yaml.safe_load(new_file("new-chip", style).replace('""', "a sheet"))
    assert list(VALIDATOR.iter_errors(data | {"name": "a", "vendor": "b", "family": "c"})) == []


@pytest.mark.parametrize(
    "text",
    [
        "clok: {}",
        "clock: {max_hz: 1.5}",
        "clock: {max_hz: {value: 1.5}}",
        "clock: {max_hz: {value: 0, source: a sheet, confidence: datasheet}}",
        "clock: {max_hz: {value: 1, source: a sheet, confidence: certain}}",
        "matrix: {flop_per_cycle: {float16: {value: 1, source: a sheet, confidence: datasheet}}}",
        "dram: {read_fraction: {value: 1.5, source: a sheet, confidence: datasheet}}",
        "style: vliw",
    ],
)
def test_the_editors_schema_finds_mistakes(text: str) -> None:
    assert list(VALIDATOR.iter_errors(yaml.safe_load(text))) != []


def test_the_editors_schema_explains_every_field() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for field in fields():
        node = SCHEMA
        if field.section:
            reference = next(
                part["$ref"]
                for part in (
                    SCHEMA["properties"][field.section],
                    *SCHEMA["properties"][field.section].get("anyOf", ()),
                )
                if "$ref" in part
            )
            node = SCHEMA["$defs"][reference.rpartition("/")[2]]
        assert node["properties"][field.name]["description"] == field.words, field.path


def test_a_file_that_calls_itself_incomplete_may_have_no_style(write: Write) -> None:
    text = "id: a\nname: A\nvendor: V\nfamily: f\ncomplete: false\n"
    state = completeness(write(text, "a.yaml"))
    assert state.style is None
    assert "style" in {f.path for f in state.missing}
    assert "clock.max_hz" in {f.path for f in state.missing}
    assert list(VALIDATOR.iter_errors(yaml.safe_load(text))) == []
