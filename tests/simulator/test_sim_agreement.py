"""The cost model and the event engine say the same: where they do not, the cost model is mended."""

from __future__ import annotations

from functools import cache

import numpy as np
from simcases import CHIPS, Case, sample

from foretile.kernels.operator import operator_names

_COUNT = 600
# Matrix products are what most people ask about: half of the sample is theirs.
_OPERATORS = ("gemm", "gemm", *operator_names())


@cache
def errors() -> tuple[np.ndarray, tuple[Case, ...]]:
    """|log(cost model / engine)| of a seeded sample, and the cases."""
    cases = tuple(sample(_COUNT, 20240601, _OPERATORS))
    return np.asarray([abs(np.log(c.modelled_s() / c.played_s())) for c in cases]), cases


def worst(count: int = 5) -> str:
    wrong, cases = errors()
    return "\n".join(f"{np.expm1(wrong[i]):.1%}: {cases[i]!r}" for i in np.argsort(-wrong)[:count])


def test_half_of_a_large_random_sample_agrees_within_five_per_cent() -> None:
    wrong, _ = errors()
    assert np.median(wrong) <= np.log(1.05), worst()


def test_all_of_a_large_random_sample_agrees_within_twenty_per_cent() -> None:
    wrong, _ = errors()
    assert wrong.max() <= np.log(1.20), (
        f"{np.sum(wrong > np.log(1.2))} of {len(wrong)} beyond 20 %:\n{worst(12)}"
    )


def test_the_sample_covers_every_operator_and_every_chip() -> None:
    _, cases = errors()
    assert {c.operator.name for c in cases} == set(operator_names())
    assert {c.chip.id for c in cases} == set(CHIPS)


def test_no_operator_is_systematically_off() -> None:
    wrong, cases = errors()
    for name in operator_names():
        mine = np.asarray([e for e, c in zip(wrong, cases, strict=True) if c.operator.name == name])
        assert np.median(mine) <= np.log(1.10), (name, float(np.expm1(np.median(mine))))
