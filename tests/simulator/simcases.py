"""Random (operator, shape, configuration, chip) over the library and the whole catalogue.

One drawing routine serves both hypothesis (which shrinks what it finds) and seeded samples: it asks
a source of integers and choices, and knows nothing of where they come from.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from foretile.hwmodels import Chip, load_chip
from foretile.hwmodels.checks import peak_flop_per_s
from foretile.kernels.operator import Config, Operator, OperatorError, Shape, load_operator, operator_names
from foretile.simulator.launches import dynamic_part, workloads
from foretile.simulator.machine import Machine, SimulationError
from foretile.simulator.plan import Plan, plan
from foretile.simulator.predictor import machine_of, target
from foretile.simulator.search import bound_tensors, evaluate_config, for_machine, play
from foretile.simulator.workload import Workload

# A chip of every kind of machine: one more in the catalogue must not change what is drawn.
CHIPS = (
    "a100-sxm4-80gb",
    "ascend-910b3",
    "b200-sxm",
    "b300-sxm",
    "gb200",
    "gb300",
    "h100-sxm5-80gb",
    "h20",
    "h200-sxm",
    "h800-sxm",
    "hygon-bw1000",
    "l40s",
    "metax-c550",
    "rtx-pro-6000",
)
# Sizes above this are drawn for parameters that nothing is known of (new operators).
_UNKNOWN = (1, 4096)
# (smallest, largest) by parameter, log-uniform; "heads" style parameters come as choices below.
_RANGES: dict[str, dict[str, tuple[int, int]]] = {
    "gemm": {"m": (1, 16384), "n": (64, 16384), "k": (64, 16384), "batch": (1, 4)},
    "attention_prefill": {"batch": (1, 8), "seq": (64, 16384), "prefix": (1, 4096), "window": (64, 4096)},
    "attention_decode": {"batch": (1, 256), "kv_len": (64, 32768), "window": (64, 4096)},
    "copy": {"bytes": (1024, 2**31)},
    "rmsnorm": {"rows": (1, 65536), "cols": (128, 16384)},
    "softmax": {"rows": (1, 65536), "cols": (128, 16384)},
    "silu_mul": {"rows": (1, 65536), "cols": (128, 16384)},
}
# Parameters with a default are mostly left at it; these values are tried too.
_CHOICES: dict[str, tuple[Any, ...]] = {
    "heads": (8, 16, 32, 64),
    "kv_heads": (None, 8),
    "head_dim": (64, 128),
    "causal": (True, True, False),
    "trans_a": (False, False, True),
    "trans_b": (False, True),
    "batch": (1, 1, 1, 4),
}
_SELDOM = ("prefix", "window")  # given once in four draws


@dataclass(frozen=True)
class Source:
    """Where draws come from: ``integer(low, high)`` inclusive, and one of some options."""

    integer: Callable[[int, int], int]
    choice: Callable[[Sequence[Any]], Any]

    def size(self, low: int, high: int) -> int:
        """A whole number, spread over the powers of two between the bounds."""
        exponent = self.integer(int(math.log2(low)), int(math.log2(high)))
        value = 2**exponent + (self.integer(0, 2**exponent - 1) if self.integer(0, 1) else 0)
        return min(high, max(low, value))


@dataclass(frozen=True)
class Case:
    """One thing to predict."""

    operator: Operator
    shape: Shape
    config: Config
    chip: Chip

    @property
    def machine(self) -> Machine:
        """The chip as the simulator sees it."""
        return machine_of(self.chip)

    def workloads(self, machine: Machine | None = None) -> tuple[Workload, ...]:
        """Its launches."""
        return workloads(self.operator, self.shape, self.config, machine or self.machine)

    def plans(self) -> tuple[Plan, ...]:
        """Its launches with the shape filled in."""
        dims, tensors = dynamic_part(self.operator, self.shape), bound_tensors(self.operator, self.shape)
        return tuple(plan(w, dims, tensors) for w in self.workloads())

    def floor_s(self) -> float:
        """Seconds no kernel can beat: its arithmetic and its compulsory bytes, each at the chip's peak.

        The matrix peak is cores × rate × highest clock of the fastest type the kernel multiplies in: it
        holds whatever the calibration says of clocks and fractions.
        """
        bounds = [float(self.operator.min_bytes(self.shape)) / self.chip.dram.bandwidth_bytes_per_s.value]
        types = {w.dtype for w in self.workloads() if w.dtype}
        if types:
            peak = max(peak_flop_per_s(self.chip, dtype) for dtype in types)
            bounds.append(float(self.operator.flops(self.shape)) / peak)
        return max(bounds)

    def modelled_s(self, machine: Machine | None = None) -> float:
        """Seconds by the cost model."""
        return float(
            evaluate_config(self.operator, self.shape, self.config, machine or self.machine).time_s[0]
        )

    def played_s(self, machine: Machine | None = None) -> float:
        """Seconds by the event engine."""
        return play(self.operator, self.shape, self.config, machine or self.machine).time_s

    def __repr__(self) -> str:
        shape = " ".join(f"{k}={v}" for k, v in self.shape.items())
        return f"{self.operator.name} {shape} on {self.chip.id} with {self.config}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # what hypothesis prints
        printer.text(repr(self))


def first_fitting(operator: Operator, shape: Shape, chip: Chip) -> Case:
    """The likeliest configuration that fits the chip, without a search."""
    machine = target(operator, shape, chip).machine
    for config in operator.configs(shape):
        found = Case(operator, shape, for_machine(config, machine), chip)
        try:
            workloads(operator, shape, found.config, machine)
        except SimulationError:
            continue
        return found
    raise AssertionError(f"no configuration of {operator.name} fits {chip.id}")


def case(source: Source, operators: Sequence[str], chips: Sequence[str] = CHIPS) -> Case | None:
    """A drawn case, or None if the shape makes no sense or nothing near the drawn choice fits."""
    operator = load_operator(source.choice(operators))
    chip = load_chip(source.choice(chips))
    try:
        shape = operator.shape(**_shape(source, operator))
    except OperatorError:
        return None
    space = operator.configs(shape)
    first = source.integer(0, len(space) - 1)
    for config in (*space[first:], *space[:first]):
        candidate = for_machine(config, machine_of(chip))
        drawn = Case(operator, shape, candidate, chip)
        try:
            drawn.workloads()
        except SimulationError as error:
            if "flop_per_cycle" in str(error):  # no such arithmetic on this chip: no tile will help
                return None
            continue
        return drawn
    return None


def _shape(source: Source, operator: Operator) -> dict[str, Any]:
    ranges = _RANGES.get(operator.name, {})
    given: dict[str, Any] = {}
    for p in operator.params:
        if p.kind == "dtype":
            if p.name == "dtype" and p.choices:
                given[p.name] = source.choice((p.choices[0], *p.choices))
            continue
        if p.name in _SELDOM and source.integer(0, 3):
            continue
        if p.name in ranges:
            given[p.name] = source.size(*ranges[p.name])
        elif p.name in _CHOICES:
            given[p.name] = source.choice(_CHOICES[p.name])
        elif p.default is None:
            given[p.name] = source.size(*_UNKNOWN)
    return {name: value for name, value in given.items() if value is not None}


@st.composite
def cases(draw: st.DrawFn, operators: Sequence[str] = operator_names(), chips: Sequence[str] = CHIPS) -> Case:
    """Hypothesis strategy for :func:`case`."""
    from hypothesis import assume

    source = Source(
        integer=lambda low, high: draw(st.integers(low, high)),
        choice=lambda options: draw(st.sampled_from(tuple(options))),
    )
    drawn = case(source, operators, chips)
    assume(drawn is not None)
    assert drawn is not None
    return drawn


def sample(count: int, seed: int, operators: Sequence[str] = operator_names()) -> Iterator[Case]:
    """``count`` cases from a seeded generator."""
    rng = random.Random(seed)
    source = Source(integer=rng.randint, choice=rng.choice)
    found = 0
    while found < count:
        drawn = case(source, operators)
        if drawn is not None:
            found += 1
            yield drawn
