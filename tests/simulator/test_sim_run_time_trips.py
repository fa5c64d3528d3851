"""A loop that the kernel's own values decide is timed once its user says how often it runs."""

from __future__ import annotations

import re

import pytest

import foretile
from foretile.kernels import language as T
from foretile.simulator.machine import SimulationError


@T.prim_func
def until(A: T.Tensor((64, 128), "float32"), N: T.Tensor((4,), "int32")) -> None:  # type: ignore[valid-type]
    with T.Kernel(1, threads=128) as _:
        row = T.alloc_fragment((128,), "float32")
        last = T.alloc_var("int32", init=0)
        for i in T.serial(4):
            last = T.max(last, N[i])
        for k in T.serial(last):
            T.copy(A[k, 0], row)


def test_the_refusal_says_how_to_time_it_and_that_works() -> None:
    with pytest.raises(SimulationError, match=r"depends on the value of last.*trips=") as refused:
        foretile.predict(until, "h200-sxm")
    found = re.search(r"\.py:(\d+)", str(refused.value))
    assert found is not None
    line = int(found.group(1))
    few, many = (
        foretile.predict(foretile.assume(until, trips={line: n}), "h200-sxm").time_s for n in (4, 64)
    )
    assert few < many
