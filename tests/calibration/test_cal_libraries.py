"""Libraries of kernel sources: their tiles run, their choices exist, what they launch beside costs time."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretile.calibration.libraries import LIBRARIES, Library, engine_of, library_of
from foretile.calibration.libraries.beside import bytes_beside
from foretile.calibration.measurements import canonical
from foretile.calibration.predictions import allowed, around_s, batches, times
from foretile.calibration.problem import Problem
from foretile.calibration.sample import load_sample, sample_devices
from foretile.hwmodels import load_chip
from foretile.kernels.operator import load_operator
from foretile.simulator.launches import workloads
from foretile.simulator.machine import SimulationError
from foretile.simulator.numerics.verify import verify
from foretile.simulator.predictor import machine_of

CHIPS = {
    "wgmma": "h200-sxm",
    "tcgen05": "b200-sxm",
    "mma_sync": "a100-sxm4-80gb",
    "mma_sync/fp8": "l40s",
    "mma_sync+bulk": "rtx-pro-6000",
}
GROUPED = {"heads": 32, "kv_heads": 8}
FA3 = library_of("attention_decode", "fa3", "wgmma", GROUPED)
PACKED = library_of("attention_prefill", "fa3", "wgmma", GROUPED)
SGLANG = "sglang_sgl_kernel_fp8_scaled_mm"
SIZES: dict[str, dict[str, Any]] = {
    "attention_decode": {"batch": 4, "heads": 8, "kv_heads": 8, "kv_len": 4096},
    "attention_prefill": {"batch": 4, "heads": 8, "kv_heads": 8, "seq": 1024},
    "quantize": {"rows": 64, "cols": 256},
    "gemm_fp8": {"m": 64, "n": 256, "k": 512},
    "gemm_nvfp4": {"m": 64, "n": 256, "k": 512},
}


def named(library: Library) -> str:
    return f"{library.operator} {library.kernels} {library.engines}"


def sizes(library: Library, **more: Any) -> dict[str, Any]:
    operator = load_operator(library.operator)
    own = SIZES.get(operator.name) or {**operator.example, "kv_len": 8192}
    known = {p.name: p for p in operator.params}
    given = {n: v for n, v in {**own, **more}.items() if n in known}
    made = operator.shape(**given)
    if library.shapes(made) or operator.name != "moe":
        return made
    formats = (operator.shape(**given, dtype=name) for name in known["dtype"].choices)
    return next(shape for shape in formats if library.shapes(shape))


def of_source(source: str, device: str = "h200-sxm", count: int = 24) -> pd.DataFrame:
    table = load_sample(device, "gemm.fp8")
    return table[table["kernel_source"] == source].head(count)


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


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("library", [x for x in LIBRARIES if x.tiles is not None], ids=named)
def test_a_tile_of_every_library_fits_a_chip_it_is_for(library: Library, head_dim: int) -> None:
    assert library.tiles is not None
    shape = sizes(library, head_dim=head_dim)
    operator = load_operator(library.operator)
    chips = [CHIPS[library.engines]] if library.engines in CHIPS else list(CHIPS.values())
    configs = library.tiles(shape)
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


@pytest.mark.parametrize("library", LIBRARIES, ids=named)
def test_every_library_is_of_some_measured_chip(library: Library) -> None:
    source = library.kernels.split()[0].replace("*", "")
    engines = {engine_of(load_chip(name)) for name in sample_devices()}
    forms = [
        sizes(library, kv_dtype=kind, **more)
        for kind in ("bf16", "fp8")
        for more in (
            {},
            {"heads": 128, "batch": 1},
            {"heads": 8, "kv_heads": 2},
            {"heads": 64, "kv_heads": 2},
            {"head_dim": 256},
        )
    ]
    assert any(library.describes(library.operator, source, e, form) for e in engines for form in forms)


@pytest.mark.parametrize("library", [x for x in LIBRARIES if x.choices], ids=named)
def test_every_choice_is_some_of_the_space_and_not_all_of_it(library: Library) -> None:
    space = load_operator(library.operator).configs(sizes(library))
    for _, held in library.choices:
        kept = [c for c in space if all(c.get(name) == value for name, value in held.items())]
        assert 0 < len(kept) < len(space), held


def test_kernels_are_told_apart_by_source_and_engine() -> None:
    decode = {**GROUPED, "heads": 64}
    one, other = (library_of("mla_decode", "default", e, decode) for e in ("mma_sync", "wgmma"))
    assert one is not None
    assert one is not other
    assert library_of("mla_decode", "triton", "wgmma", decode) is None
    assert library_of("gemm", "default", "wgmma", {}) is None
    names = ("h200-sxm", "b200-sxm", "l40s", "rtx-pro-6000")
    assert len({engine_of(load_chip(name)) for name in names}) == 4


def test_rows_take_the_first_choice_whose_condition_holds() -> None:
    library = library_of("gemm_fp8", SGLANG, "wgmma", {})
    assert library is not None
    operator = load_operator("gemm_fp8")
    shape = operator.shape(m=1, n=4096, k=4096)
    space = operator.configs(shape)
    m = np.array([1.0, 16.0, 64.0, 100.0, 5000.0])
    found = library.launched(space, {**shape, "m": m}, len(m))
    sides = [
        {(c["block_m"], c["block_n"]) for c, w in zip(space, column, strict=True) if w} for column in found.T
    ]
    assert sides == [{(16, 64)}, {(16, 64)}, {(64, 64)}, {(64, 128)}, {(128, 128)}]
    # What the space does not have leaves the best of the rest.
    assert library.launched(space[:1], {**shape, "m": m}, len(m)).all()


def test_a_choice_never_makes_a_row_faster() -> None:
    chip = load_chip("h200-sxm")
    for batch in batches(of_source(SGLANG), chip):
        assert batch.library is not None
        configs = allowed(chip, batch)
        bound = times(chip, batch, configs).min(axis=0)
        batch.library = replace(batch.library, choices=())
        assert np.all(np.isfinite(bound))
        assert np.all(bound >= times(chip, batch, configs).min(axis=0))


def test_fits_see_the_times_of_what_is_launched() -> None:
    chip = load_chip("h200-sxm")
    parts = batches(of_source(SGLANG), chip)
    problem = Problem(parts, lambda _: chip)
    problem.refresh(np.zeros(0))
    want = np.concatenate([times(chip, p, allowed(chip, p)).min(axis=0) for p in parts])
    np.testing.assert_allclose(np.exp(problem.residuals(np.zeros(0))) * problem.latency, want, rtol=0.02)


def test_rows_whose_scale_is_found_say_so() -> None:
    rows = load_sample("h200-sxm", "gemm.fp8")
    rows = rows[rows["operator"] == "gemm_fp8"]  # the family has products of fp8 operands, too
    found = rows["shape"].map(lambda text: json.loads(text)["find_scale"])
    assert set(rows.loc[found, "kernel_source"]) == {"torch_flow"}


@pytest.mark.parametrize("chip", ["a100-sxm4-80gb", "l40s", "rtx-pro-6000"])
def test_decode_by_a_context_kernel_does_not_split_keys(chip: str) -> None:
    """One sequence takes as long as eight, and one head as long as sixty-four."""
    rows = table("mla_decode", ["default"] * 3, batch=[1, 8, 1], kv_len=[8192] * 3, heads=[64, 64, 1])
    made = load_chip(chip)
    (batch,) = batches(rows, made)
    best = times(made, batch, allowed(made, batch)).min(axis=0)
    assert best == pytest.approx([best[0]] * 3, rel=0.15)
    free = batches(rows.assign(kernel_source="another"), made)[0]
    assert times(made, free, allowed(made, free)).min(axis=0)[0] < best[0] / 3


def test_rows_of_different_kernels_keep_their_places() -> None:
    rows = table(
        "mla_decode", ["default", "triton", "default"], batch=[1, 2, 4], kv_len=[512] * 3, heads=[8] * 3
    )
    found = batches(rows, load_chip("a100"))
    assert sorted(tuple(b.where) for b in found) == [(0, 2), (1,)]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4096), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 5, 8, 16]))
def test_packing_never_adds_blocks_and_leaves_long_and_ungrouped_queries_alone(
    seq: int, kv_heads: int, group: int
) -> None:
    assert PACKED is not None
    shape = {"batch": 2.0, "seq": float(seq), "heads": float(kv_heads * group), "kv_heads": float(kv_heads)}
    seen = PACKED.like(shape, {"block_m": 128, "block_n": 128})
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
    moved = FA3.bytes_beside({**shape, "kv_dtype": "bf16"})
    assert [list(m) for m in moved] == [[4096.0, 262144.0, 16777216.0]]
    (half,) = FA3.bytes_beside({**shape, "kv_dtype": "fp8"})
    assert (half < moved[0]).all()
    rows = load_sample("h200-sxm")
    rows = rows[rows["operator"] == "attention_decode"]
    chip = load_chip("h200-sxm").model_copy(update={"kernels": {}})
    launch = chip.launch.kernel_s.value
    for batch in batches(rows, chip):
        assert batch.library is not None
        beside = len(batch.library.bytes_beside(batch.shape))
        assert (around_s(chip, batch) > beside * 0.9 * launch).all()


@pytest.mark.parametrize(
    ("source", "chip"),
    [
        ("torch_flow", "b200-sxm"),
        ("trtllm_mha", "gb300"),
        ("flashinfer", "l40s"),
        ("flashinfer", "rtx-pro-6000"),
    ],
)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("kv_dtype", ["bf16", "fp8"])
def test_one_block_serves_up_to_32_query_heads_a_kv_head(
    source: str, chip: str, head_dim: int, kv_dtype: str
) -> None:
    """Keys and values are read once for 32 heads, not once for every 16 of them."""
    made = load_chip(chip).model_copy(update={"kernels": {}})
    operator = load_operator("attention_decode")
    dtype = "bf16" if source == "flashinfer" else kv_dtype
    rows: list[set[int]] = []
    for heads in (64, 128):
        given = {"batch": 512, "kv_len": 64, "heads": heads, "kv_heads": 4, "head_dim": head_dim}
        shape = operator.shape(**given, dtype=dtype, kv_dtype=kv_dtype)
        library = library_of("attention_decode", source, engine_of(made), shape)
        assert library is not None
        assert library.tiles is not None
        rows.append(set())
        for config in library.tiles(shape):
            try:
                workloads(operator, shape, config, machine_of(made, ""))
            except SimulationError:
                continue
            rows[-1].add(config["block_h"])
    few, many = rows
    assert few == {16}
    assert many in ({32}, {64}), "of one size, and some tile fits"


LATENT_PREFILL = {"seq": 1024, "heads": 16, "prefix": 0}


@pytest.mark.parametrize("chip", ["a100-sxm4-80gb", "l40s", "rtx-pro-6000", "h200-sxm", "b200-sxm", "gb300"])
def test_latent_prefill_of_one_query_takes_as_long_as_a_tile(chip: str) -> None:
    """Every block does a whole tile: 16 queries of 2048 heads take the time of one."""
    rows = table("mla_prefill", ["default"] * 2, batch=[16, 16], seq=[1, 16], heads=[128, 128])
    made = load_chip(chip).model_copy(update={"kernels": {}})
    (batch,) = batches(rows, made)
    assert batch.library is not None
    assert batch.library.tiles is not None
    configs = allowed(made, batch)
    assert len({c["block_m"] for c in configs}) == 1
    one, many = (times(made, batch, configs) - around_s(made, batch)).min(axis=0)
    assert one == pytest.approx(many, rel=0.15)


@pytest.mark.parametrize(("kernels", "engine"), [("default", "wgmma"), ("trtllm_mla", "tcgen05")])
def test_what_runs_beside_latent_prefill_moves_whole_tokens(kernels: str, engine: str) -> None:
    library = library_of("mla_prefill", kernels, engine, LATENT_PREFILL)
    assert library is not None
    sizes_of = [
        np.array([float(np.sum(m)) for m in library.bytes_beside({**LATENT_PREFILL, "batch": np.array([b])})])
        for b in (1.0, 4.0)
    ]
    np.testing.assert_allclose(sizes_of[1], 4 * sizes_of[0])
    # At least what the cache keeps of a token, in bf16; at most what attention itself moves.
    operator = load_operator("mla_prefill")
    least = operator.min_bytes({**operator.example, **LATENT_PREFILL, "batch": 1, "dtype": "bf16"})
    assert 2 * 576 * 1024 <= sizes_of[0].sum() <= least


def test_waiting_for_counts_grows_with_the_experts_and_slow_rows_with_their_elements() -> None:
    library = library_of("moe", "moe_torch_flow_cutlass", "wgmma", {"dtype": "fp8_block"})
    assert library is not None
    machine = machine_of(load_chip("h200-sxm"))
    small = {
        "tokens": np.array([1.0, 1024.0]),
        "topk": 8,
        "experts": 64,
        "hidden": np.array([4096.0, 4096.0]),
    }
    few, many = library.waits_s(small, machine)
    assert few < many
    more = library.waits_s({**small, "experts": 256}, machine) - np.array([few, many])
    assert np.allclose(more, 2 * 192 * machine.l2_latency_s)
    plain = library_of("moe", "moe_torch_flow_cutlass", "wgmma", {"dtype": "fp8"})
    assert plain is not None
    assert not plain.waits_s(small, machine).any()


def test_tiles_of_padded_experts_are_blocks_of_their_own() -> None:
    moe = load_operator("moe")
    shape = moe.shape(tokens=512, hidden=1024, inter=512, topk=2, experts=4, dtype="fp8_block")
    library = library_of("moe", "sglang_fused_moe_triton", "wgmma", shape)
    assert library is not None
    config = moe.config(shape, block_m=16)
    rows = library.like(shape, config)
    assert rows["align"] == 16
    assert {**rows, "align": shape["align"]} == shape
    many, few = (workloads(moe, s, config, machine_of(load_chip("h200-sxm"))) for s in (rows, shape))
    assert [w.program.name for w in many] == [w.program.name for w in few]


def test_kernels_beside_a_mixture_of_experts_move_rows_not_weights() -> None:
    shape = {"tokens": np.array([16.0, 32.0]), "topk": 8, "hidden": 4096, "inter": 1024, "dtype": "fp8_block"}
    for kernel in ("activation", "activation_quantised", "quantised_h", "quantised_rows", "quantised_tokens"):
        moved = bytes_beside(kernel, {**shape, "experts": 8})
        assert moved is not None
        assert moved[1] == 2.0 * moved[0] > 0.0
    with pytest.raises(ValueError, match="called 'sorting'"):
        bytes_beside("sorting", shape)


@pytest.mark.parametrize(
    ("kernel", "engine", "dtype"),
    [
        ("vllm_modeloptfp8moe_flashinfer_cutlass_flashinferexperts", "wgmma", "fp8"),
        ("vllm_fused_moe", "tcgen05", "fp8_block"),
        ("moe_torch_flow_triton_fp8_block", "mma_sync+bulk", "fp8_block"),
    ],
)
def test_tiles_of_mixtures_of_experts_compute_what_the_operator_does(
    kernel: str, engine: str, dtype: str
) -> None:
    moe = load_operator("moe")
    shape = moe.shape(tokens=20, hidden=200, inter=104, topk=2, experts=5, align=128, dtype=dtype)
    library = library_of("moe", kernel, engine, shape)
    assert library is not None
    assert library.tiles is not None
    assert all(verify(moe, shape, config).ok for config in library.tiles(shape))


@pytest.mark.parametrize(
    ("chip", "whole"), [("l40s", True), ("rtx-pro-6000", True), ("a100-sxm4-80gb", False)]
)
def test_small_products_are_split_only_by_libraries_that_do(chip: str, whole: bool) -> None:
    """Below 2^21 multiply-adds on Ada and GB20x: never; above, and for one row, where it is faster."""
    library = library_of("gemm", "torch_flow", engine_of(load_chip(chip)), {})
    assert (library is not None) is whole
    if library is None:
        return
    configs = [{"split_k": 1}, {"split_k": 8}]
    shape = {
        "m": np.array([4, 4, 1, 4]),
        "n": np.array([64, 64, 64, 64]),
        "k": np.array([6144, 8192, 6144, 6144]),
        "batch": np.array([1, 1, 1, 2]),
    }
    launched = library.launched(configs, shape, 4)
    assert launched[0].all()
    assert launched[1].tolist() == [False, True, True, True]
