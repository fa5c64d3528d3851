"""Functions that return kernels, given to the front door as they are."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import foretile
from foretile.kernels import language as T
from foretile.kernels.errors import TraceError
from foretile.kernels.ir import TileProgram
from foretile.kernels.tilelang.versions import installed
from foretile.simulator.numerics.execute import execute


def scaled(rows: int, cols: int = 256) -> Any:
    @T.prim_func
    def scale(A: T.Tensor((rows, cols), "float32"), B: T.Tensor((rows, cols), "float32")):
        with T.Kernel(rows, threads=64) as bx:
            x = T.alloc_fragment((cols,), "float32")
            T.copy(A[bx, 0:cols], x)
            T.copy(x, B[bx, 0:cols])

    return scale


def test_a_function_that_returns_a_program_takes_its_arguments() -> None:
    program = scaled(4096)
    assert isinstance(program, TileProgram)
    made = foretile.predict(scaled, "h200", rows=4096)
    assert made.time_s == foretile.predict(program, "h200").time_s
    assert foretile.predict(scaled, "h200", rows=65536, cols=1024).time_s > 10 * made.time_s
    assert made.operator == "scaled"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"test_factories:scaled needs rows; its signature is scaled\(rows"),
        ({"row": 8}, r"takes no argument 'row'; did you mean 'rows'\?"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        foretile.predict(scaled, "h200", **arguments)


def test_what_returns_something_else_is_refused() -> None:
    with pytest.raises(TraceError, match="returns a ndarray; a tile program is needed"):
        foretile.predict(_array, "h200")


def _array() -> np.ndarray:
    return np.zeros(1)


def test_a_function_that_returns_a_kernel_of_tilelang() -> None:
    if installed() is None:
        pytest.skip("TileLang is not installed (pip install 'foretile[tilelang]')")
    import tilelang.language as language

    def dots(rows: int) -> Any:
        @language.prim_func
        def four(
            A: language.Tensor((rows, 4), "int8"),
            B: language.Tensor((rows, 4), "int8"),
            C: language.Tensor((rows,), "int32"),
        ):
            with language.Kernel(rows, threads=32) as bx:
                a = language.alloc_local((4,), "int8")
                b = language.alloc_local((4,), "int8")
                c = language.alloc_local((1,), "int32")
                for i in language.serial(4):
                    a[i] = A[bx, i]
                    b[i] = B[bx, i]
                c[0] = 7
                language.dp4a(a[0], b[0], c[0])
                if language.get_thread_binding(0) == 0:
                    C[bx] = c[0]

        return four

    assert foretile.predict(dots, "h200", rows=1024).time_s > 0
    from foretile.kernels.tilelang import from_tilelang

    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, (64, 4), dtype=np.int8) for _ in range(2))
    found = execute(from_tilelang(dots, rows=64), {"A": a, "B": b}).tensors["C"]
    assert np.array_equal(found, 7 + (a.astype(np.int32) * b).sum(1))
