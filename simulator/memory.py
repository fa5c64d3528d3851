"""L2 and DRAM traffic from the real raster order of blocks.

Blocks of one wave run side by side and walk their loops in step, so a line that several of them
read crosses DRAM once (within-wave sharing). Between waves a line survives if what the wave
touches fits the part of the L2 that reuse can count on. Both follow from one question: how many
distinct tiles does a run of consecutive blocks touch?
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretile.kernels.expr import (
    Binary,
    Call,
    Cast,
    Const,
    Expr,
    Load,
    Stacked,
    Var,
    children,
    evaluate,
    walk,
)
from foretile.kernels.ir import Buffer
from foretile.simulator.conditions import COLD, Conditions, resident
from foretile.simulator.machine import Machine
from foretile.simulator.workload import Access, Workload

Array = Any  # float or float64 array; everything here broadcasts


def covered(workload: Workload, run: Array, env: Mapping[str, Any]) -> dict[str, Array]:
    """Distinct values that each block variable takes over ``run`` consecutive blocks.

    The raster order is a mixed-radix number whose digits are walked from the fastest: a digit
    smaller than what remains of the run is covered wholly and the run continues in the next one.
    """
    remaining = np.asarray(run, dtype=np.float64)
    cover: dict[str, Array] = {}
    for digit in workload.raster:
        extent = np.maximum(1.0, evaluate(digit.extent, env))
        here = np.minimum(extent, remaining)
        cover[digit.var] = cover[digit.var] * here if digit.var in cover else here
        remaining = np.maximum(1.0, remaining / extent)
    # Padding of a digit (a last, thinner panel) must not let a variable exceed its own range.
    return {v: np.minimum(c, np.maximum(1.0, evaluate(workload.ranges[v], env))) for v, c in cover.items()}


def distinct(e: Expr, cover: Mapping[str, Array], env: Mapping[str, Any] | None = None) -> Array:
    """How many different values ``e`` takes when its variables take ``cover`` values each.

    Exact for sums of scaled variables that do not overlap (tile indices); ``v // c`` and ``v % c``
    (grouped heads, wrapped panels) by counting. A gathered index counts as all different, unless
    ``env`` holds the tensor it is read from: then by how often neighbours in it differ.
    """
    if isinstance(e, Const):
        return 1.0
    if isinstance(e, Var):
        return cover.get(e.name, 1.0)
    if isinstance(e, Binary):
        a = distinct(e.a, cover, env)
        if isinstance(e.b, Const) and e.op == "floordiv":  # groups of (divisor / stride) values
            return np.maximum(1.0, a / max(1.0, float(e.b.value) / _stride(e.a, cover)))
        if isinstance(e.b, Const) and e.op == "mod":
            return np.minimum(a, float(e.b.value))
        return a * distinct(e.b, cover, env)
    if isinstance(e, Cast):
        return distinct(e.a, cover, env)
    if isinstance(e, Call):
        product: Array = 1.0
        for arg in e.args:
            product = product * distinct(arg, cover, env)
        return product
    if isinstance(e, Load):
        product = 1.0
        for index in e.indices:
            product = product * distinct(index, cover, env)
        if env is None or e.buffer not in env:
            return product
        return _values_met(env[e.buffer], product, _stride(e.indices[-1], cover))
    raise TypeError(f"not an expression: {e!r}")


def _values_met(tensor: np.ndarray | Stacked, entries: Array, step: float) -> Array:
    """Different values among so many entries, ``step`` apart, on average over the tensor."""
    rows = tensor if isinstance(tensor, Stacked) else Stacked([np.ravel(tensor)])
    gaps = np.maximum(1.0, rows.lengths - 1.0)
    reach = np.minimum((entries - 1.0) * (step if np.isfinite(step) else 1.0), rows.lengths - 1.0)
    met = np.minimum(entries, 1.0 + reach * rows.changes / gaps)
    return np.minimum(met, rows.unique)


def _stride(e: Expr, cover: Mapping[str, Array]) -> float:
    """Distance between neighbouring values of ``e`` as its tile indices (``cover``) change.

    What does not change has no neighbours (infinite); a symbolic factor counts as wide.
    """
    if isinstance(e, Var):
        return 1.0 if e.name in cover else np.inf
    if isinstance(e, Binary):
        a, b = _stride(e.a, cover), _stride(e.b, cover)
        if e.op == "mul":
            for factor, other in ((e.a, b), (e.b, a)):
                if isinstance(factor, Const):
                    return other * abs(float(factor.value))
            return np.inf
        if e.op == "floordiv":
            return max(1.0, a / float(e.b.value)) if isinstance(e.b, Const) else np.inf
        if e.op == "mod":
            return a
        return min(a, b)
    if isinstance(e, Call | Cast | Load):
        return min((_stride(x, cover) for x in children(e)), default=np.inf)
    return np.inf


def footprint(access: Access, tensor: Buffer, cover: Mapping[str, Array], env: Mapping[str, Any]) -> Array:
    """Bytes of ``tensor`` that the access touches when its variables take ``cover`` values each."""
    elements: Array = 1.0
    for size, first, extent in zip(tensor.shape, access.region.mins, access.region.extents, strict=True):
        tiles = distinct(first, cover, env)
        elements = elements * np.minimum(evaluate(size, env), tiles * evaluate(extent, env))
    return elements * access.element_bytes


def in_bounds(access: Access, tensor: Buffer, workload: Workload, env: Mapping[str, Any]) -> Array:
    """Mean share of the tile that lies inside the tensor, over all blocks and iterations.

    A dimension of ``D`` elements walked in steps of ``e`` has ``ceil(D / e)`` tiles, so the mean
    share is ``D / (ceil(D / e) * e)``; a dimension that is not walked has one tile.
    """
    share: Array = 1.0
    for size, first, extent in zip(tensor.shape, access.region.mins, access.region.extents, strict=True):
        e = evaluate(extent, env)
        if isinstance(e, int | float) and e == 1:
            continue
        d = evaluate(size, env)
        walked = any(isinstance(x, Var) for x in walk(first))
        tiles = np.ceil(d / e) if walked else 1.0
        share = share * np.minimum(1.0, d / (tiles * e))
    return share


@dataclass(frozen=True)
class Traffic:
    """Bytes one execution of each access moves, per level (arrays over shapes; index = access)."""

    l2_bytes: list[Array]  # leaving or entering the L2 for one execution by one block
    port_bytes: list[Array]  # arriving at the core, or leaving it, those weighted by their slower rate
    dram_share: list[Array]  # DRAM bytes per L2 byte
    stall_share: list[Array]  # of these, those that hold up reads (writes wait in the L2 as long as they fit)
    latency_s: list[Array]  # until a read's slowest line is on its way to the core
    readers: list[Array]  # cores that read the same tile at the same time
    missed_share: list[Array]  # of a tile, what comes from DRAM
    missed_bytes: list[Array]
    dram_read_bytes: Array  # whole kernel
    dram_write_bytes: Array
    dram_first_bytes: Array  # of the reads, those of elements not seen before: what no cache can save
    l2_read_bytes: Array
    l2_write_bytes: Array
    atomic_bytes: Array
    l2_read_cost: Array  # bytes read, weighted by the slowest level that they pass on their way to the cores
    fabric_bytes: Array  # between a memory-side cache and the dies, where there is one


def traffic(
    workload: Workload,
    counts: list[Array],
    blocks: Array,
    wave: Array,
    env: Mapping[str, Any],
    conditions: Conditions = COLD,
) -> Traffic:
    """Traffic of the whole kernel.

    ``counts``: mean executions of each access per block; ``blocks``: number of blocks;
    ``wave``: blocks resident at once on the chip; ``conditions``: what the L2 holds at the start.
    """
    machine = workload.machine
    tiles = blocks if workload.persistent is None else evaluate(workload.persistent, env)
    run = np.minimum(wave, tiles)
    whole = {v: evaluate(extent, env) for v, extent in workload.ranges.items()}
    side_by_side = covered(workload, run, env)
    waves = np.maximum(1.0, tiles / run)

    wave_bytes: list[Array] = []
    total_bytes: list[Array] = []
    tile_bytes: list[Array] = []
    for access, count in zip(workload.accesses, counts, strict=True):
        tensor = workload.program.buffer(access.tensor)
        loops = {var: _longest(extent, env) for var, extent in access.loops}
        tile = access.full_bytes * in_bounds(access, tensor, workload, env)
        moved = tile * count * blocks
        tile_bytes.append(tile)
        wave_bytes.append(np.minimum(footprint(access, tensor, side_by_side | loops, env), moved / waves))
        total_bytes.append(np.minimum(footprint(access, tensor, whole | loops, env), moved))
    touched = sum(_by_tensor(workload, wave_bytes, env).values())
    survive = np.minimum(1.0, machine.l2_bytes / np.maximum(1.0, touched))
    held = resident(_by_tensor(workload, total_bytes, env), conditions, machine.l2_kept_bytes)

    l2, port, share, missed, crossed = [], [], [], [], []
    crossing = _between_dies(workload, tiles, run, waves, env) if machine.dies > 1 else None
    read = first = write = l2_read = l2_write = atomic = cost = fabric = np.zeros(1)
    # Several accesses to one tensor with the same footprint (masked and unmasked loops over the
    # same keys) must not be counted as separate first touches.
    first_touch: dict[str, Array] = {}
    for i, (access, count, tile, in_wave, in_total) in enumerate(
        zip(workload.accesses, counts, tile_bytes, wave_bytes, total_bytes, strict=True)
    ):
        moved = tile * count * blocks
        if access.direction == "read":
            size = _size(workload, access, env)
            seen = first_touch.get(access.tensor, 0.0)
            fresh = np.clip(in_total, 0.0, np.maximum(0.0, size - seen))
            first_touch[access.tensor] = seen + fresh
            again = (1.0 - survive) * np.maximum(0.0, waves * in_wave - in_total)
            if workload.walks:
                again = again + waves * _evicted(workload, access, side_by_side, env)
            fresh = fresh * (1.0 - held.get(access.tensor, 0.0))
            dram = np.minimum(moved, fresh + again)
            read = read + dram
            first = first + np.minimum(moved, fresh)
            pair = _pair(workload, access, env)
            l2_read = l2_read + moved / pair
            weight: Array = 1.0
            between: Array = 1.0
            if crossing is not None:  # the slower of the two levels that its bytes pass
                over = np.clip(crossing[i], np.minimum(moved, in_total), moved)
                fabric = fabric + over
                between = over / np.maximum(moved, 1e-30)
                weight = np.maximum(1.0, machine.fabric_cost * between)
            cost = cost + moved * weight / pair
            crossed.append(between)
            l2.append(tile * weight / pair)
            port.append(tile / (pair if machine.matrix_instruction == "tcgen05" else 1.0))
            share.append(np.where(moved > 0, dram * pair / np.maximum(moved * weight, 1e-30), 0.0))
            missed.append(np.where(moved > 0, dram * pair / np.maximum(moved, 1e-30), 0.0))
        else:
            # What the next run overwrites before it is evicted never leaves the L2.
            dram = np.minimum(moved, in_total) * (1.0 - held.get(access.tensor, 0.0))
            write = write + dram
            l2_write = l2_write + moved
            fabric = fabric + (moved if crossing is not None else 0.0)
            if access.direction == "atomic":
                atomic = atomic + moved
            crossed.append(1.0)
            l2.append(tile)
            port.append(tile * machine.store_cost)
            share.append(np.where(moved > 0, dram / np.maximum(moved, 1e-30), 0.0))
            missed.append(share[-1])
    latency = [
        _latency(machine, access, m, c)
        for access, m, c in zip(workload.accesses, missed, crossed, strict=True)
    ]
    waiting = np.minimum(1.0, machine.l2_bytes / np.maximum(1.0, write))
    stall = [
        s if access.direction == "read" else s * (1.0 - waiting)
        for access, s in zip(workload.accesses, share, strict=True)
    ]
    cores = np.minimum(run, float(machine.cores))
    readers = [
        np.maximum(1.0, cores / _places(access, side_by_side, env)) if workload.walks else 1.0
        for access in workload.accesses
    ]
    return Traffic(
        l2,
        port,
        share,
        stall,
        latency,
        readers,
        missed,
        [tile * share for tile, share in zip(tile_bytes, missed, strict=True)],
        read,
        write,
        first,
        l2_read,
        l2_write,
        atomic,
        cost,
        fabric,
    )


def _places(access: Access, side_by_side: Mapping[str, Array], env: Mapping[str, Any]) -> Array:
    """How many different tiles the blocks of a wave want of an access at one time."""
    places: Array = 1.0
    for first in access.region.mins:
        places = places * distinct(first, side_by_side, env)
    return places


def _evicted(
    workload: Workload, access: Access, side_by_side: dict[str, Array], env: Mapping[str, Any]
) -> Array:
    """Bytes that the blocks of one wave read again after they have left the L2.

    A loop that an access does not depend on comes back to the same bytes in every iteration. They are all
    still there if what all blocks touch in one iteration fits what reuse can count on. Every byte beyond it
    pushes out one that would have been found, so that of twice as much nothing is.
    """
    loops = {var: _longest(extent, env) for var, extent in access.loops}
    names = list(loops)
    tensor = workload.program.buffer(access.tensor)
    inner = footprint(access, tensor, side_by_side, env)
    read = inner
    for depth in reversed(range(len(names))):
        trips = loops[names[depth]]
        whole = footprint(access, tensor, side_by_side | {n: loops[n] for n in names[depth:]}, env)
        touched: dict[str, Array] = {}
        for other in workload.accesses:
            theirs = [var for var, _ in other.loops]
            if theirs[: depth + 1] != names[: depth + 1]:
                continue
            below = {var: _longest(extent, env) for var, extent in other.loops[depth + 1 :]}
            part = footprint(other, workload.program.buffer(other.tensor), side_by_side | below, env)
            both = touched.get(other.tensor, 0.0) + part
            touched[other.tensor] = np.minimum(both, _size(workload, other, env))
        walked = np.maximum(1.0, sum(touched.values()))
        lost = np.clip(2.0 * (1.0 - workload.machine.l2_bytes / walked), 0.0, 1.0)
        new = np.minimum(trips, whole / np.maximum(1.0, inner))
        read = read * (new + (trips - new) * lost)
        inner = whole
    return np.maximum(0.0, read - inner)


def _between_dies(
    workload: Workload, tiles: Array, run: Array, waves: Array, env: Mapping[str, Any]
) -> list[Array]:
    """Bytes of each access that come from the memory-side cache, each die's L2 keeping a copy of its own.

    Neighbouring blocks share a die, as libraries deal them (hipBLASLt's mapping by XCC), and walk their
    loops in step. What a die's wave touches survives in its L2 as far as it fits.
    """
    machine = workload.machine
    once, ever = (covered(workload, np.maximum(1.0, n / machine.dies), env) for n in (run, tiles))
    used = np.minimum(machine.dies, run)
    wave_bytes, total_bytes = [], []
    for access in workload.accesses:
        tensor = workload.program.buffer(access.tensor)
        loops = {var: _longest(extent, env) for var, extent in access.loops}
        wave_bytes.append(footprint(access, tensor, once | loops, env))
        total_bytes.append(footprint(access, tensor, ever | loops, env))
    touched = sum(_by_tensor(workload, wave_bytes, env).values())
    survive = np.minimum(1.0, machine.die_bytes / np.maximum(1.0, touched))
    return [
        used * (total + (1.0 - survive) * np.maximum(0.0, waves * wave - total))
        for wave, total in zip(wave_bytes, total_bytes, strict=True)
    ]


def _latency(machine: Machine, access: Access, dram_share: Array, crossed: Array) -> Array:
    """Latency of a tile: its slowest line's, with shares of its lines from other places than the nearest.

    Those are DRAM, another part of the L2 than the core's own, and the cache beside the memory where the
    dies have an L2 each (``crossed``: what does not hit there). Of ``n`` lines, none comes from a place
    that has a ``share`` with probability ``(1 - share) ** n``.
    """
    lines = max(1.0, access.full_bytes / machine.line_bytes)

    def any_of(share: Array) -> Array:
        return 1.0 - (1.0 - np.minimum(1.0, share)) ** lines

    far = machine.l2_far_latency_s - machine.l2_latency_s
    hit = machine.l2_latency_s + far * any_of(1.0 - 1.0 / machine.l2_parts)
    cached = hit
    if machine.dies > 1:
        cached = machine.die_latency_s + (hit - machine.die_latency_s) * any_of(crossed)
    bulk = machine.bulk_copy_s if machine.bulk_copy and access.bulk else 0.0
    return bulk + cached + (machine.dram_latency_s - hit) * any_of(dram_share)


def _longest(extent: Expr, env: Mapping[str, Any]) -> Array:
    """Largest trip count over block classes, at least one."""
    trips = np.atleast_2d(np.asarray(evaluate(extent, env), dtype=np.float64))
    return np.maximum(1.0, np.max(trips, axis=-1, keepdims=True))


def _by_tensor(workload: Workload, touched: list[Array], env: Mapping[str, Any]) -> dict[str, Array]:
    """Bytes of each tensor that its accesses touch together, at most all of it."""
    found: dict[str, Array] = {}
    for access, part in zip(workload.accesses, touched, strict=True):
        both = found.get(access.tensor, 0.0) + part
        found[access.tensor] = np.minimum(both, _size(workload, access, env))
    return found


def _size(workload: Workload, access: Access, env: Mapping[str, Any]) -> Array:
    elements: Array = 1.0
    for extent in workload.program.buffer(access.tensor).shape:
        elements = elements * evaluate(extent, env)
    return elements * access.element_bytes


def _pair(workload: Workload, access: Access, env: Mapping[str, Any]) -> Array:
    """Blocks served by one L2 read: those of a cluster (two, on most chips) where they all need the tile.

    Chips with clusters multicast it (CUTLASS and cuBLAS do so by default on Hopper); the two-core
    matrix instruction of Blackwell splits it between the cores. A block without a partner reads alone.
    """
    name = workload.pair_var
    if not name or not access.loops:
        return 1.0
    if any(isinstance(x, Var) and x.name == name for m in access.region.mins for x in walk(m)):
        return 1.0
    extent = np.maximum(1.0, evaluate(workload.ranges[name], env))
    return extent / np.ceil(extent / workload.machine.cluster_cores)
