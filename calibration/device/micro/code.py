"""Machine code of the microbenchmarks: by nvcc where there is one, else by the NVRTC that CuPy brings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from foretile.calibration.device.driver import DeviceError
from foretile.kernels.cuda.nvcc import NvccError, compile_kernel, find_nvcc

FOLDER = Path(__file__).parent
FILES: dict[str, tuple[str, ...]] = {
    "memory.cu": ("sm_80", "sm_90a", "sm_100a"),
    "latency.cu": ("sm_80", "sm_90a", "sm_100a"),
    "shared.cu": ("sm_80", "sm_90a", "sm_100a"),
    "vector.cu": ("sm_80", "sm_90a", "sm_100a"),
    "matrix.cu": ("sm_80", "sm_90a", "sm_100a"),
    "wgmma.cu": ("sm_90a",),
    "tcgen05.cu": ("sm_100a",),
    "sync.cu": ("sm_80", "sm_90a", "sm_100a"),
    "bulk.cu": ("sm_80", "sm_90a", "sm_100a"),
    "launch.cu": ("sm_80", "sm_90a", "sm_100a"),
}
"""The sources, each with the architectures it is compiled for in the tests (where it holds any kernel)."""
_HEADER = "micro.cuh"


def compiler(arch: str, xp: Any = None) -> Callable[[str], bytes]:
    """A function from a source's file name to machine code for ``arch``; ``xp`` is CuPy, for its NVRTC.

    Raises:
        DeviceError: there is neither nvcc nor NVRTC, or (when called) one refuses the source.
    """
    try:
        find_nvcc()
    except NvccError as error:
        nvrtc = getattr(getattr(xp, "cuda", None), "nvrtc", None)
        if nvrtc is None:
            raise DeviceError(f"nothing to compile the microbenchmarks with: {error}") from None
        return lambda file: _by_nvrtc(nvrtc, file, arch)
    return lambda file: compile_kernel(FOLDER / file, arch, include=(FOLDER,)).cubin


def _by_nvrtc(nvrtc: Any, file: str, arch: str) -> bytes:
    source = (FOLDER / file).read_text(encoding="utf-8")
    header = (FOLDER / _HEADER).read_text(encoding="utf-8")
    program = nvrtc.createProgram(source, file, (header,), (_HEADER,))
    try:
        nvrtc.compileProgram(program, (f"--gpu-architecture={arch}", "-std=c++17"))
        return bytes(nvrtc.getCUBIN(program))
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise DeviceError(f"NVRTC refused {file} for {arch}: {error}\n{log}") from None
    finally:
        nvrtc.destroyProgram(program)
