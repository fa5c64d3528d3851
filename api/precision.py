"""The public API of numerics: execute a program, verify an operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foretile.hwmodels import Chip, load_chip
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Operator, OperatorError, Shape, load_operator, operator_names
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.execute import Progress
from foretile.simulator.numerics.verify import Settings, Verification, accumulation_of, input_kinds

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN_FROM = 64  # blocks: a run of fewer is over before a progress bar would be seen


def execute(
    programs: TileProgram | Sequence[TileProgram],
    tensors: Mapping[str, np.ndarray],
    *,
    dims: Mapping[str, int] | None = None,
    chip: str | Path | Chip | None = None,
) -> dict[str, np.ndarray]:
    """Run tile programs on the CPU with the arithmetic of a chip; all tensors, by name, afterwards.

    ``tensors`` are the operands, by the programs' names, in their storage types (``ml_dtypes`` for
    bf16, fp8 and fp4); what is not given is a result. With ``chip`` its matrix engine's reduced
    accumulation is modelled where its description has one.

    Raises:
        NumericsError: operands that do not fit, or something a chip leaves undefined (an element read
            before it is written, two blocks writing one element, …); it names line, block and index.
    """
    from foretile.simulator.numerics.execute import execute as run

    how = accumulation_of(load_chip(chip)) if chip is not None else None
    return run(programs, tensors, dims=dims, accumulation=how).tensors


def verify(
    op: str,
    *,
    config: Mapping[str, Any] | None = None,
    chip: str | Path | Chip | None = None,
    kinds: Sequence[str] | None = None,
    blocks: int | None = None,
    seed: int = 0,
    progress: Console | None = None,
    **shape: Any,
) -> list[Verification]:
    """Run an operator's tile program on fresh inputs and compare it with its float64 reference.

    ``kinds`` of inputs, default all: random ones and those that provoke the operator's special cases.
    Without ``config`` the first of the operator's space that fits ``chip`` (or the first) is taken;
    ``chip`` also sets how matrix products add up. ``blocks`` runs a sample of each launch's grid. A
    ``progress`` console shows a bar on long runs.

    Raises:
        OperatorError, ChipError: what is wrong, and what would be right.
    """
    if ".py" in op:
        raise OperatorError(
            f"{op} has no reference to verify against; foretile.execute runs a kernel of your own"
        )
    operator = load_operator(op)
    full = operator.shape(**shape)
    machine = load_chip(chip) if chip is not None else None
    settings = _config(operator, full, config, machine)
    known = input_kinds(operator)
    for kind in kinds or ():
        if kind not in known:
            raise OperatorError(f"{op} has no inputs {kind!r}; it has: {', '.join(known)}")
    accumulation = accumulation_of(machine) if machine is not None else {}
    with _bar(progress, op) as report:
        how = Settings(blocks, accumulation, report)
        return list(_each(operator, full, settings, kinds or known, seed, how))


def verify_all(*, seed: int = 0, progress: Console | None = None) -> list[Verification]:
    """Every operator in every type it takes, on its example shape and every kind of inputs."""
    found: list[Verification] = []
    names = operator_names()
    with _bar(progress, "operators") as report:
        for done, name in enumerate(names):
            operator = load_operator(name)
            for full in example_shapes(operator):
                settings = _config(operator, full, None, None)
                found += _each(operator, full, settings, input_kinds(operator), seed, Settings())
            if report is not None:
                report(done + 1, len(names))
    return found


def example_shapes(operator: Operator) -> list[Shape]:
    """The operator's example shape in each of its types."""
    kinds = [p for p in operator.params if p.name == "dtype" and p.choices]
    if not kinds:
        return [operator.shape(**operator.example)]
    return [operator.shape(**{**operator.example, "dtype": choice}) for choice in kinds[0].choices]


def _each(
    operator: Operator, shape: Shape, config: Config, kinds: Sequence[str], seed: int, how: Settings
) -> Iterator[Verification]:
    from foretile.simulator.numerics.verify import verify as run

    for kind in kinds:
        yield run(operator, shape, config, kind=kind, seed=seed, settings=how)


def _config(operator: Operator, shape: Shape, config: Mapping[str, Any] | None, chip: Chip | None) -> Config:
    if config is not None or chip is None:
        chosen = operator.config(shape, **(config or {}))
        return chosen
    from foretile.simulator.predictor import target
    from foretile.simulator.search import chosen as search

    return search(operator, shape, target(operator, shape, chip).machine, None)


@contextmanager
def _bar(console: Console | None, title: str) -> Iterator[Progress | None]:
    """A progress bar that appears when there is something to wait for."""
    if console is None or not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task(title, visible=False)

        def report(done: int, total: int) -> None:
            bar.update(
                task, completed=done, total=total, visible=total >= _SHOWN_FROM or title == "operators"
            )

        yield report


__all__ = ["NumericsError", "example_shapes", "execute", "verify", "verify_all"]
