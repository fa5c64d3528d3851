"""nvcc: found or named as missing, machine code with its resources, kept by content."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from foretile.kernels.cuda import nvcc
from foretile.kernels.cuda.nvcc import NvccError, Resources, compile_kernel, find_nvcc, parse_resources

REPORT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_80'
ptxas info    : Function properties for first
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 372 bytes cmem[0]
ptxas info    : Compiling entry function 'second' for 'sm_80'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 360 bytes cmem[0]
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers
"""


def test_the_report_is_read_by_kernel_and_architecture() -> None:
    assert parse_resources(REPORT, "sm_80") == {
        "first": Resources(40, 16, 8, 4, 2048),
        "second": Resources(12, 0, 0, 0, 0),
    }
    assert parse_resources(REPORT, "sm_90a") == {"first": Resources(168, 0, 0, 0, 0)}


def test_a_report_without_registers_is_refused() -> None:
    with pytest.raises(NvccError, match="register count for first"):
        parse_resources("ptxas info : Compiling entry function 'first' for 'sm_80'\n", "sm_80")


def program(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "nvcc"
    file.write_text(text)
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment without any nvcc and with an empty cache."""
    for name in ("NVCC", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("FORETILE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_without_nvcc_the_message_says_how_to_get_it(nowhere: Path) -> None:
    with pytest.raises(NvccError, match="CUDA Toolkit"):
        compile_kernel("", "sm_80")


def test_a_named_nvcc_that_does_not_exist_is_named(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", str(nowhere / "none"))
    with pytest.raises(NvccError, match=r"NVCC=.*none: no such program"):
        find_nvcc()


def test_nvcc_is_looked_for_in_its_places(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = program(nowhere / "home" / "bin", "#!/bin/sh\n")
    monkeypatch.setenv("CUDA_HOME", str(nowhere / "home"))
    assert find_nvcc() == home
    on_path = program(nowhere / "bin", "#!/bin/sh\n")
    assert find_nvcc() == on_path
    named = program(nowhere / "named", "#!/bin/sh\n")
    monkeypatch.setenv("NVCC", str(named))
    assert find_nvcc() == named


# A compiler that counts its runs and writes what it was told to compile.
FAKE = """#!/bin/sh
if [ "$1" = --version ]; then echo "fake 1"; exit 0; fi
echo run >> {folder}/runs
while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
if grep -q broken "$1"; then echo "kernel.cu(1): error: broken" >&2; exit 1; fi
cp "$1" "$out"
echo "ptxas info    : Compiling entry function 'k' for 'sm_80'" >&2
echo "ptxas info    : Used 7 registers" >&2
"""


@pytest.fixture
def fake(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("NVCC", str(program(nowhere / "fake", FAKE.format(folder=nowhere))))
    return nowhere


def runs(folder: Path) -> int:
    file = folder / "runs"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_the_same_source_is_compiled_once(fake: Path) -> None:
    first = compile_kernel("one", "sm_80")
    assert first.cubin == b"one"
    assert first.resources == {"k": Resources(7, 0, 0, 0, 0)}
    assert compile_kernel("one", "sm_80") == first
    assert runs(fake) == 1


def test_whatever_a_result_depends_on_makes_another(fake: Path) -> None:
    headers = fake / "headers"
    headers.mkdir()
    (headers / "a.cuh").write_text("one")
    compile_kernel("one", "sm_80", include=[headers])
    (headers / "a.cuh").write_text("two")
    compile_kernel("one", "sm_80", include=[headers])
    compile_kernel("one", "sm_80", (("N", "1"),), include=[headers])
    compile_kernel("one", "sm_80", flags=("-G",), include=[headers])
    compile_kernel("other", "sm_80", include=[headers])
    assert runs(fake) == 5


def test_a_damaged_entry_is_made_again(fake: Path) -> None:
    compile_kernel("one", "sm_80")
    (cubin,) = (fake / "cache").rglob("kernel.cubin")
    cubin.write_bytes(b"on")
    assert compile_kernel("one", "sm_80").cubin == b"one"
    assert runs(fake) == 2


def test_a_refusal_carries_the_diagnostics_and_keeps_nothing(fake: Path) -> None:
    with pytest.raises(NvccError, match=r"kernel.cu\(1\): error: broken"):
        compile_kernel("broken", "sm_80")
    assert not list((fake / "cache").rglob("*.cubin"))


def test_options_carry_macros_and_our_headers() -> None:
    given = nvcc.options((("N", "3"),))
    assert "-DN=3" in given
    assert f"-I{nvcc.FOLDER}" in given


def test_a_real_nvcc_compiles_for_every_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        find_nvcc()
    except NvccError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("FORETILE_CACHE", str(tmp_path))
    text = 'extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= FACTOR; }\n'
    made = compile_kernel(text, "sm_90a", (("FACTOR", "2.0f"),))
    assert made.cubin[:4] == b"\x7fELF"
    assert made.resources["twice"].registers > 0
