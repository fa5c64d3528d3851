"""A run of a bundle that survives: outcomes kept as they come, the table written whatever happens.

Rows are measured in a process of their own (:mod:`~foretile.calibration.device.supervise`). A kernel that
stops the device or never ends costs its row and a new process, and what was measured before is not measured
again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from foretile.calibration.device.archive import Bundle
from foretile.calibration.device.driver import DeviceError, Driver
from foretile.calibration.device.rows import Outcome, Row
from foretile.calibration.device.runner import Bench, DeviceLost
from foretile.calibration.device.tables import check_format, described, records, write_records
from foretile.calibration.device.timing import Plan
from foretile.kernels.whole_files import write_whole

_SAVE_EVERY_S = 2.0  # writing the journal takes a few milliseconds

Message = Mapping[str, Any]
"""What a worker says: ``{"device": …}``, ``{"begin": key}``, ``{"outcome": …}``, ``{"stopped": reason}``
(the device or the process is lost, and with it the row begun last), ``{"error": reason}`` (nothing can be
measured here at all)."""


class Worker(Protocol):
    """Measures rows by key and says so; ends when they are done or ``budget_s`` is over."""

    def __call__(self, keys: Sequence[str], budget_s: float) -> Iterator[Message]:
        """Messages as they come."""
        ...


@dataclass
class Journal:
    """Outcomes so far, in the file ``path``. It belongs to one bundle and one device."""

    path: Path
    bundle_id: str
    device: dict[str, Any] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    changed: bool = False  # since it was read
    _saved_at: float = 0.0

    @staticmethod
    def beside(out: Path, bundle_id: str) -> Journal:
        """The journal of the table ``out``, with what an earlier run left.

        Raises:
            DeviceError: it is another bundle's, or unreadable.
        """
        path = out.with_name(out.name + ".journal")
        journal = Journal(path, bundle_id)
        if not path.exists():
            return journal
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            owner, journal.device = held["bundle"], held["device"]
            journal.outcomes = {o.key: o for o in map(Outcome.from_json, held["outcomes"])}
        except (ValueError, KeyError, TypeError):
            raise DeviceError(f"{path}: no journal of a run; remove it, or write to another table") from None
        if owner != bundle_id:
            raise DeviceError(
                f"{path}: belongs to bundle {owner[:12]}, not to {bundle_id[:12]}; remove it, or write to "
                "another table"
            )
        return journal

    def on(self, device: Mapping[str, Any]) -> None:
        """Outcomes to come are of this device.

        Raises:
            DeviceError: the journal holds outcomes of another one; or it is none, whose times mean nothing.
        """
        if device["simulated"]:
            raise DeviceError(f"{device['name']}: its times are made up, and no table takes them")
        if self.outcomes and self.device and self.device["name"] != device["name"]:
            raise DeviceError(
                f"{self.path}: begun on {self.device['name']}, and this is {device['name']}; write to another"
                " table"
            )
        self.device = dict(device)

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome."""
        self.outcomes[outcome.key] = outcome
        self.changed = True
        if time.monotonic() - self._saved_at >= _SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the file."""
        held = {
            "bundle": self.bundle_id,
            "device": self.device,
            "outcomes": [o.to_json() for o in self.outcomes.values()],
        }
        write_whole(self.path, json.dumps(held).encode())
        self._saved_at = time.monotonic()


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended: rows by status, rows that are left, and the table's place."""

    ok: int
    wrong: int
    failed: int
    left: int
    table: Path
    problems: tuple[tuple[str, Outcome], ...]  # what the row is, in words


def run_session(
    bundle: Bundle,
    out: Path,
    worker: Worker,
    *,
    budget_s: float,
    chip: str = "",
    again: bool = False,
    tell: Callable[[int, int, str], None] = lambda done, total, row: None,
    clock: Callable[[], float] = time.monotonic,
) -> Summary:
    """Measure the rows that an earlier run into the same table left, and write the table.

    ``again`` measures those once more that failed or were wrong. ``tell(done, total, row)`` hears of
    each row.

    Raises:
        BundleError: the bundle is damaged.
        DeviceError: there is no device, or it cannot run the bundle; the table cannot be written there, or
            belongs to another bundle or device.
    """
    check_format(out)
    bundle.verify()
    journal, begun = Journal.beside(out, bundle.id), clock()
    if again:
        journal.outcomes = {k: o for k, o in journal.outcomes.items() if o.status == "ok"}
    names = {row.key: described_row(bundle, row) for row in bundle.rows}
    try:
        while left := [row.key for row in bundle.rows if row.key not in journal.outcomes]:
            remaining = budget_s - (clock() - begun)
            before = len(journal.outcomes)
            if remaining <= 0:
                break
            finished = _follow(worker(left, remaining), journal, names, tell)
            if finished or len(journal.outcomes) == before:
                break
    finally:
        if journal.changed or (journal.outcomes and not out.exists()):
            journal.save()
            found = records(
                bundle.manifest, bundle.id, bundle.cases, bundle.rows, journal.outcomes, journal.device, chip
            )
            if found:
                write_records(found, out)
    return _summary(bundle, journal, names, out)


def _follow(
    messages: Iterator[Message],
    journal: Journal,
    names: Mapping[str, str],
    tell: Callable[[int, int, str], None],
) -> bool:
    """Keep what a worker says; whether it ended by itself."""
    begun = ""
    for message in messages:
        if "error" in message:
            raise DeviceError(str(message["error"]))
        if "device" in message:
            journal.on(message["device"])
        elif "begin" in message:
            begun = str(message["begin"])
            tell(len(journal.outcomes), len(names), names[begun])
        elif "outcome" in message:
            journal.add(Outcome.from_json(message["outcome"]))
            begun = ""
        elif "stopped" in message:
            if begun:
                journal.add(Outcome(begun, "failed", str(message["stopped"])))
            return False
    return True


def _summary(bundle: Bundle, journal: Journal, names: Mapping[str, str], out: Path) -> Summary:
    found = [journal.outcomes[r.key] for r in bundle.rows if r.key in journal.outcomes]
    counts = {status: sum(o.status == status for o in found) for status in ("ok", "wrong", "failed")}
    problems = tuple((names[o.key], o) for o in found if o.status != "ok")
    return Summary(**counts, left=len(bundle.rows) - len(found), table=out, problems=problems)


def described_row(bundle: Bundle, row: Row) -> str:
    """A row in words: operator, shape, kernel, configuration."""
    case = bundle.cases[row.case]
    parts = [case.operator, *(f"{k}={v}" for k, v in case.shape.items()), row.kernel_source]
    return " ".join((*parts, *(f"{k}={v}" for k, v in row.config.items())))


def messages_of(
    bundle: Bundle,
    driver: Driver,
    keys: Sequence[str],
    budget_s: float,
    plan: Plan,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Message]:
    """Measure rows in this process and say so; what a worker does.

    Raises:
        DeviceError: the device cannot run the bundle's machine code.
    """
    properties = driver.properties
    if not properties.runs(bundle.arch):
        raise DeviceError(
            f"{bundle.path}: machine code for {bundle.arch}, and {properties.name} is {properties.arch}; "
            f"build one with --arch for it"
        )
    yield {"device": described(properties)}
    begun, wanted = clock(), set(keys)
    bench = Bench(driver, bundle.cases, bundle.code, plan)
    try:
        for row in bundle.rows:
            if row.key not in wanted:
                continue
            if clock() - begun >= budget_s:
                return
            yield {"begin": row.key}
            yield {"outcome": bench.measure(row).to_json()}
    except DeviceLost as error:
        yield {"stopped": str(error)}
    finally:
        bench.close()
