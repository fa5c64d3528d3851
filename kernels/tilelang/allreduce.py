"""All-reduces over a block's threads (``tvm_thread_allreduce``)."""

from __future__ import annotations

from typing import Any

from foretile.kernels.expr import Call, Const, Expr
from foretile.kernels.ir import Loc, Stmt, Store
from foretile.kernels.tilelang.nodes import kind, number, refuse
from foretile.kernels.tilelang.tileops import Context


def all_reduce(context: Context, call: Any, how: str) -> list[Stmt]:
    """A value combined over the threads that differ in some of their indices."""
    count = number(call.args[0]) or 1
    values, rest = list(call.args[1 : 1 + count]), list(call.args[1 + count :])
    condition, results, threads = rest[0], rest[1 : 1 + count], rest[1 + count :]
    axes = tuple(context.convert(t) for t in threads)
    found: list[Stmt] = []
    for value, result in zip(values, results, strict=True):
        place = context.convert.place(result)
        e: Expr = context.convert(value)
        taken = context.convert(condition)
        if not isinstance(taken, Const):
            refuse("an all-reduce of some of the threads only cannot be imported", context.loc)
        e = Call(f"block_{how}", (e, *axes))
        found.append(Store(place.buffer, place.indices, e, loc=context.loc))
    return found


def combiner(reducer: Any, loc: Loc | None) -> str:
    """What an all-reduce combines by."""
    results = [kind(e) for e in reducer.result]
    known = {"Add": "sum", "Max": "max", "Min": "min"}
    if len(results) == 1 and results[0] in known:
        return known[results[0]]
    return refuse("an all-reduce by something else than a sum, a maximum or a minimum", loc)
