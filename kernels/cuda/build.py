"""Machine code of CUDA programs: by nvcc, or where there is none by the NVRTC that comes with CuPy."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from foretile.kernels.cuda.nvcc import FOLDER, NvccError, compile_kernel, find_nvcc, options
from foretile.kernels.cuda.recipe import CudaProgram, LaunchRecipe

_OWN_FEATURES = ((9, 0), (10, 0), (10, 3), (12, 0), (12, 1))  # that have instructions of an "a" architecture


def architecture(capability: tuple[int, int]) -> str:
    """What to compile for on a device of this compute capability: ``sm_90a`` for (9, 0).

    CUDA C++ Programming Guide 13.0, "Architecture-Specific Features".
    """
    return f"sm_{capability[0]}{capability[1]}{'a' if capability in _OWN_FEATURES else ''}"


def machine_code(program: CudaProgram, arch: str) -> tuple[tuple[bytes, LaunchRecipe], ...]:
    """The program's launches with machine code for ``arch``.

    Raises:
        NvccError: there is neither nvcc nor CuPy, or the compiler refuses a source; the message says how to
            get one, or carries its diagnostics.
    """
    made = []
    for source, recipe in program.launches:
        file = FOLDER / source.file
        made.append((_cubin(file, arch, source.defines), recipe))
    return tuple(made)


def _cubin(file: Path, arch: str, defines: Sequence[tuple[str, str]]) -> bytes:
    try:
        find_nvcc()
    except NvccError as missing:
        try:
            nvrtc = importlib.import_module("cupy.cuda").nvrtc
        except ImportError:
            raise NvccError(f"{missing}; CuPy, whose compiler would do as well, is not installed") from None
        return nvrtc_cubin(nvrtc, file, arch, defines)
    return compile_kernel(file, arch, defines).cubin


def nvrtc_cubin(nvrtc: Any, file: Path, arch: str, defines: Sequence[tuple[str, str]] = ()) -> bytes:
    """Machine code of ``file`` by NVRTC, ``nvrtc`` being CuPy's binding of it (``cupy.cuda.nvrtc``).

    The toolkit's headers (cuda_fp8.h and others) are looked for under ``$CUDA_HOME``, ``$CUDA_PATH`` and in
    the packages that NVIDIA distributes them in.

    Raises:
        NvccError: NVRTC refuses the source; the message carries its log.
    """
    given = [*options(defines, tuple(header_folders())), f"--gpu-architecture={arch}", "-default-device"]
    made = nvrtc.createProgram(file.read_text(encoding="utf-8"), file.name, (), ())
    try:
        nvrtc.compileProgram(made, tuple(given))
    except Exception as error:  # NVRTCError, whose class only CuPy's binding has
        log = nvrtc.getProgramLog(made)
        raise NvccError(f"NVRTC refused {file} for {arch}: {error}\n{log}") from None
    cubin: bytes = nvrtc.getCUBIN(made)
    return cubin


def header_folders() -> Iterator[Path]:
    """Folders that hold the CUDA toolkit's headers."""
    places = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for package in ("nvidia.cuda_runtime", "nvidia.cu13", "nvidia.cu12"):
        try:
            found = importlib.util.find_spec(package)
        except ImportError:
            continue
        places += [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    places.append(Path("/usr/local/cuda"))
    for place in places:
        if (place / "include" / "cuda_fp16.h").is_file():
            yield place / "include"
