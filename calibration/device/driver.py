"""What the runner asks of a device: a protocol, the plain values that cross it, and its errors.

Two classes implement it: :class:`~foretile.calibration.device.cupy_driver.CupyDriver` on a GPU, and
:class:`~foretile.calibration.device.fake.FakeDriver`, which accepts and refuses what a GPU would and
computes on the CPU. Sizes are bytes, times seconds, rates hertz.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from foretile.kernels.cuda.recipe import Extent, TensorMapArg

TENSOR_MAP_BYTES = 128


class DeviceError(ValueError):
    """What a device or its driver refused, or that there is none; the message says what would be right."""


@dataclass(frozen=True, slots=True)
class DeviceProperties:
    """What a device says of itself.

    ``simulated`` marks a device that is none: its times mean nothing, and no table takes them.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    memory_bytes: int
    l2_bytes: int
    shared_bytes_per_block: int  # with opt-in
    driver: str
    simulated: bool = False

    @property
    def arch(self) -> str:
        """``sm_90`` for compute capability 9.0."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    def runs(self, arch: str) -> bool:
        """Whether machine code for ``arch`` runs here (CUDA C++ Programming Guide, "Binary compatibility").

        ``sm_90a`` needs exactly that capability, ``sm_100f`` its family (the same major), ``sm_80`` the same
        major and a minor that is no smaller.
        """
        digits = arch.removeprefix("sm_").rstrip("af")
        major, minor = int(digits[:-1]), int(digits[-1])
        if arch.endswith("a"):
            return self.capability == (major, minor)
        return self.capability[0] == major and self.capability[1] >= minor


@dataclass(eq=False, slots=True)
class Buffer:
    """Device memory: an address, a size, and what the driver keeps of it."""

    address: int
    size: int
    handle: Any = field(default=None, repr=False)


@dataclass(eq=False, slots=True)
class Kernel:
    """A function of loaded machine code."""

    symbol: str
    handle: Any = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Pointer:
    """A parameter that is an address: ``start`` bytes into ``buffer``."""

    buffer: Buffer
    start: int = 0


Parameter = Pointer | bytes
"""What a kernel takes: an address, or the bytes of a number or a tensor map (little-endian)."""


@dataclass(frozen=True, slots=True)
class ClockSample:
    """The device's state at one moment; NaN where it does not say.

    ``reasons`` are NVML's reasons why clocks are below their maximum, idling left out.
    """

    core_hz: float = float("nan")
    memory_hz: float = float("nan")
    temperature_c: float = float("nan")
    power_w: float = float("nan")
    reasons: tuple[str, ...] = ()


class Driver(Protocol):
    """A device with one stream, on which everything happens in order.

    Every method raises :class:`DeviceError` for what the device refuses.
    """

    @property
    def properties(self) -> DeviceProperties:
        """What the device says of itself."""
        ...

    @property
    def xp(self) -> Any:
        """The array module of :meth:`view` (CuPy, or NumPy for a device that is none)."""
        ...

    def load(self, cubin: bytes, symbol: str) -> Kernel:
        """A kernel of machine code; the same code is loaded once."""
        ...

    def unload(self) -> None:
        """Forget all loaded machine code; kernels of it must not be launched any more."""
        ...

    def allocate(self, size: int) -> Buffer:
        """Device memory of ``size`` bytes, aligned to 256 at least; its content is arbitrary."""
        ...

    def free(self, buffer: Buffer) -> None:
        """Give memory back."""
        ...

    def fill(self, buffer: Buffer, value: int, start: int = 0, size: int | None = None) -> None:
        """Set bytes to ``value`` (0 to 255); to the end if no size is given."""
        ...

    def write(self, buffer: Buffer, data: np.ndarray, start: int = 0) -> None:
        """Copy the bytes of a host array into the buffer."""
        ...

    def read(self, buffer: Buffer, start: int = 0, size: int | None = None) -> np.ndarray:
        """Bytes of the buffer as a host array of uint8, after all that was asked before."""
        ...

    def view(self, buffer: Buffer, dtype: str, shape: tuple[int, ...], start: int = 0) -> Any:
        """The buffer's memory as an array of :attr:`xp`, of a NumPy type by name."""
        ...

    def trim(self) -> None:
        """Give back the memory of temporary arrays."""
        ...

    def tensor_map(self, spec: TensorMapArg, buffer: Buffer, start: int = 0) -> bytes:
        """A tensor map's 128 bytes for a tensor that begins ``start`` bytes into the buffer."""
        ...

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
        """Enqueue one launch; ``shared_bytes`` is dynamic shared memory, opted in where needed."""
        ...

    def record(self) -> Any:
        """An event at this place of the stream."""
        ...

    def elapsed_s(self, start: Any, stop: Any) -> float:
        """Seconds between two events that have passed."""
        ...

    def synchronize(self) -> None:
        """Wait for all that was asked; raises what a kernel has done wrong."""
        ...

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """A graph of what ``enqueue`` asks for; nothing is carried out."""
        ...

    def replay(self, graph: Any) -> None:
        """Enqueue a captured graph."""
        ...

    def clocks(self) -> ClockSample | None:
        """Clocks, temperature and power now, or ``None`` if they cannot be read. Changes no setting."""
        ...

    def close(self) -> None:
        """Give back everything."""
        ...
