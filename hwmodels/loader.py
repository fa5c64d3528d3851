"""From a name or a file to a validated `Chip`: catalogue, user folders, ``extends``, errors."""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from foretile.hwmodels.problems import (
    LEAF_KEYS,
    ChipError,
    Location,
    Problem,
    is_leaf,
    number_problems,
    schema_problems,
    show,
)
from foretile.hwmodels.schema import Chip
from foretile.hwmodels.yamlfile import parse_yaml, read_mapping

__all__ = ["ENV_VARIABLE", "ChipError", "chip_files", "list_chips", "load_chip"]

ENV_VARIABLE = "FORETILE_CHIPS"
CATALOGUE = (Path(__file__).parent / "chips").resolve()
# Files that override a catalogue chip of the same id with numbers fitted to measurements.
CALIBRATED = (Path(__file__).parent / "calibrated").resolve()
_SUFFIXES = (".yaml", ".yml")
_Stamp = tuple[int, int]  # time of change and size: two quick writes can share a time
# What describes one product, not its family: a variant says these itself.
_NOT_INHERITED = frozenset(
    {"id", "aliases", "stated_peak_flop_per_s", "unknown", "conflicts", "summary", "calibration"}
)
_ABSENT: Any = object()
_HEAD = re.compile(r"^(id|aliases):.*\n(?:[ \t-].*\n)*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the index knows of a file without validating it."""

    path: Path
    id: str
    aliases: tuple[str, ...]


@functools.lru_cache(maxsize=512)
def _entry(path: Path, stamp: _Stamp) -> _Entry:
    """Read id and aliases from the text: an index must not fail on, or wait for, a broken file."""
    head: dict[str, Any] = {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace") + "\n"
        for match in _HEAD.finditer(text):
            part = parse_yaml(match.group(), path.name)
            head.update({key: value for key, value in part.items() if key not in head})
    except (ChipError, OSError):
        pass  # load_chip on this file says what is wrong
    name = head.get("id")
    aliases = head.get("aliases")
    return _Entry(
        path,
        _normalise(name) if isinstance(name, str) and name else path.stem,
        tuple(_normalise(a) for a in aliases if isinstance(a, str)) if isinstance(aliases, list) else (),
    )


def _normalise(ref: str) -> str:
    return re.sub(r"[\s_]+", "-", ref.strip().lower())


def _is_path(ref: str) -> bool:
    return ref.endswith(_SUFFIXES) or "/" in ref or os.sep in ref


def _stamp(path: Path) -> _Stamp:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size


def _yaml_files(root: Path) -> list[Path]:
    """Files of a folder and of its direct subfolders (one a vendor), in a fixed order."""
    found = {p for suffix in _SUFFIXES for pattern in ("*", "*/*") for p in root.glob(pattern + suffix)}
    return sorted(p for p in found if p.is_file())


def _scan(root: Path) -> tuple[_Entry, ...]:
    return tuple(_entry(p, _stamp(p)) for p in _yaml_files(root) if not p.name.startswith("_"))


@functools.cache
def _builtin() -> tuple[_Entry, ...]:
    return _scan(CATALOGUE)


def _user_roots(search: Sequence[Path]) -> tuple[Path, ...]:
    roots = [Path(p) for p in search]
    for root in roots:
        if not root.is_dir():
            raise ChipError(f"{root}: no such folder of chip files")
    for part in os.environ.get(ENV_VARIABLE, "").split(os.pathsep):
        if part:
            roots.append(Path(part).expanduser())
            if not roots[-1].is_dir():
                raise ChipError(f"{ENV_VARIABLE}: {part}: no such folder of chip files")
    return tuple(root.resolve() for root in roots)


def _index(roots: tuple[Path, ...]) -> list[tuple[_Entry, ...]]:
    """Entries by folder, the folder that wins first."""
    return [*(_scan(root) for root in roots), _builtin()]


def _find(name: str, roots: tuple[Path, ...], exclude: Sequence[Path] = ()) -> Path | None:
    """The file of an id or alias; ids go before aliases, users' folders before the catalogue."""
    wanted = _normalise(name)
    index = _index(roots)
    by_id = [[e for e in entries if e.id == wanted] for entries in index]
    by_alias = [[e for e in entries if wanted in e.aliases] for entries in index]
    for kind, groups in (("id", by_id), ("alias", by_alias)):
        for group in groups:
            paths = [e.path for e in group if e.path.resolve() not in exclude]
            if len(paths) > 1:
                raise ChipError(f"{kind} '{wanted}' is in {' and '.join(str(p) for p in paths)}; rename one")
            if paths and kind == "alias":
                entry = next(e for e in group if e.path == paths[0])
                return _find(entry.id, roots, exclude)
            if paths:
                return paths[0]
    return None


def _unknown_chip(name: str, roots: tuple[Path, ...]) -> str:
    names = sorted({n for entries in _index(roots) for e in entries for n in (e.id, *e.aliases)})
    near = difflib.get_close_matches(_normalise(name), names, n=3, cutoff=0.5)
    if near:
        return f"unknown chip '{name}'; did you mean {' or '.join(near)}?"
    return f"unknown chip '{name}'; the catalogue has {', '.join(sorted(_ids(roots)))}"


def _ids(roots: tuple[Path, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for entries in _index(roots):
        for entry in entries:
            found.setdefault(entry.id, entry.path)
    return found


def chip_files(search: Sequence[Path] = ()) -> dict[str, Path]:
    """Every chip's id and file, of the catalogue, ``FORETILE_CHIPS`` and ``search``; nothing is validated.

    Raises:
        ChipError: a folder of ``search`` or ``FORETILE_CHIPS`` does not exist.
    """
    return dict(sorted(_ids(_user_roots(search)).items()))


def list_chips(search: Sequence[Path] = ()) -> list[str]:
    """Ids of all chips `load_chip` finds, sorted; a broken file is listed too (by id or file name)."""
    return list(chip_files(search))


@functools.lru_cache(maxsize=256)
def _document(path: Path, stamp: _Stamp) -> dict[str, Any]:
    return read_mapping(path)


def _parent(path: Path, ref: object, chain: Sequence[Path], roots: tuple[Path, ...]) -> Path:
    """The file that ``extends`` names; a file's own id means the one it overrides."""
    if not isinstance(ref, str) or not ref:
        raise ChipError(f"{path.name}: extends: {show(ref)} is not valid: must be a chip's id or a file name")
    cycle = " -> ".join([*(p.name for p in chain), ref])
    if _is_path(ref):
        parent = (path.parent / ref).resolve()
        if not parent.is_file():
            raise ChipError(f"{path.name}: extends: {ref}: no such file beside {path.name}")
        if parent in chain:
            raise ChipError(f"{path.name}: extends: {cycle}: a file cannot extend itself")
        return parent
    if ref.startswith("_"):
        for root in (path.parent, *roots, CATALOGUE):
            for candidate in _yaml_files(root):
                if candidate.stem == ref and candidate.resolve() not in chain:
                    return candidate.resolve()
    elif found := _find(ref, roots, exclude=chain):
        return found.resolve()
    elif _find(ref, roots):
        raise ChipError(f"{path.name}: extends: {cycle}: a file cannot extend itself")
    raise ChipError(f"{path.name}: extends: {_unknown_chip(ref, roots)}")


def _chain(path: Path, roots: tuple[Path, ...]) -> tuple[tuple[Path, _Stamp], ...]:
    """A file and its ancestors, nearest first, each with its stamp."""
    chain: list[Path] = [path]
    while (ref := _document(chain[-1], _stamp(chain[-1])).get("extends")) is not None:
        chain.append(_parent(chain[-1], ref, chain, roots))
    return tuple((p, _stamp(p)) for p in chain)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key, numbers with their source are replaced whole, null removes."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and not is_leaf(value):
            inherited = below if isinstance(below, Mapping) and not is_leaf(below) else {}
            merged[key] = _merge(inherited, value)
        else:
            merged[key] = value
    return merged


def _documents(chain: tuple[tuple[Path, _Stamp], ...]) -> list[dict[str, Any]]:
    """A file and its ancestors, nearest first, the ancestors without what belongs to one product."""
    documents = [_document(path, stamp) for path, stamp in chain]
    for depth, document in enumerate(documents[1:], start=1):
        if document.get("id") != documents[0].get("id"):  # else it is the chip itself that is overridden
            documents[depth] = {k: v for k, v in document.items() if k not in _NOT_INHERITED}
    return documents


def merge_documents(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a file and its ancestors (nearest first) say together."""
    data: dict[str, Any] = {}
    for document in reversed(documents):
        data = _merge(data, document)
    data.pop("extends", None)
    return data


def file_chain(path: Path, search: Sequence[Path] = ()) -> tuple[list[str], list[dict[str, Any]]]:
    """Names and contents of a chip file and of what it extends, nearest first; nothing is validated.

    Raises:
        ChipError: no such file, broken YAML, or a parent that cannot be found.
    """
    chain = _chain(path.expanduser().resolve(), _user_roots(search))
    return [file.name for file, _ in chain], _documents(chain)


def parent_chain(ref: str, folder: Path, search: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """Contents of what ``extends: ref`` in a file of ``folder`` means, nearest first.

    Raises:
        ChipError: there is no such chip, base or file.
    """
    roots = _user_roots(search)
    parent = _parent(folder.resolve() / "new.yaml", ref, (), roots)
    return [
        {k: v for k, v in d.items() if k not in _NOT_INHERITED} for d in _documents(_chain(parent, roots))
    ]


@functools.lru_cache(maxsize=256)
def _validated(chain: tuple[tuple[Path, _Stamp], ...]) -> Chip:
    documents = _documents(chain)
    merged = merge_documents(documents)
    problems = list(number_problems(merged))
    chip: Chip | None = None
    try:
        chip = Chip.model_validate(merged)
    except ValidationError as error:
        told = {location for location, _ in problems}
        problems += [p for p in schema_problems(error) if p[0] not in told]
    if problems or chip is None:
        names = [path.name for path, _ in chain]
        raise ChipError("\n".join(_line(problem, names, documents) for problem in problems))
    return chip


def _line(problem: Problem, names: Sequence[str], documents: Sequence[Mapping[str, Any]]) -> str:
    location, text = problem
    name = names[_owner(location, documents)]
    return f"{name}: {'.'.join(location)}: {text}" if location else f"{name}: {text}"


def _owner(location: Location, documents: Sequence[Mapping[str, Any]]) -> int:
    """Which file of the chain to blame: the nearest that has the field, else the chip's own.

    A number is replaced whole, so the nearest file that has it answers for all of its parts.
    """
    field = location[:-1] if location and location[-1] in LEAF_KEYS else location
    for index, document in enumerate(documents):
        node: Any = document
        for step in field:
            node = node.get(step, _ABSENT) if isinstance(node, Mapping) else _ABSENT
        if node is not _ABSENT:
            return index
    return 0


@functools.cache
def _load_builtin(name: str, calibrated: bool) -> Chip | None:
    path = _find(name, _fitted(calibrated))
    return None if path is None else _validated(_chain(path.resolve(), ()))


def _fitted(calibrated: bool) -> tuple[Path, ...]:
    return (CALIBRATED,) if calibrated and CALIBRATED.is_dir() else ()


def load_chip(ref: str | Path | Chip, *, search: Sequence[Path] = (), calibrated: bool = True) -> Chip:
    """The chip of a catalogue id, an alias or a YAML file; a `Chip` passes through.

    A string that ends in ``.yaml``/``.yml`` or has a path separator is a file. Folders of ``search``
    and of the environment variable ``FORETILE_CHIPS`` go before the built-in catalogue. A catalogue
    chip that has been calibrated comes with its fitted numbers, unless ``calibrated`` is False; what a
    file ``extends`` is always the chip as its own file states it.

    Raises:
        ChipError: no such chip, file or parent, a cycle of ``extends``, broken YAML, or a file that
            does not fit the schema; the message has a line for each problem, with the remedy.
    """
    if isinstance(ref, Chip):
        return ref
    roots = _user_roots(search)
    if isinstance(ref, Path) or _is_path(ref):
        path = Path(ref).expanduser()
        if path.is_dir():
            raise ChipError(f"{path}: a folder is not a chip file; name a .yaml file in it")
        return _validated(_chain(path.resolve(), roots))
    if not roots:
        chip = _load_builtin(_normalise(ref), calibrated)
        if chip is not None:
            return chip
    elif found := _find(ref, (*roots, *_fitted(calibrated))):
        return _validated(_chain(found.resolve(), roots))
    raise ChipError(_unknown_chip(ref, roots))
