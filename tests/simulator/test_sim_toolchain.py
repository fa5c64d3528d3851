"""Who makes a kernel decides its schedule: a tuned library's author, or TileLang's compiler by its rules."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from test_num_roles import produced

import foretile
from foretile.hwmodels import load_chip
from foretile.kernels import language as T
from foretile.kernels.ir import LIBRARY, TILELANG, TileProgram
from foretile.kernels.operator import load_operator, operator_names
from foretile.simulator.launches import made_by
from foretile.simulator.lowering import lower
from foretile.simulator.machine import Machine, SimulationError
from foretile.simulator.predictor import machine_of, predict
from foretile.simulator.workload import Loop, Node, Op, Workload

AMPERE, HOPPER, BLACKWELL = "a100-sxm4-80gb", "h200-sxm", "b200-sxm"


def machine(name: str) -> Machine:
    return machine_of(load_chip(name))


def product(
    threads: int = 128,
    *,
    nested: bool = False,
    switches: dict[str, bool] | None = None,
    rows: int = 128,
    columns: int = 128,
    width: int = 64,
) -> TileProgram:
    """A product of two matrices, a tile a block, as its author would write it for TileLang."""

    @T.prim_func
    def kernel(
        a: T.Tensor((4096, 4096), "bfloat16"),
        b: T.Tensor((4096, 4096), "bfloat16"),
        c: T.Tensor((4096, 4096), "bfloat16"),
    ):
        with T.Kernel(4096 // columns, 4096 // rows, threads=threads) as (bx, by):
            a_tile = T.alloc_shared((rows, width), "bfloat16")
            b_tile = T.alloc_shared((width, columns), "bfloat16")
            sums = T.alloc_fragment((rows, columns), "float32")
            T.annotate_pass_configs(switches or {})
            for _ in T.serial(2) if nested else (0,):
                T.clear(sums)
                for k in T.Pipelined(4096 // width, num_stages=3):
                    T.copy(a[by * rows, k * width], a_tile)
                    T.copy(b[k * width, bx * columns], b_tile)
                    T.gemm(a_tile, b_tile, sums)
                T.copy(sums, c[by * rows, bx * columns])

    return replace(kernel, toolchain=TILELANG)


def test_nobody_said_is_a_library() -> None:
    program = replace(product(), toolchain="")
    for name in (AMPERE, HOPPER, BLACKWELL):
        found = lower(program, machine(name))
        assert found == lower(replace(program, toolchain=LIBRARY), machine(name))
        assert found.grounds == ()
        assert found != lower(replace(program, toolchain=TILELANG), machine(name))


def test_a_toolchain_is_no_part_of_what_a_program_says() -> None:
    program = product()
    assert program == replace(program, toolchain="")
    assert TileProgram.from_json(program.to_json()).toolchain == TILELANG
    assert "toolchain" not in replace(program, toolchain="").to_json()


@pytest.mark.parametrize(
    ("threads", "registers"),
    # 65536 registers of a core by 256, 384 and 512 threads, in steps of 8; consumers ask for 240, 240, 160
    [(128, 240), (256, 168), (384, 128)],
)
def test_moving_registers_between_warps_takes_the_whole_core(threads: int, registers: int) -> None:
    found = lower(product(threads, rows=192), machine(HOPPER))
    assert found.occupancy.threads == threads + 128
    assert found.occupancy.registers_per_thread == registers
    assert found.occupancy.blocks_per_core == 1
    assert any("setmaxnreg" in ground for ground in found.grounds)


def test_a_pipeline_inside_of_a_loop_moves_none() -> None:
    found = lower(product(128, nested=True), machine(HOPPER))
    assert found.occupancy.threads == 256
    assert found.occupancy.registers_per_thread < 240
    assert any("stands in another" in ground for ground in found.grounds)


def test_who_switches_specialisation_off_copies_by_threads() -> None:
    plain = lower(product(), machine(HOPPER))
    off = lower(product(switches={"tl.disable_warp_specialized": True}), machine(HOPPER))
    assert all(a.bulk for a in plain.accesses if a.direction == "read")
    assert not any(a.bulk for a in off.accesses)
    assert off.occupancy.threads == 128
    assert plain.occupancy.threads == 256


def test_rows_that_are_no_multiple_of_16_bytes_are_no_bulk_copies() -> None:
    """A tile of four columns of bf16 is eight bytes wide."""
    found = lower(product(columns=4, width=64), machine(HOPPER))
    assert [a.tensor for a in found.accesses if a.bulk] == ["a"]
    assert found.occupancy.threads == 256  # threads that copy are as many as those that compute


def test_products_take_the_instruction_that_the_source_allows() -> None:
    assert lower(product(), machine(AMPERE)).instructions == {"mma_sync"}
    assert lower(product(), machine(HOPPER)).instructions == {"wgmma"}
    assert lower(product(rows=32), machine(HOPPER)).instructions == {"mma_sync"}
    assert lower(product(switches={"tl.disable_wgmma": True}), machine(HOPPER)).instructions == {"mma_sync"}
    blackwell = lower(product(), machine(BLACKWELL))
    assert blackwell.instructions == {"mma_sync"}
    assert any("no tensor memory" in ground for ground in blackwell.grounds)
    assert lower(replace(product(), toolchain=LIBRARY), machine(BLACKWELL)).instructions == {"tcgen05"}


def test_roles_that_the_source_writes_out_are_kept() -> None:
    """No warps are added to a producer and consumers of the author's own, and his copies stay his."""
    program = produced()
    found = lower(replace(program, toolchain=TILELANG), machine(HOPPER))
    assert found.occupancy.threads == program.threads
    assert [a.bulk for a in found.accesses if a.direction == "read" and a.loops] == [True, True]
    (loop,) = (node for node in found.nodes if isinstance(node, Loop))
    assert loop.run_ahead
    assert not any("setmaxnreg" in ground for ground in found.grounds)


def test_barriers_are_no_reason_to_refuse_tiles_that_fit() -> None:
    """Three versions of 128 rows of 64 elements of either operand are all that a block may have here."""
    whole = 3 * (128 + 128) * 64 * 2
    assert lower(product(), machine(HOPPER)).occupancy.scratchpad_bytes == whole + 1024
    narrow = replace(machine(HOPPER), scratchpad_block_bytes=whole)
    assert lower(product(), narrow).occupancy.scratchpad_bytes == whole


def test_no_clusters_that_the_source_does_not_ask_for() -> None:
    assert lower(product(), machine(HOPPER)).pair_var == ""
    assert lower(replace(product(), toolchain=LIBRARY), machine(HOPPER)).pair_var


def test_values_that_do_not_fit_are_spilled_and_cost_time() -> None:
    """A warp's 64 rows of 256 columns are more than the 255 registers that an instruction can name."""
    fits, spills = (product(128, rows=rows, columns=256, width=32) for rows in (64, 256))
    small, large = (lower(p, machine(AMPERE)) for p in (fits, spills))
    assert large.occupancy.registers_per_thread == 255
    assert any("spill" in ground for ground in large.grounds)
    assert not any("spill" in ground for ground in small.grounds)
    assert small.occupancy.spilled_bytes == 0
    assert large.occupancy.spilled_bytes > 4 * (256 * 256 // 128 - 255)  # the accumulator alone
    with pytest.raises(SimulationError, match="registers"):
        lower(replace(spills, toolchain=LIBRARY), machine(AMPERE))

    def scratchpad_s(work: Workload) -> float:
        products = [op for op in _operations(work.nodes) if op.kind == "matrix"]
        return sum(dict(op.work)["scratchpad"] for op in products)

    # Of operands it reads twice as many bytes: two by two warps instead of one by four.
    assert scratchpad_s(large) > 5 * scratchpad_s(small)


def _operations(nodes: tuple[Node, ...]) -> Iterator[Op]:
    for node in nodes:
        if isinstance(node, Op):
            yield node
        elif isinstance(node, Loop):
            yield from _operations(node.body)


@pytest.mark.parametrize("chip", ["ascend-910b3", "mi300x"])
def test_machines_that_nvcc_makes_no_code_for_keep_their_rules(chip: str) -> None:
    program = product(width=32)
    assert lower(program, machine(chip)) == lower(replace(program, toolchain=""), machine(chip))


@pytest.mark.parametrize("name", operator_names())
def test_what_is_assumed_fits_the_core(name: str) -> None:
    operator, pick = load_operator(name), random.Random(name)
    shape = operator.shape(**operator.example)
    configs = list(operator.configs(shape))
    for chip in (AMPERE, HOPPER, BLACKWELL):
        m = machine(chip)
        for config in pick.sample(configs, min(3, len(configs))):
            traced = operator.program(shape, config)
            for p in (traced,) if isinstance(traced, TileProgram) else traced:
                try:
                    held = lower(made_by(p, TILELANG), m).occupancy
                except SimulationError:
                    continue
                whole = -(-held.registers_per_thread // 8) * 8 * held.threads
                assert whole * held.blocks_per_core <= m.register_bytes // 4
                assert held.registers_per_thread <= 255
                assert held.threads >= p.threads


def test_a_prediction_says_who_makes_the_kernel() -> None:
    shape = {"m": 1024, "n": 1024, "k": 1024}
    library = foretile.predict("gemm", HOPPER, model="cost_model", **shape)
    compiled = foretile.predict("gemm", HOPPER, model="cost_model", toolchain="tilelang", **shape)
    assert library.model["toolchain"] == LIBRARY
    assert "assumed" not in library.model
    assert compiled.model["toolchain"] == TILELANG
    assert compiled.model["assumed"]
    assert "no kernel of this family was measured" in compiled.model["calibration"]
    with pytest.raises(ValueError, match="library, tilelang"):
        foretile.predict("gemm", HOPPER, toolchain="gcc", **shape)  # type: ignore[arg-type]


def test_the_same_program_takes_as_long_however_it_is_held() -> None:
    """As an operator that TileLang compiles, or as the program itself that came from there."""
    operator = replace(load_operator("gemm"), toolchain=TILELANG)
    shape = operator.shape(m=1024, n=1024, k=1024)
    config = operator.config(shape, variant="tile", block_m=128, block_n=128, num_stages=3)
    program = operator.program(shape, config)
    assert isinstance(program, TileProgram)
    held = foretile.predict(made_by(program, TILELANG), HOPPER)
    assert predict(operator, shape, load_chip(HOPPER), config).time_s == pytest.approx(held.time_s)
