"""From a tile program to CUDA C++ and machine code with the installed TileLang, on a machine without a GPU.

TileLang runs in a process of its own that is ended when it takes too long, and what it made is kept by the
hash of everything it depends on, so that nothing is compiled twice.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from foretile.kernels.cuda.nvcc import Resources, cache_folder, compile_kernel
from foretile.kernels.cuda.recipe import LaunchRecipe
from foretile.kernels.ir import TileProgram
from foretile.kernels.tilelang.compiled import CompileError, Decisions, Generated
from foretile.kernels.tilelang.export import source as text_of
from foretile.kernels.tilelang.merge import one_pipeline
from foretile.kernels.tilelang.versions import TileLangMissing, require
from foretile.kernels.whole_files import write_whole

Stop = Literal["prim_func", "layouts", "cuda"]
PassConfigs = Mapping[str, bool | int | str]

ARCHITECTURES = ("sm_80", "sm_89", "sm_90a", "sm_100a")
WORKER = (sys.executable, "-m", "foretile.kernels.tilelang.compile_worker")
"""The command of the process in which TileLang runs."""
_WHAT = "compiling a tile program"
_FORMAT = 2  # of what is kept
_START_S = 600.0  # importing TileLang and torch on a slow disk


def _version() -> str:
    return require(_WHAT)


def check_architecture(arch: str) -> str:
    """``arch`` if kernels can be generated for it.

    Raises:
        CompileError: it is none of :data:`ARCHITECTURES`.
    """
    if arch not in ARCHITECTURES:
        raise CompileError(f"architecture {arch!r} is not one of {', '.join(ARCHITECTURES)}")
    return arch


class Compiler:
    """TileLang in a process of its own; a context manager that ends it.

    ``timeout_s`` is for one program. The process is started by the first program that is not kept
    (``use_cache``), serves all others, and is started anew after a timeout. ``only_kept``: it is never
    started.
    """

    def __init__(self, timeout_s: float = 600.0, use_cache: bool = True, only_kept: bool = False) -> None:
        self.timeout_s = timeout_s
        self.use_cache = use_cache
        self.only_kept = only_kept
        self._process: subprocess.Popen[str] | None = None
        self._said: IO[bytes] | None = None  # what the process writes to its standard error

    def __enter__(self) -> Compiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        if self._said is not None:
            self._said.close()
            self._said = None

    # -- what programs become -----------------------------------------------------------------

    def prim_func(self, program: TileProgram) -> str:
        """The text of TileLang's own ``PrimFunc`` of a program.

        Raises:
            CompileError, TraceError: TileLang is missing or refuses the program.
        """
        return str(self._ask(program, "prim_func", "", {})["script"])

    def decisions(
        self, program: TileProgram, arch: str, pass_configs: PassConfigs | None = None
    ) -> Decisions:
        """Warp roles, pipelines and layouts: the compiler's first passes only (a tenth of a second).

        Raises:
            CompileError, TraceError: TileLang is missing, refuses the program or does not finish in time.
        """
        check_architecture(arch)
        asked = one_pipeline(program)
        answer = self._ask(asked, "layouts", arch, pass_configs or {})
        return Decisions.read(answer["layouts"], asked)

    def generate(self, program: TileProgram, arch: str, pass_configs: PassConfigs | None = None) -> Generated:
        """Device source and launch: all of the compiler's passes (seconds).

        Raises:
            CompileError, TraceError: TileLang is missing, refuses the program or does not finish in time.
        """
        check_architecture(arch)
        asked = one_pipeline(program)
        answer = self._ask(asked, "cuda", arch, pass_configs or {})
        return Generated(
            asked,
            arch,
            answer["source"],
            answer["launch"],
            Decisions.read(answer["layouts"], asked),
            answer["instructions"],
        )

    def has(self, program: TileProgram, arch: str) -> bool:
        """Whether the device source of a program is kept."""
        return _kept(_request(one_pipeline(program), "cuda", arch, {})).is_file()

    # -- the process --------------------------------------------------------------------------

    def _ask(self, program: TileProgram, stop: Stop, arch: str, pass_configs: PassConfigs) -> dict[str, Any]:
        request = _request(program, stop, arch, pass_configs)
        kept = _kept(request)
        answer = _read(kept) if self.use_cache else None
        if answer is None:
            answer = self._answer(request, program.name)
            if self.use_cache:
                _write(kept, answer)
        if "error" in answer:
            where = f" for {arch}" if arch else ""
            raise CompileError(f"TileLang {_version()} refused {program.name}{where}: {answer['error']}")
        return answer

    def _answer(self, request: Mapping[str, Any], name: str) -> dict[str, Any]:
        if self.only_kept:
            raise CompileError(f"{name} has not been compiled before")
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # its end is told below
        return self._line(process.stdout, self.timeout_s, f"compiling {name}")

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            _version()
            self._said = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the process; close() ends both)
            self._process = subprocess.Popen(
                WORKER,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )
            assert self._process.stdout is not None
            self._line(self._process.stdout, _START_S, "starting TileLang")
        return self._process

    def _line(self, stream: IO[str], timeout_s: float, doing: str) -> dict[str, Any]:
        """One answer. The process is ended where none comes."""
        with selectors.DefaultSelector() as waiting:
            waiting.register(stream, selectors.EVENT_READ)
            ready = waiting.select(timeout_s)
        line = stream.readline() if ready else ""
        if not line:
            reason = (
                f"its process ended{self._last_words()}" if ready else f"it took more than {timeout_s:g} s"
            )
            self.close()
            raise CompileError(f"TileLang {_version()}, {doing}: {reason}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        """The last line of the process's standard error, which may be long."""
        assert self._said is not None
        self._said.seek(max(0, os.fstat(self._said.fileno()).st_size - 4096))
        lines = self._said.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last[:300]}" if last else ""


def switches(program: TileProgram, given: PassConfigs) -> dict[str, Any]:
    """The compiler's switches: those noted in the program (``pass:tl.…``), and those ``given`` over them."""
    noted = {k.removeprefix("pass:"): v for k, v in program.annotations if k.startswith("pass:")}
    return {**{name: ast.literal_eval(value) for name, value in noted.items()}, **given}


def _request(program: TileProgram, stop: Stop, arch: str, pass_configs: PassConfigs) -> dict[str, Any]:
    return {
        "source": text_of(program),
        "name": program.name,
        "stop": stop,
        "arch": arch,
        "pass_configs": switches(program, pass_configs),
    }


def _kept(request: Mapping[str, Any]) -> Path:
    what = json.dumps([_FORMAT, _version(), request], sort_keys=True)
    return cache_folder() / "tilelang" / f"{hashlib.sha256(what.encode()).hexdigest()}.json"


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """A program's machine code for one architecture, how it is launched and what it occupies."""

    generated: Generated
    cubin: bytes
    recipe: LaunchRecipe
    resources: Resources

    @property
    def source(self) -> str:
        """The CUDA C++ text."""
        return self.generated.source

    @property
    def symbol(self) -> str:
        """The kernel's name."""
        return self.generated.symbol

    @property
    def problems(self) -> list[str]:
        """Why a device of this architecture would refuse the launch; empty if it would not."""
        digits = "".join(c for c in self.generated.arch if c.isdigit())
        capability = (int(digits[:-1]), int(digits[-1]))
        return self.recipe.problems(capability, self.resources.static_shared_bytes)


def compile_cuda(
    program: TileProgram,
    arch: str,
    pass_configs: PassConfigs | None = None,
    *,
    sizes: Mapping[str, int] | None = None,
    compiler: Compiler | None = None,
) -> CompiledKernel:
    """``program`` through TileLang and nvcc to machine code for ``arch`` ("sm_90a").

    ``sizes``: the values of the program's symbolic dimensions for the launch (the machine code serves
    all of them). ``compiler``: a running one, where several programs are compiled.

    Raises:
        CompileError, TraceError: TileLang is missing, refuses the program or does not finish in time.
        NvccError: nvcc is missing or refuses what TileLang wrote.
    """
    if compiler is None:
        with Compiler() as own:
            return compile_cuda(program, arch, pass_configs, sizes=sizes, compiler=own)
    generated = compiler.generate(program, arch, pass_configs)
    recipe = generated.recipe(**(sizes or {}))
    made = compile_kernel(generated.source, arch, flags=flags(switches(program, pass_configs or {})))
    return CompiledKernel(generated, made.cubin, recipe, made.resources[generated.symbol])


def flags(pass_configs: PassConfigs) -> tuple[str, ...]:
    """What TileLang itself passes to nvcc (its ``cuda/backend.py``), the folders of its headers included."""
    spec = importlib.util.find_spec("tilelang")
    if spec is None or spec.origin is None:
        raise TileLangMissing(_WHAT)
    root = Path(spec.origin).parent
    level = pass_configs.get("tl.ptxas_register_usage_level")
    return (
        *("-std=c++20", "-w", f"-I{root / 'src'}", f"-I{root / '3rdparty' / 'cutlass' / 'include'}"),
        f"-DFORETILE_TILELANG={_version()}",  # part of what the kept machine code is known by
        *(["--use_fast_math"] if pass_configs.get("tl.enable_fast_math") else []),
        *([f"--ptxas-options=--register-usage-level={level}"] if level is not None else []),
    )


def _read(kept: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):
        return None


def _write(kept: Path, answer: Mapping[str, Any]) -> None:
    write_whole(kept, json.dumps(answer))
