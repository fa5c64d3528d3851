"""As much of CuPy as the runner uses, on the host's memory: one stream, events on a made-up clock.

Names are those of CuPy 14; ``test_device_cupy.py`` compares them with CuPy where it is installed.
"""

from __future__ import annotations

import ctypes
import types
from typing import Any

import numpy as np

from foretile.calibration.device.driver import DeviceError, Pointer


class HostError(RuntimeError):
    """CUDARuntimeError."""


class Runtime(types.SimpleNamespace):
    """``cupy.cuda.runtime``."""

    CUDARuntimeError = HostError
    memcpyHostToDevice, memcpyDeviceToHost = 1, 2
    devices = 1

    def getDeviceCount(self) -> int:
        if self.devices < 0:
            raise HostError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return self.devices

    def getDeviceProperties(self, index: int) -> dict[str, Any]:
        return {
            "name": b"NVIDIA H200",
            "major": 9,
            "minor": 0,
            "multiProcessorCount": 132,
            "totalGlobalMem": 140 << 30,
            "l2CacheSize": 1 << 20,
            "sharedMemPerBlockOptin": 232448,
        }

    def driverGetVersion(self) -> int:
        return 13000

    def free(self, address: int) -> None:
        assert address == 0

    def memsetAsync(self, address: int, value: int, count: int, stream: int) -> None:
        Stream.current.do(lambda: ctypes.memset(address, value, count))

    def memcpy(self, target: int, source: int, count: int, direction: int) -> None:
        ctypes.memmove(target, source, count)


class Memory:
    """``cupy.cuda.Memory``."""

    def __init__(self, size: int) -> None:
        if size > 1 << 30:
            raise OutOfMemoryError(size)
        self.store = ctypes.create_string_buffer(size + 256)
        self.ptr = -(-ctypes.addressof(self.store) // 256) * 256


class OutOfMemoryError(MemoryError):
    """``cupy.cuda.memory.OutOfMemoryError``."""


class MemoryPointer:
    """``cupy.cuda.MemoryPointer``."""

    def __init__(self, mem: Memory, offset: int) -> None:
        self.mem, self.offset = mem, offset


def ndarray(shape: tuple[int, ...], dtype: Any, memptr: MemoryPointer) -> np.ndarray:
    """``cupy.ndarray`` over given memory."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = (ctypes.c_ubyte * size).from_address(memptr.mem.ptr + memptr.offset)
    return np.frombuffer(raw, np.uint8).view(dtype).reshape(shape)


class Graph:
    """``cupy.cuda.Graph``."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def launch(self, stream: Any = None) -> None:
        for step in self.steps:
            step()


class Stream:
    """``cupy.cuda.Stream``; work is done at once, or kept while a graph is captured."""

    current: Any = None
    now_s = 0.0

    def __init__(self, non_blocking: bool = False) -> None:
        self.ptr, self.graph = 0x55, None

    def use(self) -> Stream:
        Stream.current = self
        return self

    def do(self, step: Any) -> None:
        if self.graph is not None:
            self.graph.steps.append(step)
        else:
            step()

    def begin_capture(self, mode: Any = None) -> None:
        self.graph = Graph()

    def end_capture(self) -> Graph:
        found, self.graph = self.graph, None
        assert found is not None
        return found

    def synchronize(self) -> None:
        if self.graph is not None:
            raise HostError("cudaErrorStreamCaptureUnsupported")


class Event:
    """``cupy.cuda.Event``."""

    at_s = 0.0

    def record(self, stream: Any = None) -> None:
        self.at_s = Stream.now_s


class Device:
    """``cupy.cuda.Device``."""

    pci_bus_id = "0000:00:00.0"

    def __init__(self, index: int) -> None:
        self.index = index

    def use(self) -> Device:
        return self


class HostLibrary:
    """In the place of the driver's library: kernels are functions of the parameters, by symbol."""

    def __init__(self, plays: dict[str, Any]) -> None:
        self.plays, self.loaded, self.allowed = plays, 0, dict[str, int]()

    def load(self, cubin: bytes) -> int:
        self.loaded += 1
        return 0x77

    def unload(self, module: int) -> None:
        assert module == 0x77

    def function(self, module: int, symbol: str) -> str:
        if symbol not in self.plays:
            raise DeviceError(f"cuModuleGetFunction: {symbol}")
        return symbol

    def allow_shared(self, function: str, size: int) -> None:
        self.allowed[function] = size

    def tensor_map(self, spec: Any, address: int) -> bytes:
        return bytes(128)

    def launch(self, function: str, grid: Any, block: Any, parameters: Any, **more: Any) -> None:
        def step() -> None:
            Stream.now_s += 1e-5
            addresses = [p.buffer.address + p.start if isinstance(p, Pointer) else p for p in parameters]
            self.plays[function](grid, *addresses)

        Stream.current.do(step)


class HostCupy(types.SimpleNamespace):
    """``cupy``: what it shares with NumPy is NumPy's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def host_cupy() -> HostCupy:
    """The module."""
    pool = types.SimpleNamespace(free_all_blocks=lambda: None)
    cuda = types.SimpleNamespace(
        runtime=Runtime(),
        Memory=Memory,
        MemoryPointer=MemoryPointer,
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        Stream=Stream,
        Event=Event,
        Device=Device,
        get_elapsed_time=lambda start, stop: 1e3 * (stop.at_s - start.at_s),
    )
    return HostCupy(cuda=cuda, ndarray=ndarray, get_default_memory_pool=lambda: pool)
