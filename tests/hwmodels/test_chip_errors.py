"""What a wrong file is told: file, field, value, remedy; never the validator's jargon."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foretile.hwmodels import Chip, ChipError, load_chip
from foretile.hwmodels.yamlfile import parse_yaml

Write = Callable[..., Path]
_GONE = object()
JARGON = re.compile(r"pydantic|https?://|input_type|validation error|Input should|type=", re.IGNORECASE)


def with_change(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(data)
    *parents, last = path.split(".")
    node = changed
    for step in parents:
        node = node[step]
    if value is _GONE:
        del node[last]
    else:
        node[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("clock.max_hz.value", 0, "clock.max_hz.value: 0 is not valid: must be greater than 0"),
        ("clock.max_hz.value", -1e9,
         "clock.max_hz.value: -1000000000.0 is not valid: must be greater than 0"),
        ("launch.ramp_s.value", -1, "launch.ramp_s.value: -1 is not valid: must be at least 0"),
        ("dram.read_fraction.value", 1.2, "dram.read_fraction.value: 1.2 is not valid: must be at most 1"),
        ("cores.value", 10.5, "cores.value: 10.5 is not valid: must be a whole number"),
        ("cores.value", "132", "cores.value: '132' is not valid: must be a number"),
        ("cores.value", True, "cores.value: True is not valid: must be a number"),
        ("clock.max_hz.value", float("inf"), "clock.max_hz.value: inf is not valid: must be finite"),
        ("clock.max_hz.value", float("nan"), "clock.max_hz.value: nan is not valid: must be finite"),
        ("matrx", {}, "matrx: unknown field; did you mean 'matrix'?"),
        ("dram.read_fractoin", 1, "dram.read_fractoin: unknown field; did you mean 'read_fraction'?"),
        ("l2.zzz", 1, "l2.zzz: unknown field; known: capacity_bytes, bandwidth_bytes_per_cycle, "
         "core_bytes_per_cycle, latency_cycles, far_latency_cycles, bulk_copy_cycles, reuse_fraction, "
         "partitions, write_bytes_per_cycle, core_store_bytes_per_cycle, line_bytes"),
        ("dram.read_fraction.sorce", "x", "dram.read_fraction.sorce: unknown field; did you mean 'source'?"),
        ("matrix.flop_per_cycle.bf16.valeu", 1,
         "matrix.flop_per_cycle.bf16.valeu: unknown field; did you mean 'value'?"),
        ("extend", "h100", "extend: unknown field; did you mean 'extends'?"),
        ("dram.read_fraction.source", _GONE,
         "dram.read_fraction.source: missing; every number needs {value, source, confidence}"),
        ("dram.read_fraction.value", _GONE,
         "dram.read_fraction.value: missing; every number needs {value, source, confidence}"),
        ("matrix.flop_per_cycle.bf16.confidence", _GONE,
         "matrix.flop_per_cycle.bf16.confidence: missing; every number needs {value, source, confidence}"),
        ("dram.read_fraction", _GONE, "dram.read_fraction: missing; give {value, source, confidence}"),
        ("dram.read_fraction", 0.9,
         "dram.read_fraction: 0.9 is a bare number; write {value: 0.9, source: ..., "
         "confidence: measured|datasheet|derived|inferred}"),
        ("matrix.flop_per_cycle.bf16", 4096,
         "matrix.flop_per_cycle.bf16: 4096 is a bare number; write {value: 4096, source: ..., "
         "confidence: measured|datasheet|derived|inferred}"),
        ("cores", "many", "cores: 'many' is not valid: must be a mapping {value, source, confidence}"),
        ("dram.read_fraction.source", "", "dram.read_fraction.source: '' is not valid: must name where the "
         "number comes from (paper, datasheet, data set)"),
        ("cores.confidence", "sure",
         "cores.confidence: 'sure' is not valid: must be 'measured', 'datasheet', 'derived' or 'inferred'"),
        ("style", "gpu", "style: 'gpu' is not valid: must be 'simt', 'davinci' or 'mlu'"),
        ("id", "My Chip",
         "id: 'My Chip' is not valid: must be lower-case letters and digits joined by single hyphens"),
        ("name", _GONE, "name: missing"),
        ("clock", _GONE, "clock: missing; a mapping of max_hz"),
        ("clock", 5,
         "clock: 5 is not valid: must be a mapping of max_hz, matrix_burst_hz, "
         "matrix_sustained_hz, settle_s"),
        ("aliases", 5, "aliases: 5 is not valid: must be a list, such as [a, b]"),
        ("features.bulk_copy", "perhaps",
         "features.bulk_copy: 'perhaps' is not valid: must be true or false"),
        ("matrix.flop_per_cycle", [1], "matrix.flop_per_cycle: [1] is not valid: must be a mapping"),
        ("registers", _GONE, "style simt needs registers"),
    ],
)  # fmt: skip
def test_one_mistake_one_line(write: Write, plain: dict[str, Any], path: str, value: Any, line: str) -> None:
    with pytest.raises(ChipError) as caught:
        load_chip(write(with_change(plain, path, value)))
    assert str(caught.value) == f"x.yaml: {line}"
    assert isinstance(caught.value, ValueError)


def test_tcgen05_needs_tensor_memory(write: Write) -> None:
    with pytest.raises(ChipError, match=r"^x\.yaml: matrix\.instruction tcgen05 needs tensor_memory$"):
        load_chip(write("id: v\nextends: b200\ntensor_memory: null\n"))


def test_several_mistakes_a_line_each(write: Write, plain: dict[str, Any]) -> None:
    data = with_change(with_change(plain, "clock.max_hz.value", 0), "dram.read_fraction", 0.9)
    with pytest.raises(ChipError) as caught:
        load_chip(write(with_change(data, "matrx", {})))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("x.yaml: ") for line in lines)


def test_an_overlay_without_a_source_is_refused(write: Write) -> None:
    path = write("id: v\nextends: h100\ndram: {read_fraction: {value: 0.9, confidence: measured}}\n")
    with pytest.raises(
        ChipError, match=r"^x\.yaml: dram\.read_fraction\.source: missing; every number needs"
    ):
        load_chip(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id: a\nname: [b\nstyle: simt\n", r"^x\.yaml: line \d: broken YAML: "),
        ("id: a\n\tname: b\n", r"^x\.yaml: line 2: broken YAML: "),
        ("id: a\nid: b\n", r"^x\.yaml: line 2: duplicate key 'id'$"),
        ("id: a\nclock:\n  max_hz: 1\n  max_hz: 2\n", r"^x\.yaml: line 4: duplicate key 'max_hz'$"),
        ("id: a\n---\nid: b\n", r"^x\.yaml: line 2: broken YAML: "),
        ("", r"^x\.yaml: an empty file is not a chip"),
        ("# nothing\n", r"^x\.yaml: an empty file is not a chip"),
        ("- a\n- b\n", r"^x\.yaml: a list is not a chip"),
        ("hello", r"^x\.yaml: a str is not a chip"),
        ("id: !!python/object/apply:os.system [ls]\n", r"^x\.yaml: line 1: tag .*os\.system is not allowed"),
        ("id: !secret a\n", r"^x\.yaml: line 1: tag !secret is not allowed"),
        ("id: &a [*a]\n", r"^x\.yaml: line 1: (nested deeper than|broken YAML: found unexpected|.*)"),
        ("? [a, b]\n: c\n", r"^x\.yaml: line 1: a key must be text$"),
    ],
)
def test_broken_yaml_names_file_and_line(write: Write, text: str, message: str) -> None:
    with pytest.raises(ChipError, match=message):
        load_chip(write(text))


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes("id: café\n".encode("latin-1"))
    with pytest.raises(ChipError, match=r"^x\.yaml: byte 7 is not UTF-8; save the file as UTF-8$"):
        load_chip(path)


def test_chinese_text_is_kept(write: Write, plain: dict[str, Any]) -> None:
    text = yaml.safe_dump(plain | {"summary": "昇腾处理器"}, allow_unicode=True)
    assert load_chip(write(text)).summary == "昇腾处理器"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e9", 1e9),
        ("1.98e9", 1.98e9),
        ("1E-3", 1e-3),
        ("+.5", 0.5),
        ("5.", 5.0),
        ("12", 12),
        ("-7", -7),
        ("0o17", 15),
        ("0x1F", 31),
        ("017", 17),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        (".inf", float("inf")),
        ("-.inf", float("-inf")),
        ("'12'", "12"),
        ('"true"', "true"),
        ("!!str 12", "12"),
        ("fp8", "fp8"),
        ("1.2.3", "1.2.3"),
        ("e9", "e9"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_yaml(f"key: {text}\n", "x.yaml")["key"]
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_numbers_survive_writing_and_reading(number: float) -> None:
    parsed = parse_yaml(f"key: {number!r}\n", "x.yaml")["key"]
    assert parsed == number
    assert type(parsed) is type(number)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_no_text_escapes_as_another_error(write: Write, text: str) -> None:
    with pytest.raises(ChipError, match=r"x\.yaml"):
        load_chip(write(text))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet="abc 1.", max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(alphabet="abv", max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=_JSON)
def test_any_wrong_value_is_explained_in_plain_words(
    write: Write, plain: dict[str, Any], data: st.DataObject, value: Any
) -> None:
    paths = [
        p for q in load_chip("a100", calibrated=False).quantities() for p in (q, f"{q}.value", f"{q}.source")
    ]
    path = data.draw(st.sampled_from([*paths, "clock", "features", "aliases", "id", "style", "unknown"]))
    try:
        chip = load_chip(write(with_change(plain, path, value)))
    except ChipError as error:
        for line in str(error).splitlines():
            assert re.match(r"x\.yaml: [\w./=-]+[: ]", line), line
            assert not JARGON.search(line), line
    else:
        assert isinstance(chip, Chip)


def test_without_libyaml_the_result_is_the_same() -> None:
    code = (
        "import yaml; del yaml.CSafeLoader; "
        "from foretile.hwmodels import yamlfile, load_chip; "
        "assert yamlfile._BASE is yaml.SafeLoader; print(load_chip('h20').model_dump_json())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == load_chip("h20").model_dump_json()
