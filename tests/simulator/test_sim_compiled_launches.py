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
