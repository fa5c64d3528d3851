"""Chips that nobody measured: what they take from others, and what must not reach them."""

from __future__ import annotations

import numpy as np
import pytest

from foretile.calibration.parameters import CHIP_PARAMETERS
from foretile.calibration.transfer import DIES, die_of, fitted_chips, prior_for, transferred, without_die
from foretile.hwmodels import Chip, list_chips, load_chip
from foretile.kernels.families import multiplies
from foretile.simulator.prediction import Prediction

FITTED = sorted(fitted_chips())
UNMEASURED = [n for n in ("h20", "h800-sxm") if n in list_chips()]


def test_the_catalogue_has_chips_fitted_to_measurements() -> None:
    assert {"h100-sxm5-80gb", "h200-sxm", "a100-sxm4-80gb", "b200-sxm", "l40s"} <= set(FITTED)


@pytest.mark.parametrize("name", FITTED)
def test_fitted_factors_lie_in_their_plausible_range(name: str) -> None:
    calibration = fitted_chips()[name].calibration
    assert calibration is not None
    for p in CHIP_PARAMETERS:
        assert p.low * 0.999 <= calibration.factors[p.name] <= p.high * 1.001, p.name


@pytest.mark.parametrize("name", FITTED)
def test_a_prior_never_knows_the_chip_or_another_product_of_its_die(name: str) -> None:
    prior = prior_for(load_chip(name, calibrated=False))
    assert prior.teachers
    assert not set(prior.teachers) & die_of(name)
    seen = without_die(name).calibration
    assert seen is not None
    assert seen.kind == "transferred"
    assert name not in seen.data


def test_a_source_that_launches_other_kernels_there_is_taught_by_its_family() -> None:
    """FlashInfer's CUTLASS mixtures take an untuned tile on Hopper; the fractions are those of that tile."""
    untuned = "moe.fp8/vllm_modeloptfp8moe_flashinfer_cutlass_flashinferexperts"
    assert untuned in fitted_chips()["h100-sxm5-80gb"].kernels
    taught = without_die("rtx-pro-6000").kernels
    assert untuned not in taught
    assert {"moe.fp8", "moe.fp8/moe_torch_flow_cutlass"} <= taught.keys()


@pytest.mark.parametrize("name", FITTED)
def test_left_out_a_chip_is_told_by_the_others_alone(name: str) -> None:
    """Other factors in the chip's own calibration change nothing."""
    chips = dict(fitted_chips())
    own = chips[name]
    assert own.calibration is not None
    wrong = own.calibration.model_copy(update={"factors": dict.fromkeys(own.calibration.factors, 0.5)})
    chips[name] = own.model_copy(update={"calibration": wrong})
    base = load_chip(name, calibrated=False)
    assert transferred(base, chips).quantities() == transferred(base).quantities()


def test_dies_do_not_overlap() -> None:
    everything = [name for die in DIES for name in die]
    assert len(everything) == len(set(everything))


@pytest.mark.parametrize("name", UNMEASURED)
def test_an_unmeasured_chip_takes_what_others_teach_with_a_wider_interval(name: str) -> None:
    import foretile

    chip = load_chip(name)
    assert chip.calibration is not None
    assert chip.calibration.kind == "transferred"
    sizes = {"m": 4096, "n": 4096, "k": 4096}
    known, unknown = (foretile.predict("gemm", n, model="cost_model", **sizes) for n in ("h200", name))

    def width(p: Prediction) -> float:
        return float(np.log(p.interval_s[1] / p.interval_s[0]))

    assert width(unknown) > width(known)
    assert "measured" not in unknown.model["calibration"] or "fitted" not in unknown.model["calibration"]


def test_an_h20_does_not_sink_under_matrix_work_as_an_h100_does() -> None:
    h20, h100 = (transferred(load_chip(n, calibrated=False)).clock for n in ("h20", "h100"))
    assert h20.matrix_sustained_hz is not None
    assert h100.matrix_sustained_hz is not None
    assert h20.matrix_sustained_hz.value > 0.9 * h20.max_hz.value
    assert h100.matrix_sustained_hz.value < 0.9 * h100.max_hz.value


def test_a_slower_matrix_engine_loses_the_same_cycles_between_products() -> None:
    """An H20 loses a quarter of the share that an H100 does; element-wise kernels lose the same share."""
    hopper = {n: c for n, c in fitted_chips().items() if c.family == "hopper"}
    base = load_chip("h20", calibrated=False)
    assert (
        base.matrix.flop_per_cycle["bf16"].value * 4 == hopper["h200-sxm"].matrix.flop_per_cycle["bf16"].value
    )
    for name, teacher in hopper.items():
        h20, h800 = (
            transferred(load_chip(n, calibrated=False), {name: teacher}, own_die=True)
            for n in ("h20", "h800-sxm")
        )

        def lost(chip: Chip) -> float:
            return 1.0 / chip.matrix.mainloop_fraction.value - 1.0

        assert lost(h20) == pytest.approx(lost(teacher) / 4, rel=1e-3)
        assert lost(h800) == pytest.approx(lost(teacher), rel=1e-3)
        for key, profile in teacher.kernels.items():
            if profile.core_fraction.confidence != "measured" or key not in h20.kernels:
                continue
            own, theirs = h20.kernels[key].core_fraction.value, profile.core_fraction.value
            if multiplies(key.split("/")[0]):
                assert 1.0 / own - 1.0 == pytest.approx((1.0 / theirs - 1.0) / 4, rel=1e-6, abs=1e-9), key
            else:
                assert own == pytest.approx(theirs), key


def test_families_with_and_without_products() -> None:
    families = {k.split("/")[0] for c in fitted_chips().values() for k in c.kernels}
    without = {f for f in families if not multiplies(f)}
    assert without == {"quantize", "topk_select"}


@pytest.mark.parametrize("name", [*FITTED, *UNMEASURED])
def test_no_calibration_lets_a_chip_beat_its_peak(name: str) -> None:
    import foretile

    chip = load_chip(name)
    for family in ("gemm", "gemm_fp8_block", "attention_prefill"):
        shape = {
            "gemm": {"m": 16384, "n": 16384, "k": 16384},
            "gemm_fp8_block": {"m": 16384, "n": 16384, "k": 16384},
            "attention_prefill": {"batch": 4, "seq": 8192, "heads": 32},
        }[family]
        if family == "gemm_fp8_block" and "fp8" not in chip.matrix.flop_per_cycle:
            continue
        prediction = foretile.predict(family, name, model="cost_model", **shape)
        dtype = "fp8" if family == "gemm_fp8_block" else "bf16"
        peak = chip.matrix.flop_per_cycle[dtype].value * chip.cores.value * chip.clock.max_hz.value
        assert prediction.flops / prediction.time_s <= peak


@pytest.mark.parametrize("name", FITTED)
def test_a_launch_is_taught_in_seconds_whatever_the_files_say(name: str) -> None:
    """It lies among the teachers', and twice as long a launch in the chip's own file changes nothing."""
    base = load_chip(name, calibrated=False)
    prior = prior_for(base)
    taught = [
        c.launch.kernel_s.value + c.launch.ramp_s.value
        for n, c in fitted_chips().items()
        if n in prior.teachers and c.launch.ramp_s is not None
    ]
    kernel = base.launch.kernel_s
    slower = kernel.model_copy(update={"value": 2.0 * kernel.value})
    other = base.model_copy(update={"launch": base.launch.model_copy(update={"kernel_s": slower})})
    made = []
    for chip in (base, other):
        launch = transferred(chip).launch
        assert launch.ramp_s is not None
        made.append(launch.kernel_s.value + launch.ramp_s.value)
    assert min(taught) <= made[0] <= max(taught)
    assert made[1] == pytest.approx(made[0])


@pytest.mark.parametrize("name", FITTED)
def test_what_teachers_disagree_on_widens_what_they_left(name: str) -> None:
    """One teacher's launches take three times as long: short kernels are less certain, long ones are not."""
    base, chips = load_chip(name, calibrated=False), dict(fitted_chips())
    agreed = prior_for(base, chips)
    odd = chips[agreed.teachers[0]]
    slower = odd.launch.kernel_s.model_copy(update={"value": 3.0 * odd.launch.kernel_s.value})
    chips[odd.id] = odd.model_copy(update={"launch": odd.launch.model_copy(update={"kernel_s": slower})})
    apart = prior_for(base, chips)
    before, after = agreed.residual["gemm.bf16"], apart.residual["gemm.bf16"]
    assert after["1e-06"] > 1.1 * before["1e-06"]
    assert after["all"] == pytest.approx(before["all"])
