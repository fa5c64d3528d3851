"""``T.Persistent`` found again in the loop, guards and index arithmetic that TileLang makes of it."""

from __future__ import annotations

from dataclasses import dataclass

from foretile.kernels.expr import Binary, Call, Const, Expr, Var, binary, variables


@dataclass(frozen=True, slots=True)
class Dealt:
    """A domain dealt to blocks round robin: its extents and the width of the groups of its last one."""

    domain: tuple[Expr, ...]
    wave: Expr
    index: Expr
    group_size: int


def coordinates(linear: Expr, group: Expr, domain: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """The point that TileLang gives to the block with the running number ``linear``.

    The last coordinate advances within a group first, then the others from the last but one to the
    first, then the group.
    """
    single = group == Const(1)
    rest = linear if single else Binary("truncdiv", linear, group)
    found: list[Expr] = []
    for size in reversed(domain[:-1]):
        found.append(Binary("truncmod", rest, size))
        rest = Binary("truncdiv", rest, size)
    if not single:
        rest = Binary("add", Binary("mul", rest, group), Binary("truncmod", linear, group))
    return (*reversed(found), rest)


def recognise(loop: Var, points: list[Expr], guard: Expr | None) -> Dealt | None:
    """What ``T.Persistent`` was given, or ``None`` if this is another loop.

    ``points`` are the coordinates as bound, ``guard`` the condition under which the body runs.
    """
    if not points or not isinstance(guard, Binary) or guard.op != "lt" or guard.a != points[-1]:
        return None
    linear, group = _linear(points[-1])
    if linear is None or not isinstance(linear, Binary) or linear.op != "add":
        return None
    step, index = linear.a, linear.b
    if step == loop:
        wave: Expr = Const(1)
    elif isinstance(step, Binary) and step.op == "mul" and step.a == loop:
        wave = step.b
    else:
        return None
    sizes: list[Expr] = []
    for e in points[:-1]:
        if not isinstance(e, Binary) or e.op != "truncmod":
            return None
        sizes.append(e.b)
    domain = (*sizes, guard.b)
    if coordinates(linear, group, domain) != tuple(points):
        return None
    size = _group_size(group, domain[-1])
    if size is None or loop.name in variables(index) | variables(wave):
        return None
    return Dealt(domain, wave, index, size)


def _linear(last: Expr) -> tuple[Expr | None, Expr]:
    """The running number, and the width of a group, out of the last coordinate."""
    if isinstance(last, Binary) and last.op == "add":
        tail = last.b
        if isinstance(tail, Binary) and tail.op == "truncmod":
            return tail.a, tail.b
        return last, Const(1)  # a domain of one axis
    while isinstance(last, Binary) and last.op == "truncdiv":
        last = last.a
    return last, Const(1)


def _group_size(group: Expr, extent: Expr) -> int | None:
    """The author's group size, which TileLang limits to the extent."""
    if isinstance(group, Const):
        return int(group.value)
    for size in range(1, 65):
        if group == binary("max", Const(1), binary("min", Const(size), extent)):
            return size
    return None


__all__ = ["Call", "Dealt", "coordinates", "recognise"]
