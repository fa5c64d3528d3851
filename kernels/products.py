"""Matrix products of tiles: plain, and with operands that the matrix engine scales by groups."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foretile.kernels.errors import fail, here
from foretile.kernels.expr import Const, Expr
from foretile.kernels.handles import ONE, BufferHandle, region_of
from foretile.kernels.ir import Gemm, Region
from foretile.kernels.messages import shape_text, text
from foretile.kernels.tracer import current
from foretile.kernels.values import Value


class GemmWarpPolicy:
    """How the warps of a block share a matrix product."""

    Square = "square"
    FullRow = "full_row"
    FullCol = "full_col"


_POLICIES = ("square", "full_row", "full_col")
_SCALED = ("float8_e4m3", "float8_e5m2", "float4_e2m1")
_SCALES = ("float8_e4m3", "float8_e8m0")
_SCALE_STEP = 16  # elements of the depth: the smallest group that block-scaled instructions know


def _matrix(x: Any, name: str, call: str) -> tuple[BufferHandle, Region, tuple[Expr, Expr]]:
    handle, region = region_of(x, f"{name} of {call}")
    if handle.kind in ("global", "var"):
        fail(
            f"{name} of {call} is the {handle.kind} buffer {handle.name}; copy it to a shared or "
            f"fragment tile first"
        )
    extents = region.extents
    while len(extents) > 2 and extents[0] == ONE:
        extents = extents[1:]
    if len(extents) != 2:
        fail(f"{name} of {call} must be a matrix, {handle.name} is {shape_text(region.extents)}")
    return handle, region, (extents[0], extents[1])


def _product(
    call: str, A: Any, B: Any, C: Any, transpose_A: bool, transpose_B: bool, policy: str, clear_accum: bool
) -> tuple[BufferHandle, Gemm, tuple[Expr, Expr, Expr]]:
    """The checked product of tiles, with the handle of ``C`` and the extents M, N and K."""
    a_handle, a, (a0, a1) = _matrix(A, "A", call)
    b_handle, b, (b0, b1) = _matrix(B, "B", call)
    c_handle, c, (m, n) = _matrix(C, "C", call)
    if c_handle.kind not in ("fragment", "local"):
        fail(
            f"C of {call} must be a fragment, {c_handle.name} is in scope {c_handle.kind}; "
            f"use T.alloc_fragment"
        )
    am, ak = (a1, a0) if transpose_A else (a0, a1)
    bk, bn = (b1, b0) if transpose_B else (b0, b1)
    if am != m or ak != bk or bn != n:
        fail(
            f"{call} shapes do not fit: {a_handle.name} {shape_text((a0, a1))}"
            f"{' transposed' if transpose_A else ''} @ {b_handle.name} {shape_text((b0, b1))}"
            f"{' transposed' if transpose_B else ''} -> {c_handle.name} {shape_text((m, n))} "
            f"(transpose_A={bool(transpose_A)}, transpose_B={bool(transpose_B)}); needed are "
            f"{'(K, M)' if transpose_A else '(M, K)'} @ {'(N, K)' if transpose_B else '(K, N)'} -> (M, N)"
        )
    if policy not in _POLICIES:
        fail(f"policy {policy!r} of {call}; use T.GemmWarpPolicy.Square, FullRow or FullCol")
    if isinstance(clear_accum, Value):
        fail(f"clear_accum of {call} must be True or False; for a condition use `if` and T.clear")
    product = Gemm(a, b, c, bool(transpose_A), bool(transpose_B), bool(clear_accum), policy, loc=here())
    return c_handle, product, (m, n, ak)


def gemm(
    A: Any,
    B: Any,
    C: Any,
    transpose_A: bool = False,
    transpose_B: bool = False,
    policy: str = GemmWarpPolicy.Square,
    clear_accum: bool = False,
    k_pack: int = 1,
    wg_wait: int = 0,
    mbar: Any = None,
) -> None:
    """``C += op(A) @ op(B)``, or ``C = …`` with ``clear_accum``; ``C`` is a fragment."""
    handle, product, _ = _product("T.gemm", A, B, C, transpose_A, transpose_B, policy, clear_accum)
    if mbar is not None:
        fail("mbar of T.gemm (explicit barriers) is not supported")
    current("T.gemm").emit(product, handle.name)


def _scales(x: Any, name: str, rows: Expr, depth: Expr) -> Region:
    """The scales of an operand of ``rows`` × ``depth``: one a row and group of the depth."""
    call = "T.gemm_blockscaled"
    handle, region, (m, groups) = _matrix(x, name, call)
    if handle.dtype not in _SCALES:
        fail(f"{name} of {call} is {handle.dtype}; scales are {' or '.join(_SCALES)}")
    if not isinstance(depth, Const) or not isinstance(groups, Const):
        fail(f"{name} of {call} and the depth must have constant extents")
    k, g = int(depth.value), int(groups.value)
    if m != rows or k % (g * _SCALE_STEP):
        fail(
            f"{name} of {call}, {handle.name} {shape_text((m, groups))}, does not go with {text(rows)} "
            f"rows of {k}: needed is a scale for each row and equal group of the depth, a multiple of "
            f"{_SCALE_STEP}"
        )
    return region


def gemm_blockscaled(
    A: Any,
    B: Any,
    C: Any,
    SFA: Any,
    SFB: Any,
    transpose_A: bool = False,
    transpose_B: bool = False,
    policy: str = GemmWarpPolicy.Square,
    clear_accum: bool = False,
    *,
    k_start: int = 0,
    sf_a_granularity_k: int | None = None,
    sf_b_granularity_k: int | None = None,
) -> None:
    """``C += (op(A) · SFA) @ (op(B) · SFB)``: the matrix engine scales groups of the depth.

    ``SFA`` is (M, K / group) and ``SFB`` (N, K / group), whatever is transposed; the groups of A and B may
    differ. nvfp4 is float4_e2m1 with float8_e4m3 scales of 16, the MX formats have float8_e8m0 ones of 32.
    The scales are those of this tile, so ``k_start`` is 0; the granularities are the groups, if given.
    """
    call = "T.gemm_blockscaled"
    handle, product, (m, n, k) = _product(call, A, B, C, transpose_A, transpose_B, policy, clear_accum)
    for name, x in (("A", A), ("B", B)):
        operand, _ = region_of(x, f"{name} of {call}")
        if operand.dtype not in _SCALED:
            fail(f"{name} of {call}, {operand.name}, is {operand.dtype}; needed is {' or '.join(_SCALED)}")
    a_scale, b_scale = _scales(SFA, "SFA", m, k), _scales(SFB, "SFB", n, k)
    if k_start != 0:
        fail(f"k_start={k_start!r} of {call}: the scales are those of the tile, which begins at 0")
    for side, scale, given in (("a", a_scale, sf_a_granularity_k), ("b", b_scale, sf_b_granularity_k)):
        groups = scale.extents[-1]
        assert isinstance(k, Const)
        assert isinstance(groups, Const)
        if given is not None and given * groups.value != k.value:
            fail(
                f"sf_{side}_granularity_k={given} of {call}: {groups.value} scales of {k.value} elements "
                f"are one for each {int(k.value) // int(groups.value)}"
            )
    current(call).emit(replace(product, a_scale=a_scale, b_scale=b_scale), handle.name)
