"""What stopped a kernel from being traced, as one message with the author's line."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from foretile.kernels.errors import TraceError
from foretile.kernels.ir import Loc

_FOREIGN = ("site-packages", "dist-packages", "/lib/python", "<frozen", "<string>")
_OURS = Path(__file__).resolve().parents[1]  # this package, wherever it is installed


def trace_error(error: BaseException, held: Any = None) -> TraceError:
    """``error`` of TileLang's front end, at the innermost line that is the author's."""
    place = None
    for frame in traceback.extract_tb(error.__traceback__):
        if of_author(frame.filename) and frame.lineno is not None:
            place = Loc(frame.filename, frame.lineno)
    text = str(error).strip().splitlines()
    shown = text[0] if text else _refused_by(error)
    advice = ""
    if isinstance(error, AttributeError | ImportError | TypeError):
        advice = _advice(error)
    if isinstance(error, TypeError) and "argument" in shown:
        from foretile.kernels.tilelang.held import signature_of

        advice = f"; its signature is {signature_of(held)}" if held is not None else advice
    name = getattr(held, "__name__", None) or getattr(getattr(held, "func", None), "__name__", "")
    of = f"{name}: " if name else ""
    return TraceError(f"{of}TileLang does not trace it: {type(error).__name__}: {shown}{advice}", place)


def _refused_by(error: BaseException) -> str:
    """The statement that raised an error without words, and the module it stands in."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    return f"{frames[-1].line} ({Path(frames[-1].filename).name}:{frames[-1].lineno})"


def of_author(file: str) -> bool:
    """Whether a file is neither Python's, nor an installed package's, nor of this one."""
    if any(part in file for part in _FOREIGN) or not Path(file).is_file():
        return False
    return not Path(file).resolve().is_relative_to(_OURS)


def _advice(error: BaseException) -> str:
    """What to do about a name or an argument that the installed version does not have."""
    from foretile.kernels.tilelang.versions import installed

    text = str(error)
    if "tilelang" in text or "unexpected keyword" in text or "has no attribute" in text:
        return f" (TileLang {installed()} is installed; the kernel may be written for another version)"
    return ""
