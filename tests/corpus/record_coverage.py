"""Other people's TileLang kernels, unmodified: which are imported, executed, right, and predicted.

Run by hand where the extra ``tilelang`` and the packages of the extra ``corpus`` are installed::

    python tests/corpus/record_coverage.py docs/tilelang-coverage.md

Every package runs in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CHIP = "h200-sxm"
PACKAGES = {"tile-kernels": "tile_kernels_cases", "flash-qla": "flash_qla_cases", "rwkv-tl": "rwkv_tl_cases"}


@dataclass
class Row:
    """One kernel of one case. ``agrees``: None where nothing could be compared."""

    package: str
    case: str
    kernel: str
    imported: bool = False
    executed: bool = False
    agrees: bool | None = None
    time_s: float | None = None
    notes: list[str] = field(default_factory=list)


def rows_of(package: str) -> Iterator[Row]:
    """Run every case of a package."""
    sys.path.insert(0, str(HERE))
    cases = importlib.import_module(PACKAGES[package]).CASES
    for name, case in cases.items():
        yield from _case(package, name, case)


def _case(package: str, name: str, case: Any) -> Iterator[Row]:
    import torch

    from foretile.hosted import hosted
    from foretile.simulator.machine import SimulationError

    torch.manual_seed(0)
    failures: dict[str, str] = {}

    def failed(kernel: str, error: Exception) -> None:
        failures.setdefault(kernel, f"{type(error).__name__}: {error}")

    agreed, told = None, ""
    with hosted(CHIP, failed=failed) as session:
        try:
            agreed, told = _agreement(case)
        except Exception as error:  # whatever the host code does with results that are not there
            told = f"host code: {type(error).__name__}: {error}"
    if not session.kernels:
        yield Row(package, name, "–", notes=[told])
    launched = {launch.name: launch for launch in session.launches}
    for kernel in {k.name: k for k in session.kernels}.values():
        row = Row(package, name, kernel.name, imported=kernel.programs is not None)
        row.executed = kernel.name in launched and kernel.name not in failures
        if row.executed and not failures:
            row.agrees = agreed
        row.notes = [t for t in (failures.get(kernel.name, ""), "" if agreed else told) if t]
        launch = launched.get(kernel.name)
        if launch is not None:
            try:
                row.time_s = launch.predict(CHIP).time_s
            except (SimulationError, KeyError, ValueError) as error:  # a fault of ours is an outcome too
                row.notes.append(f"not predicted: {error}")
        yield row


def _agreement(case: Any) -> tuple[bool, str]:
    import torch

    for got, want, near in case():
        if near == 0.0:
            if not torch.equal(got, want):
                share = (got != want).float().mean().item()
                return False, f"{share:.2%} of the elements differ"
            continue
        scale = want.float().abs().max().item()
        off = (got.float() - want.float()).abs().max().item()
        if not off <= near * max(scale, 1e-6):
            return False, f"off by {off:.2e} at a largest value of {scale:.2e}"
    return True, ""


def table(rows: list[Row]) -> str:
    """The page."""
    from foretile.report.units import seconds

    lines = [
        "# Coverage of TileLang kernels",
        "",
        "Kernels that others wrote, unmodified: imported from TileLang's front end, executed on the CPU",
        "through the package's own host code, compared with the package's torch reference where it has one",
        "(else with plain torch), and predicted on an H200.",
        "Made by `tests/corpus/record_coverage.py`; the cases are in `tests/corpus/`.",
        "",
        f"TileLang {version('tilelang')}, torch {version('torch')}.",
        "",
        "| package | version | kernels | imported | executed | compared | agree | predicted |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for package in dict.fromkeys(r.package for r in rows):
        mine = [r for r in rows if r.package == package]
        compared = [r for r in mine if r.agrees is not None]
        counts = [
            len(mine),
            sum(r.imported for r in mine),
            sum(r.executed for r in mine),
            len(compared),
            sum(bool(r.agrees) for r in compared),
            sum(r.time_s is not None for r in mine),
        ]
        lines.append(f"| {package} | {version(package)} | " + " | ".join(map(str, counts)) + " |")
    lines += [
        "",
        "## Every kernel",
        "",
        "| package | case | kernel | imported | executed | agrees | H200 | note |",
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for r in rows:
        marks = ["yes" if r.imported else "no", "yes" if r.executed else "no"]
        marks.append("–" if r.agrees is None else "yes" if r.agrees else "no")
        time = seconds(r.time_s) if r.time_s is not None else "–"
        note = "; ".join(r.notes).replace("|", "\\|").replace("\n", " ")[:300]
        lines.append(f"| {r.package} | {r.case} | `{r.kernel}` | {' | '.join(marks)} | {time} | {note} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the packages one after the other, each in a process, and write the page."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("page", nargs="?", type=Path)
    arguments.add_argument("--package", choices=PACKAGES, help="one package, its rows as JSON")
    given = arguments.parse_args()
    if given.package:
        for row in rows_of(given.package):
            print(json.dumps(asdict(row)), flush=True)
        return
    rows: list[Row] = []
    for package in PACKAGES:
        # torch.compile would look for a compiler at run time; the references run as they are without it.
        ran = subprocess.run(
            [sys.executable, __file__, "--package", package],
            env={**os.environ, "TORCHDYNAMO_DISABLE": "1", "TILELANG_ENABLE_IR_SPAN": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        rows += [Row(**json.loads(line)) for line in ran.stdout.splitlines() if line.startswith("{")]
        print(f"{package}: {len(rows)} rows so far", file=sys.stderr)
    text = table(rows)
    if given.page:
        written = given.page.with_suffix(".new")
        written.write_text(text, encoding="utf-8")
        written.replace(given.page)
    else:
        print(text)


if __name__ == "__main__":
    main()
