"""``foretile export`` and what ``explain`` says of compiled kernels, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foretile import compiled, export
from foretile.hwmodels import load_chip
from foretile.kernels.cuda.nvcc import Resources
from foretile.kernels.cuda.recipe import LaunchRecipe, ScalarArg, TensorArg
from foretile.kernels.ir import TileProgram
from foretile.kernels.tilelang import versions
from foretile.kernels.tilelang.compiled import CompileError, Decisions, Generated
from foretile.kernels.tilelang.compiler import CompiledKernel, Compiler

from .conftest import Run

GEMM = ("gemm", "m=512", "n=768", "k=1024")


def test_text_goes_to_standard_output(run: Run) -> None:
    said = run("export", *GEMM, "--to", "tilelang")
    assert said.code == 0
    assert said.out.startswith("# gemm: ")
    assert "# Shape: m=512 n=768 k=1024" in said.out
    assert "@T.prim_func\ndef gemm(" in said.out
    compile(said.out, "exported.py", "exec")


def test_text_goes_to_a_file(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "gemm.py"
    said = run("export", *GEMM, "--to", "tilelang", "--config", "block_m=64", "--out", str(out), "--json")
    told = json.loads(said.out)
    assert told["file"] == str(out)
    assert told["config"]["block_m"] == 64
    assert "T.alloc_shared((64, " in out.read_text(encoding="utf-8")


def test_sizes_may_stay_symbolic(run: Run) -> None:
    said = run("export", *GEMM, "--to", "tilelang", "--dynamic", "m,n")
    assert 'm = T.dynamic("m")' in said.out
    assert "C: T.Tensor((1, m, n)" in said.out


def test_a_kernel_file_is_exported_too(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from foretile.kernels import language as T\n\n\n"
        "def doubled(n=128):\n"
        "    @T.prim_func\n"
        '    def doubled(A: T.Tensor((n,), "float32")):\n'
        "        with T.Kernel(1, threads=32) as bx:\n"
        "            for i in T.Parallel(n):\n"
        "                A[i] = A[i] * 2.0\n"
        "    return doubled\n",
        encoding="utf-8",
    )
    said = run("export", f"{file}:doubled", "n=64", "--to", "tilelang")
    assert said.code == 0
    assert 'A: T.Tensor((64,), "float32")' in said.out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--to", "cuda"), "--arch is needed: sm_80, sm_89, sm_90a, sm_100a"),
        (("--to", "cuda", "--arch", "sm_75"), "'sm_75' is not one of sm_80"),
        (("--to", "cuda", "--chip", "ascend-910c"), "ascend-910c takes no CUDA code"),
        (("--to", "cubin", "--arch", "sm_80"), "say where with --out"),
        (("--to", "tilelang", "--dynamic", "dtype"), "dtype cannot stay symbolic; m, n, k, batch can"),
        (("--to", "tilelang", "--config", "block_q=3"), "no configuration key 'block_q'"),
        (("--to", "tilelang", "--out", "/nowhere/at/all.py"), "the folder /nowhere/at does not exist"),
    ],
)
def test_what_is_wrong_is_told(run: Run, words: tuple[str, ...], wanted: str) -> None:
    said = run("export", *GEMM, *words)
    assert said.code == 2
    assert wanted in said.err
    assert said.out == ""


def test_without_tilelang_it_says_how_to_get_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda: None)
    for words in (("export", *GEMM, "--to", "cuda", "--arch", "sm_80"),
                  ("explain", *GEMM, "--chip", "h200-sxm", "--compiled")):  # fmt: skip
        said = run(*words)
        assert said.code == 2
        assert "pip install 'foretile[tilelang]'" in said.err


def recipe(program: TileProgram, threads: int, shared: int) -> LaunchRecipe:
    tensors = tuple(TensorArg(b.name, b.dtype, (8,), "in") for b in program.params)
    args = (*tensors, ScalarArg("int32", 8))
    return LaunchRecipe(f"{program.name}_kernel", (3, 1, 1), (threads, 1, 1), args, shared_bytes=shared)


class Made(Generated):
    """What a compiler would have made, without one."""

    def recipe(self, **sizes: int) -> LaunchRecipe:
        return recipe(self.program, 384, 1000)


def made(program: TileProgram, arch: str) -> Generated:
    decided = Decisions(384, 128, (), (), {})
    return Made(program, arch, "extern \"C\" void f();\n", {"symbol": f"{program.name}_kernel"}, decided,
                {"wgmma": 0, "tcgen05": 0, "mma_sync": 4})  # fmt: skip


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiler, "generate", lambda self, program, arch, configs=None: made(program, arch))


@pytest.mark.usefixtures("compiles")
def test_every_launch_is_a_file_beside_its_recipe(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "split.cu"
    said = run(
        "export", *GEMM, "--to", "cuda", "--arch", "sm_90a", "--config", "variant=split_k", "-o", str(out)
    )
    assert said.code == 0
    names = ("gemm_split_k", "gemm_split_k_finish")
    for name in names:
        assert (tmp_path / f"split.{name}.cu").read_text(encoding="utf-8").startswith("extern")
    launches = json.loads((tmp_path / "split.json").read_text(encoding="utf-8"))["launches"]
    assert [one["kernel"] for one in launches] == list(names)
    first, second = (LaunchRecipe.from_json(one["launch"]) for one in launches)
    roles = {t.name: t.role for t in (*first.tensors, *second.tensors)}
    assert roles["W"] == "scratch"  # neither an operand nor the result


@pytest.fixture
def occupied(monkeypatch: pytest.MonkeyPatch, compiles: None) -> None:
    def compile_cuda(program: TileProgram, arch: str, compiler: Compiler) -> CompiledKernel:
        kernel = made(program, arch)
        return CompiledKernel(kernel, b"", kernel.recipe(), Resources(200, 0, 64, 64, 24))

    monkeypatch.setattr(compiled, "compile_cuda", compile_cuda)
    monkeypatch.setattr(versions, "installed", lambda: "0.1.15")


@pytest.mark.usefixtures("occupied")
def test_what_was_assumed_wrongly_is_shown(run: Run) -> None:
    said = run("explain", *GEMM, "--chip", "h200-sxm", "--compiled", "--json")
    facts: list[dict[str, Any]] = json.loads(said.out)["compiled"][0]["facts"]
    by_name = {fact["what"]: fact for fact in facts}
    assert by_name["spilled bytes of a thread"]["actual"] == "64"
    assert by_name["matrix instruction"] == {
        "what": "matrix instruction",
        "assumed": "wgmma",
        "actual": "mma_sync",
    }
    assert by_name["shared memory of a block (bytes)"]["actual"] == "1024"
    # 200 registers of 384 threads are more than a core has for one block, and none would start.
    assert by_name["blocks on a core"]["actual"] == "0"
    shown = run("explain", *GEMM, "--chip", "h200-sxm", "--compiled")
    assert "by TileLang for sm_90a" in shown.out
    assert "differs" in shown.out


def test_a_refusal_is_part_of_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_cuda(program: TileProgram, arch: str, compiler: Compiler) -> CompiledKernel:
        raise CompileError("no layout")

    monkeypatch.setattr(compiled, "compile_cuda", compile_cuda)
    found = export.traced("gemm", {"m": 512, "n": 512, "k": 512}, chip="h200-sxm")
    operator, shape = export.resolve("gemm", found.shape)
    chip = load_chip("h200-sxm")
    (one,) = compiled.compare_compiled(operator, shape, chip, dict(found.config), Compiler())
    assert one.refused == "no layout"
    assert one.facts == ()


def test_chips_without_cuda_are_not_compared() -> None:
    assert compiled.architecture(load_chip("h200-sxm")) == "sm_90a"
    assert compiled.architecture(load_chip("mthreads-s5000")) == ""
    assert compiled.architecture(replace_family("h200-sxm", "volta")) == ""


def replace_family(chip: str, family: str) -> Any:
    return load_chip(chip).model_copy(update={"family": family})


def test_switches_of_the_compiler_have_values_of_their_kind() -> None:
    from foretile.cli.arguments import ArgumentError
    from foretile.cli.export import _switches

    found = _switches(["tl.disable_tma_lower=true,tl.ptxas_register_usage_level=3", "tl.debug=fast"])
    assert found == {"tl.disable_tma_lower": True, "tl.ptxas_register_usage_level": 3, "tl.debug": "fast"}
    assert found["tl.disable_tma_lower"] is True
    with pytest.raises(ArgumentError, match="--pass-config"):
        _switches(["tl.disable_tma_lower"])
