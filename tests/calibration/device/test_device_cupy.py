"""The driver for a GPU, on a stand-in for CuPy that works on the host's memory."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_bundles import build_small
from host_cupy import HostLibrary, Runtime, host_cupy

from foretile.calibration.device import cupy_driver
from foretile.calibration.device.archive import open_bundle
from foretile.calibration.device.clocks import ClockReader
from foretile.calibration.device.cupy_driver import CupyDriver, open_device
from foretile.calibration.device.driver import DeviceError, Pointer
from foretile.calibration.device.formats import decode, encode
from foretile.calibration.device.generate import fill_tensor
from foretile.calibration.device.session import Message, messages_of, run_session
from foretile.calibration.device.timing import Plan, time_runs
from foretile.calibration.measurements import read_table


def double(grid: Any, x: int, y: int, n: bytes) -> None:
    count = int.from_bytes(n, "little")
    source, target = ((ctypes.c_float * count).from_address(place) for place in (x, y))
    for i in range(count):
        target[i] = 2 * source[i]


@pytest.fixture
def driver() -> CupyDriver:
    return CupyDriver(host_cupy(), HostLibrary({"double": double}), 0)  # type: ignore[arg-type]


def test_the_device_is_described(driver: CupyDriver) -> None:
    found = driver.properties
    assert (found.name, found.arch, found.cores, found.simulated) == ("NVIDIA H200", "sm_90", 132, False)
    assert found.driver.endswith("(CUDA 13.0)")


def test_memory_holds_what_is_written(driver: CupyDriver) -> None:
    buffer = driver.allocate(40)
    driver.fill(buffer, 0xFF)
    driver.write(buffer, np.arange(4, dtype=np.float32), start=8)
    driver.fill(buffer, 0, start=36)
    assert driver.view(buffer, "float32", (4,), start=8).tolist() == [0.0, 1.0, 2.0, 3.0]
    assert driver.read(buffer)[[0, 7, 24, 35, 36, 39]].tolist() == [255, 255, 255, 255, 0, 0]
    fill_tensor(driver, driver.allocate(64), "int32", (16,), {"kind": "zeros"})
    for action in (
        lambda: driver.read(buffer, 30, 11),
        lambda: driver.write(buffer, np.zeros(41, np.uint8)),
        lambda: driver.fill(buffer, 0, -1),
        lambda: driver.view(buffer, "float32", (11,)),
    ):
        with pytest.raises(DeviceError, match="out of range"):
            action()
    driver.free(buffer)
    for action in (lambda: driver.free(buffer), lambda: driver.read(buffer), lambda: driver.fill(buffer, 0)):
        with pytest.raises(DeviceError, match="freed"):
            action()
    with pytest.raises(DeviceError, match="allocating 2147483648 bytes"):
        driver.allocate(1 << 31)


def test_launches_compute_and_are_timed(driver: CupyDriver) -> None:
    x, y = driver.allocate(40), driver.allocate(40)
    driver.write(x, np.arange(10, dtype=np.float32))
    kernel, again = driver.load(b"code", "double"), driver.load(b"code", "double")
    assert driver._lib.loaded == 1  # type: ignore[attr-defined]
    given = (Pointer(x, 4), Pointer(y), (5).to_bytes(4, "little"))
    driver.launch(kernel, (1, 1, 1), (32, 1, 1), given, shared_bytes=100)
    driver.launch(again, (1, 1, 1), (32, 1, 1), given, shared_bytes=60)
    assert driver._lib.allowed == {"double": 100}  # type: ignore[attr-defined]
    assert driver.read(y, 0, 20).view(np.float32).tolist() == [2.0, 4.0, 6.0, 8.0, 10.0]
    timing = time_runs(
        driver, lambda i: driver.launch(kernel, (1, 1, 1), (32, 1, 1), given), Plan(warm_up_s=0)
    )
    assert (timing.launch, timing.median_s) == ("graph", pytest.approx(1e-5))
    with pytest.raises(DeviceError, match="other"):
        driver.load(b"code", "other")
    driver.close()


def softmax(grid: Any, x: int, y: int, cols: bytes) -> None:
    shape = (grid[0], int.from_bytes(cols, "little"))
    source, target = (_at(place, "float32", shape) for place in (x, y))
    e = np.exp(source - source.max(axis=1, keepdims=True))
    target[...] = e / e.sum(axis=1, keepdims=True)


def rmsnorm(grid: Any, x: int, w: int, y: int, cols: bytes) -> None:
    shape = (grid[0], int.from_bytes(cols, "little"))
    values = decode(np, _at(x, "uint16", shape), "bfloat16", shape)
    factors = decode(np, _at(w, "uint16", shape[1:]), "bfloat16", shape[1:])
    normal = values / np.sqrt((values * values).mean(axis=1, keepdims=True) + 1e-6)
    _at(y, "uint16", shape)[...] = encode(np, normal * factors, "bfloat16")


def swiglu(grid: Any, x: int, y: int, rows: bytes, cols: bytes) -> None:
    height, width = (int.from_bytes(n, "little") for n in (rows, cols))
    gate, up = np.split(decode(np, _at(x, "uint16", (height, 2 * width)), "bfloat16", ()), 2, axis=1)
    _at(y, "uint16", (height, width))[...] = encode(np, gate / (1 + np.exp(-gate)) * up, "bfloat16")


def _at(address: int, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_ubyte * size).from_address(address), np.uint8).view(kind).reshape(shape)


def test_a_bundle_is_measured_through_it(tmp_path: Path) -> None:
    library = HostLibrary({"softmax_fp32": softmax, "rmsnorm_bf16": rmsnorm, "swiglu_bf16": swiglu})
    driver = CupyDriver(host_cupy(), library, 0)  # type: ignore[arg-type]
    with open_bundle(build_small(tmp_path)) as bundle:

        def worker(keys: Sequence[str], budget_s: float) -> Iterator[Message]:
            return messages_of(bundle, driver, keys, budget_s, Plan(budget_s=0.02, warm_up_s=0.0))

        summary = run_session(bundle, tmp_path / "table.parquet", worker, budget_s=60.0)
    assert (summary.ok, summary.problems) == (4, ())
    table = read_table(tmp_path / "table.parquet")
    assert list(table["latency_s"]) == pytest.approx([1e-5] * 4)
    assert set(table["device"]) == {"h200-sxm"}
    driver.close()


def test_what_goes_wrong_in_a_capture_ends_it(driver: CupyDriver) -> None:
    def enqueue() -> None:
        raise DeviceError("a reason")

    with pytest.raises(DeviceError, match="a reason"):
        driver.capture(enqueue)
    driver.synchronize()
    with pytest.raises(DeviceError, match="stopped with an error"):
        driver.capture(driver.synchronize)


def test_without_cupy_or_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match="CuPy is not installed; `pip install cupy-cuda12x`"):
        open_device()
    monkeypatch.setitem(sys.modules, "cupy", host_cupy())  # type: ignore[arg-type]
    monkeypatch.setattr(cupy_driver, "LibCuda", lambda: HostLibrary({}))
    assert open_device().properties.cores == 132
    with pytest.raises(DeviceError, match="no device 1; there are 1, numbered from 0"):
        open_device(1)
    monkeypatch.setattr(Runtime, "devices", 0)
    with pytest.raises(DeviceError, match="no device 0; there is none"):
        open_device()
    monkeypatch.setattr(Runtime, "devices", -1)
    with pytest.raises(DeviceError, match="no CUDA device can be used: cudaErrorNoDevice"):
        open_device()


class Nvml:
    """``pynvml``, of a device that does not say its power."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetHandleByPciBusId": lambda bus: "device",
            "nvmlSystemGetDriverVersion": lambda: "580.159.04",
            "nvmlDeviceGetClockInfo": lambda device, kind: {1: 1980, 2: 3201}[kind],
            "nvmlDeviceGetTemperature": lambda device, kind: 41,
            "nvmlDeviceGetCurrentClocksEventReasons": lambda device: 0x1 | 0x4 | 0x20,
        }
        if name not in answers:
            raise AttributeError(name)
        return answers[name]


def test_clocks_are_read_and_what_is_not_said_is_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())  # type: ignore[arg-type]
    reader = ClockReader("0000:00:00.0")
    sample = reader.sample()
    assert sample is not None
    assert (reader.driver, sample.core_hz, sample.memory_hz) == ("580.159.04", 1.98e9, 3.201e9)
    assert sample.temperature_c == 41
    assert np.isnan(sample.power_w)
    assert sample.reasons == ("software_power_cap", "software_thermal")
    reader.close()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert ClockReader("0000:00:00.0").sample() is None


def test_no_setting_of_a_device_is_ever_changed() -> None:
    # NVML's and nvidia-smi's ways to change clocks, power limit, modes and partitions, in any of our files.
    folder = Path(cupy_driver.__file__).parent
    for path in folder.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for forbidden in ("nvmlDeviceSet", "nvmlDeviceReset", "nvidia-smi", "deviceSetLimit", "deviceReset"):
            assert forbidden not in text, (path, forbidden)


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_cupy_has_what_the_stand_in_has() -> None:
    import cupy

    stand_in = host_cupy()
    for name in vars(stand_in.cuda):
        assert hasattr(cupy.cuda, name), name
    for made in ("Memory", "MemoryPointer", "Stream", "Event", "Device"):
        ours, theirs = getattr(stand_in.cuda, made), getattr(cupy.cuda, made)
        for name in vars(ours):
            known = name.startswith("_") or name in ("store", "current", "now_s", "do", "at_s")
            assert known or hasattr(theirs, name), (made, name)
    for name in vars(Runtime):
        if not name.startswith("_") and name != "devices":
            assert hasattr(cupy.cuda.runtime, name), name
