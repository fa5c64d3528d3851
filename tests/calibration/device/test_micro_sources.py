"""The microbenchmarks' sources compile, what they time is in the machine code, each launch is accepted."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from chip_device import details_of

from foretile.calibration.device.binding import bind
from foretile.calibration.device.cubin import read_cubin
from foretile.calibration.device.fake import FakeDriver
from foretile.calibration.device.micro.benchmarks import BENCHMARKS, points
from foretile.calibration.device.micro.code import FILES, FOLDER, compiler
from foretile.calibration.device.micro.core_points import instruction_of
from foretile.calibration.device.micro.points import Point
from foretile.hwmodels import load_chip
from foretile.kernels.cuda.nvcc import Compiled, NvccError, compile_kernel, find_nvcc

CHIPS = {"sm_80": "a100-sxm4-80gb", "sm_90a": "h200-sxm", "sm_100a": "b200-sxm"}
PAIRS = [(file, arch) for file, archs in FILES.items() for arch in archs]


def _nvdisasm() -> str | None:
    """The disassembler: of a toolkit, or of the wheel nvidia-cuda-nvdisasm."""
    on_path = shutil.which("nvdisasm")
    if on_path:
        return on_path
    try:
        import nvidia
    except ImportError:
        return None
    found = [p for folder in nvidia.__path__ for p in Path(folder).glob("*/bin/nvdisasm")]
    return str(found[0]) if found else None


try:
    find_nvcc()
    WITHOUT_NVCC = ""
except NvccError as error:
    WITHOUT_NVCC = str(error)
needs_nvcc = pytest.mark.skipif(bool(WITHOUT_NVCC), reason=WITHOUT_NVCC)
needs_nvdisasm = pytest.mark.skipif(
    _nvdisasm() is None, reason="no nvdisasm on PATH (CUDA Toolkit) and no wheel nvidia-cuda-nvdisasm"
)


@pytest.fixture(scope="module")
def built() -> Mapping[tuple[str, str], Compiled]:
    """Every source for every architecture it is for; compiled once, and not at all where the cache has it."""
    return {(file, arch): compile_kernel(FOLDER / file, arch, include=(FOLDER,)) for file, arch in PAIRS}


def _points(arch: str) -> list[Point]:
    return points(details_of(load_chip(CHIPS[arch], calibrated=False)))


def test_every_source_is_listed() -> None:
    assert set(FILES) == {path.name for path in FOLDER.glob("*.cu")}


@needs_nvcc
def test_nothing_spills_and_every_kernel_of_a_point_exists(built: Mapping[tuple[str, str], Compiled]) -> None:
    for (file, arch), made in built.items():
        for name, used in made.resources.items():
            assert used.spill_store_bytes == used.spill_load_bytes == 0, f"{name} of {file} for {arch} spills"
    for arch in CHIPS:
        for point in _points(arch):
            assert point.kernel in built[point.file, arch].resources, f"{arch}: {point.kernel}"


@needs_nvcc
@pytest.mark.parametrize("arch", CHIPS)
def test_a_device_accepts_every_launch(arch: str, built: Mapping[tuple[str, str], Compiled]) -> None:
    """Threads, registers, shared memory, clusters, parameters: as the driver checks them."""
    details = details_of(load_chip(CHIPS[arch], calibrated=False))
    driver = FakeDriver(details.capability, memory_bytes=details.memory_bytes, backed=False)
    planned = points(details)
    memory = {
        "data": driver.allocate(max(256, *(p.bytes for p in planned))),
        "ticks": driver.allocate(32 * max(p.ticked_blocks for p in planned)),
    }
    for point in planned:
        for recipe in (point.recipe(), point.setup_recipe()):
            if recipe is not None:
                kernel = driver.load(built[point.file, arch].cubin, recipe.symbol)
                bind(driver, kernel, recipe, memory).enqueue(driver)
    assert len(driver.launches) >= len(planned)


_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.x]*)", re.MULTILINE)


def _disassembled(cubin: bytes, folder: Path) -> dict[str, Counter[str]]:
    """Instructions of every kernel, counted by their first word."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    command = [str(_nvdisasm()), "-c", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^\.text\.(\w+):$", text, flags=re.MULTILINE)
    names, bodies = parts[1::2], parts[2::2]
    return {
        name: Counter(word.partition(".")[0] for word in _INSTRUCTION.findall(body))
        for name, body in zip(names, bodies, strict=True)
    }


# By kernel: the instruction that is timed, and how many of it the source has in one iteration of the loop.
# What an optimiser removed, merged or moved out of the loop is not there any more.
TIMED = {
    "rate_fma_f32": ("FFMA", 32),
    "rate_fma_f64": ("DFMA", 32),
    "rate_fma_f16x2": ("HFMA2", 32),
    "rate_max_f32": ("FMNMX", 32),
    "rate_logic_b32": ("LOP3", 32),
    "rate_add3_s32": ("IADD3", 32),
    "rate_mad_s32": ("IMAD", 32),
    "rate_ex2_f32": ("MUFU", 32),
    "rate_rcp_f32": ("MUFU", 32),
    "rate_rsqrt_f32": ("MUFU", 32),
    "rate_lg2_f32": ("MUFU", 32),
    "rate_sin_f32": ("MUFU", 32),
    "rate_tanh_f32": ("MUFU", 32),
    "rate_f32_to_bf16x2": ("F2FP", 32),
    "rate_f32_to_f16x2": ("F2FP", 32),
    "rate_f32_to_e4m3x2": ("F2FP", 64),
    "rate_e4m3x2_to_f16x2": ("F2FP", 32),
    "rate_f32_to_e2m1x2": ("F2FP", 32),
    "latency_fma_f32": ("FFMA", 32),
    "softmax_code": ("MUFU", 65),
    "shared_read": ("LDS", 4),
    "shared_write": ("STS", 4),
    "shared_stride": ("LDS", 4),
    "chase_shared": ("LDS", 4),
    "chase_l2": ("LDG", 4),
    "chase_l1": ("LDG", 4),
    "read_8": ("LDG", 8),
    "write_8": ("STG", 8),
    "copy_8": ("STG", 8),
    "read_by_all": ("LDG", 4),
    "block_barrier": ("BAR", 6),
    "atomic_global": ("RED", 1),
    "mma_bf16": ("HMMA", 32),
    "mma_fp16": ("HMMA", 32),
    "mma_tf32": ("HMMA", 32),
    "mma_int8": ("IMMA", 32),
    "mma_fp64": ("DMMA", 32),
    "mainloop_mma_bf16": ("HMMA", 32),
    "wgmma_bf16_ss_256": ("HGMMA", 5),
    "wgmma_bf16_rs_256": ("HGMMA", 5),
    "wgmma_bf16_ss_8": ("HGMMA", 5),
    "wgmma_fp16_ss_256": ("HGMMA", 5),
    "wgmma_tf32_ss_256": ("HGMMA", 5),
    "wgmma_fp8_ss_256": ("QGMMA", 5),
    "wgmma_int8_ss_256": ("IGMMA", 5),
    "mainloop_wgmma_bf16": ("HGMMA", 4),
    "wgmma_latency_bf16_256": ("HGMMA", 1),
    "tcgen05_bf16_ss_256": ("UTCHMMA", 4),
    "tcgen05_bf16_ts_256": ("UTCHMMA", 4),
    "tcgen05_fp8_ss_256": ("UTCQMMA", 4),
    "tcgen05_int8_ss_256": ("UTCIMMA", 4),
    "tcgen05_fp4_ss_256": ("UTCOMMA", 4),
    "mainloop_tcgen05_bf16": ("UTCHMMA", 4),
    "tensor_memory_read": ("LDTM", 4),
    "bulk_ring": ("UBLKCP", 1),
    "async_ring": ("LDGSTS", 1),
}
_ALIASES = {"RED": ("RED", "REDG")}


@needs_nvcc
@needs_nvdisasm
@pytest.mark.parametrize("arch", CHIPS)
def test_what_is_timed_is_in_the_machine_code(
    arch: str, built: Mapping[tuple[str, str], Compiled], tmp_path: Path
) -> None:
    seen = set()
    for of, made in built.items():
        if of[1] != arch:
            continue
        for kernel, counts in _disassembled(made.cubin, tmp_path).items():
            if kernel in TIMED:
                word, least = TIMED[kernel]
                found = sum(counts[w] for w in _ALIASES.get(word, (word,)))
                assert found >= least, f"{kernel} for {arch}: {found} {word}, {least} expected: {counts}"
                seen.add(kernel)
    timed = {p.kernel for p in _points(arch)} & set(TIMED)
    assert seen >= timed


@needs_nvcc
def test_each_architecture_has_its_matrix_instruction_only(built: Mapping[tuple[str, str], Compiled]) -> None:
    for arch, chip in CHIPS.items():
        how = instruction_of(details_of(load_chip(chip, calibrated=False)))
        mainloops = {
            k for (f, a), made in built.items() if a == arch for k in made.resources if "mainloop" in k
        }
        name = {"mma_sync": "mma"}.get(how, how)
        assert f"mainloop_{name}_bf16" in mainloops
        others = {"wgmma", "tcgen05"} - {how}
        assert not any(other in kernel for other in others for kernel in mainloops)


@needs_nvcc
def test_kernels_take_what_recipes_pass(built: Mapping[tuple[str, str], Compiled]) -> None:
    """Two addresses, a 64-bit size and three 32-bit numbers."""
    for (file, arch), made in built.items():
        for name, kernel in read_cubin(made.cubin).items():
            if kernel.parameters is not None:
                assert [size for _, size in kernel.parameters] == [8, 8, 8, 4, 4, 4], (
                    f"{name}, {file}, {arch}"
                )


def test_without_nvcc_the_device_compiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """NVRTC gets the source, the header by its name, and the architecture; what it refuses is said."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("NVCC", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)

    class Refused(Exception):
        pass

    class Nvrtc:
        NVRTCError = Refused
        asked: tuple[str, ...] = ()

        def createProgram(self, source: str, name: str, headers: object, names: object) -> object:
            assert "MICRO_KERNEL" in source
            assert names == ("micro.cuh",)
            return name

        def compileProgram(self, program: str, options: tuple[str, ...]) -> None:
            self.asked = options
            if program == "wgmma.cu":
                raise Refused("NVRTC_ERROR_COMPILATION")

        def getCUBIN(self, program: str) -> bytes:
            return program.encode()

        def getProgramLog(self, program: str) -> str:
            return "line 7: unknown instruction"

        def destroyProgram(self, program: str) -> None: ...

    class Cupy:
        class cuda:
            nvrtc = Nvrtc()

    compile_it = compiler("sm_90a", Cupy)
    assert compile_it("launch.cu") == b"launch.cu"
    assert "--gpu-architecture=sm_90a" in Cupy.cuda.nvrtc.asked
    with pytest.raises(ValueError, match=r"wgmma.cu for sm_90a.*\n.*unknown instruction"):
        compile_it("wgmma.cu")
    with pytest.raises(ValueError, match="nvcc was not found"):
        compiler("sm_90a", None)


def test_every_benchmark_is_described() -> None:
    text = (Path(__file__).parents[3] / "docs/microbenchmarks.md").read_text(encoding="utf-8")
    for benchmark in BENCHMARKS:
        assert f"`{benchmark.name}`" in text, f"docs/microbenchmarks.md says nothing of {benchmark.name}"
        for field in benchmark.fields:
            assert f"`{field}`" in text, f"docs/microbenchmarks.md does not say where {field} comes from"
