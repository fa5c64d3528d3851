"""Products of quantised and grouped operands: references, counts, routing, and programs block by block."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from test_quant import SMALL
from tile_oracle import execute, gemm_flops

from foretile.kernels.dtypes import dtype
from foretile.kernels.operator import Operator, load_operator
from foretile.kernels.operators.grouped_gemm import capacity, group_rows

GEMMS = ("gemm_fp8_block", "grouped_gemm", "gemm_dequant", "gemv")
CASES = [pytest.param(name, given, id=f"{name}-{i}") for name in GEMMS for i, given in enumerate(SMALL[name])]
FP8 = {"m": 70, "n": 200, "k": 300}
GROUPED = {"m": 300, "n": 150, "k": 200, "groups": 4}
W4 = {"m": 20, "n": 200, "k": 300}

PROGRAMS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("gemm_fp8_block", {**FP8}, {"block_m": 128, "block_n": 128}),
    ("gemm_fp8_block", {**FP8}, {"block_m": 16, "block_n": 32}),
    ("gemm_fp8_block", {**FP8, "out_dtype": "fp32"}, {"block_m": 64, "block_n": 64}),
    ("gemm_fp8_block", {**FP8}, {"product": "bf16", "block_m": 64}),
    ("gemm_fp8_block", {**FP8, "out_dtype": "fp32", "k": 20}, {"product": "bf16", "block_m": 16}),
    ("gemm_fp8_block", {**FP8, "k": 700, "scale_dtype": "fp8_e8m0"}, {"variant": "tile", "block_m": 64}),
    ("gemm_fp8_block", {**FP8, "scale_dtype": "fp8_e8m0"}, {"variant": "tile", "block_k": 256}),
    ("gemm_fp8_block", {**FP8, "k": 700, "scale_dtype": "fp8_e8m0"}, {"product": "bf16", "block_m": 16}),
    ("grouped_gemm", {**GROUPED}, {}),
    ("grouped_gemm", {**GROUPED, "skew": 150}, {"block_m": 64, "block_n": 64}),
    ("grouped_gemm", {**GROUPED, "skew": 300, "dtype": "fp8"}, {"block_m": 16}),
    ("grouped_gemm", {**GROUPED, "dtype": "fp8", "out_dtype": "fp32"}, {"product": "bf16"}),
    ("grouped_gemm", {**GROUPED, "skew": 300, "dtype": "fp8_block"}, {"block_m": 16}),
    ("grouped_gemm", {**GROUPED, "dtype": "fp8_block", "out_dtype": "fp32"}, {"product": "bf16"}),
    ("grouped_gemm", {**GROUPED, "masked": True}, {"block_m": 32}),
    ("grouped_gemm", {**GROUPED, "masked": True, "skew": 200, "dtype": "fp8"}, {"block_m": 64}),
    ("grouped_gemm", {**GROUPED, "masked": True, "skew": 200, "dtype": "fp8_block"}, {"block_m": 64}),
    ("grouped_gemm", {"m": 1, "n": 17, "k": 20, "groups": 1, "masked": True}, {"block_m": 16}),
    ("gemm_dequant", {**W4}, {"weights": "registers", "block_m": 16}),
    ("gemm_dequant", {**W4, "wdtype": "fp4", "group": 32}, {"weights": "registers", "block_m": 64}),
    ("gemm_dequant", {**W4, "wdtype": "fp4", "dtype": "fp16"}, {"weights": "shared"}),
    ("gemm_dequant", {**W4, "group": 16}, {"weights": "shared", "block_m": 128}),
    ("gemv", {"n": 50, "k": 3000}, {"block_n": 8}),
    ("gemv", {"n": 50, "k": 3000, "dtype": "fp32"}, {"block_n": 1, "block_k": 2048}),
    ("gemv", {"n": 3, "k": 10, "dtype": "fp16"}, {"block_n": 64}),
]


def _kinds(operator: Operator) -> list[Any]:
    return [operator.inputs, *operator.adversarial.values()]


@pytest.mark.parametrize(
    ("name", "given", "chosen"), PROGRAMS, ids=lambda v: str(v) if isinstance(v, str) else None
)
def test_program_computes_the_reference(name: str, given: dict[str, Any], chosen: dict[str, Any]) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    config = operator.config(shape, **chosen)
    tolerance = operator.tolerance(shape)
    program = operator.program(shape, config)
    for make in _kinds(operator):
        inputs = make(shape, np.random.default_rng(3))
        reference = operator.reference(shape, **inputs)
        (result,) = reference
        stored = np.dtype(ml_dtypes.bfloat16 if _out(shape) == "bf16" else dtype(_out(shape)).name)
        unwritten = {result: np.full(reference[result].shape, np.nan).astype(stored)}
        tensors = execute(program, inputs, unwritten)
        assert np.all(np.isfinite(tensors[result].astype(np.float64))), make
        outputs = {result: tensors[result].astype(np.float64)}
        got = operator.comparable(shape, inputs, outputs)[result]
        want = operator.comparable(shape, inputs, reference)[result]
        assert got.size
        assert np.linalg.norm(got - want) <= tolerance.norm * np.linalg.norm(want), make
        assert np.abs(got - want).max() <= tolerance.peak * np.abs(want).max(), make


def _out(shape: dict[str, Any]) -> str:
    return str(shape.get("out_dtype", shape.get("dtype")))


@pytest.mark.parametrize(("name", "given"), CASES)
def test_min_bytes_are_those_of_operands_and_result(name: str, given: dict[str, Any]) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    inputs = operator.inputs(shape, np.random.default_rng(0))
    results = operator.reference(shape, **inputs)
    bits = {
        k: a.size * (4 if a.dtype.name in ("int4", "float4_e2m1fn") else 8 * a.itemsize)
        for k, a in inputs.items()
    }
    bits |= {k: r.size * dtype(_out(shape)).bits for k, r in results.items()}
    if name == "grouped_gemm":  # rows of padding take no part
        share = shape["m"] / results["C"][..., 0].size
        rows = ("A", "A_scale", "C") if shape["masked"] else ("A", "A_scale", "C", "m_indices")
        bits |= {k: round(bits[k] * share) for k in rows if k in bits}
    assert 8 * operator.min_bytes(shape) == sum(bits.values())


def test_scaled_product_of_one_element_at_a_time() -> None:
    operator = load_operator("gemm_fp8_block")
    shape = operator.shape(m=5, n=140, k=150)
    x = operator.inputs(shape, np.random.default_rng(1))
    C = operator.reference(shape, **x)["C"]
    for i, j in ((0, 0), (4, 127), (2, 128), (3, 139)):
        total = 0.0
        for k in range(150):
            a = float(x["A"][i, k]) * float(x["A_scale"][i, k // 128])
            total += a * float(x["B"][j, k]) * float(x["B_scale"][j // 128, k // 128])
        assert C[i, j] == pytest.approx(total, rel=1e-12)


def test_product_of_packed_scales_of_one_element_at_a_time() -> None:
    operator = load_operator("gemm_fp8_block")
    shape = operator.shape(m=5, n=140, k=700, scale_dtype="fp8_e8m0")
    x = operator.inputs(shape, np.random.default_rng(1))
    assert x["A_scale"].shape == (2, 5, 4)
    assert x["B_scale"].shape == (2, 140, 4)
    np.testing.assert_array_equal(x["B_scale"][:, :128], np.broadcast_to(x["B_scale"][:, :1], (2, 128, 4)))
    C = operator.reference(shape, **x)["C"]
    for i, j in ((0, 0), (4, 127), (2, 128), (3, 139)):
        total = 0.0
        for k in range(700):
            a, b = (float(x[f"{n}_scale"][k // 512, r, k // 128 % 4]) for n, r in (("A", i), ("B", j)))
            total += a * float(x["A"][i, k]) * b * float(x["B"][j, k])
        assert C[i, j] == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize(("wdtype", "group"), [("int4", 128), ("fp4", 32)])
def test_dequantised_product_of_one_element_at_a_time(wdtype: str, group: int) -> None:
    operator = load_operator("gemm_dequant")
    shape = operator.shape(m=3, n=40, k=150, wdtype=wdtype, group=group)
    x = operator.inputs(shape, np.random.default_rng(1))
    assert np.unique(x["W"].astype(float)).size == (16 if wdtype == "int4" else 15)  # e2m1 has two zeros
    C = operator.reference(shape, **x)["C"]
    for i, j in ((0, 0), (2, 39), (1, 20)):
        terms = [
            float(x["A"][i, k]) * float(x["W"][j, k]) * float(x["W_scale"][j, k // group]) for k in range(150)
        ]
        assert C[i, j] == pytest.approx(sum(terms), rel=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("element", ["bf16", "fp8", "fp8_block"])
def test_grouped_product_of_one_row_at_a_time(masked: bool, element: str) -> None:
    operator = load_operator("grouped_gemm")
    shape = operator.shape(m=200, n=30, k=150, groups=3, masked=masked, dtype=element, skew=100)
    for make in _kinds(operator):
        x = make(shape, np.random.default_rng(1))
        C = operator.reference(shape, **x)["C"]
        rows = 0
        for at in np.ndindex(C.shape[:-1]):
            inside = at[1] < x["masked_m"][at[0]] if masked else x["m_indices"][at[0]] >= 0
            group = at[0] if masked else int(x["m_indices"][at[0]])
            if not inside:
                assert not C[at].any()
                continue
            rows += 1
            a, b = x["A"][at].astype(np.float64), x["B"][group].astype(np.float64)
            if element == "fp8":
                a, b = a * float(x["A_scale"][at]), b * float(x["B_scale"][group])
            if element == "fp8_block":
                a = a * x["A_scale"][at].astype(np.float64)[np.arange(150) // 128]
                b = b * x["B_scale"][group, 0].astype(np.float64)[np.arange(150) // 128]
            np.testing.assert_allclose(C[at], b @ a, rtol=1e-12, atol=1e-12)
        kept = operator.comparable(shape, x, {"C": C})["C"]
        assert kept.shape == (rows, 30)
        assert rows == (2 if make is operator.adversarial["holes"] else 200)


@pytest.mark.parametrize("skew", [0, 50, 100, 700])
@pytest.mark.parametrize(("m", "groups"), [(1, 4), (5, 4), (4096, 32), (1000, 7), (8192, 256)])
def test_rows_of_groups(m: int, groups: int, skew: int) -> None:
    shape = load_operator("grouped_gemm").shape(m=m, n=1, k=1, groups=groups, skew=skew)
    rows = group_rows(shape)
    assert rows.shape == (groups,)
    assert rows.sum() == m
    assert rows.min() >= 0
    assert rows.max() <= -(-m * (100 + skew) // (100 * groups))
    assert np.all(np.diff(rows) <= 1)  # fullest first, but for rounding
    if m >= 1000:
        share = 1.0 - (1.0 - 1.0 / groups) ** (1 + skew / 100)
        assert abs(rows[0] - m * share) <= 1


@pytest.mark.parametrize("skew", [0, 300])
@pytest.mark.parametrize(("m", "groups"), [(1, 1), (1, 300), (129, 2), (4096, 32), (1000, 7)])
def test_any_routing_fits_the_buffers(m: int, groups: int, skew: int) -> None:
    operator = load_operator("grouped_gemm")
    for masked in (False, True):
        shape = operator.shape(m=m, n=1, k=1, groups=groups, skew=skew if groups > 1 else 0, masked=masked)
        assert capacity(shape) % 128 == 0
        for make in _kinds(operator):
            x = make(shape, np.random.default_rng(0))
            if masked:
                assert x["masked_m"].max() <= capacity(shape)
                assert x["masked_m"].shape == (groups,)
                continue
            tiles = x["m_indices"].reshape(-1, 128)
            used = [np.unique(t[t >= 0]) for t in tiles]
            assert all(u.size <= 1 for u in used)  # no tile has rows of two groups
            assert all((t[0] >= 0) == (t >= 0).any() for t in tiles)  # the first row speaks for its tile
    assert operator.tensors is not None
    one = {**shape, "m": np.array([float(m)]), "groups": np.array([float(groups)])}
    np.testing.assert_array_equal(operator.tensors(one)["masked_m"], operator.tensors(shape)["masked_m"])


def test_weights_of_empty_groups_are_not_counted() -> None:
    operator = load_operator("grouped_gemm")
    for dtype_, weights in (
        ("bf16", 2 * 256 * 512),
        ("fp8", 256 * 512 + 4),
        ("fp8_block", 256 * 512 + 4 * 2 * 4),
    ):
        one, eight = (
            operator.min_bytes(operator.shape(m=m, n=256, k=512, groups=8, dtype=dtype_)) for m in (1, 8)
        )
        row = operator.min_bytes(operator.shape(m=9, n=256, k=512, groups=8, dtype=dtype_)) - eight
        assert eight - one == 7 * (row + weights)


@pytest.mark.parametrize("name", ["gemm_fp8_block", "gemm_dequant"])
def test_exact_work_when_tiles_divide_the_shape(name: str) -> None:
    operator = load_operator(name)
    shape = operator.shape(m=512, n=1024, k=768)
    for config in operator.configs(shape):
        assert gemm_flops(operator.program(shape, config)) == operator.flops(shape), config


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("element", ["bf16", "fp8", "fp8_block"])
def test_grouped_work_is_that_of_the_tiles_with_rows(masked: bool, element: str) -> None:
    operator = load_operator("grouped_gemm")
    shape = operator.shape(m=700, n=256, k=256, groups=3, masked=masked, dtype=element, skew=200)
    assert operator.tensors is not None
    tensors: dict[str, Any] = dict(operator.tensors(shape))
    for config in operator.configs(shape):
        block = config["block_m"]
        columns = -(-256 // config["block_n"]) * config["block_n"]
        padded = sum(-(-int(rows) // block) * block for rows in group_rows(shape))
        work = gemm_flops(operator.program(shape, config), **tensors)
        assert work == 2 * padded * columns * 256, config
        assert work >= operator.flops(shape)


@pytest.mark.parametrize(("name", "given"), CASES)
def test_flops_are_two_a_term(name: str, given: dict[str, Any]) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    terms = shape.get("m", 1) * shape["n"] * shape["k"]
    assert operator.flops(shape) == 2 * terms


def test_random_operands_are_quantised_to_the_full_range() -> None:
    operator = load_operator("gemm_fp8_block")
    shape = operator.shape(m=50, n=300, k=400)
    x = operator.inputs(shape, np.random.default_rng(0))
    groups = np.add.reduceat(np.abs(x["A"].astype(float)) == 448.0, np.arange(0, 400, 128), axis=1)
    assert groups.min() >= 1  # the largest element of every group of 128 is 448
    assert np.ptp(np.log2(x["A_scale"])) > 4
    assert x["B_scale"].shape == (3, 4)
