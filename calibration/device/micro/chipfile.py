"""A chip file of what was measured: estimates, the driver's counts and sizes, and what had to be assumed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from foretile.calibration.device.driver import DeviceError
from foretile.calibration.device.micro.benchmarks import BENCHMARKS
from foretile.calibration.device.micro.core_points import instruction_of
from foretile.calibration.device.micro.details import Details
from foretile.calibration.device.micro.estimates import estimates
from foretile.calibration.device.micro.memory_estimates import bandwidth_bytes_per_s
from foretile.calibration.device.micro.rowfile import RowFile
from foretile.calibration.device.micro.series import Estimate
from foretile.hwmodels.fields import fields
from foretile.kernels.whole_files import write_whole

_HEADER = """\
# {name}, described by measuring it (foretile calibrate --from-device). Made, not written:
# measure again instead of changing it. What the driver says is marked datasheet, what is assumed inferred.
"""
_FAMILIES = {8: "ampere", 9: "hopper", 10: "blackwell", 12: "blackwell-gb20x"}
_ADA = (8, 9)
# Rows of an instruction and columns at full rate: PTX ISA, mma.sync m16n8, wgmma m64nN, tcgen05 M = 128.
_TILE = {"mma_sync": (16, 8), "wgmma": (64, 64), "tcgen05": (128, 64)}
_DEPTH_BYTES = 32  # PTX ISA: k16 of 16-bit types and k32 of 8-bit ones in all three
_REGISTERS_PER_THREAD = 255  # CUDA C++ Programming Guide, technical specifications
_BASE_REGISTERS = 32.0  # as the catalogue assumes: nvcc resource usage of generated tile GEMMs
_TENSOR_MEMORY_BYTES = 262144  # PTX ISA: 512 columns x 128 lanes x 4 bytes
_WHOLE = ("matrix.n", "l2.partitions")  # counts among the estimates
_NOT_MEASURED = (
    "launch.block_cycles, overlap_exponent, matrix.accumulate_fraction_bits: not measured; left out"
)


@dataclass(frozen=True)
class Described:
    """A chip as a mapping (``data``), the estimates behind it, and those that no field takes."""

    data: dict[str, Any]
    estimates: tuple[Estimate, ...]
    conflicts: tuple[str, ...]


def default_id(details: Details) -> str:
    """An id for the device's file: its name in lower case, and ``measured``."""
    return re.sub(r"[^a-z0-9]+", "-", details.name.lower()).strip("-") + "-measured"


def describe_chip(held: RowFile, chip_id: str | None = None) -> Described:
    """The chip that the rows of a device describe.

    Raises:
        DeviceError: the rows do not suffice; the message names the benchmarks that are missing.
    """
    d = held.details
    found = estimates(d, held.rows)
    wanted = _known_fields()
    taken = {e.field: e for e in found if e.field in wanted or e.field.startswith("matrix.flop_per_cycle.")}
    where = f"{d.name}, driver {d.driver}, {held.date}"
    numbers: dict[str, dict[str, Any]] = {
        **_properties(d, f"device properties of {where}"),
        **{path: _leaf(e, where) for path, e in taken.items()},
    }
    numbers, conflicts = _consistent(d, held, found, numbers, where)
    _refuse_gaps(d, numbers)
    data = {
        "id": chip_id or default_id(d),
        "name": d.name,
        "vendor": "NVIDIA",
        "family": "ada" if d.capability == _ADA else _FAMILIES.get(d.capability[0], f"sm-{d.capability[0]}"),
        "style": "simt",
        "summary": f"Described by microbenchmarks on the device itself ({held.date}, {len(held.rows)} rows).",
        **_nested(numbers),
    }
    data["matrix"] = {"instruction": instruction_of(d), **data["matrix"]}
    data["features"] = _features(d)
    doubts = [f"{p}: measured, but {', '.join(e.number.flags)}" for p, e in taken.items() if e.number.flags]
    data["unknown"] = [*doubts, "registers.base_per_thread: assumed", _NOT_MEASURED]
    if conflicts:
        data["conflicts"] = conflicts
    return Described(data, tuple(found), tuple(conflicts))


def _known_fields() -> frozenset[str]:
    return frozenset(f.path for f in fields("simt"))


def _features(d: Details) -> dict[str, bool]:
    """By compute capability: cp.async since 8.0, bulk copies and warp specialisation since 9.0 (PTX ISA).

    Clusters that share what they read: 9.0 and 10.x; 12.x has clusters, but multicasts nothing to them.
    """
    new = d.capability[0] >= 9
    return {
        "async_copy": True,
        "bulk_copy": new,
        "warp_specialisation": new,
        "clusters": d.capability[0] in (9, 10),
    }


def _properties(d: Details, source: str) -> dict[str, dict[str, Any]]:
    """What the driver says and what the instruction set settles."""
    rows, columns = _TILE[instruction_of(d)]
    isa = f"PTX ISA, {instruction_of(d)}"
    said: dict[str, int | float] = {
        "cores": d.cores,
        "clock.max_hz": d.max_hz,
        "registers.bytes_per_core": 4 * d.registers_per_core,
        "scratchpad.capacity_bytes": d.shared_bytes_per_core,
        "scratchpad.max_block_bytes": d.shared_bytes_per_block,
        "scratchpad.reserved_block_bytes": float(d.shared_bytes_reserved),
        "l2.capacity_bytes": d.l2_bytes,
        "dram.capacity_bytes": d.memory_bytes,
        "residency.warp_size": d.warp_size,
        "residency.threads_per_core": d.threads_per_core,
        "residency.threads_per_block": d.threads_per_block,
        "residency.blocks_per_core": d.blocks_per_core,
    }
    found = {path: _number(value, source, "datasheet") for path, value in said.items()}
    settled: dict[str, int] = {
        "matrix.m": rows,
        "matrix.n": columns,
        "matrix.k_bytes": _DEPTH_BYTES,
        **({"tensor_memory.capacity_bytes": _TENSOR_MEMORY_BYTES} if instruction_of(d) == "tcgen05" else {}),
    }
    found |= {path: _number(value, isa, "datasheet") for path, value in settled.items()}
    guide = "CUDA C++ programming guide, technical specifications per compute capability"
    found["registers.max_per_thread"] = _number(_REGISTERS_PER_THREAD, guide, "datasheet")
    assumed = "assumed: nvcc resource usage of generated tile GEMMs, beyond accumulators and fragments"
    found["registers.base_per_thread"] = _number(_BASE_REGISTERS, assumed, "inferred")
    return found


def _number(value: float, source: str, confidence: str, note: str = "") -> dict[str, Any]:
    kept = value if isinstance(value, int) else float(f"{value:.6g}")
    return {"value": kept, "source": source, "confidence": confidence, **({"note": note} if note else {})}


def _leaf(e: Estimate, where: str) -> dict[str, Any]:
    """A measured number: 95 % interval and doubts in its note."""
    n = e.number
    note = f"95 % interval {n.low:.4g} to {n.high:.4g}"
    note += f"; {', '.join(n.flags)}" if n.flags else ""
    value = round(n.value) if e.field in _WHOLE else n.value
    return _number(value, f"measured on {where}, n = {n.n}: {e.how}", "measured", note)


def _consistent(
    d: Details, held: RowFile, found: Sequence[Estimate], given: Mapping[str, dict[str, Any]], where: str
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The numbers with what they contradict each other in settled, each time said."""
    numbers, conflicts = dict(given), []
    by_name = {e.field: e.number for e in found}
    full = bandwidth_bytes_per_s(d, held.rows)
    told = d.bandwidth_bytes_per_s
    if full > told:
        numbers["dram.bandwidth_bytes_per_s"] = _number(
            full, f"measured on {where}: the best rate", "measured"
        )
        said = f"the driver's figures give {told:.4g} B/s" if told else "the driver gives no memory clock"
        conflicts.append(f"dram.bandwidth_bytes_per_s: {said}; the best rate measured, {full:.4g}, is taken")
    else:
        source = f"device properties of {where}: bus width x 2 x memory clock / 8"
        numbers["dram.bandwidth_bytes_per_s"] = _number(full, source, "datasheet")
        numbers["dram.bus_bits"] = _number(d.bus_bits, f"device properties of {where}", "datasheet")
        numbers["dram.transfers_per_s"] = _number(
            2 * d.memory_hz, f"device properties of {where}", "datasheet"
        )
    chip, core = (by_name.get(f"l2.{n}bytes_per_cycle") for n in ("bandwidth_", "core_"))
    if chip and core and chip.value > d.cores * core.value:
        share = chip.value / d.cores
        source = f"measured on {where}: the L2's rate over {d.cores} cores"
        numbers["l2.core_bytes_per_cycle"] = _number(share, source, "derived")
        conflicts.append(
            f"l2.core_bytes_per_cycle: one core alone read {core.value:.4g}, all together "
            f"{share:.4g} each; the latter is taken"
        )
    light = by_name.get("light_clock.hz")
    if light is not None and light.flags:
        conflicts.append(
            f"clock.max_hz: the driver says {d.max_hz:.4g} Hz, "
            f"cores that do little ran at {light.value:.4g}; cycles are of the former"
        )
    return numbers, conflicts


def _refuse_gaps(d: Details, numbers: Mapping[str, Any]) -> None:
    needed = [f.path for f in fields("simt") if f.required and f.kind in ("number", "numbers")]
    if instruction_of(d) == "tcgen05":
        needed += ["tensor_memory.read_bytes_per_cycle"]
    missing = [p for p in needed if not any(n == p or n.startswith(f"{p}.") for n in numbers)]
    if not missing:
        return
    makers = {field: b.name for b in BENCHMARKS for field in b.fields}
    names = list(dict.fromkeys(makers[p] for p in missing if p in makers))
    raise DeviceError(
        f"the measurements do not give {', '.join(missing)}; still to be measured: "
        f"{', '.join(names) or 'nothing'}"
    )


def _nested(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted paths as sections, in the schema's order."""
    order = {f.path: i for i, f in enumerate(fields("simt"))}

    def place(path: str) -> tuple[int, str]:
        return order.get(path, order.get(path.rpartition(".")[0], len(order))), path

    made: dict[str, Any] = {}
    for path in sorted(numbers, key=place):
        *sections, name = path.split(".")
        node = made
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = numbers[path]
    return made


def write_chip(described: Described, path: Path) -> None:
    """Write the chip file; one that is there is replaced in one step."""
    text = _HEADER.format(name=described.data["name"]) + yaml.safe_dump(
        described.data, sort_keys=False, allow_unicode=True, width=118, default_flow_style=None
    )
    write_whole(path, text.encode())


def plausibility(path: Path) -> Sequence[str]:
    """What ``foretile chips check`` would say of the written file; empty if nothing.

    Raises:
        ChipError: it is no chip file.
    """
    from foretile.hwmodels.checks import check_chip
    from foretile.hwmodels.loader import load_chip

    return list(check_chip(load_chip(path)))
