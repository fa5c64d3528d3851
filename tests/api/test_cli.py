"""Commands in this process, on made-up chips: what goes to which stream, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretile.simulator.prediction import Prediction

from . import fakes
from .conftest import Run

GEMM = ("gemm", "m=4096", "n=7168", "k=2048")


def test_version_names_the_release(run: Run) -> None:
    import foretile

    said = run("--version")
    assert said.code == 0
    assert said.out.startswith(f"foretile {foretile.__version__}")


def test_no_arguments_shows_help(run: Run) -> None:
    said = run()
    assert "predict" in said.out + said.err


@pytest.mark.usefixtures("fake")
def test_predict_answers_first_then_says_why(run: Run) -> None:
    said = run("predict", *GEMM, "--chip", "big-one")
    assert said.code == 0
    head, answer, why, *_ = said.out.splitlines()
    assert head.startswith("gemm")
    assert "µs" in answer
    assert "peak" in answer
    assert why.startswith("bound by matrix")
    assert "not calibrated" in said.err


@pytest.mark.usefixtures("fake")
def test_predict_json_is_an_object_for_one_chip(run: Run) -> None:
    said = run("predict", *GEMM, "--chip", "big-one", "--json")
    found = json.loads(said.out)
    assert said.err == ""
    assert set(found) >= {
        "operator", "shape", "chip", "time_s", "interval_s", "bound", "breakdown_s", "utilisation",
        "traffic_bytes", "flops", "occupancy", "config", "model",
    }  # fmt: skip
    low, high = found["interval_s"]
    assert low < found["time_s"] < high
    assert Prediction.from_json(found).to_json() == found


@pytest.mark.usefixtures("fake")
def test_predict_json_is_a_list_in_the_order_asked_for_several_chips(run: Run) -> None:
    said = run(
        "predict", "gemm", "--chip", "small-one", "m=4096", "--chip", "big-one", "n=7168", "k=2048", "--json"
    )
    assert [p["chip"] for p in json.loads(said.out)] == ["small-one", "big-one"]


@pytest.mark.usefixtures("fake")
def test_several_chips_are_compared_fastest_first(run: Run) -> None:
    said = run("predict", *GEMM, "--chip", "small-one,big-one")
    rows = [line for line in said.out.splitlines() if "-one" in line]
    assert "big-one" in rows[0]
    assert "1.00×" in rows[0]
    assert "small-one" in rows[1]


@pytest.mark.usefixtures("fake")
def test_config_and_model_reach_the_predictor(run: Run) -> None:
    argv = ("--config", "block_m=64", "num_stages=3", "--model", "cost-model", "--json", "--chip", "big-one")
    found = json.loads(run("predict", *GEMM, *argv).out)
    assert found["config"] == {"block_m": "64", "num_stages": "3"}
    assert found["model"]["kind"] == "cost_model"


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("predict", "gemm", "m", "--chip", "big-one"), "'m' is not of the form key=value"),
        (("predict", "gemm", "model=engine", "--chip", "big-one"), "write --model engine"),
        (("predict", *GEMM, "--chip", "nowhere"), "unknown chip 'nowhere'"),
        (("predict", *GEMM, "--chip", ","), "--chip needs an id"),
        (("predict", "softmax", "rows=1", "--chip", "small-one"), "no special-function rate"),
        (("compare", "--suite", "nothing", "--out", "."), "unknown suite 'nothing'"),
        (("compare", "--suite", "nothing.yaml", "--out", "."), "No such file"),
    ],
)
def test_wrong_requests_are_one_message_and_code_2(
    run: Run, argv: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = run(*argv)
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert message in said.err
    assert "Traceback" not in said.err


def _broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a fault of ours")


def test_our_own_faults_are_code_1_and_show_where_on_request(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foretile.frontdoor.predict", _broken)
    said = run("predict", *GEMM, "--chip", "h20")
    assert said.code == 1
    assert "internal error: RuntimeError: a fault of ours" in said.err
    assert "Traceback" not in said.err
    monkeypatch.setenv("FORETILE_DEBUG", "1")
    assert "Traceback" in run("predict", *GEMM, "--chip", "h20").err


def test_an_interrupt_is_code_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("foretile.frontdoor.predict", interrupted)
    said = run("predict", *GEMM, "--chip", "h20")
    assert said.code == 130
    assert "Traceback" not in said.err


def test_an_error_in_a_kernel_file_names_its_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def kernel():\n    return 1 / 0\n")

    def load(op: str, *_: Any, **__: Any) -> Any:
        scope: dict[str, Any] = {}
        exec(compile(file.read_text(), str(file), "exec"), scope)
        return scope["kernel"]()

    monkeypatch.setattr("foretile.frontdoor.predict", load)
    said = run("predict", f"{file}:kernel", "--chip", "h20")
    assert said.code == 2
    assert f"{file}:2: ZeroDivisionError" in said.err


@pytest.mark.usefixtures("fake")
def test_explain_says_why_and_what_would_help(run: Run) -> None:
    said = run("explain", *GEMM, "--chip", "big-one")
    assert "· DRAM is busy." in said.out
    assert "−8.0 %" in said.out
    found = json.loads(run("explain", *GEMM, "--chip", "big-one", "--json").out)
    assert found["gains"] == {"dram": -0.08}


def test_trace_writes_a_whole_file_or_none(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foretile.frontdoor.trace_events", lambda *_, **__: {"traceEvents": [{"ph": "X"}]})
    out = tmp_path / "t.json"
    said = run("trace", *GEMM, "--chip", "h20", "--out", str(out))
    assert said.code == 0
    assert said.out.strip() == str(out)
    assert "ui.perfetto.dev" in said.err
    assert json.loads(out.read_text())["traceEvents"] == [{"ph": "X"}]
    packed = tmp_path / "t.json.gz"
    run("trace", *GEMM, "--chip", "h20", "--out", str(packed))
    import gzip

    assert gzip.decompress(packed.read_bytes()) == out.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.json", "t.json.gz"]


def test_trace_looks_at_the_place_before_the_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foretile.frontdoor.trace_events", _broken)
    said = run("trace", *GEMM, "--chip", "h20", "--out", str(tmp_path / "missing" / "t.json"))
    assert said.code == 2
    assert "does not exist" in said.err


@pytest.mark.usefixtures("fake")
def test_chips_lists_and_shows_with_sources(run: Run) -> None:
    assert "bandwidth-heavy" in run("chips").out
    listed = json.loads(run("chips", "--json").out)
    names = ["big-one", "bandwidth-heavy", "compute-heavy", "small-one"]
    assert [chip["id"] for chip in listed if chip["complete"]] == names
    shown = run("chips", "show", "big-one")
    assert "made up for tests" in shown.out
    assert "measured" in shown.out
    one = json.loads(run("chips", "show", "big-one", "--json").out)
    assert one["cores"] == {"value": 132, "source": "made up for tests", "confidence": "datasheet"}


@pytest.mark.usefixtures("fake")
def test_an_incomplete_chip_is_listed_and_shown_with_what_is_missing(run: Run) -> None:
    said = run("chips")
    assert "half-known" in said.out
    assert "incomplete, 3 missing" in said.out
    told = next(chip for chip in json.loads(run("chips", "--json").out) if chip["id"] == "half-known")
    assert (told["complete"], told["missing"]) == (False, list(fakes.INCOMPLETE.missing))
    assert "peak_flop_per_s" not in told
    shown = run("chips", "show", "half-known").out
    assert "incomplete: what is public does not suffice" in shown
    assert "l2 (bandwidth_bytes_per_cycle, latency_cycles)" in shown
    one = json.loads(run("chips", "show", "half-known", "--json").out)
    assert one["complete"] is False
    assert one["cores"]["confidence"] == "datasheet"


@pytest.mark.usefixtures("fake")
def test_an_incomplete_chip_refuses_to_predict(run: Run) -> None:
    said = run("predict", *GEMM, "--chip", "half-known")
    assert (said.code, said.out) == (2, "")
    assert "half-known is incomplete" in said.err
    assert "missing: clock.max_hz; l2 (bandwidth_bytes_per_cycle, latency_cycles)" in said.err


@pytest.mark.usefixtures("fake")
def test_a_chip_that_refuses_takes_no_other_with_it(run: Run) -> None:
    words = ("predict", *GEMM, "--chip", "half-known", "--chip", "big-one", "--chip", "small-one")
    said = run(*words)
    assert said.code == 2
    assert "half-known is incomplete" in " ".join(said.err.split())
    assert "small-one" in said.out
    half, big, small = json.loads(run(*words, "--json").out)
    assert (half["chip"], big["chip"], small["chip"]) == ("half-known", "big-one", "small-one")
    assert "half-known is incomplete" in half["error"]
    assert big["time_s"] < small["time_s"]


def test_check_says_how_complete_a_file_is(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "half.yaml"
    path.write_text("id: half\nextends: h100\ncomplete: false\nclock: null\n", encoding="utf-8")
    said = run("chips", "check", str(path))
    assert said.code == 0
    assert "half: incomplete, so it cannot predict yet" in said.out
    assert "clock.max_hz" in said.out
    found = json.loads(run("chips", "check", str(path), "--json").out)
    assert [field["field"] for field in found["missing"]] == ["clock.max_hz"]


def test_ops_lists_parameters_with_their_defaults(run: Run) -> None:
    said = run("ops")
    assert said.code == 0
    assert "gemm" in said.out
    assert "required" in said.out
    params = {op["name"]: [p["name"] for p in op["params"]] for op in json.loads(run("ops", "--json").out)}
    assert all(op["cuda"] for op in json.loads(run("ops", "--json").out))
    assert {"m", "n", "k"} <= set(params["gemm"])


def test_the_operator_reference_is_current() -> None:
    from foretile.cli.ops import markdown
    from foretile.kernels.operator import load_operator, operator_names

    page = Path(__file__).parents[2] / "docs" / "operator-reference.md"
    made = markdown([load_operator(name) for name in operator_names()])
    assert page.read_text(encoding="utf-8") == made, (
        "run: foretile ops --markdown > docs/operator-reference.md"
    )


def test_verify_says_how_close_a_program_is(run: Run) -> None:
    said = run("verify", "softmax", "rows=5", "cols=40")
    assert said.code == 0
    assert "within" in said.out
    assert "equal" in said.out  # a kind of inputs of its own
    found = json.loads(run("verify", "softmax", "rows=5", "cols=40", "--inputs", "random", "--json").out)
    assert [v["ok"] for v in found] == [True]
    assert found[0]["outputs"][0]["norm_error"] < found[0]["tolerance"]["norm"]


def test_verify_leaves_with_three_when_a_result_is_off(run: Run) -> None:
    """Long fp8 sums in one level, as Hopper adds them, are not what float32 results promise."""
    shape = ("m=32", "n=32", "k=4096", "dtype=fp8", "out_dtype=fp32")
    config = ("--config", "variant=tile", "block_m=64", "block_n=64")
    assert run("verify", "gemm", *shape, *config, "--inputs", "random").code == 0
    said = run("verify", "gemm", *shape, *config, "--inputs", "random", "--chip", "h100-sxm5-80gb")
    assert said.code == 3
    assert "OUTSIDE" in said.out
    assert "should be" in said.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("verify",), "give one operator, or --all"),
        (("verify", "gemm", "--all"), "give one operator, or --all"),
        (("verify", "sofmax", "rows=2"), "did you mean softmax"),
        (
            ("verify", "softmax", "rows=2", "cols=4", "--inputs", "nope"),
            "softmax has no inputs 'nope'; it has: random, ",
        ),
        (("verify", "softmax", "rows=2", "cols=4", "--out", "x"), "--out needs --all"),
    ],
)
def test_verify_refuses_with_what_would_be_right(run: Run, words: tuple[str, ...], message: str) -> None:
    said = run(*words)
    assert said.code == 2
    assert message in said.err


RAGGED = """
from foretile.kernels import language as T

@T.prim_func
def ragged(X: T.Tensor((64, 4096, 512), "float16"), Lengths: T.Tensor((64,), "int32"),
           Y: T.Tensor((64, 4096, 512), "float16")):
    with T.Kernel(64, threads=128) as b:
        x = T.alloc_fragment((1, 512), "float16")
        for i in T.serial(Lengths[b]):
            T.copy(X[b, i, 0], x)
            T.copy(x, Y[b, i, 0])
"""


def test_operands_on_which_the_work_depends_come_from_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "ragged.py").write_text(RAGGED)
    op = f"{tmp_path / 'ragged.py'}:ragged"
    said = run("predict", op, "--chip", "h200")
    assert said.code == 2
    assert "--tensors operands.npz" in said.err
    times = []
    for length in (100, 3000):
        operands = tmp_path / f"{length}.npz"
        np.savez(operands, Lengths=np.full(64, length, np.int32))
        times.append(
            json.loads(run("predict", op, "--chip", "h200", "--tensors", str(operands), "--json").out)
        )
        assert run("explain", op, "--chip", "h200", "--tensors", str(operands)).code == 0
    assert times[1]["time_s"] > 10 * times[0]["time_s"]
    out = tmp_path / "t.json"
    assert run("trace", op, "--chip", "h200", "--tensors", str(operands), "--out", str(out)).code == 0
    assert len(json.loads(out.read_text())["traceEvents"]) > 10
    assert "not an .npz file" in run("predict", op, "--chip", "h200", "--tensors", op.partition(":")[0]).err
