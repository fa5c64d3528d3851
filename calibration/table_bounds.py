"""What a chip needs at the very least for a row, and what it takes roughly: for finding wrong units."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from foretile.hwmodels import Chip, load_chip
from foretile.kernels.operator import load_operator


@cache
def _chip(device: str) -> Chip:
    return load_chip(device)


def _peak_flop_per_s(chip: Chip, dtype: str) -> float:
    """The stated rate of a type; that of the fastest type, and four times it for four-bit ones, otherwise.

    A bound must not be above the truth where a chip file is silent.
    """
    stated = {name: quantity.value for name, quantity in chip.stated_peak_flop_per_s.items()}
    rates = {name: quantity.value for name, quantity in chip.matrix.flop_per_cycle.items()}
    cycles = chip.cores.value * chip.clock.max_hz.value
    known = {name: max(stated.get(name, 0.0), rates.get(name, 0.0) * cycles) for name in {*stated, *rates}}
    return known.get(dtype) or max(known.values()) * (4.0 if dtype in ("fp4", "nvfp4") else 1.0)


def _rate_bytes_per_s(chip: Chip) -> float:
    """L2 and DRAM together: nothing reaches the cores faster."""
    l2 = chip.l2.bandwidth_bytes_per_cycle.value * chip.clock.max_hz.value
    return l2 + chip.dram.bandwidth_bytes_per_s.value


def _groups(operator: str, shapes: list[dict[str, Any]]) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Positions of shapes that differ in dynamic parameters only, with those as arrays."""
    dynamic = [p.name for p in load_operator(operator).params if p.dynamic]
    found: dict[tuple[Any, ...], list[int]] = {}
    for i, shape in enumerate(shapes):
        found.setdefault(tuple((k, v) for k, v in shape.items() if k not in dynamic), []).append(i)
    for constants, members in found.items():
        columns = {name: np.array([shapes[i][name] for i in members]) for name in dynamic}
        yield members, {**dict(constants), **columns}


def work_of(operator: str, texts: list[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """FLOP, bytes that must be moved once, and the computing type of shapes given as canonical JSON."""
    op = load_operator(operator)
    shapes: list[dict[str, Any]] = [json.loads(text) for text in texts]
    flops, moved, dtypes = np.zeros(len(shapes)), np.zeros(len(shapes)), [""] * len(shapes)
    for members, columns in _groups(operator, shapes):
        flops[members] = op.flops(columns)
        moved[members] = op.min_bytes(columns)
        dtype = op.compute_dtype({k: v for k, v in columns.items() if isinstance(v, str | bool | int)})
        for i in members:
            dtypes[i] = dtype
    return flops, moved, dtypes


def least_seconds(frame: pd.DataFrame) -> np.ndarray:
    """Seconds (rows,) that peak FLOP rate, or L2 and DRAM together, need for each row; no launch."""
    result = np.zeros(len(frame))
    kinds = frame["device"].astype(object) + "|" + frame["operator"].astype(object)
    which, names = pd.factorize(kinds)
    for number, name in enumerate(names):
        device, _, operator = str(name).partition("|")
        rows, chip = np.flatnonzero(which == number), _chip(device)
        codes, distinct = pd.factorize(frame["shape"].iloc[rows].astype(object))
        flops, moved, dtypes = work_of(operator, list(distinct))
        peak = np.array([_peak_flop_per_s(chip, dtype) for dtype in dtypes])
        result[rows] = np.maximum(flops / peak, moved / _rate_bytes_per_s(chip))[codes]
    return result


def launch_seconds(frame: pd.DataFrame) -> np.ndarray:
    """Seconds (rows,) of an empty kernel in a graph on each row's chip."""
    codes, devices = pd.factorize(frame["device"].astype(object))
    return np.array([_chip(str(d)).launch.kernel_s.value for d in devices])[codes]
