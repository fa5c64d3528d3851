"""Kernels of several roles: producers, consumers and what orders them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from lane_programs import Kernel, Name, arrive, copy, gemm, loc, loop, number, put, tx, var, wait, when

from foretile.kernels.expr import Const
from foretile.kernels.ir import (
    AsyncCommit,
    AsyncWait,
    BarrierArrive,
    BarrierWait,
    Fill,
    For,
    Hint,
    If,
    Region,
    Stmt,
    Sync,
    TileProgram,
)
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.execute import execute
from foretile.simulator.threads import teams_of

RNG = np.random.default_rng(11)
M, N, K, DEPTH, STAGES = 32, 16, 80, 16, 2


def operands() -> dict[str, np.ndarray]:
    """Whole numbers, of which products and sums are exact."""
    shapes = {"A": (2 * M, K), "B": (K, 2 * N)}
    return {n: RNG.integers(-4, 5, s).astype(np.float16) for n, s in shapes.items()}


def expected(given: dict[str, np.ndarray]) -> np.ndarray:
    """The product."""
    return given["A"].astype(np.float32) @ given["B"].astype(np.float32)


STEP = var("i")
STAGE, TURN = STEP % STAGES, STEP // STAGES % 2


def fetched(k: Kernel, full: Name, empty: Name) -> tuple[tuple[Region, Region], For]:
    """A ring of ``STAGES`` tiles of A and B: the two tiles of a step, and the loop that fetches them."""
    a, b = k.tensor("A", (2 * M, K), "float16"), k.tensor("B", (K, 2 * N), "float16")
    a_s = k.alloc("a_s", (STAGES, M, DEPTH), "float16", "shared").box(STAGE, (0, M), (0, DEPTH))
    b_s = k.alloc("b_s", (STAGES, DEPTH, N), "float16", "shared").box(STAGE, (0, DEPTH), (0, N))
    brings: dict[str, Any] = {"mode": "tma", "barrier": full.load(STAGE)}
    producer = loop(
        "i",
        K // DEPTH,
        wait(empty, STAGE, (STEP // STAGES + 1) % 2),
        copy(a.box((var("by") * M, M), (STEP * DEPTH, DEPTH)), a_s, **brings),
        copy(b.box((STEP * DEPTH, DEPTH), (var("bx") * N, N)), b_s, **brings),
        arrive(full, STAGE),
    )
    return (a_s, b_s), producer


def produced() -> TileProgram:
    """A product whose tiles one warp group fetches and another multiplies."""
    k = Kernel(256, (2, 2))
    full, empty = k.barrier("full", (128,) * STAGES), k.barrier("empty", (128,) * STAGES)
    tiles, producer = fetched(k, full, empty)
    c = k.tensor("C", (2 * M, 2 * N), "float32")
    acc = k.alloc("acc", (M, N), "float32", "fragment")
    consumer = (
        Fill(acc.box(), Const(0.0, "float32"), loc=loc()),
        loop(
            "i",
            K // DEPTH,
            wait(full, STAGE, TURN),
            gemm(*tiles, acc.box()),
            arrive(empty, STAGE),
        ),
        copy(acc.box(), c.box((var("by") * M, M), (var("bx") * N, N))),
    )
    return k.program(
        Hint("fence_barrier_init"),
        when(tx() >= 128, Hint("set_max_nreg", ("24", "0")), producer, role="warp_specialize"),
        when(tx() < 128, *consumer, role="warp_specialize"),
    )


def without(body: tuple[Stmt, ...], drop: Any) -> tuple[Stmt, ...]:
    """Statements less those that ``drop`` picks."""
    found: list[Stmt] = []
    for s in body:
        if drop(s):
            continue
        if isinstance(s, For):
            s = replace(s, body=without(s.body, drop))
        elif isinstance(s, If):
            s = replace(s, then=without(s.then, drop), orelse=without(s.orelse, drop))
        found.append(s)
    return tuple(found)


def test_producer_and_consumer() -> None:
    given = operands()
    program = produced()
    assert [int(t.sum()) for t in teams_of(program)] == [128, 128]
    assert np.array_equal(execute(program, given).tensors["C"], expected(given))


def test_the_order_of_roles_in_the_source_does_not_matter() -> None:
    given, program = operands(), produced()
    hint, first, second = program.body
    assert np.array_equal(
        execute(replace(program, body=(hint, second, first)), given).tensors["C"], expected(given)
    )


@pytest.mark.parametrize("barrier", ["full", "empty"])
def test_a_missing_wait_is_a_race(barrier: str) -> None:
    """Without the wait the tile is read before it is there, or overwritten while it is read."""
    program = produced()
    body = without(program.body, lambda s: isinstance(s, BarrierWait) and s.barrier.buffer == barrier)
    text = {
        "full": r"reads a_s, which was never written|read a_s while an asynchronous copy .* still writes it",
        "empty": r"write a_s, which threads 0–127 read.* no barrier|write a_s while an asynchronous copy",
    }
    with pytest.raises(NumericsError, match=text[barrier]):
        execute(replace(program, body=body), operands())


@pytest.mark.parametrize("barrier", ["full", "empty"])
def test_a_missing_arrival_is_a_deadlock(barrier: str) -> None:
    program = produced()
    body = without(program.body, lambda s: isinstance(s, BarrierArrive) and s.barrier.buffer == barrier)
    with pytest.raises(
        NumericsError,
        match=rf"deadlock: .*wait at kernel.py:\d+ for {barrier}\[\d\] parity \d \(phase \d, 0 of 128",
    ):
        execute(replace(program, body=body), operands())


def test_wrong_parity_is_found() -> None:
    """A consumer that waits for the phase before reads tiles that are not there."""
    program = produced()

    def turned(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        found: list[Stmt] = []
        for s in body:
            if isinstance(s, For | If):
                inner = "body" if isinstance(s, For) else "then"
                s = replace(s, **{inner: turned(getattr(s, inner))})
            if isinstance(s, BarrierWait) and s.barrier.buffer == "full":
                s = replace(s, parity=number((var("i") // STAGES + 1) % 2))
            found.append(s)
        return tuple(found)

    with pytest.raises(NumericsError, match=r"never written|nothing waits for it to complete"):
        execute(replace(program, body=turned(program.body)), operands())


def test_too_many_arrivals() -> None:
    program = produced()
    notes = tuple((k, "64,64" if k == "barrier:full" else v) for k, v in program.annotations)
    with pytest.raises(NumericsError, match=r"128 threads arrive at full\[0\].* of the 64 arrivals"):
        execute(replace(program, annotations=notes), operands())


def ping_pong(rounds: int, *, apart: bool = True) -> TileProgram:
    """Two consumers take turns on a tile that a producer fills; ``apart``: by a barrier for each."""
    k = Kernel(384, (3,))
    x = k.tensor("X", (3 * rounds * 2, 8, 8), "float32")
    y = k.tensor("Y", (3, 2, 8, 8), "float32")
    tile = k.alloc("tile", (8, 8), "float32", "shared")
    sums = [k.alloc(f"sum{g}", (8, 8), "float32", "fragment") for g in range(2)]
    full, empty = k.barrier("full", (1, 1)), k.barrier("empty", (128,))
    i, bx = var("i"), var("bx")
    feed = loop(
        "i",
        2 * rounds,
        wait(empty, 0, (i + 1) % 2),
        copy(
            x.box(bx * 2 * rounds + i, (0, 8), (0, 8)),
            tile.box(),
            mode="tma",
            barrier=full.load(i % 2 if apart else 0),
        ),
        when(tx() == 256, arrive(full, i % 2 if apart else 0)),
    )

    def consumer(g: int) -> tuple[Stmt, ...]:
        mine = sums[g]
        p, q = var("p"), var("q")
        add = For(
            (p.expr, q.expr),  # type: ignore[arg-type]
            (Const(8), Const(8)),
            "parallel",
            (put(mine[p, q], mine[p, q] * 2.0 + tile[p, q]),),
            loc=loc(),
        )
        return (
            Fill(mine.box(), Const(0.0, "float32"), loc=loc()),
            loop("i", rounds, wait(full, g, i % 2) if apart else wait(full, 0, g), add, arrive(empty, 0)),
            copy(mine.box(), y.box(bx, g, (0, 8), (0, 8))),
        )

    return k.program(
        when(tx() < 128, *consumer(0), orelse=(when(tx() < 256, *consumer(1), orelse=(feed,)),)),
    )


@pytest.mark.parametrize("rounds", [1, 3])
def test_ping_pong(rounds: int) -> None:
    x = RNG.integers(-3, 4, (3 * rounds * 2, 8, 8)).astype(np.float32)
    program = ping_pong(rounds)
    assert sorted(int(t.sum()) for t in teams_of(program)) == [128, 128, 128]
    y = execute(program, {"X": x}).tensors["Y"]
    parts = x.reshape(3, rounds, 2, 8, 8)
    weights = 2.0 ** np.arange(rounds - 1, -1, -1)
    assert np.array_equal(y, np.einsum("brgij,r->bgij", parts, weights))


def test_a_parity_that_the_phase_before_satisfies() -> None:
    """With one barrier for both, the second consumer's first wait is for the phase before the first."""
    with pytest.raises(NumericsError, match=r"tile.* (never written|no barrier|nothing waits)"):
        execute(ping_pong(2, apart=False), {"X": np.zeros((12, 8, 8), np.float32)})


def grouped(pending: int, wait_at_all: bool = True) -> TileProgram:
    """Tiles that come by groups of asynchronous copies, one ahead of the one in use."""
    k = Kernel(128, (2,))
    x = k.tensor("X", (2, 6, 16), "float32")
    y = k.tensor("Y", (2, 16), "float32")
    ring = k.alloc("ring", (3, 16), "float32", "shared")
    total = k.alloc("total", (16,), "float32", "fragment")
    bx, i, q = var("bx"), var("i"), var("q")

    def fetch(n: Any) -> tuple[Stmt, ...]:
        return (
            copy(x.box(bx, n, (0, 16)), ring.box(n % 3, (0, 16)), mode="async"),
            AsyncCommit(loc=loc()),
        )

    waits = (AsyncWait("cp_async", Const(pending), loc=loc()),) if wait_at_all else ()
    add = For((q.expr,), (Const(16),), "parallel", (put(total[q], total[q] + ring[i % 3, q]),), loc=loc())  # type: ignore[arg-type]
    return k.program(
        Fill(total.box(), Const(0.0, "float32"), loc=loc()),
        *fetch(var("bx") * 0),
        loop(
            "i", 6, when(i < 5, *fetch(i + 1), orelse=(AsyncCommit(loc=loc()),)), *waits, Sync(loc=loc()), add
        ),
        copy(total.box(), y.box(bx, (0, 16))),
    )


def test_groups_of_copies() -> None:
    x = RNG.integers(-9, 9, (2, 6, 16)).astype(np.float32)
    assert np.array_equal(execute(grouped(1), {"X": x}).tensors["Y"], x.sum(axis=1))


@pytest.mark.parametrize("program", [grouped(2), grouped(0, wait_at_all=False)])
def test_copies_that_nothing_waits_for(program: TileProgram) -> None:
    x = np.zeros((2, 6, 16), np.float32)
    with pytest.raises(NumericsError, match="read ring while an asynchronous copy"):
        execute(program, {"X": x})


def filled(cond: Any) -> TileProgram:
    """A tile that an asynchronous copy brings under a condition, and plain stores where it does not hold."""
    k = Kernel(32, (2,))
    x, y = k.tensor("X", (2, 32), "float32"), k.tensor("Y", (2, 32), "float32")
    s = k.alloc("s", (32,), "float32", "shared")
    bx = var("bx")
    return k.program(
        when(
            cond,
            copy(x.box(bx, (0, 32)), s.box(), mode="async"),
            AsyncCommit(loc=loc()),
            orelse=(put(s[tx()], 7.0),),
        ),
        AsyncWait("cp_async", Const(0), loc=loc()),
        Sync(loc=loc()),
        copy(s.box(), y.box(bx, (0, 32))),
    )


def test_blocks_that_fill_a_tile_in_different_ways() -> None:
    """What one block's copy has in flight is not what another block stores."""
    x = RNG.standard_normal((2, 32)).astype(np.float32)
    y = execute(filled(var("bx") == 0), {"X": x}).tensors["Y"]
    assert np.array_equal(y, np.stack([x[0], np.full(32, 7, np.float32)]))


def test_one_block_that_stores_into_what_a_copy_brings() -> None:
    """The same branches, taken by threads of one block: their stores race with the copy."""
    with pytest.raises(NumericsError, match="write s while an asynchronous copy"):
        execute(filled(tx() < 16), {"X": np.zeros((2, 32), np.float32)})


def by_the_engine() -> TileProgram:
    """The same ring, whose products an engine does by itself; each frees its tiles when it is done."""
    k = Kernel(96, (2, 2))
    full, empty = k.barrier("full", (32,) * STAGES), k.barrier("empty", (1,) * STAGES)
    done = k.barrier("done", (1,))
    tiles, producer = fetched(k, full, empty)
    c = k.tensor("C", (2 * M, 2 * N), "float32")
    acc = k.alloc("acc", (M, N), "float32", "tmem")
    out = k.alloc("out", (M, N), "float32", "fragment")
    frees: dict[str, Any] = {"mode": "tcgen05", "barrier": empty.load(STAGE)}
    product = gemm(*tiles, acc.box(), clear_if=number(STEP < 1), **frees)
    consumer = (
        loop("i", K // DEPTH, wait(full, STAGE, TURN), product),
        BarrierArrive(done.load(0), after="tcgen05", loc=loc()),
    )
    return k.program(
        when(tx() < 32, producer),
        when(tx() >= 32, when(tx() < 64, *consumer)),
        wait(done, 0, 0),
        copy(acc.box(), out.box()),
        copy(out.box(), c.box((var("by") * M, M), (var("bx") * N, N))),
    )


def test_an_engine_that_frees_the_tiles_it_has_read() -> None:
    """Its products began after the copies into them were over; who waits for it knows of both."""
    given, program = operands(), by_the_engine()
    assert np.array_equal(execute(program, given).tensors["C"], expected(given))
    too_soon = without(program.body, lambda s: isinstance(s, BarrierWait) and s.barrier.buffer == "empty")
    with pytest.raises(NumericsError, match="while an asynchronous copy or product"):
        execute(replace(program, body=too_soon), given)


def multiplied(mode: str, wait_for: int | None, *after: Stmt, scope: str = "fragment") -> TileProgram:
    """A product in two steps by an asynchronous engine, and what comes after."""
    k = Kernel(128)
    a, b = k.tensor("A", (32, 32), "float16"), k.tensor("B", (32, 32), "float16")
    c = k.tensor("C", (32, 32), "float32")
    a_s, b_s = (k.alloc(n, (32, 32), "float16", "shared") for n in ("a_s", "b_s"))
    acc = k.alloc("acc", (32, 32), "float32", scope)
    out = k.alloc("out", (32, 32), "float32", "fragment")
    done = k.barrier("done", (1,))
    more: dict[str, Any] = {"mode": mode}
    if mode == "wgmma":
        more["wait"] = wait_for
    halves = [
        gemm(
            a_s.box((0, 32), (16 * h, 16)),
            b_s.box((16 * h, 16), (0, 32)),
            acc.box(),
            clear_accum=h == 0,
            **more,
            **({"barrier": done.load(0)} if mode == "tcgen05" and h else {}),
        )
        for h in range(2)
    ]
    return k.program(
        copy(a.box(), a_s.box()),
        copy(b.box(), b_s.box()),
        *halves,
        *after,
        copy(acc.box(), out.box()),
        copy(out.box(), c.box()),
    )


def test_products_in_flight() -> None:
    given = {n: RNG.integers(-4, 5, (32, 32)).astype(np.float16) for n in "AB"}
    right = given["A"].astype(np.float32) @ given["B"].astype(np.float32)
    drained = AsyncWait("wgmma", Const(0), loc=loc())
    through = BarrierWait(
        Name(Kernel(1).alloc("done", (1,), "uint64", "barrier").buffer).load(0), Const(0), loc=loc()
    )
    for program in (
        multiplied("wgmma", None, drained),
        multiplied("wgmma", 0),
        multiplied("tcgen05", None, through, scope="tmem"),
    ):
        assert np.array_equal(execute(program, given).tensors["C"], right)
    for program in (
        multiplied("wgmma", None),
        multiplied("wgmma", 1),
        multiplied("tcgen05", None, scope="tmem"),
    ):
        with pytest.raises(NumericsError, match="read acc while an asynchronous"):
            execute(program, given)


def test_a_tile_operation_of_two_roles_happens_once() -> None:
    """Statements outside of the roles are the whole block's: every team comes to them."""
    k = Kernel(64, (2,))
    y = k.tensor("Y", (2, 8), "float32")
    s = k.alloc("s", (8,), "float32", "shared")
    go = k.barrier("go", (32,))
    program = k.program(
        Fill(s.box(), Const(1.0, "float32"), loc=loc()),
        when(tx() < 32, when(tx() < 8, put(s[tx()], 5.0)), arrive(go, 0)),
        when(tx() >= 32, wait(go, 0, 0)),
        Sync(loc=loc()),
        copy(s.box(), y.box(var("bx"), (0, 8))),
    )
    assert len(teams_of(program)) == 2
    assert np.array_equal(execute(program, {}).tensors["Y"], np.full((2, 8), 5.0))


def test_named_barriers() -> None:
    """One half writes and arrives, the other waits at the same hardware barrier and reads."""

    def program(number_of_threads: int) -> TileProgram:
        k = Kernel(64)
        y = k.tensor("Y", (32,), "int32")
        s = k.alloc("s", (32,), "int32", "shared")
        together: dict[str, Any] = {"ident": Const(3), "threads": Const(number_of_threads)}
        return k.program(
            when(tx() >= 32, Sync(**together, loc=loc()), put(y[tx() - 32], s[tx() - 32] + 1)),
            when(tx() < 32, put(s[tx()], tx() * 2), Sync(phase="arrive", **together, loc=loc())),
        )

    assert execute(program(64), {}).tensors["Y"].tolist() == [2 * t + 1 for t in range(32)]
    with pytest.raises(NumericsError, match=r"at barrier 3 \(64 of 96 threads have come\)"):
        execute(program(96), {})


def test_writers_that_nothing_orders() -> None:
    k = Kernel(64)
    s = k.alloc("s", (32,), "int32", "shared")
    done = k.barrier("done", (32,))
    body = (
        when(tx() < 32, put(s[tx()], tx()), arrive(done, 0)),
        when(tx() >= 32, put(s[tx() - 32], 7), wait(done, 0, 0)),
    )
    with pytest.raises(NumericsError, match=r"write s, which threads .* write at .*no barrier"):
        execute(k.program(*body), {})
