"""What is measured of barriers, hand-overs, atomics, asynchronous copies, tensor memory and launches."""

from __future__ import annotations

from foretile.calibration.device.micro.details import Details
from foretile.calibration.device.micro.points import Benchmark, Point, Points

_SPIN_CYCLES = (4000, 12000)
RING_STAGES = 8


def _block_barrier(d: Details) -> list[Point]:
    return [
        Point(
            "block_barrier",
            "sync.cu",
            "block_barrier",
            d.cores,
            32 * warps,
            {"warps": warps},
            {"steps_a_block": 4.0},
            iterations=1024,
        )
        for warps in (1, 2, 4, 8, 16, 32)
    ]


def _named_barrier(d: Details) -> list[Point]:
    return [
        Point(
            "named_barrier",
            "sync.cu",
            "named_barrier",
            d.cores,
            256,
            {"warps": warps},
            {"steps_a_block": 4.0},
            iterations=1024,
            a=warps,
        )
        for warps in (1, 2, 4)
    ]


def _hand_over(d: Details) -> list[Point]:
    steps = 2.0 if d.capability[0] >= 9 else 1.0
    return [
        Point(
            "hand_over", "sync.cu", "hand_over", d.cores, 256, {}, {"steps_a_block": steps}, iterations=1024
        )
    ]


def _cluster_barrier(d: Details) -> list[Point]:
    return [
        Point(
            "cluster_barrier",
            "sync.cu",
            f"cluster_barrier_{blocks}",
            d.cores // blocks * blocks,
            256,
            {"blocks": blocks},
            {"steps_a_block": 1.0},
            iterations=1024,
        )
        for blocks in (2, 4)
    ]


def _atomic_global(d: Details) -> list[Point]:
    grid = 2 * d.cores
    unit = grid * 512 * 4
    size = max(1, d.l2_bytes // 8 // unit) * unit
    return [
        Point("atomic_global", "sync.cu", "atomic_global", grid, 512, {}, {"bytes": float(size)}, bytes=size)
    ]


def _atomic_one_address(d: Details) -> list[Point]:
    return [
        Point(
            "atomic_one_address",
            "sync.cu",
            "atomic_one_address",
            d.cores,
            256,
            {},
            {"updates": 256.0 * d.cores},
            bytes=256,
            iterations=16,
        )
    ]


def _atomic_shared(d: Details) -> list[Point]:
    return [
        Point(
            "atomic_shared",
            "sync.cu",
            "atomic_shared",
            d.cores,
            512,
            {"lanes_an_address": lanes},
            {"updates_a_block": 2.0 * 512},
            iterations=512,
            a=lanes,
        )
        for lanes in (1, 4, 32)
    ]


def _ring(name: str, kernel: str, block: int, stages: int, sizes: tuple[int, ...], one: bool) -> Points:
    def points(d: Details) -> list[Point]:
        grid = 1 if one else d.cores
        fitting = [s for s in sizes if s * stages <= d.shared_bytes_per_block - 1024]
        return [
            Point(
                name,
                "bulk.cu",
                kernel,
                grid,
                block,
                {"copy_bytes": size, "stages": stages},
                {"steps_a_block": 1.0, "bytes": float(size * grid)},
                shared_bytes=size * stages,
                bytes=grid * max(size, 32768),
                iterations=512,
                a=size,
                b=stages,
            )
            for size in fitting
        ]

    return points


def _tensor_memory(d: Details) -> list[Point]:
    return [
        Point(
            "tensor_memory_read",
            "tcgen05.cu",
            "tensor_memory_read",
            d.cores,
            256,
            {},
            {"bytes_a_block": 4.0 * 4096 * 8},
            iterations=512,
        )
    ]


def _launch_chain(d: Details) -> list[Point]:
    return [
        Point(
            "launch_chain",
            "launch.cu",
            "empty",
            1,
            128,
            {"kernels": nodes},
            {},
            ticks=False,
            adaptive=False,
            nodes=nodes,
        )
        for nodes in (16, 64, 128, 256)
    ]


def _launch_ramp(d: Details) -> list[Point]:
    return [
        Point(
            "launch_ramp",
            "launch.cu",
            "spin",
            d.cores,
            128,
            {"kernels": nodes, "cycles": cycles},
            ticks=False,
            iterations=cycles,
            adaptive=False,
            nodes=nodes,
        )
        for cycles in _SPIN_CYCLES
        for nodes in (16, 64)
    ]


def _launch_blocks(d: Details) -> list[Point]:
    return [
        Point(
            "launch_blocks",
            "launch.cu",
            "empty",
            blocks,
            32,
            {"blocks": blocks},
            {},
            ticks=False,
            adaptive=False,
            nodes=4,
        )
        for blocks in (1 << 14, 1 << 16, 1 << 18, 1 << 19)
    ]


def _launch_graph(d: Details) -> list[Point]:
    return [
        Point(
            "launch_graph",
            "launch.cu",
            "empty",
            1,
            128,
            {"replays": replays},
            {},
            ticks=False,
            adaptive=False,
            nodes=8,
            replays=replays,
        )
        for replays in (4, 16, 64)
    ]


def _light_clock(d: Details) -> list[Point]:
    return [
        Point(
            "light_clock",
            "launch.cu",
            "spin_timed",
            d.cores,
            32,
            {},
            {},
            iterations=4_000_000,
            adaptive=False,
        )
    ]


OVERHEADS = (
    Benchmark(
        "block_barrier",
        "a block barrier by warps",
        "intercept and slope of cycles / barriers over warps",
        "cycles",
        ("sync.barrier_cycles", "sync.barrier_cycles_per_warp"),
        _block_barrier,
    ),
    Benchmark(
        "named_barrier", "barriers of groups of warps", "cycles / barriers", "cycles", (), _named_barrier
    ),
    Benchmark(
        "hand_over",
        "handing a stage of a pipeline over",
        "cycles / hand-overs",
        "cycles",
        ("sync.pipeline_barrier_cycles",),
        _hand_over,
    ),
    Benchmark(
        "cluster_barrier", "barriers of clusters", "cycles / barriers", "cycles", (), _cluster_barrier, (9, 0)
    ),
    Benchmark(
        "atomic_global",
        "coalesced additions in the L2",
        "bytes / span / max_hz",
        "bytes/cycle",
        ("sync.atomic_bytes_per_cycle",),
        _atomic_global,
    ),
    Benchmark(
        "atomic_one_address", "additions to one address", "updates / span", "1/s", (), _atomic_one_address
    ),
    Benchmark(
        "atomic_shared", "additions in shared memory", "updates / cycles", "1/cycle", (), _atomic_shared
    ),
    Benchmark(
        "async_latency",
        "an asynchronous copy from the L2, by size",
        "nanoseconds / steps x max_hz",
        "cycles",
        (),
        _ring("async_latency", "async_ring", 128, 1, (2048, 4096, 8192, 16384), True),
    ),
    Benchmark(
        "async_throughput",
        "asynchronous copies, eight in flight a core",
        "bytes / span / max_hz",
        "bytes/cycle",
        (),
        _ring("async_throughput", "async_ring", 128, RING_STAGES, (2048, 4096, 8192), False),
    ),
    Benchmark(
        "bulk_latency",
        "a bulk copy from the L2, by size",
        "intercept over size x max_hz, less l2_latency",
        "cycles",
        ("l2.bulk_copy_cycles",),
        _ring("bulk_latency", "bulk_ring", 32, 1, (1024, 2048, 4096, 8192, 16384), True),
        (9, 0),
    ),
    Benchmark(
        "bulk_throughput",
        "bulk copies, eight in flight a core",
        "bytes / span / max_hz",
        "bytes/cycle",
        (),
        _ring("bulk_throughput", "bulk_ring", 32, RING_STAGES, (1024, 4096, 16384), False),
        (9, 0),
    ),
    Benchmark(
        "tensor_memory_read",
        "reads of tensor memory into registers",
        "bytes / cycles",
        "bytes/cycle",
        ("tensor_memory.read_bytes_per_cycle",),
        _tensor_memory,
        (10, 0),
        (10,),
    ),
    Benchmark(
        "launch_chain",
        "kernels that follow each other in a graph",
        "slope of seconds over kernels",
        "s",
        ("launch.kernel_s",),
        _launch_chain,
    ),
    Benchmark(
        "launch_ramp",
        "kernels of two lengths on all cores",
        "slope over kernels, at a length of zero, less launch.kernel_s",
        "s",
        ("launch.ramp_s",),
        _launch_ramp,
    ),
    Benchmark(
        "launch_blocks",
        "kernels of very many empty blocks",
        "1 / slope of seconds over blocks / max_hz",
        "blocks/cycle",
        ("launch.blocks_per_cycle",),
        _launch_blocks,
    ),
    Benchmark(
        "launch_graph",
        "replays of a graph",
        "slope of seconds over replays less its kernels",
        "s",
        ("launch.graph_s",),
        _launch_graph,
    ),
    Benchmark(
        "light_clock", "the clock of cores that do little", "cycles / nanoseconds", "Hz", (), _light_clock
    ),
)
