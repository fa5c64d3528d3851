"""The rules of the house that a reader of one module cannot see: who imports whom, how long, how named."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each room may import from itself and from those named here; the front door is the package itself.
MAY_IMPORT: dict[str, set[str]] = {
    "hwmodels": set(),
    "kernels": set(),
    "simulator": {"hwmodels", "kernels"},
    "calibration": {"hwmodels", "kernels", "simulator"},
    "api": {"hwmodels", "kernels", "simulator", "calibration"},
}
LINES = 450


def modules(room: str) -> list[Path]:
    return sorted(path for path in (ROOT / room).rglob("*.py") if "__pycache__" not in path.parts)


def imported_rooms(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and room of every import from foretile; what lies in the package root belongs to ``api``."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            module = node.module or ""
            names = [f"foretile.{alias.name}" for alias in node.names] if module == "foretile" else [module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "foretile":
                room = rest.partition(".")[0]
                yield node.lineno, room if room in MAY_IMPORT else "api"


ALL = [path for room in MAY_IMPORT for path in modules(room)]


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for line, other in imported_rooms(tree):
        assert other == room or other in MAY_IMPORT[room], f"{path}:{line}: {room} imports from {other}"


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_stay_short(path: Path) -> None:
    length = len(path.read_text(encoding="utf-8").splitlines())
    assert length < LINES, f"{path} has {length} lines; split it"


def test_nothing_is_importable_under_a_bare_name_of_ours() -> None:
    """``kernels`` and ``simulator`` are other people's package names; ours are ``foretile.…``."""
    for path in ALL:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.partition(".")[0] not in MAY_IMPORT, f"{path}:{node.lineno}"


def _vendor_words() -> set[str]:
    """Vendors, families and ids as the catalogue spells them."""
    from foretile.hwmodels import describe_chip, list_chips, list_incomplete

    words: set[str] = set()
    for chip in map(describe_chip, (*list_chips(), *list_incomplete())):
        words |= {
            chip.id,
            chip.vendor.lower(),
            chip.family.lower(),
            *(alias.lower() for alias in chip.aliases),
        }
    return {word for word in words if len(word) > 2}


@pytest.mark.parametrize("path", modules("simulator"), ids=lambda path: path.name)
def test_the_simulator_knows_no_chip_by_name(path: Path) -> None:
    words = _vendor_words()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            assert node.value.lower() not in words, f"{path}:{node.lineno}: {node.value!r} is a chip's name"


def _project() -> dict[str, dict[str, list[str]]]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    setuptools: dict[str, dict[str, list[str]]] = tomllib.loads(text)["tool"]["setuptools"]
    return setuptools


def test_every_folder_with_an_init_is_a_listed_package() -> None:
    marked = (path for room in MAY_IMPORT for path in (ROOT / room).rglob("__init__.py"))
    folders = {path.parent.relative_to(ROOT) for path in marked}
    names = set()
    for folder in folders:
        parts = folder.parts[1:] if folder.parts[0] == "api" else folder.parts
        names.add(".".join(("foretile", *parts)))
    assert set(_project()["packages"]) == names


def test_links_for_type_checkers_cover_the_package_root() -> None:
    links = {path.name for path in (ROOT / "tests/links/foretile").iterdir()} - {"__pycache__"}
    root = {path.name for path in (ROOT / "api").iterdir()} - {"__pycache__"}
    assert links == root | (set(MAY_IMPORT) - {"api"})
    broken = [path.name for path in (ROOT / "tests/links/foretile").iterdir() if not path.exists()]
    assert broken == []
