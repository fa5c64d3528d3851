"""Mixture of experts: loads, layouts and references, against formulas written token by token."""

import math

import ml_dtypes
import numpy as np
import pytest
from test_moe import SMALL, makers

from foretile.kernels.operator import load_operator
from foretile.kernels.operators._moe_host import (
    SCALING,
    assignment,
    destination_rows,
    expert_loads,
    experts_between,
    gate,
    rows_bound,
    tile_tables,
)

# -- loads and layouts -----------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", [0, 50, 120, 400])
@pytest.mark.parametrize(("tokens", "experts", "topk"), [(1, 5, 5), (3, 64, 8), (100, 16, 1), (257, 60, 6)])
def test_loads_are_those_of_distinct_choices(tokens: int, experts: int, topk: int, distribution: int) -> None:
    loads = expert_loads(tokens, experts, topk, distribution)
    assert loads.sum() == tokens * topk
    assert 0 <= loads.min() <= loads.max() <= tokens
    if not distribution:
        assert np.ptp(loads) <= 1
    chosen = assignment(np.random.default_rng(0), loads, tokens, topk)
    assert all(len(set(row)) == topk for row in chosen.tolist())
    assert np.bincount(chosen.ravel(), minlength=experts).tolist() == loads.tolist()


def test_loads_follow_the_exponent() -> None:
    # With a density of 1/x the quantiles of evenly spaced shares are a geometric series.
    loads = np.sort(expert_loads(100_000, 64, 4, 100))
    np.testing.assert_allclose(np.diff(np.log(loads[16:])), np.log(0.8e5) / 64, rtol=0.12)
    assert np.ptp(expert_loads(1000, 64, 4, 50)) < np.ptp(expert_loads(1000, 64, 4, 150))


@pytest.mark.parametrize(("tokens", "experts", "topk"), [(16, 256, 8), (512, 256, 8), (4096, 128, 8)])
def test_loads_are_what_draws_from_the_density_give_on_average(tokens: int, experts: int, topk: int) -> None:
    low, high = (1.0, 0.8 * tokens) if tokens * topk > experts else (0.01, 2.0)
    rng = np.random.default_rng(0)
    used, tiles = [], []
    for _ in range(40):
        x = ((high**-0.2 - low**-0.2) * rng.random(experts) + low**-0.2) ** -5.0  # density x^-1.2
        drawn = np.round(x / x.sum() * tokens * topk).clip(max=tokens)
        missing = int(tokens * topk - drawn.sum())
        for _ in range(abs(missing)):
            drawn[np.argmin(drawn) if missing > 0 else np.argmax(drawn)] += np.sign(missing)
        used.append(np.count_nonzero(drawn))
        tiles.append(np.ceil(drawn / 16).sum())
    loads = expert_loads(tokens, experts, topk, 120)
    assert abs(np.count_nonzero(loads) / np.mean(used) - 1) < 0.1
    assert abs(np.ceil(loads / 16).sum() / np.mean(tiles) - 1) < 0.1


def test_missing_rows_go_to_the_emptiest_experts() -> None:
    # 32 choices of 128 experts: few weights round up to one, and every other row is an expert of its own.
    assert np.count_nonzero(expert_loads(32, 128, 1, 120)) >= 28
    assert expert_loads(4, 16, 1, 101).max() == 1


@pytest.mark.parametrize(
    ("tokens", "experts", "topk"), [(1, 128, 8), (32, 128, 1), (16, 256, 8), (512, 16, 1)]
)
def test_experts_that_are_filled_up_are_used_again_at_once(tokens: int, experts: int, topk: int) -> None:
    used = np.count_nonzero(expert_loads(tokens, experts, topk, 120))
    read = [experts_between(tokens, experts, topk, 120, n) for n in (1, 2, 5)]
    assert read[0] == pytest.approx(used)
    assert read[0] <= read[1] <= read[2] <= experts
    if tokens in (1, 512):  # none are drawn, or all of them: the same every time
        assert read[2] == pytest.approx(used)
    assert used <= read[2] <= 2 * used
    assert experts_between(tokens, experts, topk, 0, 5) == min(experts, tokens * topk)


def test_rows_are_dealt_expert_by_expert() -> None:
    indices = np.array([[4, 1], [1, 0], [4, 3], [1, 4]], dtype=np.int32)
    want = [[8, 2], [3, 0], [9, 6], [4, 10]]  # experts 0 and 1 begin at 0 and 2, 3 at 6, 4 at 8
    assert destination_rows(indices, 6, 2).tolist() == want


@pytest.mark.parametrize("align", [1, 16, 128])
@pytest.mark.parametrize("distribution", [0, 200])
def test_tables_say_which_expert_fills_a_tile(align: int, distribution: int) -> None:
    tokens, experts, topk = 50, 12, 3
    loads = expert_loads(tokens, experts, topk, distribution)
    indices = assignment(np.random.default_rng(1), loads, tokens, topk)
    rows = destination_rows(indices, experts, align)
    bound = rows_bound(tokens, experts, topk, align)
    assert bound % align == 0
    assert len(np.unique(rows)) == rows.size
    assert rows.max() < bound
    expert, filled = tile_tables(loads, align, bound // align)
    for tile in range(bound // align):
        inside = rows // align == tile
        assert filled[tile] == inside.sum()
        assert set(indices[inside]) <= {expert[tile]}
        assert 0 <= expert[tile] < experts


@pytest.mark.parametrize("distribution", [0, 120])
def test_predictions_see_the_loads_of_the_inputs(distribution: int) -> None:
    moe = load_operator("moe")
    shape = moe.shape(**{**SMALL["moe"], "distribution": distribution})
    inputs = moe.inputs(shape, np.random.default_rng(5))
    indices, _ = gate(inputs["Logits"], inputs["Bias"], shape["topk"])
    assert moe.tensors is not None
    tables = moe.tensors(shape)
    loads = np.bincount(indices.ravel(), minlength=shape["experts"])
    expert, filled = tile_tables(loads, shape["align"], len(tables["TileRows"]))
    assert tables["TileRows"].tolist() == filled.tolist()
    assert tables["TileExpert"].tolist() == expert.tolist()
    permute = load_operator("moe_permute")
    shape = permute.shape(**SMALL["moe_permute"])
    assert permute.tensors is not None
    marks = permute.tensors(shape)
    assert np.flatnonzero(marks["Used"]).tolist() == sorted(marks["Rows"].ravel().tolist())


# -- references ------------------------------------------------------------------------------------


def _choose(s: list[float], b: list[float], topk: int, groups: int, topk_groups: int) -> list[int]:
    """The gate for one token, by sorting (score, index) pairs."""
    biased = [x + y for x, y in zip(s, b, strict=True)]
    size = len(s) // groups
    strength = [sum(sorted(biased[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
    best = sorted(range(groups), key=lambda g: (-strength[g], g))[:topk_groups]
    members = [e for e in range(len(s)) if e // size in best]
    return sorted(members, key=lambda e: (-biased[e], e))[:topk]


@pytest.mark.parametrize("groups", [{}, {"groups": 4, "topk_groups": 2}, {"groups": 3, "topk_groups": 3}])
def test_gate(groups: dict[str, int]) -> None:
    route = load_operator("moe_route")
    shape = route.shape(tokens=20, experts=24, topk=5, **groups)
    for make in makers(route).values():
        inputs = make(shape, np.random.default_rng(2))
        out = route.reference(shape, **inputs)
        for t in range(20):
            scores = [1.0 / (1.0 + math.exp(-x)) for x in inputs["Logits"][t].tolist()]
            want = _choose(scores, inputs["Bias"].tolist(), 5, shape["groups"], shape["topk_groups"])
            assert out["Indices"][t].tolist() == want
            total = math.fsum(scores[e] for e in want)
            weights = [scores[e] / total * 2.5 for e in want]
            np.testing.assert_allclose(out["Weights"][t], weights, rtol=1e-6)


def test_weights_sum_to_the_scaling_factor() -> None:
    route = load_operator("moe_route")
    shape = route.shape(**SMALL["moe_route"])
    out = route.reference(shape, **route.inputs(shape, np.random.default_rng(0)))
    np.testing.assert_allclose(out["Weights"].sum(axis=1), SCALING)


def test_permutation_and_combination_are_inverse() -> None:
    permute, combine = load_operator("moe_permute"), load_operator("moe_combine")
    shape = permute.shape(**SMALL["moe_permute"])
    for make in makers(permute).values():
        inputs = make(shape, np.random.default_rng(3))
        out = permute.reference(shape, **inputs)["X_sorted"]
        rows = inputs["Rows"]
        for t in range(shape["tokens"]):
            for j in range(shape["topk"]):
                np.testing.assert_array_equal(out[rows[t, j]], inputs["X"][t].astype(np.float64))
        assert np.count_nonzero(np.any(out != 0, axis=1)) == rows.size
        back = combine.reference(
            combine.shape(**SMALL["moe_combine"]), Y=out, Rows=rows, Weights=np.full(rows.shape, 1 / 3)
        )
        np.testing.assert_allclose(back["O"], inputs["X"].astype(np.float64))


def test_combine() -> None:
    combine = load_operator("moe_combine")
    shape = combine.shape(tokens=4, hidden=6, topk=3)
    inputs = combine.inputs(shape, np.random.default_rng(4))
    out = combine.reference(shape, **inputs)["O"]
    for t in range(4):
        for h in range(6):
            terms = [
                float(inputs["Weights"][t, j]) * float(inputs["Y"][inputs["Rows"][t, j], h]) for j in range(3)
            ]
            assert out[t, h] == pytest.approx(math.fsum(terms), rel=1e-12)


def test_moe() -> None:
    moe = load_operator("moe")
    shape = moe.shape(tokens=6, hidden=8, inter=5, topk=2, experts=4, align=16, distribution=100)
    for make in makers(moe).values():
        inputs = make(shape, np.random.default_rng(6))
        x = {key: value.astype(np.float64) for key, value in inputs.items()}
        out = moe.reference(shape, **inputs)["O"]
        for t in range(6):
            scores = [1.0 / (1.0 + math.exp(-v)) for v in x["Logits"][t].tolist()]
            experts = _choose(scores, x["Bias"].tolist(), 2, 1, 1)
            total = math.fsum(scores[e] for e in experts)
            want = np.zeros(8)
            for e in experts:
                g = [math.fsum(x["W_gate_up"][e, 0, i] * x["X"][t]) for i in range(5)]
                u = [math.fsum(x["W_gate_up"][e, 1, i] * x["X"][t]) for i in range(5)]
                h = np.array([a / (1.0 + math.exp(-a)) * b for a, b in zip(g, u, strict=True)])
                want += scores[e] / total * 2.5 * (x["W_down"][e] @ h)
            np.testing.assert_allclose(out[t], want, rtol=1e-9, atol=1e-12)


def _e4m3(x: float) -> float:
    return float(np.float32(min(max(x, -448.0), 448.0)).astype(ml_dtypes.float8_e4m3fn))


def _through_fp8(row: np.ndarray, scale: float | None) -> np.ndarray:
    """A row as its product sees it: one scale, or one for 128 columns, from the largest of them."""
    result = np.zeros(len(row))
    for first in range(0, len(row), 128):
        group = row[first : first + 128]
        s = (
            np.float32(np.float32(max(np.abs(group).max(), 1e-4)) / np.float32(448.0))
            if scale is None
            else scale
        )
        for i, x in enumerate(group.tolist()):
            result[first + i] = _e4m3(float(np.float32(x) / np.float32(s))) * float(s)
    return result


@pytest.mark.parametrize("dtype", ["fp8", "fp8_block"])
def test_moe_of_quantised_operands(dtype: str) -> None:
    moe = load_operator("moe")
    shape = moe.shape(tokens=5, hidden=140, inter=130, topk=2, experts=3, align=16, dtype=dtype)
    inputs = moe.inputs(shape, np.random.default_rng(6))
    assert {k: v.dtype.name for k, v in inputs.items() if k[0] in "XW" and not k.endswith("_scale")} == {
        "X": "bfloat16",
        "W_gate_up": "float8_e4m3fn",
        "W_down": "float8_e4m3fn",
    }
    x = {key: value.astype(np.float64) for key, value in inputs.items()}
    x_scale, h_scale = (float(x[k][0]) if k in x else None for k in ("X_scale", "H_scale"))
    assert (x_scale is None) == (dtype == "fp8_block")
    out = moe.reference(shape, **inputs)["O"]

    def weight(name: str, *at: int) -> np.ndarray:
        """A row of weights: its last index is the row."""
        scale = x[f"{name}_scale"]
        of_row = scale[at[:-1]] if dtype == "fp8" else scale[(*at[:-1], at[-1] // 128)]
        return np.asarray(
            x[name][at] * (of_row if dtype == "fp8" else np.repeat(of_row, 128)[: x[name].shape[-1]])
        )

    for t in range(5):
        scores = [1.0 / (1.0 + math.exp(-v)) for v in x["Logits"][t].tolist()]
        experts = _choose(scores, x["Bias"].tolist(), 2, 1, 1)
        total = math.fsum(scores[e] for e in experts)
        token = _through_fp8(x["X"][t], x_scale)
        want = np.zeros(140)
        for e in experts:
            g, u = (
                np.array([weight("W_gate_up", e, part, i) @ token for i in range(130)]) for part in range(2)
            )
            h = _through_fp8(g / (1.0 + np.exp(-g)) * u, h_scale)
            want += scores[e] / total * 2.5 * np.array([weight("W_down", e, i) @ h for i in range(140)])
        np.testing.assert_allclose(out[t], want, rtol=1e-9, atol=1e-12)


def _through_nvfp4(row: np.ndarray, scale: float) -> np.ndarray:
    """A row as its product sees it, given the tensor's scale."""
    result = np.zeros(len(row))
    unit = np.float32(scale)
    for first in range(0, len(row), 16):
        group = row[first : first + 16].astype(np.float32)
        s = _e4m3(float(np.abs(group).max() / (np.float32(6) * unit)))
        step = np.float32(s) * unit
        for i, x in enumerate(group):
            quotient = min(max(float(x / step), -6.0), 6.0) if step > 0 else 0.0
            result[first + i] = float(np.float32(quotient).astype(ml_dtypes.float4_e2m1fn)) * s * float(unit)
    return result


def test_moe_of_nvfp4_operands() -> None:
    moe = load_operator("moe")
    shape = moe.shape(tokens=5, hidden=50, inter=36, topk=2, experts=3, align=16, dtype="nvfp4")
    inputs = moe.inputs(shape, np.random.default_rng(6))
    assert inputs["W_gate_up"].dtype == inputs["W_down"].dtype == ml_dtypes.float4_e2m1fn
    assert inputs["W_gate_up_scale"].shape == (3, 2, 36, 4)
    x = {key: value.astype(np.float64) for key, value in inputs.items()}
    out = moe.reference(shape, **inputs)["O"]

    def weight(name: str, *at: int) -> np.ndarray:
        scales = np.repeat(x[f"{name}_scale"][at], 16)[: x[name].shape[-1]]
        return np.asarray(x[name][at] * scales * x[f"{name}_global"][at[:-1]])

    for t in range(5):
        scores = [1.0 / (1.0 + math.exp(-v)) for v in x["Logits"][t].tolist()]
        experts = _choose(scores, x["Bias"].tolist(), 2, 1, 1)
        total = math.fsum(scores[e] for e in experts)
        token = _through_nvfp4(x["X"][t], float(x["X_scale"][0]))
        want = np.zeros(50)
        for e in experts:
            g, u = (np.array([weight("W_gate_up", e, p, i) @ token for i in range(36)]) for p in range(2))
            h = _through_nvfp4(g / (1.0 + np.exp(-g)) * u, float(x["H_scale"][0]))
            want += scores[e] / total * 2.5 * np.array([weight("W_down", e, i) @ h for i in range(50)])
        np.testing.assert_allclose(out[t], want, rtol=1e-9, atol=1e-12)


def test_adversarial_loads_leave_experts_empty() -> None:
    moe = load_operator("moe")
    shape = moe.shape(**SMALL["moe"])
    used = {}
    for name, make in moe.adversarial.items():
        inputs = make(shape, np.random.default_rng(7))
        used[name] = len(np.unique(gate(inputs["Logits"], inputs["Bias"], shape["topk"])[0]))
    assert used["same_experts"] == shape["topk"]
    assert used["empty_experts"] == shape["experts"] // 2
