"""What a kernel's machine code says of itself, read from its ELF file: parameters, registers, shared memory.

The layout of ELF is the System V ABI's; the attributes in the sections ``.nv.info`` are not documented by
NVIDIA. Their numbers (parameter 0x17, bytes of all parameters 0x19, register count 0x2f, required threads
0x10, most threads 0x05, blocks a cluster 0x3d) are those that ``cuobjdump --dump-elf`` prints by name, and
the tests hold them against kernels of known parameters.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_MACHINE_CUDA = 190
_PARAMETER, _REGISTERS, _REQUIRED_THREADS, _MOST_THREADS, _CLUSTER = 0x17, 0x2F, 0x10, 0x05, 0x3D
_PARAMETER_BYTES, _HALF = 0x19, 3
_RESERVED_SHARED_BYTES = 1024  # of a block, counted in the section from compute capability 9.0 on
_WITH_DATA = 4  # attribute format: a length and as many bytes; all others are four bytes in all


class CubinError(ValueError):
    """Bytes that are no machine code of CUDA, or lack the kernel asked for."""


@dataclass(frozen=True, slots=True)
class CubinKernel:
    """A kernel of a cubin: ``parameters`` are (offset, size) in order, ``None`` if they are not stated."""

    symbol: str
    capability: tuple[int, int]
    parameters: tuple[tuple[int, int], ...] | None
    registers: int | None
    static_shared_bytes: int
    required_block: tuple[int, int, int] | None
    most_threads: int | None
    cluster: tuple[int, int, int] | None


def read_cubin(cubin: bytes) -> dict[str, CubinKernel]:
    """All kernels of a cubin by symbol.

    Raises:
        CubinError: no ELF file for CUDA.
    """
    try:
        return _read(cubin)
    except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, CubinError):
            raise
        raise CubinError(f"a damaged cubin of {len(cubin)} bytes: {error}") from None


def _read(cubin: bytes) -> dict[str, CubinKernel]:
    if cubin[:4] != b"\x7fELF" or struct.unpack_from("<H", cubin, 18)[0] != _MACHINE_CUDA:
        raise CubinError(f"{len(cubin)} bytes that are no cubin (an ELF file for CUDA)")
    capability = _capability(cubin)
    sections = _sections(cubin)
    symbols = _symbols(cubin, sections)
    registers = {
        symbols[index]: count
        for number, data in _attributes(sections.get(".nv.info", b""))
        if number == _REGISTERS
        for index, count in [struct.unpack("<II", data)]
    }
    return {
        symbol: _kernel(symbol, capability, registers.get(symbol), sections)
        for symbol in (name.removeprefix(".text.") for name in sections if name.startswith(".text."))
        if f".nv.info.{symbol}" in sections
    }


def _kernel(
    symbol: str, capability: tuple[int, int], registers: int | None, sections: dict[str, bytes]
) -> CubinKernel:
    found: dict[int, tuple[int, int]] = {}
    extents: dict[int, tuple[int, int, int]] = {}
    stated = 0
    for number, data in _attributes(sections[f".nv.info.{symbol}"]):
        if number == _PARAMETER_BYTES:
            (stated,) = struct.unpack("<H", data)
        elif number == _PARAMETER:
            _, ordinal, offset, rest = struct.unpack("<IHHI", data)
            found[ordinal] = (offset, rest >> 18)
        elif number in (_REQUIRED_THREADS, _MOST_THREADS, _CLUSTER):
            x, y, z = struct.unpack_from("<III", data)
            extents[number] = (x, y, z)
    most = extents.get(_MOST_THREADS)
    shared = len(sections.get(f".nv.shared.{symbol}", b""))
    if capability >= (9, 0):
        shared = max(0, shared - _RESERVED_SHARED_BYTES)
    return CubinKernel(
        symbol=symbol,
        capability=capability,
        parameters=tuple(found[i] for i in sorted(found)) if found or not stated else None,
        registers=registers,
        static_shared_bytes=shared,
        required_block=extents.get(_REQUIRED_THREADS),
        most_threads=most[0] * most[1] * most[2] if most is not None else None,
        cluster=extents.get(_CLUSTER),
    )


def _capability(cubin: bytes) -> tuple[int, int]:
    """From the header's flags: their second byte, or in files before ABI version 8 the first."""
    flags = struct.unpack_from("<I", cubin, 48)[0]
    number = (flags >> 8 if cubin[8] >= 8 else flags) & 0xFF
    return number // 10, number % 10


def _sections(cubin: bytes) -> dict[str, bytes]:
    """The content of the sections by name; of one without content (shared memory) as many zeros."""
    (start,) = struct.unpack_from("<Q", cubin, 40)
    count, names = struct.unpack_from("<HH", cubin, 60)
    headers = [struct.unpack_from("<IIQQQQ", cubin, start + 64 * i) for i in range(count)]
    texts = headers[names][4]
    return {
        _text(cubin, texts + name): bytes(size) if kind == 8 else cubin[offset : offset + size]
        for name, kind, _, _, offset, size in headers
    }


def _symbols(cubin: bytes, sections: dict[str, bytes]) -> list[str]:
    table, names = sections.get(".symtab", b""), sections.get(".strtab", b"")
    return [_text(names, name) for name, *_ in struct.iter_unpack("<IBBHQQ", table)]


def _text(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each attribute."""
    place = 0
    while place < len(data):
        form, number, size = struct.unpack_from("<BBH", data, place)
        place += 4
        if form == _WITH_DATA:
            yield number, data[place : place + size]
            place += size
        elif form == _HALF:
            yield number, size.to_bytes(2, "little")
