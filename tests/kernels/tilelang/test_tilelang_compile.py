"""Through the installed TileLang in its own process: front end, first passes, device source, machine code."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exported import sampled

from foretile.kernels import language as T
from foretile.kernels.expr import evaluate
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import load_operator
from foretile.kernels.tilelang.compiled import CompileError
from foretile.kernels.tilelang.compiler import Compiler, compile_cuda
from foretile.kernels.tilelang.versions import installed
from foretile.simulator.lowering.analysis import roles
from foretile.simulator.lowering.codegen import schedule

pytestmark = pytest.mark.skipif(
    installed() is None,
    reason="TileLang is not installed (pip install 'foretile[tilelang]')",
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("FORETILE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def compiler(cache: Path) -> Iterator[Compiler]:
    with Compiler(timeout_s=240) as made:
        yield made


def gemm(**sizes: object) -> TileProgram:
    operator = load_operator("gemm")
    shape = operator.shape(m=1024, n=512, k=512)
    config = operator.config(shape, variant="tile", block_m=128, block_n=128, num_stages=3)
    found = operator.program({**shape, **sizes}, config)
    assert isinstance(found, TileProgram)
    return found


def test_the_front_end_answers(compiler: Compiler) -> None:
    assert "def gemm(" in compiler.prim_func(gemm())


def test_the_first_passes_tell_roles_and_layouts(compiler: Compiler) -> None:
    program = gemm()
    hopper, ampere = (compiler.decisions(program, arch) for arch in ("sm_90a", "sm_80"))
    assert (hopper.producers, ampere.producers) == (128, 0)
    assert hopper.threads == program.threads + 128
    assert ampere.threads == program.threads
    for decided in (hopper, ampere):
        shared = {t.name: t for t in decided.tiles if t.scope == "shared"}
        assert {name: t.versions for name, t in shared.items()} == {"A_shared": 3, "B_shared": 3}
        assert {t.layout for t in shared.values()} == {"swizzle 128B"}
        (accumulator,) = (t for t in decided.tiles if t.scope == "fragment")
        assert accumulator.elements_per_thread * program.threads == 128 * 128
    assert hopper.barriers == (1, 1, 1, *[program.threads] * 3)  # full by the copies, free by every consumer


@pytest.mark.parametrize("name", ["gemm", "attention_decode", "gemm_fp8_block", "cross_entropy"])
def test_the_compiler_follows_the_rules_that_are_assumed(compiler: Compiler, name: str) -> None:
    for program in sampled(name, 2):
        try:
            decided = compiler.decisions(program, "sm_90a")
        except CompileError:
            continue
        rules = schedule(program, bulk_copy=True)
        assert rules.producers == decided.producers, program.script()
        staged = max(roles(program).staged.values(), default=1)
        assert decided.stages == (staged if rules.pipelined else 1)


def test_one_kernel_serves_all_sizes(compiler: Compiler) -> None:
    program = gemm(m=T.dynamic("m"))
    made = compiler.generate(program, "sm_90a")
    for m in (64, 1000, 4096):
        recipe = made.recipe(m=m)
        assert recipe.grid == tuple(evaluate(e, {"m": m}) for e in program.grid)
        assert recipe.threads == made.decisions.threads
        assert recipe.shared_bytes >= 3 * (128 + 128) * 64 * 2
        assert recipe.problems((9, 0), 1024) == []
        shapes = {t.name: t.shape for t in recipe.tensors}
        assert shapes == {"A": (1, m, 512), "B": (1, 512, 512), "C": (1, m, 512)}
    assert made.instructions["wgmma"]
    assert made.instructions["tma_load"]


def two_pipelines() -> TileProgram:
    """Two pipelined loops that fill the same tiles, each with two copies and a trip count that varies."""
    rows = T.GemmWarpPolicy.FullRow

    @T.macro
    def attend(A: Any, B: Any, k: Any, tiles: Any, masked: bool) -> None:
        left, right, scores, weights, total = tiles
        T.copy(A[k * 64 : k * 64 + 64, :], left)
        T.gemm(left, left, scores, transpose_B=True, policy=rows, clear_accum=True)
        if masked:
            for i, j in T.Parallel(64, 64):
                scores[i, j] = T.if_then_else(i >= j, scores[i, j], 0.0)
        T.copy(scores, weights)
        T.copy(B[k * 64 : k * 64 + 64, :], right)
        T.gemm(weights, right, total, policy=rows)

    @T.prim_func
    def products(
        A: T.Tensor((1024, 64), "bfloat16"),
        B: T.Tensor((1024, 64), "bfloat16"),
        C: T.Tensor((8, 64, 64), "float32"),
    ) -> None:
        with T.Kernel(8, threads=128) as bx:
            left = T.alloc_shared((64, 64), "bfloat16")
            right = T.alloc_shared((64, 64), "bfloat16")
            scores = T.alloc_fragment((64, 64), "float32")
            weights = T.alloc_fragment((64, 64), "bfloat16")
            total = T.alloc_fragment((64, 64), "float32")
            T.clear(total)
            for k in T.Pipelined(bx, num_stages=2):
                attend(A, B, k, (left, right, scores, weights, total), False)
            for k in T.Pipelined(bx, 2 * bx + 1, num_stages=2):
                attend(A, B, k, (left, right, scores, weights, total), True)
            T.copy(total, C[bx, :, :])

    made: Any = products
    return made  # type: ignore[no-any-return]


def test_loops_that_share_tiles_and_vary_in_length_compile(compiler: Compiler) -> None:
    hopper, ampere = (compiler.generate(two_pipelines(), arch) for arch in ("sm_90a", "sm_80"))
    for made in (hopper, ampere):
        shared = {t.name: t.versions for t in made.decisions.tiles if t.scope == "shared"}
        assert shared == {"left": 2, "right": 2}
    # Two copies each of two iterations ahead, of which the oldest is waited for; at the end all of them.
    waits = [int(n) for n in re.findall(r"cp_async_wait<(\d+)>", ampere.source)]
    assert waits == [3, 3, 3, 2, 1, 0]


def test_what_was_made_is_kept(compiler: Compiler) -> None:
    program = gemm(m=T.dynamic("m"))
    made = compiler.generate(program, "sm_90a")
    with Compiler(only_kept=True) as kept:  # which starts no process
        assert kept.has(program, "sm_90a")
        assert kept.generate(program, "sm_90a") == made
        other = replace(program, threads=384)
        assert not kept.has(other, "sm_90a")
        with pytest.raises(CompileError, match="not been compiled"):
            kept.generate(other, "sm_90a")


def test_what_tilelang_refuses_is_told_by_name(compiler: Compiler) -> None:
    with pytest.raises(CompileError, match=r"TileLang .* refused gemm for sm_90a: .*[Nn]o valid warp"):
        compiler.decisions(replace(gemm(), threads=96), "sm_90a")
    assert compiler.decisions(gemm(), "sm_90a").producers  # it goes on after that


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_machine_code_comes_out(compiler: Compiler) -> None:
    kernel = compile_cuda(gemm(), "sm_90a", compiler=compiler)
    assert kernel.cubin.startswith(b"\x7fELF")
    assert kernel.symbol in kernel.source
    assert 128 * 128 // kernel.generated.program.threads < kernel.resources.registers <= 255
    assert kernel.problems == []
