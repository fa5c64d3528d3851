"""Kernels written for TileLang itself, as the front door takes them: held as objects, or in files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from foretile.kernels.errors import TraceError
from foretile.kernels.ir import TileProgram

if TYPE_CHECKING:
    from foretile.hwmodels import Chip
    from foretile.kernels.tilelang import Device


def is_tilelang(op: object) -> bool:
    """Whether ``op`` is a kernel of TileLang's: a PrimFunc, a ``@tilelang.jit`` function, a compiled one."""
    from foretile.kernels.tilelang import is_held

    return is_held(op)


def of_factory(
    factory: Callable[..., Any], shape: Mapping[str, Any]
) -> TileProgram | tuple[TileProgram, ...]:
    """What a function returns for these arguments: a program, or a kernel of TileLang's.

    Arguments that a TileLang factory does not take bind symbolic dimensions.

    Raises:
        TraceError: an argument is wrong, or what it returns is neither.
    """
    from foretile.kernels.load import converted_arguments

    modules = {v.__name__ for v in factory.__globals__.values() if inspect.ismodule(v)}
    if any(name.partition(".")[0] == "tilelang" for name in modules):
        from foretile.kernels.tilelang import from_tilelang

        return from_tilelang(factory, **shape)
    name = f"{factory.__module__}:{factory.__name__}"
    made = factory(**converted_arguments(name, inspect.signature(factory), shape))
    if is_tilelang(made):
        from foretile.kernels.tilelang import from_tilelang

        return from_tilelang(made)
    several = made if isinstance(made, tuple) else (made,)
    if not several or not all(isinstance(p, TileProgram) for p in several):
        raise TraceError(f"{name} returns a {type(made).__name__}; a tile program is needed")
    found: TileProgram | tuple[TileProgram, ...] = made
    return found


def load(op: str, shape: Mapping[str, Any], chip: Chip | None) -> TileProgram | tuple[TileProgram, ...]:
    """The program of the kernel ``path/to/file.py:name``; a file for TileLang finds ``chip`` as its GPU.

    Raises:
        TraceError: the file, the name, or an argument is wrong.
    """
    from foretile.kernels.load import foreign, load_foreign, load_program, split_spec

    path, name = split_spec(op)
    if foreign(path):
        return load_foreign(path, name, shape, device_of(chip) if chip is not None else None)
    return load_program(op, **shape)


def device_of(chip: Chip) -> Device:
    """What a kernel's file finds when it asks for its GPU on ``chip``.

    A chip without CUDA answers with the compute capability whose instructions come nearest to its own.
    """
    from foretile.kernels.tilelang import Device

    pad = chip.scratchpad
    return Device(
        name=chip.name,
        capability=capability(chip),
        cores=int(chip.cores.value),
        memory_bytes=int(chip.dram.capacity_bytes.value),
        l2_bytes=int(chip.l2.capacity_bytes.value) if chip.l2 is not None else 0,
        shared_bytes_per_core=int(pad.capacity_bytes.value)
        if pad is not None
        else Device().shared_bytes_per_core,
        shared_bytes_per_block=int(pad.max_block_bytes.value)
        if pad is not None
        else Device().shared_bytes_per_block,
        clock_hz=int(chip.clock.max_hz.value),
    )


def capability(chip: Chip) -> tuple[int, int]:
    """The compute capability of the machine that ``chip`` describes, by what its copies and products can do.

    (CUDA C++ programming guide, compute capabilities.)
    """
    matrix, features = chip.matrix, chip.features
    if matrix.instruction == "tcgen05":
        return (10, 0)
    if matrix.instruction == "wgmma":
        return (9, 0)
    if features.bulk_copy and matrix.instruction == "mma_sync":
        return (12, 0)
    if not features.async_copy:
        return (7, 5) if "int8" in matrix.flop_per_cycle else (7, 0)
    return (8, 9) if "fp8" in matrix.flop_per_cycle else (8, 0)
