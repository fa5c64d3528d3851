"""Measuring a device whose physics are a chip's gives that chip back; and what a run does when it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chip_device import ChipDevice, details_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foretile.calibration.device.driver import DeviceError
from foretile.calibration.device.micro.benchmarks import BENCHMARKS, chosen, points
from foretile.calibration.device.micro.chipfile import describe_chip, plausibility, write_chip
from foretile.calibration.device.micro.details import Details, describe
from foretile.calibration.device.micro.estimates import estimates
from foretile.calibration.device.micro.points import Row
from foretile.calibration.device.micro.rowfile import RowFile, read_rows, write_rows
from foretile.calibration.device.micro.run import Bench, Outcome, Store, run
from foretile.hwmodels import Chip, load_chip
from foretile.hwmodels.fields import fields
from foretile.kernels.operator import load_operator
from foretile.simulator.predictor import predict

CHIPS = ("a100-sxm4-80gb", "a10", "l40s", "h100-sxm5-80gb", "h20", "h200-sxm", "b200-sxm", "rtx-pro-6000")
DATE = "2026-11-23"
# Relative errors that the loop is held to, by field; the others to TOLERANCE.
TOLERANCE = 0.03
LOOSER = {
    "clock.settle_s": 0.3,  # a point on a logarithmic scale, from seven lengths of work
    "l2.reuse_fraction": 0.06,
    "launch.ramp_s": 0.2,  # the small difference of two times
    "l2.bulk_copy_cycles": 0.06,
    "matrix.sync_fraction": 0.05,
}
ABSOLUTE = {"launch.graph_s": 8e-8, "launch.ramp_s": 4e-8}
# Not the chip file's number: the width that the physics of chip_device.py give, and its memory bus.
ELSEWHERE = {"matrix.n", "dram.bus_bits", "dram.transfers_per_s"}
# What a chip may be varied in, and how far: rates, latencies, costs.
VARIED = (
    "dram.latency_cycles",
    "l2.latency_cycles",
    "l2.bandwidth_bytes_per_cycle",
    "sync.barrier_cycles",
    "sync.barrier_cycles_per_warp",
    "sync.pipeline_barrier_cycles",
    "sync.atomic_bytes_per_cycle",
    "launch.kernel_s",
    "launch.ramp_s",
    "scratchpad.latency_cycles",
    "vector.special_per_cycle",
    "vector.convert_per_cycle",
    "matrix.latency_cycles",
    "clock.settle_s",
)


def _varied(chip: Chip, factors: dict[str, float]) -> Chip:
    data = chip.model_dump()
    for path, factor in factors.items():
        node: Any = data
        for step in path.split("."):
            node = node[step] if node is not None else None
        if node is not None:
            node["value"] = node["value"] * factor
    return Chip.model_validate(data)


def _measured(
    device: ChipDevice, path: Path, only: tuple[str, ...] = (), **more: Any
) -> tuple[Store, Outcome]:
    details = describe(device, 0)
    bench = Bench(device, details, lambda file: b"", device.host_clock, device.pause)
    store = Store(path, details, DATE)
    return store, run(bench, points(details, only), store, **more)


def _chip_of(device: ChipDevice, folder: Path) -> Chip:
    path = folder / "rows.jsonl"
    path.unlink(missing_ok=True)
    _, outcome = _measured(device, path, repetitions=9)
    assert outcome.refused == {}
    write_chip(describe_chip(read_rows(path)), folder / "made.yaml")
    assert plausibility(folder / "made.yaml") == []
    return load_chip(folder / "made.yaml")


@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(CHIPS),
    factors=st.dictionaries(st.sampled_from(VARIED), st.floats(0.75, 1.3), max_size=len(VARIED)),
    seed=st.integers(0, 1000),
)
def test_a_device_is_described_by_measuring_it(
    name: str, factors: dict[str, float], seed: int, tmp_path: Path
) -> None:
    chip = _varied(load_chip(name, calibrated=False), factors)
    made = _chip_of(ChipDevice(chip, seed=seed), tmp_path)
    truth, found = chip.quantities(), made.quantities()
    compared = 0
    for path, quantity in found.items():
        if quantity.confidence != "measured" or path in ELSEWHERE or path not in truth:
            continue
        value, wanted = quantity.value, truth[path].value
        allowed = max(LOOSER.get(path, TOLERANCE) * wanted, ABSOLUTE.get(path, 0.0))
        assert abs(value - wanted) <= allowed, f"{path}: {value:g} measured, {wanted:g} is the device's"
        assert f"driver {details_of(chip).driver}, {DATE}, n = " in quantity.source
        compared += 1
    assert compared >= 30
    assert made.matrix.instruction == chip.matrix.instruction
    assert made.features == chip.features
    assert made.cores.value == chip.cores.value


def test_times_on_the_described_chip_are_the_devices(tmp_path: Path) -> None:
    """What the file is for: the same predictions, within what the noise of measuring makes of them."""
    chip = load_chip("h200-sxm", calibrated=False)
    made = _chip_of(ChipDevice(chip, seed=7), tmp_path)
    gemm = load_operator("gemm")
    for sizes in ({"m": 4096, "n": 4096, "k": 4096}, {"m": 16, "n": 8192, "k": 8192}):
        shape = gemm.shape(**sizes)
        one, other = (predict(gemm, shape, c, model="cost-model").time_s for c in (chip, made))
        assert other == pytest.approx(one, rel=0.03)


def test_everything_measured_is_a_field_or_reported_beside(tmp_path: Path) -> None:
    device = ChipDevice(load_chip("b200-sxm", calibrated=False), seed=3)
    path = tmp_path / "rows.jsonl"
    _measured(device, path, repetitions=6)
    made = describe_chip(read_rows(path))
    names = {e.field for e in made.estimates}
    known = {f.path for f in fields("simt")}
    for benchmark in BENCHMARKS:
        for field in benchmark.fields:
            assert field in known, f"{benchmark.name}: no field {field}"
            if benchmark.runs_on(device.details):
                assert any(n == field or n.startswith(f"{field}.") for n in names), f"nothing gives {field}"
    assert all(e.number.n >= 1 and e.unit and e.how for e in made.estimates)
    assert all(
        e.number.low <= e.number.value <= e.number.high for e in made.estimates if "zero" not in str(e)
    )


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    device = ChipDevice(load_chip("a100-sxm4-80gb", calibrated=False))
    only = ("shared", "launch_chain")
    wanted = len(points(device.details, only))
    store, first = _measured(device, path, only, budget_s=0.02)
    assert 0 < first.measured < wanted
    assert len(first.left) == wanted - first.measured
    held = {row.key: row for row in store.rows}
    store, second = _measured(device, path, only)
    assert (second.held, second.measured, second.left) == (first.measured, wanted - first.measured, ())
    assert {row.key: row for row in store.rows if row.key in held} == held
    assert read_rows(path).rows == store.rows
    launched = device.launched
    _measured(device, path, only)
    assert device.launched == launched
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_another_devices_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    _measured(ChipDevice(load_chip("a100-sxm4-80gb", calibrated=False)), path, ("shared_read",))
    with pytest.raises(DeviceError, match=r"holds measurements of NVIDIA A100.*this is NVIDIA H200"):
        _measured(ChipDevice(load_chip("h200-sxm", calibrated=False)), path)


def test_rows_that_do_not_suffice_name_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    _measured(ChipDevice(load_chip("h200-sxm", calibrated=False)), path, ("shared", "rate", "matrix"))
    with pytest.raises(DeviceError, match=r"still to be measured: .*l2_read.*dram_read.*launch_chain"):
        describe_chip(read_rows(path))


def test_a_refused_launch_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    class Old(ChipDevice):
        def load(self, cubin: bytes, symbol: str) -> Any:
            if symbol == "shared_read":
                raise DeviceError("CUDA_ERROR_NOT_FOUND")
            return super().load(cubin, symbol)

    device = Old(load_chip("a100-sxm4-80gb", calibrated=False))
    store, outcome = _measured(device, tmp_path / "rows.jsonl", ("shared_",))
    assert list(outcome.refused.values()) == ["CUDA_ERROR_NOT_FOUND"]
    assert len(store.rows) == outcome.measured == 8


def test_a_kernel_that_stops_the_device_is_left_out_the_next_time(tmp_path: Path) -> None:
    class Trapped(ChipDevice):
        dead = False

        def load(self, cubin: bytes, symbol: str) -> Any:
            self.dead = self.dead or symbol == "shared_stride"
            return super().load(cubin, symbol)

        def synchronize(self) -> None:
            if self.dead:
                raise DeviceError("CUDA_ERROR_LAUNCH_FAILED")

    path, chip = tmp_path / "rows.jsonl", load_chip("a100-sxm4-80gb", calibrated=False)
    store, first = _measured(Trapped(chip), path, ("shared_",))
    assert (first.measured, len(first.refused), len(first.left)) == (2, 1, 6)
    assert store.rows[-1].flags == ("stopped the device",)
    assert store.rows[-1].seconds == ()
    for _ in range(6):
        store, last = _measured(Trapped(chip), path, ("shared_",))
    assert (last.held, last.measured, last.left) == (8, 1, ())
    assert {e.field for e in estimates(read_rows(path).details, store.rows)} >= {"scratchpad.latency_cycles"}


@pytest.mark.parametrize(
    ("name", "message"),
    [("dram_reed", "did you mean dram_read"), ("tensor_memory", "not on a device of compute capability 8.0")],
)
def test_a_choice_that_fits_nothing_is_an_error(name: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        chosen(details_of(load_chip("a100-sxm4-80gb", calibrated=False)), (name,))


@pytest.mark.parametrize("name", CHIPS)
def test_no_device_is_asked_for_another_ones_instructions(name: str) -> None:
    details = details_of(load_chip(name, calibrated=False))
    major = details.capability[0]
    files = {point.file for point in points(details)}
    assert ("wgmma.cu" in files) == (major == 9)
    assert ("tcgen05.cu" in files) == (major == 10)
    assert not any(p.kernel == "mma_fp8" for p in points(details) if major in (9, 10))


def test_an_old_device_is_refused() -> None:
    device = ChipDevice(load_chip("a100-sxm4-80gb", calibrated=False))
    device.details = replace(device.details, capability=(7, 0))
    with pytest.raises(DeviceError, match=r"compute capability 7.0; the microbenchmarks need 8.0"):
        describe(device, 0)


# What contradicts itself is settled and said ------------------------------------------------------------


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> RowFile:
    """The rows of a whole run."""
    path = tmp_path_factory.mktemp("held") / "rows.jsonl"
    _measured(ChipDevice(load_chip("h200-sxm", calibrated=False), seed=5), path, repetitions=6)
    return read_rows(path)


def test_without_a_memory_clock_the_best_rate_is_taken(held: RowFile, tmp_path: Path) -> None:
    made = describe_chip(replace(held, details=replace(held.details, memory_hz=0.0)))
    leaf = made.data["dram"]["bandwidth_bytes_per_s"]
    assert leaf["confidence"] == "measured"
    assert leaf["value"] == pytest.approx(0.985 * 4.8e12, rel=0.03)  # its writes
    assert made.data["dram"]["write_fraction"]["value"] == pytest.approx(1.0, abs=0.01)
    assert any(
        c.startswith("dram.bandwidth_bytes_per_s: the driver gives no memory clock") for c in made.conflicts
    )
    write_chip(made, tmp_path / "made.yaml")
    assert plausibility(tmp_path / "made.yaml") == []


def test_a_port_that_one_core_cannot_fill_is_taken_from_all(held: RowFile) -> None:
    slow = [
        replace(r, nanoseconds=tuple(4 * t for t in r.nanoseconds)) if r.benchmark == "l2_core_read" else r
        for r in held.rows
    ]
    made = describe_chip(replace(held, rows=tuple(slow)))
    l2 = made.data["l2"]
    assert l2["core_bytes_per_cycle"]["confidence"] == "derived"
    all_cores = l2["core_bytes_per_cycle"]["value"] * held.details.cores
    assert all_cores == pytest.approx(l2["bandwidth_bytes_per_cycle"]["value"], rel=1e-4)
    assert any(c.startswith("l2.core_bytes_per_cycle: one core alone read") for c in made.conflicts)


def test_a_clock_that_is_not_the_drivers_is_said(held: RowFile) -> None:
    made = describe_chip(replace(held, details=replace(held.details, max_hz=2.2e9)))
    assert any(c.startswith("clock.max_hz: the driver says 2.2e+09") for c in made.conflicts)


# Files --------------------------------------------------------------------------------------------------


def test_a_file_of_rows_comes_back_and_a_broken_one_is_named(tmp_path: Path) -> None:
    held = _rows_of_one_point(tmp_path)
    assert read_rows(tmp_path / "rows.jsonl") == held
    broken = tmp_path / "broken.jsonl"
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    broken.write_text("\n".join([*lines, '{"key": "x"}']), encoding="utf-8")
    with pytest.raises(DeviceError, match=rf"broken.jsonl: line {len(lines) + 1}: not a row"):
        read_rows(broken)
    broken.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(DeviceError, match="not a file of microbenchmarks"):
        read_rows(broken)


def _rows_of_one_point(tmp_path: Path) -> RowFile:
    path = tmp_path / "rows.jsonl"
    store, _ = _measured(ChipDevice(load_chip("a100-sxm4-80gb", calibrated=False)), path, ("shared_read",))
    held = RowFile(details_of(load_chip("a100-sxm4-80gb", calibrated=False)), DATE, store.rows)
    write_rows(path, held)
    return held


def test_rows_and_details_survive_json(tmp_path: Path) -> None:
    held = _rows_of_one_point(tmp_path)
    assert Details.from_json(held.details.to_json()) == held.details
    assert [Row.from_json(row.to_json()) for row in held.rows] == list(held.rows)
