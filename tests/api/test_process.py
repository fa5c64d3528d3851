"""The command line as a process of its own: streams, exit codes, start-up."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def foretile(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "foretile", *argv],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )


def test_an_unknown_chip_is_exit_code_2_without_traceback() -> None:
    done = foretile("predict", "gemm", "m=64", "n=64", "k=64", "--chip", "h02")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "h02" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_option_is_exit_code_2() -> None:
    done = foretile("predict", "gemm", "m=64")
    assert done.returncode == 2
    assert "--chip" in done.stderr


def test_no_color_is_honoured() -> None:
    assert "\x1b[" not in foretile("chips", NO_COLOR="1", FORCE_COLOR="").stdout


def test_help_loads_no_heavy_module() -> None:
    heavy = ("numpy", "pandas", "pydantic", "matplotlib", "seaborn", "yaml", "scipy", "jinja2")
    code = f"import sys; from foretile.cli import app; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_help_answers_at_once() -> None:
    times = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        foretile("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # Processor time, as other work on the machine stretches the clock's; about 0.25 s when idle.
    assert min(times) < 0.5


def test_a_closed_pipe_is_no_error() -> None:
    line = f"{sys.executable} -m foretile chips show h20 --json | head -c 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.stdout == "{"
