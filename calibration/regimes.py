"""The regimes under which errors are stated: how long a row takes, how skewed it is, its types, its bound."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from foretile.calibration.baselines import Roof
from foretile.kernels.operator import load_operator

REGIMES = ("size", "aspect", "dtype", "bound")
_EDGES_S = (5e-6, 10e-6, 20e-6, 50e-6, 100e-6, 500e-6, 10e-3)
SIZES = ("< 5 µs", "5–10 µs", "10–20 µs", "20–50 µs", "50–100 µs", "100–500 µs", "0.5–10 ms", "> 10 ms")
BOUNDS = ("compute", "balanced", "memory")
BALANCED = 2.0  # compute and memory time within this factor
THIN, VERY_THIN = 8.0, 128.0  # largest extent over the smallest
NO_ASPECT = "–"


def _binned(codes: np.ndarray, names: tuple[str, ...]) -> pd.Series[Any]:
    """Names by their number, which stay in that order."""
    kind = pd.CategoricalDtype(list(names), ordered=True)
    return pd.Series(np.array(names, dtype=object)[codes], dtype=kind)


def sizes(measured_s: np.ndarray) -> pd.Series[Any]:
    """The bin of each measured time: :data:`SIZES`, lower edges included."""
    return _binned(np.searchsorted(_EDGES_S, np.asarray(measured_s, dtype=float), side="right"), SIZES)


def bounds(above: Roof) -> pd.Series[Any]:
    """Which roof is higher by more than a factor of two: a property of row and chip, not of the model."""
    ratio = np.divide(
        above.compute_s, above.memory_s, out=np.full(len(above.memory_s), np.inf), where=above.memory_s > 0
    )
    return _binned(np.where(ratio > BALANCED, 0, np.where(ratio < 1 / BALANCED, 2, 1)), BOUNDS)


def aspect_of(operator: str, shape: dict[str, Any]) -> str:
    """How unequal the extents of a shape are: ``even``, ``m thin`` (8 : 1), ``m very thin`` (128 : 1), ….

    Extents are the operator's dynamic sizes, for a product m, n and k (and its batch, where it has
    one). ``–`` where fewer than two are larger than zero.
    """
    extents = {
        p.name: shape[p.name]
        for p in load_operator(operator).params
        if p.kind == "int" and p.dynamic and shape[p.name] > 0 and p.name != "distribution"
    }
    if extents.get("batch") == 1 and len(extents) > 3:
        del extents["batch"]
    if len(extents) < 2:
        return NO_ASPECT
    name = min(extents, key=lambda k: extents[k])
    skew = max(extents.values()) / extents[name]
    if skew < THIN:
        return "even"
    return f"{name} very thin" if skew >= VERY_THIN else f"{name} thin"


def dtype_of(operator: str, shape: dict[str, Any]) -> str:
    """The types that a shape names, in the operator's order without repetitions: ``fp8, bf16``."""
    op = load_operator(operator)
    named = [str(shape[p.name]) for p in op.params if p.kind == "dtype"]
    return ", ".join(dict.fromkeys(named)) or op.compute_dtype(shape)


def add_regimes(rows: pd.DataFrame, above: Roof) -> pd.DataFrame:
    """``rows`` with the columns of :data:`REGIMES`; ``above`` is their roofline."""
    joined = rows["operator"].astype(object) + "|" + rows["shape"].astype(object)
    codes, distinct = pd.factorize(joined)
    said: list[tuple[str, str]] = []
    for text in distinct:
        operator, _, shape_text = str(text).partition("|")
        shape = json.loads(shape_text)
        said.append((aspect_of(operator, shape), dtype_of(operator, shape)))
    aspects, dtypes = ([pair[i] for pair in said] for i in (0, 1))
    return rows.assign(
        size=sizes(rows["latency_s"].to_numpy(dtype=float)).array,
        aspect=np.array(aspects, dtype=object)[codes],
        dtype=np.array(dtypes, dtype=object)[codes],
        bound=bounds(above).array,
    )
