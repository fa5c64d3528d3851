"""Barriers in shared memory: arrivals, bytes still to come, phases; by block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretile.kernels.ir import Loc
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.ordering import Known


@dataclass
class Barriers:
    """The barriers of one buffer, of all blocks of a frame: arrays over (blocks, barriers).

    A phase completes when its ``counts`` threads have arrived and no announced byte is missing; the next
    one begins at once (PTX ISA 8.x, ``mbarrier``). ``knowledge``: by barrier, what those who wait for the
    last complete phase learn, and what was brought to the current one.
    """

    name: str
    counts: np.ndarray
    phase: np.ndarray
    pending: np.ndarray
    bytes_to_come: np.ndarray
    complete: dict[int, Known] = field(default_factory=dict)
    current: dict[int, Known] = field(default_factory=dict)

    @staticmethod
    def of(name: str, counts: tuple[int, ...], blocks: int) -> Barriers:
        """Barriers of which each expects its ``counts`` arrivals."""
        expected = np.array(counts, dtype=np.int64)
        shape = (blocks, len(counts))
        zero = np.zeros(shape, dtype=np.int64)
        return Barriers(name, expected, zero.copy(), np.broadcast_to(expected, shape).copy(), zero.copy())

    def arrive(
        self,
        blocks: np.ndarray,
        which: np.ndarray,
        threads: np.ndarray,
        brings: Known | None,
        loc: Loc | None,
    ) -> bool:
        """``threads`` (by block) arrive at barrier ``which`` of each of the ``blocks``.

        Raises:
            NumericsError: more threads arrive than the phase expects.
        """
        self._check(which, loc)
        np.subtract.at(self.pending, (blocks, which), threads)
        over = self.pending[blocks, which] < 0
        if over.any():
            k = int(which[np.argmax(over)])
            raise NumericsError(
                f"{int(threads.max())} threads arrive at {self.name}[{k}], which then has "
                f"{int(self.counts[k] - self.pending[blocks, which].min())} of the {int(self.counts[k])} "
                "arrivals of its phase",
                loc,
            )
        self.bring(which, brings)
        return self._complete(blocks, which)

    def expect(self, blocks: np.ndarray, which: np.ndarray, count: np.ndarray, loc: Loc | None) -> None:
        """Announce bytes."""
        self._check(which, loc)
        np.add.at(self.bytes_to_come, (blocks, which), count)

    def passed(
        self, blocks: np.ndarray, which: np.ndarray, parity: np.ndarray, loc: Loc | None
    ) -> np.ndarray:
        """By block, whether the phase of this parity is complete."""
        self._check(which, loc)
        found: np.ndarray = (self.phase[blocks, which] & 1) != (parity & 1)
        return found

    def learned(self, which: np.ndarray) -> list[Known]:
        """What waiting for these barriers tells."""
        return [self.complete[k] for k in np.unique(which).tolist() if k in self.complete]

    def state(self, which: int, block: int) -> str:
        """For a report of a deadlock."""
        arrived = int(self.counts[which] - self.pending[block, which])
        text = f"phase {int(self.phase[block, which])}, {arrived} of {int(self.counts[which])} arrived"
        if self.bytes_to_come[block, which]:
            text += f", {int(self.bytes_to_come[block, which])} bytes to come"
        return text

    def bring(self, which: np.ndarray, what: Known | None) -> None:
        """What the current phases of these barriers will tell, too."""
        if what is not None:
            for k in np.unique(which).tolist():
                self.current[k] = self.current[k].join(what) if k in self.current else what

    def _complete(self, blocks: np.ndarray, which: np.ndarray) -> bool:
        over = (self.pending[blocks, which] == 0) & (self.bytes_to_come[blocks, which] == 0)
        if not over.any():
            return False
        at = (blocks[over], which[over])
        self.phase[at] += 1
        self.pending[at] = self.counts[which[over]]
        for k in np.unique(which[over]).tolist():
            if k in self.current:
                old = self.complete.get(k)
                self.complete[k] = self.current.pop(k) if old is None else self.current.pop(k).join(old)
        return True

    def _check(self, which: Any, loc: Loc | None) -> None:
        if np.any(which < 0) or np.any(which >= len(self.counts)):
            raise NumericsError(
                f"{self.name}[{int(np.max(which))}] is not one of its {len(self.counts)} barriers", loc
            )
