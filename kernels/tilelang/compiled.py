"""What TileLang's compiler made of a program: launch, device code, and the decisions it took on the way.

Plain values, made from an answer of :mod:`~foretile.kernels.tilelang.compile_worker`; TileLang is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foretile.kernels.cuda.recipe import LaunchRecipe, Role, ScalarArg, TensorArg, TensorMapArg
from foretile.kernels.expr import BINARY_OPS, Expr, evaluate, loads
from foretile.kernels.ir import AtomicAdd, Copy, Store, TileProgram, walk_stmts
from foretile.kernels.rewrite import map_exprs

# CUtensorMapDataType, CUtensorMapSwizzle, CUtensorMapL2promotion … in order (CUDA Driver API 13.0, cuda.h).
# The flushing variants differ in how elements are read, not in their width; of the packed types only the
# one whose elements lie in shared memory as they do in global memory (16U4_ALIGN8B) is known here.
_MAP_DTYPES = (
    *("uint8", "uint16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"),
    *("bfloat16", "float32", "tfloat32", "tfloat32", "float4_e2m1"),
)
_INTERLEAVE = ("none", "16B", "32B")
_SWIZZLE = ("none", "32B", "64B", "128B")
_PROMOTION = ("none", "64B", "128B", "256B")
_FILL = ("zeros", "nan")


class CompileError(ValueError):
    """TileLang or nvcc refused a program, or did not finish; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Tile:
    """An on-chip buffer after layout inference.

    ``versions``: copies of it in a pipeline's ring. ``layout`` of a shared tile: ``linear``, ``swizzle 128B``
    (64B, 32B) or ``other``. ``elements_per_thread``: of a fragment, zero where its layout was not decided.
    """

    name: str
    scope: str
    dtype: str
    shape: tuple[int, ...]
    versions: int = 1
    layout: str = ""
    elements_per_thread: int = 0


@dataclass(frozen=True, slots=True)
class Decisions:
    """What the compiler decided about a program's schedule on one architecture.

    ``threads`` of a block, of which ``producers`` only copy (0 without warp specialisation).
    ``barriers``: arrivals that each memory barrier of the block expects. ``operations`` counts tile
    operations by name after warp specialisation (``tma_copy``: a copy that became a bulk one for
    its role's sake).
    """

    threads: int
    producers: int
    barriers: tuple[int, ...]
    tiles: tuple[Tile, ...]
    operations: Mapping[str, int]

    @property
    def stages(self) -> int:
        """Versions of the deepest pipeline."""
        return max((tile.versions for tile in self.tiles), default=1)

    @staticmethod
    def read(data: Mapping[str, Any], program: TileProgram) -> Decisions:
        """From a worker's ``layouts``; versions are what a buffer has beyond its shape in ``program``."""
        written = {b.name: tuple(int(evaluate(e, {})) for e in b.shape) for b in program.buffers}
        tiles = []
        for entry in data["buffers"]:
            shape = tuple(entry["shape"])
            plain = written.get(entry["name"], shape)
            versions = shape[0] if len(shape) == len(plain) + 1 and shape[1:] == plain else 1
            tiles.append(
                Tile(
                    entry["name"],
                    entry["scope"],
                    entry["dtype"],
                    plain if versions > 1 else shape,
                    versions,
                    entry.get("layout", ""),
                    entry.get("elements_per_thread", 0),
                )
            )
        roles = data["roles"]
        return Decisions(
            data["threads"],
            roles[0] if roles else 0,
            tuple(data["barriers"]),
            tuple(tiles),
            dict(data["operations"]),
        )


@dataclass(frozen=True, slots=True)
class Generated:
    """Device source of one program for one architecture, with its launch for any of its sizes."""

    program: TileProgram
    arch: str
    source: str
    launch: Mapping[str, Any]
    decisions: Decisions
    instructions: Mapping[str, int]

    @property
    def symbol(self) -> str:
        """The kernel's name."""
        return str(self.launch["symbol"])

    def recipe(self, **sizes: int) -> LaunchRecipe:
        """How it is launched, the program's symbolic dimensions being ``sizes``.

        Raises:
            CompileError: a size that is missing or not one of the program.
        """
        names = [v.name for v in (*self.program.dims, *self.program.scalars)]
        if set(names) != set(sizes):
            raise CompileError(
                f"{self.program.name} is launched with the sizes {', '.join(names) or '(none)'}; "
                f"given: {', '.join(sizes) or 'none'}"
            )
        roles = tensor_roles(self.program)
        tensors = {
            b.name: TensorArg(b.name, b.dtype, tuple(int(evaluate(e, sizes)) for e in b.shape), roles[b.name])
            for b in self.program.params
        }
        launch = self.launch
        # The compiler may have renamed what holds a tensor's address; the order is that of the program.
        named = dict(zip(launch["tensors"], tensors, strict=True))
        args: list[TensorArg | ScalarArg | TensorMapArg] = []
        for arg in launch["args"]:
            if arg["kind"] == "tensor":
                args.append(tensors[named[arg["name"]]])
            elif arg["kind"] == "tensor_map":
                args.append(_tensor_map(arg, named[arg["tensor"]], sizes))
            else:
                args.append(ScalarArg(arg["ctype"], number(arg["value"], sizes), arg["name"]))
        passed = {arg.name for arg in args if isinstance(arg, TensorArg)}
        return LaunchRecipe(
            symbol=self.symbol,
            grid=_extent(launch["grid"], sizes),
            block=_extent(launch["block"], sizes),
            args=tuple(args),
            cluster=_extent(launch["cluster"], sizes),
            shared_bytes=number(launch["shared_bytes"], sizes),
            unbound=tuple(t for name, t in tensors.items() if name not in passed),
        )


def number(value: Any, sizes: Mapping[str, int]) -> int:
    """A number of a launch (:func:`foretile.kernels.tilelang.reading.plain`) for these sizes."""
    if isinstance(value, str):
        return sizes[value]
    if not isinstance(value, list):
        return int(value)
    name, *operands = value
    if name == "if":
        return number(operands[1] if number(operands[0], sizes) else operands[2], sizes)
    a, b = (number(operand, sizes) for operand in operands)
    return int(BINARY_OPS[name](a, b))


def _extent(values: list[Any], sizes: Mapping[str, int]) -> tuple[int, int, int]:
    x, y, z = (number(v, sizes) for v in values)
    return x, y, z


def _tensor_map(arg: Mapping[str, Any], tensor: str, sizes: Mapping[str, int]) -> TensorMapArg:
    lists = {
        name: tuple(number(v, sizes) for v in arg[name])
        for name in ("global_dim", "global_strides_bytes", "box_dim", "element_strides")
    }
    lists["global_strides_bytes"] = lists["global_strides_bytes"][1:]  # the innermost is an element
    if not 0 <= arg["dtype"] < len(_MAP_DTYPES):
        raise CompileError(
            f"the tensor map of {tensor} has elements of type {arg['dtype']}, which is not known"
        )
    return TensorMapArg(
        tensor=tensor,
        dtype=_MAP_DTYPES[arg["dtype"]],
        rank=arg["rank"],
        interleave=_INTERLEAVE[arg["interleave"]],  # type: ignore[arg-type]
        swizzle=_SWIZZLE[arg["swizzle"]],  # type: ignore[arg-type]
        l2_promotion=_PROMOTION[arg["l2_promotion"]],  # type: ignore[arg-type]
        oob_fill=_FILL[arg["oob_fill"]],  # type: ignore[arg-type]
        **lists,
    )


def tensor_roles(program: TileProgram) -> dict[str, Role]:
    """Whether a kernel reads each of its tensors, writes it, or both."""
    read: set[str] = set()
    written: set[str] = set()

    def collect(e: Expr) -> Expr:
        read.update(load.buffer for load in loads(e))
        return e

    map_exprs(program, collect)
    for stmt in walk_stmts(program.body):
        if isinstance(stmt, Copy | AtomicAdd):
            read.add(stmt.src.buffer)
            written.add(stmt.dst.buffer)
        if isinstance(stmt, Store):
            written.add(stmt.buffer)
        if isinstance(stmt, AtomicAdd):
            read.add(stmt.dst.buffer)
        if isinstance(stmt, Store) and stmt.atomic not in ("", "store"):
            read.add(stmt.buffer)
    roles: dict[str, Role] = {}
    for b in program.params:
        both = b.name in read and b.name in written
        roles[b.name] = "inout" if both else "out" if b.name in written else "in"
    return roles
