"""The public API of the reviewer: look a kernel over for one chip, and ask which others it fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foretile.hwmodels import Chip, list_chips, load_chip
from foretile.kernels.operator import OperatorError

if TYPE_CHECKING:
    from foretile.frontdoor import Op
    from foretile.simulator.review import Review


def check(
    op: Op,
    chip: str | Path | Chip,
    *,
    reference: str | Callable[..., Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    run: bool = True,
    portability: bool = False,
    **shape: Any,
) -> Review:
    """Review a kernel (``path/to/file.py:function``, a traced program or a library operator) on ``chip``.

    ``reference`` is a function, or ``path/to/file.py:function``, that takes the operands by name (float64,
    integers as they are) and gives the right outputs by name, or the only one. ``tensors``: operands by
    name, where drawn ones (normal numbers, zeros for integers) would not do. ``portability`` asks every
    chip of the catalogue.

    Raises:
        OperatorError, TraceError, ChipError: what is wrong, and what would be right.
    """
    from foretile.frontdoor import resolve
    from foretile.simulator.review import review

    machine = load_chip(chip)
    operator, full = resolve(op, shape, tensors, machine)
    given = dict(tensors or {})
    truth = reference
    if operator.params:  # of the library: it brings operands and reference of its own
        settings = _first_config(operator, full, machine)
        programs = operator.program(full, settings)
        if run:
            given = operator.inputs(full, np.random.default_rng(0)) | given
            truth = truth or (lambda **operands: operator.reference(full, **operands))
    else:
        programs = operator.program({}, {})
    others = [load_chip(known) for known in list_chips()] if portability else []
    return review(
        programs,
        machine,
        tensors=given,
        reference=_function(truth) if isinstance(truth, str) else truth,
        run=run,
        others=others,
    )


def _first_config(operator: Any, shape: Any, chip: Chip) -> Any:
    from foretile.simulator.predictor import target
    from foretile.simulator.search import chosen

    return chosen(operator, shape, target(operator, shape, chip).machine, None)


def _function(spec: str) -> Callable[..., Any]:
    from foretile.kernels.load import load_function

    found = load_function(spec)
    if not callable(found):
        raise OperatorError(f"{spec} is no function")
    return found
