"""Programs from files and from text: ``path/to/file.py:function`` with ``key=value`` arguments."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import itertools
import linecache
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from foretile.kernels.errors import TraceError
from foretile.kernels.ir import Loc, TileProgram
from foretile.kernels.rewriter import forget

if TYPE_CHECKING:
    from foretile.kernels.tilelang.device import Device

_COUNTER = itertools.count(1)
REQUIRED = inspect.Parameter.empty
"""Default of a factory's parameter that has none."""


def load_program(spec: str, /, **arguments: Any) -> TileProgram | tuple[TileProgram, ...]:
    """The program that the factory named by ``spec`` makes of ``arguments``.

    ``spec`` is ``path/to/file.py:name``; ``name`` is a function returning a program, or a program. A
    file that imports TileLang is loaded by a process of its own (see :func:`load_foreign`); there the
    kernel may be held in any of TileLang's ways, and may be several launches.
    Argument values given as text are converted where the parameter's annotation or default is a
    number or a truth value, or (without either) where they read as one.

    Raises:
        TraceError: the file, the name or an argument is wrong, or what comes out is no program.
    """
    path, name = split_spec(spec)
    if foreign(path):
        return load_foreign(path, name, arguments)
    factory = _find(path, name)
    if isinstance(factory, TileProgram):
        if arguments:
            raise TraceError(
                f"{spec} is a program, not a factory; it takes no arguments: {', '.join(arguments)}"
            )
        return factory
    program = factory(**converted_arguments(spec, inspect.signature(factory), arguments))
    if not isinstance(program, TileProgram):
        raise TraceError(
            f"{spec} returned {type(program).__name__}, not a tile program; a factory returns what it "
            f"decorated with @T.prim_func"
        )
    return program


def factory_parameters(spec: str) -> dict[str, Any]:
    """Names and defaults (:data:`REQUIRED` where there is none) of a factory's parameters.

    Raises:
        TraceError: as :func:`load_program`.
    """
    path, found = split_spec(spec)
    if foreign(path):
        from foretile.kernels.tilelang.process import parameters

        return {k: REQUIRED if v is None else _literal(v) for k, v in parameters(path, found).items()}
    factory = _find(path, found)
    if isinstance(factory, TileProgram):
        return {}
    return {
        name: p.default
        for name, p in inspect.signature(factory).parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def load_function(spec: str) -> Callable[..., Any] | TileProgram:
    """What ``path/to/file.py:name`` names.

    Raises:
        TraceError: the file or the name is wrong.
    """
    return _find(*split_spec(spec))


def from_script(text: str, name: str | None = None) -> TileProgram:
    """Trace the program (the last one, or that called ``name``) of a script's text.

    The text is executed with the tile language as ``T``; it is what
    :func:`foretile.kernels.printer.script` writes.

    Raises:
        TraceError: the text is no valid Python, cannot be traced, or holds no program.
    """
    from foretile.kernels import language

    filename = f"<tile script {next(_COUNTER)}>"
    # The tracer reads source through linecache, as debuggers do; entries without a modification
    # time are not dropped by its checks.
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"T": language, "__name__": "tile_script"}
    try:
        exec(compile(text, filename, "exec", dont_inherit=True), namespace)
    except TraceError:
        raise
    except SyntaxError as error:
        raise TraceError(f"{error.msg}", Loc(filename, error.lineno or 1)) from error
    except Exception as error:
        raise TraceError(f"{type(error).__name__}: {error}", _line_in(error, Path(filename))) from error
    finally:
        del linecache.cache[filename]
        forget(filename)
    programs = {k: v for k, v in namespace.items() if isinstance(v, TileProgram)}
    if name is not None:
        if name not in programs:
            raise TraceError(f"the script has no program {name!r}; it has: {', '.join(programs) or 'none'}")
        return programs[name]
    if not programs:
        raise TraceError("the script holds no @T.prim_func")
    return list(programs.values())[-1]


def split_spec(spec: str) -> tuple[Path, str]:
    """File and name of ``path/to/file.py:name``.

    Raises:
        TraceError: it is not of that form, or there is no such file.
    """
    path_text, _, name = spec.rpartition(":")
    if not path_text or not name.isidentifier():
        raise TraceError(f"{spec!r} is not of the form path/to/file.py:function")
    path = Path(path_text)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise TraceError(f"{path} does not exist{hint}")
    return path, name


def foreign(path: Path) -> bool:
    """Whether a file is written for TileLang itself (it imports it)."""
    from foretile.kernels.tilelang.process import uses_tilelang

    return uses_tilelang(path)


def load_foreign(
    path: Path, name: str, arguments: Mapping[str, Any], device: Device | None = None
) -> TileProgram | tuple[TileProgram, ...]:
    """The program of a kernel in a file written for TileLang, loaded by a process of its own.

    Questions about the GPU that the file asks are answered for ``device`` (default: an H100). Arguments
    that are no parameters of the function bind symbolic dimensions.

    Raises:
        TraceError: TileLang is missing, or the file or the kernel fails.
    """
    from foretile.kernels.tilelang.process import load_file

    return load_file(path, name, arguments, device)


def _find(path: Path, name: str) -> Callable[..., Any] | TileProgram:
    module = _execute(path)
    found = getattr(module, name, None)
    if isinstance(found, TileProgram) or (callable(found) and not isinstance(found, type)):
        return found
    local = [
        k
        for k, v in vars(module).items()
        if isinstance(v, TileProgram) or (inspect.isfunction(v) and v.__module__ == module.__name__)
    ]
    near = difflib.get_close_matches(name, local, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"it has: {', '.join(local) or 'none'}"
    kind = "function or program" if found is None else f"function or program (it is a {type(found).__name__})"
    raise TraceError(f"{path} has no {kind} {name!r}; {hint}")


def _execute(path: Path) -> ModuleType:
    """Run a file as a module of its own, with its folder on the import path meanwhile."""
    unique = f"_foretile_kernel_{next(_COUNTER)}_{path.stem}"
    loader_spec = importlib.util.spec_from_file_location(unique, path)
    if loader_spec is None or loader_spec.loader is None:
        raise TraceError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(loader_spec)
    folder = str(path.resolve().parent)
    sys.modules[unique] = module  # dataclasses and pickling look the module up while it runs
    sys.path.insert(0, folder)
    try:
        loader_spec.loader.exec_module(module)
    except TraceError:
        del sys.modules[unique]
        raise
    except SyntaxError as error:
        del sys.modules[unique]
        raise TraceError(f"{error.msg}", Loc(str(error.filename or path), error.lineno or 1)) from error
    except Exception as error:
        del sys.modules[unique]
        raise TraceError(f"{type(error).__name__}: {error}", _line_in(error, path)) from error
    finally:
        sys.path.remove(folder)
    return module


def _line_in(error: BaseException, path: Path) -> Loc:
    line = 1
    entry = error.__traceback__
    while entry is not None:
        if Path(entry.tb_frame.f_code.co_filename) == path:
            line = entry.tb_lineno
        entry = entry.tb_next
    return Loc(str(path), line)


def converted_arguments(
    spec: str, signature: inspect.Signature, given: Mapping[str, Any], others: bool = False
) -> dict[str, Any]:
    """Arguments given as text in the types that a function's signature asks for.

    With ``others`` those that it does not name are kept, as what they read as, and none is required.

    Raises:
        TraceError: one that the function does not take or that does not convert, or one missing.
    """
    shown = f"{spec.rpartition(':')[2]}{signature}"
    parameters = signature.parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    converted: dict[str, Any] = {}
    for name, value in given.items():
        p = parameters.get(name)
        if p is None or p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL, p.VAR_KEYWORD):
            if not takes_any and not others:
                near = difflib.get_close_matches(name, parameters, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise TraceError(f"{spec} takes no argument {name!r}; {hint}its signature is {shown}")
            converted[name] = _literal(value) if isinstance(value, str) else value
        else:
            converted[name] = _converted(spec, p, value, shown) if isinstance(value, str) else value
    missing = [
        name
        for name, p in parameters.items()
        if p.default is REQUIRED
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and name not in converted
    ]
    if missing and not others:
        raise TraceError(f"{spec} needs {', '.join(missing)}; its signature is {shown}")
    return converted


def _converted(spec: str, p: inspect.Parameter, value: str, shown: str) -> Any:
    kind = p.annotation if isinstance(p.annotation, type) else str(p.annotation)
    name = kind.__name__ if isinstance(kind, type) else kind
    if name not in ("int", "float", "bool", "str") and p.default is not REQUIRED and p.default is not None:
        name = type(p.default).__name__
    wrong = TraceError(f"{spec}: {p.name}={value!r} is not of type {name}; its signature is {shown}")
    if name == "str":
        return value
    if name == "bool":
        return _truth(value, wrong)
    if name in ("int", "float"):
        try:
            return int(value, 0) if name == "int" else float(value)
        except ValueError:
            raise wrong from None
    return _literal(value)


def _truth(value: str, wrong: TraceError) -> bool:
    text = value.lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise wrong


def _literal(value: str) -> Any:
    """``value`` as the number or truth value it reads as, else the text itself."""
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        read = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return read if isinstance(read, int | float) and not isinstance(read, bool) else value
