"""What CUDA C++ says about numbers: promoted integers, and its functions by name."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from lane_programs import Kernel, loop, put, tx, var

from foretile.kernels.expr import Binary, Call, Cast, Const
from foretile.simulator.lowering.device import DEVICE_COSTS, DEVICE_NAMES
from foretile.simulator.lowering.elementwise import count
from foretile.simulator.numerics.device import known_names
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.execute import execute

RNG = np.random.default_rng(5)
ROUNDINGS = ("rn", "rz", "rd", "ru")
WORD = 1 << 32


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


def called(name: str, result: str, *given: np.ndarray, parallel: bool = False) -> np.ndarray:
    """Values of a function by its name, of vectors, by threads or by iterations of a parallel loop."""
    n = given[0].size
    k = Kernel(n, (1,))
    x = [k.tensor(f"X{i}", (n,), v.dtype.name) for i, v in enumerate(given)]
    y = k.tensor("Y", (n,), result)
    at = var("i") if parallel else tx()
    body = put(y[at], Call(f"extern:{result}:{name}", tuple(v.load(at) for v in x)))
    program = k.program(loop("i", n, body, kind="parallel") if parallel else body)
    return execute(program, {f"X{i}": v for i, v in enumerate(given)}).tensors["Y"]


def floats(n: int = 96) -> np.ndarray:
    """Numbers whose products stay in range: some meet in their exponents, some are far apart."""
    near, far = (
        RNG.standard_normal(n // 2),
        RNG.standard_normal(n // 2) * 2.0 ** RNG.integers(-50, 50, n // 2),
    )
    return np.concatenate([near, far]).astype(np.float32)


def is_rounded(exact: Fraction, found: Any, how: str) -> bool:
    """Whether a number is the one of its type that ``how`` rounds to, told by its two neighbours."""
    infinity = type(found)(np.inf)
    below, above = (Fraction(float(np.nextafter(found, s))) for s in (-infinity, infinity))
    held = Fraction(float(found))
    if how == "rz":
        how = "rd" if exact > 0 else "ru"
    if how == "rn":
        return 2 * exact <= held + above and 2 * exact >= held + below
    return held <= exact < above if how == "rd" else below < exact <= held


def squared(found: Any, x: Fraction, how: str) -> bool:
    """Whether a number is the root of ``x``, rounded."""
    at = Fraction(float(found))
    below, above = (Fraction(float(np.nextafter(found, np.float32(s)))) for s in (-np.inf, np.inf))
    if how == "rn":
        return ((at + below) / 2) ** 2 <= x <= ((at + above) / 2) ** 2
    return below**2 < x <= at**2 if how == "ru" else at**2 <= x < above**2


@pytest.mark.parametrize("how", ROUNDINGS)
def test_single_precision_is_rounded_as_named(how: str) -> None:
    a, b, c = floats(), floats(), floats()
    exact = {
        "fadd": [Fraction(float(x)) + Fraction(float(y)) for x, y in zip(a, b, strict=True)],
        "fsub": [Fraction(float(x)) - Fraction(float(y)) for x, y in zip(a, b, strict=True)],
        "fmul": [Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b, strict=True)],
        "fdiv": [Fraction(float(x)) / Fraction(float(y)) for x, y in zip(a, b, strict=True)],
    }
    for name, values in exact.items():
        found = called(f"__{name}_{how}", "float32", a, b)
        assert all(is_rounded(e, f, how) for e, f in zip(values, found, strict=True)), name
    product = [e + Fraction(float(z)) for e, z in zip(exact["fmul"], c, strict=True)]
    found = called(f"__fmaf_{how}", "float32", a, b, c)
    assert all(is_rounded(e, f, how) for e, f in zip(product, found, strict=True))
    found = called(f"__frcp_{how}", "float32", a)
    assert all(is_rounded(1 / Fraction(float(x)), f, how) for x, f in zip(a, found, strict=True))
    found = called(f"__fsqrt_{how}", "float32", np.abs(a))
    assert all(squared(f, Fraction(float(abs(x))), how) for x, f in zip(a, found, strict=True))


@pytest.mark.parametrize("how", ROUNDINGS)
@pytest.mark.parametrize("parallel", [False, True])
def test_conversions_are_rounded_as_named(how: str, parallel: bool) -> None:
    small = RNG.standard_normal(64) * 2.0 ** RNG.integers(-26, 14, 64)  # subnormal halves too
    x = small.astype(np.float32)
    for name, result in (("float2half", "float16"), ("float2bfloat16", "bfloat16")):
        found = called(f"__{name}_{how}", result, x, parallel=parallel)
        assert all(is_rounded(Fraction(float(v)), f, how) for v, f in zip(x, found, strict=True)), name
    whole = {"rn": round, "rz": math.trunc, "rd": math.floor, "ru": math.ceil}[how]
    x[:4] = [2.5, -2.5, 3e9, -3e9]
    limits = np.iinfo(np.int32)
    want = [min(max(whole(float(v)), limits.min), limits.max) for v in x]
    assert called(f"__float2int_{how}", "int32", x, parallel=parallel).tolist() == want
    n = RNG.integers(-(2**31), 2**31, 64).astype(np.int32)
    found = called(f"__int2float_{how}", "float32", n, parallel=parallel)
    assert all(is_rounded(Fraction(int(v)), f, how) for v, f in zip(n, found, strict=True))


def test_what_leaves_the_range() -> None:
    x = np.array([1e6, -1e6, np.inf, -np.inf], np.float32)
    most = 65504.0
    want = {
        "rn": [np.inf, -np.inf, np.inf, -np.inf],
        "rz": [most, -most, np.inf, -np.inf],
        "rd": [most, -np.inf, np.inf, -np.inf],
        "ru": [np.inf, -most, np.inf, -np.inf],
    }
    for how, values in want.items():
        assert called(f"__float2half_{how}", "float16", x).tolist() == values
    nan = np.array([np.nan], np.float32)
    assert np.isnan(called("__float2half_rz", "float16", nan)).all()
    assert called("__float2int_ru", "int32", nan).tolist() == [0]
    assert called("__saturatef", "float32", np.array([-1, 0.25, 7, np.nan], np.float32)).tolist() == [
        0,
        0.25,
        1,
        0,
    ]


def test_bits_of_words() -> None:
    a, b, s = (RNG.integers(0, WORD, 64, dtype=np.uint64).astype(np.uint32) for _ in range(3))
    x, y, z = (v.tolist() for v in (a, b, s))
    words = [(w << 32 | v, k) for v, w, k in zip(x, y, z, strict=True)]
    signed = [int(v) for v in a.view(np.int32)], [int(v) for v in b.view(np.int32)]
    want = {
        "__brev": ([int(f"{v:032b}"[::-1], 2) for v in x], (a,)),
        "__umulhi": ([v * w >> 32 for v, w in zip(x, y, strict=True)], (a, b)),
        "__byte_perm": (
            [sum((w >> 8 * (k >> 4 * i & 7) & 0xFF) << 8 * i for i in range(4)) for w, k in words],
            (a, b, s),
        ),
        "__funnelshift_l": ([(w << (k & 31) >> 32) % WORD for w, k in words], (a, b, s)),
        "__funnelshift_r": ([(w >> (k & 31)) % WORD for w, k in words], (a, b, s)),
        "__funnelshift_lc": ([(w << min(k, 32) >> 32) % WORD for w, k in words], (a, b, s)),
    }
    for name, (values, given) in want.items():
        assert called(name, "uint32", *given).tolist() == values, name
    high = [v * w >> 32 for v, w in zip(*signed, strict=True)]
    assert called("__mulhi", "int32", a.view(np.int32), b.view(np.int32)).tolist() == high
    f = floats()
    assert np.array_equal(called("__float_as_int", "int32", f), f.view(np.int32))
    assert np.array_equal(called("__int_as_float", "float32", f.view(np.int32)), f)


def test_halves_loads_and_fast_functions() -> None:
    a, b, c = (floats(64).clip(-99, 99).astype(np.float16) for _ in range(3))
    given = zip(a, b, c, called("__hfma", "float16", a, b, c), strict=True)
    exact = [(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)), f) for x, y, z, f in given]
    assert all(is_rounded(e, f, "rn") for e, f in exact)
    low = a.astype(ml_dtypes.bfloat16)
    assert np.array_equal(called("__bfloat162float", "float32", low), low.astype(np.float32))
    assert np.array_equal(called("__ldg", "float16", a, parallel=True), a)
    x = floats(64)
    np.testing.assert_allclose(
        called("__expf", "float32", x.clip(-80, 80)), np.exp(x.clip(-80, 80)), rtol=1e-6
    )
    large = np.array([2.0**127, 2.0**127, 4.0], np.float32)
    assert np.array_equal(
        called("__fdividef", "float32", np.array([2.0**100, np.inf, 1.0], np.float32), large),
        np.array([0, np.nan, 0.25], np.float32),
        equal_nan=True,
    )
    with pytest.raises(NumericsError, match="__my_own is code that is opaque here"):
        called("__my_own", "float32", x, parallel=True)


def test_what_has_a_value_has_a_cost() -> None:
    assert known_names() == set(DEVICE_COSTS) | set(DEVICE_NAMES)
    k = Kernel(32, (1,))
    x = k.tensor("X", (32,), "float32").load(tx())
    program = k.program()
    plain = count(x, program)
    assert count(Call("extern:float16:__float2half_rz", (x,)), program) == plain.then(convert=1)
    assert count(Call("extern:float32:__expf", (x,)), program) == count(Call("exp", (x,)), program)


def test_a_nibble_shifted_up_and_down_again_is_extended_by_its_sign() -> None:
    """The idiom that unpacks signed int4: a shift by less than the width stays in the type."""
    k = Kernel(64, (1,))
    packed = k.tensor("packed", (64,), "int8")
    y = k.tensor("Y", (64,), "int8")
    up = Binary("shl", packed.load(tx()), Const(4, "int8"))
    program = k.program(put(y[tx()], Binary("shr", up, Const(4, "int8"))))
    given = RNG.integers(-128, 128, 64, dtype=np.int64)
    found = execute(program, {"packed": given.astype("int8")}).tensors["Y"]
    np.testing.assert_array_equal(found, (given & 7) - (given & 8))
