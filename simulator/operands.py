"""Operands for a program that nobody gave any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import Expr, Load, evaluate, walk
from foretile.kernels.ir import AtomicAdd, Buffer, Region, Stmt, Store, TileProgram, walk_stmts
from foretile.simulator.numerics.formats import round_to, storage


def operands(programs: Sequence[TileProgram], seed: int = 0) -> dict[str, np.ndarray]:
    """Values for every tensor that a launch reads before any writes it."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    written: set[str] = set()
    for program in programs:
        reads, writes = _touched(program)
        for p in program.params:
            if p.name in reads and p.name not in written and p.name not in made:
                made[p.name] = _drawn(p, rng)
        written |= writes
    return made


def _drawn(p: Buffer, rng: np.random.Generator) -> np.ndarray:
    shape = tuple(int(evaluate(e, {})) for e in p.shape)
    if DTYPES[p.dtype].kind != "float":
        return np.zeros(shape, storage(p.dtype))
    return round_to(rng.standard_normal(shape), p.dtype).astype(storage(p.dtype))


def _touched(program: TileProgram) -> tuple[set[str], set[str]]:
    """Names of the buffers that are read, and of those that are written."""
    reads: set[str] = set()
    writes: set[str] = set()
    for stmt in walk_stmts(program.body):
        for name, value in _fields(stmt):
            parts = value if isinstance(value, tuple) else (value,)
            for part in parts:
                if isinstance(part, Region):
                    into = name in ("dst", "c") or name == "writes"
                    (writes if into else reads).add(part.buffer)
                    reads |= {n.buffer for e in part.mins for n in walk(e) if isinstance(n, Load)}
                elif isinstance(part, Expr):
                    reads |= {n.buffer for n in walk(part) if isinstance(n, Load)}
        if isinstance(stmt, Store):
            writes.add(stmt.buffer)
        if isinstance(stmt, AtomicAdd) or (isinstance(stmt, Store) and stmt.atomic):
            reads.add(stmt.dst.buffer if isinstance(stmt, AtomicAdd) else stmt.buffer)
    return reads, writes


def _fields(stmt: Stmt) -> list[tuple[str, Any]]:
    return [
        (n, getattr(stmt, n)) for n in stmt.__dataclass_fields__ if n not in ("loc", "body", "then", "orelse")
    ]
