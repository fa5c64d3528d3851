"""What decides trip counts and branches has to be known before the kernel runs, or said to be likely."""

from __future__ import annotations

from foretile.kernels.expr import Call, Expr, loads
from foretile.kernels.ir import For, If, Stmt, TileProgram, While
from foretile.simulator.machine import UndecidedError


def refuse_decisions(program: TileProgram) -> None:
    """Refuse while loops, and branches and loops that values computed by the kernel itself decide.

    What is said not to be expected is not timed, and may hold any of them.

    Raises:
        UndecidedError: there is one; the message names its line and the values.
    """
    _visit(program.body, frozenset(b.name for b in program.buffers), program.name)


def expected(cond: Expr) -> bool:
    """Whether the kernel's author says that a branch on values of the kernel itself is taken (T.likely)."""
    return isinstance(cond, Call) and cond.fn == "likely" and bool(loads(cond))


def _visit(body: tuple[Stmt, ...], on_chip: frozenset[str], name: str) -> None:
    for stmt in body:
        if isinstance(stmt, If) and expected(stmt.cond):
            _visit(stmt.then, on_chip, name)
        elif isinstance(stmt, If):
            _check((stmt.cond,), "a branch", stmt, on_chip, name)
            _visit(stmt.then, on_chip, name)
            _visit(stmt.orelse, on_chip, name)
        elif isinstance(stmt, For) and stmt.kind != "parallel":  # inside of parallel ones lanes diverge
            start = () if stmt.start is None else (stmt.start,)
            _check((*stmt.extents, *start), "the trip count of a loop", stmt, on_chip, name)
            _visit(stmt.body, on_chip, name)
        elif isinstance(stmt, While):
            raise UndecidedError(
                f"{stmt.loc or name}: a while loop's trip count is not known before it runs; "
                "write it as a loop with a bound to time it, or say how often it runs "
                "(foretile.assume(program, trips={LINE: N}))"
            )


def _check(exprs: tuple[Expr, ...], what: str, stmt: Stmt, on_chip: frozenset[str], name: str) -> None:
    found = sorted({load.buffer for e in exprs for load in loads(e)} & on_chip)
    if found:
        says = "how often it runs" if isinstance(stmt, For) else "whether it is taken, 0 or 1"
        advice = f", or say {says} (foretile.assume(program, trips={{LINE: N}}))"
        raise UndecidedError(
            f"{stmt.loc or name}: {what} depends on the value of {', '.join(found)}, which is known only "
            f"while the kernel runs; to time it, let indices or tensors decide{advice}"
        )
