"""What reaches the CUDA driver, by way of a library that is compiled against its header and notes it down."""

from __future__ import annotations

import ctypes
import subprocess

import pytest

from foretile.calibration.device.driver import Buffer, DeviceError, Pointer
from foretile.calibration.device.libcuda import LibCuda
from foretile.kernels.cuda.nvcc import NvccError, find_nvcc
from foretile.kernels.cuda.recipe import TensorMapArg

# Parameters are 8 bytes, 4 bytes and 128 bytes in the test's launch.
NOTEBOOK = r"""
#include <cuda.h>
#include <stdio.h>
#include <string.h>
#include <stdint.h>
char notes[4096];
#define NOTE(...) snprintf(notes + strlen(notes), sizeof notes - strlen(notes), __VA_ARGS__)
CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **params, void **extra) {
    NOTE("grid %u %u %u block %u %u %u shared %u stream %p function %p extra %d ", c->gridDimX, c->gridDimY,
         c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ, c->sharedMemBytes, (void *)c->hStream,
         (void *)f, extra != NULL);
    for (unsigned i = 0; i < c->numAttrs; ++i)
        NOTE("attribute %d %u %u %u ", c->attrs[i].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
             c->attrs[i].value.clusterDim.x, c->attrs[i].value.clusterDim.y, c->attrs[i].value.clusterDim.z);
    NOTE("pointer %llx number %d map %d aligned %d", *(unsigned long long *)params[0], *(int *)params[1],
         ((unsigned char *)params[2])[127], (int)((uintptr_t)params[2] % 64));
    return CUDA_SUCCESS;
}
CUresult cuTensorMapEncodeTiled(CUtensorMap *m, CUtensorMapDataType t, cuuint32_t rank, void *address,
    const cuuint64_t *dim, const cuuint64_t *strides, const cuuint32_t *box, const cuuint32_t *steps,
    CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2,
    CUtensorMapFloatOOBfill fill) {
    NOTE("bf16 %d rank %u at %p dim", t == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank, address);
    for (unsigned i = 0; i < rank; ++i) NOTE(" %llu", (unsigned long long)dim[i]);
    for (unsigned i = 0; i + 1 < rank; ++i) NOTE(" stride %llu", (unsigned long long)strides[i]);
    for (unsigned i = 0; i < rank; ++i) NOTE(" box %u step %u", box[i], steps[i]);
    NOTE(" enums %d%d%d%d", interleave == CU_TENSOR_MAP_INTERLEAVE_NONE,
         swizzle == CU_TENSOR_MAP_SWIZZLE_128B,
         l2 == CU_TENSOR_MAP_L2_PROMOTION_L2_256B, fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA);
    memset(m, 0, sizeof *m);
    ((unsigned char *)m)[127] = 42;
    return (uintptr_t)m % 64 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int value) {
    NOTE("shared %d %d", a == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, value);
    return value > 232448 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule *m, const void *image) {
    if (memcmp(image, "a\0b", 3)) return CUDA_ERROR_INVALID_IMAGE;
    *m = (CUmodule)0x77;
    return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name) {
    *f = (CUfunction)0x99;
    return m == (CUmodule)0x77 && !strcmp(name, "kernel") ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
CUresult cuGetErrorName(CUresult e, const char **text) {
    *text = e == CUDA_ERROR_NOT_FOUND ? "NOT_FOUND"
          : e == CUDA_ERROR_INVALID_VALUE ? "INVALID_VALUE" : "OTHER";
    return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult e, const char **text) { *text = "in words"; return CUDA_SUCCESS; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    try:
        nvcc = find_nvcc()
    except NvccError as error:
        pytest.skip(str(error).partition(":")[0])
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "notebook.c").write_text(NOTEBOOK, encoding="utf-8")
    out = folder / "notebook.so"
    options = ["-shared", "-cudart", "none", "-Xcompiler", "-fPIC"]
    command = [str(nvcc), *options, "-o", str(out), str(folder / "notebook.c")]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(out))


@pytest.fixture
def noted(library: ctypes.CDLL) -> object:
    notes = (ctypes.c_char * 4096).in_dll(library, "notes")
    notes.value = b""
    return lambda: notes.value.decode()


def test_a_launch_arrives_as_it_was_meant(library: ctypes.CDLL, noted: object) -> None:
    given = (
        Pointer(Buffer(0x7F0000000000, 64), 16),
        (-5).to_bytes(4, "little", signed=True),
        bytes(range(128)),
    )
    LibCuda(library).launch(
        0x99, (1, 2, 3), (128, 2, 1), given, cluster=(2, 1, 1), shared_bytes=200_000, stream=0x55
    )
    assert noted() == (  # type: ignore[operator]
        "grid 1 2 3 block 128 2 1 shared 200000 stream 0x55 function 0x99 extra 0 attribute 1 2 1 1 "
        "pointer 7f0000000010 number -5 map 127 aligned 0"
    )


def test_without_a_cluster_there_is_no_attribute(library: ctypes.CDLL, noted: object) -> None:
    given = (Pointer(Buffer(0x10, 64)), bytes(4), bytes(128))
    LibCuda(library).launch(0x99, (1, 1, 1), (32, 1, 1), given, cluster=(1, 1, 1), shared_bytes=0, stream=0)
    assert "attribute" not in noted()  # type: ignore[operator]


def test_a_tensor_map_arrives_as_it_was_meant(library: ctypes.CDLL, noted: object) -> None:
    spec = TensorMapArg(
        *("X", "bfloat16", 3, (64, 4096, 7), (128, 1 << 33), (64, 128, 1), (1, 2, 1)),
        swizzle="128B",
        l2_promotion="256B",
        oob_fill="nan",
    )
    encoded = LibCuda(library).tensor_map(spec, 0x7F0000001000)
    assert (len(encoded), encoded[127]) == (128, 42)
    assert noted() == (  # type: ignore[operator]
        "bf16 1 rank 3 at 0x7f0000001000 dim 64 4096 7 stride 128 stride 8589934592 "
        "box 64 step 1 box 128 step 2 box 1 step 1 enums 1111"
    )


def test_errors_carry_the_drivers_words(library: ctypes.CDLL) -> None:
    driver = LibCuda(library)
    module = driver.load(b"a\0b")
    assert driver.function(module, "kernel") == 0x99
    with pytest.raises(DeviceError, match=r"cuModuleGetFunction: NOT_FOUND: in words \(500\)"):
        driver.function(module, "other")
    with pytest.raises(DeviceError, match="cuModuleLoadData: OTHER"):
        driver.load(b"abc")
    driver.allow_shared(0x99, 232448)
    with pytest.raises(DeviceError, match="cuFuncSetAttribute: INVALID_VALUE"):
        driver.allow_shared(0x99, 232449)
    with pytest.raises(DeviceError, match="too old"):
        driver.unload(module)  # the notebook lacks this one
