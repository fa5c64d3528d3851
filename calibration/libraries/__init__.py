"""Libraries whose kernels were measured: which configurations they have, launch, and what beside.

An operator's space holds every tile program that may be the fastest; a search takes the best for every
shape. A library has few kernels, and picks by rules of its own. Entries name configurations, never times.
"""

from __future__ import annotations

from collections.abc import Collection

from foretile.calibration.libraries.attention import ATTENTION
from foretile.calibration.libraries.latent import LATENT
from foretile.calibration.libraries.library import Library, engine_of
from foretile.calibration.libraries.moe import MOE
from foretile.calibration.libraries.products import PRODUCTS
from foretile.calibration.libraries.recurrent import RECURRENT
from foretile.calibration.libraries.selection import SELECTION
from foretile.kernels.operator import Shape

LIBRARIES: tuple[Library, ...] = (*ATTENTION, *LATENT, *MOE, *PRODUCTS, *RECURRENT, *SELECTION)

__all__ = ["LIBRARIES", "Library", "engine_of", "entries_of", "library_of"]


def library_of(operator: str, kernel: str, engine: str, shape: Shape) -> Library | None:
    """The first library that describes a kernel source at one shape, None if nothing is known of it."""
    for library in LIBRARIES:
        if library.describes(operator, kernel, engine, shape):
            return library
    return None


def entries_of(operators: Collection[str], kernel: str, engine: str) -> list[Library]:
    """Everything known of a kernel source on such chips, whatever the shape, the first to ask first."""
    return [entry for entry in LIBRARIES if entry.operator in operators and entry.concerns(kernel, engine)]
