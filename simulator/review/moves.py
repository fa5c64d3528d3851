"""Copies that go in small pieces, and those that the tensor-copy engine cannot take."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd, prod

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import Binary, Call, Const, Expr, Load, Var
from foretile.kernels.ir import Buffer, Copy, Region, TileProgram
from foretile.simulator.machine import Machine
from foretile.simulator.review.finding import Finding
from foretile.simulator.review.trips import Placed

VECTOR_BYTES = 16  # the widest access of one thread
_ANY = 1 << 30  # a multiple of everything that matters


def reviewed(program: TileProgram, stmts: list[Placed], machine: Machine, time_s: float) -> Iterator[Finding]:
    """Remarks on the copies between global memory and the chip."""
    for place in stmts:
        s = place.stmt
        if not isinstance(s, Copy):
            continue
        source, target = program.buffer(s.src.buffer), program.buffer(s.dst.buffer)
        if (source.scope == "global") == (target.scope == "global"):
            continue
        region, buffer = (s.src, source) if source.scope == "global" else (s.dst, target)
        steps = {v.name: loop.step for loop in place.around for v in loop.vars}
        width, why = width_bytes(region, buffer, steps)
        if machine.bulk_copy and {source.scope, target.scope} == {"global", "shared"}:
            reason = _no_tensor_copy(region, buffer)
            if reason:
                yield Finding(
                    "tensor copy",
                    "warning",
                    f"the copy of {buffer.name} cannot use the tensor-copy engine (TMA): {reason}",
                    s.loc,
                    *_cost(place, region, buffer, machine, time_s, width),
                )
                continue
        if width < VECTOR_BYTES:
            yield Finding(
                "vector width",
                "warning",
                f"{buffer.name} is copied {_bytes(width)} at a time, not {VECTOR_BYTES}: {why}",
                s.loc,
                *_cost(place, region, buffer, machine, time_s, width),
            )


def width_bytes(region: Region, buffer: Buffer, steps: dict[str, int]) -> tuple[int, str]:
    """Bytes that one access of a thread can take, and what keeps it from more."""
    size = DTYPES[buffer.dtype].bytes
    pitches = _pitches(buffer)
    run = _run(region, buffer)
    limits = [(run * size, f"a row of the tile is {_bytes(run * size)}")]
    for low, pitch in zip(region.mins, pitches, strict=True):
        step = divisor(low, steps)
        if pitch is not None and step < _ANY:
            limits.append(
                (step * pitch * size, f"the tile begins at multiples of {_bytes(step * pitch * size)}")
            )
    outer = [
        p for p, e in zip(pitches, region.extents, strict=True) if not (isinstance(e, Const) and e.value == 1)
    ][:-1]
    limits += [
        (p * size, f"rows of {buffer.name} lie {_bytes(p * size)} apart, no multiple of {VECTOR_BYTES}")
        for p in outer
        if p is not None
    ]
    found = [(gcd(int(b), VECTOR_BYTES) if b >= 1 else 1, why) for b, why in limits]
    return min(found, key=lambda item: item[0])


def divisor(e: Expr, steps: dict[str, int]) -> int:
    """A number that ``e`` is always a multiple of (loop variables by their steps), from its form."""
    if isinstance(e, Const):
        return abs(int(e.value)) or _ANY
    if isinstance(e, Var):
        return abs(steps.get(e.name, 1))
    if isinstance(e, Binary) and e.op == "mul":
        return min(_ANY, divisor(e.a, steps) * divisor(e.b, steps))
    if isinstance(e, Binary) and e.op in ("add", "sub", "min", "max"):
        return gcd(divisor(e.a, steps), divisor(e.b, steps))
    if isinstance(e, Call) and e.fn == "if_then_else":
        return gcd(divisor(e.args[1], steps), divisor(e.args[2], steps))
    if isinstance(e, Load):
        return 1
    return 1


def _pitches(buffer: Buffer) -> list[int | None]:
    """Elements between neighbours along every dimension; None where a size is not known."""
    if buffer.strides:
        return [int(s.value) if isinstance(s, Const) else None for s in buffer.strides]
    found: list[int | None] = []
    pitch: int | None = 1
    for extent in reversed(buffer.shape):
        found.append(pitch)
        pitch = pitch * int(extent.value) if pitch is not None and isinstance(extent, Const) else None
    return found[::-1]


def _run(region: Region, buffer: Buffer) -> int:
    """Elements of the region that lie side by side."""
    run = 1
    for extent, size in zip(reversed(region.extents), reversed(buffer.shape), strict=True):
        if not isinstance(extent, Const):
            return run
        run *= int(extent.value)
        if extent != size:
            return run
    return run


def _no_tensor_copy(region: Region, buffer: Buffer) -> str:
    """Why a tensor map cannot describe the copy (CUDA driver API, cuTensorMapEncodeTiled); "" if it can."""
    size = DTYPES[buffer.dtype].bytes
    pitches = _pitches(buffer)
    if pitches[-1] not in (1, None):
        return f"neighbours along the last dimension of {buffer.name} are not side by side"
    for pitch in pitches[:-1]:
        if pitch is not None and (pitch * size) % VECTOR_BYTES:
            return f"rows of {buffer.name} lie {_bytes(pitch * size)} apart, no multiple of {VECTOR_BYTES}"
    inner = region.extents[-1]
    if isinstance(inner, Const) and (int(inner.value) * size) % VECTOR_BYTES:
        return f"a row of the tile is {_bytes(int(inner.value) * size)}, no multiple of {VECTOR_BYTES}"
    return ""


def _cost(
    place: Placed, region: Region, buffer: Buffer, machine: Machine, time_s: float, width: int
) -> tuple[float | None, bool]:
    """The most that whole accesses would save: the instructions of the small ones, if nothing hides them."""
    extents = [e.value for e in region.extents if isinstance(e, Const)]
    if place.executions is None or len(extents) < len(region.extents):
        return None, True
    moved = place.executions * prod(int(e) for e in extents) * DTYPES[buffer.dtype].bytes
    whole = 0.0 if machine.bulk_copy else 1.0 / VECTOR_BYTES
    extra = moved * (1.0 / width - whole) / (machine.issue_per_s * machine.cores)
    return extra / (time_s + extra), True


def _bytes(n: float) -> str:
    return f"{n:g} byte{'' if n == 1 else 's'}"


__all__ = ["VECTOR_BYTES", "divisor", "reviewed", "width_bytes"]
