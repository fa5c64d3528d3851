"""The styles of machine that programs can be lowered to, and who makes the machine code."""

from __future__ import annotations

from collections.abc import Mapping

from foretile.kernels.ir import TILELANG, TileProgram
from foretile.simulator.lowering.davinci import DavinciRules
from foretile.simulator.lowering.mlu import MluRules
from foretile.simulator.lowering.rules import Roles, Rules
from foretile.simulator.lowering.simt import SimtRules
from foretile.simulator.lowering.tilelang_rules import INSTRUCTIONS, TileLangRules
from foretile.simulator.machine import Machine

RULES: Mapping[str, type[SimtRules] | type[DavinciRules] | type[MluRules]] = {
    "simt": SimtRules,
    "davinci": DavinciRules,
    "mlu": MluRules,
}
"""The rules of a style: see :class:`~foretile.simulator.lowering.rules.Rules`."""


def rules_for(program: TileProgram, machine: Machine, roles: Roles, source: TileProgram) -> Rules:
    """The rules of a machine's style for ``program``, which lowering made of ``source``.

    A program that TileLang compiles follows its conventions where those are known: on machines whose matrix
    instructions are those that nvcc makes code for.
    """
    known = machine.style == "simt" and machine.matrix_instruction in INSTRUCTIONS
    if source.toolchain == TILELANG and known:
        return TileLangRules(program, machine, roles, source)
    return RULES[machine.style](program, machine, roles)
