"""Programs of the library to export: every operator, with samples of its types and configurations."""

from __future__ import annotations

import itertools
import random
from collections.abc import Container, Iterator
from importlib.metadata import version

import pytest

from foretile.kernels.ir import TileProgram
from foretile.kernels.load import from_script
from foretile.kernels.operator import Config, Operator, OperatorError, Shape, load_operator

# TileLang 0.1.14 makes min and max of "clamp", and its language has no gemm_blockscaled …
OTHERWISE_BEFORE_0_1_15 = ("gemm_fp8_block", "gemm_nvfp4", "quantize", "quantize_weight")
# … nor does its front end read loops over Python's own lists, which the operators' sources have.
NOT_READ_BEFORE_0_1_15 = ("gemm_fp8", "grouped_gemm", "moe", "top_p_sample", "topk_select")


def skip_before_0_1_15(name: str, operators: Container[str]) -> None:
    """Skip one of ``operators`` on the version before the newest."""
    if version("tilelang") == "0.1.14" and name in operators:
        pytest.skip(f"TileLang 0.1.14 cannot say what {name} says")


def shapes(operator: Operator) -> Iterator[Shape]:
    """The example in every combination of element types and truth values that the operator takes."""
    chosen = [p for p in operator.params if p.kind != "int"]
    options = [p.choices if p.kind == "dtype" else (False, True) for p in chosen]
    seen = []
    for values in itertools.product(*options):
        try:
            found = operator.shape(
                **operator.example, **dict(zip([p.name for p in chosen], values, strict=True))
            )
        except OperatorError:
            continue  # types that do not go together
        if found not in seen:
            seen.append(found)
            yield found


def launches(operator: Operator, shape: Shape, config: Config) -> tuple[TileProgram, ...]:
    found = operator.program(shape, config)
    return (found,) if isinstance(found, TileProgram) else tuple(found)


def read_back(text: str, name: str) -> TileProgram:
    """The program that our own tracer makes of text for TileLang, whose imports are taken for ours."""
    lines = [line for line in text.splitlines() if not line.startswith("import tilelang")]
    ours = [
        line for line in lines if "register_intrin_lowering" not in line and not line.startswith("if Op.")
    ]
    return from_script("\n".join(ours).replace("tilelang.layout.", "T."), name)


def sampled(name: str, most: int) -> list[TileProgram]:
    """Programs of an operator: a configuration of each variant and type, ``most`` programs at most."""
    operator = load_operator(name)
    pick = random.Random(name)
    found: dict[str, TileProgram] = {}
    known = list(shapes(operator))
    for shape in pick.sample(known, len(known)):
        configs = list(operator.configs(shape))
        for program in launches(operator, shape, pick.choice(configs)):
            found.setdefault(program.script(), program)
        if len(found) >= most:
            break
    return list(found.values())[:most]


def every(name: str) -> Iterator[TileProgram]:
    """All programs of an operator at its example."""
    operator = load_operator(name)
    seen = set()
    for shape in shapes(operator):
        for config in operator.configs(shape):
            for program in launches(operator, shape, config):
                if program not in seen:
                    seen.add(program)
                    yield program
