"""``@T.prim_func`` and ``@T.macro``: from a Python function to a tile program."""

from __future__ import annotations

import sys
from collections import ChainMap
from collections.abc import Callable
from functools import lru_cache
from types import CodeType, FrameType, FunctionType
from typing import Any, ParamSpec, TypeVar, overload

from foretile.kernels.blocks import StridedTensor, Tensor
from foretile.kernels.errors import TraceError, fail, is_own
from foretile.kernels.expr import Const, Expr, Var, variables
from foretile.kernels.handles import BufferHandle
from foretile.kernels.ir import Loc, TileProgram
from foretile.kernels.rewriter import rewrite
from foretile.kernels.tracer import STATE, Tracer
from foretile.kernels.values import DTypeName, Index, canonical

P = ParamSpec("P")
R = TypeVar("R")


@overload
def prim_func(function: Callable[..., Any]) -> TileProgram: ...


@overload
def prim_func(**_options: Any) -> Callable[[Callable[..., Any]], TileProgram]: ...


def prim_func(function: Any = None, **_options: Any) -> Any:
    """Trace ``function`` at once and return its :class:`~foretile.kernels.ir.TileProgram`."""
    if function is None:
        return prim_func
    if not isinstance(function, FunctionType):
        fail(f"@T.prim_func needs a plain function, got {type(function).__name__}")
    code = function.__code__
    loc = Loc(code.co_filename, code.co_firstlineno)
    if STATE.tracer is not None:
        fail(
            f"@T.prim_func {function.__name__} inside the kernel {STATE.tracer.name}: kernels cannot be "
            f"nested; use @T.macro for parts of a kernel"
        )
    rewritten = rewrite(function)
    tracer = Tracer(function.__name__, loc)
    STATE.tracer = tracer
    try:
        handles = _parameters(function, tracer, loc)
        rewritten(*handles)
        return tracer.finish()
    except TraceError as error:
        raise _at_kernel(error, code) from error.__cause__
    except Exception as error:
        place = _kernel_line(error, code) or loc
        raise TraceError(f"{type(error).__name__}: {error}", place) from error
    finally:
        STATE.tracer = None


@overload
def macro(function: Callable[P, R]) -> Callable[P, R]: ...


@overload
def macro(**_options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def macro(function: Any = None, **_options: Any) -> Any:
    """A function whose body is rewritten like a kernel's and traced into the kernel that calls it."""
    if function is None:
        return macro
    if not isinstance(function, FunctionType):
        fail(f"@T.macro needs a plain function, got {type(function).__name__}")
    return rewrite(function)


def _parameters(function: FunctionType, tracer: Tracer, loc: Loc) -> list[BufferHandle | Index]:
    code = function.__code__
    count = code.co_argcount + code.co_kwonlyargcount
    if code.co_flags & 0x0C or code.co_kwonlyargcount or function.__defaults__:
        raise TraceError(f"{function.__name__}: parameters are plain tensors, without defaults or stars", loc)
    annotations = function.__annotations__
    scope: Any = None
    handles: list[BufferHandle | Index] = []
    declared: list[Tensor | Var] = []
    for name in code.co_varnames[:count]:
        kind = annotations.get(name)
        if type(kind) is str:  # T.float16 is a text too, but no annotation to evaluate
            if scope is None:
                scope = _annotation_scope(function)
            kind = _evaluate(kind, function, scope, name, loc)
        if isinstance(kind, DTypeName):
            tracer.names.add(name)
            tracer.scalars.append(Var(name, canonical(kind)))
            declared.append(tracer.scalars[-1])
            continue
        if not isinstance(kind, Tensor):
            what = "no annotation" if kind is None else f"the annotation {kind!r}"
            raise TraceError(
                f"parameter `{name}` of {function.__name__} has {what}; declare it {name}: T.Tensor(shape, "
                f"dtype), a number {name}: T.int32",
                loc,
            )
        declared.append(kind)
        tracer.names.add(name)
    params = set(code.co_varnames[:count]) - {v.name for v in tracer.scalars}
    for kind in declared:
        for e in kind.dims if isinstance(kind, Tensor) else ():
            _reserve_dims(e, tracer, params, loc)
        for e in kind.strides if isinstance(kind, StridedTensor) else ():
            _reserve_dims(e, tracer, params, loc)
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:  # a name the factory has not assigned yet
            continue
        if isinstance(value, Index):
            tracer.names.add(value.name)
    for name, kind in zip(code.co_varnames[:count], declared, strict=True):
        if isinstance(kind, Var):
            handles.append(Index(kind, "parameter"))
            continue
        handle = BufferHandle(tracer, name, kind.dims, kind.dtype, "global")
        handle.strides = kind.strides if isinstance(kind, StridedTensor) else ()
        handles.append(handle)
    tracer.params = [h for h in handles if isinstance(h, BufferHandle)]
    return handles


def _reserve_dims(e: Expr, tracer: Tracer, params: set[str], loc: Loc) -> None:
    if isinstance(e, Const):
        return
    for name in (e.name,) if isinstance(e, Var) else variables(e):
        if name in params:
            raise TraceError(f"`{name}` names both a parameter and a symbolic dimension; rename one", loc)
        tracer.names.add(name)


@lru_cache(maxsize=1024)
def _compiled(source: str) -> CodeType:
    return compile(source, "<annotation>", "eval")


def _annotation_scope(function: FunctionType) -> ChainMap[str, Any]:
    """Names an annotation given as text may use: the factory's locals, the closure, the globals."""
    cells: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            cells[name] = cell.cell_contents
        except ValueError:
            continue
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_own(frame.f_code.co_filename):
        frame = frame.f_back
    start, local = frame, {}
    while frame is not None:
        if any(c is function.__code__ for c in frame.f_code.co_consts):
            local = frame.f_locals
            break
        frame = frame.f_back
    else:
        local = start.f_locals if start is not None else {}
    return ChainMap(cells, local)


def _evaluate(source: str, function: FunctionType, scope: ChainMap[str, Any], name: str, loc: Loc) -> Any:
    try:
        return eval(_compiled(source), function.__globals__, scope)
    except TraceError as error:
        raise TraceError(f"parameter `{name}`: {error.reason}", loc) from error
    except Exception as error:
        raise TraceError(
            f"annotation {source!r} of parameter `{name}`: {type(error).__name__}: {error}", loc
        ) from error


def _kernel_line(error: BaseException, code: CodeType) -> Loc | None:
    """The innermost line of the kernel itself in an error's traceback."""
    found = None
    last = max((line for *_, line in code.co_lines() if line), default=code.co_firstlineno)
    entry = error.__traceback__
    while entry is not None:
        inside = code.co_firstlineno <= entry.tb_lineno <= last
        if inside and entry.tb_frame.f_code.co_filename == code.co_filename:
            found = Loc(code.co_filename, entry.tb_lineno)
        entry = entry.tb_next
    return found


def _at_kernel(error: TraceError, code: CodeType) -> TraceError:
    """``error`` reported at the kernel's line; a helper's own line is added to the message."""
    place = _kernel_line(error, code)
    if place is None or error.loc is None or place == error.loc:
        return error
    return TraceError(f"{error.reason} (at {error.loc})", place)
