"""Library kernels that come in some configurations only."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from foretile.calibration.measurements import canonical
from foretile.calibration.predictions import allowed, batches, times
from foretile.calibration.sources.variants import VARIANTS, use, variant_of
from foretile.hwmodels import load_chip
from foretile.kernels.operator import load_operator


def table(operator: str, kernels: list[str], **columns: list[int]) -> pd.DataFrame:
    made = load_operator(operator)
    shapes = [
        canonical(made.shape(**dict(zip(columns, row, strict=True))))
        for row in zip(*columns.values(), strict=True)
    ]
    common = {"operator": operator, "family": operator, "framework": "trtllm", "launch": "graph"}
    rows = [
        common | {"shape": s, "kernel_source": k, "copies": json.dumps({}), "latency_s": 1e-5}
        for s, k in zip(shapes, kernels, strict=True)
    ]
    return pd.DataFrame(rows)


def test_every_variant_leaves_configurations_of_its_operator() -> None:
    for variant in VARIANTS:
        operator = load_operator(variant.operator)
        shape = operator.shape(**{**operator.example, "kv_len": 8192})
        kept = [config for config in operator.configs(shape) if variant.has(config)]
        assert 0 < len(kept) < len(operator.configs(shape))


def test_kernels_are_told_apart_by_source_and_instruction() -> None:
    assert variant_of("mla_decode", "default", "mma_sync") != variant_of("mla_decode", "default", "wgmma")
    assert variant_of("mla_decode", "triton", "wgmma") == -1
    assert variant_of("gemm", "default", "wgmma") == -1


@pytest.mark.parametrize("chip", ["a100-sxm4-80gb", "l40s", "rtx-pro-6000"])
def test_decode_by_a_context_kernel_does_not_split_keys(chip: str) -> None:
    """One sequence takes as long as eight, and one head as long as sixty-four."""
    rows = table("mla_decode", ["default"] * 3, batch=[1, 8, 1], kv_len=[8192] * 3, heads=[64, 64, 1])
    made = load_chip(chip)
    (batch,) = batches(rows, made)
    configs = allowed(made, batch)
    assert {config["num_split"] for config in configs} == {1}
    best = times(made, batch, configs).min(axis=0)
    assert best == pytest.approx([best[0]] * 3, rel=0.15)
    free = batches(rows.assign(kernel_source="another"), made)[0]
    assert times(made, free, allowed(made, free)).min(axis=0)[0] < best[0] / 3


def test_few_heads_use_small_tiles_only() -> None:
    place = variant_of("mla_decode", "trtllm_mla", "tcgen05")
    shape = {"heads": np.array([1.0, 32.0, 64.0, 128.0])}
    seconds = np.ones(4)
    assert list(use(place, {"block_h": 16}, shape, seconds)) == [1, 1, np.inf, np.inf]
    assert list(use(place, {"block_h": 64}, shape, seconds)) == [np.inf, np.inf, 1, 1]
    assert list(use(-1, {"block_h": 64}, shape, seconds)) == [1, 1, 1, 1]


def test_rows_of_different_kernels_keep_their_places() -> None:
    rows = table(
        "mla_decode", ["default", "triton", "default"], batch=[1, 2, 4], kv_len=[512] * 3, heads=[8] * 3
    )
    found = batches(rows, load_chip("a100"))
    assert sorted(tuple(b.where) for b in found) == [(0, 2), (1,)]
