"""Known gaps between model and reality, one test each: closing a gap means updating docs/deviations.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ladder import LADDER_910B1, ladder

from foretile.frontdoor import predict
from foretile.hwmodels import load_chip
from foretile.hwmodels.schema import L2, Dram
from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import load_operator
from foretile.simulator.cost import core_slowdown
from foretile.simulator.engine import Core
from foretile.simulator.launches import dynamic_part, workloads
from foretile.simulator.lowering import lower
from foretile.simulator.plan import plan
from foretile.simulator.predictor import machine_of
from foretile.simulator.program import Code, Instruction
from foretile.simulator.simulate import simulate
from foretile.simulator.workload import Loop, Op

PAGE = Path(__file__).parents[2] / "docs" / "deviations.md"
TILE = {
    "variant": "tile",
    "block_m": 128,
    "block_n": 128,
    "block_k": 64,
    "num_stages": 3,
    "threads": 256,
    "swizzle": 8,
}


def documented(heading: str) -> None:
    assert f"\n### {heading}\n" in PAGE.read_text(encoding="utf-8")


def h100_program(build: Any) -> float:
    """Seconds of a kernel of 1024 blocks that fills a shared tile and works on it."""

    @T.prim_func
    def program(A: T.Tensor((1024 * 64, 64), "float32")) -> None:  # type: ignore[valid-type]
        with T.Kernel(1024, threads=128) as bx:
            shared = T.alloc_shared((64, 64), "float32")
            x = T.alloc_fragment((64, 64), "float32")
            T.copy(A[bx * 64, 0], shared)
            build(shared, x)
            T.copy(x, A[bx * 64, 0])

    return predict(program, "h100").time_s


def test_gap_clusters_of_two_are_always_formed() -> None:
    """No kernel can ask for less or more: the shared operand is read once for every two blocks."""
    documented("Clusters of two wherever they exist")
    p = predict("gemm", "h100", m=4096, n=4096, k=4096, config=TILE)
    unshared = 32 * 32 * 2 * 128 * 4096 * 2
    assert p.traffic_bytes["l2_read"] == pytest.approx(0.75 * unshared)
    assert not any("cluster" in key for key in load_operator("gemm").configs({"dtype": "bf16"})[0])


def test_gap_the_partitions_of_the_l2_share_one_bandwidth_and_the_memory_one_latency() -> None:
    documented("One L2 bandwidth and one memory latency")
    assert [name for name in L2.model_fields if "far" in name] == ["far_latency_cycles"]
    assert [name for name in Dram.model_fields if "latency" in name] == ["latency_cycles"]
    for name in (
        "a100-sxm4-80gb",
        "h100-sxm5-80gb",
        "b200-sxm",
    ):  # one latency is fitted to the time of tiles
        assert load_chip(name).l2.far_latency_cycles is None


def test_gap_shared_memory_has_no_bank_conflicts() -> None:
    """A column of fp32 with a pitch of 64 hits one bank: 32-way conflicts on silicon, none here."""
    documented("No bank conflicts")

    def rows(shared: Any, x: Any) -> None:
        for i, j in T.Parallel(64, 64):
            x[i, j] = shared[i, j] * 2.0

    def columns(shared: Any, x: Any) -> None:
        for i, j in T.Parallel(64, 64):
            x[i, j] = shared[j, i] * 2.0

    assert h100_program(columns) == h100_program(rows)


def test_gap_a_barrier_does_not_gather_the_agents_of_a_block() -> None:
    """Two agents share an engine: the first passes the barrier at 110 ps, not when the second arrives."""
    documented("Barriers do not gather agents")
    use = Instruction("op", "product", duration_ps=100, service=((0, 100),))
    barrier = Instruction("op", "barrier", duration_ps=10, beyond_ps=10)
    after = Instruction("op", "after", duration_ps=1, service=((1, 1),))
    core = Core(("matrix", "vector"), 2, write_buffer_ps=0, trace=True)
    run = core.run([Code((use, barrier, after))], 1)
    starts = sorted(s.start_ps for s in run.slices if s.label == "after")
    assert starts == [110, 210]


def test_gap_results_are_always_written_back_to_dram() -> None:
    """128 KiB of results would stay in the L2 (50 MB) and be overwritten or read there."""
    documented("Write-back is always counted")
    p = predict("gemm", "h100", m=256, n=256, k=256, config=TILE)
    assert p.traffic_bytes["dram_write"] == 256 * 256 * 2


def test_gap_nothing_stays_in_the_l2_between_launches() -> None:
    """The second launch of a split product reads its workspace from DRAM, though it was just written."""
    documented("Cold caches at every launch")
    operator = load_operator("gemm")
    shape = operator.shape(m=256, n=256, k=8192)
    config = operator.config(shape, variant="split_k", split_k=4, block_m=64, block_n=64)
    second = workloads(operator, shape, config, machine_of(load_chip("h100")))[1]
    read = plan(second, dynamic_part(operator, shape)).traffic.dram_read_bytes
    assert float(np.ravel(read)[0]) == 256 * 256 * 4


def test_gap_dependent_launches_do_not_overlap() -> None:
    documented("Launches do not overlap")
    config = {"block_h": 16, "block_n": 64, "num_stages": 3, "threads": 128, "num_split": 8}
    chip = load_chip("h100", calibrated=False)
    p = predict("attention_decode", chip, batch=8, kv_len=4096, heads=32, kv_heads=8, config=config)
    assert p.breakdown_s["launch"] == pytest.approx(2 * chip.launch.kernel_s.value)


def test_gap_unaligned_rows_cost_nothing_extra() -> None:
    """n = 8191 in bf16 breaks 16-byte alignment: libraries lose a third, bulk copies are impossible."""
    documented("No alignment cliffs")
    aligned, ragged = (predict("gemm", "h100", m=8192, n=n, k=8192, config=TILE).time_s for n in (8192, 8191))
    assert ragged == pytest.approx(aligned, rel=0.01)


def test_gap_the_clock_does_not_depend_on_the_data_type() -> None:
    """fp8 products draw another power than bf16 ones; the clock under load is one figure a chip."""
    documented("One clock under load")
    operator = load_operator("gemm")
    factors = []
    for dtype, m in (("bf16", 8192), ("fp8", 16384)):  # equally long at either's rate
        shape = operator.shape(m=m, n=8192, k=8192, dtype=dtype)
        (workload,) = workloads(
            operator, shape, operator.configs(shape)[0], machine_of(load_chip("h200-sxm"))
        )
        factors.append(float(core_slowdown(plan(workload, dynamic_part(operator, shape)))[0, 0]))
    assert factors[0] == pytest.approx(factors[1])
    assert factors[1] > 1.0


def test_gap_registers_never_spill() -> None:
    """A kernel that needs more registers than a thread has is refused; compilers spill and go on."""
    documented("Registers do not spill")
    from foretile.simulator.machine import SimulationError

    with pytest.raises(SimulationError, match="288 registers a thread"):
        predict(
            "gemm",
            "a100-sxm4-80gb",
            m=512,
            n=512,
            k=512,
            config=TILE | {"block_m": 256, "block_n": 256, "block_k": 16, "num_stages": 2},
        )


def test_gap_both_sides_of_a_diverging_branch_are_always_paid_in_element_code() -> None:
    """A condition that holds for one row of 64 costs as much as one that holds for all."""
    documented("Divergence is worst case")

    def guarded(threshold: int) -> Any:
        @T.prim_func
        def program(A: T.Tensor((1024 * 64, 64), "float32")) -> None:  # type: ignore[valid-type]
            with T.Kernel(1024, threads=128) as bx:
                x = T.alloc_fragment((64, 64), "float32")
                T.copy(A[bx * 64, 0], x)
                for i, j in T.Parallel(64, 64):
                    if i < threshold:
                        x[i, j] = T.exp2(x[i, j])
                T.copy(x, A[bx * 64, 0])

        return program

    machine = machine_of(load_chip("h100"))
    seldom, always = (lower(guarded(t), machine) for t in (1, 64))
    assert [dict(n.work).get("special") for n in seldom.nodes if hasattr(n, "work")] == [
        dict(n.work).get("special") for n in always.nodes if hasattr(n, "work")
    ]


def test_gap_two_stages_on_blackwell_starve_too_little() -> None:
    documented("Few-stage pipelines on Blackwell")
    rate = {}
    for stages in (2, 4):
        config = {"variant": "tile", "block_m": 128, "block_n": 256, "block_k": 64, "num_stages": stages}
        rate[stages] = predict("gemm", "b200-sxm", m=1536, n=3072, k=65536, config=config).flop_per_s
    assert 0.80 < rate[2] / rate[4] <= 1.0  # silicon: 54 / 98


def test_gap_integers_that_steer_are_free() -> None:
    """The rows that a combination gathers are named by an index tensor that costs nothing to read."""
    documented("Integers that steer a kernel are read for free")
    operator = load_operator("moe_combine")
    shape = operator.shape(**operator.example)
    for workload in workloads(operator, shape, operator.configs(shape)[0], machine_of(load_chip("h100"))):
        assert "Rows" in {p.name for p in workload.program.params}
        assert "Rows" not in {a.tensor for a in workload.accesses}


def test_gap_conditional_gathers_do_not_run_ahead() -> None:
    """More buffers bring nothing to implicit convolution, whose pixels a condition fills in at the edges."""
    documented("Conditional gathers do not run ahead")
    operator = load_operator("conv2d")
    shape = operator.shape(**operator.example)
    config = next(c for c in operator.configs(shape) if c["num_stages"] >= 2)
    for workload in workloads(operator, shape, config, machine_of(load_chip("h100")))[:1]:
        (loop,) = (node for node in workload.nodes if isinstance(node, Loop))
        assert len({workload.accesses[op.access].tensor for op in loop.loads}) == 1  # the weights


def test_gap_stream_k_is_not_searched() -> None:
    documented("Stream-K is not searched")
    gemm = load_operator("gemm")
    shape = gemm.shape(m=512, n=512, k=4096)
    assert "stream_k" not in {c["variant"] for c in gemm.configs(shape)}
    config = {"variant": "stream_k", "block_m": 128, "block_n": 128, "num_stages": 3}
    assert predict("gemm", "h100", m=512, n=512, k=4096, config=config).time_s > 0


def ascend_s(program: TileProgram, given: dict[str, int]) -> float:
    chip = load_chip(str(Path(__file__).parent / "chips" / "split-24-cores.yaml"))
    return simulate(lower(program, machine_of(chip)), dict(given)).time_s


def test_gap_ascend_hands_over_without_l2_traffic() -> None:
    """The scores of attention cross the L2 twice; counted are the operator's own tensors."""
    documented("Ascend's vector cores and flags are coarse")
    p = predict("attention_prefill", "ascend-910b3", batch=1, seq=4096, heads=8, head_dim=128, causal=False)
    scores = 2 * 8 * 4096 * 4096 * 4
    operator = load_operator("attention_prefill")
    full = operator.shape(batch=1, seq=4096, heads=8, head_dim=128, causal=False)
    (workload,) = workloads(operator, full, dict(p.config), machine_of(load_chip("ascend-910b3")))
    moved = plan(workload, dynamic_part(operator, full)).traffic
    assert float(moved.l2_read_bytes.max()) < scores


def test_gap_ascend_hides_what_happens_between_tiles() -> None:
    """Constant tiling and the unit flag gain silicon 1 % each: here copies run on meanwhile."""
    documented("Nothing shows between tiles on Ascend")
    given, constant, flagged = (ascend_s(ladder(step), step.given) for step in LADDER_910B1[-3:])
    assert 0.999 < constant / given < 1.0
    assert 0.999 < flagged / constant < 1.0


def test_gap_ascend_cores_stay_in_step() -> None:
    """Queuing for the same keys lengthens attention over many keys as much as over few."""
    documented("Cores stay in step on Ascend")
    chip = load_chip("ascend-910b2")
    assert chip.davinci is not None
    free = chip.model_copy(update={"davinci": chip.davinci.model_copy(update={"gm_line_cycles": None})})
    shape = {"batch": 1, "heads": 1, "head_dim": 128, "causal": False, "dtype": "fp16"}
    long, short = (
        predict("attention_prefill", chip, seq=n, **shape).time_s
        / predict("attention_prefill", free, seq=n, **shape).time_s
        for n in (32768, 8192)
    )
    assert long > 1.1
    assert long == pytest.approx(short, rel=0.1)


def test_gap_cambricon_weights_arrive_in_their_layout() -> None:
    documented("Weights need no rearranging on Cambricon")
    operator = load_operator("gemm")
    full = operator.shape(m=4096, n=4096, k=4096, dtype="fp16")
    config = operator.config(full, **{**TILE, "num_stages": 2})
    (workload,) = workloads(operator, full, config, machine_of(load_chip("cambricon-mlu370-x8")))
    (loop,) = (node for node in workload.nodes if isinstance(node, Loop))
    assert {engine for op in loop.body if isinstance(op, Op) for engine, _ in op.work} == {"matrix"}
