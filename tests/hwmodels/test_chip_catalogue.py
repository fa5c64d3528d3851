"""Every chip of the catalogue loads, is plausible, and says where its numbers come from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from foretile.hwmodels import (
    Chip,
    IncompleteChip,
    IncompleteChipError,
    describe_chip,
    list_chips,
    list_incomplete,
)
from foretile.hwmodels import load_chip as load
from foretile.hwmodels.checks import PEAK_TOLERANCE, check_chip, peak_flop_per_s
from foretile.hwmodels.loader import CATALOGUE, chip_files
from foretile.hwmodels.yamlfile import read_mapping

# The chips as their own files state them; what calibrations make of them is tested in tests/calibration.
load_chip = partial(load, calibrated=False)

CHIPS = list_chips()
INCOMPLETE = list_incomplete()


def _folder(vendor: str) -> str:
    return vendor.lower().replace(" ", "-")


PROMISED = [
    "v100-sxm2-32gb",
    "t4",
    "a10",
    "a30",
    "a100-sxm4-40gb",
    "a100-sxm4-80gb",
    "a100-pcie-40gb",
    "a100-pcie-80gb",
    "a800-sxm4-80gb",
    "rtx-3090",
    "l2",
    "l4",
    "l20",
    "l40s",
    "rtx-4090",
    "rtx-4090d",
    "h100-sxm5-80gb",
    "h100-pcie",
    "h800-sxm",
    "h20",
    "h200-sxm",
    "gh200",
    "b100",
    "b200-sxm",
    "gb200",
    "b300-sxm",
    "gb300",
    "rtx-5090",
    "rtx-5090d",
    "rtx-pro-6000",
    "ascend-310p",
    "ascend-910a",
    "ascend-910b1",
    "ascend-910b2",
    "ascend-910b3",
    "ascend-910b4",
    "ascend-910c",
    "ascend-950pr",
    "ascend-950dt",
    "cambricon-mlu290",
    "cambricon-mlu370-s4",
    "cambricon-mlu370-x4",
    "cambricon-mlu370-x8",
    "cambricon-mlu590",
    "hygon-z100",
    "hygon-k100",
    "hygon-k100-ai",
    "hygon-bw1000",
    "mthreads-s80",
    "mthreads-s3000",
    "mthreads-s4000",
    "mthreads-s5000",
    "metax-c500",
    "metax-c550",
    "metax-c600",
    "iluvatar-bi-v100",
    "iluvatar-bi-v150",
    "iluvatar-mr-v100",
    "kunlunxin-r200",
    "kunlunxin-p800",
    "enflame-t20",
    "enflame-s60",
    "enflame-l600",
    "biren-br100",
    "biren-br104",
    "biren-br106",
    "thead-ppu-810e",
    "amd-mi100",
    "amd-mi210",
    "amd-mi250x",
    "amd-mi300x",
    "amd-mi325x",
    "amd-mi355x",
]


def test_the_catalogue_holds_the_promised_chips() -> None:
    assert set(PROMISED) <= {*CHIPS, *INCOMPLETE}
    for names in (CHIPS, INCOMPLETE):
        assert sorted(names) == names
        assert not [c for c in names if c.startswith("_")]
    assert not set(CHIPS) & set(INCOMPLETE)


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number of a YAML document, whatever is around it."""
    if isinstance(node, dict) and "value" in node:
        yield path, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else key)
    elif isinstance(node, list):
        for item in node:
            yield from _leaves(item, path)
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield path, node


@pytest.mark.parametrize("path", sorted(CATALOGUE.rglob("*.yaml")), ids=lambda p: p.stem)
def test_no_file_has_a_number_without_source_and_confidence(path: Path) -> None:
    for where, leaf in _leaves(read_mapping(path)):
        assert isinstance(leaf, dict), f"{where}: a bare number"
        assert isinstance(leaf["value"], int | float), where
        assert leaf.get("confidence") in ("measured", "datasheet", "derived", "inferred"), where
        assert len(str(leaf.get("source") or "").strip()) >= 8, where
        assert set(leaf) <= {"value", "source", "confidence", "note"}, where


def test_ids_and_aliases_are_unique() -> None:
    named = [describe_chip(c, calibrated=False) for c in (*CHIPS, *INCOMPLETE)]
    names = [name for chip in named for name in (chip.id, *chip.aliases)]
    assert sorted(names) == sorted(set(names))
    assert names == [re.sub(r"[\s_]+", "-", name.lower()) for name in names]


@pytest.mark.parametrize("name", INCOMPLETE)
def test_an_incomplete_chip_says_what_is_known_and_what_is_missing(name: str) -> None:
    chip = describe_chip(name)
    assert isinstance(chip, IncompleteChip)
    assert chip_files()[name].stem == name
    assert chip_files()[name].parent.name == _folder(chip.vendor)
    assert chip.quantities()
    assert chip.missing
    assert chip.unknown
    assert not set(chip.missing) & set(chip.quantities())
    assert check_chip(chip) == []
    for path, quantity in chip.quantities().items():
        assert len(quantity.source.strip()) >= 8, path
        assert not re.search(r"(^|\s)\.{0,2}/\w", quantity.source), path
    for alias in chip.aliases:
        assert describe_chip(alias) is chip
    with pytest.raises(IncompleteChipError, match=f"{name} is incomplete: .*missing: ") as caught:
        load(name)
    for path in chip.missing:
        assert path.rpartition(".")[2] in str(caught.value)
    json.dumps(chip.to_json())


@pytest.mark.parametrize("name", CHIPS)
def test_every_number_has_a_source_a_reader_can_look_up(name: str) -> None:
    chip = load_chip(name)
    quantities = chip.quantities()
    assert len(quantities) > 40
    for path, quantity in quantities.items():
        assert len(quantity.source.strip()) >= 8, path
        # Paths of somebody's disk, and bare tags that only a private table explains, are no sources.
        assert not re.search(r"(^|\s)\.{0,2}/\w", quantity.source), path
        assert not re.match(r"[A-Z0-9]{2,7}\b(?![ -])", quantity.source), (path, quantity.source)


@pytest.mark.parametrize("name", CHIPS)
def test_file_name_is_the_id_and_the_folder_is_the_vendor(name: str) -> None:
    path = chip_files()[name]
    assert path.stem == name
    assert path.parent.name == _folder(load_chip(name).vendor)


@pytest.mark.parametrize("name", CHIPS)
def test_no_implausible_numbers(name: str) -> None:
    assert check_chip(load_chip(name)) == []


@pytest.mark.parametrize("name", CHIPS)
def test_peaks_match_the_vendor_or_the_conflict_is_stated(name: str) -> None:
    chip = load_chip(name)
    assert chip.stated_peak_flop_per_s
    for dtype, stated in chip.stated_peak_flop_per_s.items():
        off = abs(peak_flop_per_s(chip, dtype) / stated.value - 1)
        explained = any(c.startswith("stated_peak_flop_per_s") for c in chip.conflicts)
        assert off <= PEAK_TOLERANCE or explained, dtype


@pytest.mark.parametrize("name", CHIPS)
def test_round_trip_through_json(name: str) -> None:
    chip = load_chip(name)
    assert Chip.model_validate_json(chip.model_dump_json()) == chip


@pytest.mark.parametrize("name", CHIPS)
def test_aliases_lead_to_the_chip_and_belong_to_one(name: str) -> None:
    chip = load_chip(name)
    for alias in chip.aliases:
        assert load_chip(alias) is chip
        assert alias not in CHIPS
    others = {a for c in CHIPS if c != name for a in load_chip(c).aliases}
    assert not others & set(chip.aliases)


@pytest.mark.parametrize(
    "alias", ["h100", "h100-sxm", "a100", "h200", "h800", "h20", "b200", "910b3", "c550", "bw1000"]
)
def test_short_names(alias: str) -> None:
    chip = load_chip(alias)
    assert alias == chip.id or alias in chip.aliases


@pytest.mark.parametrize("spelling", ["H100", " h100 ", "H100_SXM", "h100 sxm"])
def test_spelling_of_names_is_forgiving(spelling: str) -> None:
    assert load_chip(spelling).id == "h100-sxm5-80gb"


@pytest.mark.parametrize(
    "path", [p for p in CATALOGUE.rglob("*.yaml") if p.name.startswith("_")], ids=lambda p: p.stem
)
def test_bases_are_used_and_are_not_chips(path: Path) -> None:
    assert "id" not in read_mapping(path)
    users = [p for p in CATALOGUE.rglob("*.yaml") if read_mapping(p).get("extends") == path.name]
    assert users


def test_variants_state_only_what_differs() -> None:
    h100, h800, h200, h20 = (load_chip(c) for c in ("h100", "h800", "h200", "h20"))
    assert h800.cores == h100.cores
    assert h800.matrix.flop_per_cycle["bf16"] == h100.matrix.flop_per_cycle["bf16"]
    assert h800.matrix.flop_per_cycle["fp64"].value < 10
    assert h200.scratchpad == h100.scratchpad == h20.scratchpad
    assert h200.dram.bandwidth_bytes_per_s.value == 4.8e12
    assert h20.matrix.flop_per_cycle["bf16"].value * 4 == h100.matrix.flop_per_cycle["bf16"].value
    assert h20.cores.value == 78
    b200, b300, gb200, gb300 = (load_chip(c) for c in ("b200", "b300", "gb200", "gb300"))
    assert b200.matrix == gb200.matrix
    assert b300.matrix == gb300.matrix
    assert b300.matrix.flop_per_cycle["fp4"].value == 1.5 * b200.matrix.flop_per_cycle["fp4"].value
    assert b300.tensor_memory == b200.tensor_memory
    assert [c.cores.value for c in (b200, b300, gb200, gb300)] == [148, 148, 152, 152]


def test_cards_of_gamers_have_half_the_rate_of_professional_parts() -> None:
    for card, part in (("rtx-3090", "a10"), ("rtx-4090", "l40s"), ("rtx-5090", "rtx-pro-6000")):
        half, full = load_chip(card).matrix.flop_per_cycle, load_chip(part).matrix.flop_per_cycle
        assert all(2 * half[d].value == full[d].value for d in ("fp16", "bf16", "tf32"))
        assert half["int8"].value == full["int8"].value


@pytest.mark.parametrize("name", ["v100", "t4"])
def test_chips_before_ampere_have_neither_bf16_nor_asynchronous_copies(name: str) -> None:
    chip = load_chip(name)
    assert not {"bf16", "tf32", "fp8"} & set(chip.matrix.flop_per_cycle)
    assert not chip.features.async_copy
    assert chip.scratchpad is not None
    assert chip.scratchpad.reserved_block_bytes is None


def test_known_peaks() -> None:
    assert peak_flop_per_s(load_chip("a100"), "bf16") == pytest.approx(311.9e12, rel=1e-3)
    assert peak_flop_per_s(load_chip("910b3"), "fp16") == pytest.approx(294.9e12, rel=1e-3)
    assert peak_flop_per_s(load_chip("h100"), "fp8") == pytest.approx(2141e12, rel=1e-3)


def test_matrix_clocks_reproduce_the_measured_rates() -> None:
    """The derived clocks must give back the GEMM rates they were derived from."""
    for name, burst, sustained in [
        ("h100", 818e12, 698e12),
        ("h200", 823e12, 662e12),
        ("b200", 1644e12, 1268e12),
        ("b300", 1776e12, 1399e12),
        ("gb200", 1816e12, 1390e12),
        ("gb300", 2016e12, 1709e12),
        ("rtx-pro-6000", 425e12, 398e12),
        ("l40s", 249e12, 197e12),
        ("a100", 273e12, 271.2e12),
        ("rtx-5090", 201e12, 177.6e12),
    ]:
        chip = load_chip(name)
        per_hz = (
            chip.cores.value * chip.matrix.flop_per_cycle["bf16"].value * chip.matrix.mainloop_fraction.value
        )
        assert chip.clock.matrix_burst_hz is not None
        assert chip.clock.matrix_sustained_hz is not None
        assert per_hz * chip.clock.matrix_burst_hz.value == pytest.approx(burst, rel=2e-3), name
        assert per_hz * chip.clock.matrix_sustained_hz.value == pytest.approx(sustained, rel=2e-3), name


def test_inferred_numbers_are_known_as_such() -> None:
    assert "matrix.flop_per_cycle.fp16" in load_chip("bw1000").inferred()
    assert len(load_chip("h100").inferred()) < 10
    assert load_chip("c550").unknown


def test_importing_the_room_stays_light() -> None:
    code = (
        "import sys; import foretile.hwmodels; "
        "print(sorted({'numpy', 'scipy', 'pandas', 'matplotlib', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
