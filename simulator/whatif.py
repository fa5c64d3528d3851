"""What a changed number of a chip does to times: chosen configurations kept, the cost model asked again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foretile.hwmodels.schema import Chip
from foretile.hwmodels.variants import with_values
from foretile.kernels.operator import Config, Shape, load_operator
from foretile.simulator.machine import SimulationError
from foretile.simulator.predictor import target
from foretile.simulator.search import evaluate_config, for_machine, rank


@dataclass(frozen=True)
class Call:
    """One shape of a library operator, resolved, and the configuration it runs in; plain data."""

    operator: str
    shape: Shape
    config: Config


def times_s(calls: Sequence[Call], chip: Chip) -> np.ndarray:
    """Seconds of every call on ``chip`` by the cost model; what fits no longer is searched anew.

    A call that no configuration fits takes forever.
    """
    found = np.empty(len(calls))
    for i, call in enumerate(calls):
        operator = load_operator(call.operator)
        on = target(operator, call.shape, chip)
        try:
            settings = for_machine(call.config, on.machine)
            found[i] = evaluate_config(operator, call.shape, settings, on.machine).time_s[0]
        except SimulationError:
            try:
                found[i] = rank(operator, call.shape, on.machine, profile=on.profile).time_s.min()
            except SimulationError:
                found[i] = np.inf
    return found


# Optional numbers whose absence means "no loss", and what they are shares of (None: of themselves).
UNKNOWN_OF: Mapping[str, str | None] = {
    "clock.matrix_burst_hz": "clock.max_hz",
    "clock.matrix_sustained_hz": "clock.max_hz",
    "l2.write_bytes_per_cycle": "l2.bandwidth_bytes_per_cycle",
    "l2.core_store_bytes_per_cycle": "l2.core_bytes_per_cycle",
    "launch.block_cycles": None,
    "overlap_exponent": None,
}


def unknown_range(chip: Chip, path: str, others: Sequence[Chip]) -> tuple[float, float] | None:
    """Where an absent number lies on other chips of the style, as a share of the chip's own reference.

    None if the chip has the number, or no other chip does.
    """
    mine = chip.quantities()
    of = UNKNOWN_OF[path]
    if path in mine:
        return None
    shares = []
    for other in others:
        known = other.quantities()
        if other.id != chip.id and other.style == chip.style and path in known:
            shares.append(known[path].value / (known[of].value if of else 1.0))
    if not shares:
        return None
    scale = mine[of].value if of else 1.0
    return min(shares) * scale, max(shares) * scale


def changed(chip: Chip, path: str, value: float) -> Chip:
    """``chip`` with one number replaced; a sustained clock that was unknown sinks from the start."""
    values = {path: value}
    if path == "clock.matrix_sustained_hz" and chip.clock.settle_s is None:
        # Without it the clock would not begin to sink: ask for the settled state.
        values["clock.settle_s"] = 1e-9
    return with_values(chip, values)
