"""The raster order: closed forms against the order itself, and the order against a plain walk."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretile.hwmodels import load_chip
from foretile.kernels import language as T
from foretile.kernels.operator import load_operator
from foretile.simulator.launches import dynamic_part, workloads
from foretile.simulator.lowering import lower
from foretile.simulator.plan import Plan, plan
from foretile.simulator.predictor import machine_of
from foretile.simulator.raster import ClassPlaces, Raster


def causal(batch: int, seq: int, heads: int, swizzle: int) -> Plan:
    """Causal attention with every query tile a class of its own."""
    operator = load_operator("attention_prefill")
    shape = operator.shape(batch=batch, seq=seq, heads=heads, head_dim=64)
    config = {"block_m": 64, "block_n": 64, "num_stages": 2, "threads": 128, "swizzle": swizzle}
    (workload,) = workloads(operator, shape, config, machine_of(load_chip("a100-sxm4-80gb")))
    return plan(workload, dynamic_part(operator, shape), resolution=128)


grids = st.tuples(
    st.integers(1, 3), st.integers(65, 64 * 60), st.integers(1, 12), st.sampled_from([0, 3, 8, 64])
)


def walked(batch: int, tiles: int, heads: int, swizzle: int) -> list[int]:
    """Query tiles in the order that the grid and its swizzling define."""
    if not swizzle:
        return [by for _, by, _ in product(range(batch), range(tiles), range(heads))]
    order = []
    for _ in range(batch):
        for top in range(0, tiles, swizzle):
            order += [by for _ in range(heads) for by in range(top, min(tiles, top + swizzle))]
    return order


@given(grids)
@settings(max_examples=60, deadline=None)
def test_blocks_come_in_the_order_of_the_grid(grid: tuple[int, int, int, int]) -> None:
    batch, seq, heads, swizzle = grid
    raster = Raster(causal(*grid))
    blocks = np.arange(raster.plan.blocks[0, 0], dtype=np.int64)
    assert raster.classes(blocks).tolist() == walked(batch, -(-seq // 64), heads, swizzle)
    assert raster.shares().sum() == pytest.approx(1.0)


@given(grids, st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_closed_forms_agree_with_the_order(grid: tuple[int, int, int, int], part: float) -> None:
    planned = causal(*grid)
    blocks = int(planned.blocks[0, 0])
    order = Raster(planned).classes(np.arange(blocks))
    places = ClassPlaces.of(planned)
    assert places is not None
    tiles = planned.samples
    among = np.broadcast_to(places.among(round(part * blocks)), (1, tiles)).ravel()
    assert among.tolist() == np.bincount(order[: round(part * blocks)], minlength=tiles).tolist()
    at = {name: np.broadcast_to(getattr(places, name)(), (1, tiles)).ravel() for name in ("first", "last")}
    assert at["first"].tolist() == [int(np.flatnonzero(order == c)[0]) for c in range(tiles)]
    assert at["last"].tolist() == [int(np.flatnonzero(order == c)[-1]) for c in range(tiles)]


@pytest.mark.parametrize(
    ("trips", "known"),
    [
        (lambda bx, by: by + 1, True),
        (lambda bx, by: bx + by + 1, False),  # two variables decide
        (lambda bx, by: by % 4 + 1, False),  # classes repeat within the range
        (lambda bx, by: by % 12 + 1, True),
    ],
)
def test_places_are_claimed_only_where_one_variable_decides(trips: Any, known: bool) -> None:
    @T.prim_func
    def ragged(A: T.Tensor((16 * 16, 64), "float32"), B: T.Tensor((16, 64), "float32")) -> None:
        with T.Kernel(8, 12, threads=128) as (bx, by):
            tile = T.alloc_shared((16, 64), "float32")
            for k in T.serial(trips(bx, by)):
                T.copy(A[k * 16, 0], tile)
            T.copy(tile, B[0, 0])

    planned = plan(lower(ragged, machine_of(load_chip("a100-sxm4-80gb"))), {})
    assert (ClassPlaces.of(planned) is not None) == known
