"""Everything the reviewer looks at, for one kernel on one chip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foretile.hwmodels.schema import Chip
from foretile.kernels.ir import TileProgram
from foretile.simulator.machine import SimulationError
from foretile.simulator.predictor import as_operator, machine_of
from foretile.simulator.review import conflicts, moves, schedule
from foretile.simulator.review.finding import Finding
from foretile.simulator.review.trial import Reference, tried
from foretile.simulator.review.trips import placed
from foretile.simulator.search import evaluate_config

_ORDER = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Port:
    """One chip of the catalogue: how long the kernel takes there as it is, or what stops it."""

    chip: str
    time_s: float | None
    reason: str = ""


@dataclass(frozen=True)
class Review:
    """What was found, the worst and the dearest first.

    ``time_s``: the cost model's time on ``chip``, None where it does not run there.
    """

    name: str
    chip: str
    time_s: float | None
    findings: tuple[Finding, ...]
    ports: tuple[Port, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong (slow is not wrong)."""
        return not any(f.level == "error" for f in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        return {
            "name": self.name,
            "chip": self.chip,
            "ok": self.ok,
            "time_s": self.time_s,
            "findings": [f.to_json() for f in self.findings],
            "chips": [{"chip": p.chip, "time_s": p.time_s, "reason": p.reason} for p in self.ports],
        }


def review(
    programs: TileProgram | Sequence[TileProgram],
    chip: Chip,
    *,
    tensors: Mapping[str, np.ndarray] | None = None,
    reference: Reference | None = None,
    run: bool = True,
    others: Sequence[Chip] = (),
) -> Review:
    """Look a kernel over: its numbers, its accesses, its schedule on ``chip``, and where else it fits.

    ``programs``: one launch, or several; dimensions are bound. ``tensors``: operands by name (integers that
    index other tensors, say). ``reference``: see :func:`foretile.simulator.review.trial.tried`. Without
    ``run`` nothing is executed. ``others``: chips for the question of portability.
    """
    launches = (programs,) if isinstance(programs, TileProgram) else tuple(programs)
    given = dict(tensors or {})
    findings = tried(launches, given, reference) if run else []
    deciding = {n: a for n, a in given.items() if a.dtype.kind in "iu"} or None
    machine = machine_of(chip)
    timer = schedule.Timer(deciding)
    total: float | None = 0.0
    for program in launches:
        try:
            time_s = float(np.ravel(timer.launches(program, machine).time_s)[0])
        except SimulationError as error:
            findings.append(Finding("fit", "error", str(error), program.loc))
            total = None
            continue
        total = None if total is None else total + time_s
        stmts = list(placed(program))
        findings += moves.reviewed(program, stmts, machine, time_s)
        findings += conflicts.reviewed(program, stmts, machine, time_s)
        findings += schedule.pipelines(program, machine, timer, time_s)
        findings += schedule.waves(program, machine, timer, time_s)
        findings += schedule.occupancy(program, machine, timer, time_s)
    findings = [_weighed(f) for f in findings]
    ordered = sorted(findings, key=lambda f: (_ORDER[f.level], -(f.gain or 0.0)))
    ports = tuple(_port(launches, other, deciding) for other in others)
    return Review(launches[0].name, chip.id, total, tuple(ordered), ports)


def _weighed(finding: Finding) -> Finding:
    """What costs next to nothing is only noted."""
    little = finding.level == "warning" and finding.gain is not None and finding.gain < schedule.WORTH
    return replace(finding, level="note") if little else finding


def _port(launches: Sequence[TileProgram], chip: Chip, tensors: Mapping[str, np.ndarray] | None) -> Port:
    try:
        operator = as_operator(tuple(launches), tensors=tensors)
        time_s = float(evaluate_config(operator, {}, {}, machine_of(chip)).time_s[0])
    except SimulationError as error:
        return Port(chip.id, None, str(error))
    return Port(chip.id, time_s)
