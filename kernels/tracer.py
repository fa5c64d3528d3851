"""The state of one trace: open scopes, names in use, what was read and written when."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from foretile.kernels.errors import TraceError, fail, here
from foretile.kernels.expr import Expr, Var, loads
from foretile.kernels.free import FreeVariables
from foretile.kernels.ir import Loc, Stmt, Swizzle, TileProgram
from foretile.kernels.values import Value

if TYPE_CHECKING:
    from foretile.kernels.handles import BufferHandle


class _State(threading.local):
    tracer: Tracer | None = None


STATE = _State()


class OpenLoop:
    """A loop being traced: when it was opened, and which buffers values used in it were read from."""

    __slots__ = ("pinned", "seq")

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.pinned: dict[str, ReadBinding] = {}


class ReadBinding:
    """A Python name bound to a value that reads buffers.

    The expression is inlined at every use, so it must not be used after a write to one of these
    buffers: TileLang would still see the old value. Such programs are refused, not mistraced.
    """

    __slots__ = ("buffers", "loc", "name", "seq", "tracer")

    def __init__(self, tracer: Tracer, name: str, buffers: tuple[str, ...]) -> None:
        self.tracer = tracer
        self.name = name
        self.buffers = buffers
        self.seq = tracer.seq
        self.loc = here()

    def use(self) -> None:
        """Check that no buffer read has been written since; remember the use in enclosing loops."""
        tracer = self.tracer
        for buffer in self.buffers:
            if tracer.writes.get(buffer, -1) >= self.seq:
                fail(self.message(buffer))
        for loop in reversed(tracer.loops):
            if loop.seq < self.seq:
                break
            for buffer in self.buffers:
                loop.pinned[buffer] = self

    def message(self, buffer: str) -> str:
        """Why the name cannot be used, and what to do."""
        line = f" (line {self.loc.line})" if self.loc else ""
        return (
            f"`{self.name}` was read from {buffer}{line}, which is written before this use; "
            f"keep the old value in a T.alloc_var (x = T.alloc_var(dtype); x = {buffer}[...])"
        )


class Tracer:
    """Collects one kernel."""

    def __init__(self, name: str, loc: Loc | None) -> None:
        self.name = name
        self.loc = loc
        self.params: list[BufferHandle] = []
        self.buffers: list[BufferHandle] = []
        self.names: set[str] = {"T"}
        self.suffixes: dict[str, int] = {}
        self.scopes: list[list[Stmt]] = []
        self.loops: list[OpenLoop] = []
        self.writes: dict[str, int] = {}
        self.seq = 0
        self.grid: tuple[Expr, ...] = ()
        self.block_vars: tuple[Var, ...] = ()
        self.threads = 0
        self.body: tuple[Stmt, ...] | None = None
        self.swizzle: Swizzle | None = None
        self.annotations: list[tuple[str, str]] = []
        self.thread_shape: tuple[int, ...] = ()
        self.thread_names: dict[int, Var] = {}
        self.cluster: tuple[int, ...] = ()
        self.scalars: list[Var] = []
        self.roles: list[str] = []  # of the branches being traced
        self.source = ""

    def unique(self, base: str) -> str:
        """``base``, or ``base_1``, ``base_2``, … if taken; the name is taken from now on."""
        name, i = base, self.suffixes.get(base, 0)
        while name in self.names:
            i += 1
            name = f"{base}_{i}"
        self.suffixes[base] = i  # the lower ones stay taken, so the next search starts here
        self.names.add(name)
        return name

    def thread(self, axis: int) -> Var:
        """The index of a thread in its block along an axis."""
        found = self.thread_names.get(axis)
        if found is None:
            found = self.thread_names[axis] = Var(self.unique(("tx", "ty", "tz")[axis]))
        return found

    def need_kernel(self, what: str) -> None:
        """Fail unless a ``with T.Kernel(...)`` block is open."""
        if not self.scopes:
            where = "after the T.Kernel block has ended" if self.body is not None else "outside T.Kernel"
            fail(f"{what} {where}; put it inside `with T.Kernel(...) as ...:`")

    def emit(self, stmt: Stmt, *written: str) -> None:
        """Append ``stmt`` to the innermost scope; ``written`` are the buffers it changes."""
        self.need_kernel(f"{type(stmt).__name__} statement")
        self.scopes[-1].append(stmt)
        for buffer in written:
            self.seq += 1
            self.writes[buffer] = self.seq
            for loop in self.loops:
                binding = loop.pinned.get(buffer)
                if binding is not None:
                    fail(binding.message(buffer).replace("before this use", "here, later in the same loop"))

    def open_loop(self) -> None:
        """Enter a loop's body."""
        self.seq += 1
        self.loops.append(OpenLoop(self.seq))
        self.scopes.append([])
        self.seq += 1

    def close_loop(self) -> tuple[Stmt, ...]:
        """Leave a loop's body and return it."""
        self.loops.pop()
        return tuple(self.scopes.pop())

    def bind(self, name: str, value: Value) -> None:
        """Note that ``name`` now stands for ``value``."""
        read = tuple(dict.fromkeys(x.buffer for x in loads(value.expr)))
        if read:
            self.seq += 1
            value.binding = ReadBinding(self, name, read)

    def finish(self) -> TileProgram:
        """The program traced."""
        if self.body is None:
            raise TraceError(
                f"{self.name} has no `with T.Kernel(...)` block; a tile program needs exactly one", self.loc
            )
        params = tuple(p.buffer() for p in self.params)
        buffers = tuple(b.buffer() for b in self.buffers)
        axes = range(max(self.thread_names, default=-1) + 1)
        threads = tuple(self.thread(axis) for axis in axes)
        free = FreeVariables()
        free.bound.update(v.name for v in (*self.block_vars, *threads, *self.scalars))
        free.buffers(params)
        free.add(*self.grid)
        free.body(self.body)
        free.buffers(buffers)
        noted = [(f"{kind}:{b.name}", value) for b in self.buffers for kind, value in b.notes]
        return TileProgram(
            name=self.name,
            params=params,
            dims=tuple(free.dims.values()),
            grid=self.grid,
            block_vars=self.block_vars,
            threads=self.threads,
            buffers=buffers,
            body=self.body,
            swizzle=self.swizzle,
            annotations=(*noted, *self.annotations),
            thread_vars=threads,
            thread_shape=self.thread_shape,
            cluster=self.cluster,
            scalars=tuple(self.scalars),
            loc=self.loc,
        )


def current(what: str) -> Tracer:
    """The trace in progress.

    Raises:
        TraceError: none is; ``what`` cannot be done outside a kernel.
    """
    tracer = STATE.tracer
    if tracer is None:
        fail(f"{what} outside a @T.prim_func; it only has a meaning while a kernel is traced")
    return tracer
