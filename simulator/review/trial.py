"""A run of the program: what it does that a chip leaves undefined, and whether it is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import OperatorError, Tolerance
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.execute import execute
from foretile.simulator.numerics.verify import compare
from foretile.simulator.operands import operands
from foretile.simulator.review.finding import Finding

Reference = Callable[..., Any]
_ROUNDINGS = 4  # of the stored type, that a kernel's own order of operations may cost


def tried(
    programs: Sequence[TileProgram],
    tensors: Mapping[str, np.ndarray],
    reference: Reference | None,
    seed: int = 0,
) -> list[Finding]:
    """Findings of one execution; ``tensors`` are operands by name, the others are drawn.

    Floating-point operands are normal numbers, integers zero. ``reference`` takes the operands by name (in
    float64, integers as they are) and gives the outputs: a mapping by name, or the only one.

    Raises:
        OperatorError: the reference fails, or gives something else than the kernel's outputs.
    """
    given = operands(programs, seed) | dict(tensors)
    try:
        ran = execute(programs, given)
    except NumericsError as error:
        said = str(error).removeprefix(f"{error.loc}: ") if error.loc else str(error)
        return [Finding("execution", "error", said, error.loc)]
    if reference is None:
        return []
    return _compared(ran.tensors, given, reference, programs[-1])


def _compared(
    found: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray],
    reference: Reference,
    program: TileProgram,
) -> list[Finding]:
    wide = {name: a.astype(np.float64) if _kind(program, name) == "float" else a for name, a in given.items()}
    try:
        right = reference(**wide)
    except Exception as error:  # the author's code: whatever it raises, the remark is for him
        raise OperatorError(
            f"the reference failed on {', '.join(wide)}: {type(error).__name__}: {error}"
        ) from error
    outputs = [n for n in (p.name for p in program.params) if n in found and n not in given]
    if not isinstance(right, Mapping):
        if len(outputs) != 1:
            raise OperatorError(f"the reference gives one result, the kernel writes {', '.join(outputs)}")
        right = {outputs[0]: right}
    said = []
    for name, want in right.items():
        if name not in found:
            raise OperatorError(f"the reference gives {name!r}; the kernel has {', '.join(found)}")
        check = compare(name, found[name], np.asarray(want), _tolerance(program.buffer(name).dtype))
        if check.within:
            said.append(
                Finding(
                    "numerics",
                    "note",
                    f"{name} is within {check.norm_error:.1e} of the reference",
                    program.loc,
                )
            )
            continue
        worst = "; ".join(
            f"{name}[{', '.join(map(str, m.index))}] = {m.value:.6g}, should be {m.reference:.6g}"
            for m in check.mismatches[:3]
        )
        which = (
            f"{check.mismatched} of {check.elements} elements: {worst}" if worst else "no element stands out"
        )
        said.append(
            Finding(
                "numerics",
                "error",
                f"{name} is off by {check.norm_error:.1e} of the norm; {which}",
                program.loc,
            )
        )
    return said


def _kind(program: TileProgram, name: str) -> str:
    return DTYPES[program.buffer(name).dtype].kind


def _tolerance(dtype: str) -> Tolerance:
    """What a few roundings to the stored type explain; nothing, for integers."""
    known = DTYPES[dtype]
    if known.kind != "float":
        return Tolerance(0.0, 0.0)
    unit = 2.0 ** -(known.mantissa_bits + 1)
    return Tolerance(_ROUNDINGS * max(unit, 2.0**-20), 4 * _ROUNDINGS * max(unit, 2.0**-20))
