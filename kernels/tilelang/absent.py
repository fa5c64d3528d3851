"""Stand-ins for packages that a kernel's file imports and that are not installed, or lack what it imports.

Files with kernels import other libraries beside them, to compare with or to take shapes from (triton, fla,
flash_attn, deep_gemm), and helpers that the installed version of one no longer has. The kernel does not need
them: a top-level import of what is not there gives a stand-in, which may be named, called and used as a
decorator while the file is read. Whatever needs its value later is told what is missing. Imports that a file
guards itself, or makes in a function, fail as they would.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType, SimpleNamespace
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
    """Something that is not there, or a name of it: ``lacking`` ("triton", "tilelang.utils.sparse") was
    imported at ``place``."""

    def __init__(self, name: str, place: str, lacking: str = "") -> None:
        self._name, self._place = self.__name__, _ = name, place
        self._lacking = lacking or name.partition(".")[0]

    def __repr__(self) -> str:
        return f"<{self._name}: {self._lacking} is {_where_not(self._lacking)}>"

    def __getattr__(self, name: str) -> StandIn:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return StandIn(f"{self._name}.{name}", self._place, self._lacking)

    def __eq__(self, other: object) -> bool:
        if other is None or isinstance(other, int | float | str | tuple | list):
            self._missing()
        return self is other  # typing compares what it is given with its own types

    def __call__(self, *args: Any, **named: Any) -> StandIn:
        """Another stand-in, while a file is read."""
        if not _reading(sys._getframe(1)):
            self._missing()
        return StandIn(f"{self._name}(…)", self._place, self._lacking)

    def __getitem__(self, key: Any) -> StandIn:
        if not _reading(sys._getframe(1)):
            self._missing()
        return StandIn(f"{self._name}[…]", self._place, self._lacking)

    def __or__(self, other: Any) -> StandIn:
        return self  # in the annotation of a parameter

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()

    def __hash__(self) -> int:
        return id(self)

    def _missing(self) -> NoReturn:
        raise ModuleNotFoundError(
            f"{self._lacking}, imported at {self._place}, is {_where_not(self._lacking)}, "
            f"and {self._name} is needed here",
            name=self._lacking,
        )


def _where_not(lacking: str) -> str:
    """Where something was looked for and not found."""
    root, _, inside = lacking.partition(".")
    if not inside:
        return "not installed"
    try:
        return f"not in the installed {root} {version(root)}"
    except PackageNotFoundError:
        return f"not in the installed {root}"


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
        frame = sys._getframe(1)
        place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        try:
            module = real(name, globals, locals, fromlist or (), level)
        except ModuleNotFoundError as error:
            lacking = error.name or ""
            known = not level and f"{name}.".startswith(f"{lacking}.") and _may_stand_in(lacking, frame)
            # What "import a.b" gives is a, which is there.
            if not known or ("." in lacking and not fromlist):
                raise
            return StandIn(name if fromlist else lacking, place, lacking)
        names = [n for n in fromlist or () if n != "*"]
        if level or not names or not _of_whole_file(frame) or all(hasattr(module, n) for n in names):
            return module
        made = {n: StandIn(f"{name}.{n}", place, f"{name}.{n}") for n in names}
        return SimpleNamespace(**{n: getattr(module, n, made[n]) for n in names})

    with mock.patch.object(builtins, "__import__", importing):
        yield


def _may_stand_in(lacking: str, frame: FrameType) -> bool:
    """Whether an import of what is not there is an author's, of the whole file, and not guarded by it."""
    return _of_whole_file(frame) and lacking not in sys.modules and importlib.util.find_spec(lacking) is None


def _of_whole_file(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return frame.f_code.co_name == "<module>" and of_author(file) and frame.f_lineno not in _guarded(file)


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
