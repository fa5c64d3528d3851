"""What a block does: the statements of a tile program, frozen and typed.

They compare by structure; source locations are carried along but do not take part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from foretile.kernels.expr import Expr, Load, Var

Scope = Literal["global", "shared", "fragment", "local", "var", "barrier", "tmem"]
LoopKind = Literal["serial", "unroll", "vectorized", "parallel", "pipelined", "persistent"]
ReduceKind = Literal["sum", "max", "min", "absmax", "abssum", "bitand", "bitor", "bitxor"]
CopyMode = Literal["", "async", "tma"]
GemmMode = Literal["", "wgmma", "tcgen05"]
Hints = tuple[tuple[str, str], ...]
"""What the author tells the compiler, by name; never a change of what is computed."""


@dataclass(frozen=True, slots=True)
class Loc:
    """A line of the kernel's source."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Buffer:
    """A tensor (scope ``global``) or an on-chip allocation of one block.

    ``shape`` has one expression a dimension, ``dtype`` is a canonical name. Scope ``barrier`` holds
    memory barriers (dtype ``uint64``), ``tmem`` is the tensor memory of a matrix engine; a ``global``
    buffer that is no parameter is workspace of the launch.

    ``strides``: elements between neighbours by dimension, where the tensor is not dense row-major.
    ``alias``: the buffer whose storage this one reads with another shape or element type, from its
    element ``offset`` (in elements of this buffer) on. ``address``: an element that holds where a
    global tensor lies (an entry of a table of pointers), read when the buffer is used.
    """

    name: str
    shape: tuple[Expr, ...]
    dtype: str
    scope: Scope
    strides: tuple[Expr, ...] = ()
    alias: str = ""
    offset: Expr | None = None
    address: Load | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """A box of a buffer: per dimension the first index and the extent (in elements)."""

    buffer: str
    mins: tuple[Expr, ...]
    extents: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stmt:
    """Base of all statements."""

    loc: Loc | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Copy(Stmt):
    """Copy a region to a region, converting the element type; out-of-bounds parts are masked.

    ``mode``: "" is done when the statement is; ``async`` (cp.async) when its group has been waited for;
    ``tma`` (bulk tensor copy) when ``barrier`` has seen its bytes, or, out of shared memory, when
    the store group has been waited for. A ``tma`` load tells its barrier to expect its bytes.
    """

    src: Region
    dst: Region
    mode: CopyMode = ""
    barrier: Load | None = None
    hints: Hints = ()


@dataclass(frozen=True, slots=True)
class Gemm(Stmt):
    """``c (+)= a @ b``; ``a`` is (M, K), or (K, M) with ``trans_a``; ``b`` (K, N), or (N, K).

    With scales, ``a_scale`` (M, K / g) and ``b_scale`` (N, K / g), each ``g`` elements of the depth are
    multiplied by theirs first, by the matrix engine. ``k_start``: where in the whole depth this tile
    begins, if the scales are those of more than this tile.

    ``mode``: "" is done when the statement is; ``wgmma`` leaves the newest ``wait`` products in flight
    (``None``: all, until they are waited for); ``tcgen05`` accumulates in tensor memory and arrives at
    ``barrier`` when done. ``metadata``: ``a`` is 2:4 sparse, these are the places of its elements.
    """

    a: Region
    b: Region
    c: Region
    trans_a: bool = False
    trans_b: bool = False
    clear_accum: bool = False
    policy: str = "square"  # how warps share the tile: square | full_row | full_col
    a_scale: Region | None = None
    b_scale: Region | None = None
    mode: GemmMode = ""
    barrier: Load | None = None
    wait: int | None = None
    metadata: Region | None = None
    k_start: Expr | None = None
    clear_if: Expr | None = None  # a truth value known only at run time: then the sum starts anew
    hints: Hints = ()


@dataclass(frozen=True, slots=True)
class Fill(Stmt):
    """Set every element of a region to ``value``."""

    dst: Region
    value: Expr


@dataclass(frozen=True, slots=True)
class Reduce(Stmt):
    """Reduce ``src`` along ``dim`` into ``dst``; without ``clear`` the old value takes part."""

    kind: ReduceKind
    src: Region
    dst: Region
    dim: int
    clear: bool = True
    hints: Hints = ()


@dataclass(frozen=True, slots=True)
class CumSum(Stmt):
    """Inclusive prefix sum (or maximum) of ``src`` along ``dim`` into ``dst``."""

    src: Region
    dst: Region
    dim: int
    reverse: bool = False
    kind: Literal["sum", "max"] = "sum"


@dataclass(frozen=True, slots=True)
class AtomicAdd(Stmt):
    """Add the region ``src`` to the global region ``dst``, element by element, atomically.

    ``kind``: "add", or the other combinations of atomic stores of tiles, "max" and "min".
    """

    src: Region
    dst: Region
    kind: Literal["add", "max", "min"] = "add"
    hints: Hints = ()


@dataclass(frozen=True, slots=True)
class Store(Stmt):
    """``buffer[indices] = value``; with ``atomic`` a read-modify-write.

    ``atomic``: "add", "max", "min", "and", "or", "xor", or "store" (a plain store that is seen whole).
    Of a fragment that is a reducer (annotation ``reducer:NAME``) it adds to the one logical value.
    ``previous``: the on-chip element that takes what an atomic update found before it.
    """

    buffer: str
    indices: tuple[Expr, ...]
    value: Expr
    atomic: str = ""
    previous: Load | None = None


@dataclass(frozen=True, slots=True)
class Sync(Stmt):
    """A barrier of all threads of the block, or of others.

    ``scope``: ``block`` (or, with ``ident``, the ``threads`` threads that come to the hardware barrier of
    that number), ``warp``, ``cluster`` (blocks of one cluster), ``grid`` (all blocks, which must
    be resident). ``phase``: both arrive and wait, or only the one.
    """

    scope: Literal["block", "warp", "cluster", "grid"] = "block"
    ident: Expr | None = None
    threads: Expr | None = None
    phase: Literal["", "arrive", "wait"] = ""


@dataclass(frozen=True, slots=True)
class For(Stmt):
    """A loop nest over ``vars`` with ``extents`` (one each; ``parallel`` loops may have several).

    ``parallel``: all iterations at once, spread over the block's threads.
    ``vectorized``: in order, by vector instructions of one thread.
    ``pipelined``: ``num_stages`` buffers deep, copies run ahead of the compute.
    ``persistent``: the nest's points (row-major, last variable fastest, or in groups of
    ``group_size`` rows) are dealt to the blocks round robin: block *b* of *B* takes points
    *b*, *b + B*, …

    ``extents`` are trip counts: a one-variable loop runs ``start + step * i`` for ``i`` from 0 to
    ``extent - 1`` (``range(2, 10, 3)`` has start 2, step 3 and extent 3; steps may be negative).
    """

    vars: tuple[Var, ...]
    extents: tuple[Expr, ...]
    kind: LoopKind
    body: tuple[Stmt, ...]
    num_stages: int = 0
    group_size: int = 0
    start: Expr | None = None  # first index of a one-variable loop; None means 0
    step: int = 1
    hints: Hints = ()


@dataclass(frozen=True, slots=True)
class If(Stmt):
    """``then`` where ``cond`` holds, else ``orelse``.

    ``role``: "warp_specialize" where the author marked the branch as the part of some of the warps.
    """

    cond: Expr
    then: tuple[Stmt, ...]
    orelse: tuple[Stmt, ...] = ()
    role: str = ""


@dataclass(frozen=True, slots=True)
class While(Stmt):
    """Repeat ``body`` while ``cond`` (over scalars and bound tensors) holds."""

    cond: Expr
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Im2col(Stmt):
    """The patch matrix of a convolution: rows ``nhw_step`` · M … of it, columns ``c_step`` · K ….

    ``src`` is (N, H, W, C), ``dst`` the (M, K) tile: row = (n, oh, ow), column = (kh, kw, c), all row-major.
    ``kernel``, ``stride``, ``dilation`` and ``padding`` are equal in both directions.
    """

    src: Region
    dst: Region
    nhw_step: Expr
    c_step: Expr
    kernel: int
    stride: int
    dilation: int
    padding: int
    hints: Hints = ()


@dataclass(frozen=True, slots=True)
class Transpose(Stmt):
    """``dst[j, i] = src[i, j]`` of two tiles."""

    src: Region
    dst: Region


@dataclass(frozen=True, slots=True)
class FinalizeReducer(Stmt):
    """The updates of a reducer are complete: its value is there, or in ``dst``."""

    src: Region
    dst: Region | None = None
    hints: Hints = ()


@dataclass(frozen=True, slots=True)
class BarrierArrive(Stmt):
    """This thread arrives at a barrier (of the block ``cta`` of the cluster, if given).

    ``expect_bytes``: bytes that bulk copies still have to bring before the phase completes; with
    ``arrive`` false only these are announced. ``after``: it arrives when the thread's copies
    ("cp_async") or the products issued before ("tcgen05") are done, not now.
    """

    barrier: Load
    expect_bytes: Expr | None = None
    cta: Expr | None = None
    arrive: bool = True
    after: Literal["", "cp_async", "tcgen05"] = ""
    hints: Hints = ()


@dataclass(frozen=True, slots=True)
class BarrierWait(Stmt):
    """Wait until the barrier's phase of this ``parity`` has completed."""

    barrier: Load
    parity: Expr


@dataclass(frozen=True, slots=True)
class AsyncCommit(Stmt):
    """Close the group of asynchronous operations of a ``kind`` issued so far."""

    kind: Literal["cp_async", "tma_store", "wgmma"] = "cp_async"


@dataclass(frozen=True, slots=True)
class AsyncWait(Stmt):
    """Wait until at most ``pending`` groups of a ``kind`` are in flight."""

    kind: Literal["cp_async", "tma_store", "wgmma"]
    pending: Expr


@dataclass(frozen=True, slots=True)
class Jump(Stmt):
    """Leave the innermost loop (``break``), its iteration (``continue``), or end the thread (``return``)."""

    kind: Literal["break", "continue", "return"]


@dataclass(frozen=True, slots=True)
class RandomInit(Stmt):
    """Seed this thread's generator, whose numbers the functions ``rng_rand…`` then give in turn."""

    seed: Expr
    sequence: Expr
    offset: Expr
    generator: str = "curandStatePhilox4_32_10_t"


@dataclass(frozen=True, slots=True)
class Hint(Stmt):
    """A call that changes no value: register budgets, fences, launch dependencies, printing."""

    name: str
    args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Extern(Stmt):
    """A call of code that is opaque here (inline device code, external C, raw instructions).

    ``args`` are its scalar arguments; ``reads`` and ``writes`` the regions it gets pointers to.
    ``source``: the inline code it comes with, if any. It has no numerics, and a time only by a
    cost that the user gives.
    """

    name: str
    args: tuple[Expr, ...] = ()
    reads: tuple[Region, ...] = ()
    writes: tuple[Region, ...] = ()
    source: str = ""
