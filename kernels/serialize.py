"""Programs as plain data and back: every node is ``{"node": "Copy", field: …}``.

Encoding and decoding both run over the dataclasses' own fields and types, so a new node or field
needs no code here. Fields at their default are left out.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from foretile.kernels import expr, ir
from foretile.kernels.dtypes import DTYPES
from foretile.kernels.ir import Loc, TileProgram

VERSION = 1

_NODES: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        *(expr.Const, expr.Var, expr.Binary, expr.Call, expr.Cast, expr.Load),
        *(ir.Buffer, ir.Region, ir.Copy, ir.Gemm, ir.Fill, ir.Reduce, ir.CumSum, ir.AtomicAdd),
        *(ir.Store, ir.Sync, ir.For, ir.If, ir.While, ir.Swizzle, ir.TileProgram),
        *(ir.Im2col, ir.Transpose, ir.FinalizeReducer, ir.BarrierArrive, ir.BarrierWait, ir.AsyncCommit),
        *(ir.AsyncWait, ir.Jump, ir.RandomInit, ir.Hint, ir.Extern),
    )
}
_FIELDS: dict[type[Any], tuple[Field[Any], ...]] = {cls: fields(cls) for cls in _NODES.values()}
_HINTS: dict[type[Any], dict[str, Any]] = {cls: get_type_hints(cls) for cls in _NODES.values()}
# Fields that hold a name out of a table.
_CHOICES: dict[tuple[str, str], Collection[str]] = {
    ("Binary", "op"): expr.BINARY_OPS,
    ("Call", "fn"): frozenset(expr.FUNCTIONS) | expr.THREAD_FUNCTIONS,
    ("Const", "dtype"): DTYPES,
    ("Var", "dtype"): DTYPES,
    ("Cast", "dtype"): DTYPES,
    ("Buffer", "dtype"): DTYPES,
}


def to_json(program: TileProgram, locs: bool = True) -> dict[str, Any]:
    """Plain data from which :func:`from_json` rebuilds ``program``; ``locs`` keeps source locations."""
    return {"format": "foretile.tile_program", "version": VERSION, **_encode(program, locs)}


def _encode(value: Any, locs: bool) -> Any:
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)  # JSON has no infinities
    if isinstance(value, tuple):
        return [_encode(v, locs) for v in value]
    if isinstance(value, Loc):
        return str(value)
    node: dict[str, Any] = {"node": type(value).__name__}
    for f in _FIELDS[type(value)]:
        part = getattr(value, f.name)
        if f.name == "loc" and (part is None or not locs):
            continue
        if f.default is MISSING or part != f.default or f.name == "loc":
            node[f.name] = _encode(part, locs)
    return node


def from_json(data: Mapping[str, Any]) -> TileProgram:
    """Rebuild a program.

    Raises:
        ValueError: the data are not a program of a version we know; the message names the path of
            what is wrong (``body[3].src.mins[0].op``).
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"a program is a mapping, got {type(data).__name__}")
    version = data.get("version")
    if data.get("format") != "foretile.tile_program":
        raise ValueError(f"format: {data.get('format')!r} is not 'foretile.tile_program'")
    if version != VERSION:
        raise ValueError(f"version: {version!r} is not a version this release reads ({VERSION})")
    plain = {k: v for k, v in data.items() if k not in ("format", "version")}
    program = _node(plain, TileProgram, "program")
    assert isinstance(program, TileProgram)
    _check_names(program)
    return program


def _wrong(path: str, problem: str) -> ValueError:
    return ValueError(f"{path}: {problem}")


def _node(data: Any, wanted: type[Any], path: str) -> Any:
    if not isinstance(data, Mapping) or "node" not in data:
        raise _wrong(path, f"expected a {wanted.__name__} node, got {_short(data)}")
    name = data["node"]
    cls = _NODES.get(name) if isinstance(name, str) else None
    if cls is None or not issubclass(cls, wanted):
        known = [n for n, c in _NODES.items() if issubclass(c, wanted)]
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; expected {' | '.join(known)}"
        raise _wrong(f"{path}.node", f"{name!r} is not a {wanted.__name__}{hint}")
    hints = _HINTS[cls]
    values: dict[str, Any] = {}
    names = {f.name for f in _FIELDS[cls]}
    for key in data:
        if key != "node" and key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise _wrong(f"{path}.{key}", f"{name} has no such field{hint}")
    for f in _FIELDS[cls]:
        if f.name in data:
            values[f.name] = _value(data[f.name], hints[f.name], f"{path}.{f.name}")
            table = _CHOICES.get((name, f.name))
            if table is not None and values[f.name] not in table and not _extern(name, values[f.name]):
                near = difflib.get_close_matches(values[f.name], table, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise _wrong(f"{path}.{f.name}", f"unknown {f.name} {values[f.name]!r}{hint}")
        elif f.default is MISSING:
            raise _wrong(path, f"{name} lacks the field {f.name!r}")
    if cls is expr.Const:
        _convert_literal(values, path)
    return cls(**values)


def _extern(node: str, name: str) -> bool:
    kind, _, rest = name.partition(":")
    return node == "Call" and kind == "extern" and rest.partition(":")[0] in DTYPES


def _convert_literal(values: dict[str, Any], path: str) -> None:
    """Give a literal the Python type its dtype asks for (JSON knows no infinities)."""
    kind = DTYPES[values.get("dtype", "int32")].kind
    value = values["value"]
    right = {"float": int | float, "bool": bool}.get(kind, int)
    if kind == "float" and value in ("inf", "-inf", "nan"):
        values["value"] = math.nan if value == "nan" else float(value)
    elif not isinstance(value, right) or (isinstance(value, bool) and kind != "bool"):
        raise _wrong(f"{path}.value", f"{value!r} is not a {values.get('dtype', 'int32')}")
    elif kind == "float":
        values["value"] = float(value)


def _value(data: Any, hint: Any, path: str) -> Any:
    origin = get_origin(hint)
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise _wrong(path, f"expected a list, got {_short(data)}")
        items = get_args(hint)
        if len(items) == 2 and items[1] is Ellipsis:
            return tuple(_value(v, items[0], f"{path}[{i}]") for i, v in enumerate(data))
        if len(data) != len(items):
            raise _wrong(path, f"expected {len(items)} items, got {len(data)}")
        return tuple(_value(v, h, f"{path}[{i}]") for i, (v, h) in enumerate(zip(data, items, strict=True)))
    if origin is Literal:
        if data not in get_args(hint):
            raise _wrong(path, f"{data!r} is not one of {', '.join(map(repr, get_args(hint)))}")
        return data
    if origin is types.UnionType:
        options = get_args(hint)
        if type(None) in options:
            if data is None:
                return None
            (rest,) = (o for o in options if o is not type(None))
            return _value(data, rest, path)
        return data  # the literal of a Const, checked against its dtype
    if hint is Loc:
        file, _, line = str(data).rpartition(":")
        if not file or not line.isdigit():
            raise _wrong(path, f"{data!r} is not file:line")
        return Loc(file, int(line))
    if hint in (str, int, bool):
        if not isinstance(data, hint) or (hint is int and isinstance(data, bool)):
            raise _wrong(path, f"expected {hint.__name__}, got {_short(data)}")
        return data
    return _node(data, hint, path)


def _short(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 50 else text[:47] + "..."


def _check_names(program: TileProgram) -> None:
    """Refuse references to buffers that are not there."""
    known = {b.name for b in (*program.params, *program.buffers)}

    def check(value: Any, path: str) -> None:
        if isinstance(value, tuple):
            for i, item in enumerate(value):
                check(item, f"{path}[{i}]")
        elif type(value) in _FIELDS and not isinstance(value, ir.Buffer):
            for f in _FIELDS[type(value)]:
                part = getattr(value, f.name)
                if f.name != "buffer":
                    check(part, f"{path}.{f.name}")
                elif part not in known:
                    near = difflib.get_close_matches(part, known, n=1)
                    hint = f"; did you mean {near[0]!r}?" if near else ""
                    raise _wrong(f"{path}.buffer", f"there is no buffer {part!r}{hint}")

    check(program, "program")
