"""Out to TileLang and in again: the same program, and the same bits when it is executed."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
from exported import OTHERWISE_BEFORE_0_1_15, launches, sampled, skip_before_0_1_15

from foretile.kernels.canonical import canonical
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import load_operator, operator_names
from foretile.kernels.tilelang.compile_worker import prim_func
from foretile.kernels.tilelang.export import source
from foretile.kernels.tilelang.versions import installed
from foretile.simulator.numerics.execute import execute

pytestmark = pytest.mark.skipif(
    installed() is None,
    reason="TileLang is not installed (pip install 'foretile[tilelang]')",
)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def through_tilelang(program: TileProgram) -> TileProgram:
    """What the importer makes of the PrimFunc that TileLang's front end makes of the exported text."""
    from foretile.kernels.tilelang import from_prim_func

    found = from_prim_func(prim_func(source(program), program.name))
    assert isinstance(found, TileProgram)
    return found


@pytest.mark.parametrize("name", operator_names())
def test_a_program_comes_back_the_same(name: str) -> None:
    skip_before_0_1_15(name, OTHERWISE_BEFORE_0_1_15)
    for program in sampled(name, most=2):
        assert canonical(through_tilelang(program)) == canonical(program)


def bits(programs: tuple[TileProgram, ...], name: str) -> dict[str, bytes]:
    """Everything that the launches leave in global memory, on operands of the operator's example."""
    operator = load_operator(name)
    shape = operator.shape(**operator.example)
    inputs = operator.inputs(shape, np.random.default_rng(7))
    results = list(operator.reference(shape, **inputs))
    found = execute(programs, inputs, outputs=results).tensors
    return {tensor: array.tobytes() for tensor, array in found.items()}


@pytest.mark.parametrize("name", ["gemm", "rmsnorm", "attention_decode", "quantize", "moe_permute", "conv2d"])
def test_what_came_back_computes_the_same_bits(name: str) -> None:
    operator = load_operator(name)
    shape = operator.shape(**operator.example)
    programs = launches(operator, shape, operator.configs(shape)[0])
    assert bits(tuple(map(through_tilelang, programs)), name) == bits(programs, name)


def test_a_file_that_says_what_is_likely_can_be_loaded_again() -> None:
    operator = load_operator("topk_select")
    shape = operator.shape(**operator.example)
    texts = [
        source(launches(operator, shape, config))
        for config in operator.configs(shape)
        if config["variant"] == "radix"
    ]
    assert "T.likely(" in texts[0]
    for text in (texts[0], texts[-1], texts[0]):
        prim_func(text, "topk_select")
