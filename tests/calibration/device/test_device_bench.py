"""One row on the bench: workspace is zero before the first run, and counters in it before every run."""

from __future__ import annotations

import numpy as np
import pytest
from device_kernels import machine_code

from foretile.calibration.device import runner
from foretile.calibration.device.fake import Execution, FakeDriver
from foretile.calibration.device.rows import Case, Row
from foretile.calibration.device.timing import Plan
from foretile.kernels.cuda.recipe import LaunchRecipe, ScalarArg, TensorArg

N = 64


@pytest.mark.parametrize(("dtype", "zeroed"), [("int32", True), ("float32", False)])
def test_counters_are_zero_before_every_run(
    dtype: str, zeroed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def ones_and_count(run: Execution) -> None:
        count = run.array(0, dtype, (1,))
        seen.append(float(count[0]))
        count[0] += 1
        run.array(1, "float32", (N,))[...] = 1.0

    formulas = {"ones": lambda xp, shape, given: {"Y": np.ones(N)}}
    monkeypatch.setattr(runner, "FORMULAS", formulas)
    x, y = (TensorArg(name, "float32", (N,), "in" if name == "X" else "out") for name in "XY")
    count = TensorArg("Count", dtype, (1,), "scratch")
    args = (count, y, ScalarArg("int32", N), ScalarArg("float32", 1.0))
    recipe = LaunchRecipe("scale", (1, 1, 1), (32, 1, 1), args)
    fills = {"X": {"kind": "normal", "seed": 1}}
    case = Case("case", "none", {}, "none", (x, y), fills, ("Y",), "ones", 0.0, 0.0)
    driver = FakeDriver((9, 0), {"scale": ones_and_count})
    bench = runner.Bench(driver, {"case": case}, lambda digest: machine_code(), Plan(warm_up_s=0.0))
    outcome = bench.measure(Row("key", "case", "test", {}, (("0" * 64, recipe),)))
    bench.close()
    assert (outcome.status, outcome.message) == ("ok", "")
    assert len(seen) > 10
    assert (set(seen) == {0.0}) is zeroed
    assert outcome.values["flags"] == ("zeroing" if zeroed else "")
