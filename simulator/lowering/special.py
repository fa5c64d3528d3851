"""Operations of tile programs beyond copies, products, reductions and element-wise work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from foretile.kernels.expr import Binary, Const, Expr, binary, evaluate, variables
from foretile.kernels.ir import (
    Buffer,
    Copy,
    Extern,
    FinalizeReducer,
    Hint,
    Im2col,
    RandomInit,
    Reduce,
    Region,
    Stmt,
    TileProgram,
    Transpose,
)
from foretile.simulator.lowering.elementwise import EXTERN, Count
from foretile.simulator.lowering.rules import Cost, Rules
from foretile.simulator.workload import Op


class Walk(Protocol):
    """What walks over a program, as far as it is needed here."""

    program: TileProgram
    rules: Rules

    def elements(self, region: Region, stmt: Stmt) -> int:
        """How many elements a region has."""

    def op(self, kind: Any, label: str, cost: Cost, reads: tuple[str, ...] = ()) -> Op:
        """An operation of these costs."""

    def load_op(
        self, region: Region, tensor: Buffer, cost: Cost, label: str, fills: str, points: int | None = None
    ) -> Op:
        """A load of a region of a tensor, into the buffer ``fills``."""

    def store_op(
        self, region: Region, tensor: Buffer, direction: str, cost: Cost, label: str, *reads: str
    ) -> Op:
        """A write of a region of a tensor."""


def special(stmt: Stmt, walker: Walk) -> list[Op] | None:
    """The operations of a statement; None if it is none of these."""
    action = _ACTIONS.get(type(stmt))
    return None if action is None else action(stmt, walker)


def _im2col(stmt: Im2col, walker: Walk) -> list[Op]:
    """Patches of a convolution, as a bulk copy brings them: the pixels that the rows cover, some channels."""
    source, target = walker.program.buffer(stmt.src.buffer), walker.program.buffer(stmt.dst.buffer)
    rows, columns = (int(evaluate(e, {})) for e in stmt.dst.extents[-2:])
    _, height, width, channels = source.shape
    reach = stmt.dilation * (stmt.kernel - 1) + 1
    out_h, out_w = (_outputs(n, stmt, reach) for n in (height, width))
    first = binary("mul", stmt.nhw_step, Const(rows))
    column = binary("mul", stmt.c_step, Const(columns))
    per_image = binary("mul", out_h, out_w)
    image = binary("floordiv", first, per_image)
    line = binary("mul", binary("floordiv", Binary("mod", first, per_image), out_w), Const(stmt.stride))
    wide = int(evaluate(out_w, {})) if not variables(out_w) else rows
    lines = max(1, -(-rows // max(1, wide))) * stmt.stride
    deep = min(columns, int(evaluate(channels, {}))) if not variables(channels) else columns
    lines *= -(-columns // deep)  # every tap of the kernel brings its own
    row_extent: Expr = width if not variables(width) else Const(rows)
    region = Region(
        source.name,
        (image, line, Const(0), Binary("mod", column, channels)),
        (Const(1), Const(lines), row_extent, Const(deep)),
    )
    points = rows * columns
    cost = walker.rules.move(Copy(region, stmt.dst, loc=stmt.loc), points, source, target)
    label = f"im2col {source.name} → {target.name}"
    return [walker.load_op(region, source, cost, label, target.name, points)]


def _outputs(size: Expr, stmt: Im2col, reach: int) -> Expr:
    room = binary("add", size, Const(2 * stmt.padding - reach))
    return binary("add", binary("floordiv", room, Const(stmt.stride)), Const(1))


def _transpose(stmt: Transpose, walker: Walk) -> list[Op]:
    move = Copy(stmt.src, stmt.dst, loc=stmt.loc)
    source, target = (walker.program.buffer(r.buffer) for r in (stmt.src, stmt.dst))
    cost = walker.rules.move(move, walker.elements(stmt.src, stmt), source, target)
    return [walker.op("vector", f"transpose {source.name} → {target.name}", cost, (source.name,))]


def _finalize(stmt: FinalizeReducer, walker: Walk) -> list[Op]:
    """Every thread has summed its part: one exchange for each result."""
    rows = walker.elements(stmt.src, stmt)
    inner = Reduce("sum", stmt.src, stmt.dst or stmt.src, 0, loc=stmt.loc)
    cost = walker.rules.reduce(inner, max(rows, walker.program.threads), rows)
    return [walker.op("vector", f"finish {stmt.src.buffer}", cost, (stmt.src.buffer,))]


def _extern(stmt: Extern, walker: Walk) -> list[Op]:
    """A call by every thread, at the instructions that the user says."""
    each = float(walker.program.annotation(EXTERN, stmt.name) or 0.0)
    ops: list[Op] = []
    reads: list[str] = []
    for region in stmt.reads:
        tensor = walker.program.buffer(region.buffer)
        if tensor.scope != "global":
            reads.append(region.buffer)
            continue
        name = f"{region.buffer} of {stmt.name}"
        ops.append(walker.load_op(region, tensor, Cost({}, 0.0), f"load {region.buffer}", name))
        reads.append(name)
    target = walker.program.buffers[0] if walker.program.buffers else walker.program.params[0]
    cost = walker.rules.elementwise(walker.program.threads, Count(alu=each, depth=int(each)), target)
    ops.append(walker.op("vector", f"call {stmt.name}", cost, tuple(reads)))
    for region in stmt.writes:
        tensor = walker.program.buffer(region.buffer)
        if tensor.scope == "global":
            ops.append(walker.store_op(region, tensor, "write", Cost({}, 0.0), f"store {region.buffer}"))
    return ops


def _nothing(stmt: Stmt, walker: Walk) -> list[Op]:
    return []


_ACTIONS: dict[type[Stmt], Callable[..., list[Op]]] = {
    Im2col: _im2col,
    Transpose: _transpose,
    FinalizeReducer: _finalize,
    Extern: _extern,
    Hint: _nothing,
    RandomInit: _nothing,
}
