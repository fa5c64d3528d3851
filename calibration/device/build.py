"""Build a measurement bundle from a suite, on a machine that needs no device."""

from __future__ import annotations

import datetime
import hashlib
import math
import queue
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import foretile.calibration
import foretile.kernels
from foretile.calibration.device.archive import FORMAT, archive_bytes
from foretile.calibration.device.driver import DeviceError
from foretile.calibration.device.fake import FakeDriver, checking_driver
from foretile.calibration.device.kernels import (
    CUDA,
    TILE,
    Compiled,
    Kernels,
    candidates,
    compiled_by_tilelang,
)
from foretile.calibration.device.operands import fill_of
from foretile.calibration.device.references import FORMULAS
from foretile.calibration.device.rows import Case, Row
from foretile.calibration.device.runner import check_launches
from foretile.calibration.device.suites import Entry, Suite
from foretile.calibration.device.tables import canonical
from foretile.calibration.device.timing import Plan
from foretile.hwmodels import Chip, list_chips, load_chip
from foretile.kernels.cuda.nvcc import NvccError
from foretile.kernels.cuda.recipe import LaunchRecipe
from foretile.kernels.cuda.registry import program_tensors
from foretile.kernels.families import family_of
from foretile.kernels.operator import Config, Operator, OperatorError, Shape
from foretile.kernels.tilelang.compiled import CompileError
from foretile.kernels.tilelang.export import ExportError
from foretile.kernels.whole_files import write_whole
from foretile.simulator.machine import SimulationError
from foretile.simulator.predictor import predict

LICENCE = "Apache-2.0"
# Architectures, and a chip of each, for which configurations are chosen if no other is named.
ARCHITECTURES = {"sm_80": "a100-sxm4-80gb", "sm_89": "l40s", "sm_90a": "h200-sxm", "sm_100a": "b200-sxm"}
_REFUSED = (CompileError, DeviceError, ExportError, NvccError, OperatorError, SimulationError)

_PLAIN = Operator.__dataclass_fields__["comparable"].default  # compared as they are

Tell = Callable[[int, int, str], None]


@dataclass
class Built:
    """What a bundle is made of, so far. ``left_out``: rows that could not be made, and why."""

    driver: FakeDriver
    cases: dict[str, Case] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    codes: dict[str, bytes] = field(default_factory=dict)
    left_out: list[dict[str, str]] = field(default_factory=list)

    def add(self, case: Case, source: str, config: Config, made: Compiled, predicted_s: float) -> None:
        """A row; code that occurs twice is kept once.

        Raises:
            DeviceError: a device would refuse one of its launches.
        """
        launches = self.kept(made)
        text = "|".join((case.name, source, canonical(config), *(digest for digest, _ in launches)))
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        if any(row.key == key for row in self.rows):
            return
        row = Row(key, case.name, source, config, launches, predicted_s)
        (outcome,) = check_launches(self.driver, {case.name: case}, [row], self.codes.__getitem__)
        if outcome.status != "ok":
            raise DeviceError(outcome.message)
        self.driver.unload()
        self.cases.setdefault(case.name, case)
        self.rows.append(row)

    def merge(self, other: Built) -> None:
        """Add what another thread has made; rows that are there already are not added again."""
        there = {row.key for row in self.rows}
        self.rows += [row for row in other.rows if row.key not in there]
        self.cases |= {name: case for name, case in other.cases.items() if name not in self.cases}
        self.codes |= other.codes
        self.left_out += other.left_out

    def kept(self, made: Compiled) -> tuple[tuple[str, LaunchRecipe], ...]:
        """Launches with their code's SHA-256, by which it is kept."""
        launches = [(hashlib.sha256(code).hexdigest(), recipe) for code, recipe in made.launches]
        self.codes |= {digest: code for (digest, _), (code, _) in zip(launches, made.launches, strict=True)}
        return tuple(launches)

    def leave_out(self, operator: Operator, shape: Shape, source: str, config: Config, why: str) -> None:
        """A row that cannot be."""
        self.left_out.append(
            {
                "operator": operator.name,
                "shape": canonical(shape),
                "kernel_source": source,
                "config": canonical(config),
                "why": re.sub(r"\s+", " ", why)[:400],
            }
        )


def build_bundle(
    suite: Suite,
    arch: str,
    out: Path,
    chip: Chip | None = None,
    tell: Tell = lambda done, total, what: None,
    jobs: int = 1,
    version: str = "unknown",
) -> Mapping[str, Any]:
    """Compile what a suite names for ``arch`` and write the bundle; returns its manifest.

    ``chip`` is what configurations are chosen for and times predicted on (default: a chip of that
    architecture), ``jobs`` how many shapes are worked on at a time (each takes a compiler of one to two
    gigabytes), ``version`` this library's. Compiled kernels are kept, so that an interrupted build goes on
    where it stopped.

    Raises:
        OperatorError: nothing of the suite could be compiled, or the architecture is not known.
        NvccError: there is no nvcc.
        OSError: the file cannot be written.
    """
    if arch not in ARCHITECTURES:
        raise OperatorError(f"architecture {arch!r} is not one of {', '.join(ARCHITECTURES)}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out}: there is no folder {out.parent}")
    chip = chip or load_chip(ARCHITECTURES[arch])
    built = Built(checking_driver(arch))
    plan = Plan(tolerance=suite.timing.tolerance, budget_s=suite.timing.budget_s)
    work = [(entry, operator, shape) for entry in suite.entries for operator, shape in entry.resolved()]
    tools = Kernels(arch).tools()
    with _Pool(arch, chip, jobs) as pool:
        for done, ((_, operator, shape), part) in enumerate(zip(work, pool.cases(work), strict=True)):
            built.merge(part)
            what = " ".join((operator.name, *(f"{k}={v}" for k, v in shape.items())))
            tell(done + 1, len(work), what)
    if not built.rows:
        why = built.left_out[0]["why"] if built.left_out else "the suite is empty"
        raise OperatorError(f"suite {suite.name}: nothing could be compiled for {arch}; the first: {why}")
    manifest = _manifest(suite, arch, chip, plan, built, {"foretile": version, **tools})
    rooms = {"kernels": foretile.kernels, "calibration": foretile.calibration}
    folders = {name: Path(str(room.__file__)).parent for name, room in rooms.items()}
    launches = [one for row in built.rows for one in row.launches]
    launches += [one for case in built.cases.values() for one in case.baseline]
    used = {digest: built.codes[digest] for digest, _ in launches}
    write_whole(out, archive_bytes(manifest, used, folders, version))
    return manifest


class _Pool:
    """Threads that each have a compiler of their own; waiting for it is all they do."""

    def __init__(self, arch: str, chip: Chip, jobs: int) -> None:
        self._arch, self._chip = arch, chip
        self._threads = ThreadPoolExecutor(max_workers=jobs)
        self._idle: queue.Queue[Kernels] = queue.Queue()
        self._all = [Kernels(arch) for _ in range(jobs)]
        for kernels in self._all:
            self._idle.put(kernels)

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *error: object) -> None:
        # Without waiting for what is not wanted any more: a compiler that is closed ends its thread.
        self._threads.shutdown(wait=False, cancel_futures=True)
        for kernels in self._all:
            kernels.close()

    def cases(self, work: Sequence[tuple[Entry, Operator, Shape]]) -> Iterator[Built]:
        """What each piece of work becomes, in their order."""
        yield from self._threads.map(self._case, work)

    def _case(self, piece: tuple[Entry, Operator, Shape]) -> Built:
        kernels, built = self._idle.get(), Built(checking_driver(self._arch))
        try:
            _add_case(built, kernels, *piece, self._chip)
        finally:
            self._idle.put(kernels)
        return built


def _add_case(
    built: Built, kernels: Kernels, entry: Entry, operator: Operator, shape: Shape, chip: Chip
) -> None:
    """All rows of an operator at one shape."""
    baseline: Compiled | None = None
    try:
        if entry.cuda or operator.name not in FORMULAS:
            baseline = kernels.cuda(operator, shape)
    except _REFUSED as error:
        built.leave_out(operator, shape, CUDA, {}, str(error))
    try:
        case = case_of(operator, shape, built.kept(baseline) if baseline is not None else ())
    except OperatorError as error:
        built.leave_out(operator, shape, "all", {}, str(error))
        return
    if entry.cuda and baseline is not None:
        try:
            built.add(case, CUDA, {}, baseline, float("nan"))
        except _REFUSED as error:
            built.leave_out(operator, shape, CUDA, {}, str(error))
    wanted = entry.tile if isinstance(entry.tile, int) else len(entry.tile)
    if not wanted:
        return
    try:
        several = list(candidates(operator, shape, chip, entry.tile))
    except _REFUSED as error:
        built.leave_out(operator, shape, TILE, {}, str(error))
        return
    made = 0
    for config in several:
        if made == wanted:
            return
        try:
            compiled = kernels.tile(operator, shape, config)
            predicted = predict(compiled_by_tilelang(operator), shape, chip, config)
            built.add(case, TILE, config, compiled, predicted.time_s)
            made += 1
        except _REFUSED as error:
            built.leave_out(operator, shape, TILE, config, str(error))


def case_of(operator: Operator, shape: Shape, baseline: tuple[tuple[str, LaunchRecipe], ...] = ()) -> Case:
    """Operands, outputs, reference and tolerance of an operator at a shape.

    Where no formula is known the reference are the results of ``baseline``. Each is then within the
    operator's tolerance of what is right, and two of them within twice that of each other.

    Raises:
        OperatorError: no reference or no operands are known for it, or several results are right.
    """
    known = operator.name in FORMULAS
    if not known and operator.comparable is not _PLAIN:
        raise OperatorError(f"{operator.name}: several results are right, and none can serve as a reference")
    if not known and not baseline:
        raise OperatorError(
            f"{operator.name}: no reference on a device: neither a formula (there are: "
            f"{', '.join(sorted(FORMULAS))}) nor a hand-written kernel"
        )
    given, results = _names(operator, shape)
    tensors = program_tensors(operator.name, shape)
    missing = [name for name in (*given, *results) if name not in tensors]
    if missing:
        raise OperatorError(f"{operator.name}: its tile program has no tensor {missing[0]}")
    operands = [tensors.arg(name) for name in given]
    tolerance = operator.tolerance(shape)
    return Case(
        name=f"{operator.name} {canonical(shape)}",
        operator=operator.name,
        shape=shape,
        family=family_of(operator.name, shape),
        tensors=(*operands, *(tensors.arg(name, "out") for name in results)),
        fills={tensor.name: fill_of(operator, shape, tensor) for tensor in operands},
        outputs=results,
        formula=operator.name if known else "",
        norm=tolerance.norm if known else 2 * tolerance.norm,
        peak=tolerance.peak if known else 2 * tolerance.peak,
        baseline=() if known else baseline,
    )


def _names(operator: Operator, shape: Shape) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of operands and of results, from the operator at its small example with this shape's options."""
    options = {p.name: shape[p.name] for p in operator.params if p.kind != "int"}
    small = operator.shape(**{**operator.example, **options})
    inputs = operator.inputs(small, np.random.default_rng(0))
    return tuple(inputs), tuple(operator.reference(small, **inputs))


def _manifest(
    suite: Suite, arch: str, chip: Chip, plan: Plan, built: Built, tools: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "suite": suite.name,
        "title": suite.title,
        "arch": arch,
        "built": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "tools": dict(tools),
        "licence": LICENCE,
        "chip": chip.id,
        "chips": list(_chips()),
        "plan": asdict(plan),
        "estimate_s": estimate_s(built.rows, plan, suite),
        "cases": [case.to_json() for case in built.cases.values()],
        "rows": [row.to_json() for row in built.rows],
        "left_out": built.left_out,
    }


def estimate_s(rows: Sequence[Row], plan: Plan, suite: Suite) -> float:
    """Seconds that measuring takes at most, by our own predictions.

    A row takes its warm-up, then its budget, which ends after a batch of repetitions that was begun. A kernel
    without a prediction is given ``baseline_factor`` times the best prediction of its case; where there is
    none either, a batch of graphs of the plan's length. ``case_s`` for each case's operands and reference.
    """
    best: dict[str, float] = {}
    for row in rows:
        if not math.isnan(row.predicted_s):
            best[row.case] = min(row.predicted_s, best.get(row.case, math.inf))
    total = suite.case_s * len({row.case for row in rows})
    for row in rows:
        time_s = row.predicted_s
        if math.isnan(time_s):
            time_s = suite.baseline_factor * best.get(row.case, 0.0)
        total += plan.warm_up_s + plan.budget_s + (plan.batch + 2) * max(plan.graph_s, time_s)
    return total


def _chips() -> Iterator[dict[str, Any]]:
    """What tells the catalogue's devices of this kind apart."""
    for name in list_chips():
        chip = load_chip(name)
        if chip.style == "simt":
            yield {
                "id": chip.id,
                "aliases": [chip.id, *chip.aliases],
                "cores": int(chip.cores.value),
                "memory_bytes": float(chip.dram.capacity_bytes.value),
            }
