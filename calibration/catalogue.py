"""All calibrated chips of the catalogue from one table: fitted, completed, and carried over to siblings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from foretile.calibration.calibrate import Calibrated, calibrate
from foretile.calibration.checkpoint import Checkpoint
from foretile.calibration.overlay import write_overlay
from foretile.calibration.transfer import DIES, completed, transferred
from foretile.hwmodels import Chip, list_chips, load_chip

Progress = Callable[[str], None]


def calibrate_catalogue(
    table: pd.DataFrame, folder: Path, *, jobs: int = 1, progress: Progress | None = None
) -> Iterator[tuple[Chip, Calibrated | None]]:
    """Write a file into ``folder`` for every chip of ``table`` and for chips that share a die with one.

    Chips come with what was fitted (None: transferred) as they are written. The files are there only
    when all fits are done; each chip's fit is kept meanwhile, so that an interrupted run goes on.

    Raises:
        FitError: a chip's fit did not converge, or it has no rows to fit its parameters to.
    """
    done: dict[str, Calibrated] = {}
    checkpoints = []
    for name in sorted(set(table["device"])):
        say = (lambda text, n=name: progress(f"{n}: {text}")) if progress else None
        checkpoint = Checkpoint(folder / f".{name}.partial.json")
        checkpoints.append(checkpoint)
        done[name] = calibrate(
            load_chip(name, calibrated=False), table, jobs=jobs, checkpoint=checkpoint, progress=say
        )
    fitted = {name: d.chip for name, d in done.items()}
    for name, d in done.items():
        base = load_chip(name, calibrated=False)
        chip = completed(base, d.chip, fitted)
        write_overlay(base, chip, folder / f"{name}.yaml")
        yield chip, d
    known = set(list_chips())
    for name in sorted({n for die in DIES if die & set(fitted) for n in die} & known - set(fitted)):
        base = load_chip(name, calibrated=False)
        chip = transferred(base, fitted, own_die=True)
        write_overlay(base, chip, folder / f"{name}.yaml")
        yield chip, None
    for checkpoint in checkpoints:
        checkpoint.remove()
