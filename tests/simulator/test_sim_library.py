"""Every complete chip predicts every operator of the library and the deepseek-v3 suite, within its bounds.

A search asks the same of every configuration, so the likeliest one that fits stands for them here; the
search and the event engine are asked for one operator of every chip, all operators in turn.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from simcases import Case, first_fitting

from foretile.hwmodels import list_chips, load_chip
from foretile.kernels.operator import load_operator, operator_names
from foretile.report.suite import cases as suite_cases
from foretile.report.suite import load_suite
from foretile.simulator import predictor
from foretile.simulator.launches import frozen, static_part
from foretile.simulator.machine import RESOURCES
from foretile.simulator.prediction import Prediction
from foretile.simulator.predictor import target
from foretile.simulator.search import evaluate_config, stack
from foretile.simulator.types import native

CHIPS = list_chips()
OPERATORS = operator_names()
PARTS = {"launch", "ramp", "compute", "scratchpad", "l2", "dram", "wave_tail", "epilogue", "exposed_latency"}


@cache
def likeliest(chip_id: str) -> tuple[Case, ...]:
    """One case an operator: its example, in its default types or those of their width that the chip takes."""
    chip = load_chip(chip_id)
    found = []
    for name in OPERATORS:
        operator = load_operator(name)
        given, note = native(operator, dict(operator.example), chip)
        assert bool(note) == (given != operator.example), name
        if "bf16" in chip.matrix.flop_per_cycle:
            assert not note, name
        found.append(first_fitting(operator, operator.shape(**given), chip))
    return tuple(found)


def check(p: Prediction, case: Case) -> None:
    """What holds for every prediction: physical bounds, a breakdown that sums, shares and intervals."""
    assert p.time_s >= case.floor_s()
    assert p.time_s > len(case.workloads()) * case.machine.launch_s
    assert sum(p.breakdown_s.values()) == pytest.approx(p.time_s, rel=1e-9)
    assert set(p.breakdown_s) <= PARTS
    assert all(seconds >= 0 for seconds in p.breakdown_s.values())
    assert all(0 <= share <= 1 for share in p.utilisation.values())
    assert 0 < p.interval_s[0] < p.time_s < p.interval_s[1] < np.inf
    assert 1 <= p.occupancy["active_cores"] <= case.machine.cores


@pytest.mark.parametrize("name", CHIPS)
def test_a_chip_predicts_the_whole_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The slopes behind an interval are eleven more estimates, asked for below.
    monkeypatch.setattr(predictor, "gains", lambda *given: dict.fromkeys(RESOURCES, np.zeros(1)))
    for case in likeliest(name):
        p = predictor.predict(case.operator, case.shape, case.chip, case.config, model="cost_model")
        check(p, case)


@pytest.mark.parametrize("name", CHIPS)
def test_more_of_a_resource_is_never_slower(name: str) -> None:
    """Of each operator in turn; over the catalogue every operator meets every resource."""
    resources = tuple(RESOURCES)
    for place, case in enumerate(likeliest(name), CHIPS.index(name)):
        resource = resources[place % len(resources)]
        more = case.machine.improved(resource, 1.5)
        assert case.modelled_s(more) <= case.modelled_s() * (1 + 1e-9), (resource, case)


@pytest.mark.parametrize("name", CHIPS)
def test_a_chip_predicts_the_deepseek_v3_suite(name: str) -> None:
    """All its shapes; those that share a program are evaluated together."""
    chip = load_chip(name)
    groups: dict[Any, list[Case]] = {}
    for wanted in suite_cases(load_suite("deepseek-v3")):
        operator = load_operator(wanted.entry.operator)
        given, _ = native(operator, dict(wanted.shape), chip)
        shape = operator.shape(**given)
        key = (operator.name, frozen(static_part(operator, shape)))
        if key not in groups:
            groups[key] = [first_fitting(operator, shape, chip)]
        else:
            groups[key].append(Case(operator, shape, groups[key][0].config, chip))
    for alike in groups.values():
        first = alike[0]
        m = target(first.operator, first.shape, chip).machine
        together = stack(first.operator, [case.shape for case in alike])
        times_s = evaluate_config(first.operator, together, first.config, m).time_s
        for case, time_s in zip(alike, times_s, strict=True):
            assert case.floor_s() <= time_s < 1.0, case


@pytest.mark.parametrize("name", CHIPS)
def test_a_search_and_the_engine_keep_within_the_bounds(name: str) -> None:
    """And say the same when asked again, bit for bit."""
    case = likeliest(name)[CHIPS.index(name) % len(OPERATORS)]
    p, again = (predictor.predict(case.operator, case.shape, case.chip) for _ in range(2))
    check(p, Case(case.operator, case.shape, p.config, case.chip))
    assert json.dumps(p.to_json()) == json.dumps(again.to_json())
