"""Why two chips differ, in words: what binds them, who wins from which size on, how firm that is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from foretile.report import units
from foretile.report.sweep import LEVEL

if TYPE_CHECKING:
    from foretile.report.sensitivity import Influence, Number, Verdict
    from foretile.report.suite import Phase
    from foretile.report.why import Difference, Why

_WORDS: Mapping[str, str] = {
    "matrix": "matrix peak",
    "vector": "vector rate",
    "special": "special-function rate",
    "scratchpad": "scratchpad bandwidth",
    "tensor_memory": "tensor-memory bandwidth",
    "port": "L2-to-core bandwidth",
    "l2": "L2 bandwidth",
    "dram": "DRAM bandwidth",
    "atomic": "atomic rate",
    "launch": "launches",
    "latency": "memory latency",
    "feed": "copy queues into the cores",
    "drain": "copy queues out of the cores",
}

_NAMED = 3  # uncertain numbers that a sentence names


def resource_words(resource: str) -> str:
    """A resource for people: ``DRAM bandwidth``."""
    return _WORDS.get(resource, resource.replace("_", " "))


def why_words(found: Why, d: Difference) -> str:
    """The cause in short: ``both bound by DRAM bandwidth: rate 1.19× · work 0.95× · use 0.94×``."""
    if abs(math.log(d.ratio)) <= LEVEL:
        return "level"
    slow, fast = (found.second, found.first) if d.ratio > 1 else (found.first, found.second)
    bounds = {found.first: d.first_bound, found.second: d.second_bound}
    if bounds[slow] == bounds[fast]:
        lead = f"both bound by {resource_words(bounds[slow])}"
    else:
        lead = f"{slow} bound by {resource_words(bounds[slow])}, {fast} by {resource_words(bounds[fast])}"
    if d.cause is None:
        return f"{lead}, which only it has"
    c = d.cause
    named = "" if c.resource == bounds[slow] else f"{resource_words(c.resource)} "
    factors = [(f"{named}rate", c.rate), ("work", c.work), ("use", c.use)]
    return f"{lead}: " + " · ".join(f"{name} {units.ratio(v)}" for name, v in factors if v is not None)


def sentences(found: Why, phase: Phase) -> list[str]:
    """The verdict on one phase in words: who, why, from which size on, and how firm it is."""
    verdict = found.verdicts.get(phase.id)
    if verdict is None:
        return []
    winner, loser = (found.first, found.second) if verdict.ratio > 1 else (found.second, found.first)
    factor = max(verdict.ratio, 1 / verdict.ratio)
    said = [f"{loser} takes {units.ratio(factor)} as long as {winner} for a {phase.unit}."]
    parts: dict[str, float] = {}
    for d in found.of(phase.id):
        if d.part > 0:  # the others go the other way
            parts[d.binding] = parts.get(d.binding, 0.0) + d.part
    if parts:
        resource, share = max(parts.items(), key=lambda item: item[1])
        mine = [d for d in found.of(phase.id) if d.binding == resource]
        heavy = max(mine, key=lambda d: d.part)
        said.append(
            f"{units.percent(share / sum(parts.values()))} of what {loser} loses is where it is bound by "
            f"{resource_words(resource)}, most of it in {heavy.title} ({why_words(found, heavy)})."
        )
    for sweep in found.passes(phase.id):
        sizes = list(sweep.ratios)
        said.append(f"Over {sweep.variable} from {sizes[0]} to {sizes[-1]}: {sweep.words()}.")
    return [*said, *_firmness(found, phase, verdict)]


def _firmness(found: Why, phase: Phase, verdict: Verdict) -> list[str]:
    count = len(verdict.influences)
    if not count:
        return ["No number of either chip is inferred or unknown."]
    turning = verdict.turning
    if not turning:
        together = "and even all at once" if verdict.firm else "though not if all are off at once"
        lead = (
            f"The answer stays for every value that the {count} inferred or unknown numbers of both chips "
            f"may have, one at a time, {together} (ratio {units.digits(verdict.worst)})."
        )
    else:
        worst = []
        for i in turning[:3]:
            side = "below" if (i.turns_at or 0) <= (i.number.value or i.number.high) else "above"
            at = i.number.shown(i.turns_at or 0.0)
            worst.append(f"{i.number.name} is {side} {at} ({_stated(i.number)})")
        lead = f"The answer turns if {' or '.join(worst)}."
        if len(turning) > 3:
            lead += f" {len(turning) - 3} more numbers can turn it."
    weight = f"The ratio {found.second} / {found.first} moves most with " + "; ".join(
        _moved(i) for i in verdict.influences[:_NAMED]
    )
    open_ = [d.title for d in found.of(phase.id) if not d.stays]
    of = len(found.of(phase.id))
    own = f"Of the {of} operators the winner of {len(open_)} hangs on such a number" + (
        f": {', '.join(open_[:4])}{' …' if len(open_) > 4 else ''}." if open_ else "."
    )
    return [f"{lead} {weight}.", own]


def _moved(influence: Influence) -> str:
    low, high = sorted((influence.at_low, influence.at_high))
    number = influence.number
    return f"{number.name}: {units.digits(low)} to {units.digits(high)} for {number.range()}"


def holds_words(d: Difference) -> str:
    """Whether the winner hangs on a single number, and on which."""
    if d.turned_by is None:
        return "yes"
    return f"open: {d.turned_by.name}, {d.turned_by.range()}"


def _stated(number: Number) -> str:
    return "not known" if number.value is None else f"file: {number.shown(number.value)}"
