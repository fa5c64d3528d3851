"""What must hold for every operator, shape, configuration and chip."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from simcases import Case, cases, sample

from foretile.hwmodels import load_chip
from foretile.kernels.dtypes import dtype
from foretile.kernels.expr import Binary, Load, evaluate, walk
from foretile.kernels.operator import load_operator
from foretile.simulator.machine import RESOURCES
from foretile.simulator.prediction import Prediction
from foretile.simulator.predictor import predict
from foretile.simulator.search import play

steady = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
MATRIX = ("gemm", "attention_prefill", "attention_decode")


def total(case: Case, field: str) -> float:
    return sum(float(np.ravel(getattr(p, field))[0]) for p in case.plans())


def dram_bytes(case: Case) -> float:
    return sum(
        float(np.ravel(p.traffic.dram_read_bytes)[0] + np.ravel(p.traffic.dram_write_bytes)[0])
        for p in case.plans()
    )


@cache
def drawn(count: int, seed: int) -> tuple[Case, ...]:
    return tuple(sample(count, seed))


# -- physical bounds ---------------------------------------------------------------------------


@settings(steady, max_examples=80)
@given(case=cases(operators=MATRIX))
def test_no_time_is_below_the_flops_at_peak_rate(case: Case) -> None:
    dtype = next(w.dtype for w in case.workloads() if w.dtype)
    bound_s = float(case.operator.flops(case.shape)) / case.machine.peak(dtype)
    assert case.modelled_s() >= bound_s
    assert case.played_s() >= bound_s


@settings(steady, max_examples=120)
@given(case=cases())
def test_no_time_is_below_the_compulsory_bytes_at_peak_bandwidth(case: Case) -> None:
    bound_s = float(case.operator.min_bytes(case.shape)) / case.machine.dram_bytes_per_s
    assert case.modelled_s() >= bound_s
    assert case.played_s() >= bound_s


@settings(steady, max_examples=60)
@given(case=cases())
def test_a_kernel_never_costs_less_than_its_launches(case: Case) -> None:
    floor_s = len(case.workloads()) * case.machine.launch_s
    assert case.modelled_s() > floor_s
    assert case.played_s() > floor_s


# -- conservation ------------------------------------------------------------------------------


@settings(steady, max_examples=150)
@given(case=cases())
def test_dram_carries_at_least_the_compulsory_bytes(case: Case) -> None:
    # Blocks of unequal length are sampled, which may miss a few tenths of a per cent of their tiles;
    # of indices taken apart by division (a convolution's, a scale's) the edges are averaged.
    workloads = case.workloads()
    mins = [m for w in workloads for a in w.accesses for m in a.region.mins]
    divided = any(isinstance(x, Binary) and x.op in ("floordiv", "mod") for m in mins for x in walk(m))
    # Where data decide which rows are touched, a mean stands for them: there is no exact count.
    assume(case.operator.tensors is None and not any(isinstance(x, Load) for m in mins for x in walk(m)))
    slack = 0.05 if divided else 0.01 if any(w.sampled for w in workloads) else 1e-6
    least = float(case.operator.min_bytes(case.shape)) * (1 - slack)
    # Integers that only steer cost nothing here (see docs/deviations.md), and half of a packed byte
    # counts as a whole one.
    read = {a.tensor for w in workloads for a in w.accesses}
    steering = {p.name: p for w in workloads for p in w.program.params if p.name not in read}
    free = sum(
        float(np.prod([np.max(evaluate(e, case.shape)) for e in p.shape])) * dtype(p.dtype).bytes
        for p in steering.values()
    )
    assert dram_bytes(case) >= least - free - 1


def test_dram_carries_the_compulsory_bytes_when_keys_are_split_finer_than_their_tiles() -> None:
    """64 parts of 16 key tiles: most blocks have none, and the tiles must not be lost with them."""
    operator = load_operator("attention_decode")
    shape = operator.shape(batch=16, kv_len=1024, heads=16, head_dim=64)
    config = operator.config(shape, num_split=64, block_h=16, block_n=64)
    for case in drawn(20, 3):
        split = Case(operator, shape, config, case.chip)
        assert dram_bytes(split) >= operator.min_bytes(shape)
        assert total(split, "tile_flops") >= operator.flops(shape)


@settings(steady, max_examples=80)
@given(case=cases(operators=MATRIX))
def test_executed_flops_are_the_exact_ones_plus_padding(case: Case) -> None:
    exact, tile, executed = (
        float(case.operator.flops(case.shape)),
        total(case, "tile_flops"),
        total(case, "executed_flops"),
    )
    assert executed >= tile * (1 - 1e-9)
    assert tile >= exact * (1 - 1e-9)


@settings(steady, max_examples=60)
@given(
    case=cases(operators=("gemm",)),
    tiles=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 16)),
)
def test_a_shape_made_of_whole_tiles_has_no_tile_overhead(case: Case, tiles: tuple[int, int, int]) -> None:
    c = case.config
    shape = case.operator.shape(
        **{**case.shape, "m": tiles[0] * c["block_m"], "n": tiles[1] * c["block_n"]}
        | {"k": tiles[2] * c["block_k"] * c["split_k"]}
    )
    whole = Case(case.operator, shape, case.config, case.chip)
    # Blocks of a stream differ by an iteration, and a sample of them stands for all.
    rel = 0.05 if c["variant"] == "stream_k" else 1e-9
    assert total(whole, "tile_flops") == pytest.approx(whole.operator.flops(shape), rel=rel)


@settings(steady, max_examples=25)
@given(case=cases(operators=MATRIX))
def test_the_overheads_are_named_and_add_up_to_the_executed_flops(case: Case) -> None:
    p = predict(case.operator, case.shape, case.chip, case.config)
    runs = play(case.operator, case.shape, case.config, case.machine).runs
    executed = sum(float(np.ravel(run.plan.executed_flops)[0]) for run in runs)
    assert set(p.overhead_flops) == {"instruction_padding", "tile_padding_and_masking"}
    assert p.flops + sum(p.overhead_flops.values()) == pytest.approx(executed, rel=1e-9)


# -- more of a resource ------------------------------------------------------------------------


@pytest.mark.parametrize("resource", RESOURCES)
def test_the_cost_model_is_never_slower_with_more_of_a_resource(resource: str) -> None:
    for number, case in enumerate(drawn(60, 5)):
        base_s = case.modelled_s()
        factor = (1.1, 1.5, 2.0, 4.0)[number % 4]
        assert case.modelled_s(case.machine.improved(resource, factor)) <= base_s * (1 + 1e-9), (
            resource,
            case,
        )


@pytest.mark.parametrize("resource", RESOURCES)
def test_some_time_depends_on_every_resource(resource: str) -> None:
    """A resource that nothing uses would pass the test above for the wrong reason."""
    if resource == "atomic":
        pool = tuple(c for c in sample(120, 9, ("gemm",)) if c.config["split_k"] > 1)
    elif resource == "l2_capacity":
        pool = (_beyond_l2(),)
    else:
        pool = drawn(60, 5)
    assert any(
        case.modelled_s(case.machine.improved(resource, 4.0)) < case.modelled_s() * 0.999 for case in pool
    )


def _beyond_l2() -> Case:
    """A product of narrow tiles without swizzle: a wave touches more than the L2 holds, DRAM binds."""
    operator = load_operator("gemm")
    shape = operator.shape(m=65536, n=65536, k=2048)
    config = operator.config(shape, variant="tile", block_m=16, block_n=64, swizzle=0)
    return Case(operator, shape, config, load_chip("a100-sxm4-80gb"))


def test_the_engine_is_hardly_ever_slower_with_more_of_a_resource() -> None:
    """First-in first-out service has scheduling anomalies, like any list schedule: rare and small."""
    ratios: list[float] = []
    for number, case in enumerate(drawn(40, 5)):
        base_s = case.played_s()
        factor = (1.1, 1.5, 2.0, 4.0)[number % 4]
        ratios += [case.played_s(case.machine.improved(r, factor)) / base_s for r in RESOURCES]
    worse = np.asarray(ratios)
    assert np.mean(worse > 1.01) < 0.02
    assert worse.max() < 1.20


# -- one value, always the same ----------------------------------------------------------------


@settings(steady, max_examples=25)
@given(case=cases(), model=st.sampled_from(["engine", "cost_model"]))
def test_a_prediction_is_consistent_and_round_trips(case: Case, model: str) -> None:
    p = predict(case.operator, case.shape, case.chip, case.config, model)  # type: ignore[arg-type]
    assert sum(p.breakdown_s.values()) == pytest.approx(p.time_s, rel=1e-9)
    assert all(seconds >= 0 for seconds in p.breakdown_s.values())
    assert all(0 <= share <= 1 for share in p.utilisation.values())
    low, high = p.interval_s
    assert 0 < low < p.time_s < high
    assert p.bound in p.utilisation or p.bound in ("latency", "launch")
    assert 1 <= p.occupancy["active_cores"] <= case.machine.cores
    assert p.model["kind"] == model
    assert Prediction.from_json(json.loads(json.dumps(p.to_json()))) == p
    again = predict(case.operator, case.shape, case.chip, case.config, model)  # type: ignore[arg-type]
    assert json.dumps(again.to_json()) == json.dumps(p.to_json())


def test_the_configuration_search_is_deterministic() -> None:
    operator = load_operator("gemm")
    for case in drawn(4, 8):
        shape = operator.shape(m=1000, n=1536, k=777)
        first, second = (predict(operator, shape, case.chip) for _ in range(2))
        assert first == second
