"""Just enough algebra to see that ``(bx + 1) * 128 - bx * 128`` is 128: integer polynomials over atoms.

Anything that is not a sum, difference or product is an atom, known by its structure.
"""

from __future__ import annotations

import math

from foretile.kernels.expr import Binary, Call, Const, Expr, binary

Monomial = tuple[Expr, ...]


def difference(a: Expr, b: Expr) -> Expr:
    """``a - b``, with ``b + e`` minus ``b`` giving exactly ``e`` and common terms cancelled."""
    if isinstance(a, Binary) and a.op == "add" and a.a == b:
        return a.b
    if a == b:
        return Const(0)
    if isinstance(a, Const) and isinstance(b, Const):
        return binary("sub", a, b)
    if isinstance(a, Binary) and a.op == "add" and a.b == b:
        return a.a
    left, right = _polynomial(a), _polynomial(b)
    terms = dict(left)
    for monomial, factor in right.items():
        terms[monomial] = terms.get(monomial, 0) - factor
    terms = {m: f for m, f in terms.items() if f}
    if len(terms) < len(left) + len(right):
        return _rebuild(terms)
    return binary("sub", a, b)


def normal_form(e: Expr) -> Expr:
    """A whole number's sums and products in one order: equal polynomials give equal expressions."""
    terms = _polynomial(e)
    return _rebuild(dict(sorted(terms.items(), key=lambda item: repr(item[0]))))


def quotient_up(e: Expr, step: int) -> Expr:
    """``ceildiv(e, step)`` with an exact product undone (``n * step`` gives ``n``)."""
    if step == 1:
        return e
    if isinstance(e, Binary) and e.op == "mul" and e.b == Const(step):
        return e.a
    return binary("floordiv", binary("add", e, Const(step - 1)), Const(step))


def settled(e: Expr) -> Expr:
    """The number that ``e`` is whatever its variables are; ``e`` itself where there is none."""
    found = _polynomial(e)
    return Const(found.get((), 0)) if not found.keys() - {()} else e


def terms(e: Expr) -> tuple[int, ...]:
    """The factors of a sum's terms: (128, 64) for ``bx * 128 + ko * 64``; what is no sum has the factor 1."""
    return tuple(_polynomial(e).values())


def common_factor(*sums: Expr) -> int:
    """The largest whole number that divides every term of every sum; 0 where all are zero."""
    return math.gcd(*(factor for e in sums for factor in terms(e)))


def divided(e: Expr, factor: int) -> Expr:
    """A sum whose terms ``factor`` divides (:func:`common_factor`), without it."""
    return _rebuild({monomial: f // factor for monomial, f in _polynomial(e).items()})


def _polynomial(e: Expr) -> dict[Monomial, int]:
    if isinstance(e, Const) and isinstance(e.value, int):
        return {(): int(e.value)} if e.value else {}
    if isinstance(e, Binary) and e.op in ("add", "sub"):
        total = dict(_polynomial(e.a))
        sign = 1 if e.op == "add" else -1
        for monomial, factor in _polynomial(e.b).items():
            total[monomial] = total.get(monomial, 0) + sign * factor
        return {m: f for m, f in total.items() if f}
    if isinstance(e, Binary) and e.op == "mul":
        product: dict[Monomial, int] = {}
        right = _polynomial(e.b)
        for m1, f1 in _polynomial(e.a).items():
            for m2, f2 in right.items():
                monomial = tuple(sorted((*m1, *m2), key=repr))
                product[monomial] = product.get(monomial, 0) + f1 * f2
        return {m: f for m, f in product.items() if f}
    if isinstance(e, Call) and e.fn == "neg":
        return {m: -f for m, f in _polynomial(e.args[0]).items()}
    return {(e,): 1}


def _rebuild(terms: dict[Monomial, int]) -> Expr:
    result: Expr = Const(0)
    # Positive terms first, the constant last: a difference of sizes then reads as one would write it.
    order = sorted(terms.items(), key=lambda item: (not item[0], item[1] < 0))
    for monomial, factor in order:
        term: Expr = Const(1)
        for atom in monomial:
            term = binary("mul", term, atom)
        if result == Const(0):
            result = binary("mul", term, Const(factor)) if monomial else Const(factor)
        elif factor < 0:
            result = binary("sub", result, binary("mul", term, Const(-factor)))
        else:
            result = binary("add", result, binary("mul", term, Const(factor)))
    return result
