"""A measurement bundle: one file with everything that is needed to measure kernels where a device is.

The file is a zip archive that Python runs (``python FILE``): this library's modules that measure
(:data:`BUNDLED`), machine code by its SHA-256, ``manifest.json`` with cases and rows, and ``SHA256SUMS`` of
all of them. Nothing is loaded on a device before its checksum was compared.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foretile.calibration.device.rows import Case, Row
from foretile.kernels.cuda.recipe import RecipeError

FORMAT = 1
BUNDLED = (
    "kernels/dtypes.py",
    "kernels/whole_files.py",
    "kernels/cuda/recipe.py",
    *(
        f"calibration/device/{name}.py"
        for name in (
            *("__init__", "archive", "binding", "clocks", "compare", "cubin", "cupy_driver", "driver"),
            *("fake", "formats", "generate", "libcuda", "main", "references", "rows", "runner"),
            *("session", "supervise", "tables", "timing"),
        )
    ),
)
"""Modules of ours that a bundle carries, by their place in the package. They need Python and NumPy alone."""

MANIFEST, SUMS = "manifest.json", "SHA256SUMS"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # so that equal content gives equal files
_SHEBANG = b"#!/usr/bin/env python3\n"
_MAIN = """import sys

from foretile.calibration.device.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], bundle=sys.argv[0]))
"""
_RUNNER = """# The bundle beside this script does the same by itself: python BUNDLE --help
import sys

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python bundle_run.py BUNDLE [options]; BUNDLE --help lists them")
    sys.path.insert(0, sys.argv[1])
    from foretile.calibration.device.main import main

    sys.exit(main(sys.argv[2:], bundle=sys.argv[1]))
"""


class BundleError(ValueError):
    """A file that is no bundle, a damaged one, or one of another format; the message says which."""


def cubin_name(digest: str) -> str:
    """Where machine code is in the archive."""
    return f"cubins/{digest}.cubin"


class Bundle:
    """An open bundle. ``cases`` by name, ``rows`` in the order in which they are measured."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self._archive = path, archive
        self._sums = self._read_sums()
        self.id = hashlib.sha256(archive.read(SUMS)).hexdigest()
        self.manifest: Mapping[str, Any] = self._manifest()
        try:
            self.cases = {c.name: c for c in map(Case.from_json, self.manifest["cases"])}
            self.rows = tuple(map(Row.from_json, self.manifest["rows"]))
            self.arch = str(self.manifest["arch"])
        except (KeyError, RecipeError) as error:
            raise BundleError(f"{path}: manifest: {error}") from None

    def _read_sums(self) -> dict[str, str]:
        try:
            text = self._archive.read(SUMS).decode()
            return {name: digest for digest, _, name in (line.partition("  ") for line in text.splitlines())}
        except (KeyError, UnicodeDecodeError):
            raise BundleError(f"{self.path}: no measurement bundle (it has no {SUMS})") from None

    def _manifest(self) -> Mapping[str, Any]:
        manifest: Mapping[str, Any] = json.loads(self.read(MANIFEST))
        if manifest.get("format") != FORMAT:
            found = manifest.get("format")
            raise BundleError(f"{self.path}: a bundle of format {found}; this release reads format {FORMAT}")
        return manifest

    def read(self, name: str) -> bytes:
        """A file of the bundle, after its checksum was compared.

        Raises:
            BundleError: it is not there, or not what it was.
        """
        if name not in self._sums:
            raise BundleError(f"{self.path}: {name} is not one of its files")
        try:
            data = self._archive.read(name)
        except (KeyError, zipfile.BadZipFile, OSError, ValueError) as error:
            raise BundleError(f"{self.path}: {name} cannot be read: {error}; get the file again") from None
        found = hashlib.sha256(data).hexdigest()
        if found != self._sums[name]:
            raise BundleError(
                f"{self.path}: {name} has SHA-256 {found[:16]}…, not {self._sums[name][:16]}…: the file was "
                "changed or damaged; get it again"
            )
        return data

    def code(self, digest: str) -> bytes:
        """Machine code by its SHA-256."""
        return self.read(cubin_name(digest))

    def verify(self) -> None:
        """Compare every checksum.

        Raises:
            BundleError: a file that is missing, changed, or not listed.
        """
        for name in self._sums:
            self.read(name)
        unlisted = sorted(set(self._archive.namelist()) - set(self._sums) - {SUMS})
        if unlisted:
            raise BundleError(f"{self.path}: {unlisted[0]} has no checksum")

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_bundle(path: str | Path) -> Bundle:
    """The bundle in a file.

    Raises:
        FileNotFoundError: there is no such file.
        BundleError: it is no bundle, or damaged.
    """
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"{place}: no such file; expected a measurement bundle")
    try:
        return Bundle(place, zipfile.ZipFile(place))
    except zipfile.BadZipFile as error:
        raise BundleError(f"{place}: no measurement bundle ({error})") from None


def archive_bytes(
    manifest: Mapping[str, Any], codes: Mapping[str, bytes], rooms: Mapping[str, Path], version: str
) -> bytes:
    """The content of a bundle. ``rooms`` are the folders of this library's packages by name.

    The same arguments give the same bytes.
    """
    files = dict(_files(manifest, codes, rooms, version))
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    out = io.BytesIO()
    out.write(_SHEBANG)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in sorted({**files, SUMS: sums.encode()}.items()):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, data, compresslevel=9)
    return out.getvalue()


def _files(
    manifest: Mapping[str, Any], codes: Mapping[str, bytes], rooms: Mapping[str, Path], version: str
) -> Iterator[tuple[str, bytes]]:
    yield MANIFEST, json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False).encode()
    yield "__main__.py", _MAIN.encode()
    yield "bundle_run.py", _RUNNER.encode()
    for name in BUNDLED:
        room, _, inside = name.partition("/")
        yield f"foretile/{name}", (rooms[room] / inside).read_bytes()
    # The packages' own __init__ would import what is not here.
    yield (
        "foretile/__init__.py",
        f'"""Foretile, as far as measuring needs it."""\n\n__version__ = "{version}"\n'.encode(),
    )
    for folder in ("kernels", "kernels/cuda", "calibration"):
        yield f"foretile/{folder}/__init__.py", b'"""See foretile."""\n'
    for digest, data in codes.items():
        yield cubin_name(digest), data
