"""What a device says of itself beyond the runner's needs: counts and sizes that a chip file takes over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from foretile.calibration.device.driver import DeviceError, Driver

OLDEST = (8, 0)
"""Least compute capability: asynchronous copies and bf16 products begin there."""

# Numbers of cudaDeviceAttr, which are those of CUdevice_attribute (CUDA Runtime API 13.0, "Data types").
_ATTRIBUTES = {
    "threads_per_block": 1,
    "warp_size": 10,
    "clock_khz": 13,
    "memory_clock_khz": 36,
    "bus_bits": 37,
    "l2_bytes": 38,
    "threads_per_core": 39,
    "shared_bytes_per_core": 81,
    "registers_per_core": 82,
    "shared_bytes_per_block": 97,
    "blocks_per_core": 106,
    "shared_bytes_reserved": 111,
}


@dataclass(frozen=True, slots=True)
class Details:
    """One device: sizes in bytes, clocks in Hz, counts.

    ``memory_hz`` is the memory's clock (two transfers a cycle and pin), zero where the driver does not say,
    as may ``bus_bits``; ``registers_per_core`` are registers of four bytes.
    """

    name: str
    capability: tuple[int, int]
    driver: str
    cores: int
    max_hz: float
    memory_hz: float
    bus_bits: int
    memory_bytes: int
    l2_bytes: int
    shared_bytes_per_core: int
    shared_bytes_per_block: int
    shared_bytes_reserved: int
    registers_per_core: int
    threads_per_core: int
    threads_per_block: int
    blocks_per_core: int
    warp_size: int

    @property
    def arch(self) -> str:
        """The architecture to compile for, with its own instructions where it has some: ``sm_90a``."""
        major, minor = self.capability
        return f"sm_{major}{minor}{'a' if major >= 9 else ''}"

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """Bus width times data rate; zero where the driver does not say."""
        return self.bus_bits / 8 * 2 * self.memory_hz

    def to_json(self) -> dict[str, Any]:
        """Plain data from which :meth:`from_json` rebuilds it."""
        return {**asdict(self), "capability": list(self.capability)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Details:
        """Rebuild it.

        Raises:
            DeviceError: a field is missing or unknown.
        """
        wanted = {f.name for f in fields(Details)}
        if set(data) != wanted:
            off = ", ".join(sorted(wanted ^ set(data)))
            raise DeviceError(
                f"the description of a device should have the fields {sorted(wanted)}; off: {off}"
            )
        return Details(**{**data, "capability": tuple(data["capability"])})


def describe(driver: Driver, index: int) -> Details:
    """What device ``index``, which ``driver`` has opened, says of itself.

    Raises:
        DeviceError: it is older than compute capability 8.0, or does not say its clock.
    """
    told = driver.properties
    if told.capability < OLDEST:
        major, minor = told.capability
        raise DeviceError(
            f"{told.name} has compute capability {major}.{minor}; the microbenchmarks need 8.0 or later"
        )
    runtime = driver.xp.cuda.runtime
    found = {name: int(runtime.deviceGetAttribute(number, index)) for name, number in _ATTRIBUTES.items()}
    max_hz, memory_hz = 1e3 * found.pop("clock_khz"), 1e3 * found.pop("memory_clock_khz")
    if max_hz <= 0:
        raise DeviceError(f"{told.name}: the driver says a clock of {max_hz:g} Hz; expected above zero")
    return Details(
        name=told.name,
        capability=told.capability,
        driver=told.driver,
        cores=told.cores,
        max_hz=max_hz,
        memory_hz=memory_hz,
        memory_bytes=told.memory_bytes,
        **found,
    )
