"""Random valid tile programs, for round trips here and for fuzzing the simulator.

``programs()`` draws programs that read nothing they have not written, never race, and stay finite:
two implementations of the language have to agree on them. ``bindings(program)`` draws small sizes for
the symbolic dimensions. Every program has the parameters ``X`` (m, k), ``Y`` ((k, n) or (n, k)),
``V`` (n,), ``I`` (m,; integers from 0 to 7), the outputs ``O`` (m, n) and ``R`` (m,), and, if it adds
atomically, ``S`` (m, n). With a third grid axis, ``X`` and ``O`` have a leading batch axis.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from foretile.kernels.ir import TileProgram
from foretile.kernels.load import from_script

INDEX_LIMIT = 8
"""Values of the integer input ``I`` have to be below this and not negative."""


@dataclass
class _Draft:
    """Source being written, and what may be read at this point."""

    draw: st.DrawFn
    rows: int
    cols: int
    depth: int = 2
    lines: list[str] = field(default_factory=list)
    tiles: list[str] = field(default_factory=list)  # (rows, cols) float32 fragments with a value
    vectors: list[str] = field(default_factory=list)  # (rows,) float32 fragments with a value
    scalars: list[str] = field(default_factory=list)  # float32 variables with a value
    loops: list[str] = field(default_factory=list)
    count: int = 0

    def put(self, line: str) -> None:
        self.lines.append("    " * self.depth + line)

    def name(self, base: str) -> str:
        self.count += 1
        return f"{base}{self.count}"

    def pick(self, *options: str) -> str:
        return self.draw(st.sampled_from(options))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def literal(self) -> str:
        return repr(self.draw(st.sampled_from((0.0, 0.5, 1.0, -1.5, 0.25, 3.0, -0.125))))

    # -- expressions --------------------------------------------------------------------------

    def integer(self, indices: list[str], depth: int = 2) -> str:
        leaves = [*indices, *self.loops, "bx", str(self.number(0, 9))]
        if depth == 0 or self.draw(st.booleans()):
            return self.pick(*leaves)
        a, b = self.integer(indices, depth - 1), self.integer(indices, depth - 1)
        constant = self.number(1, 7)
        return self.pick(
            f"({a} + {b})",
            f"({a} - {b})",
            f"({a} * {constant})",
            f"({a} // {constant})",
            f"({a} % {constant})",
            f"T.min({a}, {b})",
            f"T.max({a}, {b})",
            f"T.ceildiv({a}, {constant})",
            f"({a} & {constant})",
            f"({a} << {self.number(0, 2)})",
            f"T.if_then_else({a} < {b}, {a}, {b})",
        )

    def condition(self, indices: list[str], depth: int = 1) -> str:
        if depth and self.draw(st.integers(0, 3)) == 0:
            a, b = self.condition(indices, depth - 1), self.condition(indices, depth - 1)
            return self.pick(f"({a} and {b})", f"({a} or {b})", f"(not {a})")
        op = self.pick("<", "<=", ">", ">=", "==", "!=")
        return f"{self.integer(indices, 1)} {op} {self.integer(indices, 1)}"

    def value(self, indices: list[str], depth: int = 2) -> str:
        """A float expression of modest size at the point ``indices`` of a tile or of a vector."""
        leaves = [self.literal(), f"T.cast({self.pick(*indices)}, 'float32') * 0.125", *self.scalars]
        if len(indices) == 2:
            leaves += [f"{t}[{', '.join(indices)}]" for t in self.tiles]
        leaves += [f"{v}[{indices[0]}]" for v in self.vectors]
        if depth == 0:
            return self.pick(*leaves)
        a, b = self.value(indices, depth - 1), self.value(indices, depth - 1)
        return self.pick(
            *leaves,
            f"({a} + {b})",
            f"({a} - {b})",
            f"T.tanh({a}) * {b}",
            f"T.max({a}, {b})",
            f"T.min({a}, {self.literal()})",
            f"({a} * {self.literal()})",
            f"({a} / 4)",
            f"-{a}" if not a.startswith("-") else a,
            f"T.sigmoid({a})",
            f"T.exp2(T.clamp({a}, -4.0, 2.0))",
            f"T.sqrt(T.abs({a}) + 1)",
            f"T.cast(T.cast(T.tanh({a}), 'bfloat16'), 'float32')",
            f"T.if_then_else({self.condition(indices, 0)}, {a}, {b})",
        )

    # -- statements ---------------------------------------------------------------------------

    def tile(self) -> str:
        name = self.name("t")
        self.put(f'{name} = T.alloc_fragment(({self.rows}, {self.cols}), "float32")')
        return name

    def elementwise(self) -> None:
        target = self.tile() if self.draw(st.booleans()) else self.pick(*self.tiles)
        self.put(f"for i, j in T.Parallel({self.rows}, {self.cols}):")
        branch = target in self.tiles and self.draw(st.booleans())
        if branch:
            self.put(f"    if {self.condition(['i', 'j'])}:")
            self.put(f"        {target}[i, j] = {self.value(['i', 'j'])}")
            if self.draw(st.booleans()):
                self.put("    else:")
                self.put(f"        {target}[i, j] += {self.value(['i', 'j'], 1)}")
        else:
            self.put(f"    {target}[i, j] = {self.value(['i', 'j'])}")
        if target not in self.tiles:
            self.tiles.append(target)

    def fill(self) -> None:
        target = self.tile()
        self.put(self.pick(f"T.clear({target})", f"T.fill({target}, {self.literal()})"))
        self.tiles.append(target)

    def reduce(self) -> None:
        source = self.pick(*self.tiles)
        kind = self.pick("sum", "max", "min", "absmax", "abssum")
        clear = not self.vectors or self.draw(st.booleans())
        if clear:
            target = self.name("v")
            self.put(f'{target} = T.alloc_fragment(({self.rows},), "float32")')
        else:
            target = self.pick(*self.vectors)
        self.put(f"T.reduce_{kind}({source}, {target}, dim=1{'' if clear else ', clear=False'})")
        self.put(f"for i in T.Parallel({self.rows}):")
        self.put(f"    {target}[i] = T.tanh({target}[i] * 0.125)")
        if clear:
            self.vectors.append(target)

    def scan(self) -> None:
        target = self.pick(*self.tiles)
        dim, reverse = self.number(0, 1), self.draw(st.booleans())
        self.put(f"T.cumsum({target}, dim={dim}{', reverse=True' if reverse else ''})")
        self.put(f"for i, j in T.Parallel({self.rows}, {self.cols}):")
        self.put(f"    {target}[i, j] = {target}[i, j] * 0.0625")

    def through_shared(self) -> None:
        source, shared, target = self.pick(*self.tiles), self.name("s"), self.tile()
        dtype = self.pick("float32", "bfloat16", "float16")
        self.put(f'{shared} = T.alloc_shared(({self.rows}, {self.cols}), "{dtype}")')
        self.put(f"T.copy({source}, {shared})")
        if self.draw(st.booleans()):
            self.put("T.sync_threads()")
        self.put(f"T.copy({shared}, {target})")
        self.tiles.append(target)

    def scalar(self) -> None:
        name = self.name("x")
        self.put(f'{name} = T.alloc_var("float32", init={self.literal()})')
        start, step = self.number(0, 3), self.number(1, 3)
        k = self.name("k")
        self.put(f"for {k} in range({start}, {start + self.number(0, 6)}, {step}):")
        self.put(f"    {name} = {name} * 0.5 + {k}")
        if self.draw(st.booleans()):
            self.put(f"if {name} > {self.literal()}:")
            self.put(f"    {name} -= 1")
        self.scalars.append(name)

    def gather(self) -> None:
        target = self.name("v")
        self.put(f'{target} = T.alloc_fragment(({self.rows},), "float32")')
        self.put(f"for i in T.Parallel({self.rows}):")
        self.put(f"    {target}[i] = V[I[by * {self.rows} + i]]")
        self.vectors.append(target)

    def statement(self, nested: bool) -> None:
        kinds = [self.elementwise, self.elementwise, self.fill, self.reduce, self.scan, self.through_shared]
        if not nested:
            kinds += [self.scalar, self.gather, self.loop, self.branch]
        self.draw(st.sampled_from(kinds))()

    def nested(self, count: int) -> None:
        """Statements inside a loop or a branch: what they define is forgotten afterwards."""
        known = (list(self.tiles), list(self.vectors), list(self.scalars))
        self.depth += 1
        for _ in range(count):
            self.statement(nested=True)
        self.depth -= 1
        self.tiles, self.vectors, self.scalars = known

    def loop(self) -> None:
        k = self.name("k")
        extent, start = self.number(0, 3), self.number(0, 2)
        header = self.pick(
            f"T.serial({extent})",
            f"T.serial({start}, {start + extent})",
            f"T.serial({start}, {start + 2 * extent}, 2)",
            f"T.unroll({extent})",
            f"range({extent}, -1, -1)",
            f"T.Pipelined({extent}, num_stages={self.number(0, 3)})",
            f"T.serial(bx % {self.number(1, 4)})",
        )
        self.put(f"for {k} in {header}:")
        self.loops.append(k)
        self.nested(self.number(1, 2))
        self.loops.pop()

    def branch(self) -> None:
        self.put(f"if bx % 2 == {self.number(0, 1)}:")
        self.nested(self.number(1, 2))
        if self.draw(st.booleans()):
            self.put(f"elif by > {self.number(0, 2)}:")
            self.nested(1)
        if self.draw(st.booleans()):
            self.put("else:")
            self.nested(1)


@st.composite
def sources(draw: st.DrawFn) -> str:
    """Source text of a random program."""
    rows, cols, depth = (draw(st.sampled_from((16, 32))) for _ in range(3))
    sizes = {d: draw(st.sampled_from((None, 16, 40, 64))) for d in ("m", "n", "k")}
    dims = {d: d if size is None else str(size) for d, size in sizes.items()}
    batch = draw(st.sampled_from(("", "", "b", "2")))
    dtype = draw(st.sampled_from(("float16", "bfloat16", "float32")))
    transposed, atomic, persistent = draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 5)) == 0
    if persistent:
        batch = ""
    d = _Draft(draw, rows, cols)
    m, n, k = dims["m"], dims["n"], dims["k"]
    x, o = (f"({batch}, {m}, {k})", f"({batch}, {m}, {n})") if batch else (f"({m}, {k})", f"({m}, {n})")
    for name in (*(name for name, size in sizes.items() if size is None), *(["b"] if batch == "b" else [])):
        d.lines.append(f'{name} = T.dynamic("{name}")')
    d.lines += [
        "@T.prim_func",
        "def program(",
        f'    X: T.Tensor({x}, "{dtype}"),',
        f'    Y: T.Tensor({(f"({n}, {k})" if transposed else f"({k}, {n})")}, "{dtype}"),',
        f'    V: T.Tensor(({n},), "float32"),',
        f'    I: T.Tensor(({m},), "int32"),',
        f'    O: T.Tensor({o}, "{draw(st.sampled_from((dtype, "float32")))}"),',
        f'    R: T.Tensor(({m},), "float32"),',
    ]
    if atomic:
        d.lines.append(f'    S: T.Tensor(({m}, {n}), "float32"),')
    d.lines.append("):")
    across, down = f"T.ceildiv({n}, {cols})", f"T.ceildiv({m}, {rows})"
    threads = draw(st.sampled_from((32, 64, 128, 256)))
    if persistent:
        d.lines.append(f"    with T.Kernel({draw(st.integers(1, 5))}, threads={threads}) as block:")
        wave = d.lines[-1].split("(")[1].split(",")[0]
        group = draw(st.sampled_from((0, 1, 2, 8)))
        d.put(f"for bx, by in T.Persistent([{across}, {down}], {wave}, block, group_size={group}):")
        d.depth += 1
    else:
        grid, names = ([across, down, batch], "bx, by, bz") if batch else ([across, down], "bx, by")
        d.lines.append(f"    with T.Kernel({', '.join(grid)}, threads={threads}) as ({names}):")
        if draw(st.booleans()):
            d.put(f'T.use_swizzle({draw(st.integers(1, 12))}, order="{d.pick("row", "col")}")')
    _mainloop(d, depth, k, dtype, transposed, "bz, " if batch else "")
    for _ in range(draw(st.integers(0, 5))):
        d.statement(nested=False)
    if not d.vectors:
        d.reduce()
    corner = f"by * {rows}, bx * {cols}"
    d.put(f"T.copy({d.pick(*d.tiles)}, O[{'bz, ' if batch else ''}{corner}])")
    # Blocks of one row write the same vector only if it cannot depend on the column block.
    d.put(f"if bx == 0{' and bz == 0' if batch else ''}:")
    vector = d.pick(*d.vectors)
    if draw(st.booleans()):
        d.put(f"    T.copy({vector}, R[by * {rows}])")
    else:
        d.put(f"    for i in T.Parallel({rows}):")
        d.put(f"        R[by * {rows} + i] = {vector}[i]")
    if atomic:
        d.put(f"T.atomic_add(S[{corner}], {d.tiles[0]})")
    return "\n".join(d.lines) + "\n"


def _mainloop(d: _Draft, depth: int, k: str, dtype: str, transposed: bool, batch: str) -> None:
    rows, cols = d.rows, d.cols
    acc = d.tile()
    y_tile = (cols, depth) if transposed else (depth, cols)
    d.put(f'xs = T.alloc_shared(({rows}, {depth}), "{dtype}")')
    d.put(f'ys = T.alloc_shared({y_tile}, "{dtype}")')
    clear = d.draw(st.booleans())
    if clear:
        d.put(f"T.clear({acc})")
    loop = d.pick("T.Pipelined({0}, num_stages=2)", "T.Pipelined({0}, num_stages=0)", "T.serial({0})")
    if clear:
        d.put(f"for kk in {loop.format(f'T.ceildiv({k}, {depth})')}:")
        first, inside = f"kk * {depth}", "    "
    else:
        first, inside = "0", ""
    x_source = d.pick(
        f"X[{batch}by * {rows}, {first}]",
        f"X[{batch}by * {rows} : (by + 1) * {rows}, {first} : {first} + {depth}]",
    )
    d.put(f"{inside}T.copy({x_source}, xs)")
    y_first = f"bx * {cols}, {first}" if transposed else f"{first}, bx * {cols}"
    d.put(f"{inside}T.copy(Y[{y_first}], ys)")
    policy = d.pick("", ", policy=T.GemmWarpPolicy.FullRow", ", policy=T.GemmWarpPolicy.FullCol")
    flags = (", transpose_B=True" if transposed else "") + policy + ("" if clear else ", clear_accum=True")
    d.put(f"{inside}T.gemm(xs, ys, {acc}{flags})")
    d.tiles.append(acc)


@st.composite
def programs(draw: st.DrawFn) -> TileProgram:
    """Random valid programs."""
    return from_script(draw(sources()))


def bindings(program: TileProgram) -> st.SearchStrategy[dict[str, int]]:
    """Small sizes for the program's symbolic dimensions, often no multiple of a tile."""
    sizes = {d.name: st.integers(1, 2) if d.name == "b" else st.integers(8, 70) for d in program.dims}
    return st.fixed_dictionaries(sizes)
