"""What host code asks of its GPU beside launches: where tensors are, how long kernels take, which is best."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest

pytest.importorskip("tilelang.language", reason="the extra tilelang is not installed")
torch = pytest.importorskip("torch")

from foretile.hosted import hosted  # noqa: E402
from foretile.kernels.expr import Const  # noqa: E402

SOURCE = """
import tilelang
import tilelang.language as T


def sizes():
    return [{"block": 32}, {"block": 512}, {"block": 0}]


@tilelang.autotune(configs=sizes(), warmup=3, rep=5)
@tilelang.jit(out_idx=[1])
def halved(n, block=None):
    @T.prim_func
    def half(A: T.Tensor((n,), "float32"), B: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, block), threads=32) as bx:
            for i in T.Parallel(block):
                B[bx * block + i] = A[bx * block + i] * 0.5
    return half


@tilelang.jit(out_idx=[1, 2])
def narrowed(group=128):
    m = T.dynamic("m")

    @T.prim_func
    def narrow(
        A: T.Tensor((m,), "float32"),
        B: T.Tensor((m,), "float8_e4m3"),
        S: T.Tensor((T.ceildiv(m, group),), "float32"),
    ):
        with T.Kernel(T.ceildiv(m, group), threads=128) as bx:
            for i in T.Parallel(group):
                B[bx * group + i] = A[bx * group + i]
            S[bx] = 1.0
    return narrow


@tilelang.jit(out_idx=[2])
def dealt(ctas=3, block=64):
    n = T.dynamic("n")

    @T.prim_func
    def deal(A: T.Tensor((n,), "float32"), wanted: T.Tensor((64,), "int8"), B: T.Tensor((n,), "float32")):
        tiles = T.ceildiv(n, block)
        with T.Kernel(T.min(ctas, tiles), threads=64) as cta:
            mask = T.alloc_local((64,), "int8")
            for i in T.serial(64):
                mask[i] = wanted[i]
            for w in T.serial(T.ceildiv(tiles, ctas)):
                if w * ctas + cta < tiles:
                    if mask[w] != 0:
                        for i in T.Parallel(block):
                            B[(w * ctas + cta) * block + i] = A[(w * ctas + cta) * block + i] + 1
    return deal


@tilelang.jit
def counted():
    @T.prim_func
    def count(A: T.Tensor((64,), "int32"), B: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64):
            left = T.alloc_var("int32")
            done = T.alloc_var("int32")
            left = A[0]
            done = 0
            while left > 0:
                left = left - 1
                done = done + 2
            for i in T.Parallel(64):
                B[i] = done
    return count
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "their_benches.py").write_text(SOURCE)
    sys.path.insert(0, str(folder))
    try:
        import their_benches  # type: ignore[import-not-found]

        yield their_benches
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("their_benches", None)


def test_every_tensor_is_on_the_device_and_devices_are_named_in_every_way() -> None:
    before = torch.zeros(3)
    with hosted("h200-sxm"):
        drawn = torch.randn(3, device="cuda", generator=torch.Generator(device="cuda").manual_seed(1))
        for x in (before, drawn, before.to(0), torch.empty(3, device=0), before.to(before.device)):
            assert x.is_cuda
            assert x.device.type == "cuda"
        assert torch.device(0).type == "cuda"
        assert torch.accelerator.current_accelerator().type == "cuda"
        torch.set_default_device("cuda")
        assert (torch.ones(3) + before).sum() == 3
    assert before.device.type == "cpu"
    assert not before.is_cuda


def test_operators_of_torch_written_in_python_see_the_device_too() -> None:
    with hosted("h200-sxm"):

        @torch.library.custom_op("foretile_tests::doubled", mutates_args=(), device_types="cuda")
        def doubled(x: torch.Tensor) -> torch.Tensor:
            assert x.is_cuda
            return torch.empty(x.shape, device=x.device).copy_(2 * x)

        assert torch.equal(doubled(torch.ones(2)), torch.full((2,), 2.0))


def test_times_that_are_measured_are_those_predicted(kernels: Any) -> None:
    from tilelang.profiler import do_bench

    with hosted("h200-sxm") as session:
        kernel = kernels.halved(4096, block=128)
        profiler = kernel.get_profiler()
        profiler.assert_allclose(lambda a: a / 2)
        x = torch.randn(4096, device="cuda")
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(3):
            kernel(x)
        last.record()
        told = 1e3 * session.launches[-1].predict("h200-sxm").time_s
        assert profiler.do_bench() == do_bench(lambda: kernel(x)) == told
        assert first.elapsed_time(last) == pytest.approx(3 * told)
        assert math.isnan(profiler.do_bench(lambda a: a / 2))  # torch's own kernels have no prediction


def test_the_tuner_takes_what_is_predicted_fastest(kernels: Any) -> None:
    with hosted("h200-sxm") as session:
        tuned = kernels.halved(1 << 20)
        assert [k.name for k in session.kernels] == ["half"]
        others = [kernels.halved(1 << 20, block=b["block"]) for b in kernels.sizes()[:2]]
        times = [1e3 * k.predicted_s() for k in others]
        assert tuned.latency == min(times)
        assert tuned.config == kernels.sizes()[times.index(min(times))]
        x = torch.randn(1 << 20, device="cuda")
        assert torch.equal(tuned(x), x / 2)


def test_made_tensors_have_their_type_and_extents_that_are_computed(kernels: Any) -> None:
    with hosted("h200-sxm"):
        x = torch.linspace(-2, 2, 300, device="cuda")
        small, ones = kernels.narrowed()(x)
    assert small.dtype == torch.float8_e4m3fn
    assert torch.equal(small.float(), x.to(torch.float8_e4m3fn).float())
    assert torch.equal(ones, torch.ones(3))


def test_a_loop_that_the_kernel_decides_takes_as_long_as_it_did(kernels: Any) -> None:
    times = {}
    with hosted("h200-sxm") as session:
        for n in (2, 50):
            out = torch.empty(64, dtype=torch.int32)
            kernels.counted()(torch.full((64,), n, dtype=torch.int32), out)
            assert torch.equal(out, torch.full((64,), 2 * n, dtype=torch.int32))
            found = session.launches[-1].predict("h200-sxm")
            assert any(f"{n} iterations, as executed" in note for note in found.model["warnings"])
            times[n] = found.time_s
    assert times[2] < times[50]


def test_the_grid_and_masks_of_bytes_decide_how_long_it_takes(kernels: Any) -> None:
    """The grid depends on a value bound before ``T.Kernel``, the work on a mask copied by a loop."""
    times = {}
    with hosted("h200-sxm") as session:
        for tiles in (0, 200):
            mask = torch.zeros(64, dtype=torch.int8)
            mask[:tiles] = 1
            a = torch.randn(12000, device="cuda")
            b = kernels.dealt()(a, mask)
            assert torch.equal(b, (a + 1) * (1 if tiles else 0))
            launch = session.launches[-1]
            assert launch.programs[0].grid == (Const(3),)
            times[tiles] = launch.predict("h200-sxm").time_s
    assert times[0] < times[200]
