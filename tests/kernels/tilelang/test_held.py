"""However a kernel is held it becomes the same program; files are loaded by a process of their own."""

import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from foretile.kernels.errors import TraceError
from foretile.kernels.load import factory_parameters, load_program
from foretile.kernels.tilelang import from_tilelang, is_held, process, versions

FILE = Path(__file__).with_name("held_kernels.py")


@pytest.fixture(scope="module")
def held(tilelang_language):
    """The kernels in this process, with its own answer for the device they ask for."""
    import torch

    patch = pytest.MonkeyPatch()
    properties = type("Properties", (), {"multi_processor_count": 132})
    patch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)
    for name in ("ones", "empty"):
        patch.setattr(torch, name, lambda *_args, **_named: None)
    sys.modules.pop("held_kernels", None)
    yield importlib.import_module("held_kernels")
    patch.undo()


def test_lazy_functions_take_arguments_and_bring_the_compilers_switches(held):
    program = from_tilelang(held.lazy, rows=16, cols=32)
    assert [[e.value for e in p.shape] for p in program.params] == [[16, 32], [16, 32]]
    assert program.annotation("pass", "tl.enable_fast_math") == "True"
    assert program.grid[0].value == 132
    assert program.toolchain == "tilelang"


def test_eager_functions_take_their_constants_and_no_tensors(held):
    program = from_tilelang(held.eager, M=96, N=48, block=16)
    assert [[e.value for e in p.shape] for p in program.params] == [[96, 48], [96, 48]]
    assert program.grid[0].value == 6


def test_factories_and_prim_funcs_and_what_is_left_binds_dimensions(held):
    function = held.symbolic(32)
    assert is_held(function)
    assert from_tilelang(function) == from_tilelang(held.symbolic, cols=32)
    assert [v.name for v in from_tilelang(function).dims] == ["m"]
    bound = from_tilelang(held.symbolic, cols=32, m=7)
    assert not bound.dims
    assert bound == from_tilelang(function).bind(m=7)
    with pytest.raises(TraceError, match=r"takes no argument 'q'; it has the symbolic dimensions m"):
        from_tilelang(function, q=7)


def test_a_symbol_of_a_jit_functions_own_is_bound_by_its_name(held):
    assert [v.name for v in from_tilelang(held.symbolic_rows, N=64).dims] == ["m"]
    bound = from_tilelang(held.symbolic_rows, N=64, m=8)
    assert [[e.value for e in p.shape] for p in bound.params] == [[8, 64], [8, 64]]
    with pytest.raises(TraceError, match="'q'"):
        from_tilelang(held.symbolic_rows, N=64, q=8)


def test_an_error_without_words_is_the_statement_that_failed(held):
    with pytest.raises(
        TraceError, match=r"held_kernels.py:\d+: .*AssertionError: assert .*\(language.py:\d+\)"
    ):
        from_tilelang(held.uneven)


def test_a_function_that_compiles_gives_the_kernel_it_would_compile(held):
    assert from_tilelang(held.compiled, rows=16) == from_tilelang(held.lazy, rows=16)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", r"no attribute 'kopy'.*TileLang .* is installed"),
        ("unknown", r"nextafter is not known to this importer"),
    ],
)
def test_what_does_not_trace_says_where_and_why(held, name, message):
    source = FILE.read_text().splitlines()
    line = next(i for i, text in enumerate(source, 1) if "T.kopy" in text or "T.nextafter" in text)
    if name == "unknown":
        line = next(i for i, text in enumerate(source, 1) if "T.nextafter" in text)
    with pytest.raises(TraceError, match=message) as caught:
        from_tilelang(getattr(held, name))
    assert str(caught.value).startswith(f"{FILE}:{line}: ")
    assert "\n" not in str(caught.value)


def test_a_file_is_loaded_once_by_a_process_that_answers_for_a_device(held, monkeypatch, tmp_path):
    monkeypatch.setenv("FORETILE_CACHE", str(tmp_path))
    loaded = load_program(f"{FILE}:lazy", rows="16", cols="32")
    assert loaded == from_tilelang(held.lazy, rows=16, cols=32)

    def no_process(*_args, **_named):
        raise AssertionError("the answer is known")

    monkeypatch.setattr(subprocess, "run", no_process)
    assert load_program(f"{FILE}:lazy", rows="16", cols="32") == loaded
    with pytest.raises(AssertionError, match="the answer is known"):  # another question
        load_program(f"{FILE}:lazy", rows="17", cols="32")


def test_whatever_is_asked_of_a_file_it_finds_the_chip_that_was_named(monkeypatch, tmp_path):
    from foretile import check, predict
    from foretile.export import traced
    from foretile.hwmodels import load_chip
    from foretile.kernels.tilelang import process

    monkeypatch.setenv("FORETILE_CACHE", str(tmp_path))
    cores = int(load_chip("h20").cores.value)
    shape = {"rows": cores, "cols": 32}
    asked = []
    ask = process._run

    def noted(request):
        asked.append(request["device"]["cores"])
        return ask(request)

    monkeypatch.setattr(process, "_run", noted)
    assert check(f"{FILE}:lazy", "h20", run=False, **shape).findings is not None
    assert traced(f"{FILE}:lazy", shape, chip="h20").programs[0].grid[0].value == cores
    assert predict(f"{FILE}:lazy", "h20", **shape).chip == "h20"
    assert asked == [cores]  # the same question, asked once


def test_a_mistake_in_a_file_is_one_message(monkeypatch, tmp_path):
    monkeypatch.setenv("FORETILE_CACHE", str(tmp_path))
    with pytest.raises(TraceError, match=r"has no kernel or function 'lasy'; did you mean lazy"):
        load_program(f"{FILE}:lasy", rows="16")
    assert factory_parameters(f"{FILE}:symbolic") == {"cols": 64}


def test_files_for_tilelang_are_told_apart_without_running_them(tmp_path):
    assert process.uses_tilelang(FILE)
    ours = tmp_path / "ours.py"
    ours.write_text("from foretile.kernels import language as T\nraise SystemExit\n")
    assert not process.uses_tilelang(ours)


def test_versions_older_than_those_known_are_refused_and_newer_ones_warned_of():
    with pytest.raises(TraceError, match=r"TileLang 0.1.9 is not known .* 0.1.14 and 0.1.15"):
        versions.check("0.1.9")
    with pytest.warns(UserWarning, match=r"TileLang 0.2.0 is newer"):
        versions.check("0.2.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for known in versions.KNOWN:
            versions.check(known)
            versions.check(known + "+cu128")
