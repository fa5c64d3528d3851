"""How fast the simulator is: ``pytest tests/benchmarks --benchmark-only``; figures in docs/model.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretile.frontdoor import predict, predict_many, trace_events, trace_program
from foretile.hwmodels import list_chips, load_chip
from foretile.kernels.operator import load_operator
from foretile.simulator.lowering import lower
from foretile.simulator.predictor import machine_of
from foretile.simulator.search import chosen, play, space

ROOT = Path(__file__).parents[2]
SHAPES: dict[str, dict[str, Any]] = {
    "gemm": {"m": 8192, "n": 8192, "k": 8192},
    "attention_prefill": {"batch": 1, "seq": 8192, "heads": 32},
    "attention_decode": {"batch": 64, "kv_len": 8192, "heads": 32, "kv_heads": 8},
    "rmsnorm": {"rows": 16384, "cols": 8192},
    "softmax": {"rows": 16384, "cols": 8192},
    "silu_mul": {"rows": 16384, "cols": 8192},
    "copy": {"bytes": 2**30},
}


@pytest.mark.parametrize("rows", [100, 10_000])
def test_predict_many_gemm(benchmark: Any, rows: int) -> None:
    """Shapes × configurations a second: the best of the whole space for every row."""
    rng = np.random.default_rng(1)
    columns = {name: np.round(2 ** rng.uniform(4, 14, rows)) for name in ("m", "n", "k")}
    operator = load_operator("gemm")
    fitting = len(space(operator, operator.shape(m=1, n=1, k=1), machine_of(load_chip("h100"))))
    times = benchmark(predict_many, "gemm", "h100", columns)
    assert len(times) == rows
    benchmark.extra_info["configurations"] = fitting
    benchmark.extra_info["evaluations_per_s"] = rows * fitting / benchmark.stats["mean"]


@pytest.mark.parametrize("name", SHAPES)
def test_engine_one_configuration(benchmark: Any, name: str) -> None:
    """The event engine alone, traced and lowered before."""
    operator = load_operator(name)
    shape = operator.shape(**SHAPES[name])
    m = machine_of(load_chip("h100"))
    config = chosen(operator, shape, m, None)
    assert benchmark(play, operator, shape, config, m).time_s > 0


@pytest.mark.parametrize("name", SHAPES)
def test_predict_with_search(benchmark: Any, name: str) -> None:
    """The whole prediction, warm: search by the cost model, three finalists on the engine, intervals."""
    assert benchmark(predict, name, "h100", **SHAPES[name]).time_s > 0


@pytest.mark.parametrize("name", ["gemm", "attention_prefill"])
def test_timeline(benchmark: Any, name: str) -> None:
    assert benchmark(trace_events, name, "h100", **SHAPES[name])["traceEvents"]


@pytest.mark.parametrize("name", ["gemm", "attention_prefill", "rmsnorm"])
def test_tracing_a_program(benchmark: Any, name: str) -> None:
    assert benchmark(trace_program, name, **SHAPES[name]) is not None


@pytest.mark.parametrize("name", ["gemm", "attention_prefill", "rmsnorm"])
def test_lowering_a_program(benchmark: Any, name: str) -> None:
    m = machine_of(load_chip("h100"))
    operator = load_operator(name)
    shape = operator.shape(**SHAPES[name])
    config = next(iter(space(operator, shape, m)))
    program = trace_program(name, config=config, **SHAPES[name])
    assert not isinstance(program, tuple)
    assert benchmark(lower, program, m).nodes


def test_loading_a_chip(benchmark: Any) -> None:
    """From YAML, with the families it extends, validated."""
    from foretile.hwmodels import loader

    def cold() -> object:
        for value in vars(loader).values():
            clear = getattr(value, "cache_clear", None)
            if clear is not None:
                clear()
        return load_chip("h100-sxm5-80gb")

    assert benchmark(cold) is not None


def test_loading_the_whole_catalogue_again(benchmark: Any) -> None:
    assert len(benchmark(lambda: [load_chip(c) for c in list_chips()])) == len(list_chips())


def test_predict_from_the_shell(benchmark: Any) -> None:
    """A cold process: interpreter, imports, chip, search, engine, table."""
    command = [
        sys.executable,
        "-m",
        "foretile",
        "predict",
        "gemm",
        "m=4096",
        "n=7168",
        "k=2048",
        "--chip",
        "h20",
    ]

    def shell() -> int:
        return subprocess.run(command, capture_output=True, cwd=ROOT, env=os.environ, check=False).returncode

    assert benchmark.pedantic(shell, rounds=5, warmup_rounds=1) == 0


NUMERICS: dict[str, dict[str, Any]] = {
    "gemm": {"m": 2048, "n": 2048, "k": 2048},
    "attention_prefill": {"batch": 1, "seq": 2048, "heads": 16},
    "gemm_fp8_block": {"m": 512, "n": 1024, "k": 1024},
    "softmax": {"rows": 4096, "cols": 4096},
    "moe": {"tokens": 256, "hidden": 512, "inter": 256, "topk": 4, "experts": 16},
    "topk_select": {"rows": 64, "cols": 8192, "k": 512},
}


@pytest.mark.parametrize("name", NUMERICS)
def test_executing_an_operator(benchmark: Any, name: str) -> None:
    """A tile program on the CPU, inputs made beforehand."""
    from foretile.simulator.numerics.execute import execute

    operator = load_operator(name)
    shape = operator.shape(**NUMERICS[name])
    program = operator.program(shape, operator.configs(shape)[0])
    inputs = operator.inputs(shape, np.random.default_rng(0))
    dims = {p.name: shape[p.name] for p in operator.params if p.dynamic}
    how = {"dims": dims, "outputs": tuple(operator.reference(shape, **inputs))}
    benchmark.pedantic(execute, (program, inputs), how, rounds=5, warmup_rounds=1)


def test_numpy_matmul_of_the_same_size(benchmark: Any) -> None:
    """What the product of the executor's ``gemm`` costs NumPy, on float32 copies of the operands."""
    size = NUMERICS["gemm"]["m"]
    a, b = (np.random.default_rng(i).standard_normal((size, size), dtype=np.float32) for i in (0, 1))
    benchmark.pedantic(np.matmul, (a, b), rounds=5, warmup_rounds=1)
