"""Measurement tables: what is written is read back, and every wrong row is refused by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import row, table

from foretile.calibration.measurements import (
    COLUMNS,
    Measurement,
    MeasurementError,
    canonical,
    family_of,
    read_csv,
    read_table,
    validate_table,
    write_table,
)
from foretile.calibration.table_schema import OPTIONAL

GEMM = json.loads(row()["shape"])


def refusal(frame: pd.DataFrame) -> MeasurementError:
    with pytest.raises(MeasurementError) as caught:
        validate_table(frame, "t.parquet")
    return caught.value


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.integers(64, 8192),
            st.floats(1, 50),
            st.sampled_from(["graph", "eager"]),
            st.dictionaries(st.sampled_from("ABC"), st.integers(1, 6), max_size=3),
            st.one_of(st.just(float("nan")), st.floats(0, 2)),
            st.integers(1, 9),
        ),
        min_size=1,
        max_size=12,
        unique_by=lambda item: item[0],
    )
)
def test_what_is_written_is_read_back(items: list[tuple[Any, ...]]) -> None:
    import tempfile

    rows = [
        row(
            m=m,
            n=4096,
            k=65536,
            latency_s=times * 5e-5 * m / 64,
            launch=launch,
            copies=canonical(copies),
            spread=spread,
            runs=runs,
            comparable="eager" if launch == "eager" else "",
        )
        for m, times, launch, copies, spread, runs in items
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = write_table(table(*rows), Path(folder) / "t.parquet")
        read = read_table(path)
    pd.testing.assert_frame_equal(read, validate_table(table(*rows), "t"))
    assert [len(read), *read.columns] == [len(rows), *COLUMNS]


def test_types_are_those_of_the_schema(tmp_path: Path) -> None:
    read = read_table(write_table(table(), tmp_path / "t.parquet"))
    assert read["latency_s"].dtype == np.float64
    assert read["spread"].dtype == np.float64
    assert read["runs"].dtype == np.int32
    Measurement(**{**read.iloc[0].to_dict(), "spread": 0.0})


def test_every_field_is_documented() -> None:
    assert all(field.description for field in Measurement.model_fields.values())


@pytest.mark.parametrize("column", [name for name in COLUMNS if name not in OPTIONAL])
def test_a_missing_column_is_named(column: str) -> None:
    error = refusal(table().drop(columns=column))
    assert error.column == column
    assert "missing" in str(error)


@pytest.mark.parametrize("column", OPTIONAL)
def test_a_column_that_need_not_be_there_gets_its_default(column: str) -> None:
    read = validate_table(table().drop(columns=column), "t")
    pd.testing.assert_frame_equal(read, validate_table(table(), "t"))


def test_configurations_tell_rows_apart() -> None:
    rows = [row(config=canonical({"block_m": side})) for side in (64, 128)]
    assert len(validate_table(table(*rows), "t")) == 2
    assert refusal(table(rows[0], rows[0])).column is not None


def test_an_unknown_column_is_refused_with_the_nearest() -> None:
    error = refusal(table().assign(latency=1.0))
    assert error.column == "latency"
    assert "latency_s" in str(error)


BAD: list[tuple[str, Any, str]] = [
    ("latency_s", -1e-3, "not a time"),
    ("latency_s", 0.0, "not a time"),
    ("latency_s", float("nan"), "NaN"),
    ("latency_s", float("inf"), "not a time"),
    ("config", "block_m=64", "not JSON"),
    ("config", "[64]", "not a JSON object"),
    ("config", '{"b": 1}', "not canonical"),
    ("power_w", "much", "is not a number"),
    ("spread", -0.1, "spread"),
    ("runs", 0, "runs"),
    ("device", "h20-sxm", "did you mean 'h200-sxm'"),
    ("operator", "gem", "did you mean 'gem"),
    ("launch", "stream", "graph or eager"),
    ("shape", "{m:1}", "not JSON"),
    ("shape", "[1]", "not a JSON object"),
    ("shape", json.dumps(GEMM), "not canonical"),
    ("shape", canonical({**GEMM, "m": 0}), "m=0 is too small"),
    ("shape", canonical({**GEMM, "mm": 1}), "no parameter 'mm'"),
    ("shape", canonical({k: v for k, v in GEMM.items() if k != "trans_a"}), "'trans_a' is missing"),
    ("shape", canonical({**GEMM, "dtype": "bfloat16"}), "not canonical"),
    ("family", "gemm.fp8", "expected 'gemm.bf16'"),
    ("copies", "{}}", "not JSON"),
    ("copies", '{"B": 5}', "not canonical"),
    ("copies", '{"B":0}', "at least 1"),
    ("copies", '{"B":true}', "whole number"),
    ("kernel_source", "", "empty"),
    ("source", "", "empty"),
    ("licence", None, "not text"),
]


@pytest.mark.parametrize(("column", "value", "says"), BAD, ids=[f"{c}-{s[:20]}" for c, _, s in BAD])
@pytest.mark.parametrize("position", [0, 2])
def test_a_bad_value_is_refused_with_its_row(column: str, value: Any, says: str, position: int) -> None:
    rows = [row(m=1024 + i, n=4096, k=8192) for i in range(4)]
    rows[position][column] = value
    error = refusal(table(*rows))
    assert error.row == position + 1
    assert error.column == column
    assert says in str(error)
    assert str(error).startswith(f"t.parquet: row {position + 1}: {column}: ")


def test_the_same_key_twice_is_refused_with_both_rows() -> None:
    rows = [row(), row(m=64, n=4096, k=4096, latency_s=9e-6), row(latency_s=220e-6)]
    error = refusal(table(*rows))
    assert error.row == 3
    assert "the same as row 1" in str(error)


def test_the_same_shape_from_another_kernel_is_no_duplicate() -> None:
    validate_table(table(row(), row(kernel_source="cutlass")), "t")


@pytest.mark.parametrize("factor", [1e-3, 1e-6])
def test_a_time_below_what_the_chip_can_do_is_a_wrong_unit(factor: float) -> None:
    rows = [row(), row(m=64, n=4096, k=4096, latency_s=9e-6 * factor)]
    error = refusal(table(*rows))
    assert error.row == 2
    assert "wrong unit" in str(error)


@pytest.mark.parametrize(("factor", "unit"), [(1e3, "milliseconds"), (1e6, "microseconds")])
def test_a_series_a_thousand_times_too_slow_is_a_wrong_unit(factor: float, unit: str) -> None:
    sizes = ((64, 9e-6), (512, 30e-6), (4096, 210e-6))
    rows = [row(m=m, n=4096, k=4096, latency_s=time * factor) for m, time in sizes]
    validate_table(table(*(r | {"latency_s": r["latency_s"] / factor} for r in rows)), "t")
    error = refusal(table(row(kernel_source="other"), *rows))
    assert error.row == 2
    assert unit in str(error)


def test_one_slow_row_is_no_wrong_unit() -> None:
    rows = [row(m=m, n=4096, k=4096, latency_s=210e-6) for m in (1024, 2048, 4096)]
    validate_table(table(*rows, row(m=8, n=4096, k=4096, latency_s=5e-3)), "t")


def test_an_eager_floor_is_no_wrong_unit() -> None:
    validate_table(table(row(m=1, n=128, k=128, latency_s=350e-6, launch="eager")), "t")


def test_nothing_is_left_behind_by_a_refused_table(tmp_path: Path) -> None:
    path = write_table(table(), tmp_path / "t.parquet")
    before = path.read_bytes()
    with pytest.raises(MeasurementError):
        write_table(table(row(latency_s=-1.0)), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.parquet"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_table(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("device,operator\n")
    with pytest.raises(MeasurementError, match="not a Parquet file"):
        read_table(tmp_path / "text.parquet")
    table().to_parquet(tmp_path / "plain.parquet")
    with pytest.raises(MeasurementError, match="schema's version"):
        read_table(tmp_path / "plain.parquet")


@pytest.mark.parametrize(
    ("operator", "shape", "family"),
    [
        ("gemm", {"dtype": "bf16", "batch": 1}, "gemm.bf16"),
        ("gemm", {"dtype": "fp8", "batch": 8}, "bmm.fp8"),
        ("gemm_fp8_block", {}, "gemm_fp8_block"),
        ("gemm_nvfp4", {}, "gemm.nvfp4"),
        ("gemm_fp8", {}, "gemm.fp8"),
        ("moe", {"dtype": "fp8_block"}, "moe.fp8_block"),
        ("attention_prefill", {"causal": True}, "attention_prefill"),
        ("attention_prefill", {"causal": False}, "attention_encoder"),
        ("mla_decode", {}, "mla_decode"),
    ],
)
def test_families(operator: str, shape: dict[str, Any], family: str) -> None:
    assert family_of(operator, shape) == family


def csv_file(folder: Path, text: str) -> Path:
    path = folder / "mine.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("unit", "value"), [("s", "0.00021"), ("ms", "0.21"), ("us", "210")])
def test_a_csv_by_hand(tmp_path: Path, unit: str, value: str) -> None:
    text = f"device,operator,m,n,k,latency_{unit},kernel_source\nh200-sxm,gemm,4096,4096,4096,{value},mine\n"
    read = read_csv(csv_file(tmp_path, text)).iloc[0]
    assert read["latency_s"] == pytest.approx(210e-6, rel=1e-12)
    assert read["shape"] == canonical(GEMM)
    assert read[["family", "kernel_source", "launch", "copies", "runs"]].tolist() == [
        *("gemm.bf16", "mine", "graph", "{}", 1)
    ]


def test_operators_side_by_side_in_a_csv(tmp_path: Path) -> None:
    text = (
        "device,operator,m,n,k,rows,cols,dtype,latency_us\n"
        "h200-sxm,gemm,64,4096,4096,,,fp16,9\n"
        "\n"
        "l40s,rmsnorm,,,,4096,8192,,180\n"
    )
    read = read_csv(csv_file(tmp_path, text))
    assert read["operator"].tolist() == ["gemm", "rmsnorm"]
    assert [json.loads(shape)["dtype"] for shape in read["shape"]] == ["fp16", "bf16"]


HEAD = "device,operator,m,n,k,latency_us,runs\n"
GOOD = "h200-sxm,gemm,64,4096,4096,9,1\n"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (HEAD + GOOD + "\nh200-sxm,gemm,64,4096,4096,fast,1\n", 4, "'fast' is not a number"),
        (HEAD + GOOD + "h200-sxm,gemm,64,4096,,9,1\n", 3, "gemm needs k"),
        (HEAD + "h20-sxm,gemm,64,4096,4096,9,1\n", 2, "did you mean 'h200-sxm'"),
        (HEAD + GOOD + "h200-sxm,gemmm,64,4096,4096,9,1\n", 3, "did you mean gemm"),
        (HEAD + GOOD + "h200-sxm,rmsnorm,64,4096,4096,9,1\n", 3, "no parameter 'm'"),
        (HEAD + GOOD + GOOD, 3, "the same as row 2"),
        (HEAD + "h200-sxm,gemm,64,4096,4096,9,1.5\n", 2, "not a whole number"),
        (HEAD + "h200-sxm,gemm,64,4096,4096,9\n", 2, "6 cells"),
        (HEAD + "h200-sxm,gemm,64,4096,4096,,1\n", 2, "latency_us: empty"),
        (HEAD + "h200-sxm,gemm,64,4096,4096,-9,1\n", 2, "not a time"),
        (HEAD + "h200-sxm,gemm,64,4096,4096,0.009,1\n", 2, "wrong unit"),
        (HEAD + "h200-sxm,gemm,64,4096,4096,9000,1\n", 2, "milliseconds"),
        ("device,operator,m,n,k\n", 1, "exactly one of latency_s"),
        ("device,operator,m,latency_s,latency_ms\n", 1, "latency_s and latency_ms"),
        ("device,op,m,latency_s\n", 1, "operator"),
        ("device,operator,batchsize,latency_s\n", 1, "did you mean 'batch'"),
        ("device,operator,m,m,latency_s\n", 1, "twice"),
    ],
)
def test_a_bad_csv_is_refused_with_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    with pytest.raises(MeasurementError) as caught:
        read_csv(csv_file(tmp_path, text))
    assert caught.value.row == line
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"mine.csv: row {line}: ")


def test_an_empty_csv_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="no rows"):
        read_csv(csv_file(tmp_path, HEAD))
