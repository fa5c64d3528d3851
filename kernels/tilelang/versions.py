"""TileLang's versions: which are known, and what to say where it is missing or newer.

The tree that the front end builds changed between minor versions. What differs is read where it is met:

* 0.1.14: threads are loops bound to ``threadIdx`` around the block; a product has 19 arguments, with
  strides, offsets, ``k_pack`` and ``wg_wait`` in places.
* 0.1.15: threads are ``tl.launch_thread_idx`` and a note on the block; a product has 13 arguments and
  the rest in annotations.
"""

from __future__ import annotations

import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from foretile.kernels.errors import TraceError

KNOWN = ("0.1.14", "0.1.15")
"""Versions the importer is tested with."""
INSTALL = "pip install 'foretile[tilelang]'"


class TileLangMissing(TraceError):
    """A kernel that needs TileLang where it is not installed."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} needs TileLang, which is not installed; get it with: {INSTALL}")


def installed() -> str | None:
    """The version of TileLang that is installed, ``None`` if none is."""
    try:
        return version("tilelang")
    except PackageNotFoundError:
        return None


def require(what: str) -> str:
    """The installed version, for ``what`` needs it.

    Raises:
        TileLangMissing: there is none; the message tells how to get it.
        TraceError: one that is older than those known.
    """
    found = installed()
    if found is None:
        raise TileLangMissing(what)
    check(found)
    return found


def check(found: str) -> None:
    """Warn of a version newer than those known.

    Raises:
        TraceError: an older one, whose trees are not read.
    """
    number = _number(found)
    if number < _number(KNOWN[0]):
        raise TraceError(
            f"TileLang {found} is not known to this importer, which reads what {' and '.join(KNOWN)} "
            f"build; get one of them with: {INSTALL}"
        )
    if number[:3] > _number(KNOWN[-1])[:3]:
        warnings.warn(
            f"TileLang {found} is newer than what this importer is tested with ({', '.join(KNOWN)}); "
            f"what it does not know it refuses",
            stacklevel=3,
        )


def _number(text: str) -> tuple[int, ...]:
    parts: list[int] = []
    for part in text.split("+")[0].split("."):
        digits = "".join(c for c in part if c.isdigit())
        parts.append(int(digits) if digits and part[0].isdigit() else 0)
    return tuple(parts)


def statement_spans() -> Any:
    """TVM's function from a statement to its source span, ``None`` where it has none."""
    import tvm_ffi

    try:
        return tvm_ffi.get_global_func("tl.ir.GetStmtSpan")
    except (ValueError, AttributeError):
        return None


def function_span(function: Any) -> Any:
    """The source span of a whole function."""
    import tvm_ffi

    try:
        return tvm_ffi.get_global_func("tl.ir.GetPrimFuncSpan")(function)
    except (ValueError, AttributeError):
        return None
