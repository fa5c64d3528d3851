"""What a copy between regions of different extents moves: as many elements as the nearer region has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from foretile.kernels.expr import Const
from foretile.kernels.ir import Copy, Region

_LEVEL = {"fragment": 2, "local": 2, "var": 2, "shared": 1, "tmem": 1}


def matched(s: Copy, scope: Callable[[str], str]) -> Copy:
    """The copy with both regions of the same extents, where they are not constants.

    TileLang runs over the region of the buffer that is nearer to the registers (the source, if neither is);
    the other one begins where it is said to, and has the same extents along its dimensions that are not one.
    """
    one = Const(1)
    if all(isinstance(e, Const) for r in (s.src, s.dst) for e in r.extents):
        return s
    src_leads = _LEVEL.get(scope(s.src.buffer), 0) >= _LEVEL.get(scope(s.dst.buffer), 0)
    base, other = (s.src, s.dst) if src_leads else (s.dst, s.src)
    wanted = [e for e in base.extents if e != one]
    open_dims = [d for d, e in enumerate(other.extents) if e != one]
    if len(wanted) != len(open_dims):
        return s
    extents = list(other.extents)
    for d, e in zip(open_dims, wanted, strict=True):
        extents[d] = e
    found = Region(other.buffer, other.mins, tuple(extents))
    return replace(s, dst=found) if src_leads else replace(s, src=found)
