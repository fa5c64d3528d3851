"""Files that say ``complete: false``: fields may be absent, and nothing else is forgiven."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foretile.hwmodels import (
    ChipError,
    IncompleteChip,
    IncompleteChipError,
    describe_chip,
    list_chips,
    list_incomplete,
    load_chip,
)
from foretile.hwmodels.checks import check_chip

Write = Callable[..., Path]
LEAF = "{value: %s, source: the test's own, confidence: inferred}"
HEAD = "id: half\nname: Half\nvendor: Test\nfamily: test\ncomplete: false\n"


def known(path: Path) -> IncompleteChip:
    chip = describe_chip(path)
    assert isinstance(chip, IncompleteChip)
    return chip


def test_what_is_missing_is_named_field_by_field(write: Write) -> None:
    chip = known(write(HEAD + f"style: simt\ncores: {LEAF % 4}\nl2:\n  capacity_bytes: {LEAF % 100}\n"))
    assert set(chip.quantities()) == {"cores", "l2.capacity_bytes"}
    assert chip.value("cores") == 4
    assert chip.value("clock.max_hz") is None
    assert {"clock.max_hz", "l2.latency_cycles", "registers.bytes_per_core", "launch.kernel_s"} <= set(
        chip.missing
    )
    assert not {"cores", "l2.capacity_bytes", "tdp_w", "tensor_memory.capacity_bytes"} & set(chip.missing)
    assert "l2 (bandwidth_bytes_per_cycle, core_bytes_per_cycle, latency_cycles, reuse_fraction)" in (
        chip.missing_in_words()
    )
    assert chip.to_json()["missing"] == list(chip.missing)


@pytest.mark.parametrize(
    ("style", "section"),
    [("simt", "residency.warp_size"), ("davinci", "davinci.l1_bytes"), ("mlu", "mlu.nram_bytes")],
)
def test_the_sections_of_its_style_are_missing_too(write: Write, style: str, section: str) -> None:
    assert section in known(write(HEAD + f"style: {style}\n")).missing


def test_a_machine_of_no_known_style(write: Write) -> None:
    chip = known(write(HEAD))
    assert chip.style is None
    assert "style" in chip.missing


def test_a_relative_may_lack_one_section_only(write: Write) -> None:
    chip = known(
        write("id: half\nextends: h100\ncomplete: false\nregisters: null\ndram: {latency_cycles: null}\n")
    )
    assert chip.missing == (
        "registers.bytes_per_core",
        "registers.max_per_thread",
        "registers.base_per_thread",
        "dram.latency_cycles",
    )
    assert chip.vendor == "NVIDIA"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cores: 4\n", "cores: 4 is a bare number"),
        ("cores: {value: 4, confidence: inferred}\n", "cores.source: missing"),
        (f"cores: {LEAF % -4}\n", "cores.value: -4 is not valid: must be greater than 0"),
        (f"matrx: {LEAF % 4}\n", "matrx: unknown field"),
        ("style: dataflow\n", "style: 'dataflow' is not valid"),
    ],
)
def test_what_is_there_must_be_right(write: Write, text: str, said: str) -> None:
    with pytest.raises(ChipError, match=rf"x\.yaml: {said}") as caught:
        describe_chip(write(HEAD + text))
    assert "missing; a mapping" not in str(caught.value)  # absent fields are no faults of such a file


@pytest.mark.parametrize("field", ["id", "name", "vendor", "family"])
def test_a_chip_without_identity_is_a_broken_file(write: Write, field: str) -> None:
    text = "".join(line + "\n" for line in HEAD.splitlines() if not line.startswith(field))
    with pytest.raises(ChipError, match=f"{field}: missing"):
        describe_chip(write(text))


def test_a_complete_chip_must_not_say_otherwise(write: Write) -> None:
    with pytest.raises(ChipError, match="complete: false, but nothing is missing"):
        describe_chip(write("id: whole\nextends: h100\ncomplete: false\n"))
    with pytest.raises(ChipError, match="complete: 'perhaps' is not valid: must be true or false"):
        describe_chip(write("id: whole\nextends: h100\ncomplete: perhaps\n"))
    assert load_chip(write("id: whole\nextends: h100\ncomplete: true\n")).id == "whole"


def test_that_it_is_incomplete_is_not_inherited(write: Write) -> None:
    write(HEAD, "parent.yaml")
    with pytest.raises(ChipError, match=r"child\.yaml: cores: missing"):
        describe_chip(write("id: child\nextends: parent.yaml\n", "child.yaml"))


def test_refusal_lists_what_is_missing_and_survives_another_process(write: Write) -> None:
    path = write("id: half\nextends: h100\ncomplete: false\nclock: null\n")
    with pytest.raises(IncompleteChipError, match=r"half is incomplete: .*missing: clock\.max_hz$") as caught:
        load_chip(path)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.chip.id == "half"


def test_lists_keep_them_apart(write: Write, tmp_path: Path) -> None:
    write(HEAD)
    assert "half" in list_incomplete([tmp_path])
    assert "half" not in list_chips([tmp_path])
    assert describe_chip("half", search=[tmp_path]).id == "half"


def test_stated_peaks_are_checked_where_the_numbers_give_one(write: Write) -> None:
    body = (
        "id: half\nextends: h100\ncomplete: false\ndram: null\nstated_peak_flop_per_s:\n  fp16: "
        + LEAF
        + "\n"
    )
    assert check_chip(known(write(body % 1070e12))) == []
    (warning,) = check_chip(known(write(body % 990e12)))
    assert warning.startswith("stated_peak_flop_per_s.fp16: 9.9e+14 is stated")


@pytest.mark.parametrize(
    ("lines", "start"),
    [
        ({"clock": {"max_hz": 1410}}, "clock.max_hz: 1410 Hz is outside 0.2 to 5 GHz"),
        ({"dram": {"capacity_bytes": 80}}, "dram.capacity_bytes: 80 is outside"),
        ({"dram": {"read_fraction": 0.3}}, "dram.read_fraction: 0.3 is low"),
        (
            {"dram": {"bandwidth_bytes_per_s": 3.35e12, "bus_bits": 6144, "transfers_per_s": 5.2e9}},
            "dram.bandwidth_bytes_per_s: 3.35e+12 is stated, but bus_bits x transfers_per_s / 8 gives",
        ),
        (
            {"dram": {"bandwidth_bytes_per_s": 1200e9}, "stated_peak_flop_per_s": {"fp16": 512}},
            "dram.bandwidth_bytes_per_s: the ridge point is 4.27e-10 FLOP a byte",
        ),
        (
            {"l2": {"capacity_bytes": 2**31}, "dram": {"capacity_bytes": 2**30}},
            "l2.capacity_bytes: 2.14748e+09 is not below the DRAM's",
        ),
        (
            {"clock": {"max_hz": 1.5e9}, "l2": {"latency_cycles": 20000}},
            "l2.latency_cycles: 20000 cycles of max_hz are",
        ),
        (
            {"l2": {"latency_cycles": 700}, "dram": {"latency_cycles": 600}},
            "l2.latency_cycles: 700 is not below the DRAM's 600",
        ),
    ],
)  # fmt: skip
def test_what_is_known_is_checked_by_itself(write: Write, lines: dict[str, Any], start: str) -> None:
    said = {"source": "the test", "confidence": "datasheet"}
    data: dict[str, Any] = {
        "id": "half", "name": "Half", "vendor": "None", "family": "none", "style": "simt", "complete": False,
        "summary": "Half known.",
    }  # fmt: skip
    for section, numbers in lines.items():
        data[section] = {name: {"value": value, **said} for name, value in numbers.items()}
    warnings = check_chip(known(write(data)))
    assert any(w.startswith(start) for w in warnings), warnings
    assert len(warnings) == 1
