"""A device that is none: accepts and refuses what a GPU of its compute capability would, computes on the CPU.

Measurement code is tested against it, and a bundle is checked with it before any device time is spent. Its
times are made up, and everything it produces is marked as simulated.

Limits: CUDA C++ Programming Guide 13.0, "Technical Specifications per Compute Capability" (threads and
registers of a block, registers of a thread, shared memory, clusters).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretile.calibration.device.cubin import CubinError, CubinKernel, read_cubin
from foretile.calibration.device.driver import (
    TENSOR_MAP_BYTES,
    Buffer,
    ClockSample,
    DeviceError,
    DeviceProperties,
    Kernel,
    Parameter,
    Pointer,
)
from foretile.kernels.cuda.recipe import SHARED_BYTES, Extent, LaunchRecipe, TensorMapArg
from foretile.kernels.dtypes import dtype

_REGISTERS_PER_BLOCK = 64 * 1024
_REGISTER_UNIT = 256  # registers are given to a warp in multiples of this
_WARP = 32
_ALIGNMENT = 256  # of cudaMalloc ("Device Memory Accesses")
_FRESH = 0xA5  # what memory holds before anybody writes to it


@dataclass(frozen=True)
class Execution:
    """One launch, as a function that plays the kernel sees it."""

    driver: FakeDriver
    symbol: str
    grid: Extent
    block: Extent
    parameters: tuple[Parameter, ...]

    def array(self, index: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """The memory that parameter ``index`` points to."""
        pointer = self.parameters[index]
        assert isinstance(pointer, Pointer), f"parameter {index} of {self.symbol} is no address"
        return self.driver.view(pointer.buffer, dtype, shape, pointer.start)

    def number(self, index: int, dtype: str) -> float:
        """The number that parameter ``index`` is."""
        value = self.parameters[index]
        assert isinstance(value, bytes), f"parameter {index} of {self.symbol} is no number"
        return float(np.frombuffer(value, dtype)[0])

    def mapped(self, index: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """The memory that parameter ``index``, a tensor map, describes."""
        value = self.parameters[index]
        assert isinstance(value, bytes), f"parameter {index} of {self.symbol} is no tensor map"
        buffer, start = self.driver.mapped[value]
        return self.driver.view(buffer, dtype, shape, start)


Executor = Callable[[Execution], None]


@dataclass
class _Graph:
    """Work that was captured: what is to be carried out, in order."""

    steps: list[Callable[[], None]] = field(default_factory=list)


class FakeDriver:
    """See the module. ``executors`` play kernels by symbol; others are checked and do nothing.

    ``seconds(symbol)`` is how long a launch takes on the made-up clock, ``samples()`` what
    :meth:`clocks` answers. Without ``backed`` memory has addresses and sizes but no content, so that
    launches of any size can be checked.
    """

    def __init__(
        self,
        capability: tuple[int, int] = (9, 0),
        executors: Mapping[str, Executor] | None = None,
        *,
        memory_bytes: int = 64 << 30,
        seconds: Callable[[str], float] = lambda symbol: 1e-5,
        samples: Callable[[], ClockSample | None] = lambda: None,
        backed: bool = True,
    ) -> None:
        if capability not in SHARED_BYTES:
            known = ", ".join(f"{major}.{minor}" for major, minor in SHARED_BYTES)
            raise DeviceError(f"compute capability {capability[0]}.{capability[1]} is not one of {known}")
        self._properties = DeviceProperties(
            name=f"no device (checks for sm_{capability[0]}{capability[1]})",
            capability=capability,
            cores=1,
            memory_bytes=memory_bytes,
            l2_bytes=1 << 20,
            shared_bytes_per_block=SHARED_BYTES[capability],
            driver="none",
            simulated=True,
        )
        self._executors = dict(executors or {})
        self._seconds, self._samples, self._backed = seconds, samples, backed
        self._memory: dict[int, tuple[Buffer, np.ndarray | None]] = {}
        self._next_address = 1 << 33
        self._loaded: dict[int, CubinKernel] = {}
        self._now_s = 0.0
        self._capturing: _Graph | None = None
        self.mapped: dict[bytes, tuple[Buffer, int]] = {}
        self.launches: list[tuple[str, Extent]] = []

    @property
    def properties(self) -> DeviceProperties:
        """What the device that is none says of itself."""
        return self._properties

    @property
    def xp(self) -> Any:
        """NumPy."""
        return np

    # Machine code ------------------------------------------------------------------------------------

    def load(self, cubin: bytes, symbol: str) -> Kernel:
        """A kernel, after a look at its machine code."""
        self._outside_of_capture("loading machine code")
        try:
            kernels = read_cubin(cubin)
        except CubinError as error:
            raise DeviceError(f"CUDA_ERROR_INVALID_IMAGE: {error}") from None
        if symbol not in kernels:
            have = ", ".join(kernels) or "none"
            raise DeviceError(f"CUDA_ERROR_NOT_FOUND: no kernel {symbol}; the cubin holds: {have}")
        found = kernels[symbol]
        major, minor = found.capability
        if not self._properties.runs(f"sm_{major}{minor}"):
            raise DeviceError(
                f"CUDA_ERROR_NO_BINARY_FOR_GPU: {symbol} is machine code for sm_{major}{minor}; "
                f"the device is {self._properties.arch}"
            )
        kernel = Kernel(symbol)
        kernel.handle = id(kernel)
        self._loaded[id(kernel)] = found
        return kernel

    def unload(self) -> None:
        """Forget all kernels."""
        self._loaded.clear()

    # Memory ------------------------------------------------------------------------------------------

    def allocate(self, size: int) -> Buffer:
        """Memory at an address of its own; bytes between buffers belong to nobody."""
        self._outside_of_capture("allocating memory")
        if size < 1:
            raise DeviceError(f"{size} bytes cannot be allocated; at least one is needed")
        used = sum(buffer.size for buffer, _ in self._memory.values())
        if used + size > self._properties.memory_bytes:
            raise DeviceError(
                f"cudaErrorMemoryAllocation: {size} bytes beside {used} in use; the device has "
                f"{self._properties.memory_bytes}"
            )
        buffer = Buffer(self._next_address, size)
        self._next_address += -(-(size + 1) // _ALIGNMENT) * _ALIGNMENT
        content = np.full(size, _FRESH, np.uint8) if self._backed else None
        self._memory[buffer.address] = (buffer, content)
        return buffer

    def free(self, buffer: Buffer) -> None:
        """Give memory back; twice is refused."""
        self._outside_of_capture("freeing memory")
        self._alive(buffer, "free")
        del self._memory[buffer.address]

    def fill(self, buffer: Buffer, value: int, start: int = 0, size: int | None = None) -> None:
        """Set bytes."""
        if not 0 <= value <= 255:
            raise DeviceError(f"fill: {value} is no byte (0 to 255)")
        count = buffer.size - start if size is None else size
        self._range(buffer, start, count, "fill")

        def step() -> None:
            content = self._alive(buffer, "fill")
            if content is not None:
                content[start : start + count] = value

        self._do(step)

    def write(self, buffer: Buffer, data: np.ndarray, start: int = 0) -> None:
        """Copy from the host."""
        self._outside_of_capture("copying from the host")
        given = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        self._range(buffer, start, given.size, "write")
        content = self._alive(buffer, "write")
        if content is not None:
            content[start : start + given.size] = given

    def read(self, buffer: Buffer, start: int = 0, size: int | None = None) -> np.ndarray:
        """Copy to the host."""
        self._outside_of_capture("copying to the host")
        count = buffer.size - start if size is None else size
        self._range(buffer, start, count, "read")
        return self._content(buffer, "read")[start : start + count].copy()

    def view(self, buffer: Buffer, dtype: str, shape: tuple[int, ...], start: int = 0) -> np.ndarray:
        """The memory itself, as an array."""
        wanted = np.dtype(dtype)
        count = math.prod(shape) * wanted.itemsize
        self._range(buffer, start, count, "view")
        if start % wanted.itemsize:
            raise DeviceError(f"view: {start} bytes into a buffer is no place for a {wanted.name}")
        return self._content(buffer, "view")[start : start + count].view(wanted).reshape(shape)

    def trim(self) -> None:
        """Nothing to give back."""

    def _alive(self, buffer: Buffer, action: str) -> np.ndarray | None:
        held = self._memory.get(buffer.address)
        if held is None or held[0] is not buffer:
            raise DeviceError(f"{action}: the buffer at {buffer.address:#x} has been freed")
        return held[1]

    def _content(self, buffer: Buffer, action: str) -> np.ndarray:
        content = self._alive(buffer, action)
        if content is None:
            raise DeviceError(f"{action}: this device checks launches only; its memory has no content")
        return content

    def _range(self, buffer: Buffer, start: int, count: int, action: str) -> None:
        self._alive(buffer, action)
        if start < 0 or count < 0 or start + count > buffer.size:
            raise DeviceError(
                f"{action}: bytes {start} to {start + count} of a buffer of {buffer.size} are out of range"
            )

    # Launches ----------------------------------------------------------------------------------------

    def tensor_map(self, spec: TensorMapArg, buffer: Buffer, start: int = 0) -> bytes:
        """Bytes that stand for the descriptor, after every rule of ``cuTensorMapEncodeTiled``."""
        problems = list(spec.problems())
        if self._properties.capability < (9, 0):
            problems.append(f"tensor maps need compute capability 9.0, not {self._properties.arch}")
        self._alive(buffer, "tensor map")
        address, step = buffer.address + start, 32 if spec.interleave == "32B" else 16
        if address % step:
            problems.append(f"tensor map of {spec.tensor}: address {address:#x} is not a multiple of {step}")
        if not problems and start + _spanned(spec) > buffer.size:
            problems.append(
                f"tensor map of {spec.tensor}: it spans {_spanned(spec)} bytes from {start} of a buffer of "
                f"{buffer.size}"
            )
        if problems:
            raise DeviceError(f"CUDA_ERROR_INVALID_VALUE: {'; '.join(problems)}")
        number = len(self.mapped) + 1
        encoded = number.to_bytes(8, "little") + bytes([0xC7]) * (TENSOR_MAP_BYTES - 8)
        self.mapped[encoded] = (buffer, start)
        return encoded

    def launch(
        self,
        kernel: Kernel,
        grid: Extent,
        block: Extent,
        parameters: Sequence[Parameter],
        *,
        cluster: Extent = (1, 1, 1),
        shared_bytes: int = 0,
    ) -> None:
        """Check the launch against the machine code and the device's limits, then play the kernel."""
        if kernel.handle not in self._loaded:
            raise DeviceError(f"CUDA_ERROR_INVALID_HANDLE: {kernel.symbol} is not loaded (any more)")
        found, given = self._loaded[kernel.handle], tuple(parameters)
        problems = LaunchRecipe(kernel.symbol, grid, block, (), cluster, shared_bytes).problems(
            self._properties.capability, found.static_shared_bytes
        )
        problems += _code_problems(found, grid, block, cluster)
        problems += _parameter_problems(found, given)
        if problems:
            raise DeviceError(f"{kernel.symbol}: {'; '.join(problems)}")
        self._reachable(kernel.symbol, given)
        execution = Execution(self, kernel.symbol, grid, block, given)

        def step() -> None:
            self._reachable(kernel.symbol, given)  # a graph may outlive its buffers
            self.launches.append((kernel.symbol, grid))
            self._now_s += self._seconds(kernel.symbol)
            play = self._executors.get(kernel.symbol)
            if play is not None and self._backed:
                play(execution)

        self._do(step)

    def _reachable(self, symbol: str, parameters: tuple[Parameter, ...]) -> None:
        """Refuse addresses that no memory is behind."""
        for i, value in enumerate(parameters):
            place = self.mapped.get(value) if isinstance(value, bytes) else (value.buffer, value.start)
            if place is None:
                continue
            self._alive(place[0], f"{symbol}: parameter {i}")
            if not 0 <= place[1] < place[0].size:
                raise DeviceError(
                    f"{symbol}: parameter {i}: {place[1]} is outside of a buffer of {place[0].size}"
                )

    # Time --------------------------------------------------------------------------------------------

    def record(self) -> Any:
        """A place on the made-up clock, filled in when the work before it is done."""
        place: list[float] = []
        self._do(lambda: place.append(self._now_s))
        return place

    def elapsed_s(self, start: Any, stop: Any) -> float:
        """Made-up seconds."""
        if not start or not stop:
            raise DeviceError("cudaErrorNotReady: an event that has not been recorded")
        return float(stop[-1] - start[-1])

    def synchronize(self) -> None:
        """Everything is done at once here."""
        self._outside_of_capture("waiting for the device")

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """Keep what is asked for, without carrying it out."""
        self._outside_of_capture("capturing another graph")
        self._capturing = graph = _Graph()
        try:
            enqueue()
        finally:
            self._capturing = None
        return graph

    def replay(self, graph: Any) -> None:
        """Carry out what was captured."""
        for step in graph.steps:
            self._do(step)

    def clocks(self) -> ClockSample | None:
        """What ``samples`` says."""
        return self._samples()

    def close(self) -> None:
        """Forget everything."""
        self._memory.clear()
        self._loaded.clear()

    def _do(self, step: Callable[[], None]) -> None:
        if self._capturing is not None:
            self._capturing.steps.append(step)
        else:
            step()

    def _outside_of_capture(self, action: str) -> None:
        if self._capturing is not None:
            raise DeviceError(f"cudaErrorStreamCaptureUnsupported: {action} while a graph is captured")


def checking_driver(arch: str) -> FakeDriver:
    """A driver that checks launches of any size for ``arch`` ("sm_90a")."""
    digits = arch.removeprefix("sm_").rstrip("af")
    return FakeDriver((int(digits[:-1]), int(digits[-1])), memory_bytes=1 << 60, backed=False)


def _spanned(spec: TensorMapArg) -> int:
    """Bytes from the first element of the tensor to behind its last."""
    row = -(-spec.global_dim[0] * dtype(spec.dtype).bits // 8)
    steps = zip(spec.global_dim[1:], spec.global_strides_bytes, strict=True)
    return row + sum((extent - 1) * stride for extent, stride in steps)


def _code_problems(found: CubinKernel, grid: Extent, block: Extent, cluster: Extent) -> list[str]:
    """What the kernel's machine code does not allow."""
    threads, problems = math.prod(block), []
    if found.required_block is not None and block != found.required_block:
        problems.append(f"block {block}; the kernel was compiled for {found.required_block}")
    if found.most_threads is not None and threads > found.most_threads:
        problems.append(f"a block of {threads} threads; its launch bounds are {found.most_threads}")
    if found.registers is not None:
        warps = -(-threads // _WARP)
        taken = warps * (-(-found.registers * _WARP // _REGISTER_UNIT) * _REGISTER_UNIT)
        if taken > _REGISTERS_PER_BLOCK:
            problems.append(
                f"{threads} threads of {found.registers} registers; a block may have {_REGISTERS_PER_BLOCK}"
            )
    if found.cluster is not None:
        if cluster not in ((1, 1, 1), found.cluster):
            problems.append(f"cluster {cluster}; the kernel was compiled for {found.cluster}")
        elif any(g % c for g, c in zip(grid, found.cluster, strict=True)):
            problems.append(f"grid {grid} is not a multiple of cluster {found.cluster}")
    return problems


def _parameter_problems(found: CubinKernel, given: tuple[Parameter, ...]) -> list[str]:
    """Parameters whose number or sizes are not the kernel's."""
    if found.parameters is None:
        return []
    if len(given) != len(found.parameters):
        return [f"{len(given)} parameters; the kernel takes {len(found.parameters)}"]
    problems = []
    for i, (value, (_, size)) in enumerate(zip(given, found.parameters, strict=True)):
        bytes_given = len(value) if isinstance(value, bytes) else 8
        if bytes_given != size:
            problems.append(f"parameter {i} has {bytes_given} bytes; the kernel takes {size}")
    return problems
