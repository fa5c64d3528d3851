"""The page on the language names everything the language has, and its example works."""

from __future__ import annotations

import re
from pathlib import Path

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.load import load_program

PAGE = Path(__file__).parents[2] / "docs" / "language.md"


def test_every_name_is_on_the_page():
    named = set(re.findall(r"\bT\.(\w+)", PAGE.read_text()))
    assert set(T.__all__) - named == set()


def test_the_example_works(tmp_path):
    example = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert example is not None
    path = tmp_path / "page.py"
    path.write_text(example.group(1))
    program = load_program(f"{path}:program")
    assert isinstance(program, TileProgram)
    assert [d.name for d in program.dims] == ["m"]


def test_every_name_exists():
    for name in T.__all__:
        assert getattr(T, name) is not None
