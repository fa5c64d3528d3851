"""Measure rows on a device: operands made, results checked against a reference, then timed.

Rows of one case follow one another and share its operands and reference. Every repetition takes the next of
several sets of buffers, as many as it takes to hold three times the L2 (at most :data:`MOST_SETS`), so that
operands come from memory as they would in use; how many there were is recorded.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from foretile.calibration.device.binding import bind
from foretile.calibration.device.compare import POISON, Deviation, deviation
from foretile.calibration.device.driver import Buffer, DeviceError, Driver
from foretile.calibration.device.formats import decode, stored, stored_shape
from foretile.calibration.device.generate import fill_tensor
from foretile.calibration.device.references import FORMULAS
from foretile.calibration.device.rows import Case, Outcome, Row
from foretile.calibration.device.timing import Plan, Timing, time_runs
from foretile.kernels.cuda.recipe import LaunchRecipe, TensorArg
from foretile.kernels.dtypes import dtype

MOST_SETS = 32
_L2_MULTIPLE = 3
_MEMORY_SHARE = 0.4  # of the device, for the sets; references need room beside them

Code = Callable[[str], bytes]
"""Machine code by its SHA-256."""


class DeviceLost(DeviceError):
    """The device does not answer any more in this process; the row that was running is to blame."""


class Bench:
    """Measures rows one by one; those of one case one after the other share its operands and reference."""

    def __init__(self, driver: Driver, cases: Mapping[str, Case], code: Code, plan: Plan) -> None:
        self._driver, self._cases, self._code, self._plan = driver, cases, code, plan
        self._operands: _Operands | None = None

    def measure(self, row: Row) -> Outcome:
        """The outcome of a row, also where something is wrong with it.

        Raises:
            DeviceLost: the device stopped; nothing more can be measured in this process.
        """
        try:
            return _measured(self._driver, self._case(row.case), row, self._code, self._plan)
        except DeviceError as error:
            _still_there(self._driver, error)
            return Outcome(row.key, "failed", str(error))

    def _case(self, name: str) -> _Operands:
        if self._operands is None or self._operands.case.name != name:
            self.close()
            self._operands = _Operands(self._driver, self._cases[name], self._code)
        return self._operands

    def close(self) -> None:
        """Give back the memory of the last case."""
        if self._operands is not None:
            self._operands.close()
            self._operands = None


def check_launches(
    driver: Driver, cases: Mapping[str, Case], rows: Iterable[Row], code: Code
) -> Iterator[Outcome]:
    """Every launch of ``rows`` asked for once, on a driver that only checks."""
    for row in rows:
        memory = {
            t.name: driver.allocate(t.bytes) for t in _launched_tensors(cases[row.case].tensors, row.launches)
        }
        try:
            for digest, recipe in row.launches:
                bind(driver, driver.load(code(digest), recipe.symbol), recipe, memory).enqueue(driver)
            yield Outcome(row.key, "ok")
        except DeviceError as error:
            yield Outcome(row.key, "failed", str(error))
        finally:
            for buffer in memory.values():
                driver.free(buffer)


def _launched_tensors(
    tensors: Sequence[TensorArg], launches: Sequence[tuple[str, LaunchRecipe]]
) -> tuple[TensorArg, ...]:
    """``tensors`` and the workspace of launches, each once."""
    found = {t.name: t for t in tensors}
    for _, recipe in launches:
        for tensor in recipe.tensors:
            found.setdefault(tensor.name, tensor)
    return tuple(found.values())


def _still_there(driver: Driver, error: DeviceError) -> None:
    try:
        driver.synchronize()
    except DeviceError:
        raise DeviceLost(str(error)) from None


class _Operands:
    """Sets of buffers of one case; the first set's operands are made, the others copied from it."""

    def __init__(self, driver: Driver, case: Case, code: Code) -> None:
        self.case, self._driver, self._code = case, driver, code
        self.sets: list[dict[str, Buffer]] = []
        self._reference: dict[str, Any] | None = None
        self._workspace: list[Buffer] = []
        size = sum(t.bytes for t in case.tensors)
        wanted = math.ceil(_L2_MULTIPLE * driver.properties.l2_bytes / size)
        room = int(_MEMORY_SHARE * driver.properties.memory_bytes / size)
        self.count = max(1, min(wanted, room, MOST_SETS))

    def prepare(self) -> None:
        """Allocate and fill, at the first use."""
        while len(self.sets) < self.count:
            made: dict[str, Buffer] = {}
            self.sets.append(made)  # first, so that close() finds what there is if memory runs out
            for tensor in self.case.tensors:
                made[tensor.name] = self._driver.allocate(max(1, tensor.bytes))
                if tensor.name in self.case.fills:
                    self._fill(tensor, made[tensor.name])

    def _fill(self, tensor: TensorArg, buffer: Buffer) -> None:
        first = self.sets[0][tensor.name]
        if first is buffer:
            fill = self.case.fills[tensor.name]
            fill_tensor(self._driver, buffer, tensor.dtype, tensor.shape, fill)
        else:
            whole = (tensor.bytes,)
            self._driver.view(buffer, "uint8", whole)[...] = self._driver.view(first, "uint8", whole)

    def values(self, tensor: TensorArg) -> Any:
        """Decoded elements of a tensor of the first set."""
        return self._decoded(tensor, self.sets[0][tensor.name])

    def _decoded(self, tensor: TensorArg, buffer: Buffer) -> Any:
        shape = stored_shape(tensor.dtype, tensor.shape)
        raw = self._driver.view(buffer, stored(tensor.dtype), shape)
        return decode(self._driver.xp, raw, tensor.dtype, tensor.shape)

    @property
    def reference(self) -> dict[str, Any]:
        """The outputs that are right, worked out once."""
        if self._reference is None and not self.case.formula:
            self._reference = self._from_baseline()
        if self._reference is None:
            given = {t.name: self.values(t) for t in self.case.tensors if t.name in self.case.fills}
            formula = FORMULAS[self.case.formula]
            found = formula(self._driver.xp, self.case.shape, given)
            self._reference = {name: found[name] for name in self.case.outputs}
            self._driver.synchronize()
        return self._reference

    def _from_baseline(self) -> dict[str, Any]:
        """What the baseline gives, in memory of its own for all that it writes."""
        driver, case = self._driver, self.case
        memory = {name: self.sets[0][name] for name in case.fills}
        own = [t for t in _launched_tensors(case.tensors, case.baseline) if t.name not in memory]
        try:
            for tensor in own:
                memory[tensor.name] = driver.allocate(max(1, tensor.bytes))
                driver.fill(memory[tensor.name], POISON if tensor.name in case.outputs else 0)
            for digest, recipe in case.baseline:
                bind(driver, driver.load(self._code(digest), recipe.symbol), recipe, memory).enqueue(driver)
            driver.synchronize()
            tensors = {t.name: t for t in case.tensors}
            # In float64, and so apart from the memory that is given back.
            found = {n: self._decoded(tensors[n], memory[n]).astype("float64") for n in case.outputs}
            for name, values in found.items():
                if bool(driver.xp.isnan(values).any()):
                    raise DeviceError(
                        f"{name}: the kernel that is the reference left elements out, or made NaN"
                    )
            return found
        finally:
            driver.synchronize()
            for tensor in own:
                if tensor.name in memory:
                    driver.free(memory[tensor.name])

    def memory(self, row: Row) -> list[dict[str, Buffer]]:
        """A buffer for every tensor of a row, one mapping a set; workspace is the row's own, and zero."""
        self.release_workspace()
        own = [t for t in _launched_tensors(self.case.tensors, row.launches) if t.name not in self.sets[0]]
        whole = []
        for shared in self.sets:
            extra = {}
            for tensor in own:
                buffer = extra[tensor.name] = self._driver.allocate(max(1, tensor.bytes))
                self._workspace.append(buffer)
                self._driver.fill(buffer, 0)
            whole.append({**shared, **extra})
        return whole

    def release_workspace(self) -> None:
        """Give back the workspace of the last row."""
        while self._workspace:
            self._driver.free(self._workspace.pop())

    def close(self) -> None:
        """Give everything back, as far as the device still answers."""
        self._reference = None
        try:
            self.release_workspace()
            for buffer in (b for made in self.sets for b in made.values()):
                self._driver.free(buffer)
            self._driver.trim()
            self._driver.unload()
        except DeviceError:
            pass  # the device is lost: its memory goes with the process
        self.sets.clear()


def _measured(driver: Driver, operands: _Operands, row: Row, code: Code, plan: Plan) -> Outcome:
    """One row: run once on poisoned results and compared, then timed."""
    case = operands.case
    operands.prepare()
    kernels = [driver.load(code(digest), recipe.symbol) for digest, recipe in row.launches]
    memory = operands.memory(row)
    sets = [
        [
            bind(driver, kernel, recipe, buffers)
            for kernel, (_, recipe) in zip(kernels, row.launches, strict=True)
        ]
        for buffers in memory
    ]
    counters = _counters(case, row)

    def run(i: int) -> None:
        for name in counters:
            driver.fill(memory[i][name], 0)
        for bound in sets[i]:
            bound.enqueue(driver)

    for name in case.outputs:
        driver.fill(operands.sets[0][name], POISON)
    run(0)
    driver.synchronize()
    found = _compared(driver, operands)
    norm, peak = max(d.norm for d in found.values()), max(d.peak for d in found.values())
    checked = {"error_norm": norm, "error_peak": peak, "date": _now()}
    bad = {name: d for name, d in found.items() if not d.within(case.norm, case.peak)}
    if bad:
        return Outcome(row.key, "wrong", "; ".join(_said(n, d, case) for n, d in bad.items()), checked)
    timing = time_runs(driver, run, plan, rotation=len(sets))
    copies = {t.name: len(sets) for t in case.tensors} if len(sets) > 1 else {}
    values = {**checked, "copies": copies, **timed_values(timing)}
    if counters:
        values["flags"] = ",".join(filter(None, (values["flags"], "zeroing")))
    return Outcome(row.key, "ok", values=values)


def _counters(case: Case, row: Row) -> list[str]:
    """Workspace of whole numbers, which kernels count in: zero before every run, and that is timed.

    Sums in other workspace only grow from run to run, which takes the same time.
    """
    tensors = _launched_tensors(case.tensors, row.launches)
    return [t.name for t in tensors if t.role == "scratch" and dtype(t.dtype).kind in ("int", "uint")]


def _compared(driver: Driver, operands: _Operands) -> dict[str, Deviation]:
    tensors = {t.name: t for t in operands.case.tensors}
    return {
        name: deviation(driver.xp, operands.values(tensors[name]), right)
        for name, right in operands.reference.items()
    }


def _said(name: str, found: Deviation, case: Case) -> str:
    if found.wrong:
        return f"{name}: {found.wrong} elements are NaN or infinite and should not be, or the reverse"
    return (
        f"{name}: off by {found.norm:.3g} (norm) and {found.peak:.3g} (peak); "
        f"{case.norm:.3g} and {case.peak:.3g} are allowed"
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def timed_values(timing: Timing) -> dict[str, Any]:
    """A timing by column of the measurement table."""
    return {
        "latency_s": timing.median_s,
        "spread": timing.spread,
        "runs": timing.runs,
        "launch": timing.launch,
        "cache": timing.cache,
        "mean_s": timing.mean_s,
        "fastest_s": timing.fastest_s,
        "half_width": timing.half_width,
        "outliers": timing.outliers,
        "core_clock_hz": timing.clocks.core_hz,
        "memory_clock_hz": timing.clocks.memory_hz,
        "temperature_c": timing.clocks.temperature_c,
        "power_w": timing.clocks.power_w,
        "flags": ",".join((*timing.flags, *timing.clocks.reasons)),
    }
