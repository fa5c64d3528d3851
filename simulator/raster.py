"""Which class of block comes when: blocks are dealt to the cores in raster order.

:class:`Raster` is exact, for the event engine; :class:`ClassPlaces` and :func:`company` are closed
forms over many shapes, for the cost model. :class:`Dealing` is what the latter say of a plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foretile.kernels.expr import Expr, evaluate
from foretile.simulator.plan import Array, Plan

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
        # Places in the gaps of a numbering too long to be gone through count as its last blocks.
        found: np.ndarray = np.minimum(index * self.per_index // size, self.per_index - 1)
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


class ClassPlaces:
    """Places of the classes in raster order, where one block variable decides; arrays over (shapes, samples).

    The place is a mixed-radix number. The variable is one digit of it, or two if it is the one that
    panels (swizzling) cut: its row within the panel, fastest, and the panel, the last of which may be thin.
    """

    @classmethod
    def of(cls, plan: Plan) -> ClassPlaces | None:
        """None where several variables decide, or one only modulo a number smaller than its range."""
        if len(plan.workload.sampled) != 1:
            return None
        places = cls(plan)
        return places if not plan.period or np.all(places.rows == plan.period) else None

    def __init__(self, plan: Plan) -> None:
        w = plan.workload
        (name,) = w.sampled
        self.plan = plan
        self.rows = rows = self._size(w.ranges[name])
        sizes = [self._size(digit.extent) for digit in w.raster]
        at = [i for i, digit in enumerate(w.raster) if digit.var == name]
        value = np.floor((np.arange(plan.samples) + 0.5) / plan.samples * rows)
        self.each: Array = rows / plan.samples  # indices that one class stands for
        if len(at) == 1:
            self.width: Array = np.ones((1, 1))
            self.low: Array = np.zeros((1, 1))
            self.repeat: Array = _product(sizes[: at[0]])
            self.begin: Array = value * self.repeat
            self.cycle: Array = self.repeat * rows
        else:
            panel, columns = sizes[0], _product(sizes[1 : at[1]])
            thin = rows - (sizes[at[1]] - 1.0) * panel
            number = np.floor(value / panel)
            self.width = np.where(number < sizes[at[1]] - 1.0, panel, thin)
            self.low = value - number * panel
            self.repeat = columns
            self.begin = number * panel * columns
            self.cycle = rows * columns

    def _size(self, extent: Expr) -> Array:
        return np.maximum(1.0, evaluate(extent, self.plan.env))

    def first(self) -> Array:
        """Place of the first block of each class."""
        return self.begin + self.low

    def last(self) -> Array:
        """Place of the last block of each class."""
        before = self.cycle * (np.ceil(self.plan.blocks / self.cycle) - 1.0)
        return np.minimum(
            before + self.begin + self.repeat * self.width - self.width + self.low, self.plan.blocks - 1.0
        )

    def among(self, first: Array) -> Array:
        """How many blocks of each class are among the ``first`` ones."""
        whole = np.floor(first / self.cycle)
        rest = np.clip(first - whole * self.cycle - self.begin, 0.0, self.repeat * self.width)
        rows = np.floor(rest / self.width)
        return self.each * (whole * self.repeat + rows + (rest - rows * self.width > self.low))


def _product(sizes: Sequence[Array]) -> Array:
    found: Array = np.ones((1, 1))
    for size in sizes:
        found = found * size
    return found


@dataclass(frozen=True)
class Dealing:
    """How the classes of a plan's blocks follow each other, by sample.

    ``first`` and ``last``: places of each class's first and last block in raster order; ``opening``: its
    blocks in the first wave (all None where all blocks are alike); ``company``: see :func:`company`, by
    loop (keyed by identity).
    """

    first: Array
    last: Array
    opening: Array
    company: Mapping[int, Array]

    @classmethod
    def of(cls, plan: Plan) -> Dealing:
        """The dealing of a plan, whatever the rates of its machine."""
        alike = {loop: company(plan, trips) for loop, trips in plan.trips.items()}
        if plan.samples == 1:
            return cls(None, None, None, alike)
        places = ClassPlaces.of(plan)
        if places is None:
            return cls(np.zeros((1, 1)), plan.blocks - 1.0, plan.slots / plan.samples, alike)
        return cls(places.first(), places.last(), places.among(plan.slots), alike)


def company(p: Plan, trips: Array) -> Array:
    """Share of a block's iterations during which an average other block iterates too, by sample.

    One where neighbours in the raster order are of one class. Where the class changes from block to
    block (the index that matters is the fastest), or where all blocks are resident at once, a block
    with work has little company if most others have none.
    """
    if p.samples == 1 or np.ndim(trips) < 2 or np.shape(trips)[-1] != p.samples:
        return 1.0
    # In an even split all but one iteration are in company.
    even = np.max(trips, axis=-1, keepdims=True) - np.min(trips, axis=-1, keepdims=True) <= 1.0
    if np.all(even):
        return 1.0
    order = [digit.var for digit in p.workload.raster]
    mixed = list(p.workload.sampled) == order[:1] and order.count(order[0]) == 1
    if not mixed and np.all(p.full_waves > 0):
        return 1.0
    both = np.minimum(trips[:, :, None], trips[:, None, :]).mean(axis=-1)
    share = np.where((trips > 0) & ~even, both / np.maximum(1.0, trips), 1.0)
    return share if mixed else np.where(p.full_waves > 0, 1.0, share)
