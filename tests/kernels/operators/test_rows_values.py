"""Operators on rows and matrices: references against loops, programs against references."""

import math
from typing import Any

import numpy as np
import pytest
from tile_oracle import execute

from foretile.kernels.operator import Arrays, load_operator
from foretile.simulator.numerics.execute import execute as run
from foretile.simulator.numerics.verify import input_kinds, verify

ROW = {"rows": 9, "cols": 300}
HEADS = {"rows": 9, "cols": 24, "heads": 5}
WHOLE = {"variant": "row", "block_rows": 4}
TILED = {"variant": "tiled", "block_rows": 4, "block_cols": 128}
LONG = {"variant": "tiled", "block_rows": 2, "block_cols": 512}  # a tile longer than the row
Case = tuple[str, dict[str, Any], dict[str, Any]]

CASES: list[Case] = [
    *((name, ROW, config) for name in ("add_rmsnorm", "layernorm") for config in (WHOLE, TILED, LONG)),
    *((name, ROW, config) for name in ("rmsnorm", "softmax") for config in (WHOLE, TILED, LONG)),
    *((name, ROW, config) for name in ("cross_entropy", "reduce_sum") for config in (WHOLE, TILED, LONG)),
    ("layernorm", {"rows": 9, "cols": 256, "dtype": "fp32"}, TILED),
    ("cross_entropy", {"rows": 3, "cols": 256, "dtype": "fp16"}, TILED),
    ("gelu", ROW, {"block_rows": 8}),
    ("gelu", {**ROW, "dtype": "fp32"}, {"block_rows": 4}),
    ("gelu", {**ROW, "tanh": True, "dtype": "fp32"}, {"block_rows": 2}),
    ("swiglu", ROW, {"block_rows": 8}),
    ("swiglu", {"rows": 3, "cols": 1500, "dtype": "fp32"}, {"block_cols": 1024}),
    ("silu_mul", ROW, {"block_rows": 8}),
    ("rope", HEADS, {"block_heads": 4}),
    ("rope", {**HEADS, "interleaved": False}, {"block_heads": 4}),
    ("rope", {"rows": 50, "cols": 6, "dtype": "fp32"}, {"block_rows": 32}),
    ("transpose", {"rows": 70, "cols": 90}, {"block_rows": 64}),
    ("transpose", {"rows": 130, "cols": 40, "dtype": "fp8"}, {"block_rows": 128, "block_cols": 32}),
    ("transpose", {"rows": 33, "cols": 90, "dtype": "int8"}, {"block_rows": 32, "block_cols": 128}),
    ("copy", {"bytes": 40_001}, {"staging": "shared"}),
]
# What the oracle of this folder does not know: minima and prefix sums.
NEEDS_EXECUTOR: list[Case] = [
    *(("argmax", ROW, config) for config in (WHOLE, TILED, LONG)),
    ("argmax", {"rows": 3, "cols": 256, "dtype": "fp16"}, TILED),
    *(("top_p_sample", ROW, {**WHOLE, "bits": bits}) for bits in (1, 2, 3)),
    *(("top_p_sample", ROW, {**TILED, "bits": bits}) for bits in (1, 2, 3)),
    ("top_p_sample", {**ROW, "dtype": "bf16"}, {**LONG, "bits": 2}),
]
NAMED = {"ids": lambda v: v if isinstance(v, str) else None}


@pytest.mark.parametrize(("name", "given", "chosen"), CASES, **NAMED)
def test_program_computes_the_reference_in_the_oracle(
    name: str, given: dict[str, Any], chosen: dict[str, Any]
) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    inputs = operator.inputs(shape, np.random.default_rng(3))
    tensors = execute(operator.program(shape, operator.config(shape, **chosen)), inputs)
    tolerance = operator.tolerance(shape)
    for key, want in operator.reference(shape, **inputs).items():
        error = np.abs(tensors[key].astype(np.float64) - want)
        assert np.linalg.norm(error) <= tolerance.norm * np.linalg.norm(want)
        assert np.max(error) <= tolerance.peak * np.max(np.abs(want))


@pytest.mark.parametrize(("name", "given", "chosen"), [*CASES, *NEEDS_EXECUTOR], **NAMED)
def test_special_cases_are_within_the_tolerance(
    name: str, given: dict[str, Any], chosen: dict[str, Any]
) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    assert operator.adversarial
    for kind in input_kinds(operator):
        found = verify(operator, shape, operator.config(shape, **chosen), kind=kind, seed=4)
        assert found.ok, (kind, found)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(
    "name", ["rmsnorm", "add_rmsnorm", "layernorm", "softmax", "cross_entropy", "reduce_sum", "argmax"]
)
def test_special_cases_have_results_in_every_type(name: str, dtype: str) -> None:
    operator = load_operator(name)
    shape = operator.shape(rows=12, cols=97, dtype=dtype)
    for kind, make in operator.adversarial.items():
        inputs = make(shape, np.random.default_rng(5))
        usual = operator.inputs(shape, np.random.default_rng(5))
        assert {k: (v.shape, v.dtype) for k, v in inputs.items()} == {
            k: (v.shape, v.dtype) for k, v in usual.items()
        }
        results = operator.reference(shape, **inputs)
        assert all(np.all(np.isfinite(r)) for r in results.values()), kind
        checked = verify(operator, shape, operator.config(shape, **TILED), kind=kind, seed=5)
        assert checked.ok, (kind, checked)


# -- references --------------------------------------------------------------------------------


def _operands(name: str, **given: Any) -> tuple[dict[str, Any], Arrays, Arrays]:
    operator = load_operator(name)
    shape = operator.shape(**given)
    inputs = operator.inputs(shape, np.random.default_rng(1))
    return shape, {k: v.astype(np.float64) for k, v in inputs.items()}, operator.reference(shape, **inputs)


def _near(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_normalisations_element_by_element() -> None:
    _, x, out = _operands("add_rmsnorm", rows=3, cols=5)
    for r in range(3):
        total = [x["X"][r, c] + x["R"][r, c] for c in range(5)]
        root = math.sqrt(sum(v * v for v in total) / 5 + 1e-6)
        _near(out["R_out"][r], total)
        _near(out["Y"][r], [v / root * x["W"][c] for c, v in enumerate(total)])
    _, x, out = _operands("layernorm", rows=3, cols=5)
    for r in range(3):
        row = [float(v) for v in x["X"][r]]
        mean = sum(row) / 5
        root = math.sqrt(sum((v - mean) ** 2 for v in row) / 5 + 1e-5)
        _near(out["Y"][r], [(v - mean) / root * x["W"][c] + x["B"][c] for c, v in enumerate(row)])


def test_activations_element_by_element() -> None:
    _, x, out = _operands("gelu", rows=3, cols=5)
    _near(out["Y"], [[v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in row] for row in x["X"]])
    _, x, out = _operands("gelu", rows=3, cols=5, tanh=True)
    slope = math.sqrt(2 / math.pi)
    _near(
        out["Y"],
        [[v * 0.5 * (1 + math.tanh(slope * (v + 0.044715 * v**3))) for v in row] for row in x["X"]],
    )
    _, x, out = _operands("swiglu", rows=3, cols=5)
    _near(out["Y"], [[row[c] / (1 + math.exp(-row[c])) * row[5 + c] for c in range(5)] for row in x["X"]])


def test_losses_and_reductions_row_by_row() -> None:
    _, x, out = _operands("cross_entropy", rows=4, cols=7)
    for r, row in enumerate(x["Logits"]):
        probability = math.exp(row[int(x["Target"][r])]) / sum(math.exp(v) for v in row)
        _near(out["Loss"][r], -math.log(probability))
    _, x, out = _operands("reduce_sum", rows=4, cols=7)
    _near(out["Y"], [sum(row) for row in x["X"]])
    _, x, out = _operands("argmax", rows=4, cols=7)
    _near(out["Index"], [[float(v) for v in row].index(max(row)) for row in x["X"]])


def test_the_first_of_equal_maxima_counts() -> None:
    argmax = load_operator("argmax")
    x = np.array([[1, 3, 3], [-np.inf, -np.inf, -np.inf], [0.0, -0.0, -1]], dtype=np.float32)
    assert argmax.reference(argmax.shape(rows=3, cols=3), X=x)["Index"].tolist() == [1, 0, 0]


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotation_pair_by_pair(interleaved: bool) -> None:
    _, x, out = _operands("rope", rows=5, cols=6, heads=2, interleaved=interleaved)
    for r in range(5):
        for j in range(3):
            angle = r * 10000.0 ** (-2 * j / 6)
            assert abs(x["Cos"][r, j] - math.cos(angle)) < 1e-7
            assert abs(x["Sin"][r, j] - math.sin(angle)) < 1e-7
            a, b = (2 * j, 2 * j + 1) if interleaved else (j, 3 + j)
            for h in range(2):
                turned = complex(x["X"][r, h, a], x["X"][r, h, b]) * complex(x["Cos"][r, j], x["Sin"][r, j])
                _near(out["Y"][r, h, [a, b]], [turned.real, turned.imag])


def test_transposition_swaps_indices() -> None:
    _, x, out = _operands("transpose", rows=3, cols=5)
    assert all(out["Y"][c, r] == x["X"][r, c] for r in range(3) for c in range(5))


# -- nucleus sampling --------------------------------------------------------------------------


def _drawn(p: list[float], u: float, share: float) -> int:
    """By the definition: tokens from the most probable on, ties together, then in order of indices."""
    total, nucleus, mass = sum(p), set[int](), 0.0
    for value in sorted(set(p), reverse=True):
        nucleus |= {i for i, v in enumerate(p) if v == value}
        mass = sum(p[i] for i in nucleus)
        if mass >= share * total:
            break
    seen = 0.0
    for i in sorted(nucleus):
        seen += p[i]
        if seen > u * mass:
            return i
    raise AssertionError("u is not below one")


def test_sampling_by_its_definition() -> None:
    rng, sample = np.random.default_rng(2), load_operator("top_p_sample")
    rows, cols = 200, 12
    shape = sample.shape(rows=rows, cols=cols)
    p = rng.multinomial(64, np.full(cols, 1 / cols), rows).astype(np.float32) / 64  # exact sums, many ties
    u = (rng.integers(0, 64, rows) / 64).astype(np.float32)
    share = (rng.integers(1, 65, rows) / 64).astype(np.float32)
    want = [
        _drawn([float(v) for v in row], float(a), float(b)) for row, a, b in zip(p, u, share, strict=True)
    ]
    inputs = {"P": p, "U": u, "TopP": share}
    reference = sample.reference(shape, **inputs)
    assert reference["Token"].tolist() == want
    assert not np.any(sample.comparable(shape, inputs, reference)["Token"] - 1.0)
    for chosen in ({**WHOLE, "bits": 3}, {**TILED, "bits": 1}):
        ran = run(sample.program(shape, sample.config(shape, **chosen)), inputs, outputs=("Token",))
        assert ran.tensors["Token"].tolist() == want


def test_a_wrong_token_is_told_from_a_right_one() -> None:
    sample = load_operator("top_p_sample")
    shape = sample.shape(rows=6, cols=4)
    row = [0.375, 0.125, 0.25, 0.25]  # TopP 0.5: tokens 0, 2 and 3, their sums 0.375, 0.625, 0.875
    inputs = {
        "P": np.array([row] * 6, dtype=np.float32),
        "U": np.full(6, 0.5, dtype=np.float32),  # 0.4375, in the middle of token 2
        "TopP": np.full(6, 0.5, dtype=np.float32),
    }
    assert sample.reference(shape, **inputs)["Token"].tolist() == [2.0] * 6
    tokens = np.array([2, 0, 1, 3, 4, -1], dtype=np.int32)
    off = sample.comparable(shape, inputs, {"Token": tokens})["Token"] - 1.0
    _near(off, [0.0, 0.0625, 0.375, 0.1875, 1.0, 1.0])
    assert np.all(off[1:] > sample.tolerance(shape).peak)


def test_a_boundary_may_fall_either_way_within_the_tolerance() -> None:
    sample = load_operator("top_p_sample")
    shape = sample.shape(rows=1, cols=2)
    just_above = np.nextafter(np.float32(0.5), np.float32(1))
    inputs = {
        "P": np.array([[0.5, 0.5 - 2.0**-25]], dtype=np.float32),
        "U": np.array([0.75], dtype=np.float32),
        "TopP": np.array([just_above], dtype=np.float32),
    }
    # The first token alone misses TopP by 6e-8, less than a float32 sum promises: both answers are right.
    for token in (0, 1):
        off = sample.comparable(shape, inputs, {"Token": np.array([token])})["Token"] - 1.0
        assert 0.0 <= off[0] <= sample.tolerance(shape).peak
