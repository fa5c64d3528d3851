"""Foretile: what a tile kernel computes, how long it takes on a chip you do not have, and why.

>>> import foretile
>>> foretile.predict("gemm", chip="h20", m=4096, n=7168, k=2048).time_s  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "assume",
    "check",
    "describe_chip",
    "execute",
    "list_chips",
    "list_incomplete",
    "list_operators",
    "load_chip",
    "predict",
    "predict_each",
    "predict_many",
    "trace_program",
    "verify",
    "verify_all",
]

if TYPE_CHECKING:
    from foretile.frontdoor import list_operators, predict, predict_each, predict_many, trace_program
    from foretile.hwmodels import describe_chip, list_chips, list_incomplete, load_chip
    from foretile.precision import execute, verify, verify_all
    from foretile.reviewing import check
    from foretile.simulator.lowering.explicit import assume

_HOME = {
    "assume": "foretile.simulator.lowering.explicit",
    "check": "foretile.reviewing",
    "describe_chip": "foretile.hwmodels",
    "list_chips": "foretile.hwmodels",
    "list_incomplete": "foretile.hwmodels",
    "load_chip": "foretile.hwmodels",
    "list_operators": "foretile.frontdoor",
    "predict": "foretile.frontdoor",
    "predict_each": "foretile.frontdoor",
    "predict_many": "foretile.frontdoor",
    "trace_program": "foretile.frontdoor",
    "execute": "foretile.precision",
    "verify": "foretile.precision",
    "verify_all": "foretile.precision",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `import foretile` and `foretile --help` cost next to nothing.
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'foretile' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
