"""``foretile bundle``: what it prints and refuses, without a device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from foretile.kernels.cuda.nvcc import NvccError, find_nvcc

from .conftest import Run

SUITE = {"name": "one", "title": "one operator", "entries": [
    {"operator": "softmax", "shapes": [{"rows": 8, "cols": 40}], "tile": 0},
]}  # fmt: skip


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(SUITE), encoding="utf-8")
    return path


@pytest.fixture
def bundle(suite: Path, run: Run) -> Path:
    try:
        find_nvcc()
    except NvccError as error:
        pytest.skip(str(error).partition(":")[0])
    out = suite.with_name("one.bundle")
    done = run("bundle", "build", str(suite), "--arch", "sm_90a", "--out", str(out))
    assert done.code == 0
    assert "1 of 1 cases" in done.out
    return out


def test_show_and_check(bundle: Path, run: Run) -> None:
    done = run("bundle", "show", str(bundle), "--json")
    facts = json.loads(done.out)["facts"]
    assert (done.code, facts["architecture"], facts["suite"]) == (0, "sm_90a", "one")
    assert facts["estimate"].endswith("s for measuring all of it on h200-sxm")
    done = run("bundle", "check", str(bundle))
    assert (done.code, done.out.strip()) == (0, "1 rows checked for sm_90a, 0 would be refused")


def test_run_without_cupy_or_device(bundle: Path, run: Run) -> None:
    done = run("bundle", "run", str(bundle), "--out", str(bundle.with_name("t.parquet")))
    assert (done.code, done.out) == (2, "")
    assert "CuPy is not installed" in done.err or "CUDA driver" in done.err or "no CUDA device" in done.err
    assert not bundle.with_name("t.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["build", "operator", "--arch", "sm_90a", "--out", "x"], "did you mean 'operators'"),
        (["build", "none.yaml", "--arch", "sm_90a", "--out", "x"], "none.yaml: no such file"),
        (["build", "operators", "--arch", "sm_70", "--out", "x"], "'sm_70' is not one of sm_80"),
        (["build", "operators", "--arch", "sm_90a", "--out", "no/such/x"], "there is no folder"),
        (["show", "none.bundle"], "none.bundle: no such file"),
        (["run", "none.bundle", "--out", "t.csv"], "none.bundle: no such file"),
    ],
)
def test_requests_that_cannot_be(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("bundle", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"entries": []}, "entries"),
        ({"entry": 1}, "entry"),
        ({"entries": [{"operator": "gem", "shapes": [{"m": 1}]}]}, "entries.0: unknown operator 'gem'"),
        ({"entries": [{"operator": "gemm", "shapes": [{"m": 1, "n": 1}]}]}, "entries.0: gemm needs k"),
        (
            {"entries": [{"operator": "softmax", "shapes": [{"rows": 1, "cols": 1}], "tile": -1}]},
            "entries.0.tile",
        ),
    ],
)
def test_suites_that_are_not_right(change: dict[str, object], said: str, suite: Path, run: Run) -> None:
    suite.write_text(yaml.safe_dump({**SUITE, **change}), encoding="utf-8")
    done = run("bundle", "build", str(suite), "--arch", "sm_90a", "--out", str(suite) + ".b")
    assert done.code == 2
    assert "one.yaml" in done.err
    assert said in done.err


def test_accuracy_of_a_table(tmp_path: Path, run: Run) -> None:
    table = tmp_path / "t.csv"
    lines = ["device,operator,m,n,k,latency_us,predicted_s,config"]
    lines += [
        f'h200-sxm,gemm,64,64,64,{100 + i},{2e-4 + i * 1e-6},"{{""block_m"":{16 * (i + 1)}}}"'
        for i in range(5)
    ]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = run("bundle", "accuracy", str(table), "--json")
    assert done.code == 0
    gemm, whole = json.loads(done.out)
    assert (gemm["operator"], gemm["rows"], gemm["shapes"], gemm["rank"]) == (
        "gemm",
        5,
        1,
        pytest.approx(1.0),
    )
    assert whole["mape"] == gemm["mape"] == pytest.approx(0.98, abs=0.03)
    done = run("bundle", "accuracy", str(table))
    assert (done.code, "1.00" in done.out) == (0, True)
    done = run("bundle", "accuracy", str(table), "--uncalibrated")
    assert (done.code, "goes with --chip" in done.err) == (2, True)
    done = run("bundle", "accuracy", str(table), "--chip", "h20")
    assert (done.code, "no row of h20" in done.err) == (2, True)


def test_nothing_could_be_compiled(suite: Path, run: Run) -> None:
    try:
        find_nvcc()
    except NvccError as error:
        pytest.skip(str(error).partition(":")[0])
    entry = {"operator": "topk_select", "shapes": [{"rows": 8, "cols": 40, "k": 4}], "tile": 0}
    suite.write_text(yaml.safe_dump({**SUITE, "entries": [entry]}), encoding="utf-8")
    done = run("bundle", "build", str(suite), "--arch", "sm_90a", "--out", str(suite) + ".b")
    assert done.code == 2
    assert "nothing could be compiled for sm_90a; the first: topk_select: several results" in done.err


def test_without_nvcc_it_is_said_how_to_get_it(
    suite: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("PATH", "")
    for variable in ("NVCC", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    done = run("bundle", "build", str(suite), "--arch", "sm_90a", "--out", str(suite) + ".b")
    assert done.code == 2
    assert "nvcc was not found" in done.err
