"""A PrimFunc, as TileLang's front end builds it, as tile programs: one for every kernel in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foretile.kernels.errors import TraceError
from foretile.kernels.expr import Const, Expr, Var
from foretile.kernels.free import FreeVariables
from foretile.kernels.ir import TILELANG, Loc, Stmt, TileProgram
from foretile.kernels.tilelang import versions
from foretile.kernels.tilelang.buffers import counts
from foretile.kernels.tilelang.launch import Launch, launches, sizes
from foretile.kernels.tilelang.layouts import is_swizzled, layout_text
from foretile.kernels.tilelang.nodes import annotations_of, element_type, key, kind, location, number, refuse
from foretile.kernels.tilelang.scratch import fold_scratch
from foretile.kernels.tilelang.statements import Body

_THREADS = 128  # of a kernel that does not say how many


def from_prim_func(
    function: Any, pass_configs: Mapping[str, Any] | None = None, name: str | None = None
) -> TileProgram | tuple[TileProgram, ...]:
    """The tile program of a ``tvm`` PrimFunc; several where it launches several kernels.

    ``pass_configs`` are the compiler's switches that the kernel is compiled with (of a ``@tilelang.jit``
    function, which keeps them outside of the PrimFunc); they become annotations ``pass:NAME``.

    Raises:
        TraceError: something in it that is not known; the message begins with file and line.
    """
    versions.check(versions.installed() or versions.KNOWN[-1])
    loc = location(versions.function_span(function))
    title = name or str((function.attrs or {}).get("global_symbol", "kernel"))
    try:
        found = launches(function.body, loc)
        programs = [
            _program(
                function,
                launch,
                title if len(found) == 1 else f"{title}_{i}",
                loc,
                pass_configs or {},
                alone=len(found) == 1,
            )
            for i, launch in enumerate(found)
        ]
    except TraceError:
        raise
    except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
        seen = versions.installed()
        raise TraceError(
            f"{title}: the tree that TileLang {seen} built is not what this importer expects "
            f"({type(error).__name__}: {error}); tested are {', '.join(versions.KNOWN)}",
            loc,
        ) from error
    return programs[0] if len(programs) == 1 else tuple(programs)


def _program(
    function: Any,
    launch: Launch,
    title: str,
    loc: Loc | None,
    pass_configs: Mapping[str, Any],
    *,
    alone: bool,
) -> TileProgram:
    body = Body(versions.statement_spans(), loc, loc.file if loc is not None else None)
    scalars = _parameters(function, body, loc)
    for buffer in launch.workspace:
        # What several launches hand on from one to the next is a tensor of each.
        (body.buffers.allocation if alone else body.buffers.parameter)(buffer, loc)
    statements: list[Stmt] = []
    for bind in launch.binds[: launch.before]:
        statements.extend(body.sequence([_without_body(bind)]))
    block_vars, grid = _grid(launch, body)
    body.threads = sizes(launch.threads or [_THREADS])
    for axis, var in launch.thread_vars.items():
        body.thread_keys[key(var)] = axis
        body.buffers.held.append(var)
    for bind in launch.binds[launch.before :]:
        statements.extend(body.sequence([_without_body(bind)]))
    noted = annotations_of(launch.block)
    body.enter(launch.block)
    _reducers(noted, body)
    if "pragma_import_c" in noted:
        body.source = str(noted["pragma_import_c"])
    statements.extend(body.sequence([launch.block.body]))
    folded, gone = fold_scratch(tuple(statements), body.buffers.scratch)
    buffers = tuple(b for b in body.buffers.allocated if b.name not in gone)
    params = tuple(body.buffers.params)
    threads = 1
    for n in body.threads:
        threads *= n
    used = list(body.thread_names)
    thread_vars = tuple(_thread_var(body, axis) for axis in range(max(used) + 1)) if used else ()
    free = FreeVariables()
    free.bound.update(v.name for v in (*block_vars, *thread_vars, *scalars))
    free.buffers(params)
    free.add(*grid)
    free.body(folded)
    free.buffers(buffers)
    return TileProgram(
        name=title,
        params=params,
        dims=tuple(free.dims.values()),
        grid=grid,
        block_vars=block_vars,
        threads=threads,
        buffers=buffers,
        body=folded,
        swizzle=body.swizzle,
        annotations=(*_annotations(noted, body), *body.annotations, *_switches(pass_configs, function)),
        thread_vars=thread_vars,
        thread_shape=body.threads if len(body.threads) > 1 else (),
        cluster=_cluster(noted),
        scalars=tuple(scalars),
        loc=loc,
        toolchain=TILELANG,
    )


def _thread_var(body: Body, axis: int) -> Var:
    found = body.thread_names.get(axis)
    return found if found is not None else Var(body.buffers.unique(("tx", "ty", "tz")[axis]))


def _parameters(function: Any, body: Body, loc: Loc | None) -> list[Var]:
    """Name the tensors and numbers that the kernel is called with, and its symbolic dimensions."""
    tensors = {key(var): buffer for var, buffer in function.buffer_map.items()}
    names = {str(b.name) for b in tensors.values()}
    for buffer in tensors.values():
        for e in (*buffer.shape, *buffer.strides, buffer.elem_offset):
            for var in body.effects.variables(e):
                body.buffers.held.append(var)
                if key(var) not in body.values:
                    unique = _dimension(body, str(var.name), names)
                    body.values[key(var)] = Var(unique, element_type(var, loc)[0])
    scalars: list[Var] = []
    for var in function.params:
        found = tensors.get(key(var))
        body.buffers.held.append(var)
        if found is not None:
            body.buffers.parameter(found, loc)
        elif str(var.dtype) != "handle":
            made = body.values.get(key(var))
            if made is None:
                made = Var(body.buffers.unique(str(var.name)), element_type(var, loc)[0])
                body.values[key(var)] = made
                scalars.append(made)
        else:
            _pointer_parameter(function, var, body, loc)
    return scalars


def _dimension(body: Body, name: str, tensors: set[str]) -> str:
    """A symbolic dimension keeps its name, unless a tensor has it."""
    if name == "T" and "T" not in tensors and name not in body.dimensions:
        body.dimensions.add(name)
        return name  # the printer knows how to write it
    return body.buffers.unique(name if name not in tensors else f"{name}_")


def _pointer_parameter(function: Any, var: Any, body: Body, loc: Loc | None) -> None:
    """A pointer parameter: the tensor that the kernel makes of it is the parameter."""
    for buffer in body.effects.buffers(function.body):
        if key(buffer.data) == key(var) and key(var) not in body.buffers.by_data:
            for e in (*buffer.shape, *buffer.strides):
                for dim in body.effects.variables(e):
                    if key(dim) not in body.values:
                        body.values[key(dim)] = Var(body.buffers.unique(str(dim.name)))
                        body.buffers.held.append(dim)
            body.buffers.parameter(buffer, loc)
            return


def _grid(launch: Launch, body: Body) -> tuple[tuple[Var, ...], tuple[Expr, ...]]:
    variables, extents = [], []
    for _axis, var, extent in sorted(launch.blocks, key=lambda item: item[0]):
        body.buffers.held.append(var)
        extents.append(body.convert(extent))
    for _axis, var, _extent in sorted(launch.blocks, key=lambda item: item[0]):
        made = Var(body.buffers.unique(str(var.name)))
        body.values[key(var)] = made
        variables.append(made)
    return tuple(variables), tuple(extents)


def _without_body(node: Any) -> Any:
    """A statement whose body has been looked into already."""
    if kind(node) in ("Bind", "Evaluate"):
        return node
    return refuse(f"a statement ({kind(node)}) around `with T.Kernel(...)` cannot be imported", None)


def _reducers(noted: dict[str, Any], body: Body) -> None:
    """What the block says of reducers, by the name of their buffers."""
    for var, info in (noted.get("reducer_info") or {}).items():
        name = body.buffers.by_data.get(key(var))
        if name is not None:
            body.reducers[name] = f"{info['op']}:{info['rep']}"
    for var, info in (noted.get("reducer_info_v2") or {}).items():
        name = body.buffers.by_data.get(key(var))
        if name is not None:
            body.reducers[name] = str(info["op"])


def _annotations(noted: dict[str, Any], body: Body) -> list[tuple[str, str]]:
    """Notes of the block that concern buffers."""
    found: list[tuple[str, str]] = []
    for data, name in _named(noted.get("barrier_init"), body):
        of = "cluster_barrier" if name in body.buffers.of_cluster else "barrier"
        found.append((f"{of}:{name}", counts(data)))
    for name, how in body.reducers.items():
        found.append((f"reducer:{name}", how))
    for layout, name in _named(noted.get("layout_map"), body):
        swizzled = kind(layout) == "Layout" and is_swizzled(layout, body.buffers.by_name[name])
        found.append((f"layout:{name}", "swizzled" if swizzled else layout_text(layout, body.convert)))
    for key_, what in (
        ("l2_hit_ratio_map", "l2_hit_ratio"),
        ("safe_value_map", "safe_value"),
        ("padding_map", "safe_value"),
    ):
        for value, name in _named(noted.get(key_), body):
            e = body.convert(value)
            found.append((f"{what}:{name}", repr(e.value) if isinstance(e, Const) else "0"))
    return found


def _named(noted: Any, body: Body) -> list[tuple[Any, str]]:
    found = []
    for var, value in (noted or {}).items():
        at = key(var.data if hasattr(var, "data") and kind(var) == "Buffer" else var)
        name = body.buffers.by_data.get(at)
        if name is not None:
            found.append((value, name))
    return found


def _switches(given: Mapping[str, Any], function: Any) -> list[tuple[str, str]]:
    """The compiler's switches, by name."""
    found = {str(name): value for name, value in given.items()}
    attrs = function.attrs
    for name, value in attrs.items() if attrs is not None else ():
        if str(name) in ("tilelang_pass_configs", "pass_configs", "tl.pass_configs"):
            found.update({str(k): v for k, v in value.items()})
    return [(f"pass:{name}", repr(_plain(value))) for name, value in sorted(found.items())]


def _plain(value: Any) -> Any:
    if kind(value) in ("IntImm", "FloatImm"):
        return bool(value.value) if str(value.dtype) == "bool" else value.value
    return value if isinstance(value, bool | int | float | str) else str(value)


def _cluster(noted: dict[str, Any]) -> tuple[int, ...]:
    shape = noted.get("cluster_dims") or noted.get("tl.cluster_dims") or ()
    extents = tuple(number(n) or 1 for n in shape)
    return extents if any(n > 1 for n in extents) else ()
