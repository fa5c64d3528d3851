"""What is measured of DRAM, the L2, the L1 and shared memory."""

from __future__ import annotations

import math
from typing import Any

from foretile.calibration.device.micro.details import Details
from foretile.calibration.device.micro.points import Benchmark, Point, Points

LINE_BYTES = 128
_ACCESS_BYTES = 16  # of a thread, in memory.cu and shared.cu
# Bytes in flight a core: (independent accesses of a thread, threads a core); 4 KiB to what fits.
_LADDER = ((1, 256), (1, 512), (1, 1024), (2, 1024), (4, 1024), (8, 1024), (8, 2048))
_BLOCK = 256
_SHARE_OF_MEMORY = 4  # a buffer takes no more than one part in so many of the device's memory
_L2_SIZES = (
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    1.0,
    1.25,
    1.5,
    2.0,
    3.0,
    4.0,
)  # of the L2's capacity


def _streamed_bytes(d: Details) -> int:
    """A buffer that no cache holds: 16 L2s, a gibibyte at least."""
    return min(max(1 << 30, 16 * d.l2_bytes), d.memory_bytes // _SHARE_OF_MEMORY)


def _dram(name: str, both: int) -> Points:
    def points(d: Details) -> list[Point]:
        found = []
        for unroll, threads in _LADDER:
            threads = min(threads, d.threads_per_core // _BLOCK * _BLOCK)
            grid = d.cores * threads // _BLOCK
            unit = grid * _BLOCK * _ACCESS_BYTES * unroll * both
            size = max(1, _streamed_bytes(d) // unit) * unit
            flight = unroll * threads * _ACCESS_BYTES
            found.append(
                Point(
                    f"dram_{name}",
                    "memory.cu",
                    f"{name}_{unroll}",
                    grid,
                    _BLOCK,
                    {"bytes_in_flight": flight},
                    {"bytes": float(size)},
                    bytes=size,
                )
            )
        return list({p.params["bytes_in_flight"]: p for p in found}.values())

    return points


def _l2_sizes(d: Details, unit: int) -> list[int]:
    """Sizes around the L2's capacity, in whole units, growing."""
    return sorted({max(1, round(share * d.l2_bytes / unit)) * unit for share in _L2_SIZES})


def _l2(name: str, kernel: str, shares: bool) -> Points:
    def points(d: Details) -> list[Point]:
        threads = min(1024, d.threads_per_core // 512 * 512)
        grid = d.cores * threads // 512
        unit = grid * 512 * _ACCESS_BYTES * 2
        sizes = _l2_sizes(d, unit) if shares else _l2_sizes(d, unit)[:2]
        return [
            Point(
                name,
                "memory.cu",
                kernel,
                grid,
                512,
                {"set_bytes": size},
                {"bytes": float(size)},
                bytes=size,
                iterations=4,
            )
            for size in sizes
        ]

    return points


def _l2_by_all(d: Details) -> list[Point]:
    return [
        Point(
            "l2_read_by_all",
            "memory.cu",
            "read_by_all",
            d.cores,
            1024,
            {"set_bytes": size},
            {"bytes": float(size * d.cores)},
            bytes=size,
        )
        for size in _l2_sizes(d, 1024 * 64)
    ]


def _one_core(name: str, kernel: str) -> Points:
    def points(d: Details) -> list[Point]:
        size = max(1, d.l2_bytes // 16 // (1024 * 128)) * 1024 * 128
        return [
            Point(name, "memory.cu", kernel, 1, 1024, {"set_bytes": size}, {"bytes": float(size)}, bytes=size)
        ]

    return points


def _chase(name: str, kernel: str, places: int, grid: int, **more: Any) -> Point:
    size = (1 << places) * LINE_BYTES
    return Point(
        name,
        "latency.cu",
        kernel,
        grid,
        1,
        {"set_bytes": size},
        {"steps_a_block": 1.0},
        bytes=size,
        b=LINE_BYTES,
        iterations=2048,
        setup=("fill_chain", places, LINE_BYTES),
        **more,
    )


def _l2_latency(d: Details) -> list[Point]:
    return [_chase("l2_latency", "chase_l2", int(math.log2(d.l2_bytes / 4 / LINE_BYTES)), d.cores)]


def _dram_latency(d: Details) -> list[Point]:
    wanted = min(8 * d.l2_bytes, d.memory_bytes // _SHARE_OF_MEMORY)
    places = math.ceil(math.log2(wanted / LINE_BYTES))
    return [_chase("dram_latency", "chase_l2", places, 8, cold=True, adaptive=False)]


def _l1_latency(d: Details) -> list[Point]:
    return [_chase("l1_latency", "chase_l1", 6, 1, a=64)]


def _l1_read(d: Details) -> list[Point]:
    own = 32768
    return [
        Point(
            "l1_read",
            "memory.cu",
            "read_in_l1",
            d.cores,
            512,
            {"set_bytes": own},
            {"bytes_a_block": float(own)},
            bytes=own * d.cores,
            a=own,
            iterations=16,
        )
    ]


def _shared(name: str, kernel: str) -> Points:
    def points(d: Details) -> list[Point]:
        return [
            Point(
                name,
                "shared.cu",
                kernel,
                d.cores,
                512,
                {},
                {"bytes_a_block": 4.0 * 512 * _ACCESS_BYTES},
                shared_bytes=512 * 64,
                iterations=1024,
            )
        ]

    return points


def _shared_stride(d: Details) -> list[Point]:
    return [
        Point(
            "shared_stride",
            "shared.cu",
            "shared_stride",
            d.cores,
            512,
            {"stride_words": stride},
            {"bytes_a_block": 4.0 * 512 * 4},
            shared_bytes=512 * 64,
            iterations=1024,
            a=stride,
        )
        for stride in (1, 2, 4, 8, 16, 32)
    ]


def _shared_latency(d: Details) -> list[Point]:
    return [
        Point(
            "shared_latency",
            "latency.cu",
            "chase_shared",
            d.cores,
            32,
            {},
            {"steps_a_block": 1.0},
            iterations=2048,
        )
    ]


_RATE = "bytes / span"
MEMORY = (
    Benchmark(
        "dram_read",
        "streaming reads of DRAM over bytes in flight",
        f"largest {_RATE} of the ladder / bandwidth",
        "share",
        ("dram.read_fraction",),
        _dram("read", 1),
    ),
    Benchmark(
        "dram_write",
        "streaming writes",
        f"largest {_RATE} / bandwidth",
        "share",
        ("dram.write_fraction",),
        _dram("write", 1),
    ),
    Benchmark(
        "dram_copy",
        "streaming copies, both directions counted",
        f"largest {_RATE} / bandwidth",
        "share",
        ("dram.copy_fraction",),
        _dram("copy", 2),
    ),
    Benchmark(
        "dram_latency",
        "a load that misses every cache",
        "nanoseconds / steps x max_hz",
        "cycles",
        ("dram.latency_cycles",),
        _dram_latency,
    ),
    Benchmark(
        "l2_read",
        "reads of a growing working set, each core its part",
        f"{_RATE} / max_hz on the plateau; knee",
        "bytes/cycle; share",
        ("l2.bandwidth_bytes_per_cycle", "l2.reuse_fraction"),
        _l2("l2_read", "read_2", True),
    ),
    Benchmark(
        "l2_read_by_all",
        "reads of a growing working set, every core all of it",
        "knee / capacity",
        "count",
        ("l2.partitions",),
        _l2_by_all,
    ),
    Benchmark(
        "l2_write",
        "writes that the L2 holds",
        f"{_RATE} / max_hz",
        "bytes/cycle",
        ("l2.write_bytes_per_cycle",),
        _l2("l2_write", "write_2", False),
    ),
    Benchmark(
        "l2_core_read",
        "reads of one core",
        "bytes / nanoseconds / max_hz",
        "bytes/cycle",
        ("l2.core_bytes_per_cycle",),
        _one_core("l2_core_read", "read_8"),
    ),
    Benchmark(
        "l2_core_write",
        "writes of one core",
        "bytes / nanoseconds / max_hz",
        "bytes/cycle",
        ("l2.core_store_bytes_per_cycle",),
        _one_core("l2_core_write", "write_8"),
    ),
    Benchmark(
        "l2_latency",
        "a load that hits the L2, near and far",
        "nanoseconds / steps x max_hz",
        "cycles",
        ("l2.latency_cycles",),
        _l2_latency,
    ),
    Benchmark("l1_read", "reads of the L1", "bytes / cycles", "bytes/cycle", (), _l1_read),
    Benchmark("l1_latency", "a load that hits the L1", "cycles / steps", "cycles", (), _l1_latency),
    Benchmark(
        "shared_read",
        "conflict-free reads of shared memory",
        "bytes / cycles",
        "bytes/cycle",
        ("scratchpad.bandwidth_bytes_per_cycle",),
        _shared("shared_read", "shared_read"),
    ),
    Benchmark(
        "shared_write",
        "conflict-free writes",
        "bytes / cycles",
        "bytes/cycle",
        (),
        _shared("shared_write", "shared_write"),
    ),
    Benchmark(
        "shared_stride",
        "bank conflicts: lanes 1 to 32 words apart",
        "bytes / cycles",
        "bytes/cycle",
        (),
        _shared_stride,
    ),
    Benchmark(
        "shared_latency",
        "a load from shared memory",
        "cycles / steps",
        "cycles",
        ("scratchpad.latency_cycles",),
        _shared_latency,
    ),
)
