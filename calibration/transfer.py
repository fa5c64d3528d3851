"""What one chip taught another: a prior from the chips that were measured, for those that were not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from foretile.calibration.libraries import engine_of, entries_of
from foretile.calibration.parameters import (
    CHIP_PARAMETERS,
    FAMILY_PARAMETERS,
    FamilyParameter,
    Parameter,
    prepared,
    with_factors,
)
from foretile.hwmodels import Chip, list_chips, load_chip
from foretile.hwmodels.quantity import Quantity
from foretile.hwmodels.schema import Calibration, KernelProfile
from foretile.kernels.families import multiplies, operators_of

# Products of one die, whatever part of it they have switched on, are never each other's evidence.
DIES: tuple[frozenset[str], ...] = (
    frozenset({"h100-sxm5-80gb", "h100-pcie", "h200-sxm", "h800-sxm", "h20", "gh200"}),
    frozenset({"b200-sxm", "gb200", "b100"}),
    frozenset({"b300-sxm", "gb300"}),
    frozenset({"a100-sxm4-80gb", "a100-sxm4-40gb", "a100-pcie-80gb", "a100-pcie-40gb", "a800-sxm4-80gb"}),
    frozenset({"l40s", "l20", "rtx-4090", "rtx-4090d"}),
    frozenset({"rtx-pro-6000", "rtx-5090", "rtx-5090d"}),
)
# Weights of a measured chip for another: those of its architecture count most, then those whose memory
# system is alike (a divided L2 before HBM, or one cache before GDDR).
_SAME_FAMILY, _SAME_MEMORY = 4.0, 2.0
# For a kernel source: those on whose engine its library is known to launch the same kernels.
_SAME_KERNELS = 4.0
_LEAST_SIGMA = 0.05
_MIDDLE = 10**0.5  # of a decade
_LAUNCH = next(p for p in CHIP_PARAMETERS if p.name == "launch")


def die_of(chip_id: str) -> frozenset[str]:
    """The ids that share a die with this one, itself included."""
    return next((die for die in DIES if chip_id in die), frozenset({chip_id}))


@cache
def fitted_chips() -> dict[str, Chip]:
    """The catalogue's chips that were fitted to measurements of their own."""
    chips = {name: load_chip(name) for name in list_chips()}
    return {n: c for n, c in chips.items() if c.calibration is not None and c.calibration.kind == "fitted"}


@dataclass(frozen=True)
class Prior:
    """Mean and standard deviation of each parameter's logarithm, and the kernels and errors of others."""

    parameters: Mapping[str, tuple[float, float]]
    kernels: Mapping[str, KernelProfile]
    residual: Mapping[str, Mapping[str, float]]
    teachers: tuple[str, ...]


def prior_for(
    chip: Chip,
    taught_by: Mapping[str, Chip] | None = None,
    *,
    own_die: bool = False,
    launch_s: float | None = None,
) -> Prior:
    """What other measured chips say about ``chip``: of other dies, or with ``own_die`` its siblings too.

    Dies count once, however many of their products were measured; siblings of the chip's own die count
    as those of its architecture do. ``launch_s``: cost of a launch on the chip, where a fit found it
    (without it, what the others teach); kernels take theirs in seconds, as a share of it.

    Raises:
        ValueError: no chip is left to learn from.
    """
    everyone = fitted_chips() if taught_by is None else taught_by
    shut = {chip.id} if own_die else set(die_of(chip.id))
    teachers = {n: c for n, c in everyone.items() if n not in shut}
    if not teachers:
        raise ValueError(f"{chip.id}: no calibrated chip of another die to learn from")
    weight = {n: _likeness(chip, c) / _siblings(n, teachers) for n, c in teachers.items()}
    parameters = {}
    for p in CHIP_PARAMETERS:
        # Where the data saw little, the fit stays near its prior or at an end where the number no longer
        # matters; both are worth their weight, and launch and gaps are only known together.
        mean, sigma = _pooled({n: _taught(p, chip, c) for n, c in teachers.items()}, weight)
        parameters[p.name] = (mean, max(_LEAST_SIGMA, min(p.sigma, sigma)))
    mean, sigma = parameters["sustained"]
    parameters["sustained"] = (_cooler(chip, teachers, weight, mean), sigma)
    if launch_s is None:
        launch_s = _launch_s(prepared(chip)) * float(np.exp(parameters["launch"][0]))
    kernels = _kernels(chip, teachers, weight, launch_s)
    return Prior(parameters, kernels, _residual(teachers, weight), tuple(sorted(teachers)))


def transferred(chip: Chip, taught_by: Mapping[str, Chip] | None = None, *, own_die: bool = False) -> Chip:
    """``chip`` as other measured chips let expect it (see :func:`prior_for`), calibrated by transfer."""
    prior = prior_for(chip, taught_by, own_die=own_die)
    factors = {name: float(np.exp(mean)) for name, (mean, _) in prior.parameters.items()}
    source = f"transferred from {', '.join(prior.teachers)}"
    made = with_factors(prepared(chip), factors, source, "inferred")
    example = _calibration(
        fitted_chips()[prior.teachers[0]] if taught_by is None else taught_by[prior.teachers[0]]
    )
    calibration = Calibration(
        kind="transferred",
        data=source,
        sha256=example.sha256,
        rows=0,
        date=example.date,
        factors=factors,
        sigma={name: sigma for name, (_, sigma) in prior.parameters.items()},
        unseen=tuple(prior.parameters),
        residual={f: dict(v) for f, v in prior.residual.items()},
    )
    return made.model_copy(update={"kernels": {**made.kernels, **prior.kernels}, "calibration": calibration})


def completed(base: Chip, made: Chip, taught_by: Mapping[str, Chip] | None = None) -> Chip:
    """``made``, a fit of ``base``, with the mean profiles of other chips where it has no rows of a family."""
    others = fitted_chips() if taught_by is None else taught_by
    if not set(others) - {base.id}:
        return made
    prior = prior_for(base, others, own_die=True, launch_s=_launch_s(made))
    held = {key.split("/")[0] for key in made.kernels} | {"gemm.bf16"}
    taught = {k: v for k, v in prior.kernels.items() if k not in held and "/" not in k}
    return made.model_copy(update={"kernels": {**taught, **made.kernels}})


@cache
def without_die(device: str) -> Chip:
    """A chip as it is predicted when no row of its die was fitted (leave one die out)."""
    return transferred(load_chip(device, calibrated=False))


@cache
def without_family(device: str, family: str) -> Chip:
    """A fitted chip whose kernels of one operator family come from other dies (leave one operator out)."""
    chip = load_chip(device)
    prior = prior_for(chip, launch_s=_launch_s(chip))
    kept = {k: v for k, v in chip.kernels.items() if k.split("/")[0] != family}
    taught = {k: v for k, v in prior.kernels.items() if k.split("/")[0] == family}
    return chip.model_copy(update={"kernels": {**kept, **taught}})


def _taught(parameter: Parameter, chip: Chip, teacher: Chip) -> float:
    """The logarithm of the factor that one teacher says ``chip`` has."""
    if parameter.shared == "factor":
        factor = _calibration(teacher).factors[parameter.name]
        if parameter.name == "matrix" and _pace(chip, teacher) != 1.0:
            start = prepared(chip).matrix.mainloop_fraction.value
            factor = _kept(factor * start, chip, teacher) / start
        return float(np.log(factor))
    own, other = parameter.amounts(prepared(chip)), parameter.amounts(teacher)
    both = own.keys() & other.keys()  # a file may leave one out
    return float(np.log(sum(other[path] for path in both) / sum(own[path] for path in both)))


def _kept(fraction: float, chip: Chip, teacher: Chip) -> float:
    """The share of its matrix rate that ``chip`` keeps where ``teacher`` keeps ``fraction`` of its own.

    What a core loses between products are cycles of issuing, waiting and adding up. A core of the same
    architecture with a slower matrix engine loses as many, beside products that take longer; of other
    architectures only the share is known.
    """
    pace = _pace(chip, teacher)
    return fraction if pace == 1.0 else 1.0 / (1.0 + pace * (1.0 / fraction - 1.0))


def _pace(chip: Chip, teacher: Chip) -> float:
    """Matrix rate of a core of ``chip`` over that of its teacher's, of the same architecture (else 1)."""
    own, other = (_rate(c) for c in (chip, teacher))
    if chip.family != teacher.family or own is None or other is None:
        return 1.0
    return own / other


def _rate(chip: Chip) -> float | None:
    """16-bit matrix rate of a core in FLOP a cycle."""
    rate = chip.matrix.flop_per_cycle.get("bf16") or chip.matrix.flop_per_cycle.get("fp16")
    return rate.value if rate else None


def _launch_s(chip: Chip) -> float:
    return sum(_LAUNCH.amounts(chip).values())


def _calibration(chip: Chip) -> Calibration:
    if chip.calibration is None:
        raise ValueError(f"{chip.id}: not calibrated")
    return chip.calibration


def _likeness(chip: Chip, other: Chip) -> float:
    alike = 1.0
    if chip.family == other.family:
        alike *= _SAME_FAMILY
    if (chip.l2.partitions is None) == (other.l2.partitions is None):
        alike *= _SAME_MEMORY
    return alike


def _siblings(name: str, teachers: Collection[str]) -> int:
    return sum(1 for other in teachers if other in die_of(name))


def _pooled(values: Mapping[str, float], weight: Mapping[str, float]) -> tuple[float, float]:
    """Weighted mean, and the standard deviation of another draw (spread and the mean's own error)."""
    w = np.array([weight[n] for n in values])
    v = np.array(list(values.values()))
    mean = float(np.sum(w * v) / np.sum(w))
    spread = float(np.sum(w * (v - mean) ** 2) / np.sum(w))
    effective = float(np.sum(w) ** 2 / np.sum(w**2))
    return mean, float(np.sqrt(spread * (1.0 + 1.0 / effective)))


def _cooler(chip: Chip, teachers: Mapping[str, Chip], weight: Mapping[str, float], mean: float) -> float:
    """The sustained clock's factor for a chip with more or less power for its matrix engines.

    Dynamic power grows with the matrix rate: a chip with a fraction of its siblings' cores or rate under
    the same power limit does not sink, as far as that goes.
    """

    def hunger(c: Chip) -> float | None:
        rate = _rate(c)
        if c.tdp_w is None or rate is None:
            return None
        return rate * c.cores.value * c.clock.max_hz.value / c.tdp_w.value

    own = hunger(chip)
    kin = {n: c for n, c in teachers.items() if c.family == chip.family} or teachers
    others = [(h, weight[n]) for n, c in kin.items() if (h := hunger(c))]
    if own is None or not others:
        return mean
    typical = sum(h * w for h, w in others) / sum(w for _, w in others)
    start = prepared(chip).clock.matrix_sustained_hz
    assert start is not None
    share = start.value / chip.clock.max_hz.value
    sunk = (1.0 - share * np.exp(mean)) * min(1.0, own / typical)
    return float(np.log((1.0 - sunk) / share))


def _kernels(
    chip: Chip, teachers: Mapping[str, Chip], weight: Mapping[str, float], launch_s: float
) -> dict[str, KernelProfile]:
    """Mean profiles of each family: rates as shares of a chip's, what a launch costs in seconds.

    A library's set-up and its further launches are the same instructions and the same driver on every
    chip; as a share they would grow with whatever else the chip's own launch holds.
    """
    # What a teacher was taught itself is no evidence, and may come from the very chip it is to teach.
    own = {n: {k: p for k, p in c.kernels.items() if _measured(p)} for n, c in teachers.items()}
    found: dict[str, KernelProfile] = {}
    for key in sorted({k for kernels in own.values() for k in kernels}):
        held = {n: kernels[key] for n, kernels in own.items() if key in kernels}
        if "/" in key:
            family = key.split("/")[0]
            alike = _launching_alike(key, chip, {n: c for n, c in teachers.items() if family in own[n]})
            if alike and not alike & held.keys():
                continue  # other kernels of this name: the family's mean is nearer
            counts = {n: w * (_SAME_KERNELS if n in alike else 1.0) for n, w in weight.items()}
        else:
            counts = dict(weight)
        fields = {}
        for p in FAMILY_PARAMETERS:
            value = float(np.exp(_pooled(_logs(p, held, teachers), counts)[0]))
            if p.name == "launch_fraction":
                value /= launch_s
            elif p.name == "core_fraction" and multiplies(key.split("/")[0]):
                value = float(np.exp(_pooled(_kept_logs(held, chip, teachers), counts)[0]))
            fields[p.name] = Quantity[float](
                value=float(np.clip(value, p.low, p.high)),
                source=f"mean of {', '.join(sorted(held))}",
                confidence="inferred",
            )
        tiles = max(held, key=counts.__getitem__)
        found[key] = KernelProfile(**fields, tiles=held[tiles].tiles)
    return found


def _launching_alike(key: str, chip: Chip, teachers: Mapping[str, Chip]) -> set[str]:
    """The teachers on which a source's library is known to do as it does on ``chip``: the same entries."""
    family, source = key.split("/", 1)
    operators = operators_of(family)
    own = entries_of(operators, source, engine_of(chip))
    return {n for n, c in teachers.items() if entries_of(operators, source, engine_of(c)) == own}


def _logs(
    parameter: FamilyParameter, held: Mapping[str, KernelProfile], teachers: Mapping[str, Chip]
) -> dict[str, float]:
    """Logarithm of one number of the teachers' profiles: rates as shares, a launch in seconds."""
    of_launch = parameter.name == "launch_fraction"
    return {
        n: float(
            np.log(max(parameter.low, getattr(profile, parameter.name).value))
            + (np.log(_launch_s(teachers[n])) if of_launch else 0.0)
        )
        for n, profile in held.items()
    }


def _kept_logs(
    held: Mapping[str, KernelProfile], chip: Chip, teachers: Mapping[str, Chip]
) -> dict[str, float]:
    """Logarithm of the cores' rate in kernels with products, as ``chip``'s cores keep it."""
    lowest = next(p.low for p in FAMILY_PARAMETERS if p.name == "core_fraction")
    kept = {n: max(lowest, profile.core_fraction.value) for n, profile in held.items()}
    return {n: float(np.log(_kept(fraction, chip, teachers[n]))) for n, fraction in kept.items()}


def _measured(profile: KernelProfile) -> bool:
    return profile.core_fraction.confidence == "measured"


def _residual(teachers: Mapping[str, Chip], weight: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Spread of each family's errors on another chip: the teachers' own, and how far they are apart.

    What teachers disagree on adds to what their fits left: on the cost of a launch in the share of a
    kernel's time that it takes, on the rates of cores and memory (it is bound by one of them) in the rest.
    """
    found: dict[str, dict[str, float]] = {}
    for family in sorted({f for c in teachers.values() for f in _calibration(c).residual}):
        held = {n: c for n, c in teachers.items() if family in _calibration(c).residual}
        left = {n: _calibration(c).residual[family] for n, c in held.items()}
        launch, rates, idle_s = _apart(family, held, weight)
        found[family] = {}
        for regime in sorted({r for v in left.values() for r in v}):
            mine = [n for n, v in left.items() if regime in v]
            own = np.average([left[n][regime] for n in mine], weights=[weight[n] for n in mine])
            share = 0.0 if regime == "all" else min(1.0, idle_s / (float(regime) * _MIDDLE))
            found[family][regime] = float(np.linalg.norm((own, share * launch, (1.0 - share) * rates)))
    return found


def _apart(
    family: str, teachers: Mapping[str, Chip], weight: Mapping[str, float]
) -> tuple[float, float, float]:
    """Standard deviations between a family's teachers, of launches and of rates, and seconds of a launch."""
    profiles = {n: c.kernels[family] for n, c in teachers.items() if family in c.kernels}
    held = {n: p for n, p in profiles.items() if _measured(p)}
    mean, launch = _pooled({n: float(np.log(_launch_s(c) + _gap_s(c))) for n, c in teachers.items()}, weight)
    if len(held) < 2:
        return launch, 0.0, float(np.exp(mean))
    core, memory, own = (_pooled(_logs(p, held, teachers), weight)[1] for p in FAMILY_PARAMETERS)
    return max(launch, own), float(np.hypot(core, memory) / np.sqrt(2.0)), float(np.exp(mean))


def _gap_s(chip: Chip) -> float:
    return chip.launch.graph_s.value if chip.launch.graph_s is not None else 0.0
