"""``foretile measure`` and ``calibrate --from-device``, on a device that has a chip file's physics."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import foretile.calibration.device.cupy_driver as cupy_driver
import foretile.calibration.device.micro.code as code
import foretile.calibration.device.micro.run as micro_run
from foretile.calibration.device.archive import open_bundle
from foretile.calibration.device.driver import DeviceError
from foretile.cli import app
from foretile.hwmodels import load_chip
from foretile.kernels.cuda.nvcc import NvccError, find_nvcc

sys.path.insert(0, str(Path(__file__).parents[1] / "calibration/device"))
from chip_device import ChipDevice

ONLY = ["--only", "shared,launch_chain"]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> ChipDevice:
    """An H200 that opens as device 0."""
    made = ChipDevice(load_chip("h200-sxm", calibrated=False))
    monkeypatch.setattr(cupy_driver, "open_device", lambda index: made)
    monkeypatch.setattr(code, "compiler", lambda arch, xp: lambda file: b"")
    monkeypatch.setattr(micro_run, "_PAUSE_S", 0.0)
    return made


def _run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def test_rows_are_kept_and_shown(device: ChipDevice, tmp_path: Path) -> None:
    first = _run("measure", "--out", str(tmp_path), *ONLY)
    assert first.exit_code == 0, first.output
    shown = "".join(first.stdout.split())  # a narrow terminal breaks names, and cuts none
    assert str(tmp_path / "microbenchmarks.jsonl") in shown
    assert "scratchpad.band" in shown
    assert "…" not in first.stdout
    launched = device.launched
    again = _run("measure", "--out", str(tmp_path), *ONLY, "--json")
    assert device.launched == launched
    said = json.loads(again.stdout)
    assert said["device"]["name"] == device.details.name
    assert said["microbenchmarks"]["measured"] == 0
    assert said["microbenchmarks"]["held"] == 13
    value = {e["field"]: e["value"] for e in said["microbenchmarks"]["estimates"]}
    assert value["launch.kernel_s"] == pytest.approx(1.27e-6, rel=0.03)


def test_what_is_refused_is_said_and_told_by_the_exit_code(
    device: ChipDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = device.load

    def refuse(cubin: bytes, symbol: str) -> Any:
        if symbol == "shared_read":
            raise DeviceError("CUDA_ERROR_NOT_FOUND")
        return load(cubin, symbol)

    monkeypatch.setattr(device, "load", refuse)
    ended = _run("measure", "--out", str(tmp_path), *ONLY)
    assert ended.exit_code == 3, ended.output
    assert "CUDA_ERROR_NOT_FOUND" in ended.stderr
    assert "12 points measured, 0 there already, 1 refused, 0 left" in ended.stderr


def test_a_device_becomes_a_chip_file(device: ChipDevice, tmp_path: Path) -> None:
    rows, file = tmp_path / "rows", tmp_path / "here.yaml"
    measured = _run("measure", "--out", str(rows), "--only", "a,b,c,d,h,l,m,n,r,s,t")
    assert measured.exit_code == 0, measured.output
    data = str(rows / "microbenchmarks.jsonl")
    made = _run("calibrate", "--from-device", "--data", data, "--out", str(file), "--id", "here", "--json")
    assert made.exit_code == 0, made.output
    said = json.loads(made.stdout)
    assert (said["chip"], said["kind"], said["implausible"]) == ("here", "measured", [])
    checked = _run("chips", "check", str(file))
    assert checked.exit_code == 0, checked.output
    assert load_chip(file).id == "here"
    assert _run("predict", "gemm", "m=1024", "n=1024", "k=1024", "--chip", str(file)).exit_code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("calibrate", "--from-device"),
        ("calibrate", "--from-device", "--chip", "h200", "--out", "x.yaml"),
        ("calibrate", "--from-device", "--transfer", "--out", "x.yaml"),
    ],
)
def test_from_device_takes_its_own_options(words: tuple[str, ...]) -> None:
    ended = _run(*words)
    assert ended.exit_code == 2
    assert "--from-device needs --out" in ended.output


def test_a_name_that_fits_nothing_and_a_bundle_that_is_not_there(device: ChipDevice, tmp_path: Path) -> None:
    ended = _run("measure", "--out", str(tmp_path), "--only", "dramread")
    assert ended.exit_code == 2
    assert "did you mean dram_read" in ended.output
    ended = _run("measure", "--out", str(tmp_path), "--only", "operators", "--bundle", str(tmp_path / "no"))
    assert ended.exit_code == 2
    assert "foretile bundle build" in ended.output


def test_operators_are_built_for_the_device_and_go_to_a_process_of_their_own(
    device: ChipDevice, tmp_path: Path
) -> None:
    """That process finds no CuPy here, and its message is the command's."""
    try:
        find_nvcc()
    except NvccError as error:
        pytest.skip(str(error).partition(":")[0])
    if importlib.util.find_spec("cupy") is not None:
        pytest.skip("CuPy is installed: the process would look for a device")
    suite = tmp_path / "one.yaml"
    entry = {"operator": "softmax", "shapes": [{"rows": 8, "cols": 40}], "tile": 0}
    suite.write_text(
        json.dumps({"name": "one", "title": "one operator", "entries": [entry]}), encoding="utf-8"
    )
    ended = _run("measure", "--out", str(tmp_path), "--only", "operators", "--suite", str(suite))
    assert ended.exit_code == 2
    assert "pip install cupy-cuda12x" in ended.output
    with open_bundle(tmp_path / "one-sm_90a.bundle") as made:
        assert made.arch == "sm_90a"
        assert len(made.rows) == 1


@pytest.fixture
def without_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("NVCC", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("without_nvcc")
def test_operators_that_cannot_be_built_leave_the_rest_standing(device: ChipDevice, tmp_path: Path) -> None:
    ended = _run("measure", "--out", str(tmp_path / "out"), "--budget", "1", "--json")
    assert ended.exit_code == 3, ended.output
    said = json.loads(ended.stdout)
    assert said["operators"] is None
    assert said["microbenchmarks"]["measured"] >= 1
    assert "nvcc was not found" in said["notes"][0]
    assert "--bundle FILE" in said["notes"][0]
    ended = _run("measure", "--out", str(tmp_path / "out"), "--only", "operators")
    assert ended.exit_code == 2
    assert "nvcc was not found" in ended.output


@pytest.mark.parametrize(
    "words", [("measure", "--out", "{dir}"), ("calibrate", "--from-device", "--out", "{dir}/a.yaml")]
)
def test_without_cupy_one_message_says_how_to_get_it(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    ended = _run(*(w.format(dir=tmp_path) for w in words))
    assert ended.exit_code == 2
    assert ended.output.count("error:") == 1
    assert "pip install cupy-cuda12x" in ended.output
    assert [p.name for p in tmp_path.iterdir()] == []
