"""Kernels that say what single threads do, against NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lane_programs import Kernel, Name, across, copy, loc, loop, number, put, tx, var, when

from foretile.kernels.expr import Call, Const, Var
from foretile.kernels.ir import Fill, Jump, RandomInit, Stmt, Sync, TileProgram, While
from foretile.kernels.values import Value
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.execute import execute

RNG = np.random.default_rng(7)


def warp_sum(threads: int, rows: int) -> TileProgram:
    """Each warp sums its part of a row by butterfly shuffles; warp sums meet in shared memory."""
    k = Kernel(threads, (rows,))
    a = k.tensor("A", (rows, threads), "float32")
    y = k.tensor("Y", (rows,), "float32")
    part = k.alloc("part", (threads // 32,), "float32", "shared")
    x = k.variable("x", "float32")
    b = var("bx")
    body = [put(x, a[b, tx()])]
    body += [put(x, x + across("shfl_xor", x, 16 >> i, 32)) for i in range(5)]
    body += [
        when(tx() % 32 == 0, put(part[tx() // 32], x)),
        Sync(loc=loc()),
        when(
            tx() == 0,
            put(x, 0.0),
            loop("i", threads // 32, put(x, x + part[var("i")])),
            put(y[b], x),
        ),
    ]
    return k.program(*body)


@given(warps=st.integers(1, 6), rows=st.integers(1, 5))
@settings(max_examples=12, deadline=None)
def test_warp_sums_of_whole_numbers_are_exact(warps: int, rows: int) -> None:
    a = RNG.integers(-50, 50, (rows, 32 * warps)).astype(np.float32)
    y = execute(warp_sum(32 * warps, rows), {"A": a}).tensors["Y"]
    assert np.array_equal(y, a.sum(axis=1))


def test_warp_sum_adds_in_the_order_of_the_butterfly() -> None:
    a = RNG.standard_normal((1, 32)).astype(np.float32)
    v = a[0].copy()
    for i in (16, 8, 4, 2, 1):
        v = v + v[np.arange(32) ^ i]
    assert execute(warp_sum(32, 1), {"A": a}).tensors["Y"][0] == v[0]


def scan(threads: int, rows: int) -> TileProgram:
    """Inclusive prefix sums of a row: shuffles within warps, then the sums of the warps before."""
    k = Kernel(threads, (rows,))
    a = k.tensor("A", (rows, threads), "int32")
    y = k.tensor("Y", (rows, threads), "int32")
    total = k.alloc("total", (threads // 32,), "int32", "shared")
    x, other = k.variable("x"), k.variable("other")
    b, lane = var("bx"), tx() % 32
    body = [put(x, a[b, tx()])]
    for i in range(5):
        body += [
            put(other, across("shfl_up", x, 1 << i, 32)),
            when(lane >= 1 << i, put(x, x + other)),
        ]
    body += [
        when(lane == 31, put(total[tx() // 32], x)),
        Sync(loc=loc()),
        loop("w", tx() // 32, put(x, x + total[var("w")])),  # as many trips as there are warps before
        put(y[b, tx()], x),
    ]
    return k.program(*body)


@given(warps=st.integers(1, 5), rows=st.integers(1, 4))
@settings(max_examples=10, deadline=None)
def test_scan(warps: int, rows: int) -> None:
    a = RNG.integers(-9, 9, (rows, 32 * warps)).astype(np.int32)
    y = execute(scan(32 * warps, rows), {"A": a}).tensors["Y"]
    assert np.array_equal(y, np.cumsum(a, axis=1))


def radix_select(threads: int, rows: int, n: int, top: int) -> TileProgram:
    """The ``top`` largest of ``n`` 8-bit keys, by a histogram, the bin where the count passes, and atomics.

    As public kernels do it: a search loop that a break ends, in the one thread that finds the bin.
    """
    k = Kernel(threads, (rows,))
    a = k.tensor("A", (rows, n), "int32")
    out = k.tensor("Y", (rows, top), "int32")
    bins = k.alloc("bins", (257,), "int32", "shared")
    place = k.alloc("place", (2,), "int32", "shared")  # next place of the larger ones, of the equal ones
    cut = k.alloc("cut", (2,), "int32", "shared")  # the bin, and how many are above it
    at, key, seen = k.variable("at"), k.variable("key"), k.variable("seen")
    b, i = var("bx"), var("i")
    mine = -(-n // threads)
    body = (
        loop("i", 257, put(bins[i], 0), start=tx(), step=threads)
        if threads == 1
        else loop("i", -(-257 // threads), when(i * threads + tx() < 257, put(bins[i * threads + tx()], 0))),
        put(place[0], 0),
        put(place[1], 0),
        Sync(loc=loc()),
        loop(
            "i",
            mine,
            when(
                i * threads + tx() < n,
                put(bins[a[b, i * threads + tx()]], 1, atomic="add"),
            ),
        ),
        Sync(loc=loc()),
        when(
            tx() == 0,
            put(seen, 0),
            put(key, 255),
            While(
                number(key >= 0),
                (
                    when(
                        seen + bins[key] >= top, put(cut[0], key), put(cut[1], seen), Jump("break", loc=loc())
                    ),
                    put(seen, seen + bins[key]),
                    put(key, key - 1),
                ),
                loc=loc(),
            ),
        ),
        Sync(loc=loc()),
        loop(
            "i",
            mine,
            when(i * threads + tx() >= n, Jump("continue", loc=loc())),
            put(key, a[b, i * threads + tx()]),
            when(
                key > cut[0],
                put(place[0], 1, atomic="add", previous=at.expr),
                put(out[b, at], i * threads + tx()),
            ),
            when(
                key == cut[0],
                put(place[1], 1, atomic="add", previous=at.expr),
                when(at + cut[1] < top, put(out[b, at + cut[1]], i * threads + tx())),
            ),
        ),
    )
    return k.program(*body)


@given(
    n=st.integers(40, 300),
    rows=st.integers(1, 4),
    spread=st.sampled_from([2, 16, 256]),
    top=st.integers(1, 32),
)
@settings(max_examples=5, deadline=None)
def test_radix_select(n: int, rows: int, spread: int, top: int) -> None:
    a = RNG.integers(0, spread, (rows, n)).astype(np.int32)
    y = execute(radix_select(64, rows, n, top), {"A": a}).tensors["Y"]
    for row, found in zip(a, y, strict=True):
        assert len(set(found.tolist())) == top
        assert np.array_equal(np.sort(row[found]), np.sort(row)[-top:])


def test_lane_dependent_loops_and_returns() -> None:
    k = Kernel(48, (3,))
    y = k.tensor("Y", (3, 48), "int32")
    x = k.variable("x")
    program = k.program(
        when(tx() % 5 == 4, put(y[var("bx"), tx()], -1), Jump("return", loc=loc())),
        put(x, tx() + 1 + 48 * var("bx")),
        *collatz(x, y),
    )
    found = execute(program, {}).tensors["Y"]
    for b in range(3):
        for t in range(48):
            n, steps = t + 1 + 48 * b, 0
            while n != 1:
                n, steps = (n // 2 if n % 2 == 0 else 3 * n + 1), steps + 1
            assert found[b, t] == (-1 if t % 5 == 4 else steps)


def collatz(x: Value, y: Name) -> tuple[Stmt, ...]:
    """Count the steps of the Collatz sequence of ``x`` into ``y``: every thread's loop has its own length."""
    here = y[var("bx"), tx()]
    return (
        put(here, 0),
        While(
            number(x != 1),
            (
                when(x % 2 == 0, put(x, x // 2), orelse=(put(x, 3 * x + 1),)),
                put(here, here + 1),
            ),
            loc=loc(),
        ),
    )


def test_votes_and_matches() -> None:
    k = Kernel(64, (2,))
    a = k.tensor("A", (2, 64), "int32")
    names = ("any_sync", "all_sync", "ballot", "match_any", "syncthreads_count", "syncthreads_or")
    outs = [k.tensor(n, (2, 64), "int64") for n in names]
    b = var("bx")
    body = [
        put(out[b, tx()], across(n, a[b, tx()] if n == "match_any" else a[b, tx()] > 2))
        for n, out in zip(names, outs, strict=True)
    ]
    data = RNG.integers(0, 5, (2, 64)).astype(np.int32)
    data[1, :32] = 0
    found = execute(k.program(*body), {"A": data}).tensors
    warps = data.reshape(2, 2, 32)
    bits = 1 << np.arange(32)
    yes = warps > 2
    assert np.array_equal(found["any_sync"].reshape(2, 2, 32), np.repeat(yes.any(-1)[..., None], 32, -1))
    assert np.array_equal(found["all_sync"].reshape(2, 2, 32), np.repeat(yes.all(-1)[..., None], 32, -1))
    assert np.array_equal(found["ballot"].reshape(2, 2, 32)[..., 0], (yes * bits).sum(-1))
    same = (warps[..., :, None] == warps[..., None, :]) @ bits
    assert np.array_equal(found["match_any"].reshape(2, 2, 32), same)
    assert np.array_equal(found["syncthreads_count"][:, 0], (data > 2).sum(-1))
    assert np.array_equal(found["syncthreads_or"][:, 0], (data > 2).any(-1))


def test_every_thread_has_its_own_array() -> None:
    """A copy into and a fill of a thread's array are done by each thread."""
    k = Kernel(32, (2,))
    a = k.tensor("A", (64, 8), "float16")
    y = k.tensor("Y", (64, 8), "float16")
    own = k.alloc("own", (8,), "float32", "local")
    row = var("bx") * 32 + tx()
    program = k.program(
        Fill(own.box(), Const(1.0, "float32"), loc=loc()),
        when(tx() >= 4, copy(a.box(row, (0, 8)), own.box())),
        loop("i", 8, put(own[var("i")], own[var("i")] * 2.0), kind="parallel"),
        copy(own.box(), y.box(row, (0, 8))),
    )
    data = RNG.standard_normal((64, 8)).astype(np.float16)
    expected = np.where((np.arange(64) % 32 >= 4)[:, None], data, np.float16(1)) * np.float16(2)
    assert np.array_equal(execute(program, {"A": data}).tensors["Y"], expected)


def copies(*after: Callable[[Name, Name], Stmt]) -> dict[str, np.ndarray]:
    """Threads add numbers of their own into a fragment of one element; Y: the warp's sum, what is left."""
    k = Kernel(32, (2,))
    a = k.tensor("A", (2, 32, 3), "int32")
    y = k.tensor("Y", (2, 32, 2), "int32")
    acc = k.alloc("acc", (1,), "int32", "fragment")
    x = k.variable("x")
    b = var("bx")
    program = k.program(
        Fill(acc.box(), Const(1), loc=loc()),
        loop("i", 3, put(acc[0], acc[0] + a[b, tx(), var("i")])),
        put(x, across("warp_sum", acc[0])),
        *(s(acc, y) for s in after),
        put(y[b, tx(), 0], x),
        put(y[b, tx(), 1], acc[0]),
    )
    given = RNG.integers(-50, 50, (2, 32, 3)).astype(np.int32)
    return {"A": given, "Y": execute(program, {"A": given}).tensors["Y"]}


def test_a_fragment_of_one_element_is_replicated() -> None:
    found = copies()
    mine = found["A"].sum(axis=-1) + 1
    assert np.array_equal(found["Y"][..., 1], mine)
    assert np.array_equal(found["Y"][..., 0], np.broadcast_to(mine.sum(axis=-1, keepdims=True), mine.shape))


def test_threads_that_stand_aside_keep_their_copy() -> None:
    """Also where those that store have the same value."""
    found = copies(
        lambda acc, _: Fill(acc.box(), Const(4), loc=loc()),  # whatever the copies were
        lambda acc, _: when(tx() < 20, put(acc[0], acc[0] + 3)),
    )
    assert np.array_equal(found["Y"][0, :, 1], np.where(np.arange(32) < 20, 7, 4))


def test_tile_operations_need_copies_that_agree() -> None:
    def copied(acc: Name, y: Name) -> Stmt:
        return copy(acc.box(), y.box(var("bx"), 0, (0, 1)))

    with pytest.raises(NumericsError, match="acc, which differs between its threads"):
        copies(copied)
    with pytest.raises(NumericsError, match="acc, which differs between its threads"):
        copies(lambda acc, y: loop("j", 32, put(y[var("bx"), var("j"), 0], acc[0]), kind="parallel"))
    found = copies(
        lambda acc, _: put(acc[0], across("warp_sum", acc[0])),
        copied,
        lambda acc, _: loop("j", 1, put(acc[var("j")], acc[0] + var("j") + 1), kind="parallel"),
    )
    assert np.array_equal(found["Y"][..., 1], found["Y"][..., 0] + 1)


def test_atomics_tell_what_was_there() -> None:
    """Each thread gets a place of its own from a global counter."""
    k = Kernel(40, (3,))
    counter = k.tensor("C", (1,), "int32")
    y = k.tensor("Y", (120,), "int32")
    at = k.variable("at")
    program = k.program(
        put(counter[0], 1, atomic="add", previous=at.expr),
        put(y[at], var("bx") * 40 + tx()),
    )
    done = execute(program, {"C": np.zeros(1, np.int32)}).tensors
    assert done["C"][0] == 120
    assert np.array_equal(np.sort(done["Y"]), np.arange(120))


@pytest.mark.parametrize("how", ["max", "min", "and", "or", "xor"])
def test_previous_of_other_updates(how: str) -> None:
    k = Kernel(8)
    a = k.tensor("A", (8,), "int32")
    y = k.tensor("Y", (8,), "int32")
    cell = k.alloc("cell", (1,), "int32", "shared")
    old = k.variable("old")
    program = k.program(
        put(cell[0], 21),
        put(cell[0], a[tx()], atomic=how, previous=old.expr),
        put(y[tx()], old),
    )
    data = RNG.integers(0, 64, 8).astype(np.int32)
    pair = {"max": max, "min": min, "and": int.__and__, "or": int.__or__, "xor": int.__xor__}[how]
    state, expected = 21, []
    for v in data.tolist():
        expected.append(state)
        state = pair(state, v)
    assert execute(program, {"A": data}).tensors["Y"].tolist() == expected


def test_random_numbers_are_philox() -> None:
    """Known answers of Philox 4x32-10 (Random123's kat_vectors): key 0, counter 0."""
    k = Kernel(4)
    y = k.tensor("Y", (4, 5), "uint32")
    program = k.program(
        RandomInit(Const(0), Var("tx"), Const(0), loc=loc()),
        loop("i", 5, put(y[tx(), var("i")], Value(Call("rng_rand", ()), "uint32"))),
    )
    found = execute(program, {}).tensors["Y"]
    assert [f"{v:08x}" for v in found[0, :4]] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    assert len(np.unique(found)) == 20


def test_grid_barrier_makes_writes_visible() -> None:
    k = Kernel(32, (6,))
    w = k.tensor("W", (6, 32), "int32")
    y = k.tensor("Y", (6, 32), "int32")
    b = var("bx")
    other = (b + 1) % 6
    write = put(w[b, tx()], b * 100 + tx())
    read = put(y[b, tx()], w[other, tx()])
    found = execute(k.program(write, Sync("grid", loc=loc()), read), {}).tensors["Y"]
    assert np.array_equal(found, (np.arange(6)[:, None] + 1) % 6 * 100 + np.arange(32))
    with pytest.raises(NumericsError, match=r"W\[.*another block writes"):
        execute(k.program(write, read), {"W": np.zeros((6, 32), np.int32)})


def test_faults_of_threads_are_named() -> None:
    k = Kernel(64)
    y = k.tensor("Y", (64,), "int32")
    s = k.alloc("s", (64,), "int32", "shared")
    x = k.variable("x")
    with pytest.raises(NumericsError, match=r"different values to one element of s .*block \(0\)"):
        execute(k.program(put(s[0], tx())), {})
    with pytest.raises(NumericsError, match=r"reads.* x.* never written.*thread 7"):
        execute(k.program(when(tx() != 7, put(x, 1)), put(y[tx()], x)), {})
    with pytest.raises(NumericsError, match=r"40 of the block's 64 threads come to this barrier"):
        execute(k.program(put(x, tx()), when(x < 40, Sync(loc=loc()))), {})
    with pytest.raises(NumericsError, match=r"shfl reads a thread that does not take part"):
        execute(k.program(put(x, tx()), when(x < 8, put(x, across("shfl", x, 20, 32)))), {})
    with pytest.raises(NumericsError, match=r"leaves the buffer"):
        execute(k.program(put(s[tx() + 1], 0)), {})
