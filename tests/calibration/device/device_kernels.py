"""Small kernels for the tests of the runner, and how they are compiled (or why they are not)."""

from __future__ import annotations

import pytest

from foretile.calibration.device.fake import Execution
from foretile.kernels.cuda.nvcc import Compiled, NvccError, compile_kernel

SOURCE = """
struct __align__(64) Map { char opaque[128]; };
extern "C" __global__ void __launch_bounds__(256) scale(const float* x, float* y, int n, float factor) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = factor * x[i];
}
extern "C" __global__ void staged(const float* x, float* y, double d, char c) {
    __shared__ float fixed[64];
    extern __shared__ float given[];
    fixed[threadIdx.x % 64] = x[threadIdx.x] + c;
    __syncthreads();
    given[threadIdx.x] = fixed[0];
    y[0] = given[1] + d;
}
extern "C" __global__ void nothing() {}
"""
HOPPER_SOURCE = (
    SOURCE
    + """
extern "C" __global__ void __cluster_dims__(2, 1, 1) paired(float* y) { y[blockIdx.x] = 1.0f; }
extern "C" __global__ void mapped(const __grid_constant__ Map map, float* y) { y[0] = map.opaque[0]; }
"""
)


def machine_code(arch: str = "sm_90a") -> bytes:
    """The kernels above for ``arch``; skips the test where there is no nvcc."""
    return compiled(arch).cubin


def compiled(arch: str) -> Compiled:
    """The kernels with the compiler's report."""
    try:
        return compile_kernel(SOURCE if arch == "sm_80" else HOPPER_SOURCE, arch)
    except NvccError as error:
        if "not found" in str(error):
            pytest.skip(str(error).partition(":")[0])
        raise


def play_scale(run: Execution) -> None:
    """What the kernel ``scale`` does, on the CPU, grid and all."""
    n = int(run.number(2, "int32"))
    x, y = run.array(0, "float32", (n,)), run.array(1, "float32", (n,))
    factor = run.number(3, "float32")
    reached = min(n, run.grid[0] * run.block[0])
    y[:reached] = factor * x[:reached]
