"""A chip that one can borrow for an hour: which kernels to run, and what fitting just those brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from foretile.calibration.fit import Fitted, fit_chip
from foretile.calibration.measurements import fit_rows, row_keys, test_rows
from foretile.calibration.plan import choose
from foretile.calibration.predictions import predict_table, summary
from foretile.calibration.transfer import prior_for, transferred
from foretile.hwmodels import Chip

FAMILY = "gemm.bf16"
_HELD_OUT = 400  # rows to state the error on: its standard error is then a tenth of it or less


@dataclass(frozen=True)
class FewShot:
    """``plan``: the kernels to run, most informative first; ``before`` and ``after``: error on rows that
    no fit saw, with the prior alone and fitted to the plan's rows (None where the chip has no rows)."""

    plan: pd.DataFrame
    before: Mapping[str, float] | None
    after: Mapping[str, float] | None
    chip: Chip
    fitted: Fitted | None


def few_shot(
    chip: Chip, table: pd.DataFrame, count: int, progress: Callable[[str], None] | None = None
) -> FewShot:
    """Choose ``count`` kernels for ``chip`` and, where ``table`` holds their times, fit to just those.

    The prior comes from measured chips of other dies. A chip without rows of its own gets the shapes
    that others were measured at.

    Raises:
        ValueError: no chip of another die is calibrated.
        FitError: the fit did not converge.
    """
    rows = table[(table["family"] == FAMILY) & (table["comparable"] == "") & (table["launch"] == "graph")]
    own = rows[rows["device"] == chip.id]
    candidates = fit_rows(own if not own.empty else rows)
    if own.empty:
        candidates = candidates[~row_keys(candidates).duplicated()].assign(device=chip.id)
    prior = prior_for(chip)
    plan = choose(chip, candidates, count, prior.parameters, progress)
    start = transferred(chip)
    if own.empty:
        return FewShot(plan, None, None, start, None)
    unseen = test_rows(own)
    unseen = unseen.iloc[:: max(1, len(unseen) // _HELD_OUT)]
    # From the file's numbers, which the prior's factors are of: ``start`` already has them multiplied.
    made, fitted = fit_chip(chip, plan, prior=prior.parameters, starts=1, progress=progress)
    made = made.model_copy(update={"kernels": start.kernels})
    return FewShot(plan, _error(start, unseen), _error(made, unseen), made, fitted)


def _error(chip: Chip, rows: pd.DataFrame) -> Mapping[str, float]:
    predicted = predict_table(rows, lambda _: chip)["time_s"].to_numpy()
    known = np.isfinite(predicted)
    return summary(rows["latency_s"].to_numpy()[known], predicted[known])
