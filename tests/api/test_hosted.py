"""Host code that believes in its GPU runs on the CPU, and its launches can be predicted."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tilelang.language", reason="the extra tilelang is not installed")
torch = pytest.importorskip("torch")

from foretile.hosted import Kernel, hosted  # noqa: E402
from foretile.hwmodels import load_chip  # noqa: E402
from foretile.kernels.errors import TraceError  # noqa: E402
from foretile.simulator.numerics.errors import NumericsError  # noqa: E402

SOURCE = """
import tilelang
import tilelang.language as T


@tilelang.jit(out_idx=[1])
def doubled(n, dtype="float32", block=128):
    @T.prim_func
    def twice(A: T.Tensor((n,), dtype), B: T.Tensor((n,), dtype)):
        with T.Kernel(T.ceildiv(n, block), threads=128) as bx:
            for i in T.Parallel(block):
                B[bx * block + i] = A[bx * block + i] * 2
    return twice


@tilelang.jit
def picked(block=32):
    rows = T.dynamic("rows")
    extra = T.dynamic("extra")

    @T.prim_func
    def pick(
        A: T.Tensor((rows, 64), "bfloat16"),
        at: T.Tensor((extra + 1,), "int32"),
        B: T.Tensor((extra, 64), "bfloat16"),
        scale: T.float32,
    ):
        with T.Kernel(extra, threads=block) as bx:
            for i in T.Parallel(64):
                B[bx, i] = A[at[bx], i] * scale
    return pick


@tilelang.jit
def summed(blocks=4):
    @T.prim_func
    def two_steps(A: T.Tensor((512,), "float32"), out: T.Tensor((1,), "float32")):
        part = T.alloc_global((4,), "float32")
        with T.Kernel(4, threads=128) as bx:
            x = T.alloc_fragment((128,), "float32")
            s = T.alloc_fragment((1,), "float32")
            T.copy(A[bx * 128], x)
            T.reduce_sum(x, s)
            part[bx] = s[0]
        with T.Kernel(1, threads=32):
            y = T.alloc_fragment((4,), "float32")
            t = T.alloc_fragment((1,), "float32")
            T.copy(part, y)
            T.reduce_sum(y, t)
            out[0] = t[0]
    return two_steps


@tilelang.jit
def unset():
    @T.prim_func
    def never(B: T.Tensor((128,), "float32")):
        with T.Kernel(1, threads=128):
            x = T.alloc_fragment((128,), "float32")
            for i in T.Parallel(128):
                B[i] = x[i]
    return never


@tilelang.jit
def meeting():
    @T.prim_func
    def race(A: T.Tensor((128,), "float32"), B: T.Tensor((128,), "float32")):
        with T.Kernel(1, threads=128):
            for i in T.Parallel(128):
                B[i // 2] = A[i]
    return race
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("package")
    (folder / "their_kernels.py").write_text(SOURCE)
    sys.path.insert(0, str(folder))
    try:
        import their_kernels  # type: ignore[import-not-found]

        yield their_kernels
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("their_kernels", None)


def test_results_come_back_as_the_compiled_kernel_would_return_them(package: Any) -> None:
    with hosted("h200-sxm") as session:
        x = torch.randn(300, device="cuda")
        y = package.doubled(300)(x)
    assert torch.equal(y, 2 * x)
    assert [launch.name for launch in session.launches] == ["twice"]
    assert session.launches[0].predict("h20").time_s > 0


def test_sizes_come_from_shapes_and_sums_and_numbers_are_passed(package: Any) -> None:
    a = torch.randn(9, 64).bfloat16()
    at = torch.tensor([3, 3, 8, 0], dtype=torch.int32)  # three rows; the last entry is not read
    b = torch.empty(3, 64, dtype=torch.bfloat16)
    with hosted("h200-sxm"):
        package.picked()(a, at, b, 0.5)
    assert torch.equal(b, (a[at[:3].long()].float() * 0.5).bfloat16())


def test_kernels_of_one_function_hand_on_workspace(package: Any) -> None:
    a, out = torch.arange(512.0), torch.zeros(1)
    with hosted("h200-sxm") as session:
        package.summed()(a, out)
    assert out.item() == a.sum().item()
    assert len(session.launches[0].programs) == 2


def test_the_device_is_the_chip_that_was_named_and_only_meanwhile() -> None:
    before = torch.cuda.is_available()
    with hosted("a100-sxm4-80gb"):
        assert torch.cuda.get_device_capability() == (8, 0)
        cores = torch.cuda.get_device_properties(0).multi_processor_count
        assert cores == load_chip("a100-sxm4-80gb").cores.value
        assert torch.zeros(2, device="cuda").is_cuda
    assert torch.cuda.is_available() == before


def test_what_a_chip_leaves_undefined_is_raised_or_told(package: Any) -> None:
    given = torch.randn(128), torch.empty(128)
    with pytest.raises(NumericsError, match="write"), hosted("h200-sxm"):
        package.meeting()(*given)
    told: list[str] = []
    with hosted("h200-sxm", failed=lambda name, error: told.append(f"{name}: {error}")) as session:
        package.meeting()(*given)
        package.unset()(torch.empty(128))
    assert len(told) == 1
    assert told[0].startswith("race: ")
    assert "their_kernels.py" in told[0]
    assert session.launches[-1].undefined["B"].all()


def test_a_tensor_of_another_type_is_named(package: Any) -> None:
    said = r"twice takes A as float32; it was given torch.bfloat16"
    with pytest.raises(NumericsError, match=said), hosted("h200-sxm"):
        package.doubled(64)(torch.zeros(64, dtype=torch.bfloat16))


def test_no_kernel_of_a_session_stays_behind(package: Any) -> None:
    for _ in range(2):
        with hosted("h200-sxm") as session:
            kernel = package.doubled(64)
            assert isinstance(kernel, Kernel)
            assert session.kernels == [kernel]


def test_a_kernel_that_is_unknown_says_where(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "import tilelang\nimport tilelang.language as T\n\n\n@tilelang.jit\ndef odd():\n    @T.prim_func\n"
        '    def k(A: T.Tensor((32,), "float32")):\n        with T.Kernel(1, threads=32):\n'
        "            T.call_extern('handle', 'mystery', A.data)\n    return k\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        import odd  # type: ignore[import-not-found]

        with pytest.raises((TraceError, NumericsError), match=r"odd\.py:\d+"), hosted("h200-sxm"):
            odd.odd()(torch.zeros(32))
    finally:
        sys.path.remove(str(tmp_path))


def test_packages_to_compare_with_need_not_be_installed(tmp_path: Path) -> None:
    file = tmp_path / "compared.py"
    lines = [SOURCE, "import torch", "from not_there.ops import reference", "", "", "def main():"]
    lines += ["    a = torch.arange(256.0).cuda()", "    assert torch.equal(doubled(256)(a), 2 * a)"]
    lines += ["    reference(a)", "", "", "main()"]
    file.write_text("\n".join(lines))
    told = r"not_there, imported at .*compared\.py:\d+, is not installed, and not_there\.ops\.reference"
    with hosted() as session, pytest.raises(ModuleNotFoundError, match=told):
        runpy.run_path(str(file), run_name="__main__")
    assert [launch.name for launch in session.launches] == ["twice"]


def test_tiles_are_recommended_for_the_chip(tmp_path: Path) -> None:
    from tilelang.carver.arch import CUDA, driver
    from tilelang.carver.template import MatmulTemplate

    for name in ("a100", "h20"):
        chip = load_chip(name)
        with hosted(name):
            device = CUDA("cuda")
            wanted = MatmulTemplate(M=512, N=512, K=512, in_dtype="float16", accum_dtype="float32")
            hints = wanted.with_arch(device).recommend_hints(topk=2)
        assert chip.cores is not None
        assert device.compute_max_core == chip.cores.value
        assert [len(hint.block) for hint in hints] == [2, 2]
    with pytest.raises(RuntimeError, match="cuda"):
        CUDA("cuda")
    assert driver.cuda_driver.get_device_attribute(81) is None  # nothing is answered afterwards
