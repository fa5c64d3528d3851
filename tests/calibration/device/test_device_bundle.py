"""The measurement bundle from suite to table, on a driver that is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_bundles import Player, build_small

from foretile.calibration.device.archive import BUNDLED, Bundle, BundleError, cubin_name, open_bundle
from foretile.calibration.device.build import estimate_s
from foretile.calibration.device.driver import DeviceError
from foretile.calibration.device.fake import FakeDriver
from foretile.calibration.device.kernels import candidates
from foretile.calibration.device.main import check, facts, main
from foretile.calibration.device.session import Message, Summary, messages_of, run_session
from foretile.calibration.device.suites import load_suite
from foretile.calibration.device.supervise import Process
from foretile.calibration.device.tables import chip_of
from foretile.calibration.device.timing import Plan
from foretile.calibration.measurements import COLUMNS, read_csv, read_table
from foretile.hwmodels import load_chip
from foretile.kernels.operator import load_operator, operator_names
from foretile.simulator.predictor import predict

QUICK = Plan(budget_s=0.02, warm_up_s=0.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def bundle(path: Path) -> Iterator[Bundle]:
    with open_bundle(path) as opened:
        yield opened


def run(bundle: Bundle, out: Path, driver: FakeDriver | None = None, **more: Any) -> Summary:
    made = driver or Player(bundle)

    def worker(keys: Sequence[str], budget_s: float) -> Iterator[Message]:
        # Through JSON, as between processes.
        return (json.loads(json.dumps(m)) for m in messages_of(bundle, made, keys, budget_s, QUICK))

    return run_session(bundle, out, worker, **{"budget_s": 60.0, **more})


def test_a_bundle_says_what_it_is(bundle: Bundle) -> None:
    assert [bundle.cases[r.case].operator for r in bundle.rows] == ["softmax", "softmax", "rmsnorm", "swiglu"]
    assert bundle.arch == "sm_90a"
    (left,) = bundle.manifest["left_out"]
    assert left["operator"] == "topk_select"
    assert "several results are right" in left["why"]
    said = facts(bundle)
    assert said["rows"] == "4 of 4 cases"
    assert 0 < bundle.manifest["estimate_s"] < 60
    assert bundle.bytes < 1e6


@pytest.mark.parametrize("arch", ["sm_80", "sm_100a"])
def test_other_architectures_are_built_and_checked(arch: str, tmp_path: Path) -> None:
    with open_bundle(build_small(tmp_path, arch)) as other:
        assert (other.arch, len(other.rows), check(other)) == (arch, 4, [])


def test_the_estimate_is_what_the_budgets_allow(bundle: Bundle) -> None:
    plan, suite = Plan(), load_suite("quick")
    rows = [replace(bundle.rows[0], predicted_s=t) for t in (float("nan"), 1e-5, 2e-5)]
    whole = estimate_s(rows, plan, suite)
    assert whole == pytest.approx(suite.case_s + 3 * (plan.warm_up_s + plan.budget_s + 10 * plan.graph_s))
    slow = estimate_s([rows[0], replace(rows[1], predicted_s=0.01)], plan, suite)
    assert slow == pytest.approx(suite.case_s + 2 * (plan.warm_up_s + plan.budget_s) + 10 * (0.01 + 0.2))


def test_the_suite_of_operators_is_what_it_should_be() -> None:
    suite, plan = load_suite("operators"), Plan()
    kinds = [(e, o.name, s) for e in suite.entries for o, s in e.resolved()]
    for kind in ("bf16", "fp8"):
        shapes = {json.dumps(s) for _, name, s in kinds if name == "gemm" and s["dtype"] == kind}
        assert len(shapes) == 20
    assert {e.tile for e, name, _ in kinds if name == "gemm"} == {12}
    assert {name for _, name, _ in kinds} >= {
        *("attention_prefill", "attention_decode", "gemm_fp8_block", "mla_decode", "sparse_mla"),
        *("indexer_logits", "rmsnorm", "layernorm", "softmax", "copy"),
    }
    rows = sum((e.tile if isinstance(e.tile, int) else len(e.tile)) + e.cuda for e, _, _ in kinds)
    # Eight minutes, of which kernels that outlast their budget's last batch may take two.
    assert len(kinds) * suite.case_s + rows * (plan.warm_up_s + plan.budget_s + 10 * plan.graph_s) < 360


def test_configurations_to_measure() -> None:
    operator, chip = load_operator("gemm"), load_chip("h200-sxm")
    shape = operator.shape(m=512, n=4096, k=2048)
    found = list(candidates(operator, shape, chip, 6))
    assert len({json.dumps(c) for c in found}) == len(found) > 12
    times = [predict(operator, shape, chip, c, model="cost_model").time_s for c in found[:6]]
    assert times[:3] == sorted(times[:3])
    assert max(times[3:]) > 1.5 * times[0]  # some that are clearly worse, to be told from the good ones
    chosen = list(candidates(operator, shape, chip, [{"block_m": 128, "block_n": 128, "num_stages": 3}]))
    assert [(c["block_m"], c["block_n"], c["num_stages"]) for c in chosen] == [(128, 128, 3)]


def test_the_same_suite_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    assert build_small(tmp_path).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_a_run_ends_in_a_table_that_is_right(bundle: Bundle, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"table{ending}"
    summary = run(bundle, out)
    assert (summary.ok, summary.wrong, summary.failed, summary.left) == (4, 0, 0, 0)
    table = read_table(out) if ending == ".parquet" else read_csv(out)
    assert list(table["device"]) == ["h200-sxm"] * 4
    assert list(table["operator"]) == ["softmax", "softmax", "rmsnorm", "swiglu"]
    assert np.allclose(table["latency_s"], 10e-6)
    assert list(table["launch"]) == ["graph"] * 4
    assert [json.loads(text) for text in table["copies"]] == [
        {"X": 32, "Y": 32}, {"X": 32, "Y": 32}, {"W": 32, "X": 32, "Y": 32},
        {"X": 32, "Y": 32},
    ]  # fmt: skip
    assert (table["error_norm"] > 0).any()
    assert (table["error_norm"] < 0.004).all()
    assert list(table["driver"]) == ["580.1"] * 4
    assert table["comparable"].str.contains("baseline").all()


def test_an_interrupted_run_goes_on_where_it_stopped(bundle: Bundle, tmp_path: Path) -> None:
    out, first, driver = tmp_path / "table.parquet", bundle.rows[0].key, Player(bundle)

    def interrupted(keys: Sequence[str], budget_s: float) -> Iterator[Message]:
        for message in messages_of(bundle, driver, keys, budget_s, QUICK):
            yield message
            if "outcome" in message:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_session(bundle, out, interrupted, budget_s=60.0)
    assert len(read_table(out)) == 1  # what there is is a table already
    asked: list[Sequence[str]] = []

    def resumed(keys: Sequence[str], budget_s: float) -> Iterator[Message]:
        asked.append(list(keys))
        return messages_of(bundle, Player(bundle), keys, budget_s, QUICK)

    summary = run_session(bundle, out, resumed, budget_s=60.0)
    assert asked == [[r.key for r in bundle.rows if r.key != first]]
    assert (summary.ok, summary.left, len(read_table(out))) == (4, 0, 4)
    assert run_session(bundle, out, resumed, budget_s=60.0).ok == 4
    assert len(asked) == 1  # nothing was left to do


def test_the_budget_ends_a_run(bundle: Bundle, tmp_path: Path) -> None:
    summary = run(bundle, tmp_path / "table.csv", budget_s=1e-9)
    assert (summary.ok, summary.left) == (0, 4)
    assert not (tmp_path / "table.csv").exists()


def test_wrong_and_unwritten_results_are_no_measurement(bundle: Bundle, tmp_path: Path) -> None:
    def unwritten(values: Any) -> Any:
        return np.where(np.arange(values.size).reshape(values.shape) == 7, np.nan, values)

    spoil = {"softmax": lambda values: 1.001 * values, "rmsnorm": unwritten}
    out = tmp_path / "table.json"
    summary = run(bundle, out, Player(bundle, spoil))
    assert (summary.ok, summary.wrong) == (1, 3)
    assert [r["operator"] for r in json.loads(out.read_text())] == ["swiglu"]
    said = [outcome.message for _, outcome in summary.problems]
    assert "off by 0.001 (norm)" in said[0]
    assert "Y: 1 elements are NaN" in said[2]
    again = run(bundle, out, again=True)
    assert (again.ok, len(json.loads(out.read_text()))) == (4, 4)


def test_a_kernel_that_writes_nothing_is_found_out(bundle: Bundle, tmp_path: Path) -> None:
    class Idle(Player):
        def launch(self, *given: Any, **more: Any) -> None:
            FakeDriver.launch(self, *given, **more)

    summary = run(bundle, tmp_path / "table.csv", Idle(bundle))
    assert (summary.ok, summary.wrong, summary.failed) == (0, 3, 1)
    assert "the kernel that is the reference left elements out" in summary.problems[3][1].message
    assert "320 elements are NaN" in summary.problems[0][1].message


def test_a_row_that_loses_the_device_costs_that_row_alone(bundle: Bundle, tmp_path: Path) -> None:
    class Dying(Player):
        dead = False

        def launch(self, kernel: Any, *given: Any, **more: Any) -> None:
            self.dead = self.dead or kernel.symbol.startswith("softmax")
            super().launch(kernel, *given, **more)

        def synchronize(self) -> None:
            if self.dead:
                raise DeviceError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    def worker(keys: Sequence[str], budget_s: float) -> Iterator[Message]:
        return messages_of(bundle, Dying(bundle), keys, budget_s, QUICK)  # a new process, a new device

    summary = run_session(bundle, tmp_path / "table.csv", worker, budget_s=60.0)
    assert (summary.ok, summary.failed, summary.left) == (2, 2, 0)
    assert "cudaErrorIllegalAddress" in summary.problems[0][1].message


def test_a_journal_of_another_bundle_or_device_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    run(bundle, out, budget_s=60.0)
    journal = Path(f"{out}.journal")
    held = json.loads(journal.read_text())
    journal.write_text(
        json.dumps({**held, "device": {"name": "NVIDIA A100"}, "outcomes": held["outcomes"][:1]})
    )
    with pytest.raises(DeviceError, match="begun on NVIDIA A100, and this is NVIDIA H200"):
        run(bundle, out)
    journal.write_text(json.dumps({**held, "bundle": "0" * 64}))
    with pytest.raises(DeviceError, match="belongs to bundle 000000000000"):
        run(bundle, out)
    journal.write_text("{}")
    with pytest.raises(DeviceError, match="no journal"):
        run(bundle, out)


def test_another_architecture_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"machine code for sm_90a, and .* is sm_80; build one"):
        run(bundle, tmp_path / "table.csv", FakeDriver((8, 0)))
    with pytest.raises(DeviceError, match="its times are made up"):
        run(bundle, tmp_path / "table.csv", FakeDriver((9, 0)))
    with pytest.raises(DeviceError, match=r"table.txt: a table's name ends in \.parquet"):
        run(bundle, tmp_path / "table.txt")


def _tampered(path: Path, folder: Path, name: str, change: bytes | None) -> Path:
    """A copy with one file changed, left out (None) or added, checksums as they were."""
    out = folder / "tampered.bundle"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for info in source.infolist():
            if info.filename != name:
                target.writestr(info, source.read(info))
        if change is not None:
            target.writestr(name, change)
    return out


def test_what_was_changed_is_refused(bundle: Bundle, path: Path, tmp_path: Path) -> None:
    code = cubin_name(bundle.rows[0].launches[0][0])
    cases: list[tuple[str, bytes | None, str]] = [
        (code, bundle.read(code)[:-1] + b"!", "has SHA-256"),
        (code, None, "cannot be read"),
        ("extra.py", b"print()", "extra.py has no checksum"),
        ("manifest.json", bundle.read("manifest.json") + b" ", "manifest.json has SHA-256"),
        ("SHA256SUMS", None, "no measurement bundle"),
    ]
    for name, change, said in cases:
        with (
            pytest.raises(BundleError, match=said),
            open_bundle(_tampered(path, tmp_path, name, change)) as found,
        ):
            run(found, tmp_path / "table.csv")
        assert not (tmp_path / "table.csv").exists()
    text = tmp_path / "text.bundle"
    text.write_text("text")
    with pytest.raises(BundleError, match="no measurement bundle"):
        open_bundle(text)
    with pytest.raises(FileNotFoundError, match="expected a measurement bundle"):
        open_bundle(tmp_path / "none")


def test_check_finds_what_a_device_would_refuse(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(bundle) == []
    assert main(["check"], str(bundle.path)) == 0
    assert "4 rows checked for sm_90a, 0 would be refused" in capsys.readouterr().out
    row = bundle.rows[0]
    digest, recipe = row.launches[0]
    bundle.rows = (replace(row, launches=((digest, replace(recipe, block=(2048, 1, 1))),)), *bundle.rows[1:])
    ((name, outcome),) = check(bundle)
    assert "block.x = 2048" in outcome.message
    assert name.startswith("softmax")


def alone(path: Path, folder: Path, *arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """The bundle run by Python by itself: nothing of ours installed, no CuPy."""
    shutil.copy(path, folder / "alone.bundle")
    blocked = folder / "blocked" / "cupy.py"
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text(code or "raise ModuleNotFoundError('No module named cupy', name='cupy')\n")
    environment = {**os.environ, "PYTHONPATH": str(blocked.parent)}
    command = [sys.executable, str(folder / "alone.bundle"), *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_file_runs_by_itself(path: Path, tmp_path: Path) -> None:
    shown = alone(path, tmp_path, "show")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "suite: small" in shown.stdout
    checked = alone(path, tmp_path, "check")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "4 rows checked" in checked.stdout


def test_the_script_inside_runs_it_too(path: Path, tmp_path: Path) -> None:
    with open_bundle(path) as opened:
        (tmp_path / "bundle_run.py").write_bytes(opened.read("bundle_run.py"))
    command = [sys.executable, "-I", str(tmp_path / "bundle_run.py"), str(path), "show"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "suite: small" in done.stdout


def test_no_parameter_is_called_like_a_column() -> None:
    # A CSV has both side by side.
    for name in operator_names():
        assert not {p.name for p in load_operator(name).params} & set(COLUMNS), name


def test_without_cupy_one_message_says_how_to_get_it(path: Path, tmp_path: Path) -> None:
    done = alone(path, tmp_path, "--out", "table.csv")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: CuPy is not installed; `pip install cupy-cuda12x`")
    assert len(done.stderr.splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone.bundle", "blocked"]


def test_what_is_bundled_needs_nothing_else(path: Path, tmp_path: Path) -> None:
    # Every module imports where only Python and NumPy are.
    modules = [name.removesuffix(".py").replace("/", ".") for name in BUNDLED if "__init__" not in name]
    script = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        known = (*sys.stdlib_module_names, 'numpy', 'foretile')\n"
        "        if name.partition('.')[0] not in known: raise ImportError(name + ' is asked for')\n"
        f"sys.meta_path.insert(0, Refuse()); sys.path.insert(0, {str(path)!r})\n"
        "import importlib\n"
        f"for name in {modules!r}: importlib.import_module('foretile.' + name)\n"
        f"assert sys.modules['foretile.kernels.dtypes'].__file__.startswith({str(path)!r})\n"
    )
    subprocess.run([sys.executable, "-I", "-c", script], check=True, cwd=tmp_path)


WORKER = """
import json, sys, time
task = json.loads(sys.stdin.readline())
print("a library says hello", flush=True)
print(json.dumps({"device": {"name": "d"}}), flush=True)
for key in task["keys"]:
    print(json.dumps({"begin": key}), flush=True)
    if key == "hangs": time.sleep(60)
    if key == "dies": sys.exit("killed by it")
    print(json.dumps({"outcome": {"key": key}}), flush=True)
"""


@pytest.mark.parametrize(
    ("keys", "last"),
    [
        (["a", "b"], {"outcome": {"key": "b"}}),
        (["a", "hangs", "b"], {"stopped": "measuring it took more than 0.5 s"}),
        (["a", "dies", "b"], {"stopped": "the measuring process ended: killed by it"}),
    ],
)
def test_a_process_that_hangs_or_dies_is_told(keys: list[str], last: Message) -> None:
    found = list(Process([sys.executable, "-c", WORKER], row_s=0.5)(keys, 10.0))
    assert found[0] == {"device": {"name": "d"}}
    assert found[1:3] == [{"begin": "a"}, {"outcome": {"key": "a"}}]
    assert found[-1] == last


def test_a_process_that_never_starts_is_an_error() -> None:
    (only,) = Process([sys.executable, "-c", "raise SystemExit('no such thing')"])(["a"], 1.0)
    assert only == {"error": "the measuring process ended: no such thing"}


@pytest.mark.parametrize(
    ("name", "cores", "memory", "chip"),
    [
        ("NVIDIA H200", 132, 150_754_820_096, "h200-sxm"),
        ("NVIDIA H100 80GB HBM3", 132, 85_045_084_160, "h100-sxm5-80gb"),
        ("NVIDIA H100 PCIe", 114, 85_045_084_160, "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", 108, 85_045_084_160, "a100-sxm4-80gb"),
        ("NVIDIA B200", 148, 191_503_000_000, "b200-sxm"),
        ("NVIDIA H200", 100, 150_754_820_096, ""),
        ("Another 9000", 132, 150_754_820_096, ""),
    ],
)
def test_which_chip_a_device_is(bundle: Bundle, name: str, cores: int, memory: int, chip: str) -> None:
    device = {"name": name, "cores": cores, "memory_bytes": memory}
    assert chip_of(device, bundle.manifest["chips"]) == chip
