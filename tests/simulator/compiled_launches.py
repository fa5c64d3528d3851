"""What TileLang 0.1.15 and nvcc 13.0 made of launches of the library, beside what is assumed of them.

``compiled_launches.jsonl`` holds one launch a line. ``seen`` were looked at when the rules of
``simulator/lowering/tilelang_rules.py`` were written, the others were held out: other shapes, and of the
configurations predicted within 2.5 times the best any.

``python tests/simulator/compiled_launches.py`` prints the tables of docs/tilelang.md;
``… --compile`` compiles all launches again (TileLang and nvcc; some 10 s each) and writes the file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from foretile.compiled import Difference, compare_compiled
from foretile.hwmodels import load_chip
from foretile.kernels.ir import TILELANG, TileProgram
from foretile.kernels.operator import load_operator
from foretile.simulator.lowering import lower
from foretile.simulator.machine import Machine
from foretile.simulator.predictor import machine_of
from foretile.simulator.workload import Branch, Loop, Node, Workload

FILE = Path(__file__).with_suffix(".jsonl")
CHIPS = {"sm_80": "a100-sxm4-80gb", "sm_90a": "h200-sxm", "sm_100a": "b200-sxm"}
CLOSE = 1.25  # registers that differ by less are counted as agreeing
_FACTS = {
    "threads": "threads of a block",
    "producers": "threads that only copy",
    "stages": "stages",
    "bulk_loads": "bulk tensor copies that load",
    "shared_bytes": "shared memory of a block (bytes)",
    "registers": "registers of a thread",
    "blocks": "blocks on a core",
    "matrix": "matrix instruction",
}


@dataclass(frozen=True)
class Facts:
    """A launch: threads of a block and those that only copy, depth of its pipeline, copies that load in bulk,
    bytes of shared memory, registers of a thread, blocks that a core holds, instructions of its products."""

    threads: int
    producers: int
    stages: int
    bulk_loads: int
    shared_bytes: int
    registers: int
    blocks: int
    matrix: str


@dataclass(frozen=True)
class Launch:
    """One launch of an operator's configuration (``number``: which of them), and what it was compiled to."""

    arch: str
    operator: str
    shape: dict[str, str]
    config: dict[str, Any]
    number: int
    kernel: str
    seen: bool
    compiled: Facts
    spilled_bytes: int

    def program(self) -> TileProgram:
        """The tile program."""
        operator = load_operator(self.operator)
        found = operator.program(operator.shape(**self.shape), self.config)
        return found if isinstance(found, TileProgram) else found[self.number]

    def assumed(self, toolchain: str = TILELANG) -> Facts:
        """What is assumed of the program as ``toolchain`` makes it."""
        machine = machine_of(load_chip(CHIPS[self.arch]))
        return facts(lower(replace(self.program(), toolchain=toolchain), machine), machine)

    def assumed_spilled_bytes(self) -> int:
        """Bytes of a thread that are assumed to be spilled."""
        program = replace(self.program(), toolchain=TILELANG)
        return lower(program, machine_of(load_chip(CHIPS[self.arch]))).occupancy.spilled_bytes


def facts(w: Workload, machine: Machine) -> Facts:
    """What lowering assumes of a launch."""
    block, own = w.occupancy, -(-w.program.threads // machine.warp_size) * machine.warp_size
    return Facts(
        threads=block.threads,
        producers=block.threads - own,
        stages=_deepest(w.nodes),
        bulk_loads=sum(access.bulk for access in w.accesses) if machine.bulk_copy else 0,
        shared_bytes=block.scratchpad_bytes,
        registers=block.registers_per_thread,
        blocks=block.blocks_per_core,
        matrix=" and ".join(n for n in ("mma_sync", "wgmma", "tcgen05") if n in w.instructions),
    )


def _deepest(nodes: tuple[Node, ...]) -> int:
    found = 1
    for node in nodes:
        if isinstance(node, Loop):
            found = max(found, node.stages if node.loads else 1, _deepest(node.body))
        elif isinstance(node, Branch):
            found = max(found, _deepest(node.then), _deepest(node.orelse))
    return found


@cache
def launches() -> tuple[Launch, ...]:
    """All that were compiled."""
    with FILE.open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return tuple(Launch(**{**one, "compiled": Facts(**one["compiled"])}) for one in found)


def agreeing(pairs: list[tuple[Facts, Facts]], name: str) -> int:
    """How many launches agree on a fact; registers may differ by a quarter, shared memory by 2 KiB."""
    count = 0
    for assumed, compiled in pairs:
        a, b = getattr(assumed, name), getattr(compiled, name)
        if name == "registers":
            count += abs(np.log(a / b)) <= np.log(CLOSE)
        elif name == "shared_bytes":
            count += abs(a - b) <= 2048
        else:
            count += a == b
    return int(count)


def tables() -> Iterator[str]:
    """Agreement by architecture, and the launches on which the two differ."""
    yield (
        "| | launches | assumed for | "
        + " | ".join(_FACTS.values())
        + " | median of compiled / assumed registers |"
    )
    yield "| --- " * (len(_FACTS) + 4) + "|"
    for seen in (True, False):
        for arch in CHIPS:
            some = [one for one in launches() if (one.arch, one.seen) == (arch, seen)]
            for toolchain in ("library", TILELANG):
                pairs = [(one.assumed(toolchain), one.compiled) for one in some]
                counts = " | ".join(str(agreeing(pairs, name)) for name in _FACTS)
                ratio = np.median([c.registers / a.registers for a, c in pairs])
                what = f"{arch}, {'seen' if seen else 'held out'}"
                yield f"| {what} | {len(some)} | {toolchain} | {counts} | {ratio:.2f} |"
    yield ""
    yield "| architecture | operator | shape | kernel | assumed → compiled |"
    yield "| --- | --- | --- | --- | --- |"
    for one in launches():
        assumed = one.assumed()
        said = [
            f"{name.replace('_', ' ')} {getattr(assumed, name)} → {getattr(one.compiled, name)}"
            for name in _FACTS
            if not agreeing([(assumed, one.compiled)], name)
        ]
        if (spilled := one.assumed_spilled_bytes()) != one.spilled_bytes:
            said.append(f"spilled bytes {spilled} → {one.spilled_bytes}")
        if said:
            words = " ".join(f"{k}={v}" for k, v in one.shape.items())
            yield f"| {one.arch} | {one.operator} | {words} | {one.kernel} | {'; '.join(said)} |"


def compile_again() -> Iterator[Launch]:
    """Every launch as it is compiled now."""
    from foretile.kernels.tilelang.compiler import Compiler

    with Compiler() as compiler:
        for one in launches():
            operator, chip = load_operator(one.operator), load_chip(CHIPS[one.arch])
            shape = operator.shape(**one.shape)
            found = compare_compiled(operator, shape, chip, one.config, compiler)[one.number]
            said = {fact.what: fact for fact in found.facts}
            print(one.arch, one.operator, one.kernel, found.refused, file=sys.stderr, flush=True)
            if said:
                compiled = Facts(**{f.name: _value(said.get(_FACTS[f.name]), f.type) for f in fields(Facts)})
                spilled = int(said["spilled bytes of a thread"].actual)
                yield replace(one, compiled=compiled, spilled_bytes=spilled)


def _value(fact: Difference | None, kind: Any) -> Any:
    if fact is None:
        return "" if kind == "str" else 0
    return fact.actual if kind == "str" else int(fact.actual)


if __name__ == "__main__":
    if "--compile" in sys.argv:
        written = "".join(json.dumps(asdict(one)) + "\n" for one in compile_again())
        FILE.write_text(written, encoding="utf-8")
    print("\n".join(tables()))
