"""The pages about chips say what the code does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from foretile.hwmodels import (
    Chip,
    ChipError,
    IncompleteChip,
    describe_chip,
    list_chips,
    list_incomplete,
    load_chip,
)
from foretile.hwmodels.checks import check_chip, peak_flop_per_s
from foretile.hwmodels.problems import _model_in
from foretile.hwmodels.quantity import Quantity

Write = Callable[..., Path]
DOCS = Path(__file__).resolve().parents[2] / "docs"
TUTORIAL = (DOCS / "add-a-chip.md").read_text(encoding="utf-8")
CHIPS_PAGE = (DOCS / "chips.md").read_text(encoding="utf-8")
_EXAMPLE = re.compile(r"^id: (\S+)\n(?:(?!```).*\n)*", re.MULTILINE)
EXAMPLES = {match.group(1): match.group() for match in _EXAMPLE.finditer(TUTORIAL)}


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        below = _model_in(field.annotation)
        if below is None or issubclass(below, Quantity):
            yield prefix + name
        else:
            yield from fields(below, f"{prefix}{name}.")


def test_the_tutorial_has_a_complete_file_and_a_variant() -> None:
    assert set(EXAMPLES) == {"example-one", "h20-half"}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_tutorials_files_load_and_are_plausible(write: Write, name: str) -> None:
    chip = load_chip(write(EXAMPLES[name], f"{name}.yaml"))
    assert chip.id == name
    assert check_chip(chip) == []


def test_the_complete_example_is_minimal(write: Write) -> None:
    """Every number is required, except single dtypes and the stated peak."""
    chip = load_chip(write(EXAMPLES["example-one"], "example-one.yaml"))
    optional = [p for p in chip.quantities() if p.startswith(("stated_peak", "matrix.flop_per_cycle"))]
    for path in [p for p in chip.quantities() if p not in optional]:
        text = "id: less\nextends: example-one.yaml\n"
        *parents, last = path.split(".")
        for depth, key in enumerate(parents):
            text += "  " * depth + f"{key}:\n"
        text += "  " * len(parents) + f"{last}: null\n"
        with pytest.raises(ChipError, match=rf"less\.yaml: {re.escape(path)}: missing"):
            load_chip(write(text, "less.yaml"))


@pytest.mark.parametrize(
    ("before", "after", "number"),
    [
        (r"read_fraction: \{.*\}", "read_fraction: 0.9", 0),
        (r"^matrix:", "matrx: {}\nmatrix:", 1),
        (r"max_hz: \{value: 1.5e9", "max_hz: {value: 0", 2),
    ],
)
def test_the_tutorials_error_messages_are_the_real_ones(
    write: Write, before: str, after: str, number: int
) -> None:
    blocks = re.findall(r"^```text\n(.*?)^```", TUTORIAL, re.MULTILINE | re.DOTALL)
    shown = next(b for b in blocks if b.startswith("example-one.yaml: dram.read_fraction")).splitlines()
    assert len(shown) == 3
    wrong, count = re.subn(before, after, EXAMPLES["example-one"], count=1, flags=re.MULTILINE)
    assert count == 1
    with pytest.raises(ChipError) as caught:
        load_chip(write(wrong, "example-one.yaml"))
    assert str(caught.value) == shown[number]


def test_the_bases_the_tutorial_names_exist(write: Write) -> None:
    line = next(line for line in TUTORIAL.splitlines() if "a base of the catalogue" in line)
    bases = re.findall(r"`(_\w+)`", line)
    assert len(bases) == 15
    for base in bases:
        with pytest.raises(ChipError, match=": missing"):  # found, and partial
            load_chip(write(f"id: v\nextends: {base}\n"))


@pytest.mark.parametrize("name", list_chips())
def test_the_catalogue_table_is_current(name: str) -> None:
    chip = load_chip(name, calibrated=False)
    sixteen = "bf16" if "bf16" in chip.matrix.flop_per_cycle else "fp16"
    cells: list[Any] = [
        f"`{chip.id}`",
        ", ".join(f"`{a}`" for a in chip.aliases),
        chip.cores.value,
        f"{peak_flop_per_s(chip, sixteen) / 1e12:.0f}",
        f"{chip.dram.bandwidth_bytes_per_s.value / 1e12:.3g}",
        f"{chip.l2.capacity_bytes.value / 2**20:.0f}",
        len(chip.quantities()),
        len(chip.inferred()),
    ]
    assert "| " + " | ".join(str(cell) for cell in cells) + " |" in CHIPS_PAGE


@pytest.mark.parametrize("name", list_incomplete())
def test_the_table_of_incomplete_chips_is_current(name: str) -> None:
    chip = describe_chip(name)
    assert isinstance(chip, IncompleteChip)
    aliases = ", ".join(f"`{a}`" for a in chip.aliases)
    cells = [f"`{chip.id}`", aliases, len(chip.quantities()), len(chip.missing), "; ".join(chip.unknown)]
    assert "| " + " | ".join(str(cell) for cell in cells) + " |" in CHIPS_PAGE


@pytest.mark.parametrize("field", list(fields(Chip)))
def test_every_field_is_explained(field: str) -> None:
    assert f"`{field}`" in CHIPS_PAGE


def test_no_field_is_explained_that_does_not_exist() -> None:
    known = set(fields(Chip))
    named = set(re.findall(r"`([a-z_0-9]+\.[a-z_0-9]+)`", CHIPS_PAGE))
    assert {n for n in named if n.split(".")[0] in Chip.model_fields} <= known
