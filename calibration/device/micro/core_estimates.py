"""What measured rows say of a core's arithmetic and its clock."""

from __future__ import annotations

from collections.abc import Iterator

from foretile.calibration.device.micro.details import Details
from foretile.calibration.device.micro.fits import Number, middle, settling
from foretile.calibration.device.micro.series import Estimate, Rows, cycles_a_step, per_cycle, share

_FULL_WIDTH = 0.95  # share of the rate from which columns count as enough
_NO_SINKING = 0.99  # sustained over burst clock above which the clock holds
_OFF_CLOCK = 0.03  # cores that do little, against the driver's clock


def matrix(d: Details, rows: Rows) -> Iterator[Estimate]:
    """The matrix engine: rates by type, latency, main loop, width."""
    rates = {str(r.params["dtype"]): per_cycle(r, "flop_a_block") for r in rows.of("matrix_rate")}
    for dtype, rate in rates.items():
        yield Estimate(f"matrix.flop_per_cycle.{dtype}", rate, "FLOP/cycle/core", "independent instructions")
    full = rates.get("bf16")
    for row in rows.of("matrix_latency"):
        yield Estimate("matrix.latency_cycles", cycles_a_step(row), "cycles", "one instruction at a time")
    if full is None:
        return
    for row in rows.of("matrix_sync_rate"):
        yield Estimate(
            "matrix.sync_fraction",
            share(per_cycle(row, "flop_a_block").over(full)),
            "share",
            "mma.sync over the asynchronous rate",
        )
    for row in rows.of("matrix_mainloop"):
        yield Estimate(
            "matrix.mainloop_fraction",
            share(per_cycle(row, "flop_a_block").over(full)),
            "share",
            "a main loop over the rate",
        )
    widths = rows.of("matrix_width")
    enough = []
    for row in widths:
        n, source = int(row.params["n"]), str(row.params["source"])
        reached = per_cycle(row, "flop_a_block").over(full)
        yield Estimate(f"matrix_width.{source}.{n}", reached, "share", "of the rate at 256 columns")
        enough += [n] if reached.value >= _FULL_WIDTH else []
    if enough:
        flags = () if min(enough) > min(int(r.params["n"]) for r in widths) else ("the least that was tried",)
        least = float(min(enough))
        yield Estimate(
            "matrix.n",
            Number(least, least, least, sum(len(r.cycles) for r in widths), flags),
            "columns",
            f"least n at {_FULL_WIDTH:g} of the rate",
        )


def clock(d: Details, rows: Rows) -> Iterator[Estimate]:
    """Clocks, idle and under matrix work."""
    for row in rows.of("light_clock"):
        light = middle([1e9 * c / t for c, t in zip(row.cycles, row.nanoseconds, strict=True)], row.flags)
        off = abs(light.value / d.max_hz - 1) > _OFF_CLOCK
        yield Estimate(
            "light_clock.hz",
            light.flagged(*(["not the driver's clock"] if off else [])),
            "Hz",
            "cores that do little",
        )
    runs = sorted(rows.of("matrix_clock"), key=lambda r: int(r.params["busy_us"]))
    if len(runs) < 2:
        return
    clocks = [
        middle([1e9 * c / t for c, t in zip(r.cycles, r.nanoseconds, strict=True)], r.flags) for r in runs
    ]
    busy = [1e-6 * int(r.params["busy_us"]) for r in runs]
    burst, sustained = clocks[0], clocks[-1]
    if burst.value > d.max_hz:  # the global timer's grain
        burst = Number(d.max_hz, min(burst.low, d.max_hz), d.max_hz, burst.n, burst.flags)
    yield Estimate("clock.matrix_burst_hz", burst, "Hz", f"matrix work of {busy[0]:g} s")
    if sustained.value >= _NO_SINKING * burst.value:
        return  # the clock holds: no sustained clock, and nothing to settle
    yield Estimate("clock.matrix_sustained_hz", sustained, "Hz", f"matrix work of {busy[-1]:g} s")
    settle = settling(busy, [c.value for c in clocks], burst.value, sustained.value)
    yield Estimate("clock.settle_s", settle, "s", f"fit of {len(busy)} lengths of matrix work")


_VECTOR_FIELDS = {
    "rate_fma_f32": "vector.fp32_per_cycle",
    "rate_fma_f16x2": "vector.half_per_cycle",
    "rate_max_f32": "vector.alu_per_cycle",
    "rate_ex2_f32": "vector.special_per_cycle",
    "rate_f32_to_bf16x2": "vector.convert_per_cycle",
    "rate_issue": "vector.issue_per_cycle",
}
# Of one element of softmax_code, by the field of the rate that limits it: multiply-add and sum; maximum and
# half an exclusive or; an exponential; a narrowed result; all instructions (a conversion and an exclusive or
# serve two elements).
_SOFTMAX = {
    "vector.fp32_per_cycle": 2.0,
    "vector.alu_per_cycle": 1.5,
    "vector.special_per_cycle": 1.0,
    "vector.convert_per_cycle": 1.0,
    "vector.issue_per_cycle": 5.0,
}


def vector(rows: Rows) -> Iterator[Estimate]:
    """The other pipes, and what softmax code reaches of them."""
    rates: dict[str, Number] = {}
    for name, field in _VECTOR_FIELDS.items():
        for row in rows.of(name):
            rates[field] = per_cycle(row, "results_a_block")
            yield Estimate(field, rates[field], "results/cycle", name)
    for name in sorted(n for n in rows.names if n.startswith("rate_") and n not in _VECTOR_FIELDS):
        for row in rows.of(name):
            yield Estimate(f"{name}.per_cycle", per_cycle(row, "results_a_block"), "results/cycle", name)
    for row in rows.of("latency_fma"):
        yield Estimate("vector.latency_cycles", cycles_a_step(row), "cycles", "chain of multiply-adds")
    for row in rows.of("softmax_code"):
        if set(_SOFTMAX) <= set(rates):
            pipe = max(_SOFTMAX, key=lambda f: _SOFTMAX[f] / rates[f].value)
            ideal = rates[pipe].times(1 / _SOFTMAX[pipe])  # elements a cycle
            reached = per_cycle(row, "elements_a_block").over(ideal)
            yield Estimate(
                "vector.code_fraction", share(reached), "share", f"softmax code over its limit, {pipe}"
            )
