"""Quantising operators: contract, counts, rounding, and what of it may differ between kernels."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Operator, OperatorError, load_operator
from foretile.kernels.operators._quant import FP8_MAX, reference_scale, round_e4m3

# name: (default, dynamic); None for no default.
CONTRACT: dict[str, dict[str, tuple[Any, bool]]] = {
    "quantize": {
        "rows": (None, True),
        "cols": (None, False),
        "dtype": ("bf16", False),
        "group": (128, False),
        "round_scale": (False, False),
    },
    "quantize_weight": {
        "rows": (None, True),
        "cols": (None, True),
        "dtype": ("bf16", False),
        "round_scale": (False, False),
    },
    "gemm_fp8_block": {
        "m": (None, True),
        "n": (None, True),
        "k": (None, True),
        "out_dtype": ("bf16", False),
        "scale_dtype": ("fp32", False),
        "quantize_a": (False, False),
    },
    "grouped_gemm": {
        "m": (None, True),
        "n": (None, True),
        "k": (None, True),
        "groups": (None, True),
        "dtype": ("bf16", False),
        "masked": (False, False),
        "skew": (0, False),
        "out_dtype": ("bf16", False),
    },
    "gemm_dequant": {
        "m": (None, True),
        "n": (None, True),
        "k": (None, True),
        "dtype": ("bf16", False),
        "wdtype": ("int4", False),
        "group": (128, False),
    },
    "gemv": {"n": (None, True), "k": (None, True), "dtype": ("bf16", False)},
}
SMALL: dict[str, list[dict[str, Any]]] = {
    "quantize": [
        {"rows": 9, "cols": 300},
        {"rows": 5, "cols": 300, "group": 0, "dtype": "fp32", "round_scale": True},
        {"rows": 4, "cols": 512, "group": 64, "dtype": "fp16"},
    ],
    "quantize_weight": [
        {"rows": 200, "cols": 300},
        {"rows": 130, "cols": 100, "dtype": "fp32", "round_scale": True},
    ],
    "gemm_fp8_block": [
        {"m": 40, "n": 200, "k": 300},
        {"m": 1, "n": 70, "k": 20, "out_dtype": "fp32"},
        {"m": 40, "n": 200, "k": 300, "scale_dtype": "fp8_e8m0"},
    ],
    "grouped_gemm": [
        {"m": 300, "n": 150, "k": 200, "groups": 4, "skew": 150},
        {"m": 300, "n": 150, "k": 200, "groups": 4, "dtype": "fp8"},
        {"m": 300, "n": 150, "k": 200, "groups": 4, "dtype": "fp8_block"},
        {"m": 300, "n": 150, "k": 200, "groups": 4, "dtype": "fp8_block", "masked": True, "skew": 50},
        {"m": 300, "n": 150, "k": 200, "groups": 4, "masked": True, "out_dtype": "fp32"},
    ],
    "gemm_dequant": [
        {"m": 20, "n": 200, "k": 300},
        {"m": 20, "n": 70, "k": 300, "wdtype": "fp4", "group": 32},
    ],
    "gemv": [{"n": 50, "k": 3000}],
}
CASES = [pytest.param(name, given, id=f"{name}-{i}") for name in SMALL for i, given in enumerate(SMALL[name])]

# Programs with reductions that tile_oracle does not know (absmax): every configuration, on random and
# adversarial inputs, for the executor.
NEEDS_EXECUTOR: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (name, given, config)
    for name in ("quantize", "quantize_weight")
    for given in SMALL[name]
    for config in load_operator(name).configs(load_operator(name).shape(**given))
]


@pytest.mark.parametrize("name", CONTRACT)
def test_parameters_and_defaults(name: str) -> None:
    operator = load_operator(name)
    assert {p.name: (p.default, p.dynamic) for p in operator.params} == CONTRACT[name]
    assert operator.name == name


@pytest.mark.parametrize(("name", "given"), CASES)
def test_configurations_are_distinct_plain_and_uniform(name: str, given: dict[str, Any]) -> None:
    operator = load_operator(name)
    space = operator.configs(operator.shape(**given))
    assert 8 <= len(space) <= 40
    assert len({tuple(sorted(c.items())) for c in space}) == len(space)
    assert all(c.keys() == space[0].keys() for c in space)
    assert all(type(v) in (int, str) for c in space for v in c.values())
    assert all(c["threads"] % 32 == 0 and c["threads"] <= 1024 for c in space)


@pytest.mark.parametrize(("name", "given"), CASES)
def test_every_configuration_traces_alike_with_numbers_and_with_symbols(
    name: str, given: dict[str, Any]
) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    dynamic = {p.name: T.dynamic(p.name) for p in operator.params if p.dynamic}
    for config in operator.configs(shape):
        concrete = operator.program(shape, config)
        symbolic = operator.program({**shape, **dynamic}, config)
        assert isinstance(concrete, TileProgram)
        assert isinstance(symbolic, TileProgram)
        assert not concrete.dims
        used = {v.name for v in symbolic.dims}
        assert used <= dynamic.keys()
        assert symbolic.bind(**{n: shape[n] for n in used}) == concrete, config


@pytest.mark.parametrize(("name", "given"), CASES)
def test_tensors_are_the_inputs_and_the_results(name: str, given: dict[str, Any]) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    kinds = [operator.inputs, *operator.adversarial.values()]
    program = operator.program(shape, operator.configs(shape)[0])
    assert isinstance(program, TileProgram)
    wanted = {p.name: tuple(getattr(e, "value", None) for e in p.shape) for p in program.params}
    for make in kinds:
        inputs = make(shape, np.random.default_rng(0))
        results = operator.reference(shape, **inputs)
        assert all(r.dtype == np.float64 and np.all(np.isfinite(r)) for r in results.values())
        assert {k: a.shape for k, a in (inputs | results).items()} == wanted


@pytest.mark.parametrize(("name", "given"), CASES)
def test_counts_of_arrays_are_the_counts_of_their_elements(name: str, given: dict[str, Any]) -> None:
    operator: Operator = load_operator(name)
    key = next(p.name for p in operator.params if p.dynamic)
    sizes = np.array([1, 7, 130, 200_000], dtype=np.int32)
    together = operator.shape(**{**given, key: sizes})
    for count in (operator.flops, operator.min_bytes):
        alone = [count(operator.shape(**{**given, key: int(n)})) for n in sizes]
        assert all(isinstance(value, int) for value in alone)
        assert list(count(together)) == alone


@pytest.mark.parametrize(
    ("name", "given", "flops", "moved"),
    [
        # Three groups a row: 2 operations an element, 1 a scale; 2 bytes in, 1 out, 4 a scale.
        ("quantize", {"rows": 9, "cols": 300}, 9 * 603, 9 * (300 * 3 + 12)),
        ("quantize", {"rows": 9, "cols": 300, "group": 0}, 9 * 601, 9 * (300 * 3 + 4)),
        ("quantize", {"rows": 9, "cols": 300, "dtype": "fp32"}, 9 * 603, 9 * (300 * 5 + 12)),
        # Two by three blocks.
        ("quantize_weight", {"rows": 200, "cols": 300}, 120_006, 60_000 * 3 + 24),
    ],
)
def test_counts(name: str, given: dict[str, Any], flops: int, moved: int) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    assert operator.flops(shape) == flops
    assert operator.min_bytes(shape) == moved
    inputs = operator.inputs(shape, np.random.default_rng(0))
    results = operator.reference(shape, **inputs)
    assert moved == inputs["X"].nbytes + results["Y"].size + 4 * results["S"].size


def test_e4m3_rounding_is_to_the_nearest_even_with_saturation() -> None:
    grid = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    grid = np.unique(grid[np.isfinite(grid)])
    np.testing.assert_array_equal(round_e4m3(grid), grid)
    assert grid[-1] == FP8_MAX
    middle = (grid[1:] + grid[:-1]) / 2
    tied = round_e4m3(middle)
    last_bit = tied.astype(ml_dtypes.float8_e4m3fn).view(np.uint8) & 1
    assert not last_bit.any()
    for nudge, neighbour in ((1.0, grid[1:]), (-1.0, grid[:-1])):
        np.testing.assert_array_equal(round_e4m3(middle + nudge * 2.0**-30 * np.abs(middle)), neighbour)
    np.testing.assert_array_equal(round_e4m3(np.array([449.0, 1e30, -464.0])), [448.0, 448.0, -448.0])


def test_scales_that_are_powers_of_two_are_the_next_above() -> None:
    absmax = np.array([0.0, 448.0, np.nextafter(np.float32(448), np.float32(1e9)), 447.9, 1.75, 1e-4, 3e38])
    scale = reference_scale(absmax, round_scale=True)
    np.testing.assert_array_equal(np.log2(scale), [-22, 0, 1, 0, -8, -22, 120])
    plain = reference_scale(absmax, round_scale=False)
    assert np.all(plain <= scale)
    assert np.all(scale < 2 * plain)


@pytest.mark.parametrize("name", ["quantize", "quantize_weight"])
@pytest.mark.parametrize("round_scale", [False, True])
def test_reference_of_one_element_at_a_time(name: str, round_scale: bool) -> None:
    operator = load_operator(name)
    shape = operator.shape(rows=140, cols=150, dtype="fp32", round_scale=round_scale)
    height = 1 if name == "quantize" else 128
    for make in (operator.inputs, *operator.adversarial.values()):
        X = make(shape, np.random.default_rng(2))["X"]
        results = operator.reference(shape, X=X)
        for i, j in ((0, 0), (3, 127), (139, 128), (128, 149), (127, 20)):
            r, c = i // height, j // 128
            block = X[r * height : (r + 1) * height, c * 128 : (c + 1) * 128]
            scale = np.float32(max(np.float32(np.abs(block).max()), np.float32(1e-4))) / np.float32(448)
            if round_scale:
                power = -150
                while 2.0**power < float(scale):
                    power += 1
                scale = np.float32(2.0**power)
            assert results["S"][r, c] == scale
            value = min(max(float(X[i, j]) / float(scale), -448.0), 448.0)
            grid = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
            distance = np.abs(grid[np.isfinite(grid)] - value).min()
            assert abs(results["Y"][i, j] - value) == distance


def _float32_kernel(X: np.ndarray, multiply: bool) -> dict[str, np.ndarray]:
    """What a float32 kernel gives for 128 columns; ``multiply``: by 1 / 448, as DeepSeek-V3.2's does."""
    x = X.astype(np.float32)
    absmax = np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(1e-4))
    scale = absmax * np.float32(1 / 448) if multiply else absmax / np.float32(448)
    value = np.clip(x / scale, np.float32(-448), np.float32(448)).astype(ml_dtypes.float8_e4m3fn)
    return {"Y": value, "S": scale}


@pytest.mark.parametrize("multiply", [False, True])
def test_values_on_a_rounding_boundary_may_go_either_way_and_no_others(multiply: bool) -> None:
    quantize = load_operator("quantize")
    shape = quantize.shape(rows=3000, cols=128)
    inputs = quantize.inputs(shape, np.random.default_rng(4))
    reference = quantize.reference(shape, **inputs)
    results = _float32_kernel(inputs["X"], multiply)
    moved = results["Y"].astype(np.float64) != reference["Y"]
    assert 0 < moved.mean() < 0.01
    want, got = (quantize.comparable(shape, inputs, out) for out in (reference, results))
    np.testing.assert_array_equal(got["Y"], want["Y"])
    np.testing.assert_allclose(got["S"], want["S"], rtol=quantize.tolerance(shape).peak)
    assert (want["Y"] != reference["Y"]).mean() < 0.01
    wrong = {**results, "Y": np.nextafter(results["Y"], results["Y"].dtype.type(0))}
    off = quantize.comparable(shape, inputs, wrong)["Y"] != want["Y"]
    assert off[reference["Y"] != 0].mean() > 0.99


def test_powers_of_two_leave_no_choice_of_rounding() -> None:
    quantize = load_operator("quantize")
    shape = quantize.shape(rows=50, cols=256, round_scale=True)
    inputs = quantize.adversarial["rounding_boundaries"](shape, np.random.default_rng(4))
    reference = quantize.reference(shape, **inputs)
    np.testing.assert_array_equal(reference["S"], 1.0)
    x = inputs["X"].astype(np.float64)
    np.testing.assert_array_equal(reference["Y"], round_e4m3(x))
    assert (reference["Y"] != x).mean() > 0.3
    away = np.sign(x) * (np.abs(x) + 2.0**-12)  # what rounding ties away from zero would give
    outputs = {"Y": round_e4m3(away), "S": reference["S"]}
    assert np.any(quantize.comparable(shape, inputs, outputs)["Y"] != reference["Y"])


@pytest.mark.parametrize(("name", "given", "config"), NEEDS_EXECUTOR)
def test_programs_write_both_results_and_neither_input(
    name: str, given: dict[str, Any], config: dict[str, Any]
) -> None:
    operator = load_operator(name)
    text = str(operator.program(operator.shape(**given), config))
    assert text.count(", Y[") >= 1
    assert text.count(", S[") == 1
    assert ", X[" not in text
    assert "reduce_absmax" in text


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("quantize", {"rows": 1, "cols": 300, "group": 100}, "group=100 is not a multiple of 16"),
        ("quantize", {"rows": 1, "cols": 300, "dtype": "fp8"}, "not one of bf16, fp16, fp32"),
        ("quantize", {"rows": 1, "cols": 300, "group": -1}, "at least 0"),
        ("quantize_weight", {"rows": 1}, "needs cols"),
        ("grouped_gemm", {"m": 1, "n": 1, "k": 1, "groups": 1, "skew": 10}, "needs two groups or more"),
        (
            "grouped_gemm",
            {"m": 1, "n": 1, "k": 1, "groups": 1, "dtype": "int8"},
            "not one of bf16, fp16, fp8, fp8_block",
        ),
        ("gemm_dequant", {"m": 1, "n": 1, "k": 1, "group": 48}, "not one of 16, 32, 64, 128"),
        ("gemm_dequant", {"m": 1, "n": 1, "k": 1, "wdtype": "int8"}, "not one of int4, fp4"),
    ],
)
def test_refusals_say_what_is_right(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        load_operator(name).shape(**given)


@pytest.mark.parametrize(
    ("name", "given", "change", "message"),
    [
        ("quantize", {}, {"variant": "x"}, "variant='x' is not one of group, tiled"),
        ("quantize_weight", {}, {"strip_rows": 48}, "strip_rows=48 does not divide 128"),
        ("gemm_fp8_block", {}, {"block_m": 40}, "block_m=40 is not a multiple of 16"),
        ("gemm_fp8_block", {}, {"block_n": 256}, "block_n=256 does not divide 128"),
        ("gemm_fp8_block", {}, {"block_k": 64}, "a scale belongs to 128"),
        ("gemm_fp8_block", {}, {"product": "fp32"}, "product='fp32' is not one of fp8, bf16, fp16"),
        ("grouped_gemm", {}, {"block_m": 256}, "block_m=256 does not divide 128"),
        ("gemm_dequant", {}, {"weights": "x"}, "weights='x' is not one of registers, shared"),
        ("gemm_dequant", {}, {"block_k": 80}, "neither a multiple nor a divisor of group=128"),
    ],
)
def test_programs_refuse_configurations_they_cannot_trace(
    name: str, given: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    operator = load_operator(name)
    shape = operator.shape(**SMALL[name][0], **given)
    with pytest.raises(OperatorError, match=message):
        operator.program(shape, operator.config(shape, **change))
