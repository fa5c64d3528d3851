"""How a CUDA kernel is launched, as plain data: grid, block, cluster, shared memory and arguments.

A recipe is made where there is no device (by a hand-written kernel's registry, or from what a compiler
generated), travels as JSON beside the machine code, and is carried out where there is one. What a driver
would refuse is found by :meth:`LaunchRecipe.problems`.

Limits: CUDA C++ Programming Guide 13.0, "Technical Specifications per Compute Capability"
(https://docs.nvidia.com/cuda/cuda-c-programming-guide/#features-and-technical-specifications).
Tensor maps: CUDA Driver API, ``cuTensorMapEncodeTiled``
(https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TENSOR__MEMORY.html).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from foretile.kernels.dtypes import dtype

Role = Literal["in", "out", "inout", "scratch"]
CType = Literal["int32", "uint32", "int64", "uint64", "float32", "float64"]
Interleave = Literal["none", "16B", "32B"]
Swizzle = Literal["none", "32B", "64B", "128B"]
L2Promotion = Literal["none", "64B", "128B", "256B"]
OutOfBounds = Literal["zeros", "nan"]
Extent = tuple[int, int, int]

_SWIZZLE_BYTES = {"32B": 32, "64B": 64, "128B": 128}
_WHOLE = {"int32": (-(2**31), 2**31), "uint32": (0, 2**32), "int64": (-(2**63), 2**63), "uint64": (0, 2**64)}
_GRID = (2**31 - 1, 65535, 65535)
_BLOCK = (1024, 1024, 64)
_THREADS = 1024
_CLUSTER = 8  # blocks; sixteen need a kernel attribute that is not portable
_PARAMETER_BYTES = 4096  # what every architecture takes; later ones take 32764
_TENSOR_MAP_BYTES, _POINTER_BYTES = 128, 8
# Bytes of shared memory that a block may ask for, by compute capability (major, minor).
SHARED_BYTES = {
    (7, 0): 96 * 1024, (7, 5): 64 * 1024, (8, 0): 163 * 1024, (8, 6): 99 * 1024, (8, 7): 163 * 1024,
    (8, 9): 99 * 1024, (9, 0): 227 * 1024, (10, 0): 227 * 1024, (10, 3): 227 * 1024, (12, 0): 99 * 1024,
}  # fmt: skip


class RecipeError(ValueError):
    """Plain data that are not a launch recipe; the message names the field and what would be right."""


@dataclass(frozen=True, slots=True)
class TensorArg:
    """A pointer to a dense row-major tensor of ``shape``.

    ``dtype`` is a canonical name (``bfloat16``). Types of less than a byte are packed in order of the
    flattened elements, the first in the lowest bits. ``in`` is read, ``out`` written as a whole,
    ``inout`` both; ``scratch`` is workspace, zero before the first launch.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: Role

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of storage, packed types rounded up to whole bytes."""
        return -(-self.elements * dtype(self.dtype).bits // 8)

    def problems(self) -> Iterator[str]:
        """What is wrong with it."""
        if any(extent < 1 for extent in self.shape):
            yield f"tensor {self.name}: shape {self.shape} has an extent below one"


@dataclass(frozen=True, slots=True)
class ScalarArg:
    """A number passed by value."""

    ctype: CType
    value: int | float
    name: str = ""

    @property
    def bytes(self) -> int:
        """Bytes among the kernel's parameters."""
        return 8 if self.ctype.endswith("64") else 4

    def problems(self) -> Iterator[str]:
        """What is wrong with it."""
        if self.ctype in _WHOLE:
            low, high = _WHOLE[self.ctype]
            if not isinstance(self.value, int) or not low <= self.value < high:
                yield f"scalar {self.name or self.ctype}: {self.value!r} is not a value of {self.ctype}"


@dataclass(frozen=True, slots=True)
class TensorMapArg:
    """A tensor-map descriptor, passed by value: the fields of ``cuTensorMapEncodeTiled``.

    ``tensor`` names the tensor whose address it holds. Dimensions go from the innermost outwards;
    ``global_strides_bytes`` has no entry for the innermost, whose elements are adjacent.
    """

    tensor: str
    dtype: str
    rank: int
    global_dim: tuple[int, ...]
    global_strides_bytes: tuple[int, ...]
    box_dim: tuple[int, ...]
    element_strides: tuple[int, ...]
    interleave: Interleave = "none"
    swizzle: Swizzle = "none"
    l2_promotion: L2Promotion = "none"
    oob_fill: OutOfBounds = "zeros"

    def problems(self) -> Iterator[str]:
        """What the driver would refuse."""
        at = f"tensor map of {self.tensor}"
        if not 1 <= self.rank <= 5:
            yield f"{at}: rank {self.rank} is not from 1 to 5"
        elif self.interleave != "none" and self.rank < 3:
            yield f"{at}: rank {self.rank} with interleave {self.interleave}; at least 3 is needed"
        for name, expected in (
            ("global_dim", 0),
            ("global_strides_bytes", 1),
            ("box_dim", 0),
            ("element_strides", 0),
        ):
            found = len(getattr(self, name))
            if found != self.rank - expected:
                yield f"{at}: {name} has {found} entries; rank {self.rank} needs {self.rank - expected}"
        if any(not 1 <= extent <= 2**32 for extent in self.global_dim):
            yield f"{at}: global_dim {self.global_dim} has an extent that is not from 1 to 2^32"
        step = 32 if self.interleave == "32B" else 16
        for stride in self.global_strides_bytes:
            if stride % step or not 0 < stride < 2**40:
                yield f"{at}: stride {stride} is not a multiple of {step} bytes below 2^40"
        if any(not 1 <= extent <= 256 for extent in self.box_dim):
            yield f"{at}: box_dim {self.box_dim} has an extent that is not from 1 to 256"
        if any(not 1 <= stride <= 8 for stride in self.element_strides):
            yield f"{at}: element_strides {self.element_strides} has one that is not from 1 to 8"
        yield from self._row_problems(at)

    def _row_problems(self, at: str) -> Iterator[str]:
        """What is wrong with a row of the box (its innermost dimension)."""
        if not self.box_dim:
            return
        row = self.box_dim[0] * dtype(self.dtype).bits / 8
        if self.interleave == "none" and row % 16:
            yield f"{at}: a box row of {row:g} bytes is not a multiple of 16"
        widest = _SWIZZLE_BYTES.get(self.swizzle)
        if self.interleave == "none" and widest is not None and row > widest:
            yield f"{at}: a box row of {row:g} bytes does not fit swizzle {self.swizzle}"
        if self.interleave == "32B" and self.swizzle != "32B":
            yield f"{at}: interleave 32B needs swizzle 32B, not {self.swizzle}"
        if self.oob_fill == "nan" and dtype(self.dtype).kind != "float":
            yield f"{at}: out-of-bounds elements of {self.dtype} cannot be NaN"


Argument = TensorArg | ScalarArg | TensorMapArg


@dataclass(frozen=True, slots=True)
class LaunchRecipe:
    """One launch of the kernel ``symbol``.

    ``grid`` counts blocks, ``block`` threads, ``cluster`` blocks (x, y, z); ``shared_bytes`` is dynamic
    shared memory. ``args`` are the kernel's parameters in order. Tensors of equal name in the recipes
    of one operator are the same tensor. A tensor map may name a tensor that is no argument itself:
    ``unbound`` lists it then, so that it is known and allocated.
    """

    symbol: str
    grid: Extent
    block: Extent
    args: tuple[Argument, ...]
    cluster: Extent = (1, 1, 1)
    shared_bytes: int = 0
    unbound: tuple[TensorArg, ...] = ()

    @property
    def tensors(self) -> tuple[TensorArg, ...]:
        """The tensors of the launch, each once, in order of the parameters."""
        named: dict[str, TensorArg] = {}
        for arg in (*self.args, *self.unbound):
            if isinstance(arg, TensorArg):
                named.setdefault(arg.name, arg)
        return tuple(named.values())

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return math.prod(self.block)

    def problems(self, capability: tuple[int, int] | None = None, static_shared_bytes: int = 0) -> list[str]:
        """What a device of compute ``capability`` (default: any) would refuse; empty if nothing.

        ``static_shared_bytes`` is what the compiler reports for the kernel; it shares the block's limit.
        """
        return list(self._problems(capability, static_shared_bytes))

    def _problems(self, capability: tuple[int, int] | None, static: int) -> Iterator[str]:
        for name, extent, limit in (("grid", self.grid, _GRID), ("block", self.block, _BLOCK)):
            for axis, n, most in zip("xyz", extent, limit, strict=True):
                if not 1 <= n <= most:
                    yield f"{name}.{axis} = {n} is not from 1 to {most}"
        if self.threads > _THREADS:
            yield f"a block of {self.threads} threads; at most {_THREADS} are possible"
        if math.prod(self.cluster) > _CLUSTER or min(self.cluster) < 1:
            yield f"cluster {self.cluster} is not of 1 to {_CLUSTER} blocks"
        elif any(g % c for g, c in zip(self.grid, self.cluster, strict=True)):
            yield f"grid {self.grid} is not a multiple of cluster {self.cluster}"
        if self.cluster != (1, 1, 1) and capability is not None and capability < (9, 0):
            yield f"clusters need compute capability 9.0, not {capability[0]}.{capability[1]}"
        largest = max(SHARED_BYTES.values())
        shared_limit = SHARED_BYTES.get(capability, largest) if capability is not None else largest
        if self.shared_bytes < 0 or self.shared_bytes + static > shared_limit:
            yield f"{self.shared_bytes + static} bytes of shared memory; a block may have {shared_limit}"
        named = [t.name for t in self.tensors]
        for arg in self.args:
            yield from arg.problems()
            if isinstance(arg, TensorMapArg):
                if arg.tensor not in named:
                    yield f"tensor map of {arg.tensor}: no tensor of that name; there are {', '.join(named)}"
                if capability is not None and capability < (9, 0):
                    yield f"tensor map of {arg.tensor}: compute capability 9.0 is needed"
        size = sum(_parameter_bytes(arg) for arg in self.args)
        if size > _PARAMETER_BYTES:
            yield f"{size} bytes of parameters; a kernel takes {_PARAMETER_BYTES}"

    def to_json(self) -> dict[str, Any]:
        """Plain data from which :meth:`from_json` rebuilds it."""
        return {
            **_plain(self),
            "args": [{"kind": _KINDS[type(arg)], **_plain(arg)} for arg in self.args],
            "unbound": [_plain(arg) for arg in self.unbound],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> LaunchRecipe:
        """Rebuild a recipe.

        Raises:
            RecipeError: a field that is missing, unknown or of the wrong type.
        """
        rest = dict(data)
        args = tuple(_argument(arg, f"args[{i}]") for i, arg in enumerate(_listed(rest, "args")))
        unbound = tuple(
            _built(TensorArg, arg, f"unbound[{i}]") for i, arg in enumerate(_listed(rest, "unbound"))
        )
        recipe: LaunchRecipe = _built(LaunchRecipe, rest, "recipe", args=args, unbound=unbound)
        for name in ("grid", "block", "cluster"):
            if len(getattr(recipe, name)) != 3:
                raise RecipeError(f"recipe.{name}: {list(getattr(recipe, name))} should have three numbers")
        return recipe


@dataclass(frozen=True, slots=True)
class KernelSource:
    """Where a kernel comes from: a ``.cu`` file of this package, its entry point, how it is compiled.

    ``defines`` are preprocessor macros that specialise it for dtypes and shapes (``("ELEM", "2")``).
    ``capability`` is the least compute capability whose instructions it uses.
    """

    file: str
    symbol: str
    defines: tuple[tuple[str, str], ...] = ()
    capability: tuple[int, int] = (8, 0)

    def to_json(self) -> dict[str, Any]:
        """Plain data from which :meth:`from_json` rebuilds it."""
        return {**_plain(self), "defines": dict(self.defines)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> KernelSource:
        """Rebuild a source.

        Raises:
            RecipeError: a field that is missing, unknown or of the wrong type.
        """
        rest = dict(data)
        defines = rest.pop("defines", {})
        if not isinstance(defines, Mapping):
            raise RecipeError(f"source.defines: {defines!r} should map macros to their values")
        pairs = tuple((str(name), str(value)) for name, value in defines.items())
        source: KernelSource = _built(KernelSource, rest, "source", defines=pairs)
        return source


@dataclass(frozen=True, slots=True)
class CudaProgram:
    """An operator's CUDA version at one shape: launches in order, each with its source."""

    operator: str
    launches: tuple[tuple[KernelSource, LaunchRecipe], ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def tensors(self) -> tuple[TensorArg, ...]:
        """Every tensor of the launches, each once; roles as seen from outside of the program.

        A result that an earlier launch wrote and a later one reads is still a result.
        """
        named: dict[str, TensorArg] = {}
        for _, recipe in self.launches:
            for tensor in recipe.tensors:
                named.setdefault(tensor.name, tensor)
        return tuple(named.values())

    def to_json(self) -> dict[str, Any]:
        """Plain data from which :meth:`from_json` rebuilds it."""
        launches = [{"source": s.to_json(), "recipe": r.to_json()} for s, r in self.launches]
        return {"operator": self.operator, "launches": launches, "notes": list(self.notes)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> CudaProgram:
        """Rebuild a program.

        Raises:
            RecipeError: a field that is missing, unknown or of the wrong type.
        """
        try:
            launches = tuple(
                (KernelSource.from_json(one["source"]), LaunchRecipe.from_json(one["recipe"]))
                for one in data["launches"]
            )
            return CudaProgram(str(data["operator"]), launches, tuple(map(str, data.get("notes", ()))))
        except (KeyError, TypeError) as error:
            raise RecipeError(f"program: {error} is missing or not what it should be") from None


_KINDS: dict[type[Any], str] = {TensorArg: "tensor", ScalarArg: "scalar", TensorMapArg: "tensor_map"}
_CHOICES: dict[str, tuple[str, ...]] = {
    "role": get_args(Role), "ctype": get_args(CType), "interleave": get_args(Interleave),
    "swizzle": get_args(Swizzle), "l2_promotion": get_args(L2Promotion), "oob_fill": get_args(OutOfBounds),
}  # fmt: skip
_NUMBERS = (
    *("shape", "global_dim", "global_strides_bytes", "box_dim", "element_strides"),
    *("grid", "block", "cluster", "capability"),
)


def _parameter_bytes(arg: Argument) -> int:
    if isinstance(arg, ScalarArg):
        return arg.bytes
    return _TENSOR_MAP_BYTES if isinstance(arg, TensorMapArg) else _POINTER_BYTES


def _plain(value: Any) -> dict[str, Any]:
    found = {f.name: getattr(value, f.name) for f in fields(value)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}


def _listed(data: dict[str, Any], name: str) -> list[Any]:
    found = data.pop(name, [])
    if not isinstance(found, list | tuple):
        raise RecipeError(f"recipe.{name}: {found!r} should be a list")
    return list(found)


def _argument(data: Any, path: str) -> Argument:
    if not isinstance(data, Mapping):
        raise RecipeError(f"{path}: {data!r} should be a mapping")
    rest = dict(data)
    kind = rest.pop("kind", None)
    for cls, name in _KINDS.items():
        if kind == name:
            argument: Argument = _built(cls, rest, path)
            return argument
    raise RecipeError(f"{path}.kind: {kind!r} is not one of {', '.join(_KINDS.values())}")


def _built(cls: type[Any], data: Any, path: str, **made: Any) -> Any:
    """An instance from plain fields; ``made`` are those that need more than a check."""
    if not isinstance(data, Mapping):
        raise RecipeError(f"{path}: {data!r} should be a mapping")
    known = {f.name for f in fields(cls)}
    for name in data:
        if name not in known:
            raise RecipeError(f"{path}: unknown field {name!r}; it has {', '.join(sorted(known))}")
    values = {name: _checked(name, value, f"{path}.{name}") for name, value in data.items()}
    try:
        return cls(**values, **made)
    except TypeError as error:
        raise RecipeError(f"{path}: {str(error).partition(') ')[2] or error}") from None


def _checked(name: str, value: Any, path: str) -> Any:
    if name in _NUMBERS:
        if not isinstance(value, list | tuple) or not all(type(v) is int for v in value):
            raise RecipeError(f"{path}: {value!r} should be a list of whole numbers")
        return tuple(value)
    if name in _CHOICES and value not in _CHOICES[name]:
        raise RecipeError(f"{path}: {value!r} is not one of {', '.join(_CHOICES[name])}")
    if name == "dtype":
        try:
            return dtype(value).name
        except ValueError as error:
            raise RecipeError(f"{path}: {error}") from None
    if name in ("name", "tensor", "symbol", "file") and not isinstance(value, str):
        raise RecipeError(f"{path}: {value!r} should be a name")
    if name in ("rank", "shared_bytes") and type(value) is not int:
        raise RecipeError(f"{path}: {value!r} should be a whole number")
    if name == "value" and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise RecipeError(f"{path}: {value!r} should be a number")
    return value
