"""All microbenchmarks, in the order in which they are measured."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from foretile.calibration.device.driver import DeviceError
from foretile.calibration.device.micro.core_points import CORES
from foretile.calibration.device.micro.details import Details
from foretile.calibration.device.micro.memory_points import MEMORY
from foretile.calibration.device.micro.overhead_points import OVERHEADS
from foretile.calibration.device.micro.points import Benchmark, Point

BENCHMARKS: tuple[Benchmark, ...] = (*OVERHEADS, *MEMORY, *CORES)
"""Short, cool work first: what heats the chip comes last."""


def chosen(details: Details, only: Sequence[str] = ()) -> list[Benchmark]:
    """The benchmarks for a device; with ``only`` those that are named, or whose name begins so.

    Raises:
        DeviceError: a name that fits none, or none that this device can run.
    """
    wanted = BENCHMARKS if not only else tuple(b for b in BENCHMARKS if b.name.startswith(tuple(only)))
    for name in only:
        if not any(b.name.startswith(name) for b in BENCHMARKS):
            near = difflib.get_close_matches(name, [b.name for b in BENCHMARKS], n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise DeviceError(f"no microbenchmark {name!r}{hint}")
    found = [b for b in wanted if b.runs_on(details)]
    if not found:
        major, minor = details.capability
        names = ", ".join(b.name for b in wanted)
        raise DeviceError(f"{names}: not on a device of compute capability {major}.{minor}")
    return found


def points(details: Details, only: Sequence[str] = ()) -> list[Point]:
    """What is to be measured on a device, in order.

    Raises:
        DeviceError: see :func:`chosen`.
    """
    return [point for benchmark in chosen(details, only) for point in benchmark.points(details)]
