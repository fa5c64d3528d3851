"""Timelines for Perfetto (Chrome trace event format): the representative core, one track an engine."""

from __future__ import annotations

from typing import Any

from foretile.hwmodels.schema import Chip
from foretile.kernels.operator import Config, Operator, Shape
from foretile.simulator.predictor import predict, target
from foretile.simulator.program import ENGINES
from foretile.simulator.search import play

_PS_PER_US = 1e6


def trace(operator: Operator, shape: Shape, chip: Chip, config: Config | None = None) -> dict[str, Any]:
    """A trace object of one core's timeline, launches one after the other.

    Where the engine found the steady state and jumped ahead, the skipped stretch is one slice of the
    track "steady state". Times are microseconds, as the format wants.
    """
    m = target(operator, shape, chip).machine
    prediction = predict(operator, shape, chip, config)
    played = play(operator, shape, dict(prediction.config), m, trace=True)
    events: list[dict[str, Any]] = []
    base = 0.0
    used: set[str] = set()
    for number, (launch, run) in enumerate(zip(played.runs, (r.run for r in played.runs), strict=True)):
        name = launch.plan.workload.program.name
        m = launch.plan.workload.machine
        events.append(_slice("kernel", "launch", base, m.launch_s * 1e6, number))
        start = base + (m.launch_s + m.ramp_s) * 1e6
        events.append(_slice("kernel", name, base, launch.time_s * 1e6, number))
        for piece in run.slices:
            if piece.end_ps > piece.start_ps:
                used.add(piece.engine)
                at = start + piece.start_ps / _PS_PER_US
                events.append(
                    _slice(
                        piece.engine,
                        piece.label,
                        at,
                        (piece.end_ps - piece.start_ps) / _PS_PER_US,
                        piece.agent,
                    )
                )
        for at_ps, length_ps in run.jumps:
            events.append(
                _slice("steady state", "repeats", start + at_ps / _PS_PER_US, length_ps / _PS_PER_US, number)
            )
        base += launch.time_s * 1e6
    tracks = ["kernel", *(e for e in ENGINES if e in used), "steady state"]
    for event in events:
        event["tid"] = tracks.index(event["tid"]) + 1
    names = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": i + 1, "args": {"name": track}}
        for i, track in enumerate(tracks)
    ]
    order = [
        {"ph": "M", "name": "thread_sort_index", "pid": 1, "tid": i + 1, "args": {"sort_index": i}}
        for i in range(len(tracks))
    ]
    process = {
        "ph": "M",
        "name": "process_name",
        "pid": 1,
        "args": {"name": f"{operator.name} on one core of {chip.id}"},
    }
    return {
        "traceEvents": [process, *names, *order, *events],
        "displayTimeUnit": "ns",
        "otherData": {"chip": chip.id, "operator": operator.name, "config": dict(prediction.config)},
    }


def _slice(track: str, name: str, start_us: float, length_us: float, agent: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": name,
        "cat": track,
        "pid": 1,
        "tid": track,
        "ts": round(start_us, 6),
        "dur": round(length_us, 6),
        "args": {"agent": agent},
    }
