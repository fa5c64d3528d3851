"""Calibrating one chip: its own parameters, those of every operator family, and the errors left."""

from __future__ import annotations

import datetime
import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field

import pandas as pd

from foretile.calibration.checkpoint import Checkpoint
from foretile.calibration.device.kernels import TILE
from foretile.calibration.device.tables import ONE_CONFIGURATION
from foretile.calibration.fit import FitError, Fitted, fit_chip
from foretile.calibration.measurements import fit_rows
from foretile.calibration.parameters import prepared, with_factors
from foretile.calibration.predictions import named_configs_that_fit
from foretile.calibration.profiles import RESULTS, FamilyFit, FamilyResult, fit_family, spread
from foretile.hwmodels import Chip
from foretile.hwmodels.schema import Calibration
from foretile.kernels.operator import load_operator

Progress = Callable[[str], None]
# The chip's parameters are fitted to kernels that are the tile program and nothing else.
CHIP_FAMILY = "gemm.bf16"


@dataclass
class Calibrated:
    """Result of calibrating a chip: the chip, and how it came about."""

    chip: Chip
    fitted: Fitted
    families: list[FamilyFit] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def calibrate(
    chip: Chip,
    table: pd.DataFrame,
    *,
    prior: Mapping[str, tuple[float, float]] | None = None,
    starts: int = 1,
    jobs: int = 1,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Calibrated:
    """Fit ``chip`` to the rows of ``table`` that may be fitted (see :func:`fit_rows`).

    Rows that are not comparable are left out. Rows that name a configuration are compared with the tile
    program in that configuration; those that TileLang compiled inform the chip's own parameters only.
    Families that cannot be predicted are skipped with the reason. ``jobs``: processes that fit families;
    ``checkpoint`` keeps what is done, and has it again when the same rows are fitted to the same chip.

    Raises:
        FitError: no rows of this chip and of the family that its parameters are fitted to.
    """
    rows, unfit = named_configs_that_fit(fit_rows(table[_usable(table, chip.id)]), chip)
    base = rows[rows["family"] == CHIP_FAMILY]
    if base.empty:
        held = ", ".join(sorted(rows["family"].unique())) or "none"
        raise FitError(
            f"{chip.id}: no rows to fit its parameters to: they need {CHIP_FAMILY} with a hash below 10; "
            f"families with rows: {held}"
        )
    kept = checkpoint or Checkpoint(None)
    kept.open(chip, digest(rows), starts)
    fitted = kept.chip_fit
    if fitted is None:
        _, fitted = fit_chip(chip, base, prior=prior, starts=starts, progress=progress)
        kept.add_chip(fitted)
    made = with_fit(chip, fitted, f"fitted to {len(base)} rows, {digest(base)[:12]}")
    libraries = rows[rows["kernel_source"] != TILE]
    others = {
        str(f): g for f, g in libraries.groupby("family") if f != CHIP_FAMILY and f not in kept.families
    }
    for found in _families(made, others, jobs, progress):
        kept.add_family(found)
    done = _assembled(made, fitted, rows, kept.families)
    done.skipped.update(unfit)
    for family in sorted({*rows["family"]} - {*libraries["family"]} - {CHIP_FAMILY}):
        done.skipped[family] = f"only {TILE}: a compiler's kernels take the chip's parameters as they are"
    return done


def _usable(table: pd.DataFrame, device: str) -> pd.Series:
    """Which rows are the device's and measure what is predicted for them."""
    named = table["config"] != "{}" if "config" in table else pd.Series(False, index=table.index)
    library = ~named & (table["comparable"] == "") & (table["launch"] == "graph")
    # The device runner launches long kernels one by one, and times them alone.
    own = named & table["comparable"].isin(["", ONE_CONFIGURATION])
    return (table["device"] == device) & (library | own)


def with_fit(chip: Chip, fitted: Fitted, source: str) -> Chip:
    """``chip`` with the fitted factors on its starting point."""
    return with_factors(prepared(chip), fitted.factors(), source)


def _families(
    chip: Chip, rows: Mapping[str, pd.DataFrame], jobs: int, progress: Progress | None
) -> Iterator[FamilyResult]:
    """Fit every family, several at a time; results come as they are done."""
    largest_first = sorted(rows, key=lambda f: _effort(rows[f]), reverse=True)
    done = 0
    with _pool(min(jobs, len(rows))) as run:
        for result in run(chip, [rows[f] for f in largest_first]):
            done += 1
            if progress:
                progress(f"family {result.family}: {done} of {len(rows)}")
            yield result


def _effort(rows: pd.DataFrame) -> tuple[bool, int]:
    """Sorts families by how long their fits take: most where each row has tensors of its own."""
    operator = load_operator(str(rows["operator"].iloc[0]))
    return operator.tensors is not None, rows["shape"].nunique()


@contextmanager
def _pool(jobs: int) -> Iterator[Callable[[Chip, list[pd.DataFrame]], Iterator[FamilyResult]]]:
    if jobs <= 1:
        yield lambda chip, parts: (fit_family(chip, part) for part in parts)
        return
    # Spawned, not forked: the caller may have threads (a progress display).
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:

        def run(chip: Chip, parts: list[pd.DataFrame]) -> Iterator[FamilyResult]:
            text = chip.model_dump_json()  # parametrised models cannot be pickled
            running = [pool.submit(_fit_elsewhere, text, part) for part in parts]
            for future in as_completed(running):
                yield RESULTS.validate_json(future.result())

        try:
            yield run
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fit_elsewhere(chip: str, rows: pd.DataFrame) -> bytes:
    return RESULTS.dump_json(fit_family(Chip.model_validate_json(chip), rows))


def _assembled(
    chip: Chip, fitted: Fitted, rows: pd.DataFrame, families: Mapping[str, FamilyResult]
) -> Calibrated:
    base = rows[rows["family"] == CHIP_FAMILY]
    errors = pd.DataFrame({"error": fitted.residuals, "time_s": fitted.predicted_s})
    residual = {CHIP_FAMILY: spread(errors)}
    kernels = dict(chip.kernels)
    for name in sorted(families):
        if not families[name].refused:
            residual[name] = dict(families[name].residual)
            kernels.update({f.key: f.profile for f in families[name].fits})
    calibration = Calibration(
        kind="fitted",
        data=", ".join(sorted({s.split(":")[0] for s in base["source"]})),
        sha256=digest(rows),
        rows=len(rows),
        date=datetime.date.today().isoformat(),
        factors=fitted.factors(),
        sigma={n: float(s) for n, s in zip(fitted.names, fitted.sigma, strict=True)},
        unseen=tuple(n for n, s in zip(fitted.names, fitted.seen, strict=True) if not s),
        residual=residual,
    )
    return Calibrated(
        chip.model_copy(update={"kernels": kernels, "calibration": calibration}),
        fitted,
        [f for name in sorted(families) for f in families[name].fits],
        {name: r.refused for name, r in sorted(families.items()) if r.refused},
    )


def digest(rows: pd.DataFrame) -> str:
    """SHA-256 of a table's rows, whatever their order."""
    text = rows.sort_values(["device", "operator", "shape", "kernel_source", "framework"]).to_csv(index=False)
    return hashlib.sha256(text.encode()).hexdigest()
