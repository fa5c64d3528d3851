"""Clocks, temperature and power, read through NVML. Nothing is set.

Needs ``nvidia-ml-py``; without it, or where NVML answers nothing, there are no samples.
"""

from __future__ import annotations

import importlib
from typing import Any

from foretile.calibration.device.driver import ClockSample

# NVML's bits (nvml.h, nvmlClocksEventReason…); being idle and clocks set by somebody else limit nothing.
_REASONS = {
    0x2: "applications_clocks",
    0x4: "software_power_cap",
    0x8: "hardware_slowdown",
    0x10: "sync_boost",
    0x20: "software_thermal",
    0x40: "hardware_thermal",
    0x80: "hardware_power_brake",
    0x100: "display_clocks",
}


class ClockReader:
    """Samples of one device; ``driver`` is the version of the display driver, empty if not known."""

    def __init__(self, pci_bus_id: str) -> None:
        self.driver = ""
        self._nvml: Any = None
        try:
            self._nvml = importlib.import_module("pynvml")
            self._nvml.nvmlInit()
            self._device = self._nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id.encode())
            version = self._nvml.nvmlSystemGetDriverVersion()
            self.driver = version.decode() if isinstance(version, bytes) else str(version)
        except Exception:  # the package, the library or the device is not there: then there are no samples
            self._nvml = None

    def sample(self) -> ClockSample | None:
        """The state now, or ``None`` if nothing can be read."""
        nvml = self._nvml
        if nvml is None:
            return None
        bits = self._asked("nvmlDeviceGetCurrentClocksEventReasons") or 0.0
        return ClockSample(
            core_hz=1e6 * self._number("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            memory_hz=1e6 * self._number("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            temperature_c=self._number("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            power_w=self._number("nvmlDeviceGetPowerUsage") / 1e3,
            reasons=tuple(name for bit, name in _REASONS.items() if int(bits) & bit),
        )

    def _number(self, name: str, *arguments: Any) -> float:
        found = self._asked(name, *arguments)
        return float("nan") if found is None else found

    def _asked(self, name: str, *arguments: Any) -> float | None:
        """An answer of NVML; ``None`` if this device or this version has none."""
        try:
            return float(getattr(self._nvml, name)(self._device, *arguments))
        except Exception:
            return None

    def close(self) -> None:
        """Let go of NVML."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None
