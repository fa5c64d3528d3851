"""What orders one access of shared storage after another: barriers, waits, and nothing else.

Teams of threads run in some legal order here, on a chip in any. Values are the same in all of them if
every two accesses of an element, one of which writes, are ordered by the program. Each team counts its
steps in a vector clock (C. Fidge, "Timestamps in message-passing systems", 1988; F. Mattern, "Virtual
time and global states of distributed systems", 1989); an asynchronous copy or product is an agent of its
own, whose end a team knows of once it has waited for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretile.kernels.ir import Loc
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.tensors import Box

_MANY = 24  # accesses of a buffer after which those that everyone knows of are dropped


@dataclass(frozen=True)
class Known:
    """What a team knows to be over: steps of each team, and asynchronous operations by number."""

    steps: tuple[int, ...]
    done: frozenset[int] = frozenset()

    def join(self, other: Known) -> Known:
        """What either knows."""
        steps = tuple(map(max, self.steps, other.steps))
        return Known(steps, self.done if other.done <= self.done else self.done | other.done)


@dataclass(frozen=True)
class _Access:
    box: Box
    write: bool
    team: int
    step: int
    number: int  # of the asynchronous operation; 0: the team's threads themselves
    queue: str  # asynchronous operations of one queue run in order
    loc: Loc | None


@dataclass
class Ordering:
    """Accesses of the on-chip buffers of a block, by ``teams`` teams; ``names`` are for messages."""

    names: tuple[str, ...]
    known: list[Known] = field(init=False)
    accesses: dict[str, list[_Access]] = field(default_factory=dict)
    numbers: int = 0

    def __post_init__(self) -> None:
        none = (0,) * len(self.names)
        self.known = [Known((*none[:t], 1, *none[t + 1 :])) for t in range(len(self.names))]

    def asynchronous(self) -> int:
        """A number for an operation that ends later."""
        self.numbers += 1
        return self.numbers

    def release(self, team: int) -> Known:
        """What others know of once they have waited for ``team`` at this point."""
        now = self.known[team]
        steps = (*now.steps[:team], now.steps[team] + 1, *now.steps[team + 1 :])
        self.known[team] = Known(steps, now.done)
        return now

    def acquire(self, team: int, what: Known | None) -> None:
        """``team`` has waited for ``what``."""
        if what is not None:
            self.known[team] = self.known[team].join(what)

    def ended(self, team: int, numbers: list[int]) -> None:
        """``team`` has waited for its asynchronous operations."""
        now = self.known[team]
        self.known[team] = Known(now.steps, now.done | frozenset(numbers))

    def touch(
        self,
        team: int,
        name: str,
        box: Box,
        loc: Loc | None,
        *,
        write: bool,
        number: int = 0,
        queue: str = "",
    ) -> None:
        """Note an access; refuse one that nothing orders after an earlier access it conflicts with.

        Raises:
            NumericsError: there is such an access.
        """
        known = self.known[team]
        new = _Access(box, write, team, known.steps[team], number, queue, loc)
        kept = []
        for old in self.accesses.get(name, ()):
            before = self._before(old, new, known)
            if (old.write or write) and not before and _overlap(old.box, box):
                raise NumericsError(self._message(name, old, new), loc)
            if not (before and (write or not old.write) and _covers(box, old.box)):
                kept.append(old)
        kept.append(new)
        if len(kept) > _MANY:
            kept = [a for a in kept if not self._everyone_knows(a)]
        self.accesses[name] = kept

    def _before(self, old: _Access, new: _Access, known: Known) -> bool:
        if old.queue and old.queue == new.queue:
            return True
        if old.number:
            return old.number in known.done
        return old.team == new.team or known.steps[old.team] >= old.step

    def _everyone_knows(self, a: _Access) -> bool:
        if a.number:
            return all(a.number in k.done for k in self.known)
        return all(t == a.team or k.steps[a.team] >= a.step for t, k in enumerate(self.known))

    def _message(self, name: str, old: _Access, new: _Access) -> str:
        did = "writes" if old.write else "reads"
        does = "write" if new.write else "read"
        where = f" at {old.loc}" if old.loc else ""
        who = f"threads {self.names[new.team]}" if len(self.names) > 1 else "threads"
        if old.number:
            what = f"an asynchronous {'copy or product' if old.write else 'operation'}"
            return f"{who} {does} {name} while {what}{where} still {did} it: nothing waits for it to complete"
        return (
            f"{who} {does} {name}, which threads {self.names[old.team]} "
            f"{'write' if old.write else 'read'}{where}: no barrier is between them"
        )


def _overlap(a: Box, b: Box) -> bool:
    both: Any = True
    for low, n, other, m in zip(a.mins, a.extents, b.mins, b.extents, strict=True):
        both = both & (np.asarray(low) < np.asarray(other) + m) & (np.asarray(other) < np.asarray(low) + n)
    return bool(np.any(both))


def _covers(a: Box, b: Box) -> bool:
    for low, n, other, m in zip(a.mins, a.extents, b.mins, b.extents, strict=True):
        if np.any(np.asarray(low) > other) or np.any(np.asarray(low) + n < np.asarray(other) + m):
            return False
    return True
