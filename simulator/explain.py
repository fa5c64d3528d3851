"""Why it takes that long: the bounds each resource sets, and what more of each would bring."""

from __future__ import annotations

from typing import Any

import numpy as np

from foretile.hwmodels.schema import Chip
from foretile.kernels.operator import Config, Operator, Shape
from foretile.simulator.machine import RESOURCES
from foretile.simulator.prediction import Explanation, Prediction
from foretile.simulator.predictor import PART, predict, target
from foretile.simulator.search import evaluate_config, play
from foretile.simulator.uncertainty import improved

_ENGINE_WORDS = {
    "matrix": "the matrix engine",
    "vector": "the vector units",
    "special": "the special-function units (exp2, log2, …)",
    "scratchpad": "shared-memory bandwidth (operand reads and staging)",
    "tensor_memory": "tensor-memory bandwidth",
    "port": "the L2-to-core port",
    "l2": "L2 bandwidth",
    "dram": "DRAM bandwidth",
    "atomic": "atomic updates in the L2",
    "feed": "the copy queue into the core",
    "drain": "the copy queue out of the core",
    "vector_feed": "the copy queue into the vector cores",
    "vector_drain": "the copy queue out of the vector cores",
    "share": "the copies that a cluster's cores share",
    "scalar": "the scalar unit that sends the instructions",
}
_WORTH_SAYING = 0.005


def explain(operator: Operator, shape: Shape, chip: Chip, config: Config | None = None) -> Explanation:
    """A prediction with its bounds and what ten per cent more of each resource would bring.

    Gains are measured by playing the same configuration on the event engine with the resource
    improved; nothing is re-tuned.
    """
    prediction = predict(operator, shape, chip, config)
    m = target(operator, shape, chip).machine
    settings = dict(prediction.config)
    base = play(operator, shape, settings, m).time_s
    gains: dict[str, float] = {}
    for resource in RESOURCES:
        gains[resource] = min(0.0, play(operator, shape, settings, improved(m, resource)).time_s / base - 1.0)
    launches = evaluate_config(operator, shape, settings, m)
    bounds: dict[str, float] = {}
    for estimate in launches.estimates:
        for engine, seconds in estimate.busy.items():
            bounds[engine] = bounds.get(engine, 0.0) + float(np.ravel(seconds)[0])
    bounds = dict(sorted(((k, v) for k, v in bounds.items() if v > 0), key=lambda item: -item[1]))
    gains = dict(sorted(gains.items(), key=lambda item: item[1]))
    return Explanation(prediction, tuple(_sentences(prediction, bounds, gains)), bounds, gains)


def _sentences(p: Prediction, bounds: dict[str, float], gains: dict[str, float]) -> list[str]:
    words: list[str] = []
    ranked = list(bounds.items())
    engine, longest = ranked[0]
    share = longest / p.time_s
    if p.bound in bounds:
        words.append(
            f"It takes {_us(p.time_s)} because {_ENGINE_WORDS[engine]} is busy for {_us(longest)} of it "
            f"({share:.0%}): the kernel is bound by {p.bound}."
        )
    else:
        words.append(
            f"It takes {_us(p.time_s)} although no engine is busy for half of that; the busiest, "
            f"{_ENGINE_WORDS[engine]}, needs {_us(longest)} ({share:.0%}). It is bound by {p.bound}."
        )
    rest = {k: v for k, v in p.breakdown_s.items() if v > 0.02 * p.time_s and k != PART[engine]}
    if rest:
        listed = ", ".join(f"{_label(k)} {_us(v)} ({v / p.time_s:.0%})" for k, v in rest.items())
        words.append(f"Beyond that engine's own time: {listed}.")
    if len(ranked) > 1:
        following, seconds = ranked[1]
        words.append(
            f"The next bound is {_ENGINE_WORDS[following]} at {_us(seconds)}; relieving the first one "
            f"alone gains at most {max(0.0, 1 - max(seconds, p.time_s - longest) / p.time_s):.0%}."
        )
    words.append(_occupancy(p))
    if grounds := p.model.get("assumed"):
        words.append(f"As its compiler makes it ({p.model['toolchain']}): {'; '.join(grounds)}.")
    best = [(r, g) for r, g in gains.items() if g < -_WORTH_SAYING]
    if best:
        listed = ", ".join(f"{_label(r)} {g:+.1%}" for r, g in best[:4])
        words.append(
            f"Ten per cent more of a resource changes the time by: {listed}; the others by less than 0.5 %."
        )
    else:
        words.append("Ten per cent more of any single resource changes the time by less than 0.5 %.")
    padding = sum(p.overhead_flops.values())
    if p.flops and padding > 0.05 * p.flops:
        words.append(
            f"The tiles execute {padding / p.flops:.0%} more FLOPs than the operator needs "
            "(padding, masking)."
        )
    if p.model["inferred_inputs"]:
        words.append(
            f"{p.model['inferred_inputs']} of the chip's {p.model['inputs']} numbers are inferred; "
            "`foretile chips show` lists them."
        )
    return words


def _occupancy(p: Prediction) -> str:
    o: Any = p.occupancy
    return (
        f"{o['blocks']} blocks, {o['blocks_per_core']} to a core (limited by {o['limited_by']}): "
        f"{o['waves']:.2f} waves over the chip."
    )


def _label(name: str) -> str:
    return name.replace("_", " ")


def _us(seconds: float) -> str:
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} µs"
