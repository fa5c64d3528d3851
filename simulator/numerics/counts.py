"""How often loops ran and branches were taken whose decision the kernel itself computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretile.kernels.expr import loads
from foretile.kernels.ir import For, If, While


@dataclass
class Counts:
    """By line of the source, for statements that values on the chip decide.

    ``entered``: blocks that came to the statement; ``ran``: iterations of loops, blocks that took a branch.
    """

    entered: dict[int, float] = field(default_factory=dict)
    ran: dict[int, float] = field(default_factory=dict)
    known: dict[int, tuple[For | If | While, bool]] = field(default_factory=dict)

    def decided(self, s: For | If | While, on_chip: Mapping[str, str]) -> bool:
        """Whether values on the chip decide ``s`` (and its line is known)."""
        if s.loc is None:
            return False
        if id(s) not in self.known:
            exprs = s.extents if isinstance(s, For) else (s.cond,)
            start = (s.start,) if isinstance(s, For) and s.start is not None else ()
            found = any(load.buffer in on_chip for e in (*exprs, *start) for load in loads(e))
            self.known[id(s)] = (s, found or isinstance(s, While))
        return self.known[id(s)][1]

    def add(self, s: For | If | While, entered: float, ran: float) -> None:
        """Blocks came to ``s``, and it ran so often for them together."""
        assert s.loc is not None
        line = s.loc.line
        self.entered[line] = self.entered.get(line, 0.0) + entered
        self.ran[line] = self.ran.get(line, 0.0) + ran

    def means(self) -> dict[int, float]:
        """Iterations, or the share that takes a branch, each time a block comes there, by line."""
        return {line: self.ran[line] / n for line, n in self.entered.items() if n}


def blocks_in(mask: Any, blocks: int) -> int:
    """Blocks with a thread in ``mask`` (blocks × threads, one where they are alike; None: all)."""
    if mask is None:
        return blocks
    some = np.any(mask, axis=-1)
    return int(np.sum(some)) if some.size > 1 else blocks * int(np.all(some))
