"""Cores with cube and vector units and explicit buffers: placement, queues, hand-over, published times."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ladder import LADDER_910B1, LADDER_950PR, Step, ladder
from simcases import Case, Source, case
from workload_operations import operations

from foretile.frontdoor import predict
from foretile.hwmodels import Chip, load_chip
from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import load_operator, operator_names
from foretile.simulator.cost import estimate
from foretile.simulator.lowering.analysis import roles
from foretile.simulator.lowering.lower import lower
from foretile.simulator.lowering.placement import Placement, place
from foretile.simulator.machine import Machine, SimulationError
from foretile.simulator.plan import plan
from foretile.simulator.predictor import machine_of
from foretile.simulator.simulate import simulate
from foretile.simulator.workload import Workload

FOLDER = Path(__file__).parent / "chips"
SPLIT, DIRECT, FUSED = "split-24-cores", "direct-32-cores", "fused-32-cores"


@cache
def chip(name: str) -> Chip:
    return load_chip(str(FOLDER / f"{name}.yaml"))


def machine(name: str) -> Machine:
    return machine_of(chip(name))


def busy(workload: Workload, engine: str, label: str = "") -> float:
    """Seconds of service of one pass over all operations whose label contains ``label``."""
    found = [dict(op.work).get(engine, 0.0) for op in operations(workload.nodes) if label in op.label]
    return sum(found)


def product(m: int = 128, n: int = 256, k: int = 64, stages: int = 2, **other: Any) -> TileProgram:
    settings = {"block_m": m, "block_n": n, "block_k": k, "num_stages": stages, "variant": "tile"}
    operator = load_operator("gemm")
    shape = operator.shape(m=4096, n=4096, k=4096, dtype="fp16", trans_b=True)
    traced = operator.program(shape, operator.config(shape, **settings, threads=256, **other))
    assert isinstance(traced, TileProgram)
    return traced


def attention(block_m: int = 128, block_n: int = 128, **other: Any) -> TileProgram:
    operator = load_operator("attention_prefill")
    shape = operator.shape(batch=1, seq=4096, heads=8, head_dim=128, causal=False)
    settings = {"block_m": block_m, "block_n": block_n, "num_stages": 2, "threads": 256} | other
    traced = operator.program(shape, operator.config(shape, **settings))
    assert isinstance(traced, TileProgram)
    return traced


def placed(program: TileProgram, name: str = SPLIT) -> Placement:
    d = machine(name).davinci
    assert d is not None
    return place(program, roles(program), d, name)


# -- published times -------------------------------------------------------------------------------


def played_us(step: Step, name: str) -> float:
    return simulate(lower(ladder(step), machine(name)), dict(step.given)).time_s * 1e6


@cache
def climbed(name: str = SPLIT) -> dict[str, float]:
    steps = LADDER_910B1 if name == SPLIT else LADDER_950PR
    return {step.name: played_us(step, name) for step in steps}


@pytest.mark.parametrize("step", LADDER_910B1, ids=lambda step: step.name)
def test_each_step_of_the_vendors_ladder_lies_within_a_fifth(step: Step) -> None:
    assert climbed()[step.name] == pytest.approx(step.measured_us, rel=0.20)


def test_the_steps_of_the_ladder_come_in_order() -> None:
    """Every step is faster than the one before; where silicon gains less than 3 %, by less than 5 % here."""
    for before, after in pairwise(LADDER_910B1):
        ratio = climbed()[after.name] / climbed()[before.name]
        assert ratio < 1.0, after.name
        assert (ratio < 0.95) == (after.measured_us < 0.97 * before.measured_us), after.name


@pytest.mark.parametrize("step", LADDER_950PR, ids=lambda step: step.name)
def test_the_next_generations_ladder_lies_within_a_fifth(step: Step) -> None:
    assert climbed(DIRECT)[step.name] == pytest.approx(step.measured_us, rel=0.20)


def test_the_next_generations_ladder_does_not_climb_back() -> None:
    """Once the cube decides (from step 4 on), the L2 and the tiling bring nothing, the unit flag a little."""
    for before, after in pairwise(LADDER_950PR):
        assert climbed(DIRECT)[after.name] < 1.001 * climbed(DIRECT)[before.name], after.name
    *_, constant, flagged = climbed(DIRECT).values()
    assert flagged < 0.99 * constant  # silicon: 1.2 %


def test_the_cost_model_climbs_the_ladder_too() -> None:
    for step in LADDER_910B1:
        workload = lower(ladder(step), machine(SPLIT))
        modelled = float(estimate(plan(workload, step.given)).time_s[0, 0]) * 1e6
        assert modelled == pytest.approx(climbed()[step.name], rel=0.10), step.name


# -- placement -------------------------------------------------------------------------------------


def test_a_products_buffers_are_placed_by_use() -> None:
    found = placed(product(k=128))
    assert found.used["L1"] == {"A_shared": 2 * 128 * 128 * 2, "B_shared": 2 * 256 * 128 * 2}
    assert found.used["L0C"] == {"C_local": 128 * 256 * 4}
    assert found.used["UB"] == {}
    assert not found.fetched
    assert not found.doubled  # L0C is full


def test_a_product_whose_result_is_read_out_is_cut_to_fit() -> None:
    """Twice the columns of what leaves room for another: two parts, for which A crosses to L0 twice."""
    assert placed(attention(128, 256)).parts == {"acc_s": 2, "acc_o": 1}
    m = machine(SPLIT)
    label = "operands of gemm acc_s"
    narrow, wide = (
        next(op for op in operations(lower(attention(128, n), m).nodes) if op.label == label)
        for n in (128, 256)
    )
    assert dict(wide.work)["scratchpad"] == pytest.approx(dict(narrow.work)["scratchpad"])


def test_accumulators_are_padded_to_fractals() -> None:
    @T.prim_func
    def thin(A: T.Tensor((8, 64), "float16"), B: T.Tensor((64, 24), "float16")) -> None:
        with T.Kernel(1, threads=128):
            a = T.alloc_shared((8, 64), "float16")
            b = T.alloc_shared((64, 24), "float16")
            c = T.alloc_fragment((8, 24), "float32")
            T.copy(A, a)
            T.copy(B, b)
            T.gemm(a, b, c, clear_accum=True)

    assert placed(thin).used["L0C"] == {"c": 16 * 32 * 4}


def test_what_element_wise_code_changes_between_products_is_kept_in_ub() -> None:
    found = placed(attention())
    assert {"acc_s", "acc_o"} == found.fetched
    assert "acc_o" in found.summed  # each product is added to it
    assert sum(found.used["L0C"].values()) == 128 * 128 * 4  # one result at a time, a second beside it
    assert found.doubled
    assert found.used["UB"]["acc_o"] == 128 * 128 * 4 / 2  # rows are dealt to two vector cores
    assert "Q_shared" in found.used["L1"]
    assert {"acc_s_cast"} == found.used["L1"].keys() & found.used["UB"].keys()


@pytest.mark.parametrize(
    ("program", "parts"),
    [
        (product(256, 256), ("L0C", "C_local 256x256 takes 262144", "131072", "a smaller tile")),
        (product(k=256, stages=3), ("589824 bytes of L1", "B_shared 256x256 in 3 versions", "524288")),
        (attention(128, 512, num_stages=1), ("bytes of UB", "acc_s 128x512", "196608")),
    ],
    ids=["L0C", "L1", "UB"],
)
def test_what_cannot_be_placed_is_refused_with_buffer_bytes_and_limit(
    program: TileProgram, parts: tuple[str, ...]
) -> None:
    with pytest.raises(SimulationError) as refused:
        lower(program, machine(SPLIT))
    for part in (*parts, SPLIT):
        assert part in str(refused.value)


# -- queues ----------------------------------------------------------------------------------------


def time_of(program: TileProgram, m: Machine) -> float:
    return simulate(lower(program, m), {"m": 4096, "n": 4096, "k": 4096, "batch": 1}).time_s


def test_double_buffers_overlap_the_copies_with_the_products() -> None:
    one, two = (time_of(product(k=128, stages=s), machine(SPLIT)) for s in (1, 2))
    assert one > 1.3 * two


def test_products_wait_for_their_operands_and_not_for_each_other() -> None:
    workload = lower(product(), machine(SPLIT))
    feed, cube = (op for op in operations(workload.nodes) if op.kind == "matrix")
    assert set(feed.reads) == {"A_shared", "B_shared"}
    assert not feed.queued
    assert cube.queued
    assert cube.writes == "C_local"
    (out,) = (op for op in operations(workload.nodes) if op.kind == "store")
    assert out.reads == ("C_local",)


def test_operands_cross_to_l0_at_the_rates_of_the_file() -> None:
    m = machine(SPLIT)
    workload = lower(product(), m)
    cycles = busy(workload, "scratchpad") / m.cycle_s
    assert cycles == pytest.approx(128 * 64 * 2 / 256 + 256 * 64 * 2 / 128 + 2 * 23)


def test_a_deep_product_is_cut_where_half_of_l0_is_full() -> None:
    m = machine(SPLIT)
    shallow, deep = (lower(product(k=k), m) for k in (64, 256))
    heads = [busy(w, "matrix") / m.cycle_s - k * 8 for w, k in ((shallow, 64), (deep, 256))]
    assert heads == pytest.approx([6, 4 * 6])  # 256 columns x 64 deep fill the 32 KB


@pytest.mark.parametrize(("k", "bursts"), [(64, 1), (128, 1), (160, 2), (256, 2)])
def test_rows_move_in_whole_bursts(k: int, bursts: int) -> None:
    """Rows of 320 bytes start at a multiple of 64 bytes, and take two bursts of 256 wherever they do."""
    m = machine(SPLIT)
    read = busy(lower(product(k=k), m), "feed", "A → A_shared") / m.cycle_s
    assert read == pytest.approx(41 + 128 * (1.05 + bursts * 256 / 110))


def test_rows_that_start_between_bursts_take_one_more() -> None:
    whole, dealt = (lower(ladder(LADDER_910B1[i]), machine(SPLIT)) for i in (3, 2))
    tiles = [dict(op.work)["drain"] for op in operations(dealt.nodes) if op.kind == "store"]
    aligned = busy(whole, "drain")
    assert tiles[0] == pytest.approx(1.5 * aligned, rel=0.01)  # 3 bursts instead of 2
    assert tiles[1] == pytest.approx(1.17 * aligned, rel=0.01)  # 171 columns: 2 bursts or 3


def test_more_of_a_copy_queue_is_not_slower() -> None:
    m = machine(SPLIT)
    base = time_of(product(), m)
    assert time_of(product(), m.improved("scratchpad", 2.0)) < 0.9 * base


# -- what copies wait for ---------------------------------------------------------------------------


def stream(
    rows: int, columns: int, tile: tuple[int, int], order: str, parts: int = 1, repeats: int = 1
) -> TileProgram:
    """Copies of a matrix into L1 on 24 cores, with hardly any product.

    ``order``: whether every core reads rows of its ``own``, or each reads all of them, the ``same`` ones at a
    time or ``elsewhere`` than the others; ``parts`` of the columns are read ``repeats`` times each.
    """
    tall, wide = tile
    own = rows // 24

    @T.prim_func
    def copies(
        A: T.Tensor((rows, columns), "float16"),
        B: T.Tensor((16, wide), "float16"),
        C: T.Tensor((24 * tall, 16), "float32"),
    ) -> None:
        with T.Kernel(24, threads=128) as bx:
            a = T.alloc_shared((tall, wide), "float16")
            b = T.alloc_shared((16, wide), "float16")
            c = T.alloc_fragment((tall, 16), "float32")
            T.copy(B, b)
            T.clear(c)
            for part in T.serial(parts):
                for _repeat in T.serial(repeats):
                    for i in T.serial((own if order == "own" else rows) // tall):
                        row = bx * own + i * tall if order == "own" else i * tall
                        if order == "elsewhere":
                            row = (i + bx) % 24 * tall
                        for j in T.Pipelined(columns // parts // wide, num_stages=2):
                            T.copy(A[row, part * (columns // parts) + j * wide], a)
                            T.gemm(a, b, c, transpose_B=True)
            T.copy(c, C[bx * tall, 0])

    traced: TileProgram = copies
    return traced


def streamed_us(name: str = SPLIT, **how: Any) -> float:
    return simulate(lower(stream(**how), machine(name)), {}).time_s * 1e6


# mirror-cann/asc-devkit, examples/01_simd_cpp_api/05_best_practices/04_memory_access/data_copy/README.md:
# GM to L1 on Atlas A2, Task Duration in microseconds. Nothing in the chip's file is from these four.
STREAMS = [
    ({"tile": (64, 64)}, 300.7),
    ({"tile": (64, 256)}, 230.24),
    ({"tile": (64, 1024), "repeats": 4}, 899.34),  # 302 MB, again and again: 0.006 % hits
    ({"tile": (64, 1024), "parts": 4, "repeats": 4}, 414.96),  # 75 MB at a time: all hits but the first
]


@pytest.mark.parametrize(("how", "measured_us"), STREAMS, ids=["rows", "long rows", "whole", "in parts"])
def test_published_streams_into_l1_lie_within_a_fifth(how: dict[str, Any], measured_us: float) -> None:
    found = streamed_us(rows=12288, columns=12288, order="own", **how)
    assert found == pytest.approx(measured_us, rel=0.20)


def test_what_a_block_comes_back_to_is_read_from_dram_if_it_did_not_fit() -> None:
    def read(**how: Any) -> float:
        workload = lower(stream(12288, 12288, (64, 1024), "own", repeats=4, **how), machine(SPLIT))
        return float(plan(workload, {}).traffic.dram_read_bytes.max())

    size = 12288 * 12288 * 2
    assert read() == pytest.approx(4 * size, rel=0.001)
    assert read(parts=4) == pytest.approx(size, rel=0.001)


def test_cores_that_read_the_same_rows_queue_for_them() -> None:
    """The figure of the chip's file is from the first of these: 245 us on a core (data_copy, scenario 6)."""
    matrix = {"rows": 6144, "columns": 512, "tile": (256, 64)}
    same, elsewhere = (streamed_us(**matrix, order=order) for order in ("same", "elsewhere"))
    launched = (machine(SPLIT).launch_s + machine(SPLIT).ramp_s) * 1e6
    assert same - launched == pytest.approx(245, rel=0.05)
    assert elsewhere < 0.5 * same
    both = [streamed_us(DIRECT, **matrix, order=order) for order in ("same", "elsewhere")]
    assert both[0] == pytest.approx(both[1], rel=0.02)  # no rate is known there


def test_a_copy_waits_for_as_many_cores_as_read_its_rows() -> None:
    workloads = [lower(ladder(LADDER_910B1[i]), machine(SPLIT)) for i in (2, 3)]
    found = [plan(w, s.given).traffic.readers for w, s in zip(workloads, LADDER_910B1[2:4], strict=True)]
    assert [float(np.max(n)) for n in found[0][:2]] == [12.0, 2.0]
    assert [float(np.max(n)) for n in found[1][:2]] == [6.0, 4.0]


# -- the scalar unit and the fix-pipe ---------------------------------------------------------------


def narrow(cores: int, tiles: int, flag: bool, given: bool = False) -> TileProgram:
    """The product of the vendor's pages on the unit flag and on constant tiling: 128 x 30720, 64 deep."""

    @T.prim_func
    def product(
        A: T.Tensor((128, 64), "float16"),
        B: T.Tensor((64, 30720), "float16"),
        C: T.Tensor((128, 30720), "float16"),
        count: T.int32,
    ) -> None:
        with T.Kernel(cores, threads=128) as bx:
            a = T.alloc_shared((128, 64), "float16")
            b = T.alloc_shared((64, 256), "float16")
            c = T.alloc_fragment((128, 256), "float32")
            T.copy(A, a)
            for j in T.Pipelined(count, num_stages=2):
                column = (bx * count + j) * 256
                T.copy(B[0, column], b)
                T.gemm(a, b, c, clear_accum=True, unit_flag=flag)
                T.copy(c, C[0, column])

    traced: TileProgram = product
    return traced if given else traced.bind(count=tiles)


def core_us(workload: Workload, **given: int) -> float:
    """Time of one core, whatever DRAM has to write at the end."""
    return max(simulate(workload, dict(given)).run.finish_ps) * 1e-6


def test_the_unit_flag_hides_the_way_out_behind_the_next_product() -> None:
    """The vendor's page: 2.7 us of 37 on 20 cores with six tiles each, most of the fix-pipe's 3.3."""
    m = machine_of(load_chip("ascend-910b3"))
    without, flagged = (core_us(lower(narrow(20, 6, flag), m)) for flag in (False, True))
    assert without - flagged == pytest.approx(2.73, rel=0.25)
    silent = replace(m, davinci=m.davinci and m.davinci.model_copy(update={"unit_flag": False}))
    assert core_us(lower(narrow(20, 6, True), silent)) == pytest.approx(without)


def test_numbers_given_at_run_time_cost_the_scalar_unit_time() -> None:
    m = machine(SPLIT)
    constant, given = (lower(narrow(24, 5, True, late), m) for late in (False, True))
    labels = [op.label for op in operations(given.nodes) if op.kind == "barrier"]
    assert labels == ["parameters", "addresses"]
    assert not [op for op in operations(constant.nodes) if op.kind == "barrier"]
    # Once a block: count, bx * count. Each tile: + j, * 256.
    scalar = [dict(op.work)["scalar"] / m.cycle_s for op in operations(given.nodes) if op.kind == "barrier"]
    assert scalar == pytest.approx([2 * 17, 2 * 17])
    late, early = core_us(given, count=5), core_us(constant)
    read_s = m.dram_latency_s + 2 * 17 * m.cycle_s
    assert 0.999 * read_s < (late - early) * 1e-6 < 1e-6


# -- cube and vector -------------------------------------------------------------------------------


def test_split_cores_hand_over_through_global_memory() -> None:
    workload = lower(attention(), machine(SPLIT))
    assert workload.agents == 4
    results = busy(workload, "drain", "=") + busy(workload, "drain", "reduce")
    assert results > 0  # L0C out
    assert busy(workload, "vector_feed") > 0  # and back into UB
    back = [op for op in operations(workload.nodes) if op.label.startswith("operands of gemm acc_o")]
    assert all(dict(op.work)["vector_drain"] > 0 and dict(op.work)["feed"] > 0 for op in back)


def test_direct_paths_spare_the_way_through_global_memory() -> None:
    direct = machine(DIRECT)
    d = direct.davinci
    assert d is not None
    around = replace(direct, davinci=d.model_copy(update={"handoff": "l2"}))
    assert busy(lower(attention(), direct), "vector_feed", "=") == 0.0
    assert busy(lower(attention(), around), "vector_feed", "=") > 0.0
    chains = [sum(op.serial_s for op in operations(lower(attention(), m).nodes)) for m in (direct, around)]
    assert chains[0] < chains[1]


def test_a_fused_core_drains_its_products_through_the_vector_unit() -> None:
    fused, split = lower(product(), machine(FUSED)), lower(product(), machine(SPLIT))
    assert busy(fused, "vector") == pytest.approx(128 * 256 * 4 / 512 * machine(FUSED).cycle_s)
    assert busy(split, "vector") == 0.0
    assert busy(fused, "drain") > 0.0
    engines = {engine for op in operations(lower(attention(), machine(FUSED)).nodes) for engine, _ in op.work}
    assert not engines & {"vector_feed", "vector_drain"}  # one queue each way for both units
    assert "scalar" in engines


def test_an_accumulator_in_ub_costs_an_addition_a_product() -> None:
    @T.prim_func
    def kept(A: T.Tensor((64, 64), "float16"), C: T.Tensor((64, 64), "float32")) -> None:
        with T.Kernel(1, threads=128):
            a = T.alloc_shared((64, 64), "float16")
            c = T.alloc_fragment((64, 64), "float32")
            T.copy(A, a)
            T.clear(c)
            T.gemm(a, a, c)
            for i, j in T.Parallel(64, 64):
                c[i, j] = c[i, j] * 2.0
            T.copy(c, C)

    @T.prim_func
    def added(A: T.Tensor((64, 64), "float16"), C: T.Tensor((64, 64), "float32")) -> None:
        with T.Kernel(1, threads=128):
            a = T.alloc_shared((64, 64), "float16")
            c = T.alloc_fragment((64, 64), "float32")
            T.copy(A, a)
            for i, j in T.Parallel(64, 64):
                c[i, j] = T.cast(i, "float32")
            T.gemm(a, a, c)
            for i, j in T.Parallel(64, 64):
                c[i, j] = c[i, j] * 2.0
            T.copy(c, C)

    m = machine(SPLIT)
    once, again = (
        [dict(op.work)["vector"] for op in operations(lower(p, m).nodes) if op.label == "c = …"][-1]
        for p in (kept, added)
    )
    head = 27 * m.cycle_s
    assert again - once == pytest.approx(64 * 64 / m.fp32_per_s + head)


# -- both models, the whole library ------------------------------------------------------------------


@cache
def drawn(count: int) -> tuple[Case, ...]:
    rng = random.Random(20261123)
    source = Source(integer=rng.randint, choice=rng.choice)
    found: list[Case] = []
    while len(found) < count:
        # The drawing routine takes chips by name: these are not in the catalogue.
        one = case(source, operator_names(), ("ascend-910b3",))
        if one is None:
            continue
        other = replace(one, chip=chip(source.choice((SPLIT, DIRECT, FUSED))))
        try:
            other.workloads()
        except SimulationError:
            continue
        found.append(other)
    return tuple(found)


def test_both_models_agree_on_all_three_kinds_of_cores() -> None:
    cases = drawn(200)
    wrong = np.asarray([abs(math.log(c.modelled_s() / c.played_s())) for c in cases])
    order = np.argsort(-wrong)
    worst = "\n".join(f"{math.expm1(wrong[i]):.1%}: {cases[i]!r}" for i in order[:6])
    assert np.median(wrong) <= math.log(1.05), worst
    assert np.mean(wrong <= math.log(1.20)) >= 0.97, worst
    assert wrong.max() <= math.log(1.6), worst


@pytest.mark.parametrize("name", [SPLIT, DIRECT, FUSED])
def test_no_product_is_faster_than_the_peak(name: str) -> None:
    for sizes in ((8192, 8192, 8192), (512, 4096, 1024), (1, 7168, 2048)):
        m, n, k = sizes
        found = predict("gemm", chip(name), m=m, n=n, k=k, dtype="fp16")
        assert found.flop_per_s <= machine(name).peak("fp16")
