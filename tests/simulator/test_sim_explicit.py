"""Timing of kernels whose author wrote out roles, barriers, asynchronous work and single threads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from lane_programs import Kernel, across, copy, gemm, loc, loop, put, tx, var, when
from test_num_lanes import radix_select, scan, warp_sum
from test_num_roles import grouped, multiplied, ping_pong, produced
from test_sim_deviations import documented

from foretile.hwmodels import Chip, load_chip
from foretile.kernels.expr import Call, Const, Var
from foretile.kernels.ir import Extern, Fill, For, If, Im2col, Sync, TileProgram, Transpose, walk_stmts
from foretile.kernels.operator import operator_names
from foretile.kernels.values import Value
from foretile.simulator.launches import lowered, workloads
from foretile.simulator.lowering.explicit import assume, timed
from foretile.simulator.machine import SimulationError
from foretile.simulator.prediction import Prediction
from foretile.simulator.predictor import as_operator, assumed, machine_of, predict
from foretile.simulator.simulate import simulate

# One of every style of machine that numbers are known of, and of every generation of copies.
CHIPS = ("h200-sxm", "b200-sxm", "a100-sxm4-80gb", "mi300x", "ascend-910b3", "cambricon-mlu370-x8")


def chip(name: str) -> Chip:
    """A chip of the catalogue; those that numbers are missing of are not asked about."""
    try:
        return load_chip(name)
    except ValueError as error:
        pytest.skip(str(error)[:80])


def time_of(program: TileProgram, on: str, model: Any = "engine", **known: Any) -> Prediction:
    operator = assumed(as_operator(program), **known)
    return predict(operator, operator.shape(), chip(on), {}, model)


def plain_product(grid: tuple[int, int] = (2, 2)) -> TileProgram:
    """What the product of two roles does, as a pipelined loop."""
    k = Kernel(128, grid)
    a, b = k.tensor("A", (64, 80), "float16"), k.tensor("B", (80, 32), "float16")
    c = k.tensor("C", (64, 32), "float32")
    a_s, b_s = k.alloc("a_s", (32, 16), "float16", "shared"), k.alloc("b_s", (16, 16), "float16", "shared")
    acc = k.alloc("acc", (32, 16), "float32", "fragment")
    i = var("i")
    body = (
        copy(a.box((var("by") * 32, 32), (i * 16, 16)), a_s.box()),
        copy(b.box((i * 16, 16), (var("bx") * 16, 16)), b_s.box()),
        gemm(a_s.box(), b_s.box(), acc.box()),
    )
    program = k.program(
        Fill(acc.box(), Const(0.0, "float32"), loc=loc()),
        For((Var("i"),), (Const(5),), "pipelined", body, num_stages=2, loc=loc()),
        copy(acc.box(), c.box((var("by") * 32, 32), (var("bx") * 16, 16))),
    )
    return replace(program, thread_vars=())


@pytest.mark.parametrize("on", CHIPS)
def test_two_roles_are_a_pipelined_loop(on: str) -> None:
    """A producer and a consumer take as long as the loop that TileLang would make these roles from."""
    for model in ("engine", "cost_model"):
        assert time_of(produced(), on, model).time_s == time_of(plain_product(), on, model).time_s


def test_the_order_of_the_roles_does_not_change_the_time() -> None:
    program = produced()
    hint, first, second = program.body
    turned = replace(program, body=(hint, second, first))
    assert time_of(turned, "h200-sxm").time_s == time_of(program, "h200-sxm").time_s


def test_groups_of_copies_run_ahead() -> None:
    """A prefetch that the author guards and waits for himself is a pipelined loop over the ring."""
    found = timed(grouped(1), machine_of(chip("h200-sxm")))
    loops = [s for s in walk_stmts(found.body) if isinstance(s, For) and s.kind == "pipelined"]
    assert [(s.num_stages, s.extents) for s in loops] == [(3, (Const(6),))]
    assert found.buffer("ring").shape == (Const(1), Const(16))
    assert sum(type(s).__name__ == "Copy" for s in walk_stmts(found.body)) == 2  # the load and the result


def test_consumers_that_take_turns_share_the_producers_loop() -> None:
    found = timed(ping_pong(3), machine_of(chip("h200-sxm")))
    loops = [s for s in walk_stmts(found.body) if isinstance(s, For) and s.kind != "parallel"]
    assert [(s.kind, s.extents) for s in loops] == [("pipelined", (Const(3),))]
    assert found.threads == 256


CASES = {
    "roles": produced(),
    "turns": ping_pong(4),
    "groups": grouped(1),
    "wgmma": multiplied("wgmma", 0),
    "tcgen05": multiplied("tcgen05", None, scope="tmem"),
    "warps": warp_sum(256, 64),
    "scan": scan(256, 64),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("on", CHIPS)
def test_cost_model_and_engine_agree(name: str, on: str) -> None:
    program = CASES[name]
    played, modelled = time_of(program, on), time_of(program, on, "cost_model")
    assert abs(np.log(played.time_s / modelled.time_s)) <= np.log(1.2)
    assert sum(played.breakdown_s.values()) == pytest.approx(played.time_s)


def looped(threads: int, trips: int, *body: Any, grid: int = 512) -> TileProgram:
    """Per-thread statements, many times over."""
    k = Kernel(threads, (grid,))
    y = k.tensor("Y", (grid, threads), "float32")
    x = k.variable("x", "float32")
    made = tuple(put(x, value(x)) for value in body)
    return k.program(put(x, 1.0), loop("i", trips, *made), put(y[var("bx"), tx()], x))


def test_per_thread_code_costs_its_instructions() -> None:
    """Twice the instructions take longer, shuffles more than sums, and more trips grow the time in step."""
    on = "h200-sxm"
    launch = time_of(looped(256, 1, lambda x: x), on).time_s

    def cost(trips: int, *body: Any) -> float:
        return time_of(looped(256, trips, *body), on).time_s - launch

    one = cost(256, lambda x: x * 1.5 + 1.0)
    assert cost(256, lambda x: x * 1.5 + 1.0, lambda x: x * 0.5 + 1.0) > 1.5 * one
    assert cost(1024, lambda x: x * 1.5 + 1.0) == pytest.approx(4 * one, rel=0.15)
    assert cost(256, lambda x: across("shfl_xor", x, 1, 32)) > 1.2 * one
    warp = cost(256, lambda x: across("warp_sum", x))
    assert warp > 3 * cost(256, lambda x: across("shfl_xor", x, 1, 32))


def test_a_lane_dependent_loop_runs_as_long_as_its_longest_thread() -> None:
    def program(extent: Any) -> TileProgram:
        k = Kernel(128, (256,))
        y = k.tensor("Y", (256, 128), "float32")
        x = k.variable("x", "float32")
        return k.program(put(x, 0.0), loop("i", extent, put(x, x + 1.0)), put(y[var("bx"), tx()], x))

    on = "h200-sxm"
    assert time_of(program(tx() + 1), on).time_s == time_of(program(128), on).time_s


def test_while_loops_need_a_trip_count() -> None:
    program = radix_select(64, 8, 256, 8)
    line = next(s.loc.line for s in walk_stmts(program.body) if type(s).__name__ == "While" and s.loc)
    with pytest.raises(SimulationError, match=rf"kernel.py:{line}: .*trips={{LINE: N}}"):
        time_of(program, "h200-sxm")
    few, many = (time_of(program, "h200-sxm", trips={line: n}).time_s for n in (16, 256))
    assert few < many
    with pytest.raises(ValueError, match="-1 trips"):
        assume(program, trips={line: -1})


def opaque(call: bool) -> TileProgram:
    k = Kernel(128, (256,))
    y = k.tensor("Y", (256, 128), "float32")
    x = k.variable("x", "float32")
    inner = (
        put(x, Value(Call("extern:float32:decode", (x.expr,)), "float32"))
        if call
        else Extern("decode", (x.expr,), loc=loc())
    )
    return k.program(put(x, 0.0), loop("i", 64, inner), put(y[var("bx"), tx()], x))


@pytest.mark.parametrize("call", [False, True])
def test_opaque_code_takes_what_the_user_says(call: bool) -> None:
    program = opaque(call)
    with pytest.raises(SimulationError, match=r"kernel.py:\d+: decode is opaque .*extern={'decode': N}"):
        time_of(program, "h200-sxm")
    times = [time_of(program, "h200-sxm", extern={"decode": n}).time_s for n in (1, 10, 100)]
    assert times == sorted(times)
    assert times[2] > 2 * times[0]
    with pytest.raises(ValueError, match="calls no opaque code 'other'; it calls decode"):
        assume(program, extern={"other": 1})


def test_what_a_chip_lacks_is_said() -> None:
    said = {on: time_of(produced(), on).model.get("warnings", []) for on in ("h200-sxm", "a100-sxm4-80gb")}
    assert said["h200-sxm"] == []
    assert any("no bulk tensor copies; asynchronous copies of threads" in w for w in said["a100-sxm4-80gb"])
    tensor_memory = multiplied("tcgen05", None, scope="tmem")
    assert time_of(tensor_memory, "b200-sxm").model.get("warnings", []) == []
    warned = time_of(tensor_memory, "h200-sxm").model["warnings"]
    assert any("no tcgen05 products; wgmma is timed" in w for w in warned)
    assert any("acc is kept in registers" in w for w in warned)


def barriers(scope: Any) -> TileProgram:
    k = Kernel(128, (64,))
    y = k.tensor("Y", (64, 128), "float32")
    return k.program(loop("i", 32, Sync(scope, loc=loc())), put(y[var("bx"), tx()], 1.0))


def test_a_barrier_of_the_grid_costs_more_than_one_of_the_block() -> None:
    warp, block, grid = (time_of(barriers(s), "h200-sxm").time_s for s in ("warp", "block", "grid"))
    assert warp < block < grid


@pytest.mark.parametrize("find", [workloads, lowered])
def test_a_barrier_of_the_grid_is_as_long_as_this_machines_l2_takes(find: Any) -> None:
    """Two machines that differ in it only, one after the other, of the same program."""
    operator, near = as_operator(barriers("grid")), machine_of(chip("h200-sxm"))
    far = replace(near, l2_latency_s=3 * near.l2_latency_s)
    times = [simulate(find(operator, operator.shape(), {}, m)[0], {}).time_s for m in (near, far)]
    assert times[1] - times[0] > 32 * 2 * near.l2_latency_s


@pytest.mark.parametrize("on", CHIPS)
def test_other_tile_operations_have_a_time(on: str) -> None:
    k = Kernel(128, (8, 4))
    x = k.tensor("X", (2, 16, 16, 32), "float16")
    y = k.tensor("Y", (64, 64 * 8 * 4), "float16")
    tile, turned = (k.alloc(n, (64, 64), "float16", "shared") for n in ("tile", "turned"))
    program = k.program(
        Im2col(x.box(), tile.box(), Var("bx"), Var("by"), 3, 1, 1, 1, loc=loc()),
        Transpose(tile.box(), turned.box(), loc=loc()),
        copy(turned.box(), y.box((0, 64), ((var("bx") * 4 + var("by")) * 64, 64))),
    )
    found = time_of(replace(program, thread_vars=()), on)
    assert found.traffic_bytes["l2_read"] >= 32 * 64 * 64 * 2
    assert found.time_s > 0


def test_programs_without_any_of_it_are_left_alone() -> None:
    from foretile.kernels.operator import load_operator

    machine = machine_of(chip("h200-sxm"))
    for name in operator_names():
        operator = load_operator(name)
        try:
            shape = operator.shape()
        except ValueError:
            continue
        configs = operator.configs(shape)
        programs = operator.program(shape, next(iter(configs)))
        for program in programs if isinstance(programs, tuple) else (programs,):
            assert timed(program, machine) is program


def test_branches_on_what_a_tensor_brought_read_the_tensor() -> None:
    """Indices copied to the core decide like those in memory: with the tensor given, by their values."""
    k = Kernel(128, (64,))
    pos, x = k.tensor("P", (64, 4), "int32"), k.tensor("X", (256, 512), "float32")
    y = k.tensor("Y", (64, 512), "float32")
    here = k.alloc("here", (4,), "int32", "fragment")
    acc = k.alloc("acc", (512,), "float32", "fragment")
    j, i, b = var("j"), var("i"), var("bx")
    add = For((Var("i"),), (Const(512),), "parallel", (put(acc[i], acc[i] + x[here[j], i]),), loc=loc())
    program = replace(
        k.program(
            Fill(acc.box(), Const(0.0, "float32"), loc=loc()),
            copy(pos.box(b, (0, 4)), here.box()),
            loop("j", 4, when(here[j] >= 0, add)),
            copy(acc.box(), y.box(b, (0, 512))),
        ),
        thread_vars=(),
    )
    assert any(isinstance(s, If) for s in walk_stmts(program.body))
    times = []
    for used in (0, 2, 4):
        values = np.where(np.arange(4) < used, np.arange(256).reshape(64, 4), -1).astype(np.int32)
        operator = as_operator(program, tensors={"P": values})
        times.append(predict(operator, operator.shape(), chip("h200-sxm"), {}).time_s)
    assert times[0] < times[1] < times[2]


def test_gap_threads_take_the_longest_way() -> None:
    """docs/deviations.md: a branch of one warp of eight costs as if all took it."""

    def program(cond: Any) -> TileProgram:
        k = Kernel(256, (512,))
        y = k.tensor("Y", (512, 256), "float32")
        x = k.variable("x", "float32")
        return k.program(
            put(x, 0.0), loop("i", 256, when(cond, put(x, x * 1.5 + 1.0))), put(y[var("bx"), tx()], x)
        )

    one, all_of_them = (time_of(program(c), "h200-sxm").time_s for c in (tx() < 32, tx() < 255))
    assert one == all_of_them
    documented("Threads take the longest way")
