"""Predictions against measured configurations: errors, ranks and regrets that are known beforehand."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from tables import row, table

from foretile.calibration.device.accuracy import accuracy, of_devices
from foretile.calibration.device.kernels import TILE, compiled_by_tilelang
from foretile.calibration.measurements import MeasurementError, canonical, write_table
from foretile.hwmodels import load_chip
from foretile.kernels.operator import load_operator
from foretile.report import tile_programs
from foretile.simulator.predictor import predict


def rows(measured: list[float], predicted: list[float], **shape: int) -> list[dict[str, object]]:
    return [
        row(**shape, latency_s=m * 1e-4, predicted_s=p * 1e-4, config=canonical({"block_m": 16 * (i + 1)}))
        for i, (m, p) in enumerate(zip(measured, predicted, strict=True))
    ]


def test_errors_ranks_and_regrets() -> None:
    given = table(
        *rows([1, 2, 3, 4], [1.1, 2.2, 3.3, 4.4], m=64, n=64, k=64),  # ranked as measured, 10 % too slow
        *rows([1, 2, 3, 4], [4, 3, 2, 1], m=128, n=64, k=64),  # the reverse: the slowest looks best
        *rows([1, 2], [2, 4], m=256, n=64, k=64),  # too few to rank
        row(m=512, n=64, k=64),  # no configuration
    )
    one, whole = accuracy(given)
    assert (one.operator, whole.operator, one.rows, one.shapes) == ("gemm", "all", 10, 2)
    assert one.rank == pytest.approx(0.0)
    assert one.regret == pytest.approx((0 + 3) / 2)
    assert one.mape == pytest.approx((4 * 0.1 + (3 + 1 / 2 + 1 / 3 + 3 / 4) + 2 * 1.0) / 10)
    assert one.bias == pytest.approx(1.1)
    few = accuracy(table(*rows([1, 2], [2, 4], m=256, n=64, k=64)))[0]
    assert few.shapes == 0
    assert math.isnan(few.rank)


def test_a_chip_predicts_anew() -> None:
    operator, chip = load_operator("gemm"), load_chip("h200-sxm")
    shape = {"m": 512, "n": 512, "k": 512}
    configs = operator.configs(operator.shape(**shape))[:2]
    times = [predict(operator, operator.shape(**shape), chip, config).time_s for config in configs]
    given = table(
        *(row(**shape, latency_s=2 * t, config=canonical(c)) for t, c in zip(times, configs, strict=True)),
        row(**shape, device="h20", config=canonical(configs[0])),
    )
    found = accuracy(given, chip)[-1]
    assert (found.rows, found.bias, found.mape) == (2, pytest.approx(0.5), pytest.approx(0.5))


def test_a_table_without_configurations_is_refused() -> None:
    with pytest.raises(MeasurementError, match="no row with a prediction names a configuration"):
        accuracy(table())
    with pytest.raises(MeasurementError, match="no row of h20 names a configuration"):
        accuracy(table(*rows([1.0], [1.0], m=64, n=64, k=64)), load_chip("h20"))


def tile_table(**given: object) -> pd.DataFrame:
    """Tile programs as the chip before its calibration would take them, as TileLang's compiler makes them."""
    operator, stated = compiled_by_tilelang(load_operator("gemm")), load_chip("h200-sxm", calibrated=False)
    shape = {"m": 512, "n": 4096, "k": 4096}
    configs = operator.configs(operator.shape(**shape))[:5]
    times = [predict(operator, operator.shape(**shape), stated, config).time_s for config in configs]
    named = {"kernel_source": TILE, "framework": "tilelang", **given}
    return table(
        *(
            row(**shape, **named, latency_s=t, config=canonical(c))
            for t, c in zip(times, configs, strict=True)
        ),
        row(**shape, kernel_source="foretile/cuda", latency_s=1e-3),
    )


def test_tables_of_devices_are_held_with_and_without_calibration(tmp_path: Path) -> None:
    write_table(tile_table(), tmp_path / "one.parquet")
    (held,) = of_devices(tmp_path)
    assert (held.table, held.chip, len(held.rows)) == ("one.parquet", "h200-sxm", 5)
    assert held.uncalibrated[-1].mape == pytest.approx(0.0, abs=1e-9)
    assert held.uncalibrated[-1].rank == pytest.approx(1.0)
    assert held.calibrated[-1].mape > 0.005
    over = tile_programs.table([held])
    assert [cells[1].text for cells in over.rows] == ["gemm", "gemm", "all", "all"]
    assert {cells[3].plain() for cells in over.rows if cells[2].text == "uncalibrated"} == {"0.0 % (n = 5)"}
    every = tile_programs.every_row(held).markdown()
    assert every.count("+0.0 %") == 5
    assert "block_m=" in every
    assert "h200-sxm" in tile_programs.words([held])


def test_without_a_device_nothing_is_claimed(tmp_path: Path) -> None:
    assert of_devices(tmp_path / "none") == []
    assert "No tile program has been measured" in tile_programs.words([])
