"""Names, user folders, the environment variable, `extends`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foretile.hwmodels import ChipError, list_chips, load_chip
from foretile.hwmodels.loader import ENV_VARIABLE, chip_files

Write = Callable[..., Path]
LEAF = "{value: 0.5, source: a bench, confidence: measured}"


def test_a_chip_passes_through() -> None:
    chip = load_chip("h100")
    assert load_chip(chip) is chip


def test_catalogue_chips_are_cached() -> None:
    assert load_chip("h100") is load_chip("h100-sxm5-80gb")


def test_a_file_by_path_and_by_string(write: Write, plain: dict[str, Any]) -> None:
    path = write(plain)
    assert load_chip(path).id == load_chip(str(path)).id == "testchip"


def test_a_string_with_a_separator_is_a_file() -> None:
    with pytest.raises(ChipError, match=r"chips[/\\]h100: no such file"):
        load_chip(str(Path("chips") / "h100"))


def test_a_changed_file_is_read_again(write: Write, plain: dict[str, Any]) -> None:
    path = write(plain)
    assert load_chip(path).name == plain["name"]
    write(plain | {"name": "Another name"})
    assert load_chip(path).name == "Another name"


def test_a_changed_parent_is_read_again(write: Write, plain: dict[str, Any]) -> None:
    write(plain, "parent.yaml")
    path = write("id: child\nextends: parent.yaml\n")
    assert load_chip(path).name == plain["name"]
    write(plain | {"name": "Another name"}, "parent.yaml")
    assert load_chip(path).name == "Another name"


def test_search_folder(write: Write, plain: dict[str, Any], tmp_path: Path) -> None:
    write(plain, "vendor/testchip.yaml")
    assert "testchip" in list_chips([tmp_path])
    assert "testchip" not in list_chips()
    assert load_chip("testchip", search=[tmp_path]).id == "testchip"
    assert load_chip("tc", search=[tmp_path]).id == "testchip"
    with pytest.raises(ChipError, match="unknown chip 'testchip'"):
        load_chip("testchip")


def test_environment_variable(
    write: Write, plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(plain, "one/testchip.yml")
    write(plain | {"id": "second", "aliases": []}, "two/second.yaml")
    monkeypatch.setenv(ENV_VARIABLE, os.pathsep.join([str(tmp_path / "one"), str(tmp_path / "two")]))
    assert {"testchip", "second", "h20"} <= set(list_chips())
    assert load_chip("second").id == "second"
    monkeypatch.setenv(ENV_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(ChipError, match=r"FORETILE_CHIPS: .*nowhere: no such folder"):
        list_chips()


def test_missing_search_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ChipError, match="nowhere: no such folder"):
        load_chip("h100", search=[tmp_path / "nowhere"])


def test_a_users_file_wins_over_the_catalogue(write: Write, plain: dict[str, Any], tmp_path: Path) -> None:
    write(plain | {"id": "h20", "name": "Mine", "aliases": []})
    assert load_chip("h20", search=[tmp_path]).name == "Mine"
    assert load_chip("h20").name == "NVIDIA H20 96GB"
    assert chip_files([tmp_path])["h20"].parent == tmp_path
    assert list_chips([tmp_path]).count("h20") == 1


def test_a_users_alias_wins_but_an_id_goes_before_an_alias(
    write: Write, plain: dict[str, Any], tmp_path: Path
) -> None:
    write(plain | {"aliases": ["h100", "h20"]})
    assert load_chip("h100", search=[tmp_path]).id == "testchip"
    assert load_chip("h20", search=[tmp_path]).id == "h20"


def test_a_correction_may_extend_the_chip_it_replaces(write: Write, tmp_path: Path) -> None:
    write(f"id: h20\nextends: h20\ndram:\n  read_fraction: {LEAF}\n")
    chip = load_chip("h20", search=[tmp_path])
    assert chip.dram.read_fraction.value == 0.5
    assert chip.cores.value == 78


def test_the_same_id_twice_in_one_folder(write: Write, plain: dict[str, Any], tmp_path: Path) -> None:
    write(plain, "a.yaml")
    write(plain, "b.yaml")
    with pytest.raises(ChipError, match=r"id 'testchip' is in .*a\.yaml and .*b\.yaml; rename one"):
        load_chip("testchip", search=[tmp_path])


def test_listing_survives_broken_files(write: Write, tmp_path: Path) -> None:
    write("id: [unclosed", "broken.yaml")
    write("id: good-id\naliases: [one,\n  two]\nclock: {{{", "other.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    listed = list_chips([tmp_path])
    assert {"broken", "good-id", "binary", "h100-sxm5-80gb"} <= set(listed)
    with pytest.raises(ChipError, match=r"other\.yaml: line \d+: broken YAML"):
        load_chip("two", search=[tmp_path])


@pytest.mark.parametrize(
    ("name", "hint"),
    [("h10", "h100"), ("ascend-910b9", "ascend-910b"), ("tpu-v5p", "the catalogue has a10, a100-pcie")],
)
def test_unknown_chip_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ChipError, match=f"unknown chip '{name}'.*{hint}"):
        load_chip(name)


def test_a_folder_is_not_a_chip(tmp_path: Path) -> None:
    with pytest.raises(ChipError, match="a folder is not a chip file"):
        load_chip(tmp_path)


# extends -------------------------------------------------------------------------------------


def test_extends_an_id_an_alias_a_base_and_a_file(write: Write) -> None:
    rest = "cores: {value: 7, source: a bench, confidence: measured}\n"
    by_id = load_chip(write(f"id: v\nextends: h100-sxm5-80gb\n{rest}"))
    by_alias = load_chip(write(f"id: v\nextends: H100\n{rest}", "y.yaml"))
    write(f"id: p\nextends: h100\n{rest}", "sub/parent.yml")
    by_file = load_chip(write("id: v\nextends: sub/parent.yml\n", "z.yaml"))
    assert by_id == by_alias == by_file
    assert by_id.cores.value == 7
    assert by_id.matrix == load_chip("h100", calibrated=False).matrix
    with pytest.raises(ChipError, match=r"b\.yaml: name: missing"):  # the base alone is partial
        load_chip(write("id: v\nextends: _hopper\n", "b.yaml"))


def test_what_a_variant_does_not_inherit(write: Write) -> None:
    chip = load_chip(write("id: v\nextends: h100\n"))
    parent = load_chip("h100")
    assert parent.aliases
    assert parent.stated_peak_flop_per_s
    assert parent.conflicts
    assert parent.summary
    assert (chip.id, chip.aliases, chip.stated_peak_flop_per_s) == ("v", (), {})
    assert (chip.unknown, chip.conflicts, chip.summary) == ((), (), "")


def test_id_is_not_inherited(write: Write) -> None:
    with pytest.raises(ChipError, match=r"x\.yaml: id: missing"):
        load_chip(write("extends: h100\n"))


def test_a_number_is_replaced_whole(write: Write) -> None:
    chip = load_chip(write(f"id: v\nextends: h100\nclock:\n  matrix_burst_hz: {LEAF}\n"))
    assert chip.clock.matrix_burst_hz is not None
    assert chip.clock.matrix_burst_hz.note is None
    original = load_chip("h100", calibrated=False).clock.matrix_burst_hz
    assert original is not None
    assert original.note
    with pytest.raises(ChipError, match=r"x\.yaml: clock\.max_hz\.source: missing"):
        load_chip(write("id: v\nextends: h100\nclock:\n  max_hz: {value: 1e9, confidence: measured}\n"))


def test_null_removes_an_optional_and_not_a_required(write: Write) -> None:
    chip = load_chip(
        write(
            "id: v\nextends: h100\ntdp_w: null\nclock: {settle_s: ~}\nmatrix: {flop_per_cycle: {fp8: null}}"
        )
    )
    assert chip.tdp_w is None
    assert chip.clock.settle_s is None
    assert "fp8" not in chip.matrix.flop_per_cycle
    with pytest.raises(ChipError, match=r"x\.yaml: dram: missing; a mapping of capacity_bytes, "):
        load_chip(write("id: v\nextends: h100\ndram: null\n"))


def test_a_chain_of_three_merges_in_order(write: Write) -> None:
    write(f"id: a\nextends: h100\ndram: {{read_fraction: {LEAF}}}\n", "a.yaml")
    write("id: b\nextends: a.yaml\ncores: {value: 9, source: a bench, confidence: measured}\n", "b.yaml")
    chip = load_chip(
        write("id: c\nextends: b.yaml\ntdp_w: {value: 9, source: a bench, confidence: measured}\n")
    )
    assert chip.tdp_w is not None
    assert (chip.dram.read_fraction.value, chip.cores.value, chip.tdp_w.value) == (0.5, 9, 9)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_override_changes_that_number_and_no_other(write: Write, data: st.DataObject) -> None:
    parent = load_chip(data.draw(st.sampled_from(["h100", "b200", "910b3", "c550"])), calibrated=False)
    inherited = {p: q for p, q in parent.quantities().items() if not p.startswith("stated_peak")}
    path = data.draw(st.sampled_from(sorted(inherited)))
    keys = path.split(".")
    text = f"id: v\nextends: {parent.id}\n"
    for depth, key in enumerate(keys[:-1]):
        text += "  " * depth + f"{key}:\n"
    indent = "  " * (len(keys) - 1)
    text += f"{indent}{keys[-1]}: {{value: 1, source: the test, confidence: inferred}}\n"
    changed = load_chip(write(text)).quantities()
    assert (changed[path].value, changed[path].source) == (1, "the test")
    assert {p: q for p, q in changed.items() if p != path} == {
        p: q for p, q in inherited.items() if p != path
    }


def test_cycles(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ChipError, match=r"x\.yaml: extends: x\.yaml -> x\.yaml: a file cannot extend itself"):
        load_chip(write("id: v\nextends: x.yaml\n"))
    write("id: a\nextends: b.yaml\n", "a.yaml")
    write("id: b\nextends: a\n", "b.yaml")
    with pytest.raises(
        ChipError, match=r"b\.yaml: extends: a\.yaml -> b\.yaml -> a: a file cannot extend itself"
    ):
        load_chip("a", search=[tmp_path])


@pytest.mark.parametrize(
    ("parent", "message"),
    [
        ("h1000", r"x\.yaml: extends: unknown chip 'h1000'; did you mean h100"),
        ("_hoper", r"x\.yaml: extends: unknown chip '_hoper'"),
        ("gone.yaml", r"x\.yaml: extends: gone\.yaml: no such file beside x\.yaml"),
        ("[a, b]", r"x\.yaml: extends: \['a', 'b'\] is not valid: must be a chip's id or a file name"),
    ],
)
def test_unknown_parents(write: Write, parent: str, message: str) -> None:
    with pytest.raises(ChipError, match=message):
        load_chip(write(f"id: v\nextends: {parent}\n"))


def test_the_file_that_holds_the_mistake_is_named(write: Write) -> None:
    write("dram:\n  read_fraction: 0.9\n  copy_fraction: {value: 0.9, confidence: measured}\n", "_base.yaml")
    path = write("id: v\nextends: _base.yaml\nname: 5\ncores: 3\n")
    with pytest.raises(ChipError) as caught:
        load_chip(path)
    lines = str(caught.value).splitlines()
    assert any(line.startswith("_base.yaml: dram.read_fraction: 0.9 is a bare number") for line in lines)
    assert (
        "_base.yaml: dram.copy_fraction.source: missing; every number needs {value, source, confidence}"
        in lines
    )
    assert any(line.startswith("x.yaml: cores: 3 is a bare number") for line in lines)
    assert "x.yaml: name: 5 is not valid: must be text" in lines
    assert any(line.startswith("x.yaml: dram.write_fraction: missing") for line in lines)
