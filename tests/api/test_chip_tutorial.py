"""docs/add-a-chip.md, followed line by line: its files written, its commands run, its answers given."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from foretile.hwmodels import load_chip

from .conftest import Run

PAGE = (Path(__file__).parents[2] / "docs" / "add-a-chip.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _commands(block: str) -> list[tuple[str, list[str]]]:
    """Each ``$`` line of a console block with the lines it is said to answer."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        else:
            found[-1][1].append(line)
    return found


def _answers(shown: str, line: str) -> bool:
    """Whether a line of the answer is the one shown, where ``…`` stands for anything."""
    return re.fullmatch(".*".join(re.escape(part) for part in shown.split("…")), line) is not None


def test_the_tutorial_works_as_it_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = 0
    for kind, block in _BLOCK.findall(PAGE):
        if kind == "yaml":
            name = re.match(r"id: (\S+)", block)
            assert name is not None, block[:60]
            file = tmp_path / f"{name[1]}.yaml"
            assert file.is_file(), "the page fills in a file that chips new wrote"
            file.write_text(block, encoding="utf-8")
            continue
        if kind != "console":
            continue
        for command, shown in _commands(block):
            words = shlex.split(command)
            while "=" in words[0]:
                monkeypatch.setenv(*words.pop(0).split("=", 1))
            assert words.pop(0) == "foretile"
            said = run(*words)
            assert said.code == 0, (command, said.err)
            lines = said.out.splitlines()
            for expected in shown:
                assert any(_answers(expected, line) for line in lines), (command, expected, said.out)
            ran += 1
    assert ran >= 12
    assert (tmp_path / "example-one.html").is_file()
    assert load_chip(tmp_path / "example-one.yaml").id == "example-one"


def test_the_headings_add_up_to_ten_minutes() -> None:
    words = {"one": 1, "two": 2, "five": 5}
    minutes = [words[m] for m in re.findall(r"^## .*\((\w+) minutes?\)$", PAGE, re.MULTILINE)]
    assert sum(minutes) == 10
