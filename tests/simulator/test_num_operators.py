"""Every operator computes what it says: each type, each kind of inputs, any shape and configuration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretile.kernels.operator import Operator, OperatorError, Shape, load_operator, operator_names
from foretile.precision import example_shapes
from foretile.simulator.numerics.verify import Verification, input_kinds, verify

CORES = 6  # of a persistent grid: few, so that blocks take several tiles
LARGEST = 3  # times the example, in a drawn shape


def configs(operator: Operator, shape: Shape) -> list[dict[str, Any]]:
    """The operator's space, persistent grids with few blocks."""
    return [{**c, "cores": CORES} if "cores" in c else c for c in operator.configs(shape)]


def explain(v: Verification) -> str:
    """What is wrong, in a line."""
    off = [
        f"{c.name} norm {c.norm_error:.2e} peak {c.peak_error:.2e} {c.mismatches[:2]}"
        for c in v.outputs
        if not c.within
    ]
    return f"{v.operator} {v.shape} {v.config} {v.inputs}: {v.fault or off}, tolerance {v.tolerance}"


CASES = [
    pytest.param(name, i, kind, id=f"{name}-{shape.get('dtype', '')}-{kind}")
    for name in operator_names()
    for i, shape in enumerate(example_shapes(load_operator(name)))
    for kind in input_kinds(load_operator(name))
]


@pytest.mark.parametrize("name", operator_names())
def test_every_operator_has_an_example_and_a_tolerance(name: str) -> None:
    operator = load_operator(name)
    assert operator.example, "give Operator(example=...) a small shape that divides no tile"
    tolerance = operator.tolerance(operator.shape(**operator.example))
    assert 0 <= tolerance.norm < 0.1
    assert 0 <= tolerance.peak < 0.3


@pytest.mark.parametrize(("name", "which", "kind"), CASES)
def test_every_type_and_kind_of_inputs(name: str, which: int, kind: str) -> None:
    operator = load_operator(name)
    shape = example_shapes(operator)[which]
    space = configs(operator, shape)
    found = verify(operator, shape, space[which % len(space)], kind=kind, seed=which)
    assert found.ok, explain(found)


@st.composite
def drawn(draw: st.DrawFn, name: str) -> tuple[Shape, dict[str, Any], int]:
    """A shape near the example, one of its configurations, a seed."""
    operator = load_operator(name)
    given: dict[str, Any] = {}
    for p in operator.params:
        if p.kind == "int" and p.name in operator.example:
            size = int(operator.example[p.name])
            # Sizes that decide tiles (a head's width) keep their steps; the others are any number.
            given[p.name] = draw(st.integers(p.minimum, LARGEST * size)) if p.dynamic else size
        elif p.kind == "bool":
            given[p.name] = draw(st.booleans())
        elif p.kind == "dtype" and p.name == "dtype" and p.choices:
            given[p.name] = draw(st.sampled_from(p.choices))
    try:
        shape = operator.shape(**given)
    except OperatorError:  # heads and groups that do not divide, …
        shape = operator.shape(**operator.example)
    space = configs(operator, shape)
    return shape, draw(st.sampled_from(space)), draw(st.integers(0, 2**16))


@pytest.mark.parametrize("name", operator_names())
def test_any_shape_and_configuration(name: str) -> None:
    operator = load_operator(name)

    @given(drawn(name))
    @settings(max_examples=8, deadline=None)
    def check(case: tuple[Shape, dict[str, Any], int]) -> None:
        shape, config, seed = case
        found = verify(operator, shape, config, seed=seed)
        assert found.ok, explain(found)

    check()


def test_results_do_not_depend_on_how_the_grid_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    from foretile.simulator.numerics import execute as module

    for name in ("moe_route", "topk_select", "transpose", "quantize"):
        operator = load_operator(name)
        shape = operator.shape(**operator.example)
        inputs = operator.inputs(shape, np.random.default_rng(2))
        program = operator.program(shape, operator.configs(shape)[0])
        dims = {p.name: shape[p.name] for p in operator.params if p.dynamic}
        outputs = tuple(operator.reference(shape, **inputs))
        whole = module.execute(program, inputs, outputs=outputs, dims=dims).tensors
        monkeypatch.setattr(module, "_CHUNK_BYTES", 1)
        pieces = module.execute(program, inputs, outputs=outputs, dims=dims).tensors
        monkeypatch.undo()
        for output in outputs:
            np.testing.assert_array_equal(pieces[output], whole[output])
