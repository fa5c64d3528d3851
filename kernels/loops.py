"""Loops of the tile language: what ``for ... in T.Parallel(...)`` iterates over.

A loop's body is traced once, with its indices symbolic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from foretile.kernels.affine import difference, quotient_up
from foretile.kernels.errors import fail, here
from foretile.kernels.expr import Binary, Const, Expr, Var
from foretile.kernels.hints import hints
from foretile.kernels.ir import For, Hints, LoopKind
from foretile.kernels.messages import shape_text, text
from foretile.kernels.tracer import current
from foretile.kernels.values import Index, Value, index_expr

DEFAULT_NAMES = ("i", "j", "k", "l", "m", "n")


class Loop:
    """A loop nest not yet entered; ``nested`` makes one serial loop a dimension (``T.grid``)."""

    __slots__ = (
        *("call", "extents", "group_size", "hints", "kind", "loc", "nested", "num_stages", "order"),
        *("start", "step"),
    )

    def __init__(
        self,
        call: str,
        kind: LoopKind,
        extents: tuple[Expr, ...],
        *,
        start: Expr | None = None,
        step: int = 1,
        num_stages: int = 0,
        group_size: int = 0,
        nested: bool = False,
        hints: Hints = (),
        order: tuple[int, ...] = (),
    ) -> None:
        self.call = call
        self.kind: LoopKind = kind
        self.extents = extents
        self.start = start
        self.step = step
        self.num_stages = num_stages
        self.group_size = group_size
        self.nested = nested
        self.hints = hints
        self.order = order  # the author's indices in the program's order
        self.loc = here()
        for extent in extents:
            if type(extent) is Const and extent.value < 0:
                fail(f"{call} with the negative extent {extent.value}")

    def __iter__(self) -> Iterator[Any]:
        return self.trace(None)

    def trace(self, names: Sequence[str] | None) -> Iterator[Any]:
        """Yield the indices once, recording what is done meanwhile as the body."""
        count = len(self.extents)
        if names is not None and len(names) != count:
            if len(names) > 1 or count == 1:
                gives = "1 index" if count == 1 else f"{count} indices"
                fail(
                    f"{self.call}{shape_text(self.extents)} gives {gives}, but the loop names "
                    f"{len(names)}: {', '.join(names)}"
                )
            names = [f"{names[0]}_{i}" for i in range(count)]
        if names is None:
            names = DEFAULT_NAMES if count <= len(DEFAULT_NAMES) else [f"i{n}" for n in range(count)]
        tracer = current(self.call)
        tracer.need_kernel(f"loop {self.call}")
        variables = tuple([Var(tracer.unique(name)) for name, _ in zip(names, self.extents, strict=False)])
        indices = [Index(v, "loop") for v in variables]
        nests = [((v,), (e,)) for v, e in zip(variables, self.extents, strict=True)] if self.nested else None
        for _ in nests or (None,):
            tracer.open_loop()
        yield indices[0] if count == 1 else tuple(indices)
        if nests is not None:
            for loop_vars, extents in reversed(nests):
                body = tracer.close_loop()
                tracer.emit(For(loop_vars, extents, "serial", body, loc=self.loc))
            return
        body = tracer.close_loop()
        order = self.order or range(count)
        tracer.emit(
            For(
                tuple(variables[i] for i in order),
                tuple(self.extents[i] for i in order),
                self.kind,
                body,
                self.num_stages,
                self.group_size,
                self.start,
                self.step,
                self.hints,
                loc=self.loc,
            )
        )


def _extents(call: str, given: tuple[Any, ...]) -> tuple[Expr, ...]:
    if not given:
        fail(f"{call} needs at least one extent")
    return tuple([index_expr(e, f"extent of {call}") for e in given])


def _span(call_name: str, start: Any, stop: Any, step: Any) -> tuple[Expr | None, Expr, int]:
    """First index (``None`` for zero), trip count and step of ``range(start, stop, step)``."""
    if stop is None:
        start, stop = 0, start
    if step is None:
        step = 1
    step_expr = index_expr(step, f"step of {call_name}")
    if not isinstance(step_expr, Const) or step_expr.value == 0:
        fail(f"the step of {call_name} must be a constant other than 0, got {text(step_expr)}")
    first = index_expr(start, f"start of {call_name}")
    last = index_expr(stop, f"stop of {call_name}")
    by = int(step_expr.value)
    ahead = difference(last, first)
    if isinstance(ahead, Binary) and ahead.op == "mul" and ahead.b == Const(by):
        size = ahead.a
    elif by > 0:
        size = quotient_up(ahead, by)
    else:
        size = quotient_up(difference(first, last), -by)
    if type(size) is Const and size.value < 0:
        size = Const(0)  # an empty range, as in Python
    return (None if first == Const(0) else first), size, by


def Parallel(
    *extents: Any,
    coalesced_width: int | None = None,
    loop_layout: Any = None,
    prefer_async: bool | None = None,
    annotations: Any = None,
) -> Loop:
    """A loop nest whose iterations are spread over the block's threads; keywords are hints."""
    noted = hints(
        annotations, coalesced_width=coalesced_width, loop_layout=loop_layout, prefer_async=prefer_async
    )
    return Loop("T.Parallel", "parallel", _extents("T.Parallel", extents), hints=noted)


def Pipelined(
    start: Any,
    stop: Any = None,
    num_stages: Any = 0,
    order: Any = None,
    stage: Any = None,
    sync: Any = None,
    group: Any = None,
    *,
    annotations: Any = None,
) -> Loop:
    """A loop whose copies run ahead of its compute, ``num_stages`` buffers deep.

    ``order`` and ``stage`` (manual schedules) are kept as hints, ``sync`` and ``group`` are not used.
    """
    if isinstance(num_stages, bool) or not isinstance(num_stages, int) or num_stages < 0:
        fail(f"num_stages={num_stages!r} of T.Pipelined must be a whole number of at least 0")
    first, size, _ = _span("T.Pipelined", start, stop, None)
    noted = hints(annotations, order=order or None, stage=stage or None)
    return Loop("T.Pipelined", "pipelined", (size,), start=first, num_stages=num_stages, hints=noted)


def serial(start: Any, stop: Any = None, step: Any = None, *, annotations: Any = None) -> Loop:
    """An ordinary loop over ``range(start, stop, step)``."""
    first, size, by = _span("T.serial", start, stop, step)
    return Loop("T.serial", "serial", (size,), start=first, step=by, hints=hints(annotations))


def unroll(
    start: Any,
    stop: Any = None,
    step: Any = None,
    *,
    explicit: bool = False,
    unroll_factor: int | None = None,
    annotations: Any = None,
) -> Loop:
    """An ordinary loop that the device unrolls."""
    first, size, by = _span("T.unroll", start, stop, step)
    noted = hints(annotations, explicit=explicit or None, unroll_factor=unroll_factor)
    return Loop("T.unroll", "unroll", (size,), start=first, step=by, hints=noted)


def vectorized(start: Any, stop: Any = None, *, annotations: Any = None) -> Loop:
    """A loop that one thread does with vector instructions."""
    first, size, by = _span("T.vectorized", start, stop, None)
    return Loop("T.vectorized", "vectorized", (size,), start=first, step=by, hints=hints(annotations))


def grid(*extents: Any) -> Loop:
    """A nest of ordinary loops, first extent outermost."""
    return Loop("T.grid", "serial", _extents("T.grid", extents), nested=True)


def Persistent(
    domain: Sequence[Any],
    wave_size: Any,
    index: Any,
    group_size: Any = 8,
    num_stages: Any = 0,
    *,
    annotations: Any = None,
) -> Loop:
    """The points of ``domain`` dealt to the blocks round robin.

    The last coordinate advances within a group of ``group_size`` first, then the others from the last but
    one to the first, then the group, as TileLang deals them.
    ``index`` has to be the block index of a one-axis grid of ``wave_size`` blocks: the program says
    "each block takes every ``wave_size``-th point", and no other dealing.
    """
    tracer = current("T.Persistent")
    tracer.need_kernel("loop T.Persistent")
    if isinstance(domain, Value | int):
        domain = [domain]
    extents = _extents("T.Persistent", tuple(domain))
    e = index_expr(index, "index of T.Persistent")
    if len(tracer.block_vars) != 1 or e != tracer.block_vars[0]:
        fail(
            f"T.Persistent needs the block index of a one-axis grid as `index`, got {text(e)} "
            f"with block indices {', '.join(v.name for v in tracer.block_vars)}"
        )
    wave = index_expr(wave_size, "wave_size of T.Persistent")
    if wave != tracer.grid[0]:
        fail(f"wave_size {text(wave)} of T.Persistent is not the grid's extent {text(tracer.grid[0])}")
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 0:
        fail(f"group_size={group_size!r} of T.Persistent must be a whole number of at least 0")
    noted = hints(annotations, num_stages=num_stages or None)
    # The program names the grouped coordinate first.
    order = (len(extents) - 1, *range(len(extents) - 1))
    return Loop("T.Persistent", "persistent", extents, group_size=group_size, hints=noted, order=order)
