"""Validation: predict every test row under three kinds of ignorance, beside baselines, resumably."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from foretile.calibration import baselines
from foretile.calibration.accuracy_summary import Summary, summarise
from foretile.calibration.floors import FITTED, UNSEEN
from foretile.calibration.measurements import fit_rows, row_keys, test_rows
from foretile.calibration.metrics import column
from foretile.calibration.regimes import add_regimes
from foretile.calibration.table_schema import TEXTS
from foretile.calibration.table_split import smallest_keys
from foretile.hwmodels import Chip, load_chip
from foretile.kernels.operator import load_operator
from foretile.kernels.whole_files import place_for, write_whole

OPERATOR_OUT = "operator_out"
MODEL_PARTS = (FITTED, UNSEEN, OPERATOR_OUT)
"""Rows of the chip were fitted; none of its die were; none of the operator family were."""
BASELINES = ("roofline", "scaled_roofline", "nearest", "nearest_fit")
"""Roofline; its shares and a constant fitted; interpolation of all other rows, and of the fit rows only."""
ROWS_FILE, SUMMARY_FILE, PARTS_FOLDER = "results.parquet", "summary.json", "parts"
_PREDICTED = ("time_s", "low_s", "high_s", "refused")
_MADE_OF = "made_of"
_BOUND_SHARE = 3  # rows that bring tensors of their own cost some three times as much
_ROOMS = ("hwmodels", "kernels", "simulator", "calibration")

Predict = Callable[[pd.DataFrame, Callable[[str], Chip] | None], pd.DataFrame]


class ValidationError(ValueError):
    """A request that cannot be validated; the message says what can."""


@dataclass(frozen=True)
class Models:
    """What is validated: predictions of a table, and the chips as they are with less knowledge.

    ``identity`` stands for all of the model's code and numbers: results made under another identity
    are not resumed.
    """

    predict: Predict
    without_die: Callable[[str], Chip]
    without_family: Callable[[str, str], Chip]
    identity: str


@dataclass(frozen=True)
class Step:
    """Progress: ``done`` of ``total`` parts; ``label`` names the one that begins, or ended if ``done``."""

    done: int
    total: int
    label: str
    resumed: bool = False


@dataclass(frozen=True)
class Validation:
    """``rows``: every test row with its regimes, and seconds, interval and refusal by part; the summary."""

    rows: pd.DataFrame
    summary: Summary
    files: tuple[Path, ...]


def shipped_models() -> Models:
    """The package's own model: its predictions, and its chips refitted with less."""
    from foretile.calibration.predictions import predict_table
    from foretile.calibration.transfer import without_die, without_family

    return Models(predict_table, without_die, without_family, source_identity())


@cache
def source_identity() -> str:
    """sha256 of every file that a prediction may depend on: code, chips, fitted numbers."""
    modules = {room: importlib.import_module(f"foretile.{room}") for room in _ROOMS}
    return folders_identity({room: Path(str(m.__file__)).parent for room, m in modules.items()})


def folders_identity(folders: Mapping[str, Path]) -> str:
    """sha256 over names and contents of the Python, YAML and JSON files of some named folders."""
    digest = hashlib.sha256()
    for name, folder in folders.items():
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".yaml", ".json"):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{name}/{path.relative_to(folder).as_posix()}={content}\n".encode())
    return digest.hexdigest()


def select(
    table: pd.DataFrame, devices: Sequence[str] | None = None, families: Sequence[str] | None = None
) -> pd.DataFrame:
    """The rows of some chips and families, or of operators: a name is either.

    Raises:
        ValidationError: a name of which the table has no row.
    """
    for wanted, columns, what in (
        (devices, ("device",), "chip"),
        (families, ("family", "operator"), "family"),
    ):
        if not wanted:
            continue
        named = [table[name].astype(object) for name in columns]
        for name in wanted:
            if not any((values == name).any() for values in named):
                held = sorted({str(v) for values in named for v in values.unique()})
                raise ValidationError(f"no measured rows of {what} {name!r}; there are: {', '.join(held)}")
        keep = np.logical_or.reduce([values.isin(list(wanted)).to_numpy() for values in named])
        table = table[keep]
    return table.reset_index(drop=True)


def validate(
    table: pd.DataFrame,
    out: Path | None = None,
    *,
    models: Models | None = None,
    parts: Sequence[str] = MODEL_PARTS,
    most: int | None = None,
    progress: Callable[[Step], None] | None = None,
) -> Validation:
    """Predict the test rows of ``table`` and hold them against what was measured.

    With ``out``, each chip's part is written there as soon as it is done; a later call takes up
    those made by the same model from the same rows. At the end come ``results.parquet`` and
    ``summary.json``. ``most``: test rows of each chip and family at most, those with the smallest
    keys; a third of it where trip counts depend on tensors, of which every row brings its own.

    Raises:
        ValidationError: the table has no test rows, or a part that there is not.
        OSError: ``out`` cannot be written to.
    """
    for part in parts:
        if part not in MODEL_PARTS:
            raise ValidationError(f"no part {part!r}; there are: {', '.join(MODEL_PARTS)}")
    table = table.reset_index(drop=True)
    rows = test_rows(table)
    if rows.empty:
        raise ValidationError(
            f"none of the {len(table)} rows is for testing: all are in folds that a fit sees"
        )
    if most is not None:
        rows = _limited(rows, most)
    models = models or shipped_models()
    tell = progress or (lambda step: None)
    wanted = [part for part in MODEL_PARTS if part in parts]
    jobs = list(_jobs(table, rows, wanted))
    rows = add_regimes(rows, baselines.roof(rows))
    hashes = _Hashes.of(table)
    made: list[pd.DataFrame] = []
    for number, job in enumerate(jobs):
        tell(Step(number, len(jobs), job.label))
        frame, resumed = _made(job, models, out, hashes)
        made.append(frame.set_axis(job.rows.index))
        tell(Step(number + 1, len(jobs), job.label, resumed))
    rows = rows.join(_together(made))
    summary = summarise(table, rows, wanted, BASELINES)
    files = _write(rows, summary, out) if out is not None else ()
    return Validation(rows, summary, files)


def _limited(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    bound = rows["operator"].astype(object).map(lambda name: load_operator(name).tensors is not None)
    parts = ((rows[~bound], most), (rows[bound], max(1, most // _BOUND_SHARE)))
    return pd.concat([smallest_keys(some, row_keys(some), n) for some, n in parts]).sort_index()


@dataclass(frozen=True)
class _Job:
    """Test rows of one chip, or of one of its families, and what to find out about them.

    ``known``: rows whose measured times may be used; only baselines use any.
    """

    part: str
    device: str
    family: str
    rows: pd.DataFrame
    known: pd.DataFrame

    @property
    def label(self) -> str:
        return " ".join(filter(None, (self.device, self.part.replace("_", " "), self.family)))

    @property
    def file(self) -> str:
        return ".".join(filter(None, (self.device, self.part, self.family.replace(".", "-"), "parquet")))


@dataclass(frozen=True)
class _Hashes:
    """A number for each row of the table: over all that a model is shown, and over the measured time too."""

    blind: pd.Series[int]
    known: pd.Series[int]

    @staticmethod
    def of(table: pd.DataFrame) -> _Hashes:
        texts = table[[name for name in TEXTS if name != "licence"]].astype(object)
        blind = pd.util.hash_pandas_object(texts, index=False)
        timed = pd.DataFrame({"row": blind, "latency_s": table["latency_s"]})
        return _Hashes(blind, pd.util.hash_pandas_object(timed, index=False))


def _jobs(table: pd.DataFrame, rows: pd.DataFrame, parts: Sequence[str]) -> Iterator[_Job]:
    none = table.iloc[:0]
    for device, own in rows.groupby("device", observed=True, sort=True):
        yield _Job("baselines", str(device), "", own, table[table["device"] == device])
        for part in parts:
            if part != OPERATOR_OUT:
                yield _Job(part, str(device), "", own, none)
                continue
            for family, some in own.groupby("family", observed=True, sort=True):
                yield _Job(part, str(device), str(family), some, none)


def _together(made: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One frame of all parts' columns: those of the same part below each other, parts side by side."""
    below: dict[tuple[str, ...], list[pd.DataFrame]] = {}
    for frame in made:
        below.setdefault(tuple(frame.columns), []).append(frame)
    return pd.concat([pd.concat(frames) for frames in below.values()], axis=1)


def _baselines(job: _Job) -> pd.DataFrame:
    known = fit_rows(job.known[job.known["comparable"] == ""])
    times = (
        pd.Series(baselines.roof(job.rows).time_s, index=job.rows.index),
        baselines.scaled_roofline(known, job.rows),
        baselines.nearest(job.known, job.rows),
        baselines.nearest(known, job.rows),
    )
    named = {column(name): time_s for name, time_s in zip(BASELINES, times, strict=True)}
    return pd.DataFrame(named).reset_index(drop=True)


def _made(job: _Job, models: Models, out: Path | None, hashes: _Hashes) -> tuple[pd.DataFrame, bool]:
    """The job's columns, in the order of its rows; whether an earlier run had made them."""
    if out is None:
        return _work(job, models), False
    path, made_of = out / PARTS_FOLDER / job.file, _made_of(job, models, hashes)
    earlier = _earlier(path, made_of, len(job.rows))
    if earlier is not None:
        return earlier, True
    frame = _work(job, models)
    frame.attrs[_MADE_OF] = made_of
    with place_for(path) as temporary:
        frame.to_parquet(temporary, index=False)
    frame.attrs = {}
    return frame, False


def _work(job: _Job, models: Models) -> pd.DataFrame:
    return _predicted(job, models) if job.part in MODEL_PARTS else _baselines(job)


def _predicted(job: _Job, models: Models) -> pd.DataFrame:
    names = {what: column(job.part, what.removesuffix("time_s").removesuffix("_s")) for what in _PREDICTED}
    # The model is not shown what was measured.
    blind = job.rows.assign(latency_s=1.0, spread=np.nan)
    try:
        chip_of = _chip_of(job, models)
    except ValueError as error:  # nothing left to fit from: refused with the reason, and counted
        nothing = dict.fromkeys(("time_s", "low_s", "high_s"), np.nan)
        made = pd.DataFrame({**nothing, "refused": str(error)}, index=blind.index)
    else:
        made = models.predict(blind, chip_of)
    return made.loc[blind.index, list(_PREDICTED)].rename(columns=names).reset_index(drop=True)


def _chip_of(job: _Job, models: Models) -> Callable[[str], Chip] | None:
    if job.part == FITTED:
        return None
    if job.part == UNSEEN:
        chip = models.without_die(job.device)
    else:
        chip = models.without_family(job.device, job.family)
    return lambda device: chip


def _made_of(job: _Job, models: Models, hashes: _Hashes) -> str:
    """A hash of all that the job's predictions follow from."""
    digest = hashlib.sha256(f"{job.part}|{job.family}|{models.identity}|".encode())
    digest.update(load_chip(job.device).model_dump_json().encode())
    shown = hashes.known if job.part not in MODEL_PARTS else hashes.blind
    for rows in (job.rows, job.known):
        digest.update(shown.loc[rows.index].to_numpy().tobytes())
    return digest.hexdigest()


def _earlier(path: Path, made_of: str, rows: int) -> pd.DataFrame | None:
    """What an earlier run wrote, if it was made of the same."""
    if not path.is_file():
        return None
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError):  # cut short by a full disk or not ours: made again
        return None
    if frame.attrs.pop(_MADE_OF, None) != made_of or len(frame) != rows:
        return None
    return frame


def _write(rows: pd.DataFrame, summary: Summary, out: Path) -> tuple[Path, ...]:
    paths = (out / ROWS_FILE, out / SUMMARY_FILE)
    with place_for(paths[0]) as temporary:
        rows.to_parquet(temporary, index=False)
    write_whole(paths[1], summary.to_text())
    return paths
