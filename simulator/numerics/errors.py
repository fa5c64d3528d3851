"""What the executor refuses: faults a chip would not report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foretile.kernels.ir import Loc

if TYPE_CHECKING:
    from foretile.simulator.numerics.frame import Frame


class NumericsError(ValueError):
    """A program that does what a chip leaves undefined, or operands that do not fit it.

    The message names the kernel's file and line, the block and the index where it happens.
    """

    def __init__(self, message: str, loc: Loc | None = None) -> None:
        super().__init__(f"{loc}: {message}" if loc else message)
        self.loc = loc


class Undefined(NumericsError):
    """A value was read that nothing has written."""


def undefined(frame: Frame, loc: Loc | None, what: str, bad: np.ndarray, *, index: bool = True) -> Undefined:
    """As :func:`fault`, of a value that nothing has written."""
    found = fault(frame, loc, what, bad, index=index)
    error = Undefined(str(found))
    error.loc = loc
    return error


def fault(frame: Frame, loc: Loc | None, what: str, bad: np.ndarray, *, index: bool = True) -> NumericsError:
    """An error at the first place where ``bad`` (block axes, then element axes) holds."""
    where = tuple(int(i) for i in np.argwhere(bad)[0])
    axes = len(frame.axes)
    lead = tuple(i if size > 1 else 0 for i, size in zip(where[:axes], bad.shape[:axes], strict=True))
    block = frame.block[lead] if frame.block.ndim else frame.block
    place = f" at index ({', '.join(map(str, where[axes:]))}) of the tile" if index and where[axes:] else ""
    return NumericsError(f"{what}{place}, in block {frame.name_of(int(block))}", loc)
