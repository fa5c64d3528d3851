"""From CUDA C++ to machine code on a machine without a GPU: find nvcc, compile, read its report, cache.

On a device the same source and the same macros go to NVRTC (``options``), for instance through CuPy's
``RawModule``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from foretile.kernels.whole_files import write_whole

FOLDER = Path(__file__).parent
"""Where the ``.cu`` and ``.cuh`` files are."""

ARCHITECTURES = ("sm_80", "sm_90a", "sm_100a")
"""What every hand-written kernel compiles for."""

_FLAGS = ("-std=c++17", "-O3", "-lineinfo")  # the language first: ``flags`` may name another
_HOW_TO_GET = (
    "nvcc was not found: neither NVCC nor CUDA_HOME is set to one, and none is on PATH; it is part of the "
    "CUDA Toolkit (https://developer.nvidia.com/cuda-downloads) and needs no GPU; then set CUDA_HOME to the "
    "toolkit's folder"
)
_FUNCTION = re.compile(r"Compiling entry function '(?P<symbol>[^']+)' for '(?P<arch>[^']+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


class NvccError(ValueError):
    """nvcc is missing or refused a source; the message says what is wrong and what would help."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a kernel occupies, as ptxas reports it: a thread (registers, stack, spills), a block (shared)."""

    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    static_shared_bytes: int


@dataclass(frozen=True, slots=True)
class Compiled:
    """Machine code for one architecture, and what each of its kernels occupies."""

    arch: str
    cubin: bytes
    resources: Mapping[str, Resources]


def find_nvcc() -> Path:
    """The compiler: ``$NVCC``, one on ``PATH``, or ``$CUDA_HOME/bin/nvcc`` (also ``$CUDA_PATH``).

    Raises:
        NvccError: there is none, or the one named does not exist; the message says how to get one.
    """
    named = os.environ.get("NVCC")
    if named:
        found = shutil.which(named)
        if found is None:
            raise NvccError(f"NVCC={named}: no such program; unset it, or set it to the path of nvcc")
        return Path(found)
    found = shutil.which("nvcc")
    if found is not None:
        return Path(found)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(variable)
        if home and (Path(home) / "bin" / "nvcc").is_file():
            return Path(home) / "bin" / "nvcc"
    raise NvccError(_HOW_TO_GET)


@cache
def _version(nvcc: Path) -> str:
    done = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NvccError(f"{nvcc} does not run: {done.stderr.strip()}")
    return done.stdout


def cache_folder() -> Path:
    """Where compiled kernels are kept: ``$FORETILE_CACHE``, or ``foretile`` in the user's cache folder."""
    named = os.environ.get("FORETILE_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "foretile"


def options(defines: Sequence[tuple[str, str]] = (), include: Sequence[Path] = ()) -> tuple[str, ...]:
    """The command-line options for macros and header folders that nvcc and NVRTC share."""
    folders = (FOLDER, *include)
    return (
        "-std=c++17",
        *(f"-D{name}={value}" for name, value in defines),
        *(f"-I{folder}" for folder in folders),
    )


def compile_kernel(
    source: str | Path,
    arch: str,
    defines: Sequence[tuple[str, str]] = (),
    *,
    include: Sequence[Path] = (),
    flags: Sequence[str] = (),
    use_cache: bool = True,
) -> Compiled:
    """Machine code of ``source`` (a file, or CUDA C++ text) for ``arch`` ("sm_90a").

    ``defines`` are macros, ``include`` folders with headers beside our own, ``flags`` further options.
    The result is kept by the hash of everything it depends on: text, headers of those folders, macros,
    options, architecture and the compiler's version.

    Raises:
        NvccError: no nvcc, or it refused; the message carries its diagnostics.
        OSError: a file that cannot be read, a cache folder that cannot be written.
    """
    nvcc = find_nvcc()
    text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
    standard = any(flag.startswith("-std=") for flag in flags)
    own = _FLAGS[1:] if standard else _FLAGS
    given = (*own, *flags, *(f"-D{name}={value}" for name, value in defines))
    key = _key(text, (_version(nvcc), arch, *given), (FOLDER, *include))
    kept = cache_folder() / "cubin" / key[:2] / key
    if use_cache:
        found = _read(kept, arch)
        if found is not None:
            return found
    made = _run(nvcc, text, source if isinstance(source, Path) else None, arch, given, (FOLDER, *include))
    if use_cache:
        _write(kept, made)
    return made


def _key(text: str, options: Sequence[str], folders: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for part in (text, *options):
        digest.update(part.encode() + b"\0")
    for folder in folders:
        for header in sorted(p for p in folder.rglob("*") if p.suffix in (".cuh", ".h", ".hpp")):
            digest.update(
                header.relative_to(folder).as_posix().encode() + b"\0" + header.read_bytes() + b"\0"
            )
    return digest.hexdigest()


def _run(
    nvcc: Path, text: str, file: Path | None, arch: str, given: Sequence[str], folders: Sequence[Path]
) -> Compiled:
    with tempfile.TemporaryDirectory(prefix="foretile-nvcc-") as scratch:
        source = Path(scratch) / (file.name if file is not None else "kernel.cu")
        source.write_text(text, encoding="utf-8")
        out = Path(scratch) / "kernel.cubin"
        command = [
            *(str(nvcc), "-cubin", f"-arch={arch}", "--resource-usage", *given),
            *(f"-I{folder}" for folder in folders),
            *("-o", str(out), str(source)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        report = done.stdout + done.stderr
        if done.returncode or not out.is_file():
            name = str(file) if file is not None else "the source"
            raise NvccError(f"nvcc refused {name} for {arch}:\n{_shortened(report)}")
        return Compiled(arch, out.read_bytes(), parse_resources(report, arch))


_SHOWN_LINES = 30


def _shortened(report: str) -> str:
    lines = [line for line in report.splitlines() if line.strip() and not line.startswith("ptxas info")]
    more = [f"… and {len(lines) - _SHOWN_LINES} more lines"] if len(lines) > _SHOWN_LINES else []
    return "\n".join(lines[:_SHOWN_LINES] + more)


def parse_resources(report: str, arch: str) -> dict[str, Resources]:
    """What ``--resource-usage`` printed, by kernel, for one architecture.

    Raises:
        NvccError: a kernel without its numbers (a compiler that prints another format).
    """
    found: dict[str, Resources] = {}
    parts = list(_FUNCTION.finditer(report))
    for i, match in enumerate(parts):
        if match["arch"] != arch:
            continue
        end = parts[i + 1].start() if i + 1 < len(parts) else len(report)
        body = report[match.end() : end]
        registers, spills, shared = _REGISTERS.search(body), _SPILLS.search(body), _SHARED.search(body)
        if registers is None:
            raise NvccError(f"nvcc's report has no register count for {match['symbol']}:\n{body.strip()}")
        stack, stores, loads = (int(n) for n in spills.groups()) if spills is not None else (0, 0, 0)
        static = int(shared[1]) if shared is not None else 0
        found[match["symbol"]] = Resources(int(registers[1]), stack, stores, loads, static)
    return found


def _read(kept: Path, arch: str) -> Compiled | None:
    """A kept result, or ``None`` if there is none that can be read whole."""
    try:
        report = json.loads((kept / "resources.json").read_text(encoding="utf-8"))
        cubin = (kept / "kernel.cubin").read_bytes()
        if hashlib.sha256(cubin).hexdigest() != report["sha256"]:
            return None
        return Compiled(arch, cubin, {name: Resources(**r) for name, r in report["kernels"].items()})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(kept: Path, made: Compiled) -> None:
    report = {
        "arch": made.arch,
        "sha256": hashlib.sha256(made.cubin).hexdigest(),
        "kernels": {name: asdict(r) for name, r in made.resources.items()},
    }
    # The report last: a result without it does not exist.
    write_whole(kept / "kernel.cubin", made.cubin)
    write_whole(kept / "resources.json", json.dumps(report))
