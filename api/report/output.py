"""Files that are either whole or absent: checked before the work, replaced in one step after it."""

from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path


class OutputError(ValueError):
    """A place that cannot be written to; the message names it and says why."""


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def require_folder(folder: Path) -> Path:
    """Make ``folder`` if need be and prove that a file can be created in it.

    Raises:
        OutputError: it cannot be made, is not a folder, or refuses new files.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError):
        raise OutputError(f"{folder} is a file, or lies below one; give a folder") from None
    except OSError as error:
        raise OutputError(f"cannot write to the folder {folder}: {_why(error)}") from None
    return folder


def require_file(path: Path) -> Path:
    """Prove that ``path`` can be written, before long work: its folder must exist.

    Raises:
        OutputError: the folder is missing or refuses new files, or ``path`` is a folder.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give a file name")
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist")
    require_folder(path.parent)
    return path


def write_all(files: Mapping[Path, str | bytes]) -> None:
    """Write every file beside its place first, then move all into place.

    A failure while writing leaves no new file and no changed one.

    Raises:
        OutputError: a file could not be written.
    """
    staged: list[tuple[Path, Path]] = []
    try:
        for path, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            if path.suffix == ".gz":
                data = gzip.compress(data, mtime=0)  # no time stamp: same input, same file
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            staged.append((Path(name), path))
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            Path(name).chmod(0o666 & ~_umask())
        for temporary, path in staged:
            temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {error.filename or ''}: {_why(error)}") from None
    finally:
        _remove(temporary for temporary, _ in staged)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
