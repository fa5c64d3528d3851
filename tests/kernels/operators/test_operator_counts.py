"""Counts of operations and bytes against counting by hand, one element at a time."""

import itertools
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from foretile.kernels.operator import load_operator

SIZE = st.integers(1, 7)
HEADS = st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 3), (6, 1)])


class Counted(float):
    """A number that counts the operations done on its kind."""

    done = 0

    def _count(self, value: float) -> "Counted":
        Counted.done += 1
        return Counted(value)

    def __add__(self, other: Any) -> "Counted":
        return self._count(float(self) + float(other))

    def __sub__(self, other: Any) -> "Counted":
        return self._count(float(self) - float(other))

    def __mul__(self, other: Any) -> "Counted":
        return self._count(float(self) * float(other))

    def __truediv__(self, other: Any) -> "Counted":
        return self._count(float(self) / float(other))

    def __neg__(self) -> "Counted":
        return self._count(-float(self))

    def exp(self) -> "Counted":
        return self._count(math.exp(float(self)))

    def rsqrt(self) -> "Counted":
        return self._count(1 / math.sqrt(float(self)))

    def at_least(self, other: "Counted") -> "Counted":
        return self._count(max(float(self), float(other)))


def _sum(values: list[Counted]) -> Counted:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


@given(m=SIZE, n=SIZE, k=SIZE, batch=st.integers(1, 3), dtype=st.sampled_from(["bf16", "fp8", "int8"]))
def test_gemm(m: int, n: int, k: int, batch: int, dtype: str) -> None:
    gemm = load_operator("gemm")
    shape = gemm.shape(m=m, n=n, k=k, batch=batch, dtype=dtype)
    count = sum(2 for _ in itertools.product(range(batch), range(m), range(n), range(k)))
    assert gemm.flops(shape) == count
    operand, result = {"bf16": (2, 2), "fp8": (1, 2), "int8": (1, 4)}[dtype]
    assert gemm.min_bytes(shape) == batch * (m * k * operand + k * n * operand + m * n * result)


@given(
    batch=st.integers(1, 2),
    seq=st.integers(1, 20),
    heads=HEADS,
    causal=st.booleans(),
    prefix=st.integers(0, 12),
    window=st.integers(0, 24),
    kv_dtype=st.sampled_from(["bf16", "fp8"]),
)
def test_attention_prefill(
    batch: int, seq: int, heads: tuple[int, int], causal: bool, prefix: int, window: int, kv_dtype: str
) -> None:
    window = window if causal else 0
    attention = load_operator("attention_prefill")
    shape = attention.shape(
        batch=batch,
        seq=seq,
        heads=heads[0],
        kv_heads=heads[1],
        head_dim=16,
        causal=causal,
        prefix=prefix,
        window=window,
        kv_dtype=kv_dtype,
    )
    pairs = [
        (query, key)
        for query in range(prefix, prefix + seq)
        for key in range(prefix + seq)
        if not causal or (key <= query and (not window or key > query - window))
    ]
    assert attention.flops(shape) == 4 * 16 * batch * heads[0] * len(pairs)
    keys = len({key for _, key in pairs})
    q_and_o = 2 * batch * seq * heads[0] * 16 * 2
    k_and_v = 2 * batch * keys * heads[1] * 16 * {"bf16": 2, "fp8": 1}[kv_dtype]
    assert attention.min_bytes(shape) == q_and_o + k_and_v


@given(
    batch=st.integers(1, 3),
    kv_len=st.integers(1, 40),
    heads=HEADS,
    window=st.integers(0, 50),
    dtype=st.sampled_from(["fp16", "fp8"]),
)
def test_attention_decode(batch: int, kv_len: int, heads: tuple[int, int], window: int, dtype: str) -> None:
    attention = load_operator("attention_decode")
    shape = attention.shape(
        batch=batch, kv_len=kv_len, heads=heads[0], kv_heads=heads[1], head_dim=32, window=window, dtype=dtype
    )
    keys = [key for key in range(kv_len) if not window or key > kv_len - 1 - window]
    assert attention.flops(shape) == 4 * 32 * batch * heads[0] * len(keys)
    stored = {"fp16": 2, "fp8": 1}[dtype]
    q_and_o = batch * heads[0] * 32 * (stored + 2)  # fp8 attention writes bf16
    assert attention.min_bytes(shape) == q_and_o + 2 * batch * len(keys) * heads[1] * 32 * stored


@given(rows=SIZE, cols=st.integers(1, 30))
def test_rmsnorm(rows: int, cols: int) -> None:
    norm = load_operator("rmsnorm")
    shape = norm.shape(rows=rows, cols=cols)
    Counted.done = 0
    for _ in range(rows):
        x = [Counted(j + 1) for j in range(cols)]
        rstd = (_sum([v * v for v in x]) / cols + 1e-6).rsqrt()
        assert len([v * rstd * 2.0 for v in x]) == cols
    assert norm.flops(shape) == Counted.done
    assert norm.min_bytes(shape) == 2 * (rows * cols + cols + rows * cols)


@given(rows=SIZE, cols=st.integers(1, 30))
def test_softmax(rows: int, cols: int) -> None:
    softmax = load_operator("softmax")
    shape = softmax.shape(rows=rows, cols=cols, dtype="fp32")
    Counted.done = 0
    for _ in range(rows):
        x = [Counted(j) for j in range(cols)]
        top = x[0]
        for v in x[1:]:
            top = top.at_least(v)
        e = [(v - top).exp() for v in x]
        total = _sum(e)
        assert len([v / total for v in e]) == cols
    assert softmax.flops(shape) == Counted.done
    assert softmax.min_bytes(shape) == 2 * rows * cols * 4


@given(rows=SIZE, cols=SIZE)
def test_silu_mul(rows: int, cols: int) -> None:
    silu = load_operator("silu_mul")
    shape = silu.shape(rows=rows, cols=cols)
    Counted.done = 0
    for _ in range(rows * cols):
        gate, up = Counted(0.5), Counted(2)
        assert gate / ((-gate).exp() + 1.0) * up > 0
    assert silu.flops(shape) == Counted.done
    assert silu.min_bytes(shape) == 3 * rows * cols * 2


@given(size=st.integers(1, 10**9))
def test_copy(size: int) -> None:
    copy = load_operator("copy")
    shape = copy.shape(bytes=size)
    assert copy.flops(shape) == 0
    assert copy.min_bytes(shape) == 2 * size
