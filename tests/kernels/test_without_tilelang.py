"""Without TileLang its kernels are refused with the way to get it; the core never imports it."""

import subprocess
import sys

import pytest

from foretile.kernels.load import load_program
from foretile.kernels.tilelang import TileLangMissing, versions

KERNEL = "import tilelang\n\n\ndef kernel():\n    raise SystemExit\n"


def test_a_kernel_for_tilelang_says_how_to_get_it(tmp_path, monkeypatch):
    file = tmp_path / "kernel.py"
    file.write_text(KERNEL)
    monkeypatch.setattr(versions, "installed", lambda: None)
    with pytest.raises(
        TileLangMissing, match=r"kernel.py needs TileLang.*pip install 'foretile\[tilelang\]'"
    ):
        load_program(f"{file}:kernel")


def test_the_importer_imports_neither_tilelang_nor_torch():
    code = (
        "import sys, foretile, foretile.kernels.tilelang, foretile.kernels.tilelang.held;"
        "print([m for m in ('tilelang', 'tvm', 'tvm_ffi', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
