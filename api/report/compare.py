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
    from foretile.report.against import Against
    from foretile.report.collect import Predictor
    from foretile.report.suite import Suite
    from foretile.report.why import Why


@dataclass(frozen=True)
class Report:
    """What was written, and what it says."""

    suite: str
    chips: tuple[str, ...]
    files: tuple[Path, ...]
    findings: tuple[str, ...]
    totals: pd.DataFrame
    why: tuple[Why, ...] = ()
    against: tuple[Against, ...] = ()
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
            "why": [pair.to_json() for pair in self.why],
            "against_the_leader": [phase.to_json() for phase in self.against],
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
    why: Sequence[str] | None = None,
) -> Report:
    """Write ``report.html``, ``report.md`` and ``predictions.csv`` into ``folder``: all or none.

    ``why``: ids of the chips whose difference is explained, the first beside each of the others, or empty
    for the one that leads and the next of another architecture; None for none. ``incomplete``: chips that
    are named with what is missing, and without any number.

    Raises:
        OutputError: the folder cannot be written to.
        IncompleteChipError: none but incomplete chips were given.
        SuiteError: not a single case could be predicted, or no such chips are among ``chips``.
    """
    require_folder(folder)
    if incomplete and not chips:
        from foretile.hwmodels import IncompleteChipError

        raise IncompleteChipError(incomplete[0])
    _check_asked(chips, why)
    from foretile.report.collect import collect, processes
    from foretile.report.page import build, html, markdown

    if workers is None:
        workers = processes() if predict is None else 1
    frame = collect(suite, chips, predict=predict, workers=workers, console=progress)
    explained = []
    for first, second in _asked(suite, chips, frame, why):
        from foretile.report.why import why as explain

        if progress is not None:
            progress.print(f"Why {first.id} and {second.id} differ …", style="dim", markup=False)
        explained.append(explain(suite, frame, first, second, chips, workers))
    content = build(suite, chips, frame, explained, incomplete)
    files = {
        folder / "report.html": html(content),
        folder / "report.md": markdown(content),
        folder / "predictions.csv": frame.drop(columns="details").to_csv(index=False, lineterminator="\n"),
    }
    write_all(files)
    return Report(
        suite=suite.name,
        chips=tuple(chip.id for chip in chips),
        files=tuple(files),
        findings=tuple(str(finding) for finding in content.findings),
        totals=content.total,
        why=tuple(explained),
        against=content.against,
        incomplete=tuple(incomplete),
    )


def _check_asked(chips: Sequence[Chip], why: Sequence[str] | None) -> None:
    from foretile.report.suite import SuiteError

    if why and (len(set(why)) != len(why) or len(why) < 2 or not set(why) <= {chip.id for chip in chips}):
        known = ", ".join(chip.id for chip in chips)
        raise SuiteError(
            f"why: give two or more different chips of those compared ({known}), not {', '.join(why)}"
        )


def _asked(
    suite: Suite, chips: Sequence[Chip], frame: pd.DataFrame, why: Sequence[str] | None
) -> list[tuple[Chip, Chip]]:
    """The pairs to explain: those asked for, or the leader and the next of another architecture."""
    from foretile.report.collect import totals
    from foretile.report.figures import ranking

    if why is None:
        return []
    by_id = {chip.id: chip for chip in chips}
    if why:
        return [(by_id[why[0]], by_id[other]) for other in why[1:]]
    ranked = [by_id[name] for name in ranking(totals(frame), suite.phases)]
    if len(ranked) < 2:
        return []
    # Products of one architecture differ by little: the next of another says more.
    return [(ranked[0], next((c for c in ranked[1:] if c.family != ranked[0].family), ranked[1]))]
