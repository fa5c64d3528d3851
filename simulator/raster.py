"""Which class of block comes when: blocks are dealt to the cores in raster order."""

from __future__ import annotations

import numpy as np

from foretile.kernels.expr import Expr, evaluate
from foretile.simulator.plan import Plan

_EXACT_NUMBERING = 1 << 17  # beyond so many places gaps in the raster order are ignored


class Raster:
    """The blocks of a plan's first shape in raster order, told apart by class (sample of the plan)."""

    def __init__(self, plan: Plan) -> None:
        w = plan.workload
        self.plan = plan
        self.names = w.sampled
        self.sizes = {name: self._whole(w.ranges[name]) for name in w.ranges}
        self.digits = [(digit.var, self._whole(digit.extent)) for digit in w.raster]
        self.per_index = plan.period or round(plan.samples ** (1 / len(self.names)))
        places = int(np.prod([extent for _, extent in self.digits], dtype=np.int64))
        self.inside: np.ndarray | None = None
        if int(plan.blocks[0, 0]) < places <= _EXACT_NUMBERING:
            # A last, thinner panel leaves gaps in the numbering: places outside of the grid.
            within = np.ones(places, dtype=bool)
            for name, value in self._indices(np.arange(places)).items():
                within &= value < self.sizes[name]
            self.inside = np.flatnonzero(within)

    def _whole(self, extent: Expr) -> int:
        return int(max(1, np.ravel(evaluate(extent, self.plan.env))[0]))

    def classes(self, places: np.ndarray) -> np.ndarray:
        """Class index of the blocks at these places of the order."""
        if self.inside is not None:
            places = self.inside[np.minimum(places, len(self.inside) - 1)]
        indices = self._indices(places, set(self.names))
        found = np.zeros(len(places), dtype=np.int64)
        for name in self.names:
            found = found * self.per_index + self._class(indices[name], self.sizes[name])
        return found

    def shares(self) -> np.ndarray:
        """Share of all blocks that each class has."""
        shares = np.ones(1)
        for name in self.names:
            size = self.sizes[name]
            counted = np.bincount(self._class(np.arange(size), size), minlength=self.per_index)
            shares = np.outer(shares, counted / size).ravel()
        return shares

    def _class(self, index: np.ndarray, size: int) -> np.ndarray:
        found: np.ndarray = index * self.per_index // size
        return index % self.plan.period if self.plan.period else found

    def _indices(self, places: np.ndarray, wanted: set[str] | None = None) -> dict[str, np.ndarray]:
        """Block variables at these places (a variable may have several digits)."""
        values: dict[str, np.ndarray] = {}
        scale: dict[str, int] = {}
        rest = places
        for name, extent in self.digits:
            if wanted is None or name in wanted:
                values[name] = values.get(name, 0) + rest % extent * scale.get(name, 1)
                scale[name] = scale.get(name, 1) * extent
            rest = rest // extent
        return values
