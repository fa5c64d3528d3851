"""Corners of the language: the executor against the slow interpreter on small programs written for them."""

from __future__ import annotations

import textwrap

import block_oracle
import numpy as np
import pytest

from foretile.kernels.load import from_script
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.execute import execute

# Bodies of kernels of four blocks `bx`, with A and B of 64 float32; A holds small whole numbers.
AGREE = {
    "a copy keeps its values when the source changes": """
        s = T.alloc_shared((16,), "float32")
        t = T.alloc_shared((16,), "float32")
        T.copy(A[bx * 16], s)
        s[0] = 50.0
        T.copy(s, t)
        s[1] = 60.0
        t[2] = 70.0
        T.copy(t[4:8], s[0:4])
        t[4] = 3.0
        for i in T.Parallel(16):
            B[bx * 16 + i] = t[i] + 1000 * s[i]
    """,
    "an element-wise copy keeps its values when the source changes": """
        s = T.alloc_shared((16,), "float32")
        t = T.alloc_shared((16,), "float32")
        T.copy(A[bx * 16], s)
        s[0] = 50.0
        for i in T.Parallel(16):
            t[i] = s[i]
        s[1] = 60.0
        t[2] = 70.0
        for i in T.Parallel(16):
            B[bx * 16 + i] = t[i] + 1000 * s[i]
    """,
    "a tile keeps its values when the tensor it came from changes": """
        s = T.alloc_shared((16,), "float32")
        t = T.alloc_shared((16,), "float32")
        T.copy(A[bx * 16 : bx * 16 + 16], B[bx * 16])
        T.copy(B[bx * 16], s)
        for i in T.Parallel(16):
            t[i] = B[bx * 16 + i]
        for i in T.Parallel(16):
            B[bx * 16 + i] = B[bx * 16 + i] * 2.0
        for i in T.Parallel(16):
            B[bx * 16 + i] = B[bx * 16 + i] + 10 * s[i] + 100 * t[i]
    """,
    "products take their operands as they were": """
        s = T.alloc_shared((4, 4), "float32")
        c = T.alloc_fragment((4, 4), "float32")
        for i, j in T.Parallel(4, 4):
            s[i, j] = A[bx * 16 + i * 4 + j]
        T.clear(c)
        s[0, 0] = 5.0
        T.gemm(s, s, c)
        s[0, 0] = -5.0
        T.gemm(s, s, c)
        for i in T.Parallel(3):
            s[i, 3] = 1.0
        T.gemm(s, s, c)
        for i, j in T.Parallel(4, 4):
            B[bx * 16 + i * 4 + j] = c[i, j]
    """,
    "regions of one buffer overlap": """
        s = T.alloc_shared((16,), "float32")
        T.copy(A[bx * 16], s)
        s[0] = 3.0
        T.copy(s[0:12], s[4:16])
        T.copy(s[1:16], s[0:15])
        T.copy(s, B[bx * 16])
    """,
    "parallel loops inside of parallel loops": """
        x = T.alloc_var("float32", init=1)
        y = T.alloc_var("float32", init=2)
        for i in T.Parallel(4):
            y = A[bx * 16 + i]
            if i % 2 == 0:
                for j in T.Parallel(4):
                    x = y * j
                    y = y + i
                    B[bx * 16 + i * 4 + j] = x + y
            else:
                for j in T.Parallel(4):
                    B[bx * 16 + i * 4 + j] = x
    """,
    "parallel loops without an iteration": """
        for i in T.Parallel(16):
            B[bx * 16 + i] = 0.0
        for i in T.Parallel(bx * 4):
            B[bx * 16 + i] = A[bx * 16 + i]
        for i, j in T.Parallel(16, bx - bx):
            B[bx * 16 + i] = 2.0
        for i in T.Parallel(16):
            for j in T.Parallel(bx - 9):
                B[bx * 16 + i] = 3.0
    """,
    "arrays of a thread": """
        x = T.alloc_local((4,), "float32")
        for i in T.Parallel(16):
            for j in T.serial(4):
                x[j] = A[bx * 16 + i] * j
            for j in T.serial(i % 3):
                x[j] = x[3 - j] + x[j]
            B[bx * 16 + i] = x[0] + x[1] * 10 + x[i % 4] * 100
    """,
    "variables that only some iterations set": """
        x = T.alloc_var("float32", init=5)
        for i in T.Parallel(16):
            if i < 8:
                x = A[bx * 16 + i]
            B[bx * 16 + i] = x
    """,
    "sums in a narrow type": """
        t = T.alloc_fragment((4, 16), "bfloat16")
        v = T.alloc_fragment((4,), "bfloat16")
        w = T.alloc_fragment((16,), "bfloat16")
        n = T.alloc_fragment((16,), "int8")
        T.fill(t, 17.0)
        t[0, 0] = 16.0
        T.reduce_sum(t, v, dim=1)
        T.reduce_sum(t, w, dim=0)
        T.reduce_sum(t, v, dim=1, clear=False)
        T.fill(n, 100)
        T.cumsum(n, dim=0)
        for i in T.Parallel(16):
            B[bx * 16 + i] = v[i // 4] + w[i] + n[i]
    """,
    "sums of small integers wrap": """
        t = T.alloc_fragment((16, 16), "int8")
        v = T.alloc_fragment((16,), "int8")
        T.fill(t, -128)
        T.reduce_sum(t[:, 0:3], v, dim=1)
        T.reduce_absmax(t, v, dim=1, clear=False)
        for i in T.Parallel(16):
            B[bx * 16 + i] = v[i]
    """,
    "loops that start and step differently by block": """
        s = T.alloc_fragment((16,), "float32")
        T.clear(s)
        for k in range(bx, 4):
            for i in T.Parallel(16):
                s[i] = s[i] * 2.0 + A[k * 4 + i]
        for k in range(bx + 2, -1, -2):
            for i in T.Parallel(16):
                s[i] = s[i] * 2.0 + A[k * 4 + i]
        for k in range(bx, bx + 3):
            s[k] = s[k + 1]
        T.copy(s, B[bx * 16])
    """,
    "products in branches and loops of unequal length": """
        a = T.alloc_shared((4, 4), "float32")
        b = T.alloc_shared((4, 4), "float32")
        c = T.alloc_fragment((4, 8), "float32")
        T.clear(c)
        for k in T.serial((bx + 1) % 4):
            for i, j in T.Parallel(4, 4):
                a[i, j] = A[k * 16 + i * 4 + j]
                b[i, j] = A[bx * 16 + j * 4 + i]
            T.gemm(a, b, c[:, 0:4])
            if bx > k:
                T.gemm(b, a, c[:, 4:8], transpose_A=True)
        if bx == 2:
            T.fill(c[1:3, :], 1.0)
        for i, j in T.Parallel(4, 4):
            B[bx * 16 + i * 4 + j] = c[i, j] + c[i, j + 4]
    """,
    "regions whose place no stride describes": """
        s = T.alloc_shared((64,), "float32")
        T.copy(A, s)
        T.copy(A[0:4], s[bx * bx * 4 : bx * bx * 4 + 4])
        T.copy(s[bx * 16 : bx * 16 + 16], B[bx * 16])
    """,
    "while loops in branches": """
        n = T.alloc_var("int32", init=0)
        x = T.alloc_var("int32", init=0)
        x = bx * 3
        if bx > 0:
            while x > 1:
                x = x - 2
                if x % 2 == 0:
                    n = n + 1
                else:
                    n = n + 10
        for i in T.Parallel(16):
            B[bx * 16 + i] = A[bx * 16 + i] + n
    """,
    "extremes of not a number": """
        t = T.alloc_fragment((4, 4), "float32")
        v = T.alloc_fragment((4,), "float32")
        for i, j in T.Parallel(4, 4):
            t[i, j] = T.log(A[bx * 16 + i * 4 + j])
        T.reduce_max(t, v, dim=1)
        T.reduce_min(t, v, dim=0, clear=False)
        for i in T.Parallel(16):
            B[bx * 16 + i] = T.max(v[i % 4], 0.5) + T.min(t[i // 4, i % 4], 1.0)
    """,
}
# The interpreter, too, finds that these read what was not written or leave a buffer.
REFUSE = {
    "a variable that only some iterations set": """
        x = T.alloc_var("float32")
        for i in T.Parallel(16):
            if i < 8:
                x = A[bx * 16 + i]
            B[bx * 16 + i] = x
    """,
    "a part of a thread's array": """
        x = T.alloc_local((4,), "float32")
        for i in T.Parallel(16):
            x[0] = A[bx * 16 + i]
            B[bx * 16 + i] = x[0] + x[1]
    """,
    "beyond a thread's array": """
        x = T.alloc_local((4,), "float32")
        for i in T.Parallel(16):
            x[i % 5] = A[bx * 16 + i]
            B[bx * 16 + i] = 0.0
    """,
    "a variable after the inner loop that set it": """
        x = T.alloc_var("float32", init=0)
        for i in T.Parallel(16):
            for j in T.Parallel(4):
                x = A[bx * 16 + i] + j
            B[bx * 16 + i] = x
    """,
    "a part of a tile written by some blocks": """
        s = T.alloc_shared((64,), "float32")
        T.copy(A[0:16], s[bx * 16 : bx * 16 + 16])
        T.copy(s[bx * 8 : bx * 8 + 16], B[bx * 16])
    """,
}
HEAD = """
@T.prim_func
def kernel(A: T.Tensor((64,), "float32"), B: T.Tensor((64,), "float32")):
    with T.Kernel(4, threads=32) as bx:
"""


def kernel(body: str) -> str:
    return HEAD.lstrip() + textwrap.indent(textwrap.dedent(body).strip(), " " * 8) + "\n"


def numbers() -> dict[str, np.ndarray]:
    return {"A": np.random.default_rng(0).integers(-9, 10, 64).astype(np.float32)}


@pytest.mark.parametrize("body", AGREE.values(), ids=AGREE)
def test_corners_agree_with_a_slow_interpreter(body: str) -> None:
    program = from_script(kernel(body))
    wanted, _ = block_oracle.execute(program, numbers())
    np.testing.assert_array_equal(execute(program, numbers()).tensors["B"], wanted["B"])


@pytest.mark.parametrize("body", REFUSE.values(), ids=REFUSE)
def test_what_a_slow_interpreter_refuses_is_refused_with_its_line(body: str) -> None:
    program = from_script(kernel(body))
    with pytest.raises(block_oracle.OracleError):
        block_oracle.execute(program, numbers())
    with pytest.raises(NumericsError, match=r"^<tile script \d+>:\d+: "):
        execute(program, numbers())


VALUES = np.array(
    [*(0.0, -0.0, 448, 464, 465, 1e30, -1e30, 300.5, -300.5, 0.5, 1.5, 2.5, 6.1, np.inf, -np.inf, np.nan)]
    + [1.1**k * (-1) ** k for k in range(-96, 96, 4)],
    np.float32,
)
TYPES = (
    *("float16", "bfloat16", "float8_e4m3", "float8_e5m2", "float8_e8m0", "float4_e2m1", "tfloat32"),
    *("int32", "int8", "uint8", "uint16", "int4", "bool"),
)


@pytest.mark.parametrize("dtype", TYPES)
def test_conversions_agree_with_a_slow_interpreter(dtype: str) -> None:
    body = f"""
        s = T.alloc_shared((16,), "{dtype}")
        T.copy(A[bx * 16], s)
        for i in T.Parallel(16):
            x = T.cast(T.cast(A[bx * 16 + i], "{dtype}"), "float32")
            B[bx * 16 + i] = x + T.cast(s[i], "float32")
    """
    program = from_script(kernel(body))
    wanted, _ = block_oracle.execute(program, {"A": VALUES})
    np.testing.assert_array_equal(execute(program, {"A": VALUES}).tensors["B"], wanted["B"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "function",
    [
        *("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "tanh", "sin", "cos", "sigmoid", "erf"),
        *("floor", "ceil", "round", "abs"),
    ],
)
def test_functions_agree_with_a_slow_interpreter(function: str, dtype: str) -> None:
    text = kernel(f"for i in T.Parallel(16):\n    B[bx * 16 + i] = T.{function}(A[bx * 16 + i])")
    program = from_script(text.replace("float32", dtype))
    given = {"A": VALUES.astype(block_oracle.storage(dtype))}
    wanted, _ = block_oracle.execute(program, given)
    np.testing.assert_array_equal(
        execute(program, given).tensors["B"].astype(np.float32), wanted["B"].astype(np.float32)
    )


@pytest.mark.parametrize("dtype", ["int32", "int8", "uint8", "int16", "uint32"])
def test_whole_number_arithmetic_agrees_with_a_slow_interpreter(dtype: str) -> None:
    body = """
        for i in T.Parallel(16):
            x = A[bx * 16 + i]
            B[bx * 16 + i] = ((x << 3) ^ (x >> 1) | (x & 12)) + x // 3 + x % 5 + T.truncdiv(x, 4) + (
                T.truncmod(x, 4) + T.abs(x) + T.max(x, 2) * T.min(x, 100) + ~x - x * x
            )
    """
    program = from_script(kernel(body).replace("float32", dtype))
    limits = np.iinfo(dtype)
    values = np.random.default_rng(1).integers(limits.min, limits.max, 64, dtype=dtype, endpoint=True)
    wanted, _ = block_oracle.execute(program, {"A": values})
    np.testing.assert_array_equal(execute(program, {"A": values}).tensors["B"], wanted["B"])
