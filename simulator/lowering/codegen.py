"""What TileLang's compiler decides about a kernel's schedule, before any machine code is made.

Its rules, as they stand in its sources (TileLang 0.1.15, src/cuda: transform/producer_consumer_ws.cc,
transform/annotate_warp_group_reg_alloc.cc, op/copy_analysis.cc, op/gemm.cc), as far as they decide who
copies, which instruction copies and multiplies, and what registers a thread is launched with. They need the
program only; ``tests/simulator/compiled_launches.py`` holds them to what the
compiler does.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from foretile.kernels.dtypes import DTYPES
from foretile.kernels.expr import Expr, Load, evaluate, loads, variables, walk
from foretile.kernels.ir import (
    Copy,
    For,
    Gemm,
    Hint,
    If,
    Im2col,
    Region,
    Stmt,
    Store,
    TileProgram,
    While,
    walk_stmts,
)
from foretile.simulator.lowering.liveness import named

_VECTOR_BITS = 128  # innermost extents and global strides of bulk copies are multiples of 16 bytes
_GROUP = 128  # threads of a warp group; one of them copies
# Registers that setmaxnreg leaves a copying thread and gives a computing one, by copying and computing warp
# groups: what 64512 of a core's registers are enough for. Other layouts move none.
_LEFT = 24
_GIVEN = {(1, 0): 240, (1, 1): 240, (1, 2): 240, (2, 2): 224, (1, 3): 160}
_WGMMA_ROWS = 64
# Operand pairs of wgmma, with the bytes of depth of one instruction: any order of the operand in memory for
# 16-bit types, rows of the depth (A not transposed, B transposed) for the others.
_WGMMA_16BIT = frozenset({("float16", "float16", "float16"), ("float16", "float16", "float32"),
                          ("bfloat16", "bfloat16", "float32")})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Schedule:
    """The decisions for one program.

    ``producers``: threads added to those of the program, which only copy (0: nobody does).
    ``given``: registers that a computing thread asks for when it starts (0: none are moved).
    ``pipelined``: whether loops keep the depth they ask for. ``reasons``: in words, why.
    """

    producers: int
    given: int
    pipelined: bool
    reasons: tuple[str, ...]


def schedule(program: TileProgram, *, bulk_copy: bool) -> Schedule:
    """The decisions for ``program`` on a machine with or without bulk tensor copies."""
    loop, nested = _first_pipeline(program.body)
    if loop is None or not bulk_copy:
        return Schedule(0, _own_budget(program), True, ())
    if why_not := _not_specialised(program):
        return Schedule(0, _own_budget(program), True, (why_not,))
    body = _in_loop(loop)
    if not any(_is_bulk(s, program) for s in body):
        reason = "the first pipelined loop fetches no tile by a bulk copy: its pipeline is dropped"
        return Schedule(0, 0, False, (reason,))
    by_threads = [s for s in body if _tile_by_threads(s, program) or _nest_fetches(s, program)]
    if by_threads:
        producers, how = program.threads, "set aside for copies, as many as compute: threads fetch tiles too"
    else:
        producers, how = _GROUP, "only copy: a pipelined loop fetches tiles by bulk copies"
    counts = nested or body is not loop.body
    given, why = _registers_moved(program, producers, counts=counts, stores=_producer_stores(body, program))
    return Schedule(producers, given, True, (f"{producers} threads {how}", why))


def bulk_load(stmt: Copy, program: TileProgram) -> bool:
    """Whether a copy from global to shared memory can be a bulk tensor copy."""
    source, target = program.buffer(stmt.src.buffer), program.buffer(stmt.dst.buffer)
    if source.scope != "global" or target.scope != "shared" or _off(stmt):
        return False
    return source.dtype == target.dtype and _aligned(stmt.src, program)


def bulk_store(stmt: Copy, program: TileProgram) -> bool:
    """Whether a copy from shared to global memory becomes a bulk tensor copy."""
    source, target = program.buffer(stmt.src.buffer), program.buffer(stmt.dst.buffer)
    if source.scope != "shared" or target.scope != "global" or _off(stmt):
        return False
    allowed = source.dtype == target.dtype and not switch(program, "tl.disable_tma_lower")
    return allowed and _aligned(stmt.dst, program)


def _off(stmt: Copy) -> bool:
    return dict(stmt.hints).get("disable_tma", "False") not in ("False", "0")


def takes_wgmma(stmt: Gemm, program: TileProgram, rows: int, depth: int) -> bool:
    """Whether a product is made by ``wgmma``, on machines that have it."""
    a, b, c = (program.buffer(r.buffer) for r in (stmt.a, stmt.b, stmt.c))
    if b.scope != "shared" or rows < _WGMMA_ROWS or (program.threads // 32) % 4:
        return False
    if switch(program, "tl.disable_wgmma"):
        return False
    step = int(32 / DTYPES[a.dtype].bytes)
    if depth % step:
        return False
    if (a.dtype, b.dtype, c.dtype) in _WGMMA_16BIT:
        return True
    pair = {a.dtype, b.dtype}
    floats = all(name.startswith("float8") for name in pair) and c.dtype in ("float16", "float32")
    whole = pair <= {"int8", "uint8"} and c.dtype == "int32"
    tf32 = pair <= {"float32", "tfloat32"} and c.dtype == "float32"
    return (floats or whole or tf32) and not stmt.trans_a and stmt.trans_b


def switch(program: TileProgram, name: str) -> bool:
    """Whether a switch of the compiler is on for this program."""
    value = program.annotation(f"pass:{name}")
    return value is not None and bool(ast.literal_eval(value))


def _not_specialised(program: TileProgram) -> str:
    """Why no warps are set aside for copies; empty where they are, if the first loop has a bulk copy."""
    if any(isinstance(s, If) and s.role for s in walk_stmts(program.body)):
        return "the source says which warps copy"
    if switch(program, "tl.disable_warp_specialized"):
        return "the source switches warp specialisation off: threads copy what they compute with"
    loops = [s for s in walk_stmts(program.body) if _is_pipeline(s)]
    if not any(_is_bulk(s, program) for s in _statements(loops)):
        return "no pipelined loop fetches a tile by a bulk copy: no warps are set aside for copies"
    return ""


def _statements(loops: list[Stmt]) -> Iterator[Stmt]:
    for loop in loops:
        assert isinstance(loop, For)
        yield from walk_stmts(loop.body)


def _is_pipeline(s: Stmt) -> bool:
    return isinstance(s, For) and s.kind == "pipelined" and s.num_stages >= 1


def _first_pipeline(body: tuple[Stmt, ...], nested: bool = False) -> tuple[For | None, bool]:
    """The first pipelined loop, and whether it stands in another loop."""
    for s in body:
        found: tuple[For | None, bool] = (None, False)
        if isinstance(s, For):
            if _is_pipeline(s):
                return s, nested
            found = _first_pipeline(s.body, True)
        elif isinstance(s, While):
            found = _first_pipeline(s.body, nested)
        elif isinstance(s, If):
            found = _first_pipeline((*s.then, *s.orelse), nested)
        if found[0] is not None:
            return found
    return None, False


def _in_loop(loop: For) -> tuple[Stmt, ...]:
    """The statements of a pipelined loop; of the condition that all of them may stand under."""
    rest = tuple(s for s in loop.body if not isinstance(s, Hint))
    if len(rest) == 1 and isinstance(rest[0], If) and not rest[0].orelse:
        return rest[0].then
    return loop.body


def _is_bulk(s: Stmt, program: TileProgram) -> bool:
    return isinstance(s, Im2col) or (isinstance(s, Copy) and bulk_load(s, program))


def _tile_by_threads(s: Stmt, program: TileProgram) -> bool:
    """Whether a copy brings a tile into shared memory that no bulk copy can bring."""
    if not isinstance(s, Copy) or bulk_load(s, program):
        return False
    source, target = program.buffer(s.src.buffer), program.buffer(s.dst.buffer)
    return source.scope == "global" and target.scope == "shared" and source.dtype == target.dtype


def _nest_fetches(s: Stmt, program: TileProgram) -> bool:
    """Whether a parallel nest writes shared memory, from nothing but global memory."""
    if not isinstance(s, For) or s.kind != "parallel":
        return False
    stores = [x for x in walk_stmts(s.body) if isinstance(x, Store)]
    into = any(program.buffer(x.buffer).scope == "shared" for x in stores)
    read = {program.buffer(load.buffer).scope for x in walk_stmts((s,)) for load in _loads(x)}
    return into and "global" in read and not read & {"shared", "local", "var", "fragment"}


def _producer_stores(body: tuple[Stmt, ...], program: TileProgram) -> bool:
    """Whether threads that copy write shared memory themselves.

    Nests do; so do copies that stand before everything else that the computing threads do up to their
    first use of a tile.
    """
    if any(_nest_fetches(s, program) for s in body):
        return True
    computing = [s for s in body if not _is_bulk(s, program)]
    used = [set[str]().union(*(named(x) for x in walk_stmts((s,)))) for s in computing]
    at = 0
    for copy in (s for s in body if isinstance(s, Copy) and bulk_load(s, program)):
        first = next((i for i, names in enumerate(used) if copy.dst.buffer in names), 0)
        before = computing[at:first]
        if before and all(_tile_by_threads(s, program) for s in before):
            return True
        at = max(at, first)
    return False


def _loads(s: Stmt) -> Iterator[Load]:
    exprs: tuple[Expr | None, ...] = ()
    if isinstance(s, Store):
        exprs = (s.value, *s.indices)
    elif isinstance(s, If):
        exprs = (s.cond,)
    for e in exprs:
        if e is not None:
            yield from (x for x in walk(e) if isinstance(x, Load))


def _registers_moved(program: TileProgram, producers: int, *, counts: bool, stores: bool) -> tuple[int, str]:
    """Registers that a computing thread asks for, and why that many.

    ``counts``: the copying threads count iterations themselves; ``stores``: they write shared memory.
    """
    wanted = {s.name: s.args for s in walk_stmts(program.body) if isinstance(s, Hint)}
    if "no_set_max_nreg" in wanted or "disable_warp_group_reg_alloc" in wanted:
        return 0, "the source moves no registers between warps"
    if (asked := wanted.get("annotate_consumer_reg_alloc")) is not None:
        return int(asked[0]), f"the source asks for {asked[0]} registers a computing thread"
    if counts or stores:
        what = "the loop stands in another or under a condition" if counts else "copying threads store"
        return 0, f"no registers are moved between warps: {what}"
    given = _GIVEN.get((producers // _GROUP, program.threads // _GROUP), 0)
    if not given:
        return 0, f"no registers are moved between warps: {program.threads} threads compute"
    return given, f"setmaxnreg leaves copying threads {_LEFT} registers and gives computing ones {given}"


def _own_budget(program: TileProgram) -> int:
    """Registers that computing roles of the source's own ask for, the most of them; 0: none does."""
    asked = [s for s in walk_stmts(program.body) if isinstance(s, Hint) and s.args]
    more = [
        s.args[0]
        for s in asked
        if s.name == "inc_max_nreg" or (s.name == "set_max_nreg" and s.args[-1] in ("1", "True"))
    ]
    return max((int(n) for n in more if n.isdigit()), default=0)


def _aligned(region: Region, program: TileProgram) -> bool:
    """Whether rows of a region and of its tensor are whole multiples of 16 bytes, as far as is known."""
    tensor = program.buffer(region.buffer)
    bits = DTYPES[tensor.dtype].bits
    if _constant(region.extents[-1]) * bits % _VECTOR_BITS:
        return False
    strides = [_constant(e) for e in tensor.strides] if tensor.strides else _dense(tensor.shape)
    return strides[-1] in (0, 1) and all(s * bits % _VECTOR_BITS == 0 for s in strides[:-1])


def _dense(shape: tuple[Expr, ...]) -> list[int]:
    strides = [1]
    for extent in reversed(shape[1:]):
        strides.append(strides[-1] * _constant(extent))
    return strides[::-1]


def _constant(e: Expr) -> int:
    """The value of a constant expression; 0, a multiple of everything, for one that is not known."""
    return 0 if variables(e) or loads(e) else int(evaluate(e, {}))
