"""How a generated kernel is launched: read from a compiler's answer, without the compiler."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import launches

from foretile.kernels import language as T
from foretile.kernels.cuda.recipe import ScalarArg, TensorArg, TensorMapArg
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import load_operator, operator_names
from foretile.kernels.tilelang import compiler, versions
from foretile.kernels.tilelang.compiled import CompileError, Decisions, Generated, number, tensor_roles
from foretile.kernels.tilelang.compiler import Compiler, check_architecture


@pytest.fixture(scope="session", autouse=True)
def tilelang_language() -> None:
    """These tests need no TileLang, unlike their neighbours."""


@T.prim_func
def scaled(
    A: T.Tensor((T.dynamic("m"), 64), "bfloat16"),  # type: ignore[valid-type]
    B: T.Tensor((T.dynamic("m"), 64), "float32"),  # type: ignore[valid-type]
) -> None:
    with T.Kernel(T.ceildiv(A.shape[0], 32), threads=128) as bx:
        tile = T.alloc_shared((32, 64), "bfloat16")
        for k in T.Pipelined(2, num_stages=2):
            T.copy(A[bx * 32, k * 32], tile)
            T.copy(tile, B[bx * 32, k * 32])


M = ["floordiv", ["add", "m", 31], 32]
LAYOUTS = {
    "threads": 256,
    "roles": [128, 128],
    "barriers": [1, 1, 128, 128],
    "buffers": [
        {
            "name": "tile",
            "dtype": "bfloat16",
            "scope": "shared",
            "shape": [2, 32, 64],
            "layout": "swizzle 128B",
        }
    ],
    "operations": {"copy": 1, "tma_copy": 1},
}
MAP = {
    "kind": "tensor_map",
    "tensor": "A",
    "dtype": 9,
    "rank": 2,
    "global_dim": [64, "m"],
    "global_strides_bytes": [2, 128],
    "box_dim": [64, 32],
    "element_strides": [1, 1],
    "interleave": 0,
    "swizzle": 3,
    "l2_promotion": 2,
    "oob_fill": 0,
}
LAUNCH = {
    "symbol": "scaled_kernel",
    "grid": [M, 1, 1],
    "block": [256, 1, 1],
    "cluster": [1, 1, 1],
    "shared_bytes": 8192,
    "args": [
        MAP,
        {"kind": "tensor", "name": "B_1"},
        {"kind": "scalar", "ctype": "int32", "name": "m", "value": "m"},
    ],
    "tensors": ["A", "B_1"],
}


def generated(launch: dict[str, Any] = LAUNCH) -> Generated:
    return Generated(scaled, "sm_90a", "", launch, Decisions.read(LAYOUTS, scaled), {})


def test_a_launch_is_made_for_each_size() -> None:
    for m in (1, 32, 33, 1000):
        recipe = generated().recipe(m=m)
        assert recipe.grid == (-(-m // 32), 1, 1)
        tensor_map, out, size = recipe.args
        assert isinstance(tensor_map, TensorMapArg)
        assert tensor_map.global_dim == (64, m)
        assert tensor_map.global_strides_bytes == (128,)  # the innermost is an element
        assert (tensor_map.dtype, tensor_map.swizzle, tensor_map.l2_promotion) == ("bfloat16", "128B", "128B")
        assert out == TensorArg("B", "float32", (m, 64), "out")  # the compiler's name for it was another
        assert size == ScalarArg("int32", m, "m")
        assert recipe.unbound == (TensorArg("A", "bfloat16", (m, 64), "in"),)
        assert recipe.problems((9, 0)) == []


def test_sizes_are_asked_for_by_name() -> None:
    with pytest.raises(CompileError, match="sizes m; given: none"):
        generated().recipe()
    with pytest.raises(CompileError, match="given: n"):
        generated().recipe(n=3)


def test_a_type_that_a_tensor_map_cannot_tell_is_refused() -> None:
    odd = {**LAUNCH, "args": [{**MAP, "dtype": 14}, *LAUNCH["args"][1:]]}
    with pytest.raises(CompileError, match="elements of type 14"):
        generated(odd).recipe(m=5)


def test_decisions_tell_versions_from_shapes() -> None:
    decided = generated().decisions
    assert (decided.threads, decided.producers, decided.stages) == (256, 128, 2)
    (tile,) = decided.tiles
    assert (tile.shape, tile.versions, tile.layout) == ((32, 64), 2, "swizzle 128B")


@pytest.mark.parametrize(
    ("expression", "value"),
    [(7, 7), ("m", 40), (M, 2), (["if", ["lt", "m", 41], ["mul", "m", 2], 0], 80), (["shr", "m", 3], 5)],
)
def test_numbers_of_a_launch(expression: Any, value: int) -> None:
    assert number(json.loads(json.dumps(expression)), {"m": 40}) == value


def single_launches() -> Iterator[tuple[str, TileProgram, set[str], set[str]]]:
    for name in operator_names():
        operator = load_operator(name)
        shape = operator.shape(**operator.example)
        programs = launches(operator, shape, operator.configs(shape)[0])
        if len(programs) == 1:
            inputs = operator.inputs(shape, np.random.default_rng(0))
            yield name, programs[0], set(inputs), set(operator.reference(shape, **inputs))


@pytest.mark.parametrize(
    ("program", "inputs", "results"),
    [pytest.param(p, i, r, id=name) for name, p, i, r in single_launches()],
)
def test_operands_are_read_and_results_written(
    program: TileProgram, inputs: set[str], results: set[str]
) -> None:
    roles = tensor_roles(program)
    assert {name for name, role in roles.items() if role != "in"} >= results
    assert {name for name, role in roles.items() if role != "out"} - results <= inputs
    assert all(roles[name] != "out" for name in inputs & set(roles))


def test_switches_noted_in_a_program_are_the_compilers() -> None:
    noted = replace(
        scaled, annotations=(("pass:tl.disable_tma_lower", "True"), ("pass:tl.enable_fast_math", "False"))
    )
    found = compiler.switches(noted, {"tl.enable_fast_math": True})
    assert found == {"tl.disable_tma_lower": True, "tl.enable_fast_math": True}


def test_an_architecture_is_named() -> None:
    with pytest.raises(CompileError, match="sm_90a"):
        check_architecture("sm_90")


def test_without_tilelang_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda: None)
    with Compiler() as missing, pytest.raises(ValueError, match=r"pip install 'foretile\[tilelang\]'"):
        missing.generate(scaled, "sm_90a")


def worker(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Another process in TileLang's place; ``body`` is what it does with each request."""
    text = f"import sys, time\nprint('{{}}', flush=True)\nfor line in sys.stdin:\n    {body}\n"
    monkeypatch.setattr(compiler, "WORKER", (sys.executable, "-c", text))
    monkeypatch.setattr(compiler, "require", lambda what: "0.1.15")


def test_a_compiler_that_does_not_finish_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "time.sleep(60)")
    with Compiler(timeout_s=0.05, use_cache=False) as hasty:
        with pytest.raises(CompileError, match=r"compiling scaled: it took more than 0\.05 s"):
            hasty.generate(scaled, "sm_90a")
        worker(monkeypatch, 'print(\'{"script": "second"}\', flush=True)')
        hasty.timeout_s = 60
        assert hasty.prim_func(scaled) == "second"  # another one was started


def test_a_compiler_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "sys.exit(1)")
    with Compiler(use_cache=False) as dying, pytest.raises(CompileError, match=r"its process ended$"):
        dying.generate(scaled, "sm_90a")
    worker(monkeypatch, "sys.exit('warned before\\n' + 9000 * 'x' + '\\nCheck failed: no such layout\\n\\n')")
    told = pytest.raises(CompileError, match=r"its process ended: Check failed: no such layout$")
    with Compiler(use_cache=False) as dying, told:
        dying.generate(scaled, "sm_90a")


def test_a_refusal_is_kept_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORETILE_CACHE", str(tmp_path))
    worker(monkeypatch, 'print(\'{"error": "no layout"}\', flush=True)')
    with Compiler() as first, pytest.raises(CompileError, match="refused scaled for sm_80: no layout"):
        first.generate(scaled, "sm_80")
    with Compiler(only_kept=True) as second, pytest.raises(CompileError, match="no layout"):
        second.generate(scaled, "sm_80")
