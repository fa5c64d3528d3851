"""The public API: predict, predict_many, explain, trace."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from foretile.foreign import is_tilelang, load, of_factory
from foretile.hwmodels import Chip, load_chip
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Operator, OperatorError, Shape, load_operator, operator_names
from foretile.simulator.prediction import Explanation, Prediction

if TYPE_CHECKING:
    import pandas as pd

    from foretile.simulator.conditions import Conditions

ChipRef = str | Path | Chip
Cache = Literal["cold", "warm"]
Toolchain = Literal["library", "tilelang"]
Op = Any
"""A library name, ``path/to/file.py:function``, a traced program (or several launches), a kernel of
TileLang's (a PrimFunc, or a ``@tilelang.jit`` function), or a function that returns one of these; the
shape is a function's arguments."""


def list_operators() -> list[str]:
    """Names of the library's operators."""
    return list(operator_names())


def native(op: str, shape: Mapping[str, Any], chip: Chip, fixed: Collection[str]) -> tuple[Shape, str]:
    """``shape`` with an element type that the chip multiplies in, and in words what was changed.

    See :func:`foretile.simulator.types.native`; a kernel file's shape stays as it is.
    """
    if ".py" in op:
        return dict(shape), ""
    from foretile.simulator.types import native as run

    return run(load_operator(op), dict(shape), chip, fixed)


def _noted(prediction: Prediction, note: str) -> Prediction:
    if not note:
        return prediction
    said = prediction.model.get("warnings", ())
    return replace(prediction, model={**prediction.model, "warnings": [*said, note]})


def _on(
    op: Op, shape: Mapping[str, Any], chip: ChipRef, tensors: Mapping[str, np.ndarray] | None = None
) -> tuple[Operator, Shape, Chip, str]:
    """Operator, full shape, chip, and what was changed of the operator's default types for the chip."""
    machine = load_chip(chip)
    given, note = native(op, shape, machine, shape) if isinstance(op, str) else (shape, "")
    operator, full = resolve(op, given, tensors, machine)
    return operator, full, machine, note


def _settled(
    operator: Operator,
    machine: Chip,
    note: str,
    tensors: Mapping[str, np.ndarray] | None = None,
    counted: Mapping[int, float] | None = None,
) -> tuple[Operator, str]:
    """A user's programs with what stands in the way of timing them settled, and what was done."""
    if operator.params:
        return operator, note  # the library chooses among configurations: what does not fit is left out
    from foretile.simulator.foreseen import foreseen
    from foretile.simulator.predictor import machine_of

    found = operator.program({}, {})
    launches = (found,) if isinstance(found, TileProgram) else tuple(found)
    settled, said = foreseen(launches, machine_of(machine), tensors, counted)
    if not said:
        return operator, note
    return replace(operator, program=lambda shape, config: settled), "; ".join(filter(None, (note, *said)))


def resolve(
    op: Op,
    shape: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray] | None = None,
    chip: Chip | None = None,
) -> tuple[Operator, Shape]:
    """The operator and its full shape.

    ``op`` is a library name, ``path/to/file.py:function`` (its keyword arguments are the shape), a
    traced program, a kernel of TileLang's, or a function that returns one of these (its keyword arguments
    are the shape). ``chip`` is the GPU that a TileLang file finds.

    Raises:
        OperatorError, TraceError: a wrong name, parameter or kernel file.
    """
    if isinstance(op, str) and ".py" not in op:
        if tensors:
            raise OperatorError(f"{op}: no operator of the library takes tensors; the shape says all")
        operator = load_operator(op)
        return operator, operator.shape(**shape)
    from foretile.simulator.predictor import as_operator

    if isinstance(op, str):
        name = op.rsplit(":", 1)[-1]
        return as_operator(load(op, shape, chip), name, tensors), dict(shape)
    if is_tilelang(op):
        from foretile.kernels.tilelang import from_tilelang

        return as_operator(from_tilelang(op, **shape), tensors=tensors), dict(shape)
    if inspect.isfunction(op):
        return as_operator(of_factory(op, shape), op.__name__, tensors), dict(shape)
    if shape:
        raise OperatorError(f"a traced program takes no shape; bind {', '.join(shape)} with TileProgram.bind")
    return as_operator(op, tensors=tensors), {}


def predict(
    op: Op,
    chip: ChipRef,
    *,
    config: Mapping[str, Any] | None = None,
    model: Literal["engine", "cost_model"] = "engine",
    cache: Cache = "cold",
    tensors: Mapping[str, np.ndarray] | None = None,
    extern: Mapping[str, float] | None = None,
    trips: Mapping[int, float] | None = None,
    counted: Mapping[int, float] | None = None,
    toolchain: Toolchain | None = None,
    **shape: Any,
) -> Prediction:
    """Predict the time of ``op`` on ``chip``, with interval, bound, breakdown and configuration.

    Without ``config`` the operator's space is searched with the cost model and the finalists are
    played on the event engine; ``model="cost_model"`` skips the engine. ``cache``: the L2 holds none of
    the operands, or what repeating the kernel on them leaves there. ``tensors`` gives a traced
    program or kernel file the integer operands, by name, on whose values its trip counts depend.
    ``extern``: instructions that a call of opaque device code takes in each thread, by name; ``trips``: how
    often a loop that values of the kernel itself decide runs, by line of its source. Without, it is what an
    execution has ``counted``, or what some blocks do on drawn operands; a warning in ``model`` tells, and
    so of registers that were timed as spilled.

    ``toolchain``: who decides roles, registers and instructions. A kernel of TileLang's is predicted as its
    compiler makes it (``tilelang``), everything else as a tuned ``library`` does, unless this says otherwise.

    An operator whose default element type the chip's matrix engine does not take is predicted in another
    of that width (bf16 in fp16), unless ``shape`` says which; a warning in ``model`` tells.

    Raises:
        OperatorError, ChipError, TraceError, SimulationError: what is wrong, and what would be right.
    """
    from foretile.simulator.predictor import assumed
    from foretile.simulator.predictor import predict as run

    operator, full, machine, note = _on(op, shape, chip, tensors)
    operator, note = _settled(assumed(operator, extern, trips, toolchain), machine, note, tensors, counted)
    settings = dict(config) if config is not None else None
    return _noted(run(operator, full, machine, settings, model, _conditions(cache)), note)


def _conditions(cache: Cache) -> Conditions:
    from foretile.simulator.conditions import COLD, REPEATED

    if cache not in ("cold", "warm"):
        raise OperatorError(f"cache={cache!r} is neither 'cold' nor 'warm'")
    return COLD if cache == "cold" else REPEATED


def predict_each(op: str, chip: ChipRef, shapes: Sequence[Mapping[str, Any]]) -> list[Prediction]:
    """As :func:`predict` for a list of shapes of one operator, several times faster than one by one.

    Raises:
        As :func:`predict`.
    """
    from foretile.simulator.predictor import predict_each as run

    operator, machine = load_operator(op), load_chip(chip)
    given = [native(op, shape, machine, shape) for shape in shapes]
    found = run(operator, [operator.shape(**shape) for shape, _ in given], machine)
    return [_noted(p, note) for p, (_, note) in zip(found, given, strict=True)]


@overload
def predict_many(
    op: str, chip: ChipRef, shapes: Any, *, details: Literal[False] = False, cache: Cache = "cold"
) -> np.ndarray: ...


@overload
def predict_many(
    op: str, chip: ChipRef, shapes: Any, *, details: Literal[True], cache: Cache = "cold"
) -> pd.DataFrame: ...


def predict_many(
    op: str, chip: ChipRef, shapes: Any, *, details: bool = False, cache: Cache = "cold"
) -> np.ndarray | pd.DataFrame:
    """Predict many shapes at once with the vectorised cost model, best configuration per row.

    ``shapes`` is a DataFrame or a mapping of equal-length columns named after the operator's
    parameters; scalars apply to every row.

    Returns:
        float64 seconds, one a row; with ``details`` a DataFrame of the columns given plus ``time_s``,
        ``low_s``, ``high_s``, ``bound`` and ``config``.

    Raises:
        OperatorError: an unknown column, a bad value (with its row), or columns of unequal length.
        ChipError, SimulationError: as for :func:`predict`.
    """
    from foretile.simulator.batch import predict_rows

    operator, machine = load_operator(op), load_chip(chip)
    changed, _ = native(op, {}, machine, [str(name) for name in shapes])
    if changed:
        shapes = {**{name: shapes[name] for name in shapes}, **changed}
    rows = predict_rows(operator, machine, shapes, details=details, conditions=_conditions(cache))
    if not details:
        return rows.time_s
    import pandas as pd

    columns = {name: rows.columns[name] for name in rows.columns}
    return pd.DataFrame(
        {
            **columns,
            "time_s": rows.time_s,
            "low_s": rows.low_s,
            "high_s": rows.high_s,
            "bound": rows.bound,
            "config": rows.config,
        }
    )


def explain(
    op: Op,
    chip: ChipRef,
    *,
    config: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    extern: Mapping[str, float] | None = None,
    trips: Mapping[int, float] | None = None,
    toolchain: Toolchain | None = None,
    **shape: Any,
) -> Explanation:
    """Why ``op`` takes as long as it does on ``chip``: words, bounds, and what more of each resource brings.

    Raises:
        As :func:`predict`.
    """
    from foretile.simulator.explain import explain as run
    from foretile.simulator.predictor import assumed

    operator, full, machine, note = _on(op, shape, chip, tensors)
    operator, note = _settled(assumed(operator, extern, trips, toolchain), machine, note, tensors)
    found = run(operator, full, machine, dict(config) if config is not None else None)
    return replace(found, prediction=_noted(found.prediction, note))


def trace_events(
    op: Op,
    chip: ChipRef,
    *,
    config: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    **shape: Any,
) -> dict[str, Any]:
    """A timeline for Perfetto (Chrome trace format): one track an engine, named slices.

    Raises:
        As :func:`predict`.
    """
    from foretile.simulator.trace import trace

    operator, full, machine, note = _on(op, shape, chip, tensors)
    operator, _ = _settled(operator, machine, note, tensors)
    return trace(operator, full, machine, dict(config) if config is not None else None)


def trace_program(
    op: str, *, config: Mapping[str, Any] | None = None, **shape: Any
) -> TileProgram | tuple[TileProgram, ...]:
    """The tile program of an operator (several where it takes several launches) or of a kernel file.

    Raises:
        OperatorError, TraceError: a wrong name, parameter, configuration or kernel file.
    """
    operator, full = resolve(op, shape)
    settings = operator.config(full, **(config or {})) if operator.params else {}
    traced = operator.program(full, settings)
    if isinstance(traced, tuple) and len(traced) == 1:
        return traced[0]
    return traced
