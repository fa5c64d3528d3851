"""Stand-ins for packages that a kernel's file imports and that are not installed.

Files with kernels import other libraries beside them, to compare with or to take shapes from (triton, fla,
flash_attn, deep_gemm). The kernel does not need them: a top-level import of a package that is not there gives
a stand-in, which may be named, called and used as a decorator while the file is read. Whatever needs its
value later is told that the package is missing. Imports that a file guards itself, or makes in a function,
fail as they would.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn
from unittest import mock

from foretile.kernels.tilelang.messages import of_author

_GUARDS = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})
_INNER = frozenset({"<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>", "<lambda>"})
_OPERATORS = (
    "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul rmatmul "
    "and rand xor rxor lshift rlshift rshift rrshift neg pos abs invert lt le gt ge bool int float index "
    "len iter next contains enter exit instancecheck subclasscheck setitem delitem array await"
)


class StandIn:
    """A package that is not installed, or a name of it; ``place`` is where it was imported."""

    def __init__(self, name: str, place: str) -> None:
        self._name, self._place = self.__name__, _ = name, place

    def __repr__(self) -> str:
        return f"<{self._name}: {self._root()} is not installed>"

    def __getattr__(self, name: str) -> StandIn:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return StandIn(f"{self._name}.{name}", self._place)

    def __eq__(self, other: object) -> bool:
        if other is None or isinstance(other, int | float | str | tuple | list):
            self._missing()
        return self is other  # typing compares what it is given with its own types

    def __call__(self, *args: Any, **named: Any) -> StandIn:
        """Another stand-in, while a file is read."""
        if not _reading(sys._getframe(1)):
            self._missing()
        return StandIn(f"{self._name}(…)", self._place)

    def __getitem__(self, key: Any) -> StandIn:
        if not _reading(sys._getframe(1)):
            self._missing()
        return StandIn(f"{self._name}[…]", self._place)

    def __or__(self, other: Any) -> StandIn:
        return self  # in the annotation of a parameter

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()

    def __hash__(self) -> int:
        return id(self)

    def _root(self) -> str:
        return str(self._name).partition(".")[0]

    def _missing(self) -> NoReturn:
        root = self._root()
        raise ModuleNotFoundError(
            f"{root}, imported at {self._place}, is not installed, and {self._name} is needed here", name=root
        )


def _refusing(operator: str) -> Any:
    def refuse(self: StandIn, *args: Any) -> NoReturn:
        self._missing()

    refuse.__name__ = f"__{operator}__"
    return refuse


for _operator in _OPERATORS.split():
    if f"__{_operator}__" not in vars(StandIn):
        setattr(StandIn, f"__{_operator}__", _refusing(_operator))


@contextmanager
def stand_ins() -> Iterator[None]:
    """While it lasts, top-level imports of absent packages give stand-ins, in authors' files only."""
    real = builtins.__import__

    def importing(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        try:
            return real(name, globals, locals, fromlist or (), level)
        except ModuleNotFoundError as error:
            root = name.partition(".")[0]
            frame = sys._getframe(1)
            if level or (error.name or "").partition(".")[0] != root or not _may_stand_in(root, frame):
                raise
            place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            return StandIn(name if fromlist else root, place)

    with mock.patch.object(builtins, "__import__", importing):
        yield


def _may_stand_in(root: str, frame: FrameType) -> bool:
    """Whether an import of an absent package is an author's, of the whole file, and not guarded by it."""
    file = frame.f_code.co_filename
    if frame.f_code.co_name != "<module>" or not of_author(file) or root in sys.modules:
        return False
    return frame.f_lineno not in _guarded(file) and importlib.util.find_spec(root) is None


def _reading(frame: FrameType | None) -> bool:
    """Whether a call is one that reading a file makes, not one of a function that runs."""
    while frame is not None and frame.f_code.co_name in _INNER:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "<module>"


@lru_cache(maxsize=64)
def _guarded(file: str) -> frozenset[int]:
    """Lines of a file inside of a ``try`` that handles a failing import."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(Path(file).read_bytes())):
        if isinstance(node, ast.Try) and any(_handles(handler) for handler in node.handlers):
            for statement in node.body:
                lines.update(range(statement.lineno, (statement.end_lineno or statement.lineno) + 1))
    return frozenset(lines)


def _handles(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    return any(isinstance(n, ast.Name) and n.id in _GUARDS for n in ast.walk(handler.type))
