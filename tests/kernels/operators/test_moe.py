"""Mixture of experts: contract, counts, comparing, tile programs and refusals of its operators."""

from typing import Any

import numpy as np
import pytest
from test_operator_programs import _launches, _mirrored, _symbolic
from tile_oracle import execute, gemm_flops

from foretile.kernels.expr import evaluate
from foretile.kernels.operator import Arrays, Operator, OperatorError, load_operator
from foretile.kernels.operators._moe_host import gate
from foretile.kernels.rewrite import map_exprs

NAMES = ("moe_route", "moe_permute", "moe_combine", "moe")
SMALL: dict[str, dict[str, Any]] = {
    "moe_route": {"tokens": 37, "experts": 24, "topk": 5, "groups": 4, "topk_groups": 2},
    "moe_permute": {"tokens": 13, "hidden": 100, "topk": 3, "experts": 7, "align": 20},
    "moe_combine": {"tokens": 13, "hidden": 300, "topk": 3},
    "moe": {"tokens": 70, "hidden": 100, "inter": 72, "topk": 3, "experts": 10, "align": 32},
}
QUANTISED = ("fp8", "fp8_block", "nvfp4")
# Programs that the oracle of these tests has no statements for (minimum, branch, prefix sum).
NEEDS_EXECUTOR: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("moe_route", {"tokens": 37, "experts": 40, "topk": 6}, {"block_t": 4}),
    (
        "moe_route",
        {"tokens": 37, "experts": 256, "topk": 8, "groups": 8, "topk_groups": 4},
        {"block_t": 16},
    ),
    ("moe_route", {"tokens": 5, "experts": 9, "topk": 9}, {"block_t": 1}),
    ("moe_route", {"tokens": 50, "experts": 24, "topk": 3, "groups": 4, "topk_groups": 1}, {"block_t": 8}),
    ("moe_permute", SMALL["moe_permute"], {"block_rows": 8}),
    ("moe_permute", {**SMALL["moe_permute"], "align": 16, "dtype": "fp32"}, {"block_rows": 16}),
    ("moe", SMALL["moe"], {"block_m": 16, "block_n": 64, "block_t": 4}),
    ("moe", SMALL["moe"], {"block_m": 32, "block_t": 16}),
    ("moe", {**SMALL["moe"], "distribution": 120}, {"block_m": 16, "block_t": 4}),
    ("moe", {**SMALL["moe"], "align": 16, "distribution": 300, "dtype": "fp16"}, {"block_m": 16}),
    ("moe", {**SMALL["moe"], "align": 128, "topk": 1}, {"block_m": 128}),
    # More tiles of rows than one step of the blocks' tables covers; fewer choices than experts.
    ("moe", {**SMALL["moe"], "experts": 100, "align": 16}, {"block_m": 16, "block_t": 16}),
    ("moe", {**SMALL["moe"], "tokens": 1, "experts": 100}, {"block_m": 16}),
    *[
        ("moe", {**SMALL["moe"], "dtype": dtype, **given}, chosen)
        for dtype in QUANTISED
        for given, chosen in (
            ({"hidden": 300}, {"block_m": 16}),
            ({"inter": 260}, {"block_m": 32, "block_t": 16}),
            ({"hidden": 300, "distribution": 300}, {"product": "bf16", "block_m": 16}),
        )
    ],
]


def makers(operator: Operator) -> dict[str, Any]:
    return {"inputs": operator.inputs, **operator.adversarial}


# -- contract and counts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "required", "optional"),
    [
        ("moe_route", {"tokens", "experts", "topk"}, {"groups": 1, "topk_groups": 1}),
        (
            "moe_permute",
            {"tokens", "hidden", "topk", "experts"},
            {"dtype": "bf16", "align": 128},
        ),
        ("moe_combine", {"tokens", "hidden", "topk"}, {"dtype": "bf16"}),
        (
            "moe",
            {"tokens", "hidden", "inter", "topk", "experts"},
            {"dtype": "bf16", "distribution": 0, "align": 128},
        ),
    ],
)
def test_parameters(name: str, required: set[str], optional: dict[str, Any]) -> None:
    params = load_operator(name).params
    assert {p.name for p in params if p.default is None} == required
    assert {p.name: p.default for p in params if p.default is not None} == optional


@pytest.mark.parametrize("name", NAMES)
def test_configurations_have_one_form(name: str) -> None:
    operator = load_operator(name)
    wide = {**SMALL[name], "align": 128} if "align" in SMALL[name] else SMALL[name]
    formats = [{**wide, "dtype": dtype} for dtype in QUANTISED] if name == "moe" else []
    for given in (SMALL[name], wide, *formats):
        space = operator.configs(operator.shape(**given))
        assert 8 <= len(space) <= 40
        assert len({tuple(c) for c in space}) == 1
        assert len({tuple(c.values()) for c in space}) == len(space)
        assert all(c["threads"] % 32 == 0 and c["threads"] <= 1024 for c in space)


def test_flops_are_the_operations_of_the_formulas() -> None:
    tokens, experts, topk, hidden, inter = 3, 8, 2, 5, 4
    sigmoid, swiglu = 4, 5  # negation, exponential, addition, division; and a product
    weights = (topk - 1) + 1 + topk + topk  # sum, its epsilon, quotients, scaled
    route = load_operator("moe_route")
    plain = tokens * (experts * (sigmoid + 1) + weights)
    assert route.flops(route.shape(tokens=tokens, experts=experts, topk=topk)) == plain
    grouped = route.shape(tokens=tokens, experts=experts, topk=topk, groups=4, topk_groups=2)
    assert route.flops(grouped) == plain + tokens * 4
    combine = load_operator("moe_combine")
    summed = sum(topk + (topk - 1) for _ in range(tokens) for _ in range(hidden))
    assert combine.flops(combine.shape(tokens=tokens, hidden=hidden, topk=topk)) == summed
    products = sum(2 * rows * depth for rows, depth in ((inter, hidden), (inter, hidden), (hidden, inter)))
    moe = load_operator("moe")
    shape = moe.shape(tokens=tokens, hidden=hidden, inter=inter, topk=topk, experts=experts)
    assert moe.flops(shape) == plain + tokens * topk * (products + inter * swiglu) + summed
    halves = {"fp8": tokens * (hidden + topk * inter)}
    groups = 1  # neither hidden nor inter is above 16
    halves["fp8_block"] = halves["nvfp4"] = 2 * halves["fp8"] + tokens * groups * (1 + topk)
    for dtype in QUANTISED:
        assert moe.flops({**shape, "dtype": dtype}) == moe.flops(shape) + halves[dtype]
    permute = load_operator("moe_permute")
    assert permute.flops(permute.shape(tokens=tokens, hidden=hidden, topk=topk, experts=experts)) == 0


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "bf16") for name in NAMES), *(("moe", dtype) for dtype in QUANTISED)]
)
@pytest.mark.parametrize("distribution", [0, 250])
def test_bytes_are_those_of_operands_that_take_part_and_results(
    name: str, dtype: str, distribution: int
) -> None:
    operator = load_operator(name)
    given = {**SMALL[name]}
    if name == "moe":
        given |= {"tokens": 2, "distribution": distribution, "dtype": dtype, "hidden": 300}
    shape = operator.shape(**given)
    inputs = operator.inputs(shape, np.random.default_rng(0))
    used = 1.0
    if name == "moe":
        indices, _ = gate(inputs["Logits"], inputs["Bias"], shape["topk"])
        used = len(np.unique(indices)) / shape["experts"]
        assert used < 1.0
    total = sum(
        x.nbytes * (used if key.startswith("W_") else 1.0) / (2 if x.dtype.name == "float4_e2m1fn" else 1)
        for key, x in inputs.items()
    )
    for key, x in operator.reference(shape, **inputs).items():
        total += x.size * (4 if key in ("Indices", "Weights") else 2)
    assert operator.min_bytes(shape) == round(total)


@pytest.mark.parametrize("name", NAMES)
def test_counts_of_columns_are_those_of_their_rows(name: str) -> None:
    operator = load_operator(name)
    shape = operator.shape(**SMALL[name])
    formats = [{**shape, "dtype": dtype} for dtype in QUANTISED] if name == "moe" else []
    for given in (shape, *formats):
        _counts_agree(operator, given)


def _counts_agree(operator: Operator, shape: dict[str, Any]) -> None:
    columns = {p.name: np.array([shape[p.name], 3 * shape[p.name] + 1]) for p in operator.params if p.dynamic}
    rows = [{**shape, **{key: int(value[i]) for key, value in columns.items()}} for i in range(2)]
    for count in (operator.flops, operator.min_bytes):
        assert np.asarray(count({**shape, **columns})).tolist() == [count(row) for row in rows]
        assert all(type(count(row)) is int for row in rows)


# -- comparing -------------------------------------------------------------------------------------


def test_order_of_choices_does_not_matter_and_a_wrong_choice_does() -> None:
    route = load_operator("moe_route")
    shape = route.shape(**SMALL["moe_route"])
    inputs = route.inputs(shape, np.random.default_rng(8))
    right = route.reference(shape, **inputs)
    want = route.comparable(shape, inputs, right)
    turned = {key: value[:, ::-1] for key, value in right.items()}
    for key, value in route.comparable(shape, inputs, turned).items():
        np.testing.assert_array_equal(value, want[key])
    wrong = {key: value.copy() for key, value in right.items()}
    wrong["Indices"][3, 0] = next(e for e in range(24) if e not in right["Indices"][3])
    got = route.comparable(shape, inputs, wrong)["Indices"]
    assert np.abs(got - want["Indices"]).max() / want["Indices"].max() > route.tolerance(shape).peak


def test_near_ties_are_left_out_and_exact_ties_are_not() -> None:
    route = load_operator("moe_route")
    shape = route.shape(tokens=3, experts=4, topk=2)
    logits = np.array([[3, 1, 1 + 1e-6, 0], [3, 1, 1, 0], [3, 2, 1, 0]], dtype=np.float32)
    inputs = {"Logits": logits, "Bias": np.zeros(4, np.float32)}
    kept = route.comparable(shape, inputs, route.reference(shape, **inputs))
    assert kept["Indices"].tolist() == [[0, 0], [0, 1], [0, 1]]
    assert (kept["Weights"] > 0).tolist() == [[False, False], [True, True], [True, True]]


# -- programs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given"), [*SMALL.items(), *(("moe", {**SMALL["moe"], "dtype": dtype}) for dtype in QUANTISED)]
)
def test_every_configuration_traces_alike_with_numbers_and_with_symbols(
    name: str, given: dict[str, Any]
) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    inputs: Arrays = operator.inputs(shape, np.random.default_rng(0))
    known = (
        inputs
        | operator.reference(shape, **inputs)
        | dict(operator.tensors(shape) if operator.tensors else {})
    )
    for config in operator.configs(shape):
        concrete = _launches(operator.program(shape, config))
        shapes: dict[str, tuple[int, ...]] = {}
        for with_numbers, with_symbols in zip(
            concrete, _launches(operator.program(_symbolic(name, shape), config)), strict=True
        ):
            bound = with_symbols.bind(**{v.name: shape[v.name] for v in with_symbols.dims})
            assert map_exprs(bound, _mirrored) == map_exprs(with_numbers, _mirrored), config
            for p in with_numbers.params:
                size = tuple(int(evaluate(e, {})) for e in p.shape)
                assert shapes.setdefault(p.name, size) == size, f"{p.name} differs between launches"
        for key, array in known.items():
            assert shapes[key] == array.shape, (config, key)


@pytest.mark.parametrize(("name", "given", "chosen"), NEEDS_EXECUTOR)
def test_cases_for_the_executor_are_cases(name: str, given: dict[str, Any], chosen: dict[str, Any]) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    assert operator.config(shape, **chosen) in operator.configs(shape)
    for make in makers(operator).values():
        inputs = make(shape, np.random.default_rng(0))
        for values in operator.reference(shape, **inputs).values():
            assert np.all(np.isfinite(values))


@pytest.mark.parametrize("dtype", ["bf16", *QUANTISED])
def test_products_are_of_whole_tiles_and_no_more(dtype: str) -> None:
    moe = load_operator("moe")
    shape = moe.shape(tokens=64, hidden=128, inter=128, topk=2, experts=8, dtype=dtype)
    assert moe.tensors is not None
    tables = moe.tensors(shape)
    for config in moe.configs(shape):
        _, _, _, gate_up, down, _ = _launches(moe.program(shape, config))
        blocks = sum(-(-int(rows) // config["block_m"]) for rows in tables["TileRows"])
        rows = blocks * config["block_m"]
        wide = config["block_n"] * (1 if dtype == "fp8_block" else 2)
        columns, depth = (-(-128 // tile) * tile for tile in (wide, config["block_k"]))
        assert gemm_flops(gate_up, **tables) == rows * 128 * 4 * depth, config
        assert gemm_flops(down, **tables) == rows * columns * 2 * depth, config


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({}, {"block_h": 256}),
        ({"topk": 8}, {"block_h": 512}),
        ({"hidden": 1030, "dtype": "fp16"}, {"block_h": 1024}),
        ({"tokens": 1, "topk": 1, "dtype": "fp32"}, {"block_h": 2048}),
    ],
)
def test_combine_program(given: dict[str, Any], chosen: dict[str, Any]) -> None:
    operator = load_operator("moe_combine")
    shape = operator.shape(**{**SMALL["moe_combine"], **given})
    tolerance = operator.tolerance(shape)
    for make in makers(operator).values():
        inputs = make(shape, np.random.default_rng(9))
        want = operator.reference(shape, **inputs)["O"]
        program = operator.program(shape, operator.config(shape, **chosen))
        got = execute(program, dict(inputs))["O"].astype(np.float64)
        assert np.linalg.norm(got - want) <= tolerance.norm * np.linalg.norm(want)
        assert np.abs(got - want).max() <= tolerance.peak * np.abs(want).max()


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("moe_route", {"tokens": 4, "experts": 8, "topk": 9}, "cannot be chosen of experts=8"),
        ("moe_route", {"tokens": 4, "experts": 8, "topk": 2, "groups": 3}, "equal groups of two or more"),
        ("moe_route", {"tokens": 4, "experts": 8, "topk": 2, "groups": 8}, "equal groups of two or more"),
        (
            "moe_route",
            {"tokens": 4, "experts": 8, "topk": 2, "groups": 2, "topk_groups": 3},
            "more than groups=2",
        ),
        ("moe_route", {"tokens": 4, "experts": 8, "topk": 3, "groups": 4}, "do not fit topk_groups=1"),
        ("moe_permute", {"tokens": 4, "hidden": 8, "topk": 5, "experts": 4}, "cannot be chosen"),
        ("moe", {**SMALL["moe"], "topk": 11}, "cannot be chosen of experts=10"),
        ("moe", {**SMALL["moe"], "align": 24}, "not a multiple of 16"),
        ("moe", {**SMALL["moe"], "dtype": "nvfp4", "inter": 71}, "inter=71 is odd"),
    ],
)
def test_refuses(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        load_operator(name).shape(**given)


def test_refuses_tiles_of_two_experts() -> None:
    moe = load_operator("moe")
    shape = moe.shape(**SMALL["moe"])
    with pytest.raises(OperatorError, match="block_m=128 does not divide align=32"):
        moe.program(shape, {**moe.configs(shape)[0], "block_m": 128})


@pytest.mark.parametrize(
    ("dtype", "chosen", "message"),
    [
        ("fp8_block", {"block_n": 64}, "group of H is 128 columns"),
        ("fp8_block", {"block_k": 96}, "within 128 of the depth"),
        ("fp8", {"product": "fp32"}, "product='fp32' is not one of fp8, bf16"),
        ("fp8", {"block_k": 24}, "block_k=24 is not a multiple of 16"),
        ("nvfp4", {"block_k": 40}, "block_k=40 is not a multiple of 16"),
        ("nvfp4", {"product": "fp8"}, "product='fp8' is not one of fp4, bf16"),
    ],
)
def test_refuses_tiles_that_do_not_go_with_the_scales(
    dtype: str, chosen: dict[str, Any], message: str
) -> None:
    moe = load_operator("moe")
    shape = moe.shape(**{**SMALL["moe"], "align": 128, "dtype": dtype})
    with pytest.raises(OperatorError, match=message):
        moe.program(shape, {**moe.configs(shape)[0], **chosen})
