"""Calibrating one chip: its own parameters, those of every operator family, and the errors left."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from foretile.calibration.fit import FitError, Fitted, fit_chip, solve
from foretile.calibration.measurements import fit_rows
from foretile.calibration.parameters import FAMILY_PARAMETERS, with_factors, with_profile
from foretile.calibration.predictions import Batch, batches, predict_table, summary
from foretile.hwmodels import Chip
from foretile.hwmodels.schema import Calibration, KernelProfile, Quantity
from foretile.kernels.operator import load_operator
from foretile.simulator.machine import SimulationError
from foretile.simulator.search import frozen, static_part

Array = np.ndarray
Progress = Callable[[str], None]
# The chip's parameters are fitted to kernels that are the tile program and nothing else.
CHIP_FAMILIES = ("gemm.bf16",)
_LEAST_ROWS = 20  # of a kernel source, for a profile of its own
_MOST_ROWS = 48  # for a profile: three numbers need no more
_MOST_TRACES = 2  # different sets of static parameters for a profile, each traced and lowered on its own
_MOST_SOURCES = 2  # of a family, those with most rows
_NORMAL_90 = 1.6449
_LEAST_DECADE = 15  # rows of a decade of times, for an error of its own


@dataclass(frozen=True)
class FamilyFit:
    """What was fitted to one family's kernels (or one source of it), and its error on those rows."""

    key: str
    rows: int
    profile: KernelProfile
    error: Mapping[str, float]


@dataclass
class Calibrated:
    """Result of calibrating a chip: the chip, and how it came about."""

    chip: Chip
    fitted: Fitted
    families: list[FamilyFit] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def calibrate(
    chip: Chip,
    table: pd.DataFrame,
    *,
    prior: Mapping[str, tuple[float, float]] | None = None,
    starts: int = 1,
    progress: Progress | None = None,
) -> Calibrated:
    """Fit ``chip`` to the rows of ``table`` that may be fitted (see :func:`fit_rows`).

    Rows that are not comparable are left out. Families that cannot be predicted are skipped with the
    reason.

    Raises:
        FitError: no rows of this chip and of the families that its parameters are fitted to.
    """
    mine = table[(table["device"] == chip.id) & (table["comparable"] == "") & (table["launch"] == "graph")]
    rows = fit_rows(mine)
    parts = [g if f == "gemm.bf16" else _few(g) for f, g in rows.groupby("family") if f in CHIP_FAMILIES]
    base = pd.concat(parts) if parts else rows.head(0)
    if base.empty:
        held = ", ".join(sorted(rows["family"].unique())) or "none"
        raise FitError(
            f"{chip.id}: no rows to fit its parameters to: they need {' or '.join(CHIP_FAMILIES)} "
            f"with a hash below 10; families with rows: {held}"
        )
    made, fitted = fit_chip(chip, base, prior=prior, starts=starts, progress=progress)
    result = Calibrated(made, fitted)
    for family in sorted(set(rows["family"]) - set(CHIP_FAMILIES)):
        if progress:
            progress(f"family {family}")
        try:
            fit_family(result, rows[rows["family"] == family])
        except (SimulationError, FitError) as error:
            result.skipped[family] = str(error)
    kept = [g if f == "gemm.bf16" else _few(g) for f, g in rows.groupby("family")]
    residual = residuals(
        result.chip, pd.concat([g for g in kept if g["family"].iloc[0] not in result.skipped])
    )
    source = f"fitted to {len(base)} rows, {_digest(base)[:12]}"
    calibration = Calibration(
        kind="fitted",
        data=", ".join(sorted({s.split(":")[0] for s in base["source"]})),
        sha256=_digest(rows),
        rows=len(rows),
        date=datetime.date.today().isoformat(),
        factors=fitted.factors(),
        sigma={n: float(s) for n, s in zip(fitted.names, fitted.sigma, strict=True)},
        unseen=tuple(n for n, s in zip(fitted.names, fitted.seen, strict=True) if not s),
        residual=residual,
    )
    result.chip = with_factors(result.chip, {}, source).model_copy(update={"calibration": calibration})
    return result


def fit_family(result: Calibrated, rows: pd.DataFrame) -> None:
    """Fit the profiles of one family: one for all of its kernels, one for each source with enough rows."""
    family = str(rows["family"].iloc[0])
    sources = rows["kernel_source"].value_counts()
    own = [str(s) for s, n in sources.items() if n >= _LEAST_ROWS][:_MOST_SOURCES] if len(sources) > 1 else []
    for key, some in [(family, rows), *((f"{family}/{s}", rows[rows["kernel_source"] == s]) for s in own)]:
        few = _few(some)
        parts = batches(few, result.chip)
        chip, fitted = _fit_profile(result.chip, key, parts)
        result.chip = chip
        error = summary(np.ones(len(fitted.residuals)), np.exp(fitted.residuals))
        result.families.append(FamilyFit(key, len(few), chip.kernels[key], error))


def _few(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows enough for a profile, of the commonest static parameters, spread evenly over the table."""
    operator = load_operator(str(rows["operator"].iloc[0]))
    static = rows["shape"].map(lambda s: frozen(static_part(operator, json.loads(s))))
    common = static.value_counts().index[:_MOST_TRACES]
    kept = rows[static.isin(common)]
    return kept.iloc[:: max(1, -(-len(kept) // _MOST_ROWS))]


def _fit_profile(chip: Chip, key: str, parts: Sequence[Batch]) -> tuple[Chip, Fitted]:
    for part in parts:  # all of these rows' kernels are the one that is being fitted
        part.source = key.split("/", 1)[1] if "/" in key else ""

    def chip_at(x: Array) -> Chip:
        values = (p.start * float(np.exp(v)) for p, v in zip(FAMILY_PARAMETERS, x, strict=True))
        compute, memory, launch = (
            Quantity[float](value=v, source=f"fitted to {key}", confidence="measured") for v in values
        )
        profile = KernelProfile(core_fraction=compute, memory_fraction=memory, launch_fraction=launch)
        return with_profile(chip, key, profile)

    fitted = solve(parts, chip_at, FAMILY_PARAMETERS, starts=1, rounds=1)
    return chip_at(fitted.x), fitted


def residuals(chip: Chip, rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    """By family and decade of the predicted time, the standard deviation that covers nine rows of ten."""
    predicted = predict_table(rows, lambda _: chip)
    left = np.log(rows["latency_s"].to_numpy() / predicted["time_s"].to_numpy())
    known = np.isfinite(left)
    decade = np.floor(np.log10(predicted["time_s"].to_numpy()))
    found: dict[str, dict[str, float]] = {}
    for family in sorted(set(rows["family"])):
        mine = known & (rows["family"] == family).to_numpy()
        if not mine.any():
            continue
        found[family] = {"all": _spread(left[mine])}
        for d in np.unique(decade[mine]):
            here = mine & (decade == d)
            if here.sum() >= _LEAST_DECADE:
                found[family][f"1e{int(d):+03d}"] = _spread(left[here])
    return found


def _spread(left: Array) -> float:
    """From the 90 % quantile, one rank up: the rows were fitted, those to come were not."""
    order = np.sort(np.abs(left))
    rank = min(len(order) - 1, int(np.ceil(0.9 * (len(order) + 1))))
    return float(max(1e-3, order[rank] / _NORMAL_90))


def _digest(rows: pd.DataFrame) -> str:
    text = rows.sort_values(["device", "operator", "shape", "kernel_source", "framework"]).to_csv(index=False)
    return hashlib.sha256(text.encode()).hexdigest()
