"""A small, slow, direct executor of tile programs, and a counter of their matrix work.

It shares nothing with the simulator: every block in turn, every loop in turn, whole tiles as NumPy
arrays, float64 arithmetic rounded where a buffer stores it.
"""

import itertools
from typing import Any

import numpy as np

from foretile.kernels.expr import Expr, evaluate, loads
from foretile.kernels.ir import (
    AtomicAdd,
    Copy,
    Fill,
    For,
    Gemm,
    If,
    Reduce,
    Region,
    Stmt,
    Store,
    TileProgram,
)
from foretile.kernels.operators._common import numpy_dtype

_REDUCE = {"sum": np.sum, "max": np.max}
_COMBINE = {"sum": np.add, "max": np.maximum}


class _Block:
    def __init__(self, tensors: dict[str, np.ndarray], env: dict[str, Any], block: int, blocks: int) -> None:
        self.tensors, self.env, self.block, self.blocks = tensors, env, block, blocks

    def at(self, e: Expr) -> Any:
        env = dict(self.env)
        for load in loads(e):
            env[load.buffer] = self.tensors[load.buffer].astype(np.float64)
        return evaluate(e, env)

    def box(self, r: Region) -> tuple[np.ndarray, tuple[slice, ...], tuple[slice, ...], tuple[int, ...]]:
        """The buffer, the part of the region inside it, the same part of the tile, the tile's shape."""
        buffer = self.tensors[r.buffer]
        mins = [int(self.at(e)) for e in r.mins]
        extents = tuple(int(self.at(e)) for e in r.extents)
        assert len(mins) == buffer.ndim, f"{r.buffer}: rank {len(mins)} region of a rank {buffer.ndim} buffer"
        inside, part = [], []
        for low, extent, size in zip(mins, extents, buffer.shape, strict=True):
            first, last = min(max(low, 0), size), max(min(low + extent, size), 0)
            last = max(first, last)
            inside.append(slice(first, last))
            part.append(slice(first - low, last - low))
        return buffer, tuple(inside), tuple(part), extents

    def read(self, r: Region) -> np.ndarray:
        buffer, inside, part, extents = self.box(r)
        tile = np.zeros(extents)
        tile[part] = buffer[inside].astype(np.float64)
        return tile

    def write(self, r: Region, tile: np.ndarray, add: bool = False) -> None:
        buffer, inside, part, extents = self.box(r)
        assert tile.size == np.prod(extents), f"{r.buffer}: {tile.shape} into {extents}"
        assert [n for n in tile.shape if n > 1] == [n for n in extents if n > 1], f"{r.buffer}: {extents}"
        value = tile.reshape(extents)[part]
        old = buffer[inside].astype(np.float64) if add else 0.0
        buffer[inside] = (old + value).astype(buffer.dtype)

    def run(self, body: tuple[Stmt, ...]) -> None:
        for stmt in body:
            self.step(stmt)

    def step(self, s: Stmt) -> None:
        if isinstance(s, Copy):
            self.write(s.dst, self.read(s.src))
        elif isinstance(s, AtomicAdd):
            self.write(s.dst, self.read(s.src), add=True)
        elif isinstance(s, Gemm):
            a, b = np.squeeze(self.read(s.a)), np.squeeze(self.read(s.b))
            a, b = a.T if s.trans_a else a, b if s.trans_b else b.T  # depth last
            if s.a_scale is not None and s.b_scale is not None:
                a, b = (
                    x * np.repeat(f, x.shape[1] // f.shape[1], axis=1)
                    for x, f in ((a, self.read(s.a_scale)), (b, self.read(s.b_scale)))
                )
            product = a @ b.T
            self.write(s.c, product, add=not s.clear_accum)
        elif isinstance(s, Fill):
            self.write(s.dst, np.full(self.box(s.dst)[3], self.at(s.value)))
        elif isinstance(s, Reduce):
            value = _REDUCE[s.kind](self.read(s.src), axis=s.dim)
            dst_extents = self.box(s.dst)[3]
            value = value.reshape(dst_extents)
            self.write(s.dst, value if s.clear else _COMBINE[s.kind](self.read(s.dst), value))
        elif isinstance(s, Store):
            index = tuple(self.at(e) for e in s.indices)
            buffer = self.tensors[s.buffer]
            value = np.asarray(self.at(s.value)).astype(buffer.dtype)
            # TileLang leaves out what a parallel loop stores beyond a tensor (LegalizeSafeMemoryAccess).
            *places, value = np.broadcast_arrays(*index, value)
            inside = np.all([i < n for i, n in zip(places, buffer.shape, strict=True)], axis=0)
            buffer[tuple(i[inside] for i in places)] = value[inside]
        elif isinstance(s, For):
            self.loop(s)
        elif isinstance(s, If):
            self.run(s.then if self.at(s.cond) else s.orelse)
        else:
            raise AssertionError(f"the oracle does not know {type(s).__name__}")

    def loop(self, s: For) -> None:
        extents = [int(self.at(e)) for e in s.extents]
        start = int(self.at(s.start)) if s.start is not None else 0
        names = [v.name for v in s.vars]
        assert all(n >= 0 for n in extents), f"negative trip count: {extents}"
        if s.kind == "parallel":
            grids = np.meshgrid(*(np.arange(n) for n in extents), indexing="ij")
            self.env.update(zip(names, grids, strict=True))
            self.run(s.body)
            return
        points = list(itertools.product(*(range(n) for n in extents)))
        if s.kind == "persistent":
            group = max(1, s.group_size)
            points.sort(key=lambda p: (p[0] // group, p[1:], p[0]))
            points = points[self.block :: self.blocks]
        for point in points:
            index = point if len(point) > 1 else (start + s.step * point[0],)
            self.env.update(zip(names, index, strict=True))
            self.run(s.body)


def execute(
    programs: TileProgram | tuple[TileProgram, ...],
    inputs: dict[str, np.ndarray],
    tensors: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """All global tensors after running ``programs`` in order; ``tensors`` go in as they are."""
    globals_: dict[str, np.ndarray] = {**(tensors or {}), **inputs}
    for program in programs if isinstance(programs, tuple) else (programs,):
        for p in program.params:
            shape = tuple(int(evaluate(e, {})) for e in p.shape)
            array = globals_.setdefault(p.name, np.zeros(shape, numpy_dtype(p.dtype)))
            assert array.shape == shape, f"{p.name}: {array.shape}, the program takes {shape}"
            assert array.dtype == numpy_dtype(p.dtype), f"{p.name}: {array.dtype} is not {p.dtype}"
        grid = [int(evaluate(e, {})) for e in program.grid]
        for number, index in enumerate(itertools.product(*(range(n) for n in reversed(grid)))):
            env = dict(zip((v.name for v in program.block_vars), reversed(index), strict=True))
            on_chip = {
                b.name: np.zeros(tuple(int(evaluate(e, {})) for e in b.shape), numpy_dtype(b.dtype))
                for b in program.buffers
            }
            with np.errstate(all="ignore"):
                _Block({**globals_, **on_chip}, env, number, int(np.prod(grid))).run(program.body)
    return globals_


def gemm_flops(programs: TileProgram | tuple[TileProgram, ...], **dims: int) -> int:
    """2·M·N·K of every matrix statement, times its trips, summed over the grid."""
    total = 0
    for program in programs if isinstance(programs, tuple) else (programs,):
        grid = [int(evaluate(e, dims)) for e in program.grid]
        axes = np.meshgrid(*(np.arange(n) for n in grid), indexing="ij")
        names = (v.name for v in program.block_vars)
        env = {**dims, **{name: axis.ravel() for name, axis in zip(names, axes, strict=True)}}
        total += round(float(_gemm_flops(program, program.body, env, np.ones(int(np.prod(grid))))))
    return total


def _gemm_flops(
    program: TileProgram, body: tuple[Stmt, ...], env: dict[str, Any], trips: np.ndarray
) -> float:
    total = 0.0
    for s in body:
        if isinstance(s, Gemm):
            rows_of_a = [int(evaluate(e, {})) for e in s.a.extents]
            c = [int(evaluate(e, {})) for e in s.c.extents]
            depth = rows_of_a[-2] if s.trans_a else rows_of_a[-1]
            total += 2 * c[-1] * c[-2] * depth * float(trips.sum())
        elif isinstance(s, For) and s.kind != "parallel":
            count: Any = 1
            for e in s.extents:
                count = count * evaluate(e, env)
            count = np.broadcast_to(np.asarray(count, dtype=float), trips.shape)
            # The points of a persistent loop are dealt to the blocks: over the grid, each comes once.
            inner = count / trips.size if s.kind == "persistent" else count
            env_inside = {**env, **{v.name: np.zeros(trips.shape, int) for v in s.vars}}
            total += _gemm_flops(program, s.body, env_inside, trips * inner)
    return total
