"""Rules by which libraries split the keys of decode: bounds, fill of the cores, what is launched for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretile.calibration.libraries import LIBRARIES, Library, library_of, splits
from foretile.calibration.predictions import Batch, around_s, config_s
from foretile.hwmodels import load_chip
from foretile.hwmodels.quantity import Quantity
from foretile.hwmodels.schema import KernelProfile
from foretile.kernels.operator import load_operator
from foretile.simulator.conditions import REPEATED

RULES = [
    splits.flash2,
    splits.flash3,
    splits.flash3_graph,
    splits.xqa,
    splits.gen,
    splits.masked,
    splits.whole,
]
CONFIG = {"block_h": 16, "block_n": 64, "num_stages": 2, "threads": 128, "num_split": 1}
DECODE = load_operator("attention_decode")


def columns(batch: Any, kv_len: Any, heads: int = 8, kv_heads: int = 2, window: int = 0) -> dict[str, Any]:
    batch, kv_len = np.broadcast_arrays(
        np.atleast_1d(batch).astype(float), np.atleast_1d(kv_len).astype(float)
    )
    shape = DECODE.shape(batch=1, kv_len=1, heads=heads, kv_heads=kv_heads, head_dim=128, window=window)
    full = {"heads": np.full(batch.shape, float(heads)), "kv_heads": np.full(batch.shape, float(kv_heads))}
    return {**shape, **full, "batch": batch, "kv_len": kv_len}


@pytest.mark.parametrize("rule", RULES)
@given(
    batch=st.integers(1, 2048),
    kv_len=st.integers(1, 200_000),
    group=st.integers(1, 16),
    kv_heads=st.integers(1, 16),
    window=st.sampled_from([0, 128, 4096]),
    cores=st.sampled_from([20, 132, 188]),
)
@settings(max_examples=60)
def test_parts_are_some_of_the_numbers_there_are_and_none_is_empty_of_tiles(
    rule: Any, batch: int, kv_len: int, group: int, kv_heads: int, window: int, cores: int
) -> None:
    shape = columns(batch, kv_len, group * kv_heads, kv_heads, window)
    parts = rule(shape, CONFIG, cores)
    assert parts.shape == (1,)
    assert parts[0] in splits.PARTS
    assert parts[0] <= max(1, -(-kv_len // CONFIG["block_n"]))


@pytest.mark.parametrize("rule", [r for r in RULES if r is not splits.whole])
def test_blocks_that_fill_the_chip_many_times_are_not_split_and_one_alone_is(rule: Any) -> None:
    parts = rule(columns([1, 4096], [65536, 65536]), CONFIG, 132)
    assert parts[0] >= 16
    assert parts[1] == 1


def test_a_library_runs_its_own_number_of_parts_only() -> None:
    library = library_of(
        "attention_decode", "torch_flow", "tcgen05", DECODE.shape(batch=1, kv_len=1, heads=8)
    )
    assert library is not None
    assert library.tiles is not None
    shape = columns([1, 64, 4096], [8192, 8192, 8192])
    runs = [
        np.broadcast_to(library.splits(shape, config, 148), (3,)).astype(int)
        for config in library.tiles(shape)
    ]
    assert (np.sum(runs, axis=0) == 1).all(), "one configuration a row"
    assert library.splits(shape, {**CONFIG, "block_n": 16}, 148) is True, "none of its own"


def batch_of(library: Library | None, **shape: int) -> Batch:
    whole = DECODE.shape(**shape)
    dynamic = {p.name: np.array([float(whole[p.name])]) for p in DECODE.params if p.dynamic}
    one = np.ones(1)
    return Batch(DECODE, DECODE.name, "", {**whole, **dynamic}, REPEATED, one, one, np.arange(1), library)


def test_the_last_block_combines_for_less_than_a_kernel_and_an_idle_combination_costs_one() -> None:
    chip = load_chip("h200-sxm")
    config = {**CONFIG, "num_split": 4}
    plain = Library("attention_decode", "x")
    shape = {"batch": 2, "kv_len": 4096, "heads": 8, "kv_heads": 2}

    def seconds(library: Library, parts: int) -> float:
        return float(config_s(chip, batch_of(library, **shape), {**config, "num_split": parts})[0])

    own, hidden, last = (seconds(replace(plain, merges=m), 4) for m in ("", "dependent", "last"))
    assert last < hidden < own
    always = replace(plain, combines=lambda shape, config, cores: np.ones(1, dtype=bool))
    assert seconds(plain, 1) < seconds(replace(always, merges="dependent"), 1) < seconds(always, 1)
    assert seconds(always, 4) == own, "it is part of the program then"


def test_kernels_beside_cost_the_same_whatever_the_familys_profile() -> None:
    chip = load_chip("h200-sxm")
    slow = KernelProfile(
        **{
            name: Quantity[float](value=value, source="a test", confidence="measured")
            for name, value in (("core_fraction", 0.5), ("memory_fraction", 0.5), ("launch_fraction", 5.0))
        }
    )
    library = next(x for x in LIBRARIES if x.operator == "attention_decode" and x.beside)
    batch = batch_of(library, batch=8, kv_len=512, heads=8)
    changed = chip.model_copy(update={"kernels": {**chip.kernels, "attention_decode": slow}})
    np.testing.assert_allclose(around_s(changed, batch), around_s(chip, batch))
