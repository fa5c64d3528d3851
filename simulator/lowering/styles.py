"""The styles of machine that programs can be lowered to."""

from __future__ import annotations

from collections.abc import Mapping

from foretile.simulator.lowering.davinci import DavinciRules
from foretile.simulator.lowering.mlu import MluRules
from foretile.simulator.lowering.simt import SimtRules

RULES: Mapping[str, type[SimtRules] | type[DavinciRules] | type[MluRules]] = {
    "simt": SimtRules,
    "davinci": DavinciRules,
    "mlu": MluRules,
}
"""The rules of a style: see :class:`~foretile.simulator.lowering.rules.Rules`."""
