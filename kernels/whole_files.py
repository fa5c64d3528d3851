"""Files that are whole or absent: written beside their place, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def place_for(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its place when the block ends without an error.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file's content; text as UTF-8. Another process sees the old content or the new.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    with place_for(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
