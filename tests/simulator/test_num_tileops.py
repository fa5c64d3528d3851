"""Patches of convolutions, transposes, sparse operands, views, reducers and scalars, against NumPy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lane_programs import Kernel, copy, gemm, loc, loop, put, tx, var

from foretile.kernels.expr import Const, Var
from foretile.kernels.ir import (
    AtomicAdd,
    Buffer,
    Extern,
    Fill,
    FinalizeReducer,
    For,
    Im2col,
    Transpose,
)
from foretile.kernels.values import Value
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.execute import execute

RNG = np.random.default_rng(3)


@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    height=st.integers(5, 8),
)
@settings(max_examples=15, deadline=None)
def test_im2col(kernel: int, stride: int, dilation: int, padding: int, height: int) -> None:
    n, width, channels = 2, 6, 4
    out_h, out_w = ((x + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for x in (height, width))
    rows, columns = -(-n * out_h * out_w // 8), -(-kernel * kernel * channels // 16)
    k = Kernel(32, (rows, columns))
    x = k.tensor("X", (n, height, width, channels), "float16")
    y = k.tensor("Y", (rows * 8, columns * 16), "float16")
    tile = k.alloc("tile", (8, 16), "float16", "shared")
    program = k.program(
        Im2col(x.box(), tile.box(), Var("bx"), Var("by"), kernel, stride, dilation, padding, loc=loc()),
        copy(tile.box(), y.box((var("bx") * 8, 8), (var("by") * 16, 16))),
    )
    data = RNG.standard_normal((n, height, width, channels)).astype(np.float16)
    found = execute(program, {"X": data}).tensors["Y"]
    padded = np.pad(data, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    for row in range(rows * 8):
        image, place = divmod(row, out_h * out_w)
        patch = np.zeros(columns * 16, np.float16)
        if image < n:
            top, left = (stride * p for p in divmod(place, out_w))
            reach = dilation * (kernel - 1) + 1
            part = padded[image, top : top + reach : dilation, left : left + reach : dilation]
            patch[: part.size] = part.reshape(-1)
        assert np.array_equal(found[row], patch)


def test_transpose_and_views() -> None:
    k = Kernel(32, (2,))
    x = k.tensor("X", (2, 8, 12), "float16")
    y = k.tensor("Y", (2, 96), "float16")
    bits = k.tensor("Z", (2, 12, 8), "uint16")
    tile = k.alloc("tile", (8, 12), "float16", "shared")
    turned = k.alloc("turned", (12, 8), "float16", "shared")
    flat, raw = (
        k.alloc(n, s, d, "shared") for n, s, d in (("flat", (96,), "float16"), ("raw", (12, 8), "uint16"))
    )
    k.buffers[-2:] = [
        Buffer("flat", (Const(96),), "float16", "shared", alias="turned"),
        Buffer("raw", (Const(12), Const(8)), "uint16", "shared", alias="turned"),
    ]
    b, i = var("bx"), var("i")
    program = k.program(
        copy(x.box(b, (0, 8), (0, 12)), tile.box()),
        Transpose(tile.box(), turned.box(), loc=loc()),
        loop("i", 3, put(flat[i], flat[i] + 1.0)),
        copy(flat.box(), y.box(b, (0, 96))),
        copy(raw.box(), bits.box(b, (0, 12), (0, 8))),
    )
    data = RNG.standard_normal((2, 8, 12)).astype(np.float16)
    expected = data.transpose(0, 2, 1).reshape(2, 96).copy()
    expected[:, :3] += np.float16(1)
    found = execute(program, {"X": data}).tensors
    assert np.array_equal(found["Y"], expected)
    assert np.array_equal(found["Z"].reshape(2, 96), expected.view(np.uint16))


def test_views_of_tensors() -> None:
    """A flat view of a tensor is the tensor: written through one, read through the other."""
    k = Kernel(24)
    x = k.tensor("X", (4, 6), "int32")
    y = k.tensor("Y", (24,), "int32")
    k.buffers.append(Buffer("flat", (Const(24),), "int32", "global", alias="X"))
    from lane_programs import Name

    flat = Name(k.buffers[-1])
    program = k.program(put(flat[23 - tx()], tx()), put(y[tx()], x[tx() // 6, tx() % 6] * 2))
    found = execute(program, {"X": np.zeros((4, 6), np.int32)}).tensors
    assert found["X"].reshape(-1).tolist() == list(range(23, -1, -1))
    assert found["Y"].tolist() == list(range(46, -1, -2))


@pytest.mark.parametrize(("dtype", "places"), [("float16", "int16"), ("int8", "uint8"), ("float32", "int16")])
def test_sparse_products(dtype: str, places: str) -> None:
    rows, depth, columns = 8, 32, 8
    group, kept, bits = (2, 1, 4) if dtype == "float32" else (4, 2, 2)
    choice = np.sort(RNG.permuted(np.tile(np.arange(group), (rows, depth // group, 1)), axis=-1)[..., :kept])
    packed = RNG.integers(-4, 5, (rows, depth // 2)).astype(dtype)
    dense = np.zeros((rows, depth // group, group), dtype)
    np.put_along_axis(dense, choice, packed.reshape(rows, -1, kept), axis=-1)
    codes = np.where(choice == 1, 0b1110, 0b0100) if bits == 4 else choice
    fields = codes.reshape(rows, -1, np.dtype(places).itemsize * 8 // bits).astype(np.int64)
    words = (fields << bits * np.arange(fields.shape[-1])).sum(-1).astype(f"u{np.dtype(places).itemsize}")
    k = Kernel(32)
    a, b = k.tensor("A", packed.shape, dtype), k.tensor("B", (depth, columns), dtype)
    e = k.tensor("E", words.shape, places)
    acc_type = "int32" if dtype == "int8" else "float32"
    c = k.tensor("C", (rows, columns), acc_type)
    a_s, b_s = (
        k.alloc("a_s", packed.shape, dtype, "shared"),
        k.alloc("b_s", (depth, columns), dtype, "shared"),
    )
    e_s = k.alloc("e_s", words.shape, places, "shared")
    acc = k.alloc("acc", (rows, columns), acc_type, "fragment")
    program = k.program(
        *(copy(s.box(), d.box()) for s, d in ((a, a_s), (b, b_s), (e, e_s))),
        gemm(a_s.box(), b_s.box(), acc.box(), metadata=e_s.box(), clear_accum=True),
        copy(acc.box(), c.box()),
    )
    other = RNG.integers(-4, 5, (depth, columns)).astype(dtype)
    given_ = {"A": packed, "B": other, "E": words.view(places)}
    right = dense.reshape(rows, depth).astype(np.float64) @ other.astype(np.float64)
    assert np.array_equal(execute(program, given_).tensors["C"], right)


def test_scales_of_the_whole_depth_in_words() -> None:
    """Four e8m0 scales in a word, of which a tile of the depth uses its part."""
    k = Kernel(32)
    a, b = k.tensor("A", (8, 64), "float8_e4m3"), k.tensor("B", (8, 64), "float8_e4m3")
    sa, sb = k.tensor("SA", (8, 1), "uint32"), k.tensor("SB", (8, 1), "uint32")
    c = k.tensor("C", (8, 8), "float32")
    names = {
        n: k.alloc(n, s, d, "shared")
        for n, s, d in (
            ("a_s", (8, 32), "float8_e4m3"),
            ("b_s", (8, 32), "float8_e4m3"),
            ("sa_s", (8, 1), "uint32"),
            ("sb_s", (8, 1), "uint32"),
        )
    }
    acc = k.alloc("acc", (8, 8), "float32", "fragment")
    i = var("i")
    more: dict[str, Any] = {
        "trans_b": True,
        "a_scale": names["sa_s"].box(),
        "b_scale": names["sb_s"].box(),
        "k_start": (i * 32).expr,
        "hints": (("sf_a_granularity_k", "16"), ("sf_b_granularity_k", "16")),
    }
    program = k.program(
        copy(sa.box(), names["sa_s"].box()),
        copy(sb.box(), names["sb_s"].box()),
        Fill(acc.box(), Const(0.0, "float32"), loc=loc()),
        loop(
            "i",
            2,
            copy(a.box((0, 8), (i * 32, 32)), names["a_s"].box()),
            copy(b.box((0, 8), (i * 32, 32)), names["b_s"].box()),
            gemm(names["a_s"].box(), names["b_s"].box(), acc.box(), **more),
        ),
        copy(acc.box(), c.box()),
    )
    given_ = {n: RNG.integers(-3, 4, (8, 64)).astype(ml_dtypes.float8_e4m3fn) for n in "AB"}
    codes = {n: RNG.integers(124, 131, (8, 4)).astype(np.uint8) for n in ("SA", "SB")}
    words = {n: c.view(np.uint32) for n, c in codes.items()}
    whole = [
        given_[n].astype(np.float64) * np.repeat(2.0 ** (codes["S" + n].astype(np.float64) - 127), 16, axis=1)
        for n in "AB"
    ]
    assert np.array_equal(execute(program, {**given_, **words}).tensors["C"], whole[0] @ whole[1].T)


def test_a_sum_that_starts_anew_where_a_value_says_so() -> None:
    k = Kernel(32, (3,))
    a, c = k.tensor("A", (16, 16), "float16"), k.tensor("C", (3, 16, 16), "float32")
    a_s, acc = k.alloc("a_s", (16, 16), "float16", "shared"), k.alloc("acc", (16, 16), "float32", "fragment")
    i, b = var("i"), var("bx")
    program = k.program(
        copy(a.box(), a_s.box()),
        Fill(acc.box(), Const(5.0, "float32"), loc=loc()),
        loop("i", 3, gemm(a_s.box(), a_s.box(), acc.box(), clear_if=(i == b).expr)),
        copy(acc.box(), c.box(b, (0, 16), (0, 16))),
    )
    data = RNG.integers(-3, 4, (16, 16)).astype(np.float16)
    square = data.astype(np.float32) @ data.astype(np.float32)
    found = execute(program, {"A": data}).tensors["C"]
    for block in range(3):
        assert np.array_equal(found[block], (3 - block) * square)


def test_reducers_and_tile_atomics() -> None:
    k = Kernel(32, (4,))
    x = k.tensor("X", (4, 8, 16), "float32")
    top = k.tensor("T", (16,), "float32")
    y = k.tensor("Y", (4, 8), "float32")
    k.notes.append(("reducer:acc", "sum:all"))
    acc, done = (k.alloc(n, (8,), "float32", "fragment") for n in ("acc", "done"))
    rows = k.alloc("rows", (16,), "float32", "fragment")
    b, i, j = var("bx"), var("i"), var("j")
    program = k.program(
        Fill(acc.box(), Const(0.0, "float32"), loc=loc()),
        For(
            (Var("i"), Var("j")),
            (Const(8), Const(16)),
            "parallel",
            (put(acc[i], x[b, i, j], atomic="add"),),
            loc=loc(),
        ),
        FinalizeReducer(acc.box(), done.box(), loc=loc()),
        copy(done.box(), y.box(b, (0, 8))),
        copy(x.box(b, 0, (0, 16)), rows.box()),
        AtomicAdd(rows.box(), top.box(), "max", loc=loc()),
    )
    data = RNG.integers(-9, 9, (4, 8, 16)).astype(np.float32)
    found = execute(program, {"X": data, "T": np.zeros(16, np.float32)}).tensors
    assert np.array_equal(found["Y"], data.sum(-1))
    assert np.array_equal(found["T"], np.maximum(data[:, 0].max(0), 0))


def test_numbers_as_parameters() -> None:
    k = Kernel(32)
    y = k.tensor("Y", (32,), "float32")
    program = k.program(
        put(y[tx()], tx() * Value(Var("scale", "float32"), "float32")), scalars=(Var("scale", "float32"),)
    )
    assert execute(program, {}, dims={"scale": 0.5}).tensors["Y"][3] == 1.5
    with pytest.raises(NumericsError, match="takes the number scale"):
        execute(program, {})


def test_opaque_code_is_refused_by_its_line() -> None:
    k = Kernel(32)
    y = k.tensor("Y", (32,), "float32")
    line = loc()
    with pytest.raises(NumericsError, match=rf"{line.file}:{line.line}: decode is inline device code"):
        execute(k.program(Extern("decode", writes=(y.box(),), source="__device__ …", loc=line)), {})
