"""Registers that do not fit: compilers keep them in local memory, and go on.

Local memory is cached by the L1, which shares its data path with the scratchpad (CUDA C++ Programming Guide,
local memory): what is spilled is written and read once in every iteration of the innermost loop that holds
products (else of the innermost loop), by every thread, at the scratchpad's rate.
"""

from __future__ import annotations

from dataclasses import replace

from foretile.kernels.expr import Const, Load, Var
from foretile.kernels.ir import Buffer, For, Gemm, Stmt, Store, TileProgram, While, walk_stmts, with_body
from foretile.kernels.statements import If

SPILLED = "spilled_registers"
_ROOM = "local%memory"


def spilled(program: TileProgram, registers: int) -> TileProgram:
    """``program`` with so many registers of every thread in local memory."""
    room = Buffer(_ROOM, (Const(program.threads),), "float32", "shared")
    lane, word = Var("local%lane"), Var("local%word")
    kept = Store(_ROOM, (lane,), Load(_ROOM, (lane,)))
    traffic = For((lane, word), (Const(program.threads), Const(registers)), "parallel", (kept,))
    loops = [s for s in walk_stmts(program.body) if isinstance(s, For | While) and _runs(s)]
    busy = [s for s in loops if any(isinstance(x, Gemm) for x in walk_stmts(s.body))] or loops
    inner = [s for s in busy if not any(x in busy for x in walk_stmts(s.body))]
    body = _into(program.body, inner[:1], traffic) if inner else (*program.body, traffic)
    return replace(
        program,
        body=body,
        buffers=(*program.buffers, room),
        annotations=(*program.annotations, (SPILLED, str(registers))),
    )


def _runs(s: For | While) -> bool:
    return isinstance(s, While) or s.kind in ("serial", "pipelined", "unroll", "persistent")


def _into(body: tuple[Stmt, ...], loops: list[For | While], traffic: For) -> tuple[Stmt, ...]:
    made: list[Stmt] = []
    for s in body:
        if isinstance(s, If):
            made.append(
                replace(s, then=_into(s.then, loops, traffic), orelse=_into(s.orelse, loops, traffic))
            )
        elif isinstance(s, For | While):
            inner = (*s.body, traffic) if any(s is x for x in loops) else _into(s.body, loops, traffic)
            made.append(with_body(s, inner))
        else:
            made.append(s)
    return tuple(made)
