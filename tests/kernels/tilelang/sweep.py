"""Every program of the library through TileLang and back; ``python sweep.py [STEP] [OPERATOR …]``.

Text → our own tracer, text → TileLang's front end → our importer: both the same program (in canonical
form). STEP takes every so many programs (default: all, twenty minutes). Exits with 1 if one differs.
"""

from __future__ import annotations

import logging
import sys
import time
from itertools import islice

import tilelang  # noqa: F401  (before its messages are silenced)
from exported import every, read_back

from foretile.kernels.canonical import canonical
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import operator_names
from foretile.kernels.tilelang import from_prim_func
from foretile.kernels.tilelang.compile_worker import prim_func
from foretile.kernels.tilelang.export import source


def differs(program: TileProgram) -> str:
    """Where a program does not come back the same; empty if it does."""
    text, wanted = source(program), canonical(program)
    if canonical(read_back(text, program.name)) != wanted:
        return "our tracer reads another program"
    try:
        found = from_prim_func(prim_func(text, program.name))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if not isinstance(found, TileProgram) or canonical(found) != wanted:
        return "another program came back"
    return ""


def main(step: int, names: list[str]) -> int:
    """Sweep, print, count what differs."""
    logging.disable(logging.CRITICAL)
    total = wrong = 0
    for name in names or operator_names():
        started, count, reasons = time.perf_counter(), 0, []
        for program in islice(every(name), 0, None, step):
            count += 1
            reason = differs(program)
            if reason:
                reasons.append(f"{program.name}: {reason}")
        total, wrong = total + count, wrong + len(reasons)
        print(f"{name}: {count - len(reasons)} of {count}, {time.perf_counter() - started:.0f} s", flush=True)
        for reason in sorted(set(reasons)):
            print(f"  {reasons.count(reason)} x {reason}", flush=True)
    print(f"{total - wrong} of {total} programs came back the same")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1, sys.argv[2:]))
