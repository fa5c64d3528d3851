"""Runs the CUDA versions on the CPU: their source compiled by a host compiler against ``host_device.hpp``."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretile.kernels.cuda.nvcc import FOLDER, NvccError, cache_folder, find_nvcc
from foretile.kernels.cuda.recipe import CudaProgram, KernelSource, LaunchRecipe, ScalarArg, TensorArg
from foretile.kernels.cuda.storage import from_device, to_device

HERE = Path(__file__).parent / "host"
_FLAGS = ("-x", "c++", "-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-DFORETILE_HOST")
_SCALARS = {
    "int32": ctypes.c_int32, "uint32": ctypes.c_uint32, "int64": ctypes.c_int64, "uint64": ctypes.c_uint64,
    "float32": ctypes.c_float, "float64": ctypes.c_double,
}  # fmt: skip
_GUARD = 64  # bytes behind every tensor that nobody may write
_Key = tuple[str, tuple[tuple[str, str], ...], Path]
_loaded: dict[tuple[_Key, frozenset[str]], Any] = {}
_exported: dict[_Key, set[str]] = {}


def foresee(programs: Iterable[CudaProgram], folder: Path = FOLDER) -> None:
    """Tell which kernels will be run, so that those of a file are compiled together."""
    for program in programs:
        for source, _ in program.launches:
            _exported.setdefault((source.file, source.defines, folder), set()).add(source.symbol)


@cache
def toolkit_headers() -> Path:
    """Where cuda_fp8.h and its like are; skips the test without them or without a host compiler."""
    if shutil.which("g++") is None:
        pytest.skip("g++ was not found: the kernels cannot be compiled for the host")
    try:
        nvcc = find_nvcc().resolve()
    except NvccError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [str(nvcc), "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True, check=False
    )
    for word in done.stderr.replace('"', " ").split():
        folder = Path(word.removeprefix("-I"))
        if word.startswith("-I") and (folder / "cuda_fp8.h").is_file():
            return folder
    pytest.skip("the CUDA toolkit's headers were not found beside nvcc")


def _library(source: KernelSource, folder: Path) -> Any:
    """The kernel's file with its macros, as a shared library that exports its kernels' launches."""
    file = (source.file, source.defines, folder)
    symbols = _exported.setdefault(file, set())
    symbols.add(source.symbol)
    key = (file, frozenset(symbols))
    if key not in _loaded:
        text = (folder / source.file).read_text() + "".join(f"\nEXPORT({s})" for s in sorted(symbols)) + "\n"
        headers = toolkit_headers()
        defines = [f"-D{name}={value}" for name, value in source.defines]
        files = sorted([*folder.glob("*.cuh"), *HERE.glob("*.hpp")])
        parts = (text, *defines, *_FLAGS, *(p.read_text() for p in files))
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        made = cache_folder() / "host" / f"{digest}.so"
        if not made.exists():
            made.parent.mkdir(parents=True, exist_ok=True)
            temporary = made.with_suffix(f".{os.getpid()}")
            include = [f"-I{where}" for where in (folder, HERE, headers)]
            done = subprocess.run(
                ["g++", *_FLAGS, *defines, *include, "-o", str(temporary), "-"],
                input=text, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{source.file} for the host:\n{done.stderr[:4000]}"
            temporary.replace(made)
        _loaded[key] = ctypes.CDLL(str(made))
    return _loaded[key]


def host_launch(
    source: KernelSource,
    grid: Sequence[int],
    block: Sequence[int],
    shared_bytes: int,
    values: Sequence[Any],
    seed: int,
    folder: Path,
) -> None:
    """One launch; ``values`` are its parameters as ctypes objects."""
    library = _library(source, folder)
    pointers = (ctypes.c_void_p * len(values))(
        *[ctypes.cast(ctypes.byref(v), ctypes.c_void_p) for v in values]
    )
    three = ctypes.c_int * 3
    where = three()
    failed = getattr(library, f"launch_{source.symbol}")(
        three(*grid), three(*block), ctypes.c_int(shared_bytes), ctypes.c_uint64(seed), pointers, where
    )
    assert not failed, f"{source.symbol}: threads of block {tuple(where)} wait for each other for ever"


def _parameters(recipe: LaunchRecipe, memory: Mapping[str, np.ndarray]) -> list[Any]:
    values: list[Any] = []
    for arg in recipe.args:
        if isinstance(arg, TensorArg):
            values.append(ctypes.c_void_p(memory[arg.name].ctypes.data))
        else:
            assert isinstance(arg, ScalarArg)
            values.append(_SCALARS[arg.ctype](arg.value))
    return values


def run_on_host(
    program: CudaProgram, inputs: Mapping[str, np.ndarray], seed: int = 1, folder: Path = FOLDER
) -> dict[str, np.ndarray]:
    """All tensors of the program after its launches, by name; ``folder`` has the sources.

    Results start poisoned (bytes of 0xff), workspace is zero, and no byte behind a tensor may change.
    """
    memory: dict[str, np.ndarray] = {}
    for tensor in program.tensors:
        whole = np.full(tensor.bytes + _GUARD + 16, 0xA5, np.uint8)
        whole = whole[-whole.ctypes.data % 16 :][: tensor.bytes + _GUARD]
        if tensor.role in ("in", "inout") and tensor.name in inputs:
            given = inputs[tensor.name]
            assert given.shape == tensor.shape, f"{tensor.name}: {given.shape}, not {tensor.shape}"
            whole[: tensor.bytes] = to_device(given, tensor.dtype)
        else:
            assert tensor.role != "in", f"nobody gives {tensor.name}"
            whole[: tensor.bytes] = 0 if tensor.role == "scratch" else 0xFF
        memory[tensor.name] = whole
    before = {t.name: memory[t.name][: t.bytes].copy() for t in program.tensors if t.role == "in"}
    for source, recipe in program.launches:
        assert recipe.problems(source.capability) == []
        values = _parameters(recipe, memory)
        host_launch(source, recipe.grid, recipe.block, recipe.shared_bytes, values, seed, folder)
    for tensor in program.tensors:
        assert (memory[tensor.name][tensor.bytes :] == 0xA5).all(), f"written behind {tensor.name}"
        if tensor.role == "in":
            assert np.array_equal(memory[tensor.name][: tensor.bytes], before[tensor.name]), tensor.name
    return {t.name: from_device(memory[t.name][: t.bytes], t.dtype, t.shape) for t in program.tensors}
