"""Kinds of SIMT machine: no asynchronous copies, wide warps, an L2 in parts, dies with an L2 each."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import pytest

from foretile.hwmodels import Chip, list_chips, load_chip
from foretile.hwmodels.variants import with_values
from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import load_operator
from foretile.simulator.conditions import COLD, REPEATED, Conditions
from foretile.simulator.launches import workloads
from foretile.simulator.lowering import lower
from foretile.simulator.machine import Machine, machine
from foretile.simulator.plan import plan
from foretile.simulator.predictor import machine_of
from foretile.simulator.simulate import simulate
from foretile.simulator.workload import Occupancy

TILE = {"variant": "tile", "block_m": 64, "block_n": 64, "block_k": 32, "threads": 128, "swizzle": 8}
# Tiles of A and B of one stage, in fp16.
STAGE_BYTES = 2 * (64 + 64) * 32


def occupancy(chip: Chip | str, **config: Any) -> Occupancy:
    operator = load_operator("gemm")
    shape = operator.shape(m=4096, n=4096, k=4096, dtype="fp16")
    described = load_chip(chip) if isinstance(chip, str) else chip
    full = operator.config(shape, **{**TILE, **config})
    return workloads(operator, shape, full, machine_of(described))[0].occupancy


# -- without asynchronous copies -----------------------------------------------------------------


@pytest.mark.parametrize("chip", ["v100-sxm2-32gb", "t4"])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_without_asynchronous_copies_two_tiles_are_held_at_most(chip: str, stages: int) -> None:
    """One in use and one on its way, which waits in registers: 32 bytes of each of 128 threads here."""
    held = occupancy(chip, num_stages=stages)
    assert held.scratchpad_bytes == min(stages, 2) * STAGE_BYTES
    one = occupancy(chip, num_stages=1)
    waiting = STAGE_BYTES // 4 // 128 if stages > 1 else 0
    assert held.registers_per_thread == one.registers_per_thread + waiting


def test_asynchronous_copies_hold_a_tile_a_stage_and_no_registers() -> None:
    found = {n: occupancy("a100-sxm4-80gb", num_stages=n) for n in (1, 2, 3, 4)}
    assert [found[n].scratchpad_bytes for n in found] == [n * STAGE_BYTES for n in found]
    assert len({o.registers_per_thread for o in found.values()}) == 1


# -- warps of 32, 64 and 128 ---------------------------------------------------------------------


@pytest.mark.parametrize("warp", [32, 64, 128])
@pytest.mark.parametrize("threads", [64, 128, 256])
def test_a_block_takes_its_warps_whole(warp: int, threads: int) -> None:
    """Threads and registers are counted by the warp, also where a block fills half of one."""
    chip = with_values(load_chip("mthreads-s5000"), {"residency.warp_size": warp})
    stay, registers = chip.residency, chip.registers
    assert stay is not None
    assert registers is not None
    found = occupancy(chip, num_stages=1, threads=threads)
    producers = 4 * warp if chip.features.warp_specialisation else 0
    lanes = ceil(threads / warp) * warp
    assert found.threads == lanes + producers
    limits = {
        "threads": stay.threads_per_core.value // found.threads,
        "registers": registers.bytes_per_core.value
        // 4
        // (lanes * found.registers_per_thread + producers * 24),
        "blocks": stay.blocks_per_core.value,
    }
    assert found.blocks_per_core <= min(limits.values())
    if found.limited_by in limits:
        assert found.blocks_per_core == limits[found.limited_by]


def test_lanes_without_a_thread_are_issued_to() -> None:
    """Element-wise work of 64 threads takes a warp of 128 as long as 128 threads' twice as many elements."""

    def vector_s(threads: int, elements: int, warp: int) -> float:
        @T.prim_func
        def program(A: T.Tensor((elements,), "float32")) -> None:  # type: ignore[valid-type]
            with T.Kernel(1, threads=threads):
                x = T.alloc_fragment((elements,), "float32")
                T.copy(A[0], x)
                for i in T.Parallel(elements):
                    x[i] = x[i] * 2.0
                T.copy(x, A[0])

        chip = with_values(load_chip("mthreads-s5000"), {"residency.warp_size": warp})
        nodes = lower(program, machine(chip)).nodes
        (op,) = (n for n in nodes if getattr(n, "label", "").startswith("x ="))
        return dict(op.work)["vector"]

    assert vector_s(64, 64, 128) == vector_s(128, 128, 128)
    assert vector_s(64, 64, 32) == 0.5 * vector_s(128, 128, 32)


# -- an L2 in parts ------------------------------------------------------------------------------


def latency_s(m: Machine, elements: int, conditions: Conditions = REPEATED, *, times: int = 1) -> float:
    """Latency of the loads of a block that reads ``elements`` floats at once, from the L2 if repeated."""

    @T.prim_func
    def program(A: T.Tensor((elements,), "float32"), B: T.Tensor((elements,), "float32")) -> None:  # type: ignore[valid-type]
        with T.Kernel(1, threads=128):
            x = T.alloc_fragment((elements,), "float32")
            for _ in T.serial(times):
                T.copy(A[0], x)
            T.copy(x, B[0])

    assert isinstance(program, TileProgram)
    traffic = plan(lower(program, m), {}, conditions=conditions).traffic
    return float(np.ravel(traffic.latency_s[0])[0])


FAR = tuple(n for n in list_chips() if load_chip(n, calibrated=False).l2.far_latency_cycles is not None)


def test_the_chips_with_an_l2_in_two_halves_say_how_far_the_other_one_is() -> None:
    assert {"a100-sxm4-80gb", "a30", "h100-sxm5-80gb", "h20", "b200-sxm", "gb300"} <= set(FAR)


@pytest.mark.parametrize("name", FAR)
def test_a_line_takes_the_mean_of_near_and_far_hits_and_a_large_tile_the_far_one(name: str) -> None:
    chip = load_chip(name, calibrated=False)
    m = machine(chip)
    mean, far = chip.l2.latency_cycles.value, chip.l2.far_latency_cycles
    assert far is not None
    assert m.l2_latency_s < m.l2_far_latency_s < m.dram_latency_s
    lines = [latency_s(m, 32 * n) / m.cycle_s for n in (1, 2, 4, 64)]
    assert lines[0] == pytest.approx(mean)
    assert lines == sorted(lines)
    assert lines[-1] == pytest.approx(far.value, rel=1e-4)
    assert latency_s(m, 32 * 64, COLD) == pytest.approx(m.dram_latency_s)


@pytest.mark.parametrize("name", FAR)
def test_a_calibrated_chip_has_one_latency(name: str) -> None:
    """It was fitted to the time that tiles take, whose slowest line is mostly a far one."""
    chip = load_chip(name)
    if chip.calibration is not None:
        m = machine(chip)
        assert m.l2_latency_s == m.l2_far_latency_s
        assert latency_s(m, 32) == latency_s(m, 32 * 64)


# -- dies with an L2 each ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in list_chips() if load_chip(n).chiplets is not None])
def test_a_hit_in_a_dies_own_l2_is_quicker_than_one_in_the_cache_behind(name: str) -> None:
    m = machine(load_chip(name))
    assert m.die_latency_s < m.l2_latency_s < m.dram_latency_s
    # What is read once comes from behind; a line that is read again, from the die's own L2.
    assert latency_s(m, 4096) == pytest.approx(m.l2_latency_s)
    lines = [latency_s(m, 32, times=n) for n in (1, 2, 4, 64)]
    assert lines == sorted(lines, reverse=True)
    assert lines[-1] == pytest.approx(m.die_latency_s + (m.l2_latency_s - m.die_latency_s) / 64)
    assert latency_s(m, 32, COLD) == pytest.approx(m.dram_latency_s)


# -- fewer warps than schedulers -----------------------------------------------------------------


def _maxima(warps: int, turns: int) -> TileProgram:
    """A block whose every warp takes the maximum of a row of 128, turn after turn."""

    @T.prim_func
    def maxima(X: T.Tensor((4096, 128), "float32"), Y: T.Tensor((4096,), "float32")) -> None:
        with T.Kernel(1, threads=32 * warps) as _:
            rows = T.alloc_fragment((warps, 128), "float32")
            most = T.alloc_fragment((warps,), "float32")
            for turn in T.serial(turns):
                T.copy(X[turn * warps, 0], rows)
                T.reduce_max(rows, most, dim=1)
                T.copy(most, Y[turn * warps])

    traced: TileProgram = maxima
    return traced


@pytest.mark.parametrize("chip", ["a100-sxm4-80gb", "h200-sxm", "rtx-pro-6000"])
def test_a_warp_alone_waits_for_its_shuffles_no_longer_than_beside_others(chip: str) -> None:
    """A chain of dependent instructions has its latency, whatever share of the core's rate a warp gets."""
    described = machine_of(load_chip(chip))

    def turn_s(warps: int) -> float:
        times = [simulate(lower(_maxima(warps, n), described), {}).time_s for n in (100, 300)]
        return (times[1] - times[0]) / 200

    assert turn_s(1) == pytest.approx(turn_s(4), rel=0.05)
