"""Many shapes at once say the same as one at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from simcases import sample

from foretile.frontdoor import predict, predict_many
from foretile.kernels.operator import OperatorError

COLUMNS: dict[str, dict[str, Any]] = {
    "gemm": {"m": [1, 17, 256, 4096, 10000], "n": [64, 7168, 256, 4096, 777], "k": 2048, "dtype": "bf16"},
    "attention_prefill": {"batch": 1, "seq": [64, 1000, 8192], "heads": [8, 16, 32], "kv_heads": 8},
    "attention_decode": {
        "batch": [1, 8, 128],
        "kv_len": [1024, 3000, 32768],
        "heads": 32,
        "kv_heads": [8, 32, 8],
    },
    "rmsnorm": {"rows": [1, 77, 65536], "cols": [128, 4096, 4096]},
    "copy": {"bytes": [1024, 2**20, 2**30]},
    "silu_mul": {"rows": [1, 77, 65536], "cols": [128, 4096, 4096]},
}


def rows(columns: dict[str, Any]) -> list[dict[str, Any]]:
    length = max(len(v) for v in columns.values() if isinstance(v, list))
    return [{k: v[i] if isinstance(v, list) else v for k, v in columns.items()} for i in range(length)]


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("chip", ["h100", "ascend-910b3"])
def test_every_row_equals_its_own_prediction(name: str, chip: str) -> None:
    found = predict_many(name, chip, COLUMNS[name])
    expected = [predict(name, chip, model="cost_model", **row).time_s for row in rows(COLUMNS[name])]
    assert found.dtype == np.float64
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["gemm", "attention_prefill", "attention_decode", "rmsnorm"])
def test_the_details_of_every_row_equal_its_own_prediction(name: str) -> None:
    table = predict_many(name, "h100", COLUMNS[name], details=True)
    for (_, line), row in zip(table.iterrows(), rows(COLUMNS[name]), strict=True):
        p = predict(name, "h100", model="cost_model", **row)
        assert line["time_s"] == pytest.approx(p.time_s, rel=1e-9)
        assert (line["low_s"], line["high_s"]) == pytest.approx(p.interval_s, rel=1e-6)
        assert line["bound"] == p.bound
        assert line["config"] == p.config
        assert {k: line[k] for k in row} == row


def test_a_data_frame_a_mapping_of_lists_and_of_arrays_give_the_same() -> None:
    columns = {"m": [1, 64, 4096], "n": [7168] * 3, "k": [2048] * 3}
    frame = predict_many("gemm", "h20", pd.DataFrame(columns))
    assert (frame == predict_many("gemm", "h20", columns)).all()
    assert (frame == predict_many("gemm", "h20", {k: np.asarray(v) for k, v in columns.items()})).all()
    assert (frame == predict_many("gemm", "h20", {"m": [1, 64, 4096], "n": 7168, "k": 2048})).all()


def test_a_data_frame_with_an_index_of_its_own_is_read_by_position() -> None:
    frame = pd.DataFrame({"m": [1, 64, 4096], "n": 512, "k": 512}, index=[7, 7, 3])
    assert (
        predict_many("gemm", "h20", frame) == predict_many("gemm", "h20", frame.reset_index(drop=True))
    ).all()


def test_the_order_of_the_rows_does_not_matter() -> None:
    m = np.random.default_rng(0).integers(1, 9000, 200)
    dtype = np.where(m % 2, "bf16", "fp8")
    forward = predict_many("gemm", "h100", {"m": m, "n": 2048, "k": 2048, "dtype": dtype})
    backward = predict_many("gemm", "h100", {"m": m[::-1], "n": 2048, "k": 2048, "dtype": dtype[::-1]})
    assert (forward == backward[::-1]).all()


def test_rows_of_different_static_parameters_are_told_apart() -> None:
    times = predict_many(
        "gemm",
        "h100",
        {"m": 4096, "n": 4096, "k": 4096, "dtype": ["bf16", "fp8", "bf16"], "trans_b": [False, False, True]},
    )
    assert times[1] < 0.7 * times[0]
    assert times[2] == pytest.approx(times[0], rel=0.1)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"m": [1], "n": 1, "kk": 1}, r"no parameter 'kk'; did you mean 'k'"),
        ({"m": [1, 2], "n": [1, 2, 3], "k": 1}, r"unequal length: m has 2, n has 3"),
        ({"m": [1, 2, 0], "n": 64, "k": 64}, r"row 2: m=0 .*at least 1"),
        ({"m": [1, 2.5], "n": 64, "k": 64}, r"row 1: m=2\.5 is not a whole number"),
        ({"m": [1, np.nan], "n": 64, "k": 64}, r"row 1: m=nan"),
        ({"m": ["many"], "n": 64, "k": 64}, r"column m holds .*not whole numbers"),
        ({"m": [], "n": 64, "k": 64}, r"the columns are empty"),
        ({"m": [1], "n": 64}, r"gemm needs k"),
        ({"m": [1, 2], "n": 64, "k": 64, "dtype": ["bf16", "fp7"]}, r"fp7"),
    ],
)
def test_what_is_wrong_is_named(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        predict_many("gemm", "h100", columns)


def test_random_rows_equal_their_own_predictions() -> None:
    for case in sample(8, 51):
        columns = {k: [v] for k, v in case.shape.items()}
        alone = predict(case.operator.name, case.chip, model="cost_model", **case.shape).time_s
        assert predict_many(case.operator.name, case.chip, columns)[0] == pytest.approx(alone, rel=1e-9)
