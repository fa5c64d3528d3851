"""What a calibration has done so far, on disk: an interrupted one goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from foretile.calibration.fit import Fitted
from foretile.calibration.profiles import RESULTS, FamilyResult
from foretile.hwmodels import Chip
from foretile.kernels.whole_files import write_whole


@dataclass
class Checkpoint:
    """Fits done so far, in the file ``path`` (None: nowhere).

    The file belongs to one chip, one set of rows and one version of the model; another's is not used.
    """

    path: Path | None
    chip_fit: Fitted | None = None
    families: dict[str, FamilyResult] = field(default_factory=dict)
    _key: str = ""

    def open(self, chip: Chip, rows_sha256: str, starts: int) -> None:
        """Take what the file holds for this task."""
        text = "|".join((chip.model_dump_json(), rows_sha256, str(starts), _model_sha256()))
        self._key = hashlib.sha256(text.encode()).hexdigest()
        if self.path is None or not self.path.exists():
            return
        try:
            held = json.loads(self.path.read_text(encoding="utf-8"))
            if held["key"] == self._key:
                self.chip_fit = _fitted(held["chip"])
                self.families = {name: RESULTS.validate_python(r) for name, r in held["families"].items()}
        except (json.JSONDecodeError, KeyError, TypeError, ValidationError):
            return  # not a checkpoint of ours: begin anew

    def add_chip(self, fitted: Fitted) -> None:
        """The chip's own parameters are fitted."""
        self.chip_fit = fitted
        self._write()

    def add_family(self, result: FamilyResult) -> None:
        """A family is done."""
        self.families[result.family] = result
        self._write()

    def remove(self) -> None:
        """The whole is done and safe elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        if self.path is None:
            return
        chip = None if self.chip_fit is None else asdict(self.chip_fit)
        families = {name: RESULTS.dump_python(r, mode="json") for name, r in self.families.items()}
        held = {"key": self._key, "chip": chip, "families": families}
        write_whole(self.path, json.dumps(held, default=np.ndarray.tolist))


def _fitted(held: dict[str, Any]) -> Fitted:
    arrays = ("x", "sigma", "covariance", "residuals", "predicted_s")
    values = {**held, **{name: np.asarray(held[name], dtype=np.float64) for name in arrays}}
    return Fitted(**{**values, "names": tuple(held["names"]), "seen": tuple(held["seen"])})


def _model_sha256() -> str:
    """Of the sources of the model: what another version fitted is not this one's result."""
    import foretile.calibration
    import foretile.kernels
    import foretile.simulator

    digest = hashlib.sha256()
    for package in (foretile.calibration, foretile.kernels, foretile.simulator):
        for folder in package.__path__:
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(path.read_bytes())
    return digest.hexdigest()
