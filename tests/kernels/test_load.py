"""Programs from files: ``path/to/file.py:function`` with arguments."""

from __future__ import annotations

import sys
import textwrap

import pytest

from foretile.kernels.errors import TraceError
from foretile.kernels.ir import TileProgram
from foretile.kernels.load import REQUIRED, factory_parameters, from_script, load_program

SOURCE = """
from __future__ import annotations
from foretile.kernels import language as T
from sizes import THREADS

def scale(rows: int, columns=64, factor: float = 2.0, negate: bool = False, dtype: str="float32", extra=None):
    @T.prim_func
    def main(X: T.Tensor((rows, columns), dtype)):
        with T.Kernel(rows, threads=THREADS) as bx:
            for j in T.Parallel(columns):
                X[bx, j] = X[bx, j] * (-factor if negate else factor)
    return main

def anything(**options):
    return scale(**options)

def wrong():
    return 3

def failing():
    raise KeyError("x")

NUMBER = 4
ready = scale(2)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kernels.py").write_text(textwrap.dedent(SOURCE))
    (tmp_path / "sizes.py").write_text("THREADS = 96\n")
    yield tmp_path
    sys.modules.pop("sizes", None)


def test_factory_with_text_arguments(folder):
    before = list(sys.path)
    p = load_program(f"{folder}/kernels.py:scale", rows="8", columns="128", factor="0.5", negate="yes")
    assert isinstance(p, TileProgram)
    assert p.threads == 96
    assert p.params[0].shape[1].value == 128
    assert p.body[0].body[0].value.b.value == -0.5
    assert p.loc is not None
    assert p.loc.file == f"{folder}/kernels.py"
    assert sys.path == before


def test_values_that_are_no_text_pass_through(folder):
    assert load_program(f"{folder}/kernels.py:scale", rows=8) == load_program(
        f"{folder}/kernels.py:scale", rows="0x8"
    )


def test_traced_program_and_open_factory(folder):
    assert load_program(f"{folder}/kernels.py:ready").name == "main"
    assert load_program(f"{folder}/kernels.py:anything", rows="3", factor="1.5").grid[0].value == 3


def test_parameters(folder):
    assert factory_parameters(f"{folder}/kernels.py:scale") == {
        "rows": REQUIRED,
        "columns": 64,
        "factor": 2.0,
        "negate": False,
        "dtype": "float32",
        "extra": None,
    }
    assert factory_parameters(f"{folder}/kernels.py:ready") == {}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("scale", {}, r"needs rows; its signature is scale\(rows"),
        (
            "scale",
            {"rows": 1, "colums": 2},
            r"takes no argument 'colums'; did you mean 'columns'\? its signature",
        ),
        ("scale", {"rows": "many"}, "rows='many' is not of type int; its signature"),
        ("scale", {"rows": "1", "negate": "maybe"}, "negate='maybe' is not of type bool"),
        ("scale", {"rows": "1", "columns": "1.5"}, "columns='1.5' is not of type int"),
        ("scal", {}, r"has no function or program 'scal'; did you mean scale\?"),
        ("NUMBER", {}, r"no function or program \(it is a int\) 'NUMBER'; it has: scale, anything"),
        ("wrong", {}, "returned int, not a tile program"),
        ("ready", {"rows": 1}, "is a program, not a factory; it takes no arguments: rows"),
    ],
)
def test_errors(folder, name, arguments, message):
    with pytest.raises(TraceError, match=message):
        load_program(f"{folder}/kernels.py:{name}", **arguments)


def test_file_errors(folder):
    with pytest.raises(TraceError, match=r"kernel.py does not exist; did you mean .*kernels.py\?"):
        load_program(f"{folder}/kernel.py:scale")
    with pytest.raises(TraceError, match=r"is not of the form path/to/file\.py:function"):
        load_program("kernels.py")
    (folder / "broken.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(TraceError, match=r"broken.py:2: invalid syntax"):
        load_program(f"{folder}/broken.py:f")
    (folder / "raising.py").write_text("x = 1\ny = x / 0\n")
    with pytest.raises(TraceError, match=r"raising.py:2: ZeroDivisionError: division by zero"):
        load_program(f"{folder}/raising.py:f")


def test_an_edited_file_is_read_anew(folder):
    path = folder / "kernels.py"
    first = load_program(f"{path}:scale", rows=4)
    path.write_text(path.read_text().replace("* (", "+ (").replace("rows: int,", "rows: int, *,"))
    second = load_program(f"{path}:scale", rows=4)
    assert first.body[0].body[0].value.op == "mul"
    assert second.body[0].body[0].value.op == "add"


def test_scripts():
    text = '@T.prim_func\ndef {0}(A: T.Tensor((4,), "float32")):\n    with T.Kernel(1):\n        A[0] = {1}\n'
    both = text.format("one", 1) + text.format("two", 2)
    assert from_script(both).name == "two"
    assert from_script(both, "one").name == "one"
    with pytest.raises(TraceError, match=r"the script has no program 'three'; it has: one, two"):
        from_script(both, "three")
    with pytest.raises(TraceError, match=r"holds no @T\.prim_func"):
        from_script("x = 1")
    with pytest.raises(TraceError, match=r"<tile script \d+>:1: invalid syntax"):
        from_script("x = = 1")
    with pytest.raises(TraceError, match=r"<tile script \d+>:4: NameError"):
        from_script(text.format("one", "y"))


def test_text_that_fails_before_it_is_traced_is_refused_with_its_line() -> None:
    with pytest.raises(TraceError, match=r"^<tile script \d+>:2: NameError: name 'missing' is not defined"):
        from_script("# a comment\nsize = missing + 1\n")
