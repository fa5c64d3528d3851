"""What TileLang's compiler made of an operator, beside what the lowering assumed of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from foretile import hwmodels
from foretile.frontdoor import ChipRef, Op, resolve
from foretile.hwmodels.schema import Chip
from foretile.kernels.cuda.nvcc import NvccError
from foretile.kernels.ir import TILELANG, TileProgram
from foretile.kernels.operator import Config, Operator, Shape
from foretile.kernels.tilelang.compiled import CompileError
from foretile.kernels.tilelang.compiler import CompiledKernel, Compiler, compile_cuda
from foretile.kernels.tilelang.versions import installed, require
from foretile.simulator.lowering.lower import lower
from foretile.simulator.lowering.tilelang_rules import INSTRUCTIONS
from foretile.simulator.machine import Machine, SimulationError
from foretile.simulator.prediction import Prediction
from foretile.simulator.predictor import target
from foretile.simulator.workload import Branch, Loop, Node, Workload

# The architecture that a family of chips takes code for (CUDA C++ Programming Guide 13.0, "Compute
# Capabilities"; NVIDIA, "CUDA GPU Compute Capability"), where kernels are generated for it.
_ARCHITECTURES = {
    ("NVIDIA", "ampere"): "sm_80",
    ("NVIDIA", "ada"): "sm_89",
    ("NVIDIA", "hopper"): "sm_90a",
    ("NVIDIA", "blackwell"): "sm_100a",
}
_REGISTER_STEP = 8  # registers of a thread are allocated in such steps (a warp's in steps of 256)


@dataclass(frozen=True, slots=True)
class Difference:
    """One fact about a kernel: what the lowering assumed, what the compiler did."""

    what: str
    assumed: str
    actual: str

    @property
    def same(self) -> bool:
        """Whether the two agree."""
        return self.assumed == self.actual


@dataclass(frozen=True, slots=True)
class Comparison:
    """One launch. ``refused`` says why there is no code, where TileLang or nvcc make none."""

    kernel: str
    arch: str
    facts: tuple[Difference, ...] = ()
    refused: str = ""

    @property
    def mismatches(self) -> tuple[Difference, ...]:
        """What the lowering assumed wrongly."""
        return tuple(fact for fact in self.facts if not fact.same)

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        return asdict(self)


def architecture(chip: Chip) -> str:
    """What ``chip`` takes code for ("sm_90a"), empty if it takes none that TileLang makes here."""
    return _ARCHITECTURES.get((chip.vendor, chip.family), "")


def compare_compiled(
    operator: Operator, shape: Shape, chip: Chip, config: Config, compiler: Compiler
) -> tuple[Comparison, ...]:
    """The launches of an operator's configuration, compiled for ``chip`` and compared.

    What was assumed is what is assumed of programs that TileLang compiles. Empty where ``chip`` takes no CUDA
    code, or where a ``compiler`` that starts nothing has not kept it.

    Raises:
        TraceError: TileLang is not installed.
    """
    arch = architecture(chip)
    if not arch:
        return ()
    operator = replace(operator, toolchain=TILELANG)
    machine = target(operator, shape, chip).machine
    programs = operator.program(shape, config)
    several = (programs,) if isinstance(programs, TileProgram) else programs
    found = []
    for program in several:
        if compiler.only_kept and not compiler.has(program, arch):
            return ()
        found.append(_compared(replace(program, toolchain=TILELANG), machine, arch, compiler))
    return tuple(found)


def _compared(program: TileProgram, machine: Machine, arch: str, compiler: Compiler) -> Comparison:
    try:
        kernel = compile_cuda(program, arch, compiler=compiler)
    except (CompileError, NvccError) as error:
        return Comparison(program.name, arch, refused=str(error))
    try:
        assumed = lower(program, machine)
    except SimulationError as error:
        return Comparison(program.name, arch, refused=f"it is not predicted: {error}")
    return Comparison(program.name, arch, tuple(_facts(program, machine, assumed, kernel)))


def _facts(
    program: TileProgram, machine: Machine, assumed: Workload, kernel: CompiledKernel
) -> Iterator[Difference]:
    decided, resources, recipe = kernel.generated.decisions, kernel.resources, kernel.recipe
    block, own = assumed.occupancy, -(-program.threads // machine.warp_size) * machine.warp_size
    yield _fact("threads of a block", block.threads, recipe.threads)
    yield _fact("threads that only copy", block.threads - own, decided.producers)
    yield _fact("stages", _deepest(assumed.nodes), decided.stages)
    if machine.bulk_copy:
        bulk = sum(access.bulk for access in assumed.accesses)
        yield _fact("bulk tensor copies that load", bulk, decided.operations.get("tma_copy", 0))
    shared = recipe.shared_bytes + resources.static_shared_bytes
    yield _fact("shared memory of a block (bytes)", block.scratchpad_bytes, shared)
    yield _fact("registers of a thread", block.registers_per_thread, resources.registers)
    yield _fact("spilled bytes of a thread", block.spilled_bytes, resources.spill_store_bytes)
    resident = _resident(machine, recipe.threads, shared, resources.registers)
    yield _fact("blocks on a core", block.blocks_per_core, resident)
    if assumed.instructions:
        counts = kernel.generated.instructions
        yield _fact(
            "matrix instruction",
            " and ".join(name for name in INSTRUCTIONS if name in assumed.instructions),
            " and ".join(name for name in INSTRUCTIONS if counts[name]) or "none",
        )


def _deepest(nodes: tuple[Node, ...]) -> int:
    """Iterations that loads run ahead, at most."""
    found = 1
    for node in nodes:
        if isinstance(node, Loop):
            found = max(found, node.stages if node.loads else 1, _deepest(node.body))
        elif isinstance(node, Branch):
            found = max(found, _deepest(node.then), _deepest(node.orelse))
    return found


def _fact(what: str, assumed: float | str, actual: float | str) -> Difference:
    return Difference(what, str(assumed), str(actual))


def _resident(machine: Machine, threads: int, shared: int, registers: int) -> int:
    """Blocks that a core holds at once, by what the machine code occupies."""
    stepped = -(-registers // _REGISTER_STEP) * _REGISTER_STEP
    return int(
        min(
            machine.scratchpad_bytes // max(1, shared + machine.scratchpad_reserved_bytes),
            machine.register_bytes // 4 // (stepped * threads),
            machine.threads_per_core // threads,
            machine.blocks_per_core,
        )
    )


def require_compiler(chip: ChipRef) -> None:
    """Say what is missing before any work is done.

    Raises:
        CompileError, TraceError: TileLang is not installed, or makes no CUDA code for ``chip`` here.
    """
    machine = hwmodels.load_chip(chip)
    if not architecture(machine):
        raise CompileError(f"{machine.id} takes no CUDA code that TileLang makes here ({_listed()})")
    require("compiling it")


def _listed() -> str:
    return ", ".join(f"{family} {arch}" for (_, family), arch in _ARCHITECTURES.items())


def of_prediction(
    op: Op, chip: ChipRef, prediction: Prediction, *, compile_now: bool
) -> tuple[Comparison, ...]:
    """The launches of what was predicted. Unless ``compile_now``, only if they are compiled already.

    Raises:
        CompileError, TraceError: as :func:`require_compiler`, where it is to be compiled.
    """
    if compile_now:
        require_compiler(chip)
    machine = hwmodels.load_chip(chip)
    if not architecture(machine) or (not compile_now and installed() is None):
        return ()
    operator, shape = resolve(op, prediction.shape, chip=machine)
    with Compiler(only_kept=not compile_now) as compiler:
        return compare_compiled(operator, shape, machine, dict(prediction.config), compiler)
