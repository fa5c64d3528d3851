"""Kernels in files, loaded by a process of its own: no import of TileLang, torch or the file here.

Answers are kept, by what was asked and by the contents of the files that were loaded for it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foretile.kernels.errors import TraceError
from foretile.kernels.ir import Loc, TileProgram
from foretile.kernels.serialize import VERSION, from_json
from foretile.kernels.tilelang.device import Device
from foretile.kernels.tilelang.versions import require

Programs = TileProgram | tuple[TileProgram, ...]
_TIMEOUT_S = 600


def uses_tilelang(path: Path) -> bool:
    """Whether a Python file imports TileLang (read, not executed)."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError):
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        else:
            continue
        if any(name.split(".")[0] == "tilelang" for name in names):
            return True
    return False


def load_file(path: Path, name: str, arguments: Mapping[str, Any], device: Device | None = None) -> Programs:
    """The tile program of the kernel ``name`` in a file written for TileLang.

    Raises:
        TraceError: TileLang is missing, the file or the kernel fails; the message has file and line.
    """
    answer = _ask(path, name, "program", arguments, device)
    programs = tuple(from_json(p) for p in answer["programs"])
    return programs[0] if len(programs) == 1 else programs


def parameters(path: Path, name: str, device: Device | None = None) -> dict[str, Any]:
    """Parameters of a kernel's function with the text of their defaults (``None``: required).

    Raises:
        TraceError: as :func:`load_file`.
    """
    found: dict[str, Any] = _ask(path, name, "parameters", {}, device)["parameters"]
    return found


def _ask(
    path: Path, name: str, what: str, arguments: Mapping[str, Any], device: Device | None
) -> dict[str, Any]:
    version = require(f"{path}")
    request = {
        "path": str(path),
        "name": name,
        "what": what,
        "arguments": {k: _plain(k, v) for k, v in arguments.items()},
        "device": (device or Device()).to_json(),
    }
    kept = _cache_file({**request, "path": str(path.resolve()), "tilelang": version, "ir": VERSION})
    answer = _kept(kept)
    if answer is None:
        answer = _run(request)
        if "error" in answer:
            raise _error(answer, path)
        _keep(kept, answer)
    return answer


def _plain(name: str, value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TraceError(f"{name}={value!r}: arguments of a kernel in a file are numbers, truth values and texts")


def _run(request: Mapping[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="foretile-") as folder:
        target = Path(folder) / "answer.json"
        text = json.dumps({**request, "answer": str(target)})
        command = [sys.executable, "-m", "foretile.kernels.tilelang.worker"]
        try:
            done = subprocess.run(
                command, input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, env=_environment()
            )
        except subprocess.TimeoutExpired:
            raise TraceError(f"{request['path']}: loading took longer than {_TIMEOUT_S} s") from None
        if not target.is_file():
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise TraceError(f"{request['path']}: the process that loads it ended early: {last[0]}")
        answer: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        return answer


def _environment() -> dict[str, str]:
    """The same import path; no thread pools, which a short process only pays for."""
    paths = os.pathsep.join(p for p in sys.path if p)
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TILELANG_ENABLE_IR_SPAN": "1"}


def _error(answer: Mapping[str, Any], path: Path) -> TraceError:
    if answer.get("file"):
        return TraceError(answer["error"], Loc(answer["file"], int(answer["line"])))
    reason = str(answer["error"])
    return TraceError(reason if str(path) in reason else f"{path}: {reason}")


def cache_folder() -> Path:
    """Where answers are kept: ``$FORETILE_CACHE``, or ``foretile`` in the user's cache folder."""
    own = os.environ.get("FORETILE_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "foretile"


def _cache_file(question: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "tilelang" / f"{digest[:32]}.json"


def _kept(file: Path) -> dict[str, Any] | None:
    """The answer, if the files it came from are as they were."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if all(_digest(Path(name)) == digest for name, digest in found["files"].items()):
            return found
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    return None


def _keep(file: Path, answer: dict[str, Any]) -> None:
    digests = {name: _digest(Path(name)) for name in answer["files"]}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=file.parent, suffix=".part", delete=False, encoding="utf-8"
        ) as part:
            json.dump({**answer, "files": digests}, part)
        Path(part.name).replace(file)
    except OSError:
        pass  # a cache that cannot be written costs time, nothing else


def _digest(file: Path) -> str:
    importer = Path(__file__).parent
    own = _OWN.setdefault("", _sources(importer))
    return hashlib.sha256(file.read_bytes() + own).hexdigest()


_OWN: dict[str, bytes] = {}


def _sources(folder: Path) -> bytes:
    """The importer's own sources: another importer may answer otherwise."""
    digest = hashlib.sha256()
    for source in sorted((*folder.glob("*.py"), *folder.parent.glob("*.py"))):
        digest.update(source.read_bytes())
    return digest.digest()
