"""One source, two front ends, one program; and programs of TileLang's trace again from their text."""

import both_languages
import pytest

from foretile.kernels import language
from foretile.kernels.canonical import canonical
from foretile.kernels.ir import TileProgram, walk_stmts
from foretile.kernels.load import from_script
from foretile.kernels.tilelang import from_prim_func

KERNELS = [pytest.param(k, id=k.__name__) for k in both_languages.KERNELS]


@pytest.mark.parametrize("kernel", KERNELS)
def test_both_front_ends_make_the_same_program(kernel, tilelang_language):
    assert canonical(from_prim_func(kernel(tilelang_language))) == canonical(kernel(language))


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_imported_program_is_plain_data_and_text(kernel, tilelang_language):
    program = from_prim_func(kernel(tilelang_language))
    assert TileProgram.from_json(program.to_json()) == program
    assert canonical(from_script(program.script())) == canonical(program)


@pytest.mark.parametrize("kernel", KERNELS)
def test_statements_know_their_lines(kernel, tilelang_language):
    program = from_prim_func(kernel(tilelang_language))
    first = kernel.__code__.co_firstlineno
    for stmt in walk_stmts(program.body):
        assert stmt.loc is not None
        assert stmt.loc.file == both_languages.__file__
        assert first < stmt.loc.line < first + 60


def test_a_change_of_the_source_is_a_change_of_the_program(tilelang_language):
    """The canonical form tells programs apart that differ in one literal."""
    program = both_languages.product(language)
    text = program.script()
    assert canonical(from_script(text)) == canonical(program)
    for before, after in (("num_stages=3", "num_stages=2"), ("k * 32]", "k * 16]"), ("float32", "float16")):
        assert canonical(from_script(text.replace(before, after))) != canonical(program)
