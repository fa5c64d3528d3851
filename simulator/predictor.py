"""Predictions: from an operator (or a traced program), a shape and a chip to a :class:`Prediction`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from foretile.hwmodels.schema import Chip, KernelProfile
from foretile.kernels.families import family_of
from foretile.kernels.ir import LIBRARY, TOOLCHAINS, TileProgram
from foretile.kernels.operator import Config, Operator, Shape
from foretile.simulator.conditions import COLD, Conditions
from foretile.simulator.cost import Estimate
from foretile.simulator.launches import frozen, static_part
from foretile.simulator.lowering.explicit import assume
from foretile.simulator.machine import Machine, SimulationError, for_kernels, machine
from foretile.simulator.plan import Plan
from foretile.simulator.prediction import Prediction
from foretile.simulator.search import Launches, Played, best, chosen, evaluate_config, play, stack
from foretile.simulator.uncertainty import carriers, elasticities, interval_factor

Model = Literal["engine", "cost_model"]

# Which named part of the critical path an engine's time belongs to.
PART: Mapping[str, str] = {
    "matrix": "compute",
    "vector": "compute",
    "special": "compute",
    "tensor_memory": "compute",
    "scratchpad": "scratchpad",
    "feed": "scratchpad",
    "drain": "scratchpad",
    "vector_feed": "scratchpad",
    "vector_drain": "scratchpad",
    "share": "scratchpad",
    "scalar": "compute",
    "port": "l2",
    "l2": "l2",
    "atomic": "l2",
    "dram": "dram",
}
_BUSY_ENOUGH = 0.5  # below this share of the time no engine is said to bind

_MACHINES: dict[tuple[int, str], tuple[Chip, Machine]] = {}
_MOST_MACHINES = 4096


def machine_of(chip: Chip, kernels: str = "") -> Machine:
    """The machine of a chip, as the kernels of a key of ``chip.kernels`` use it; made once a chip object."""
    key = (id(chip), kernels)
    if key not in _MACHINES:
        if len(_MACHINES) >= _MOST_MACHINES:  # a fit makes chips by the thousand
            _MACHINES.clear()
        made = machine(chip)
        _MACHINES[key] = (chip, for_kernels(made, chip.kernels[kernels]) if kernels else made)
    return _MACHINES[key][1]


@dataclass(frozen=True)
class Target:
    """What an operator runs on: the machine as its family's kernels use it, and their profile if known."""

    machine: Machine
    family: str
    profile: KernelProfile | None


def target(operator: Operator, shape: Shape, chip: Chip) -> Target:
    """The target of an operator at a shape (values may be arrays); user programs have no family.

    Nor has an operator that a compiler makes: what is known of a family is known of a library's kernels.
    """
    compiled = operator.toolchain not in ("", LIBRARY)
    family = family_of(operator.name, shape) if operator.params and not compiled else ""
    profile = chip.kernels.get(family)
    return Target(machine_of(chip, family if profile else ""), family, profile)


def as_operator(
    programs: TileProgram | tuple[TileProgram, ...],
    name: str = "",
    tensors: Mapping[str, np.ndarray] | None = None,
) -> Operator:
    """Traced programs as an operator without parameters (one configuration: the programs as they are).

    ``tensors`` are the integer operands, by name, on whose values trip counts depend.

    Raises:
        SimulationError: a symbolic dimension is still free.
    """
    launches = (programs,) if isinstance(programs, TileProgram) else tuple(programs)
    for program in launches:
        if program.dims:
            free = ", ".join(v.name for v in program.dims)
            raise SimulationError(
                f"{program.name}: bind {free} first ({free.split(', ')[0]}=…, or TileProgram.bind)"
            )
    return Operator(
        name=name or launches[0].name,
        doc="a traced tile program",
        params=(),
        program=lambda shape, config: launches,
        configs=lambda shape: [{}],
        flops=lambda shape: np.nan,
        min_bytes=lambda shape: np.nan,
        inputs=lambda shape, rng: {},
        reference=lambda shape, **inputs: {},
        tensors=(lambda shape: tensors) if tensors else None,
    )


def assumed(
    operator: Operator,
    extern: Mapping[str, float] | None = None,
    trips: Mapping[int, float] | None = None,
    toolchain: str | None = None,
) -> Operator:
    """The operator with what only its user knows of its programs, see :func:`assume`, and who makes them.

    Raises:
        ValueError: a name that is not called, a number below zero, or a toolchain that is not known.
    """
    if toolchain:
        if toolchain not in TOOLCHAINS:
            raise ValueError(f"toolchain {toolchain!r} is not one of {', '.join(TOOLCHAINS)}")
        operator = replace(operator, toolchain=toolchain)
    if not extern and not trips:
        return operator

    def program(shape: Shape, config: Config) -> tuple[TileProgram, ...]:
        found = operator.program(shape, config)
        launches = (found,) if isinstance(found, TileProgram) else tuple(found)
        return tuple(assume(p, extern=extern, trips=trips) for p in launches)

    return replace(operator, program=program)


def predict(
    operator: Operator,
    shape: Shape,
    chip: Chip,
    config: Config | None = None,
    model: Model = "engine",
    conditions: Conditions = COLD,
) -> Prediction:
    """Time of one shape on one chip, with the grounds for it.

    ``shape`` is resolved (``operator.shape(...)``); without ``config`` the best one is searched.

    Raises:
        SimulationError: nothing fits the chip, or it lacks a number that is needed.
        OperatorError: an unknown configuration key.
    """
    on = target(operator, shape, chip)
    m = on.machine
    if config is None:
        played = best(operator, [shape], m, conditions, on.profile, play_finalists=model == "engine")[0]
    else:
        settings = chosen(operator, shape, m, config)
        played = play(operator, shape, settings, m, conditions) if model == "engine" else Played(settings, ())
    elastic = _elastic(operator, [shape], [played.config], m, conditions)[0]
    return _assemble(operator, shape, chip, on, played, elastic, conditions)


def predict_each(operator: Operator, shapes: Sequence[Shape], chip: Chip) -> list[Prediction]:
    """As :func:`predict` for every shape, the search and the uncertainty done for all at once.

    Raises:
        SimulationError: nothing fits the chip, or it lacks a number that is needed.
    """
    families: dict[str, list[int]] = {}
    for i, shape in enumerate(shapes):
        families.setdefault(target(operator, shape, chip).family, []).append(i)
    predictions: dict[int, Prediction] = {}
    for rows in families.values():
        some = [shapes[i] for i in rows]
        on = target(operator, some[0], chip)
        found = best(operator, some, on.machine, COLD, on.profile)
        elastic = _elastic(operator, some, [p.config for p in found], on.machine)
        for i, shape, played, slopes in zip(rows, some, found, elastic, strict=True):
            predictions[i] = _assemble(operator, shape, chip, on, played, slopes)
    return [predictions[i] for i in range(len(shapes))]


def _elastic(
    operator: Operator,
    shapes: Sequence[Shape],
    configs: Sequence[Config],
    m: Machine,
    conditions: Conditions = COLD,
) -> list[dict[str, float]]:
    """Elasticities by shape; shapes of one configuration are evaluated together."""
    found: list[dict[str, float]] = [{} for _ in shapes]
    groups: dict[Any, list[int]] = {}
    for i, (shape, config) in enumerate(zip(shapes, configs, strict=True)):
        groups.setdefault((frozen(static_part(operator, shape)), frozen(config)), []).append(i)
    for rows in groups.values():
        columns = stack(operator, [shapes[i] for i in rows])
        launches = evaluate_config(operator, columns, configs[rows[0]], m, conditions)
        slopes = gains(operator, columns, configs[rows[0]], m, launches, conditions)
        for place, i in enumerate(rows):
            found[i] = {r: float(np.ravel(s)[place]) for r, s in slopes.items()}
    return found


def gains(
    operator: Operator,
    shape: Shape,
    config: Config,
    m: Machine,
    base: Launches,
    conditions: Conditions = COLD,
) -> dict[str, Any]:
    """Elasticity of the time to every resource, by the cost model; arrays if the shape holds arrays."""

    def time_s(other: Machine) -> Any:
        return evaluate_config(operator, shape, config, other, conditions).time_s

    return elasticities(m, time_s, base.time_s)


def _calibration(chip: Chip, family: str) -> str:
    """On what the chip's numbers and the interval stand."""
    fitted = chip.calibration
    if fitted is None:
        return "none (chip file only)"
    kernels = "" if family in fitted.residual else "; no kernel of this family was measured"
    if fitted.kind == "transferred":
        return f"{fitted.data}{kernels}"
    return f"fitted to {fitted.rows} rows of {fitted.data}{kernels}"


def _scalar(value: Any) -> float:
    return float(np.ravel(value)[0])


def _assemble(
    operator: Operator,
    shape: Shape,
    chip: Chip,
    on: Target,
    played: Played,
    elastic: Mapping[str, float],
    conditions: Conditions = COLD,
) -> Prediction:
    config, runs = played.config, played.runs
    model: Model = "engine" if runs else "cost_model"
    if runs:
        plans, estimates = [r.plan for r in runs], [r.estimate for r in runs]
        times, tails = [r.time_s for r in runs], [r.tail_s for r in runs]
    else:
        launches = evaluate_config(operator, shape, config, on.machine, conditions)
        plans, estimates = list(launches.plans), list(launches.estimates)
        times, tails = [_scalar(e.time_s) for e in estimates], [_scalar(e.tail_s) for e in estimates]
    total = sum(times)
    dtype = next((p.workload.dtype for p in plans if p.workload.dtype), "")
    factor = _scalar(interval_factor(chip, dtype, elastic, on.family, total))
    breakdown: dict[str, float] = {}
    busy: dict[str, float] = {}
    for time_s, tail_s, p, e in zip(times, tails, plans, estimates, strict=True):
        for name, seconds in _breakdown(time_s, tail_s, p, e).items():
            breakdown[name] = breakdown.get(name, 0.0) + seconds
        for engine, seconds in e.busy.items():
            busy[engine] = busy.get(engine, 0.0) + _scalar(seconds)
    utilisation = {engine: min(1.0, seconds / total) for engine, seconds in busy.items()}
    executed = sum(_scalar(p.executed_flops) for p in plans)
    tile = sum(_scalar(p.tile_flops) for p in plans)
    useful = float(operator.flops(shape))
    if np.isnan(useful):
        useful = tile
    overhead = {"instruction_padding": executed - tile}
    if tile:
        overhead["tile_padding_and_masking"] = max(0.0, tile - useful)
    notes = list(dict.fromkeys(note for p in plans for note in p.workload.notes))
    grounds = list(dict.fromkeys(ground for p in plans for ground in p.workload.grounds))
    inferred = chip.inferred()
    first = plans[0].workload.occupancy
    return Prediction(
        operator=operator.name,
        shape=dict(shape),
        chip=chip.id,
        time_s=total,
        interval_s=(total / factor, total * factor),
        bound=bound_of(utilisation, sum(p.workload.machine.launch_s for p in plans) / total),
        breakdown_s=breakdown,
        utilisation=utilisation,
        traffic_bytes=_traffic(plans),
        flops=useful,
        overhead_flops=overhead,
        occupancy={
            "blocks": int(_scalar(plans[0].blocks)),
            "blocks_per_core": first.blocks_per_core,
            "limited_by": first.limited_by,
            "waves": _scalar(plans[0].blocks) / plans[0].slots,
            "active_cores": int(min(_scalar(plans[0].blocks), plans[0].workload.machine.cores)),
            "threads": first.threads,
            "scratchpad_bytes": first.scratchpad_bytes,
            "registers_per_thread": first.registers_per_thread,
            "spilled_bytes_per_thread": first.spilled_bytes,
            "launches": len(plans),
        },
        config=dict(config),
        model={
            "kind": model,
            "calibration": _calibration(chip, on.family),
            "inferred_inputs": len(inferred),
            "inputs": len(chip.described()),
            "carried_by": list(carriers(chip, dtype, elastic)),
            "elasticity": {r: round(s, 4) for r, s in elastic.items()},
            "toolchain": plans[0].workload.program.toolchain or LIBRARY,
            **({"assumed": grounds} if grounds else {}),
            **({"warnings": notes} if notes else {}),
        },
    )


def _breakdown(time_s: float, tail_s: float, p: Plan, e: Estimate) -> dict[str, float]:
    """Named parts of one launch's time; what no part claims is exposed latency."""
    m = p.workload.machine
    engine, seconds = max(e.busy.items(), key=lambda item: _scalar(item[1]))
    wanted = (
        ("launch", m.launch_s),
        (PART[engine], _scalar(seconds)),
        ("ramp", m.ramp_s + _scalar(e.fill_s)),
        ("wave_tail", tail_s),
        ("epilogue", _scalar(e.epilogue_s) * float(np.ceil(_scalar(p.blocks) / p.slots))),
    )
    parts: dict[str, float] = {}
    left = time_s
    for name, amount in wanted:
        parts[name] = min(left, max(0.0, amount))
        left -= parts[name]
    parts["exposed_latency"] = left
    return parts


def bound_of(utilisation: Mapping[str, float], launch_share: float) -> str:
    """What binds: the busiest engine, or launch or latency where no engine is busy half of the time."""
    engine, share = max(utilisation.items(), key=lambda item: item[1])
    if share >= _BUSY_ENOUGH:
        return engine
    return "launch" if launch_share > _BUSY_ENOUGH else "latency"


def _traffic(plans: list[Plan]) -> dict[str, float]:
    names = {
        "dram_read": "dram_read_bytes",
        "dram_write": "dram_write_bytes",
        "l2_read": "l2_read_bytes",
        "l2_write": "l2_write_bytes",
    }
    return {name: sum(_scalar(getattr(p.traffic, field)) for p in plans) for name, field in names.items()}
