"""Clusters of cores with NRAM, WRAM and a shared SRAM: where buffers lie, what is shared, what bounds."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simcases import Source, case
from workload_operations import operations

from foretile.frontdoor import predict
from foretile.hwmodels import load_chip
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import load_operator, operator_names
from foretile.simulator.lowering.lower import lower
from foretile.simulator.machine import Machine, SimulationError
from foretile.simulator.plan import plan
from foretile.simulator.predictor import machine_of
from foretile.simulator.workload import Workload

CHIP = "cambricon-mlu370-x8"
SIDES = {"m": 4096, "n": 4096, "k": 4096, "batch": 1}


def machine() -> Machine:
    return machine_of(load_chip(CHIP))


def product(m: int = 128, n: int = 128, k: int = 64, stages: int = 3) -> TileProgram:
    operator = load_operator("gemm")
    shape = operator.shape(m=4096, n=4096, k=4096, dtype="fp16")
    settings = {"variant": "tile", "block_m": m, "block_n": n, "block_k": k, "num_stages": stages}
    traced = operator.program(shape, operator.config(shape, **settings, threads=256, swizzle=0))
    assert isinstance(traced, TileProgram)
    return traced


def work(workload: Workload, label: str) -> dict[str, float]:
    (op,) = (op for op in operations(workload.nodes) if label in op.label)
    return dict(op.work)


def test_weights_lie_in_wram_and_everything_else_in_nram() -> None:
    m = machine()
    assert m.mlu is not None
    found = lower(product(), m).occupancy
    held = 3 * 128 * 64 * 2 + 3 * 64 * 128 * 2 + 128 * 128 * 4
    assert found.scratchpad_bytes == held
    small = m.mlu.model_copy(update={"wram_bytes": m.mlu.wram_bytes.model_copy(update={"value": 40_000})})
    with pytest.raises(SimulationError) as refused:
        lower(product(), replace(m, mlu=small))
    for part in ("49152 bytes of WRAM", "40000", CHIP, "B_shared 64x128"):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("program", "parts"),
    [
        (product(512, 512), ("bytes of NRAM", "C_local 512x512 takes 1048576", "655360")),
        (product(64, 512, 256, 5), ("bytes of WRAM", "B_shared 256x512 takes 1310720", "1048576")),
    ],
    ids=["NRAM", "WRAM"],
)
def test_what_does_not_fit_is_refused_with_buffer_bytes_and_limit(
    program: TileProgram, parts: tuple[str, ...]
) -> None:
    with pytest.raises(SimulationError) as refused:
        lower(program, machine())
    for part in (*parts, CHIP):
        assert part in str(refused.value)


def test_what_a_cluster_shares_is_read_once_for_its_four_cores() -> None:
    m = machine()
    together, alone = (lower(product(), x) for x in (m, replace(m, clusters=False)))
    assert together.pair_var
    shared, own = (plan(w, SIDES).traffic for w in (together, alone))
    tensors = [a.tensor for a in together.accesses]
    a, b = tensors.index("A"), tensors.index("B")
    ratio = [float(own.l2_bytes[i].max() / shared.l2_bytes[i].max()) for i in (a, b)]
    assert sorted(ratio) == [1.0, 4.0]
    # Every core still takes its copy of the tile, from SRAM.
    assert float(shared.port_bytes[b].max()) == float(own.port_bytes[b].max())
    assert set(work(together, "B → B_shared")) == {"share"}
    assert set(work(alone, "B → B_shared")) == {"feed"}


def test_products_are_padded_to_the_units_columns_and_depth() -> None:
    m = machine()
    padded = work(lower(product(16, 80, 80), m), "gemm C_local")["matrix"]
    whole = work(lower(product(16, 128, 128), m), "gemm C_local")["matrix"]
    assert padded == pytest.approx(whole)


def test_vector_work_takes_the_width_of_the_unit() -> None:
    operator = load_operator("silu_mul")
    shape = operator.shape(rows=64, cols=4096, dtype="fp32")
    traced = operator.program(shape, operator.config(shape))
    assert isinstance(traced, TileProgram)
    m = machine()
    for op in operations(lower(traced, m).nodes):
        for engine, seconds in op.work:
            assert engine in ("vector", "feed")
            assert seconds > 0.0


def test_both_models_agree() -> None:
    """As far as on other chips over the whole library, see docs/model.md."""
    rng = random.Random(370)
    source = Source(integer=rng.randint, choice=rng.choice)
    cases: list[Any] = []
    while len(cases) < 120:
        drawn = case(source, operator_names(), (CHIP,))
        if drawn is not None:
            cases.append(drawn)
    wrong = np.asarray([abs(math.log(c.modelled_s() / c.played_s())) for c in cases])
    worst = "\n".join(f"{math.expm1(wrong[i]):.1%}: {cases[i]!r}" for i in np.argsort(-wrong)[:6])
    assert np.median(wrong) <= math.log(1.05), worst
    assert np.mean(wrong <= math.log(1.20)) >= 0.97, worst
    assert wrong.max() <= math.log(2.0), worst


def test_a_large_product_is_bound_by_the_matrix_unit_and_slower_than_its_peak() -> None:
    found = predict("gemm", CHIP, m=8192, n=8192, k=8192, dtype="fp16")
    assert found.bound == "matrix"
    assert 0.7 * machine().peak("fp16") < found.flop_per_s < machine().peak("fp16")


def test_inferred_numbers_widen_the_interval() -> None:
    low, high = predict("gemm", CHIP, m=8192, n=8192, k=8192, dtype="fp16").interval_s
    assert high / low > 2.0
