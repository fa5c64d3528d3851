"""``foretile compare``: predict a suite on chips and write the report's three files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretile.report.output import require_folder, write_all

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from foretile.hwmodels import Chip, IncompleteChip
    from foretile.report.collect import Predictor
    from foretile.report.suite import Suite


@dataclass(frozen=True)
class Report:
    """What was written, and what it says."""

    suite: str
    chips: tuple[str, ...]
    files: tuple[Path, ...]
    findings: tuple[str, ...]
    totals: pd.DataFrame
    incomplete: tuple[IncompleteChip, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``: files, findings, the time of every pass on every chip, and what is
        missing of the incomplete ones.
        """
        whole = self.totals[self.totals["missing"] == 0]
        keep = ["phase", "point", "chip", "time_s", "low_s", "high_s", "tokens_per_s"]
        return {
            "suite": self.suite,
            "chips": list(self.chips),
            "files": [str(path) for path in self.files],
            "findings": list(self.findings),
            "totals": whole[keep].to_dict("records"),
            "incomplete": [{"chip": chip.id, "missing": list(chip.missing)} for chip in self.incomplete],
        }


def write_report(
    suite: Suite,
    chips: Sequence[Chip],
    folder: Path,
    *,
    incomplete: Sequence[IncompleteChip] = (),
    predict: Predictor | None = None,
    workers: int | None = None,
    progress: Console | None = None,
) -> Report:
    """Write ``report.html``, ``report.md`` and ``predictions.csv`` into ``folder``: all or none.

    Of ``incomplete`` chips the report says what is missing, and shows no number.

    Raises:
        OutputError: the folder cannot be written to.
        IncompleteChipError: none but incomplete chips were given.
        SuiteError: not a single case could be predicted.
    """
    require_folder(folder)
    if incomplete and not chips:
        from foretile.hwmodels import IncompleteChipError

        raise IncompleteChipError(incomplete[0])
    from foretile.report.collect import collect
    from foretile.report.page import build, html, markdown

    frame = collect(suite, chips, predict=predict, workers=workers, console=progress)
    content = build(suite, chips, frame, incomplete)
    files = {
        folder / "report.html": html(content),
        folder / "report.md": markdown(content),
        folder / "predictions.csv": frame.to_csv(index=False, lineterminator="\n"),
    }
    write_all(files)
    return Report(
        suite=suite.name,
        chips=tuple(chip.id for chip in chips),
        files=tuple(files),
        findings=tuple(str(finding) for finding in content.findings),
        totals=content.total,
        incomplete=tuple(incomplete),
    )
