"""What a model must beat, on the same rows: roofline, scaled roofline, interpolation of the table itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from foretile.calibration.table_bounds import work_of
from foretile.hwmodels import Chip, load_chip

# Neighbours a dimension of the shape: a plane through them is over-determined two to three times.
NEIGHBOURS = 4
LEAST_NEIGHBOURS = 8
_RIDGE = 1e-3  # of the neighbours' weight: enough to solve for dimensions in which they do not differ
_STARTS = ((0.8, 0.8, 2e-6), (0.5, 0.9, 5e-6), (0.9, 0.4, 20e-6))  # share of peak, of bandwidth, seconds


@dataclass(frozen=True)
class Roof:
    """Seconds (rows,) that the arithmetic needs at the stated peak, and the bytes at DRAM bandwidth."""

    compute_s: np.ndarray
    memory_s: np.ndarray

    @property
    def time_s(self) -> np.ndarray:
        """The roofline: the longer of the two."""
        return np.asarray(np.maximum(self.compute_s, self.memory_s))

    def at(self, rows: np.ndarray) -> Roof:
        """The roofline of some of the rows."""
        return Roof(self.compute_s[rows], self.memory_s[rows])


def peak_flop_per_s(chip: Chip, dtype: str) -> float | None:
    """Dense matrix peak: the vendor's figure, else cores × rate × highest clock; None without a rate."""
    stated = chip.stated_peak_flop_per_s.get(dtype)
    if stated is not None:
        return stated.value
    rate = chip.matrix.flop_per_cycle.get(dtype)
    return None if rate is None else chip.cores.value * rate.value * chip.clock.max_hz.value


def roof(rows: pd.DataFrame, chip_of: Callable[[str], Chip] = load_chip) -> Roof:
    """The roofline of every row, from the operator's exact FLOP and least bytes.

    Arithmetic in a type that the matrix engine does not have (element-wise kernels) is left out: their
    bytes take longer.
    """
    compute, memory = np.zeros(len(rows)), np.zeros(len(rows))
    for where, (device, operator) in _groups(rows, ("device", "operator")):
        chip = chip_of(device)
        codes, distinct = pd.factorize(rows["shape"].iloc[where].astype(object))
        flops, moved, dtypes = work_of(operator, list(distinct))
        peaks = {dtype: peak_flop_per_s(chip, dtype) for dtype in set(dtypes)}
        rate = np.array([peaks[dtype] or np.inf for dtype in dtypes])
        compute[where] = (flops / rate)[codes]
        memory[where] = (moved / chip.dram.bandwidth_bytes_per_s.value)[codes]
    return Roof(compute, memory)


def _groups(rows: pd.DataFrame, by: tuple[str, ...]) -> Iterator[tuple[np.ndarray, tuple[str, ...]]]:
    """Positions of the rows of each distinct combination of the columns ``by``."""
    keys = pd.MultiIndex.from_arrays([rows[name].astype(object) for name in by])
    codes, distinct = pd.factorize(keys)
    order = np.argsort(codes, kind="stable")
    edges = np.searchsorted(codes[order], np.arange(len(distinct) + 1))
    for number, key in enumerate(distinct):
        yield order[edges[number] : edges[number + 1]], tuple(str(part) for part in key)


@dataclass(frozen=True)
class ScaledRoofline:
    """``max(flops / (a · peak), bytes / (b · bandwidth)) + c``, fitted to ``n`` rows.

    ``compute_share`` (a), ``memory_share`` (b): achieved shares of the peaks; ``constant_s`` (c).
    """

    compute_share: float
    memory_share: float
    constant_s: float
    n: int

    def time_s(self, above: Roof) -> np.ndarray:
        """Seconds (rows,)."""
        scaled = np.maximum(above.compute_s / self.compute_share, above.memory_s / self.memory_share)
        return np.asarray(scaled + self.constant_s)


def fit_scaled_roofline(above: Roof, measured_s: np.ndarray) -> ScaledRoofline:
    """The three constants that fit best: robust least squares on log time, the best of three starts.

    A constant that no row depends on stays where its start put it.

    Raises:
        ValueError: no rows.
    """
    from scipy.optimize import least_squares

    if len(measured_s) == 0:
        raise ValueError("a scaled roofline needs at least one row to fit")
    target = np.log(measured_s)

    def residuals(theta: np.ndarray) -> np.ndarray:
        a, b, c = np.exp(theta)
        model = ScaledRoofline(a, b, c, len(target))
        return np.asarray(np.log(model.time_s(above)) - target)

    bounds = (np.log([1e-4, 1e-4, 1e-9]), np.log([10.0, 10.0, 1.0]))  # wide: of a baseline, not of physics
    fits = [
        least_squares(residuals, np.log(start), bounds=bounds, loss="soft_l1", f_scale=0.1)
        for start in _STARTS
    ]
    best = min(fits, key=lambda fit: float(fit.cost))
    a, b, c = (float(v) for v in np.exp(best.x))
    return ScaledRoofline(a, b, c, len(target))


def scaled_roofline(known: pd.DataFrame, rows: pd.DataFrame) -> pd.Series[float]:
    """Seconds of ``rows`` by scaled rooflines fitted to each device and family of the rows ``known``.

    NaN where ``known`` has none of the device and family.
    """
    above, measured = roof(known), known["latency_s"].to_numpy(dtype=float)
    fits = {
        key: fit_scaled_roofline(above.at(at), measured[at])
        for at, key in _groups(known, ("device", "family"))
    }
    wanted, result = roof(rows), np.full(len(rows), np.nan)
    for at, key in _groups(rows, ("device", "family")):
        if key in fits:
            result[at] = fits[key].time_s(wanted.at(at))
    return pd.Series(result, index=rows.index)


def nearest(known: pd.DataFrame, rows: pd.DataFrame) -> pd.Series[float]:
    """Seconds of ``rows`` by interpolation between the measured rows ``known``; NaN where there are none.

    Neighbours are sought within the same device, family and kernel source and with the same types and
    switches; a row of the very same shape is never one. A plane in log shape, weighted by one over the
    squared distance, is put through the log times of the nearest (four a dimension, at least eight),
    and held within their range widened by half.
    """
    result = np.full(len(rows), np.nan)
    own = ("device", "family", "operator", "kernel_source")
    mine, theirs = (_with_switches(frame, own) for frame in (rows, known))
    by = (*own, "switches")
    measured = {key: at for at, key in _groups(theirs, by)}
    for at, key in _groups(mine, by):
        if key not in measured:
            continue
        source = theirs.iloc[measured[key]]
        points, targets = _log_sizes(source["sizes"], mine["sizes"].iloc[at])
        same = [frame["shape"].astype(object).to_numpy() for frame in (source, mine.iloc[at])]
        values = np.log(source["latency_s"].to_numpy(dtype=float))
        result[at] = np.exp(_interpolate(points, values, targets, *same))
    return pd.Series(result, index=rows.index)


def _with_switches(frame: pd.DataFrame, own: tuple[str, ...]) -> pd.DataFrame:
    """The frame with each shape's numbers (``sizes``, tuples) and all else that it says (``switches``)."""
    codes, distinct = pd.factorize(frame["shape"].astype(object))
    sizes = np.empty(len(distinct), dtype=object)
    switches = np.empty(len(distinct), dtype=object)
    for i, text in enumerate(distinct):
        shape: dict[str, Any] = json.loads(text)
        numeric = {k: v for k, v in shape.items() if isinstance(v, int) and not isinstance(v, bool)}
        sizes[i] = tuple(numeric.values())
        switches[i] = " ".join(f"{k}={v}" for k, v in shape.items() if k not in numeric)
    kept = frame.loc[:, [*own, "shape", "latency_s"]]
    return kept.assign(sizes=sizes[codes], switches=switches[codes])


def _log_sizes(known: pd.Series[Any], wanted: pd.Series[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the sizes that differ at all, of both sets; sizes that may be zero count from one."""
    both = [np.array(list(part), dtype=float).reshape(len(part), -1) for part in (known, wanted)]
    whole = np.concatenate(both)
    logs = np.log(np.where(whole.min(axis=0) < 1, whole + 1.0, whole))
    logs = logs[:, np.ptp(logs, axis=0) > 0]
    return logs[: len(known)], logs[len(known) :]


def _interpolate(
    points: np.ndarray,
    values: np.ndarray,
    targets: np.ndarray,
    known_shapes: np.ndarray,
    wanted_shapes: np.ndarray,
) -> np.ndarray:
    """Locally weighted planes through ``values`` (known,) at ``points`` (known, d), at ``targets``."""
    from scipy.spatial import cKDTree

    dimensions = points.shape[1]
    if dimensions == 0:  # one shape only, and rows of the same shape do not count
        return np.full(len(targets), np.nan)
    repeats = int(pd.Series(known_shapes).value_counts().iloc[0])
    wanted = max(LEAST_NEIGHBOURS, NEIGHBOURS * dimensions) + repeats
    found = cKDTree(points).query(targets, k=min(wanted, len(points)))
    distance, index = (np.asarray(part).reshape(len(targets), -1) for part in found)
    usable = known_shapes[index] != wanted_shapes[:, None]
    none = ~usable.any(axis=1)
    # Different shapes lie apart in at least one size, so that no usable distance is zero.
    weights = np.divide(1.0, distance**2, out=np.zeros_like(distance), where=usable & (distance > 0))
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    offsets = points[index] - targets[:, None, :]
    basis = np.concatenate([np.ones((*index.shape, 1)), offsets], axis=2)
    normal = np.einsum("nki,nk,nkj->nij", basis, weights, basis)
    normal[:, range(1, dimensions + 1), range(1, dimensions + 1)] += _RIDGE
    normal[none] = np.eye(dimensions + 1)
    right = np.einsum("nki,nk,nk->ni", basis, weights, values[index])
    plane = np.linalg.solve(normal, right[:, :, None])[:, 0, 0]
    inside = np.where(usable, values[index], np.nan)
    inside[none] = 0.0
    low, high = np.nanmin(inside, axis=1), np.nanmax(inside, axis=1)
    held = np.clip(plane, low - 0.5 * (high - low), high + 0.5 * (high - low))
    held[none] = np.nan
    return held
