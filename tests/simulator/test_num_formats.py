"""Number formats of the executor: against ml_dtypes and NumPy, exact rational arithmetic, and properties."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretile.kernels.dtypes import DTYPES
from foretile.simulator.numerics.formats import (
    carrier,
    decode,
    encode,
    finfo,
    round_to,
    storage,
    truncate_tf32,
    ulp,
)

steady = settings(deadline=None, derandomize=True, database=None)

# The types of at most 16 bits, with what NumPy calls them.
NARROW: dict[str, Any] = {
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float8_e4m3": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e8m0": ml_dtypes.float8_e8m0fnu,
    "float4_e2m1": ml_dtypes.float4_e2m1fn,
}
# Mantissa bits, exponent of the smallest normal number, largest finite value: from the standards, by hand.
BY_HAND = {
    "float32": (23, -126, (2 - 2.0**-23) * 2.0**127),
    "tfloat32": (10, -126, (2 - 2.0**-10) * 2.0**127),
    "bfloat16": (7, -126, (2 - 2.0**-7) * 2.0**127),
    "float16": (10, -14, 65504.0),
    "float8_e4m3": (3, -6, 448.0),
    "float8_e5m2": (2, -14, 57344.0),
    "float4_e2m1": (1, 0, 6.0),
}
SATURATING = ("float8_e4m3", "float8_e5m2", "float4_e2m1")
INTEGERS = [name for name, info in DTYPES.items() if info.kind in ("int", "uint")]
SMALL_INTEGERS = [name for name in INTEGERS if DTYPES[name].bits <= 16]
NAN, INF = float("nan"), float("inf")


def every_code(dtype: str) -> np.ndarray:
    """An array in the storage type with each code once."""
    stored = storage(dtype)
    bits = DTYPES[dtype].bits
    codes = np.arange(1 << bits, dtype=np.uint16 if stored.itemsize == 2 else np.uint8)
    if dtype == "int4":  # ml_dtypes keeps the sign in the other half of the byte
        codes = (codes.astype(np.int8) << 4 >> 4).view(np.uint8)
    return codes.view(stored)


def raw(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.dtype.itemsize}")


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Bit for bit, but for the payload of NaN."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    wrong = raw(found) != raw(expected)
    if found.dtype.kind not in "iub":
        wrong &= ~(np.isnan(ordinary(found, np.float64)) & np.isnan(ordinary(expected, np.float64)))
    assert not wrong.any(), (found[wrong][:5], expected[wrong][:5], np.flatnonzero(wrong)[:5])


def ordinary(values: np.ndarray, dtype: Any) -> np.ndarray:
    """What NumPy or ml_dtypes make of ``values``."""
    with np.errstate(all="ignore"):
        return values.astype(dtype)


def halfway(dtype: str) -> np.ndarray:
    """float32: all points halfway between neighbours of ``dtype``, and their neighbours in float32."""
    info = finfo(dtype)
    numbers = ordinary(decode(every_code(dtype), dtype), np.float64)
    numbers = np.unique(numbers[np.isfinite(numbers)])
    beyond = 2.0 ** (info.max_exponent + 1) if info.top == "ieee" else info.max * (1 + info.eps)
    numbers = np.concatenate([[-beyond], numbers, [beyond]])
    middle = ((numbers[1:] + numbers[:-1]) / 2).astype(np.float32)
    return np.concatenate(
        [middle, np.nextafter(middle, np.float32(INF)), np.nextafter(middle, np.float32(-INF))]
    )


def random_float32(count: int) -> np.ndarray:
    """Random bits: every exponent equally likely, subnormals and NaN among them; then special values."""
    rng = np.random.default_rng(2024)
    special = np.array([0.0, -0.0, INF, -INF, NAN, -NAN, 1.0, -1.0], np.float32)
    payloads = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7F801FFF], np.uint32).view(
        np.float32
    )
    limits = np.array([1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x400000, 0x400001, 0x3FFFFF], np.uint32).view(
        np.float32
    )
    bits = rng.integers(0, 1 << 32, count, dtype=np.uint32).view(np.float32)
    return np.concatenate([bits, special, payloads, limits, -limits])


# ---- Storage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", NARROW)
def test_every_code_decodes_as_ml_dtypes_does(dtype: str) -> None:
    stored = every_code(dtype)
    assert storage(dtype) == NARROW[dtype]
    values = decode(stored, dtype)
    assert_same(values, stored.astype(np.float32))
    assert_same(encode(values, dtype), stored)


@pytest.mark.parametrize("dtype", NARROW)
def test_rounding_keeps_what_is_representable(dtype: str) -> None:
    values = decode(every_code(dtype), dtype)
    assert_same(round_to(values, dtype, saturate=False), values)
    finite = values[np.isfinite(values)]
    assert_same(round_to(finite, dtype), finite)
    assert_same(round_to(finite.astype(np.float64), dtype), finite)


@pytest.mark.parametrize("dtype", SMALL_INTEGERS)
def test_every_small_integer_is_kept(dtype: str) -> None:
    stored = every_code(dtype)
    values = decode(stored, dtype)
    assert values.dtype == np.int32
    assert np.array_equal(values, stored.astype(np.int32))
    assert_same(encode(values, dtype), stored)
    assert np.array_equal(round_to(values, dtype), values)


@pytest.mark.parametrize(
    "dtype", ["int32", "uint32", "int64", "uint64", "float32", "float64", "tfloat32", "bool"]
)
def test_wide_types_are_stored_as_numpy_stores_them(dtype: str) -> None:
    rng = np.random.default_rng(1)
    stored = rng.integers(0, 256, 8000, dtype=np.uint8).view(storage(dtype))
    stored = stored.astype(np.uint8) > 100 if dtype == "bool" else stored
    values = decode(stored, dtype)
    assert values.dtype == carrier(dtype)
    assert not np.shares_memory(values, stored)
    if dtype != "uint64":  # held modulo 2**64
        assert np.array_equal(values, stored, equal_nan=values.dtype.kind == "f")
    assert_same(encode(values, dtype), stored)


# ---- Rounding, against ml_dtypes and NumPy ---------------------------------------------------------


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("source", [*NARROW, *SMALL_INTEGERS])
def test_conversions_between_narrow_types(source: str, dtype: str) -> None:
    stored = every_code(source)
    found = encode(round_to(decode(stored, source), dtype, saturate=False), dtype)
    assert_same(found, ordinary(stored.astype(np.float32), NARROW[dtype]))


@pytest.mark.parametrize("dtype", NARROW)
def test_a_million_float32(dtype: str) -> None:
    values = random_float32(1 << 20)
    found = round_to(values, dtype, saturate=False)
    assert_same(encode(found, dtype), ordinary(values, NARROW[dtype]))
    # Through float64 and through the carrier of another shape and memory order, the same.
    assert_same(round_to(ordinary(values, np.float64), dtype, saturate=False), found)
    square = values[: 1 << 18].reshape(512, 512)
    assert_same(round_to(square.T, dtype, saturate=False), found[: 1 << 18].reshape(512, 512).T.copy())


@pytest.mark.parametrize("target", NARROW)
@pytest.mark.parametrize("dtype", NARROW)
def test_halfway_cases(dtype: str, target: str) -> None:
    values = halfway(dtype)
    found = encode(round_to(values, target, saturate=False), target)
    assert_same(found, ordinary(values, NARROW[target]))


def test_a_million_tfloat32() -> None:
    values = random_float32(1 << 20)
    found = round_to(values, "tfloat32")
    assert not (raw(found)[~np.isnan(found)] & 0x1FFF).any()
    wide = ordinary(values, np.float64)
    finite = np.isfinite(wide)
    spacing = ulp(values, "tfloat32")[finite]
    expected = np.copysign(np.floor(np.abs(wide[finite]) / spacing + 0.5) * spacing, wide[finite])
    assert_same(found[finite], ordinary(expected, np.float32))
    assert_same(found[~finite], values[~finite])
    assert (
        round_to(np.array([1 + 2.0**-11], np.float32), "tfloat32")[0] == 1 + 2.0**-10
    )  # a tie, away from zero
    assert round_to(np.array([1 + 3 * 2.0**-11], np.float32), "tfloat32")[0] == 1 + 2.0**-9


def test_tensor_cores_cut_tfloat32() -> None:
    values = random_float32(1 << 16)
    before = values.copy()
    found = truncate_tf32(values)
    assert_same(values, before)
    numbers = ~np.isnan(values)
    assert np.array_equal(raw(found)[numbers], raw(values)[numbers] >> 13 << 13)
    assert np.isnan(found[~numbers]).all()


def test_float32_and_float64_are_the_machine_s() -> None:
    values = np.random.default_rng(3).integers(0, 1 << 64, 1 << 16, dtype=np.uint64).view(np.float64)
    assert_same(round_to(values, "float32"), ordinary(values, np.float32))
    single = random_float32(1 << 16)
    assert_same(round_to(single, "float64"), ordinary(single, np.float64))
    assert round_to(single, "float32") is not single


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_torch_rounds_alike(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    values = np.concatenate(
        [random_float32(1 << 16), halfway("bfloat16"), halfway("float16"), halfway("float8_e4m3")]
    )
    if dtype == "float8_e4m3fn":  # beyond, older versions give NaN and 2.13 saturates
        values = values[~(np.abs(values) > 464)]
    expected = torch.from_numpy(values).to(getattr(torch, dtype)).to(torch.float32).numpy()
    assert_same(round_to(values, dtype, saturate=False), expected)


# ---- Rounding, against exact arithmetic ------------------------------------------------------------


def floor_log2(value: Fraction) -> int:
    """Of zero: below every exponent."""
    if value == 0:
        return -2000
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= value else exponent - 1


def exact(value: float | int, dtype: str, saturate: bool = True) -> float:
    """One number converted by the rules of the PTX ISA, in rational arithmetic."""
    mantissa_bits, smallest_exponent, largest = BY_HAND[dtype]
    clamped = dtype in SATURATING and (saturate or dtype == "float4_e2m1")
    sign = math.copysign(1.0, value)
    if math.isnan(value):
        return 6.0 if dtype == "float4_e2m1" else NAN
    if math.isinf(value):
        beyond = True
        result = Fraction(0)
    else:
        magnitude = abs(Fraction(value))
        exponent = max(floor_log2(magnitude), smallest_exponent)
        unit = Fraction(2) ** (exponent - mantissa_bits)
        units = magnitude / unit
        result = unit * (math.floor(units + Fraction(1, 2)) if dtype == "tfloat32" else round(units))
        beyond = result > Fraction(largest)
    if beyond and clamped:
        return sign * largest
    if beyond:
        return NAN if dtype == "float8_e4m3" else sign * INF
    return sign * float(result)


def exact_scale(value: float | int) -> float:
    """``cvt.rp.satfinite.ue8m0x2``, in rational arithmetic."""
    if math.isnan(value):
        return NAN
    if math.isinf(value):
        return 2.0**127
    exponent = floor_log2(abs(Fraction(value)))
    exponent += Fraction(2) ** exponent < abs(Fraction(value))
    return 2.0 ** min(max(exponent, -127), 127)


def awkward(dtype: str) -> np.ndarray:
    """float64: random numbers of the type's range, ties and near ties that vanish in float32, limits."""
    rng = np.random.default_rng(5)
    mantissa_bits, low, largest = BY_HAND[dtype]
    low, high = low - mantissa_bits - 2, math.frexp(largest)[1] + 1
    random = np.ldexp(rng.uniform(-1, 1, 400), rng.integers(low, high, 400))
    units = rng.integers(1, 1 << (mantissa_bits + 1), 400) + 0.5
    ties = np.ldexp(units, rng.integers(low, high - mantissa_bits, 400))
    near = np.concatenate([ties * (1 + 2.0**-48), ties * (1 - 2.0**-48)])
    edge = largest * (1 + 2.0 ** -(mantissa_bits + 2) * np.arange(8))
    special = [0.0, -0.0, NAN, -NAN, INF, -INF, 5e-324, -5e-324, 1e300, -1e300]
    return np.concatenate([random, ties, -ties, near, -near, edge, -edge, special])


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("dtype", BY_HAND)
def test_float64_and_float32_round_once(dtype: str, saturate: bool) -> None:
    wide = awkward(dtype)
    if dtype == "float4_e2m1" and not saturate:
        wide = wide[~np.isnan(wide)]  # ml_dtypes' zero of the other sign is compared above
    for values in (wide, ordinary(wide, np.float32)):
        expected = np.array([exact(float(x), dtype, saturate) for x in values], np.float32)
        assert_same(round_to(values, dtype, saturate=saturate), expected)


def test_rounding_through_float32_would_be_seen() -> None:
    for dtype in ("bfloat16", "float16", "float8_e4m3", "float8_e5m2", "float4_e2m1"):
        values = awkward(dtype)
        once = round_to(values, dtype)
        twice = round_to(ordinary(values, np.float32), dtype)
        assert (once != twice).sum() > 100
    assert round_to(np.array([1 + 2.0**-8 + 2.0**-40]), "bfloat16")[0] == 1 + 2.0**-7


def test_scales_round_up() -> None:
    wide = np.concatenate(
        [awkward("bfloat16"), halfway("float8_e8m0"), [0.0, 2.0**-127, 1.5 * 2.0**-127, 2.0**-130]]
    )
    for values in (wide, ordinary(wide, np.float32)):
        expected = np.array([exact_scale(float(x)) for x in values], np.float32)
        assert_same(round_to(values, "float8_e8m0"), expected)


@pytest.mark.parametrize("dtype", [*BY_HAND, "float8_e8m0", "float64"])
def test_integers_round_once(dtype: str) -> None:
    rng = np.random.default_rng(7)
    wide = rng.integers(-(1 << 63), (1 << 63) - 1, 400) >> rng.integers(0, 63, 400)
    near = (1 << np.arange(8, 63)).astype(np.int64)
    ties = np.concatenate([near + (near >> k) + d for k in (4, 8, 9, 11, 12, 24) for d in (-1, 0, 1)])
    limits = np.array([0, 1, -1, (1 << 63) - 1, -(1 << 63), (1 << 53) + 1, (1 << 24) + 1], np.int64)
    values = np.concatenate([wide, ties, -ties, limits])
    for integers in (values, ordinary(values, np.int32), ordinary(values, np.uint64), values > 0):
        if dtype == "float64":
            expected = np.array([float(int(x)) for x in integers])
        elif dtype == "float8_e8m0":
            expected = np.array([exact_scale(int(x)) for x in integers], np.float32)
        else:
            expected = np.array([exact(int(x), dtype) + 0.0 for x in integers], np.float32)
        assert_same(round_to(integers, dtype), expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_integers_just_beyond_float32_round_once(sign: int) -> None:
    tie = (1 << 24) + (1 << 16)
    found = round_to(sign * np.array([tie - 1, tie, tie + 1]), "bfloat16")
    assert (sign * found).tolist() == [1 << 24, 1 << 24, (1 << 24) + (1 << 17)]


# ---- Integers --------------------------------------------------------------------------------------


def limits_of(dtype: str) -> tuple[int, int]:
    bits = DTYPES[dtype].bits
    return (
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if DTYPES[dtype].kind == "int" else (0, (1 << bits) - 1)
    )


def two_s_complement(value: int, dtype: str) -> int:
    """``value`` modulo the type's range; of uint64, what an int64 of the same bits holds."""
    low, high = (-(1 << 63), (1 << 63) - 1) if dtype == "uint64" else limits_of(dtype)
    return (value - low) % (high - low + 1) + low


@pytest.mark.parametrize("width", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_floats_truncate_and_saturate(dtype: str, width: Any) -> None:
    low, high = limits_of(dtype)
    rng = np.random.default_rng(11)
    near = np.array([low - 1.0, low - 0.5, low, low + 0.5, high - 0.5, high, high + 0.5, high + 1.0])
    around = np.concatenate([near, np.nextafter(near, INF), np.nextafter(near, -INF)])
    small = np.array([0.0, -0.0, 0.999, -0.999, 1.5, -1.5, 2.5, -2.5, 1e30, -1e30, INF, -INF, NAN, -NAN])
    random = np.ldexp(rng.uniform(-1, 1, 500), rng.integers(-2, 70, 500))
    values = ordinary(np.concatenate([around, small, random]), width)
    expected = [
        0 if x != x else min(max(int(x), low), high) if abs(x) != INF else high if x > 0 else low
        for x in map(float, values)
    ]
    found = round_to(values, dtype)
    assert found.dtype == carrier(dtype)
    assert found.tolist() == [two_s_complement(x, dtype) for x in expected]


@pytest.mark.parametrize("source", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_wrap(dtype: str, source: Any) -> None:
    info = np.iinfo(source)
    rng = np.random.default_rng(13)
    spread = rng.integers(info.min, info.max, 500, dtype=source) >> rng.integers(
        0, info.bits - 1, 500, dtype=source
    )
    values = np.concatenate(
        [spread, [info.min, info.max, -1, 0, 127, 128, -128, -129, 7, 8, -8, -9, 255, 256]]
    )
    values = values.astype(source)
    found = round_to(values, dtype)
    assert found.dtype == carrier(dtype)
    assert found.tolist() == [two_s_complement(int(x), dtype) for x in values]
    assert round_to(values > 0, dtype).tolist() == [int(x > 0) for x in values]


def test_truth_is_what_is_not_zero() -> None:
    values = np.array([0.0, -0.0, 1e-45, -2.0, NAN, INF], np.float32)
    assert round_to(values, "bool").tolist() == [False, False, True, True, True, True]
    assert round_to(np.array([0, 256, -1]), "bool").tolist() == [False, True, True]


# ---- Properties ------------------------------------------------------------------------------------

FLOATS = [*NARROW, "tfloat32", "float32"]
SIGNED = [name for name in FLOATS if name != "float8_e8m0"]
singles = st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=40).map(
    lambda x: np.array(x, np.float32)
)
doubles = st.lists(st.floats(allow_nan=False), min_size=2, max_size=40).map(lambda x: np.array(x, np.float64))


@steady
@given(dtype=st.sampled_from(FLOATS), values=singles | doubles, saturate=st.booleans())
def test_rounding_twice_changes_nothing(dtype: str, values: np.ndarray, saturate: bool) -> None:
    once = round_to(values, dtype, saturate=saturate)
    assert_same(round_to(once, dtype, saturate=saturate), once)


@steady
@given(dtype=st.sampled_from(SIGNED), values=singles | doubles)
def test_rounding_is_monotone(dtype: str, values: np.ndarray) -> None:
    rounded = round_to(np.sort(values), dtype)
    assert (rounded[1:] >= rounded[:-1]).all()


@steady
@given(dtype=st.sampled_from(SIGNED), values=singles | doubles, saturate=st.booleans())
def test_rounding_is_odd(dtype: str, values: np.ndarray, saturate: bool) -> None:
    assert_same(round_to(-values, dtype, saturate=saturate), -round_to(values, dtype, saturate=saturate))


@steady
@given(dtype=st.sampled_from(SIGNED), values=singles | doubles)
def test_rounding_errs_by_half_a_unit(dtype: str, values: np.ndarray) -> None:
    inside = values[np.abs(values) <= finfo(dtype).max]
    for value, rounded, unit in zip(inside, round_to(inside, dtype), ulp(inside, dtype), strict=True):
        assert abs(Fraction(float(value)) - Fraction(float(rounded))) <= Fraction(float(unit)) / 2


@steady
@given(values=singles | doubles)
def test_scales_cover_their_value(values: np.ndarray) -> None:
    magnitude = np.abs(values.astype(np.float64))
    scale = round_to(values, "float8_e8m0").astype(np.float64)
    inside = magnitude <= 2.0**127
    assert (scale[inside] >= magnitude[inside]).all()
    assert ((scale / 2 < magnitude) | (scale == 2.0**-127))[inside].all()


# ---- Limits and spacing ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", *NARROW])
def test_limits_are_those_of_numpy_and_ml_dtypes(dtype: str) -> None:
    found = finfo(dtype)
    known: Any = ml_dtypes.finfo(storage(dtype))
    assert found.max == float(known.max)
    assert found.smallest_normal == float(known.smallest_normal)
    assert found.smallest_subnormal == float(known.smallest_subnormal)
    assert found.eps == float(known.eps)
    assert found.unit_roundoff == found.eps / 2
    assert 1.0 <= found.max / 2.0**found.max_exponent < 2.0


@pytest.mark.parametrize("dtype", BY_HAND)
def test_limits_are_those_of_the_standards(dtype: str) -> None:
    mantissa_bits, smallest_exponent, largest = BY_HAND[dtype]
    found = finfo(dtype)
    assert (found.mantissa_bits, found.min_exponent, found.max) == (mantissa_bits, smallest_exponent, largest)


@pytest.mark.parametrize("dtype", NARROW)
def test_spacing_is_the_distance_to_the_next_number(dtype: str) -> None:
    numbers = np.unique(np.abs(decode(every_code(dtype), dtype)))
    numbers = numbers[np.isfinite(numbers)].astype(np.float64)
    assert np.array_equal(ulp(numbers[:-1], dtype), np.diff(numbers))
    assert np.array_equal(ulp(-numbers[:-1].astype(np.float32), dtype), np.diff(numbers))
    between = np.nextafter(numbers[1:], 0)
    assert np.array_equal(ulp(between, dtype), np.diff(numbers))
    assert (
        ulp(np.array([numbers[-1], 1e300]), dtype).tolist()
        == [2.0 ** (finfo(dtype).max_exponent - finfo(dtype).mantissa_bits)] * 2
    )
    assert np.isnan(ulp(np.array([NAN, INF]), dtype)).all()


def test_spacing_of_wide_types() -> None:
    values = random_float32(10000)
    values = values[np.isfinite(values)]
    smaller = np.abs(values[np.abs(values) < np.finfo(np.float32).max])
    assert np.array_equal(ulp(smaller, "float32"), np.spacing(smaller).astype(np.float64))
    doubles = np.abs(np.random.default_rng(3).integers(0, 1 << 62, 5000, dtype=np.uint64).view(np.float64))
    assert np.array_equal(ulp(doubles, "float64"), np.spacing(doubles))
    assert ulp(np.array([0, -7]), "int32").tolist() == [1, 1]
    assert ulp(np.array(3.0), "bfloat16") == 2.0**-6


# ---- Calling ---------------------------------------------------------------------------------------


def test_carriers() -> None:
    assert {name: str(carrier(name)) for name in DTYPES} == {
        "float64": "float64",
        **dict.fromkeys([*FLOATS], "float32"),
        **dict.fromkeys(["int64", "int32", "uint64", "uint32"], "int64"),
        **dict.fromkeys(["int16", "int8", "int4", "uint16", "uint8"], "int32"),
        "bool": "bool",
    }


IN_PLACE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": lambda x: x,
    "strided": lambda x: x[::2, 1:],
    "transposed": lambda x: x.T,
}


@pytest.mark.parametrize("view", IN_PLACE)
@pytest.mark.parametrize("dtype", FLOATS)
def test_out_is_written_in_place(dtype: str, view: str) -> None:
    values = random_float32(200 * 200)[: 200 * 200].reshape(200, 200)
    expected = round_to(IN_PLACE[view](values).copy(), dtype)
    place = IN_PLACE[view](values.copy())
    assert round_to(place, dtype, out=place) is place
    assert_same(place.copy(), expected)


def test_out_may_overlap_the_values() -> None:
    for values, out in ((slice(1, None), slice(-1)), (slice(-1), slice(1, None))):
        line = random_float32(100_000)
        expected = round_to(line[values].copy(), "bfloat16")
        assert_same(round_to(line[values], "bfloat16", out=line[out]), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scalars_and_empty_arrays(dtype: str) -> None:
    for source in (np.float32, np.float64, np.int32, np.int64, np.bool_):
        single = round_to(np.array(1, source), dtype)
        assert single.shape == ()
        assert single == 1
        assert round_to(np.zeros((0, 3), source), dtype).shape == (0, 3)
    assert decode(encode(round_to(np.ones(()), dtype), dtype), dtype) == 1
    assert encode(np.zeros((2, 0), carrier(dtype)), dtype).shape == (2, 0)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="unknown dtype"):
        round_to(np.zeros(3), "float12")
    with pytest.raises(TypeError, match="decode it"):
        round_to(np.zeros(3, ml_dtypes.bfloat16), "float32")
    with pytest.raises(TypeError, match="decode it"):
        round_to(np.zeros(3, np.float16), "float32")
    with pytest.raises(ValueError, match="must be float32"):
        round_to(np.zeros(3), "bfloat16", out=np.zeros(3))
    with pytest.raises(ValueError, match=r"must be float32\(3,\)"):
        round_to(np.zeros(3), "bfloat16", out=np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="stored as bfloat16"):
        decode(np.zeros(3, np.float32), "bfloat16")
    with pytest.raises(ValueError, match="carried as float32"):
        encode(np.zeros(3), "bfloat16")
    with pytest.raises(ValueError, match="not a floating-point type"):
        finfo("int8")
