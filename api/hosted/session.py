"""TileLang's host code without a GPU: every kernel it launches is run on the CPU and can be predicted.

The kernels, and the Python around them, stay as they are: under :func:`hosted` a package that believes in
its GPU computes with foretile's numerics.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from foretile.foreign import device_of
from foretile.hosted.tensors import put_back, to_array
from foretile.hwmodels import Chip, load_chip
from foretile.kernels.dtypes import DTYPES
from foretile.kernels.errors import TraceError
from foretile.kernels.expr import evaluate, variables
from foretile.kernels.ir import TileProgram
from foretile.kernels.rewrite import bind
from foretile.kernels.tilelang import from_prim_func, probes, renames
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.execute import execute

if TYPE_CHECKING:
    from foretile.simulator.prediction import Prediction

Failure = Callable[[str, Exception], None]


@dataclass(frozen=True)
class Launch:
    """One call of a kernel: its programs (one a launch), and the integer tensors it was given, by name.

    ``undefined``: by tensor, elements that it left depending on memory that nothing had written (padding
    that nobody reads, or a fault).
    """

    name: str
    programs: tuple[TileProgram, ...]
    integers: Mapping[str, np.ndarray]
    undefined: Mapping[str, np.ndarray] = field(default_factory=dict)

    def predict(self, chip: str | Chip) -> Prediction:
        """How long it takes on ``chip``; data-dependent loops take the trip counts of this very call.

        Raises:
            ChipError, SimulationError: as for :func:`foretile.predict`.
        """
        from foretile.frontdoor import predict

        used = {p.name for program in self.programs for p in program.params}
        return predict(
            self.programs, chip, tensors={n: a for n, a in self.integers.items() if n in used} or None
        )


@dataclass
class Session:
    """What happened under :func:`hosted`.

    ``kernels``: in the order they were made; ``launches``: in the order they ran. ``failed``: told of
    kernels that could not be imported or executed.
    """

    chip: Chip
    kernels: list[Kernel] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    failed: Failure | None = None

    def failure(self, kernel: str, error: Exception) -> None:
        """Raise ``error``, or tell who asked to be told."""
        if self.failed is None:
            raise error
        self.failed(kernel, error)


@contextmanager
def hosted(chip: str | Chip = "h200-sxm", *, failed: Failure | None = None) -> Iterator[Session]:
    """While it lasts, TileLang's kernels run on the CPU, and torch's CUDA device is ``chip``.

    Torch tensors made "on cuda" are CPU tensors. ``failed`` is called with the name of a kernel that could
    not be imported or executed, and why; the host code then goes on with what its outputs held. Without
    it the error is raised.

    Raises:
        TraceError: a kernel that cannot be imported.
        NumericsError: a kernel that cannot be executed, or does what a chip leaves undefined.
    """
    jit = importlib.import_module("tilelang.jit")  # `tilelang.jit` itself is the decorator
    session = Session(chip if isinstance(chip, Chip) else load_chip(chip), failed=failed)

    def made(func: Any, out_idx: Any = None, pass_configs: Any = None, **_compiling: Any) -> Kernel:
        return Kernel(session, func, out_idx, pass_configs or {})

    device = device_of(session.chip)
    renames.apply()
    compiled: list[Any] = []
    compile_ = jit.JITImpl.compile

    def noted(function: Any, *args: Any, **kwargs: Any) -> Any:
        compiled.append(function)
        return compile_(function, *args, **kwargs)

    with (
        probes.answered(device),
        probes.target_of(device),
        mock.patch.object(jit, "cached", made),
        mock.patch.object(jit.JITImpl, "compile", noted),
    ):
        try:
            yield session
        finally:
            for function in compiled:  # or a later call would find kernels made here
                function._kernel_cache.clear()
                function._call_form_cache.clear()


class Kernel:
    """What host code holds as a compiled kernel. ``programs``: one a launch; None if it was not imported."""

    def __init__(self, session: Session, func: Any, out_idx: Any, pass_configs: Mapping[str, Any]) -> None:
        self.prim_func = func
        self.params = list(func.params)
        count = len(self.params)
        indices = [] if out_idx is None else [out_idx] if isinstance(out_idx, int) else list(out_idx)
        self.out_idx = [int(i) % count for i in indices]
        self.programs: tuple[TileProgram, ...] | None = None
        self._session = session
        session.kernels.append(self)
        try:
            found = from_prim_func(func, pass_configs)
            self.programs = found if isinstance(found, tuple) else (found,)
        except TraceError as error:
            session.failure(self.name, error)

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.prim_func.attrs["global_symbol"])

    def get_kernel_source(self) -> str:
        """TileLang's text of the kernel: nothing was compiled."""
        return str(self.prim_func.script())

    def __call__(self, *given: Any, **by_name: Any) -> Any:
        """Run the kernel on torch tensors and numbers; what it returns is what the compiled one would."""
        arguments, outputs = self._arguments(given, by_name)
        if self.programs is not None:
            try:
                self._run(self.programs, arguments)
            except NumericsError as error:
                self._session.failure(self.name, error)
        return outputs[0] if len(outputs) == 1 else outputs or None

    def _arguments(
        self, given: Sequence[Any], by_name: Mapping[str, Any]
    ) -> tuple[list[tuple[Any, Any]], list[Any]]:
        """Every parameter beside what it was given; tensors to be returned are made here."""
        left = iter(given)
        pairs: list[tuple[Any, Any]] = []
        for i, parameter in enumerate(self.params):
            if i in self.out_idx:
                pairs.append((parameter, _MADE))
            else:
                name = parameter.name.removesuffix("_handle")
                pairs.append((parameter, by_name[name] if name in by_name else next(left)))
        numbers = self._numbers(pairs)
        outputs = []
        for i, (parameter, value) in enumerate(pairs):
            if value is _MADE:
                made = _empty(self.prim_func.buffer_map[parameter], numbers)
                pairs[i] = (parameter, made)
                outputs.append(made)
        return pairs, [pairs[i][1] for i in self.out_idx] if outputs else []

    def _numbers(self, pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
        """Symbolic extents and strides, from the tensors; scalars, as they were given."""
        import torch

        numbers: dict[str, Any] = {}
        for parameter, value in pairs:
            buffer = self.prim_func.buffer_map.get(parameter)
            if buffer is None:
                if value is not _MADE:
                    numbers[parameter.name] = value
                continue
            if not isinstance(value, torch.Tensor):
                continue
            for wanted, found in (
                *zip(buffer.shape, value.shape, strict=False),
                *zip(buffer.strides, value.stride(), strict=False),
            ):
                if hasattr(wanted, "name"):
                    numbers.setdefault(wanted.name, int(found))
        return numbers

    def _run(self, programs: tuple[TileProgram, ...], pairs: Sequence[tuple[Any, Any]]) -> None:
        import torch

        numbers = self._numbers(pairs)
        wanted = {p.name: p.dtype for program in programs for p in program.params}
        names = {id(p): self.prim_func.buffer_map[p].name for p, _ in pairs if p in self.prim_func.buffer_map}
        tensors = {
            names[id(p)]: value for p, value in pairs if id(p) in names and isinstance(value, torch.Tensor)
        }
        arrays = {n: self._array(n, t, wanted[n]) for n, t in tensors.items() if n in wanted}
        bound = tuple(_bound(program, numbers, arrays) for program in programs)
        integers = {n: a for n, a in arrays.items() if a.dtype.kind in "iu" and a.dtype.itemsize >= 4}
        self._session.launches.append(Launch(self.name, bound, integers))
        left = execute(bound, arrays, outputs=())
        self._session.launches[-1] = Launch(self.name, bound, integers, left.undefined)
        for name, array in left.tensors.items():
            if name in tensors:
                put_back(array, tensors[name], wanted[name])

    def _array(self, name: str, tensor: Any, dtype: str) -> np.ndarray:
        bits = tensor.element_size() * 8
        if bits != DTYPES[dtype].bits and not (DTYPES[dtype].bits == 4 and bits == 8):
            raise NumericsError(f"{self.name} takes {name} as {dtype}; it was given {tensor.dtype}")
        return to_array(tensor, dtype)


_MADE = object()


def _bound(program: TileProgram, numbers: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> TileProgram:
    free = {v.name for v in (*program.dims, *program.scalars)}
    known = {**{name: n for name, n in numbers.items() if name in free}, **_solved(program, numbers, arrays)}
    # A tensor that was not given (None) leaves its extents open; nothing of it is used.
    return bind(program, {name: known.get(name, 1) for name in free}, smallest=0)


def _solved(
    program: TileProgram, numbers: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, int]:
    """Dimensions that no tensor has by themselves, from extents like ``n + 1``."""
    found: dict[str, int] = {}
    for p in program.params:
        for extent, size in zip(p.shape, arrays[p.name].shape if p.name in arrays else (), strict=False):
            left = [name for name in variables(extent) if name not in numbers and name not in found]
            if len(left) != 1:
                continue
            known = {**numbers, **found}
            at = [int(evaluate(extent, {**known, left[0]: n})) for n in (0, 1)]
            if at[1] != at[0]:
                found[left[0]] = (size - at[0]) // (at[1] - at[0])
    return found


def _empty(buffer: Any, numbers: Mapping[str, Any]) -> Any:
    import torch

    shape = [int(numbers[e.name]) if hasattr(e, "name") else int(e) for e in buffer.shape]
    return torch.zeros(shape, dtype=getattr(torch, str(buffer.dtype)))
