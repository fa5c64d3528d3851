"""A launch of a microbenchmark to be measured, and what was measured, as plain data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from foretile.calibration.device.driver import DeviceError
from foretile.calibration.device.micro.details import Details
from foretile.kernels.cuda.recipe import LaunchRecipe, ScalarArg, TensorArg

Param = int | str
TICKS_A_BLOCK = 4


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: a kernel of a ``.cu`` file, its geometry, and what one iteration of its loop does.

    ``params`` name the point within its benchmark. ``a`` and ``b`` are the kernel's own two numbers,
    ``bytes`` its buffer. ``work``: by name (bytes, flop, steps, …), what one iteration of the whole grid
    does, or a core's blocks where the name ends in ``_a_block``. ``adaptive``: iterations are raised until a
    launch takes about a millisecond. ``setup``: a kernel with its (a, b) that prepares the buffer. ``cold``:
    what the L2 holds is overwritten before each repetition. ``nodes`` launches make up a graph, replayed
    ``replays`` times, for one event time. ``busy_s``: the same launch is repeated for so long before.
    ``ticks``: the kernel writes them.
    """

    benchmark: str
    file: str
    kernel: str
    grid: int
    block: int
    params: Mapping[str, Param] = field(default_factory=dict)
    work: Mapping[str, float] = field(default_factory=dict)
    shared_bytes: int = 0
    bytes: int = 0
    iterations: int = 1
    a: int = 0
    b: int = 0
    adaptive: bool = True
    setup: tuple[str, int, int] | None = None
    cold: bool = False
    nodes: int = 0
    replays: int = 1
    busy_s: float = 0.0
    ticks: bool = True

    @property
    def key(self) -> str:
        """What tells this measurement from every other: equal keys mean equal launches."""
        given = ",".join(f"{name}={value}" for name, value in sorted(self.params.items()))
        geometry = (
            self.grid,
            self.block,
            self.bytes,
            self.a,
            self.b,
            self.iterations,
            self.nodes,
            self.replays,
        )
        return f"{self.benchmark}({given}) {self.kernel}{geometry}".replace(" ", "")

    @property
    def ticked_blocks(self) -> int:
        """Blocks that there must be room for in the ticks."""
        return self.grid if self.ticks else 1

    def iterated(self, iterations: int) -> Point:
        """The same with another number of iterations."""
        return replace(self, iterations=iterations)

    def recipe(self) -> LaunchRecipe:
        """How the kernel is launched (signature: ``micro.cuh``)."""
        return _recipe(self, self.kernel, self.iterations, self.a, self.b)

    def setup_recipe(self) -> LaunchRecipe | None:
        """How the kernel that prepares the buffer is launched."""
        if self.setup is None:
            return None
        name, a, b = self.setup
        return _recipe(replace(self, block=256, shared_bytes=0), name, 1, a, b)


def _recipe(point: Point, symbol: str, iterations: int, a: int, b: int) -> LaunchRecipe:
    return LaunchRecipe(
        symbol=symbol,
        grid=(point.grid, 1, 1),
        block=(point.block, 1, 1),
        shared_bytes=point.shared_bytes,
        args=(
            TensorArg("data", "uint8", (max(256, point.bytes),), "inout"),
            ScalarArg("uint64", point.bytes, "bytes"),
            TensorArg("ticks", "int64", (TICKS_A_BLOCK * point.ticked_blocks,), "out"),
            ScalarArg("int32", iterations, "iterations"),
            ScalarArg("int32", a, "a"),
            ScalarArg("int32", b, "b"),
        ),
    )


Points = Callable[[Details], list[Point]]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Points that together isolate one thing; ``fields`` of a chip file are made of it (none: reported only).

    ``least``: compute capability that it needs; ``only``: the capability's major numbers, where its
    instructions belong to one architecture.
    """

    name: str
    isolates: str
    formula: str
    unit: str
    fields: tuple[str, ...]
    points: Points
    least: tuple[int, int] = (8, 0)
    only: tuple[int, ...] = ()

    def runs_on(self, details: Details) -> bool:
        """Whether the device has what it measures."""
        return details.capability >= self.least and (not self.only or details.capability[0] in self.only)


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured at one point; an entry a repetition.

    ``seconds`` lie between two events of the device; ``cycles`` and ``nanoseconds`` are the median over
    blocks of the timed loop's, by the core's clock and the global timer; ``span_s`` goes from the first
    block's start to the last one's end. ``work`` is that of the whole launch. ``flags``: what makes it
    doubtful (``throttled``, ``short``); without any entry, why (``stopped the device``).
    """

    key: str
    benchmark: str
    params: Mapping[str, Param]
    iterations: int
    grid: int
    block: int
    nodes: int
    replays: int
    work: Mapping[str, float]
    seconds: tuple[float, ...]
    cycles: tuple[float, ...]
    nanoseconds: tuple[float, ...]
    span_s: tuple[float, ...]
    core_hz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    flags: tuple[str, ...] = ()

    def to_json(self) -> str:
        """One line of JSON."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps(
            {n: dict(v) if isinstance(v, Mapping) else v for n, v in data.items()}, allow_nan=False
        )

    @staticmethod
    def from_json(line: str) -> Row:
        """Rebuild a row.

        Raises:
            DeviceError: it is not one.
        """
        try:
            data: dict[str, Any] = json.loads(line)
            for name in ("seconds", "cycles", "nanoseconds", "span_s", "flags"):
                data[name] = tuple(data[name])
            return Row(**data)
        except (TypeError, ValueError, KeyError) as error:
            raise DeviceError(f"not a row of a microbenchmark: {error}") from None
