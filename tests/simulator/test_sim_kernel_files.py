"""Kernels written by users, in files of their own, are timed like those of the library."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from foretile.frontdoor import explain, predict, trace_events, trace_program
from foretile.kernels.errors import TraceError
from foretile.kernels.operator import OperatorError
from foretile.simulator.machine import SimulationError

MATMUL = """
from foretile.kernels import language as T


def matmul(M: int, N: int = 1024, K: int = 1024, block_M: int = 128, block_N: int = 128, block_K: int = 64):
    @T.prim_func
    def kernel(
        A: T.Tensor((M, K), "float16"),
        B: T.Tensor((K, N), "float16"),
        C: T.Tensor((M, N), "float16"),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=256) as (bx, by):
            A_shared = T.alloc_shared((block_M, block_K), "float16")
            B_shared = T.alloc_shared((block_K, block_N), "float16")
            C_local = T.alloc_fragment((block_M, block_N), "float32")
            T.use_swizzle(panel_size=8)
            T.clear(C_local)
            for ko in T.Pipelined(T.ceildiv(K, block_K), num_stages=3):
                T.copy(A[by * block_M, ko * block_K], A_shared)
                T.copy(B[ko * block_K, bx * block_N], B_shared)
                T.gemm(A_shared, B_shared, C_local)
            T.copy(C_local, C[by * block_M, bx * block_N])

    return kernel
"""

SEARCH = """
from foretile.kernels import language as T


def first_large(N: int = 1024):
    @T.prim_func
    def kernel(A: T.Tensor((N,), "float32"), B: T.Tensor((N,), "int32")):
        with T.Kernel(T.ceildiv(N, 128), threads=128) as bx:
            i = T.alloc_var("int32")
            i = bx
            while A[i] < 1.0:
                i = i + 1
            B[bx] = i

    return kernel
"""

RAGGED = """
from foretile.kernels import language as T


def ragged(B: int = 64):
    @T.prim_func
    def kernel(A: T.Tensor((B, 1024), "float32"), Lengths: T.Tensor((B,), "int32")):
        with T.Kernel(B, threads=128) as bx:
            x = T.alloc_fragment((128,), "float32")
            for k in T.serial(Lengths[bx]):
                T.copy(A[bx, k * 128], x)
            T.copy(x, A[bx, 0])

    return kernel
"""


@pytest.fixture
def matmul(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(MATMUL, encoding="utf-8")
    return f"{path}:matmul"


@pytest.mark.parametrize("chip", ["h20", "a100-sxm4-80gb", "b200-sxm", "ascend-910b3", "metax-c550"])
def test_a_kernel_file_is_timed_like_the_library_operator(matmul: str, chip: str) -> None:
    mine = predict(matmul, chip, M=2048, block_K=32)
    config = {"variant": "tile", "block_m": 128, "block_n": 128, "block_k": 32, "num_stages": 3}
    library = predict(
        "gemm", chip, m=2048, n=1024, k=1024, dtype="fp16", config=config | {"threads": 256, "swizzle": 8}
    )
    assert mine.operator == "matmul"
    assert mine.shape == {"M": 2048} | {"block_K": 32}
    assert mine.time_s == pytest.approx(library.time_s, rel=1e-6)
    assert mine.traffic_bytes == pytest.approx(library.traffic_bytes)
    assert mine.flops == 2 * 2048 * 1024 * 1024


def test_arguments_given_as_text_are_numbers(matmul: str) -> None:
    assert predict(matmul, "h100", M="4096").time_s == predict(matmul, "h100", M=4096).time_s


def test_a_traced_program_needs_no_file(matmul: str) -> None:
    program = trace_program(matmul, M=1024)
    assert predict(program, "h100").time_s == predict(matmul, "h100", M=1024).time_s
    with pytest.raises(OperatorError, match="takes no shape; bind M"):
        predict(program, "h100", M=1024)


def test_a_kernel_file_is_explained_and_traced(matmul: str) -> None:
    assert explain(matmul, "h100", M=4096).sentences
    assert trace_events(matmul, "h100", M=4096)["traceEvents"]


def test_a_loop_whose_end_depends_on_data_is_timed_as_executed_and_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "search.py"
    path.write_text(SEARCH, encoding="utf-8")
    line = 1 + next(i for i, text in enumerate(SEARCH.splitlines()) if "while" in text)
    kernel = f"{path}:first_large"
    (warning,) = predict(kernel, "h100").model["warnings"]
    assert re.search(rf"line {line}: .* as in some blocks run on drawn operands", warning)
    assert "warnings" not in predict(kernel, "h100", trips={line: 1000}).model


def test_a_wrong_file_function_or_argument_is_named(matmul: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nowhere\.py"):
        predict(f"{tmp_path / 'nowhere.py'}:matmul", "h100")
    with pytest.raises(TraceError, match="matmull"):
        predict(f"{matmul}l", "h100", M=64)
    with pytest.raises(TraceError, match="MM"):
        predict(matmul, "h100", MM=64)


def test_a_program_with_a_free_dimension_asks_to_bind_it() -> None:
    from foretile.kernels import language as T

    rows = T.dynamic("rows")

    @T.prim_func
    def program(A: T.Tensor((rows, 64), "float32")) -> None:  # type: ignore[valid-type]
        with T.Kernel(rows, threads=64) as bx:
            x = T.alloc_fragment((64,), "float32")
            T.copy(A[bx, 0], x)

    with pytest.raises(SimulationError, match=r"bind rows first"):
        predict(program, "h100")
    assert predict(program.bind(rows=4096), "h100").occupancy["blocks"] == 4096


def test_a_trip_count_in_a_tensor_is_refused_with_the_tensors_name(tmp_path: Path) -> None:
    """``predict`` takes no tensors: that has to be said, not to end in a KeyError."""
    path = tmp_path / "ragged.py"
    path.write_text(RAGGED, encoding="utf-8")
    with pytest.raises(SimulationError, match="Lengths"):
        predict(f"{path}:ragged", "h100")


VARLEN = """
from foretile.kernels import language as T

def varlen(batch: int, width: int = 4096):
    @T.prim_func
    def scale(X: T.Tensor((batch, 1 << 16, width), "float16"), Lengths: T.Tensor((batch,), "int32"),
              Y: T.Tensor((batch, 1 << 16, width), "float16")):
        with T.Kernel(batch, threads=256) as b:
            x = T.alloc_fragment((1, width), "float16")
            for i in T.serial(Lengths[b]):
                T.copy(X[b, i, 0], x)
                T.copy(x, Y[b, i, 0])
    return scale
"""


def test_trip_counts_read_from_a_tensor_follow_its_values(tmp_path: Path) -> None:
    path = tmp_path / "varlen.py"
    path.write_text(VARLEN)
    op = f"{path}:varlen"
    with pytest.raises(ValueError, match=r"depend on the values of Lengths; give them as tensors="):
        predict(op, "h100", batch=64)
    lengths = np.full(64, 200, dtype=np.int32)
    short = predict(op, "h100", batch=64, tensors={"Lengths": lengths})
    double = predict(op, "h100", batch=64, tensors={"Lengths": 2 * lengths})
    assert double.time_s == pytest.approx(2 * short.time_s, rel=0.05)
    one_long = lengths.copy()
    one_long[7] = 2000
    skewed = predict(op, "h100", batch=64, tensors={"Lengths": one_long})
    assert skewed.time_s > 4 * short.time_s  # the longest block decides, not the average of 228
    assert skewed.traffic_bytes["dram_read"] < 1.5 * short.traffic_bytes["dram_read"]


def test_a_library_operator_takes_no_tensors() -> None:
    with pytest.raises(ValueError, match="no operator of the library takes tensors"):
        predict("copy", "h100", bytes=1024, tensors={"X": np.zeros(1)})
