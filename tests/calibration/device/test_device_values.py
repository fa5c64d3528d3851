"""Operands and references of a measurement: formats, random values, formulas against the operators' own."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from foretile.calibration.device.compare import POISON, deviation
from foretile.calibration.device.driver import DeviceError
from foretile.calibration.device.fake import FakeDriver
from foretile.calibration.device.formats import decode, encode, stored, stored_shape
from foretile.calibration.device.generate import fill_tensor, packed_values
from foretile.calibration.device.references import FORMULAS
from foretile.kernels.dtypes import dtype
from foretile.kernels.operator import load_operator
from foretile.kernels.operators._common import numpy_dtype

SMALL = ("float8_e4m3", "float8_e5m2", "float8_e8m0", "float4_e2m1", "int4")


@pytest.mark.parametrize("name", [*SMALL, "bfloat16", "float16"])
def test_every_code_decodes_as_ml_dtypes_says(name: str) -> None:
    bits = dtype(name).bits
    codes = np.arange(2**bits, dtype=np.uint16 if bits == 16 else np.uint8)
    given = codes if bits != 4 else codes[0::2] | codes[1::2] << 4
    raw = given.view(stored(name))
    kept = codes.astype(np.int8) << 4 >> 4 if name == "int4" else codes
    right = kept.view(numpy_dtype(name)).astype(np.float32)
    assert np.array_equal(decode(np, raw, name, (2**bits,)).astype(np.float32), right, equal_nan=True)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3", "float8_e5m2", "float4_e2m1", "float16"])
def test_values_round_as_ml_dtypes_says(name: str) -> None:
    rng = np.random.default_rng(0)
    top = float(ml_dtypes.finfo(numpy_dtype(name)).max)
    values = np.concatenate(
        [
            np.exp2(rng.uniform(-20, 8, 4000)) * rng.choice((-1, 1), 4000),
            np.ldexp(rng.integers(-40, 40, 4000), rng.integers(-14, 3, 4000)),  # ties, subnormals
            [0.0, -0.0, top, -top],
        ]
    ).astype(np.float32)
    values = values[np.abs(values) <= top]
    values = values[: values.size // 2 * 2]
    right = values.astype(numpy_dtype(name)).view(np.uint8)
    if dtype(name).bits == 4:
        right = right[0::2] | right[1::2] << 4
    assert np.array_equal(encode(np, values, name).view(np.uint8), right)


def test_values_beyond_a_small_type_are_clamped() -> None:
    codes = encode(np, np.array([1e9, -1e9], np.float32), "float8_e4m3")
    assert decode(np, codes, "float8_e4m3", (2,)).tolist() == [448.0, -448.0]


def made(name: str, shape: tuple[int, ...], fill: dict[str, object]) -> np.ndarray:
    driver = FakeDriver()
    buffer = driver.allocate(1 << 20)
    fill_tensor(driver, buffer, name, shape, fill)
    raw = driver.view(buffer, stored(name), stored_shape(name, shape))
    return np.asarray(decode(np, raw, name, shape))


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_normal_values_are_normal(name: str) -> None:
    values = made(name, (100, 1000), {"kind": "normal", "seed": 3, "scale": 2.0}).astype(np.float64)
    assert abs(values.mean()) < 0.03
    assert values.std() == pytest.approx(2.0, rel=0.02)
    assert np.mean(np.abs(values) < 2.0) == pytest.approx(0.6827, abs=0.02)
    assert np.abs(np.corrcoef(values)[~np.eye(100, dtype=bool)]).mean() < 0.04  # rows are unrelated
    again = made(name, (100, 1000), {"kind": "normal", "seed": 4, "scale": 2.0})
    assert abs(np.corrcoef(values.reshape(-1), again.reshape(-1))[0, 1]) < 0.02


def test_other_fills() -> None:
    uniform = made("float32", (5000,), {"kind": "uniform", "seed": 1, "low": 0.5, "high": 1.5})
    assert 0.5 <= uniform.min() < 0.51
    assert 1.49 < uniform.max() < 1.5
    whole = made("int8", (5000,), {"kind": "integers", "seed": 1, "low": -128, "high": 128})
    assert (whole.min(), whole.max()) == (-128, 127)
    for high in (300, 4096, 30030):
        rows = made("int32", (50, 256), {"kind": "distinct", "seed": 2, "high": high})
        assert all(len(set(row)) == 256 for row in rows.tolist())
        assert 0 <= rows.min() <= rows.max() < high
    given = np.arange(77, dtype=np.int32)
    assert np.array_equal(made("int32", (77,), packed_values(given)), given)
    assert not made("float32", (9,), {"kind": "zeros"}).any()
    odd = made("float4_e2m1", (3, 5), {"kind": "normal", "seed": 5})
    assert odd.shape == (3, 5)
    assert len(np.unique(odd)) > 5


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        ({"kind": "gamma"}, "unknown kind of fill 'gamma'"),
        ({"kind": "distinct", "seed": 1, "high": 3}, "4 different whole numbers from 0 to below 3"),
        (packed_values(np.zeros(3, np.int32)), "a fill of 12 bytes for a tensor of 16"),
    ],
)
def test_fills_that_cannot_be(fill: dict[str, object], said: str) -> None:
    with pytest.raises(DeviceError, match=said):
        made("int32", (4,), fill)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("gemm", {"m": 20, "n": 30, "k": 40, "batch": 2, "trans_a": True, "trans_b": True}),
        ("gemm", {"m": 20, "n": 30, "k": 40}),
        ("gemm", {"m": 20, "n": 30, "k": 40, "dtype": "int8"}),
        ("gemm_fp8", {"m": 20, "n": 30, "k": 40, "per_row": True}),
        ("gemm_fp8", {"m": 20, "n": 30, "k": 40}),
        ("gemm_fp8_block", {"m": 20, "n": 200, "k": 300}),
        ("attention_prefill", {"batch": 2, "seq": 33, "heads": 4, "kv_heads": 2, "head_dim": 16}),
        (
            "attention_prefill",
            {"batch": 1, "seq": 9, "heads": 2, "head_dim": 16, "prefix": 20, "window": 5},
        ),
        ("attention_prefill", {"batch": 1, "seq": 9, "heads": 2, "head_dim": 16, "causal": False}),
        ("attention_decode", {"batch": 2, "kv_len": 33, "heads": 4, "kv_heads": 2, "head_dim": 16}),
        ("attention_decode", {"batch": 2, "kv_len": 33, "heads": 4, "head_dim": 16, "window": 7}),
        ("mla_decode", {"batch": 2, "kv_len": 33, "heads": 4}),
        ("mla_decode", {"batch": 2, "kv_len": 33, "heads": 4, "kv_dtype": "fp8"}),
        ("sparse_mla", {"batch": 2, "seq": 3, "heads": 4, "topk": 70, "kv_len": 60}),
        ("indexer_logits", {"batch": 2, "seq": 7, "kv_len": 33, "heads": 16}),
        ("indexer_logits", {"batch": 2, "seq": 7, "kv_len": 33, "heads": 16, "causal": False}),
        *((name, {"rows": 7, "cols": 33}) for name in ("rmsnorm", "add_rmsnorm", "layernorm", "softmax")),
        *((name, {"rows": 7, "cols": 33}) for name in ("transpose", "silu_mul")),
        ("copy", {"bytes": 77}),
    ],
)
def test_formulas_are_those_of_the_operators(name: str, given: dict[str, object]) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    operands = operator.inputs(shape, np.random.default_rng(5))
    plain = {k: v.astype(np.float32) if v.dtype.kind in "Vf" else v for k, v in operands.items()}
    right = operator.reference(shape, **operands)
    found = FORMULAS[name](np, shape, plain)
    assert set(found) == set(right)
    for output, values in right.items():
        off = deviation(np, np.asarray(found[output]), np.asarray(values))
        assert off.within(1e-12, 1e-12), (output, off)


def test_every_formula_is_tested() -> None:
    marks = test_formulas_are_those_of_the_operators.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in marks[0].args[1]} == set(FORMULAS)


def test_deviation() -> None:
    right = np.array([3.0, 4.0, -np.inf, np.nan])
    same = deviation(np, right, right)
    assert (same.norm, same.peak, same.wrong) == (0.0, 0.0, 0)
    off = deviation(np, np.array([3.0, 4.5, -np.inf, np.nan]), right)
    assert (off.norm, off.peak, off.wrong) == (0.1, 0.125, 0)
    assert deviation(np, np.array([np.nan, 4.0, np.inf, 1.0]), right).wrong == 3
    assert not deviation(np, np.ones(2), np.zeros(2)).within(1.0, 1.0)


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16", "float8_e4m3", "float8_e5m2"])
def test_poison_is_nan(name: str) -> None:
    raw = np.full(16, POISON, np.uint8).view(stored(name))
    assert np.isnan(decode(np, raw, name, raw.shape)).all()
