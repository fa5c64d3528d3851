"""L2 and DRAM traffic: the raster order against brute force, and facts one can work out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from foretile.frontdoor import predict
from foretile.hwmodels import load_chip
from foretile.kernels import language as T
from foretile.kernels.expr import Binary, Const, Expr, Var, evaluate
from foretile.kernels.operator import load_operator
from foretile.simulator.lowering import lower
from foretile.simulator.memory import covered, distinct
from foretile.simulator.predictor import machine_of
from foretile.simulator.workload import Workload

steady = settings(deadline=None, derandomize=True, database=None)
GEMM = {"variant": "tile", "block_m": 128, "block_n": 128, "block_k": 64, "num_stages": 3, "threads": 256}
H100 = machine_of(load_chip("h100-sxm5-80gb"))


def grid_program(columns: int, rows: int, layers: int, panel: int, order: str) -> Workload:
    @T.prim_func
    def program(A: T.Tensor((layers, rows, columns), "float32")) -> None:  # type: ignore[valid-type]
        with T.Kernel(columns, rows, layers, threads=128) as (bx, by, bz):
            if panel:
                T.use_swizzle(panel_size=panel, order=order)
            x = T.alloc_fragment((1,), "float32")
            T.copy(A[bz, by, bx : bx + 1], x)

    return lower(program, H100)


def persistent_program(rows: int, columns: int, cores: int, group: int) -> Workload:
    @T.prim_func
    def program(A: T.Tensor((rows, columns), "float32")) -> None:  # type: ignore[valid-type]
        with T.Kernel(cores, threads=128) as b:
            x = T.alloc_fragment((1,), "float32")
            for c, r in T.Persistent([columns, rows], cores, b, group_size=group):
                T.copy(A[r, c : c + 1], x)

    return lower(program, H100)


def panels(outer: int, inner: int, size: int) -> Iterator[tuple[int, int]]:
    """Panels of ``size`` of the outer index, inside a panel one inner index after the other."""
    for first in range(0, outer, size):
        for j in range(inner):
            for i in range(first, min(outer, first + size)):
                yield i, j


def raster(columns: int, rows: int, layers: int, panel: int, order: str) -> list[dict[str, int]]:
    """Blocks in the order the hardware starts them: x fastest, or panel by panel."""
    if not panel:
        layer = [(x, y) for y in range(rows) for x in range(columns)]
    elif order == "row":
        layer = [(x, y) for y, x in panels(rows, columns, panel)]
    else:
        layer = list(panels(columns, rows, panel))
    return [{"bx": x, "by": y, "bz": z} for z in range(layers) for x, y in layer]


def seen(blocks: list[dict[str, int]], name: str) -> int:
    return len({b[name] for b in blocks})


extents = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3))
orders = st.sampled_from(["row", "column"])


@settings(steady, max_examples=60)
@given(extents=extents, panel=st.sampled_from([0, 2, 4, 8]), order=orders, share=st.floats(0.02, 1.0))
def test_coverage_is_within_one_of_what_the_first_blocks_touch(
    extents: tuple[int, int, int], panel: int, order: str, share: float
) -> None:
    blocks = raster(*extents, panel, order)
    run = max(1, int(share * len(blocks)))
    workload = grid_program(*extents, panel, order)
    names = [v.name for v in workload.program.block_vars]
    cover = covered(workload, run, {})
    for name, model in zip(("bx", "by", "bz"), names, strict=True):
        exact = seen(blocks[:run], name)
        # A wave that starts inside a panel or row counts its share of it; a thinner last panel
        # is reached a little earlier than the mean one.
        assert cover[model] <= exact + max(1, panel), name
        assert cover[model] >= (exact - max(1, panel)) * 0.5, name


@settings(steady, max_examples=60)
@given(
    panels_=st.integers(1, 6),
    columns=st.integers(1, 40),
    panel=st.sampled_from([2, 4, 8]),
    order=orders,
    data=st.data(),
)
def test_coverage_of_whole_panels_and_whole_columns_of_a_panel_is_exact(
    panels_: int, columns: int, panel: int, order: str, data: st.DataObject
) -> None:
    walked, across = panels_ * panel, columns
    sizes = (across, walked, 2) if order == "row" else (walked, across, 2)
    blocks = raster(*sizes, panel, order)
    whole = data.draw(st.integers(1, panels_))
    inside = data.draw(st.integers(1, across))
    workload = grid_program(*sizes, panel, order)
    names = dict(zip(("bx", "by", "bz"), (v.name for v in workload.program.block_vars), strict=True))
    for run in (whole * panel * across, inside * panel, len(blocks)):
        cover = covered(workload, run, {})
        for name, model in names.items():
            assert cover[model] == seen(blocks[:run], name), (run, name)


@settings(steady, max_examples=40)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 30),
    group=st.sampled_from([1, 2, 4]),
    cores=st.integers(1, 16),
    data=st.data(),
)
def test_coverage_of_persistent_tiles_follows_their_groups(
    rows: int, columns: int, group: int, cores: int, data: st.DataObject
) -> None:
    total_rows = rows * group
    assume(total_rows * columns > 1)
    order = list(panels(total_rows, columns, group))
    workload = persistent_program(total_rows, columns, cores, group)
    r, c = (d.var for d in (workload.raster[0], workload.raster[1])) if group > 1 else ("", "")
    for run in (group * data.draw(st.integers(1, columns)), len(order)):
        cover = covered(workload, run, {})
        if group > 1:
            assert cover[r] == len({i for i, _ in order[:run]})
            assert cover[c] == len({j for _, j in order[:run]})
        else:
            counts = sorted(float(cover[d.var]) for d in workload.raster)
            assert counts == sorted([len({i for i, _ in order[:run]}), len({j for _, j in order[:run]})])


@settings(steady, max_examples=100)
@given(
    count=st.integers(1, 200), divisor=st.integers(1, 16), scale=st.integers(1, 8), offset=st.integers(0, 9)
)
def test_distinct_tiles_of_index_expressions_match_enumeration(
    count: int, divisor: int, scale: int, offset: int
) -> None:
    v: Expr = Var("v")
    expressions: tuple[tuple[Expr, float], ...] = (
        (Binary("add", Binary("mul", v, Const(scale)), Const(offset)), 0.0),
        (Binary("floordiv", v, Const(divisor)), 1.0),  # the last group may be cut
        (Binary("mod", v, Const(divisor)), 0.0),
    )
    for e, slack in expressions:
        exact = len(np.unique(evaluate(e, {"v": np.arange(count)}))) if not isinstance(e, Const) else 1
        assert abs(float(distinct(e, {"v": float(count)})) - exact) <= slack, e


@settings(steady, max_examples=60)
@given(a=st.integers(1, 30), b=st.integers(1, 30))
def test_distinct_tiles_of_two_indices_that_do_not_overlap_multiply(a: int, b: int) -> None:
    e = Binary("add", Binary("mul", Var("a"), Const(64)), Var("b"))
    grid: dict[str, Any] = {"a": np.arange(a)[:, None], "b": np.arange(b)[None, :]}
    assert distinct(e, {"a": float(a), "b": float(b)}) == len(np.unique(evaluate(e, grid)))


# -- facts by hand -----------------------------------------------------------------------------


@pytest.mark.parametrize("chip", ["a100-sxm4-80gb", "h100-sxm5-80gb", "b200-sxm", "ascend-910b3"])
def test_a_gemm_that_fits_the_l2_moves_the_compulsory_bytes(chip: str) -> None:
    p = predict("gemm", chip, m=1024, n=1024, k=1024)
    if p.occupancy["launches"] == 1:
        assert p.traffic_bytes["dram_read"] == pytest.approx(2 * 1024 * 1024 * 2)
        assert p.traffic_bytes["dram_write"] == pytest.approx(1024 * 1024 * 2)
    fixed = predict("gemm", chip, m=1024, n=1024, k=1024, config=GEMM | {"num_stages": 2})
    assert fixed.traffic_bytes["dram_read"] == pytest.approx(2 * 1024 * 1024 * 2)
    assert fixed.traffic_bytes["dram_write"] == pytest.approx(1024 * 1024 * 2)


def test_without_clusters_every_block_reads_its_own_tiles_from_the_l2() -> None:
    """8 × 8 blocks of 128 × 128 × 1024: 2 · 128 · 1024 · 2 bytes each."""
    p = predict("gemm", "a100-sxm4-80gb", m=1024, n=1024, k=1024, config=GEMM)
    assert p.traffic_bytes["l2_read"] == 64 * 2 * 128 * 1024 * 2
    assert p.traffic_bytes["l2_write"] == 1024 * 1024 * 2


def test_swizzle_lowers_the_dram_reads_of_a_large_gemm() -> None:
    reads = [
        predict("gemm", "h100", m=16384, n=16384, k=8192, config=GEMM | {"swizzle": s}).traffic_bytes[
            "dram_read"
        ]
        for s in (0, 4, 8)
    ]
    assert reads[0] > 1.5 * reads[1] > 1.5 * reads[2]
    assert reads[2] >= 2 * 16384 * 8192 * 2


def test_a_copy_reads_and_writes_every_byte_once() -> None:
    p = predict("copy", "h100", bytes=2**26)
    assert p.traffic_bytes == {"dram_read": 2**26, "dram_write": 2**26, "l2_read": 2**26, "l2_write": 2**26}


def test_heads_that_share_keys_do_not_read_them_again_from_dram() -> None:
    shape = {"batch": 1, "seq": 1024, "heads": 32, "head_dim": 128}
    own = predict("attention_prefill", "h100", **shape)
    shared = predict("attention_prefill", "h100", **shape, kv_heads=4)
    tensor = 1024 * 128 * 2
    assert own.traffic_bytes["dram_read"] == pytest.approx(3 * 32 * tensor, rel=0.02)
    assert shared.traffic_bytes["dram_read"] == pytest.approx((32 + 2 * 4) * tensor, rel=0.02)


def test_the_dram_rate_depends_on_the_mix_of_reads_and_writes() -> None:
    from foretile.simulator.plan import dram_rate

    workload = lower_copy()
    m = workload.machine
    rate = [float(dram_rate(workload, np.asarray(r), np.asarray(w))) / m.dram_bytes_per_s for r, w in MIXES]
    assert rate == pytest.approx(
        [
            m.dram_read_fraction,
            (m.dram_read_fraction + m.dram_copy_fraction) / 2,
            m.dram_copy_fraction,
            (m.dram_copy_fraction + m.dram_write_fraction) / 2,
            m.dram_write_fraction,
        ]
    )


MIXES = ((100.0, 0.0), (75.0, 25.0), (50.0, 50.0), (25.0, 75.0), (0.0, 100.0))


def lower_copy() -> Workload:
    operator = load_operator("copy")
    shape = operator.shape(bytes=2**20)
    program = operator.program(shape, operator.configs(shape)[0])
    assert not isinstance(program, tuple)
    return lower(program, H100)
