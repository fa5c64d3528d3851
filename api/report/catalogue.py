"""The chips a report is about: those that can be predicted, and those whose description does not suffice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foretile.hwmodels.schema import Chip


@dataclass(frozen=True)
class Incomplete:
    """A chip that no number is predicted for, and the fields of its file that are missing."""

    id: str
    name: str
    vendor: str
    missing: tuple[str, ...]

    def missing_in_words(self) -> str:
        """What is missing, the first few by name."""
        more = f" and {len(self.missing) - 4} more" if len(self.missing) > 4 else ""
        return ", ".join(self.missing[:4]) + more

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        return {"id": self.id, "name": self.name, "vendor": self.vendor, "missing": list(self.missing)}


def load_all(names: Sequence[str]) -> tuple[list[Chip], list[Incomplete]]:
    """The chips of these names; one whose file lacks what a prediction needs is set aside, not refused.

    Raises:
        ChipError: an unknown name, or a file that is wrong rather than incomplete.
    """
    from foretile.hwmodels import ChipError, load_chip

    chips: list[Chip] = []
    aside: list[Incomplete] = []
    for name in names:
        try:
            chip: Any = load_chip(name)
        except ChipError as error:
            chip = getattr(error, "chip", None)  # what an error about an incomplete chip is about
            if chip is None:
                aside.append(_incomplete(name, error))
                continue
        missing = tuple(str(field) for field in getattr(chip, "missing", ()))
        if missing:
            aside.append(Incomplete(chip.id, chip.name, chip.vendor, missing))
        else:
            chips.append(chip)
    return chips, aside


def _incomplete(name: str, error: ValueError) -> Incomplete:
    """What the file behind the name lacks; the error itself if nothing."""
    from foretile.hwmodels.completeness import completeness
    from foretile.hwmodels.loader import chip_files, file_chain, merge_documents

    path = chip_files().get(name)
    if path is None:
        raise error
    state = completeness(path)
    missing = tuple(field.path for field in state.missing)
    if not missing:
        raise error
    said = merge_documents(file_chain(path)[1])
    return Incomplete(state.id, str(said.get("name", name)), str(said.get("vendor", "")), missing)
