"""The frame of a kernel, which TileLang's versions build differently: the grid, threads, the block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from foretile.kernels.ir import Loc
from foretile.kernels.tilelang.nodes import annotations_of, kind, number, op_name, refuse


@dataclass(slots=True)
class Launch:
    """One ``T.Kernel`` block: loops over blocks, threads, what is bound around it, and the block."""

    blocks: list[tuple[str, Any, Any]] = field(default_factory=list)  # axis, variable, extent
    threads: list[int] = field(default_factory=list)
    thread_vars: dict[int, Any] = field(default_factory=dict)  # axis -> variable
    binds: list[Any] = field(default_factory=list)
    before: int = 0  # how many of them stand before the grid, which may use them
    workspace: list[Any] = field(default_factory=list)  # buffers made for the whole function
    block: Any = None


def launches(body: Any, loc: Loc | None) -> list[Launch]:
    """The kernels of a function's body, in order.

    Raises:
        TraceError: there is none, or something beside them.
    """
    found: list[Launch] = []
    _collect(body, Launch(), found, loc)
    if not found:
        refuse("the function has no `with T.Kernel(...)` block; only kernels can be imported", loc)
    return found


def _collect(node: Any, outer: Launch, found: list[Launch], loc: Loc | None) -> None:
    name = kind(node)
    if name == "SBlockRealize" or name == "BlockRealize":
        block = node.block
        if outer.blocks or outer.threads or "tl.launch_threads" in annotations_of(block):
            found.append(_finished(outer, block, loc))
        else:
            inner = _copy(outer)
            inner.workspace += list(block.alloc_buffers)
            _collect(block.body, inner, found, loc)
    elif name == "For" and number_of_thread(node) is not None:
        inner = _copy(outer)
        axis, place = number_of_thread(node) or ("", 0)
        if axis == "threadIdx":
            extent = number(node.extent)
            if extent is None:
                refuse("the number of threads of a block must be a constant", loc)
            inner.threads += [1] * (place + 1 - len(inner.threads))
            inner.threads[place] = extent
            inner.thread_vars[place] = node.loop_var
        else:
            inner.before = inner.before if inner.blocks else len(inner.binds)
            inner.blocks.append((f"{axis}.{'xyz'[place]}", node.loop_var, node.extent))
        _collect(node.body, inner, found, loc)
    elif name == "AttrStmt" and str(node.attr_key) == "thread_extent":
        _collect(node.body, _thread_extent(node, outer, loc), found, loc)
    elif name == "SeqStmt":
        inner = _copy(outer)
        for part in node.seq:
            if kind(part) in ("Bind", "LetStmt") and _is_thread_index(part):
                inner.thread_vars[number(part.value.args[0]) or 0] = part.var
            elif kind(part) in ("Bind", "AllocBuffer", "DeclBuffer", "Evaluate"):
                inner.binds.append(part)
            elif kind(part) == "AssertStmt":
                continue  # what the host checks before it launches
            else:
                _collect(part, inner, found, loc)
    elif name in ("AttrStmt", "DeclBuffer", "LetStmt", "AllocBuffer"):
        inner = _copy(outer)
        inner.binds.append(node)
        if hasattr(node, "body"):
            _collect(node.body, inner, found, loc)
    else:
        refuse(f"a statement ({name}) outside of `with T.Kernel(...)` cannot be imported", loc)


def _copy(outer: Launch) -> Launch:
    return replace(
        outer,
        blocks=list(outer.blocks),
        threads=list(outer.threads),
        thread_vars=dict(outer.thread_vars),
        binds=list(outer.binds),
        workspace=list(outer.workspace),
    )


def number_of_thread(node: Any) -> tuple[str, int] | None:
    """("blockIdx", 1) for a loop bound to ``blockIdx.y``, ``None`` for other loops."""
    binding = getattr(node, "thread_binding", None)
    if binding is None:
        return None
    axis, _, place = str(binding.thread_tag).partition(".")
    return axis, "xyz".index(place)


def _is_thread_index(bind: Any) -> bool:
    return kind(bind.value) == "Call" and op_name(bind.value) == "tl.launch_thread_idx"


def _thread_extent(node: Any, outer: Launch, loc: Loc | None) -> Launch:
    """The older form: an attribute around the body for every axis."""
    inner = _copy(outer)
    axis, _, place = str(node.node.thread_tag).partition(".")
    if axis == "threadIdx":
        extent = number(node.value)
        if extent is None:
            refuse("the number of threads of a block must be a constant", loc)
        inner.threads += [1] * ("xyz".index(place) + 1 - len(inner.threads))
        inner.threads["xyz".index(place)] = extent
        inner.thread_vars["xyz".index(place)] = node.node.var
    else:
        inner.before = inner.before if inner.blocks else len(inner.binds)
        inner.blocks.append((f"{axis}.{place}", node.node.var, node.value))
    return inner


def _finished(outer: Launch, block: Any, loc: Loc | None) -> Launch:
    launch = _copy(outer)
    launch.block = block
    noted = annotations_of(block).get("tl.launch_threads")
    if noted is not None:
        launch.threads = [number(n) or 1 for n in noted]
    if not launch.blocks:
        refuse("a kernel for a CPU target cannot be imported; this one has no grid of blocks", loc)
    return launch


def sizes(values: Sequence[int]) -> tuple[int, ...]:
    """Extents without the ones behind."""
    kept = list(values)
    while len(kept) > 1 and kept[-1] == 1:
        kept.pop()
    return tuple(kept)
