"""TileLang's host code without a GPU: every kernel it launches is run by foretile on the CPU, and predicted.

The kernels, and the Python around them, stay as they are.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

from foretile.kernels.ir import TileProgram

if TYPE_CHECKING:
    import torch

    from foretile.hwmodels import Chip
    from foretile.simulator.prediction import Prediction


@dataclass(frozen=True)
class Launch:
    """One kernel launch: the program, and the numbers its symbolic dimensions and scalars stood for."""

    program: TileProgram
    numbers: Mapping[str, int | float]


@dataclass
class Session:
    """What ran. ``kernels``: programs in the order they were made; ``launches``: in the order they ran."""

    chip: Chip
    kernels: list[TileProgram] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
