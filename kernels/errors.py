"""Errors of tracing: the kernel's own file and line first, then what is wrong and what would be right."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from foretile.kernels.ir import Loc

_HERE = Path(__file__).parent
# Frames of these modules are ours; the nearest frame of any other file is the kernel's author's.
_OWN_MODULES = (
    *("affine", "allocations", "blocks", "control", "errors", "expr", "frontend", "handles"),
    *(
        "hints",
        "infer",
        "language",
        "load",
        "loops",
        "mathops",
        "notes",
        "products",
        "rewriter",
        "syntax",
        "threads",
    ),
    *("tileops", "tracer", "values"),
)
_OWN_FILES = frozenset(str(_HERE / f"{name}.py") for name in _OWN_MODULES)
_LOCS: dict[tuple[str, int], Loc] = {}


class TraceError(ValueError):
    """A kernel that cannot be traced; ``str()`` starts with ``file:line: `` where that is known.

    ``reason`` is the message without the place, ``loc`` the place.
    """

    def __init__(self, reason: str, loc: Loc | None = None) -> None:
        super().__init__(f"{loc}: {reason}" if loc is not None else reason)
        self.reason = reason
        self.loc = loc


def here() -> Loc | None:
    """The line of user code that is being executed (``None`` if there is none on the stack)."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in _OWN_FILES:
        frame = frame.f_back
    if frame is None:
        return None
    key = (frame.f_code.co_filename, frame.f_lineno)
    loc = _LOCS.get(key)
    if loc is None:
        loc = _LOCS[key] = Loc(*key)
    return loc


def is_own(filename: str) -> bool:
    """Whether a code object's file is part of the tracer (its frames are skipped in messages)."""
    return filename in _OWN_FILES


def fail(reason: str) -> NoReturn:
    """Raise :class:`TraceError` at the current line of user code."""
    raise TraceError(reason, here())
