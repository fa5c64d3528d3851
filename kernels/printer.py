"""Programs as text: TileLang source a person would write, which traces to the same program again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from foretile.kernels.expr import Const, Load, variables
from foretile.kernels.infer import is_float
from foretile.kernels.ir import (
    AsyncCommit,
    AsyncWait,
    AtomicAdd,
    BarrierArrive,
    BarrierWait,
    Buffer,
    Copy,
    CumSum,
    Extern,
    Fill,
    FinalizeReducer,
    For,
    Gemm,
    Hint,
    Hints,
    If,
    Im2col,
    Jump,
    RandomInit,
    Reduce,
    Stmt,
    Store,
    Sync,
    TileProgram,
    Transpose,
    While,
    walk_stmts,
)
from foretile.kernels.print_expr import ExprPrinter, stop_of

INDENT = "    "
_POLICIES = {"full_row": "T.GemmWarpPolicy.FullRow", "full_col": "T.GemmWarpPolicy.FullCol"}
_ALLOCATE = {
    "shared": "alloc_shared",
    "fragment": "alloc_fragment",
    "local": "alloc_local",
    "tmem": "alloc_tmem",
    "global": "alloc_global",
}
_COPY = {"": "copy", "async": "async_copy", "tma": "tma_copy"}
_GEMM = {"": "gemm", "wgmma": "wgmma_gemm", "tcgen05": "tcgen05_gemm"}
_WAIT = {"cp_async": "ptx_wait_group", "tma_store": "tma_store_wait", "wgmma": "wait_wgmma"}
_COMMIT = {"cp_async": "ptx_commit_group", "tma_store": "tma_store_arrive", "wgmma": "warpgroup_commit_batch"}
_DECLARED = ("barrier", "cluster_barrier", "reducer")  # annotations that are said where the buffer is made
_ZERO = Const(0)


def script(program: TileProgram, header: bool = False) -> str:
    """The program's source text; with ``header`` it starts with the import it needs.

    Raises:
        ValueError: the program holds something the language cannot express.
    """
    return "\n".join(Printer(program).lines(header)) + "\n"


class Printer(ExprPrinter):
    """Writes one program."""

    def __init__(self, program: TileProgram) -> None:
        super().__init__(program)
        self.loop_names = {v.name for s in walk_stmts(program.body) if isinstance(s, For) for v in s.vars}
        self.bound: set[str] = set()

    def lines(self, header: bool) -> Iterator[str]:
        program = self.program
        if header:
            yield from ("from foretile.kernels import language as T", "")
        for dim in program.dims:
            suffix = "" if dim.dtype == "int32" else f', "{dim.dtype}"'
            yield f'{self.var(dim)} = T.dynamic("{dim.name}"{suffix})'
        if program.dims:
            yield ""
        yield "@T.prim_func"
        yield f"def {program.name}("
        for param in program.params:
            yield f"{INDENT}{param.name}: {self.tensor(param)},"
        for scalar in program.scalars:
            yield f"{INDENT}{scalar.name}: T.{self.dtype(scalar.dtype)},"
        yield "):"
        grid = ", ".join(self.expr(e) for e in program.grid)
        names = [v.name for v in program.block_vars]
        target = names[0] if len(names) == 1 else f"({', '.join(names)})"
        threads: Any = program.thread_shape or program.threads
        cluster = f", cluster_dims={program.cluster}" if program.cluster else ""
        yield f"{INDENT}with T.Kernel({grid}, threads={threads}{cluster}) as {target}:"
        inside = [*self.declarations(), *self.block(program.body)]
        for line in inside or ["pass"]:
            yield f"{INDENT * 2}{line}"

    def tensor(self, b: Buffer) -> str:
        """The type of a parameter."""
        if b.strides:
            return f'T.StridedTensor({self.shape(b.shape)}, {self.shape(b.strides)}, "{self.dtype(b.dtype)}")'
        return f'T.Tensor({self.shape(b.shape)}, "{self.dtype(b.dtype)}")'

    def declarations(self) -> Iterator[str]:
        for i, var in enumerate(self.program.thread_vars):
            yield f"{var.name} = T.get_thread_binding({i})"
        for b in self.program.buffers:
            if not self.later(b):
                yield f"{b.name} = {self.allocation(b)}"
        for key, value in self.program.annotations:
            kind, _, name = key.partition(":")
            if kind in _DECLARED:
                continue
            if not name:
                yield f"T.annotate_{kind}({value})"
            elif kind == "pass":
                yield f'T.annotate_pass_configs({{"{name}": {value}}})'
            elif kind == "layout":
                shown = f"T.make_swizzled_layout({name})" if value == "swizzled" else value
                yield f"T.annotate_layout({{{name}: {shown}}})"
            else:
                whole = value.lstrip("-").isdigit()
                shown = self.const(Const(int(value)) if whole else Const(float(value), "float32"))
                yield f"T.annotate_{kind}({{{name}: {shown}}})"
        swizzle = self.program.swizzle
        if swizzle is not None:
            yield f'T.use_swizzle({swizzle.panel_size}, order="{swizzle.order}")'

    def allocation(self, b: Buffer) -> str:
        """The call that makes a buffer."""
        options = "".join(
            [
                *([f", strides={self.shape(b.strides)}"] if b.strides else []),
                *([f", offset={self.expr(b.offset)}"] if b.offset is not None else []),
            ]
        )
        shaped = f'{self.shape(b.shape)}, "{self.dtype(b.dtype)}"{options}'
        if b.alias:
            return f"T.view({b.alias}, {shaped})"
        if b.address is not None:
            return f"T.make_tensor({self.expr(b.address)}, {shaped})"
        if b.scope == "var":
            return f'T.alloc_var("{self.dtype(b.dtype)}")'
        if b.scope == "barrier":
            own = self.program.annotation("barrier", b.name)
            counts = own or self.program.annotation("cluster_barrier", b.name) or ""
            return f"T.alloc_{'barrier' if own else 'cluster_barrier'}([{', '.join(counts.split(','))}])"
        reducer = self.program.annotation("reducer", b.name)
        if reducer is not None:
            op, _, replication = reducer.partition(":")
            how = f', replication="{replication}"' if replication else ""
            return f'T.alloc_reducer({shaped}, op="{op}"{how})'
        return f"T.{_ALLOCATE[b.scope]}({shaped})"

    def block(self, body: tuple[Stmt, ...]) -> Iterator[str]:
        for stmt in body:
            yield from getattr(self, _STATEMENTS[type(stmt)])(stmt)

    def indented(self, body: tuple[Stmt, ...]) -> Iterator[str]:
        for line in self.block(body) if body else ["pass"]:
            yield INDENT + line

    # -- statements ---------------------------------------------------------------------------

    def copy(self, s: Copy) -> Iterator[str]:
        options = [*self.barrier(s.barrier, "barrier"), *_options(s.hints)]
        # TileLang completes corners of plain copies only.
        sides = (self.region(s.src), self.region(s.dst)) if s.mode else self.pair(s.src, s.dst)
        yield f"T.{_COPY[s.mode]}({', '.join([*sides, *options])})"

    def barrier(self, place: Load | None, name: str) -> list[str]:
        return [] if place is None else [f"{name}={self.element(place.buffer, place.indices)}"]

    def atomic_add(self, s: AtomicAdd) -> Iterator[str]:
        source, target = self.pair(s.src, s.dst)
        yield f"T.atomic_{s.kind}({', '.join([target, source, *_options(s.hints)])})"

    def gemm(self, s: Gemm) -> Iterator[str]:
        options = [
            *(["transpose_A=True"] if s.trans_a else []),
            *(["transpose_B=True"] if s.trans_b else []),
            *([f"policy={_POLICIES[s.policy]}"] if s.policy != "square" else []),
            *(["clear_accum=True"] if s.clear_accum else []),
            *([f"clear_accum={self.expr(s.clear_if)}"] if s.clear_if is not None else []),
            *([f"k_start={self.expr(s.k_start)}"] if s.k_start is not None else []),
            *self.barrier(s.barrier, "mbar"),
            *([f"wg_wait={s.wait}"] if s.wait is not None else []),
            *_options(s.hints),
        ]
        order = (s.a, s.metadata, s.b, s.c, s.a_scale, s.b_scale)
        regions = [self.region(r) for r in order if r is not None]
        name = "gemm_sp" if s.metadata is not None else _GEMM[s.mode]
        scaled = "" if s.a_scale is None else "_blockscaled"
        yield f"T.{name}{scaled}({', '.join([*regions, *options])})"

    def fill(self, s: Fill) -> Iterator[str]:
        dtype = self.dtypes[s.dst.buffer]
        zero = (
            Const(0.0, "float32") if is_float(dtype) else Const(False, "bool") if dtype == "bool" else _ZERO
        )
        if s.value == zero:
            yield f"T.clear({self.region(s.dst)})"
        else:
            yield f"T.fill({self.region(s.dst)}, {self.expr(s.value, 0, dtype)})"

    def reduce(self, s: Reduce) -> Iterator[str]:
        keep = "" if s.clear else ", clear=False"
        hints = "".join(f", {option}" for option in _options(s.hints))
        yield f"T.reduce_{s.kind}({self.region(s.src)}, {self.region(s.dst)}, dim={s.dim}{keep}{hints})"

    def cumsum(self, s: CumSum) -> Iterator[str]:
        reverse = ", reverse=True" if s.reverse else ""
        yield f"T.cum{s.kind}({self.region(s.src)}, {self.region(s.dst)}, dim={s.dim}{reverse})"

    def store(self, s: Store) -> Iterator[str]:
        value = self.expr(s.value, 0, self.dtypes[s.buffer])
        place = self.element(s.buffer, s.indices)
        if s.previous is not None:
            found = self.element(s.previous.buffer, s.previous.indices)
            yield f"{found} = T.atomic_{s.atomic}({place}, {value}, return_prev=True)"
        elif s.atomic and self.program.annotation("reducer", s.buffer) is not None:
            yield f"T.reducer_update({place}, {value})"
        else:
            yield f"T.atomic_{s.atomic}({place}, {value})" if s.atomic else f"{place} = {value}"

    def sync(self, s: Sync) -> Iterator[str]:
        if s.scope == "block" and s.phase == "arrive":
            assert s.ident is not None
            assert s.threads is not None
            yield f"T.named_barrier_arrive({self.expr(s.ident)}, {self.expr(s.threads)})"
        elif s.scope == "block":
            yield f"T.sync_threads({', '.join(self.expr(e) for e in (s.ident, s.threads) if e is not None)})"
        elif s.scope == "cluster":
            yield f"T.cluster_{s.phase or 'sync'}()"
        else:
            yield f"T.sync_{s.scope}()"

    def if_(self, s: If) -> Iterator[str]:
        word = "if"
        while True:
            yield f"{word} {self.expr(s.cond)}:"
            if s.role:
                yield f'{INDENT}T.role("{s.role}")'
            yield from self.indented(s.then)
            if len(s.orelse) != 1 or not isinstance(s.orelse[0], If):
                break
            s, word = s.orelse[0], "elif"
        if s.orelse:
            yield "else:"
            yield from self.indented(s.orelse)

    def while_(self, s: While) -> Iterator[str]:
        yield f"while {self.expr(s.cond)}:"
        yield from self.indented(s.body)

    def for_(self, s: For) -> Iterator[str]:
        names = ", ".join(v.name for v in _spoken(s, s.vars))
        yield f"for {names} in {self.iterable(s)}:"
        inside = {v.name for v in s.vars}
        self.bound |= inside
        for b in self.program.buffers:
            needed = self.later(b)
            if needed & inside and needed <= self.bound:
                yield f"{INDENT}{b.name} = {self.allocation(b)}"
        yield from self.indented(s.body)
        self.bound -= inside

    def later(self, b: Buffer) -> set[str]:
        """The loop variables that say where a buffer lies: it is declared where they are known."""
        places = [e for e in (b.offset, b.address) if e is not None]
        return {name for e in places for name in variables(e)} & self.loop_names

    def iterable(self, s: For) -> str:
        extents = ", ".join(self.expr(e) for e in _spoken(s, s.extents))
        if s.kind in ("parallel", "persistent"):
            if s.start is not None or s.step != 1:
                raise ValueError(f"a {s.kind} loop over {extents} cannot have a start or a step")
            if s.kind == "parallel":
                return f"T.Parallel({', '.join([extents, *_options(s.hints)])})"
            wave, index = self.expr(self.program.grid[0]), self.program.block_vars[0].name
            grouped = f"group_size={s.group_size}"
            return (
                f"T.Persistent({', '.join([f'[{extents}], {wave}, {index}, {grouped}', *_options(s.hints)])})"
            )
        if len(s.vars) != 1:
            raise ValueError(f"a {s.kind} loop has one variable, not {len(s.vars)}")
        span = self.span(s)
        if s.kind == "pipelined":
            return f"T.Pipelined({', '.join([span, f'num_stages={s.num_stages}', *_options(s.hints)])})"
        return f"T.{s.kind}({', '.join([span, *_options(s.hints)])})"

    def span(self, s: For) -> str:
        (extent,) = s.extents
        if s.start is None and s.step == 1:
            return self.expr(extent)
        start = _ZERO if s.start is None else s.start
        stop = self.expr(stop_of(start, extent, s.step))
        if s.step == 1:
            return f"{self.expr(start)}, {stop}"
        if s.kind == "pipelined":
            raise ValueError(f"a pipelined loop cannot have the step {s.step}")
        return f"{self.expr(start)}, {stop}, {s.step}"

    # -- statements of threads, barriers and asynchronous engines ------------------------------

    def im2col(self, s: Im2col) -> Iterator[str]:
        steps = f"{self.expr(s.nhw_step)}, {self.expr(s.c_step)}"
        window = f"{s.kernel}, {s.stride}, {s.dilation}, {s.padding}"
        parts = [self.region(s.src), self.region(s.dst), steps, window, *_options(s.hints)]
        yield f"T.im2col({', '.join(parts)})"

    def transpose(self, s: Transpose) -> Iterator[str]:
        yield f"T.transpose({self.region(s.src)}, {self.region(s.dst)})"

    def finalize(self, s: FinalizeReducer) -> Iterator[str]:
        parts = [self.region(r) for r in (s.src, s.dst) if r is not None]
        yield f"T.finalize_reducer({', '.join([*parts, *_options(s.hints)])})"

    def arrive(self, s: BarrierArrive) -> Iterator[str]:
        place = self.element(s.barrier.buffer, s.barrier.indices)
        if s.after == "cp_async":
            yield f"T.cp_async_barrier_noinc({place})"
        elif s.after == "tcgen05":
            yield f"T.tcgen05_mma_arrive({', '.join([place, *_options(s.hints)])})"
        elif s.expect_bytes is not None:
            word = "arrive_expect_tx" if s.arrive else "expect_tx"
            yield f"T.mbarrier_{word}({place}, {self.expr(s.expect_bytes)})"
        else:
            cta = "" if s.cta is None else f", {self.expr(s.cta)}"
            yield f"T.mbarrier_arrive({place}{cta})"

    def wait(self, s: BarrierWait) -> Iterator[str]:
        place = self.element(s.barrier.buffer, s.barrier.indices)
        yield f"T.mbarrier_wait_parity({place}, {self.expr(s.parity)})"

    def async_commit(self, s: AsyncCommit) -> Iterator[str]:
        yield f"T.{_COMMIT[s.kind]}()"

    def async_wait(self, s: AsyncWait) -> Iterator[str]:
        yield f"T.{_WAIT[s.kind]}({self.expr(s.pending)})"

    def jump(self, s: Jump) -> Iterator[str]:
        yield "T.thread_return()" if s.kind == "return" else s.kind

    def random(self, s: RandomInit) -> Iterator[str]:
        args = ", ".join(self.expr(e) for e in (s.seed, s.sequence, s.offset))
        yield f'T.rng_init({args}, generator="{s.generator}")'

    def hint(self, s: Hint) -> Iterator[str]:
        yield f"T.{s.name}({', '.join(s.args)})"

    def extern(self, s: Extern) -> Iterator[str]:
        parts = [
            f'"{s.name}"',
            *(self.expr(e) for e in s.args),
            *([f"reads=[{', '.join(map(self.region, s.reads))}]"] if s.reads else []),
            *([f"writes=[{', '.join(map(self.region, s.writes))}]"] if s.writes else []),
            *([f"source={s.source!r}"] if s.source else []),
        ]
        yield f"T.extern({', '.join(parts)})"


def _spoken(s: For, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """A loop's variables or extents as one writes them: the grouped coordinate of dealt points is last."""
    return (*parts[1:], parts[0]) if s.kind == "persistent" else parts


def _options(hints: Hints) -> list[str]:
    """Hints as keyword arguments."""
    return [f"{name}={value}" for name, value in hints]


_STATEMENTS: dict[type[Stmt], str] = {  # methods of Printer
    Copy: "copy",
    Gemm: "gemm",
    Fill: "fill",
    Reduce: "reduce",
    CumSum: "cumsum",
    AtomicAdd: "atomic_add",
    Store: "store",
    Sync: "sync",
    For: "for_",
    If: "if_",
    While: "while_",
    Im2col: "im2col",
    Transpose: "transpose",
    FinalizeReducer: "finalize",
    BarrierArrive: "arrive",
    BarrierWait: "wait",
    AsyncCommit: "async_commit",
    AsyncWait: "async_wait",
    Jump: "jump",
    RandomInit: "random",
    Hint: "hint",
    Extern: "extern",
}
