"""Products of fp8 operands with scales a tensor or a row: contract, counts, reference, programs, refusals."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from test_operator_programs import _mirrored
from tile_oracle import execute, gemm_flops

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import OperatorError, load_operator
from foretile.kernels.rewrite import map_exprs

SMALL = {"m": 70, "n": 90, "k": 300}
FORMS = [
    *({"per_row": r, "quantize_a": q, "find_scale": False} for r in (False, True) for q in (False, True)),
    {"per_row": False, "quantize_a": True, "find_scale": True},
]


def test_parameters() -> None:
    assert {p.name: (p.default, p.dynamic) for p in load_operator("gemm_fp8").params} == {
        "m": (None, True),
        "n": (None, True),
        "k": (None, True),
        "per_row": (False, False),
        "quantize_a": (False, False),
        "find_scale": (False, False),
        "out_dtype": ("bf16", False),
    }


def test_configurations_are_distinct_and_uniform() -> None:
    operator = load_operator("gemm_fp8")
    space = operator.configs(operator.shape(**SMALL))
    assert 8 <= len(space) <= 80
    assert len({tuple(c.items()) for c in space}) == len(space)
    assert all(c.keys() == space[0].keys() for c in space)


@pytest.mark.parametrize("form", FORMS)
def test_counts(form: dict[str, bool]) -> None:
    operator = load_operator("gemm_fp8")
    shape = operator.shape(**SMALL, **form)
    maxima_and_scales = 70 * (299 + 2) if form["per_row"] else 0  # 299 and the floor's; the division
    if form["find_scale"]:
        maxima_and_scales = 70 * 300 + 1
    quantising = 70 * 300 + maxima_and_scales if form["quantize_a"] else 0
    assert operator.flops(shape) == 2 * 70 * 90 * 300 + quantising
    inputs = operator.inputs(shape, np.random.default_rng(0))
    assert ("X" in inputs) == form["quantize_a"]
    assert operator.min_bytes(shape) == sum(x.nbytes for x in inputs.values()) + 2 * 70 * 90
    columns = {name: np.array([size, 3 * size + 1]) for name, size in SMALL.items()}
    for count in (operator.flops, operator.min_bytes):
        rows = [count({**shape, **{n: int(v[i]) for n, v in columns.items()}}) for i in range(2)]
        assert np.asarray(count({**shape, **columns})).tolist() == rows


@pytest.mark.parametrize("form", FORMS)
def test_reference_of_one_element_at_a_time(form: dict[str, bool]) -> None:
    operator = load_operator("gemm_fp8")
    shape = operator.shape(m=5, n=40, k=50, **form)
    for make in (operator.inputs, *operator.adversarial.values()):
        x = make(shape, np.random.default_rng(1))
        C = operator.reference(shape, **x)["C"]
        for i, j in ((0, 0), (4, 39), (2, 16)):
            if not form["quantize_a"]:
                a, scale = x["A"][i].astype(float), x["A_scale"][i if form["per_row"] else 0]
            else:
                row = x["X"][i].astype(np.float32)
                own = np.float32(max(np.abs(row).max(), np.float32(1e-4))) / np.float32(448)
                whole = np.float32(np.abs(x["X"].astype(np.float32)).max()) / np.float32(448)
                given = whole if form["find_scale"] else x.get("A_scale", [0])[0]
                scale = own if form["per_row"] else given
                a = np.clip(row / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(float)
            terms = [a[k] * float(x["B"][j, k]) for k in range(50)]
            want = sum(terms) * float(scale) * float(x["B_scale"][j if form["per_row"] else 0])
            assert C[i, j] == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize(
    "chosen",
    [
        {"variant": "tile", "block_m": 16},
        {"variant": "tile", "block_m": 128, "block_n": 128},
        {"product": "bf16", "block_m": 64},
    ],
)
def test_program_computes_the_reference(per_row: bool, chosen: dict[str, Any]) -> None:
    operator = load_operator("gemm_fp8")
    shape = operator.shape(**SMALL, per_row=per_row)
    program = operator.program(shape, operator.config(shape, **chosen))
    assert isinstance(program, TileProgram)
    tolerance = operator.tolerance(shape)
    for make in (operator.inputs, *operator.adversarial.values()):
        inputs = make(shape, np.random.default_rng(3))
        want = operator.reference(shape, **inputs)["C"]
        got = execute(program, inputs)["C"].astype(np.float64)
        assert np.linalg.norm(got - want) <= tolerance.norm * np.linalg.norm(want)
        assert np.abs(got - want).max() <= tolerance.peak * np.abs(want).max()


@pytest.mark.parametrize("rows", [1, 70, 300])
def test_quantising_in_turn_makes_the_same_operand(rows: int) -> None:
    """Every row once, whatever part of a turn the rows leave."""
    operator = load_operator("gemm_fp8")
    shape = operator.shape(m=rows, n=32, k=2100, quantize_a=True)
    x = operator.inputs(shape, np.random.default_rng(4))
    made = []
    for in_turn in (False, True):
        config = operator.config(shape, variant="tile", cores=64, in_turn=in_turn)
        launches = operator.program(shape, config)
        assert isinstance(launches, tuple)
        made.append(execute(launches[0], x)["A"].view(np.uint8))
    assert np.array_equal(*made)


@pytest.mark.parametrize("form", FORMS)
def test_every_configuration_traces_alike_with_numbers_and_with_symbols(form: dict[str, bool]) -> None:
    operator = load_operator("gemm_fp8")
    sizes = {"m": 512, "n": 1024, "k": 1024}
    shape = operator.shape(**sizes, **form)
    for config in operator.configs(shape):
        traced = (
            operator.program(shape, config),
            operator.program({**shape, **{n: T.dynamic(n) for n in sizes}}, config),
        )
        concrete, symbolic = (x if isinstance(x, tuple) else (x,) for x in traced)
        split = config["variant"] == "split_k"
        assert len(concrete) == 1 + split + form["quantize_a"] + 2 * form["find_scale"]
        for a, b in zip(concrete, symbolic, strict=True):
            bound = b.bind(**{v.name: sizes[v.name] for v in b.dims})
            assert map_exprs(bound, _mirrored) == map_exprs(a, _mirrored), config
        whole = sizes["m"] % config["block_m"] == 0 and sizes["n"] % config["block_n"] == 0
        if config["variant"] == "tile" and whole:
            assert gemm_flops(concrete[-1]) == 2 * 512 * 1024 * 1024, config


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"variant": "stream_k"}, "variant='stream_k' is not one of tile, persistent, split_k"),
        ({"product": "fp32"}, "product='fp32' is not one of fp8, bf16, fp16"),
        ({"block_n": 36}, "block_n=36 is not a multiple of 8"),
        ({"block_m": 40}, "block_m=40 is not a multiple of 16"),
    ],
)
def test_refuses_configurations(chosen: dict[str, Any], message: str) -> None:
    operator = load_operator("gemm_fp8")
    shape = operator.shape(**SMALL)
    with pytest.raises(OperatorError, match=message):
        operator.program(shape, {**operator.configs(shape)[0], **chosen})


def test_refuses_a_scale_to_be_found_where_there_is_none() -> None:
    operator = load_operator("gemm_fp8")
    for form in ({"find_scale": True}, {"find_scale": True, "quantize_a": True, "per_row": True}):
        with pytest.raises(OperatorError, match="find_scale goes with quantize_a"):
            operator.shape(**SMALL, **form)
