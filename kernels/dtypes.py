"""Element types of tile programs: one table, canonical (TileLang) names, short aliases, widths."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

DTypeKind = Literal["float", "int", "uint", "bool"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    ``name`` is TileLang's spelling, ``short`` the one used on the command line and in chip
    files, ``bits`` the storage width (sub-byte types pack).
    """

    name: str
    short: str
    bits: int
    kind: DTypeKind
    mantissa_bits: int = 0  # stored, without the leading one; floating-point types only

    @property
    def bytes(self) -> float:
        """Storage bytes of one element (0.5 for four-bit types)."""
        return self.bits / 8


_TABLE = (
    DType("float64", "fp64", 64, "float", 52),
    DType("float32", "fp32", 32, "float", 23),
    DType("tfloat32", "tf32", 32, "float", 10),
    DType("float16", "fp16", 16, "float", 10),
    DType("bfloat16", "bf16", 16, "float", 7),
    DType("float8_e4m3", "fp8", 8, "float", 3),
    DType("float8_e5m2", "fp8_e5m2", 8, "float", 2),
    DType("float8_e8m0", "fp8_e8m0", 8, "float", 0),
    DType("float4_e2m1", "fp4", 4, "float", 1),
    DType("int64", "int64", 64, "int"),
    DType("int32", "int32", 32, "int"),
    DType("int16", "int16", 16, "int"),
    DType("int8", "int8", 8, "int"),
    DType("int4", "int4", 4, "int"),
    DType("uint64", "uint64", 64, "uint"),
    DType("uint32", "uint32", 32, "uint"),
    DType("uint16", "uint16", 16, "uint"),
    DType("uint8", "uint8", 8, "uint"),
    DType("bool", "bool", 8, "bool"),
)

_EXTRA_NAMES = {
    "float": "float32",
    "f32": "float32",
    "f16": "float16",
    "half": "float16",
    "fp8_e4m3": "float8_e4m3",
    "float8_e4m3fn": "float8_e4m3",
    "e4m3_float8": "float8_e4m3",
    "e4m3": "float8_e4m3",
    "e5m2": "float8_e5m2",
    "e5m2_float8": "float8_e5m2",
    "float4_e2m1fn": "float4_e2m1",
    "float8_e8m0fnu": "float8_e8m0",
    "int": "int32",
    "i32": "int32",
    "i8": "int8",
}

DTYPES: dict[str, DType] = {d.name: d for d in _TABLE}
_BY_ANY_NAME: dict[str, DType] = (
    DTYPES | {d.short: d for d in _TABLE} | {alias: DTYPES[name] for alias, name in _EXTRA_NAMES.items()}
)


def dtype(name: str) -> DType:
    """Look a type up by canonical name, short name or alias.

    Raises:
        ValueError: unknown name; the message carries the nearest right ones.
    """
    found = _BY_ANY_NAME.get(str(name))
    if found is not None:
        return found
    near = difflib.get_close_matches(str(name), _BY_ANY_NAME, n=3)
    hint = f"; did you mean {', '.join(near)}?" if near else f"; known: {', '.join(d.short for d in _TABLE)}"
    raise ValueError(f"unknown dtype {name!r}{hint}")
