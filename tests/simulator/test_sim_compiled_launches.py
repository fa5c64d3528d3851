"""What is assumed of kernels that TileLang compiles is what its compiler and nvcc made of 164 launches."""

from __future__ import annotations

import numpy as np
import pytest
from compiled_launches import CHIPS, Facts, agreeing, launches

Pairs = list[tuple[Facts, Facts]]


@pytest.fixture(scope="module")
def pairs() -> dict[str, Pairs]:
    """Assumed and compiled, of launches that were held out, by architecture."""
    held_out = [one for one in launches() if not one.seen]
    return {arch: [(x.assumed(), x.compiled) for x in held_out if x.arch == arch] for arch in CHIPS}


@pytest.mark.parametrize("arch", CHIPS)
def test_roles_and_instructions_of_launches_held_out(pairs: dict[str, Pairs], arch: str) -> None:
    some = pairs[arch]
    assert len(some) >= 20
    for name in ("threads", "producers", "matrix"):
        assert agreeing(some, name) == len(some), name
    for name in ("stages", "bulk_loads", "shared_bytes"):
        assert agreeing(some, name) >= 0.95 * len(some), name


def test_registers_and_blocks_of_launches_held_out(pairs: dict[str, Pairs]) -> None:
    every = [pair for some in pairs.values() for pair in some]
    ratios = [compiled.registers / assumed.registers for assumed, compiled in every]
    assert abs(np.log(np.median(ratios))) <= np.log(1.1)
    assert agreeing(every, "registers") >= 0.75 * len(every)
    assert agreeing(every, "blocks") >= 0.75 * len(every)


def test_a_library_s_conventions_are_others() -> None:
    """Where warps are set aside and products could use tensor memory, less than half agree."""
    apart = [x for x in launches() if x.arch == "sm_100a" and x.compiled.producers and x.compiled.matrix]
    pairs = [(x.assumed("library"), x.compiled) for x in apart]
    assert len(pairs) >= 10
    assert agreeing(pairs, "matrix") <= 0.5 * len(pairs)
    assert agreeing(pairs, "registers") <= 0.5 * len(pairs)


def test_values_spill_where_they_were_said_to() -> None:
    """Which launches spill is told by the registers they need; how much, in order of magnitude."""
    assumed = np.array([x.assumed_spilled_bytes() for x in launches()])
    compiled = np.array([x.spilled_bytes for x in launches()])
    assert np.mean((assumed > 0) == (compiled > 0)) >= 0.95
    much = compiled >= 64  # what nvcc puts aside before and after loops is less
    assert much.sum() >= 5
    assert (assumed[much] > 0).all()
    assert 0.5 <= assumed.sum() / compiled.sum() <= 2.0
