"""What only running a kernel tells, and registers that do not fit, are timed with a warning."""

from __future__ import annotations

import re

import numpy as np
import pytest

import foretile
from foretile.hwmodels import load_chip
from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.simulator.lowering import lower
from foretile.simulator.machine import RegistersError, UndecidedError
from foretile.simulator.predictor import machine_of


@T.prim_func
def until(A: T.Tensor((64, 128), "float32"), N: T.Tensor((4,), "int32")) -> None:  # type: ignore[valid-type]
    with T.Kernel(1, threads=128) as _:
        row = T.alloc_fragment((128,), "float32")
        last = T.alloc_var("int32", init=0)
        for i in T.serial(4):
            last = T.max(last, N[i])
        for k in T.serial(last):
            T.copy(A[k, 0], row)


def _line() -> int:
    with pytest.raises(UndecidedError, match=r"depends on the value of last.*trips=") as refused:
        lower(until, machine_of(load_chip("h200-sxm")))
    found = re.search(r"\.py:(\d+)", str(refused.value))
    assert found is not None
    return int(found.group(1))


def test_the_refusal_says_how_to_time_it_and_that_works() -> None:
    line = _line()
    few, many = (
        foretile.predict(foretile.assume(until, trips={line: n}), "h200-sxm").time_s for n in (4, 64)
    )
    assert few < many


@pytest.mark.parametrize("longest", [5, 40])
def test_without_being_told_it_is_run_on_the_operands_given_to_see(longest: int) -> None:
    lengths = np.array([0, longest, 3, 2], np.int32)
    seen = foretile.predict(until, "h200-sxm", tensors={"N": lengths})
    told = foretile.predict(until, "h200-sxm", trips={_line(): longest})
    assert seen.time_s == told.time_s
    assert any(f"line {_line()}: {longest} iterations" in note for note in seen.model["warnings"])
    assert not told.model.get("warnings") or not any("iterations" in n for n in told.model["warnings"])


@T.prim_func
def now_and_then(  # type: ignore[no-untyped-def]
    A: T.Tensor((64, 4096), "float32"),  # type: ignore[valid-type]
    N: T.Tensor((64,), "int32"),  # type: ignore[valid-type]
):
    with T.Kernel(64, threads=128) as bx:
        row = T.alloc_shared((4096,), "float32")
        wanted = T.alloc_shared((1,), "float32")
        wanted[0] = N[bx] * 1.0
        if wanted[0] > 0.5:
            T.copy(A[bx, 0], row)
            T.copy(row, A[bx, 0])


def test_a_branch_that_no_block_takes_costs_nothing() -> None:
    none, all_ = (
        foretile.predict(now_and_then, "h200-sxm", tensors={"N": np.full(64, n, np.int32)}) for n in (0, 1)
    )
    assert none.time_s < all_.time_s
    assert any("taken by 0% of the blocks" in note for note in none.model["warnings"])


def _product(threads: int, columns: int = 256) -> TileProgram:
    @T.prim_func
    def wide(
        A: T.Tensor((1024, 1024), "float16"),  # type: ignore[valid-type]
        B: T.Tensor((1024, 1024), "float16"),  # type: ignore[valid-type]
        C: T.Tensor((1024, 1024), "float16"),  # type: ignore[valid-type]
    ) -> None:
        with T.Kernel(1024 // columns, 4, threads=threads) as (bx, by):
            a = T.alloc_shared((256, 32), "float16")
            b = T.alloc_shared((32, columns), "float16")
            c = T.alloc_fragment((256, columns), "float32")
            T.clear(c)
            for k in T.Pipelined(32, num_stages=2):
                T.copy(A[by * 256, k * 32], a)
                T.copy(B[k * 32, bx * columns], b)
                T.gemm(a, b, c)
            T.copy(c, C[by * 256, bx * columns])

    return wide


def test_registers_beyond_a_threads_are_spilled_with_a_warning() -> None:
    chip = load_chip("h200-sxm")
    with pytest.raises(RegistersError, match="use more threads") as refused:
        lower(_product(128), machine_of(chip))
    spilling = foretile.predict(_product(128), chip)
    assert any(f"{refused.value.excess} are timed as spilled" in n for n in spilling.model["warnings"])
    assert spilling.occupancy["spilled_bytes_per_thread"] == 4 * refused.value.excess
    fitting = foretile.predict(_product(128, columns=64), chip)
    assert not any("spilled" in n for n in fitting.model.get("warnings", ()))
    assert fitting.occupancy["spilled_bytes_per_thread"] == 0
    assert spilling.time_s > 2 * fitting.time_s
    # Each iteration's products wait for a write and a read of every spilled word by every thread.
    moved = 2 * 4 * refused.value.excess * 128 * 32
    assert spilling.time_s > moved / machine_of(chip).scratchpad_bytes_per_s
