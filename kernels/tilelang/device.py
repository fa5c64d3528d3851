"""What a kernel's file may ask of the GPU when it is loaded, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Device:
    """Answers to the questions that files put to torch and TileLang about the device.

    The defaults are those of an H100 with 80 GB (NVIDIA H100 datasheet; CUDA programming guide,
    compute capability 9.0).
    """

    name: str = "NVIDIA H100 80GB HBM3"
    capability: tuple[int, int] = (9, 0)
    cores: int = 132
    memory_bytes: int = 85_899_345_920
    l2_bytes: int = 52_428_800
    shared_bytes_per_core: int = 233_472
    shared_bytes_per_block: int = 232_448
    threads_per_core: int = 2048
    registers_per_core: int = 65_536
    clock_hz: int = 1_980_000_000

    @property
    def arch(self) -> str:
        """The compiler's name: ``sm_90a``; the ``a`` where instructions are of this part only."""
        major, minor = self.capability
        return f"sm_{major}{minor}{'a' if major >= 9 else ''}"

    def to_json(self) -> dict[str, Any]:
        """Plain data from which :meth:`from_json` rebuilds it."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Device:
        """Rebuild it from :meth:`to_json`'s data."""
        return Device(**{**data, "capability": tuple(data["capability"])})
