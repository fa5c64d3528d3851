"""Tile programs of the bundles through TileLang and nvcc: every operator and variant, three architectures."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from device_bundles import need_compilers

from foretile.calibration.device.suites import load_suite
from foretile.kernels.cuda.nvcc import Compiled, compile_kernel
from foretile.kernels.cuda.recipe import LaunchRecipe
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Operator, Shape
from foretile.kernels.tilelang.compiler import Compiler, flags

SUITE = load_suite(str(Path(__file__).with_name("compiled.yaml")))
CAPABILITY = {"sm_80": (8, 0), "sm_90a": (9, 0), "sm_100a": (10, 0)}
# Kernels without products; all others must use the matrix units.
PLAIN = {"rmsnorm", "add_rmsnorm", "layernorm", "softmax", "copy"}

Job = tuple[Operator, Shape, Config]


def jobs() -> Iterator[Job]:
    for entry in SUITE.entries:
        assert not isinstance(entry.tile, int)
        for operator, shape in entry.resolved():
            for config in entry.tile:
                yield operator, shape, operator.config(shape, **config)


def test_every_operator_and_variant_of_the_bundles_is_among_them() -> None:
    def kinds(operator: Operator, configs: list[Config]) -> set[tuple[str, str, str]]:
        return {(operator.name, k, v) for c in configs for k, v in c.items() if isinstance(v, str)} | {
            (operator.name, "", "")
        }

    wanted: set[tuple[str, str, str]] = set()
    for name in ("operators", "quick"):
        for entry in load_suite(name).entries:
            for operator, shape in entry.resolved():
                wanted |= kinds(operator, operator.configs(shape))
    compiled = set().union(*(kinds(operator, [config]) for operator, _, config in jobs()))
    assert compiled >= wanted


class Kernels:
    """Device sources of one architecture with their launches, and the machine code of all in one file."""

    def __init__(self, arch: str, compiler: Compiler, pool: ThreadPoolExecutor) -> None:
        self.instructions: dict[str, int] = {}
        self.recipes: list[tuple[str, LaunchRecipe]] = []
        texts = []
        for number, (operator, shape, config) in enumerate(jobs()):
            programs = operator.program(shape, config)
            for part, program in enumerate((programs,) if isinstance(programs, TileProgram) else programs):
                made = compiler.generate(program, arch)
                name = f"{made.symbol}_{number}_{part}"
                texts.append(made.source.replace(made.symbol, name))
                self.recipes.append((name, made.recipe()))
                used = sum(made.instructions[i] for i in ("wgmma", "mma_sync", "tcgen05"))
                self.instructions[operator.name] = self.instructions.get(operator.name, 0) + used
        # One file: the headers of TileLang and CUTLASS take longer than a kernel.
        self.code: Future[Compiled] = pool.submit(compile_kernel, "\n".join(texts), arch, flags=flags({}))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Kernels]]:
    need_compilers()
    with ThreadPoolExecutor(1) as pool, Compiler(timeout_s=240) as compiler:
        yield {arch: Kernels(arch, compiler, pool) for arch in CAPABILITY}


@pytest.mark.slow
@pytest.mark.parametrize("arch", CAPABILITY)
def test_tile_programs_compile_and_fit(built: dict[str, Kernels], arch: str) -> None:
    kernels = built[arch]
    code = kernels.code.result()
    assert set(code.resources) == {name for name, _ in kernels.recipes}
    for name, recipe in kernels.recipes:
        assert recipe.problems(CAPABILITY[arch], code.resources[name].static_shared_bytes) == [], name
        assert code.resources[name].registers * recipe.threads <= 65536, name
    assert {name for name, used in kernels.instructions.items() if not used} == PLAIN
