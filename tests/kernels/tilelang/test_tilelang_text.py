"""Tile programs as text for TileLang; what is tested without it: our own tracer reads the same program."""

from __future__ import annotations

from dataclasses import replace

import pytest
from exported import read_back, sampled

from foretile.kernels import language as T
from foretile.kernels.canonical import canonical
from foretile.kernels.expr import Const
from foretile.kernels.ir import Buffer, Extern, If, Swizzle, TileProgram
from foretile.kernels.operator import load_operator, operator_names
from foretile.kernels.tilelang.export import ExportError, source


@pytest.fixture(scope="session", autouse=True)
def tilelang_language() -> None:
    """These tests need no TileLang, unlike their neighbours."""


def gemm(**sizes: object) -> TileProgram:
    operator = load_operator("gemm")
    shape = operator.shape(m=512, n=512, k=512)
    found = operator.program({**shape, **sizes}, operator.config(shape, variant="tile"))
    assert isinstance(found, TileProgram)
    return found


@pytest.mark.parametrize("name", operator_names())
def test_what_is_written_for_tilelang_is_the_same_program(name: str) -> None:
    for program in sampled(name, most=8):
        assert canonical(read_back(source(program), program.name)) == canonical(program)


def test_several_launches_are_one_file() -> None:
    operator = load_operator("gemm")
    shape = operator.shape(m=256, n=256, k=4096)
    programs = operator.program({**shape, "m": T.dynamic("m")}, operator.config(shape, variant="split_k"))
    assert isinstance(programs, tuple)
    text = source(programs)
    assert text.count("import tilelang.language as T") == 1
    assert text.count('m = T.dynamic("m")') == 1  # both launches mean the same m
    for program in programs:
        assert read_back(text, program.name) == program


def test_the_comment_stands_first_and_is_broken() -> None:
    text = source(gemm(), "short\n" + "long " * 40)
    head = text.partition("\n\n")[0].splitlines()
    assert head[0] == "# short"
    assert len(head) > 2
    assert all(line.startswith("# ") and len(line) <= 92 for line in head)


def test_symbolic_dimensions_are_declared_once_and_used() -> None:
    text = source(gemm(m=T.dynamic("m")))
    assert text.count('T.dynamic("m")') == 1
    assert "T.ceildiv(m, 128)" in text


def test_layouts_of_several_buffers_are_one_annotation() -> None:
    program = gemm()
    both = (("layout:A_shared", "swizzled"), ("layout:B_shared", "swizzled"))
    text = source(replace(program, annotations=both))
    assert text.count("T.annotate_layout") == 1
    assert text.startswith("import tilelang\n")
    assert read_back(text, "gemm").annotations == both


def test_columns_are_called_so() -> None:
    text = source(replace(gemm(), swizzle=Swizzle(4, "col")))
    assert 'T.use_swizzle(4, order="column")' in text
    assert read_back(text, "gemm").swizzle == Swizzle(4, "col")


def test_element_types_carry_their_suffix() -> None:
    operator = load_operator("gemm_nvfp4")
    shape = operator.shape(**operator.example)
    found = operator.program(shape, operator.configs(shape)[0])
    text = source(found)
    assert '"float4_e2m1fn"' in text
    assert '"float8_e4m3fn"' in text
    assert "sf_a_granularity_k=16, sf_b_granularity_k=16" in text


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (lambda p: replace(p, body=(*p.body, Extern("decode"))), "decode"),
        (lambda p: replace(p, body=(If(Const(True, "bool"), p.body, role="warp_specialize"),)), "warps"),
        (
            lambda p: replace(
                p,
                buffers=(
                    *p.buffers,
                    Buffer("V", (Const(4),), "int32", "shared", alias="A_shared", offset=Const(8)),
                ),
            ),
            "view V",
        ),
    ],
    ids=["opaque code", "a role", "a view from the middle"],
)
def test_what_tilelang_has_no_words_for_is_named(changed: object, why: str) -> None:
    assert callable(changed)
    with pytest.raises(ExportError, match=why):
        source(changed(gemm()))
