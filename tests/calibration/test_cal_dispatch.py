"""Rules of the kernels that libraries launch by shape: what rows may take, and its effect."""

import json

import numpy as np
import pandas as pd
import pytest

from foretile.calibration.dispatch import RULES, Rule, engine_of, launched, rule_for
from foretile.calibration.predictions import allowed, batches, launchable, times
from foretile.calibration.problem import Problem
from foretile.calibration.sample import load_sample
from foretile.hwmodels import load_chip
from foretile.kernels.operator import load_operator

SGLANG = "sglang_sgl_kernel_fp8_scaled_mm"


def _rows(source: str, device: str = "h200-sxm", count: int = 24) -> pd.DataFrame:
    table = load_sample(device, "gemm.fp8")
    return table[table["kernel_source"] == source].head(count)


def test_engines_tell_chips_apart_that_share_an_instruction() -> None:
    names = ("h200-sxm", "b200-sxm", "l40s", "rtx-pro-6000")
    assert len({engine_of(load_chip(name)) for name in names}) == 4


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.operator} {r.kernels.split()[0]} {r.engine}")
def test_every_choice_of_a_rule_is_in_the_space(rule: Rule) -> None:
    operator = load_operator(rule.operator)
    sizes = {"rows": 64, "cols": 256} if rule.operator == "quantize" else {"m": 64, "n": 256, "k": 512}
    space = operator.configs(operator.shape(**sizes))
    for _, held in rule.choices:
        assert any(all(c.get(name) == value for name, value in held.items()) for c in space), held


def test_rows_take_the_first_choice_whose_condition_holds() -> None:
    rule = rule_for("gemm_fp8", SGLANG, "wgmma")
    assert rule is not None
    operator = load_operator("gemm_fp8")
    shape = operator.shape(m=1, n=4096, k=4096)
    space = operator.configs(shape)
    m = np.array([1.0, 16.0, 64.0, 100.0, 5000.0])
    found = launched(rule, space, {**shape, "m": m}, len(m))
    sides = [
        {(c["block_m"], c["block_n"]) for c, w in zip(space, column, strict=True) if w} for column in found.T
    ]
    assert sides == [{(16, 64)}, {(16, 64)}, {(64, 64)}, {(64, 128)}, {(128, 128)}]
    # What the space does not have leaves the best of the rest.
    assert launched(rule, space[:1], {**shape, "m": m}, len(m)).all()


def test_sources_without_a_rule_take_the_best() -> None:
    chip = load_chip("h200-sxm")
    for batch in batches(_rows("torch_flow"), chip):
        assert batch.library == ""
        assert launchable(chip, batch, allowed(chip, batch)).all()


def test_a_rule_never_makes_a_row_faster() -> None:
    chip = load_chip("h200-sxm")
    for batch in batches(_rows(SGLANG), chip):
        assert batch.library == SGLANG
        configs = allowed(chip, batch)
        bound = times(chip, batch, configs).min(axis=0)
        batch.library = ""
        assert np.all(np.isfinite(bound))
        assert np.all(bound >= times(chip, batch, configs).min(axis=0))


def test_fits_see_the_times_of_what_is_launched() -> None:
    chip = load_chip("h200-sxm")
    parts = batches(_rows(SGLANG), chip)
    problem = Problem(parts, lambda _: chip)
    problem.refresh(np.zeros(0))
    want = np.concatenate([times(chip, p, allowed(chip, p)).min(axis=0) for p in parts])
    np.testing.assert_allclose(np.exp(problem.residuals(np.zeros(0))) * problem.latency, want)


def test_rows_whose_scale_is_found_say_so() -> None:
    table = load_sample("h200-sxm", "gemm.fp8")
    table = table[table["operator"] == "gemm_fp8"]
    found = table["shape"].map(lambda text: json.loads(text)["find_scale"])
    assert set(table.loc[found, "kernel_source"]) == {"torch_flow"}
