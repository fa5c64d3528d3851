"""Blocks that run by the thread: what their threads share, and the order in which teams of them go on."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretile.kernels.ir import Loc
from foretile.simulator.numerics.barriers import Barriers
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.frame import Frame, Tile
from foretile.simulator.numerics.interpret import Machine
from foretile.simulator.numerics.lane_access import threads_of
from foretile.simulator.numerics.ordering import Known, Ordering
from foretile.simulator.numerics.philox import Generators
from foretile.simulator.threads import team_name

OWN = ("local", "var")  # scopes of which every thread has its own


@dataclass(frozen=True)
class Waiting:
    """Why a team does not go on. ``grid``: it waits for the blocks of the whole launch."""

    what: str
    loc: Loc | None
    grid: bool = False


@dataclass
class Named:
    """A hardware barrier: how many threads have come, and how many times it has opened."""

    came: int = 0
    opened: int = 0
    brought: Known | None = None
    told: Known | None = None


@dataclass
class Meeting:
    """Teams that execute one tile operation, or one barrier of the block, together."""

    came: list[int] = field(default_factory=list)
    mask: Any = None
    done: bool = False


@dataclass
class Resident:
    """The blocks of a frame while their threads run.

    ``own``: variables of which every thread has its own, with the thread behind the block axes;
    ``shape``: extents of the block's threads, z, y, x; ``order``: what has to be ordered by barriers, None
    where one team does everything at once.
    """

    machine: Machine
    frame: Frame
    own: dict[str, Tile]
    order: Ordering | None
    teams: list[np.ndarray]
    barriers: dict[str, Barriers] = field(default_factory=dict)
    named: dict[int, Named] = field(default_factory=dict)
    meetings: dict[tuple[int, int], Meeting] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    random: Generators | None = None
    products: list[int] = field(default_factory=list)  # of the matrix engine that works by itself
    before_products: Known = field(init=False)  # what was over when they were started
    progress: int = 0
    grid: int = 0

    def __post_init__(self) -> None:
        program = self.machine.program
        self.threads = program.threads
        self.before_products = Known((0,) * len(self.teams))
        self.wide = threads_of(self.frame, self.threads)
        self.shape = tuple(reversed(program.thread_shape)) or (self.threads,)

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return int(np.prod(self.frame.axes))

    def replicate(self, name: str) -> Tile:
        """A fragment whose copies in the block's threads are about to differ, as each thread's own."""
        tile, axes = self.frame.tiles.pop(name), len(self.frame.axes)
        mine = self.own[name] = Tile(tile.dtype, tile.shape, garbage=tile.garbage)
        if tile.data is not None:
            mine.data = np.expand_dims(tile.data, axes)
        held = tile.written
        mine.written = np.expand_dims(held, axes) if isinstance(held, np.ndarray) else held
        return mine

    def flat(self, value: Any) -> np.ndarray:
        """A value by block, one after the other."""
        return np.broadcast_to(value, self.frame.axes).reshape(-1)

    def having(self, mask: Any) -> np.ndarray | None:
        """In which blocks any of the threads of ``mask`` are; None for all."""
        found = self.flat(mask.any(axis=-1))
        return None if found.all() else found

    def rank_in_cluster(self) -> np.ndarray:
        """Each block's number in its cluster (block axes), x fastest."""
        block, rank, step = self.frame.block, np.zeros_like(self.frame.block), 1
        for extent, size in zip(self.frame.grid, self.machine.program.cluster, strict=False):
            rank = rank + block % extent % size * step
            block, step = block // extent, step * size
        return rank

    def peer(self, rank: Any, loc: Loc | None) -> np.ndarray:
        """The place in the frame of each block's neighbour of that rank in its cluster.

        Raises:
            NumericsError: it does not run together with the block.
        """
        number, mine, step, stride = self.frame.block.copy(), self.frame.block, 1, 1
        rank = np.broadcast_to(rank, self.frame.axes)
        for extent, size in zip(self.frame.grid, self.machine.program.cluster, strict=False):
            at = mine % extent
            number = number + (rank // step % size - at % size) * stride
            mine, step, stride = mine // extent, step * size, stride * extent
        all_of_them = self.frame.block.reshape(-1)
        place = np.searchsorted(all_of_them, number.reshape(-1))
        if np.any(place >= all_of_them.size) or np.any(
            all_of_them[np.minimum(place, all_of_them.size - 1)] != number.reshape(-1)
        ):
            raise NumericsError("a block of the cluster is not executed together with its neighbours", loc)
        return place


def play(resident: Resident, runs: list[Generator[Waiting, None, None]]) -> Iterator[None]:
    """Let every team go on until all are through; stops at every barrier of the whole grid.

    Raises:
        NumericsError: no team can go on.
    """
    alive = dict(enumerate(runs))
    while alive:
        before, reasons = resident.progress, {}
        for number, run in list(alive.items()):
            reason = next(run, None)
            if reason is None:
                del alive[number]
                resident.finished.add(number)
                resident.progress += 1
            else:
                reasons[number] = reason
        if not alive or resident.progress != before:
            continue
        if all(r.grid for r in reasons.values()):
            yield
            resident.grid += 1
            continue
        raise _deadlock(resident, reasons)


def _deadlock(resident: Resident, reasons: dict[int, Waiting]) -> NumericsError:
    parts = []
    for number, reason in reasons.items():
        where = f" at {reason.loc}" if reason.loc else ""
        parts.append(f"threads {team_name(resident.teams[number])} wait{where} {reason.what}")
    text = "deadlock: " if len(parts) > 1 or resident.finished else "nothing ends this wait: "
    return NumericsError(text + "; ".join(parts), next(iter(reasons.values())).loc)
