"""What is measured of a core's arithmetic: matrix instructions and the other pipes."""

from __future__ import annotations

from typing import Any

from foretile.calibration.device.micro.details import Details
from foretile.calibration.device.micro.points import Benchmark, Param, Point, Points

MAINLOOP_FLOP = {
    "mma_sync": 2.0 * 128 * 128 * 32,
    "wgmma": 2.0 * 128 * 256 * 64,
    "tcgen05": 2.0 * 128 * 256 * 64,
}
_DEPTH = {"bf16": 16, "fp16": 16, "tf32": 8, "fp8": 32, "int8": 32, "int4": 64, "fp4": 64}  # of 32 bytes
# Contents of operands (micro.cuh): random ones switch as many bits as a network's do.
_RANDOM = {"bf16": 1, "fp16": 2, "tf32": 1, "fp8": 3, "int8": 3, "int4": 1, "fp4": 3, "fp64": 1}
_MMA_A_WARP = 32  # instructions of an iteration (matrix.cu)
_STAGES = {"mma_sync": (3, 16384), "wgmma": (4, 49152), "tcgen05": (4, 49152)}  # of bytes
_BLOCKS_A_CORE = {"mma_sync": 2, "wgmma": 1, "tcgen05": 1}
_COPIED = {"mma_sync": 0, "wgmma": 16384, "tcgen05": 16384}  # of a stage in every step; 0: fixed there
_NO_INTEGERS = (10, 3)  # PTX ISA: tcgen05.mma kind::i8 is not supported there
_BUSY_S = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)


_ASYNCHRONOUS = (9, 10)  # major numbers of the compute capabilities that have another than mma.sync


def instruction_of(d: Details) -> str:
    """How programs drive the matrix engine (``matrix.instruction`` of a chip file), by compute capability."""
    return {9: "wgmma", 10: "tcgen05"}.get(d.capability[0], "mma_sync")


def _mma(d: Details, benchmark: str, dtype: str) -> Point:
    if dtype == "fp64":  # its operands and accumulators take 170 registers a thread
        threads, flop = 256, 2.0 * 16 * 8 * 8 if d.capability[0] >= 9 else 2.0 * 8 * 8 * 4
    else:
        threads, flop = 512, 2.0 * 16 * 8 * _DEPTH[dtype]
    return Point(
        benchmark,
        "matrix.cu",
        f"mma_{dtype}",
        d.cores,
        threads,
        {"dtype": dtype, "instruction": "mma_sync"},
        {"flop_a_block": threads / 32 * _MMA_A_WARP * flop},
        iterations=64,
        b=_RANDOM[dtype],
    )


def _wide(d: Details, benchmark: str, dtype: str, n: int = 256, source: str = "ss") -> Point:
    """An asynchronous instruction of ``n`` columns."""
    params: dict[str, Param] = {"dtype": dtype, "n": n, "source": source, "instruction": instruction_of(d)}
    if instruction_of(d) == "wgmma":
        return Point(
            benchmark,
            "wgmma.cu",
            f"wgmma_{dtype}_{source}_{n}",
            d.cores,
            256,
            params,
            {"flop_a_block": 2 * 4 * 2.0 * 64 * n * _DEPTH[dtype]},
            shared_bytes=128 * n + 16384,
            iterations=64,
            b=_RANDOM[dtype],
        )
    return Point(
        benchmark,
        "tcgen05.cu",
        f"tcgen05_{dtype}_{source}_{n}",
        d.cores,
        128,
        params,
        {"flop_a_block": 4 * 2.0 * 128 * n * _DEPTH[dtype]},
        shared_bytes=128 * n + 16384,
        iterations=64,
        a=4,
        b=_RANDOM[dtype],
    )


def _rates(d: Details) -> list[Point]:
    if instruction_of(d) == "mma_sync":
        eight = ["fp8"] if d.capability >= (8, 9) else ["int4"]
        return [_mma(d, "matrix_rate", t) for t in ("bf16", "fp16", "tf32", "int8", *eight, "fp64")]
    four = ["fp4"] if instruction_of(d) == "tcgen05" else []
    whole = [] if d.capability == _NO_INTEGERS else ["int8"]
    wide = [_wide(d, "matrix_rate", t) for t in ("bf16", "fp16", "tf32", "fp8", *whole, *four)]
    return [*wide, _mma(d, "matrix_rate", "fp64")]


def _sync_rate(d: Details) -> list[Point]:
    return [_mma(d, "matrix_sync_rate", "bf16")]


def _widths(d: Details) -> list[Point]:
    """Columns from few to many; both sources of A where the narrow ones differ by it."""
    if instruction_of(d) == "wgmma":
        shared = [_wide(d, "matrix_width", "bf16", n) for n in (8, 16, 32, 64, 128, 256)]
        return shared + [_wide(d, "matrix_width", "bf16", n, "rs") for n in (64, 256)]
    shared = [_wide(d, "matrix_width", "bf16", n) for n in (64, 128, 256)]
    return shared + [_wide(d, "matrix_width", "bf16", n, "ts") for n in (64, 256)]


def _latency(d: Details) -> list[Point]:
    how = instruction_of(d)
    work = {"steps_a_block": 1.0}
    if how == "wgmma":
        return [
            Point(
                "matrix_latency",
                "wgmma.cu",
                "wgmma_latency_bf16_256",
                d.cores,
                128,
                {"instruction": how},
                work,
                shared_bytes=256 * 128 + 8192,
                iterations=512,
                b=1,
            )
        ]
    if how == "tcgen05":
        return [
            Point(
                "matrix_latency",
                "tcgen05.cu",
                "tcgen05_latency_bf16_128",
                d.cores,
                128,
                {"instruction": how},
                work,
                shared_bytes=128 * 128 + 16384,
                iterations=512,
                a=1,
                b=1,
            )
        ]
    return [
        Point(
            "matrix_latency",
            "matrix.cu",
            "mma_latency_bf16",
            d.cores,
            32,
            {"instruction": how},
            {"steps_a_block": 32.0},
            iterations=64,
            b=1,
        )
    ]


def _mainloop(d: Details, benchmark: str = "matrix_mainloop", **more: Any) -> Point:
    how = instruction_of(d)
    file, kernel, block = {
        "mma_sync": ("matrix.cu", "mainloop_mma_bf16", 256),
        "wgmma": ("wgmma.cu", "mainloop_wgmma_bf16", 288),
        "tcgen05": ("tcgen05.cu", "mainloop_tcgen05_bf16", 128),
    }[how]
    stages, size = _STAGES[how]
    grid = _BLOCKS_A_CORE[how] * d.cores
    return Point(
        benchmark,
        file,
        kernel,
        grid,
        block,
        {"instruction": how, **more},
        {"flop_a_block": _BLOCKS_A_CORE[how] * MAINLOOP_FLOP[how]},  # of all that share a core
        shared_bytes=stages * size,
        bytes=size * grid,
        iterations=512,
        a=_COPIED[how],
        b=1,
        busy_s=float(more.get("busy_us", 0)) * 1e-6,
    )


def _clock(d: Details) -> list[Point]:
    return [_mainloop(d, "matrix_clock", busy_us=round(1e6 * busy)) for busy in _BUSY_S]


# Kernel of vector.cu: results a thread of one iteration (instructions x results of each).
_RATES = {
    "fma_f32": 32,
    "fma_f64": 32,
    "fma_f16x2": 64,
    "fma_bf16x2": 64,
    "add3_s32": 32,
    "logic_b32": 32,
    "max_f32": 32,
    "mad_s32": 32,
    "ex2_f32": 32,
    "lg2_f32": 32,
    "rcp_f32": 32,
    "rsqrt_f32": 32,
    "sin_f32": 32,
    "tanh_f32": 32,
    "f32_to_bf16x2": 64,
    "f32_to_f16x2": 64,
    "f32_to_e4m3x2": 128,
    "e4m3x2_to_f16x2": 64,
    "f32_to_e2m1x2": 64,
    "issue": 64,
}
_NEED = {"f32_to_e4m3x2": (8, 9), "e4m3x2_to_f16x2": (8, 9), "f32_to_e2m1x2": (10, 0)}
SOFTMAX_THREADS, SOFTMAX_ELEMENTS = 256, 64


def _vector(*names: str) -> Points:
    def points(d: Details) -> list[Point]:
        return [
            Point(
                f"rate_{name}",
                "vector.cu",
                f"rate_{name}",
                d.cores,
                1024,
                {},
                {"results_a_block": 1024.0 * _RATES[name]},
                iterations=64,
                a=1,
                b=2,
            )
            for name in names
        ]

    return points


def _rate(name: str, isolates: str, *fields: str) -> Benchmark:
    return Benchmark(
        f"rate_{name}",
        isolates,
        "results / cycles",
        "results/cycle",
        fields,
        _vector(name),
        _NEED.get(name, (8, 0)),
    )


def _fma_latency(d: Details) -> list[Point]:
    return [
        Point(
            "latency_fma",
            "vector.cu",
            "latency_fma_f32",
            d.cores,
            32,
            {},
            {"steps_a_block": 32.0},
            iterations=256,
            a=1,
            b=2,
        )
    ]


def _softmax(d: Details) -> list[Point]:
    return [
        Point(
            "softmax_code",
            "vector.cu",
            "softmax_code",
            d.cores,
            SOFTMAX_THREADS,
            {},
            {"elements_a_block": float(SOFTMAX_THREADS * SOFTMAX_ELEMENTS)},
            iterations=256,
        )
    ]


CORES = (
    Benchmark(
        "matrix_rate",
        "matrix instructions by type",
        "FLOP / cycles",
        "FLOP/cycle",
        ("matrix.flop_per_cycle",),
        _rates,
    ),
    Benchmark(
        "matrix_sync_rate",
        "the older, warp-synchronous instruction",
        "its FLOP / cycles over matrix_rate's",
        "share",
        ("matrix.sync_fraction",),
        _sync_rate,
        only=_ASYNCHRONOUS,
    ),
    Benchmark(
        "matrix_width",
        "instructions of few columns, A from shared memory or not",
        "least n at 0.95 of the rate",
        "columns",
        ("matrix.n",),
        _widths,
        only=_ASYNCHRONOUS,
    ),
    Benchmark(
        "matrix_latency",
        "one matrix instruction at a time",
        "cycles / steps",
        "cycles",
        ("matrix.latency_cycles",),
        _latency,
    ),
    Benchmark(
        "matrix_mainloop",
        "a main loop: copies, barriers, operands from shared memory",
        "FLOP / cycles over the rate",
        "share",
        ("matrix.mainloop_fraction",),
        lambda d: [_mainloop(d)],
    ),
    Benchmark(
        "matrix_clock",
        "the clock under matrix work of growing length",
        "cycles / nanoseconds; fit over length",
        "Hz",
        ("clock.matrix_burst_hz", "clock.matrix_sustained_hz", "clock.settle_s"),
        _clock,
    ),
    _rate("fma_f32", "fp32 multiply-adds", "vector.fp32_per_cycle"),
    _rate("fma_f64", "fp64 multiply-adds"),
    _rate("fma_f16x2", "packed half multiply-adds", "vector.half_per_cycle"),
    _rate("fma_bf16x2", "packed bfloat16 multiply-adds"),
    _rate("max_f32", "maxima", "vector.alu_per_cycle"),
    _rate("logic_b32", "logic of three operands"),
    _rate("add3_s32", "integer additions of three operands"),
    _rate("mad_s32", "integer multiply-adds"),
    _rate("ex2_f32", "exp2", "vector.special_per_cycle"),
    _rate("lg2_f32", "log2"),
    _rate("rcp_f32", "reciprocals"),
    _rate("rsqrt_f32", "reciprocal square roots"),
    _rate("sin_f32", "sines (with a multiplication each)"),
    _rate("tanh_f32", "hyperbolic tangents"),
    _rate("f32_to_bf16x2", "fp32 to bfloat16, two at a time", "vector.convert_per_cycle"),
    _rate("f32_to_f16x2", "fp32 to half, two at a time"),
    _rate("f32_to_e4m3x2", "fp32 to fp8, two at a time"),
    _rate("e4m3x2_to_f16x2", "fp8 to half, two at a time"),
    _rate("f32_to_e2m1x2", "fp32 to fp4, two at a time"),
    _rate("issue", "instructions of two pipes in turn", "vector.issue_per_cycle"),
    Benchmark(
        "latency_fma",
        "a chain of multiply-adds",
        "cycles / steps",
        "cycles",
        ("vector.latency_cycles",),
        _fma_latency,
    ),
    Benchmark(
        "softmax_code",
        "the softmax between an attention kernel's products",
        "cycles at the measured rates of its busiest pipe / cycles",
        "share",
        ("vector.code_fraction",),
        _softmax,
    ),
)
