"""The library's operators, traced by TileLang's own front end, are the programs that ours traces."""

import importlib
import sys
from dataclasses import replace

import pytest
from exported import NOT_READ_BEFORE_0_1_15, OTHERWISE_BEFORE_0_1_15, skip_before_0_1_15

import foretile.kernels as kernels_package
from foretile.kernels import language
from foretile.kernels.canonical import canonical
from foretile.kernels.operator import load_operator, operator_names
from foretile.kernels.tilelang import from_prim_func

OPERATORS = "foretile.kernels.operators"


@pytest.fixture(scope="module")
def theirs(tilelang_language):
    """The operators' modules once more, with TileLang's language in place of ours."""
    from tilelang.layout import make_swizzled_layout

    for name in operator_names():
        load_operator(name)
    ours = {name: module for name, module in sys.modules.items() if name.startswith(OPERATORS + ".")}
    for name in ours:
        del sys.modules[name]
    # TileLang keeps this function in tilelang.layout, where kernels import it from.
    tilelang_language.make_swizzled_layout = make_swizzled_layout
    sys.modules["foretile.kernels.language"] = tilelang_language
    kernels_package.language = tilelang_language
    try:
        found = {name.rpartition(".")[2]: importlib.import_module(name) for name in ours}
    finally:
        sys.modules.update(ours)
        sys.modules["foretile.kernels.language"] = language
        kernels_package.language = language
        del tilelang_language.make_swizzled_layout
    tilelang_language.make_swizzled_layout = make_swizzled_layout
    yield found
    del tilelang_language.make_swizzled_layout


def _several(programs):
    return programs if isinstance(programs, tuple) else (programs,)


def _configurations(operator, shape):
    """The first configuration, the last, and one of every variant."""
    space = list(operator.configs(shape))
    chosen = [space[0], space[-1]]
    for config in space:
        if config.get("variant") not in {c.get("variant") for c in chosen}:
            chosen.append(config)
    return [c for i, c in enumerate(chosen) if c not in chosen[:i]]


def _swizzled(program):
    """Layouts that are TileLang's swizzle by the name our language has for it."""
    noted = [
        (k, "swizzled" if k.startswith("layout:") and v.startswith("T.Layout") else v)
        for k, v in program.annotations
    ]
    return replace(program, annotations=tuple(noted))


@pytest.mark.parametrize("name", operator_names())
def test_operators_are_the_same_programs(name, theirs):
    skip_before_0_1_15(name, (*OTHERWISE_BEFORE_0_1_15, *NOT_READ_BEFORE_0_1_15))
    operator = load_operator(name)
    shape = operator.shape(**operator.example)
    for config in _configurations(operator, shape):
        ours = _several(operator.program(shape, config))
        traced = _several(theirs[name].OPERATOR.program(shape, config))
        imported = [p for f in traced for p in _several(from_prim_func(f))]
        assert [canonical(_swizzled(a)) for a in imported] == [canonical(b) for b in ours], config
