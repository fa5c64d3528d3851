"""The event engine: small programs worked out by hand, and jumps that change nothing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from simcases import sample

from foretile.hwmodels import load_chip
from foretile.kernels.operator import load_operator
from foretile.simulator import engine
from foretile.simulator.engine import Core, Run
from foretile.simulator.predictor import machine_of
from foretile.simulator.program import Code, Instruction, LoadSpec, LoopSpec
from foretile.simulator.search import Played, for_machine, play

TILE = {
    "variant": "tile",
    "block_m": 128,
    "block_n": 128,
    "block_k": 64,
    "num_stages": 3,
    "threads": 256,
    "swizzle": 8,
}


def played(name: str, chip: str, *, trace: bool = False, config: Any = None, **shape: Any) -> Played:
    operator = load_operator(name)
    full = operator.shape(**shape)
    m = machine_of(load_chip(chip))
    return play(operator, full, for_machine(operator.config(full, **(config or {})), m), m, trace=trace)


def never_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_PATIENCE", (10**9, 10**9))
    monkeypatch.setattr(engine, "_TOLERANCE", -1.0)


# -- by hand -----------------------------------------------------------------------------------


def code(*instructions: Instruction, trips: tuple[int, ...] = ()) -> Code:
    loops = tuple(x.loop for x in instructions if x.kind == "enter" and x.loop is not None)
    return Code((*instructions, Instruction("op", "end", waits=(0,))), loops, trips)


def work(engine_index: int, duration: int, latency: int = 0) -> Instruction:
    return Instruction(
        "op",
        "work",
        duration_ps=duration,
        latency_ps=latency,
        service=((engine_index, duration),),
    )


def run(codes: list[Code], slots: int = 1, agents: int = 1, trace: bool = True) -> Run:
    return Core(("a", "b"), agents, write_buffer_ps=0, trace=trace).run(codes, slots)


def test_operations_of_one_agent_follow_each_other() -> None:
    assert run([code(work(0, 100), work(1, 50, latency=7))]).finish_ps == [157]


def queued(engine_index: int, duration: int, result: int, waits: tuple[int, ...] = ()) -> Instruction:
    return Instruction(
        "op",
        "queued",
        duration_ps=duration,
        service=((engine_index, duration),),
        waits=waits,
        result=result,
    )


def test_an_agent_goes_on_when_its_queued_operation_starts() -> None:
    """And the block ends when the operation does: what ``code`` adds waits for result 0."""
    found = run([code(queued(0, 100, result=0), work(1, 30))])
    assert found.finish_ps == [100]
    assert [(s.engine, s.start_ps, s.end_ps) for s in found.slices] == [("a", 0, 100), ("b", 0, 30)]


def test_a_second_queued_operation_holds_the_agent_until_the_first_one_ends() -> None:
    found = run([code(queued(0, 100, result=1), queued(0, 100, result=0), work(1, 30))])
    assert [(s.start_ps, s.end_ps) for s in found.slices if s.engine == "b"] == [(100, 130)]
    assert found.finish_ps == [200]


def test_who_reads_a_queued_result_waits_for_it() -> None:
    reader = Instruction("op", "reader", duration_ps=10, service=((1, 10),), waits=(0,))
    found = run([code(queued(0, 100, result=0), reader)])
    assert found.finish_ps == [110]


def test_agents_of_a_block_queue_for_an_engine_and_overlap_on_two() -> None:
    found = run([code(work(0, 100), work(1, 50))], agents=2)
    assert found.finish_ps == [250]  # the second waits 100 for engine a, then runs 100 + 50
    assert found.busy_ps == [200, 100]


def test_blocks_beyond_the_slots_start_when_one_leaves() -> None:
    assert run([code(work(0, 100))] * 3, slots=1).finish_ps == [100, 200, 300]
    assert run([code(work(0, 100))] * 3, slots=3).finish_ps == [100, 200, 300]  # one engine, whoever waits
    assert run([code(work(0, 100, latency=1000))] * 2, slots=2).finish_ps == [1100, 1200]


def loop_code(trips: int, stages: int, load_ps: int, latency_ps: int, compute_ps: int) -> Code:
    load = LoadSpec("load", 0, ((1, load_ps),), latency_ps)
    spec = LoopSpec(0, stages, (load,), False, True)
    enter = Instruction("enter", loop=spec, target=3)
    compute = Instruction("op", "mma", compute_ps, 0, 0, ((0, compute_ps),), (0,))
    return code(enter, compute, Instruction("end", loop=spec, target=1), trips=(trips,))


@pytest.mark.parametrize("trips", [1, 2, 5, 40, 1000, 100_003])
def test_a_compute_bound_loop_takes_its_fill_and_its_products(trips: int) -> None:
    found = run([loop_code(trips, 3, load_ps=10, latency_ps=200, compute_ps=500)], trace=False)
    assert found.finish_ps == [210 + 500 * trips]
    assert found.steps < 500


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_an_exposed_latency_divides_by_the_stages(stages: int) -> None:
    """Latency 1000 + load 10, product 100: an iteration every (1010 + 100) / stages picoseconds."""
    trips = 20_000
    found = run([loop_code(trips, stages, load_ps=10, latency_ps=1000, compute_ps=100)], trace=False)
    interval = max(100, (1010 + 100) / stages)
    assert found.finish_ps[0] == pytest.approx(trips * interval, rel=0.001)


def test_a_load_bound_loop_runs_at_the_rate_of_its_loads() -> None:
    found = run([loop_code(10_000, 4, load_ps=300, latency_ps=100, compute_ps=50)], trace=False)
    assert found.finish_ps[0] == pytest.approx(10_000 * 300, rel=0.001)
    assert found.busy_ps[1] == pytest.approx(10_000 * 300, rel=1e-6)  # jumped-over work is counted


def test_an_empty_loop_is_skipped() -> None:
    assert run([loop_code(0, 2, 10, 10, 10)]).finish_ps == [0]


# -- jumps -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chip", "shape"),
    [
        ("gemm", "h100", {"m": 4096, "n": 4096, "k": 16384}),
        ("gemm", "a100-sxm4-80gb", {"m": 1024, "n": 1024, "k": 16384}),
        ("gemm", "b200-sxm", {"m": 8192, "n": 8192, "k": 8192}),
        ("gemm", "ascend-910b3", {"m": 2048, "n": 2048, "k": 8192}),
        ("attention_prefill", "h100", {"batch": 1, "seq": 16384, "heads": 16}),
        ("attention_prefill", "b200-sxm", {"batch": 1, "seq": 8192, "heads": 16, "causal": False}),
        ("attention_decode", "h200-sxm", {"batch": 16, "kv_len": 32768, "heads": 32, "kv_heads": 8}),
    ],
)
def test_a_run_with_jumps_equals_a_run_without(
    name: str, chip: str, shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = played(name, chip, **shape)
    assert any(r.run.jumps for r in quick.runs)
    never_jump(monkeypatch)
    slow = played(name, chip, **shape)
    assert not any(r.run.jumps for r in slow.runs)
    assert quick.time_s == pytest.approx(slow.time_s, rel=0.01)


@pytest.mark.parametrize("stages", [2, 3, 5, 6, 7, 8, 12, 16])
@pytest.mark.parametrize("latency_ps", [0, 700, 5_000])
def test_a_burst_of_tiles_is_not_taken_for_the_steady_state(stages: int, latency_ps: int) -> None:
    """Tiles asked for together arrive a load apart; the next burst follows a latency after the first use."""
    trips, load_ps, compute_ps = 60 * stages, 10, 20
    found = run([loop_code(trips, stages, load_ps, latency_ps, compute_ps)])
    assert found.jumps
    # By hand: a buffer comes back full one latency and one load after its product, which is the pace of
    # ``stages`` products, unless those take longer themselves.
    burst_ps = max(stages * compute_ps, compute_ps + load_ps + latency_ps)
    assert found.finish_ps[0] == pytest.approx(trips / stages * burst_ps, rel=0.01, abs=latency_ps + 200)


def test_jumps_change_almost_nothing_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = list(sample(60, 17))
    quick = np.asarray([c.played_s() for c in cases])
    never_jump(monkeypatch)
    slow = np.asarray([c.played_s() for c in cases])
    error = np.abs(quick / slow - 1)
    assert np.median(error) < 1e-4
    assert error.max() < 0.02


def steps(p: Played) -> int:
    return sum(r.run.steps for r in p.runs)


@pytest.mark.parametrize("chip", ["a100-sxm4-80gb", "h100", "b200-sxm", "ascend-910b3"])
def test_the_cost_of_a_run_does_not_grow_with_k(chip: str) -> None:
    config = TILE | {"num_stages": 2}
    short, long = (played("gemm", chip, m=4096, n=4096, k=k, config=config) for k in (4096, 65536))
    assert steps(long) <= 1.5 * steps(short)  # for sixteen times the iterations
    assert long.time_s > 10 * short.time_s


def test_the_cost_of_a_run_does_not_grow_with_the_grid() -> None:
    small, large = (played("gemm", "h100", m=m, n=4096, k=4096, config=TILE) for m in (4096, 40960))
    assert steps(large) <= 1.5 * steps(small)  # for ten times the blocks
    assert large.time_s > 8 * small.time_s


@pytest.mark.parametrize("causal", [True, False])
def test_the_cost_of_a_run_is_bounded_whatever_the_sequence_length(causal: bool) -> None:
    runs = [
        played("attention_prefill", "h100", batch=1, seq=s, heads=16, causal=causal)
        for s in (4096, 16384, 131072)
    ]
    assert all(steps(r) < 6000 for r in runs)
    assert steps(runs[2]) <= 1.5 * steps(runs[1])
    assert runs[2].time_s > 40 * runs[1].time_s


# -- what a run records ------------------------------------------------------------------------


def test_time_is_whole_picoseconds_and_fifo_engines_never_overlap() -> None:
    for case in sample(12, 23):
        for r in play(case.operator, case.shape, case.config, case.machine, trace=True).runs:
            numbers = [*r.run.finish_ps, *r.run.busy_ps, r.run.drained_ps]
            numbers += [n for s in r.run.slices for n in (s.start_ps, s.end_ps)]
            assert all(type(n) is int for n in numbers)
            for name in {s.engine for s in r.run.slices}:
                track = [s for s in r.run.slices if s.engine == name]
                assert all(a.end_ps <= b.start_ps for a, b in itertools.pairwise(track)), (
                    name,
                    case,
                )


def test_tracing_changes_no_time() -> None:
    for case in sample(12, 29):
        plain, traced = (
            play(case.operator, case.shape, case.config, case.machine, trace=t).time_s for t in (False, True)
        )
        assert plain == traced


def test_the_engine_is_deterministic() -> None:
    for case in sample(12, 31):
        first, second = (
            play(case.operator, case.shape, case.config, case.machine, trace=True) for _ in range(2)
        )
        assert [r.run.slices for r in first.runs] == [r.run.slices for r in second.runs]
        assert first.time_s == second.time_s
