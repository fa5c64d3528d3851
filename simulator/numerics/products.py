"""Matrix products of tiles, for all blocks at once.

Blocks that share an operand become one product: where A depends on some block axes and B on others,
their rows and columns are laid side by side, so that a grid of small tiles is multiplied as a few
large matrices. Products of narrow types are exact in the accumulator's type; sums are rounded as
BLAS orders them, which is one of the orders a chip may take.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from foretile.simulator.numerics.frame import Tile

_DEEP = 512  # products are put off until they are this deep together: BLAS is at its best then


@dataclass(frozen=True)
class Accumulation:
    """How a matrix engine adds up the products of one instruction.

    ``fraction_bits``: bits kept below the leading one of the largest addend when the ``depth`` products of
    an instruction and the accumulator are aligned and summed; what is below is cut off.
    """

    fraction_bits: int
    depth: int


@dataclass(frozen=True)
class _Plan:
    """Block axes by role: on which both operands depend, only A, only B."""

    shared: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def a_order(self, axes: int) -> tuple[int, ...]:
        idle = tuple(d for d in range(axes) if d not in (*self.shared, *self.rows))
        return (*idle, *self.shared, *self.rows, axes, axes + 1)

    def b_order(self, axes: int) -> tuple[int, ...]:
        idle = tuple(d for d in range(axes) if d not in (*self.shared, *self.columns))
        return (*idle, *self.shared, axes, *self.columns, axes + 1)


@cache
def _plan(a_lead: tuple[int, ...], b_lead: tuple[int, ...]) -> _Plan:
    roles: dict[str, list[int]] = {"shared": [], "rows": [], "columns": []}
    for d, (n, m) in enumerate(zip(a_lead, b_lead, strict=True)):
        if n > 1 or m > 1:
            roles["shared" if n > 1 and m > 1 else "rows" if n > 1 else "columns"].append(d)
    return _Plan(*(tuple(roles[name]) for name in ("shared", "rows", "columns")))


@dataclass
class Product:
    """An accumulator of ``(s, rows, columns)`` with the block axes that its rows and columns hold."""

    plan: _Plan
    lead: tuple[int, ...]
    m: int
    n: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Matrices (one for each combination of the shared axes), rows, columns."""
        shared, rows, columns = (
            int(np.prod([self.lead[d] for d in axes], dtype=np.int64))
            for axes in (self.plan.shared, self.plan.rows, self.plan.columns)
        )
        return shared, rows * self.m, columns * self.n

    def unpack(self, packed: np.ndarray) -> np.ndarray:
        """The packed matrix as a view with block axes first, then (m, n)."""
        p = self.plan
        sizes = [self.lead[d] for d in (*p.shared, *p.rows)] + [self.m]
        sizes += [self.lead[d] for d in p.columns] + [self.n]
        where = [*p.shared, *p.rows, -1, *p.columns, -2]
        idle = [d for d in range(len(self.lead)) if self.lead[d] == 1]
        found = packed.reshape([1] * len(idle) + sizes)
        where = idle + where
        order = [where.index(d) for d in range(len(self.lead))]
        return found.transpose([*order, where.index(-1), where.index(-2)])


def accumulate(tile: Tile, a: np.ndarray, b: np.ndarray, *, clear: bool, short: Accumulation | None) -> None:
    """``tile (+)= a @ b``; ``a`` is (block axes, M, K), ``b`` (block axes, K, N), carriers of exact values.

    ``short``: the engine's reduced accumulation, if it is to be modelled.
    """
    axes = a.ndim - 2
    lead = np.broadcast_shapes(a.shape[:axes], b.shape[:axes])
    product = Product(_plan(a.shape[:axes], b.shape[:axes]), lead, a.shape[-2], b.shape[-1])
    signature = (*lead, *product.plan.rows, -1, *product.plan.columns, product.m, product.n)
    fresh = clear or tile.zero
    s, rows, columns = product.shape
    kind = _compute_type(a.dtype, b.dtype)
    a3 = np.ascontiguousarray(a.transpose(product.plan.a_order(axes)), dtype=kind).reshape(s, rows, -1)
    b3 = np.ascontiguousarray(b.transpose(product.plan.b_order(axes)), dtype=kind).reshape(s, -1, columns)
    if (
        short is None
        and not fresh
        and isinstance(tile.pending, _Later)
        and tile.pending.signature == signature
    ):
        tile.pending.add(a3, b3)
        return
    target = tile.held.dtype if tile.held is not None else np.dtype(np.float32)
    if short is None and fresh and kind == target:
        tile.set(np.empty(0, target), owned=True)
        tile.pending = _Later(tile, product, signature, [(a3, b3)])
        return
    if not fresh and tile.data is not None:
        wide = np.broadcast_shapes(lead, tile.data.shape[:axes])
        if wide != lead:  # the sum tells blocks apart that the operands do not
            accumulate(tile, np.broadcast_to(a, (*wide, *a.shape[-2:])), b, clear=False, short=short)
            return
    old = None if fresh or tile.data is None else _packed(tile, product)
    if short is not None:
        result = _short_sum(old, a3, b3, short)
    else:
        result = np.matmul(a3, b3)
        result = result if old is None else result.astype(target, copy=False) + old
    tile.set(product.unpack(result.astype(target, copy=False)), owned=True)


@dataclass
class _Later:
    """Products into one accumulator that are put off and added as one, deep one."""

    tile: Tile
    product: Product
    signature: tuple[int, ...]
    parts: list[tuple[np.ndarray, np.ndarray]]
    total: np.ndarray | None = None

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        self.parts.append((a, b))
        if sum(p.shape[-1] for p, _ in self.parts) >= _DEEP:
            self._multiply()

    def _multiply(self) -> None:
        a, b = (
            np.concatenate(side, axis=axis)
            for side, axis in zip(zip(*self.parts, strict=True), (2, 1), strict=True)
        )
        self.parts.clear()
        if self.total is None:
            self.total = np.matmul(a, b)
        else:
            _add_product(self.total, a, b)

    def __call__(self) -> None:
        if self.parts:
            self._multiply()
        assert self.total is not None
        self.tile.data = self.product.unpack(self.total)


def _packed(tile: Tile, product: Product) -> np.ndarray:
    """The accumulator's values in the product's layout."""
    assert tile.data is not None
    p = product.plan
    axes = len(product.lead)
    wide = np.broadcast_to(tile.data, (*product.lead, product.m, product.n))
    idle = tuple(d for d in range(axes) if product.lead[d] == 1)
    order = (*idle, *p.shared, *p.rows, axes, *p.columns, axes + 1)
    return np.ascontiguousarray(wide.transpose(order)).reshape(product.shape)


def _compute_type(a: np.dtype[Any], b: np.dtype[Any]) -> np.dtype[Any]:
    """The type to multiply in: float64 holds sums of products of 8-bit integers exactly."""
    return np.dtype(np.float32) if a == b == np.float32 else np.dtype(np.float64)


def _add_product(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """``c += a @ b`` without a temporary: BLAS adds to the transposes, which are in its order."""
    from scipy.linalg.blas import dgemm, sgemm

    gemm = sgemm if c.dtype == np.float32 else dgemm
    for i in range(len(c)):
        out = gemm(1.0, b[i].T, a[i].T, beta=1.0, c=c[i].T, overwrite_c=1)
        if not np.shares_memory(out, c):
            c[i] = out.T


def _short_sum(old: np.ndarray | None, a: np.ndarray, b: np.ndarray, how: Accumulation) -> np.ndarray:
    """Sum of products with few fraction bits: addends are aligned to the largest and cut off."""
    s, rows, depth = a.shape
    total = np.zeros((s, rows, b.shape[-1])) if old is None else old.astype(np.float64)
    for first in range(0, depth, how.depth):
        ks = range(first, min(depth, first + how.depth))
        top = np.abs(total)
        for k in ks:
            np.maximum(top, np.abs(a[:, :, k, None].astype(np.float64) * b[:, k, None, :]), out=top)
        _, exponent = np.frexp(top)
        step = np.ldexp(1.0, exponent - 1 - how.fraction_bits)
        total = np.trunc(total / step) * step
        for k in ks:
            total += np.trunc(a[:, :, k, None].astype(np.float64) * b[:, k, None, :] / step) * step
        total = total.astype(np.float32).astype(np.float64)
    return total.astype(np.float32)
