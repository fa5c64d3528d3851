"""What CUDA C++ says about numbers: promoted integers, and its functions by name."""

from __future__ import annotations

import numpy as np
import pytest
from lane_programs import Kernel, put, tx

from foretile.kernels.expr import Binary, Cast, Const
from foretile.simulator.numerics.execute import execute

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("narrow", ["int8", "uint8", "int16", "uint16"])
def test_a_shift_by_a_narrow_integers_width_is_done_in_int(narrow: str) -> None:
    """Halves of a word put together again: ``(hi << 16) + lo``, as C++ evaluates it."""
    bits = np.dtype(narrow).itemsize * 8
    k = Kernel(64, (1,))
    high, low = (k.tensor(name, (64,), narrow) for name in ("high", "low"))
    y = k.tensor("Y", (64,), "uint32")
    shifted = Binary("shl", high.load(tx()), Const(bits, narrow))
    program = k.program(put(y[tx()], Cast("uint32", Binary("add", shifted, low.load(tx())))))
    info = np.iinfo(narrow)
    a, b = (RNG.integers(info.min, info.max + 1, 64, dtype=np.int64) for _ in range(2))
    found = execute(program, {"high": a.astype(narrow), "low": b.astype(narrow)}).tensors["Y"]
    np.testing.assert_array_equal(found, ((a << bits) + b) % 2**32)
