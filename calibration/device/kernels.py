"""Machine code of the kernels that a suite names: tile programs through TileLang, hand-written CUDA."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np

from foretile.hwmodels import Chip
from foretile.kernels.cuda.nvcc import FOLDER, compile_kernel, find_nvcc
from foretile.kernels.cuda.recipe import LaunchRecipe
from foretile.kernels.cuda.registry import cuda_program
from foretile.kernels.ir import TILELANG
from foretile.kernels.operator import Config, Operator, Shape
from foretile.kernels.tilelang import compiler
from foretile.simulator.predictor import target
from foretile.simulator.search import chosen, rank

TILE, CUDA = "foretile/tile", "foretile/cuda"
_SLOWEST = 4.0  # configurations that are predicted to take longer than this, times the best, teach little


@dataclass(frozen=True)
class Compiled:
    """A kernel source at one shape: machine code and recipe of each launch."""

    launches: tuple[tuple[bytes, LaunchRecipe], ...]


class Kernels:
    """Compiles for one architecture; a context manager, since TileLang runs in a process of its own."""

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self._tilelang = compiler.Compiler()

    def __enter__(self) -> Kernels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the compilers."""
        self._tilelang.close()

    def tile(self, operator: Operator, shape: Shape, config: Config) -> Compiled:
        """An operator's tile program in one configuration.

        Raises:
            CompileError: TileLang is missing or refuses the program.
            NvccError: nvcc is missing or refuses what TileLang wrote.
            OperatorError: the operator has no such configuration.
        """
        traced = operator.program(shape, config)
        made = [
            compiler.compile_cuda(program, self.arch, compiler=self._tilelang)
            for program in (traced if isinstance(traced, tuple) else (traced,))
        ]
        return Compiled(tuple((one.cubin, one.recipe) for one in made))

    def cuda(self, operator: Operator, shape: Shape) -> Compiled:
        """An operator's hand-written kernels.

        Raises:
            OperatorError: it has none at this shape.
            NvccError: nvcc is missing or refuses them.
        """
        program = cuda_program(operator.name, shape)
        return Compiled(
            tuple(
                (compile_kernel(FOLDER / source.file, self.arch, source.defines).cubin, recipe)
                for source, recipe in program.launches
            )
        )

    def tools(self) -> dict[str, str]:
        """Versions of the compilers; TileLang's only where it is installed.

        Raises:
            NvccError: there is no nvcc.
        """
        said = subprocess.run([str(find_nvcc()), "--version"], capture_output=True, text=True, check=False)
        version = re.search(r" V(\d[\d.]*)", said.stdout)
        found = {"nvcc": version[1] if version else "unknown"}
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found["tilelang"] = importlib.metadata.version("tilelang")
        return found


def compiled_by_tilelang(operator: Operator) -> Operator:
    """``operator`` as the kernels of :meth:`Kernels.tile` are made, for predictions."""
    return replace(operator, toolchain=TILELANG)


def candidates(
    operator: Operator, shape: Shape, chip: Chip, wanted: int | Sequence[Config]
) -> Iterator[Config]:
    """Configurations to measure, in the order in which they are to be tried.

    A number takes half of them from the best predicted on ``chip``, and the rest evenly over the others that
    are not far slower, so that what is measured tells good configurations from bad ones. More follow, in case
    some do not compile. They are predicted as TileLang compiles them.

    Raises:
        SimulationError: none fits the chip.
    """
    operator = compiled_by_tilelang(operator)
    on = target(operator, shape, chip)
    if not isinstance(wanted, int):
        for config in wanted:
            yield chosen(operator, shape, on.machine, config)
        return
    ranking = rank(operator, shape, on.machine)
    times = ranking.time_s[:, 0]
    order = [int(i) for i in np.argsort(times, kind="stable") if times[i] <= _SLOWEST * times.min()]
    best, rest = order[: -(-wanted // 2)], order[-(-wanted // 2) :]
    count = min(len(rest), wanted // 2)
    spread = [rest[int(i)] for i in np.linspace(0, len(rest) - 1, count)] if count else []
    for i in [*best, *spread, *(i for i in rest if i not in spread)]:
        yield dict(ranking.configs[i])
