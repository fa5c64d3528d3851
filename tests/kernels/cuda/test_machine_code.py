"""Every .cu file compiles for every architecture, its kernels can be launched, and matrix units are used."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

import pytest
from cuda_cases import all_cases

from foretile.kernels.cuda.nvcc import ARCHITECTURES, FOLDER, Compiled, NvccError, find_nvcc
from foretile.kernels.cuda.recipe import CudaProgram
from foretile.kernels.cuda.registry import cuda_program
from foretile.kernels.operator import load_operator

FILES = sorted(path.name for path in FOLDER.glob("*.cu"))
CAPABILITY = {"sm_80": (8, 0), "sm_90a": (9, 0), "sm_100a": (10, 0)}
SPILLED = 32  # bytes: what a call in the epilogue may push out, nothing of a loop's
REGISTERS = 65536  # of a block, on all of them
# Kernels (by the beginning of their names) whose products are the matrix units', and by which instruction.
MATRIX = {
    "gemm_int8": "IMMA",
    "gemm_": "HMMA",
    "conv2d_": "HMMA",
    "grouped_gemm_": "HMMA",
    "moe_product_": "HMMA",
    "indexer_logits": "HMMA",
    "attention_": "HMMA",
    "mla_": "HMMA",
    "sparse_mla_": "HMMA",
}

Built = Mapping[tuple[str, str], Compiled]


@pytest.fixture(scope="module")
def built(builds: Mapping[tuple[str, str], Future[Compiled]]) -> Built:
    try:
        find_nvcc()
    except NvccError as error:
        pytest.skip(str(error))
    return {job: future.result() for job, future in builds.items()}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_a_file_compiles_and_spills_next_to_nothing(built: Built, file: str, arch: str) -> None:
    made = built[file, arch]
    assert made.cubin[:4] == b"\x7fELF"
    assert made.resources
    assert {n: r.spill_store_bytes for n, r in made.resources.items() if r.spill_store_bytes > SPILLED} == {}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_launch_fits_an_architecture(built: Built, arch: str) -> None:
    for case in all_cases():
        for source, recipe in case.program().launches:
            found = built[source.file, arch].resources[recipe.symbol]
            assert recipe.problems(CAPABILITY[arch], found.static_shared_bytes) == [], case.name
            assert recipe.threads * found.registers <= REGISTERS, (case.name, recipe.symbol)


def test_every_kernel_is_launched_by_some_operator(built: Built) -> None:
    compiled = {name for (_, arch), made in built.items() if arch == "sm_90a" for name in made.resources}
    launched = {recipe.symbol for case in all_cases() for _, recipe in case.program().launches}
    assert compiled == launched


LARGE = {
    "gemm": {"m": 65536, "n": 129280, "k": 7168},
    "attention_prefill": {"batch": 4, "seq": 131072, "heads": 128, "kv_heads": 8},
    "attention_decode": {"batch": 512, "kv_len": 131072, "heads": 128, "kv_heads": 8},
    "mla_decode": {"batch": 1024, "kv_len": 131072, "heads": 128},
    "mla_prefill": {"batch": 2, "seq": 32768, "heads": 128},
    "moe": {"tokens": 65536, "hidden": 7168, "inter": 2048, "topk": 8, "experts": 256, "dtype": "fp8_block"},
    "rmsnorm": {"rows": 1048576, "cols": 7168},
    "softmax": {"rows": 65536, "cols": 129280},
    "transpose": {"rows": 131072, "cols": 131072},
    "copy": {"bytes": 2**35},
    "quantize": {"rows": 1048576, "cols": 7168},
    "indexer_logits": {"batch": 1, "seq": 32768, "kv_len": 131072},
    "sparse_mla": {"batch": 4, "seq": 32768},
    "topk_select": {"rows": 131072, "cols": 131072, "k": 2048},
}


@pytest.mark.parametrize("name", LARGE)
def test_large_shapes_stay_within_the_limits_of_a_launch(name: str) -> None:
    for _, recipe in cuda_program(name, load_operator(name).shape(**LARGE[name])).launches:
        assert recipe.problems((8, 0)) == []


def test_programs_survive_json() -> None:
    for case in all_cases():
        assert CudaProgram.from_json(case.program().to_json()) == case.program()


def _nvdisasm() -> str:
    """The disassembler: on PATH, or in the package nvidia-cuda-nvdisasm."""
    found = shutil.which("nvdisasm")
    if found is None:
        try:
            files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
        except importlib.metadata.PackageNotFoundError:
            files = []
        found = next((str(f.locate()) for f in files if Path(f).name == "nvdisasm"), None)
    if found is None:
        pytest.skip("nvdisasm was not found: pip install nvidia-cuda-nvdisasm")
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("file", ["gemm.cu", "grouped.cu", "indexer.cu", "attention.cu", "mla.cu"])
def test_products_are_the_matrix_units(built: Built, file: str, arch: str, tmp_path: Path) -> None:
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(built[file, arch].cubin)
    done = subprocess.run([_nvdisasm(), "-c", str(cubin)], capture_output=True, text=True, check=True)
    parts = re.split(r"^\s*\.section\s+\.text\.(\w+)", done.stdout, flags=re.MULTILINE)
    kernels = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert set(kernels) >= set(built[file, arch].resources)
    for name in built[file, arch].resources:
        instruction = next(want for start, want in MATRIX.items() if name.startswith(start))
        assert re.search(rf"\b{instruction}\.", kernels[name]), f"{name} for {arch} has no {instruction}"
