"""Matrix products of tiles: plain, and with operands that the matrix engine scales by groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from foretile.kernels.allocations import place_of
from foretile.kernels.errors import fail, here
from foretile.kernels.expr import Const, Expr, Load, binary
from foretile.kernels.handles import ONE, BufferHandle, region_of
from foretile.kernels.hints import hints
from foretile.kernels.ir import Gemm, Region
from foretile.kernels.messages import shape_text, text
from foretile.kernels.tracer import current
from foretile.kernels.values import Value, index_expr, operand


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
    call: str,
    A: Any,
    B: Any,
    C: Any,
    transpose_A: bool,
    transpose_B: bool,
    policy: str,
    clear_accum: Any,
    two_blocks: Any = False,
) -> tuple[BufferHandle, Gemm, tuple[Expr, Expr, Expr]]:
    """The checked product of tiles, with the handle of ``C`` and the extents M, N and K."""
    a_handle, a, (a0, a1) = _matrix(A, "A", call)
    b_handle, b, (b0, b1) = _matrix(B, "B", call)
    c_handle, c, (m, n) = _matrix(C, "C", call)
    if c_handle.kind not in ("fragment", "local", "tmem"):
        fail(
            f"C of {call} must be a fragment (or tensor memory), {c_handle.name} is in scope "
            f"{c_handle.kind}; use T.alloc_fragment"
        )
    am, ak = (a1, a0) if transpose_A else (a0, a1)
    bk, bn = (b1, b0) if transpose_B else (b0, b1)
    if two_blocks and isinstance(bn, Const):  # each of two blocks holds half of B
        bn = Const(2 * int(bn.value))
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
    clear_if: Expr | None = None
    if isinstance(clear_accum, Value):
        clear_if, clear_accum = operand(clear_accum)[0], False
    flags = (bool(transpose_A), bool(transpose_B), bool(clear_accum))
    product = Gemm(a, b, c, *flags, policy, clear_if=clear_if, loc=here())
    return c_handle, product, (m, n, ak)


def gemm(
    A: Any,
    B: Any,
    C: Any,
    transpose_A: bool = False,
    transpose_B: bool = False,
    policy: str = GemmWarpPolicy.Square,
    clear_accum: Any = False,
    k_pack: int = 1,
    wg_wait: int = 0,
    mbar: Any = None,
    annotations: Any = None,
    **given: Any,
) -> None:
    """``C += op(A) @ op(B)``, or ``C = …`` with ``clear_accum``; ``C`` is a fragment."""
    handle, product, _ = _product("T.gemm", A, B, C, transpose_A, transpose_B, policy, clear_accum)
    noted = hints(annotations, k_pack=k_pack if k_pack != 1 else None, **given)
    made = replace(product, barrier=_barrier(mbar), wait=wg_wait or None, hints=noted)
    current("T.gemm").emit(made, handle.name)


def _barrier(mbar: Any) -> Load | None:
    return None if mbar is None else place_of(mbar, "mbar of a product")


def wgmma_gemm(
    A: Any,
    B: Any,
    C: Any,
    transpose_A: bool = False,
    transpose_B: bool = False,
    policy: str = GemmWarpPolicy.Square,
    clear_accum: Any = False,
    annotations: Any = None,
    **given: Any,
) -> None:
    """A product of a warp group that is done when ``T.wait_wgmma`` has waited for it."""
    call = "T.wgmma_gemm"
    handle, product, _ = _product(call, A, B, C, transpose_A, transpose_B, policy, clear_accum)
    current(call).emit(replace(product, mode="wgmma", hints=hints(annotations, **given)), handle.name)


def tcgen05_gemm(
    A: Any,
    B: Any,
    C: Any,
    transpose_A: bool = False,
    transpose_B: bool = False,
    policy: str = GemmWarpPolicy.Square,
    clear_accum: Any = False,
    *,
    mbar: Any = None,
    use_2cta: Any = None,
    annotations: Any = None,
    **given: Any,
) -> None:
    """A product into tensor memory that arrives at ``mbar`` when done."""
    call = "T.tcgen05_gemm"
    shape = (transpose_A, transpose_B, policy, clear_accum, use_2cta)
    handle, product, _ = _product(call, A, B, C, *shape)
    noted = hints(annotations, use_2cta=use_2cta or None, **given)
    made = replace(product, mode="tcgen05", barrier=_barrier(mbar), hints=noted)
    current(call).emit(made, handle.name)


def gemm_sp(
    A_sparse: Any,
    E: Any,
    B: Any,
    C: Any,
    transpose_A: bool = False,
    transpose_E: bool = False,
    transpose_B: bool = False,
    policy: str = GemmWarpPolicy.Square,
    clear_accum: Any = False,
    wg_wait: int = 0,
    annotations: Any = None,
    **given: Any,
) -> None:
    """``C += A @ op(B)``; of ``A`` two in four elements along the depth are kept, ``E`` says which."""
    call = "T.gemm_sp"
    a_handle, a, (a0, a1) = _matrix(A_sparse, "A", call)
    b_handle, b, (b0, b1) = _matrix(B, "B", call)
    handle, c, (m, n) = _matrix(C, "C", call)
    am, kept = (a1, a0) if transpose_A else (a0, a1)
    depth, bn = (b1, b0) if transpose_B else (b0, b1)
    if am != m or bn != n or depth != binary("mul", kept, Const(2)):
        fail(
            f"{call} shapes do not fit: {a_handle.name} {shape_text((a0, a1))} (half of the depth), "
            f"{b_handle.name} {shape_text((b0, b1))} -> {handle.name} {shape_text((m, n))}"
        )
    _, metadata, _ = _matrix(E, "E", call)
    noted = hints(annotations, transpose_E=transpose_E or None, **given)
    flags = (bool(transpose_A), bool(transpose_B), bool(clear_accum))
    made = Gemm(a, b, c, *flags, policy, wait=wg_wait or None, metadata=metadata, hints=noted, loc=here())
    current(call).emit(made, handle.name)


def _plain_scales(x: Any, rows: Expr, depth: Expr, group: Any) -> bool:
    """Whether there is one scale a row and ``group`` elements of the tile's depth."""
    handle, region = region_of(x, "scales of T.gemm_blockscaled")
    shape = region.extents
    return (
        handle.dtype in _SCALES
        and isinstance(depth, Const)
        and len(shape) == 2
        and shape[0] == rows
        and shape[1] == Const(int(depth.value) // int(group))
    )


def _scales(x: Any, name: str, rows: Expr, depth: Expr, given: Mapping[str, Any]) -> Region:
    """The scales of an operand of ``rows`` × ``depth``: one a row and group of the depth."""
    call = "T.gemm_blockscaled"
    group = given.get(f"sf_{name[-1].lower()}_granularity_k")
    if group is not None and not _plain_scales(x, rows, depth, group):  # packed as the instruction wants them
        return region_of(x, f"{name} of {call}")[1]
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
    clear_accum: Any = False,
    *,
    k_start: Any = None,
    annotations: Any = None,
    **given: Any,
) -> None:
    """``C += (op(A) · SFA) @ (op(B) · SFB)``: the matrix engine scales groups of the depth.

    ``SFA`` is (M, K / group) and ``SFB`` (N, K / group), whatever is transposed; the groups of A and B may
    differ. nvfp4 is float4_e2m1 with float8_e4m3 scales of 16, the MX formats have float8_e8m0 ones of 32.
    """
    call = "T.gemm_blockscaled"
    handle, product, (m, n, k) = _product(call, A, B, C, transpose_A, transpose_B, policy, clear_accum)
    for name, x in (("A", A), ("B", B)):
        operand, _ = region_of(x, f"{name} of {call}")
        if operand.dtype not in _SCALED:
            fail(f"{name} of {call}, {operand.name}, is {operand.dtype}; needed is {' or '.join(_SCALED)}")
    a_scale, b_scale = _scales(SFA, "SFA", m, k, given), _scales(SFB, "SFB", n, k, given)
    for name, scale, rows in (("sf_a_granularity_k", SFA, m), ("sf_b_granularity_k", SFB, n)):
        if name in given and _plain_scales(scale, rows, k, given[name]):
            del given[name]  # the shapes say it
    start = None if k_start is None else index_expr(k_start, f"k_start of {call}")
    made = replace(product, a_scale=a_scale, b_scale=b_scale, k_start=None if start == Const(0) else start)
    current(call).emit(replace(made, hints=hints(annotations, **given)), handle.name)


def tcgen05_gemm_blockscaled(
    A: Any, B: Any, C: Any, SFA: Any, SFB: Any, *, mbar: Any = None, clear_accum: Any = False, **given: Any
) -> None:
    """As :func:`gemm_blockscaled`, into tensor memory, arriving at ``mbar`` when done."""
    gemm_blockscaled(A, B, C, SFA, SFB, clear_accum=clear_accum, **given)
    tracer = current("T.tcgen05_gemm_blockscaled")
    made = tracer.scopes[-1].pop()
    assert isinstance(made, Gemm)
    tracer.scopes[-1].append(replace(made, mode="tcgen05", barrier=_barrier(mbar)))


__all__ = [
    "GemmWarpPolicy",
    "gemm",
    "gemm_blockscaled",
    "gemm_sp",
    "tcgen05_gemm",
    "tcgen05_gemm_blockscaled",
    "wgmma_gemm",
]
"""The names that are part of the language."""
