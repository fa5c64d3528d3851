"""Packages that a kernel's file imports and that are not there: named while it is read, refused when used."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from foretile.kernels.errors import TraceError
from foretile.kernels.load import load_program
from foretile.kernels.tilelang.absent import StandIn, stand_ins

SOURCE = """
from typing import Optional

import not_there_a as alone
import not_there_a.language as tl
import not_there_b.ops.chunk as chunk
from not_there_b.ops import prepare, reference
try:
    import not_there_c
except ImportError:
    not_there_c = None


@alone.autotune(configs=[alone.Config({"b": b}) for b in (1, 2)], key=["n"])
@alone.jit
def theirs(x: tl.constexpr, y: Optional[tl.tensor] = None, z: tl.tensor | None = None):
    pass


class Layer(chunk.Base):
    pass


def mine(n):
    return n + 1


def compared():
    return reference(1, 2)


def launched():
    theirs[(1,)](3)


def later():
    import not_there_d
"""


@pytest.fixture
def author(tmp_path: Path) -> Path:
    path = tmp_path / "author.py"
    path.write_text(SOURCE)
    return path


def test_a_file_is_read_without_them_and_what_uses_them_is_told(author: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="not_there_a"):
        runpy.run_path(str(author))
    with stand_ins():
        names = runpy.run_path(str(author))
    assert names["mine"](1) == 2
    assert names["not_there_c"] is None  # the file's own way to do without
    line = SOURCE.splitlines().index("from not_there_b.ops import prepare, reference") + 1
    told = rf"not_there_b, imported at .*author.py:{line}, is not installed, and not_there_b.ops.reference"
    with pytest.raises(ModuleNotFoundError, match=told) as caught:
        names["compared"]()
    assert caught.value.name == "not_there_b"
    with pytest.raises(ModuleNotFoundError, match="not_there_a, imported at"):
        names["launched"]()
    with stand_ins(), pytest.raises(ModuleNotFoundError, match="No module named 'not_there_d'"):
        names["later"]()
    assert not any(name.startswith("not_there") for name in sys.modules)


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x + 1,
        lambda x: 1 + x,
        lambda x: bool(x),
        lambda x: int(x),
        lambda x: range(x),
        lambda x: list(x),
        lambda x: len(x),
        lambda x: x == 3,
        lambda x: x < 3,
        lambda x: isinstance(3, x),
        lambda x: x(),
        lambda x: x[0],
    ],
)
def test_no_value_is_made_up(use: Any) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"gone, imported at there\.py:1, is not installed"):
        use(StandIn("gone.size", "there.py:1"))


def test_installed_packages_find_out_that_others_are_not_there(tmp_path: Path) -> None:
    with stand_ins(), pytest.raises(ModuleNotFoundError):
        exec(compile("import not_there_a", "<string>", "exec"), {})
    installed = Path(pytest.__file__).parent / "not_a_file.py"  # an import of a library's own
    with stand_ins(), pytest.raises(ModuleNotFoundError):
        exec(compile("import not_there_a", str(installed), "exec"), {})
    missing = tmp_path / "helper.py"
    missing.write_text("import foretile.nothing_like_it")  # the package is there, its module is not
    with stand_ins(), pytest.raises(ModuleNotFoundError, match="nothing_like_it"):
        runpy.run_path(str(missing))


def test_a_kernel_beside_such_imports_is_loaded(
    tilelang_language: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FORETILE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "helper.py").write_text("from not_there_b import reference\n")
    file = tmp_path / "kernel.py"
    file.write_text(
        """
import tilelang.language as T
import not_there_a
from not_there_b import heads, reference
import helper

@not_there_a.jit
def theirs(x):
    pass

def scaled(n=256, heads=heads):
    @T.prim_func
    def scale(A: T.Tensor((n,), "float32")):
        with T.Kernel(n // 128, threads=128) as bx:
            for i in T.Parallel(128):
                A[bx * 128 + i] = A[bx * 128 + i] * 2
    return scale

def counted():
    return scaled(heads * 128)
"""
    )
    assert load_program(f"{file}:scaled", n="512").grid[0].value == 4
    with pytest.raises(
        TraceError, match=r"not_there_b, imported at .*kernel\.py:4, is not installed"
    ) as caught:
        load_program(f"{file}:counted")
    assert caught.value.loc is not None
    assert caught.value.loc.line == 20


def test_what_the_installed_version_no_longer_has_is_told_where_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "older.py"
    path.write_text(
        "from numpy.gone import helper\n"
        "from numpy import ndarray, renamed\n"
        "try:\n    from numpy import guarded\nexcept ImportError:\n    guarded = None\n"
        "def kernel(n):\n    return n + 1\n"
        "def compared():\n    return helper(1)\n"
        "def other():\n    return renamed(1)\n"
    )
    with stand_ins():
        names = runpy.run_path(str(path))
    assert names["kernel"](1) == 2
    assert names["ndarray"].__module__ == "numpy"
    assert names["guarded"] is None
    told = (
        r"numpy\.gone, imported at .*older.py:1, is not in the installed numpy [\d.]+, and numpy.gone.helper"
    )
    with pytest.raises(ModuleNotFoundError, match=told):
        names["compared"]()
    with pytest.raises(ModuleNotFoundError, match=r"numpy\.renamed, imported at .*older.py:2, is not in the"):
        names["other"]()
    path.write_text("import numpy.gone\n")  # gives numpy, which is there and lacks it
    with stand_ins(), pytest.raises(ModuleNotFoundError, match=r"numpy\.gone"):
        runpy.run_path(str(path))
