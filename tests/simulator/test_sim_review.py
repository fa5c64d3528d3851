"""The reviewer finds what was planted, says where, and is silent about what is well made."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretile.hwmodels import load_chip
from foretile.kernels import language as T
from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import Const, Var, binary, evaluate
from foretile.kernels.ir import Buffer, For, Region, TileProgram, walk_stmts
from foretile.kernels.operator import OperatorError
from foretile.simulator.review import Finding, Review, review
from foretile.simulator.review.conflicts import degree
from foretile.simulator.review.moves import VECTOR_BYTES, divisor, width_bytes
from foretile.simulator.review.trips import placed

CHIP = "h200-sxm"


def gemm(m: int, n: int, k: int, stages: int, tile: int = 128) -> TileProgram:
    @T.prim_func
    def matmul(
        A: T.Tensor((m, k), "bfloat16"), B: T.Tensor((k, n), "bfloat16"), C: T.Tensor((m, n), "bfloat16")
    ):  # type: ignore[no-untyped-def]
        with T.Kernel(T.ceildiv(n, tile), T.ceildiv(m, tile), threads=256) as (bx, by):
            a = T.alloc_shared((tile, 64), "bfloat16")
            b = T.alloc_shared((64, tile), "bfloat16")
            c = T.alloc_fragment((tile, tile), "float32")
            T.clear(c)
            for ko in T.Pipelined(T.ceildiv(k, 64), num_stages=stages):
                T.copy(A[by * tile, ko * 64], a)
                T.copy(B[ko * 64, bx * tile], b)
                T.gemm(a, b, c)
            T.copy(c, C[by * tile, bx * tile])

    return matmul  # type: ignore[no-any-return]


def transpose(pad: int) -> TileProgram:
    @T.prim_func
    def turn(A: T.Tensor((1024, 1024), "float32"), B: T.Tensor((1024, 1024), "float32")):  # type: ignore[no-untyped-def]
        with T.Kernel(16, 16, threads=256) as (bx, by):
            tile = T.alloc_shared((64, 64 + pad), "float32")
            for i, j in T.Parallel(64, 64):
                tile[i, j] = A[by * 64 + i, bx * 64 + j]
            for i, j in T.Parallel(64, 64):
                B[bx * 64 + i, by * 64 + j] = tile[j, i]

    return turn  # type: ignore[no-any-return]


def looked_over(program: TileProgram, **how: Any) -> Review:
    return review(program, load_chip(CHIP), **how)


def about(found: Review, rule: str) -> list[Finding]:
    return [f for f in found.findings if f.rule == rule]


def test_a_shallow_pipeline_is_noticed_with_its_line_and_what_deepening_it_brings() -> None:
    program = gemm(4096, 4096, 4096, stages=1)
    (loop,) = [s for s in walk_stmts(program.body) if isinstance(s, For)]
    (said,) = about(looked_over(program, run=False), "pipeline depth")
    assert said.loc == loop.loc
    assert said.gain is not None
    before = looked_over(program, run=False).time_s
    depth = int(said.message.split("num_stages=")[2].split()[0])
    after = looked_over(gemm(4096, 4096, 4096, stages=depth), run=False).time_s
    assert before is not None
    assert after is not None
    assert 1 - after / before == pytest.approx(said.gain)
    assert not about(looked_over(gemm(4096, 4096, 4096, stages=depth), run=False), "pipeline depth")


def test_a_last_wave_that_leaves_cores_idle_is_noticed() -> None:
    cores = load_chip(CHIP).cores.value
    (said,) = about(looked_over(gemm(128 * 8, 128, 512, stages=3), run=False), "wave quantisation")
    assert f"8 blocks for {cores} cores" in said.message
    assert said.gain is not None
    assert 0 < said.gain <= 1 - 8 / cores


def test_rows_that_are_no_multiple_of_16_bytes_keep_the_tensor_copy_engine_away() -> None:
    found = looked_over(gemm(512, 1001, 512, stages=3), run=False)
    assert ["B" in f.message for f in about(found, "tensor copy")] == [True]
    assert not about(looked_over(gemm(512, 1000, 512, stages=3), run=False), "tensor copy")


def test_a_transposed_read_conflicts_and_a_padded_row_does_not() -> None:
    (said,) = about(looked_over(transpose(pad=0)), "bank conflicts")
    assert said.message.startswith("32 lanes")
    assert not about(looked_over(transpose(pad=1)), "bank conflicts")


@given(pitch=st.integers(1, 96), dtype=st.sampled_from(["float32", "float16"]))
def test_lanes_that_walk_down_a_column_conflict_as_often_as_the_pitch_says(pitch: int, dtype: str) -> None:
    lanes = For((Var("i"),), (Const(32),), "parallel", ())
    buffer = Buffer("tile", (Const(32), Const(pitch)), dtype, "shared")
    size = int(DTYPES[dtype].bytes)
    words = {lane: lane * pitch * size // 4 for lane in range(32)}
    by_bank: dict[int, set[int]] = {}
    for word in words.values():
        by_bank.setdefault(word % 32, set()).add(word)
    if pitch == 1:  # side by side: a lane takes several, and nothing conflicts
        assert degree(buffer, (Var("i"), Const(0)), lanes, [32], 32) == 1
        return
    expected = max(len(found) for found in by_bank.values())
    assert degree(buffer, (Var("i"), Const(0)), lanes, [32], 32) == expected
    if dtype == "float32":
        assert expected == math.gcd(pitch, 32)


@given(
    rows=st.integers(1, 8),
    columns=st.integers(1, 64),
    tile=st.integers(1, 64),
    step=st.integers(1, 64),
    dtype=st.sampled_from(["float32", "bfloat16", "float8_e4m3"]),
)
def test_no_access_of_the_stated_width_is_misaligned(
    rows: int, columns: int, tile: int, step: int, dtype: str
) -> None:
    buffer = Buffer("A", (Const(64), Const(columns)), dtype, "global")
    low = binary("mul", Var("bx"), Const(step))
    region = Region("A", (Var("i"), low), (Const(rows), Const(tile)))
    width, _ = width_bytes(region, buffer, {})
    size = int(DTYPES[dtype].bytes)
    assert VECTOR_BYTES % width == 0
    for bx in range(3):
        for i in range(3):
            for row in range(rows):
                begin = ((i + row) * columns + int(evaluate(low, {"bx": bx}))) * size
                assert begin % width == 0
    assert tile * size % width == 0 or (tile == columns and rows * tile * size % width == 0)


@given(a=st.integers(-50, 50), b=st.integers(1, 40), x=st.integers(-20, 20), y=st.integers(-20, 20))
def test_every_value_is_a_multiple_of_the_divisor(a: int, b: int, x: int, y: int) -> None:
    e = binary("add", binary("mul", Var("x"), Const(b)), binary("mul", Const(a), Var("y")))
    value = int(evaluate(e, {"x": x, "y": y}))
    assert value % divisor(e, {}) == 0


def test_what_was_never_written_is_an_error_with_its_line() -> None:
    @T.prim_func
    def unset(B: T.Tensor((128,), "float32")):  # type: ignore[no-untyped-def]
        with T.Kernel(1, threads=128):
            x = T.alloc_fragment((128,), "float32")
            for i in T.Parallel(128):
                B[i] = x[i]

    found = looked_over(unset)
    (said,) = about(found, "execution")
    assert not found.ok
    assert said.loc is not None
    assert "never written" in said.message
    assert str(said.loc) not in said.message


def test_a_reference_tells_right_from_wrong() -> None:
    program = gemm(128, 128, 128, stages=2)
    assert looked_over(program, reference=lambda A, B: A @ B).ok
    for reference, said in (
        (lambda A, B: {"C": A @ B + 1}, "no element"),
        (lambda A, B: A @ B + 999, "should be"),
    ):
        wrong = looked_over(program, reference=reference)
        assert not wrong.ok
        assert [said in f.message for f in about(wrong, "numerics")] == [True]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (lambda A, B: {"D": A @ B}, r"gives 'D'; the kernel has A, B, C"),
        (lambda A: A, r"the reference failed on A, B: TypeError"),
    ],
)
def test_a_reference_that_does_not_fit_is_told(reference: Any, said: str) -> None:
    with pytest.raises(OperatorError, match=said):
        looked_over(gemm(128, 128, 128, stages=2), reference=reference)


def test_operands_that_are_given_are_used() -> None:
    program = gemm(128, 128, 128, stages=2)
    ones = np.ones((128, 128), dtype=np.float32)
    given_a = {"A": ones.astype(ml_dtypes.bfloat16)}
    assert looked_over(program, tensors=given_a, reference=lambda A, B: np.ones_like(A) @ B).ok


def test_chips_that_cannot_run_it_say_why() -> None:
    others = [load_chip(name) for name in ("h200-sxm", "v100", "t4")]
    found = review(gemm(256, 256, 256, stages=6), load_chip(CHIP), run=False, others=others)
    assert found.ports[0].time_s == found.time_s
    for port in found.ports[1:]:
        assert port.time_s is None
        assert port.reason


def test_points_dealt_to_blocks_are_counted_once_and_what_follows_once_a_block() -> None:
    @T.prim_func
    def dealt(A: T.Tensor((640, 640), "float32"), B: T.Tensor((132,), "float32")):  # type: ignore[no-untyped-def]
        with T.Kernel(132, threads=128) as b:
            x = T.alloc_fragment((128, 128), "float32")
            for i, j in T.Persistent([5, 5], 132, b):
                for _k in T.serial(3):
                    T.copy(A[i * 128, j * 128], x)
            B[b] = 1.0

    by_kind = {type(p.stmt).__name__: p.executions for p in placed(dealt)}
    assert by_kind["Copy"] == pytest.approx(5 * 5 * 3)
    assert by_kind["Store"] == pytest.approx(132)


def test_executions_count_every_block_and_iteration() -> None:
    program = gemm(300, 500, 640, stages=2)
    products = [p for p in placed(program) if type(p.stmt).__name__ == "Gemm"]
    assert [p.executions for p in products] == [3 * 4 * 10]
