"""What rewritten kernels call at trace time: branches, loops, logic, and assignments to names.

The rewriter turns Python's control flow into calls of this module; conditions and ranges that are
plain Python values behave as in Python, symbolic ones are recorded.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from foretile.kernels import loops
from foretile.kernels.blocks import KernelBlock
from foretile.kernels.errors import fail, here
from foretile.kernels.expr import Const, Expr
from foretile.kernels.handles import BufferHandle, Previous, RegionHandle, VarHandle
from foretile.kernels.ir import If, Jump, Loc, Stmt, While
from foretile.kernels.tracer import STATE, Tracer, current
from foretile.kernels.values import Index, Poison, Result, Value, binary_value, function, operand

UNBOUND = Poison("this name is used before it is assigned")
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    name: getattr(operator, name) for name in ("lt", "le", "gt", "ge", "eq", "ne")
}


def _truth(condition: Any) -> bool | None:
    """Plain truth of a condition, ``None`` if it is symbolic."""
    if isinstance(condition, Value):
        return bool(condition.expr.value) if isinstance(condition.expr, Const) else None
    return bool(condition)


def _condition(condition: Any) -> Expr:
    e, dtype = operand(condition)
    return e if dtype == "bool" else binary_value("ne", condition, 0).expr


class Branch:
    """One ``if`` statement: both branches are traced where the condition is symbolic."""

    __slots__ = ("cond", "first", "loc", "role", "symbolic", "tracer", "truth")

    def __init__(self, condition: Any) -> None:
        truth = _truth(condition)
        self.truth = truth
        self.symbolic = truth is None
        self.first: tuple[Stmt, ...] = ()
        self.role = ""
        if self.symbolic:
            self.loc = here()
            self.tracer = current("if")
            self.tracer.need_kernel("`if` on a symbolic condition")
            self.cond = _condition(condition)

    def then(self) -> Iterable[None]:
        """Once if the first branch is to be run or recorded."""
        if self.symbolic:
            return self._then()
        return (None,) if self.truth else ()

    def _then(self) -> Iterator[None]:
        self.enter()
        yield None
        self.leave()

    def enter(self) -> bool:
        """Whether the first branch is to be run or recorded; then :meth:`leave` ends it."""
        if self.symbolic:
            self.tracer.scopes.append([])
            self.tracer.roles.append("")
            return True
        return bool(self.truth)

    def leave(self) -> None:
        """The first branch is complete."""
        if self.symbolic:
            self.first = tuple(self.tracer.scopes.pop())
            self.role = self.tracer.roles.pop()

    def enter_else(self) -> bool:
        """Whether the second branch is to be run or recorded; then :meth:`leave_else` ends it."""
        if self.symbolic:
            self.tracer.scopes.append([])
            return True
        return not self.truth

    def leave_else(self) -> None:
        """The second branch is complete."""
        if self.symbolic:
            second = tuple(self.tracer.scopes.pop())
            self.tracer.emit(If(self.cond, self.first, second, self.role, loc=self.loc))

    def orelse(self) -> Iterable[None]:
        """Once if the second branch is to be run or recorded."""
        if self.symbolic:
            return self._orelse()
        return () if self.truth else (None,)

    def _orelse(self) -> Iterator[None]:
        self.enter_else()
        yield None
        self.leave_else()

    def end(self) -> None:
        """Record the statement when it has no second branch."""
        if self.symbolic:
            self.tracer.emit(If(self.cond, self.first, (), self.role, loc=self.loc))

    def merge(
        self, names: tuple[str, ...], before: tuple[Any, ...], then: tuple[Any, ...], after: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """What each name assigned in a branch stands for afterwards."""
        if not self.symbolic:
            return then if self.truth else after
        return tuple(map(self._merged, names, before, then, after))

    def _merged(self, name: str, before: Any, then: Any, after: Any) -> Any:
        changed = [v for v in (then, after) if v is not before]
        if not changed:
            return before
        if isinstance(changed[0], BufferHandle | VarHandle) and (len(changed) == 1 or before is UNBOUND):
            return changed[0]
        line = self.loc.line if self.loc else 0
        return Poison(
            f"`{name}` was assigned under the symbolic condition of line {line}; after it the name has no "
            f"single value: use T.if_then_else, or a variable {name} = T.alloc_var(dtype)"
        )


def branch(condition: Any) -> Branch:
    """Enter an ``if`` statement."""
    return Branch(condition)


def concrete(condition: Any, jump: str) -> bool:
    """Truth of the condition of an ``if`` that contains ``break``, ``continue`` or ``return``."""
    truth = _truth(condition)
    if truth is None:
        fail(f"`{jump}` under a symbolic condition cannot be recorded; put the rest under `if` instead")
    return truth


class LoopRun:
    """One ``for`` or ``while`` statement being run or recorded."""

    __slots__ = ("iterator", "traced")

    def __init__(self, iterator: Iterator[Any], traced: bool) -> None:
        self.iterator = iterator
        self.traced = traced

    def __iter__(self) -> Iterator[Any]:
        return self.iterator

    def enter(self, names: tuple[str, ...]) -> tuple[Any, ...]:
        """Names assigned in a recorded body have no value at its start: they differ by iteration."""
        return tuple(
            [
                Poison(
                    f"`{name}` is carried from one iteration to the next, but the loop's body is traced "
                    f"once; use a variable: {name} = T.alloc_var(dtype, init=...)"
                )
                for name in names
            ]
        )

    def leave(self, names: tuple[str, ...], values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Names assigned in a recorded body have no value after it, unless it does not depend on the loop."""
        if not self.traced:
            return values
        return tuple(map(self._left, names, values))

    @staticmethod
    def _left(name: str, value: Any) -> Any:
        if isinstance(value, Poison) or (isinstance(value, Value) and not isinstance(value, VarHandle)):
            return Poison(
                f"`{name}` was assigned inside a loop and has no single value after it; keep it in a buffer "
                f"or in a variable {name} = T.alloc_var(dtype)"
            )
        return value


def loop(iterable: Any, names: tuple[str, ...] | None) -> LoopRun:
    """Enter a ``for`` statement whose targets are ``names`` (``None`` if they are not plain names)."""
    if isinstance(iterable, loops.Loop):
        if names is not None and "_" in names:
            names = None if len(names) == 1 else tuple("i" if n == "_" else n for n in names)
        return LoopRun(iterable.trace(names), True)
    return LoopRun(iter(iterable), False)


def call_range(function: Any, *args: Any, **kwargs: Any) -> Any:
    """``range(...)`` as the iterable of a ``for``: a serial loop."""
    if function is builtins.range:
        return loops.serial(*args, **kwargs)
    return function(*args, **kwargs)


def while_(test: Callable[[], Any]) -> LoopRun:
    """Enter a ``while`` statement."""
    tracer = STATE.tracer
    if tracer is None:
        return LoopRun(_plain_while(test), False)
    # The condition is evaluated anew in each iteration, so what it reads counts as read in the loop.
    loc = here()
    tracer.open_loop()
    try:
        condition = test()
    except BaseException:
        tracer.close_loop()
        raise
    truth = _truth(condition)
    if truth is not None:
        tracer.close_loop()
        return LoopRun(_plain_while(test) if truth else iter(()), False)
    tracer.need_kernel("`while` on a symbolic condition")
    return LoopRun(_record_while(tracer, _condition(condition), loc), True)


def _plain_while(test: Callable[[], Any]) -> Iterator[None]:
    while concrete(test(), "while"):
        yield None


def _record_while(tracer: Tracer, condition: Expr, loc: Loc | None) -> Iterator[None]:
    yield None
    body = tracer.close_loop()
    tracer.emit(While(condition, body, loc=loc))


def leaves(jump: str, run: LoopRun) -> bool:
    """Whether a ``break`` or ``continue`` is done here; of a recorded loop it is recorded."""
    if not run.traced:
        return True
    current(jump).emit(Jump("break" if jump == "break" else "continue", loc=here()))
    return False


def check_jump(jump: str, *runs: LoopRun) -> None:
    """Refuse ``break`` and ``return`` out of a recorded loop."""
    if any(run.traced for run in runs):
        fail(f"`{jump}` out of a traced loop cannot be recorded; bound the loop, or use `while` or `if`")


def check_index(name: str, value: Any) -> None:
    """Refuse assignment to a name that is a loop or block index."""
    if isinstance(value, Index):
        fail(f"`{name}` is a {value.kind} index and cannot be assigned; use another name")


def and_(first: Any, *rest: Callable[[], Any]) -> Any:
    """``first and rest…`` with Python's short circuit where it can be decided."""
    for later in rest:
        if _truth(first) is None:
            second = later()
            truth = _truth(second)
            if truth is None:
                first = Result(_condition(first), "bool")
                first = binary_value("and", first, Result(_condition(second), "bool"))
            elif not truth:
                return False
        elif first:
            first = later()
        else:
            return first
    return first


def or_(first: Any, *rest: Callable[[], Any]) -> Any:
    """``first or rest…`` with Python's short circuit where it can be decided."""
    for later in rest:
        if _truth(first) is None:
            second = later()
            truth = _truth(second)
            if truth is None:
                first = Result(_condition(first), "bool")
                first = binary_value("or", first, Result(_condition(second), "bool"))
            elif truth:
                return True
        elif first:
            return first
        else:
            first = later()
    return first


def not_(value: Any) -> Any:
    """``not value``."""
    if _truth(value) is None:
        return ~Result(_condition(value), "bool")
    return not value


def choose(condition: Any, a: Callable[[], Any], b: Callable[[], Any]) -> Any:
    """``a if condition else b``."""
    truth = _truth(condition)
    if truth is None:
        return function("if_then_else", Result(_condition(condition), "bool"), a(), b())
    return a() if truth else b()


def chain(ops: tuple[str, ...], *values: Any) -> Any:
    """``a < b < c``: the conjunction of neighbours."""
    result: Any = True
    for op, a, b in zip(ops, values, values[1:], strict=False):
        result = and_(result, partial(_COMPARE[op], a, b))
    return result


def name(target: str, value: Any) -> Any:
    """The value assigned to the Python name ``target``; buffers take the name, reads are watched."""
    if isinstance(value, Value):
        if isinstance(value, VarHandle):
            if value.fresh:
                value.suggest(target)
                return value
            value = Result(value.expr, value.dtype)  # ``y = x`` copies the variable's value
        if value.binding is None and not isinstance(value, Index) and STATE.tracer is not None:
            STATE.tracer.bind(target, value)
    elif isinstance(value, Previous):
        fail(
            f"`{target}` stands for what an atomic update finds; keep it in a variable "
            f"({target} = T.alloc_var('int32'); {target} = T.atomic_add(…)) or an element"
        )
    elif isinstance(value, BufferHandle):
        value.suggest(target)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            if isinstance(item, BufferHandle | VarHandle):
                item.suggest(f"{target}_{i}")
    return value


def names(targets: tuple[str, ...], value: Any) -> Any:
    """The values of ``a, b = value``, each named."""
    if isinstance(value, list | tuple) and len(value) == len(targets):
        return [name(target, item) for target, item in zip(targets, value, strict=True)]
    return value


def assign(target: str, value: Any, old: Any) -> Any:
    """``target = value`` where the name may stand for a variable: then this stores to it."""
    fresh = isinstance(value, VarHandle) and value.fresh
    if isinstance(old, VarHandle) and not fresh and not isinstance(value, BufferHandle | RegionHandle):
        old.assign(value)
        return old
    return name(target, value)


def block(value: Any, target: str | tuple[str, ...] | None) -> Any:
    """The context manager of a ``with``, told the names of its ``as`` clause."""
    if isinstance(value, KernelBlock):
        value.name(target)
    return value
