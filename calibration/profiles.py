"""Three numbers for the kernels of an operator family, fitted on top of a chip's own parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from foretile.calibration.fit import FitError, solve
from foretile.calibration.parameters import FAMILY_PARAMETERS, with_profile
from foretile.calibration.predictions import batches, kernels_of, summary
from foretile.calibration.problem import Pool
from foretile.hwmodels import Chip
from foretile.hwmodels.quantity import Quantity
from foretile.hwmodels.schema import KernelProfile
from foretile.kernels.operator import load_operator
from foretile.simulator.launches import frozen, static_part
from foretile.simulator.machine import SimulationError

Array = np.ndarray
_LEAST_ROWS = 20  # of a kernel source, for a profile of its own
_MOST_SOURCES = 4  # of a family, those with most rows
_MOST_TRACES = 12  # different sets of static parameters for a profile, each traced and lowered on its own
_MOST_BOUND = 60  # rows whose trip counts depend on tensors: each brings tensors of its own
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
class FamilyResult:
    """Profiles of one family's kernels and ``residual``, the errors left by decade of time.

    ``refused``: why there are none.
    """

    family: str
    fits: list[FamilyFit] = field(default_factory=list)
    residual: Mapping[str, float] = field(default_factory=dict)
    refused: str = ""


RESULTS = TypeAdapter(FamilyResult)


def fit_family(chip: Chip, rows: pd.DataFrame) -> FamilyResult:
    """Fit the profiles of one family: one for all of its kernels, one for each source with enough rows."""
    result = FamilyResult(str(rows["family"].iloc[0]))
    try:
        _fit_sources(chip, rows, result)
    except (SimulationError, FitError) as error:
        result.refused = str(error)
    return result


def _fit_sources(chip: Chip, rows: pd.DataFrame, result: FamilyResult) -> None:
    family = result.family
    kernels = rows["kernel_source"].map(kernels_of)
    sources = kernels.value_counts()
    own = [str(s) for s, n in sources.items() if n >= _LEAST_ROWS][:_MOST_SOURCES] if len(sources) > 1 else []
    pool: Pool = {}
    left: list[pd.DataFrame] = []
    for key, some in [(family, rows), *((f"{family}/{s}", rows[kernels == s]) for s in own)]:
        profile, errors = _fit_profile(chip, key, representative(some), pool)
        error = summary(np.ones(len(errors)), np.exp(errors["error"].to_numpy()))
        result.fits.append(FamilyFit(key, len(errors), profile, error))
        left.append(errors)
    # Each row counts with the profile it is predicted with: its source's, or the family's for the rest.
    rest = left[0][~kernels[left[0].index].isin(own)]
    result.residual = spread(pd.concat([rest, *left[1:]]))


def representative(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a family that stand for all: of the commonest static parameters, each traced once."""
    operator = load_operator(str(rows["operator"].iloc[0]))
    static = rows["shape"].map(lambda s: frozen(static_part(operator, json.loads(s))))
    common = static.value_counts().index[:_MOST_TRACES]
    kept = rows[static.isin(common)]
    if operator.tensors is None:
        return kept
    return kept.iloc[:: max(1, -(-len(kept) // _MOST_BOUND))]


def _fit_profile(chip: Chip, key: str, rows: pd.DataFrame, pool: Pool) -> tuple[KernelProfile, pd.DataFrame]:
    """The profile of these rows' kernels; by row, ``error`` (log predicted over measured) and ``time_s``."""
    parts = batches(rows, chip)
    products = chip.kernels.get("gemm.bf16")
    tiles = products.tiles if products is not None and key.startswith("bmm.bf16") else "any"
    for part in parts:  # all of these rows' kernels are the one that is being fitted
        part.source = key.split("/", 1)[1] if "/" in key else ""

    def profile_at(x: Array) -> KernelProfile:
        values = (p.start * float(np.exp(v)) for p, v in zip(FAMILY_PARAMETERS, x, strict=True))
        core, memory, launch = (
            Quantity[float](value=v, source=f"fitted to {key}", confidence="measured") for v in values
        )
        return KernelProfile(core_fraction=core, memory_fraction=memory, launch_fraction=launch, tiles=tiles)

    fitted = solve(
        parts, lambda x: with_profile(chip, key, profile_at(x)), FAMILY_PARAMETERS, starts=1, pool=pool
    )
    place = np.concatenate([part.where for part in parts])
    errors = pd.DataFrame({"error": fitted.residuals, "time_s": fitted.predicted_s}, index=rows.index[place])
    return profile_at(fitted.x), errors


def spread(rows: pd.DataFrame) -> dict[str, float]:
    """By decade of ``time_s`` and for ``all``: the standard deviation whose 90 % interval holds nine of ten.

    ``rows`` has columns ``error`` (logarithms) and ``time_s``.
    """
    found = {"all": _spread(rows["error"].to_numpy())}
    decade = np.floor(np.log10(rows["time_s"].to_numpy()))
    for d in np.unique(decade):
        here = rows["error"].to_numpy()[decade == d]
        if len(here) >= _LEAST_DECADE:
            found[f"1e{int(d):+03d}"] = _spread(here)
    return found


def _spread(errors: Array) -> float:
    """From the 90 % quantile, one rank up: the rows were fitted, those to come were not."""
    order = np.sort(np.abs(errors))
    rank = min(len(order) - 1, int(np.ceil(0.9 * (len(order) + 1))))
    return float(max(1e-3, order[rank] / _NORMAL_90))
