"""What a block's instruction stream itself computes of numbers that are known at run time only.

Sizes that are constants when a kernel is compiled are folded into it. A kernel that is given numbers reads
them when a block starts and computes bounds and addresses from them as it goes, each where the innermost
loop is that changes it. Machines whose stream sends
everything (:meth:`~foretile.simulator.lowering.rules.Rules.steering`) wait for that.
"""

from __future__ import annotations

from foretile.kernels.expr import Binary, Call, Expr, variables, walk
from foretile.kernels.ir import Copy, Fill, For, Gemm, Region, Stmt, Store, TileProgram, walk_stmts
from foretile.simulator.lowering.rules import Rules
from foretile.simulator.workload import Op


def parameters(program: TileProgram, rules: Rules) -> tuple[Op, ...]:
    """Reading the numbers that a kernel is given, a line from memory, and what follows from them alone."""
    read_s = rules.steering(len(program.scalars))
    if not read_s:
        return ()
    spent = read_s + rules.steering(_operations(program, program.body, frozenset()))
    wait = rules.machine.dram_latency_s
    return (Op("parameters", "barrier", (("scalar", spent),), wait + spent),)


def steering(rules: Rules, loop: For) -> tuple[Op, ...]:
    """What one iteration of ``loop`` computes; what its variables are not in is computed outside of it."""
    if not rules.program.scalars:
        return ()
    count = _operations(rules.program, loop.body, frozenset(v.name for v in loop.vars))
    spent = rules.steering(count)
    return (Op("addresses", "barrier", (("scalar", spent),), spent),) if spent else ()


def _operations(program: TileProgram, body: tuple[Stmt, ...], own: frozenset[str]) -> int:
    """Different operations on given numbers that change with ``own`` variables, but not with inner loops'."""
    given = frozenset(v.name for v in program.scalars)
    stmts = list(walk_stmts(body))
    inner = frozenset(v.name for s in stmts if isinstance(s, For) for v in s.vars)
    found: set[Expr] = set()
    for x in (x for s in stmts for e in _steered(s) for x in walk(e)):
        used = variables(x) if isinstance(x, Binary | Call) else frozenset()
        if used & given and not used & inner and (used & own or not own):
            found.add(x)
    return len(found)


def _steered(stmt: Stmt) -> tuple[Expr, ...]:
    """Bounds of a loop; where a tile operation or a store reads and writes."""
    if isinstance(stmt, For):
        return stmt.extents if stmt.start is None else (stmt.start, *stmt.extents)
    if isinstance(stmt, Store):
        return stmt.indices
    regions: list[Region] = []
    if isinstance(stmt, Copy):
        regions = [stmt.src, stmt.dst]
    elif isinstance(stmt, Gemm):
        regions = [stmt.a, stmt.b, stmt.c]
    elif isinstance(stmt, Fill):
        regions = [stmt.dst]
    return tuple(e for region in regions for e in (*region.mins, *region.extents))
