"""Products that the matrix engine scales: what they compute, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from foretile.frontdoor import predict
from foretile.hwmodels import load_chip
from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.simulator.lowering import lower
from foretile.simulator.machine import SimulationError
from foretile.simulator.numerics.execute import execute
from foretile.simulator.predictor import machine_of
from foretile.simulator.workload import Loop, Node, Op

E2M1, E4M3, E8M0 = ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu


def tiles(
    element: str, scale: str, groups: tuple[int, int], transposed: bool, accumulate: bool
) -> TileProgram:
    """Two blocks: C[x] (+)= (op(A) · SA) (op(B[x]) · SB[x])."""
    a_shape, b_shape = ((64, 32), (64, 48)) if transposed else ((32, 64), (48, 64))

    @T.prim_func
    def kernel(
        A: T.Tensor(a_shape, element),  # type: ignore[valid-type]
        SA: T.Tensor((32, groups[0]), scale),  # type: ignore[valid-type]
        B: T.Tensor((2, *b_shape), element),  # type: ignore[valid-type]
        SB: T.Tensor((2, 48, groups[1]), scale),  # type: ignore[valid-type]
        C: T.Tensor((2, 32, 48), "float32"),  # type: ignore[valid-type]
    ) -> None:
        with T.Kernel(2, threads=128) as x:
            a = T.alloc_shared(a_shape, element)
            b = T.alloc_shared(b_shape, element)
            sa = T.alloc_shared((32, groups[0]), scale)
            sb = T.alloc_shared((48, groups[1]), scale)
            c = T.alloc_fragment((32, 48), "float32")
            T.copy(A, a)
            T.copy(B[x, 0 : b_shape[0], 0 : b_shape[1]], b)
            T.copy(SA, sa)
            T.copy(SB[x, 0:48, 0 : groups[1]], sb)
            T.fill(c, 1.0)
            T.gemm_blockscaled(
                a,
                b,
                c,
                sa,
                sb,
                transpose_A=transposed,
                transpose_B=not transposed,
                clear_accum=not accumulate,
            )
            T.copy(c, C[x, 0:32, 0:48])

    program: TileProgram = kernel
    return program


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    ("element", "scale", "groups"),
    [
        (("float4_e2m1", E2M1), ("float8_e4m3", E4M3), (4, 4)),
        (("float4_e2m1", E2M1), ("float8_e8m0", E8M0), (2, 1)),
        (("float8_e4m3", E4M3), ("float8_e8m0", E8M0), (1, 4)),
    ],
)
def test_every_element_is_multiplied_by_the_scale_of_its_group(
    element: Any, scale: Any, groups: tuple[int, int], transposed: bool, accumulate: bool
) -> None:
    rng = np.random.default_rng(3)
    program = tiles(element[0], scale[0], groups, transposed, accumulate)
    given = {
        "A": (rng.integers(-16, 17, (32, 64)) / 4).astype(element[1]),
        "SA": np.exp2(rng.integers(-3, 4, (32, groups[0]))).astype(scale[1]),
        "B": (rng.integers(-16, 17, (2, 48, 64)) / 4).astype(element[1]),
        "SB": np.exp2(rng.integers(-3, 4, (2, 48, groups[1]))).astype(scale[1]),
    }
    if scale[1] is E4M3:  # not powers of two: each product with an element still has five bits
        given["SB"] = (given["SB"].astype(np.float32) * 1.375).astype(E4M3)
    x = {k: v.astype(np.float64) for k, v in given.items()}
    want = np.full((2, 32, 48), 1.0 if accumulate else 0.0)
    for t in range(2):
        for k in range(64):
            a = x["A"][:, k] * x["SA"][:, k * groups[0] // 64]
            want[t] += np.outer(a, x["B"][t, :, k] * x["SB"][t, :, k * groups[1] // 64])
    stored = (
        {**given, "A": given["A"].T.copy(), "B": given["B"].swapaxes(1, 2).copy()} if transposed else given
    )
    got = execute(program, stored).tensors["C"]
    np.testing.assert_array_equal(got, want)  # few bits, and sums far below 2^24: float32 is exact


@pytest.mark.parametrize("chip", ["b200", "b300", "gb300", "rtx-pro-6000"])
def test_scaling_in_the_engine_costs_no_vector_work(chip: str) -> None:
    shape = {"m": 8192, "n": 8192, "k": 8192}
    scaled = predict("gemm_nvfp4", chip, **shape)
    assert scaled.config["product"] == "fp4"
    assert scaled.utilisation["vector"] < 0.1
    bf16, fp8 = (predict("gemm", chip, dtype=d, trans_b=True, **shape) for d in ("bf16", "fp8"))
    assert fp8.time_s / scaled.time_s > 1.4
    assert 2.8 < bf16.time_s / scaled.time_s < 6.0


def products(nodes: tuple[Node, ...]) -> Iterator[Op]:
    for node in nodes:
        if isinstance(node, Op) and node.kind == "matrix":
            yield node
        elif isinstance(node, Loop):
            yield from products(node.body)


def test_scales_are_read_with_their_operands() -> None:
    """Four times the groups: more scratchpad traffic, by the bytes of the scales, and the same products."""
    machine = machine_of(load_chip("b200"))
    one, four = (
        next(products(lower(tiles("float8_e4m3", "float8_e8m0", g, False, False), machine).nodes))
        for g in ((1, 1), (4, 4))
    )
    assert dict(one.work)["matrix"] == dict(four.work)["matrix"]
    loaded = machine.under_matrix_load()
    more = (dict(four.work)["scratchpad"] - dict(one.work)["scratchpad"]) * loaded.scratchpad_bytes_per_s
    # 128 rows of A (the instruction's), and the half of B's 48 that each core of a pair holds.
    assert more == pytest.approx(3 * (128 + 48 / 2))


def test_few_rows_fill_the_instruction_of_128() -> None:
    """The older instruction of 16 rows takes no scales, so there is nothing to fall back to."""
    machine = machine_of(load_chip("b200"))
    (scaled,) = products(lower(tiles("float8_e4m3", "float8_e8m0", (1, 1), False, False), machine).nodes)
    assert scaled.flops == 4 * scaled.tile_flops


@pytest.mark.parametrize("chip", ["h100", "a100", "l40s", "metax-c550", "ascend-910b3"])
def test_engines_that_do_not_scale_refuse(chip: str) -> None:
    shape = {"m": 4096, "n": 4096, "k": 4096}
    with pytest.raises(SimulationError, match=r"fp4|block-scaled"):
        predict("gemm_nvfp4", chip, **shape, config={"product": "fp4", "variant": "tile"})
    widened = predict("gemm_nvfp4", chip, **shape)
    assert widened.config["product"] == "bf16"
    assert widened.time_s > 0.9 * predict("gemm", chip, **shape, trans_b=True).time_s
