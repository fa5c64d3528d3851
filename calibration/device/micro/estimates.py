"""What measured rows say of a device: numbers for a chip file and others, each with interval and doubts."""

from __future__ import annotations

from collections.abc import Sequence

from foretile.calibration.device.micro.core_estimates import clock, matrix, vector
from foretile.calibration.device.micro.details import Details
from foretile.calibration.device.micro.memory_estimates import copies, dram, l2, on_core
from foretile.calibration.device.micro.overhead_estimates import launch, sync
from foretile.calibration.device.micro.points import Row
from foretile.calibration.device.micro.series import Estimate, Rows


def estimates(details: Details, rows: Sequence[Row]) -> list[Estimate]:
    """All that the rows allow, fields of the chip file first in no particular order."""
    found = Rows(rows)
    return [
        *dram(details, found),
        *l2(details, found),
        *on_core(found),
        *matrix(details, found),
        *clock(details, found),
        *vector(found),
        *sync(details, found),
        *launch(details, found),
        *copies(details, found),
    ]
