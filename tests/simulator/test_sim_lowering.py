"""What lowering decides: instruction intervals, occupancy, pipelines, refusals."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from foretile.frontdoor import predict
from foretile.hwmodels import Chip, load_chip
from foretile.kernels import language as T
from foretile.kernels.load import from_script
from foretile.kernels.operator import load_operator
from foretile.simulator.launches import workloads
from foretile.simulator.lowering import lower
from foretile.simulator.machine import SimulationError
from foretile.simulator.predictor import machine_of
from foretile.simulator.search import evaluate_config
from foretile.simulator.workload import Loop, Node, Op, Workload

TILE = {
    "variant": "tile",
    "block_m": 128,
    "block_n": 128,
    "block_k": 64,
    "num_stages": 3,
    "threads": 256,
    "swizzle": 8,
}
SHAPE = {"m": 8192, "n": 8192, "k": 4096}


def gemm_workload(chip: str | Chip, **config: Any) -> Workload:
    operator = load_operator("gemm")
    shape = operator.shape(**SHAPE)
    return workloads(
        operator, shape, operator.config(shape, **{**TILE, **config}), machine_of(load_chip(chip))
    )[0]


def operations(nodes: tuple[Node, ...]) -> list[Op]:
    found: list[Op] = []
    for node in nodes:
        if isinstance(node, Op):
            found.append(node)
        elif isinstance(node, Loop):
            found += [*node.loads, *operations(node.body)]
        else:
            found += [*operations(node.then), *operations(node.orelse)]
    return found


def labelled(workload: Workload, start: str) -> list[Op]:
    return [op for op in operations(workload.nodes) if op.label.startswith(start)]


# -- matrix instructions -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [64, 128, 256])
def test_a_wgmma_takes_the_measured_interval(n: int) -> None:
    """m64nNk16 from shared memory: max(N / 2, (2048 + 32 N) / 128) + 0.7 cycles (measured on H100)."""
    chip = load_chip("h100-sxm5-80gb", calibrated=False)
    workload = gemm_workload(chip, block_m=64, block_n=n, block_k=16, threads=128)
    (product,) = labelled(workload, "gemm")
    work = dict(product.work)
    clock = chip.clock.matrix_burst_hz
    assert clock is not None
    matrix = work["matrix"] * chip.matrix.mainloop_fraction.value
    cycles = max(matrix, work["scratchpad"]) * clock.value
    assert cycles == pytest.approx(max(n / 2, (2048 + 32 * n) / 128) + 0.7, rel=0.05)


def test_a_tcgen05_product_reads_half_of_b_for_each_core_of_a_pair() -> None:
    """Two cores, M256: per core its own A and half of B (2 · 64 · (128 + 256 / 2) bytes a 64-deep step)."""
    workload = gemm_workload("b200-sxm", block_n=256)
    (product,) = labelled(workload, "gemm")
    m = workload.machine.under_matrix_load()
    assert dict(product.work)["scratchpad"] * m.scratchpad_bytes_per_s == pytest.approx(2 * 64 * (128 + 128))


def test_half_filled_instructions_are_padded_and_counted() -> None:
    p = predict("gemm", "a100-sxm4-80gb", m=8, n=4096, k=4096, config=TILE | {"block_m": 16, "threads": 128})
    assert p.overhead_flops["tile_padding_and_masking"] == pytest.approx(p.flops)
    assert p.overhead_flops["instruction_padding"] == 0
    (product,) = labelled(gemm_workload("h100-sxm5-80gb", block_m=48, threads=128), "gemm")
    assert product.flops == pytest.approx(product.tile_flops * 64 / 48)


def test_few_rows_fold_into_the_lanes_of_the_tensor_memory() -> None:
    """Half or a quarter of 128 rows fill the lanes with two or four groups of columns, at the full rate."""
    for rows in (32, 64, 128):
        workload = gemm_workload("b200-sxm", block_m=rows, block_n=128, threads=128)
        (product,) = labelled(workload, "gemm")
        assert product.flops == product.tile_flops
    # 64 x 512 in float32 are half of the tensor memory, so that two tiles of 64 x 64 fit beside them.
    sparse = load_operator("sparse_mla")
    shape = sparse.shape(batch=1, seq=1)
    config = next(c for c in sparse.configs(shape) if (c["block_h"], c["block_v"]) == (64, 512))
    assert (
        workloads(sparse, shape, config, machine_of(load_chip("b200-sxm")))[0].occupancy.blocks_per_core == 1
    )


@pytest.mark.parametrize("chip", ["a100-sxm4-80gb", "h100-sxm5-80gb", "b200-sxm"])
def test_gathered_rows_run_ahead_of_a_pipelined_loop(chip: str) -> None:
    """Rows that indices on the chip name are staged as tiles are, once for each stage."""
    sparse = load_operator("sparse_mla")
    shape = sparse.shape(batch=1, seq=1, heads=16)
    for stages in (1, 2):
        config = sparse.config(
            shape, block_h=16, block_n=16, block_v=512, num_stages=stages, threads=128, num_split=1
        )
        workload = workloads(sparse, shape, config, machine_of(load_chip(chip)))[0]
        (loop,) = (node for node in workload.nodes if isinstance(node, Loop))
        staged = [op for op in loop.loads if workload.accesses[op.access].tensor == "KV"]
        assert [op.writes for op in staged] == ["KV_shared", "K_rope_shared"]
        # A tensor copy takes named rows by itself; where there is none, threads issue 16 bytes each.
        assert bool(dict(staged[0].work)) is (chip != "b200-sxm")
        tile = 2 * 16 * 576 + 4 * 16
        assert workload.occupancy.scratchpad_bytes == 2 * 16 * 576 + 2 * 16 * 16 + stages * tile


def test_few_rows_fall_back_to_the_narrow_instruction() -> None:
    """16 rows on Hopper: padding to 64 costs four times the work, mma.sync 1 / 0.63."""
    sixteen = labelled(gemm_workload("h100-sxm5-80gb", block_m=16, threads=128), "gemm")[0]
    sixty_four = labelled(gemm_workload("h100-sxm5-80gb", block_m=64, threads=128), "gemm")[0]
    assert sixteen.flops == sixteen.tile_flops
    assert dict(sixteen.work)["matrix"] == pytest.approx(dict(sixty_four.work)["matrix"] / 4 / 0.63, rel=1e-6)


@pytest.mark.parametrize(
    "chip", ["a100-sxm4-80gb", "h100-sxm5-80gb", "b200-sxm", "ascend-910b3", "metax-c550"]
)
def test_deeper_pipelines_are_never_slower_while_they_fit(chip: str) -> None:
    times = []
    for stages in (2, 3, 4, 5, 6):
        try:
            config = TILE | {"num_stages": stages, "block_n": 64, "block_k": 32}
            # As many blocks as cores: residency, which deeper pipelines cost, plays no part.
            p = predict("gemm", chip, m=512, n=512, k=16384, config=config, model="cost_model")
        except SimulationError:
            break
        times.append(p.time_s)
    assert len(times) >= 2
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(times)), times


# -- occupancy ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chip", "config", "name", "blocks"),
    [
        # 3 · 2 · 128 · 64 · 2 bytes + 1024 reserved: 233472 // 99328
        ("h100-sxm5-80gb", {}, "shared memory", 2),
        ("a100-sxm4-80gb", {}, "shared memory", 1),
        # 128 × 128 fp32 over 256 threads + 32: 96 registers a thread, 65536 // (256 · 96)
        ("a100-sxm4-80gb", {"block_k": 32, "num_stages": 2}, "registers", 2),
        # 128 lanes × 256 columns × 4 bytes of 256 KiB
        ("b200-sxm", {"block_n": 256, "block_k": 16, "num_stages": 2}, "tensor memory", 2),
    ],
)
def test_the_resource_that_limits_occupancy_is_named(chip: str, config: Any, name: str, blocks: int) -> None:
    occupancy = gemm_workload(chip, **config).occupancy
    assert (occupancy.limited_by, occupancy.blocks_per_core) == (name, blocks)


def test_threads_and_block_slots_limit_occupancy_too() -> None:
    def resident(threads: int) -> tuple[str, int]:
        @T.prim_func
        def program(A: T.Tensor((4096,), "float32"), B: T.Tensor((4096,), "float32")) -> None:  # type: ignore[valid-type]
            with T.Kernel(4, threads=threads) as bx:
                for i in T.Parallel(1024):
                    B[bx * 1024 + i] = A[bx * 1024 + i] + 1.0

        found = lower(program, machine_of(load_chip("l40s"))).occupancy
        return found.limited_by, found.blocks_per_core

    assert resident(1024) == ("threads", 1)
    assert resident(32) == ("blocks", 24)


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chip", "config", "numbers"),
    [
        (
            "a100-sxm4-80gb",
            {"block_m": 256, "block_n": 256, "num_stages": 4},
            ("262144 bytes", "166912", "shared memory"),
        ),
        (
            "a100-sxm4-80gb",
            {"block_m": 256, "block_n": 256, "block_k": 32, "num_stages": 2},
            ("288 registers", "255"),
        ),
        ("h100-sxm5-80gb", {"threads": 2048}, ("2176 threads", "1024")),
        ("ascend-910b3", {"block_m": 256, "block_n": 256}, ("262144 bytes of L0C", "131072")),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers(
    chip: str, config: Any, numbers: tuple[str, ...]
) -> None:
    with pytest.raises(SimulationError) as refused:
        predict("gemm", chip, config=TILE | config, **SHAPE)
    for part in (*numbers, chip, "gemm"):
        assert part in str(refused.value)


def test_arithmetic_that_a_chip_lacks_is_refused_with_what_it_has() -> None:
    with pytest.raises(SimulationError, match=r"a100-sxm4-80gb: matrix\.flop_per_cycle\.fp8: unknown.*bf16"):
        predict("gemm", "a100-sxm4-80gb", m=256, n=256, k=256, dtype="fp8")


# -- what is counted ---------------------------------------------------------------------------


def test_special_functions_and_conversions_are_counted_by_pipe() -> None:
    @T.prim_func
    def program(A: T.Tensor((1024,), "float32"), B: T.Tensor((1024,), "bfloat16")) -> None:  # type: ignore[valid-type]
        with T.Kernel(1, threads=256) as bx:
            x = T.alloc_fragment((1024,), "float32")
            T.copy(A[bx * 1024], x)
            for i in T.Parallel(1024):
                x[i] = T.exp2(x[i])
            T.copy(x, B[bx * 1024])

    workload = lower(program, machine_of(load_chip("h100-sxm5-80gb")))
    m = workload.machine
    (power,) = labelled(workload, "x = ")
    assert dict(power.work)["special"] * m.special_per_s == pytest.approx(1024)
    (out,) = labelled(workload, "copy x")
    assert dict(out.work)["vector"] >= 1024 / m.convert_per_s * (1 - 1e-9)


def test_a_pipelined_loop_loads_ahead_and_counts_its_trips() -> None:
    workload = gemm_workload("h100-sxm5-80gb", num_stages=4)
    (loop,) = (n for n in workload.nodes if isinstance(n, Loop))
    assert loop.stages == 4
    assert len(loop.loads) == 2
    assert workload.agents == 2  # 256 threads: two warp groups
    serial = gemm_workload("h100-sxm5-80gb", num_stages=0)
    (loop,) = (n for n in serial.nodes if isinstance(n, Loop))
    assert (loop.stages, loop.loads) == (1, ())


def test_an_unknown_statement_in_a_parallel_nest_is_refused_with_its_line() -> None:
    @T.prim_func
    def program(A: T.Tensor((64, 64), "float32")) -> None:  # type: ignore[valid-type]
        with T.Kernel(1, threads=128):
            x = T.alloc_fragment((64, 64), "float32")
            for _ in T.Parallel(64):
                T.copy(A, x)

    with pytest.raises(SimulationError, match=r"test_sim_lowering\.py.*Copy inside T\.Parallel"):
        lower(program, machine_of(load_chip("h100-sxm5-80gb")))


@pytest.mark.parametrize("statement", ["if x > 0:", "for k in T.serial(T.cast(x, 'int32')):", "while x > 0:"])
def test_what_the_kernel_itself_decides_is_refused_with_its_line(statement: str) -> None:
    text = f"""@T.prim_func
def kernel(A: T.Tensor((64,), "float32")):
    with T.Kernel(4, threads=32) as bx:
        x = T.alloc_var("float32", init=0)
        x = A[bx]
        {statement}
            x = x - 1
"""
    with pytest.raises(
        SimulationError, match=r"^<tile script \d+>:6: .*(value of x, which|while loop's trip)"
    ):
        lower(from_script(text), machine_of(load_chip("h100")))


@pytest.mark.parametrize("chip", ["b200-sxm", "b300-sxm", "gb200", "gb300"])
@pytest.mark.parametrize("kv_dtype", ["bf16", "fp8"])
def test_few_rows_take_little_tensor_memory_so_wide_heads_fit(chip: str, kv_dtype: str) -> None:
    """Sixteen rows of few columns run on the older instruction, those of many fold into the lanes.

    Padded to 128 rows, the results of a head of 512 would leave no tensor memory for scores.
    """
    operator = load_operator("attention_decode")
    config = {"block_h": 16, "block_n": 16, "num_stages": 2, "threads": 128, "num_split": 4}
    shape = operator.shape(
        batch=4, kv_len=4096, heads=8, kv_heads=1, head_dim=512, dtype="bf16", kv_dtype=kv_dtype
    )
    machine = machine_of(load_chip(chip))
    split = workloads(operator, shape, config, machine)[0]
    assert split.occupancy.limited_by != "tensor memory"
    moved = sum(s for op in operations(split.nodes) for engine, s in op.work if engine == "tensor_memory")
    scores = config["block_h"] * config["block_n"] * 4 / machine.tensor_memory_bytes_per_s
    results = config["block_h"] * 512 * 4 / machine.tensor_memory_bytes_per_s
    assert results <= moved < 4 * results, "the results pass through it, fetched and written back"
    assert scores < 0.1 * moved


def test_a_sum_over_columns_fetches_each_of_them_from_the_tensor_memory() -> None:
    """The same scores leave it whether one statement reads all of a row or each reads one of them."""
    indexer = load_operator("indexer_logits")
    shape = indexer.shape(batch=1, seq=64, heads=32, kv_len=4096, causal=False)
    fetched = [
        evaluate_config(
            indexer,
            shape,
            indexer.config(shape, block_q=4, block_n=128, num_stages=3, threads=256, chunk=0, joined=joined),
            machine_of(load_chip("b200-sxm")),
        )
        .estimates[0]
        .busy["tensor_memory"]
        for joined in (False, True)
    ]
    assert np.ravel(fetched[1]) == pytest.approx(np.ravel(fetched[0]), rel=0.05)
