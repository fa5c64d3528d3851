"""What host code holds as a compiled kernel: it runs on the CPU, and can be timed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from foretile.hosted.launch import Launch
from foretile.hosted.tensors import put_back, to_array
from foretile.kernels.dtypes import DTYPES
from foretile.kernels.errors import TraceError
from foretile.kernels.expr import evaluate, variables
from foretile.kernels.ir import TileProgram
from foretile.kernels.rewrite import bind
from foretile.kernels.tilelang import from_prim_func
from foretile.simulator.machine import SimulationError
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.execute import buffers_written, execute

if TYPE_CHECKING:
    from foretile.hosted.session import Session

_MADE = object()
_MISSING = object()


class Kernel:
    """What host code holds as a compiled kernel. ``programs``: one a launch; None if it was not imported.

    ``latency`` (milliseconds, predicted), ``config`` and ``ref_latency`` are what a tuner has found.
    """

    latency: float | None = None
    config: dict[str, Any] | None = None
    ref_latency: float | None = None

    def __init__(self, session: Session, func: Any, out_idx: Any, pass_configs: Mapping[str, Any]) -> None:
        self.prim_func = func
        self.pass_configs = dict(pass_configs)
        self._parameters = list(func.params)
        count = len(self._parameters)
        indices = [] if out_idx is None else [out_idx] if isinstance(out_idx, int) else list(out_idx)
        self.out_idx = [int(i) % count for i in indices]
        self.programs: tuple[TileProgram, ...] | None = None
        self._session = session
        self._last: tuple[bytes, dict[str, np.ndarray]] | None = None
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

    @property
    def params(self) -> list[Any]:
        """The parameters as TileLang's profiler takes them: type and shape."""
        from tilelang.engine.param import KernelParam

        buffers = self.prim_func.buffer_map
        return [
            KernelParam.from_buffer(buffers[p]) if p in buffers else KernelParam.from_var(p)
            for p in self._parameters
        ]

    @property
    def kernel_source(self) -> str:
        """As :meth:`get_kernel_source`."""
        return self.get_kernel_source()

    @property
    def adapter(self) -> Kernel:
        """What calls the compiled code: the kernel itself."""
        return self

    def get_kernel_source(self, kernel_only: bool = True) -> str:
        """TileLang's text of the kernel: nothing was compiled."""
        return str(self.prim_func.script())

    def get_host_source(self) -> str:
        """Nothing was compiled, so there is no code that launches it."""
        return ""

    def show_source(self, which: str = "kernel") -> None:
        """Print :meth:`get_kernel_source`."""
        print(self.get_kernel_source())

    print_source_code = show_source

    def get_profiler(self, tensor_supply_type: Any = None) -> Any:
        """TileLang's profiler on this kernel: it draws operands, compares, and times.

        Times are predictions.
        """
        from tilelang.profiler import Profiler, TensorSupplyType

        supply = TensorSupplyType.Auto if tensor_supply_type is None else tensor_supply_type
        return Profiler(self.params, list(self.out_idx), supply).with_default_adapter(self)

    def predicted_s(self) -> float:
        """How long it takes on the session's chip by the cost model, as a tuner asks.

        Raises:
            SimulationError: it does not fit, or tensors decide how long it takes.
        """
        if self.programs is None:
            raise SimulationError(f"{self.name} was not imported")
        return Launch(self.name, self.programs, {}).predict(self._session.chip, model="cost_model").time_s

    def run_once(self, func: Any = None) -> None:
        """Run it on operands that TileLang's profiler draws."""
        self.get_profiler().run_once(func)

    def update_tuner_result(
        self, latency: float, config: dict[str, Any], ref_latency: float | None = None
    ) -> Kernel:
        """Keep what a tuner has found."""
        self.latency, self.config, self.ref_latency = latency, config, ref_latency
        return self

    def get_tuner_result(self) -> dict[str, Any]:
        """What a tuner has found."""
        return {"latency": self.latency, "config": self.config, "ref_latency": self.ref_latency}

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
        whole = len(given) + len(by_name) == len(self._parameters)  # also tensors that would be made
        for i, parameter in enumerate(self._parameters):
            name = parameter.name.removesuffix("_handle")
            if i in self.out_idx and not whole:
                pairs.append((parameter, _MADE))
            elif name in by_name:
                pairs.append((parameter, by_name[name]))
            else:
                value = next(left, _MISSING)
                if value is _MISSING:
                    wanted = len(self._parameters) - len(self.out_idx)
                    raise TypeError(
                        f"{self.name} takes {wanted} arguments, {len(given) + len(by_name)} given"
                    )
                pairs.append((parameter, value))
        numbers = self._numbers(pairs)
        outputs = []
        for i, (parameter, value) in enumerate(pairs):
            if value is _MADE:
                buffer = self.prim_func.buffer_map[parameter]
                made = _empty(buffer, self._shape(buffer, numbers))
                pairs[i] = (parameter, made)
                outputs.append(made)
        return pairs, [pairs[i][1] for i in self.out_idx] if outputs else []

    def _shape(self, buffer: Any, numbers: Mapping[str, Any]) -> list[int]:
        """The shape of a tensor to be made; extents may be sums and quotients of symbolic ones."""
        ours = [p.shape for program in self.programs or () for p in program.params if p.name == buffer.name]
        if ours:
            return [int(evaluate(extent, numbers)) for extent in ours[0]]
        return [int(numbers[e.name]) if hasattr(e, "name") else int(e) for e in buffer.shape]

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
        integers = {n: a for n, a in arrays.items() if a.dtype.kind in "iub"}  # masks are of bytes
        launch = Launch(self.name, bound, integers)
        changed = set().union(*map(buffers_written, bound))
        if self._session.timing and changed.isdisjoint(integers):
            self._session.timing[-1].append(launch)  # only integers can decide how long what follows takes
            return
        left = self._repeated(arrays, numbers)
        self._session.launched(launch)
        if left is None:
            done = execute(bound, arrays, outputs=())
            left = done.tensors
            ran = replace(launch, undefined=done.undefined, counted=done.trips)
            self._session.launched(ran, instead=launch)
            self._last = (_digest(arrays, numbers), left)
        for name, array in left.items():
            if name in tensors:
                put_back(array, tensors[name], wanted[name])

    def _repeated(
        self, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any]
    ) -> dict[str, np.ndarray] | None:
        """What the last call left, if this one is the same bit for bit (loops that measure)."""
        if self._last is not None and self._last[0] == _digest(arrays, numbers):
            return self._last[1]
        return None

    def _array(self, name: str, tensor: Any, dtype: str) -> np.ndarray:
        bits = tensor.element_size() * 8
        if bits != DTYPES[dtype].bits and not (DTYPES[dtype].bits == 4 and bits == 8):
            raise NumericsError(f"{self.name} takes {name} as {dtype}; it was given {tensor.dtype}")
        return to_array(tensor, dtype)


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


def _empty(buffer: Any, shape: Sequence[int]) -> Any:
    import torch
    from tilelang.engine.param import KernelParam

    return torch.zeros(list(shape), dtype=KernelParam.from_buffer(buffer).torch_dtype())


def _digest(arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any]) -> bytes:
    """A fingerprint of what a call was given."""
    told = hashlib.blake2b(repr(sorted(numbers.items())).encode(), digest_size=16)
    for name in sorted(arrays):
        told.update(f"{name} {arrays[name].shape} {arrays[name].dtype}".encode())
        told.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
    return told.digest()
