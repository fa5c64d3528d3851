"""``foretile verify --device``: all versions side by side, on a device whose kernels run on the CPU."""

from __future__ import annotations

import ctypes
import json
import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from cuda_hosting import host_launch
from typer.testing import CliRunner

import foretile.calibration.device.cupy_driver as cupy_driver
import foretile.device_verification as device_verification
from foretile.calibration.device.driver import Buffer, DeviceError, DeviceProperties, Kernel, Pointer
from foretile.cli import app
from foretile.device_verification import CUDA, TILE_CPU, TILE_CUDA, verify_on_device
from foretile.kernels.cuda.build import architecture, machine_code, nvrtc_cubin
from foretile.kernels.cuda.nvcc import FOLDER, NvccError
from foretile.kernels.cuda.recipe import Extent, KernelSource, LaunchRecipe
from foretile.kernels.cuda.registry import cuda_program
from foretile.kernels.operator import Config, Operator, Shape, load_operator
from foretile.kernels.tilelang.compiled import CompileError

runner = CliRunner()


class HostDriver:
    """What verification asks of a driver; "machine code" is a source as JSON, run as the tests run it."""

    properties = DeviceProperties("host", (9, 0), 1, 1 << 30, 1 << 20, 227 * 1024, "none", simulated=True)
    closed = False

    def __init__(self) -> None:
        self.allocated = 0

    def load(self, cubin: bytes, symbol: str) -> Kernel:
        return Kernel(symbol, KernelSource.from_json(json.loads(cubin)))

    def allocate(self, size: int) -> Buffer:
        memory = np.full(size + 16, 0xA5, np.uint8)
        memory = memory[-memory.ctypes.data % 16 :][:size]
        self.allocated += 1
        return Buffer(memory.ctypes.data, size, memory)

    def free(self, buffer: Buffer) -> None:
        self.allocated -= 1

    def fill(self, buffer: Buffer, value: int, start: int = 0, size: int | None = None) -> None:
        buffer.handle[:] = value

    def write(self, buffer: Buffer, data: np.ndarray, start: int = 0) -> None:
        buffer.handle[: data.size] = data

    def read(self, buffer: Buffer, start: int = 0, size: int | None = None) -> np.ndarray:
        kept: np.ndarray = buffer.handle[:size].copy()
        return kept

    def launch(
        self,
        kernel: Kernel,
        grid: Extent,
        block: Extent,
        parameters: Sequence[Any],
        *,
        cluster: Extent = (1, 1, 1),
        shared_bytes: int = 0,
    ) -> None:
        values = [
            ctypes.c_void_p(p.buffer.address) if isinstance(p, Pointer) else ctypes.create_string_buffer(p)
            for p in parameters
        ]
        host_launch(kernel.handle, grid, block, shared_bytes, values, 1, FOLDER)

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def as_json(operator: Operator, shape: Shape, arch: str) -> list[tuple[bytes, LaunchRecipe]]:
    assert arch == "sm_90a"
    program = cuda_program(operator.name, shape)
    return [(json.dumps(source.to_json()).encode(), recipe) for source, recipe in program.launches]


def no_tilelang(operator: Operator, shape: Shape, config: Config, arch: str) -> list[Any]:
    raise CompileError("TileLang is not here\nand more")


SHAPE = {"rows": 5, "cols": 24}


def test_versions_stand_side_by_side() -> None:
    driver: Any = HostDriver()
    found = verify_on_device("softmax", driver, SHAPE, compile_cuda=as_json, compile_tile=no_tilelang)
    operator = load_operator("softmax")
    assert [v.inputs for v in found] == ["random", *operator.adversarial]
    for v in found:
        assert [version.version for version in v.versions] == [TILE_CPU, CUDA, TILE_CUDA]
        cpu, cuda, tile = v.versions
        assert cpu.outputs[0].within
        assert cuda.outputs[0].within
        assert tile.missing == "TileLang is not here"
        assert v.ok
    assert driver.allocated == 0


def test_the_tile_program_on_the_device_is_checked_too() -> None:
    def tile(operator: Operator, shape: Shape, config: Config, arch: str) -> list[Any]:
        return as_json(operator, shape, arch)

    driver: Any = HostDriver()
    (v,) = verify_on_device(
        "moe_permute",
        driver,
        load_operator("moe_permute").example,
        kinds=["random"],
        compile_cuda=as_json,
        compile_tile=tile,
    )
    assert v.versions[2].outputs[0].within
    assert v.ok


def test_a_wrong_result_and_a_refusal_are_told_apart() -> None:
    def wrong(operator: Operator, shape: Shape, arch: str) -> list[Any]:
        ((code, recipe),) = as_json(operator, shape, arch)
        other = {**json.loads(code), "symbol": "softmax_fp16"}  # of another type than the operands
        return [(json.dumps(other).encode(), recipe)]

    class Refusing(HostDriver):
        def synchronize(self) -> None:
            raise DeviceError("an illegal address")

    driver: Any = HostDriver()
    (v,) = verify_on_device(
        "softmax", driver, SHAPE, kinds=["random"], compile_cuda=wrong, compile_tile=no_tilelang
    )
    assert not v.ok
    assert not v.versions[1].outputs[0].within
    refusing: Any = Refusing()
    (v,) = verify_on_device(
        "softmax", refusing, SHAPE, kinds=["random"], compile_cuda=as_json, compile_tile=no_tilelang
    )
    assert v.versions[1].fault == "an illegal address"
    assert not v.ok
    assert refusing.allocated == 0


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> HostDriver:
    driver = HostDriver()
    monkeypatch.setattr(cupy_driver, "open_device", lambda index: driver)
    monkeypatch.setattr(device_verification, "_hand_written", as_json)
    monkeypatch.setattr(device_verification, "_by_tilelang", no_tilelang)
    return driver


def test_the_command_prints_a_table_and_json(host: HostDriver) -> None:
    words = ["verify", "rmsnorm", "rows=3", "cols=40", "--device", "0"]
    table = runner.invoke(app, words)
    assert table.exit_code == 0, table.output
    for part in ("CUDA, GPU", "tile, CPU", "not run here: TileLang is not here", "random", "within"):
        assert part in table.output
    assert host.closed
    data = json.loads(runner.invoke(app, [*words, "--inputs", "random", "--json"]).stdout)
    assert len(data) == 1
    assert data[0]["device"] == "host"
    assert [v["ok"] for v in data[0]["versions"]] == [True, True, True]


def test_all_operators_stand_in_one_table(host: HostDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_verification, "operator_names", lambda: ["copy", "silu_mul", "softmax"])

    def one_refused(operator: Operator, shape: Shape, arch: str) -> list[Any]:
        if operator.name == "silu_mul":
            raise NvccError("no compiler for this")
        return as_json(operator, shape, arch)

    monkeypatch.setattr(device_verification, "_hand_written", one_refused)
    table = runner.invoke(app, ["verify", "--all", "--device", "0", "--inputs", "random"])
    assert table.exit_code == 3, table.output
    for part in ("copy", "softmax", "CUDA, GPU", "no compiler for this", "TileLang is not here"):
        assert part in table.output
    assert host.allocated == 0
    data = json.loads(
        runner.invoke(app, ["verify", "--all", "--device", "0", "--inputs", "random", "--json"]).stdout
    )
    ok = {entry["operator"]: entry["ok"] for entry in data}
    assert ok == {"copy": True, "silu_mul": False, "softmax": True}
    types = load_operator("softmax").params
    (dtype,) = (p for p in types if p.name == "dtype")
    assert sum(entry["operator"] == "softmax" for entry in data) == len(dtype.choices)


def test_inputs_that_no_operator_has_are_refused(host: HostDriver) -> None:
    done = runner.invoke(app, ["verify", "--all", "--device", "0", "--inputs", "nonsense"])
    assert done.exit_code == 2
    assert "no operator has inputs nonsense" in done.output


def test_what_does_not_go_together_is_refused(host: HostDriver) -> None:
    done = runner.invoke(app, ["verify", "rmsnorm", "rows=3", "cols=40", "--device", "0", "--chip", "h20"])
    assert done.exit_code == 2
    assert "--chip does not go with --device" in done.output


def test_without_cupy_the_command_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    done = runner.invoke(app, ["verify", "rmsnorm", "rows=3", "cols=40", "--device", "0"])
    assert done.exit_code == 2
    assert "pip install cupy" in done.output


@pytest.mark.parametrize(
    ("capability", "arch"), [((8, 0), "sm_80"), ((8, 9), "sm_89"), ((9, 0), "sm_90a"), ((10, 0), "sm_100a")]
)
def test_architectures_of_devices(capability: tuple[int, int], arch: str) -> None:
    assert architecture(capability) == arch


class Nvrtc:
    """CuPy's binding of NVRTC, as far as it is used."""

    def __init__(self, refuses: bool = False) -> None:
        self.refuses, self.options = refuses, ()

    def createProgram(self, text: str, name: str, headers: Any, names: Any) -> str:
        return text

    def compileProgram(self, program: str, options: tuple[str, ...]) -> None:
        self.options = options
        if self.refuses:
            raise RuntimeError("NVRTC_ERROR_COMPILATION (6)")

    def getProgramLog(self, program: str) -> str:
        return "line 3: no"

    def getCUBIN(self, program: str) -> bytes:
        return program.encode()


def test_nvrtc_takes_the_same_source_and_macros(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("NVCC", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    nvrtc = Nvrtc()
    monkeypatch.setitem(sys.modules, "cupy.cuda", types.SimpleNamespace(nvrtc=nvrtc))
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=sys.modules["cupy.cuda"]))
    operator = load_operator("attention_decode")
    program = cuda_program("attention_decode", operator.shape(**operator.example))
    ((code, recipe),) = machine_code(program, "sm_90a")
    assert code == (FOLDER / "attention.cu").read_bytes()
    assert recipe == program.launches[0][1]
    assert "--gpu-architecture=sm_90a" in nvrtc.options
    assert "-DHEAD_DIM=32" in nvrtc.options
    assert f"-I{FOLDER}" in nvrtc.options


def test_what_nvrtc_refuses_is_said() -> None:
    with pytest.raises(NvccError, match=r"move.cu for sm_80: NVRTC_ERROR_COMPILATION .*\nline 3: no"):
        nvrtc_cubin(Nvrtc(refuses=True), FOLDER / "move.cu", "sm_80")


def test_without_any_compiler_both_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("NVCC", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    operator = load_operator("softmax")
    with pytest.raises(NvccError, match=r"CUDA Toolkit.*CuPy"):
        machine_code(cuda_program("softmax", operator.shape(**operator.example)), "sm_80")
