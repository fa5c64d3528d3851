"""Rewriting a kernel's source so that its control flow and assignments can be recorded.

The function's syntax tree is rewritten once per code object and compiled under the user's file name
and line numbers, so tracebacks and locations stay true; the code is then bound to each closure.
"""

from __future__ import annotations

import ast
import copy
import linecache
import weakref
from types import CellType, CodeType, FunctionType

from foretile.kernels import control
from foretile.kernels.errors import TraceError
from foretile.kernels.ir import Loc
from foretile.kernels.nodes import RUNTIME
from foretile.kernels.syntax import Rewriter

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


class _Source:
    """Functions of one source file, by line of their first decorator and name."""

    def __init__(self, text: str, filename: str) -> None:
        self.text = text
        self.functions: dict[tuple[int, str], FunctionNode] = {}
        for node in ast.walk(ast.parse(text, filename)):
            if isinstance(node, FunctionNode):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                self.functions[first, node.name] = node


_SOURCES: dict[str, _Source] = {}
# Keyed by identity, because equal code objects of two files differ in their locations; an entry
# goes with its code object, whose id may then be used again.
_CODES: dict[int, CodeType] = {}


def rewrite(function: FunctionType) -> FunctionType:
    """``function`` with its body rewritten, bound to the same globals, closure and defaults.

    Raises:
        TraceError: its source is not available, or is not what was compiled.
    """
    code = function.__code__
    new = _CODES.get(id(code))
    if new is None:
        new = _CODES[id(code)] = _compile(function)
        weakref.finalize(code, _CODES.pop, id(code), None)
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    cells[RUNTIME] = _RUNTIME_CELL
    closure = tuple([cells[name] for name in new.co_freevars])
    bound = FunctionType(new, function.__globals__, function.__name__, function.__defaults__, closure)
    bound.__kwdefaults__ = function.__kwdefaults__
    bound.__doc__ = function.__doc__
    return bound


_RUNTIME_CELL = CellType(control)


def forget(filename: str) -> None:
    """Drop the source kept of a file that will not be traced again."""
    _SOURCES.pop(filename, None)


def _find(code: CodeType, module_globals: dict[str, object]) -> FunctionNode:
    filename = code.co_filename
    linecache.checkcache(filename)
    text = "".join(linecache.getlines(filename, module_globals))
    loc = Loc(filename, code.co_firstlineno)
    if not text:
        raise TraceError(
            f"the source of {code.co_name} is not available (exec'd string or interactive prompt); kernels "
            f"are traced from source: put it in a file, or use foretile.kernels.load.from_script(text)",
            loc,
        )
    source = _SOURCES.get(filename)
    if source is None or source.text != text:
        try:
            source = _SOURCES[filename] = _Source(text, filename)
        except SyntaxError as error:
            raise TraceError(f"the file has changed since it was imported: {error}", loc) from error
    node = source.functions.get((code.co_firstlineno, code.co_name))
    if node is None:
        raise TraceError(f"{code.co_name} is not at this line of the file; has it changed since import?", loc)
    return node


def _compile(function: FunctionType) -> CodeType:
    code = function.__code__
    found = _find(code, function.__globals__)
    if isinstance(found, ast.AsyncFunctionDef):
        raise TraceError(
            f"{code.co_name} is async; kernels are plain functions", Loc(code.co_filename, found.lineno)
        )
    node = copy.deepcopy(
        found
    )  # rewriting is destructive, and the file's tree may hold macros inside kernels
    Rewriter(node).run()
    outer = ast.FunctionDef(
        name="__ft_outer",
        args=ast.arguments(
            posonlyargs=[],
            args=[ast.arg(arg=name) for name in (*code.co_freevars, RUNTIME)],
            kwonlyargs=[],
            kw_defaults=[],
            defaults=[],
        ),
        body=[node],
        decorator_list=[],
        lineno=node.lineno,
        col_offset=0,
        end_lineno=node.end_lineno,
        end_col_offset=node.end_col_offset,
    )
    module = ast.fix_missing_locations(ast.Module(body=[outer], type_ignores=[]))
    compiled = compile(module, code.co_filename, "exec", dont_inherit=True)
    return _nested(_nested(compiled, "__ft_outer"), code.co_name)


def _nested(code: CodeType, name: str) -> CodeType:
    return next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name)
