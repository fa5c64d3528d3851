"""Sizes of symbolic dimensions, from the operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foretile.kernels.expr import Var, evaluate, variables
from foretile.kernels.ir import Buffer, TileProgram
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.lane_tiles import uses_of


def dimensions(
    launches: Sequence[TileProgram], tensors: Mapping[str, np.ndarray], given: Mapping[str, int | float]
) -> dict[str, Any]:
    """Sizes of the symbolic dimensions."""
    bound = dict(given)
    for program in launches:
        for parameter in program.params:
            array = tensors.get(parameter.name)
            if array is None or array.ndim != len(parameter.shape):
                continue
            for extent, size in zip(parameter.shape, array.shape, strict=True):
                if isinstance(extent, Var):
                    bound.setdefault(extent.name, size)
    _absent(launches, tensors, bound)
    missing = sorted({v.name for program in launches for v in program.dims} - set(bound))
    if missing:
        raise NumericsError(f"no tensor tells the size of {', '.join(missing)}: give dims", launches[0].loc)
    missing = sorted({v.name for program in launches for v in program.scalars} - set(bound))
    if missing:
        raise NumericsError(
            f"the kernel takes the number {', '.join(missing)}: give it with dims", launches[0].loc
        )
    return bound


def _absent(
    launches: Sequence[TileProgram], tensors: Mapping[str, np.ndarray], bound: dict[str, Any]
) -> None:
    """Sizes that only tensors which are not given have: of optional ones, which nothing may touch."""
    for program in launches:
        used = {name for e in program.grid for name in variables(e)}
        used |= {name for s in program.body for name in uses_of(s)[0]}
        for b in program.params:
            for e, size in zip(b.strides, _dense(b, bound), strict=False):
                if isinstance(e, Var) and e.name not in used:
                    bound.setdefault(e.name, size)
        shown = {v for b in program.params if b.name in tensors for e in b.shape for v in variables(e)}
        for b in program.params:
            for e in b.shape if b.name not in tensors else ():
                for name in variables(e) - used - shown:
                    bound.setdefault(name, 1)


def _dense(b: Buffer, bound: Mapping[str, Any]) -> list[int]:
    """Strides of a tensor that lies densely, as far as its sizes are known."""
    found, step = [], 1
    for e in reversed(b.shape):
        found.append(step)
        step *= int(evaluate(e, bound)) if variables(e) <= set(bound) else 1
    return found[::-1]
