"""Operations that the front end spread over scratch buffers, in one piece again.

TileLang reduces and scans only between certain memories. Elsewhere its front end puts scratch buffers
and copies around the operation; the author wrote one call, and so does the imported program.
"""

from __future__ import annotations

from dataclasses import replace

from foretile.kernels.ir import Copy, CumSum, For, If, Reduce, Region, Stmt, While


def fold_scratch(body: tuple[Stmt, ...], scratch: set[str]) -> tuple[tuple[Stmt, ...], set[str]]:
    """The statements without copies to and from ``scratch``, and the buffers that are gone."""
    gone: set[str] = set()
    return _fold(body, scratch, gone), gone


def _fold(body: tuple[Stmt, ...], scratch: set[str], gone: set[str]) -> tuple[Stmt, ...]:
    out: list[Stmt] = []
    i = 0
    while i < len(body):
        stmt = body[i]
        if isinstance(stmt, For | While):
            out.append(replace(stmt, body=_fold(stmt.body, scratch, gone)))
        elif isinstance(stmt, If):
            then, orelse = _fold(stmt.then, scratch, gone), _fold(stmt.orelse, scratch, gone)
            out.append(replace(stmt, then=then, orelse=orelse))
        elif isinstance(stmt, Reduce | CumSum):
            i += _operation(stmt, body, i, out, scratch, gone)
        else:
            out.append(stmt)
        i += 1
    return tuple(out)


def _operation(
    stmt: Reduce | CumSum, body: tuple[Stmt, ...], i: int, out: list[Stmt], scratch: set[str], gone: set[str]
) -> int:
    """Append the operation between its own operands; how many statements behind it are used up."""
    source, target = stmt.src, stmt.dst
    if source.buffer in scratch and _copies(out, source, into=True):
        copied = out.pop()
        assert isinstance(copied, Copy)
        source = copied.src
        gone.add(stmt.src.buffer)
    behind = 0
    if target.buffer in scratch and i + 1 < len(body) and _copies([body[i + 1]], target, into=False):
        copied = body[i + 1]
        assert isinstance(copied, Copy)
        if isinstance(stmt, Reduce) and not stmt.clear and _copies(out, target, into=True):
            out.pop()
        target = copied.dst
        gone.add(stmt.dst.buffer)
        behind = 1
    out.append(replace(stmt, src=source, dst=target))
    return behind


def _copies(statements: list[Stmt], region: Region, into: bool) -> bool:
    """Whether the last statement is a plain copy into (or out of) the region."""
    last = statements[-1] if statements else None
    if not isinstance(last, Copy) or last.mode or last.hints:
        return False
    return (last.dst if into else last.src) == region
