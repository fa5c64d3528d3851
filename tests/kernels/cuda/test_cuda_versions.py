"""The CUDA versions' own source, run on the CPU, against the operators' float64 references."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from cuda_cases import Case, all_cases
from cuda_hosting import foresee, run_on_host

from foretile.kernels.cuda.nvcc import FOLDER
from foretile.kernels.cuda.recipe import CudaProgram, KernelSource, LaunchRecipe, TensorArg
from foretile.kernels.cuda.registry import cuda_operators, cuda_program
from foretile.kernels.cuda.storage import from_device, numpy_type, to_device
from foretile.kernels.operator import OperatorError, load_operator, operator_names
from foretile.simulator.numerics.verify import OutputCheck, compare, input_kinds

CASES = all_cases()
foresee(case.program() for case in CASES)


def checks(case: Case, kind: str, seed: int, folder: Path = FOLDER) -> list[OutputCheck]:
    operator, shape = case.operator, case.shape
    make = operator.inputs if kind == "random" else operator.adversarial[kind]
    inputs = make(shape, np.random.default_rng(seed))
    with np.errstate(all="ignore"):
        reference = operator.reference(shape, **inputs)
    ran = run_on_host(case.program(), inputs, seed, folder)
    got = operator.comparable(shape, inputs, {name: ran[name] for name in reference})
    wanted = operator.comparable(shape, inputs, reference)
    tolerance = operator.tolerance(shape)
    with np.errstate(all="ignore"):
        return [
            compare(name, got[name], np.asarray(wanted[name]), tolerance, str(ran[name].dtype))
            for name in reference
        ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_cuda_version_computes_its_operator(case: Case) -> None:
    for seed, kind in enumerate(input_kinds(case.operator) if case.every_kind else ("random",)):
        for check in checks(case, kind, seed):
            assert check.within, (kind, check)


WITHOUT: set[str] = set()  # operators whose CUDA version is still to be written


def test_every_operator_has_a_cuda_version_or_is_known_to_lack_one() -> None:
    assert set(cuda_operators()) == set(operator_names()) - WITHOUT


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_tensors_are_those_of_the_tile_program(case: Case) -> None:
    inputs = case.operator.inputs(case.shape, np.random.default_rng(0))
    with np.errstate(all="ignore"):
        reference = case.operator.reference(case.shape, **inputs)
    tensors = {tensor.name: tensor for tensor in case.program().tensors}
    assert {name for name, t in tensors.items() if t.role == "in"} == set(inputs)
    assert {name for name, t in tensors.items() if t.role == "out"} == set(reference)
    for name, array in inputs.items():
        assert tensors[name].shape == array.shape, name
        assert numpy_type(tensors[name].dtype) == array.dtype, name
    for name, array in reference.items():
        assert tensors[name].shape == array.shape, name


# What is broken, in which file, and a case that must show it.
FAULTS = {
    "a fragment's words are swapped": (
        "mma.cuh",
        "a[1] = rows[(g + 8) * stride + t];",
        "a[1] = rows[g * stride + t + 4];",
        "gemm_nvfp4",
    ),
    "no barrier behind the staging": (
        "tile.cuh",
        "stage<T>(b_shared, B, b_across, n0, k, k_end);\n        __syncthreads();",
        "stage<T>(b_shared, B, b_across, n0, k, k_end);",
        "indexer_logits",
    ),
    "no barrier before the next staging": (
        "flash.cuh",
        "__syncthreads();  // the tiles of the step before have been read",
        "",
        "attention_decode",
    ),
    "a result is not scaled down when the maximum rises": (
        "flash.cuh",
        "o[i][j][e] *= shrink[16 * i + g + 8 * (e / 2)];",
        ";",
        "attention_decode",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(fault: str, tmp_path: Path) -> None:
    file, right, wrong, name = FAULTS[fault]
    case = next(case for case in CASES if case.name == name)
    for source in (*FOLDER.glob("*.cuh"), FOLDER / case.program().launches[0][0].file):
        shutil.copy(source, tmp_path / source.name)
    text = (tmp_path / file).read_text()
    assert text.count(right) == 1
    (tmp_path / file).write_text(text.replace(right, wrong))
    assert any(not check.within for seed in range(3) for check in checks(case, "random", seed, tmp_path))


_KERNEL = """#include "foretile.cuh"
extern "C" __global__ void widen(const unsigned char* X, Half* Y) {
    Y[threadIdx.x] = fp8_by_bits(X[threadIdx.x]);
}
extern "C" __global__ void four(const float* X, unsigned char* Y) {
    Y[threadIdx.x] = fp4_number(X[threadIdx.x]) | fp4_number_by_bits(X[threadIdx.x]) << 4;
}
extern "C" __global__ void values(const unsigned char* X, float* Y) {
    Y[threadIdx.x] = fp4_value(X[threadIdx.x]);
    Y[16 + threadIdx.x] = fp4_value_by_bits(X[threadIdx.x]);
}
extern "C" __global__ void uneven(int* Y) {
    if (threadIdx.x < 32) __syncthreads();
    else __shfl_xor_sync(ALL_LANES, 1, 1);
    __syncthreads();
    Y[threadIdx.x] = 1;
}
extern "C" __global__ void stuck(int* Y) {
    if (threadIdx.x % 32 < 16) __syncwarp();
    else __syncthreads();
    Y[threadIdx.x] = 1;
}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    shutil.copy(FOLDER / "foretile.cuh", folder)
    (folder / "small.cu").write_text(_KERNEL)
    foresee([one(symbol, ()) for symbol in ("widen", "four", "values", "uneven", "stuck")], folder)
    return folder


def one(symbol: str, args: tuple[TensorArg, ...], threads: int = 64) -> CudaProgram:
    recipe = LaunchRecipe(symbol, (1, 1, 1), (threads, 1, 1), args)
    return CudaProgram(symbol, ((KernelSource("small.cu", symbol), recipe),))


def test_e4m3_by_its_bits_is_e4m3(small: Path) -> None:
    patterns = np.arange(256, dtype=np.uint8)
    args = (TensorArg("X", "uint8", (256,), "in"), TensorArg("Y", "float16", (256,), "out"))
    found = run_on_host(one("widen", args, 256), {"X": patterns}, folder=small)["Y"]
    wanted = patterns.view(numpy_type("fp8")).astype(np.float16)
    np.testing.assert_array_equal(found, wanted)


def test_e2m1_numbers_are_the_nearest(small: Path) -> None:
    x = np.array([0, 0.25, 0.26, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 5.1, 6, 9, -0.8, -2.5, -100, 1.9], np.float32)
    args = (TensorArg("X", "float32", (16,), "in"), TensorArg("Y", "uint8", (16,), "out"))
    found = run_on_host(one("four", args, 16), {"X": x}, folder=small)["Y"]
    kind = numpy_type("fp4")
    wanted = np.clip(x, -6, 6).astype(kind)
    for half in (found & 15, found >> 4):  # by the toolkit's header, and by bits
        np.testing.assert_array_equal(half.view(kind).astype(np.float32), wanted.astype(np.float32))
    numbers = np.arange(16, dtype=np.uint8)
    args = (TensorArg("X", "uint8", (16,), "in"), TensorArg("Y", "float32", (2, 16), "out"))
    values = run_on_host(one("values", args, 16), {"X": numbers}, folder=small)["Y"]
    np.testing.assert_array_equal(values, np.stack([numbers.view(kind).astype(np.float32)] * 2))


def test_barriers_that_cannot_be_passed_are_seen(small: Path) -> None:
    args = (TensorArg("Y", "int32", (64,), "out"),)
    run_on_host(one("uneven", args), {}, folder=small)  # barriers by count, shuffles by warp: this one can
    with pytest.raises(AssertionError, match="wait for each other"):
        run_on_host(one("stuck", args), {}, folder=small)


@pytest.mark.parametrize("name", ["fp4", "int4", "fp8", "bf16", "int32"])
def test_arrays_survive_the_device(name: str) -> None:
    kind = numpy_type(name)
    array = np.random.default_rng(0).integers(-6, 7, (3, 5)).astype(kind)
    stored = to_device(array, name)
    assert stored.size == TensorArg("x", name, (3, 5), "in").bytes
    np.testing.assert_array_equal(from_device(stored, name, (3, 5)), array)


def test_four_bit_elements_fill_a_byte_from_below() -> None:
    array = np.array([1.0, -6.0], dtype=numpy_type("fp4"))
    assert to_device(array, "fp4").tolist() == [0xF2]
    with pytest.raises(ValueError, match="float32"):
        to_device(np.zeros(2, np.float32), "fp4")


def test_an_unknown_operator_is_named() -> None:
    with pytest.raises(OperatorError, match=r"unknown operator 'gem'.*gemm"):
        cuda_program("gem", {})


def test_what_the_cuda_version_cannot_do_is_said() -> None:
    operator = load_operator("attention_decode")
    with pytest.raises(OperatorError, match="up to 256"):
        cuda_program("attention_decode", operator.shape(**{**operator.example, "head_dim": 512}))
