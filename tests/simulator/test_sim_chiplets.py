"""Dies with an L2 each in front of a cache beside the memory: what crosses between, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foretile.hwmodels import list_chips, load_chip
from foretile.kernels.operator import load_operator
from foretile.simulator.launches import dynamic_part, workloads
from foretile.simulator.machine import Machine
from foretile.simulator.plan import Plan, plan
from foretile.simulator.predictor import machine_of

CHIP = "amd-mi300x"
TILE = {"variant": "tile", "block_m": 128, "block_n": 128, "block_k": 64, "num_stages": 2, "threads": 256}
SIDE = 8192


def planned(m: Machine, swizzle: int = 8) -> Plan:
    operator = load_operator("gemm")
    full = operator.shape(m=SIDE, n=SIDE, k=SIDE)
    (workload,) = workloads(operator, full, operator.config(full, **TILE, swizzle=swizzle), m)
    return plan(workload, dynamic_part(operator, full))


def fabric(p: Plan) -> float:
    return float(np.max(p.traffic.fabric_bytes))


def l2_s(p: Plan) -> float:
    return float(np.max(p.chip_busy["l2"]))


@pytest.mark.parametrize("name", [c for c in list_chips() if load_chip(c).chiplets is None])
def test_chips_of_one_l2_have_nothing_to_cross(name: str) -> None:
    m = machine_of(load_chip(name))
    assert (m.dies, m.fabric_cost) == (1, 0.0)


def test_what_crosses_lies_between_the_tensors_and_all_reads() -> None:
    p = planned(machine_of(load_chip(CHIP)))
    tensors = 3 * SIDE * SIDE * 2
    assert tensors < fabric(p) < float(np.max(p.traffic.l2_read_bytes + p.traffic.l2_write_bytes))


def test_every_die_fetches_its_own_copy() -> None:
    """Eight dies that work on one row of tiles side by side read its A eight times: one die would once."""
    m = machine_of(load_chip(CHIP))
    crossed = [fabric(planned(replace(m, dies=n))) for n in (2, 4, 8, 16)]
    assert crossed == sorted(crossed)
    assert crossed[-1] > 1.5 * crossed[0]


def test_a_slower_cache_beside_the_memory_costs_time_and_a_fast_one_none() -> None:
    m = machine_of(load_chip(CHIP))
    fast, slow = (planned(replace(m, fabric_cost=cost)) for cost in (1e-6, 50.0))
    assert l2_s(fast) == pytest.approx(
        float(np.max(fast.traffic.l2_read_bytes + fast.traffic.l2_write_bytes)) / m.l2_chip_bytes_per_s
    )
    assert l2_s(slow) == pytest.approx(fabric(slow) * 50.0 / m.l2_chip_bytes_per_s)


def test_dram_bytes_are_those_of_one_l2() -> None:
    m = machine_of(load_chip(CHIP))
    one, eight = planned(replace(m, dies=1, fabric_cost=0.0)), planned(m)
    assert np.max(one.traffic.dram_read_bytes) == np.max(eight.traffic.dram_read_bytes)
    for i, access in enumerate(one.workload.accesses):
        if access.direction == "read":
            crossing = [float(np.max(t.traffic.l2_bytes[i] * t.traffic.dram_share[i])) for t in (one, eight)]
            assert crossing[0] == pytest.approx(crossing[1])


def test_a_larger_l2_on_the_dies_lets_less_cross() -> None:
    m = machine_of(load_chip(CHIP))
    small, large = (planned(replace(m, die_bytes=x)) for x in (1e6, 1e9))
    assert fabric(large) < fabric(small)
