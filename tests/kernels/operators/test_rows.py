"""Operators on rows and matrices: contract, configuration spaces, refusals, counts by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_operator_counts import Counted, _sum
from test_operator_programs import _launches, _mirrored, _symbolic

from foretile.kernels.expr import evaluate
from foretile.kernels.operator import Operator, OperatorError, load_operator
from foretile.kernels.rewrite import map_exprs

ROWS = {"rows": ("required", True), "cols": ("required", False), "dtype": ("bf16", False)}
TILES = {**ROWS, "cols": ("required", True)}
CONTRACT: dict[str, dict[str, tuple[Any, bool]]] = {
    "add_rmsnorm": ROWS,
    "layernorm": ROWS,
    "cross_entropy": ROWS,
    "reduce_sum": ROWS,
    "argmax": ROWS,
    "top_p_sample": {**ROWS, "dtype": ("fp32", False)},
    "rope": {**ROWS, "heads": (1, True), "interleaved": (True, False)},
    "gelu": {**TILES, "tanh": (False, False)},
    "swiglu": TILES,
    "transpose": TILES,
}
BY_ROW = [name for name, params in CONTRACT.items() if params["cols"] == ROWS["cols"] and name != "rope"]
SMALL = {"rows": 5, "cols": 96}
SIZE = st.integers(1, 7)
DTYPES = st.sampled_from(["bf16", "fp16", "fp32"])


@pytest.mark.parametrize("name", CONTRACT)
def test_parameters_and_defaults(name: str) -> None:
    operator = load_operator(name)
    found = {p.name: ("required" if p.default is None else p.default, p.dynamic) for p in operator.params}
    assert found == CONTRACT[name]
    assert all(p.doc for p in operator.params)
    assert operator.name == name


@pytest.mark.parametrize("name", CONTRACT)
def test_configurations_are_distinct_plain_and_uniform(name: str) -> None:
    operator = load_operator(name)
    space = operator.configs(operator.shape(**SMALL))
    assert 8 <= len(space) <= 40
    assert len({tuple(sorted(c.items())) for c in space}) == len(space)
    assert all(c.keys() == space[0].keys() for c in space)
    assert all(type(v) in (int, str) for c in space for v in c.values())
    assert all(c["threads"] % 32 == 0 and c["threads"] <= 1024 for c in space)


@pytest.mark.parametrize("name", BY_ROW)
def test_long_rows_are_tiled_first(name: str) -> None:
    operator = load_operator(name)
    assert operator.configs(operator.shape(rows=5, cols=7168))[0]["variant"] == "row"
    assert operator.configs(operator.shape(rows=5, cols=129_280))[0]["variant"] == "tiled"


@pytest.mark.parametrize(("heads", "tile"), [(1, 1), (3, 1), (40, 8), (128, 16), (np.array([1, 64]), 16)])
def test_rope_prefers_tiles_that_pad_no_heads(heads: Any, tile: int) -> None:
    rope = load_operator("rope")
    assert rope.configs(rope.shape(**SMALL, heads=heads))[0]["block_heads"] == tile


@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.parametrize("cols", [96, 150])
def test_every_configuration_traces_alike_with_numbers_and_with_symbols(name: str, cols: int) -> None:
    operator = load_operator(name)
    shape = operator.shape(rows=5, cols=cols)
    inputs = operator.inputs(shape, np.random.default_rng(0))
    known = inputs | operator.reference(shape, **inputs)
    for config in operator.configs(shape):
        (concrete,) = _launches(operator.program(shape, config))
        (symbolic,) = _launches(operator.program(_symbolic(name, shape), config))
        bound = symbolic.bind(**{v.name: shape[v.name] for v in symbolic.dims})
        assert map_exprs(bound, _mirrored) == map_exprs(concrete, _mirrored), config
        tensors = {p.name: tuple(evaluate(e, {}) for e in p.shape) for p in concrete.params}
        assert tensors == {key: array.shape for key, array in known.items()}


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("rope", {"cols": 7}, "cols=7 is odd"),
        ("rope", {"heads": 0}, "at least 1"),
        ("gelu", {"tanh": "maybe"}, "not true or false"),
        ("transpose", {"dtype": "fp4"}, "not one of bf16, fp16, fp32, fp8, int8, int32"),
        *(
            (name, {"dtype": "fp8"}, "not one of bf16, fp16, fp32")
            for name in CONTRACT
            if name != "transpose"
        ),
        *((name, {"rows": 0}, "at least 1") for name in CONTRACT),
    ],
)
def test_refusals_say_what_is_right(name: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        load_operator(name).shape(**{**SMALL, **wrong})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        *((name, {"variant": "x"}, f"{name}: variant='x' is not one of row, tiled") for name in BY_ROW),
        ("top_p_sample", {"bits": 4}, "bits=4 is not one of 1, 2, 3"),
    ],
)
def test_programs_refuse_configurations_they_cannot_trace(
    name: str, change: dict[str, Any], message: str
) -> None:
    operator = load_operator(name)
    shape = operator.shape(**SMALL)
    with pytest.raises(OperatorError, match=message):
        operator.program(shape, operator.config(shape, **change))


# -- counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_inputs_and_results_are_what_min_bytes_counts(name: str, dtype: str) -> None:
    operator = load_operator(name)
    shape = operator.shape(**SMALL, dtype=dtype)
    inputs = operator.inputs(shape, np.random.default_rng(0))
    results = operator.reference(shape, **inputs)
    assert all(r.dtype == np.float64 and np.all(np.isfinite(r)) for r in results.values())
    wide = ("cross_entropy", "reduce_sum", "argmax", "top_p_sample")  # results of four bytes, whatever dtype
    each = 4 if name in wide or dtype == "fp32" else 2
    moved = sum(a.nbytes for a in inputs.values()) + sum(r.size * each for r in results.values())
    assert operator.min_bytes(shape) == moved


@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.parametrize("key", ["rows", "cols", "heads"])
def test_counts_of_arrays_are_the_counts_of_their_elements(name: str, key: str) -> None:
    operator: Operator = load_operator(name)
    if not any(p.name == key and p.dynamic for p in operator.params):
        key = "rows"
    sizes = np.array([1, 7, 130, 200_000], dtype=np.int32)
    together = operator.shape(**{**SMALL, key: sizes})
    for count in (operator.flops, operator.min_bytes):
        alone = [count(operator.shape(**{**SMALL, key: int(n)})) for n in sizes]
        assert all(isinstance(value, int) for value in alone)
        assert list(count(together)) == alone


def _flops(name: str, rows: int, cols: int, **more: Any) -> Any:
    operator = load_operator(name)
    Counted.done = 0
    return operator.flops(operator.shape(rows=rows, cols=cols, **more))


def _row(cols: int) -> list[Counted]:
    return [Counted(0.1 * (j + 1)) for j in range(cols)]


@given(rows=SIZE, cols=st.integers(1, 30))
def test_add_rmsnorm_counts(rows: int, cols: int) -> None:
    expected = _flops("add_rmsnorm", rows, cols)
    for _ in range(rows):
        x = [a + b for a, b in zip(_row(cols), _row(cols), strict=True)]
        rstd = (_sum([v * v for v in x]) / cols + 1e-6).rsqrt()
        assert all((v * rstd * 2.0) > 0 for v in x)
    assert expected == Counted.done


@given(rows=SIZE, cols=st.integers(1, 30))
def test_layernorm_counts(rows: int, cols: int) -> None:
    expected = _flops("layernorm", rows, cols)
    for _ in range(rows):
        x = _row(cols)
        mean = _sum(x) / cols
        x = [v - mean for v in x]
        rstd = (_sum([v * v for v in x]) / cols + 1e-5).rsqrt()
        assert len([v * rstd * 2.0 + 1.0 for v in x]) == cols
    assert expected == Counted.done


@given(rows=SIZE, cols=st.integers(1, 30))
def test_cross_entropy_counts(rows: int, cols: int) -> None:
    expected = _flops("cross_entropy", rows, cols)
    for _ in range(rows):
        x = _row(cols)
        top = x[0]
        for v in x[1:]:
            top = top.at_least(v)
        total = _sum([(v - top).exp() for v in x])
        Counted.done += 1  # its logarithm
        assert total + (top - x[0]) > 0
    assert expected == Counted.done


@given(rows=SIZE, cols=st.integers(1, 30))
def test_reductions_count_what_joins_cols_elements(rows: int, cols: int) -> None:
    expected = _flops("reduce_sum", rows, cols)
    assert sum(float(_sum(_row(cols))) for _ in range(rows)) > 0
    assert expected == Counted.done == _flops("argmax", rows, cols)


@given(rows=SIZE, cols=SIZE, heads=st.integers(1, 3))
def test_elementwise_counts(rows: int, cols: int, heads: int) -> None:
    pairs = rows * cols * heads
    expected = _flops("rope", rows, 2 * cols, heads=heads)
    for _ in range(pairs):
        x, y, cos, sin = (Counted(v) for v in (1, 2, 3, 4))
        assert x * cos - y * sin != x * sin + y * cos
    assert expected == Counted.done
    expected = _flops("swiglu", rows, cols)
    for _ in range(rows * cols):
        gate, up = Counted(0.5), Counted(2)
        assert gate / ((-gate).exp() + 1.0) * up > 0
    assert expected == Counted.done
    expected = _flops("gelu", rows, cols, tanh=True)
    for _ in range(rows * cols):
        x = Counted(0.5)
        inner = x * (x * x * 0.03 + 0.8)
        Counted.done += 1  # its hyperbolic tangent
        assert x * 0.5 * (inner + 1.0) > 0
    assert expected == Counted.done
    expected = _flops("gelu", rows, cols)
    for _ in range(rows * cols):
        x = Counted(0.5)
        inner = x * 0.7
        Counted.done += 1  # its error function
        assert x * 0.5 * (inner + 1.0) > 0
    assert expected == Counted.done


@given(rows=SIZE, cols=st.integers(1, 30))
def test_sampling_counts_two_sums_and_a_comparison_an_element(rows: int, cols: int) -> None:
    expected = _flops("top_p_sample", rows, cols)
    for _ in range(rows):
        p = _row(cols)
        assert _sum(p) * 0.9 > 0
        kept = p
        Counted.done += cols  # comparisons with the threshold
        assert _sum(kept) * 0.5 > 0
    assert expected == Counted.done


@given(rows=SIZE, cols=SIZE, dtype=DTYPES)
def test_transposition_computes_nothing(rows: int, cols: int, dtype: str) -> None:
    assert _flops("transpose", rows, cols, dtype=dtype) == 0
