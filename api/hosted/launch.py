"""One call of a kernel, as it can be predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from foretile.hwmodels import Chip
from foretile.kernels.ir import TileProgram

if TYPE_CHECKING:
    from foretile.simulator.prediction import Prediction


@dataclass(frozen=True)
class Launch:
    """One call of a kernel: its programs (one a launch), and the integer tensors it was given, by name.

    ``undefined``: by tensor, elements that it left depending on memory that nothing had written (padding
    that nobody reads, or a fault). ``counted``: by line, how often loops ran that the kernel's own
    values decide.
    """

    name: str
    programs: tuple[TileProgram, ...]
    integers: Mapping[str, np.ndarray]
    undefined: Mapping[str, np.ndarray] = field(default_factory=dict)
    counted: Mapping[int, float] | None = None

    def predict(
        self,
        chip: str | Chip,
        *,
        model: Literal["engine", "cost_model"] = "engine",
        extern: Mapping[str, float] | None = None,
        trips: Mapping[int, float] | None = None,
    ) -> Prediction:
        """How long it takes on ``chip``; data-dependent loops take the trip counts of this very call.

        ``model``, ``extern`` and ``trips`` are those of :func:`foretile.predict`.

        Raises:
            ChipError, SimulationError: as for :func:`foretile.predict`.
        """
        from foretile.frontdoor import predict

        used = {p.name for program in self.programs for p in program.params}
        tensors = {n: a for n, a in self.integers.items() if n in used} or None
        return predict(
            self.programs,
            chip,
            model=model,
            tensors=tensors,
            extern=extern,
            trips=trips,
            counted=self.counted,
        )
