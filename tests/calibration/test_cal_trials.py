"""Rows timed together for several chips are what each is alone, with the rules of their libraries."""

from __future__ import annotations

import numpy as np
import pytest

from foretile.calibration.measurements import fit_rows
from foretile.calibration.parameters import prepared, with_factors, with_profile
from foretile.calibration.predictions import allowed, batches, config_s
from foretile.calibration.sample import load_sample
from foretile.calibration.trials import Trial, Trials
from foretile.hwmodels import load_chip


@pytest.mark.parametrize("family", ["attention_decode", "attention_prefill", "gemm.fp8"])
def test_trials_are_what_config_s_finds(family: str) -> None:
    start = prepared(load_chip("h200-sxm", calibrated=False))
    profile = start.kernels["gemm.bf16"]
    slow = profile.launch_fraction.model_copy(update={"value": 3.0})
    factors = ({"dram": 0.8, "latency": 1.4}, {"matrix": 0.9})
    chips = [
        with_profile(start, family, profile),
        with_profile(start, family, profile.model_copy(update={"launch_fraction": slow})),
        *(with_profile(with_factors(start, f), family, profile) for f in factors),
    ]
    rows = fit_rows(load_sample("h200-sxm", family))
    rows = rows[rows["comparable"] == ""]
    trials: list[Trial] = []
    for batch in batches(rows.groupby("kernel_source").head(3), start)[:6]:
        configs = allowed(start, batch)
        trials += [(batch, config, None) for config in configs[:: max(1, len(configs) // 3)]]
        trials.append((batch, configs[0], np.arange(0, len(batch), 2)))
    found = Trials(trials).seconds(chips)
    assert len({id(batch.library) for batch, _, _ in trials}) > 1
    for seconds, (batch, config, where) in zip(found, trials, strict=True):
        for mine, chip in zip(seconds, chips, strict=True):
            np.testing.assert_allclose(mine, config_s(chip, batch, config, where), rtol=1e-12)
