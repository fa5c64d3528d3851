"""What is in the wheel is what is in the repository: every module, every data file, nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("api", "hwmodels", "kernels", "simulator", "calibration")
PARTS = (*ROOMS, "pyproject.toml", "README.md", "LICENSE")
DATA = (".yaml", ".j2", ".css", ".csv", ".typed", ".parquet", ".md", ".cu", ".cuh")


def _setuptools_is_new_enough() -> bool:
    try:
        import setuptools
    except ImportError:
        return False
    return int(setuptools.__version__.split(".")[0]) >= 80


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy: a build leaves folders behind in its source."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--no-build-isolation"] if _setuptools_is_new_enough() else []
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("*.whl")
    return zipfile.ZipFile(file)


def _expected() -> set[str]:
    found = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*"):
            if path.suffix == ".py" or path.suffix in DATA or path.name == "py.typed":
                parts = path.relative_to(ROOT).parts
                found.add("/".join(("foretile", *(parts[1:] if room == "api" else parts))))
    return {name for name in found if "__pycache__" not in name}


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_data_file_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == _expected()


@pytest.mark.slow
def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    import foretile

    names = wheel.namelist()
    metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
    head = HeaderParser().parsestr(wheel.read(metadata).decode())
    assert head["Name"] == "foretile"
    assert head["Version"] == foretile.__version__
    assert any(name.endswith("LICENSE") for name in names)
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert "foretile = foretile.cli:main" in wheel.read(entry).decode()
