"""Launch recipes: plain data and back, and what a driver would refuse."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretile.kernels.cuda.recipe import (
    CudaProgram,
    KernelSource,
    LaunchRecipe,
    RecipeError,
    ScalarArg,
    TensorArg,
    TensorMapArg,
)

TENSOR = TensorArg("A", "bfloat16", (128, 64), "in")
MAP = TensorMapArg(
    "A", "bfloat16", 2, (64, 128), (128,), (64, 128), (1, 1), swizzle="128B", l2_promotion="128B"
)
RECIPE = LaunchRecipe(
    "kernel", (4, 2, 1), (128, 1, 1), (TENSOR, MAP, ScalarArg("int32", 7, "m")), (2, 1, 1), 1024
)


def test_a_recipe_survives_json() -> None:
    assert LaunchRecipe.from_json(json.loads(json.dumps(RECIPE.to_json()))) == RECIPE


def test_a_program_survives_json() -> None:
    source = KernelSource("x.cu", "kernel", (("ELEM", "2"), ("COLS", "64")), (9, 0))
    program = CudaProgram("gemm", ((source, RECIPE),), ("a note",))
    assert CudaProgram.from_json(json.loads(json.dumps(program.to_json()))) == program


@given(
    st.tuples(*[st.integers(1, 64)] * 3),
    st.lists(st.tuples(st.sampled_from(["int32", "float32", "int64"]), st.integers(-9, 9)), max_size=4),
)
def test_any_recipe_survives_json(grid: tuple[int, int, int], scalars: list[tuple[str, int]]) -> None:
    args = tuple(ScalarArg(c, v) for c, v in scalars)  # type: ignore[arg-type]
    recipe = LaunchRecipe("k", grid, (32, 1, 1), args, unbound=(TENSOR,))
    assert LaunchRecipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert recipe.problems() == []


def test_packed_types_take_fewer_bytes() -> None:
    assert TensorArg("W", "float4_e2m1", (3, 5), "in").bytes == 8
    assert TENSOR.bytes == 128 * 64 * 2


def test_what_is_right_has_no_problems() -> None:
    assert RECIPE.problems((9, 0)) == []
    assert RECIPE.problems() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"grid": (0, 1, 1)}, "grid.x = 0"),
        ({"grid": (2, 70000, 1)}, "grid.y = 70000"),
        ({"block": (32, 1, 65)}, "block.z = 65"),
        ({"block": (64, 32, 1)}, "2048 threads"),
        ({"grid": (3, 1, 1)}, "not a multiple of cluster"),
        ({"cluster": (4, 4, 1)}, "not of 1 to 8 blocks"),
        ({"shared_bytes": 300_000}, "300000 bytes of shared memory"),
        ({"args": (replace(MAP, tensor="B"), TENSOR)}, "no tensor of that name"),
        ({"args": (ScalarArg("int32", 2**31, "n"),)}, "n: 2147483648 is not a value of int32"),
        ({"args": tuple(ScalarArg("int64", 1) for _ in range(513))}, "4104 bytes of parameters"),
    ],
)
def test_what_a_driver_would_refuse(change: dict[str, object], said: str) -> None:
    problems = replace(RECIPE, **change).problems((9, 0))  # type: ignore[arg-type]
    assert any(said in problem for problem in problems), problems


def test_shared_memory_is_limited_by_capability_and_by_what_is_static() -> None:
    recipe = replace(RECIPE, cluster=(1, 1, 1), args=(TENSOR,), shared_bytes=100 * 1024)
    assert recipe.problems((8, 0)) == []
    assert "a block may have 101376" in recipe.problems((8, 9))[0]
    assert recipe.problems((8, 0), static_shared_bytes=64 * 1024)


def test_clusters_and_tensor_maps_need_hopper() -> None:
    assert len(RECIPE.problems((8, 0))) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rank": 6}, "rank 6"),
        ({"global_dim": (64,)}, "global_dim has 1 entries"),
        ({"global_strides_bytes": (120,)}, "stride 120"),
        ({"box_dim": (64, 257)}, "not from 1 to 256"),
        ({"box_dim": (128, 1)}, "256 bytes does not fit swizzle 128B"),
        ({"box_dim": (4, 1), "swizzle": "none"}, "8 bytes is not a multiple of 16"),
        ({"element_strides": (1, 9)}, "element_strides"),
        ({"dtype": "int32", "oob_fill": "nan", "box_dim": (32, 1)}, "cannot be NaN"),
        ({"interleave": "16B"}, "at least 3 is needed"),
    ],
)
def test_what_a_driver_refuses_of_a_tensor_map(change: dict[str, object], said: str) -> None:
    problems = list(replace(MAP, **change).problems())  # type: ignore[arg-type]
    assert any(said in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("grid",), [1, 2], "recipe.grid"),
        (("grid",), [1, 2, "3"], "recipe.grid"),
        (("args", 0, "dtype"), "bf17", "args[0].dtype: unknown dtype 'bf17'"),
        (("args", 0, "role"), "both", "args[0].role: 'both' is not one of in, out"),
        (("args", 1, "kind"), "map", "args[1].kind"),
        (("args", 2, "colour"), 1, "unknown field 'colour'"),
        (("args",), 3, "recipe.args"),
        (("symbol",), None, "recipe.symbol"),
    ],
)
def test_broken_data_are_named(path: tuple[str | int, ...], value: object, said: str) -> None:
    data = RECIPE.to_json()
    place = data
    for step in path[:-1]:
        place = place[step]  # type: ignore[index]
    place[path[-1]] = value  # type: ignore[index]
    with pytest.raises(RecipeError) as error:
        LaunchRecipe.from_json(data)
    assert said in str(error.value)


def test_a_missing_field_is_named() -> None:
    data = RECIPE.to_json()
    del data["symbol"]
    with pytest.raises(RecipeError, match="symbol"):
        LaunchRecipe.from_json(data)
