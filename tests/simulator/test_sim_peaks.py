"""No prediction is faster than the chip allows, on any chip of the catalogue; and the H20 is what it is."""

from __future__ import annotations

import random

import pytest
from simcases import Case, Source, case

from foretile.frontdoor import predict
from foretile.hwmodels import Chip, ChipError, list_chips, load_chip
from foretile.hwmodels.checks import peak_flop_per_s
from foretile.kernels.operator import operator_names
from foretile.simulator.predictor import target

CASES_A_CHIP = 4


def _complete() -> dict[str, Chip]:
    """The chips that predict; those whose description does not suffice refuse to load or to predict."""
    found = {}
    for name in list_chips():
        try:
            chip = load_chip(name)
        except ChipError:
            continue
        if not getattr(chip, "missing", ()):
            found[name] = chip
    return found


CHIPS = _complete()


def _drawn(chip: str) -> list[Case]:
    """A few cases of the whole library on one chip, from a generator seeded with its name."""
    rng = random.Random(chip)
    source = Source(integer=rng.randint, choice=rng.choice)
    found: list[Case] = []
    while len(found) < CASES_A_CHIP:
        drawn = case(source, operator_names(), [chip])
        if drawn is not None:
            found.append(drawn)
    return found


def test_most_of_the_catalogue_predicts() -> None:
    assert len(CHIPS) >= 30


@pytest.mark.parametrize("chip", CHIPS)
def test_no_prediction_beats_the_chips_own_peak(chip: str) -> None:
    for drawn in _drawn(chip):
        on = target(drawn.operator, drawn.shape, drawn.chip).machine
        assert min(drawn.modelled_s(on), drawn.played_s(on)) >= drawn.floor_s(), drawn


def test_blocks_without_work_do_not_stand_for_those_with_it() -> None:
    """Every other tile of such a group is padding: classes at even distances would see nothing else."""
    shape = {"m": 128, "n": 256, "k": 512, "groups": 128}
    config = {"block_m": 64, "block_n": 128, "block_k": 64, "num_stages": 2, "threads": 128, "swizzle": 8}
    found = predict("grouped_gemm", "h100", config=config, **shape)
    weights = 128 * 256 * 512 * 2
    assert found.traffic_bytes["dram_read"] >= weights
    modelled = predict("grouped_gemm", "h100", config=config, model="cost_model", **shape)
    assert found.time_s == pytest.approx(modelled.time_s, rel=0.35)


def test_a_grid_too_large_to_be_numbered_exactly_is_played() -> None:
    """Half a million blocks in panels, the last one thinner: places beyond the grid are no class."""
    shape = {"m": 3580, "n": 4096, "k": 8, "groups": 4096, "dtype": "fp8_block"}
    config = {"block_m": 64, "block_n": 64, "block_k": 128, "num_stages": 6, "threads": 128, "swizzle": 8}
    found = predict("grouped_gemm", "b200-sxm", config=config, **shape)
    assert found.occupancy["blocks"] > 2**18
    assert found.bound in found.utilisation


@pytest.mark.parametrize("chip", CHIPS)
def test_the_best_configuration_does_not_either(chip: str) -> None:
    """A search looks for the fastest, so it would find what is too fast: large products and copies."""
    described = CHIPS[chip]
    dtype = "bf16" if "bf16" in described.matrix.flop_per_cycle else "fp16"
    product = predict("gemm", described, model="cost_model", m=8192, n=8192, k=8192, dtype=dtype)
    assert product.flop_per_s <= peak_flop_per_s(described, dtype)
    copied = predict("copy", described, model="cost_model", bytes=2**30)
    assert 2 * 2**30 / copied.time_s <= described.dram.bandwidth_bytes_per_s.value


# -- the H20: a sixth of the H100's matrix rate with a fifth more memory bandwidth -----------------

RIVALS = ("h100-sxm5-80gb", "h800-sxm")


def _ratio(op: str, rival: str, **shape: object) -> float:
    """Time on the H20 over that on the rival."""
    return predict(op, "h20", **shape).time_s / predict(op, rival, **shape).time_s


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize(("batch", "kv_len"), [(16, 8192), (128, 4096)])
def test_h20_is_level_or_ahead_in_decode_attention(rival: str, batch: int, kv_len: int) -> None:
    """With eight query heads or less to a key head decode attention is bound by memory."""
    assert 0.75 <= _ratio("attention_decode", rival, batch=batch, kv_len=kv_len, heads=32, kv_heads=8) <= 1.05


@pytest.mark.parametrize("rival", RIVALS)
def test_h20_is_level_or_ahead_in_products_of_few_rows(rival: str) -> None:
    for rows in (1, 16):
        assert 0.75 <= _ratio("gemm", rival, m=rows, n=8192, k=8192) <= 1.05


@pytest.mark.parametrize("rival", RIVALS)
def test_h20_is_far_behind_in_prefill_and_large_products(rival: str) -> None:
    assert 4.0 <= _ratio("gemm", rival, m=8192, n=8192, k=8192) <= 6.8
    assert 3.0 <= _ratio("attention_prefill", rival, batch=1, seq=8192, heads=32, kv_heads=8) <= 6.8


# Measured on an H20 (alibaba/InferSim, bench_data, Apache-2.0: DeepGEMM and FlashAttention 3), in µs.
MEASURED_GEMM = {
    (512, 5120, 6656): 133.567,
    (4096, 5120, 10240): 1582,
    (8192, 5120, 7168): 2144,
    (32768, 4096, 9216): 8905,
}
MEASURED_DECODE = {(16, 4096): 63.144, (32, 8192): 206.458, (64, 32768): 1525.279, (128, 16384): 1532.775}
MEASURED_PREFILL = {4096: 1134.939, 16384: 17066.328}
# No figure of this chip was fitted; what the others teach is off by up to a fifth.
TOLERANCE = 0.2


def test_h20_times_are_near_those_measured_on_one() -> None:
    for (m, k, n), us in MEASURED_GEMM.items():
        assert predict("gemm_fp8_block", "h20", m=m, n=n, k=k).time_s * 1e6 == pytest.approx(
            us, rel=TOLERANCE
        )
    heads = {"heads": 16, "kv_heads": 2, "head_dim": 256}
    for (batch, kv_len), us in MEASURED_DECODE.items():
        found = predict("attention_decode", "h20", batch=batch, kv_len=kv_len, **heads)
        assert found.time_s * 1e6 == pytest.approx(us, rel=TOLERANCE)
    for seq, us in MEASURED_PREFILL.items():
        found = predict("attention_prefill", "h20", batch=1, seq=seq, **heads)
        assert found.time_s * 1e6 == pytest.approx(us, rel=TOLERANCE)


def test_h20_products_stay_below_its_peak_at_every_measured_shape() -> None:
    """Where a widely used model predicts up to four times the peak."""
    for m in (64, 128, 512, 4096):
        for n, k in ((6144, 2048), (7168, 5120), (24576, 4096)):
            found = predict("gemm", "h20", model="cost_model", m=m, n=n, k=k, dtype="fp8")
            assert found.flop_per_s <= peak_flop_per_s(load_chip("h20"), "fp8")
