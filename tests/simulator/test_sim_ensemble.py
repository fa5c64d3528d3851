"""Many configurations evaluated together are what each is alone, on one machine and on several at once."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from foretile.hwmodels import load_chip
from foretile.kernels.operator import Config, Operator, Shape, load_operator
from foretile.simulator.alternatives import alternatives
from foretile.simulator.conditions import REPEATED, Conditions
from foretile.simulator.ensemble import Case, Ensemble, Store
from foretile.simulator.launches import lowered
from foretile.simulator.machine import RATES, Machine, SimulationError
from foretile.simulator.plan import fill, traffic_of
from foretile.simulator.predictor import machine_of
from foretile.simulator.search import bound, evaluate_config, for_machine

SHAPES: dict[str, list[dict[str, Any]]] = {
    "gemm": [{"m": 300, "n": 4096, "k": 512}, {"m": 8192, "n": 1024, "k": 7168}],
    "attention_prefill": [
        {"batch": 2, "seq": 1000, "heads": 16, "head_dim": 128},
        {"batch": 1, "seq": 4096, "heads": 8, "head_dim": 64},
    ],
    "attention_decode": [{"batch": 40, "kv_len": 3000, "heads": 32, "kv_heads": 8}],
    "moe": [
        {"tokens": 200, "hidden": 1024, "inter": 512, "topk": 4, "experts": 16},
        {"tokens": 60, "hidden": 2048, "inter": 768, "topk": 8, "experts": 32},
    ],
    "softmax": [{"rows": 4096, "cols": 1024}],
}


@cache
def base() -> Machine:
    return machine_of(load_chip("h100-sxm5-80gb"))


@cache
def others() -> list[Machine]:
    """Machines that differ from :func:`base` in rates, in set-up, in latencies and in their cores."""
    m = base()
    return [
        replace(m, dram_bytes_per_s=0.7 * m.dram_bytes_per_s, port_bytes_per_s=1.3 * m.port_bytes_per_s),
        replace(m, setup_s=2e-6, launch_s=2.0 * m.launch_s, pace=0.8),
        replace(m, l2_latency_s=2.0 * m.l2_latency_s, store_cost=3.0, overlap=4.0, settle_s=1e-4),
        replace(m, scratchpad_bytes_per_s=0.5 * m.scratchpad_bytes_per_s, block_s=1e-6),
    ]


def fits(operator: Operator, shape: Shape, config: Config) -> bool:
    try:
        return bool(lowered(operator, shape, config, base()))
    except SimulationError:
        return False


@cache
def cases(name: str) -> list[Case]:
    """A few configurations of every shape, the dynamic parameters in columns of three rows."""
    operator = load_operator(name)
    found = []
    for given in SHAPES[name]:
        shape = operator.shape(**given)
        first = next(p.name for p in operator.params if p.dynamic)
        columns = {p.name: np.full(3, float(shape[p.name])) for p in operator.params if p.dynamic}
        columns[first] = np.array([1.0, 0.5, 2.0]) * columns[first]
        rows = {**shape, **columns}
        conditions = Conditions({}, np.array([9.0, 30.0, 300.0]), np.array([1.0, 0.4, 1.0]))
        configs = operator.configs(shape)
        some = [for_machine(c, base()) for c in configs[:: max(1, len(configs) // 6)]]
        some = [c for c in some if fits(operator, shape, c)]
        found += [Case(operator, rows, config, conditions, 3) for config in some]
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_together_as_alone(name: str) -> None:
    ensemble = Ensemble(cases(name))
    machines = [base(), *others()]
    for seconds, case in zip(ensemble.time_s(machines), ensemble.cases, strict=True):
        assert seconds.shape == (len(machines), case.count)
        for mine, machine in zip(seconds, machines, strict=True):
            alone = evaluate_config(case.operator, case.shape, case.config, machine, case.conditions).time_s
            np.testing.assert_allclose(mine, alone, rtol=1e-12)


def test_the_order_of_the_machines_asked_for_does_not_matter() -> None:
    """What is kept of one machine is never another's."""
    machines = [base(), *others()]
    ensemble, store = Ensemble(cases("moe")), Store()
    together = ensemble.time_s(machines)
    shared = [Ensemble(ensemble.cases[::2], store), Ensemble(ensemble.cases, store)]
    for i in (3, 0, 4, 1, 2, 0):
        for e, step in zip(shared, (2, 1), strict=True):
            for alone, seconds in zip(e.time_s([machines[i]]), together[::step], strict=True):
                np.testing.assert_allclose(alone[0], seconds[i], rtol=1e-12)


def test_launches_of_like_structure_are_one() -> None:
    """Tile sizes and static shapes of a product are numbers, not another structure."""
    ensemble = Ensemble(cases("moe"))
    ensemble.time_s([base()])
    launches = sum(len(lowered(c.operator, c.shape, c.config, base())) for c in ensemble.cases)
    assert 0 < len(ensemble._joined) < launches / 2


@pytest.mark.parametrize("name", SHAPES)
def test_traffic_depends_on_no_rate(name: str) -> None:
    """Else what is kept for machines that differ in rates only would be another machine's."""
    first = cases(name)[0]
    m = base()
    (some,) = bound(first.operator, first.shape, REPEATED)
    for workload in lowered(first.operator, first.shape, first.config, m):
        filled = fill(workload, some.dims, some.tensors)
        moved = traffic_of(workload, filled, REPEATED)
        for rate in sorted(RATES):
            other = replace(workload, machine=replace(m, **{rate: 1.7 * getattr(m, rate) + 1e-9}))
            assert repr(traffic_of(other, filled, REPEATED)) == repr(moved), rate


def test_machines_with_other_cores_are_no_alternatives() -> None:
    m = base()
    with pytest.raises(ValueError, match="differ in cores"):
        alternatives([m, replace(m, cores=m.cores // 2)])
    with pytest.raises(ValueError, match="differ in l2_parts"):
        alternatives([m, replace(m, l2_parts=m.l2_parts + 1)])
