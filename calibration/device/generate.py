"""Operands of a measurement: random values from recorded seeds, made where they are needed.

The i-th element is a function of seed and i alone (a 64-bit mix, SplitMix64: G. L. Steele, D. Lea, C. H.
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), in integer arithmetic and single
roundings, so that NumPy and CuPy make the same bytes. ``xp`` is either module.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from foretile.calibration.device.driver import Buffer, DeviceError, Driver
from foretile.calibration.device.formats import encode, stored
from foretile.kernels.dtypes import dtype

_CHUNK = 1 << 24  # elements made at a time: temporaries of eight bytes each, a few of them
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1
# The sum of four independent uniform numbers of 16 bits: its mean, and one over its deviation.
_MEAN, _INVERSE_DEVIATION = 2 * 65535, 1.0 / math.sqrt((65536**2 - 1) / 3)
_STRIDES = (1, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)

Fill = Mapping[str, Any]
"""How a tensor is filled. ``kind``:

``normal``    ``seed``, ``scale``: values of that deviation (four uniform numbers added, so within 3.5 of it)
``uniform``   ``seed``, ``low``, ``high``: real numbers from low to below high
``integers``  ``seed``, ``low``, ``high``: whole numbers from low to below high
``distinct``  ``seed``, ``high``: whole numbers from 0 to below high, none twice in a row of the last axis
``values``    ``data``: the stored bytes, compressed (zlib) and in base64
``zeros``     nothing more
"""


def packed_values(array: np.ndarray) -> dict[str, Any]:
    """A fill that reproduces a stored array."""
    raw = zlib.compress(np.ascontiguousarray(array).tobytes(), 9)
    return {"kind": "values", "data": base64.b64encode(raw).decode()}


def fill_tensor(driver: Driver, buffer: Buffer, name: str, shape: tuple[int, ...], fill: Fill) -> None:
    """Make the elements of a tensor in device memory.

    Raises:
        DeviceError: a kind of fill that is not known, or values of another size.
    """
    kind, count = fill.get("kind"), math.prod(shape)
    size = -(-count * dtype(name).bits // 8)
    if kind == "zeros":
        driver.fill(buffer, 0, 0, size)
        return
    if kind == "values":
        raw = np.frombuffer(zlib.decompress(base64.b64decode(fill["data"])), np.uint8)
        if raw.size != size:
            raise DeviceError(f"a fill of {raw.size} bytes for a tensor of {size}")
        driver.write(buffer, raw)
        return
    if kind not in _MAKERS:
        raise DeviceError(f"unknown kind of fill {kind!r}; known: {', '.join((*_MAKERS, 'values', 'zeros'))}")
    xp, row = driver.xp, shape[-1] if shape else 1
    per_byte = 2 if dtype(name).bits == 4 else 1
    item = np.dtype(stored(name)).itemsize
    for start in range(0, count, _CHUNK):
        index = xp.arange(start, min(count, start + _CHUNK), dtype="uint64")
        made = encode(xp, _MAKERS[kind](xp, index, row, fill), name)
        place = start // per_byte * item
        driver.view(buffer, stored(name), made.shape, place)[...] = made


def mixed(xp: Any, index: Any, seed: int) -> Any:
    """64 random bits for each index."""
    start = (seed * _GOLDEN + _GOLDEN) & _MASK
    state = index * np.uint64(_GOLDEN) + np.uint64(start)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_MIX_1)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_MIX_2)
    return state ^ (state >> np.uint64(31))


def _normal(xp: Any, index: Any, row: int, fill: Fill) -> Any:
    bits = mixed(xp, index, fill["seed"])
    low = np.uint64(0xFFFF)
    total = (bits & low) + ((bits >> np.uint64(16)) & low) + ((bits >> np.uint64(32)) & low)
    total = (total + (bits >> np.uint64(48))).astype("int64") - _MEAN
    return total.astype("float32") * np.float32(_INVERSE_DEVIATION * fill.get("scale", 1.0))


def _uniform(xp: Any, index: Any, row: int, fill: Fill) -> Any:
    share = (mixed(xp, index, fill["seed"]) >> np.uint64(40)).astype("float32") * np.float32(2.0**-24)
    return share * np.float32(fill["high"] - fill["low"]) + np.float32(fill["low"])


def _integers(xp: Any, index: Any, row: int, fill: Fill) -> Any:
    low, span = fill["low"], fill["high"] - fill["low"]
    return (mixed(xp, index, fill["seed"]) >> np.uint64(8)).astype("int64") % span + low


def _distinct(xp: Any, index: Any, row: int, fill: Fill) -> Any:
    """Every row walks through 0 … high − 1 from a random place, by a random stride that divides nothing."""
    high = int(fill["high"])
    if row > high:
        raise DeviceError(f"{row} different whole numbers from 0 to below {high} do not exist")
    strides = xp.asarray(np.array([s for s in _STRIDES if math.gcd(s, high) == 1], np.int64))
    rows, place = (index // np.uint64(row)), (index % np.uint64(row)).astype("int64")
    bits = mixed(xp, rows, fill["seed"])
    stride = strides[((bits >> np.uint64(32)).astype("int64") % strides.size)]
    return ((bits & np.uint64(0xFFFFFFFF)).astype("int64") + place * stride) % high


_MAKERS = {"normal": _normal, "uniform": _uniform, "integers": _integers, "distinct": _distinct}
