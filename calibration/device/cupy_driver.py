"""A GPU through CuPy: memory, stream, events and graphs are CuPy's, launches and tensor maps the driver's."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from foretile.calibration.device.clocks import ClockReader
from foretile.calibration.device.driver import (
    Buffer,
    ClockSample,
    DeviceError,
    DeviceProperties,
    Kernel,
    Parameter,
)
from foretile.calibration.device.libcuda import LibCuda
from foretile.kernels.cuda.recipe import Extent, TensorMapArg

HOW_TO_GET_CUPY = (
    "CuPy is not installed; `pip install cupy-cuda12x` (driver 525 or later) or `pip install cupy-cuda13x` "
    "(driver 580 or later) brings it, see https://docs.cupy.dev/en/stable/install.html"
)


def open_device(index: int = 0) -> CupyDriver:
    """The GPU with that number.

    Raises:
        DeviceError: no CuPy, no driver, or no such device; the message says what would help.
    """
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "cupy":
            raise DeviceError(HOW_TO_GET_CUPY) from None
        raise DeviceError(f"CuPy cannot be imported: {error}") from None
    library = LibCuda()
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(f"no CUDA device can be used: {error}") from None
    if not 0 <= index < count:
        have = f"there are {count}, numbered from 0" if count else "there is none"
        raise DeviceError(f"no device {index}; {have}")
    return CupyDriver(cupy, library, index)


class CupyDriver:
    """See the module; made by :func:`open_device`. Uses the device's primary context, and one stream."""

    def __init__(self, cupy: Any, library: LibCuda, index: int) -> None:
        self._cupy, self._lib = cupy, library
        self._runtime = cupy.cuda.runtime
        cupy.cuda.Device(index).use()
        self._runtime.free(0)  # makes the primary context current
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._stream.use()
        self._modules: dict[bytes, int] = {}
        self._reader = ClockReader(cupy.cuda.Device(index).pci_bus_id)
        self._shared: dict[int, int] = {}
        self._properties = self._described(index)

    def _described(self, index: int) -> DeviceProperties:
        told = self._runtime.getDeviceProperties(index)
        name = told["name"]
        version = int(self._runtime.driverGetVersion())
        return DeviceProperties(
            name=name.decode() if isinstance(name, bytes) else str(name),
            capability=(int(told["major"]), int(told["minor"])),
            cores=int(told["multiProcessorCount"]),
            memory_bytes=int(told["totalGlobalMem"]),
            l2_bytes=int(told["l2CacheSize"]),
            shared_bytes_per_block=int(told["sharedMemPerBlockOptin"]),
            driver=f"{self._reader.driver or 'unknown'} (CUDA {version // 1000}.{version % 1000 // 10})",
        )

    @property
    def properties(self) -> DeviceProperties:
        """What the device says of itself."""
        return self._properties

    @property
    def xp(self) -> Any:
        """CuPy."""
        return self._cupy

    def load(self, cubin: bytes, symbol: str) -> Kernel:
        """A kernel of machine code; the same code is loaded once."""
        module = self._modules.get(cubin)
        if module is None:
            module = self._modules[cubin] = self._lib.load(cubin)
        return Kernel(symbol, self._lib.function(module, symbol))

    def unload(self) -> None:
        """Unload all machine code."""
        self.synchronize()
        for module in self._modules.values():
            self._lib.unload(module)
        self._modules.clear()
        self._shared.clear()

    def allocate(self, size: int) -> Buffer:
        """Plain device memory (cudaMalloc), outside of CuPy's pool."""
        memory = self._asked(lambda: self._cupy.cuda.Memory(size), f"allocating {size} bytes")
        return Buffer(int(memory.ptr), size, memory)

    def free(self, buffer: Buffer) -> None:
        """Give memory back, as soon as nothing uses it any more."""
        if buffer.handle is None:
            raise DeviceError(f"free: the buffer at {buffer.address:#x} has been freed")
        self.synchronize()
        buffer.handle = None  # the memory goes with its last reference

    def fill(self, buffer: Buffer, value: int, start: int = 0, size: int | None = None) -> None:
        """Set bytes."""
        count = self._within(buffer, start, size, "fill")
        address, stream = buffer.address + start, self._stream.ptr
        self._asked(lambda: self._runtime.memsetAsync(address, value, count, stream), "fill")

    def write(self, buffer: Buffer, data: np.ndarray, start: int = 0) -> None:
        """Copy from the host."""
        given = np.ascontiguousarray(data)
        count = self._within(buffer, start, given.nbytes, "write")
        self.synchronize()
        self._copied(buffer.address + start, given.ctypes.data, count, self._runtime.memcpyHostToDevice)

    def read(self, buffer: Buffer, start: int = 0, size: int | None = None) -> np.ndarray:
        """Copy to the host."""
        count = self._within(buffer, start, size, "read")
        found = np.empty(count, np.uint8)
        self.synchronize()
        self._copied(found.ctypes.data, buffer.address + start, count, self._runtime.memcpyDeviceToHost)
        return found

    def _copied(self, target: int, source: int, count: int, direction: int) -> None:
        self._asked(lambda: self._runtime.memcpy(target, source, count, direction), "copy")

    def view(self, buffer: Buffer, dtype: str, shape: tuple[int, ...], start: int = 0) -> Any:
        """The memory as a CuPy array; it keeps the memory alive."""
        self._within(buffer, start, math.prod(shape) * np.dtype(dtype).itemsize, "view")
        pointer = self._cupy.cuda.MemoryPointer(buffer.handle, start)
        return self._cupy.ndarray(shape, dtype=np.dtype(dtype), memptr=pointer)

    def trim(self) -> None:
        """Empty CuPy's memory pool."""
        self.synchronize()
        self._cupy.get_default_memory_pool().free_all_blocks()

    def tensor_map(self, spec: TensorMapArg, buffer: Buffer, start: int = 0) -> bytes:
        """A tensor map's 128 bytes."""
        problems = list(spec.problems())
        if problems:
            raise DeviceError("; ".join(problems))
        return self._lib.tensor_map(spec, buffer.address + start)

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
        """Enqueue one launch."""
        if shared_bytes > self._shared.get(kernel.handle, 0):
            self._lib.allow_shared(kernel.handle, shared_bytes)
            self._shared[kernel.handle] = shared_bytes
        try:
            self._lib.launch(
                kernel.handle,
                grid,
                block,
                parameters,
                cluster=cluster,
                shared_bytes=shared_bytes,
                stream=self._stream.ptr,
            )
        except DeviceError as error:
            raise DeviceError(f"{kernel.symbol}: {error}") from None

    def record(self) -> Any:
        """An event at this place of the stream."""
        event = self._cupy.cuda.Event()
        event.record(self._stream)
        return event

    def elapsed_s(self, start: Any, stop: Any) -> float:
        """Seconds between two events (CuPy says milliseconds)."""
        return float(self._asked(lambda: self._cupy.cuda.get_elapsed_time(start, stop), "events")) / 1e3

    def synchronize(self) -> None:
        """Wait for the stream; an error of a kernel comes to light here."""
        self._asked(self._stream.synchronize, "the device stopped with an error")

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """A graph of what ``enqueue`` asks for."""
        self._stream.begin_capture()
        try:
            enqueue()
        except BaseException:
            self._stream.end_capture()
            raise
        return self._stream.end_capture()

    def replay(self, graph: Any) -> None:
        """Enqueue a graph."""
        graph.launch(self._stream)

    def clocks(self) -> ClockSample | None:
        """State of the device now."""
        return self._reader.sample()

    def close(self) -> None:
        """Unload, and let go of NVML."""
        self.unload()
        self.trim()
        self._reader.close()

    def _within(self, buffer: Buffer, start: int, size: int | None, action: str) -> int:
        """Bytes from ``start``, after a check that they are the buffer's."""
        count = buffer.size - start if size is None else size
        if buffer.handle is None:
            raise DeviceError(f"{action}: the buffer at {buffer.address:#x} has been freed")
        if start < 0 or count < 0 or start + count > buffer.size:
            raise DeviceError(
                f"{action}: bytes {start} to {start + count} of a buffer of {buffer.size} are out of range"
            )
        return count

    def _asked(self, action: Callable[[], Any], what: str) -> Any:
        """The answer of CuPy, whose errors become ours."""
        try:
            return action()
        except (self._runtime.CUDARuntimeError, self._cupy.cuda.memory.OutOfMemoryError) as error:
            raise DeviceError(f"{what}: {error}") from None
