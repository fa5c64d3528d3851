"""What measured rows say of barriers, atomics and launches."""

from __future__ import annotations

import math
from collections.abc import Iterator

from foretile.calibration.device.micro.details import Details
from foretile.calibration.device.micro.fits import Number, line
from foretile.calibration.device.micro.series import (
    Estimate,
    Rows,
    cycles_a_step,
    not_negative,
    per_cycle,
    per_second,
)


def sync(d: Details, rows: Rows) -> Iterator[Estimate]:
    """Barriers, hand-overs and atomics."""
    barriers = rows.of("block_barrier")
    if len(barriers) >= 3:
        x = [float(r.params["warps"]) for r in barriers for _ in r.cycles]
        y = [c / r.work["steps_a_block"] for r in barriers for c in r.cycles]
        slope, base = line(x, y)
        for field, number, unit in (("cycles", base, "cycles"), ("cycles_per_warp", slope, "cycles/warp")):
            yield Estimate(
                f"sync.barrier_{field}",
                not_negative(number),
                unit,
                f"line over {len(barriers)} numbers of warps",
            )
    for row in rows.of("hand_over"):
        yield Estimate("sync.pipeline_barrier_cycles", cycles_a_step(row), "cycles", "two groups in turn")
    for row in rows.of("atomic_global"):
        yield Estimate(
            "sync.atomic_bytes_per_cycle",
            per_second(row, "bytes").times(1 / d.max_hz),
            "bytes/cycle",
            "coalesced fp32 additions",
        )
    for row in rows.of("atomic_one_address"):
        yield Estimate(
            "atomic_one_address.per_s", per_second(row, "updates"), "1/s", "all threads, one address"
        )
    for name, param, work in (
        ("named_barrier", "warps", ""),
        ("cluster_barrier", "blocks", ""),
        ("atomic_shared", "lanes_an_address", "updates_a_block"),
    ):
        for row in rows.of(name):
            number = per_cycle(row, work) if work else cycles_a_step(row)
            unit = "updates/cycle" if work else "cycles"
            yield Estimate(f"{name}.{row.params[param]}", number, unit, f"{param} = {row.params[param]}")


def launch(d: Details, rows: Rows) -> Iterator[Estimate]:
    """Fixed costs of kernels and graphs."""
    kernel: Number | None = None
    if len(chain := rows.of("launch_chain")) >= 2:
        kernel, _ = line(
            [float(r.nodes) for r in chain for _ in r.seconds], [s for r in chain for s in r.seconds]
        )
        yield Estimate("launch.kernel_s", kernel, "s", f"line over {len(chain)} lengths of a graph")
    empty = _without_length(rows)
    if empty is not None and kernel is not None:
        ramp = empty.plus(-kernel.value)
        yield Estimate(
            "launch.ramp_s",
            not_negative(ramp),
            "s",
            "kernels of two lengths on all cores, at a length of zero, less launch.kernel_s",
        )
    if len(blocks := rows.of("launch_blocks")) >= 2:
        x = [r.nodes * float(r.params["blocks"]) for r in blocks for _ in r.seconds]
        slope, _ = line(x, [s for r in blocks for s in r.seconds])
        rate = 1 / (slope.value * d.max_hz)
        low, high = (rate * slope.value / max(s, 1e-30) for s in (slope.high, slope.low))
        yield Estimate(
            "launch.blocks_per_cycle", Number(rate, low, high, slope.n), "blocks/cycle", "line over blocks"
        )
    if len(graphs := rows.of("launch_graph")) >= 2 and kernel is not None:
        slope, _ = line(
            [float(r.replays) for r in graphs for _ in r.seconds], [s for r in graphs for s in r.seconds]
        )
        gap = slope.plus(-graphs[0].nodes * kernel.value)
        yield Estimate(
            "launch.graph_s",
            not_negative(gap),
            "s",
            "line over replays, less their kernels",
        )


def _without_length(rows: Rows) -> Number | None:
    """Seconds a kernel on all cores would take in a graph if it did nothing: from two lengths, by a line."""
    lengths = sorted({int(r.params["cycles"]) for r in rows.of("launch_ramp")})
    if len(lengths) != 2:
        return None
    times = []
    for cycles in lengths:
        of = [r for r in rows.of("launch_ramp") if r.params["cycles"] == cycles]
        if len(of) < 2:
            return None
        slope, _ = line([float(r.nodes) for r in of for _ in r.seconds], [s for r in of for s in r.seconds])
        times.append(slope)
    (short, long), (c, e) = times, lengths
    value = (e * short.value - c * long.value) / (e - c)
    width = math.hypot(e * (short.high - short.low), c * (long.high - long.low)) / (e - c) / 2
    return Number(value, value - width, value + width, short.n + long.n)
