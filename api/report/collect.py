"""Predict every case of a suite on every chip, into one tidy table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd

from foretile.report.grounds import achieved, calibrated
from foretile.report.suite import Case, Suite, SuiteError, cases, tokens

if TYPE_CHECKING:
    from rich.console import Console

    from foretile.hwmodels.schema import Chip
    from foretile.simulator.prediction import Prediction

Predictor = Callable[..., "Prediction"]
Call = tuple[str, tuple[tuple[str, Any], ...]]


def predictor() -> Predictor:
    """The library's own :func:`foretile.frontdoor.predict`."""
    from foretile.frontdoor import predict

    return predict


def _call(case: Case) -> Call:
    return case.entry.operator, tuple(sorted(case.shape.items()))


def _run(predict: Predictor | None, chip: Chip, calls: Sequence[Call]) -> list[dict[str, Any]]:
    """One row of results a call (all of one operator); what a chip cannot run has ``error``."""
    if predict is None:
        from foretile.frontdoor import predict_each

        try:
            found = predict_each(calls[0][0], chip, [dict(shape) for _, shape in calls])
            return [_row(p, chip) for p in found]
        except ValueError:
            predict = predictor()  # one of them cannot be predicted: find out which
    rows = []
    for operator, shape in calls:
        try:
            rows.append(_row(predict(operator, chip, **dict(shape)), chip))
        except ValueError as error:
            if type(error).__module__.partition(".")[0] != "foretile":
                raise
            rows.append({"error": str(error)})
    return rows


def _row(p: Prediction, chip: Chip) -> dict[str, Any]:
    reached = achieved(p, chip)
    return {
        "time_s": p.time_s,
        "low_s": p.interval_s[0],
        "high_s": p.interval_s[1],
        "bound": p.bound,
        "flops": p.flops,
        "dram_bytes": p.traffic_bytes["dram_read"] + p.traffic_bytes["dram_write"],
        "flop_per_s": reached.flop_per_s,
        "dram_bytes_per_s": reached.dram_bytes_per_s,
        "of_flop_peak": reached.flop_share,
        "of_dram_peak": reached.dram_share,
        "config": " ".join(f"{k}={v}" for k, v in p.config.items()),
        "model": str(p.model.get("kind", "")),
        "calibrated": calibrated(p.model),
        "error": "",
        "details": {
            "shape": dict(p.shape),
            "config": dict(p.config),
            "utilisation": dict(p.utilisation),
            "launch_s": p.breakdown_s.get("launch", 0.0),
        },
    }


@contextmanager
def _progress(console: Console | None, total: int) -> Iterator[Callable[[int], None]]:
    if console is None:
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, advance=done)


def _all(
    predict: Predictor | None,
    chips: Sequence[Chip],
    calls: Sequence[Call],
    workers: int,
    console: Console | None,
) -> Mapping[tuple[str, Call], dict[str, Any]]:
    by_operator: dict[str, list[Call]] = {}
    for call in calls:
        by_operator.setdefault(call[0], []).append(call)
    chunks = [(chip, mine) for chip in chips for mine in by_operator.values()]
    found: dict[tuple[str, Call], dict[str, Any]] = {}

    def keep(chip: Chip, chunk: Sequence[Call], rows: Iterable[dict[str, Any]]) -> None:
        found.update({(chip.id, call): row for call, row in zip(chunk, rows, strict=True)})

    with _progress(console, len(chips) * len(calls)) as advance:
        if workers <= 1:
            for chip, chunk in chunks:
                keep(chip, chunk, _run(predict, chip, chunk))
                advance(len(chunk))
            return found
        with ProcessPoolExecutor(workers) as pool:
            waiting = {pool.submit(_run, predict, chip, chunk): (chip, chunk) for chip, chunk in chunks}
            try:
                for future in as_completed(waiting):
                    chip, chunk = waiting[future]
                    keep(chip, chunk, future.result())
                    advance(len(chunk))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return found


def processes() -> int:
    """How many processes share the work: one a core, at most eight."""
    return min(8, os.cpu_count() or 1)


def collect(
    suite: Suite,
    chips: Sequence[Chip],
    *,
    predict: Predictor | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> pd.DataFrame:
    """One row a case and chip: time with interval, bound, rates, count, and totals over the count.

    ``details`` (shape, configuration, utilisation by engine, launch cost) is for the analysis of a pair
    of chips; it is not written to files.

    Equal calls are predicted once. ``workers`` processes share the work (default: one a core, at
    most eight); a predictor of one's own runs in this process unless told otherwise.

    Raises:
        SuiteError: not a single case could be predicted on any chip.
    """
    if workers is None:
        workers = processes() if predict is None else 1
    every = cases(suite)
    calls = list(dict.fromkeys(_call(case) for case in every))
    found = _all(predict, chips, calls, workers, console)
    rows = [
        {
            "phase": case.phase.id,
            "point": case.point.id,
            "entry": case.entry.name,
            "title": case.entry.title,
            "group": case.entry.group,
            "operator": case.entry.operator,
            "shape": " ".join(f"{k}={v}" for k, v in case.shape.items()),
            "count": case.count,
            "tokens": tokens(suite, case.phase, case.point),
            "approximate": case.entry.approximate,
            "chip": chip.id,
            **found[chip.id, _call(case)],
        }
        for case in every
        for chip in chips
    ]
    frame = pd.DataFrame(rows)
    if "time_s" not in frame:
        first = rows[0]
        raise SuiteError(f"nothing could be predicted; {first['chip']}: {first['entry']}: {first['error']}")
    for column in ("time_s", "low_s", "high_s"):
        frame[f"total_{column}"] = frame[column] * frame["count"]
    return frame


def totals(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a phase, point and chip: the whole pass, and whether all of its cases are in it.

    The interval adds the ends of the parts: errors of one chip's model go the same way, so they
    do not cancel.
    """
    grouped = frame.groupby(["phase", "point", "chip"], sort=False, observed=True)
    total = grouped.agg(
        time_s=("total_time_s", "sum"),
        low_s=("total_low_s", "sum"),
        high_s=("total_high_s", "sum"),
        tokens=("tokens", "first"),
        missing=("time_s", lambda times: int(times.isna().sum())),
    ).reset_index()
    total["tokens_per_s"] = total["tokens"] / total["time_s"]
    return total


def complete(total: pd.DataFrame) -> pd.DataFrame:
    """Only the passes with every case predicted: the others cannot be compared."""
    return total[total["missing"] == 0]
