"""Pipelined loops that continue one another as one loop: the same bits, and only where that is certain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from foretile.kernels import language as T
from foretile.kernels.ir import For, If, TileProgram, walk_stmts
from foretile.kernels.operator import Config, Operator, Shape, load_operator
from foretile.kernels.tilelang.merge import one_pipeline
from foretile.simulator.numerics.execute import execute


def launches(operator: Operator, shape: Shape, config: Config) -> tuple[TileProgram, ...]:
    found = operator.program(shape, config)
    return (found,) if isinstance(found, TileProgram) else tuple(found)


def pipelines(program: TileProgram) -> list[For]:
    return [s for s in walk_stmts(program.body) if isinstance(s, For) and s.kind == "pipelined"]


def loops(
    *,
    middle: int = 3,
    second_from: int = 3,
    end: int = 10,
    between: bool = False,
    stages: int = 2,
    moves_more: bool = False,
) -> TileProgram:
    """Sums of rows of A in two loops, the second of which takes squares away and adds them again."""

    @T.prim_func
    def sums(A: T.Tensor((4, 640, 32), "float32"), B: T.Tensor((4, 32), "float32")) -> None:
        with T.Kernel(4, threads=128) as bx:
            tile = T.alloc_shared((64, 32), "float32")
            part = T.alloc_fragment((32,), "float32")
            total = T.alloc_fragment((32,), "float32")
            T.clear(total)
            for k in T.Pipelined(bx + middle, num_stages=2):
                T.copy(A[bx, k * 64 : k * 64 + 64, :], tile)
                T.reduce_sum(tile, part, dim=0)
                for i in T.Parallel(32):
                    total[i] = total[i] * 0.5
                for i in T.Parallel(32):
                    total[i] = total[i] + part[i]
            if between:
                T.clear(total)
            for k in T.Pipelined(bx + second_from, end, num_stages=stages):
                T.copy(A[bx, k * 64 : k * 64 + 64, :], tile)
                if moves_more:
                    T.copy(A[bx, k * 64 : k * 64 + 64, :], tile)
                T.reduce_sum(tile, part, dim=0)
                for i in T.Parallel(32):
                    part[i] = T.if_then_else(k + i < 20, part[i], 0.0)
                for i in T.Parallel(32):
                    total[i] = total[i] + part[i]
            T.copy(total, B[bx, :])

    made: Any = sums
    return made  # type: ignore[no-any-return]


def test_loops_that_continue_one_another_are_one() -> None:
    program = loops()
    one = one_pipeline(program)
    (loop,) = pipelines(one)
    (branch,) = (s for s in loop.body if isinstance(s, If))  # halving in the first, the mask in the second
    assert len(branch.then) == len(branch.orelse) == 1
    assert [type(s).__name__ for s in loop.body] == ["Copy", "Reduce", "If", "For"]
    A = np.random.default_rng(3).standard_normal((4, 640, 32)).astype(np.float32)
    given, made = (execute(p, {"A": A}, outputs=["B"]).tensors["B"] for p in (program, one))
    assert made.tobytes() == given.tobytes()
    assert one_pipeline(one) is one


@pytest.mark.parametrize(
    "program",
    [
        loops(second_from=4),
        loops(end=5),  # no iterations are left in the last block, and fewer than none
        loops(middle=-1, second_from=-1),  # the first block has fewer than none
        loops(between=True),
        loops(stages=3),
        loops(moves_more=True),
    ],
    ids=[
        "a gap",
        "ends before it begins",
        "begins before it",
        "work between",
        "other stages",
        "other copies",
    ],
)
def test_loops_that_may_not_be_one_stay_apart(program: TileProgram) -> None:
    assert one_pipeline(program) is program


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("attention_prefill", {}),
        ("attention_prefill", {"window": 100, "prefix": 90}),
        ("attention_prefill", {"causal": False}),
        ("mla_prefill", {}),
    ],
)
def test_attention_is_one_loop_and_computes_the_same(name: str, sizes: dict[str, Any]) -> None:
    operator = load_operator(name)
    shape = operator.shape(**{**operator.example, **sizes})
    inputs = operator.inputs(shape, np.random.default_rng(7))
    results = list(operator.reference(shape, **inputs))
    config = next(c for c in operator.configs(shape) if c["block_m"] <= 64 and c["block_n"] <= 32)
    (given,) = launches(operator, shape, config)
    made = one_pipeline(given)
    assert len(pipelines(given)) > len(pipelines(made)) == 1
    one, other = (execute(program, inputs, outputs=results).tensors for program in (given, made))
    for (
        tensor
    ) in results:  # the host computes tiles of other numbers of blocks at a time: last bits may differ
        a, b = (x[tensor].astype(np.float64) for x in (one, other))
        np.testing.assert_allclose(a, b, rtol=2**-7, atol=2**-12)
        assert np.mean(a != b) < 1e-3
