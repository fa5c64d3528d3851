"""90 % intervals of predicted table rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from foretile.calibration.predictions import batch_machine
from foretile.hwmodels import Chip
from foretile.kernels.operator import Config
from foretile.simulator.predictor import gains
from foretile.simulator.search import evaluate_config
from foretile.simulator.uncertainty import interval_factor

if TYPE_CHECKING:
    from foretile.calibration.predictions import Batch

Array = np.ndarray


def row_factors(chip: Chip, batch: Batch, configs: Sequence[Config], ranked: Array) -> Array:
    """Factor from the predicted time to either end of its 90 % interval, by row."""
    machine = batch_machine(chip, batch)
    choice = np.argmin(ranked, axis=0)
    found = np.empty(len(batch))
    for index in np.unique(choice):
        mine = np.flatnonzero(choice == index)
        shape, conditions = batch.rows(mine)
        launches = evaluate_config(batch.operator, shape, configs[index], machine, conditions)
        elastic = gains(batch.operator, shape, configs[index], machine, launches, conditions)
        dtype = next((p.workload.dtype for p in launches.plans if p.workload.dtype), "")
        found[mine] = interval_factor(chip, dtype, elastic, batch.family, launches.time_s)
    return found
