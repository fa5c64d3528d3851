"""nvfp4: the format's rounding, and its matrix product: contract, counts, reference, programs, refusals."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tile_oracle import execute, gemm_flops

from foretile.kernels import language as T
from foretile.kernels.ir import Gemm, TileProgram, walk_stmts
from foretile.kernels.operator import OperatorError, load_operator
from foretile.kernels.operators._nvfp4 import (
    exact_nvfp4,
    nvfp4_operand,
    quantised_nvfp4,
    round_e2m1,
    tensor_scale,
)

SMALL = {"m": 70, "n": 90, "k": 300}


def test_rounding_is_that_of_the_storage_type() -> None:
    x = np.concatenate(
        [np.linspace(-8, 8, 4001), [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -2.5, -5.0, 0.2499]]
    )
    want = np.clip(x, -6, 6).astype(np.float32).astype(ml_dtypes.float4_e2m1fn).astype(np.float64)
    np.testing.assert_array_equal(round_e2m1(x), want)
    assert sorted(set(np.abs(round_e2m1(x)))) == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_a_tensor_is_spread_over_the_formats_range() -> None:
    x = np.random.default_rng(0).standard_normal((40, 100)) * 37.0
    scale = tensor_scale(x)
    values, groups = quantised_nvfp4(x, scale)
    assert values.shape == x.shape
    assert groups.shape == (40, 7)
    assert np.abs(values).max() == 6
    assert groups.max() == 448
    off = np.abs(exact_nvfp4(values, groups) * scale - x)
    for g in range(7):  # half a step of the largest, one part in six of it, and the scale's own rounding
        part = slice(16 * g, 16 * g + 16)
        assert np.all(off[:, part].max(axis=1) <= np.abs(x[:, part]).max(axis=1) * (1 / 6 + 1 / 16))
    assert np.linalg.norm(off) < 0.12 * np.linalg.norm(x)


def test_groups_too_small_for_a_scale_are_zero() -> None:
    x = np.ones((2, 32))
    x[1] = 1e-9
    values, groups = quantised_nvfp4(x, tensor_scale(x))
    assert groups.tolist() == [[448, 448], [0, 0]]
    assert not values[1].any()


def test_parameters() -> None:
    params = load_operator("gemm_nvfp4").params
    assert {p.name: (p.default, p.dynamic) for p in params} == {
        "m": (None, True),
        "n": (None, True),
        "k": (None, True),
        "out_dtype": ("bf16", False),
        "quantize_a": (False, False),
    }


def test_configurations_are_distinct_and_uniform() -> None:
    operator = load_operator("gemm_nvfp4")
    space = operator.configs(operator.shape(**SMALL))
    assert 8 <= len(space) <= 40
    assert len({tuple(c.items()) for c in space}) == len(space)
    assert all(c.keys() == space[0].keys() for c in space)


@pytest.mark.parametrize("quantize_a", [False, True])
@pytest.mark.parametrize("out_dtype", ["bf16", "fp32"])
def test_counts(out_dtype: str, quantize_a: bool) -> None:
    operator = load_operator("gemm_nvfp4")
    shape = operator.shape(**SMALL, out_dtype=out_dtype, quantize_a=quantize_a)
    quantising = 70 * (2 * 300 + 19) if quantize_a else 0  # a maximum and a division each; 19 scales a row
    assert operator.flops(shape) == 2 * 70 * 90 * 300 + quantising
    inputs = operator.inputs(shape, np.random.default_rng(0))
    half_bytes = sum(
        x.size * (1 if x.dtype.name == "float4_e2m1fn" else 2 * x.itemsize) for x in inputs.values()
    )
    written = 70 * 90 * {"bf16": 2, "fp32": 4}[out_dtype]
    assert operator.min_bytes(shape) == half_bytes // 2 + written
    columns = {name: np.array([size, 4 * size]) for name, size in SMALL.items()}
    for count in (operator.flops, operator.min_bytes):
        rows = [count({**shape, **{n: int(v[i]) for n, v in columns.items()}}) for i in range(2)]
        assert np.asarray(count({**shape, **columns})).tolist() == rows


def test_reference_of_one_element_at_a_time() -> None:
    operator = load_operator("gemm_nvfp4")
    shape = operator.shape(m=5, n=40, k=50)
    x = operator.inputs(shape, np.random.default_rng(1))
    C = operator.reference(shape, **x)["C"]
    for i, j in ((0, 0), (4, 39), (2, 16)):
        total = 0.0
        for k in range(50):
            a = float(x["A"][i, k]) * float(x["A_scale"][i, k // 16])
            total += a * float(x["B"][j, k]) * float(x["B_scale"][j, k // 16])
        assert C[i, j] == pytest.approx(total * float(x["Alpha"][0]), rel=1e-12)


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({}, {"variant": "tile", "block_m": 16, "block_n": 64}),
        ({}, {"variant": "tile", "block_m": 64, "block_n": 128}),
        ({"out_dtype": "fp32", "k": 20}, {"variant": "tile", "block_m": 128, "block_k": 128}),
        ({}, {"product": "bf16", "block_m": 64}),
        ({"out_dtype": "fp32"}, {"product": "bf16", "block_m": 16}),
    ],
)
def test_program_computes_the_reference(given: dict[str, Any], chosen: dict[str, Any]) -> None:
    operator = load_operator("gemm_nvfp4")
    shape = operator.shape(**{**SMALL, **given})
    program = operator.program(shape, operator.config(shape, **chosen))
    assert isinstance(program, TileProgram)
    tolerance = operator.tolerance(shape)
    for make in (operator.inputs, *operator.adversarial.values()):
        inputs = make(shape, np.random.default_rng(3))
        want = operator.reference(shape, **inputs)["C"]
        got = execute(program, inputs)["C"].astype(np.float64)
        assert np.linalg.norm(got - want) <= tolerance.norm * np.linalg.norm(want)
        assert np.abs(got - want).max() <= tolerance.peak * np.abs(want).max()


def test_every_configuration_traces_alike_with_numbers_and_with_symbols() -> None:
    operator = load_operator("gemm_nvfp4")
    shape = operator.shape(m=512, n=1024, k=1024)
    for config in operator.configs(shape):
        concrete = operator.program(shape, config)
        symbolic = operator.program({**shape, **{n: T.dynamic(n) for n in ("m", "n", "k")}}, config)
        assert isinstance(concrete, TileProgram)
        assert isinstance(symbolic, TileProgram)
        assert symbolic.bind(m=512, n=1024, k=1024) == concrete
        products = [s for s in walk_stmts(concrete.body) if isinstance(s, Gemm)]
        assert [p.a_scale is not None for p in products] == [config["product"] == "fp4"]
        if config["variant"] == "tile":
            assert gemm_flops(concrete) == operator.flops(shape), config


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"variant": "split_k"}, "variant='split_k' is not one of tile, persistent"),
        ({"product": "fp8"}, "product='fp8' is not one of fp4, bf16"),
        ({"block_k": 40}, "block_k=40 is not a multiple of 16"),
    ],
)
def test_refuses_configurations(chosen: dict[str, Any], message: str) -> None:
    operator = load_operator("gemm_nvfp4")
    shape = operator.shape(**SMALL)
    with pytest.raises(OperatorError, match=message):
        operator.program(shape, {**operator.configs(shape)[0], **chosen})


def test_refuses_half_bytes() -> None:
    with pytest.raises(OperatorError, match="k=301 is odd"):
        load_operator("gemm_nvfp4").shape(**{**SMALL, "k": 301})


def test_random_operands_fill_the_range() -> None:
    values, groups, scale = nvfp4_operand(np.random.default_rng(0), (64, 160))
    assert values.dtype == ml_dtypes.float4_e2m1fn
    assert groups.dtype == ml_dtypes.float8_e4m3fn
    assert np.unique(np.abs(values.astype(float))).tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert groups.astype(float).max() == 448
    assert scale > 0
