"""What measured rows say of DRAM, the L2, shared memory and asynchronous copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from foretile.calibration.device.micro.details import Details
from foretile.calibration.device.micro.fits import Number, knee, line, middle, saturation
from foretile.calibration.device.micro.points import Row
from foretile.calibration.device.micro.series import (
    Estimate,
    Rows,
    cycles_a_step,
    not_negative,
    per_cycle,
    per_second,
    seconds_a_step,
)

_PARTED = 0.7  # of the capacity: what all cores read stays in less only where parts keep copies
_WRONG_FIT = 0.1  # root mean square of a logarithm


def bandwidth_bytes_per_s(details: Details, rows: Sequence[Row]) -> float:
    """The driver's figure, or the best rate measured where it has none or is exceeded."""
    found = Rows(rows)
    rates = [per_second(r, "bytes").value for n in ("read", "write", "copy") for r in found.of(f"dram_{n}")]
    return max([details.bandwidth_bytes_per_s, *rates])


def dram(d: Details, rows: Rows) -> Iterator[Estimate]:
    """Streaming rates as shares of the bandwidth, and the latency behind every cache."""
    every = [r for n in ("read", "write", "copy") for r in rows.of(f"dram_{n}")]
    full = bandwidth_bytes_per_s(d, every)
    for name in ("read", "write", "copy"):
        ladder = sorted(rows.of(f"dram_{name}"), key=lambda r: int(r.params["bytes_in_flight"]))
        if not ladder:
            continue
        rates = [per_second(r, "bytes") for r in ladder]
        best = max(rates, key=lambda n: n.value)
        flight = [float(r.params["bytes_in_flight"]) for r in ladder]
        if best is rates[-1] and len(rates) > 1 and best.value > 1.03 * rates[-2].value:
            best = best.flagged("not saturated")
        yield Estimate(
            f"dram.{name}_fraction",
            best.times(1 / full),
            "share",
            f"best of {len(ladder)} bytes in flight over {full:.4g} B/s",
        )
        if len(ladder) >= 5:
            curve = saturation(flight, [n.value for n in rates])
            doubts = ("poor fit",) if curve.error > _WRONG_FIT else ()
            yield Estimate(
                f"dram_{name}.saturated_bytes_per_s",
                curve.limit.flagged(*doubts),
                "bytes/s",
                "fit of the ladder",
            )
            loaded = Number(curve.half, curve.half, curve.half, curve.limit.n, doubts).times(
                d.cores / curve.limit.value
            )
            yield Estimate(
                f"dram_{name}.latency_s", loaded, "s", "bytes in flight at the knee x cores / saturated rate"
            )
    for row in rows.of("dram_latency"):
        yield Estimate("dram.latency_cycles", seconds_a_step(row).times(d.max_hz), "cycles", "pointer chase")


def l2(d: Details, rows: Rows) -> Iterator[Estimate]:
    """The L2's rates, latency and what it keeps."""
    private = sorted(rows.of("l2_read"), key=lambda r: int(r.params["set_bytes"]))
    if private:
        rates = [per_second(r, "bytes") for r in private]
        inside = [
            n for r, n in zip(private, rates, strict=True) if int(r.params["set_bytes"]) <= d.l2_bytes / 2
        ]
        best = max(inside or rates[:1], key=lambda n: n.value)
        yield Estimate(
            "l2.bandwidth_bytes_per_cycle",
            best.times(1 / d.max_hz),
            "bytes/cycle",
            "best working set below half of the capacity",
        )
        if len(private) >= 5:
            kept = _kept(private, rates)
            share = kept.times(1 / d.l2_bytes)
            if share.value > 1:
                share = Number(1.0, min(1.0, share.low), 1.0, share.n, share.flags)
            yield Estimate(
                "l2.reuse_fraction", share, "share", "knee of reads over a growing working set / capacity"
            )
    shared = sorted(rows.of("l2_read_by_all"), key=lambda r: int(r.params["set_bytes"]))
    if len(shared) >= 5:
        share = _kept(shared, [per_second(r, "bytes") for r in shared]).times(1 / d.l2_bytes)
        parts = 2.0 if share.value < _PARTED else 1.0
        doubt = ("near the limit between one and two",) if abs(share.value - _PARTED) < 0.05 else ()
        yield Estimate("l2.kept_share_by_all", share, "share", "knee where every core reads all / capacity")
        yield Estimate(
            "l2.partitions",
            Number(parts, 1, 2, share.n, (*share.flags, *doubt)),
            "count",
            f"that knee below {_PARTED:g} of the capacity or not",
        )
    if writes := rows.of("l2_write"):
        best = max((per_second(r, "bytes") for r in writes), key=lambda n: n.value)
        yield Estimate("l2.write_bytes_per_cycle", best.times(1 / d.max_hz), "bytes/cycle", "writes that fit")
    for name, field in (
        ("l2_core_read", "l2.core_bytes_per_cycle"),
        ("l2_core_write", "l2.core_store_bytes_per_cycle"),
    ):
        for row in rows.of(name):
            rate = middle([row.work["bytes"] / (1e-9 * t) for t in row.nanoseconds], row.flags)
            yield Estimate(field, rate.times(1 / d.max_hz), "bytes/cycle", "one block on one core")
    for row in rows.of("l2_latency"):
        yield Estimate(
            "l2.latency_cycles",
            seconds_a_step(row).times(d.max_hz),
            "cycles",
            "pointer chase from every core",
        )


def _kept(rows: Sequence[Row], rates: Sequence[Number]) -> Number:
    found = knee([float(r.params["set_bytes"]) for r in rows], [n.value for n in rates])
    doubts = (
        *(["poor fit"] if found.error > _WRONG_FIT else []),
        *(["faint knee"] if found.inside < 1.3 * found.outside else []),
    )
    number = found.kept_bytes
    return Number(number.value, number.low, number.high, sum(n.n for n in rates), doubts)


def on_core(rows: Rows) -> Iterator[Estimate]:
    """Shared memory, L1 and tensor memory."""
    for row in rows.of("shared_read"):
        yield Estimate(
            "scratchpad.bandwidth_bytes_per_cycle", per_cycle(row, "bytes_a_block"), "bytes/cycle", "reads"
        )
    for row in rows.of("shared_latency"):
        yield Estimate("scratchpad.latency_cycles", cycles_a_step(row), "cycles", "pointer chase")
    for name in ("shared_write", "l1_read"):
        for row in rows.of(name):
            yield Estimate(f"{name}.bytes_per_cycle", per_cycle(row, "bytes_a_block"), "bytes/cycle", name)
    for row in rows.of("shared_stride"):
        stride = row.params["stride_words"]
        yield Estimate(
            f"shared_stride.{stride}.bytes_per_cycle",
            per_cycle(row, "bytes_a_block"),
            "bytes/cycle",
            f"lanes {stride} words apart",
        )
    for row in rows.of("l1_latency"):
        yield Estimate("l1.latency_cycles", cycles_a_step(row), "cycles", "pointer chase")
    for row in rows.of("tensor_memory_read"):
        yield Estimate(
            "tensor_memory.read_bytes_per_cycle", per_cycle(row, "bytes_a_block"), "bytes/cycle", "reads"
        )


def copies(d: Details, rows: Rows) -> Iterator[Estimate]:
    """Asynchronous copies by size, and what a bulk copy takes beyond a load."""
    plain = next((seconds_a_step(r) for r in rows.of("l2_latency")), None)
    for name in ("async_latency", "bulk_latency"):
        sizes = rows.of(name)
        for row in sizes:
            step = seconds_a_step(row).times(d.max_hz)
            yield Estimate(
                f"{name}.{row.params['copy_bytes']}",
                step,
                "cycles",
                f"copies of {row.params['copy_bytes']} bytes",
            )
        if name == "bulk_latency" and len(sizes) >= 3 and plain is not None:
            x = [float(r.params["copy_bytes"]) for r in sizes for _ in r.nanoseconds]
            y = [1e-9 * t / r.work["steps_a_block"] for r in sizes for t in r.nanoseconds]
            _, base = line(x, y)
            beyond = base.plus(-plain.value).times(d.max_hz)
            yield Estimate(
                "l2.bulk_copy_cycles",
                not_negative(beyond),
                "cycles",
                "intercept over size, less a plain load",
            )
    for name in ("async_throughput", "bulk_throughput"):
        for row in rows.of(name):
            yield Estimate(
                f"{name}.{row.params['copy_bytes']}",
                per_second(row, "bytes").times(1 / d.max_hz),
                "bytes/cycle",
                f"copies of {row.params['copy_bytes']} bytes",
            )
