"""What the L2 holds when a kernel starts, and how its heat and its engines get in each other's way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretile.hwmodels import load_chip
from foretile.hwmodels.quantity import Quantity
from foretile.hwmodels.schema import KernelProfile
from foretile.kernels.operator import load_operator
from foretile.simulator.conditions import COLD, REPEATED, Conditions, resident
from foretile.simulator.cost import core_slowdown, overlapped
from foretile.simulator.launches import dynamic_part, workloads
from foretile.simulator.machine import core_numbers, for_kernels, machine
from foretile.simulator.plan import plan
from foretile.simulator.search import evaluate_config, play

MB = 1e6


def test_a_cold_cache_holds_nothing() -> None:
    assert resident({"A": np.array([[MB]])}, COLD, 50 * MB) == {}


@pytest.mark.parametrize(
    ("copies", "weights", "share"), [(1, 40, 1), (1, 60, 0), (5, 9, 1), (5, 20, 0), (6, 10, 0)]
)
def test_weights_stay_if_all_their_copies_fit(copies: int, weights: int, share: int) -> None:
    held = resident({"B": np.array([[weights * MB]])}, Conditions({"B": copies}), 50 * MB)
    assert held["B"].item() == share


def test_what_is_used_in_every_run_outlives_what_rotates() -> None:
    sizes = {"A": np.array([[10 * MB]]), "B": np.array([[30 * MB]])}
    held = resident(sizes, Conditions({"B": 6}), 50 * MB)
    assert held["A"].item() == 1.0
    assert held["B"].item() == 0.0


@pytest.mark.parametrize(("other", "share"), [(10, 1), (30, 0)])
def test_what_other_launches_read_goes_by_too(other: int, share: int) -> None:
    state = Conditions({}, passing={"A": 999 * MB, "B": other * MB})
    held = resident({"A": np.array([[30 * MB]])}, state, 50 * MB)
    assert set(held) == {"A"}
    assert held["A"].item() == share


@given(st.floats(0.1, 200), st.floats(0.1, 200), st.integers(1, 6), st.floats(1, 200))
def test_a_larger_cache_never_holds_less(a: float, b: float, copies: int, capacity: float) -> None:
    sizes = {"A": np.array([[a]]), "B": np.array([[b]])}
    small, large = (resident(sizes, Conditions({"B": copies}), c) for c in (capacity, 1.5 * capacity))
    assert all((large[n] >= small[n]).all() for n in sizes)
    assert all(((h >= 0) & (h <= 1)).all() for h in (*small.values(), *large.values()))


@pytest.mark.parametrize("chip", ["l40s", "h100", "a100"])
def test_a_repeated_kernel_is_never_slower_and_small_weights_come_from_the_cache(chip: str) -> None:
    gemm, m = load_operator("gemm"), machine(load_chip(chip, calibrated=False))
    shape = gemm.shape(m=16, n=2048, k=2048)
    config = gemm.config(shape, block_m=16, block_n=64, block_k=64, num_stages=4, threads=128, swizzle=0)
    cold, warm = (play(gemm, shape, config, m, state) for state in (COLD, REPEATED))
    assert warm.time_s < cold.time_s
    assert float(warm.runs[0].plan.traffic.dram_read_bytes.item()) == 0.0
    again = Conditions({"B": 1000})
    assert play(gemm, shape, config, m, again).time_s <= cold.time_s


def test_conditions_may_differ_by_row() -> None:
    gemm, m = load_operator("gemm"), machine(load_chip("l40s", calibrated=False))
    shape = {**gemm.shape(m=16, n=2048, k=2048), "m": np.array([16.0, 16.0])}
    config = gemm.config(gemm.shape(m=16, n=2048, k=2048), block_m=16, block_n=64, block_k=64, threads=128)
    both = evaluate_config(gemm, shape, config, m, Conditions({"B": np.array([1.0, 1000.0])})).time_s
    assert both[0] < both[1]


def test_more_runs_in_a_row_and_busier_operands_lower_the_clock() -> None:
    gemm, m = load_operator("gemm"), machine(load_chip("h100", calibrated=False))
    shape = gemm.shape(m=8192, n=8192, k=8192)
    config = gemm.config(shape)

    def time_s(**state: float) -> float:
        return float(evaluate_config(gemm, shape, config, m, Conditions(**state)).time_s[0])

    assert time_s(runs=1) < time_s(runs=10) < time_s(runs=100)
    assert time_s(runs=100, switching=0.0) < time_s(runs=100, switching=0.4) < time_s(runs=100)


def test_matrix_engines_that_wait_for_another_let_the_clock_sink_less() -> None:
    """Twice as long busy exponentials halve the matrix engines' duty, and with it the clock's fall."""
    operator = load_operator("gemm")
    shape = operator.shape(m=8192, n=8192, k=8192)
    (workload,) = workloads(operator, shape, operator.configs(shape)[0], machine(load_chip("h200-sxm")))
    dense = plan(workload, dynamic_part(operator, shape))
    busiest = max(float(np.max(seconds)) for seconds in dense.core_busy.values())
    waiting = replace(dense, core_busy={**dense.core_busy, "special": np.full((1, 1), 2.0 * busiest)})
    duty = float(dense.core_busy["matrix"][0, 0]) / busiest
    fall, less = (1.0 - 1.0 / float(core_slowdown(p)[0, 0]) for p in (dense, waiting))
    assert fall > 0.0
    assert 0.5 < duty <= 1.0
    assert less == pytest.approx(fall / 2)


busy_times = st.dictionaries(st.sampled_from(["matrix", "dram", "l2"]), st.floats(0, 1), min_size=1)


@given(busy_times, st.floats(1, 3), st.floats(2, 20))
def test_overlap_costs_at_most_a_sum_and_never_gains(
    busy: dict[str, float], slack: float, order: float
) -> None:
    seconds = {k: np.array([[v]]) for k, v in busy.items()}
    time = np.array([[max(1e-6, slack * max(busy.values()))]])
    found = overlapped(time, seconds, order)
    assert (found >= time).all()
    assert (found <= time + sum(seconds.values())).all()
    assert (overlapped(time, seconds, np.inf) == time).all()


@given(busy_times, st.floats(2, 20), st.floats(1, 2))
def test_a_faster_engine_never_makes_it_longer(busy: dict[str, float], order: float, factor: float) -> None:
    course = max(1e-6, max(busy.values()))
    for engine in busy:
        faster = {**busy, engine: busy[engine] / factor}
        least = max(1e-6, max(faster.values()))
        before = overlapped(np.array([[course]]), {k: np.array([[v]]) for k, v in busy.items()}, order)
        after = overlapped(np.array([[least]]), {k: np.array([[v]]) for k, v in faster.items()}, order)
        assert after.item() <= before.item() * (1 + 1e-9)


def _profile(compute: float, memory: float, launch: float) -> KernelProfile:
    q = [Quantity[float](value=v, source="a test", confidence="measured") for v in (compute, memory, launch)]
    return KernelProfile(core_fraction=q[0], memory_fraction=q[1], launch_fraction=q[2])


def test_a_librarys_kernels_never_beat_the_chip() -> None:
    m = machine(load_chip("h200", calibrated=False))
    fast = for_kernels(m, _profile(50.0, 50.0, 1.0))
    reached = {k: v * fast.pace for k, v in fast.matrix_flop_per_s.items()}
    assert all(v <= fast.matrix_peak_flop_per_s[k] * (1 + 1e-12) for k, v in reached.items())
    assert fast.dram_bytes_per_s * fast.dram_read_fraction <= m.dram_bytes_per_s * (1 + 1e-12)
    slow = for_kernels(m, _profile(1.0, 1.0, 5.0))
    assert slow.launch_s == pytest.approx(5.0 * m.launch_s)


def test_lowering_reads_nothing_outside_of_the_cores() -> None:
    """The cache of lowered programs is shared by machines that differ outside only."""
    from foretile.simulator.launches import _programs, frozen, static_part
    from foretile.simulator.lowering import lower

    m = machine(load_chip("h200", calibrated=False))
    other = replace(
        m,
        dram_bytes_per_s=m.dram_bytes_per_s * 3,
        l2_chip_bytes_per_s=m.l2_chip_bytes_per_s * 2,
        port_bytes_per_s=m.port_bytes_per_s * 2,
        l2_latency_s=m.l2_latency_s * 2,
        dram_latency_s=m.dram_latency_s * 2,
        bulk_copy_s=m.bulk_copy_s * 2,
        l2_bytes=m.l2_bytes * 2,
        l2_kept_bytes=m.l2_kept_bytes * 2,
        launch_s=1.0,
        store_cost=9.0,
        overlap=3.0,
        settle_s=1.0,
        atomic_chip_bytes_per_s=1e9,
    )
    assert core_numbers(m) == core_numbers(other)
    for name in ("gemm", "attention_prefill", "attention_decode", "softmax", "mla_decode"):
        operator = load_operator(name)
        shape = operator.shape(**operator.example)
        config = operator.config(shape)
        for program in _programs(operator, frozen(static_part(operator, shape)), frozen(config)):
            assert replace(lower(program, other), machine=m) == lower(program, m)


def test_longer_set_up_is_paid_by_every_round_of_blocks() -> None:
    """One round costs what the launch does; each further round pays the longer ramp again."""
    chip = load_chip("h100-sxm5-80gb")
    operator = load_operator("mla_decode")
    config = {"block_h": 64, "block_n": 64, "block_v": 512, "num_stages": 2, "threads": 256, "num_split": 1}
    quick, slow = (for_kernels(machine(chip), _profile(1.0, 1.0, f)) for f in (1.0, 5.0))
    longer = []
    for batch in (132, 132 * 8):
        shape = operator.shape(batch=batch, kv_len=64, heads=64)
        times = [float(evaluate_config(operator, shape, config, m).time_s[0]) for m in (quick, slow)]
        longer.append(times[1] - times[0])
    # Part of it hides behind what limits the kernel anyway.
    assert longer[0] == pytest.approx(4.0 * (quick.launch_s + quick.ramp_s), rel=0.2)
    assert 0.25 < (longer[1] - longer[0]) / (7 * 4.0 * quick.ramp_s) < 1.1
