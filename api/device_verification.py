"""Both versions of an operator side by side: its tile program on the CPU and on a device, its CUDA version.

All are given the same operands and held to the same float64 reference and tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from foretile.calibration.device.binding import bind
from foretile.calibration.device.driver import Buffer, DeviceError, Driver
from foretile.kernels.cuda.build import architecture, machine_code
from foretile.kernels.cuda.nvcc import NvccError
from foretile.kernels.cuda.recipe import LaunchRecipe, TensorArg
from foretile.kernels.cuda.registry import cuda_program
from foretile.kernels.cuda.storage import from_device, to_device
from foretile.kernels.errors import TraceError
from foretile.kernels.operator import (
    Arrays,
    Config,
    Operator,
    OperatorError,
    Shape,
    Tolerance,
    load_operator,
    operator_names,
)
from foretile.kernels.tilelang.compiled import CompileError
from foretile.precision import example_shapes
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.execute import execute
from foretile.simulator.numerics.verify import OutputCheck, compare, input_kinds

TILE_CPU, TILE_CUDA, CUDA = "tile, CPU", "tile, GPU", "CUDA, GPU"
_POISON = 0xFF  # what results hold before a kernel writes them: NaN, or −1

Launches = Sequence[tuple[bytes, LaunchRecipe]]


@dataclass(frozen=True)
class VersionCheck:
    """One version's results; ``fault`` says what stopped it, ``missing`` what it would have needed."""

    version: str
    outputs: tuple[OutputCheck, ...] = ()
    fault: str = ""
    missing: str = ""

    @property
    def ok(self) -> bool:
        """Whether it ran and is within the tolerance, or could not be tried here."""
        return bool(self.missing) or (not self.fault and all(check.within for check in self.outputs))


@dataclass(frozen=True)
class DeviceVerification:
    """All versions of an operator at one shape on one kind of inputs."""

    operator: str
    shape: Shape
    config: Config
    inputs: str
    seed: int
    device: str
    tolerance: Tolerance
    versions: tuple[VersionCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether every version that could be tried is within the tolerance."""
        return all(version.ok for version in self.versions)

    def to_json(self) -> dict[str, Any]:
        """Plain data, ``ok`` included, of the whole and of each version."""
        versions = [{**asdict(version), "ok": version.ok} for version in self.versions]
        return {**asdict(self), "versions": versions, "ok": self.ok}


def verify_on_device(
    op: str,
    driver: Driver,
    shape: Mapping[str, Any],
    *,
    config: Mapping[str, Any] | None = None,
    kinds: Sequence[str] | None = None,
    seed: int = 0,
    compile_cuda: Callable[[Operator, Shape, str], Launches] | None = None,
    compile_tile: Callable[[Operator, Shape, Config, str], Launches] | None = None,
) -> list[DeviceVerification]:
    """Run all versions of an operator on fresh inputs, for each of ``kinds`` (default: all the operator has).

    ``compile_cuda`` and ``compile_tile`` make machine code for an architecture; by default the hand-written
    kernels by nvcc or NVRTC, and the tile program by TileLang, which need not be there.

    Raises:
        OperatorError: the operator, its shape or its inputs; it has no CUDA version at this shape.
        NvccError: the CUDA version cannot be compiled.
        DeviceError: the device cannot be used.
    """
    operator = load_operator(op)
    full = operator.shape(**shape)
    settings = operator.config(full, **(config or {}))
    known = input_kinds(operator)
    for kind in kinds or ():
        if kind not in known:
            raise OperatorError(f"{op} has no inputs {kind!r}; it has: {', '.join(known)}")
    arch = architecture(driver.properties.capability)
    cuda = (compile_cuda or _hand_written)(operator, full, arch)
    tile, missing = _tile_launches(compile_tile or _by_tilelang, operator, full, settings, arch)
    versions = _Versions(operator, full, settings, driver, cuda, tile, missing)
    return [versions.on(kind, seed) for kind in kinds or known]


def verify_all_on_device(
    driver: Driver,
    *,
    kinds: Sequence[str] | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Iterator[DeviceVerification]:
    """All versions of every operator, in every type it takes, on its example shape.

    ``kinds``: of the inputs, where an operator has them; all otherwise. A version that does not compile is a
    fault of its operator and stops no other. ``progress`` is told operators done, to do, and the last one.

    Raises:
        OperatorError: no operator has inputs of these kinds.
        DeviceError: the device cannot be used any more.
    """
    operators = [load_operator(name) for name in operator_names()]
    if kinds and not any(set(kinds) & set(input_kinds(operator)) for operator in operators):
        raise OperatorError(f"no operator has inputs {', '.join(kinds)}")
    for done, operator in enumerate(operators):
        own = [kind for kind in kinds or input_kinds(operator) if kind in input_kinds(operator)]
        for shape in example_shapes(operator) if own else ():
            try:
                yield from verify_on_device(operator.name, driver, shape, kinds=own, seed=seed)
            except NvccError as error:
                yield _stopped(operator, shape, driver, seed, str(error))
        if progress is not None:
            progress(done + 1, len(operators), operator.name)


def _stopped(operator: Operator, shape: Shape, driver: Driver, seed: int, fault: str) -> DeviceVerification:
    """An operator whose CUDA version could not be made."""
    name, tolerance = driver.properties.name, operator.tolerance(shape)
    versions = (VersionCheck(CUDA, fault=fault),)
    return DeviceVerification(operator.name, shape, {}, "random", seed, name, tolerance, versions)


@dataclass(frozen=True)
class _Versions:
    """The versions of an operator at a shape, compiled; ``missing`` says why there is no tile program."""

    operator: Operator
    shape: Shape
    config: Config
    driver: Driver
    cuda: Launches
    tile: Launches
    missing: str

    def on(self, kind: str, seed: int) -> DeviceVerification:
        """All of them on fresh inputs of ``kind``."""
        operator, shape, driver = self.operator, self.shape, self.driver
        make = operator.inputs if kind == "random" else operator.adversarial[kind]
        inputs = make(shape, np.random.default_rng(seed))
        with np.errstate(all="ignore"):
            reference = operator.reference(shape, **inputs)

        def run(version: str, compute: Callable[[], Arrays]) -> VersionCheck:
            try:
                results = compute()
            except (DeviceError, NumericsError) as error:
                return VersionCheck(version, fault=str(error))
            return VersionCheck(version, _checks(operator, shape, inputs, results, reference))

        versions = (
            run(TILE_CPU, lambda: _on_cpu(operator, shape, self.config, inputs, tuple(reference))),
            run(CUDA, lambda: run_on(driver, self.cuda, inputs, reference)),
            VersionCheck(TILE_CUDA, missing=self.missing)
            if self.missing
            else run(TILE_CUDA, lambda: run_on(driver, self.tile, inputs, reference)),
        )
        name, tolerance = driver.properties.name, operator.tolerance(shape)
        return DeviceVerification(operator.name, shape, self.config, kind, seed, name, tolerance, versions)


def run_on(
    driver: Driver, launches: Launches, inputs: Mapping[str, np.ndarray], results: Collection[str]
) -> Arrays:
    """All tensors of the launches after them, by name.

    ``inputs`` are uploaded, ``results`` poisoned before; everything else is workspace, zero.

    Raises:
        DeviceError: what the device refuses.
    """
    tensors: dict[str, TensorArg] = {}
    for _, recipe in launches:
        for tensor in recipe.tensors:
            tensors.setdefault(tensor.name, tensor)
    memory: dict[str, Buffer] = {}
    try:
        for name, tensor in tensors.items():
            memory[name] = driver.allocate(max(tensor.bytes, 16))
            if name in inputs:
                driver.write(memory[name], to_device(inputs[name], tensor.dtype))
            else:
                driver.fill(memory[name], _POISON if name in results else 0)
        for code, recipe in launches:
            bind(driver, driver.load(code, recipe.symbol), recipe, memory).enqueue(driver)
        driver.synchronize()
        return {
            name: from_device(driver.read(memory[name], 0, tensor.bytes), tensor.dtype, tensor.shape)
            for name, tensor in tensors.items()
        }
    finally:
        for buffer in memory.values():
            driver.free(buffer)


def _hand_written(operator: Operator, shape: Shape, arch: str) -> Launches:
    return machine_code(cuda_program(operator.name, shape), arch)


def _by_tilelang(operator: Operator, shape: Shape, config: Config, arch: str) -> Launches:
    from foretile.calibration.device.kernels import Kernels

    with Kernels(arch) as kernels:
        return kernels.tile(operator, shape, config).launches


def _tile_launches(
    make: Callable[[Operator, Shape, Config, str], Launches],
    operator: Operator,
    shape: Shape,
    config: Config,
    arch: str,
) -> tuple[Launches, str]:
    """The tile program's machine code, or why there is none."""
    try:
        return make(operator, shape, config, arch), ""
    except (CompileError, NvccError, OperatorError, TraceError) as error:
        return (), str(error).splitlines()[0]


def _on_cpu(
    operator: Operator, shape: Shape, config: Config, inputs: Arrays, names: tuple[str, ...]
) -> Arrays:
    sizes = {p.name: int(shape[p.name]) for p in operator.params if p.dynamic}
    ran = execute(operator.program(shape, config), inputs, outputs=names, dims=sizes)
    return {name: ran.tensors[name] for name in names}


def _checks(
    operator: Operator, shape: Shape, inputs: Arrays, results: Arrays, reference: Arrays
) -> tuple[OutputCheck, ...]:
    stored = {name: str(results[name].dtype) for name in reference}
    got = operator.comparable(shape, inputs, {name: results[name] for name in reference})
    wanted = operator.comparable(shape, inputs, reference)
    tolerance = operator.tolerance(shape)
    return tuple(
        compare(name, got[name], np.asarray(wanted[name]), tolerance, stored[name]) for name in reference
    )
