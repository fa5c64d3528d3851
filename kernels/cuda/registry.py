"""The CUDA version of every operator that has one: which kernels, launched how, for a shape.

A module ``launch_*.py`` beside this one describes a family; being there is all it takes. Its functions get an
operator's name, the resolved shape and the tile program's tensors, so that both versions take the same ones.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import foretile.kernels.cuda as package
from foretile.kernels.cuda.recipe import Argument, CudaProgram, KernelSource, LaunchRecipe, Role, TensorArg
from foretile.kernels.dtypes import dtype
from foretile.kernels.expr import Const
from foretile.kernels.operator import OperatorError, Shape, load_operator

Launch = tuple[KernelSource, LaunchRecipe]


@dataclass(frozen=True)
class Tensors:
    """The tensors of an operator's tile program at one shape: canonical dtype and shape by name."""

    known: Mapping[str, tuple[str, tuple[int, ...]]]

    def __contains__(self, name: str) -> bool:
        return name in self.known

    def dtype(self, name: str) -> str:
        """Short name of a tensor's type ("bf16")."""
        return dtype(self.known[name][0]).short

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self.known[name][1]

    def arg(self, name: str, role: Role = "in") -> TensorArg:
        """The tensor as a kernel's parameter."""
        kind, shape = self.known[name]
        return TensorArg(name, kind, shape, role)

    def ins(self, names: str) -> tuple[Argument, ...]:
        """Tensors that are read, their names separated by spaces."""
        return tuple(self.arg(name) for name in names.split())

    def outs(self, names: str) -> tuple[Argument, ...]:
        """Tensors that are written, their names separated by spaces."""
        return tuple(self.arg(name, "out") for name in names.split())


Maker = Callable[[str, Shape, Tensors], Sequence[Launch]]
_MAKERS: dict[str, Maker] = {}


def cuda_version(*operators: str) -> Callable[[Maker], Maker]:
    """Register what makes the launches of ``operators``."""

    def register(maker: Maker) -> Maker:
        for name in operators:
            assert name not in _MAKERS, f"{name} has two CUDA versions"
            _MAKERS[name] = maker
        return maker

    return register


@cache
def _load() -> None:
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("launch_"):
            importlib.import_module(f"foretile.kernels.cuda.{module.name}")


def cuda_operators() -> tuple[str, ...]:
    """Names of the operators that have a CUDA version, sorted."""
    _load()
    return tuple(sorted(_MAKERS))


def cuda_program(operator: str, shape: Shape) -> CudaProgram:
    """The CUDA version of ``operator`` at a resolved shape (``load_operator(name).shape(...)``).

    Raises:
        OperatorError: the operator is unknown, or has no CUDA version (at this shape); the message says
            which have one, or which shapes do.
    """
    tensors = program_tensors(operator, shape)
    _load()
    if operator not in _MAKERS:
        raise OperatorError(f"{operator} has no CUDA version; these do: {', '.join(cuda_operators())}")
    return CudaProgram(operator, tuple(_MAKERS[operator](operator, shape, tensors)))


def program_tensors(operator: str, shape: Shape) -> Tensors:
    """The global tensors of an operator's (first) tile program at a resolved shape, workspace included.

    Raises:
        OperatorError: the operator is unknown.
    """
    loaded = load_operator(operator)
    traced = loaded.program(shape, dict(loaded.configs(shape)[0]))
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for program in traced if isinstance(traced, tuple) else (traced,):
        for buffer in program.params:
            extents = tuple(int(e.value) for e in buffer.shape if isinstance(e, Const))
            if len(extents) == len(buffer.shape):
                found.setdefault(buffer.name, (dtype(buffer.dtype).name, extents))
    return Tensors(found)


def launch(
    source: KernelSource,
    grid: Sequence[int],
    threads: int,
    args: Sequence[Argument],
    shared_bytes: int = 0,
) -> Launch:
    """One launch of ``source`` on a grid of one to three extents and blocks of ``threads``."""
    x, y, z = (*grid, 1, 1)[:3]
    return source, LaunchRecipe(
        source.symbol, (x, y, z), (threads, 1, 1), tuple(args), shared_bytes=shared_bytes
    )


OUT_TYPES = {"fp32": 0, "fp16": 1, "bf16": 2, "fp8": 3, "int32": 4}
"""Numbers by which a launch names the type of its result (``OutType`` in foretile.cuh)."""


def ceildiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)
