"""Races between the iterations of a ``T.Parallel``: nothing orders one against another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretile.kernels.expr import Expr
from foretile.simulator.numerics.elements import Indices, block_indices
from foretile.simulator.numerics.errors import fault
from foretile.simulator.numerics.evaluate import Scope


@dataclass(frozen=True)
class _Access:
    """Elements that the iterations have read or written: ``exprs`` as written, ``indices`` their values."""

    exprs: tuple[Expr, ...]
    indices: Indices
    mask: Any


@dataclass
class Races:
    """What the iterations of one nest have touched so far.

    ``shapes``: of every buffer and tensor; ``tensors``: names of those in global memory, which all
    blocks share.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tensors: frozenset[str]
    reads: dict[str, list[_Access]] = field(default_factory=dict)
    writes: dict[str, list[_Access]] = field(default_factory=dict)

    def read(self, name: str, exprs: tuple[Expr, ...], indices: Indices, mask: Any, scope: Scope) -> None:
        """Note a read; refuse one of an element that another iteration writes.

        Raises:
            NumericsError: there is such an element.
        """
        self._note(self.reads, self.writes, "reads", "writes", name, _Access(exprs, indices, mask), scope)

    def write(self, name: str, exprs: tuple[Expr, ...], indices: Indices, mask: Any, scope: Scope) -> None:
        """Note a write; refuse one of an element that another iteration has read.

        Raises:
            NumericsError: there is such an element.
        """
        self._note(self.writes, self.reads, "writes", "reads", name, _Access(exprs, indices, mask), scope)

    def _note(
        self,
        mine: dict[str, list[_Access]],
        others: dict[str, list[_Access]],
        what: str,
        did: str,
        name: str,
        access: _Access,
        scope: Scope,
    ) -> None:
        if not scope.nest:
            return
        mine.setdefault(name, []).append(access)
        for other in others.get(name, ()):
            # The same index expression is the iteration's own element.
            clash = None if other.exprs == access.exprs else self._clash(name, other, access, scope)
            if clash is not None:
                text = f"an iteration of a parallel loop {what} an element of {name} that another one {did}"
                raise fault(scope.frame, scope.loc, text, clash)

    def _clash(self, name: str, other: _Access, mine: _Access, scope: Scope) -> np.ndarray | None:
        """Where iterations touch elements of others; None if they do not."""
        axes = len(scope.frame.axes)
        shape = self.shapes[name]
        lead = (1,) * axes if name in self.tensors else scope.frame.axes
        every = block_indices(lead, scope.ndim)
        parts = [*mine.indices, *(scope.lift(i) for i in other.indices), mine.mask, scope.lift(other.mask)]
        full = np.broadcast_shapes((*scope.frame.axes, *scope.nest), *(np.shape(p) for p in parts))

        def flat(indices: Indices) -> np.ndarray:
            inside = [
                np.clip(np.asarray(scope.lift(i)), 0, n - 1) for i, n in zip(indices, shape, strict=True)
            ]
            places = np.ravel_multi_index(tuple(np.broadcast_arrays(*every, *inside)), (*lead, *shape))
            return np.broadcast_to(places, full)

        def where(mask: Any) -> np.ndarray:
            return np.broadcast_to(np.True_ if mask is None else scope.lift(mask), full)

        number = np.broadcast_to(np.arange(int(np.prod(scope.nest))).reshape(scope.nest), full)
        theirs, kept = flat(other.indices), where(other.mask)
        last = np.full(int(np.prod((*lead, *shape))), -1, dtype=np.int64)
        last[theirs[kept]] = number[kept]
        met = last[flat(mine.indices)]
        clash: np.ndarray = (met >= 0) & (met != number) & where(mine.mask)
        return clash if clash.any() else None
