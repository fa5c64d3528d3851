"""A kernel however its user holds it: as its PrimFuncs, with the compiler's switches it asks for."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from foretile.kernels.errors import TraceError
from foretile.kernels.ir import TileProgram
from foretile.kernels.tilelang.program import from_prim_func
from foretile.kernels.tilelang.versions import require

Programs = TileProgram | tuple[TileProgram, ...]


@dataclass(slots=True)
class Captured:
    """PrimFuncs that were about to be compiled, with the switches they would be compiled with."""

    found: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)


def is_prim_func(value: Any) -> bool:
    """Whether ``value`` is a PrimFunc of TVM's."""
    return type(value).__name__ == "PrimFunc" and hasattr(value, "buffer_map")


def is_jit(value: Any) -> bool:
    """Whether ``value`` is what ``@tilelang.jit`` (or ``@tilelang.autotune`` on top) makes."""
    return type(value).__name__ in ("JITImpl", "AutoTuneImpl")


def is_kernel(value: Any) -> bool:
    """Whether ``value`` is a compiled kernel, which remembers its PrimFunc."""
    return hasattr(value, "prim_func") and is_prim_func(value.prim_func)


def is_held(value: Any) -> bool:
    """Whether ``value`` is a kernel of TileLang's in any form but a plain function."""
    return is_prim_func(value) or is_jit(value) or is_kernel(value)


def from_tilelang(held: Any, /, **arguments: Any) -> Programs:
    """The tile program of a TileLang kernel: a PrimFunc, a ``@tilelang.jit`` function (lazy or eager),
    a compiled kernel, or a function that returns one of these.

    ``arguments`` go to the function; those that are symbolic dimensions of the result are bound.
    Tensors of an eager function may be left out.

    Raises:
        TraceError: TileLang is missing, the kernel does not trace, or it holds something unknown.
    """
    require("a TileLang kernel")
    taken, dims = _split(held, arguments)
    function, switches = _prim_func(held, taken)
    programs = from_prim_func(function, switches)
    return bound(programs, dims)


def bound(programs: Programs, dims: Mapping[str, Any]) -> Programs:
    """``programs`` with symbolic dimensions replaced; each of them takes those that it has.

    Raises:
        TraceError: a name that none of them has.
    """
    several = programs if isinstance(programs, tuple) else (programs,)
    known = {v.name for p in several for v in (*p.dims, *p.scalars)}
    for name in dims:
        if name not in known:
            has = f"it has the symbolic dimensions {', '.join(sorted(known))}" if known else "it has none"
            raise TraceError(f"{several[0].name} takes no argument {name!r}; {has}", several[0].loc)
    made = []
    for p in several:
        own = {v.name for v in (*p.dims, *p.scalars)}
        try:
            made.append(p.bind(**{k: _number(v) for k, v in dims.items() if k in own}))
        except ValueError as error:
            raise TraceError(str(error), p.loc) from error
    return made[0] if len(made) == 1 else tuple(made)


def _number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return int(value, 0)
    except ValueError:
        try:
            return float(value)
        except ValueError:
            return value


def signature_of(held: Any) -> inspect.Signature | None:
    """The parameters of a kernel's function, ``None`` of one that takes none."""
    if is_prim_func(held) or is_kernel(held):
        return None
    function = held
    if is_jit(held):
        inner = getattr(held, "jit_impl", held)
        function = getattr(inner, "func", inner)
        function = getattr(function, "orig_func", function)
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _split(held: Any, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the function, and what is left for the symbolic dimensions."""
    signature = signature_of(held)
    if signature is None:
        return {}, dict(arguments)
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return dict(arguments), {}
    taken = {k: v for k, v in arguments.items() if k in signature.parameters}
    if is_jit(held):  # of an eager function also the constants that it declares
        eager = {k: v for k, v in arguments.items() if k in _constants(held)}
        taken |= eager
    return taken, {k: v for k, v in arguments.items() if k not in taken}


def _constants(held: Any) -> frozenset[str]:
    """Names that an eager function declares with ``T.const``, by its source."""
    inner = getattr(held, "jit_impl", held)
    function: Any = getattr(getattr(inner, "func", None), "orig_func", None)
    code = getattr(function, "__code__", None)
    if code is None:
        return frozenset()
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return frozenset(code.co_varnames)
    words: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) == "const":
            for given in node.args:
                if not (isinstance(given, ast.Constant) and isinstance(given.value, str)):
                    return frozenset(code.co_varnames)
                words.update(given.value.replace(",", " ").split())
    return frozenset(words)


def _called(call: ast.Call) -> str:
    """The last name of what is called: ``const`` of ``T.const``."""
    return str(getattr(call.func, "attr", getattr(call.func, "id", "")))


def _prim_func(held: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The PrimFunc of a held kernel and the compiler's switches."""
    if is_prim_func(held):
        return held, {}
    if is_kernel(held):
        return held.prim_func, _switches(held)
    with capture() as captured:
        if is_jit(held):
            inner = getattr(held, "jit_impl", held)
            return _traced(lambda: inner.get_tir(**arguments), held), _switches(inner)
        made = _traced(lambda: held(**arguments), held)
    if is_held(made):
        return _prim_func(made, {})
    if len(captured.found) == 1:
        return captured.found[0]
    name = getattr(held, "__name__", "the function")
    if captured.found:
        names = ", ".join(str((f.attrs or {}).get("global_symbol", "?")) for f, _ in captured.found)
        raise TraceError(f"{name} compiles {len(captured.found)} kernels ({names}); name the function of one")
    raise TraceError(f"{name} returned {type(made).__name__}, not a kernel of TileLang's")


def _switches(held: Any) -> dict[str, Any]:
    given = getattr(held, "pass_configs", None) or {}
    return {str(getattr(name, "value", name)): value for name, value in given.items()}


def _traced(make: Callable[[], Any], held: Any) -> Any:
    """What ``make`` returns; what stops it becomes one message with the author's line."""
    import logging

    logger = logging.getLogger("tilelang")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)  # the front end logs the whole function it could not build
    try:
        return make()
    except TraceError:
        raise
    except Exception as error:
        from foretile.kernels.tilelang.messages import trace_error

        raise trace_error(error, held) from error
    finally:
        logger.setLevel(level)


@contextmanager
def capture() -> Iterator[Captured]:
    """Meanwhile nothing is compiled: kernels about to be are noted instead."""
    captured = Captured()
    jit: Any = importlib.import_module("tilelang.jit")
    before = jit.cached

    def note(func: Any = None, *_args: Any, **kwargs: Any) -> Any:
        switches = {str(getattr(k, "value", k)): v for k, v in (kwargs.get("pass_configs") or {}).items()}
        captured.found.append((func, switches))
        return _NotCompiled(func, switches)

    jit.cached = note
    try:
        yield captured
    finally:
        jit.cached = before


class _NotCompiled:
    """Stands for a compiled kernel: it remembers its PrimFunc and does nothing when called."""

    def __init__(self, prim_func: Any, pass_configs: dict[str, Any]) -> None:
        self.prim_func = prim_func
        self.pass_configs = pass_configs

    def __call__(self, *_args: Any, **_kwargs: Any) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        raise TraceError(f"the kernel is not compiled here, so it has no {name!r}")
