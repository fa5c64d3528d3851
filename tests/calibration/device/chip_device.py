"""A device that times microbenchmarks by the physics of a chip file: to close the loop of describing it.

It is written from what the kernels do and what a chip's numbers mean (docs/chips.md), not from how the
analysis undoes it: launches cost something, rates saturate with the bytes in flight, caches have knees,
clocks are below the maximum and sink, half of the L2 is far, timers have a grain, and every time is noisy.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from foretile.calibration.device.driver import (
    Buffer,
    ClockSample,
    DeviceError,
    DeviceProperties,
    Kernel,
    Parameter,
    Pointer,
)
from foretile.calibration.device.micro.details import _ATTRIBUTES, Details
from foretile.hwmodels import Chip
from foretile.kernels.cuda.recipe import Extent, TensorMapArg

CAPABILITIES = {
    "ampere": (8, 0),
    "ampere-ga10x": (8, 6),
    "ada": (8, 9),
    "hopper": (9, 0),
    "blackwell": (10, 0),
    "blackwell-gb20x": (12, 0),
}
_EVENT_S = 2e-6  # between an event and the launch beside it
_BUSY_LIGHT = 0.995  # clock over the driver's, of cores that do little
_SHARPNESS = 4.0  # of the knee between latency and bandwidth
_DECADES = 2.0  # over which the clock sinks (docs/model.md, clock under load)
_DEPTH = {"bf16": 16, "fp16": 16, "tf32": 8, "fp8": 32, "int8": 32, "int4": 64, "fp4": 64}


def details_of(chip: Chip) -> Details:
    """What the driver of a device that is this chip would say."""
    d, pad, regs, stay = chip.dram, chip.scratchpad, chip.registers, chip.residency
    assert pad is not None
    assert regs is not None
    assert stay is not None
    bus = 4096
    return Details(
        name=chip.name,
        capability=CAPABILITIES[chip.family],
        driver="570.1 (CUDA 12.8)",
        cores=chip.cores.value,
        max_hz=chip.clock.max_hz.value,
        memory_hz=1e3 * round(d.bandwidth_bytes_per_s.value * 8 / bus / 2 / 1e3),
        bus_bits=bus,
        memory_bytes=d.capacity_bytes.value,
        l2_bytes=chip.l2.capacity_bytes.value,
        shared_bytes_per_core=pad.capacity_bytes.value,
        shared_bytes_per_block=pad.max_block_bytes.value,
        shared_bytes_reserved=1024,
        registers_per_core=regs.bytes_per_core.value // 4,
        threads_per_core=stay.threads_per_core.value,
        threads_per_block=stay.threads_per_block.value,
        blocks_per_core=stay.blocks_per_core.value,
        warp_size=stay.warp_size.value,
    )


class ChipDevice:
    """Implements :class:`~foretile.calibration.device.driver.Driver` for launches of microbenchmarks.

    ``noise`` is the standard deviation of the logarithm of a time; ``outliers`` the share of repetitions that
    take half as long again. Host time is the device's: ``host_clock`` and ``pause`` go with it.
    """

    def __init__(self, chip: Chip, noise: float = 0.003, outliers: float = 0.02, seed: int = 0) -> None:
        self.chip, self.noise, self.outliers = chip, noise, outliers
        self.details = details_of(chip)
        self.random = np.random.default_rng(seed)
        self.now_s, self.busy_s, self.launched = 0.0, 0.0, 0
        self.hz = chip.clock.max_hz.value
        self.allocated = 0
        self.last: dict[int, tuple[float, float, float]] = {}  # start, length, clock of the last launch
        self._capturing: list[Callable[[], None]] | None = None

    # What the driver says ----------------------------------------------------------------------------

    @property
    def properties(self) -> DeviceProperties:
        d = self.details
        return DeviceProperties(
            d.name, d.capability, d.cores, d.memory_bytes, d.l2_bytes, d.shared_bytes_per_block, d.driver
        )

    @property
    def xp(self) -> Any:
        d = self.details
        told = {f: getattr(d, f) for f in Details.__dataclass_fields__ if f in _ATTRIBUTES}
        told |= {"clock_khz": d.max_hz / 1e3, "memory_clock_khz": d.memory_hz / 1e3}
        numbers = {number: round(told[name]) for name, number in _ATTRIBUTES.items()}
        runtime = SimpleNamespace(deviceGetAttribute=lambda number, index: numbers[number])
        return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))

    def load(self, cubin: bytes, symbol: str) -> Kernel:
        return Kernel(symbol)

    def unload(self) -> None: ...

    # Memory: only ticks have content -----------------------------------------------------------------

    def allocate(self, size: int) -> Buffer:
        if size > self.details.memory_bytes:
            raise DeviceError(f"out of memory: {size} bytes of {self.details.memory_bytes}")
        self.allocated += 1
        return Buffer(256 * self.allocated, size)

    def free(self, buffer: Buffer) -> None: ...

    def fill(self, buffer: Buffer, value: int, start: int = 0, size: int | None = None) -> None: ...

    def write(self, buffer: Buffer, data: np.ndarray, start: int = 0) -> None: ...

    def read(self, buffer: Buffer, start: int = 0, size: int | None = None) -> np.ndarray:
        last = self.last.get(buffer.address)
        blocks = buffer.size // 32
        told = np.zeros((blocks, 4), np.int64) if last is None else self._ticks(blocks, *last)
        return told.view(np.uint8).ravel()

    def view(self, buffer: Buffer, dtype: str, shape: tuple[int, ...], start: int = 0) -> Any:
        raise NotImplementedError

    def trim(self) -> None: ...

    def tensor_map(self, spec: TensorMapArg, buffer: Buffer, start: int = 0) -> bytes:
        raise NotImplementedError

    # Order and time ----------------------------------------------------------------------------------

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
        def play() -> None:
            self._play(kernel.symbol, grid[0], block[0], parameters)

        if self._capturing is not None:
            self._capturing.append(play)
        else:
            play()

    def record(self) -> Any:
        self.now_s += _EVENT_S * (1 + 0.1 * self.random.random())
        return self.now_s

    def elapsed_s(self, start: Any, stop: Any) -> float:
        return float(stop - start)

    def synchronize(self) -> None: ...

    def capture(self, enqueue: Callable[[], None]) -> Any:
        self._capturing = []
        enqueue()
        graph, self._capturing = self._capturing, None
        return graph

    def replay(self, graph: Any) -> None:
        gap = self.chip.launch.graph_s
        self.now_s += (gap.value if gap else 0.0) * self._noise()
        for play in graph:
            play()

    def clocks(self) -> ClockSample | None:
        return ClockSample(core_hz=self.hz, temperature_c=50.0, power_w=400.0)

    def close(self) -> None: ...

    def host_clock(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.now_s += seconds
        self.busy_s = 0.0

    # Physics -----------------------------------------------------------------------------------------

    def _noise(self) -> float:
        slow = 1.5 if self.random.random() < self.outliers else 1.0
        return slow * math.exp(self.noise * self.random.standard_normal())

    def _play(self, symbol: str, grid: int, block: int, parameters: Sequence[Parameter]) -> None:
        data, ticks = parameters[0], parameters[2]
        assert isinstance(data, Pointer)
        assert isinstance(ticks, Pointer)
        size = struct.unpack("<Q", parameters[1])[0]  # type: ignore[arg-type]
        iterations, a, b = (struct.unpack("<i", parameters[i])[0] for i in (3, 4, 5))  # type: ignore[arg-type]
        self.launched += 1
        c, launch = self.chip, self.chip.launch
        top, matrix = c.clock.max_hz.value, symbol.startswith(("mma", "wgmma", "tcgen05", "mainloop"))
        self.hz = self._loaded_hz() if matrix else _BUSY_LIGHT * top
        cycles, seconds = self._course(symbol, grid, block, size, iterations, a, b)
        course = (cycles / self.hz + seconds) * (1.0 if symbol.startswith("spin") else self._noise())
        dispatch = grid / launch.blocks_per_cycle.value / top
        fixed = (launch.kernel_s.value + (launch.ramp_s.value if course else 0.0)) * self._noise()
        start = self.now_s + fixed
        self.now_s = start + max(course, dispatch)
        self.busy_s = self.busy_s + course if matrix else 0.0
        if symbol not in ("empty", "fill_chain"):
            self.last[ticks.buffer.address] = (start, course, self.hz)

    def _ticks(self, blocks: int, start: float, course: float, hz: float) -> np.ndarray:
        """What the blocks leave behind: they begin and end a little apart, on a timer with a grain."""
        told = np.zeros((blocks, 4), np.int64)
        spread = self.random.uniform(0.999, 1.0, blocks)
        told[:, 0], told[:, 1] = 1000, 1000 + np.round(course * hz * spread)
        begin = 1e9 * start + self.random.uniform(0, 50, blocks)
        told[:, 2] = np.round(begin / 32) * 32
        told[:, 3] = np.round((begin + 1e9 * course * spread) / 32) * 32
        return told

    def _loaded_hz(self) -> float:
        c = self.chip.clock
        burst = c.matrix_burst_hz.value if c.matrix_burst_hz else c.max_hz.value
        burst = min(burst, c.max_hz.value)
        last = c.matrix_sustained_hz.value if c.matrix_sustained_hz else burst
        settle = c.settle_s.value if c.settle_s else 1.0
        share = min(1.0, math.log10(max(1.0, self.busy_s / settle)) / _DECADES)
        return burst + (min(last, burst) - burst) * share

    def _course(
        self, symbol: str, grid: int, block: int, size: int, n: int, a: int, b: int
    ) -> tuple[float, float]:
        """Cycles of the core's clock, and seconds of what has a clock of its own, of one launch."""
        c, top = self.chip, self.chip.clock.max_hz.value
        head, _, tail = symbol.partition("_")
        pad = c.scratchpad
        assert pad is not None
        if symbol in ("empty", "fill_chain"):
            return 0.0, 0.0
        if symbol in ("spin", "spin_timed"):
            return float(n), 0.0
        if head in ("read", "write", "copy") and tail.isdigit():
            return 0.0, n * self._streamed(head, size, grid, block, int(tail))
        if symbol == "read_by_all":
            per_pass = self._cached_s(size * grid, size, True)
            return 0.0, n * per_pass
        if symbol == "chase_l2":
            small = size <= c.l2.capacity_bytes.value / 2
            cycles = c.l2.latency_cycles.value if small else c.dram.latency_cycles.value
            return 0.0, n * cycles / top
        if symbol == "chase_l1":
            return 33.0 * n, 0.0
        if symbol == "chase_shared":
            return pad.latency_cycles.value * n, 0.0
        if symbol in ("shared_read", "shared_write"):
            return n * 4 * 16 * block / pad.bandwidth_bytes_per_cycle.value, 0.0
        if symbol == "shared_stride":
            return n * 4 * 4 * block * a / pad.bandwidth_bytes_per_cycle.value, 0.0
        if symbol == "read_in_l1":
            return n * a / 64.0, 0.0
        if symbol == "tensor_memory_read":
            assert c.tensor_memory
            return n * 4 * 4096 * (block / 32) / c.tensor_memory.read_bytes_per_cycle.value, 0.0
        if head in ("async", "bulk"):
            beyond = c.l2.bulk_copy_cycles.value if head == "bulk" and c.l2.bulk_copy_cycles else 0.0
            flow = a / c.l2.core_bytes_per_cycle.value
            return 0.0, n * max(flow, (c.l2.latency_cycles.value + beyond + flow) / b) / top
        if symbol in ("atomic_global", "atomic_one_address"):
            rate = c.sync.atomic_bytes_per_cycle.value * top
            return 0.0, n * (size if symbol == "atomic_global" else 400.0 * grid) / rate
        if symbol == "atomic_shared":
            return 2.0 * n * block / 32 * a, 0.0
        if symbol.endswith("barrier") or head == "cluster":
            s, warps = c.sync, a if head == "named" else block / 32
            each = s.barrier_cycles.value + s.barrier_cycles_per_warp.value * warps
            return n * (1 if head == "cluster" else 4) * each, 0.0
        if symbol == "hand_over":
            steps = 2 if CAPABILITIES[c.family][0] >= 9 else 1
            return n * steps * c.sync.pipeline_barrier_cycles.value, 0.0
        if symbol == "latency_fma_f32":
            return 32.0 * n * (c.vector.latency_cycles.value if c.vector.latency_cycles else 4.0), 0.0
        if symbol == "softmax_code":
            v = c.vector
            element = max(
                2 / v.fp32_per_cycle.value,
                1.5 / v.alu_per_cycle.value,
                1 / v.special_per_cycle.value,
                1 / v.convert_per_cycle.value,
                5 / v.issue_per_cycle.value,
            )
            return n * block * 64 * element / v.code_fraction.value, 0.0
        if head == "rate":
            return n * block * self._vector(tail), 0.0
        return max(1, grid // c.cores.value) * self._matrix(symbol, block, n), 0.0

    def _streamed(self, kind: str, size: int, grid: int, block: int, unroll: int) -> float:
        """Seconds of one pass: Little's law at first, then what limits."""
        c, top = self.chip, self.chip.clock.max_hz.value
        if size <= 6 * c.l2.capacity_bytes.value:
            return self._cached_s(size, size, False, kind, grid)
        share = {
            "read": c.dram.read_fraction,
            "write": c.dram.write_fraction,
            "copy": c.dram.copy_fraction,
        }[kind]
        most = share.value * c.dram.bandwidth_bytes_per_s.value
        flight = 16.0 * unroll * block * grid
        waited = flight / (c.dram.latency_cycles.value / top)
        return size / (most * (1 + (most / waited) ** _SHARPNESS) ** (-1 / _SHARPNESS))

    def _cached_s(self, moved: float, held: float, by_all: bool, kind: str = "read", grid: int = 0) -> float:
        c, top = self.chip, self.chip.clock.max_hz.value
        most = c.l2.bandwidth_bytes_per_cycle.value * top
        if kind == "write" and c.l2.write_bytes_per_cycle:
            most = c.l2.write_bytes_per_cycle.value * top
        if grid == 1:
            port = c.l2.core_bytes_per_cycle
            if kind == "write" and c.l2.core_store_bytes_per_cycle:
                port = c.l2.core_store_bytes_per_cycle
            return moved / (port.value * top)
        part = (
            1.0 / (c.l2.partitions.value if c.l2.partitions else 1) if by_all else c.l2.reuse_fraction.value
        )
        hit = min(1.0, part * c.l2.capacity_bytes.value / held)
        outside = c.dram.read_fraction.value * c.dram.bandwidth_bytes_per_s.value
        return moved * (hit / most + (1 - hit) / outside)

    def _vector(self, name: str) -> float:
        """Cycles of a core for one thread's iteration (instructions counted in vector.cu)."""
        v = self.chip.vector
        half = v.half_per_cycle.value if v.half_per_cycle else v.fp32_per_cycle.value
        rates: dict[str, tuple[float, float]] = {
            "fma_f32": (32, v.fp32_per_cycle.value),
            "fma_f64": (32, v.fp32_per_cycle.value / 2),
            "fma_f16x2": (64, half),
            "fma_bf16x2": (64, half),
            "issue": (64, v.issue_per_cycle.value),
            "f32_to_e4m3x2": (128, v.convert_per_cycle.value),
        }
        if name in rates:
            work, rate = rates[name]
        elif "_to_" in name:
            work, rate = 64, v.convert_per_cycle.value
        elif name.split("_")[0] in ("ex2", "lg2", "rcp", "rsqrt", "sin", "tanh"):
            work, rate = 32, v.special_per_cycle.value
        else:
            work, rate = 32, v.alu_per_cycle.value
        return work / rate

    def _matrix(self, symbol: str, block: int, n: int) -> float:
        m = self.chip.matrix
        rates = {name: quantity.value for name, quantity in m.flop_per_cycle.items()}
        parts = symbol.split("_")
        if parts[0] == "mainloop":
            tile = 128 * 128 * 32 if parts[1] == "mma" else 128 * 256 * 64
            return n * 2.0 * tile / (rates["bf16"] * m.mainloop_fraction.value)
        if "latency" in parts:
            return n * m.latency_cycles.value * (32 if parts[0] == "mma" else 1)
        if parts[0] == "mma":
            if parts[1] == "fp64":
                flop, share = 2.0 * 16 * 8 * 8 if CAPABILITIES[self.chip.family][0] >= 9 else 512.0, 1.0
            else:
                flop = 2.0 * 16 * 8 * _DEPTH[parts[1]]
                share = m.sync_fraction.value if m.sync_fraction else 1.0
            return n * (block / 32) * 32 * flop / (rates.get(parts[1], 64.0) * share)
        dtype, source, columns = parts[1], parts[2], int(parts[3])
        groups, rows = (2, 64) if parts[0] == "wgmma" else (1, 128)
        products = rows * columns * _DEPTH[dtype]
        fetched = (32 * columns + (32 * rows if source == "ss" else 0)) / 128
        interval = max(2 * products / rates[dtype], fetched)
        return n * groups * 4 * interval
