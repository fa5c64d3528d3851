"""Libraries of kernel sources: their tiles run, packing adds no blocks, a call's other kernels cost time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretile.calibration.predictions import allowed, around_s, batches, times
from foretile.calibration.sample import load_sample
from foretile.calibration.sources.libraries import LIBRARIES, Library, bytes_beside, library_of
from foretile.hwmodels import load_chip
from foretile.kernels.operator import load_operator
from foretile.simulator.machine import SimulationError
from foretile.simulator.predictor import machine_of
from foretile.simulator.search import workloads

CHIPS = {"wgmma": "h200-sxm", "tcgen05": "b200-sxm", "mma_sync": "a100-sxm4-80gb"}
FA3 = library_of("attention_decode", "fa3", "wgmma", True)
PACKED = library_of("attention_prefill", "fa3", "wgmma", True)


def _shape(library: Library, head_dim: int, **more: Any) -> dict[str, Any]:
    name = library.operators
    sizes = {"kv_len": 4096} if name == "attention_decode" else {"seq": 1024}
    return load_operator(name).shape(
        **{"batch": 4, "heads": 8, "kv_heads": 8, "head_dim": head_dim, **sizes, **more}
    )


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda x: f"{x.operators} {x.kernels} {x.instructions}")
def test_a_tile_of_every_library_fits_a_chip_it_is_for(library: Library, head_dim: int) -> None:
    shape = _shape(library, head_dim)
    operator = load_operator(library.operators)
    chips = [CHIPS[library.instructions]] if library.instructions in CHIPS else list(CHIPS.values())
    configs = library.configs(operator.name, shape)
    fitting = 0
    for config in configs:
        assert operator.config(shape, **config) == config, "a configuration of the operator"
        for chip in chips:
            try:
                workloads(operator, shape, config, machine_of(load_chip(chip)))
                fitting += 1
            except SimulationError:
                continue
    assert fitting or not configs


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4096), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 5, 8, 16]))
def test_packing_never_adds_blocks_and_leaves_long_and_ungrouped_queries_alone(
    seq: int, kv_heads: int, group: int
) -> None:
    assert PACKED is not None
    shape = {"batch": 2.0, "seq": float(seq), "heads": float(kv_heads * group), "kv_heads": float(kv_heads)}
    seen = PACKED.launched(shape, {"block_m": 128, "block_n": 128})
    blocks = [np.ceil(s["seq"] / 128) * s["heads"] for s in (shape, seen)]
    assert blocks[1] <= blocks[0]
    assert seen["heads"] % kv_heads == 0
    assert seen["seq"] * seen["heads"] >= min(seq, 128) * shape["heads"] * (seq < 128), "no row is lost"
    if seq >= 128 or group == 1:
        assert (seen["seq"], seen["heads"]) == (shape["seq"], shape["heads"])


def test_decode_without_a_full_tile_of_keys_takes_as_long_as_with_one() -> None:
    """FlashAttention 3 has one tile of 128 keys: the tables show the same time from 1 to 128 keys."""
    rows = load_sample("h200-sxm")
    rows = rows[(rows["operator"] == "attention_decode") & (rows["kernel_source"] == "fa3")]
    chip = load_chip("h200-sxm").model_copy(update={"kernels": {}})
    batch = next(b for b in batches(rows, chip) if b.shape["head_dim"] == 128 and b.shape["window"] == 0)
    assert batch.library is FA3
    same = {"batch": 64.0, "heads": 32.0, "kv_heads": 8.0}
    for name, value in same.items():
        batch.shape[name] = np.full(len(batch), value)
    batch.shape["kv_len"] = np.where(np.arange(len(batch)) % 2, 8.0, 64.0)
    best = times(chip, batch, allowed(chip, batch)).min(axis=0)
    assert best.max() < 1.25 * best.min()


def test_kernels_beside_an_operator_cost_time_that_grows_with_what_they_move() -> None:
    assert FA3 is not None
    shape = {"batch": np.array([1.0, 64.0, 4096.0]), "kv_heads": 8.0, "heads": 8.0, "head_dim": 128}
    moved = bytes_beside(FA3, {**shape, "kv_dtype": "bf16"})
    assert [list(m) for m in moved] == [[4096.0, 262144.0, 16777216.0]]
    (half,) = bytes_beside(FA3, {**shape, "kv_dtype": "fp8"})
    assert (half < moved[0]).all()
    rows = load_sample("h200-sxm")
    rows = rows[rows["operator"] == "attention_decode"]
    chip = load_chip("h200-sxm").model_copy(update={"kernels": {}})
    launch = chip.launch.kernel_s.value
    for batch in batches(rows, chip):
        assert batch.library is not None
        assert (
            around_s(chip, batch)
            > len(batch.library.beside) * 0.9 * launch * ("cast" not in batch.library.beside)
        ).all()


def test_sources_that_nothing_is_known_of_have_the_whole_space() -> None:
    assert library_of("gemm", "anything", "wgmma", False) is None
    triton = library_of("attention_decode", "triton", "tcgen05", True)
    assert triton is not None
    assert triton.configs("attention_decode", _shape(triton, 128)) == []
