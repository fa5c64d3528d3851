"""What a bundle does when Python runs it: ``python BUNDLE [run|show|check] …``.

Also the process in which ``foretile bundle run`` measures (``worker``).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foretile.calibration.device.archive import Bundle, BundleError, open_bundle
from foretile.calibration.device.cupy_driver import open_device
from foretile.calibration.device.driver import DeviceError
from foretile.calibration.device.fake import checking_driver
from foretile.calibration.device.rows import Outcome
from foretile.calibration.device.runner import check_launches
from foretile.calibration.device.session import Summary, described_row, messages_of, run_session
from foretile.calibration.device.supervise import Process
from foretile.calibration.device.tables import FORMATS
from foretile.calibration.device.timing import Plan

BUDGET_S = 480.0
"""Seconds that a run may take, if nothing else is said."""
_COMMANDS = ("run", "show", "check", "worker")


def main(argv: Sequence[str], bundle: str) -> int:
    """Do what the command line says with the bundle in a file; returns the exit code."""
    given = list(argv)
    if not given or (given[0] not in _COMMANDS and given[0] not in ("-h", "--help")):
        given.insert(0, "run" if given else "show")
    options = _parser(bundle).parse_args(given)
    try:
        with open_bundle(bundle) as opened:
            return int(options.action(opened, options))
    except (BundleError, DeviceError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130


def _parser(bundle: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python {Path(bundle).name}", description="Measure the kernels in this file on a CUDA device."
    )
    commands = parser.add_subparsers(required=True, metavar="run | show | check")
    run = commands.add_parser("run", help="measure (needs CuPy and a device); what is measured is kept")
    run.add_argument("--out", type=Path, required=True, help=f"table to write ({', '.join(FORMATS)})")
    run.add_argument("--device", type=int, default=0, help="number of the CUDA device (0)")
    run.add_argument("--budget", type=float, default=BUDGET_S, help=f"seconds to take at most ({BUDGET_S:g})")
    run.add_argument(
        "--chip", default="", help="id of the catalogue's chip, if the device's name does not tell"
    )
    run.add_argument("--again", action="store_true", help="measure rows once more that failed or were wrong")
    run.set_defaults(action=_run)
    commands.add_parser("show", help="what is in it").set_defaults(action=_show)
    commands.add_parser("check", help="check checksums and every launch; needs no device").set_defaults(
        action=_check
    )
    worker = commands.add_parser("worker")
    worker.add_argument("--device", type=int, default=0)
    worker.set_defaults(action=_worker)
    return parser


def _run(bundle: Bundle, options: argparse.Namespace) -> int:
    command = [sys.executable, str(bundle.path), "worker", "--device", str(options.device)]
    summary = run_session(
        bundle,
        options.out,
        Process(command),
        budget_s=options.budget,
        chip=options.chip,
        again=options.again,
        tell=_tell,
    )
    print(said(summary))
    return 3 if summary.left or summary.wrong else 0


def _tell(done: int, total: int, row: str) -> None:
    print(f"[{done + 1}/{total}] {row}", file=sys.stderr, flush=True)


def said(summary: Summary) -> str:
    """How a run ended, in words."""
    lines = [f"{name}: {o.status}: {o.message}" for name, o in summary.problems]
    lines.append(
        f"{summary.ok} rows measured, {summary.wrong} with wrong results, {summary.failed} failed, "
        f"{summary.left} left" + ("; the same command goes on with them" if summary.left else "")
    )
    return "\n".join([*lines, *([str(summary.table)] if summary.ok else [])])


def _show(bundle: Bundle, options: argparse.Namespace) -> int:
    print("\n".join(f"{name}: {value}" for name, value in facts(bundle).items()))
    return 0


def facts(bundle: Bundle) -> dict[str, Any]:
    """What a bundle is, by name."""
    manifest = bundle.manifest
    counts = Counter((bundle.cases[r.case].operator, r.kernel_source) for r in bundle.rows)
    predicted = [r.predicted_s for r in bundle.rows if not math.isnan(r.predicted_s)]
    return {
        "suite": manifest["suite"],
        "architecture": bundle.arch,
        "made by": ", ".join(f"{name} {v}" for name, v in manifest.get("tools", {}).items()),
        "made": manifest.get("built", ""),
        "file": f"{bundle.bytes / 1e6:.1f} MB, {len({d for r in bundle.rows for d, _ in r.launches})} cubins",
        "rows": f"{len(bundle.rows)} of {len(bundle.cases)} cases",
        **{f"  {op}, {source}": n for (op, source), n in sorted(counts.items())},
        "left out": len(manifest.get("left_out", ())),
        "predicted": f"{math.fsum(predicted) * 1e3:.2f} ms for one run of {len(predicted)} rows, on "
        f"{manifest.get('chip')}",
        "estimate": f"{manifest.get('estimate_s', math.nan):.0f} s for measuring all of it on "
        f"{manifest.get('chip')}",
        "id": bundle.id,
    }


def _check(bundle: Bundle, options: argparse.Namespace) -> int:
    problems = check(bundle)
    for name, outcome in problems:
        print(f"{name}: {outcome.message}")
    print(f"{len(bundle.rows)} rows checked for {bundle.arch}, {len(problems)} would be refused")
    return 2 if problems else 0


def check(bundle: Bundle) -> list[tuple[str, Outcome]]:
    """Rows that a device of the bundle's architecture would refuse, in words, and why.

    Raises:
        BundleError: the bundle is damaged.
    """
    bundle.verify()
    outcomes = check_launches(checking_driver(bundle.arch), bundle.cases, bundle.rows, bundle.code)
    rows = zip(bundle.rows, outcomes, strict=True)
    return [(described_row(bundle, row), o) for row, o in rows if o.status != "ok"]


def _worker(bundle: Bundle, options: argparse.Namespace) -> int:
    begun, task = time.monotonic(), json.loads(sys.stdin.readline())
    try:
        driver = open_device(options.device)
        left_s = task["budget_s"] - (time.monotonic() - begun)
        for message in messages_of(bundle, driver, task["keys"], left_s, plan_of(bundle)):
            print(json.dumps(message), flush=True)
    except DeviceError as error:
        print(json.dumps({"error": str(error)}), flush=True)
    return 0


def plan_of(bundle: Bundle) -> Plan:
    """How the bundle wants times to be taken."""
    given = dict(bundle.manifest.get("plan", {}))
    return Plan(**{**given, **({"samples": tuple(given["samples"])} if "samples" in given else {})})


if __name__ == "__main__":  # the process in which an installed foretile measures
    sys.exit(main(sys.argv[2:], bundle=sys.argv[1]))
