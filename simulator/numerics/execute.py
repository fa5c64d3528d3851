"""Running tile programs on the CPU with the arithmetic of a chip."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretile.kernels.expr import Const, evaluate
from foretile.kernels.ir import (
    AtomicAdd,
    Buffer,
    Copy,
    CumSum,
    Fill,
    Reduce,
    Store,
    TileProgram,
    walk_stmts,
)
from foretile.simulator.numerics.aliases import Alias, aliases_of, return_tensor, view_tensor
from foretile.simulator.numerics.counts import Counts
from foretile.simulator.numerics.defined import defined
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.formats import carrier, decode, encode, storage
from foretile.simulator.numerics.frame import Frame, Tile
from foretile.simulator.numerics.interpret import Machine
from foretile.simulator.numerics.launch import launch
from foretile.simulator.numerics.layouts import as_in_memory, as_indexed, places_in_memory
from foretile.simulator.numerics.products import Accumulation
from foretile.simulator.numerics.sizes import dimensions
from foretile.simulator.numerics.tensors import GlobalTensor
from foretile.simulator.threads import by_thread

_CHUNK_BYTES = 96 << 20  # on-chip buffers of the blocks that run together
Progress = Callable[[int, int], None]  # blocks done, blocks in all


@dataclass(frozen=True)
class Executed:
    """What execution left in global memory.

    ``tensors``: every tensor by name, in its storage type; ``written``: by element, for those that were
    not given; ``blocks``: how many were run; ``undefined``: by element, where a tensor that was given depends
    on values that nothing has written; ``trips``: by line of the source, how often a loop that the
    kernel's own values decide ran each time a block came to it (of a branch, the share that took it).
    """

    tensors: dict[str, np.ndarray]
    written: dict[str, np.ndarray]
    blocks: int
    undefined: dict[str, np.ndarray] = field(default_factory=dict)
    trips: dict[int, float] = field(default_factory=dict)


def execute(
    programs: TileProgram | Sequence[TileProgram],
    tensors: Mapping[str, np.ndarray],
    *,
    outputs: Sequence[str] | None = None,
    dims: Mapping[str, int | float] | None = None,
    blocks: int | None = None,
    seed: int = 0,
    accumulation: Mapping[str, Accumulation] | None = None,
    progress: Progress | None = None,
) -> Executed:
    """Run programs one after the other on ``tensors`` (by name, in storage types; they are not changed).

    Tensors that are not given start as zeros if another launch made them (workspace), and count as
    never written if they are ``outputs`` (default: all that are not given). Symbolic dimensions take
    their sizes from the tensors' shapes, or from ``dims``, which also gives
    parameters that are numbers. ``blocks`` runs only so many blocks of each
    launch, drawn with ``seed``; results of the others are missing. ``accumulation``: reduced
    accumulation of the matrix engine by operand dtype, default exact single precision.

    Raises:
        NumericsError: operands that do not fit, or a program that does what a chip leaves undefined.
    """
    launches = (programs,) if isinstance(programs, TileProgram) else tuple(programs)
    for name, array in tensors.items():
        if not isinstance(array, np.ndarray):
            kind = f"{type(array).__module__}.{type(array).__name__}"
            raise NumericsError(f"{name} is a {kind}; a NumPy array is needed", launches[0].loc)
    memory: dict[str, GlobalTensor] = {}
    bound = dimensions(launches, tensors, dims or {})
    wanted = set(outputs) if outputs is not None else None
    grids = [tuple(int(evaluate(e, bound)) for e in program.grid) for program in launches]
    loose: dict[str, np.ndarray] = {}
    counts = Counts()
    total = sum(min(blocks or n, n) for n in (int(np.prod(g)) for g in grids))
    done = 0
    for program, grid in zip(launches, grids, strict=True):
        for parameter in program.params:
            _allocate(parameter, tensors, bound, wanted, memory, program)
        workspace = [b for b in program.buffers if b.scope == "global" and not b.alias]
        for b in workspace:
            _allocate(b, {}, bound, {b.name}, memory, program)
        places = places_in_memory(program, {n: t.data.shape for n, t in memory.items()}, bound)
        _reorder(memory, loose, places, as_indexed)
        written = buffers_written(program)
        shapes = {b.name: _tile_shape(b, bound) for b in program.buffers}
        aliases = aliases_of(program, bound)
        written |= {a.base for name, a in aliases.items() if name in written}
        for name, tensor in memory.items():
            tensor.new_launch(changes=name in written)
        for name, alias in aliases.items():
            if alias.base in memory:
                memory[name] = view_tensor(name, alias, memory[alias.base], writes=alias.base in written)

        def run(
            garbage: int | None,
            program: TileProgram = program,
            grid: tuple[int, ...] = grid,
            shapes: Mapping[str, tuple[int, ...]] = shapes,
            aliases: Mapping[str, Alias] = aliases,
            before: int = done,
        ) -> int:
            machine = Machine(program, memory, accumulation or {}, shapes, aliases, garbage, counts=counts)
            frames = _frames(program, grid, bound, blocks, seed, garbage)
            through = 0
            for frame in launch(machine, frames) if by_thread(program) else _in_order(machine, frames):
                through += frame.block.size
                if progress is not None:
                    progress(before + through, total)
            return through

        with np.errstate(all="ignore"):
            done += defined(memory, written, run, loose)
        for name, alias in aliases.items():
            if name in memory:
                return_tensor(alias, memory[alias.base], memory.pop(name))
        _reorder(memory, loose, places, as_in_memory)
        for b in workspace:
            del memory[b.name]
    flagged = {name: t.written for name, t in memory.items() if t.written is not None}
    if blocks is None:
        for name, flags in flagged.items():
            if not flags.all():
                where = ", ".join(str(int(i)) for i in np.argwhere(~flags)[0])
                missing = int(flags.size - np.count_nonzero(flags))
                raise NumericsError(
                    f"{name}[{where}] was never written ({missing} of {flags.size} elements were not)",
                    launches[-1].loc,
                )
    return Executed(
        {n: encode(t.data, t.dtype) for n, t in memory.items()}, flagged, done, loose, counts.means()
    )


def _reorder(
    memory: Mapping[str, GlobalTensor],
    loose: dict[str, np.ndarray],
    places: Mapping[str, np.ndarray],
    order: Callable[[np.ndarray | None, np.ndarray], np.ndarray | None],
) -> None:
    """Put tensors with an annotated layout into another order, with what is known of their elements."""
    for name, place in places.items():
        tensor = memory[name]
        data, tensor.written = order(tensor.data, place), order(tensor.written, place)
        assert data is not None
        tensor.data, tensor.writer = data, None
        tensor.padded.clear()
        if (flags := order(loose.get(name), place)) is not None:
            loose[name] = flags


def _in_order(machine: Machine, frames: Iterator[Frame]) -> Iterator[Frame]:
    """Run the blocks of each frame; yields those that are through."""
    for frame in frames:
        machine.run(machine.program.body, frame)
        yield frame


def buffers_written(program: TileProgram) -> set[str]:
    """Names of the buffers that a program writes."""
    found = set()
    for s in walk_stmts(program.body):
        if isinstance(s, Store):
            found.add(s.buffer)
            found |= {s.previous.buffer} if s.previous is not None else set()
        elif isinstance(s, Copy | Fill | Reduce | CumSum | AtomicAdd):
            found.add(s.dst.buffer)
    return found


def _allocate(
    parameter: Buffer,
    tensors: Mapping[str, np.ndarray],
    bound: Mapping[str, Any],
    outputs: set[str] | None,
    memory: dict[str, GlobalTensor],
    program: TileProgram,
) -> None:
    name = parameter.name
    shape = tuple(int(evaluate(e, bound)) for e in parameter.shape)
    known = memory.get(name)
    if known is not None:
        if known.data.shape != shape or known.dtype != parameter.dtype:
            raise NumericsError(
                f"{program.name} takes {name} as {parameter.dtype} of {shape}; "
                f"an earlier launch has it as {known.dtype} of {known.data.shape}",
                program.loc,
            )
        return
    outside = next((float(v) for k, v in program.annotations if k == f"safe_value:{name}"), 0.0)
    given = tensors.get(name)
    if given is None:
        written = np.zeros(shape, dtype=bool) if outputs is None or name in outputs else None
        memory[name] = GlobalTensor(
            name, parameter.dtype, np.zeros(shape, carrier(parameter.dtype)), written, outside=outside
        )
        return
    if given.shape != shape:
        raise NumericsError(f"{name} is {given.shape}; {program.name} takes {shape}", program.loc)
    if given.dtype != storage(parameter.dtype):
        raise NumericsError(
            f"{name} holds {given.dtype}; {program.name} takes {storage(parameter.dtype)}",
            program.loc,
        )
    data = np.ascontiguousarray(decode(given, parameter.dtype))
    if np.shares_memory(data, given):
        data = data.copy()
    memory[name] = GlobalTensor(name, parameter.dtype, data, outside=outside)


def _frames(
    program: TileProgram,
    grid: tuple[int, ...],
    bound: Mapping[str, Any],
    blocks: int | None,
    seed: int,
    garbage: int | None,
) -> Iterator[Frame]:
    """The launch in pieces whose on-chip buffers fit the memory set aside for them."""
    held = [b for b in program.buffers if b.scope not in ("global", "barrier") and not b.alias]
    sizes = [_tile_shape(b, bound) for b in held]
    threads = program.threads if program.thread_vars else 1
    one = sum(
        int(np.prod(n)) * carrier(b.dtype).itemsize * (threads if b.scope in ("local", "var") else 1)
        for b, n in zip(held, sizes, strict=True)
    )
    most = max(1, _CHUNK_BYTES // max(1, one))
    count = int(np.prod(grid))
    names = [v.name for v in program.block_vars]

    def frame(axes: tuple[int, ...], block: np.ndarray, indices: list[np.ndarray]) -> Frame:
        env: dict[str, Any] = {**bound, **dict(zip(names, indices, strict=True))}
        tiles = {b.name: Tile(b.dtype, n, garbage=garbage) for b, n in zip(held, sizes, strict=True)}
        return Frame(axes, env, block, grid, tiles)

    if blocks is not None and blocks < count:
        chosen = np.sort(np.random.default_rng(seed).choice(count, size=blocks, replace=False))
        for first in range(0, blocks, most):
            block = chosen[first : first + most]
            yield frame(block.shape, block, _indices(block, grid))
        return
    for ranges in _pieces(grid, most):
        axes = tuple(len(r) for r in reversed(ranges))
        own = [
            r.reshape([-1 if d == len(grid) - 1 - i else 1 for d in range(len(grid))])
            for i, r in enumerate(ranges)
        ]
        number: Any = 0
        for r, extent in zip(reversed(own), reversed(grid), strict=True):
            number = number * extent + r
        yield frame(axes, np.broadcast_to(number, axes), own)


def _tile_shape(b: Buffer, bound: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(e.value) if isinstance(e, Const) else int(evaluate(e, bound)) for e in b.shape)


def _indices(block: np.ndarray, grid: tuple[int, ...]) -> list[np.ndarray]:
    found = []
    for extent in grid:
        found.append(block % extent)
        block = block // extent
    return found


def _pieces(grid: tuple[int, ...], most: int) -> Iterator[list[np.ndarray]]:
    """Boxes of at most ``most`` blocks, cut along the slowest axes first; ranges by axis, x first."""
    sizes = list(grid)
    for d in reversed(range(len(grid))):
        others = int(np.prod(sizes[:d], dtype=np.int64))
        sizes[d] = max(1, min(grid[d], most // others)) if others <= most else 1
        if sizes[d] > 1 or d == 0:
            break

    def walk(d: int) -> Iterator[list[np.ndarray]]:
        if d < 0:
            yield []
            return
        for first in range(0, grid[d], sizes[d]):
            piece = np.arange(first, min(grid[d], first + sizes[d]))
            for rest in walk(d - 1):
                yield [*rest, piece]

    yield from walk(len(grid) - 1)
